"""The costs of estimators, and their values beside log p(x): a row of marks for each estimator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vae._measured import Measured, t_quantile
from ppl_vae._words import listed
from ppl_vae.plots.estimators import MARKERS, blocks_of, has_gradient, log_limits, log_ticks, styles_of_rows, write_keys
from ppl_vae.plots.figure import WIDTH, key, new_figure, tidy, write_foot, write_rows
from ppl_vae.plots.style import TEXT_SIZE, styled

if TYPE_CHECKING:
    from ppl_vae.comparison import Comparison, Row

MARKS = f"{MARKERS}PX*<hpd"  # of K


@styled
def cost_of_precision(comparison: Comparison, *, caveat: str | None = None) -> Figure:
    r"""Plot the time of a step, and the time to average a gradient until it is known to a tenth: variance x time.

    .. math::
        \text{seconds} \cdot 100 \, \mathrm{tr} \, \mathrm{Cov}(g) / \lVert \mathbb E g \rVert^2 .

    A cheap estimator may win by repetition, an expensive one by its small variance; this cost accounts for both. It
    says nothing about bias. The seconds are those of the machine that ran the comparison.

    Args:
        comparison: The result of `ppl_vae.comparison.compare`.
        caveat: Written at the foot.

    Returns:
        A figure with one axes for the step and one for each block. Each axes has a row for every estimator, with a mark
        for each K and 95% intervals as lines. An arrow at the right edge is a cost without a finite value: the mean
        gradient cannot be distinguished from zero.

    Raises:
        ValueError: If no estimator has a gradient to show.

    Example:
        >>> from ppl_vae.comparison import Block, Comparison, Measured, Row
        >>> one = Measured(1.0, 0.9, 1.1)
        >>> encoder = Block(5, 0, one, one, one, (0.5, 2.0), 0.03, seconds_to_tenth=one)
        >>> row = Row("DReG", 8, seconds=Measured(0.002, 0.0019, 0.0022), blocks={"encoder": encoder})
        >>> figure = cost_of_precision(Comparison((row,), (), None, 1000, 0, (8, 64), {}, 1.0))
        >>> [axes.get_title() for axes in figure.axes]
        ['one step', 'encoder to 10%']
    """
    rows, names = blocks_of(comparison, "cost_of_precision")
    steps = [None if row.seconds is None else Measured(*(1000 * v for v in row.seconds)) for row in rows]
    panels = [("one step", "milliseconds", steps)]
    for name in names:
        blocks = [row.blocks.get(name) for row in rows]
        costs = [None if b is None or not has_gradient(b) else b.seconds_to_tenth for b in blocks]
        panels.append((f"{name} to 10%", "seconds", costs))
    chart = _Chart(comparison, rows, len(panels))
    endless = [words for axes, panel in zip(chart.axes, panels, strict=True) for words in chart.draw_log(axes, *panel)]
    words = (
        "To 10%: steps averaged until the standard error of the gradient is a tenth of its norm. Lines: 95% intervals"
    )
    if where := comparison.machine.get("device"):
        threads = comparison.machine.get("threads") if where == "cpu" else None
        words += f"; time on {where}" + (f", {threads} thread{'s' if threads > 1 else ''}" if threads else "")
    far = "Arrows: no finite figure, the mean gradient cannot be told from zero"
    return chart.finished(caveat, words, f"{far} ({listed(endless)})" if endless else None)


@styled
def estimator_values(comparison: Comparison, *, caveat: str | None = None) -> Figure:
    r"""Plot the values of estimators, means over replicates with 95% intervals, beside log p(x).

    Estimators that draw alike have the same value to the last digit (STL and the ELBO, DReG and IWAE), whatever their
    gradients.

    Args:
        comparison: The result of `ppl_vae.comparison.compare`.
        caveat: Written at the foot.

    Returns:
        A figure of one axes with a row for every estimator and a mark for each K. A line stands at log p(x), dashed
        where it is an estimate.

    Raises:
        ValueError: If no estimator has a value to show.

    Example:
        >>> from ppl_vae.comparison import Comparison, KnownEvidence, Row
        >>> row = Row("IWAE", 8, "lower", value=-101.0, value_se=0.1)
        >>> found = Comparison((row,), (), KnownEvidence(-100.0, "quadrature", 0.0, True), 1000, 0, (8, 64), {}, 1.0)
        >>> [label.get_text() for label in estimator_values(found).axes[0].get_yticklabels()]
        ['IWAE']
    """
    rows = [row for row in comparison.rows if math.isfinite(row.value)]
    if not rows:
        raise ValueError(f"estimator_values: no estimator has a value to show; all {len(comparison.rows)} failed")
    chart = _Chart(comparison, rows, 1)
    (axes,) = chart.axes
    evidence, t = comparison.evidence, t_quantile(comparison.replicates)
    found = [Measured(row.value, row.value - t * row.value_se, row.value + t * row.value_se) for row in rows]
    chart.draw(axes, "", "value, nats per datum", found)
    words = None
    if evidence is not None and math.isfinite(evidence.value):
        line: dict[str, Any] = {"color": "#555555", "linewidth": 1.0, "linestyle": "-" if evidence.exact else "--"}
        axes.axvline(evidence.value, zorder=1, **line)
        if math.isfinite(evidence.error):
            half = evidence.error if evidence.exact else 1.96 * evidence.error
            axes.axvspan(evidence.value - half, evidence.value + half, color="#DDDDDD", linewidth=0, zorder=0)
        chart.keys.append(key("log p(x)", **line))
        words = f"log p(x) by {evidence.method}, {'exact' if evidence.exact else 'an estimate'}"
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
    axes.ticklabel_format(axis="x", useOffset=False)
    return chart.finished(caveat, f"Lines: 95% intervals over {comparison.replicates:,} replicates", words)


class _Chart:
    """Panels side by side, with a row for each estimator and a place for each K within the row.

    Args:
        comparison: The comparison.
        rows: Those of its rows that have values to draw.
        panels: The number of panels.
    """

    def __init__(self, comparison: Comparison, rows: Sequence[Row], panels: int) -> None:
        self.rows, self.styles = rows, styles_of_rows(comparison, rows)
        several = sorted({row.num_particles for row in rows})
        self.marks = {k: MARKS[i % len(MARKS)] for i, k in enumerate(several)}
        each = max(0.2, 0.085 * len(several) + 0.07)  # inches
        self.figure = new_figure(WIDTH if panels > 1 else 5.6, each * len(self.styles) + 0.85, w_pad=0.04)
        self.axes: list[Axes] = list(self.figure.subplots(1, panels, squeeze=False, sharey=True)[0])
        grey = {"color": "#555555", "markersize": 4, "linestyle": ""}
        self.keys = [key(f"K = {k:,}", marker=mark, **grey) for k, mark in self.marks.items()]

    def place(self, row: Row) -> float:
        """Return how far down a mark stands: K by K within the row of its estimator."""
        ks = sorted({other.num_particles for other in self.rows if other.name == row.name})
        share = (ks.index(row.num_particles) + 0.5) / len(ks)
        return list(self.styles).index(row.name) + 0.7 * (share - 0.5)

    def draw(self, axes: Axes, title: str, unit: str, measured: Sequence[Measured | None]) -> None:
        """Draw a mark with its interval for every row that has a finite value."""
        write_rows(axes, [style.label for style in self.styles.values()], TEXT_SIZE - 0.5)
        for row, found in zip(self.rows, measured, strict=True):
            if found is None or not math.isfinite(found.value):
                continue
            colour, y = self.styles[row.name].colour, self.place(row)
            right = found.high if math.isfinite(found.high) else axes.get_xlim()[1]
            axes.plot([found.low, right], [y, y], color=colour, linewidth=1.1, zorder=3)
            mark: dict[str, Any] = {"marker": self.marks[row.num_particles], "markersize": 3.8, "linestyle": ""}
            axes.plot([found.value], [y], color=colour, zorder=4, clip_on=False, **mark)
        tidy(axes, title=title, x=unit)

    def draw_log(self, axes: Axes, title: str, unit: str, measured: Sequence[Measured | None]) -> list[str]:
        """Draw positive values on a logarithmic axis; return the names of those that are infinite."""
        low, high = log_limits(v for found in measured if found is not None for v in found)
        axes.set(xscale="log", xlim=(low, high))
        within = [None if m is None else Measured(max(m.value, low), max(m.low, low), m.high) for m in measured]
        self.draw(axes, title, unit, within)
        endless = [row for row, found in zip(self.rows, measured, strict=True) if found and found.value == math.inf]
        for row in endless:
            look: dict[str, Any] = {"color": self.styles[row.name].colour, "markersize": 5, "clip_on": False}
            axes.plot([high], [self.place(row)], ">", **look)
        ticks = log_ticks(low, high)
        axes.set_xticks(ticks, [f"{v:g}" if 1e-3 <= v < 1e4 else f"$10^{{{round(math.log10(v))}}}$" for v in ticks])
        axes.xaxis.minorticks_off()
        return [f"{row.name}'s {title.partition(' ')[0]} at K = {row.num_particles}" for row in endless]

    def finished(self, *sentences: str | None) -> Figure:
        """Write the legend and the foot, and return the figure."""
        if len(self.keys) > 1:
            write_keys(self.figure, self.keys)
        return write_foot(self.figure, *sentences)
