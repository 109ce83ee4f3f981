r"""The exponent s of a gradient's signal-to-noise in the number of particles, :math:`\mathrm{SNR} \sim K^s`.

For the importance-weighted bound, s is 1/2 for the decoder and -1/2 for the encoder (Rainforth et al., Tighter
Variational Bounds are Not Necessarily Better, 2018, https://arxiv.org/abs/1802.04537).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ppl_vae._measured import Measured
from ppl_vae.comparison.fixed.results import Block, Row

_QUANTILE = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Slope:
    """The exponent of the signal-to-noise in K for one estimator and block.

    Attributes:
        name: The estimator.
        block: The block.
        value: The exponent.
        low: The lower end of its 95% interval.
        high: The upper end.
        intercept: log SNR at K = 1, on the fitted line.
        particles: The values of K in the fit.
        left_out: The values of K whose signal-to-noise is too near the floor, or has no finite interval.
    """

    name: str
    block: str
    value: float
    low: float
    high: float
    intercept: float
    particles: tuple[int, ...]
    left_out: tuple[int, ...]


def slopes_of(rows: Iterable[Row]) -> list[Slope]:
    r"""Fit :math:`\log \mathrm{SNR} = a + s \log K` to the rows of each estimator and block.

    The fit is least squares, weighted by the bootstrap's standard errors of log SNR. Where the points scatter more than
    these errors (a power law holds for large K alone), the interval is widened by the ratio. A point is left out if the
    lower end of its interval is below the noise floor. A fit needs two points.

    Args:
        rows: The rows of a comparison.
    """
    grouped: dict[tuple[str, str], list[tuple[int, Block]]] = {}
    for row in rows:
        for name, block in row.blocks.items():
            grouped.setdefault((row.name, name), []).append((row.num_particles, block))
    found = []
    for (name, block_name), blocks in grouped.items():
        points = [(k, b.snr) for k, b in blocks if b.above_floor and all(map(math.isfinite, b.snr))]
        used = tuple(k for k, _ in points)
        if len(set(used)) < 2:
            continue
        intercept, slope, error = _fit(points)
        left_out = tuple(k for k, _ in blocks if k not in used)
        found.append(Slope(name, block_name, slope, slope - error, slope + error, intercept, used, left_out))
    return found


def _fit(points: Sequence[tuple[int, Measured]]) -> tuple[float, float, float]:
    """Return the intercept, the slope and the half-width of the slope's 95% interval."""
    weights = [max(math.log(snr.high / snr.low) / (2 * _QUANTILE), 1e-6) ** -2 for _, snr in points]
    xy = [(math.log(k), math.log(snr.value)) for k, snr in points]
    mean_x, mean_y = (
        sum(w * v for w, v in zip(weights, axis, strict=True)) / sum(weights) for axis in zip(*xy, strict=True)
    )
    weighted = [(w, x - mean_x, y - mean_y) for w, (x, y) in zip(weights, xy, strict=True)]
    spread = sum(w * x**2 for w, x, _ in weighted)
    slope = sum(w * x * y for w, x, y in weighted) / spread
    intercept = mean_y - slope * mean_x
    freedom = len(points) - 2
    chi2 = sum(w * (y - intercept - slope * x) ** 2 for w, (x, y) in zip(weights, xy, strict=True))
    widened = math.sqrt(max(1.0, chi2 / freedom)) if freedom else 1.0
    return intercept, slope, _QUANTILE * widened / math.sqrt(spread)
