"""Checks of arguments that several pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

ArrayLike: TypeAlias = "Tensor | np.ndarray | Sequence[Any]"
IntervalLike: TypeAlias = "Any"  # a pair (low, high), or an object with these two attributes


def to_array(values: ArrayLike, name: str) -> np.ndarray:
    """Return tensors, arrays and lists of them as one array of numbers."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    if not isinstance(values, np.ndarray):
        try:
            values = np.asarray([to_array(v, name) if isinstance(v, Tensor) else v for v in values])
        except (TypeError, ValueError):  # not a sequence, or a ragged one
            raise ValueError(f"{name} are no array; expected a tensor, an array, or a list of one shape") from None
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} hold {values.dtype}; expected numbers")
    return values


def to_vector(values: ArrayLike, name: str, count: int | None = None) -> np.ndarray:
    """Return numbers of shape (n,) as float64; NaN and infinity pass."""
    array = to_array(values, name)
    if array.ndim != 1 or len(array) == 0 or count not in (None, len(array)):
        expected = "(n,), at least one number" if count is None else f"({count},)"
        raise ValueError(f"{name} have shape {array.shape}; expected {expected}")
    return array.astype(float)


def to_points(values: ArrayLike, name: str, dim: int | None = None, hint: str = "") -> np.ndarray:
    """Return points of shape (n, d) as float64; NaN and infinity pass."""
    array = to_array(values, name)
    if array.ndim != 2 or 0 in array.shape or dim not in (None, array.shape[1]):
        raise ValueError(f"{name} have shape {array.shape}; expected (n, {'d' if dim is None else dim}){hint}")
    return array.astype(float)


def to_ends(interval: IntervalLike, name: str) -> tuple[float, float]:
    """Return the two ends of an interval, which may be infinite."""
    ends = (interval.low, interval.high) if hasattr(interval, "low") and hasattr(interval, "high") else interval
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {interval!r}; expected a pair (low, high)") from None
    if not low <= high:
        raise ValueError(f"{name} is ({low}, {high}); expected its lower end first, and no NaN")
    return low, high


def finite(function: str, what: str, *arrays: np.ndarray) -> tuple[str | None, list[np.ndarray]]:
    """Return a note that counts the data with a number that is not finite, and the arrays without these data.

    Raises:
        ValueError: If no datum has only finite numbers.
    """
    count = len(arrays[0])
    keep = np.stack([np.isfinite(array).reshape(count, -1).all(1) for array in arrays]).all(0)
    missing = count - int(keep.sum())
    if missing == count:
        raise ValueError(f"{function}: {what} not finite for any of {missing} data; has the model diverged?")
    note = f"Left out: {missing} of {count} data, whose {what} not finite." if missing else None
    return note, [array[keep] for array in arrays]


def number(value: float, digits: int = 1) -> str:
    """Format a number for readers, with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def shortened(name: str, most: int) -> str:
    """Return a name of at most so many letters; a longer one ends in dots."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def check_captions(captions: Sequence[str] | None, name: str, count: int) -> None:
    """Raise if there are captions, and not one for each of the data."""
    if captions is not None and (isinstance(captions, str) or len(captions) != count):
        raise ValueError(f"{name} are {captions!r}; expected {count} strings, one a datum")
