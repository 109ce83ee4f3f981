"""The rows that a command works on, block by block, with what tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae import data

BATCH = 1000

Ids = dict[str, Any]  # of some rows: what an array or a column of a file is named after, None where there is none


@dataclass(frozen=True)
class Rows:
    """The rows that a command works on.

    Attributes:
        name: The name of the rows, ``mnist, test``.
        parts: The splits that hold the rows, one after the other.
        splits: The split of each row, for each of the parts.
        whole: Whether they are all rows of their source, training data included.
        note: That the data have changed since the run was trained on them, or None.
    """

    name: str
    parts: tuple[data.Split, ...]
    splits: tuple[np.ndarray, ...] = ()
    whole: bool = False
    note: str | None = None

    @classmethod
    def of(cls, dataset: data.Dataset, split: str) -> Rows:
        """Return the rows of a split."""
        part = getattr(dataset, split).still()
        return cls(f"{dataset.name}, {split}", (part,), (np.full(len(part), split),))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def labels(self) -> Tensor | None:
        """The labels, (n,), or None if some rows have none."""
        labels = [part.labels for part in self.parts if part.labels is not None]
        return torch.cat(labels) if len(labels) == len(self.parts) else None

    @property
    def bins(self) -> int | None:
        """The number of levels of dequantised pixels; None for other data."""
        return self.parts[0].bins

    @property
    def joined(self) -> data.Split:
        """All rows as one split, read when they are used; that of several parts has no numbers and ids."""
        first, *others = self.parts
        if not others:
            return first
        columns = tuple(_Column(self, place) for place in range(len(first.columns)))
        return replace(first, columns=columns, labels=self.labels, rows=None, ids=None)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield all rows in order, batch by batch: (x,), or (x, y) for a conditional model."""
        for part in self.parts:
            yield from part.batches(min(BATCH, len(part)))

    def blocks(self, size: int | None = None) -> Iterator[tuple[tuple[Tensor, ...], Ids]]:
        """Yield the first `size` rows in order, batch by batch, each with what tells its rows apart."""
        left, labelled = len(self) if size is None else size, self.labels is not None
        named = labelled and all(part.label_names for part in self.parts)
        ids = _of_one_width([part.ids for part in self.parts])
        words = _of_one_width([np.array(part.label_names) for part in self.parts])
        for part, splits, own, names in zip(self.parts, self.splits, ids, words, strict=True):
            here = min(left, len(part))
            left -= here
            batches = part.batches(min(BATCH, here), order=torch.arange(here)) if here else iter(())
            start = 0
            for batch in batches:
                span = slice(start, start := start + len(batch[0]))
                rows = torch.arange(span.start, span.stop) if part.rows is None else part.rows[span]
                labels = part.labels[span] if labelled and part.labels is not None else None
                yield (
                    batch,
                    {
                        "ids": None if own is None else own[span],
                        "labels": labels,
                        "label_names": None if labels is None or not named else names[labels.cpu().numpy()],
                        "rows": rows,
                        "splits": splits[span],
                    },
                )

    def columns(self) -> tuple[Tensor, ...]:
        """Return all rows in memory, in the columns of `batches`."""
        return tuple(torch.cat(column) for column in zip(*self.batches(), strict=True))

    def at(self, index: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the rows with these numbers, in the columns of `batches`, each of shape (len(index), ...).

        Raises:
            ValueError: If a row does not exist.
        """
        found: dict[int, tuple[Tensor, ...]] = {}
        wanted, start = torch.tensor(index), 0
        for i in index:
            if not 0 <= i < len(self):
                raise ValueError(f"there is no row {i} in {self.name}; expected 0 to {len(self) - 1}")
        for part in self.parts:
            here = wanted[(wanted >= start) & (wanted < start + len(part))]
            batches = part.batches(min(BATCH, len(part)), order=here - start)
            rows = (row for batch in batches for row in zip(*batch, strict=True))
            found |= dict(zip(here.tolist(), rows, strict=True))
            start += len(part)
        return tuple(torch.stack(column) for column in zip(*(found[i] for i in index), strict=True))

    def head(self, size: int) -> tuple[Tensor, ...]:
        """Return the first `size` rows, or all if there are fewer, as `at` returns them."""
        return self.at(range(min(size, len(self))))


@dataclass(frozen=True, eq=False)
class _Column:
    """A column of the rows of several parts."""

    rows: Rows
    place: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.rows.parts[0].columns[self.place].shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return self.rows.at(index.tolist())[self.place]


def _of_one_width(texts: Sequence[np.ndarray | None]) -> Sequence[Any]:
    """Return arrays of text, all of the width of the longest, or None for each if one is missing."""
    if any(text is None for text in texts):
        return [None] * len(texts)
    arrays = [np.asarray(text, dtype=str) for text in texts]
    return [array.astype(max(a.dtype for a in arrays)) for array in arrays]
