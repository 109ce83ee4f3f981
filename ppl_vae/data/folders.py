"""Images from a user's own folder: read whole, or decoded batch by batch if the folder is large."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_vae.data.arrays import to_float
from ppl_vae.data.partition import Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
GREY = ("1", "L", "LA", "La")  # Pillow's modes; modes that begin with I are 16-bit grey
MAX_WORKERS = 8  # or the number of cores, if that is lower
WORTH_WORKERS = 2**22  # pixel values; fewer are decoded before a process has started


class ImageFiles:
    """Images of one size, decoded when they are used, as float32 in [0, 1]."""

    is_uint8 = True  # values are then known to be in [0, 1]

    def __init__(self, folder: Path, names: Sequence[str], shape: tuple[int, int, int]) -> None:
        self.names = names
        self.paths = [folder / name for name in names]
        self.shape: tuple[int, ...] = (len(names), *shape)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return to_float(_pixels(_decode_all(self.shape[1:], [self.paths[row] for row in index.tolist()])))

    def stream(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of each piece in turn, decoded ahead by worker processes where that pays."""
        return map(to_float, self.pixels(pieces))

    def pixels(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of each piece in turn, as uint8."""
        wanted = [piece.tolist() for piece in pieces]
        size = sum(len(rows) for rows in wanted) * int(np.prod(self.shape[1:]))
        loader: DataLoader = DataLoader(
            self.paths,  # type: ignore[arg-type]
            batch_sampler=wanted,
            collate_fn=partial(_decode_all, self.shape[1:]),
            num_workers=_workers() if size >= WORTH_WORKERS else 0,
            generator=torch.Generator(),  # otherwise every pass draws a number from the global one
        )
        return map(_pixels, loader)

    def identity(self) -> str:
        """Return a string that identifies these files, without decoding them."""
        stats = [(name, path.stat()) for name, path in zip(self.names, self.paths, strict=True)]
        return " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def _decode_all(shape: tuple[int, ...], paths: Sequence[Path]) -> Tensor | OSError:
    """Return pixels, (len(paths), *shape), or the error (raised by a worker, it would gain a traceback)."""
    pixels = np.empty((len(paths), *shape), dtype=np.uint8)
    for place, path in enumerate(paths):
        try:
            decoded = _decode(path, shape[0])
        except OSError as error:
            return error
        if decoded.shape != shape:
            return OSError(f"the image {path} has changed while it was in use: it had another size at the start")
        pixels[place] = decoded
    return torch.from_numpy(pixels)


def read_folder(folder: Path, max_bytes: float) -> Source:
    """Read the images under a folder; decode them batch by batch if they exceed `max_bytes` as float32."""
    names = _image_names(folder)
    if not names:
        raise ValueError(
            f"the folder {folder} holds no images, where files ending in {', '.join(SUFFIXES)} were "
            "expected: give the folder that they lie in"
        )
    files = ImageFiles(folder, names, _common_shape(folder, names))
    labels = _labels(names)
    if 4 * float(np.prod(files.shape)) > max_bytes:
        return Source(folder.resolve().name, files, labels)
    x = torch.empty(files.shape, dtype=torch.uint8)  # filled piece by piece, so that memory holds the images once
    pieces = torch.arange(len(files)).split(64)
    for piece, pixels in zip(pieces, files.pixels(pieces), strict=True):
        x[piece] = pixels
    return Source(folder.resolve().name, x, labels)


def _image_names(folder: Path) -> list[str]:
    names: list[str] = []
    seen: set[str] = set()
    for inside, subfolders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(inside) in seen:  # a link back to a folder that was visited
            subfolders.clear()
            continue
        seen.add(os.path.realpath(inside))
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__MACOSX"))]
        images = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        names += [(Path(inside) / name).relative_to(folder).as_posix() for name in images]
    return sorted(names)


def _labels(names: Sequence[str]) -> Tensor | None:
    if any("/" not in name for name in names):
        return None
    classes = [name.split("/", 1)[0] for name in names]
    return torch.from_numpy(np.unique(classes, return_inverse=True)[1])


def _common_shape(folder: Path, names: Sequence[str]) -> tuple[int, int, int]:
    sizes, grey = [], True
    for name in names:
        with _opened(folder / name) as image:  # reads only the header
            sizes.append(image.size)
            grey = grey and (image.mode in GREY or image.mode.startswith("I"))
    (width, height), _ = Counter(sizes).most_common(1)[0]
    for name, size in zip(names, sizes, strict=True):
        if size != (width, height):
            raise ValueError(
                f"the image {folder / name} is {size[0]}x{size[1]} pixels, where {width}x{height} was "
                "expected as in most others of its folder: resize or remove it"
            )
    return (1 if grey else 3), height, width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's plugins raise all kinds
        text = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"the image {path} cannot be read ({text}): replace or remove it") from error


def _decode(path: Path, channels: int) -> np.ndarray:
    with _opened(path) as opened:
        image = opened.convert("RGBA") if "transparency" in opened.info else opened  # otherwise Pillow warns
        if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
            pixels = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        else:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)  # (C, H, W)


def _pixels(decoded: Tensor | OSError) -> Tensor:
    if isinstance(decoded, OSError):
        raise decoded
    return decoded


def _workers() -> int:
    if multiprocessing.current_process().daemon:  # a daemon may not start processes
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, cores)
