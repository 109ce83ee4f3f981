"""A source: rows of data with their labels and other columns, before they are split and binarised."""

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
    """Rows, channels first: a uint8 or float32 tensor, or float32 rows that are read when they are used."""

    name: str
    x: Rows
    labels: Tensor | None = None
    columns: tuple[Tensor, ...] = ()  # other columns that programs take
    x_test: Tensor | None = None  # None: the test set is split off x
    labels_test: Tensor | None = None
    binarize: Binarize = "none"  # the default, if the user does not choose
    file: str | None = None  # the file that it was read from

    @property
    def title(self) -> str:
        """The name of the source in errors."""
        return self.file or self.name


def digits() -> Source:
    """Return scikit-learn's 1797 hand-written digits, 8 by 8, in 17 levels of grey; they come with its installation."""
    from sklearn.datasets import load_digits  # takes a second

    bunch = load_digits()
    x = data_tensor((bunch.images / 16).astype(np.float32), "digits")  # (1797, 1, 8, 8)
    return Source("digits", x, torch.from_numpy(bunch.target.astype(np.int64)), binarize="threshold")
