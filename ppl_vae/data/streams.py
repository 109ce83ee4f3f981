"""Splits whose rows others read: item by item from a torch `Dataset`, or in batches that a loader makes."""

from __future__ import annotations

import hashlib
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from ppl_vae._scopes import reseeded, untouched_random_state
from ppl_vae._tensors import moved
from ppl_vae.data.reading import by_workers
from ppl_vae.data.rows import LazyRows
from ppl_vae.data.splits import Split

Columns = tuple[Tensor, ...]
Read = Callable[[Any], tuple[Columns, Tensor | None]]  # a batch as it comes, to columns on the CPU and labels


@dataclass(frozen=True, eq=False, repr=False)
class ItemSplit(Split):
    """The rows of an object with a length and items, each asked for when it is used; see `as_split`."""

    items: Any = None
    read: Read | None = None
    workers: int | None = None  # None: in this process, and what items draw goes on from the state of its generators
    device: torch.device | None = None
    dtype: torch.dtype | None = None  # of floating numbers; None leaves it

    @classmethod
    def of(cls, items: Any, read: Read) -> ItemSplit:
        """Make the split; the first item tells the shapes."""
        with untouched_random_state():
            columns, _ = read(next(_loaded(items, [torch.zeros(1, dtype=torch.int64)])))
        places = range(len(columns))
        rows = tuple(_ItemRows(items, read, place, (len(items), *columns[place].shape[1:])) for place in places)
        return cls(rows, items=items, read=read)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ItemSplit:
        """Move the batches to come to another device, their floating numbers to a dtype."""
        return replace(self, device=torch.device(device), dtype=dtype or self.dtype)

    def labelled(self, batch_size: int = 1000) -> Iterator[tuple[Columns, Tensor | None]]:
        """Yield every row in order, with its labels."""
        assert self.read is not None
        yield from map(self.read, self._batches(torch.arange(len(self)).split(batch_size)))

    def _gather(self, pieces: Sequence[Tensor], device: torch.device | str | None) -> Iterator[Columns]:
        assert self.read is not None
        for batch in self._batches(pieces):
            yield moved(self.read(batch)[0], self.device if device is None else device, self.dtype)

    def _batches(self, pieces: Sequence[Tensor]) -> Iterator[Any]:
        row_bytes = sum(4 * math.prod(column.shape[1:]) for column in self.columns)
        return _loaded(self.items, pieces, self.workers, row_bytes)


@dataclass(frozen=True)
class _ItemRows:
    """One column of an `ItemSplit`."""

    items: Any
    read: Read
    place: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor, /) -> Tensor:
        if not len(index):
            return torch.zeros(0, *self.shape[1:])
        return self.read(next(_loaded(self.items, [index])))[0][self.place]

    def identity(self) -> str:
        """Return all that is known of the items without reading them."""
        return type(self.items).__qualname__


@dataclass(frozen=True, eq=False, repr=False)
class Stream(Split):
    """The batches of a loader: their size, order, last batch and workers are the loader's own.

    A pass over the loader is an epoch. What needs the number of rows or rows by their numbers is refused.

    Args:
        columns: The first batch.
        source: The loader.
        read: Makes columns of a batch.
        once: Whether only one pass is possible, as over a generator.
        device: The device of the batches.
    """

    source: Iterable[Any] = ()
    read: Read | None = None
    once: bool = False
    device: torch.device | None = None
    dtype: torch.dtype | None = None  # of floating numbers; None leaves it

    @classmethod
    def of(cls, source: Iterable[Any], read: Read) -> Stream:
        """Make the stream; its first batch tells the shapes, and is given again in the first pass."""
        with untouched_random_state():
            iterator = iter(source)
            once = not isinstance(source, DataLoader) and iter(source) is iterator  # loaders keep workers' iterators
            try:
                first = next(iterator)
            except StopIteration:
                raise ValueError(
                    f"the data, a {type(source).__name__}, give no batch: a loader with rows in it was expected, and a "
                    "generator that has not been used up"
                ) from None
        columns, labels = read(first)
        return cls(columns, labels, source=_Once(first, iterator) if once else source, read=read, once=once)

    def __len__(self) -> int:
        raise TypeError(
            f"the data come from a {type(self.source).__name__}, which gives batches and not its number of rows, and "
            "this needs the number: give a torch Dataset, or data.as_split(loader, in_memory=True)"
        )

    def __repr__(self) -> str:
        shapes = " and ".join(str(tuple(column.shape[1:])) for column in self.columns)
        return f"Stream(batches of {shapes} from a {type(self.source).__name__})"

    def __post_init__(self) -> None:
        """Accept the first batch as it is: it has been read."""

    def batches(
        self, batch_size: int = 0, *, order: Tensor | None = None, device: torch.device | str | None = None
    ) -> Iterator[Columns]:
        """Iterate over the loader once; `batch_size` is the loader's own, whatever is given.

        Raises:
            ValueError: If rows are asked for by their numbers, or a second pass over a generator.
        """
        if order is not None:
            raise ValueError("order was given for data from a loader, which has an order of its own: leave it out")
        for columns, _ in self.labelled():
            yield moved(columns, self.device if device is None else device, self.dtype)

    def labelled(self) -> Iterator[tuple[Columns, Tensor | None]]:
        """Yield every batch of a pass, with its labels."""
        assert self.read is not None
        shapes = [column.shape[1:] for column in self.columns]
        for number, batch in enumerate(self.source, 1):
            columns, labels = self.read(batch)
            if [column.shape[1:] for column in columns] != shapes:
                given = " and ".join(str(tuple(column.shape[1:])) for column in columns)
                raise ValueError(
                    f"batch {number} of the {type(self.source).__name__} has rows of shape {given}, where those of its "
                    f"first batch are {' and '.join(str(tuple(shape)) for shape in shapes)}: make them alike"
                )
            yield columns, labels

    def first(self, batch_size: int, device: torch.device | str | None = None) -> Columns:
        """Return the first batch, which has been read."""
        return moved(self.columns, self.device if device is None else device, self.dtype)

    def num_batches(self, batch_size: int = 0) -> int | None:
        """Return the number of batches of a pass, if the loader tells it."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except TypeError:
            return None

    def head(self, n: int) -> Split:
        """Return the first `n` rows as tensors; more than the first batch needs a pass of its own."""
        whole = n <= len(self.columns[0])
        return Split(self.columns, self.labels).head(n) if whole else gathered(self, n)

    def still(self) -> Split:
        """Return this stream: what it draws is its own."""
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Stream:
        """Move the batches to come to another device, their floating numbers to a dtype."""
        columns = moved(self.columns, device, dtype or self.dtype)
        return replace(self, device=torch.device(device), dtype=dtype or self.dtype, columns=columns)


class _Once:
    """A generator whose first batch has been looked at."""

    def __init__(self, first: Any, rest: Iterator[Any]) -> None:
        self.first, self.rest, self.used = first, rest, False

    def __iter__(self) -> Iterator[Any]:
        if self.used:
            raise ValueError(
                "the data are a generator, which can be read once, and a second pass over them was asked for: give a "
                "list of batches, a DataLoader, or any object whose __iter__ starts afresh"
            )
        self.used = True
        yield self.first
        del self.first
        yield from self.rest


def gathered(split: Split, most: int | None = None) -> Split:
    """Return all rows of a split, or the first `most`, read once, as tensors, with their labels."""
    if isinstance(split, ItemSplit | Stream):
        parts: list[tuple[Columns, Tensor | None]] = []
        with untouched_random_state():
            for part in split.labelled():
                parts.append(part)
                if most is not None and sum(len(columns[0]) for columns, _ in parts) >= most:
                    break
        labels = [label for _, label in parts if label is not None]
        columns = tuple(torch.cat(column) for column in zip(*(columns for columns, _ in parts), strict=True))
        return Split(columns, torch.cat(labels) if len(labels) == len(parts) else None).head(most or sys.maxsize)
    if most is not None:
        return split.head(most)
    if all(isinstance(column, Tensor) for column in split.columns) and not split.dynamic:
        return split
    columns = tuple(torch.cat(part) for part in zip(*split.batches(min(4096, len(split))), strict=True))
    return replace(split, columns=columns, dynamic=False)


def chosen(split: Split, rows: Tensor) -> Split:
    """Return the rows with these numbers of a split in memory."""
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(split):
        raise ValueError(f"a Subset names rows up to {int(rows.max())} of {len(split)}: name rows that are there")
    columns = tuple(c[rows] if isinstance(c, Tensor) else LazyRows(c, rows) for c in split.columns)
    labels = None if split.labels is None else split.labels[rows]
    ids = None if split.ids is None else split.ids[rows.numpy()]
    return replace(
        split, columns=columns, labels=labels, rows=rows if split.rows is None else split.rows[rows], ids=ids
    )


def _loaded(items: Any, pieces: Sequence[Tensor], workers: int | None = None, row_bytes: int = 1) -> Iterator[Any]:
    """Yield the items of each piece, collated; ``__getitems__`` is called where there is one."""
    seed = None if workers is None else torch.initial_seed()
    return by_workers(_Items(items, seed), pieces, _collate, workers or 0, row_bytes)


@dataclass(frozen=True)
class _Items:
    """The items of a piece. An error names the item; with a seed, what they draw does not depend on who reads them."""

    items: Any
    seed: int | None

    def __getitems__(self, rows: list[int]) -> list[Any] | Exception:
        many = getattr(self.items, "__getitems__", None)
        if self.seed is None:
            return self._read(rows, many)
        found: list[Any] = []
        drawn = hashlib.blake2b(
            f"{self.seed} {rows}".encode(), digest_size=8
        )  # epochs differ by the order of their rows
        with reseeded() as draw_from:
            for some in [rows] if many else [[row] for row in rows]:
                drawn.update(b"next")
                draw_from(int.from_bytes(drawn.digest()) >> 1)
                if isinstance(read := self._read(some, many), Exception):
                    return read
                found += read
        return found

    def _read(self, rows: list[int], many: Callable[[list[int]], list[Any]] | None) -> list[Any] | Exception:
        found: list[Any] = []
        try:
            if many is not None:
                return many(rows)
            for row in rows:
                found.append(self.items[row])
            return found
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            one = f"item {rows[len(found)]}" if many is None or len(rows) == 1 else f"one of the items {rows}"
            one += f" of the {type(self.items).__name__}"
            failed = RuntimeError(f"{one} cannot be read ({text}): mend it, or leave it out")
            failed.add_note("".join(traceback.format_exception(error)))
            return failed


def _collate(items: list[Any] | Exception) -> Any:
    """Make one batch of items as torch does, of Pillow's images too; return an error, for a worker to hand over."""
    if isinstance(items, Exception):
        return items
    try:
        return default_collate([_without_pictures(item) for item in items])
    except RuntimeError as error:
        return ValueError(f"the items of the data set make no batch ({error}): give all of them one shape")


def _without_pictures(item: Any) -> Any:
    if isinstance(item, tuple | list):
        return tuple(map(_without_pictures, item))
    if isinstance(item, dict):
        return {name: _without_pictures(value) for name, value in item.items()}
    if not hasattr(item, "getbands"):
        return item
    from torchvision.transforms.functional import pil_to_tensor  # takes a second

    return pil_to_tensor(item)
