"""One part of a data set, read in batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae._draws import bits
from ppl_vae._noise import RowNoise
from ppl_vae._team import ALONE, Team
from ppl_vae._tensors import in_words, moved
from ppl_vae._validation import is_integer
from ppl_vae.data.binarization import Binarization, Dequantization, Rule, dequantize, noise_key
from ppl_vae.data.rows import LazyRows, Rows, stream
from ppl_vae.data.sending import Sender

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One part of a data set: the columns that model and guide are called with, and labels beside them.

    Reading is slow where a column is not in memory and has no `stream` (see `Rows`). It is also slow where the
    columns are on the CPU while the batches go to an accelerator: `to` moves them once and for all. A dynamic
    split gives other draws each time it is read, so figures on it move even where the model does not.

    Args:
        columns: the columns of a batch: (x,), or (x, y) for programs that take labels as well. All have the
            same number of rows.
        labels: int64 of shape (n,), for pictures and scores; never passed to a program.
        dynamic: whether every batch is drawn afresh from column 0. Column 0 holds the probabilities in [0, 1]
            of Bernoulli draws or, where `bins` is given, pixels k / 255 that are made (k + u) / 256.
        bins: the number of levels, 256, that uniform noise spread over [0, 1], for bits per dimension; None
            for other data.
        rows: the number of each row in its source, int64 of shape (n,); None: 0 to n - 1.
        ids: what names each row in its source, (n,); None for its place.
        label_names: the words behind the labels 0, 1, ...; empty where labels are numbers as given.
        column_names: the names of the entries of x, of a frame or table; None where it has none.
        conditions: the label that each entry of column 1 stands for, where `with_labels` made it; else empty.
        categories: where the entries have names, for each the values behind its codes 0, 1, ...; empty where values
            are as given.

    Raises:
        ValueError: if there is no column, or the columns or the labels differ in length.

    Example:
        >>> from ppl_vae import data
        >>> data.load("digits").train
        Split(1455 rows of (1, 8, 8), labels)
    """

    columns: tuple[Rows, ...]
    labels: Tensor | None = None
    dynamic: bool = False
    bins: int | None = None
    rows: Tensor | None = None
    ids: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    column_names: tuple[str, ...] | None = None
    conditions: tuple[str, ...] = ()
    categories: tuple[tuple[Any, ...], ...] = ()

    def __post_init__(self) -> None:
        lengths = [len(column) for column in self.columns]
        if not lengths:
            raise ValueError("a split has no column: give at least the data, as columns=(x,)")
        if len(set(lengths)) > 1:
            raise ValueError(f"the columns of a split have {lengths} rows: they must be as many")
        for what, beside in (("labels", self.labels), ("ids", self.ids)):
            if beside is not None and len(beside) != lengths[0]:
                raise ValueError(f"a split has {lengths[0]} rows and {len(beside)} {what}: they must be as many")

    def __len__(self) -> int:
        return len(self.columns[0])

    def __repr__(self) -> str:
        shapes = " and ".join(str(tuple(column.shape[1:])) for column in self.columns)
        labels = "" if self.labels is None else ", labels"
        drawn = f"{', dequantized' if self.bins else ''}{', dynamic' if self.dynamic else ''}"
        return f"Split({len(self)} rows of {shapes}{labels}{drawn})"

    @property
    def x(self) -> Rows:
        """Column 0, the data; in a dynamic split the probabilities, or the pixels without noise.

        Example:
            >>> from ppl_vae import data
            >>> data.load("digits").test.x.shape
            torch.Size([180, 1, 8, 8])
        """
        return self.columns[0]

    def batches(
        self,
        batch_size: int,
        *,
        order: Int[Tensor, " m"] | None = None,
        device: torch.device | str | None = None,
        team: Team = ALONE,
    ) -> Iterator[tuple[Shaped[Tensor, " batch *shape"], ...]]:
        """Iterate over batches of rows; the last batch is smaller where the rows do not divide.

        Each batch is gathered by index, which takes microseconds for tensors. A memory-mapped column costs
        a read from disk, a folder of images the decoding (by worker processes, ahead of use). Nothing is
        shuffled unless `order` says so.

        Args:
            batch_size: rows in a batch, from 1 to the number of rows in this split.
            order: the rows and their order, int64: a permutation or a subset; None for 0..n-1.
            device: the device of the batches; None leaves them where the columns are.
            team: the processes that share every batch, each with its rows (`Team.taken`); alone, whole batches.

        Returns:
            An iterator over tuples with one tensor for each column. In a dynamic split column 0 is drawn from
            torch's global generator, on the device of the batch.

        Raises:
            ValueError: at once, for a batch size or an order that does not fit this split.

        Example:
            >>> import torch
            >>> from ppl_vae import data
            >>> train = data.load("digits").train
            >>> [len(x) for (x,) in train.batches(500)]
            [500, 500, 455]
            >>> order = torch.randperm(len(train))
            >>> next(train.batches(32, order=order))[0].shape
            torch.Size([32, 1, 8, 8])
        """
        if not is_integer(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} was given, where an integer from 1 was expected")
        if len(self) == 0:
            raise ValueError(f"batch_size={batch_size} of a split with 0 rows: there is nothing to batch")
        if batch_size > len(self):
            raise ValueError(f"batch_size={batch_size} is larger than the {len(self)} rows of this split: lower it")
        index = torch.arange(len(self)) if order is None else self._checked(order)
        if isinstance(self.x, Tensor):
            index = index.to(self.x.device)  # once, not batch by batch
        pieces = index.split(int(batch_size)) if len(index) else ()
        if team.size == 1:
            return self._gather(pieces, device)
        taken = [team.taken(len(piece)) for piece in pieces]
        parts = [piece[rows.start : rows.stop] for piece, rows in zip(pieces, taken, strict=True)]
        noise = [RowNoise(rows, len(piece)) for piece, rows in zip(pieces, taken, strict=True)]
        return self._gather(parts, device, noise)

    def first(self, batch_size: int, device: torch.device | str | None = None) -> tuple[Tensor, ...]:
        """Return the first batch, or all rows if there are fewer, without a pass over the rest."""
        size = min(batch_size, len(self))
        return next(self.batches(size, order=torch.arange(size), device=device))

    def num_batches(self, batch_size: int) -> int | None:
        """Return how many batches `batches` gives; None where nothing tells."""
        return math.ceil(len(self) / batch_size)

    def head(self, n: int) -> Split:
        """Return the first `n` rows (all, if there are fewer) as tensors, for pictures.

        A dynamic split is drawn once, from noise of its own: always the same draw. torch's global generator is
        left alone, so that looking at pictures does not change a run. Do not train on these rows: they give no
        fresh draws.

        Args:
            n: the number of rows, from 0.

        Returns:
            A split that is not dynamic.

        Raises:
            ValueError: if `n` is negative or not an integer.

        Example:
            >>> from ppl_vae import data
            >>> data.load("digits", binarize="dynamic").train.head(5)
            Split(5 rows of (1, 8, 8), labels)
        """
        if not is_integer(n) or n < 0:
            raise ValueError(f"head({n!r}) was asked for, where an integer from 0 was expected")
        index = torch.arange(min(int(n), len(self)))
        columns = [next(stream(column, [index])) for column in self.columns]
        if self.dynamic:
            columns[0] = self._rule()(columns[0], index)
        names = {n: getattr(self, n) for n in ("bins", "label_names", "column_names", "conditions", "categories")}
        return Split(tuple(columns), **self.beside(index), **names)

    def beside(self, rows: Int[Tensor, " m"]) -> dict[str, Any]:
        """Return the labels, the numbers and the ids of some rows, by the names of these fields."""
        return {name: _entries(getattr(self, name), rows) for name in ("labels", "rows", "ids")}

    def still(self) -> Split:
        """Return this split with the same values each time it is read; a dynamic split keeps the draw of `head`.

        Draws are made as rows are read, which costs some microseconds a row for 784 pixels.

        Example:
            >>> from ppl_vae import data
            >>> data.load("digits", binarize="dynamic").train.still()
            Split(1455 rows of (1, 8, 8), labels)
        """
        if not self.dynamic:
            return self
        drawn = LazyRows(self.x, torch.arange(len(self)), self._rule())
        return replace(self, columns=(drawn, *self.columns[1:]), dynamic=False)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Split:
        """Move this split to another device: tensors move now, columns that are not in memory batch by batch.

        Args:
            device: "cpu", "cuda", ...
            dtype: The dtype of the columns of floating numbers; None leaves it.

        Returns:
            A new split; it shares tensors that were on that device already.

        Example:
            >>> from ppl_vae import data
            >>> data.load("digits").validation.to("cpu")
            Split(162 rows of (1, 8, 8), labels)
        """
        target = torch.device(device)
        columns = tuple(_moved(column, target, dtype) for column in self.columns)
        return replace(self, columns=columns, labels=None if self.labels is None else self.labels.to(target))

    def _rule(self) -> Rule:
        key = noise_key(0, 2)
        return Binarization("fixed", 0.5, key) if self.bins is None else Dequantization(key)

    def _checked(self, order: Tensor) -> Tensor:
        if not isinstance(order, Tensor) or order.ndim != 1 or order.dtype != torch.int64:
            raise ValueError(f"order is {in_words(order)}, where an int64 tensor of row numbers, (m,), was expected")
        if len(order) and not (int(order.min()) >= 0 and int(order.max()) < len(self)):
            raise ValueError(
                f"order has row numbers from {int(order.min())} to {int(order.max())}, where 0 to "
                f"{len(self) - 1} were expected"
            )
        return order

    def _gather(
        self, pieces: Sequence[Tensor], device: torch.device | str | None, noise: Sequence[RowNoise] = ()
    ) -> Iterator[tuple[Tensor, ...]]:
        send = Sender(device)
        for place, gathered in enumerate(zip(*(stream(column, pieces) for column in self.columns), strict=True)):
            with noise[place] if noise else nullcontext():
                batch = self._drawn(send(gathered))
            yield batch

    def gathered(self, rows: Int[Tensor, " batch"]) -> tuple[Shaped[Tensor, " batch *shape"], ...]:
        """Return the batch of these rows, as `batches` gives it, of columns that are tensors on the rows' device."""
        return self._drawn(tuple(column.index_select(0, rows) for column in self.columns))  # type: ignore[attr-defined]

    def _drawn(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Draw column 0 of a dynamic split."""
        if not self.dynamic:
            return batch
        drawn = dequantize(batch[0]) if self.bins is not None else _bits(batch[0])
        return drawn, *batch[1:]


def _bits(p: Tensor) -> Tensor:
    """Draw bits of these probabilities. For NaN torch raises an error on the CPU; elsewhere the bit is NaN."""
    return torch.bernoulli(p) if p.device.type == "cpu" else bits(p)


def _entries(values: Any, rows: Tensor) -> Any:
    """Return the entries at some rows of a tensor, on its device, or of an array or a list, as an array."""
    if values is None:
        return None
    if isinstance(values, Tensor):
        return values[rows.to(values.device)]
    return np.asarray(values)[rows.cpu().numpy()]


def _moved(column: Rows, device: torch.device, dtype: torch.dtype | None) -> Rows:
    if isinstance(column, Tensor):
        return moved(column, device, dtype)
    if isinstance(column, LazyRows):
        return replace(column, device=device, dtype=dtype or column.dtype)
    return LazyRows(column, torch.arange(len(column)), device=device, dtype=dtype)
