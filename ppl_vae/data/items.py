"""The items of a torch `Dataset`, or of any object that has a length and items, as a split."""

from __future__ import annotations

import hashlib
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ppl_vae._noise import RowNoise
from ppl_vae._scopes import reseeded, untouched_random_state
from ppl_vae._words import one_line
from ppl_vae.data.reading import by_workers
from ppl_vae.data.sending import Sender
from ppl_vae.data.splits import Split

Columns = tuple[Tensor, ...]
Read = Callable[[Any], tuple[Columns, Tensor | None]]  # a batch as it comes, to columns on the CPU and labels


@dataclass(frozen=True, eq=False, repr=False)
class ItemSplit(Split):
    """The rows of an object with a length and items, each asked for when it is used; see `as_split`."""

    items: Any = field(kw_only=True)
    read: Read = field(kw_only=True)
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
        yield from map(self.read, self._batches(torch.arange(len(self)).split(batch_size)))

    def _gather(
        self, pieces: Sequence[Tensor], device: torch.device | str | None, noise: Sequence[RowNoise] = ()
    ) -> Iterator[Columns]:
        send = Sender(self.device if device is None else device, self.dtype)
        for batch in self._batches(pieces):
            yield send(self.read(batch)[0])

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


def _loaded(items: Any, pieces: Sequence[Tensor], workers: int | None = None, row_bytes: int = 1) -> Iterator[Any]:
    """Yield the items of each piece, collated; ``__getitems__`` is called where there is one."""
    seed = None if workers is None else torch.initial_seed()
    return by_workers(_Items(items, seed), pieces, _collate, workers or 0, row_bytes)


@dataclass(frozen=True)
class _Items:
    """The items of a batch. An error names the item; with a seed, what they draw does not depend on who reads them."""

    items: Any
    seed: int | None

    def __getitems__(self, rows: list[int]) -> list[Any] | Exception:
        many, found = getattr(self.items, "__getitems__", None), list[Any]()
        drawn = hashlib.blake2b(f"{self.seed} {rows}".encode(), digest_size=8)  # epochs differ by their order
        with nullcontext() if self.seed is None else reseeded() as draw_from:
            for some in [rows] if many else [[row] for row in rows]:
                if draw_from is not None:
                    drawn.update(b"next")
                    draw_from(int.from_bytes(drawn.digest()) >> 1)
                try:
                    found += many(some) if many else [self.items[some[0]]]
                except Exception as error:
                    text = one_line(f"{type(error).__name__}: {error}")
                    what = f"item {some[0]}" if len(some) == 1 else f"one of the items {some}"
                    what += f" of the {type(self.items).__name__}"
                    failed = RuntimeError(f"{what} cannot be read ({text}): mend it, or leave it out")
                    failed.add_note("".join(traceback.format_exception(error)))
                    return failed
        return found


def _collate(items: list[Any] | Exception) -> Any:
    """Make one batch of items as torch does, of Pillow's images too; return an error, for a worker to hand over."""
    if isinstance(items, Exception):
        return items
    try:
        return default_collate([_without_pictures(item) for item in items])
    except Exception:  # torch's own words depend on who reads
        forms = " or ".join(dict.fromkeys(map(_form, items)))
        return ValueError(f"the items of the data set make no batch, being {forms}: make all alike")


def _form(item: Any) -> str:
    """Return the shape of an item, or its type, in words."""
    if isinstance(item, tuple | list):
        return f"({', '.join(map(_form, item))})"
    if isinstance(item, dict):
        return f"{{{', '.join(f'{name}: {_form(value)}' for name, value in item.items())}}}"
    return f"of shape {tuple(item.shape)}" if hasattr(item, "shape") else f"of type {type(item).__name__}"


def _without_pictures(item: Any) -> Any:
    if isinstance(item, tuple | list):
        return tuple(map(_without_pictures, item))
    if isinstance(item, dict):
        return {name: _without_pictures(value) for name, value in item.items()}
    if not hasattr(item, "getbands"):
        return item
    from torchvision.transforms.functional import pil_to_tensor  # takes a second

    return pil_to_tensor(item)
