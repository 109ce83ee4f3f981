"""The evidence of a data set: its spread over the data, and its estimates against the number of particles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppl_vae.plots.arguments import ArrayLike, IntervalLike, check_captions, finite, number, to_ends, to_vector
from ppl_vae.plots.estimators import DASHES, MARKERS
from ppl_vae.plots.figure import NOTE, WIDTH, key, new_figure, tidy, write_foot, write_legend
from ppl_vae.plots.latent import CLASS_COLOURS
from ppl_vae.plots.mosaics import GREY, to_tiles
from ppl_vae.plots.style import BLACK, BLUE, SMALL_SIZE, VERMILION, styled

if TYPE_CHECKING:
    from jaxtyping import Shaped

EVIDENCE, ELBO = BLUE, VERMILION  # in every picture blue is the truth and orange the bound
MOST_WORST = 20


@styled
def evidence_histogram(
    log_evidence: Shaped[ArrayLike, " n"],
    worst_images: ArrayLike | None = None,
    worst_values: Shaped[ArrayLike, " m"] | None = None,
    *,
    elbo: Shaped[ArrayLike, " n"] | None = None,
    worst_captions: Sequence[str] | None = None,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    r"""Draw histograms of log p(x) and the ELBO over the data, and the data that the model explains worst.

    The histograms show the tail of data far below the mean, which a mean hides. Both have the same bins, from the 0.5%
    quantile of all drawn values to the highest value; lower values are counted at the left edge. The distance between
    the two means is the mean gap. No other distance between the histograms is the gap of a datum.

    Args:
        log_evidence: log p(x), nats. Data whose value is not finite are left out and counted.
        worst_images: The worst data, worst first, images (m, C, H, W) with C = 1 or 3, or (m, H, W); at most 20.
        worst_values: Their log p(x), nats, written under them and marked on the axis.
        elbo: The ELBO of the same data, nats.
        worst_captions: A further line under each image, such as its class.
        caveat: Written at the foot.
        value_range: Values of the images drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure whose first axes hold the histograms; each worst datum has axes of its own.

    Raises:
        ValueError: If the shapes do not fit, or no value is finite.

    Example:
        >>> import torch
        >>> figure = evidence_histogram(-100 - 10 * torch.rand(200), elbo=-110 - 10 * torch.rand(200))
        >>> figure.axes[0].get_xlabel()
        'nats per datum'
    """
    values = to_vector(log_evidence, "evidence_histogram: log_evidence")
    series = {"$\\log p(x)$": values}
    if elbo is not None:
        series["ELBO"] = to_vector(elbo, "evidence_histogram: elbo", len(values))
    missing, kept = finite("evidence_histogram", "evidence or ELBO is", *series.values())
    tiles, marks, note = np.empty((0, 1, 1)), np.empty(0), None
    if worst_images is not None and worst_values is not None:
        tiles, note = to_tiles(worst_images, "worst_images", value_range)
        marks = to_vector(worst_values, "evidence_histogram: worst_values", len(tiles))
        if len(tiles) > MOST_WORST:
            raise ValueError(f"evidence_histogram: got {len(tiles)} worst images; expected at most {MOST_WORST}")
        check_captions(worst_captions, "evidence_histogram: worst_captions", len(tiles))
    elif any(given is not None for given in (worst_images, worst_values, worst_captions)):
        raise ValueError("evidence_histogram: got one of worst_images and worst_values; expected both, or neither")

    columns = min(len(tiles), 10)
    rows = math.ceil(len(tiles) / 10)
    line_height = 0.16 * (1 + (worst_captions is not None))  # inches, of the words under an image
    row_height = WIDTH / max(columns, 7) * 0.85 + line_height + 0.12 if rows else 0.0
    figure = new_figure(WIDTH, 2.9 + rows * row_height)
    gridspec = figure.add_gridspec(1 + rows, max(columns, 1), height_ratios=[2.9, *[row_height] * rows])
    marked = _draw_histograms(figure.add_subplot(gridspec[0, :]), dict(zip(series, kept, strict=True)), marks)
    for i, tile in enumerate(tiles):
        axes = figure.add_subplot(gridspec[1 + i // 10, i % 10], xticks=[], yticks=[])
        axes.imshow(tile, **GREY)
        axes.spines[:].set_visible(False)
        lines = [number(marks[i]), *([worst_captions[i]] if worst_captions else [])]
        axes.set_xlabel("\n".join(lines), fontsize=SMALL_SIZE, labelpad=2)
    which = "which" if marked == len(tiles) else f"of which {marked}"
    where = f", {which} the short lines on the axis mark" if marked else ", all outside the picture above"
    below = f"The worst data and their log p(x) in nats{where}." if len(tiles) else None
    return write_foot(figure, caveat, below, missing, note)


def _draw_histograms(axes: Axes, series: Mapping[str, np.ndarray], marks: np.ndarray) -> int:
    """Draw the histograms and those of the marks that lie within them, and return how many these are."""
    everything = np.concatenate(list(series.values()))
    low, high = np.quantile(everything, 0.005), everything.max()
    if len(marks) and marks.min() > low - 0.5 * (high - low):
        low = min(low, marks.min())
    shown = everything[everything >= low]
    spread = np.subtract(*np.quantile(shown, [0.75, 0.25])) or shown.std()  # where most are equal
    width = 2 * spread / (len(everything) / len(series)) ** (1 / 3)  # Freedman & Diaconis
    count = int(np.clip((high - low) / width, 8, 70)) if width > 0 else 1
    if high == low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, count + 1).tolist()
    handles, below = [], []
    for (name, one), colour, dashes in zip(series.items(), (EVIDENCE, ELBO), DASHES[:2], strict=False):
        counts, *_ = axes.hist(one, edges, color=colour, alpha=0.3, linewidth=0)
        axes.stairs(counts, edges, color=colour, linewidth=1.2, linestyle=dashes)  # `hist` of 3.10.0 takes no dashes
        axes.axvline(one.mean(), color=colour, linestyle=dashes, linewidth=1.6)
        handles.append(key(f"{name}, mean {number(one.mean(), 2)}", color=colour, linestyle=dashes, linewidth=1.6))
        if (one < low).any():
            below.append(f"← {int((one < low).sum())} below ({name})")
    if below:
        axes.text(0.012, 0.96, "\n".join(below), transform=axes.transAxes, va="top", **NOTE | {"fontstyle": "normal"})
    margin = 0.02 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    inside = marks[(marks >= low - margin) & (marks <= high + margin)]
    axes.vlines(inside, 0.0, 0.07, color="#000000", linewidth=1.0, transform=axes.get_xaxis_transform(), zorder=4)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    write_legend(axes, handles, 2, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.5)
    tidy(axes, x="nats per datum", y="data")
    return len(inside)


@styled
def evidence_by_particles(
    num_particles: Sequence[int] | ArrayLike,
    means: ArrayLike | Mapping[str, ArrayLike],
    intervals: Sequence[IntervalLike] | Mapping[str, Sequence[IntervalLike]] | None = None,
    *,
    exact: float | None = None,
    exact_interval: IntervalLike | None = None,
    exact_name: str = "exact, by quadrature",
    elbo: float | None = None,
    elbo_interval: IntervalLike | None = None,
    caveat: str | None = None,
) -> Figure:
    r"""Plot the importance sampling estimates of the mean log p(x) against the number of particles K.

    The expected estimate rises with K to log p(x). A curve that still rises has not converged. A curve that has gone
    flat need not have converged either: a mode that no draw has hit leaves no trace. The intervals over data are those
    of each mean. They are wide beside the steps from one K to the next. The steps share their data, so that they are
    known far better than the intervals suggest.

    Args:
        num_particles: K of each estimate, (k,), positive; the same for all curves.
        means: The mean over data of the estimate at each K, (k,), nats per datum; or a mapping of names to such means.
        intervals: A pair (low, high) for each mean, or an object with these attributes; or a mapping of names to such
            intervals. None draws no intervals.
        exact: The mean of log p(x) where it is known.
        exact_interval: The interval of `exact`, drawn as a band.
        exact_name: How `exact` is known, for the legend.
        elbo: The mean ELBO, drawn at K = 1: its expectation is that of the estimate with one particle from q.
        elbo_interval: The interval of `elbo`.
        caveat: Written at the foot.

    Returns:
        A figure of one axes: a line for each curve, and a horizontal line for the exact value.

    Raises:
        ValueError: If the shapes do not fit, or no mean is finite. Single means that are not finite break the line, and
            a note says how many.

    Example:
        >>> figure = evidence_by_particles([10, 100], [-125.0, -122.0], [(-126, -124), (-123, -121)], exact=-120.5)
        >>> figure.axes[0].get_xscale()
        'log'
    """
    ks = to_vector(num_particles, "evidence_by_particles: num_particles")
    if not (ks >= 1).all() or not np.isfinite(ks).all() or len(set(ks)) != len(ks):
        given = f"num_particles are {ks.tolist()}"
        raise ValueError(f"evidence_by_particles: {given}; expected numbers from 1 on, each once")
    curves = dict(means) if isinstance(means, Mapping) else {"importance sampling": means}
    if intervals is not None and not isinstance(intervals, Mapping):
        intervals = {next(iter(curves)): intervals}
    bars = dict(intervals or {})
    if not set(bars) <= set(curves) or len(curves) > len(CLASS_COLOURS) - 2 or not curves:
        raise ValueError(
            f"evidence_by_particles: means are of {sorted(curves)} and intervals of {sorted(bars)}; expected up to "
            f"{len(CLASS_COLOURS) - 2} curves, and intervals of these"
        )
    figure = new_figure(5.2, 3.3)
    axes = figure.add_subplot()
    colours = [colour for colour in CLASS_COLOURS if colour not in (ELBO, BLACK)]
    broken, handles = 0, []
    for place, (name, values) in enumerate(curves.items()):
        curve = to_vector(values, f"evidence_by_particles: means of {name}", len(ks))
        broken += int((~np.isfinite(curve)).sum())
        if not np.isfinite(curve).any():
            raise ValueError(f"evidence_by_particles: no mean of {name} is finite")
        look = {"color": colours[place], "marker": MARKERS[place % 5], "linestyle": DASHES[place % 4]}
        x = ks * (1.0 + 0.04 * (place - (len(curves) - 1) / 2))  # side by side, so that no bar hides another
        handles.append(_draw_curve(axes, x, curve, bars.get(name), name, **look))
    if elbo is not None:
        bar = None if elbo_interval is None else [to_ends(elbo_interval, "evidence_by_particles: elbo_interval")]
        at = np.array([float(elbo)])
        handles.append(_draw_curve(axes, np.ones(1), at, bar, "ELBO, at $K=1$", color=ELBO, marker="s"))
    if exact is not None:
        if exact_interval is not None:
            band = to_ends(exact_interval, "evidence_by_particles: exact_interval")
            axes.axhspan(*band, color="#000000", alpha=0.08, lw=0)
        dashed: dict[str, Any] = {"color": "#000000", "linestyle": "--", "linewidth": 1.1}
        axes.axhline(float(exact), **dashed)
        handles.append(key(f"{exact_name}: {number(float(exact), 2)}", **dashed))
    axes.set_xscale("log")
    first = 1.0 if elbo is not None else ks.min()
    ticks = sorted({first, *ks})
    if len(ticks) <= 8 and all(b / a >= 1.8 for a, b in itertools.pairwise(ticks)):  # otherwise the ticks of a log axis
        axes.set_xticks(ticks, [f"{k:,.0f}" for k in ticks])
        axes.minorticks_off()
    axes.set_xlim(first / 1.35, max(ks.max(), first) * 1.35)
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 2.5, 5, 10])
    axes.ticklabel_format(axis="y", useOffset=False)
    tidy(axes, x="number of particles $K$", y="mean $\\log p(x)$, nats per datum", grid=True)
    write_legend(figure, handles, 2 if len(handles) > 1 else 1)
    beside = "At one K, curves stand side by side: the offset is no value." if len(curves) > 1 else None
    return write_foot(figure, caveat, beside, f"{broken} means are not finite, and not drawn." if broken else None)


def _draw_curve(
    axes: Axes, x: np.ndarray, y: np.ndarray, intervals: Sequence[IntervalLike] | None, label: str, **look: Any
) -> Line2D:
    """Draw a curve with its intervals, and return its entry of the legend."""
    order = np.argsort(x)
    if intervals is not None:
        name = f"evidence_by_particles: intervals of {label}"
        if len(intervals) != len(x):
            raise ValueError(f"{name} are {len(intervals)}; expected {len(x)}, one for each mean")
        low, high = np.array([to_ends(interval, name) for interval in intervals])[order].T
        axes.vlines(x[order], low, high, color=look["color"], linewidth=1.2, alpha=0.8)
    axes.plot(x[order], np.where(np.isfinite(y), y, np.nan)[order], linewidth=1.4, markersize=4.5, zorder=3, **look)
    return key(label, linewidth=1.4 if len(x) > 1 else 0.0, markersize=4.5, **look)
