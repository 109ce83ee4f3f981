"""The figures of a row, computed from the records of the replicates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.comparison.fixed.moments import NUM_RESAMPLES, Resamples, moments
from ppl_vae.comparison.fixed.records import Record
from ppl_vae.comparison.fixed.results import Block, KnownEvidence
from ppl_vae.comparison.fixed.signal_to_noise import signal_to_noise
from ppl_vae.comparison.statistics.measured import Measured, measured, t_quantile
from ppl_vae.comparison.statistics.zero_bias import effective_number, zero_bias_p
from ppl_vae.objectives import sample_log_weights
from ppl_vae.objectives.losses import Program

_PRECISION = 0.1  # the relative standard error whose cost is reported
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}


@dataclass(frozen=True)
class Figures:
    """The data behind the figures of one estimator.

    Attributes:
        record: The record of its replicates.
        reference: The record of its reference's replicates; None without a reference.
        resamples: The resamples of the groups.
        seconds: The times of single steps, (rounds,).
        seed: For the other bootstraps.
        ties: The effective number of draws in which several particles share the weight, see `weights_of`; infinite
            where no weights are used.
    """

    record: Record
    reference: Record | None
    resamples: Resamples
    seconds: Tensor
    seed: int
    ties: float = math.inf

    def median_seconds(self) -> Measured:
        """Return the median time of a step, with the interval of the median."""
        return measured(self.resampled_seconds(), len(self.seconds))

    def resampled_seconds(self) -> Tensor:
        """Return the median time of a step and its resamples, (1 + B,)."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randint(len(self.seconds), (NUM_RESAMPLES, len(self.seconds)), generator=generator)
        return torch.cat([self.seconds.median()[None], self.seconds[rows].median(1).values])


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


def block_of(figures: Figures, name: str, of_data: Measured | None) -> Block:
    """Return the figures of one block.

    Args:
        figures: The data behind them.
        name: The block's name.
        of_data: The noise of the choice of data, if it was measured.
    """
    record, reference, resamples = figures.record, figures.reference, figures.resamples
    layout, groups = record.layout, len(resamples.sizes)
    found = moments(record, reference, name, resamples)
    rounding = _ROUNDING.get(layout.leaves[0].dtype, 1e-3)
    noise = signal_to_noise(record.kept(name), rounding=rounding, seed=figures.seed)
    steps = found.variance / found.norm_squared / _PRECISION**2
    steps = torch.where(found.norm_squared > 0, steps, math.inf).clamp(min=1.0)  # at least one step
    cost = steps * figures.resampled_seconds()
    bias = bias_p = cosine = unclear = None
    if reference is not None:
        assert found.bias_squared is not None
        assert found.cosine is not None
        bias = measured(found.bias_squared.clamp(min=0).sqrt(), groups)
        p = zero_bias_p(record.projected(name), reference.projected(name), layout.tolerance, figures.ties)
        bias_p = 1.0 if found.is_reference else p
        if bias_p is None:
            unclear = f"its paired differences are too heavy-tailed for {layout.replicates:,} replicates"
        cosine = measured(found.cosine, groups)
    return Block(
        size=sum(layout.leaves[i].numel() for i in layout.blocks[name]),
        dead=record.num_dead(name),
        norm=measured(found.norm_squared.clamp(min=0).sqrt(), groups),
        variance=measured(found.variance.clamp(min=0), groups),
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
