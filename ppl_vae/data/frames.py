"""Frames of pandas or polars, neither of which need be there: their columns as arrays, labels, ids, and files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae._words import said_by
from ppl_vae.data.arrays import label_tensor, one_a_row

_ID_NAMES = ("", "id", "ids", "index", "row", "row_id", "uuid", "key", "name")


def is_frame(value: Any) -> bool:
    """Whether an object is a frame: it names columns and becomes an array."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def frame_columns(frame: Any) -> dict[str, tuple[np.ndarray, tuple[Any, ...] | None]]:
    """Return each column: numbers with NaN, or objects with None, where an entry is missing; and its categories if it
    declares any.
    """
    names = [str(name) for name in frame.columns]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the frame has two columns {repeated!r}: rename one of them")
    return {str(name): _column(frame[name], f"column {str(name)!r} of the frame") for name in frame.columns}


def _column(series: Any, what: str) -> tuple[np.ndarray, tuple[Any, ...] | None]:
    categories = getattr(getattr(series, "cat", None), "categories", None)  # of pandas: part of the column's type
    if hasattr(series, "notna"):
        there = series.notna().to_numpy()
        values = series.to_numpy(dtype=object)
        numeric = categories is None and getattr(series.dtype, "kind", "O") in "fiub"
    else:
        there = ~series.is_null().to_numpy()
        values = series.to_numpy()
        numeric = values.dtype.kind in "fiub"
        values = values.astype(object)
    if numeric:
        kind = series.to_numpy().dtype if there.all() else np.dtype(float)
        return np.where(there, values, np.nan).astype(float if kind.kind == "O" else kind), None
    values = np.where(there, values, np.array(None))
    refuse_odd(values, what)
    return values, None if categories is None else tuple(categories.tolist())


def refuse_odd(values: np.ndarray, what: str) -> None:
    """Refuse what is no number, truth value, word or missing entry."""
    known = (str, bool, int, float, np.integer, np.floating, np.bool_, np.character, type(None))
    odd = next((value for value in values if not isinstance(value, known)), None)
    if odd is not None:
        raise ValueError(f"{what} holds a {type(odd).__name__}: make numbers or words of it, or leave it out")


def as_array(values: Any) -> np.ndarray:
    """Return values as an array, of objects where there are words, so that None and NaN keep their meaning."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ma.MaskedArray):
        nothing = np.array(np.nan if values.dtype.kind in "fiub" else None)
        values = np.where(np.ma.getmaskarray(values), nothing, values.data)
    array = np.asarray(values)
    if array.dtype.kind in "US" and not isinstance(values, np.ndarray):
        return np.array(values, dtype=object)
    if array.dtype.kind == "O" and hasattr(values, "isna"):
        return np.where(values.isna(), np.array(None), array)
    return array


def ids_of(frame: Any) -> np.ndarray | None:
    """Return the index of a frame as words; None for a running number, which says nothing."""
    index = getattr(frame, "index", None)
    if index is None or type(index).__name__ == "RangeIndex":
        return None
    return np.asarray(index).astype(str)


def coded_labels(
    values: Any, rows: int, what: str, categories: Sequence[Any] | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as integers, and the words behind them in sorted order, or in that of their categories.

    Labels that are integers stay, and have no words.

    Raises:
        ValueError: For another number of labels, a missing one, or fractions.
    """
    if hasattr(values, "dtype") and hasattr(values, "to_numpy"):
        values, categories = _column(values, what)
    array = as_array(values)
    if array.dtype.kind in "fiub":
        return label_tensor(array, rows, what), ()
    words = one_a_row(array, rows, what).astype(str)
    names = np.unique(words) if categories is None else np.array([str(c) for c in categories])
    place = {name: code for code, name in enumerate(names.tolist())}
    return torch.tensor([place[word] for word in words.tolist()]), tuple(names.tolist())


def read_frame(path: Path) -> Any:
    """Read a .csv, .tsv or .parquet file by pandas.

    Raises:
        ValueError: If pandas is not there, or the file cannot be read as a table.
        OSError: If the file cannot be read at all.
    """
    try:
        import pandas
    except ImportError as error:
        raise ValueError(
            f"{path} is a table, which pandas reads, and pandas is not installed: pip install 'ppl-vae[tables]'"
        ) from error
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            frame = pandas.read_parquet(path)
        else:
            separator = "\t" if suffix == ".tsv" else _separator(path)
            version = tuple(map(int, pandas.__version__.split(".")[:2]))
            exact = {} if version >= (3, 1) else {"float_precision": "round_trip"}  # since then the default
            frame = pandas.read_csv(path, sep=separator, **exact)
    except ImportError as error:
        raise ValueError(f"{path} is read by pyarrow, which is not installed: pip install 'ppl-vae[tables]'") from error
    except (ValueError, UnicodeError, pandas.errors.ParserError) as error:
        text = said_by(error)
        raise ValueError(f"{path} cannot be read as a table ({text}): one header and as many values a row") from error
    if suffix != ".parquet":  # which has no first line that could be a row
        _check_header(frame, path)
    if not len(frame):
        raise ValueError(f"{path} has no rows: one header and at least one row were expected")
    return frame


def _check_header(frame: Any, path: Path) -> None:
    """Refuse a header that is a row, or that has fewer names than the rows have values."""
    names = [str(name) for name in frame.columns]
    if type(frame.index).__name__ != "RangeIndex":  # pandas takes the values in excess for an index
        raise ValueError(f"{path} has {len(names)} names in its header and more values in its rows: mend it")
    running = [[str(start + i) for i in range(len(names))] for start in (0, 1)]
    numbers, words = ([name for name in names if is_number(name) == number] for number in (True, False))
    odd = not words or not all(name.isdecimal() for name in numbers)  # years may be names among others
    if numbers and names not in running and (odd or any((frame[name] == name).any() for name in words)):
        raise ValueError(f"{path} has no names of columns (its first line is {', '.join(names[:4])}): add a header")


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _separator(path: Path) -> str:
    """Return what separates the values: a comma, or the mark of a header without comma that is in the first row too."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        header, row = (next(csv.reader(file), []) for _ in range(2))
    marks = [mark for mark in ";\t|" if len(header) == 1 and mark in header[0]]
    return next((mark for mark in marks if not row or any(mark in value for value in row)), ",")


def find_ids(columns: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the column that only tells rows apart, or None.

    It is the first column of different values that has no name or a name such as id, or is a running number.
    """
    for name, values in columns.items():
        plain = "" if name.startswith("Unnamed:") else name.lower()
        if values.dtype.kind in "iu" and len(values) > 2 and (np.diff(values) == 1).all():
            return name
        if plain in _ID_NAMES and values.dtype.kind in "iuO" and len({*values.tolist()}) == len(values):
            return name
    return None
