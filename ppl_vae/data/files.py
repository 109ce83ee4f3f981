"""Arrays from a user's own files: .npy files, memory-mapped if they are large, and .npz archives."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ppl_vae._machine import check_fits
from ppl_vae.data.arrays import data_tensor, label_tensor, to_float
from ppl_vae.data.partition import Source
from ppl_vae.data.reading import ahead
from ppl_vae.data.sparse import SparseRows, dense_up_to

DATA, LABELS = ("x", "images", "data"), ("y", "labels", "targets")
DATA_TEST, LABELS_TEST = "x_test", "y_test"


class MappedArray:
    """The rows of an array in a file, each read and made numbers when it is used; nothing of the file stays in memory.

    A random order over a file larger than memory reads row by row. Where the system takes hints (Linux), the rows of a
    batch are announced to it before they are read, in the order of the file.

    Args:
        path: The file.
        array: The array as a memory map of the file.
        at: The place of its first value in the file, in bytes.
        finish: Makes data of some rows.
    """

    def __init__(self, path: Path, array: np.ndarray, at: int, finish: Callable[[np.ndarray], Tensor]) -> None:
        self.path, self.at, self.finish = path.absolute(), at, finish
        self.dtype, self.row = array.dtype, array.shape[1:]
        self.contiguous = array.flags.c_contiguous
        self.to_end = at + array.nbytes == path.stat().st_size
        self.is_uint8 = array.dtype == np.uint8  # values are then known to be in [0, 1]
        self._opened = _size_and_time(path.stat())
        self.shape: tuple[int, ...] = (len(array), *finish(np.array(array[:1])).shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor, /) -> Tensor:
        if not len(index):
            return torch.zeros(0, *self.shape[1:])
        try:
            with open(self.path, "rb", buffering=0) as file:  # for each batch: none shares its place
                if _size_and_time(os.fstat(file.fileno())) != self._opened:
                    raise EOFError
                return self.finish(self._read(file, index.cpu().numpy()))
        except (EOFError, FileNotFoundError):
            raise OSError(
                f"{self.path} has changed while it was in use; start again with the file as it is now"
            ) from None

    def _read(self, file: FileIO, rows: np.ndarray) -> np.ndarray:
        if not self.contiguous:  # in Fortran's order: mapped, and to read beyond the end of a map kills the process
            return np.array(np.load(self.path, mmap_mode="r")[rows])
        width = self.dtype.itemsize * math.prod(self.row)
        order = rows.argsort(kind="stable")
        starts = np.flatnonzero(np.diff(rows[order], prepend=-2) != 1)  # of rows that follow each other in the file
        places, sizes = self.at + rows[order[starts]] * width, np.diff(starts, append=len(rows)) * width
        runs = list(zip(places.tolist(), sizes.tolist(), strict=True))
        if len(runs) > 1 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # otherwise each row reads ahead 128 KiB
            for place, size in runs:
                os.posix_fadvise(file.fileno(), place, size, os.POSIX_FADV_WILLNEED)
        values = np.empty(len(rows) * width, np.uint8)
        left = values.data
        for place, size in runs:
            file.seek(place)
            while size:
                if not (read := file.readinto(left[:size]) or 0):
                    raise EOFError
                left, size = left[read:], size - read
        found = np.empty((len(rows), *self.row), self.dtype)
        found[order] = values.view(self.dtype).reshape(found.shape)
        return found

    def stream(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of each piece in turn, read ahead by a thread."""
        return ahead(self.__getitem__, pieces, 4 * math.prod(self.shape[1:]))

    def identity(self) -> str:
        """Return a string that identifies this file, without reading it."""
        start = "" if self.to_end else f" from {self.at}"  # else the shape tells it
        return f"{self.path.name} {self._opened[0]} {self._opened[1]} {self.dtype}{start}"


def mapped(array: np.memmap, finish: Callable[[np.ndarray], Tensor]) -> MappedArray:
    """Return the rows of a memory map, or of a part of one that is contiguous in its file, read when they are used."""
    start = np.frombuffer(array._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
    at = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + array.ctypes.data - start
    return MappedArray(Path(str(array.filename)), array, at, finish)


def _size_and_time(stat: os.stat_result) -> tuple[int, int]:
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
                return Source(path.stem, dense_up_to(max_bytes, SparseRows(matrix)), file=path.name)
            return _from_archive(path, archive)
    loaded = _readable(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    if 2 <= loaded.ndim <= 4 and loaded.size and loaded.size * 4 > max_bytes:
        finish = partial(_numbers, path.name)
        return Source(path.stem, MappedArray(path, loaded, loaded.offset, finish), file=path.name)
    return Source(path.stem, data_tensor(np.array(loaded), path.name), file=path.name)


def _numbers(what: str, array: np.ndarray) -> Tensor:
    return to_float(data_tensor(array, what))


def _from_archive(path: Path, archive: np.lib.npyio.NpzFile) -> Source:
    def read_data(name: str) -> Tensor:
        return data_tensor(_readable(path, lambda: archive[name]), f"array {name!r} of {path.name}")

    def read_labels(name: str, x: Tensor) -> Tensor:
        return label_tensor(_readable(path, lambda: archive[name]), len(x), f"array {name!r} of {path.name}")

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
    x, own = read_data(data_name), {}
    labels = None if label_name is None else read_labels(label_name, x)
    if DATA_TEST in archive.files:
        x_test = read_data(DATA_TEST)
        _check_alike(path, {data_name: x, DATA_TEST: x_test})
        own["test"] = (x_test, read_labels(LABELS_TEST, x_test) if LABELS_TEST in archive.files else None)
    elif LABELS_TEST in archive.files:
        raise ValueError(f"{path.name} holds {LABELS_TEST} without {DATA_TEST}: give both or neither")
    return Source(path.stem, x, labels, own=own, file=path.name)


def _check_alike(path: Path, arrays: dict[str, Tensor]) -> None:
    """Refuse two arrays whose rows differ in shape, or of which only one holds 8-bit pixels."""
    (name, x), (other, x_test) = arrays.items()
    if x_test.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"{path.name} has rows of shape {tuple(x_test.shape[1:])} in {other} and {tuple(x.shape[1:])} in {name}: "
            "they must be alike"
        )
    pixels = [name for name, values in arrays.items() if values.dtype == torch.uint8]
    for name, values in arrays.items():
        if len(pixels) == 1 and name not in pixels and (top := float(values.max())) > 1:
            raise ValueError(
                f"{path.name} has uint8 in {pixels[0]}, which is divided by 255, and values up to {top:g} of another "
                f"dtype in {name}: save both alike"
            )


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
