"""The form in which a program takes its data, and batches as people hold them read in this form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ppl_vae._tensors import as_numbers
from ppl_vae.data.arrays import numeric
from ppl_vae.data.items import Columns

_X = ("x", "image", "images", "img", "pixel_values", "data", "features", "input", "inputs")
_Y = ("y", "label", "labels", "target", "targets")


@dataclass(frozen=True)
class Form:
    """The form in which a program takes its data.

    Args:
        columns: How many columns it takes. A column of integers behind them holds labels. None: as many as there are.
        dtype: The dtype of its numbers.
        raw: Whether tensors are given to it as they are. If not, column 0 becomes numbers of `dtype`, and images of
            8-bit pixels (uint8) are divided by 255.
        names: The names of the columns of a frame, in their order; None where nothing is known of them.
        categories: The values behind the codes of each of these columns; empty where nothing is known of them.
        conditions: What the entries of one-hot labels stand for; empty where nothing is known of them.
    """

    columns: int | None = 1
    dtype: torch.dtype = torch.float32
    raw: bool = False
    names: tuple[str, ...] | None = None
    categories: tuple[tuple[Any, ...], ...] = ()
    conditions: tuple[str, ...] = ()

    def like(self, known: Any) -> Form:
        """Return the form whose names and codes are those of a part of a data set, or of a VAE trained on one."""
        return replace(
            self,
            names=getattr(known, "column_names", None),
            categories=getattr(known, "categories", ()),
            conditions=getattr(known, "conditions", ()),
        )

    def read(self, batch: Any) -> tuple[Columns, Tensor | None]:
        """Return the columns of a batch, and its labels if it has any."""
        if isinstance(batch, Mapping):
            batch = _by_name(batch)
        parts = batch if isinstance(batch, tuple | list) else (batch,)
        tensors = tuple(self._tensor(part, place) for place, part in enumerate(parts))
        if not tensors or len({len(t) for t in tensors}) > 1 or not len(tensors[0]):
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors) or "none"
            raise ValueError(f"the data have columns of shapes {shapes}: as many rows in each, from 1, were expected")
        if self.columns is None or len(tensors) == self.columns:
            return tensors, None
        extra = tensors[self.columns :]
        if len(extra) != 1 or extra[0].dim() != 1 or extra[0].is_floating_point():
            raise ValueError(
                f"the data have {len(tensors)} columns and the program takes {self.columns}: give x"
                f"{' and the condition y' if self.columns > 1 else ''}, and behind it nothing or integer labels, (n,)"
            )
        return tensors[: self.columns], extra[0].to(torch.int64)

    def read_rows(self, rows: np.ndarray) -> Tensor:
        """Return some rows of column 0."""
        return self.read(rows)[0][0]

    def _tensor(self, value: Any, place: int) -> Tensor:
        what = f"column {place} of the data"
        given = isinstance(value, Tensor)
        if sparse.issparse(value):
            value = value.astype(np.float64).toarray()  # counts, and never pixels
        tensor = value.detach() if given else torch.from_numpy(np.array(numeric(value, what)))
        if not tensor.dim() or tensor.is_complex() or tensor.layout != torch.strided:
            raise ValueError(
                f"{what} is of dtype {tensor.dtype}, shape {tuple(tensor.shape)} and layout {tensor.layout}, where "
                "dense real numbers with one row a datum were expected (a list is read as batches: make an array of "
                "rows)"
            )
        if self.raw and given:
            return tensor
        if not tensor.is_floating_point() and (place or self.raw):
            return tensor
        numbers = as_numbers(tensor, self.dtype, what)
        if numbers.isinf().any():
            raise ValueError(f"{what} holds values that are infinite in {self.dtype}: scale, drop or mend them")
        return numbers


def form_of(program: Any, modules: Sequence[nn.Module] = ()) -> Form:
    """Return the form in which a VAE, or else a pair of functions whose modules are given, takes its data."""
    parts = [program, *modules] if isinstance(program, nn.Module) else modules
    own = (p.dtype for part in parts for p in part.parameters() if p.is_floating_point())
    dtype = next(own, torch.get_default_dtype())
    if not hasattr(program, "y_shape"):
        return Form(None, dtype, raw=True)
    return Form(1 if program.y_shape is None else 2, dtype).like(program)


def _by_name(batch: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Return x of a batch of named columns, and its labels if there are any."""
    x, y = ([batch[name] for name in names if name in batch] for names in (_X, _Y))
    if len(x) != 1 or len(y) > 1:
        raise ValueError(
            f"a batch has the columns {', '.join(map(str, batch))}; expected one of {', '.join(_X)}, and as labels one "
            f"of {', '.join(_Y)}: rename or remove others"
        )
    return (*x, *y)
