"""The training race: log p(x) against steps and against seconds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppl_vae.comparison.words import listed
from ppl_vae.plots.arguments import number
from ppl_vae.plots.estimators import Style, styles_of, write_legend
from ppl_vae.plots.figure import SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, WIDTH, join, tidy, write_foot

if TYPE_CHECKING:
    from ppl_vae.comparison.races.outcome import Race

Key = tuple[str, int]

BANDS = 4  # the most contenders with bands; more bands cannot be distinguished, and only lines are drawn
SEED_LINES = 0.35  # opacity of single runs


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
    labels = {key: f"{key[0]}, K = {key[1]:,}" if several else key[0] for key in race.contenders}
    styles = dict(zip(labels, styles_of(labels.values()).values(), strict=True))
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.02)
    figure = Figure(figsize=(WIDTH, 3.1), layout=layout)
    left, right = figure.subplots(1, 2, sharey=True)
    low, high = _limits(race)
    for axes, axis in ((left, "step"), (right, "seconds")):
        axes.set_ylim(low, high)
        _draw(axes, race, styles, axis)  # type: ignore[arg-type]
    kinds = {run.kind for run in race.runs if run.points}
    left.set_ylabel(
        "log p(x), nats per datum" if kinds == {"exact"} else "estimate of log p(x), nats", fontsize=TEXT_SIZE
    )
    left.set_xlabel("steps", fontsize=TEXT_SIZE)
    right.set_xlabel("seconds of training", fontsize=TEXT_SIZE)
    left.set_title("equal steps", fontsize=TITLE_SIZE - 1, pad=3)
    right.set_title("equal time", fontsize=TITLE_SIZE - 1, pad=3)
    write_legend(figure, _keys(race, styles), width=WIDTH)
    seeds = len(race.seeds)
    over = f"Means over {seeds} seeds, pale: single runs" if seeds > 1 else "One seed, which says nothing about another"
    if seeds > 1 and len(race.contenders) <= BANDS:
        over += "; bands: 95% intervals of the means"
    never = [labels[run.key] for run in race.runs if run.failed and not run.points]
    lost = f"Failed at the start, without a point: {listed(never)}" if never else None
    write_foot(figure, layout, join(caveat, over, lost))
    return figure


def _keys(race: Race, styles: dict[Key, Style]) -> list[Line2D]:
    handles = []
    for key, style in styles.items():
        runs = race.runs_of(*key, failed=True)
        failed = sum(run.failed for run in runs)
        label = style.label + (f" (failed: {failed} of {len(runs)})" if failed else "")
        handles.append(Line2D([], [], linewidth=1.8, label=label, **style.line()))
    if any(run.failed and run.points for run in race.runs):
        handles.append(Line2D([], [], linestyle="", label="failed here", **_CROSS))
    if race.target is not None:
        label = f"target, {number(race.target, 2).rstrip('0').rstrip('.')}"
        handles.append(Line2D([], [], color="#555555", linestyle=(0, (6, 3)), linewidth=1.0, label=label))
    return handles


_CROSS: dict[str, Any] = {"marker": "x", "markersize": 6.5, "markeredgewidth": 1.8, "color": "#333333"}


def _draw(axes: Axes, race: Race, styles: dict[Key, Style], axis: Literal["step", "seconds"]) -> None:
    low, high = axes.get_ylim()
    if race.target is not None:
        axes.axhline(race.target, color="#555555", linestyle=(0, (6, 3)), linewidth=1.0, zorder=1)
    for key, style in styles.items():
        runs = race.runs_of(*key, failed=True)
        for run in runs:
            if len(runs) > 1 or run.failed:
                axes.plot(run.column(axis), run.column("log_evidence"), linewidth=0.7, alpha=SEED_LINES, **style.line())
            if run.failed and run.points:
                x, y = run.column(axis)[-1], run.points[-1].log_evidence
                x = max(x, run.steps) if axis == "step" else x
                y = min(max(y, low), high) if math.isfinite(y) else low
                axes.plot([x], [y], zorder=5, clip_on=False, **{**_CROSS, "color": style.colour})
        band = race.band(*key, axis)
        if not band.x:
            continue
        if len(styles) <= BANDS and np.isfinite(band.low).all():
            axes.fill_between(band.x, band.low, band.high, color=style.colour, alpha=0.13, linewidth=0, zorder=1)
        axes.plot(band.x, band.value, linewidth=1.6, zorder=3, **style.line())
    axes.set_xlim(left=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=axis == "step", steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    tidy(axes)
    axes.tick_params(labelsize=SMALL_SIZE)


def _limits(race: Race) -> tuple[float, float]:
    """Return limits of all values, or of all but the first tenth (at least the start) where it flattens the rest."""
    curves = [run.column("log_evidence") for run in race.runs if run.points and not run.failed]
    curves = curves or [run.column("log_evidence") for run in race.runs if run.points]
    everything = np.concatenate([np.asarray(c, float) for c in curves])
    later = np.concatenate([np.asarray(c[max(1, math.ceil(0.1 * len(c))) :], float) for c in curves])
    everything, later = everything[np.isfinite(everything)], later[np.isfinite(later)]
    some = later if len(later) and np.ptp(everything) > 2 * np.ptp(later) > 0 else everything
    if not len(some):
        return 0.0, 1.0
    low, high = float(some.min()), float(some.max())
    if race.target is not None and low - (high - low) < race.target < high + 0.5 * (high - low):
        low, high = min(low, race.target), max(high, race.target)
    margin = 0.06 * (high - low) or max(0.01 * abs(low), 1e-3)
    return low - margin, high + margin
