r"""The signal-to-noise of single parameters' gradients, :math:`|\mathbb E g_i| / \mathrm{sd}(g_i)`, without its floor.

From R replicates with mean m and standard deviation s, :math:`|m| / s` of a parameter without any signal is about
:math:`\sqrt{2 / (\pi R)}`, not zero. The noise adds in quadrature, so :math:`(m^2 - s^2 / R) / s^2` is taken for the
square, and zero where that is negative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.comparison.statistics.measured import Measured, measured

NUM_RESAMPLES = 500

_NO_SIGNAL = torch.full((1 + NUM_RESAMPLES,), math.nan, dtype=torch.float64)


class SignalToNoise(NamedTuple):
    """The signal-to-noise over the parameters of a block.

    Attributes:
        median: With its interval over replicates.
        quartiles: Over parameters.
        floor: What no signal would look like if the noise were not taken out.
        resampled: The median and its resamples, (1 + B,); resample b draws the same replicates for every estimator.
    """

    median: Measured
    quartiles: tuple[float, float]
    floor: float
    resampled: Tensor


def signal_to_noise(kept: Tensor, *, rounding: float, seed: int) -> SignalToNoise:
    """Return the signal-to-noise over parameters whose gradient is not always zero.

    The interval is a bootstrap over replicates. A resample's mean has the noise of the replicates and that of the
    drawing, so twice :math:`1/R` is taken out of its square. Where nearly all parameters are near the floor, the median
    of what is left is still a little too large: half of the noise of a square is positive.

    Args:
        kept: Gradients of some parameters in every replicate, (R, n), float64.
        rounding: A share of the mean below which a standard deviation is taken for zero, and the ratio for infinite.
        seed: For the resamples.
    """
    replicates = len(kept)
    floor = math.sqrt(2 / (math.pi * replicates))
    alive = kept[:, (kept != 0).any(0)]
    if not alive.shape[1]:
        return SignalToNoise(Measured(math.nan, math.nan, math.nan), (math.nan, math.nan), floor, _NO_SIGNAL)
    mean, variance = alive.mean(0), alive.var(0)
    ratios = _ratios(mean, variance, 1 / replicates, rounding)
    quartiles = torch.stack([_quantile(ratios, q) for q in (0.25, 0.75)]).tolist()
    counts = _counts(replicates, seed)
    centred = alive - mean
    scale = centred.square().mean(0).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    centred = (centred / scale).float()  # so that sums of float32 are good enough, and faster
    medians = [_quantile(ratios, 0.5)]
    for some in counts.split(100):
        shift = (some @ centred).double() / replicates
        spread = (some @ centred.square()).double() / replicates - shift.square()
        spread = spread.clamp(min=0) * (replicates / (replicates - 1)) * scale.square()
        again = _ratios(mean + shift * scale, spread, 2 / replicates, rounding)
        medians += [_quantile(row, 0.5) for row in again]
    resampled = torch.stack(medians)
    return SignalToNoise(measured(resampled, replicates), (quartiles[0], quartiles[1]), floor, resampled)


def _ratios(mean: Tensor, variance: Tensor, noise: float, rounding: float) -> Tensor:
    squared = mean.square() / variance - noise
    squared = torch.where(variance <= (rounding * mean).square(), math.inf, squared)
    return squared.clamp(min=0).sqrt()


def _counts(replicates: int, seed: int) -> Tensor:
    """How often each replicate is drawn in each resample, (B, R)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(replicates, (NUM_RESAMPLES, replicates), generator=generator)
    return torch.zeros(NUM_RESAMPLES, replicates).scatter_add_(1, rows, torch.ones(1, 1).expand(rows.shape))


def _quantile(values: Tensor, share: float) -> Tensor:
    """Without interpolation between values that may be infinite, but of the two in the middle for the median."""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low if low == high else low + (high - low) * (place - math.floor(place))
