"""The columns of a table: their kinds, guessed and checked, and the codes of their categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_vae._columns import VALUES, split_kind
from ppl_vae._validation import is_real
from ppl_vae.data.arrays import is_missing
from ppl_vae.data.frames import is_number, refuse_odd

_REAL = int | float | np.integer | np.floating
_MOST_CATEGORIES = 100  # in a column of words; more are names or free text

Column = tuple[np.ndarray, str, tuple[Any, ...]]  # numbers in float64, their kind, and the values behind codes


def as_column(content: np.ndarray, kind: Any, what: str) -> Column:
    """Return a column of a kind, or of the kind that its values suggest.

    Raises:
        ValueError: If a value is outside the kind.
    """
    column = _read(content, kind, what)
    _check(*column[:2], what)
    return column


def _read(content: np.ndarray, kind: Any, what: str) -> Column:
    if isinstance(kind, Sequence) and not isinstance(kind, str):
        return coded(content, kind, what)
    numeric = content.dtype.kind in "fiub" or all(v is None or isinstance(v, _REAL) for v in content)
    if numeric:
        content = np.array([np.nan if v is None else v for v in content], dtype=np.float64)
        if kind != "categorical":
            return content, kind or _guess(content), ()
    elif kind is None:
        refuse_odd(content, what)
    elif kind != "categorical" and not str(kind).startswith("categorical:"):
        raise ValueError(f"{what} holds words, where {kind!r} expects {VALUES[split_kind(kind, what)[0]]}")
    there = np.array([not _is_empty(v) for v in content], dtype=bool)
    present = np.array([v if numeric else str(v) for v in content[there]])
    if not numeric and kind is None and len(present):
        _refuse_other_numbers(present.tolist(), what)
    distinct, codes = np.unique(present, return_inverse=True)
    if len(distinct) < 2 or (not numeric and kind is None and len(distinct) > _MOST_CATEGORIES):
        raise ValueError(
            f"{what} has {len(distinct)} categories, where 2 to {_MOST_CATEGORIES} were expected: leave it out, by "
            "columns={...: 'skip'}, name it as ids if it names the rows, or say columns={...: 'categorical'} if there "
            "are more"
        )
    found = np.full(len(content), np.nan)
    found[there] = codes
    own = f"categorical:{len(distinct)}" if kind in (None, "categorical") else str(kind)
    return found, own, tuple(distinct.tolist())


def _is_empty(entry: Any) -> bool:
    return is_missing(entry) or entry == ""


def _refuse_other_numbers(words: list[str], what: str) -> None:
    """Refuse words that are numbers in another notation, each of which would become a category."""
    plain = [word.replace(",", ".", 1).rstrip("% ") for word in words]
    if any("," in word or "%" in word for word in words) and all(map(is_number, plain)):
        raise ValueError(
            f"{what} holds numbers such as {words[0]!r}: write them with a point and without a sign, or say "
            "columns={...: 'categorical'}"
        )


def coded(content: np.ndarray, values: Sequence[Any], what: str) -> Column:
    """Return a column of categories, whose codes are the places of its entries in a list of values."""
    numeric = all(is_real(value) for value in values)
    code = {float(value) if numeric else str(value): place for place, value in enumerate(values)}
    found = np.full(len(content), np.nan)
    entries = content if content.dtype.kind in "mM" else content.tolist()  # which makes other words of times
    for row, entry in enumerate(entries):
        if _is_empty(entry):
            continue
        key = entry if numeric else str(entry)
        if key not in code:
            raise ValueError(
                f"{what} holds {entry!r}, which is none of its values {', '.join(map(str, values))}: mend it"
            )
        found[row] = code[key]
    return found, f"categorical:{len(values)}", tuple(v.item() if isinstance(v, np.generic) else v for v in values)


def _guess(numbers: np.ndarray) -> str:
    """Guess the kind of a column of numbers."""
    seen = numbers[~np.isnan(numbers)]
    if len(seen) and np.isin(seen, (0, 1)).all():
        return "binary"
    whole = len(seen) > 0 and np.isfinite(seen).all() and bool((seen == np.rint(seen)).all())
    return "count" if whole and seen.min() >= 0 else "real"


def _check(numbers: np.ndarray, kind: str, what: str) -> None:
    """Refuse values outside the kind, and infinite values."""
    name, categories = split_kind(kind, what)
    seen = numbers[~np.isnan(numbers)]
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(seen.astype(np.float32))
    if name == "positive":
        bad |= seen.astype(np.float32) <= 0
    elif name != "real":
        top = {"count": np.inf, "binary": 1}.get(name, categories - 1)
        bad |= (seen < 0) | (seen > top) | (seen != np.rint(seen))
    if bad.any():
        raise ValueError(
            f"{what} is {kind!r} and holds {seen[bad][0]:g}, where {VALUES[name]} were expected, or NaN: give it "
            "another kind, or mend it"
        )
