"""A test of zero bias that cancelling signs cannot deceive: random projections of paired differences of gradients."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor


def zero_bias_p(projected: Tensor, reference: Tensor, tolerance: float) -> float:
    r"""Return the p-value of "the mean gradients are equal" from projections of both on the same random directions.

    Hotelling's test: with :math:`\bar d` and S the mean and covariance of R paired differences of p projections,

    .. math::
        \frac{R - p}{p (R - 1)} \, R \, \bar d^\top S^{-1} \bar d \sim F(p, R - p).

    Sums of entries whose biases cancel say nothing; random signs make them add up. Exact for normal differences, and
    for others as good as the mean of R of them is normal: a heavy tail (an importance weight's) costs power. Directions
    in which nothing varies beyond rounding are left out, unless the mean differs there: then the p-value is zero.

    Args:
        projected: Of the estimator, (R, p), float64.
        reference: Of its reference in the same replicates, (R, p).
        tolerance: A relative difference that is rounding.

    Example:
        >>> noise = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> zero_bias_p(noise, torch.zeros(500, 4).double(), 1e-4) > 0.01
        True
        >>> zero_bias_p(noise + 0.5, torch.zeros(500, 4).double(), 1e-4) < 1e-6
        True
    """
    difference = projected - reference
    replicates = len(difference)
    rounding = tolerance**2 * float(torch.maximum(projected.square().mean(), reference.square().mean()))
    if float(difference.square().mean()) <= rounding:
        return 1.0
    mean = difference.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(difference.T).reshape(len(mean), len(mean)))
    along = (vectors.T @ mean).square()
    varies = values > max(rounding, 1e-12 * float(values.max()))
    if bool((along[~varies] > 100 * rounding).any()):
        return 0.0
    p = int(varies.sum())
    if not p or replicates <= p:
        return 1.0
    t_squared = replicates * float((along[varies] / values[varies]).sum())
    return float(stats.f.sf((replicates - p) / (p * (replicates - 1)) * t_squared, p, replicates - p))
