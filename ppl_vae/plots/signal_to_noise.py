"""The signal-to-noise of gradients against the number of particles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from ppl_vae.comparison.words import listed
from ppl_vae.plots.arguments import number
from ppl_vae.plots.estimators import (
    Style,
    blocks_of,
    has_gradient,
    keys_of,
    log_limits,
    styles_of,
    write_legend,
)
from ppl_vae.plots.figure import SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, WIDTH, join, tidy, write_foot

if TYPE_CHECKING:
    from ppl_vae.comparison import Comparison, Row, Slope

SPREAD = 0.22  # the marks at one K spread over this share of the distance between two K
FEW = 6  # the most estimators for which the quartiles have room


def signal_to_noise(comparison: Comparison, *, caveat: str | None = None) -> Figure:
    r"""Plot the signal-to-noise of gradients against K, both logarithmic, a panel for each block of parameters.

    .. math::
        \mathrm{SNR}_i = |\mathbb E g_i| \, / \, \mathrm{sd}(g_i), \qquad \mathrm{SNR} \sim K^s.

    Marks are medians over parameters with 95% intervals. With up to six estimators, pale bars are the quartiles. Lines
    are the fitted power laws; their exponents stand under the panel with 95% intervals. A line that misses its marks
    shows that there is no power law in this range. In the grey area a value is below the one that a parameter without
    any signal would seem to have. Marks there say little: they are hollow and left out of the fit.

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
    styles = styles_of(row.name for row in comparison.rows)
    names = blocks_of(comparison, "signal_to_noise")
    rows = [row for row in comparison.rows if row.blocks]
    shown = {name: style for name, style in styles.items() if any(row.name == name for row in rows)}
    slopes = comparison.slopes()
    width = WIDTH if len(names) > 1 else 4.6
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.02)
    most = max((sum(s.block == name for s in slopes) for name in names), default=0)
    figure = Figure(figsize=(width, 3.0 + (0.35 + most * 1.3 * SMALL_SIZE / 72 if most else 0.0)), layout=layout)
    figure_axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    found = [block for row in rows for block in row.blocks.values() if has_gradient(block)]
    values = [v for block in found for v in (*block.snr, block.snr_floor)]
    values += [v for block in found for v in block.snr_quartiles[1:]] if len(shown) <= FEW else []
    low, high = log_limits(values)
    low = max(low, min((block.snr_floor for block in found), default=low) / 4)
    silent: list[str] = []
    still: list[str] = []
    for axes, name in zip(figure_axes, names, strict=True):
        of_block = [s for s in slopes if s.block == name]
        there = [row for row in rows if name in row.blocks]
        still += [f"{row.name}'s {name}" for row in there if not has_gradient(row.blocks[name])]
        moving = [row for row in there if has_gradient(row.blocks[name])]
        _draw(axes, name, moving or there, shown, of_block, (low, high), silent)
        if of_block:
            _write_slopes(axes, of_block, shown, SMALL_SIZE if len(names) < 3 else SMALL_SIZE - 1)
    figure_axes[0].set_ylabel("signal-to-noise, median parameter", fontsize=TEXT_SIZE)
    write_legend(figure, keys_of(shown.values(), lines=True), width=width)
    left_out = dict.fromkeys(f"{s.name}'s {s.block}" for s in slopes if s.left_out)
    keys = "Bars: 95% intervals" + ("; pale bars: quartiles over parameters" if len(shown) <= FEW else "")
    keys += f"; grey: within the noise of {comparison.replicates:,} replicates"
    quiet = f"No noise at all: {listed(silent)}" if silent else None
    fits = f"Fitted without the points in the noise: {listed(left_out)}" if left_out else None
    none = f"No gradient: {listed(still)}" if still else None
    write_foot(figure, layout, join(caveat, keys, fits, quiet, none))
    return figure


def _draw(
    axes: Axes,
    name: str,
    rows: Sequence[Row],
    styles: dict[str, Style],
    slopes: Sequence[Slope],
    limits: tuple[float, float],
    silent: list[str],
) -> None:
    low, high = limits
    several = sorted({row.num_particles for row in rows})
    gap = min((math.log(b / a) for a, b in itertools.pairwise(several)), default=math.log(4))
    floor = max(row.blocks[name].snr_floor for row in rows)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(several[0] * math.exp(-0.35 * gap), several[-1] * math.exp(0.35 * gap))
    axes.set_ylim(low, high)
    axes.axhspan(low, floor, color="#EEEEEE", linewidth=0, zorder=0)
    for i, (estimator, style) in enumerate(styles.items()):
        shift = math.exp(SPREAD * gap * (i / max(1, len(styles) - 1) - 0.5)) if len(styles) > 1 else 1.0
        for slope in slopes:
            if slope.name == estimator:
                ends = np.array([min(slope.particles), max(slope.particles)], float)
                fitted = np.exp(slope.intercept + slope.value * np.log(ends))
                axes.plot(ends * shift, fitted, linewidth=1.1, alpha=0.8, zorder=2, **style.line())
        for row in rows:
            if row.name != estimator:
                continue
            block, x = row.blocks[name], row.num_particles * shift
            if not math.isfinite(block.snr.value):
                silent.append(f"{estimator}'s {name}")
                continue
            ends_of = [max(v, low) for v in block.snr[1:]]
            if len(styles) <= FEW:
                quartiles = [max(v, low) for v in block.snr_quartiles]
                axes.plot([x, x], quartiles, color=style.colour, linewidth=4.0, alpha=0.22, solid_capstyle="butt")
            axes.plot([x, x], ends_of, color=style.colour, linewidth=1.1, zorder=3)
            y = max(block.snr.value, low)
            axes.plot([x], [y], zorder=4, clip_on=False, **style.mark(filled=block.above_floor, size=4))
    axes.xaxis.set_major_locator(FixedLocator(several))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(several, [f"{k:,}" for k in several])
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(name, fontsize=TITLE_SIZE - 1, pad=3)
    axes.set_xlabel("particles $K$", fontsize=TEXT_SIZE, labelpad=1)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    tidy(axes)


def _write_slopes(axes: Axes, slopes: Sequence[Slope], styles: dict[str, Style], size: float) -> None:
    """Write the exponents under the panel, one a line."""
    handles = [
        Line2D(
            [],
            [],
            **{**styles[s.name].mark(size=4), "linestyle": styles[s.name].dashes},
            label=f"{styles[s.name].label}  {_exponent(s)}",
        )
        for s in sorted(slopes, key=lambda s: -s.value)
    ]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        frameon=False,
        fontsize=size,
        title="exponent of $K$",
        title_fontsize=size,
        handlelength=2.2,
        borderpad=0.0,
        labelspacing=0.25,
    )


def _exponent(slope: Slope) -> str:
    digits = 2 if slope.high - slope.low > 0.02 else 3
    value, low, high = (number(v, digits) for v in (slope.value, slope.low, slope.high))
    return f"{value} [{low}, {high}]"
