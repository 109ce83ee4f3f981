"""The costs of estimators, and their values beside log p(x): a row of marks for each estimator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from ppl_vae.comparison.statistics.measured import t_quantile
from ppl_vae.comparison.words import listed
from ppl_vae.plots.estimators import (
    Style,
    blocks_of,
    has_gradient,
    log_limits,
    log_ticks,
    styles_of,
    write_legend,
)
from ppl_vae.plots.figure import TEXT_SIZE, TITLE_SIZE, WIDTH, join, tidy, write_foot

if TYPE_CHECKING:
    from ppl_vae.comparison import Comparison, Measured, Row

MARKERS = "osD^v"  # one for each K


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
    names = blocks_of(comparison, "cost_of_precision")
    rows = [row for row in comparison.rows if row.blocks]

    def of_block(name: str) -> Callable[[Row], Measured | None]:
        def measured(row: Row) -> Measured | None:
            block = row.blocks.get(name)
            return block.seconds_to_tenth if block is not None and has_gradient(block) else None

        return measured

    panels: list[tuple[str, str, Callable[[Row], Measured | None]]] = [("one step", "milliseconds", _milliseconds)]
    panels += [(f"{name} to 10%", "seconds", of_block(name)) for name in names]
    chart = _Chart(rows, styles_of(row.name for row in comparison.rows), len(panels))
    endless: list[str] = []
    for axes, (title, unit, measured) in zip(chart.axes, panels, strict=True):
        endless += chart.draw_log(axes, measured, title)
        axes.set_xlabel(unit, fontsize=TEXT_SIZE)
    words = (
        "To 10%: steps averaged until the standard error of the gradient is a tenth of its norm. Lines: 95% intervals"
    )
    if where := comparison.machine.get("device"):
        threads = comparison.machine.get("threads") if where == "cpu" else None
        words += f"; time on {where}" + (f", {threads} thread{'s' if threads > 1 else ''}" if threads else "")
    far = (
        f"Arrows: no finite figure, the mean gradient cannot be told from zero ({listed(endless)})" if endless else None
    )
    return chart.finished(join(caveat, words, far))


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
    chart = _Chart(rows, styles_of(row.name for row in comparison.rows), 1)
    (axes,) = chart.axes
    evidence, t = comparison.evidence, t_quantile(comparison.replicates)
    chart.draw(axes, lambda row: (row.value, row.value - t * row.value_se, row.value + t * row.value_se))
    words = None
    if evidence is not None and math.isfinite(evidence.value):
        axes.axvline(
            evidence.value, color="#555555", linewidth=1.0, linestyle="-" if evidence.exact else "--", zorder=1
        )
        if math.isfinite(evidence.error):
            half = evidence.error if evidence.exact else 1.96 * evidence.error
            axes.axvspan(evidence.value - half, evidence.value + half, color="#DDDDDD", linewidth=0, zorder=0)
        how = "exact" if evidence.exact else "an estimate"
        chart.keys.append(
            Line2D([], [], color="#555555", linewidth=1.0, linestyle="-" if evidence.exact else "--", label="log p(x)")
        )
        words = f"log p(x) by {evidence.method}, {how}"
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.set_xlabel("value, nats per datum", fontsize=TEXT_SIZE)
    return chart.finished(join(caveat, f"Lines: 95% intervals over {comparison.replicates:,} replicates", words))


class _Chart:
    """Panels side by side, with a row for each estimator and a place for each K within the row.

    Args:
        rows: The rows of the comparison that have values to draw.
        styles: The styles of all estimators.
        panels: The number of panels.
    """

    def __init__(self, rows: Sequence[Row], styles: dict[str, Style], panels: int) -> None:
        self.rows, self.styles = rows, styles
        self.several = sorted({row.num_particles for row in rows})
        self.names = [name for name in styles if any(row.name == name for row in rows)]
        self.layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.02)
        self.width = WIDTH if panels > 1 else 5.6
        each = max(0.2, 0.085 * len(self.several) + 0.07)
        self.figure = Figure(figsize=(self.width, each * len(self.names) + 0.85), layout=self.layout)
        self.axes: list[Axes] = list(self.figure.subplots(1, panels, squeeze=False, sharey=True)[0])
        self.keys = [
            Line2D([], [], color="#555555", marker=self.mark(k), markersize=4, linestyle="", label=f"K = {k:,}")
            for k in self.several
        ]

    def mark(self, k: int) -> str:
        """Return the marker of a K."""
        return MARKERS[self.several.index(k) % len(MARKERS)]

    def place(self, row: Row) -> float:
        """Return how far down a mark stands: K by K within the row of its estimator."""
        ks = sorted({other.num_particles for other in self.rows if other.name == row.name})
        share = 0.5 if len(self.several) == 1 else (ks.index(row.num_particles) + 0.5) / len(ks)
        return self.names.index(row.name) + 0.7 * (share - 0.5)

    def draw(self, axes: Axes, measured: Callable[[Row], tuple[float, float, float] | None]) -> None:
        """Draw a mark with its interval for every row that has a finite value."""
        for i in range(len(self.names)):
            if i % 2:
                axes.axhspan(i - 0.5, i + 0.5, color="#F5F5F5", linewidth=0, zorder=0)
        for row in self.rows:
            found = measured(row)
            if found is None or not math.isfinite(found[0]):
                continue
            value, low, high = found
            colour, y = self.styles[row.name].colour, self.place(row)
            right = high if math.isfinite(high) else axes.get_xlim()[1]
            axes.plot([low, right], [y, y], color=colour, linewidth=1.1, zorder=3)
            axes.plot([value], [y], self.mark(row.num_particles), color=colour, markersize=3.8, zorder=4, clip_on=False)
        axes.set_yticks(range(len(self.names)), [self.styles[name].label for name in self.names])
        axes.set_ylim(len(self.names) - 0.45, -0.55)
        axes.grid(axis="x", alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
        tidy(axes)
        axes.tick_params(axis="y", length=0, labelsize=TEXT_SIZE - 0.5)

    def draw_log(self, axes: Axes, measured: Callable[[Row], Measured | None], title: str) -> list[str]:
        """Draw positive values on a logarithmic axis; return the names of those that are infinite."""
        found = [(row, m) for row in self.rows if (m := measured(row)) is not None]
        low, high = log_limits(v for _, m in found for v in m)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        self.draw(axes, lambda row: _on_axis(measured(row), low))
        endless = []
        for row, m in found:
            if m.value == math.inf:
                endless.append(f"{row.name}'s {title.partition(' ')[0]} at K = {row.num_particles}")
                axes.plot(
                    [high], [self.place(row)], ">", color=self.styles[row.name].colour, markersize=5, clip_on=False
                )
        ticks = log_ticks(low, high)
        axes.set_xticks(ticks, [f"{v:g}" if 1e-3 <= v < 1e4 else f"$10^{{{round(math.log10(v))}}}$" for v in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=TITLE_SIZE - 1, pad=3)
        return endless

    def finished(self, foot: str | None) -> Figure:
        """Write the legend and the foot, and return the figure."""
        if len(self.keys) > 1 or len(self.several) > 1:
            write_legend(self.figure, self.keys, width=self.width)
        write_foot(self.figure, self.layout, foot)
        return self.figure


def _milliseconds(row: Row) -> Measured | None:
    return None if row.seconds is None else type(row.seconds)(*(1000 * v for v in row.seconds))


def _on_axis(measured: Measured | None, low: float) -> tuple[float, float, float] | None:
    return None if measured is None else (max(measured.value, low), max(measured.low, low), measured.high)
