"""The course of a training: the curves of one run, and the race of several."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppl_vae.plots.arguments import number
from ppl_vae.plots.estimators import Style, styles_of, write_keys
from ppl_vae.plots.figure import NOTE, WIDTH, key, naming, new_figure, tidy, write_foot, write_legend
from ppl_vae.plots.style import HALO, styled

if TYPE_CHECKING:
    from ppl_vae.comparison.races.outcome import Race

NATS = "nats per datum"
TRAIN, VALIDATION, OBJECTIVE = (
    {"label": name, **style.mark(lined=True, size=3)}
    for name, style in styles_of(("training", "validation", "the objective's own bound, training")).items()
)
PANELS = (  # the title, the unit, and the look of each line by its key in the history
    ("ELBO", NATS, {"elbo": TRAIN, "validation_elbo": VALIDATION, "bound": OBJECTIVE}),
    (r"$\mathbb{E}_q[\log p(x\,|\,z)]$", NATS, {"log_likelihood": TRAIN, "validation_log_likelihood": VALIDATION}),
    (r"KL$(q(z\,|\,x)\,\|\,p(z))$", NATS, {"kl": TRAIN, "validation_kl": VALIDATION}),
    ("Reconstruction error (validation)", "mean L2 norm", {"reconstruction_error": VALIDATION}),
)
BANDS = 4  # the most contenders with bands; more bands cannot be distinguished, and only lines are drawn
SEED_LINES = 0.35  # opacity of single runs
_TARGET: dict[str, Any] = {"color": "#555555", "linestyle": (0, (6, 3)), "linewidth": 1.0}
_CROSS: dict[str, Any] = {"marker": "x", "markersize": 6.5, "markeredgewidth": 1.8, "color": "#333333"}

Curve = tuple[dict[str, Any], np.ndarray, np.ndarray]  # the look, the epochs, and the values, NaN where not finite


@styled
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
    for record in history:
        if not isinstance(record, Mapping):
            kind = type(record).__name__
            raise ValueError(f"training_curves: history holds a {kind}; expected one mapping an epoch")
    panels = [(title, unit, _curves(history, looks)) for title, unit, looks in PANELS]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        known = ", ".join(name for _, _, looks in PANELS for name in looks)
        raise ValueError(
            "training_curves: history holds nothing to draw; expected one mapping an epoch, with some of the "
            f"keys {known}"
        )

    columns = {1: 1, 2: 2, 3: 3, 4: 2}[len(panels)]
    rows = math.ceil(len(panels) / columns)
    width, panel_height = {1: (4.5, 3.0), 2: (WIDTH, 2.6), 3: (WIDTH, 2.3)}[columns]
    figure = new_figure(width, panel_height * rows + 0.25, hspace=0.06)
    entries: dict[str, Line2D] = {}
    for i, (title, unit, curves) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        _draw_panel(axes, curves)
        tidy(axes, title=title, x="epoch" if i + columns >= len(panels) else "", y=unit, pad=4, grid=True)
        entries |= {look["label"]: key(**look) for look, _, _ in curves}
    write_legend(figure, list(entries.values()), len(entries))
    figure.align_ylabels()
    return write_foot(figure, caveat)


def _curves(history: Sequence[Mapping[str, Any]], looks: Mapping[str, dict[str, Any]]) -> list[Curve]:
    """Return the lines of a panel that the history has values for."""
    curves = {}
    for name, look in looks.items():
        points = []
        for i, record in enumerate(history, start=1):
            value, epoch = record.get(name), record.get("epoch")
            if value is not None:
                at = float(i) if epoch is None else _number(epoch, "epoch", i)
                points.append((at, _number(value, name, i)))
        if points:
            epochs, values = np.array(points, dtype=float).T
            curves[name] = (look, epochs, np.where(np.isfinite(values), values, np.nan))
    if "bound" in curves and "elbo" in curves:
        bound, elbo = curves["bound"][2], curves["elbo"][2]
        if bound.shape == elbo.shape:
            both = np.isfinite(bound) & np.isfinite(elbo)
            if np.allclose(bound[both], elbo[both], rtol=1e-6):
                del curves["bound"]
    return list(curves.values())


def _number(value: Any, name: str, record: int) -> float:
    with contextlib.suppress(TypeError, ValueError):
        if name != "epoch" or math.isfinite(float(value)):
            return float(value)
    raise ValueError(f"training_curves: {name} in record {record} of history is {value!r}; expected a number or None")


def _draw_panel(axes: Axes, curves: list[Curve]) -> None:
    for look, epochs, values in curves:
        axes.plot(epochs, values, linewidth=1.4, markevery=_lonely(values), **look)
    broken = sum(int(np.isnan(values).sum()) for _, _, values in curves)
    if broken:
        axes.text(0.98, 0.04, f"{broken} not finite", transform=axes.transAxes, ha="right", **NOTE)
    some = settled([values for _, _, values in curves], factor=3)
    axes.set_ylim(_with_margin(some.min(), some.max()) if len(some) else (0.0, 1.0))
    first, last = (end(end(epochs) for _, epochs, _ in curves) for end in (min, max))
    margin = 0.02 * (last - first) if last > first else 0.5
    axes.set_xlim(first - margin, last + margin)
    axes.locator_params(axis="x", nbins=5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    axes.locator_params(axis="y", nbins=5, steps=[1, 2, 2.5, 5, 10])
    axes.ticklabel_format(axis="y", useOffset=False)


def _lonely(values: np.ndarray) -> list[int]:
    """Return the points that get a marker: all of a short curve, those without a neighbour of a long curve."""
    if len(values) <= 20:
        return list(range(len(values)))
    finite = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    return [int(i) for i in np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:])]


def settled(curves: Sequence[np.ndarray], factor: float, short: int = 0) -> np.ndarray:
    """Return the finite values of curves, without the first tenth of each where it flattens the rest.

    Args:
        curves: The values of each curve.
        factor: The first tenth goes where the span of all values is more than so many times that of the rest.
        short: How many values go from the start of a curve of fewer than five.
    """
    rest = [c[math.ceil(0.1 * len(c)) if len(c) >= 5 else short :] for c in curves]
    every, later = (values[np.isfinite(values)] for values in (np.concatenate(curves), np.concatenate(rest)))
    return later if len(later) and np.ptp(every) > factor * np.ptp(later) > 0 else every


def _with_margin(low: float, high: float) -> tuple[float, float]:
    """Return the limits of an axis that holds these values."""
    margin = 0.06 * (high - low) or max(0.01 * abs(low), 1e-3)
    return float(low - margin), float(high + margin)


@styled
def training_race(race: Race, *, caveat: str | None = None) -> Figure:
    r"""Plot the log p(x) of each contender against steps and against seconds of training, means over seeds.

    Pale lines are single runs. Up to four contenders have bands, the 95% intervals of their means over seeds, which are
    wide for few seeds. Differences within seeds (`Race.at_equal_steps`) show which contenders are behind the best; they
    can be clear where bands overlap. The dashed line is the target that was named before the race. A cross marks where
    a run failed, and the legend counts failed runs. No mean includes a failed run. The start is cut off where it would
    flatten the rest.

    Args:
        race: The result of `ppl_vae.comparison.race`.
        caveat: Written at the foot.

    Returns:
        A figure of two axes that share the y axis.

    Raises:
        ValueError: If no run was evaluated at any point.

    Example:
        >>> from ppl_vae.comparison.races.outcome import Race
        >>> from ppl_vae.comparison.races.runs import Point, RaceRun
        >>> points = tuple(Point(i, 100 * i, 2.0 * i, -150.0 + 10 * i, 0.0, -155.0 + 10 * i) for i in range(3))
        >>> runs = tuple(RaceRun("IWAE", 8, seed, points, "quadrature", "exact") for seed in (0, 1))
        >>> figure = training_race(Race(runs, (), -132.0, {}, {}, 10.0))
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['steps', 'seconds of training']
    """
    if not any(run.points for run in race.runs):
        raise ValueError(f"training_race: none of {len(race.runs)} runs was looked at; all failed at their start")
    several = len({k for _, k in race.contenders}) > 1
    labels = {(name, k): f"{name}, K = {k:,}" if several else name for name, k in race.contenders}
    styles = dict(zip(labels, styles_of(labels.values()).values(), strict=True))
    figure = new_figure(WIDTH, 3.1, w_pad=0.04)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_ylim(_race_limits(race))
    _draw_race(left, race, styles, "step")
    _draw_race(right, race, styles, "seconds")
    kinds = {run.kind for run in race.runs if run.points}
    measure = "log p(x), nats per datum" if kinds == {"exact"} else "estimate of log p(x), nats"
    tidy(left, title="equal steps", x="steps", y=measure, grid=True)
    tidy(right, title="equal time", x="seconds of training", grid=True)
    write_keys(figure, _keys(race, styles))
    seeds = len(race.seeds)
    over = f"Means over {seeds} seeds, pale: single runs" if seeds > 1 else "One seed, which says nothing about another"
    if seeds > 1 and len(race.contenders) <= BANDS:
        over += "; bands: 95% intervals of the means"
    never = [labels[run.key] for run in race.runs if run.failed and not run.points]
    of, known = None, race.settings
    if {"evaluation_size", "split"} <= known.keys():
        of = f"Evaluated on {known['evaluation_size']:,} {known['split']} data"
    return write_foot(figure, caveat, of, over, naming("Failed at the start, without a point", never))


def _keys(race: Race, styles: dict[tuple[str, int], Style]) -> list[Line2D]:
    handles = []
    for contender, style in styles.items():
        runs = race.runs_of(*contender, failed=True)
        failed = sum(run.failed for run in runs)
        label = style.label + (f" (failed: {failed} of {len(runs)})" if failed else "")
        handles.append(key(label, linewidth=1.8, **style.line()))
    if any(run.failed and run.points for run in race.runs):
        handles.append(key("failed here", linestyle="", **_CROSS))
    if race.target is not None:
        handles.append(key(f"target, {number(race.target, 2).rstrip('0').rstrip('.')}", **_TARGET))
    return handles


def _draw_race(axes: Axes, race: Race, styles: dict[tuple[str, int], Style], axis: Literal["step", "seconds"]) -> None:
    low, high = axes.get_ylim()
    if race.target is not None:
        axes.axhline(race.target, zorder=1, **_TARGET)
    for contender, style in styles.items():
        runs = race.runs_of(*contender, failed=True)
        for run in runs:
            if len(runs) > 1 or run.failed:
                axes.plot(run.column(axis), run.column("log_evidence"), linewidth=0.7, alpha=SEED_LINES, **style.line())
            if run.failed and run.points:
                x, y = run.column(axis)[-1], run.points[-1].log_evidence
                x = max(x, run.steps) if axis == "step" else x
                y = min(max(y, low), high) if math.isfinite(y) else low
                axes.plot([x], [y], zorder=5, clip_on=False, **{**_CROSS, "color": style.colour})
        band = race.band(*contender, axis)
        if not band.x:
            continue
        if len(styles) <= BANDS and np.isfinite(band.low).all():
            axes.fill_between(band.x, band.low, band.high, color=style.colour, alpha=0.05, linewidth=0, zorder=0)
        axes.plot(band.x, band.value, linewidth=1.6, zorder=3, path_effects=HALO, **style.line())
    axes.set_xlim(left=0.0)
    axes.locator_params(axis="x", nbins=5, integer=axis == "step", steps=[1, 2, 5, 10])
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 2.5, 5, 10])
    axes.ticklabel_format(axis="y", useOffset=False)


def _race_limits(race: Race) -> tuple[float, float]:
    """Return limits of all values, or of all but the first tenth (at least the start) where it flattens the rest."""
    curves = [run.column("log_evidence") for run in race.runs if run.points and not run.failed]
    curves = curves or [run.column("log_evidence") for run in race.runs if run.points]
    some = settled([np.asarray(c, float) for c in curves], factor=2, short=1)
    if not len(some):
        return 0.0, 1.0
    low, high = float(some.min()), float(some.max())
    if race.target is not None and low - (high - low) < race.target < high + 0.5 * (high - low):
        low, high = min(low, race.target), max(high, race.target)
    return _with_margin(low, high)
