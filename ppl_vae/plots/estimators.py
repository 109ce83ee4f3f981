"""Shared parts of the pictures of estimators: a style for each estimator, legends and logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from ppl_vae.plots.arguments import shortened
from ppl_vae.plots.figure import key, naming, write_legend
from ppl_vae.plots.style import COLOURS, TEXT_SIZE

if TYPE_CHECKING:
    from ppl_vae.comparison import Block, Comparison, Row

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = "osD^v"  # 5 marks and 8 colours: 40 pairs before one comes again
LONGEST = 30  # the most letters of a name in a picture


class Style(NamedTuple):
    """The look of an estimator in all pictures of a comparison: a colour, and a mark and dashes that need no colour."""

    colour: str
    marker: str
    dashes: Any
    label: str

    def line(self) -> dict[str, Any]:
        """Return the arguments of a line."""
        return {"color": self.colour, "linestyle": self.dashes}

    def mark(self, *, filled: bool = True, lined: bool = False, size: float = 4.5) -> dict[str, Any]:
        """Return the arguments of a mark: hollow for a value that may be zero or noise, on its line if `lined`."""
        look = {"color": self.colour, "marker": self.marker, "markersize": size, "markeredgewidth": 1.0}
        face = self.colour if filled else "#FFFFFF"
        return {**look, "markerfacecolor": face, "linestyle": self.dashes if lined else ""}


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name, by its place: the same in all pictures of one comparison, whatever failed in it.

    Example:
        >>> styles = styles_of(["ELBO", "IWAE", "ELBO"])
        >>> list(styles), styles["ELBO"].colour != styles["IWAE"].colour
        (['ELBO', 'IWAE'], True)
    """
    found = {}
    for i, name in enumerate(dict.fromkeys(names)):
        look = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)]
        found[name] = Style(*look, shortened(name, LONGEST))
    return found


def styles_of_rows(comparison: Comparison, rows: Iterable[Row]) -> dict[str, Style]:
    """Return the styles of the estimators in these rows, by their places among all of the comparison."""
    shown = {row.name for row in rows}
    return {name: style for name, style in styles_of(row.name for row in comparison.rows).items() if name in shown}


def write_keys(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Write a legend above the panels, in as many columns as fit, and make the figure that much taller."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 72 / ((0.53 * longest + 4.2) * TEXT_SIZE))))
    rows = math.ceil(len(handles) / columns)
    spaces = {"handlelength": 1.6, "columnspacing": 1.2, "handletextpad": 0.5}
    # by rows, with blanks in the last row: matplotlib fills columns first
    filled = [*handles, *(key(" ", linestyle="") for _ in range(rows * columns - len(handles)))]
    write_legend(figure, [filled[r * columns + c] for c in range(columns) for r in range(rows)], columns, **spaces)
    figure.set_figheight(figure.get_figheight() + rows * 1.35 * TEXT_SIZE / 72)


def log_ticks(low: float, high: float) -> list[float]:
    """Return at most five labelled places on a logarithmic axis: powers of ten, with multiples on a short axis."""
    subs: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    if high / low > 4:
        subs = (1.0,) if high / low > 10**2.2 else (1.0, 2.0, 5.0)
    ticks = [v for v in LogLocator(subs=subs, numticks=7).tick_values(low, high) if low <= v <= high]
    return ticks[:: math.ceil(len(ticks) / 5)]


def has_gradient(block: Block) -> bool:
    """Return whether the estimator moves the block at all: an upper bound for q alone does not move the decoder."""
    return block.norm.value > 0 or block.variance.value > 0


def log_limits(values: Iterable[float]) -> tuple[float, float]:
    """Return the limits of a logarithmic axis around all finite values above zero."""
    some = np.array([v for v in values if 0 < v < math.inf])
    if not len(some):
        return 0.1, 10.0
    low, high = math.log10(some.min()), math.log10(some.max())
    room = max(0.08 * (high - low), 0.15)
    return 10 ** (low - room), 10 ** (high + room)


def blocks_of(comparison: Comparison, function: str) -> tuple[list[Row], list[str]]:
    """Return the rows that have blocks, and the names of these blocks, in order.

    Raises:
        ValueError: If no row has any.
    """
    rows = [row for row in comparison.rows if row.blocks]
    if not rows:
        raise ValueError(f"{function}: no estimator has a gradient to show; all {len(comparison.rows)} failed")
    return rows, list(dict.fromkeys(name for row in rows for name in row.blocks))


def name_blocks(words: str, rows: Sequence[Row], names: Sequence[str], hold: Callable[[Block], bool]) -> str | None:
    """Return a sentence that names the blocks for which a condition holds, or None if there are none."""
    found = [(row, name) for name in names for row in rows if name in row.blocks and hold(row.blocks[name])]
    return naming(words, (f"{row.name}'s {name}" for row, name in found))
