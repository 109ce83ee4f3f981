"""Rows of data, in memory or read when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Anything that gives rows by their numbers: a `torch.Tensor` is one.

    A column of a `Split` is one such object. It may also have `stream(pieces)`, which takes all the index
    tensors of a pass at once and yields the rows of each in turn, so that it can read ahead; without it a
    batch is read when the batch before it has been used, which leaves an accelerator idle meanwhile.

    Example:
        >>> import torch
        >>> from ppl_vae import data
        >>> class Squares:
        ...     shape = (5, 1)
        ...     def __len__(self):
        ...         return 5
        ...     def __getitem__(self, index):
        ...         return index[:, None].float() ** 2
        >>> split = data.Split(columns=(Squares(),))
        >>> [x.flatten().tolist() for (x,) in split.batches(3)]
        [[0.0, 1.0, 4.0], [9.0, 16.0]]
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, then the shape of one."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The rows with the numbers in `index`, int64 of shape (batch,): a tensor of shape (batch, ...)."""
        ...


@dataclass(frozen=True, eq=False)
class LazyRows:
    """Some rows of a source that is not in memory, binarised and moved as they are read."""

    source: Rows
    chosen: Tensor  # int64 (n,), on the CPU: which rows of the source, in which order
    binarization: Callable[[Tensor, Tensor], Tensor] | None = None  # a rule, or one that dequantises
    device: torch.device | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, then the shape of one."""
        return (len(self.chosen), *self.source.shape[1:])

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        wanted = self.chosen[index.cpu()]
        return self._finish(self.source[wanted], wanted)

    def stream(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """The rows of each piece in turn, read ahead where the source can."""
        wanted = [self.chosen[piece.cpu()] for piece in pieces]
        for rows, x in zip(wanted, stream(self.source, wanted), strict=True):
            yield self._finish(x, rows)

    def identity(self) -> str:
        """What tells these rows from others without reading them."""
        chosen = hashlib.sha256(self.chosen.numpy().tobytes()).hexdigest()
        return f"{identity(self.source)} {chosen} {self.binarization}"

    def _finish(self, x: Tensor, rows: Tensor) -> Tensor:
        if self.binarization is not None:
            x = self.binarization(x, rows)
        return x if self.device is None else x.to(self.device)


def stream(rows: Rows, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows of each piece (int64 tensors of row numbers) in turn."""
    if isinstance(rows, Tensor):
        for piece in pieces:
            yield rows.index_select(0, piece.to(rows.device))
    elif hasattr(rows, "stream"):
        yield from rows.stream(pieces)
    else:
        for piece in pieces:
            yield rows[piece.cpu()]


def identity(rows: Rows) -> str:
    """What a source that is not in memory says of itself, for fingerprints."""
    described = rows.identity() if hasattr(rows, "identity") else type(rows).__qualname__
    return f"{described} {tuple(rows.shape)}"
