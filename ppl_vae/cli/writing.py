"""The file that a command writes: its place, and its writing, whole or not at all and over no other unless asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ppl_vae import _files
from ppl_vae.cli import formats
from ppl_vae.cli.opening import OpenRun
from ppl_vae.data.arrays import is_image
from ppl_vae.plots.figure import DPI


@dataclass(frozen=True)
class Place:
    """The place of a file that a command writes.

    Attributes:
        path: The path.
        numbered: Whether the name is the first that is free of stem, stem-2, ... when the file is written.
        overwrite: Whether another file of this name is replaced.
    """

    path: Path
    numbered: bool
    overwrite: bool

    @property
    def suffix(self) -> str:
        """The ending of the path, in small letters."""
        return self.path.suffix.lower()

    def write(self, content: _files.Content) -> Path:
        """Write the file, and return its path; two commands at once never write to one file."""
        return _files.write(self.path, content, replace=self.overwrite, numbered=self.numbered)


def place(
    run: OpenRun, out: str | None, overwrite: bool, suffixes: Sequence[str], stem: str, *, images: bool = True
) -> Place:
    """Return the place to write to, after a check that it can be written to.

    Args:
        run: The run; by default the file lies in its folder.
        out: The value of ``--out``; None for `stem` in the run's folder, or the first of stem-2, ... that is free.
        overwrite: Whether an existing file may be replaced.
        suffixes: The formats. The default is the first, or the second if the first is a picture and data are no images.
        stem: The name without its suffix.
        images: Whether a picture shows the data themselves.

    Raises:
        ValueError: If the suffix is not among the formats, or a picture of data that are no images is asked for.
        OSError: If the file exists already, or its folder does not exist or cannot be written to.
    """
    if suffixes[0] == ".png" and not is_image(run.x_shape):
        if out is None:
            suffixes = suffixes[1:]
        elif images and Path(out).suffix.lower() == ".png":
            others = " or ".join(s for s in suffixes if s != ".png")
            raise ValueError(
                f"{run.folder} cannot be drawn: its data are of shape {run.x_shape}, and a picture needs images, "
                f"(C, H, W) with C = 1 or 3, or (H, W); give an --out that ends in {others}"
            )
    return place_in(run.folder, out, overwrite, suffixes, stem)


def place_in(folder: Path, out: str | None, overwrite: bool, suffixes: Sequence[str], stem: str) -> Place:
    """Return the place to write to, by default in a folder, as `place` does.

    Raises:
        ValueError: If the suffix is not among the formats.
        OSError: If the file exists already, or its folder does not exist or cannot be written to.
    """
    if out is None:
        path = folder / f"{stem}{suffixes[0]}"
    else:
        path = Path(out).expanduser()
        if path.is_dir() or path.suffix.lower() not in suffixes:
            raise ValueError(f"--out is {out!r}; expected the name of a file that ends in {' or '.join(suffixes)}")
        if path.exists() and not overwrite:
            raise FileExistsError(f"--out {out} is there already; choose another name, or give --overwrite true")
        formats.check_there(path.suffix.lower())
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"cannot write {path}: {path.parent} is no folder that can be written to; choose an --out"
        )
    return Place(path, numbered=out is None, overwrite=overwrite)


def save_picture(to: Place, figure: Figure) -> str:
    """Write a picture; return the line that names the file."""
    return f"picture: {to.write(lambda file: figure.savefig(file, format='png', dpi=DPI))}"


def save_blocks(to: Place, blocks: Iterable[Mapping[str, Tensor | np.ndarray | None]]) -> str:
    """Write rows, block by block, in the format of the file's ending, without columns that are None.

    Args:
        to: The place.
        blocks: The columns of some rows each, of shape (rows, ...).

    Returns:
        The line that names the file and what it holds.
    """
    return save_columns(to, blocks if to.suffix == ".npz" else map(as_columns, blocks))


def save_columns(to: Place, blocks: Iterable[Mapping[str, Tensor | np.ndarray | None]]) -> str:
    """Write columns, (rows,) each in a table, under their own names; otherwise as `save_blocks`."""
    contents = []
    write = formats.WRITERS[to.suffix]
    path = to.write(lambda file: contents.append(write(file, map(_arrays, blocks), to.path.parent)))
    return f"file: {path} ({contents[-1]})"


def as_columns(block: Mapping[str, Tensor | np.ndarray | None]) -> formats.Block:
    """Return the columns of a table by their names, of those arrays that are not None."""
    return formats.columns(_arrays(block))


def _arrays(block: Mapping[str, Tensor | np.ndarray | None]) -> formats.Block:
    return {
        name: column.detach().cpu().numpy() if isinstance(column, Tensor) else column
        for name, column in block.items()
        if column is not None
    }
