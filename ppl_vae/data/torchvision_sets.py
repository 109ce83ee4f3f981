"""torchvision's data sets, found on disk, unpacked or downloaded, and read as arrays."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import shutil
import struct
import tempfile
import textwrap
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppl_vae.data.arrays import data_tensor, label_tensor
from ppl_vae.data.partition import Source


def _idx(
    prefix: str,
    parts: tuple[str, str] = ("train", "test"),
    kinds: tuple[str, str] = ("images-idx3-ubyte", "labels-idx1-ubyte"),
) -> tuple[str, ...]:
    return tuple(f"{prefix}{part}-{kind}" for part in parts for kind in kinds)


IDX = _idx("", ("train", "t10k"))
QMNIST = _idx("qmnist-", kinds=("images-idx3-ubyte", "labels-idx2-int"))
_IDX_BYTES = {0x08: 1, 0x09: 1, 0x0B: 2, 0x0C: 4, 0x0D: 4, 0x0E: 8}  # of a value, by the code of its type
EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
BY_TRAIN = {"train": True}, {"train": False}
BY_SPLIT = {"split": "train"}, {"split": "test"}


@dataclass(frozen=True)
class Kind:
    """Where torchvision keeps a data set, and the arguments that select its two parts."""

    cls: str  # its name in torchvision.datasets
    folder: str  # under the root; "." where the files lie in the root itself
    files: tuple[str, ...]  # in that folder; all must be there
    parts: tuple[dict[str, Any], dict[str, Any]] = BY_TRAIN


def _emnist(split: str) -> Kind:
    train, test = ({"split": split, **part} for part in BY_TRAIN)
    return Kind("EMNIST", "EMNIST/raw", _idx(f"emnist-{split}-"), (train, test))


KINDS: dict[str, Kind] = {
    "mnist": Kind("MNIST", "MNIST/raw", IDX),
    "fashion_mnist": Kind("FashionMNIST", "FashionMNIST/raw", IDX),
    "kmnist": Kind("KMNIST", "KMNIST/raw", IDX),
    "qmnist": Kind("QMNIST", "QMNIST/raw", QMNIST),
    "emnist": _emnist("balanced"),
    "usps": Kind("USPS", ".", ("usps.bz2", "usps.t.bz2")),
    "cifar10": Kind(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": Kind("CIFAR100", "cifar-100-python", ("train", "test", "meta")),
    "svhn": Kind("SVHN", ".", ("train_32x32.mat", "test_32x32.mat"), BY_SPLIT),
    "omniglot": Kind(
        "Omniglot",
        "omniglot-py",
        ("images_background.zip", "images_evaluation.zip", "images_background", "images_evaluation"),
        ({"background": True}, {"background": False}),
    ),
    "stl10": Kind(
        "STL10",
        "stl10_binary",
        ("train_X.bin", "train_y.bin", "unlabeled_X.bin", "test_X.bin", "test_y.bin"),
        BY_SPLIT,
    ),
    **{f"emnist_{split}": _emnist(split) for split in EMNIST_SPLITS},
}


def read_set(name: str, root: Path) -> Source:
    """Read one of `KINDS` from the files under `root`; download missing files to there."""
    kind = KINDS[name]
    with _files_of(name, kind, root) as place:
        (x, labels), (x_test, labels_test) = (_read(name, kind, place, root, part) for part in kind.parts)
    if kind.cls == "Omniglot":
        labels_test = labels_test + labels.max() + 1  # its test set has other characters
    return Source(name, x, labels, own={"test": (x_test, labels_test)})


def _read(name: str, kind: Kind, place: Path, root: Path, part: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    import torchvision.datasets

    try:
        with _silence():
            found = getattr(torchvision.datasets, kind.cls)(place, download=False, **part)
            return _arrays(name, kind, found)
    except Exception as error:  # torchvision asserts, unpickles and parses: any kind may come
        raise OSError(
            f"the files of {name} under {root / kind.folder} cannot be read ({_brief(error)}): remove them "
            "and load again to download fresh ones, or pass root=... of a folder with good ones"
        ) from error


def _arrays(name: str, kind: Kind, found: Any) -> tuple[Tensor, Tensor]:
    if kind.cls == "Omniglot":
        return _ink(found)
    labels = found.labels if hasattr(found, "labels") else found.targets
    if kind.cls == "QMNIST":
        labels = labels[:, 0]  # the class; other entries say who wrote it
    x = data_tensor(found.data, name)
    if kind.cls == "EMNIST":
        x = x.transpose(2, 3)  # stored on its side
    return x, label_tensor(labels, len(x), f"the labels of {name}")


def _ink(found: Any) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for place in range(len(found)):
        image, label = found[place]  # 105x105, ink is black
        small = image.resize((28, 28), Image.Resampling.BOX)  # a pixel is the share of ink in it
        images.append(255 - np.asarray(small))
        labels.append(label)
    return data_tensor(np.stack(images), "omniglot"), torch.tensor(labels, dtype=torch.int64)


@contextlib.contextmanager
def _files_of(name: str, kind: Kind, root: Path) -> Iterator[Path]:
    """Yield a root with all files of the set in torchvision's layout: the user's own, or a temporary one."""
    folder = root / kind.folder
    missing = [file for file in kind.files if not (folder / file).exists()]
    packed = [file for file in missing if (folder / f"{file}.gz").is_file()]
    if packed != missing:
        _download(name, kind, root)
        packed = []
    with contextlib.ExitStack() as stack:
        place = root
        if packed and not _may_write(folder):
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppl_vae-")))
            (place / kind.folder).mkdir(parents=True)
            for file in set(kind.files) - set(packed):
                shutil.copyfile(folder / file, place / kind.folder / file)
        for file in packed:
            _unpack(folder / f"{file}.gz", place / kind.folder)
        yield place


def _may_write(folder: Path) -> bool:
    # the mode counts too: the superuser may write anywhere, but must not touch a folder marked read-only
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _unpack(archive: Path, folder: Path) -> None:
    handle, part = tempfile.mkstemp(dir=folder, prefix=f".{archive.stem}-")
    try:
        with open(handle, "wb") as unpacked, gzip.open(archive) as packed:
            left = size = _idx_size(packed, archive)
            while block := packed.read(min(2**20, left + 1)):
                left -= len(block)
                if left < 0:
                    raise OSError(f"{archive} holds more than the {size} bytes that its header states: remove it")
                unpacked.write(block)
        os.chmod(part, 0o644)  # only its owner may read a temporary file
        os.replace(part, folder / archive.stem)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"{archive} is not a whole gzip file ({error}): remove it and load again") from error
    finally:
        Path(part).unlink(missing_ok=True)


def _idx_size(file: gzip.GzipFile, archive: Path) -> int:
    """Return the size of an idx file in bytes, as its header states it, and go back to its start.

    The header is two zeros, the code of the type, the number of dimensions, and these as 32-bit integers.
    """
    zeros, code, dimensions = struct.unpack(">HBB", file.read(4).ljust(4, b"\0"))
    if zeros or code not in _IDX_BYTES:
        raise OSError(f"{archive} holds no idx file: remove it and load again")
    shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions).ljust(4 * dimensions, b"\0"))
    file.seek(0)
    return 4 + 4 * dimensions + math.prod(shape) * _IDX_BYTES[code]


def _download(name: str, kind: Kind, root: Path) -> None:
    """Fetch into a temporary folder, then move into place: an interrupted download leaves nothing behind."""
    import torchvision.datasets

    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        if not _may_write(made[-1].parent if made else root):
            raise PermissionError(f"{root} is read-only")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch:
            with _silence():
                for part in kind.parts:
                    getattr(torchvision.datasets, kind.cls)(Path(scratch), download=True, **part)
            _move(Path(scratch), root)
    except Exception as error:  # torchvision raises another kind for each set
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: another process is at work there
                folder.rmdir()
        where = root / kind.folder
        raise ConnectionError(
            f"could not download {name} ({_brief(error)}): put its files ({', '.join(kind.files)}) under "
            f"{where}, or pass root=... (or set PPL_VAE_DATA) to a folder that has them; digits needs no download"
        ) from error


def _move(scratch: Path, root: Path) -> None:
    for entry in scratch.iterdir():
        target = root / entry.name
        if entry.is_dir() and target.is_dir():
            _move(entry, target)
        else:
            os.replace(entry, target)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress progress bars: torchvision has no option against them."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def _brief(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
