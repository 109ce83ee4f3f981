"""Tables with columns of different kinds and missing entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppl_vae._columns import split_kind
from ppl_vae._validation import did_you_mean
from ppl_vae.data.arrays import is_missing
from ppl_vae.data.columns import as_column
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.frames import as_array, coded_labels, frame_columns, ids_of, is_frame
from ppl_vae.data.partition import Division
from ppl_vae.data.splits import Split
from ppl_vae.data.streams import chosen


@dataclass(frozen=True, eq=False, repr=False)
class Table(Dataset):
    """A table in three parts: a `Dataset` that knows its columns.

    Args:
        columns: the kind of each column, as `likelihoods.Mixed` takes them.
        column_names: the name of each column; "0", "1", ... if the table has no names.
        categories: for each column the values behind its codes 0, 1, ...; empty where values are as given.
        label_column: the name of the column that became the labels.
        id_column: the name of the column that became the ids.
    """

    columns: tuple[str, ...] = ()
    column_names: tuple[str, ...] = ()
    categories: tuple[tuple[Any, ...], ...] = ()
    label_column: str | None = None
    id_column: str | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """What makes a table of other rows in the same form, as the `columns` of `from_table`.

        It has the kind of each column by its name, or the values of its categories in their order, and ``"*": "skip"``.

        Example:
            >>> from ppl_vae import data
            >>> data.from_table({"age": [1.5, 2.5], "city": ["Oslo", "Bergen"]}, test=0, validation=0).schema
            {'age': 'real', 'city': ['Bergen', 'Oslo'], '*': 'skip'}
        """
        found = zip(self.column_names, self.columns, self.categories, strict=True)
        return {name: list(values) if values else kind for name, kind, values in found} | {"*": "skip"}


def from_table(
    table: Any,
    columns: Sequence[Any] | Mapping[Any, Any] | None = None,
    *,
    labels: Any = None,
    ids: Any = None,
    name: str = "table",
    validation: int | float = 0.1,
    test: int | float | None = None,
    seed: int = 0,
) -> Table:
    """Make a data set of a table: one row a datum, columns of any kind, NaN where an entry is missing.

    Nothing is scaled or filled: `likelihoods.Mixed` and `networks.TableEncoder` take NaN and raw units; other pieces do
    not. Values are float32, in which whole numbers above 2^24 lose their last digits.

    Kinds that are not given are guessed, cautiously. Truth values, and numbers that are all 0 or 1, are "binary". Words
    are categories (two or more, coded in sorted order). Whole numbers from 0 are "count". All other numbers are "real".
    Three kinds of column must therefore be named: categories coded as numbers, numbers above zero with a long tail
    ("positive"), and whole numbers that count nothing, such as years ("real"). The guess looks at all rows, including
    those of the test set.

    The codes of categories follow from the rows at hand. So other rows for the same model (a test set, next year's)
    take the columns of the first table: ``from_table(frame, people.schema, ...)``.

    Args:
        table: (n, columns): an array or tensor of numbers; a structured array; a pandas or polars frame; or a
            mapping of names to columns of n values. A missing entry is NaN, or None among words.
        columns: the kind of each column: "real", "positive", "count", "binary", "categorical:C" (codes 0..C-1), or
            "categorical" (any values, coded in sorted order), or a list of the values behind the codes 0, 1, ...;
            "skip" leaves a column out. A mapping gives the kinds of some columns, by their names or their numbers from
            0 in the table, and under ``"*"`` that of all others; if every column has a kind (a `Table.schema`), it also
            sets their order.
        labels: integers or words of shape (n,), or the name of a column of them, for pictures and scores; no
            program sees them.
        ids: names of the rows, or the name of a column of them; None for the index of a pandas frame.
        name: the name of the data set.
        validation: rows, or a fraction of them, to set apart; as in `load`.
        test: as `validation`; None is 0.1.
        seed: the seed of the split, an integer from 0.

    Returns:
        The data set, x of shape (n, columns) with NaN kept; its `columns` are the kinds.

    Raises:
        ValueError: for a table that is not two-dimensional, an unknown kind or column, or a value outside a column's
            kind.

    Example:
        >>> from ppl_vae import data
        >>> people = data.from_table(
        ...     {"height": [1.81, float("nan"), 1.66], "children": [0, 2, 1], "city": ["Oslo", None, "Bergen"]},
        ...     test=0, validation=0,
        ... )
        >>> people.columns, people.categories[2], people.train.x.shape
        (('real', 'count', 'categorical:2'), ('Bergen', 'Oslo'), torch.Size([3, 3]))
    """
    division = Division(validation, test, seed)
    named, declared, index = _named_columns(table, name)
    aside = {"labels": labels, "ids": index if ids is None else ids}
    titles = {what: value for what, value in aside.items() if isinstance(value, str)}
    for what, value in titles.items():
        if value not in named:
            hint = did_you_mean(value, named)
            raise ValueError(f"{what} is {value!r}, and {name} has the columns {', '.join(named)}{hint}")
        aside[what] = named[value]
    places = by_place(list(named))
    named = {column: content for column, content in named.items() if column not in titles.values()}
    given = declared | _given_kinds(columns, list(named), places, name)
    if isinstance(columns, Mapping) and ("*" in columns or {*map(str, columns)} >= {*named}):
        first = {str(column): named[str(column)] for column in columns if str(column) in named}
        named = first | named
    named = {column: content for column, content in named.items() if given.get(column) != "skip"}
    if not named:
        raise ValueError(f"{name} has no column left to model: skip fewer of them")
    found = [as_column(content, given.get(key), f"column {key!r} of {name}") for key, content in named.items()]
    values, kinds, codes = zip(*found, strict=True)
    x = torch.from_numpy(np.stack(values, 1).astype(np.float32))
    words: tuple[str, ...] = ()
    if labels is not None:
        order = declared.get(titles.get("labels", ""))
        labels, words = coded_labels(aside["labels"], len(x), f"the labels of {name}", order)
    row_names = _names(aside["ids"], len(x), f"the ids of {name}")
    whole = Split((x,), labels, ids=row_names, label_names=words, column_names=tuple(named), categories=codes)
    train, held_out, tested = (chosen(whole, rows) for rows in division.rows(len(x), name).values())
    return Table(
        *(name, train, held_out, tested),
        columns=kinds,
        column_names=tuple(named),
        categories=codes,
        label_column=titles.get("labels"),
        id_column=titles.get("ids"),
    )


def _names(ids: Any, rows: int, what: str) -> np.ndarray | None:
    """Return the names of rows as words."""
    if ids is None:
        return None
    names = as_array(ids)
    if len(names) != rows:
        raise ValueError(f"{what} have {len(names)} rows and the data {rows}: they must be as many")
    if missing := sum(map(is_missing, names.tolist())):
        raise ValueError(f"{what} are missing in {missing} rows: name no ids, or fill them")
    return names.astype(str)


def _named_columns(table: Any, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray | None]:
    """Return the columns by name, each of shape (n,); the categories that they declare; and the ids of the rows."""
    declared: dict[str, Any] = {}
    if is_frame(table):
        columns = frame_columns(table)
        found = {key: values for key, (values, _) in columns.items()}
        declared = {key: list(values) for key, (_, values) in columns.items() if values is not None}
    elif isinstance(table, Mapping):
        found = {str(key): as_array(value) for key, value in table.items()}
    else:
        array = as_array(table)
        if array.dtype.names:
            found = {key: array[key] for key in array.dtype.names}
        elif array.ndim == 2:
            found = {str(j): array[:, j] for j in range(array.shape[1])}
        else:
            raise ValueError(
                f"{name} has shape {array.shape}, where a table of (n, columns) or a mapping of names to columns was "
                "expected"
            )
    lengths = {len(column) if column.ndim == 1 else -1 for column in found.values()}
    if len(lengths) != 1 or min(lengths) < 1:
        shapes = ", ".join(f"{key} {column.shape}" for key, column in found.items()) or "none"
        raise ValueError(f"{name} has columns of shapes {shapes}, where as many values in each were expected, (n,)")
    return found, declared, ids_of(table) if is_frame(table) else None


def by_place(names: Sequence[str]) -> dict[str, str]:
    """Return the column that each name or number means."""
    return {str(place): name for place, name in enumerate(names)} | {name: name for name in names}


def _given_kinds(columns: Any, names: list[str], places: dict[str, str], name: str) -> dict[str, Any]:
    if columns is None:
        return {}
    if isinstance(columns, Mapping):
        known = {key: column for key, column in places.items() if column in names}
        others = {column: columns["*"] for column in names} if "*" in columns else {}
        columns = {key: kind for key, kind in columns.items() if key != "*"}
        if unknown := [str(key) for key in columns if str(key) not in known]:
            raise ValueError(f"columns names {unknown[0]!r}, and {name} has the columns {', '.join(names)}")
        given = others | {known[str(key)]: kind for key, kind in columns.items()}
    else:
        if isinstance(columns, str) or len(columns) != len(names):
            raise ValueError(
                f"columns={columns!r} was given for the {len(names)} columns of {name}: give a list of as many kinds, "
                "or a mapping from some columns to theirs"
            )
        given = dict(zip(names, columns, strict=True))
    for column, kind in given.items():
        if isinstance(kind, Sequence) and not isinstance(kind, str):
            if len(kind) < 2 or len({*kind}) != len(kind):
                raise ValueError(
                    f"the values of column {column!r} are {kind!r}: two or more different ones were expected"
                )
        elif kind not in ("categorical", "skip"):
            split_kind(kind, f"the kind of column {column!r}")
    return given
