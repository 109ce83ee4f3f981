"""The sizes and data that a VAE passes to its pieces when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from ppl_vae.data import Split

Shape = tuple[int, ...]


def rows_at_once(split: Split) -> int:
    """Return how many rows to read at a time: 4096, or those of 2^24 values (20,000 genes), not more than there are."""
    return min(len(split), 4096, max(1, 2**24 // math.prod(split.x.shape[1:])))


@dataclass(frozen=True)
class Binding:
    """The sizes and data that a VAE passes to the optional method ``bind(binding)`` of a piece when it is made.

    Attributes:
        x_shape: Shape of one datum.
        latent_shape: Shape of z: the event shape of prior and posterior; for the likelihood, the shape of what it reads
            (a block of z under a prior with ``visible_dim``).
        y_shape: Shape of the condition y of one datum, ``(k,)``; None for a model without a condition.
        posterior: The posterior, for a prior that is made of it; it already has its sizes.
        prior: The prior, for a posterior that is made of it; it has no sizes yet.
        train: The training data; None if the VAE is made from a shape alone.
    """

    x_shape: Shape
    latent_shape: Shape
    y_shape: Shape | None = None
    posterior: Callable[..., Any] | None = None
    prior: Callable[..., Any] | None = None
    train: Split | None = None

    def data_mean(self, piece: str) -> Float64[Tensor, "*x_shape"]:
        """Return the mean of the training data without NaN values.

        Args:
            piece: The piece that asks, for the error message.

        Raises:
            ValueError: If there are no data.
        """
        total = torch.zeros(self.x_shape, dtype=torch.float64)
        count = torch.zeros_like(total)
        for x, *_ in self.data(piece).batches(rows_at_once(self.data(piece))):
            x = x.double().cpu()
            total += x.nansum(0)
            count += (~x.isnan()).sum(0)
        return total / count.clamp(min=1)

    def rows(self, size: int, piece: str) -> Float[Tensor, " size *x_shape"]:
        """Return `size` training data drawn by torch's global generator; they repeat if too few.

        Raises:
            ValueError: If there are no data.
        """
        train = self.data(piece)
        order = torch.randperm(len(train)).repeat(-(-size // len(train)))[:size]
        return torch.cat([x for x, *_ in train.batches(min(size, len(train)), order=order)])

    def data(self, piece: str) -> Split:
        """Return the training data.

        Raises:
            ValueError: If there are no data.
        """
        if self.train is None or not len(self.train):
            raise ValueError(
                f"{piece} starts from the training data, and the VAE was made from a shape alone; give VAE the data set"
            )
        return self.train
