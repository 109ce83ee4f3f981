"""When two values of a program are the same: plain ones by value, the others by identity."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ppl_vae.capture.places import LARGE, MISSING, PLAIN, kind_of
from ppl_vae.capture.reach import dict_of


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same object, or plain values of one type that are equal to the bit."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) in (tuple, frozenset):
        return len(a) == len(b) and all(map(same, a, b))
    kind = type(a) if type(a) in PLAIN else next((kind for kind in PLAIN if isinstance(a, kind)), None)
    if kind is None:
        return False
    if kind is type(a) and kind not in (float, complex):
        return bool(a == b)
    written: Any = kind.__repr__  # a class of the user's may write and compare its objects otherwise
    return written(a) == written(b) and (kind is type(a) or alike(dict_of(a), dict_of(b)))


def alike(a: Any, b: Any) -> bool:
    """Whether two values are the same, or containers of the same values."""
    if same(a, b):
        return True
    if type(a) is not type(b) or not isinstance(a, (dict, list, tuple, np.ndarray)):
        return False
    if type(a) not in (dict, list, tuple) and not alike(dict_of(a), dict_of(b)):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(alike, a.values(), b.values()))
    return len(a) == len(b) and all(map(alike, a, b))


def stands_for(before: Any, now: Any) -> bool:
    """Whether the input of a graph that was made for one value can be another one.

    It keeps its type, and compiled code reads the memory alone.
    """
    if type(now) is Tensor and type(before) is Tensor:
        return kind_of(before) == kind_of(now) and not (now.requires_grad or now.is_neg() or now.is_conj())
    return type(now) in (float, int) and type(before) in (float, type(now))


def key_of(value: Any) -> Any:
    """Return a key for a value: a plain value itself, a tensor's shape and type, else the object."""
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(key_of, value))
    if type(value) is Tensor:
        return kind_of(value)
    return (type(value), repr(value)) if isinstance(value, PLAIN) else id(value)


def number_of(tensor: Tensor) -> Any:
    """Return the content of a small tensor on the CPU, else the count of writes: this does not wait for a GPU."""
    if tensor.device.type != "cpu" or tensor.numel() > LARGE:
        return tensor._version
    return tensor.item() if tensor.numel() == 1 else tensor.tolist()


def show(value: object) -> str:
    """Describe a value in a message."""
    if value is MISSING:
        return "missing"
    if isinstance(value, (str, bytes)) and len(value) > 40:
        return f"{value[:20]!r}..."
    return repr(value) if isinstance(value, PLAIN) else f"a {type(value).__name__}"
