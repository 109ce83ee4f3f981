"""Shared parts of all pictures: sizes, notes at the foot, and the file."""

from __future__ import annotations

import math
import os
import textwrap
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

ArrayLike: TypeAlias = "Tensor | np.ndarray | Sequence[Any]"

DPI = 200  # of `save`; an image pixel is a whole number of dots where that fits
WIDTH, TALLEST = 7.0, 9.0  # inches: at 100 pixels an inch, a README's 700 pixels
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 10.0, 8.5, 7.5  # points
NOTE_COLOUR = "#555555"


def save(figure: Figure, path: str | os.PathLike[str], dpi: float = DPI) -> Path:
    """Write a figure to a PNG file, whole or not at all.

    The picture is written to a temporary file beside ``path``, which then replaces ``path``. A reader never
    sees half a file, and a failure leaves an older picture as it was.

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
    # not tempfile: only the owner may read its files, and os.replace would keep that
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def to_array(values: ArrayLike, name: str) -> np.ndarray:
    """Return tensors, arrays and lists of them as one array of numbers."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    if not isinstance(values, np.ndarray):
        try:
            values = np.asarray([to_array(v, name) if isinstance(v, Tensor) else v for v in values])
        except (TypeError, ValueError):  # not a sequence, or a ragged one
            raise ValueError(f"{name} are no array; expected a tensor, an array, or a list of one shape") from None
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} hold {values.dtype}; expected numbers")
    return values


def note_style() -> dict[str, Any]:
    """Return the text style of notes."""
    return {"fontsize": SMALL_SIZE, "color": NOTE_COLOUR, "fontstyle": "italic"}


def wrap(text: str | None, width: float, size: float) -> str | None:
    """Break text into lines that fit ``width`` inches: a letter is 0.56 of its size wide on average."""
    return "\n".join(textwrap.wrap(text, max(10, int(width * 72 / (0.56 * size))))) if text else None


def lines_height(text: str | None, size: float) -> float:
    """Return the inches that lines of text take, with the space between them and the picture."""
    return (text.count("\n") + 1) * 1.25 * size / 72 + 0.06 if text else 0.0


def join(*sentences: str | None) -> str | None:
    """Join the sentences that are given to one foot, or return None if there are none."""
    given = [s.strip() if s.strip().endswith((".", "!", "?")) else f"{s.strip()}." for s in sentences[1:] if s]
    first = sentences[0]
    if not first or not given:
        return first or " ".join(given) or None
    return " ".join([first if first.endswith((".", "!", "?")) else f"{first}.", *given])


def write_foot(figure: Figure, layout: ConstrainedLayoutEngine, foot: str | None) -> None:
    """Write text at the foot of a figure in constrained layout, and keep the panels off the text."""
    width, height = figure.get_size_inches()
    foot = wrap(foot, width, SMALL_SIZE)
    if foot:
        taken = lines_height(foot, SMALL_SIZE)
        figure.set_size_inches(width, height + taken)
        share = taken / (height + taken)
        layout.set(rect=(0, share, 1, 1 - share))
        figure.text(0.5, 0.04 / (height + taken), foot, ha="center", va="bottom", **note_style())


def tidy(axes: Axes) -> None:
    """Remove the spines that carry no information, and make the ticks small."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL_SIZE, length=2.5)
