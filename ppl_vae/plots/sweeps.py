"""A sweep of many trainings: a row for each setting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from ppl_vae.plots.arguments import shortened
from ppl_vae.plots.figure import key, naming, new_figure, tidy, write_foot, write_legend, write_rows
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
    found = sorted([(s, s.value) for s in sweep.standings() if s.value is not None], key=lambda pair: -pair[1].value)
    if not found:
        raise ValueError(f"sweep_results: none of {len(sweep.runs)} runs finished with an ELBO")
    drawn, values = found[:MOST], sweep.figure(sweep.measure)
    figure = new_figure(7.0, 0.24 * len(drawn) + 0.9)
    axes = figure.add_subplot()
    # the limits come from the runs: an interval of two seeds may be wider than all of them together
    every = [v for s, _ in drawn for v in values[s.name, 1].values()]
    margin = 0.25 * (max(every) - min(every)) or max(0.01 * abs(every[0]), 1e-3)
    low, high = min(every) - margin, max(every) + margin
    write_rows(axes, [_label(sweep, s.name) for s, _ in drawn], TEXT_SIZE if len(drawn) <= 20 else SMALL_SIZE)
    compared = sweep.incomparable is None
    behind = [compared and s.behind is not None and s.behind.high < 0 for s, _ in drawn]
    for y, (standing, mean) in enumerate(drawn):
        if math.isfinite(mean.low):
            axes.plot([max(mean.low, low), min(mean.high, high)], [y, y], color=BLUE, linewidth=1.1, zorder=2)
        some = list(values[standing.name, 1].values())
        axes.plot(some, [y] * len(some), "|", color="#555555", markersize=7, zorder=3)
        face = "#FFFFFF" if behind[y] else BLUE
        axes.plot([mean.value], [y], "o", color=BLUE, markerfacecolor=face, markersize=4.5, zorder=4)
    axes.set_xlim(low, high)
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
    axes.ticklabel_format(axis="x", useOffset=False)
    where = "validation" if sweep.measure == "validation_elbo" else "training"
    tidy(axes, x=f"ELBO on {where} data, nats per datum")
    dot: dict[str, Any] = {"marker": "o", "color": BLUE, "markersize": 4.5}
    handles = [key("mean over seeds, 95% interval", linewidth=1.1, **dot)]
    handles.append(key("one run", marker="|", linestyle="", markersize=7, color="#555555"))
    if any(behind):
        handles.append(key("behind the best", linestyle="", markerfacecolor="#FFFFFF", **dot))
    write_legend(figure, handles, len(handles))
    lost = [label for label in sweep.settings if label not in {s.name for s, _ in found}]
    rest = f"The best {MOST} of {len(found)} settings" if len(found) > MOST else None
    alone = "One seed, which says nothing about another" if len(sweep.seeds) == 1 else None
    return write_foot(figure, caveat, sweep.incomparable, rest, alone, naming("Without a finished run", lost))


def _label(sweep: Sweep, setting: str) -> str:
    runs = [run for run in sweep.runs if run.label == setting]
    failed = sum(run.state == "failed" for run in runs)
    name = shortened(setting, _LONGEST)
    return f"{name} (failed: {failed} of {len(runs)})" if failed else name
