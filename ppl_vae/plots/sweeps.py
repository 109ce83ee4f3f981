"""A sweep of many trainings: a row for each setting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from ppl_vae.comparison.races.results import Standing
from ppl_vae.plots.figure import key, naming, new_figure, tidy, write_foot, write_legend
from ppl_vae.plots.style import BLUE, SMALL_SIZE, TEXT_SIZE, styled

if TYPE_CHECKING:
    from ppl_vae.comparison.sweeps import Sweep

MOST = 40  # settings that are drawn
_LONGEST = 60  # letters of a setting


@styled
def sweep_results(sweep: Sweep, *, caveat: str | None = None) -> Figure:
    r"""Plot the ELBO of each setting of a sweep: its runs, and their mean over seeds, the highest on top.

    The lines are 95% intervals of the means. Differences within seeds (`Sweep.standings`) show which settings are
    behind the best; they can be clear where lines overlap. A filled dot may be the best, an open one is behind. Where
    settings are not to be compared (`Sweep.incomparable`), all dots are filled, and the foot says why. Runs that failed
    are counted beside their setting.

    Args:
        sweep: The result of `ppl_vae.sweeps.sweep`.
        caveat: Written at the foot.

    Returns:
        A figure of one axes, with a row for each of the best 40 settings.

    Raises:
        ValueError: If no run finished, or none with an ELBO.
    """
    found = sorted((s for s in sweep.standings() if s.value is not None), key=lambda s: -_value(s))
    if not found:
        raise ValueError(f"sweep_results: none of {len(sweep.runs)} runs finished with an ELBO")
    drawn, values = found[:MOST], sweep.figure(sweep.measure)
    figure = new_figure(7.0, 0.24 * len(drawn) + 0.9)
    axes = figure.add_subplot()
    # the limits come from the runs: an interval of two seeds may be wider than all of them together
    every = [v for s in drawn for v in values[s.name, 1].values()]
    margin = 0.25 * (max(every) - min(every)) or max(0.01 * abs(every[0]), 1e-3)
    low, high = min(every) - margin, max(every) + margin
    for y, standing in enumerate(drawn):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#F5F5F5", linewidth=0, zorder=0)
        one = standing.value
        if one is not None and math.isfinite(one.low):
            axes.plot([max(one.low, low), min(one.high, high)], [y, y], color=BLUE, linewidth=1.1, zorder=2)
        some = list(values[standing.name, 1].values())
        axes.plot(some, [y] * len(some), "|", color="#555555", markersize=7, zorder=3)
        rival = sweep.incomparable is not None or standing.may_be_best or standing.best
        face = BLUE if rival or not _is_behind(standing) else "#FFFFFF"
        axes.plot([_value(standing)], [y], "o", color=BLUE, markerfacecolor=face, markersize=4.5, zorder=4)
    axes.set_xlim(low, high)
    axes.set_ylim(len(drawn) - 0.45, -0.55)
    axes.set_yticks(range(len(drawn)), [_label(sweep, s) for s in drawn])
    axes.tick_params(axis="y", length=0, labelsize=TEXT_SIZE if len(drawn) <= 20 else SMALL_SIZE)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
    axes.ticklabel_format(axis="x", useOffset=False)
    where = "validation" if sweep.measure == "validation_elbo" else "training"
    tidy(axes, x=f"ELBO on {where} data, nats per datum")
    dot: dict[str, Any] = {"marker": "o", "color": BLUE, "markersize": 4.5}
    handles = [key("mean over seeds, 95% interval", linewidth=1.1, **dot)]
    handles.append(key("one run", marker="|", linestyle="", markersize=7, color="#555555"))
    if sweep.incomparable is None and any(map(_is_behind, drawn)):
        handles.append(key("behind the best", linestyle="", markerfacecolor="#FFFFFF", **dot))
    write_legend(figure, handles, len(handles))
    lost = [label for label in sweep.settings if label not in {s.name for s in found}]
    rest = f"The best {MOST} of {len(found)} settings" if len(found) > MOST else None
    alone = "One seed, which says nothing about another" if len(sweep.seeds) == 1 else None
    return write_foot(figure, caveat, sweep.incomparable, rest, alone, naming("Without a finished run", lost))


def _value(standing: Standing) -> float:
    return math.nan if standing.value is None else standing.value.value


def _is_behind(standing: Standing) -> bool:
    return standing.behind is not None and standing.behind.high < 0


def _label(sweep: Sweep, standing: Standing) -> str:
    runs = [run for run in sweep.runs if run.label == standing.name]
    failed = sum(run.state == "failed" for run in runs)
    name = standing.name if len(standing.name) <= _LONGEST else f"{standing.name[: _LONGEST - 1]}…"
    return f"{name} (failed: {failed} of {len(runs)})" if failed else name
