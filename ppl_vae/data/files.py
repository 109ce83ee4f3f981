"""Arrays from a user's own files: .npy files, memory-mapped if they are large, and .npz archives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ppl_vae._machine import check_fits
from ppl_vae.data.arrays import data_tensor, label_tensor, to_float
from ppl_vae.data.partition import Source
from ppl_vae.data.sparse import SparseRows

DATA, LABELS = ("x", "images", "data"), ("y", "labels", "targets")
DATA_TEST, LABELS_TEST = "x_test", "y_test"


class MappedArray:
    """The array of an .npy file; rows are read from disk and made float32 when they are used."""

    def __init__(self, path: Path, array: np.ndarray) -> None:
        self.path = path
        self.array = array
        self._opened = _size_and_time(path)
        self.is_uint8 = array.dtype == np.uint8  # values are then known to be in [0, 1]
        self.shape: tuple[int, ...] = (len(array), *data_tensor(array[:1], path.name).shape[1:])

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        with suppress(FileNotFoundError):  # the map of a file that is removed stays whole
            if _size_and_time(self.path) != self._opened:  # to read beyond the end of a map kills the process
                raise OSError(f"{self.path} has changed while it was in use; start again with the file as it is now")
        return to_float(data_tensor(np.asarray(self.array[index.numpy()]), self.path.name))

    def identity(self) -> str:
        """Return a string that identifies this file, without reading it."""
        size, time = _size_and_time(self.path)
        return f"{self.path.name} {size} {time} {self.array.dtype}"


def _size_and_time(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def read_arrays(path: Path, max_bytes: float) -> Source:
    """Read the arrays of an .npy or .npz file; an .npy of more than `max_bytes` as float32 stays on disk."""
    with open(path, "rb") as file:  # closed here, since NumPy leaves a broken archive open
        if file.read(2) == b"PK":
            file.seek(0)
            archive = _readable(path, lambda: np.load(file, allow_pickle=False))
            claimed = sum(entry.file_size for entry in archive.zip.infolist())
            check_fits(claimed / 4, f"the arrays of {path.name}", "their size, or save one as .npy, which is mapped")
            if {"indptr", "indices", "shape", "format"} <= {*archive.files}:  # of scipy.sparse.save_npz
                matrix = _readable(path, lambda: sparse.load_npz(path))
                rows = SparseRows(matrix)
                small = 4 * float(np.prod(matrix.shape)) <= max_bytes
                return Source(path.stem, rows[torch.arange(len(rows))] if small else rows, file=path.name)
            return _from_archive(path, archive)
    loaded = _readable(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    if 2 <= loaded.ndim <= 4 and loaded.size and loaded.size * 4 > max_bytes:
        return Source(path.stem, MappedArray(path, loaded), file=path.name)
    return Source(path.stem, data_tensor(np.array(loaded), path.name), file=path.name)


def _from_archive(path: Path, archive: np.lib.npyio.NpzFile) -> Source:
    def title(name: str) -> str:
        return f"array {name!r} of {path.name}"

    def read_data(name: str) -> Tensor:
        return data_tensor(_readable(path, lambda: archive[name]), title(name))

    def read_labels(name: str, x: Tensor) -> Tensor:
        return label_tensor(_readable(path, lambda: archive[name]), len(x), title(name))

    data_name = _one_of(path, DATA, archive.files)
    if data_name is None:
        others = [name for name in archive.files if name not in (*LABELS, DATA_TEST, LABELS_TEST)]
        if len(others) != 1:
            raise ValueError(
                f"{path.name} holds {archive.files or 'no arrays'}, where an array named x, images or data "
                "was expected (or one array alone): save it with np.savez(path, x=...)"
            )
        data_name = others[0]
    label_name = _one_of(path, LABELS, archive.files)
    x, x_test = read_data(data_name), read_data(DATA_TEST) if DATA_TEST in archive.files else None
    if x_test is not None and x_test.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"{path.name} has rows of shape {tuple(x_test.shape[1:])} in {DATA_TEST} and "
            f"{tuple(x.shape[1:])} in {data_name}: they must be alike"
        )
    labels = None if label_name is None else read_labels(label_name, x)
    labels_test = None
    if LABELS_TEST in archive.files:
        if x_test is None:
            raise ValueError(f"{path.name} holds {LABELS_TEST} without {DATA_TEST}: give both or neither")
        labels_test = read_labels(LABELS_TEST, x_test)
    return Source(path.stem, x, labels, x_test=x_test, labels_test=labels_test, file=path.name)


def _one_of(path: Path, wanted: Sequence[str], names: Sequence[str]) -> str | None:
    found = [name for name in wanted if name in names]
    if len(found) > 1:
        raise ValueError(f"{path.name} holds {found}, which mean the same: keep one of them")
    return found[0] if found else None


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # NumPy parses headers as Python, with errors of many kinds
        text = str(error)
        if "Object arrays" in text or "Python objects" in text:
            raise ValueError(
                f"{path.name} holds Python objects (dtype object), where real numbers were expected: save "
                "it as float32 or uint8"
            ) from error
        raise ValueError(
            f"{path.name} cannot be read as an .npy or .npz file, being truncated or of another kind "
            f"({text}): save it again with np.save or np.savez"
        ) from error
