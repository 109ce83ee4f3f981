"""A data set in three parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ppl_vae.data.arrays import is_image
from ppl_vae.data.rows import identity
from ppl_vae.data.splits import Split
from ppl_vae.data.streams import Stream


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set in three parts.

    `validation` is empty (length 0) where none was asked for. Under dynamic binarisation `train` holds
    probabilities and the other two parts hold one fixed draw, so that figures can be compared across epochs.
    The noise of dequantised pixels is fresh for each batch of `train` and fixed in the other two parts.

    Args:
        name: the name in tables and files.
        train: the part that the parameters are fitted to.
        validation: the part that decides when to stop and which setting is kept.
        test: the part that the final figures are about.
        binarize: how the values were made 0 or 1: "none", "threshold", "dynamic" or "fixed".

    Example:
        >>> from ppl_vae import data
        >>> data.load("digits")
        Dataset(digits: 1455 train, 162 validation, 180 test rows of (1, 8, 8), binarize=threshold)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    binarize: str = "none"

    @classmethod
    def of(cls, name: str, train: Split) -> Dataset:
        """Return a data set of training data alone; its other parts are empty."""
        nothing = train.head(0)
        return cls(name, train, nothing, nothing)

    def __repr__(self) -> str:
        train = "a loader's" if isinstance(self.train, Stream) else len(self.train)
        sizes = f"{train} train, {len(self.validation)} validation, {len(self.test)} test"
        made = "" if self.bins is None else ", dequantize=True"
        return f"Dataset({self.name}: {sizes} rows of {self.x_shape}, binarize={self.binarize}{made})"

    @property
    def bins(self) -> int | None:
        """The number of levels of dequantised pixels, 256, for bits per dimension; None for other data.

        Example:
            >>> import torch
            >>> from ppl_vae import data
            >>> pixels = torch.arange(200, dtype=torch.uint8).view(100, 2)
            >>> data.from_tensors(pixels, dequantize=True).bins
            256
        """
        return self.train.bins

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one datum: (channels, height, width) or (size,).

        Example:
            >>> from ppl_vae import data
            >>> data.load("digits").x_shape
            (1, 8, 8)
        """
        return tuple(self.train.x.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether one datum can be drawn as a picture: (1 or 3, height, width), or (height, width).

        Example:
            >>> from ppl_vae import data
            >>> data.load("digits").is_image
            True
        """
        return is_image(self.x_shape)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify this data with its split and binarisation.

        They come from SHA-256 over shapes, dtypes and contents, whatever the device, which takes about a second
        for MNIST, once. For data that is not in memory only names, sizes and times of last change count: a copy
        of the same files counts as another data set, and a change that keeps a file's time and size goes unseen. Of
        a loader and of a torch `Dataset` only shapes count.

        Example:
            >>> from ppl_vae import data
            >>> digits = data.load("digits")
            >>> digits.fingerprint == data.load("digits").fingerprint
            True
            >>> digits.fingerprint == data.load("digits", seed=1).fingerprint
            False
        """
        digest = hashlib.sha256(self.binarize.encode())
        if self.bins is not None:
            digest.update(f"dequantized {self.bins}".encode())
        for split in (self.train, self.validation, self.test):
            digest.update(f"split {split.dynamic} {split.labels is not None}".encode())
            if isinstance(split, Stream):  # whose first batch may be another one each time
                digest.update(repr(split).encode())
                continue
            for column in (*split.columns, *(() if split.labels is None else (split.labels,))):
                if isinstance(column, Tensor):
                    digest.update(f"{column.dtype} {tuple(column.shape)}".encode())
                    digest.update(column.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
                else:
                    digest.update(identity(column).encode())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Dataset:
        """Move this data set to another device, each part by `Split.to`.

        Args:
            device: "cpu", "cuda", ...
            dtype: The dtype of the columns of floating numbers; None leaves it.

        Returns:
            A new data set with the same fingerprint.

        Example:
            >>> from ppl_vae import data
            >>> data.load("digits").to("cpu").train.x.device
            device(type='cpu')
        """
        parts = {part: getattr(self, part).to(device, dtype) for part in ("train", "validation", "test")}
        moved = replace(self, **parts)
        if dtype is not None or "fingerprint" in self.__dict__:  # another dtype would change it
            moved.__dict__["fingerprint"] = self.fingerprint  # where cached_property keeps it
        return moved
