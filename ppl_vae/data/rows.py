"""Rows of data, in memory or read when they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ppl_vae._tensors import moved
from ppl_vae.data.sending import Sender

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped


class Rows(Protocol):
    """An object that gives rows by their numbers, such as a `torch.Tensor`.

    Each column of a `Split` is such an object. It may also have `stream(pieces)`, which takes all the index
    tensors of a pass at once and yields the rows of each in turn, so that it can read ahead. Without `stream`
    a batch is read only after the batch before it has been used, and an accelerator idles meanwhile.

    What a pass over the object has found of its values stays known while it lives, and a second `fit` does not look
    again: make a new object of values that have changed.

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
        """The number of rows, then the shape of one row."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int[Tensor, " batch"], /) -> Shaped[Tensor, " batch *shape"]:
        """Return the rows with the numbers in `index`, int64."""
        ...


@dataclass(frozen=True, eq=False)
class LazyRows:
    """Some rows of a source that is not in memory, binarised and moved to device and dtype as they are read."""

    source: Rows
    chosen: Int[Tensor, " n"]  # int64, on the CPU: the rows of the source, in order
    binarization: Callable[[Tensor, Tensor], Tensor] | None = None  # or a dequantisation
    device: torch.device | None = None
    dtype: torch.dtype | None = None  # of floating numbers

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, then the shape of one row."""
        return (len(self.chosen), *self.source.shape[1:])

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        wanted = self.chosen[index.cpu()]
        return moved(self._binarized(self.source[wanted], wanted), self.device, self.dtype)

    def stream(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of each piece in turn, read ahead if the source can."""
        wanted, send = _Chosen(self.chosen, pieces), Sender(self.device, self.dtype)
        for rows, x in zip(wanted, stream(self.source, wanted), strict=True):
            yield send(self._binarized(x, rows))

    def identity(self) -> str:
        """Return a string that identifies these rows, without reading them."""
        chosen = hashlib.sha256(self.chosen.numpy().tobytes()).hexdigest()
        return f"{identity(self.source)} {chosen} {self.binarization}"

    def _binarized(self, x: Tensor, rows: Tensor) -> Tensor:
        return x if self.binarization is None else self.binarization(x, rows)


class _Chosen(Sequence[Tensor]):
    """Pieces of the chosen rows, made when they are asked for: together they take as much memory as the order."""

    def __init__(self, chosen: Tensor, pieces: Sequence[Tensor]) -> None:
        self.chosen, self.pieces = chosen, pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, place: Any, /) -> Any:
        return self.chosen[self.pieces[place].cpu()]


def stream(rows: Rows, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the rows of each piece (an int64 tensor of row numbers) in turn."""
    if isinstance(rows, Tensor):
        for piece in pieces:
            yield rows.index_select(0, piece.to(rows.device))
    elif hasattr(rows, "stream"):
        yield from rows.stream(pieces)
    else:
        for piece in pieces:
            yield rows[piece.cpu()]


def identity(rows: Rows) -> str:
    """Return a string that identifies a source that is not in memory, for fingerprints."""
    described = rows.identity() if hasattr(rows, "identity") else type(rows).__qualname__
    return f"{described} {tuple(rows.shape)}"
