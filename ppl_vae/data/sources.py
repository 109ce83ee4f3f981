"""A source: rows of data with what is known about them, before they are split and binarised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.arrays import data_tensor
from ppl_vae.data.binarization import Binarize
from ppl_vae.data.rows import Rows


@dataclass(frozen=True, eq=False)
class Source:
    """Rows, channels first: a uint8 or float32 tensor, or float32 rows that are read when asked for."""

    name: str
    x: Rows
    labels: Tensor | None = None
    columns: tuple[Tensor, ...] = ()  # what programs get beside x
    x_test: Tensor | None = None  # None: the test set is split off x
    labels_test: Tensor | None = None
    binarize: Binarize = "none"  # where the user does not say
    file: str | None = None  # what it was read from

    @property
    def title(self) -> str:
        """What errors call it."""
        return self.file or self.name


def digits() -> Source:
    """scikit-learn's 1797 hand-written digits, 8 by 8, in 17 levels of grey; part of its installation."""
    from sklearn.datasets import load_digits  # takes a second

    bunch = load_digits()
    x = data_tensor((bunch.images / 16).astype(np.float32), "digits")  # (1797, 1, 8, 8)
    return Source("digits", x, torch.from_numpy(bunch.target.astype(np.int64)), binarize="threshold")
