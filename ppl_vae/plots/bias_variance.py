"""The bias-variance plane of gradients: averaging reduces the variance but not the bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from ppl_vae.comparison.words import listed
from ppl_vae.plots.estimators import (
    Style,
    blocks_of,
    has_gradient,
    is_silent,
    keys_of,
    log_limits,
    styles_of,
    write_legend,
)
from ppl_vae.plots.figure import SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, WIDTH, join, tidy, write_foot

if TYPE_CHECKING:
    from ppl_vae.comparison import Block, Comparison

LEVEL = 0.01  # the level of all tests of bias in a comparison together, as in its summary
STRIP = 0.2  # the share of a panel's width, left of the logarithmic axis, for marks without a visible bias
MOST_DECADES = 12.0


def bias_variance(comparison: Comparison, *, caveat: str | None = None) -> Figure:
    r"""Plot the squared bias of gradients against their variance, a panel for each K and block of parameters.

    .. math::
        \lVert \mathbb E (g - g_\mathrm{ref}) \rVert^2 \quad \text{against} \quad \mathrm{tr} \, \mathrm{Cov}(g).

    Averaging n gradients divides the variance (upwards) by n; it does not reduce the bias (to the right). Left of the
    line of equal parts, the noise of one gradient hides its bias. The noise of the mean over replicates is subtracted
    from the bias.

    The test of zero bias uses random projections of paired differences, at 1% for all tests at once. Where it finds no
    bias, the mark is hollow and stands in the strip at the left. A line goes to the upper end of the 95% interval of
    the squared bias: a bias below that end may have escaped the test. A cross stands for an estimator whose bias is
    unknown: it has no reference, or its differences are too heavy-tailed for a claim. The bias is that against each
    estimator's own reference, which may differ between estimators: IWAE's for DReG, the ELBO's for STL.

    Args:
        comparison: The result of `ppl_vae.comparison.compare`.
        caveat: Written at the foot.

    Returns:
        A figure with a row of axes for each K and a column for each block. A dotted line is the variance that the
        choice of data adds, the median over estimators.

    Raises:
        ValueError: If no estimator has a gradient to show.

    Example:
        >>> from ppl_vae.comparison import Block, Comparison, Measured, Row
        >>> one = Measured(1.0, 0.9, 1.1)
        >>> encoder = Block(5, 0, one, one, one, (0.5, 2.0), 0.03, Measured(0.0, 0.0, 0.1), 0.5)
        >>> row = Row("DReG", 8, reference="IWAE", blocks={"encoder": encoder})
        >>> figure = bias_variance(Comparison((row,), (), None, 1000, 0, (8, 64), {}, 1.0))
        >>> [axes.get_title() for axes in figure.axes]
        ['encoder, K = 8']
    """
    styles = styles_of(row.name for row in comparison.rows)
    names = blocks_of(comparison, "bias_variance")
    biased = _biased(comparison)
    several = [k for k in dict.fromkeys(row.num_particles for row in comparison.rows) if _at(comparison, k)]
    width = WIDTH if len(names) > 1 else 4.6
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, 2.15 * len(several) + 0.3), layout=layout)
    grid = figure.subplots(len(several), len(names), squeeze=False)
    noted = {"own": False, "unknown": False, "unclear": False, "data": False}
    silent: list[str] = []
    still: list[str] = []
    for column, name in enumerate(names):
        shown = [row.blocks[name] for row in comparison.rows if name in row.blocks]
        still += [
            f"{row.name}'s {name}"
            for row in comparison.rows
            if name in row.blocks and not has_gradient(row.blocks[name])
        ]
        limits = _limits(shown, biased)
        for line, k in enumerate(several):
            axes = grid[line, column]
            there = {row_name: found[name] for row_name, found in _at(comparison, k).items() if name in found}
            blocks = {row_name: block for row_name, block in there.items() if has_gradient(block)}
            _draw(axes, blocks, biased, styles, limits, noted)
            silent += [f"{row_name}'s {name}" for row_name, block in blocks.items() if is_silent(block)]
            axes.set_title(f"{name}, K = {k}", fontsize=TITLE_SIZE - 1, pad=3)
            if line == len(several) - 1:
                axes.set_xlabel("squared bias of the gradient", fontsize=TEXT_SIZE)
            if column == 0:
                axes.set_ylabel("variance", fontsize=TEXT_SIZE)
    seen = [style for name, style in styles.items() if any(name in _at(comparison, k) for k in several)]
    write_legend(figure, keys_of(seen), width=width)
    words = {
        "own": "Hollow: no bias found; the line goes to the 95% upper end",
        "unknown": "cross: no reference to be held against",
        "unclear": "cross: too heavy-tailed for a claim of bias",
        "data": "dotted: the variance that the choice of data adds",
    }
    keys = "; ".join(words[key] for key, value in noted.items() if value)
    quiet = f"No noise at all, drawn at the lower edge: {listed(silent)}" if silent else None
    none = f"No gradient: {listed(still)}" if still else None
    dashed = "Dashed: bias² = variance of one step"
    write_foot(figure, layout, join(caveat, keys[:1].upper() + keys[1:], dashed, quiet, none))
    return figure


def is_biased(block: Block, tests: int = 1) -> bool:
    """Return whether a bias was found, at 1% for all tests of a comparison at once, with a size above zero."""
    if block.bias is None or block.bias_p is None:
        return False
    return block.bias.value > 0 and tests * block.bias_p < LEVEL


class _Limits:
    """The limits of a column: the logarithmic parts of both axes, and the left end of the strip."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y
        self.left = 10 ** (math.log10(x[0]) - STRIP / (1 - STRIP) * math.log10(x[1] / x[0]))

    def in_strip(self, share: float) -> float:
        """Return the x of a place in the strip, from 0 at its left to 1 at its right."""
        return 10 ** (math.log10(self.left) + share * math.log10(self.x[0] / self.left))


def _biased(comparison: Comparison) -> set[int]:
    """Return the identities of the blocks in which a bias was found."""
    blocks = [block for row in comparison.rows for block in row.blocks.values()]
    tests = sum(block.bias is not None for block in blocks)
    return {id(block) for block in blocks if is_biased(block, tests)}


def _limits(blocks: list[Block], biased: set[int]) -> _Limits:
    xs: list[float] = []
    for block in blocks:
        if block.bias is None:
            continue
        xs += [block.bias.high**2]
        if id(block) in biased:
            xs += [block.bias.value**2, max(block.bias.low, 0.5 * block.bias.value) ** 2]
    ys = [end for block in blocks if not is_silent(block) for end in block.variance]
    ys += [block.minibatch_variance.value for block in blocks if block.minibatch_variance is not None]
    low, high = log_limits(xs if any(x > 0 for x in xs) else ys)
    return _Limits((max(low, high / 10**MOST_DECADES), high), log_limits(ys))


def _draw(
    axes: Axes,
    blocks: Mapping[str, Block],
    biased: set[int],
    styles: Mapping[str, Style],
    limits: _Limits,
    noted: dict[str, bool],
) -> None:
    (low, high), (bottom, top) = limits.x, limits.y
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(limits.left, high)
    axes.set_ylim(bottom, top)
    axes.axvspan(limits.left, low, color="#EEEEEE", linewidth=0, zorder=0)
    start, end = max(low, bottom), min(high, top)
    if start < end:
        axes.plot([start, end], [start, end], color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    of_data = [b.minibatch_variance.value for b in blocks.values() if b.minibatch_variance is not None]
    if of_data and (level := float(np.median(of_data))) > 0:
        axes.axhline(level, color="#777777", linewidth=1.0, linestyle=":", zorder=1)
        noted["data"] = True
    hidden = [name for name, block in blocks.items() if id(block) not in biased]
    for name, block in blocks.items():
        style = styles[name]
        y, (y_low, y_high) = block.variance.value, block.variance[1:]
        if is_silent(block):
            y = y_low = y_high = bottom
        if id(block) in biased:
            assert block.bias is not None
            x, x_low, x_high = (max(v, 0.0) ** 2 for v in block.bias)
            axes.plot([max(x_low, low), x_high], [y, y], color=style.colour, linewidth=1.0, zorder=3)
            mark = style.mark()
        else:
            x = limits.in_strip((hidden.index(name) + 1) / (len(hidden) + 1))
            if block.bias is None or block.bias_unclear:
                mark = {
                    "marker": "x",
                    "color": style.colour,
                    "markersize": 4.5,
                    "linestyle": "",
                    "markeredgewidth": 1.2,
                }
                noted["unclear" if block.bias_unclear else "unknown"] = True
            else:
                mark = style.mark(filled=False)
                noted["own"] = True
                if block.bias.high > 0:
                    axes.plot([x, block.bias.high**2], [y, y], color=style.colour, linewidth=0.8, alpha=0.6, zorder=2)
        axes.plot([x, x], [max(y_low, bottom), max(y_high, bottom)], color=style.colour, linewidth=1.0, zorder=3)
        axes.plot([x], [y], zorder=4, clip_on=False, **mark)
    clear = low * (high / low) ** 0.07  # ticks beyond this are clear of the words under the strip
    axes.xaxis.set_major_locator(FixedLocator([v for v in LogLocator(numticks=5).tick_values(low, high) if v > clear]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    words: dict[str, Any] = {
        "ha": "center",
        "va": "top",
        "transform": axes.get_xaxis_transform(),
        "fontsize": SMALL_SIZE,
    }
    axes.text(limits.in_strip(0.45), -0.035, "none seen", color="#555555", **words)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    tidy(axes)


def _at(comparison: Comparison, k: int) -> dict[str, Mapping[str, Block]]:
    return {row.name: row.blocks for row in comparison.rows if row.num_particles == k and row.blocks}
