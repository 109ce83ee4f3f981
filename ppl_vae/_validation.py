"""Argument checks shared by several modules; each error is one sentence with the argument and the fix."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence, Sized
from numbers import Integral, Real
from typing import TypeGuard

_LARGEST = sys.float_info.max  # a larger integer is no number in a picture, a log or a file


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of Python or NumPy, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a real number of Python or NumPy, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _of_python(value: float) -> float:
    """Return a number as one of Python's: NumPy's would make one of their own kind of a limit."""
    return int(value) if is_integer(value) else float(value)


def check_positive_int(value: object, name: str) -> int:
    """Return `value` as an int, or raise if it is not a positive integer that is a finite float too."""
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive integer")
    if _of_python(value) > _LARGEST:
        raise ValueError(f"{name} has more than 308 digits; expected a positive integer of fewer")
    return int(value)


def check_positive(value: object, name: str) -> float:
    """Return `value` as a float, or raise if it is not a finite number above zero."""
    if not is_real(value) or not 0 < _of_python(value) <= _LARGEST:
        raise ValueError(f"{name} is {value!r}; expected a finite number above zero")
    return float(value)


def check_seed(value: object, name: str = "seed") -> int:
    """Return `value` as an int, or raise if it is no integer that torch takes for a seed as it is."""
    if not is_integer(value) or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}; expected an integer from 0 to 2**63 - 1")
    return int(value)


def check_count(value: object, name: str) -> int:
    """Return `value` as an int, or raise if it is not an integer from zero that is a finite float too."""
    if not is_integer(value) or not 0 <= _of_python(value) <= _LARGEST:
        raise ValueError(f"{name} is {value!r}; expected an integer from 0, and 0 is for none")
    return int(value)


def check_not_negative(value: object, name: str) -> float:
    """Return `value` as a float, or raise if it is not a finite number from zero."""
    if not is_real(value) or not 0 <= _of_python(value) <= _LARGEST:
        raise ValueError(f"{name} is {value!r}; expected a finite number from 0")
    return float(value)


def check_rows(data: Sequence[Sized], owner: str) -> None:
    """Refuse tensors that do not have the same number of rows, at least one."""
    lengths = {len(d) for d in data}
    if lengths == {0}:
        raise ValueError(f"{owner} was given no data; expected at least one datum")
    if len(lengths) != 1:
        raise ValueError(
            f"{owner} was given tensors of {sorted(lengths)} rows; expected one number of data, at least one"
        )


def check_choice(value: object, choices: Iterable[str], name: str) -> None:
    """Raise if `value` is none of the choices, and suggest the nearest one."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}{did_you_mean(value, choices)}")


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Return `` (did you mean ...?)`` with the nearest choice, or an empty string if none is near."""
    near = difflib.get_close_matches(str(value).lower(), {c.lower(): c for c in choices}, n=1)
    original = {c.lower(): c for c in choices}
    return f" (did you mean {original[near[0]]}?)" if near else ""
