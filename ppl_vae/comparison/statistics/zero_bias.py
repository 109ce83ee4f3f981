"""A test of zero bias that cancelling signs cannot deceive: random projections of paired differences of gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from scipy import stats
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

_MOST = 8  # directions; each of them needs:
_REPLICATES, _DEVIATIONS, _TIES = 10, 3, 8
_CERTAIN = 0.01  # the level for a claim of bias where the tails are too heavy for Hotelling's test


def zero_bias_p(
    projected: Float64[Tensor, "R p"], reference: Float64[Tensor, "R p"], tolerance: float, ties: float = math.inf
) -> float | None:
    r"""Return the p-value of "the mean gradients are equal" from projections of both on the same random directions.

    The test is Hotelling's. With :math:`\bar d` and S the mean and covariance of R paired differences in p directions,

    .. math::
        \frac{R - p}{p (R - 1)} \, R \, \bar d^\top S^{-1} \bar d \sim F(p, \nu - p), \qquad
        \nu = \min(R, 2 R / (\kappa - 1), n_w).

    Biases of entries can cancel in a plain sum; random signs make them add up. The test is right for normal differences
    (with R for :math:`\nu`). For other differences its error grows with the number of directions: where a rare event
    carries the mean, sixteen directions of a hundred replicates nearly always reject a true hypothesis. So the test
    takes at most

    .. math::
        p = \min\Big(8, \; \frac{R}{10}, \; \frac{n_d}{3}, \; \frac{n_w}{8}\Big) \text{ rounded down}, \qquad
        n = \frac{(\sum_r s_r)^2}{\sum_r s_r^2},

    where n is the number of replicates that a sum effectively rests on. For :math:`n_d` the terms :math:`s_r` are the
    squared deviations :math:`(d_r - \bar d)^2` in the worst direction, so :math:`n_d = R / \kappa`. For :math:`n_w`
    (`ties`) they are the weight that several particles share. :math:`n_w` guards against an event that no replicate has
    shown and about which the differences say nothing: where one weight is nearly 1 in most draws, the few draws in
    which two weights tie carry a mean (DReG's, against IWAE's). :math:`\nu` is at most :math:`n_w`, and at most
    Satterthwaite's degrees of freedom of a variance from R draws with the worst direction's kurtosis :math:`\kappa`.

    Where p is zero, the test claims a bias only if no rare event could explain it; otherwise it returns no p-value. All
    R replicates miss an event of probability :math:`q = \log(1/\alpha) / R` with probability :math:`\alpha`. The event
    moves the mean by at most q M, :math:`M = \max_r |g_r| + \max_r |g_{\mathrm{ref}, r}|`, if neither gradient is
    larger in it than in the replicates. So at least one of the 16 directions must satisfy

    .. math::
        |\bar d| > t_{1 - \alpha/2, R - 1} \, s / \sqrt R + M \log(1/\alpha) / R,

    and the p-value is 16 times the smallest such :math:`\alpha`, if that is below 0.01.

    No test of a mean keeps its level for every distribution (Bahadur & Savage, 1956). This one misses an event rarer
    than 1/R that shows neither in the differences nor in the weights (a state that q almost never draws, under a
    score-function estimator). ``benchmarks/levels.py`` measured the constants. The test leaves out directions in which
    nothing varies beyond rounding, unless the mean differs there: then the p-value is zero.

    Args:
        projected: Projections of the estimator's gradients.
        reference: Projections of its reference's gradients in the same replicates.
        tolerance: The largest relative difference that counts as rounding.
        ties: :math:`n_w`; infinite where particles are not weighted.

    Returns:
        The p-value; None where the differences are too heavy-tailed for R replicates.

    Reference:
        The Nonexistence of Certain Statistical Procedures in Nonparametric Problems (Bahadur & Savage, 1956),
        https://doi.org/10.1214/aoms/1177728077

    Example:
        >>> noise = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> zero_bias_p(noise, torch.zeros(500, 4).double(), 1e-4) > 0.01
        True
        >>> zero_bias_p(noise + 0.5, torch.zeros(500, 4).double(), 1e-4) < 1e-6
        True
        >>> zero_bias_p(noise, torch.zeros(500, 4).double(), 1e-4, ties=2.5) is None
        True
    """
    difference = projected - reference
    replicates = len(difference)
    rounding = tolerance**2 * float(torch.maximum(projected.square().mean(), reference.square().mean()))
    if float(difference.square().mean()) <= rounding:
        return 1.0
    squares = (difference - difference.mean(0)).square()
    squares = squares[:, squares.mean(0) > rounding]
    effective = float(effective_number(squares).min()) if squares.numel() else replicates
    bearable = min(replicates / _REPLICATES, effective / _DEVIATIONS, ties / _TIES)
    directions = int(min(difference.shape[1], _MOST, bearable))
    if not directions:
        return _beyond_rare_events(difference, projected.abs().amax(0) + reference.abs().amax(0))
    difference = difference[:, :directions]
    mean = difference.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(difference.T).reshape(len(mean), len(mean)))
    along = (vectors.T @ mean).square()
    varies = values > max(rounding, 1e-12 * float(values.max()))
    if bool((along[~varies] > 100 * rounding).any()):
        return 0.0
    p = int(varies.sum())
    if not p:
        return 1.0
    t_squared = replicates * float((along[varies] / values[varies]).sum())
    freedom = replicates if 3 * effective >= replicates else 2 / (1 / effective - 1 / replicates)
    freedom = min(freedom, ties)
    return float(stats.f.sf((replicates - p) / (p * (replicates - 1)) * t_squared, p, freedom - p))


def effective_number(shares: Float[Tensor, "R ..."]) -> Float[Tensor, " ..."]:
    r"""Return how many rows a sum effectively rests on, :math:`(\sum_r s_r)^2 / \sum_r s_r^2`; zero if all are zero.

    Args:
        shares: The terms of the sum, at least zero.

    Example:
        >>> effective_number(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]]))
        tensor([2., 1.])
    """
    relative = shares / shares.amax(0).clamp_min(torch.finfo(shares.dtype).tiny)  # squares of small shares underflow
    return relative.sum(0).square() / relative.square().sum(0).clamp_min(1.0)


def _beyond_rare_events(difference: Tensor, largest: Tensor) -> float | None:
    """Return the p-value at which no event that all replicates missed explains the bias, by bisection on log alpha."""
    replicates, directions = difference.shape
    mean, error = difference.mean(0).abs(), difference.std(0) / math.sqrt(replicates)

    def clear(nats: float) -> bool:
        needed = float(stats.t.isf(math.exp(-nats) / 2, replicates - 1)) * error + largest * nats / replicates
        return bool((mean > needed).any())

    low, high = math.log(directions / _CERTAIN), 200.0
    if not clear(low):
        return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if clear(middle) else (low, middle)
    return directions * math.exp(-low)
