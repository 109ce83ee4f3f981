"""The curves of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppl_vae.plots.figure import TEXT_SIZE, TITLE_SIZE, WIDTH, note_style, tidy, write_foot

TRAIN, VALIDATION, OBJECTIVE = "#0072B2", "#D55E00", "#009E73"


def training_curves(history: Sequence[Mapping[str, Any]], *, caveat: str | None = None) -> Figure:
    r"""Plot the course of a training: the ELBO, its two terms, and the reconstruction error, epoch by epoch.

    Panels without values in the history are left out. The first tenth of the epochs is cut off where it would
    flatten the rest (if the curves span less than a third without it). A value that is missing or None was
    not measured, and the line runs on. A value that is NaN or infinite breaks the line, and the panel says
    how many such values there are.

    Args:
        history: One mapping an epoch. The drawn keys are ``epoch``; ``elbo``, ``log_likelihood``, ``kl`` (on
            the training data) and the same with the prefix ``validation_``, in nats per datum; ``bound``, the
            objective's own value, if it differs from ``elbo``; ``reconstruction_error``, the mean L2 norm on
            the validation data. Other keys are ignored.
        caveat: Written at the foot.

    Returns:
        A figure of up to four axes: :math:`\mathcal{L}`, :math:`\mathbb{E}_q[\log p(x|z)]`,
        :math:`\operatorname{KL}`, and the reconstruction error.

    Raises:
        ValueError: If the history holds nothing to draw, or a value that is not a number.

    Example:
        >>> figure = training_curves([{"epoch": 1, "elbo": -180.0}, {"epoch": 2, "elbo": -160.0, "kl": 6.0}])
        >>> [axes.get_title() for axes in figure.axes]
        ['ELBO', 'KL$(q(z\\,|\\,x)\\,\\|\\,p(z))$']
    """
    history = list(history)
    panels = [(panel, _curves(history, panel)) for panel in PANELS]
    panels = [(panel, curves) for panel, curves in panels if curves]
    if not panels:
        known = ", ".join(series.key for panel in PANELS for series in panel.series)
        raise ValueError(
            "training_curves: history holds nothing to draw; expected one mapping an epoch, with some of the "
            f"keys {known}"
        )

    columns = {1: 1, 2: 2, 3: 3, 4: 2}[len(panels)]
    rows = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.04, wspace=0.02, hspace=0.06)
    width, panel_height = {1: (4.5, 3.0), 2: (WIDTH, 2.6), 3: (WIDTH, 2.3)}[columns]
    figure = Figure(figsize=(width, panel_height * rows + 0.25), layout=layout)
    entries: dict[str, Line2D] = {}
    for number, (panel, curves) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_panel(axes, panel, curves, bottom=number + columns >= len(panels))
        for curve in curves:
            _, label, colour, style = curve.series
            entries.setdefault(label, Line2D([], [], color=colour, linestyle=style, label=label))
    figure.legend(
        handles=list(entries.values()),
        loc="outside upper center",
        ncols=len(entries),
        frameon=False,
        fontsize=TEXT_SIZE,
        borderaxespad=0.0,
    )
    figure.align_ylabels()
    write_foot(figure, layout, caveat)
    return figure


class _Series(NamedTuple):
    """One line of a panel."""

    key: str
    label: str
    colour: str
    style: Literal["-", "--"] = "-"


class _Panel(NamedTuple):
    """The title, unit and lines of one axes of :func:`training_curves`."""

    title: str
    unit: str
    series: tuple[_Series, ...]


class _Curve(NamedTuple):
    """The points of a line, NaN where the value was not finite."""

    series: _Series
    epochs: np.ndarray
    values: np.ndarray


NATS = "nats per datum"
PANELS = (
    _Panel(
        "ELBO",
        NATS,
        (
            _Series("elbo", "training", TRAIN),
            _Series("validation_elbo", "validation", VALIDATION),
            _Series("bound", "the objective's own bound, training", OBJECTIVE, "--"),
        ),
    ),
    _Panel(
        r"$\mathbb{E}_q[\log p(x\,|\,z)]$",
        NATS,
        (
            _Series("log_likelihood", "training", TRAIN),
            _Series("validation_log_likelihood", "validation", VALIDATION),
        ),
    ),
    _Panel(
        r"KL$(q(z\,|\,x)\,\|\,p(z))$",
        NATS,
        (_Series("kl", "training", TRAIN), _Series("validation_kl", "validation", VALIDATION)),
    ),
    _Panel(
        "Reconstruction error (validation)",
        "mean L2 norm",
        (_Series("reconstruction_error", "validation", VALIDATION),),
    ),
)


def _curves(history: Sequence[Mapping[str, Any]], panel: _Panel) -> list[_Curve]:
    """Return the lines of a panel that the history has values for."""
    curves = {}
    for series in panel.series:
        points = []
        for number, record in enumerate(history, start=1):
            if not isinstance(record, Mapping):
                kind = type(record).__name__
                raise ValueError(f"training_curves: history holds a {kind}; expected one mapping an epoch")
            value, epoch = record.get(series.key), record.get("epoch")
            if value is not None:
                at = float(number) if epoch is None else _number(epoch, "epoch", number)
                points.append((at, _number(value, series.key, number)))
        if points:
            epochs, values = np.array(points, dtype=float).T
            curves[series.key] = _Curve(series, epochs, np.where(np.isfinite(values), values, np.nan))
    if "bound" in curves and "elbo" in curves and _same(curves["bound"], curves["elbo"]):
        del curves["bound"]
    return list(curves.values())


def _number(value: Any, key: str, record: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or (key == "epoch" and not math.isfinite(number)):
        raise ValueError(
            f"training_curves: {key} in record {record} of history is {value!r}; expected a number or None"
        )
    return number


def _same(one: _Curve, other: _Curve) -> bool:
    """Return whether two lines agree where both are finite."""
    if one.values.shape != other.values.shape:
        return False
    both = np.isfinite(one.values) & np.isfinite(other.values)
    return np.allclose(one.values[both], other.values[both], rtol=1e-6)


def _draw_panel(axes: Axes, panel: _Panel, curves: list[_Curve], bottom: bool) -> None:
    for curve in curves:
        axes.plot(
            curve.epochs,
            curve.values,
            color=curve.series.colour,
            linestyle=curve.series.style,
            linewidth=1.4,
            marker="o",
            markersize=3,
            markevery=_lonely(curve.values),
            label=curve.series.label,
        )
    broken = sum(int(np.isnan(curve.values).sum()) for curve in curves)
    if broken:
        axes.text(0.98, 0.04, f"{broken} not finite", transform=axes.transAxes, ha="right", **note_style())
    low, high = _curve_limits([curve.values for curve in curves])
    axes.set_ylim(low, high)
    first, last = (f(f(curve.epochs) for curve in curves) for f in (min, max))
    margin = 0.02 * (last - first) if last > first else 0.5
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_title(panel.title, fontsize=TITLE_SIZE - 1, pad=4)
    axes.set_ylabel(panel.unit, fontsize=TEXT_SIZE)
    if bottom:
        axes.set_xlabel("epoch", fontsize=TEXT_SIZE)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    tidy(axes)


def _lonely(values: np.ndarray) -> list[int]:
    """Return the points that get a marker: all of a short curve, those without a neighbour of a long curve."""
    if len(values) <= 20:
        return list(range(len(values)))
    finite = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    return [int(i) for i in np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:])]


def _curve_limits(curves: list[np.ndarray]) -> tuple[float, float]:
    """Return limits that hold every value, or all but the first tenth where it would flatten the rest."""
    everything = np.concatenate(curves)
    first = [math.ceil(0.1 * len(values)) if len(values) >= 5 else 0 for values in curves]
    later = np.concatenate([values[skip:] for values, skip in zip(curves, first, strict=True)])
    everything, later = everything[np.isfinite(everything)], later[np.isfinite(later)]
    if not len(everything):
        return 0.0, 1.0
    low, high = everything.min(), everything.max()
    if len(later) and high - low > 3 * (later.max() - later.min()) > 0:
        low, high = later.min(), later.max()
    margin = 0.06 * (high - low) or max(0.01 * abs(low), 1e-3)
    return float(low - margin), float(high + margin)
