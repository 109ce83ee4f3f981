"""Images from a user's own folder: read whole, or decoded batch by batch if the folder is large."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ppl_vae._words import said_by
from ppl_vae.data.arrays import to_float
from ppl_vae.data.partition import Source
from ppl_vae.data.reading import by_workers, cores
from ppl_vae.data.rows import Rows

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
UNREAD = (".tif", ".tiff", ".jfif", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".jp2", ".tga", ".ico")
GREY = ("1", "L", "LA", "La")  # Pillow's modes; modes that begin with I are 16-bit grey
_ORIENTATION = 0x0112  # in a photograph's EXIF data; above 4 its sides are exchanged
SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
Shape = tuple[int, int, int]  # channels, height, width
Resize = tuple[int, int, bool]  # width, height, whether the centre is cut out
WORTH_WORKERS = 2**22  # pixel values; fewer are decoded before a process has started


class ImageFiles:
    """Images of one size, decoded when they are used, as float32 in [0, 1]."""

    is_uint8 = True  # values are then known to be in [0, 1]

    def __init__(
        self, folder: Path, names: Sequence[str], shape: Shape, resize: Resize | None, workers: int | None
    ) -> None:
        self.names, self.workers = names, workers
        self.paths = [folder.absolute() / name for name in names]
        self.shape: tuple[int, ...] = (len(names), *shape)
        self._decode = partial(_decode_all, shape, resize)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return to_float(next(by_workers(self.paths, [index], self._decode, 0, 1)))

    def stream(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of each piece in turn, decoded ahead by worker processes where that pays."""
        return map(to_float, self.pixels(pieces))

    def pixels(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of each piece in turn, as uint8."""
        width = int(np.prod(self.shape[1:]))
        workers = cores() if self.workers is None else self.workers
        if self.workers is None and sum(map(len, pieces)) * width < WORTH_WORKERS:
            workers = 0
        return by_workers(self.paths, pieces, self._decode, workers, width)

    def identity(self) -> str:
        """Return a string that identifies these files, without decoding them."""
        stats = [(name, path.stat()) for name, path in zip(self.names, self.paths, strict=True)]
        made = "" if self._decode.args[1] is None else f"{self._decode.args[1]} "
        return made + " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def _decode_all(shape: Shape, resize: Resize | None, paths: Sequence[Path]) -> Tensor | OSError:
    """Return pixels, (len(paths), *shape), or the error (raised by a worker, it would gain a traceback)."""
    pixels = np.empty((len(paths), *shape), dtype=np.uint8)
    for place, path in enumerate(paths):
        try:
            decoded = _decode(path, shape[0], resize)
        except OSError as error:
            return error
        if decoded.shape != shape:
            return OSError(f"the image {path} has changed while it was in use: it had another size at the start")
        pixels[place] = decoded
    return torch.from_numpy(pixels)


def read_folder(
    folder: Path, max_bytes: float, resize: int | str | None, grey: bool | None, workers: int | None
) -> Source:
    """Read the images under a folder; decode them batch by batch if they exceed `max_bytes` as float32.

    Args:
        folder: The folder. Subfolders train, test and val (valid, validation) are splits, where there are no others.
        max_bytes: The limit of a split.
        resize: 64 for a square from the centre, "64x48" for exactly this width and height; None for images of one size.
        grey: Whether images become grey or RGB; None: grey if all are.
        workers: The processes that decode; None: as many as cores, where that pays.
    """
    names, wanted = _image_names(folder), _resize(resize)
    if not names:
        raise ValueError(
            f"the folder {folder} holds no images, where files ending in {', '.join(SUFFIXES)} were "
            "expected: give the folder that they lie in"
        )
    shape = _common_shape(folder, names, wanted, grey)
    parts = _splits(folder, names)
    inside = [name for part in parts.values() for name in part]
    subfolders = sorted({name.split("/", 1)[0] for name in inside}) if all("/" in name for name in inside) else []
    classes = {name: code for code, name in enumerate(subfolders)}
    read: dict[str, tuple[Rows, Tensor | None]] = {}
    for split, part in parts.items():
        files = ImageFiles(folder / split if split else folder, part, shape, wanted, workers)
        x = _held(files) if 4 * float(np.prod(files.shape)) <= max_bytes else files
        labels = torch.tensor([classes[name.split("/", 1)[0]] for name in part]) if classes else None
        read[SPLITS.get(split, "train")] = (x, labels)
    return Source(folder.resolve().name, *read.pop("train"), own=read, label_names=tuple(subfolders))


def _held(files: ImageFiles) -> Tensor:
    """Return all the images, uint8, filled piece by piece, so that memory holds them once."""
    x = torch.empty(files.shape, dtype=torch.uint8)
    pieces = torch.arange(len(files)).split(64)
    for piece, pixels in zip(pieces, files.pixels(pieces), strict=True):
        x[piece] = pixels
    return x


def _splits(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the images of each split, by its subfolder; "" if subfolders are no splits."""
    tops = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    if "train" not in tops or not tops <= SPLITS.keys() or len(tops) == 1:
        if tops & {"train", "test"} and tops - {"train"}:
            found = ", ".join(sorted(top or "images of its own" for top in tops))
            raise ValueError(
                f"the folder {folder} has {found}: train, test and val beside nothing else were expected as splits, or "
                "subfolders of other names as labels"
            )
        return {"": list(names)}
    if len({SPLITS[top] for top in tops}) < len(tops):
        raise ValueError(f"the folder {folder} has {', '.join(sorted(tops))}, which mean the same: keep one of them")
    return {top: [name[len(top) + 1 :] for name in names if name.startswith(f"{top}/")] for top in sorted(tops)}


def _resize(value: int | str | None) -> Resize | None:
    """Return width, height, and whether the centre is cut out, of 64 or "64x48"."""
    if value is None:
        return None
    sides = str(value).lower().split("x")
    if isinstance(value, bool) or len(sides) > 2 or not all(s.isdecimal() and int(s) for s in sides):
        raise ValueError(f"resize={value!r} was given, where 64 (squares from the centre) or '64x48' was expected")
    return int(sides[0]), int(sides[-1]), len(sides) == 1


def _image_names(folder: Path) -> list[str]:
    names: list[str] = []
    unread: list[str] = []
    seen: set[str] = set()
    for inside, subfolders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(inside) in seen:  # a link back to a folder that was visited
            subfolders.clear()
            continue
        seen.add(os.path.realpath(inside))
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__MACOSX"))]
        images = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        unread += [name for name in files if name.lower().endswith(UNREAD) and not name.startswith(".")]
        names += [(Path(inside) / name).relative_to(folder).as_posix() for name in images]
    if unread:
        raise ValueError(
            f"the folder {folder} holds {len(unread)} images that are not read ({unread[0]}): convert them to one of "
            f"{', '.join(SUFFIXES)}, or move them away"
        )
    return sorted(names)


def _common_shape(folder: Path, names: Sequence[str], resize: Resize | None, grey: bool | None) -> Shape:
    sizes, all_grey = [], True
    for name in names:
        with _opened(folder / name) as image:  # reads only the header
            turned = image.getexif().get(_ORIENTATION, 1) > 4
            sizes.append(image.size[::-1] if turned else image.size)
            all_grey = all_grey and (image.mode in GREY or image.mode.startswith("I"))
    channels = 1 if (all_grey if grey is None else grey) else 3
    if resize is not None:
        return channels, resize[1], resize[0]
    (width, height), _ = Counter(sizes).most_common(1)[0]
    for name, size in zip(names, sizes, strict=True):
        if size != (width, height):
            raise ValueError(
                f"the image {folder / name} is {size[0]}x{size[1]} pixels, where {width}x{height} was "
                "expected as in most others of its folder: resize or remove it, or make all alike, with "
                f"resize={min(width, height)} (--data.resize {min(width, height)})"
            )
    return channels, height, width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's plugins raise all kinds
        text = said_by(error)
        raise OSError(f"the image {path} cannot be read ({text}): replace or remove it") from error


def _decode(path: Path, channels: int, resize: Resize | None) -> np.ndarray:
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened)  # as the camera was held
        image = image.convert("RGBA") if "transparency" in opened.info else image  # otherwise Pillow warns
        if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        if "A" in image.getbands():  # what is transparent shows white, and not the colour that lies hidden there
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB")
        if resize is not None:
            width, height, centre = resize
            scale = Image.Resampling.LANCZOS
            image = (ImageOps.fit if centre else Image.Image.resize)(image, (width, height), scale)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)  # (C, H, W)
