"""The kinds of table columns, written as ``"real"`` or ``"categorical:3"``."""

from __future__ import annotations

from collections.abc import Sequence

from ppl_vae._validation import did_you_mean

VALUES = {  # that a column of each kind holds, in words
    "real": "numbers",
    "positive": "numbers above zero",
    "count": "whole numbers from 0",
    "binary": "0 and 1",
    "categorical": "whole numbers from 0 to one less than the number of categories",
}


def split_kind(kind: object, owner: str) -> tuple[str, int]:
    """Return the name of a kind and its number of categories (0 except for ``"categorical:C"``)."""
    name, _, number = str(kind).partition(":")
    if name == "categorical" and number.isdecimal() and int(number) >= 2:
        return name, int(number)
    if name == "categorical":
        raise ValueError(f"{owner} is {kind!r}; expected the number of categories, two or more, as in 'categorical:3'")
    if name not in VALUES or number or not isinstance(kind, str):
        raise ValueError(
            f"{owner} is {kind!r}; expected one of real, positive, count, binary or categorical:C"
            f"{did_you_mean(name, VALUES)}"
        )
    return name, 0


def split_kinds(columns: Sequence[str], owner: str) -> list[tuple[str, int]]:
    """Return the name and the number of categories of each column."""
    if isinstance(columns, str) or not isinstance(columns, Sequence) or not columns:
        raise ValueError(f"{owner} is {columns!r}; expected a list of kinds, one for each column, such as ['real']")
    return [split_kind(kind, f"{owner}[{i}]") for i, kind in enumerate(columns)]
