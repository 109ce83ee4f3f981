"""The gradients of estimators: their bias and variance, and their signal-to-noise against the number of particles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from ppl_vae.plots.arguments import number
from ppl_vae.plots.estimators import Style, blocks_of, has_gradient, log_limits, name_blocks, styles_of_rows, write_keys
from ppl_vae.plots.figure import WIDTH, key, naming, nested, new_figure, tidy, write_foot, write_legend
from ppl_vae.plots.style import SMALL_SIZE, styled

if TYPE_CHECKING:
    from ppl_vae.comparison import Block, Comparison, Row, Slope

Limits = tuple[tuple[float, float], tuple[float, float]]

ROUNDING = 1e-8  # the variance from float32 rounding, relative to the squared norm
STRIP = 0.2  # the share of a panel's width, left of the logarithmic axis, for marks without a visible bias
MOST_DECADES = 12.0
WORDS = {
    "own": "Hollow: no bias found; the line goes to the 95% upper end",
    "unknown": "left half filled: no reference to be held against",
    "unclear": "lower half filled: too heavy-tailed for a claim of bias",
    "nested": "marks around others: the same place",
    "data": "dotted: the variance that the choice of data adds",
}
FEW = 6  # the most estimators for which the quartiles have room


@styled
def bias_variance(comparison: Comparison, *, caveat: str | None = None) -> Figure:
    r"""Plot the squared bias of gradients against their variance, a panel for each K and block of parameters.

    .. math::
        \lVert \mathbb E (g - g_\mathrm{ref}) \rVert^2 \quad \text{against} \quad \mathrm{tr} \, \mathrm{Cov}(g).

    Averaging n gradients divides the variance (upwards) by n; it does not reduce the bias (to the right). Left of the
    line of equal parts, the noise of one gradient hides its bias. The noise of the mean over replicates is subtracted
    from the bias.

    The test of zero bias uses random projections of paired differences, at 1% for all tests at once. Where it finds no
    bias, the mark is hollow and stands in the strip at the left. A line goes to the upper end of the 95% interval of
    the squared bias: a bias below that end may have escaped the test. A half-filled mark stands for an estimator whose
    bias is unknown: it has no reference (left), or its differences are too heavy-tailed for a claim (bottom). Marks in
    the strip have no place sideways; those of one variance stand around each other. The bias is that against each
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
    rows, names = blocks_of(comparison, "bias_variance")
    styles = styles_of_rows(comparison, rows)
    tests = sum(block.bias is not None for row in rows for block in row.blocks.values())
    several = list(dict.fromkeys(row.num_particles for row in rows))
    figure = new_figure(WIDTH if len(names) > 1 else 4.6, 2.15 * len(several) + 0.3, w_pad=0.04)
    grid = figure.subplots(len(several), len(names), squeeze=False)
    noted: set[str] = set()
    for column, name in enumerate(names):
        limits = _limits([row.blocks[name] for row in rows if name in row.blocks], tests)
        for line, k in enumerate(several):
            there = {row.name: row.blocks[name] for row in rows if row.num_particles == k and name in row.blocks}
            moving = {row_name: block for row_name, block in there.items() if has_gradient(block)}
            noted |= _draw_plane(grid[line, column], moving, tests, styles, limits)
            x = "squared bias of the gradient" if line == len(several) - 1 else ""
            tidy(grid[line, column], title=f"{name}, K = {k}", x=x, y="" if column else "variance", grid=True)
    write_keys(figure, [key(style.label, **style.mark()) for style in styles.values()])
    keys = "; ".join(words for note, words in WORDS.items() if note in noted)
    dashed = "Dashed: bias² = variance of one step"
    silent = name_blocks("No noise at all, drawn at the lower edge", rows, names, _is_silent)
    still = name_blocks("No gradient", rows, names, lambda block: not has_gradient(block))
    return write_foot(figure, caveat, keys[:1].upper() + keys[1:], dashed, silent, still)


def _is_silent(block: Block) -> bool:
    """Return whether there is a gradient, and it has no noise except that of rounding."""
    return block.norm.value > 0 and block.variance.value <= ROUNDING * block.norm.value**2


def _in_strip(low: float, high: float, share: float) -> float:
    """Return the x of a place in the strip left of an axis, from 0 at the left of the strip to 1 at its right."""
    return low * (high / low) ** ((share - 1) * STRIP / (1 - STRIP))


def _limits(blocks: list[Block], tests: int) -> Limits:
    """Return the limits of both axes, that of x without its strip."""
    xs: list[float] = []
    for block in blocks:
        if block.bias is not None:
            xs.append(block.bias.high**2)
            if block.is_biased(tests):
                xs += [block.bias.value**2, max(block.bias.low, 0.5 * block.bias.value) ** 2]
    ys = [end for block in blocks if not _is_silent(block) for end in block.variance]
    ys += [block.minibatch_variance.value for block in blocks if block.minibatch_variance is not None]
    low, high = log_limits(xs if any(x > 0 for x in xs) else ys)
    return (max(low, high / 10**MOST_DECADES), high), log_limits(ys)


def _draw_plane(
    axes: Axes, blocks: Mapping[str, Block], tests: int, styles: Mapping[str, Style], limits: Limits
) -> set[str]:
    """Draw a panel, and return which of the words explain its marks."""
    (low, high), (bottom, top) = limits
    left = _in_strip(low, high, 0.0)
    axes.set(xscale="log", yscale="log", xlim=(left, high), ylim=(bottom, top))
    axes.axvspan(left, low, color="#EEEEEE", linewidth=0, zorder=0)
    noted = set()
    start, end = max(low, bottom), min(high, top)
    if start < end:
        axes.plot([start, end], [start, end], color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    of_data = [b.minibatch_variance.value for b in blocks.values() if b.minibatch_variance is not None]
    if of_data and (level := float(np.median(of_data))) > 0:
        axes.axhline(level, color="#777777", linewidth=1.0, linestyle=":", zorder=1)
        noted.add("data")
    strip: list[float] = []  # the heights of its marks, as shares of the panel's
    for name, block in blocks.items():
        style = styles[name]
        thin: dict[str, Any] = {"color": style.colour, "linewidth": 1.0, "zorder": 3}
        y, y_low, y_high = (bottom,) * 3 if _is_silent(block) else block.variance
        mark, around = style.mark(), 0
        if block.bias is not None and block.is_biased(tests):
            x, x_low, x_high = (max(v, 0.0) ** 2 for v in block.bias)
            axes.plot([max(x_low, low), x_high], [y, y], **thin)
        else:
            x, place = _in_strip(low, high, 0.5), math.log(max(y, bottom) / bottom) / math.log(top / bottom)
            around = nested(place, strip)
            if block.bias is None or block.bias_unclear:
                noted.add("unclear" if block.bias_unclear else "unknown")
                mark |= {"fillstyle": "bottom" if block.bias_unclear else "left", "markerfacecoloralt": "#FFFFFF"}
            else:
                noted.add("own")
                mark = style.mark(filled=False)
                if block.bias.high > 0:
                    axes.plot([x, block.bias.high**2], [y, y], color=style.colour, linewidth=0.8, alpha=0.6, zorder=2)
        axes.plot([x, x], [max(y_low, bottom), max(y_high, bottom)], **thin)
        axes.plot([x], [y], **mark | {"markersize": 4.5 + 3.5 * around}, zorder=4 - around / 100, clip_on=False)
        noted |= {"nested"} if around else set()
    clear = low * (high / low) ** 0.07  # ticks beyond this are clear of the words under the strip
    axes.xaxis.set_major_locator(FixedLocator([v for v in LogLocator(numticks=5).tick_values(low, high) if v > clear]))
    axes.minorticks_off()
    look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": SMALL_SIZE, "color": "#555555"}
    axes.text(_in_strip(low, high, 0.45), -0.035, "none seen", transform=axes.get_xaxis_transform(), **look)
    return noted


@styled
def signal_to_noise(comparison: Comparison, *, caveat: str | None = None) -> Figure:
    r"""Plot the signal-to-noise of gradients against K, both logarithmic, a panel for each block of parameters.

    .. math::
        \mathrm{SNR}_i = |\mathbb E g_i| \, / \, \mathrm{sd}(g_i), \qquad \mathrm{SNR} \sim K^s.

    Marks are medians over parameters with 95% intervals. With up to six estimators, short dashes are the quartiles.
    Marks at one place stand around each other. Lines are the fitted power laws; their exponents stand under the panel
    with 95% intervals. A line that misses its marks shows that there is no power law in this range. In the grey area a
    value is below the one that a parameter without any signal would seem to have. Marks there say little: they are
    hollow and left out of the fit.

    Args:
        comparison: The result of `ppl_vae.comparison.compare`.
        caveat: Written at the foot.

    Returns:
        A figure with one axes for each block.

    Raises:
        ValueError: If no estimator has a gradient to show.

    Reference:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        https://arxiv.org/abs/1802.04537

    Example:
        >>> from ppl_vae.comparison import Block, Comparison, Measured, Row
        >>> def row(k, snr):
        ...     one = Measured(snr, 0.9 * snr, 1.1 * snr)
        ...     return Row("IWAE", k, blocks={"encoder": Block(5, 0, one, one, one, (0.5 * snr, 2 * snr), 0.03)})
        >>> rows = (row(1, 0.8), row(16, 0.4))
        >>> figure = signal_to_noise(Comparison(rows, (), None, 1000, 0, (8, 64), {}, 1.0))
        >>> print(figure.axes[0].get_legend().get_texts()[0].get_text().partition(" [")[0])
        IWAE  −0.25
    """
    rows, names = blocks_of(comparison, "signal_to_noise")
    styles, slopes = styles_of_rows(comparison, rows), comparison.slopes()
    quartiles = len(styles) <= FEW
    most = max(sum(s.block == name for s in slopes) for name in names)
    below = 0.35 + most * 1.3 * SMALL_SIZE / 72 if most else 0.0  # inches, of the exponents
    figure = new_figure(WIDTH if len(names) > 1 else 4.6, 3.0 + below, w_pad=0.04)
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    found = [block for row in rows for block in row.blocks.values() if has_gradient(block)]
    values = [v for block in found for v in (*block.snr, block.snr_floor)]
    values += [block.snr_quartiles[1] for block in found] if quartiles else []
    low, high = log_limits(values)
    low = max(low, min((block.snr_floor for block in found), default=low) / 4)
    for axes, name in zip(panels, names, strict=True):
        of_block = [s for s in slopes if s.block == name]
        there = [row for row in rows if name in row.blocks]
        moving = [row for row in there if has_gradient(row.blocks[name])]
        axes.set(xscale="log", yscale="log", ylim=(low, high))
        _draw_noise(axes, name, moving or there, styles, of_block)
        tidy(axes, title=name, y="" if name != names[0] else "signal-to-noise, median parameter", grid=True)
        axes.set_xlabel("particles $K$", labelpad=1)
        if of_block:
            _write_slopes(axes, of_block, styles, SMALL_SIZE if len(names) < 3 else SMALL_SIZE - 1)
    write_keys(figure, [key(style.label, **style.mark(lined=True)) for style in styles.values()])
    keys = "Bars: 95% intervals" + ("; short dashes: quartiles over parameters" if quartiles else "")
    keys += "; marks around others: the same place" if len(styles) > 1 else ""
    keys += f"; grey: within the noise of {comparison.replicates:,} replicates"
    fits = naming("Fitted without the points in the noise", (f"{s.name}'s {s.block}" for s in slopes if s.left_out))
    silent = name_blocks(
        "No noise at all", rows, names, lambda block: has_gradient(block) and not math.isfinite(block.snr.value)
    )
    still = name_blocks("No gradient", rows, names, lambda block: not has_gradient(block))
    return write_foot(figure, caveat, keys, fits, silent, still)


def _draw_noise(axes: Axes, name: str, rows: Sequence[Row], styles: dict[str, Style], slopes: Sequence[Slope]) -> None:
    low, high = axes.get_ylim()
    several = sorted({row.num_particles for row in rows})
    gap = min((math.log(b / a) for a, b in itertools.pairwise(several)), default=math.log(4))
    axes.set_xlim(several[0] * math.exp(-0.2 * gap), several[-1] * math.exp(0.2 * gap))
    axes.axhspan(low, max(row.blocks[name].snr_floor for row in rows), color="#EEEEEE", linewidth=0, zorder=0)
    places: dict[int, list[float]] = {k: [] for k in several}
    for estimator, style in styles.items():
        for slope in slopes:
            if slope.name == estimator:
                ends = np.array([min(slope.particles), max(slope.particles)], float)
                fitted = np.exp(slope.intercept + slope.value * np.log(ends))
                axes.plot(ends, fitted, linewidth=1.1, alpha=0.8, zorder=2, **style.line())
        for row in rows:
            block, x = row.blocks[name], row.num_particles
            if row.name != estimator or not math.isfinite(block.snr.value):
                continue
            y, *interval = (max(v, low) for v in block.snr)
            if len(styles) <= FEW:
                quartiles = [max(v, low) for v in block.snr_quartiles]
                axes.plot([x, x], quartiles, linestyle="", marker="_", markersize=9, color=style.colour, alpha=0.7)
            axes.plot([x, x], interval, color=style.colour, linewidth=1.1, zorder=3)
            around = nested(math.log(y / low) / math.log(high / low), places[x])
            mark = style.mark(filled=block.above_floor, size=4.5 + 3 * around)
            mark |= {"markeredgecolor": "#FFFFFF", "markeredgewidth": 0.6} if block.above_floor else {}
            axes.plot([x], [y], zorder=4 - around / 100, clip_on=False, **mark)
    axes.xaxis.minorticks_off()
    axes.set_xticks(several, [f"{k:,}" for k in several])
    axes.yaxis.set_minor_formatter(NullFormatter())


def _write_slopes(axes: Axes, slopes: Sequence[Slope], styles: dict[str, Style], size: float) -> None:
    """Write the exponents under the panel, one a line."""
    handles = [
        key(f"{styles[s.name].label}  {_exponent(s)}", **styles[s.name].mark(lined=True, size=4))
        for s in sorted(slopes, key=lambda s: -s.value)
    ]
    words = {"fontsize": size, "title": "exponent of $K$", "title_fontsize": size}
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "borderaxespad": 0.5}
    write_legend(axes, handles, 1, handlelength=2.2, borderpad=0.7, labelspacing=0.25, **words, **place)


def _exponent(slope: Slope) -> str:
    digits = 2 if slope.high - slope.low > 0.02 else 3
    value, low, high = (number(v, digits) for v in (slope.value, slope.low, slope.high))
    return f"{value} [{low}, {high}]"
