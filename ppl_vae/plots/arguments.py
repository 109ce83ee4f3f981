"""Checks of arguments that several pictures share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ppl_vae.plots.figure import ArrayLike, to_array

IntervalLike: TypeAlias = "Any"  # a pair (low, high), or an object with these two attributes


def to_vector(values: ArrayLike, name: str, count: int | None = None) -> np.ndarray:
    """Return numbers of shape (n,) as float64; NaN and infinity pass."""
    array = to_array(values, name)
    if array.ndim != 1 or len(array) == 0 or count not in (None, len(array)):
        expected = "(n,), at least one number" if count is None else f"({count},)"
        raise ValueError(f"{name} have shape {array.shape}; expected {expected}")
    return array.astype(float)


def to_points(values: ArrayLike, name: str, dim: int | None = None) -> np.ndarray:
    """Return points of shape (n, d) as float64; NaN and infinity pass."""
    array = to_array(values, name)
    if array.ndim != 2 or 0 in array.shape or dim not in (None, array.shape[1]):
        raise ValueError(f"{name} have shape {array.shape}; expected (n, {'d' if dim is None else dim})")
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


def finite(function: str, what: str, *arrays: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Return which data have only finite numbers, (n,), and a note that counts the others.

    Raises:
        ValueError: If no datum has only finite numbers.
    """
    keep = np.ones(len(arrays[0]), bool)
    for array in arrays:
        keep &= np.isfinite(array).reshape(len(array), -1).all(1)
    missing = int((~keep).sum())
    if missing == len(keep):
        raise ValueError(f"{function}: {what} not finite for any of {missing} data; has the model diverged?")
    return keep, f"Left out: {missing} of {len(keep)} data, whose {what} not finite." if missing else None


def number(value: float, digits: int = 1) -> str:
    """Format a number for readers, with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")
