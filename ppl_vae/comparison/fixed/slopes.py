r"""The exponent s of a gradient's signal-to-noise in the number of particles, :math:`\mathrm{SNR} \sim K^s`.

For the importance-weighted bound, s is 1/2 for the decoder and -1/2 for the encoder (Rainforth et al., Tighter
Variational Bounds are Not Necessarily Better, 2018, https://arxiv.org/abs/1802.04537).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from ppl_vae.comparison.fixed.results import Block, Row


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


class _Point(NamedTuple):
    num_particles: int
    x: float
    y: float
    error: float


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
        points = [point for k, block in blocks if (point := _point(k, block)) is not None]
        used = tuple(point.num_particles for point in points)
        if len(set(used)) < 2:
            continue
        intercept, slope, error = _fit(points)
        left_out = tuple(k for k, _ in blocks if k not in used)
        found.append(Slope(name, block_name, slope, slope - error, slope + error, intercept, used, left_out))
    return found


def _point(num_particles: int, block: Block) -> _Point | None:
    snr = block.snr
    if not all(map(math.isfinite, snr)) or not block.above_floor:
        return None
    error = math.log(snr.high / snr.low) / (2 * NormalDist().inv_cdf(0.975))
    return _Point(num_particles, math.log(num_particles), math.log(snr.value), max(error, 1e-6))


def _fit(points: list[_Point]) -> tuple[float, float, float]:
    """Return the intercept, the slope and the half-width of the slope's 95% interval."""
    weights = [point.error**-2 for point in points]
    total = sum(weights)
    mean_x = sum(w * p.x for w, p in zip(weights, points, strict=True)) / total
    mean_y = sum(w * p.y for w, p in zip(weights, points, strict=True)) / total
    spread = sum(w * (p.x - mean_x) ** 2 for w, p in zip(weights, points, strict=True))
    slope = sum(w * (p.x - mean_x) * (p.y - mean_y) for w, p in zip(weights, points, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    freedom = len(points) - 2
    chi2 = sum(w * (p.y - intercept - slope * p.x) ** 2 for w, p in zip(weights, points, strict=True))
    widened = math.sqrt(max(1.0, chi2 / freedom)) if freedom else 1.0
    return intercept, slope, NormalDist().inv_cdf(0.975) * widened / math.sqrt(spread)
