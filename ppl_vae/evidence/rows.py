"""Tensors whose rows belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor


class Rows:
    """A dataclass whose tensors have one row for each datum, cell or pair; other values are those of all rows.

    Its first field has the rows. It caches nothing among its attributes, which are the arguments of its constructor.
    """

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(*(_some(value, rows) for value in vars(self).values()))

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Concatenate several sets of rows; values of all rows are those of the first set."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns))


def _some(value: Any, rows: Tensor | slice) -> Any:
    if isinstance(value, Mapping):
        return {name: _some(item, rows) for name, item in value.items()}
    return value[rows] if isinstance(value, Tensor) and value.dim() else value
