"""Batches that a loader makes, as a split; the rows of any split, read into memory or chosen by their numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_vae._scopes import untouched_random_state
from ppl_vae._team import ALONE, Team
from ppl_vae._tensors import moved
from ppl_vae.data.items import Columns, ItemSplit, Read
from ppl_vae.data.rows import LazyRows
from ppl_vae.data.sending import Sender
from ppl_vae.data.splits import Split


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

    source: Iterable[Any] = field(kw_only=True)
    read: Read = field(kw_only=True)
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
        self,
        batch_size: int = 0,
        *,
        order: Tensor | None = None,
        device: torch.device | str | None = None,
        team: Team = ALONE,
    ) -> Iterator[Columns]:
        """Iterate over the loader once; `batch_size` is the loader's own, whatever is given.

        Raises:
            ValueError: If rows are asked for by their numbers, a share of the rows, or a second pass over a generator.
        """
        if team.size > 1:
            raise ValueError(
                f"the data come from a {type(self.source).__name__}, whose batches {team.size} processes cannot "
                "share: give arrays or a torch Dataset, whose rows have numbers"
            )
        if order is not None:
            raise ValueError("order was given for data from a loader, which has an order of its own: leave it out")
        send = Sender(self.device if device is None else device, self.dtype)
        for columns, _ in self.labelled():
            yield send(columns)

    def labelled(self) -> Iterator[tuple[Columns, Tensor | None]]:
        """Yield every batch of a pass, with its labels."""
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
        return moved(self.columns, device)

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
    """Return the rows with these numbers of a split that has numbers; what is not in memory stays where it is."""
    columns = tuple(c[rows.to(c.device)] if isinstance(c, Tensor) else LazyRows(c, rows.cpu()) for c in split.columns)
    beside = split.beside(rows)
    if split.rows is None:
        beside["rows"] = rows
    return replace(split, columns=columns, **beside)
