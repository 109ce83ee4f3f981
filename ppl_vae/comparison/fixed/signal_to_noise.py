r"""The signal-to-noise of single parameters' gradients, :math:`|\mathbb E g_i| / \mathrm{sd}(g_i)`, without its floor.

Let m and s be the mean and the standard deviation of R replicates. For a parameter without any signal, :math:`|m| / s`
is about :math:`\sqrt{2 / (\pi R)}`, not zero. The noise adds in quadrature, so :math:`(m^2 - s^2 / R) / s^2` is the
estimate of the square; a negative estimate counts as zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ppl_vae._measured import Measured
from ppl_vae.comparison.statistics.measured import measured

if TYPE_CHECKING:
    from jaxtyping import Float64

NUM_RESAMPLES = 500

_NO_SIGNAL = torch.full((1 + NUM_RESAMPLES,), math.nan, dtype=torch.float64)


class SignalToNoise(NamedTuple):
    """The signal-to-noise over the parameters of a block.

    Attributes:
        median: The median over parameters, with its interval over replicates.
        quartiles: The quartiles over parameters.
        floor: The signal-to-noise that a parameter without signal would show if the noise were not removed.
        resampled: The median and its resamples; resample b draws the same replicates for every estimator.
    """

    median: Measured
    quartiles: tuple[float, float]
    floor: float
    resampled: Float64[Tensor, " 1+B"]


def signal_to_noise(kept: Float64[Tensor, "R n"], *, rounding: float, seed: int) -> SignalToNoise:
    """Return the signal-to-noise over parameters whose gradient is not always zero.

    The interval is a bootstrap over replicates. A resample's mean has the noise of the replicates and the noise of the
    resampling, so its square is reduced by twice :math:`1/R`. Where nearly all parameters are near the floor, the
    median is still a little too large: half of the noise of a square is positive.

    Args:
        kept: Gradients of some parameters in every replicate.
        rounding: The share of the mean below which a standard deviation counts as zero, and the ratio as infinite.
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
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(replicates, (NUM_RESAMPLES, replicates), generator=generator)
    counts = torch.zeros(drawn.shape).scatter_add_(1, drawn, torch.ones(1, 1).expand(drawn.shape))  # (B, R)
    centred = alive - mean
    scale = centred.square().mean(0).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    centred = (centred / scale).float()  # after scaling, sums in float32 are precise enough, and faster
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


def _quantile(values: Tensor, share: float) -> Tensor:
    """Return a quantile, interpolated unless its two neighbours are equal (both may be infinite)."""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low if low == high else low + (high - low) * (place - math.floor(place))
