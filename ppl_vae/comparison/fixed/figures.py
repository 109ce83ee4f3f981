r"""The figures of a row, from the records of the replicates: moments of gradients, their bootstrap, weights.

Let :math:`S_g` be the sum of the gradients of a group of :math:`n_g` replicates. The mean over pairs of *different*
groups

.. math::
    \frac{\sum_{g \ne h} S_g \cdot S'_h}{\sum_{g \ne h} n_g n_h}

is unbiased for :math:`\mathbb E g \cdot \mathbb E g'`, whatever the noise. In contrast, :math:`\lVert \bar g \rVert^2`
is too large by :math:`\mathrm{tr} \, \mathrm{Cov}(g) / R`. The Gram matrix of all :math:`S_g` suffices for both.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae._measured import Measured, t_quantile
from ppl_vae.comparison.fixed.records import Record
from ppl_vae.comparison.fixed.results import Block, KnownEvidence
from ppl_vae.comparison.fixed.signal_to_noise import signal_to_noise
from ppl_vae.comparison.statistics.measured import measured
from ppl_vae.comparison.statistics.zero_bias import effective_number, zero_bias_p
from ppl_vae.objectives import sample_log_weights
from ppl_vae.objectives.losses import Program

if TYPE_CHECKING:
    from jaxtyping import Float64

NUM_RESAMPLES = 1000

_POSITIVE = (0.0, math.inf)  # the ends of a norm
_PRECISION = 0.1  # the relative standard error whose cost is reported
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of the groups, the same for every estimator.

    Attributes:
        weights: How often each group was drawn; the first row has every group once.
        sizes: Replicates in each group.
    """

    weights: Float64[Tensor, "1+B G"]
    sizes: Float64[Tensor, " G"]

    @classmethod
    def of(cls, sizes: Float64[Tensor, " G"], seed: int) -> Resamples:
        """Draw the resamples.

        Args:
            sizes: Replicates in each group.
            seed: For the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(sizes), (NUM_RESAMPLES, len(sizes)), generator=generator)
        counts = torch.nn.functional.one_hot(drawn, len(sizes)).sum(1).double()
        return cls(torch.cat([torch.ones(1, len(sizes), dtype=torch.float64), counts]), sizes)

    def products(self, gram: Float64[Tensor, "G G"]) -> Float64[Tensor, " 1+B"]:
        """Return the inner product of two means and its resamples, from their Gram matrix.

        A group that was drawn twice is not two independent groups: pairs of a group with itself never count. A resample
        of one group alone has no pair, and no product: NaN.
        """
        return self._pairs(gram) / self._pairs(self.sizes[:, None] * self.sizes)

    def means(self, sums: Float64[Tensor, " G"]) -> Float64[Tensor, " 1+B"]:
        """Return the mean over replicates of a number and its resamples, from its sums over groups."""
        return (self.weights @ sums) / (self.weights @ self.sizes)

    def _pairs(self, gram: Tensor) -> Tensor:
        w = self.weights
        return ((w @ gram) * w).sum(1) - w.square() @ gram.diagonal()


@dataclass(frozen=True)
class Moments:
    """Figures of one block's gradient, each with its bootstrap resamples.

    Attributes:
        norm_squared: The squared norm of the mean gradient.
        variance: The trace of the covariance of one gradient.
        bias_squared: The squared norm of the mean difference from the reference; None without a reference.
        cosine: The cosine between the mean gradients; None without a reference.
        is_reference: Whether all gradients equal the reference's, up to rounding.
    """

    norm_squared: Float64[Tensor, " 1+B"]
    variance: Float64[Tensor, " 1+B"]
    bias_squared: Float64[Tensor, " 1+B"] | None = None
    cosine: Float64[Tensor, " 1+B"] | None = None
    is_reference: bool = False


def moments(record: Record, reference: Record | None, block: str, resamples: Resamples) -> Moments:
    """Return the moments of one block.

    Args:
        record: The estimator's record.
        reference: The record of its reference estimator, from the same noise.
        block: The block's name.
        resamples: The resamples of the groups.
    """
    own = torch.stack([(a @ a.T).cpu() for a in record.chunks(block)]).sum(0)
    norm_squared = resamples.products(own)
    bounds = record.layout.bounds
    squares = record.squares(block)
    sums = torch.stack([squares[a:b].sum() for a, b in itertools.pairwise(bounds)])
    variance = torch.zeros_like(norm_squared) if record.constant else resamples.means(sums) - norm_squared
    if reference is None:
        return Moments(norm_squared, variance)
    products = [
        torch.stack([a @ b.T, b @ b.T, (a - b) @ (a - b).T]).cpu()
        for a, b in zip(record.chunks(block), reference.chunks(block), strict=True)
    ]
    cross, theirs, difference = torch.stack(products).sum(0)
    scale = torch.maximum(own.diagonal().sum(), theirs.diagonal().sum())
    same = bool(difference.diagonal().sum() <= record.layout.tolerance**2 * scale)
    bias_squared = torch.zeros_like(norm_squared) if same else resamples.products(difference)
    lengths = norm_squared.clamp(min=0).sqrt() * resamples.products(theirs).clamp(min=0).sqrt()
    cosine = torch.ones_like(lengths) if same else (resamples.products(cross) / lengths).clamp(-1, 1)
    return Moments(norm_squared, variance, bias_squared, cosine, same)


@dataclass(frozen=True)
class Figures:
    """The data behind the figures of one estimator.

    Attributes:
        record: The record of its replicates.
        reference: The record of its reference's replicates; None without a reference.
        resamples: The resamples of the groups.
        seconds: The times of single steps.
        seed: For the other bootstraps.
        ties: The effective number of draws in which several particles share the weight, see `weights_of`; infinite
            where no weights are used.
    """

    record: Record
    reference: Record | None
    resamples: Resamples
    seconds: Float64[Tensor, " rounds"]
    seed: int
    ties: float = math.inf

    @functools.cached_property
    def seconds_resampled(self) -> Float64[Tensor, " 1+B"]:
        """The median time of a step and its resamples."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randint(len(self.seconds), (NUM_RESAMPLES, len(self.seconds)), generator=generator)
        return torch.cat([self.seconds.median()[None], self.seconds[rows].median(1).values])

    def block(self, name: str, of_data: Measured | None) -> Block:
        """Return the figures of one block.

        Args:
            name: The block's name.
            of_data: The noise of the choice of data, if it was measured.
        """
        record, reference, resamples = self.record, self.reference, self.resamples
        layout, groups = record.layout, len(resamples.sizes)
        found = moments(record, reference, name, resamples)
        rounding = _ROUNDING.get(layout.leaves[0].dtype, 1e-3)
        noise = signal_to_noise(record.kept(name), rounding=rounding, seed=self.seed)
        steps = found.variance / found.norm_squared / _PRECISION**2
        steps = torch.where(found.norm_squared > 0, steps, math.inf).clamp(min=1.0)  # at least one step
        cost = steps * self.seconds_resampled
        bias = bias_p = cosine = unclear = None
        if reference is not None:
            assert found.bias_squared is not None
            assert found.cosine is not None
            bias = measured(found.bias_squared.clamp(min=0).sqrt(), groups, _POSITIVE)
            p = zero_bias_p(record.projected(name), reference.projected(name), layout.tolerance, self.ties)
            bias_p = 1.0 if found.is_reference else p
            if bias_p is None:
                unclear = f"its paired differences are too heavy-tailed for {layout.replicates:,} replicates"
            cosine = measured(found.cosine, groups, (-1.0, 1.0))
        return Block(
            size=sum(layout.leaves[i].numel() for i in layout.blocks[name]),
            dead=record.num_dead(name),
            norm=measured(found.norm_squared.clamp(min=0).sqrt(), groups, _POSITIVE),
            variance=measured(found.variance.clamp(min=0), groups, _POSITIVE),
            snr=noise.median,
            snr_quartiles=noise.quartiles,
            snr_floor=noise.floor,
            bias=bias,
            bias_p=bias_p,
            cosine=cosine,
            is_reference=found.is_reference,
            bias_unclear=unclear,
            minibatch_variance=of_data,
            seconds_to_tenth=measured(cost, groups),
            resampled={"snr": noise.resampled, "seconds_to_tenth": cost},
        )


def value_of(record: Record, evidence: KnownEvidence | None) -> tuple[float, float, Measured | None]:
    """Return the mean of the value, its standard error, and its distance from log p(x)."""
    values = record.values
    error = 0.0 if record.constant else float(values.std()) / math.sqrt(len(values))
    value = float(values.mean())
    if evidence is None:
        return value, error, None
    bias = value - evidence.value
    t = t_quantile(len(values))
    half = t * error + evidence.error if evidence.exact else t * math.hypot(error, evidence.error)
    return value, error, Measured(bias, bias - half, bias + half)


class Weights(NamedTuple):
    """How evenly the normalised weights of K particles are spread.

    Attributes:
        ess: Their effective sample size, the mean over data and draws, from 1 to K.
        ties: The effective number of draws in which several particles share the weight, for the datum with the fewest.
    """

    ess: float
    ties: float


@torch.no_grad()
def weights_of(program: Program, tensors: tuple[Any, ...], num_particles: int, draws: int, seed: int) -> Weights | None:
    r"""Return :math:`1 / \sum_k \tilde w_k^2` of the normalised weights, and how many of the draws have ties.

    Let :math:`u_r = 1 - \max_k \tilde w_k` be the weight that the largest particle of draw r leaves to the others. The
    effective number of draws in which it leaves any is :math:`(\sum_r u_r)^2 / \sum_r u_r^2`. This is the number of
    draws if all draws are alike, and small if one particle nearly always has all the weight. The minimum over data
    counts, since a sum over data is no better than its worst term.

    Args:
        program: Model and guide.
        tensors: The batch.
        num_particles: K.
        draws: The number of draws of K particles.
        seed: For the draws.

    Returns:
        Both figures; None for a program whose weights are not per datum.
    """
    if num_particles == 1:
        return Weights(1.0, math.inf)
    torch.manual_seed(seed)
    sizes, left = [], []
    for _ in range(draws):
        try:
            log_weights = sample_log_weights(*program, *tensors, num_particles=num_particles)
        except (ValueError, NotImplementedError, RuntimeError):  # estimators may still work without these figures
            return None
        sizes.append(log_weights.effective_sample_size.mean())
        left.append(log_weights.normalized.double().sort(0).values[:-1].sum(0))  # a sum, since 1 - max would round
    return Weights(float(torch.stack(sizes).mean()), float(effective_number(torch.stack(left)).min()))
