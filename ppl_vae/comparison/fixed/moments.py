r"""Inner products of mean gradients without the noise of the mean, and their bootstrap.

Let :math:`S_g` be the sum of the gradients of a group of :math:`n_g` replicates. The mean over pairs of *different*
groups

.. math::
    \frac{\sum_{g \ne h} S_g \cdot S'_h}{\sum_{g \ne h} n_g n_h}

is unbiased for :math:`\mathbb E g \cdot \mathbb E g'`, whatever the noise. In contrast, :math:`\lVert \bar g \rVert^2`
is too large by :math:`\mathrm{tr} \, \mathrm{Cov}(g) / R`. The Gram matrix of all :math:`S_g` suffices for both.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.comparison.fixed.records import Record

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of the groups, the same for every estimator.

    Attributes:
        weights: How often each group was drawn, (1 + B, G), float64; the first row has every group once.
        sizes: Replicates in each group, (G,).
    """

    weights: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, sizes: Tensor, seed: int) -> Resamples:
        """Draw the resamples.

        Args:
            sizes: Replicates in each group, (G,), float64.
            seed: For the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(sizes), (NUM_RESAMPLES, len(sizes)), generator=generator)
        counts = torch.nn.functional.one_hot(drawn, len(sizes)).sum(1).double()
        return cls(torch.cat([torch.ones(1, len(sizes), dtype=torch.float64), counts]), sizes)

    def products(self, gram: Tensor) -> Tensor:
        """Return the inner product of two means and its resamples, (1 + B,), from their Gram matrix, (G, G).

        A group that was drawn twice is not two independent groups: pairs of a group with itself never count.
        """
        return self._pairs(gram) / self._pairs(self.sizes[:, None] * self.sizes)

    def means(self, sums: Tensor) -> Tensor:
        """Return the mean over replicates of a number and its resamples, from its sums over groups, (G,)."""
        return (self.weights @ sums) / (self.weights @ self.sizes)

    def _pairs(self, gram: Tensor) -> Tensor:
        w = self.weights
        return ((w @ gram) * w).sum(1) - w.square() @ gram.diagonal()


def gram(record: Record, block: str) -> Tensor:
    """Return the inner products of the sums of all groups, (G, G), float64."""
    return torch.stack([(a @ a.T).cpu() for a in record.chunks(block)]).sum(0)


def paired_grams(record: Record, reference: Record, block: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Gram matrices with the reference, of the reference and of the differences, each (G, G), float64."""
    products = [
        torch.stack([a @ b.T, b @ b.T, (a - b) @ (a - b).T]).cpu()
        for a, b in zip(record.chunks(block), reference.chunks(block), strict=True)
    ]
    cross, theirs, difference = torch.stack(products).sum(0)
    return cross, theirs, difference


@dataclass(frozen=True)
class Moments:
    """Figures of one block's gradient, each with its bootstrap resamples, (1 + B,), float64.

    Attributes:
        norm_squared: The squared norm of the mean gradient.
        variance: The trace of the covariance of one gradient.
        bias_squared: The squared norm of the mean difference from the reference; None without a reference.
        cosine: The cosine between the mean gradients; None without a reference.
        is_reference: Whether all gradients equal the reference's, up to rounding.
    """

    norm_squared: Tensor
    variance: Tensor
    bias_squared: Tensor | None = None
    cosine: Tensor | None = None
    is_reference: bool = False


def moments(record: Record, reference: Record | None, block: str, resamples: Resamples) -> Moments:
    """Return the moments of one block.

    Args:
        record: The estimator's record.
        reference: The record of its reference estimator, from the same noise.
        block: The block's name.
        resamples: The resamples of the groups.
    """
    own = gram(record, block)
    norm_squared = resamples.products(own)
    bounds = record.layout.bounds
    squares = record.squares(block)
    sums = torch.stack([squares[a:b].sum() for a, b in itertools.pairwise(bounds)])
    variance = torch.zeros_like(norm_squared) if record.constant else resamples.means(sums) - norm_squared
    if reference is None:
        return Moments(norm_squared, variance)
    cross, theirs, difference = paired_grams(record, reference, block)
    scale = torch.maximum(own.diagonal().sum(), theirs.diagonal().sum())
    same = bool(difference.diagonal().sum() <= record.layout.tolerance**2 * scale)
    bias_squared = torch.zeros_like(norm_squared) if same else resamples.products(difference)
    lengths = norm_squared.clamp(min=0).sqrt() * resamples.products(theirs).clamp(min=0).sqrt()
    cosine = torch.ones_like(lengths) if same else (resamples.products(cross) / lengths).clamp(-1, 1)
    return Moments(norm_squared, variance, bias_squared, cosine, same)
