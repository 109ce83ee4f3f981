"""Rows to a file, block by block: ``.npz``, ``.csv`` and ``.parquet``; memory holds one block."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO

import numpy as np

Block = dict[str, np.ndarray]  # (rows, ...) each; the same names, dtypes and shapes of a row in each block
Writer = Callable[[BinaryIO, Iterable[Block], Path], str]  # (open file, blocks, the folder) -> what was written

# what has one value a row: the name of a column
_SINGULAR = {"ids": "id", "labels": "label", "label_names": "label_name", "rows": "row", "splits": "split"}


def write_npz(file: BinaryIO, blocks: Iterable[Block], folder: Path) -> str:
    """Write one array a name. An archive takes one array after the other, so each waits in a temporary file."""
    held: dict[str, tuple[BinaryIO, np.dtype, tuple[int, ...]]] = {}
    count = 0
    with ExitStack() as waiting:
        for block in blocks:
            for name, array in block.items():
                if name not in held:
                    content: Any = waiting.enter_context(tempfile.TemporaryFile(dir=folder))
                    held[name] = (content, array.dtype, array.shape[1:])
                held[name][0].write(np.ascontiguousarray(array).data)
            count += len(array)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, (content, dtype, shape) in held.items():
                described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, {**described, "shape": (count, *shape)})
                    content.seek(0)
                    copyfileobj(content, entry)
    return ", ".join(f"{name} {(count, *shape)}" for name, (_, _, shape) in held.items())


def write_csv(file: BinaryIO, blocks: Iterable[Block], folder: Path) -> str:
    """Write one line a row, floats to their last digit; the arrays of a block are columns, (rows,)."""
    count, names = 0, list[str]()
    for block in blocks:
        if not names:
            names = list(block)
            file.write(f"{','.join(map(_text, names))}\n".encode())
        texts = [a.astype(str).tolist() if a.dtype == np.float32 else map(_text, a.tolist()) for a in block.values()]
        lines = [",".join(row) for row in zip(*texts, strict=True)]
        file.write(("\n".join(lines) + "\n").encode())
        count += len(lines)
    return f"{count} rows of {_listed(names)}"


def write_parquet(file: BinaryIO, blocks: Iterable[Block], folder: Path) -> str:
    """Write one row group a block; the arrays of a block are columns, (rows,)."""
    import pyarrow
    import pyarrow.parquet

    count, names = 0, list[str]()
    with ExitStack() as opened:
        for block in blocks:
            table = pyarrow.table({name: np.ascontiguousarray(column) for name, column in block.items()})
            if not names:
                names = table.column_names
                writer = opened.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema))
            writer.write_table(table)
            count += table.num_rows
    return f"{count} rows of {_listed(names)}"


WRITERS: dict[str, Writer] = {".npz": write_npz, ".csv": write_csv, ".parquet": write_parquet}


def check_there(suffix: str) -> None:
    """Refuse a format whose library is not installed.

    Raises:
        ValueError: If it is not.
    """
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            "--out ends in .parquet, which needs pyarrow; install it (pip install 'ppl-vae[tables]'), or use .csv"
        )


def columns(block: Block) -> Block:
    """Return the columns of a table: name_1, name_2, ... of an array with several values a row."""
    found = {}
    for name, array in block.items():
        if array.ndim == 1:
            found[_SINGULAR.get(name, name)] = array
        else:
            found |= {f"{name}_{i}": column for i, column in enumerate(array.reshape(len(array), -1).T, 1)}
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        return repr(value)
    return '"{}"'.format(value.replace('"', '""')) if re.search(r'[",\r\n]', value) else value


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 24 else f"{', '.join(names[:3])}, ..., {names[-1]} ({len(names)} columns)"
