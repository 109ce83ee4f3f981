"""Places that hold Python values, with functions that read them, at the cost of a call into C, and write them back."""

from __future__ import annotations

import collections
import contextvars
import itertools
import operator
import types
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None))
MISSING = object()
_KIND = operator.attrgetter("shape", "dtype", "device", "requires_grad")
LARGE = 1024  # elements of a container or an array; of a larger one only a sample is looked at


@dataclass
class Source:
    """One place that holds values, with functions that read them, at the cost of a call into C, and write them back.

    Attributes:
        label: The holder of the values, in words.
        read: Returns the values, as something with a length.
        home: The argument of `read`.
        names: For each value, its suffix to the label.
        write: Writes one value back, ``write(home, place, value)``; None where that is impossible.
        keep: Copies the whole content of a container, for `put_back`.
        put_back: Gives a container its content back.
        grows: Whether names that are added to the namespace later may matter.
        quiet: Whether the place belongs to a library, whose bookkeeping is no side effect of the user's program.
        owner: The class whose namespace it is, if it is one.
        watch: The names that may matter later; None for all names that the functions that ran could read.
    """

    label: str
    read: Callable[[Any], Collection[Any]]
    home: Any
    names: tuple[str, ...]
    write: Callable[[Any, int, Any], None] | None = None
    keep: Callable[[Any], Any] | None = None
    put_back: Callable[[Any, Any], None] | None = None
    grows: bool = False
    quiet: bool = False
    owner: type | None = None
    watch: frozenset[str] | None = None

    @property
    def identity(self) -> int:
        """The identity of the object that the place belongs to."""
        return id(self.home if self.owner is None else self.owner)

    def values(self) -> tuple[Any, ...]:
        """Read the values; one whose entry is gone is MISSING."""
        try:
            return tuple(self.read(self.home))
        except (KeyError, AttributeError):
            get = getattr(self.home, "get", None)
            return tuple(MISSING if get is None else get(name, MISSING) for name in self.names)


def kind_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what decides which operations a tensor takes: strides, shape, type, device, use of a gradient."""
    return tensor.stride() if tensor.layout is torch.strided else tensor.layout, *_KIND(tensor)


# how values are read and written; each reader returns something with a length ----------------------------------------


def read_first(items: Callable[[Any], Iterable[Any]], value: Any) -> tuple[Any, ...]:
    """Read the length of a large container, and its first items."""
    return (len(value), *itertools.islice(items(value), LARGE))


def read_sample(step: int, value: list) -> tuple[Any, ...]:
    """Read the length of a large list, and one item in every `step`."""
    return (list.__len__(value), *list.__getitem__(value, slice(None, None, step)))


def read_array(array: np.ndarray) -> tuple[Any, ...]:
    """Read the content of an array; of a large one, a sample of its elements."""
    if array.dtype.hasobject:
        items = array.ravel()[:LARGE].tolist()
        return array.shape, array.dtype, repr([(type(i), i if isinstance(i, PLAIN) else id(i)) for i in items]).encode()
    step = max(1, array.size // LARGE)
    return array.shape, array.dtype, (array if step == 1 else array.flat[::step]).tobytes()


def read_few(array: np.ndarray) -> tuple[Any, ...]:
    """Read a few elements of an array, where there are many arrays."""
    return array.shape, array.dtype, array.flat[:: max(1, array.size // 16)].tobytes()


def buffer_of(value: Any) -> memoryview | None:
    """Return an object's memory, or None if it has no buffer interface."""
    try:
        return memoryview(value)
    except (TypeError, BufferError, ValueError):
        return None


def read_buffer(value: Any) -> tuple[bytes]:
    """Read the bytes of an object with a buffer interface; of a large one, a sample."""
    view = memoryview(value).cast("B")
    return (bytes(view[:: max(1, view.nbytes // LARGE)]),)


def read_cell(cell: types.CellType) -> tuple[Any]:
    """Read the value in a closure's cell."""
    try:
        return (cell.cell_contents,)
    except ValueError:  # empty
        return (MISSING,)


def read_context(variable: contextvars.ContextVar) -> tuple[Any]:
    """Read a context variable."""
    return (variable.get(MISSING),)


def read_slot(slot: Any, owner: Any) -> tuple[Any]:
    """Read a slot of an object."""
    try:
        return (slot.__get__(owner),)
    except AttributeError:
        return (MISSING,)


def write_slot(slot: Any, owner: Any, _: int, value: Any) -> None:
    """Write a slot."""
    slot.__set__(owner, value)


def write_cell(cell: types.CellType, _: int, value: Any) -> None:
    """Write the value in a closure's cell."""
    cell.cell_contents = value


def write_value(home: dict, place: int, value: Any) -> None:
    """Write a value of a dictionary by its place."""
    home[tuple(dict.keys(home))[place]] = value


def write_entry(keys: tuple[str, ...], home: dict[str, Any], place: int, value: Any) -> None:
    """Write a value of a namespace by its place."""
    home[keys[place]] = value


def write_attribute(owner: type, keys: tuple[str, ...], _: Any, place: int, value: Any) -> None:
    """Write an attribute of a class by its place."""
    type.__setattr__(owner, keys[place], value)


def put_back_dict(home: dict, content: dict) -> None:
    """Give a dictionary its content back."""
    dict.clear(home)
    dict.update(home, content)


def put_back_list(home: list, content: list) -> None:
    """Give a list its content back."""
    list.__setitem__(home, slice(None), content)


def put_back_other(home: Any, content: tuple[Any, ...]) -> None:
    """Give a set or a deque its content back."""
    home.clear()
    home.extend(content) if isinstance(home, collections.deque) else home.update(content)
