r"""Exact logarithms of binomial, Poisson and negative binomial probabilities for large counts.

Written as :math:`\log\Gamma` minus :math:`\log\Gamma` plus :math:`k \log \mu`, each is a small difference of large
numbers: at a count of a million float32 leaves errors of a nat. Loader expands each around the mean that fits the
count best. The large parts then cancel on paper, and a variance, three Stirling remainders and a deviance are left.

Reference:
    Fast and Accurate Computation of Binomial Probabilities (Loader, 2000),
    https://www.r-project.org/doc/reports/CLoader-dbinom-2002.pdf
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_SERIES = 16.0  # from here on five terms of the series are exact in float64


def stirling_remainder(x: Tensor) -> Tensor:
    r"""Return :math:`\log\Gamma(x) - (x - \frac12) \log x + x - \frac12 \log 2\pi`, for x > 0."""
    small, inverse = x.clamp(max=_SERIES), 1 / x.clamp(min=_SERIES)
    square = inverse.square()
    series = inverse * (1 / 12 + square * (-1 / 360 + square * (1 / 1260 + square * (-1 / 1680 + square * (1 / 1188)))))
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - HALF_LOG_2PI
    return torch.where(x < _SERIES, direct, series)


def log_ratio(change: Tensor, far: Tensor) -> Tensor:
    """Return log(1 + change), or `far` where |change| is at least 1/2: the same as a difference of logarithms."""
    return torch.where(change.abs() < 0.5, torch.log1p(change.clamp(-0.5, 0.5)), far)
