"""The rate-distortion plane: the cost of the latents, and the loss that remains."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppl_vae.plots.arguments import ArrayLike, IntervalLike, number, to_array, to_ends, to_points
from ppl_vae.plots.curves import settled
from ppl_vae.plots.estimators import MARKERS
from ppl_vae.plots.figure import CENTRED, PAPER, key, new_figure, tidy, write_foot, write_legend
from ppl_vae.plots.style import COLOURS, SMALL_SIZE, styled

LINE_COLOUR = "#999999"


@styled
def rate_distortion(
    points: Mapping[str, ArrayLike],
    *,
    intervals: Mapping[str, tuple[IntervalLike, IntervalLike]] | None = None,
    log_evidence: Mapping[str, float] | None = None,
    caveat: str | None = None,
) -> Figure:
    r"""Plot rate against distortion of several models, or of one over its training, with lines of equal ELBO.

    .. math::
        R = \mathbb E_x\,\mathrm{KL}(q(z|x) \,\|\, p(z)), \qquad D = -\mathbb E_x\,\mathbb E_q[\log p(x|z)],
        \qquad \mathcal L = -(R + D).

    Two models with the same ELBO may lie far apart on its line: one uses its latents, the other ignores them (R = 0).
    Compare only points of the same data. The distortion of a continuous likelihood is that of a density and may be
    negative. The first tenth of a path is left out of the picture where it would flatten the rest; a note says so.

    Args:
        points: By model name, the (rate, distortion), nats per datum, (2,); or the path, (m, 2), one epoch after the
            other, with its last point marked. At most 20 models.
        intervals: By model name, the intervals of rate and distortion of the (last) point: each a pair (low, high) or
            an object with these attributes.
        log_evidence: By model name, the mean of log p(x), nats per datum. A line leads from the point to the left by
            the gap KL(q(z|x) || p(z|x)), to where R + D is -log p(x).
        caveat: Written at the foot.

    Returns:
        A figure of one axes, distortion to the right and rate upwards. Points that are not finite break a path, and a
        note counts them.

    Raises:
        ValueError: If the shapes do not fit, no point of a model is finite, or a name has no point.

    Reference:
        Fixing a Broken ELBO (Alemi et al., 2018), https://arxiv.org/abs/1711.00464

    Example:
        >>> figure = rate_distortion({"VAE": [7.8, 124.9], "flow": [[9.0, 140.0], [8.1, 121.0]]},
        ...                          log_evidence={"VAE": -119.3})
        >>> figure.axes[0].get_xlabel()
        'distortion $D$, nats per datum'
    """
    if not isinstance(points, Mapping) or not 0 < len(points) <= 20:
        raise ValueError(f"rate_distortion: points are {type(points).__name__}; expected a mapping of 1 to 20 names")
    paths = {name: _path(name, given) for name, given in points.items()}
    intervals, log_evidence = dict(intervals or {}), dict(log_evidence or {})
    unknown = (set(intervals) | set(log_evidence)) - set(paths)
    if unknown:
        raise ValueError(f"rate_distortion: there is no point for {sorted(unknown)}; expected names of {sorted(paths)}")
    ends = {name: _intervals(name, given) for name, given in intervals.items()}  # (2, 2): rate and distortion
    lasts = {name: path[np.isfinite(path).all(1)][-1] for name, path in paths.items()}
    for name, log_p in log_evidence.items():
        if not math.isfinite(log_p):
            raise ValueError(f"rate_distortion: log_evidence of {name} is {log_p}; expected a finite number")
    truths = {name: np.array([lasts[name][0], -float(log_p) - lasts[name][0]]) for name, log_p in log_evidence.items()}

    figure = new_figure(5.6, 4.0)
    axes = figure.add_subplot()
    corners = [point.reshape(-1, 2) for point in (*truths.values(), *(e.T for e in ends.values()))]
    outside = _set_limits(axes, list(paths.values()), corners)
    _draw_lines_of_equal_elbo(axes)
    handles = []
    for i, (name, path) in enumerate(paths.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        rate, distortion = path.T
        if len(path) > 1:
            axes.plot(distortion, rate, color=colour, linewidth=1.1, alpha=0.75, marker=".", markersize=3, zorder=3)
        rate_at, distortion_at = lasts[name]
        if name in ends:
            axes.vlines(distortion_at, *ends[name][0], color=colour, linewidth=1.2, zorder=3)
            axes.hlines(rate_at, *ends[name][1], color=colour, linewidth=1.2, zorder=3)
        if name in truths:
            x = truths[name][1]
            axes.plot([x, distortion_at], [rate_at, rate_at], ":", color=colour, linewidth=1.2, zorder=3)
            axes.plot(x, rate_at, marker, color=colour, markerfacecolor="#FFFFFF", markersize=6, zorder=4)
        axes.plot(distortion_at, rate_at, marker, color=colour, markersize=6, zorder=5)
        label = f"{name}, ELBO {number(-rate_at - distortion_at, 2)}"
        label += f", log p(x) {number(float(log_evidence[name]), 2)}" if name in log_evidence else ""
        width = 1.1 if len(path) > 1 else 0.0
        handles.append(key(label, color=colour, marker=marker, markersize=6, linewidth=width))
    if truths:
        hollow = {"marker": "o", "markerfacecolor": "#FFFFFF", "linestyle": ":"}
        handles.append(key("gap to −log p(x)", color="#333333", **hollow))
    handles.append(key("equal ELBO", color=LINE_COLOUR, linewidth=0.8))
    tidy(axes, x="distortion $D$, nats per datum", y="rate $R$, nats per datum")
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = 2 if longest <= 38 and len(handles) > 2 else 1
    write_legend(figure, handles, columns)
    figure.set_figheight(4.0 + 0.19 * math.ceil(len(handles) / columns))
    broken = sum(int((~np.isfinite(path).all(1)).sum()) for path in paths.values())
    beyond = f"The first {outside} points of the paths are outside the picture." if outside else None
    return write_foot(figure, caveat, f"{broken} points are not finite." if broken else None, beyond)


def _path(name: str, given: ArrayLike) -> np.ndarray:
    what = f"rate_distortion: points of {name}"
    path = to_points(np.atleast_2d(to_array(given, what)), what, 2)
    if not np.isfinite(path).all(1).any():
        raise ValueError(f"rate_distortion: no point of {name} is finite; has the training diverged?")
    return np.where(np.isfinite(path).all(1, keepdims=True), path, np.nan)


def _intervals(name: str, given: tuple[IntervalLike, IntervalLike]) -> np.ndarray:
    try:
        rate, distortion = given
    except (TypeError, ValueError):
        raise ValueError(
            f"rate_distortion: intervals of {name} are {given!r}; expected one for the rate, one for the distortion"
        ) from None
    return np.array([to_ends(one, f"rate_distortion: an interval of {name}") for one in (rate, distortion)])


def _set_limits(axes: Axes, paths: list[np.ndarray], corners: list[np.ndarray]) -> int:
    """Set limits of all points, or without the first tenth of paths where it flattens the rest; count those outside."""
    outside = 0
    for axis, set_limits in ((1, axes.set_xlim), (0, axes.set_ylim)):
        some = settled([points[:, axis] for points in (*paths, *corners)], factor=3)
        margin = 0.1 * np.ptp(some) or max(0.05 * abs(some[0]), 1.0)
        low, high = some.min() - margin, some.max() + margin
        set_limits(low, high)
        outside = max(outside, sum(int(((path[:, axis] < low) | (path[:, axis] > high)).sum()) for path in paths))
    return outside


def _draw_lines_of_equal_elbo(axes: Axes) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = right - left, top - bottom
    totals = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(left + bottom, right + top)
    digits = max(0, math.ceil(-math.log10(totals[1] - totals[0]) - 1e-6))  # of a step
    for total in totals:
        if not left + bottom < total < right + top:
            continue
        axes.axline((total - bottom, bottom), slope=-1, color=LINE_COLOUR, linewidth=0.8, zorder=1)
        y = top - 0.06 * height  # the number of the line stands at the top, or else at the left
        x = total - y
        if x < left + 0.06 * width:
            x = left + 0.06 * width
            y = total - x
        if x < right - 0.04 * width and y > bottom + 0.05 * height:
            words = number(-total, digits)
            look = CENTRED | {"fontsize": SMALL_SIZE, "color": "#666666", "bbox": PAPER | {"pad": 0.8}, "zorder": 2}
            along = {"rotation": -45, "rotation_mode": "anchor", "transform_rotates_text": True}
            axes.text(x, y, words, **look | along).set_in_layout(False)
