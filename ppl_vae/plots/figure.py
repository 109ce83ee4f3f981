"""Shared parts of all pictures: sizes, legends, notes at the foot, and the file."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from ppl_vae import _files
from ppl_vae._words import listed
from ppl_vae.plots.style import SMALL_SIZE

DPI = 200  # of `save`; an image pixel is a whole number of dots where that fits
WIDTH, TALLEST = 7.0, 9.0  # inches: at 100 pixels an inch, a README's 700 pixels
NOTE: dict[str, Any] = {"fontsize": SMALL_SIZE, "color": "#555555", "fontstyle": "italic"}  # the style of notes
CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}
PAPER: dict[str, Any] = {"facecolor": "#FFFFFF", "edgecolor": "none"}  # behind words that a line may cross


class Picture(Figure):
    """A figure that a notebook shows by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=100)
        return content.getvalue()


def save(figure: Figure, path: str | os.PathLike[str], dpi: float = DPI) -> Path:
    """Write a figure to a PNG file, whole or not at all.

    A reader never sees half a file, and a failure leaves an older picture as it was.

    Args:
        figure: Any figure.
        path: File to write, ending in ``.png``; its folder must exist.
        dpi: Pixels per inch. The default draws images of few pixels sharp.

    Returns:
        The path.

    Raises:
        ValueError: If ``path`` does not end in ``.png``, or ``dpi`` is not positive.
        FileNotFoundError: If the folder does not exist.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from ppl_vae.plots import samples
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(samples(torch.rand(4, 8, 8)), Path(folder) / "samples.png").name
        'samples.png'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"save: path is {str(path)!r}; expected a name ending in .png (figure.savefig writes others)")
    if not 0 < dpi < math.inf:
        raise ValueError(f"save: dpi is {dpi}; expected a positive number")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: the folder {str(path.parent)!r} does not exist; create it first")
    return _files.write(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def new_figure(width: float, height: float, w_pad: float = 0.05, h_pad: float = 0.04, hspace: float = 0.02) -> Figure:
    """Return an empty figure of this size in inches, in constrained layout."""
    layout = ConstrainedLayoutEngine(w_pad=w_pad, h_pad=h_pad, wspace=0.02, hspace=hspace)
    return Picture(figsize=(width, height), layout=layout)


def fitted(text: str | None, width: float, size: float) -> tuple[str, float]:
    """Break text into lines that fit `width` inches, and return it with the inches that it takes, with a space.

    A letter is 0.56 of its size wide on average.
    """
    if not text:
        return "", 0.0
    text = "\n".join(textwrap.wrap(text, max(10, int(width * 72 / (0.56 * size)))))
    return text, (text.count("\n") + 1) * 1.25 * size / 72 + 0.06


def join(*sentences: str | None) -> str | None:
    """Join the sentences that are given to one foot, or return None if there are none."""
    given = [s.strip() for s in sentences if s]
    if len(given) == 1 and sentences[0]:
        return sentences[0]  # a caveat alone stays as it is
    return " ".join(s if s.endswith((".", "!", "?")) else f"{s}." for s in given) or None


def about(run: str, data: str, *sentences: str | None) -> str | None:
    """Return a foot that begins with the run and the data (and their split) that a picture is of."""
    return join(f"Run {run}; data {data}", *sentences)


def naming(words: str, names: Iterable[str]) -> str | None:
    """Return a sentence that names some, or None if there are none."""
    return f"{words}: {listed(names)}" if (names := list(names)) else None


def put_foot(figure: Figure, foot: str) -> None:
    """Write text at the foot of a figure, where there is room for it; a $ is a letter there."""
    if foot:
        figure.text(0.5, 0.04 / figure.get_figheight(), foot, ha="center", va="bottom", parse_math=False, **NOTE)


def write_foot(figure: Figure, *sentences: str | None) -> Figure:
    """Write sentences at the foot of a figure in constrained layout, keep the panels off them, and return it."""
    width, height = figure.get_size_inches()
    foot, taken = fitted(join(*sentences), width, SMALL_SIZE)
    figure.set_size_inches(width, height + taken)
    share = taken / (height + taken)
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(rect=(0, share, 1, 1 - share))
    put_foot(figure, foot)
    return figure


def key(label: str, **style: Any) -> Line2D:
    """Return an entry of a legend."""
    return Line2D([], [], label=label, **style)


def nested(place: float, others: list[float]) -> int:
    """Add a mark's place, as a share of the axis, to those of others, and return how many it must stand around.

    No more than four, or the outermost would fill the panel: further ones lie below the last.
    """
    around = sum(abs(place - other) < 0.03 for other in others)
    others.append(place)
    return min(around, 4)


def write_legend(owner: Figure | Axes, handles: Sequence[Line2D], columns: int, **more: Any) -> None:
    """Write a legend, above the panels if nothing else is said."""
    style: dict[str, Any] = {"loc": "outside upper center", "borderaxespad": 0}
    owner.legend(handles=handles, ncols=columns, **style | more)


def colour_bar(figure: Figure, drawn: ScalarMappable, label: str, *, length: float = 2.5, **more: Any) -> Colorbar:
    """Draw a colour bar in small print."""
    bar = figure.colorbar(drawn, label=label, **more)
    bar.ax.tick_params(length=length)
    return bar


def write_labels(axes: Axes, *, title: str = "", x: str = "", y: str = "", pad: float = 3, labelpad: float = 4) -> None:
    """Write the title and the labels of axes."""
    axes.set_title(title, pad=pad)
    axes.set_xlabel(x, labelpad=labelpad)
    axes.set_ylabel(y, labelpad=labelpad)


def write_rows(axes: Axes, names: Sequence[str], size: float) -> None:
    """Write names down the y axis, the first on top, every other one on a grey stripe, with a grid of x."""
    for i in range(1, len(names), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#F5F5F5", linewidth=0, zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0, labelsize=size)


def tidy(axes: Axes, *, grid: bool = False, **labels: Any) -> None:
    """Write the labels, as `write_labels`, and remove the spines that carry no information."""
    write_labels(axes, **labels)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(True)
