"""Shared parts of the pictures of estimators: a style for each estimator, legends and logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from ppl_vae.plots.figure import TEXT_SIZE

if TYPE_CHECKING:
    from ppl_vae.comparison import Block, Comparison

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#882255", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = "osD^v"
ROUNDING = 1e-8  # the variance from float32 rounding, relative to the squared norm
LONGEST = 30  # the most letters of a name in a picture


class Style(NamedTuple):
    """The look of one estimator in every picture of a comparison; it differs in colour first, then in mark and line."""

    colour: str
    marker: str
    dashes: Any
    label: str

    def line(self, **more: Any) -> dict[str, Any]:
        """Return the arguments of a line."""
        return {"color": self.colour, "linestyle": self.dashes, **more}

    def mark(self, *, filled: bool = True, size: float = 4.5, **more: Any) -> dict[str, Any]:
        """Return the arguments of a mark, hollow for a value that may be zero or noise."""
        face = self.colour if filled else "#FFFFFF"
        given = {"color": self.colour, "markerfacecolor": face, "markersize": size, "markeredgewidth": 1.0}
        return {**given, "marker": self.marker, "linestyle": "", **more}


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name, by its place: the same in all pictures of one comparison, whatever failed in it.

    Example:
        >>> styles = styles_of(["ELBO", "IWAE", "ELBO"])
        >>> list(styles), styles["ELBO"].colour != styles["IWAE"].colour
        (['ELBO', 'IWAE'], True)
    """
    found = {}
    for i, name in enumerate(dict.fromkeys(names)):
        turn = i // len(COLOURS)
        label = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        found[name] = Style(COLOURS[i % len(COLOURS)], MARKERS[turn % len(MARKERS)], DASHES[turn % len(DASHES)], label)
    return found


def keys_of(styles: Iterable[Style], *, lines: bool = False) -> list[Line2D]:
    """Return the entries of a legend."""
    return [
        Line2D([], [], **{**style.mark(size=4.5), "linestyle": style.dashes if lines else ""}, label=style.label)
        for style in styles
    ]


def write_legend(figure: Figure, handles: Sequence[Line2D], *, width: float, size: float = TEXT_SIZE) -> None:
    """Write a legend above the panels, in as many columns as fit, and make the figure that much taller."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(width * 72 / ((0.53 * longest + 4.2) * size))))
    rows = math.ceil(len(handles) / columns)
    figure.legend(
        handles=_by_rows(handles, columns),
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=size,
        borderaxespad=0.0,
        handlelength=1.6,
        columnspacing=1.2,
        handletextpad=0.5,
    )
    figure.set_figheight(figure.get_figheight() + rows * 1.35 * size / 72)


def _by_rows(handles: Sequence[Line2D], columns: int) -> list[Line2D]:
    """Order the entries to be read along the rows, with blanks in the last row: matplotlib fills columns first."""
    rows = math.ceil(len(handles) / columns)
    if len(handles) != rows * columns:
        handles = [*handles, *(Line2D([], [], linestyle="", label=" ") for _ in range(rows * columns - len(handles)))]
    return [handles[r * columns + c] for c in range(columns) for r in range(rows)]


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return the places of labels on a logarithmic axis: powers of ten, with their multiples on a short axis."""
    subs = (
        (1.0,) if high / low > 10**2.2 else (1.0, 2.0, 5.0) if high / low > 4 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    )
    ticks = [v for v in LogLocator(subs=subs, numticks=most + 2).tick_values(low, high) if low <= v <= high]
    return ticks[:: math.ceil(len(ticks) / most)]


def has_gradient(block: Block) -> bool:
    """Return whether the estimator moves the block at all: an upper bound for q alone does not move the decoder."""
    return block.norm.value > 0 or block.variance.value > 0


def log_limits(values: Iterable[float], *, margin: float = 0.08) -> tuple[float, float]:
    """Return the limits of a logarithmic axis around all finite values above zero."""
    some = np.array([v for v in values if 0 < v < math.inf])
    if not len(some):
        return 0.1, 10.0
    low, high = math.log10(some.min()), math.log10(some.max())
    room = max(margin * (high - low), 0.15)
    return 10 ** (low - room), 10 ** (high + room)


def is_silent(block: Block) -> bool:
    """Return whether the gradient has no noise except that of rounding."""
    return block.variance.value <= ROUNDING * block.norm.value**2


def blocks_of(comparison: Comparison, function: str) -> list[str]:
    """Return the blocks that some estimator has values for, in order.

    Raises:
        ValueError: If no estimator has any.
    """
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.blocks))
    if not names:
        raise ValueError(f"{function}: no estimator has a gradient to show; all {len(comparison.rows)} failed")
    return names
