r"""Diagnostics of a mean of importance weights: the effective sample size, and the shape of the tail."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

_TAIL_MIN = 5  # fewer exceedances give no information about a tail
_PRIOR_K, _PRIOR_WEIGHT = 0.5, 10.0  # Vehtari et al., appendix C: a prior at k = 1/2 worth ten draws
_FLAT = 1e-3  # relative: in float32, equal log-weights of -1000 nats differ by as much
_FALLBACK = 1e-300  # replaces a quartile that underflows: the tail of such weights is too heavy to measure


def effective_sample_size(log_w: Float[Tensor, " K *batch"]) -> Float[Tensor, "*batch"]:
    r"""Return the effective sample size of importance weights, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, per datum.

    It lies between 1 and K. Like `pareto_k`, it is blind to modes that no draw has reached. It is noisy where it is
    small.

    Args:
        log_w: Log-weights, (K, ...), nats.

    Example:
        >>> effective_sample_size(torch.tensor([2.0, 1.0, 1.0]).log())
        tensor(2.6667)
    """
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def relative_error(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the effective sample size (0 where all weights are zero), and the relative error of the mean weight.

    The error, that of the mean's logarithm by the delta method, is infinite for a single weight.

    Args:
        log_w: Log-weights, (K, ...), nats.
    """
    count, ess = len(log_w), effective_sample_size(log_w).nan_to_num(0.0)
    if count == 1:
        return ess, torch.full_like(ess, math.inf)
    return ess, ((count / ess - 1).clamp_min(0) / (count - 1)).sqrt()


def check_numbers(log_w: Tensor, what: str) -> None:
    """Raise if some of the log-weights, (K, n), are not numbers."""
    if broken := int(log_w.isnan().any(0).sum()):
        raise ValueError(
            f"{what} of {broken} of {log_w.shape[1]} data are not numbers; expected numbers or -inf: look for overflow "
            "in the parameters of the likelihood, or NaN in the data"
        )


def pareto_k(log_w: Float[Tensor, " K *batch"]) -> Float[Tensor, "*batch"]:
    r"""Return the shape k of the tail of importance weights, per datum.

    The generalised Pareto density :math:`p(y) = \frac1\sigma (1 + k y/\sigma)^{-1/k - 1}` is fitted to the largest
    :math:`M = \lceil\min(0.2 K, 3 \sqrt K)\rceil` weights, less the next largest weight. Moments of the weights of
    order 1/k and beyond are infinite: the variance at k > 1/2, the mean at k > 1.

    k is blind to modes that no draw has reached: the weights of a proposal that misses a mode altogether look as good
    as any. It describes the weights at hand, and has its own sampling error (about 0.1 at K = 1000). It is biased
    towards 1/2 where K is small.

    No such density fits many equal weights, as those of a discrete latent are. Where a quarter of the tail equals the
    next largest weight, that weight is not subtracted: heavy is then what exceeds it by far.

    Args:
        log_w: Log-weights, (K, ...), nats, up to a constant.

    Returns:
        k, of the shape of ``log_w[0]``, float64. It is -inf where the largest weights are equal within 1e-3, and inf
        where the tail has fewer than five weights (K < 21), where fewer than five exceed equal ones and add more than
        1e-3 of the sum, and where a weight is not a number.

    Reference:
        Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2015, 2024),
        https://arxiv.org/abs/1507.02646

    Example:
        >>> u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        >>> round(pareto_k(-0.75 * u.log()).item(), 1)  # a Pareto tail of shape 0.75
        0.7
    """
    num_particles = len(log_w)
    size = math.ceil(min(0.2 * num_particles, 3 * math.sqrt(num_particles)))
    if size < _TAIL_MIN or num_particles < size + 1:
        return torch.full(log_w.shape[1:], math.inf, dtype=torch.float64, device=log_w.device)
    flat = log_w.double().reshape(num_particles, -1)
    largest = flat.topk(size + 1, dim=0).values.flip(0)  # ascending
    weights = (largest - largest[-1]).exp()
    exceedances = weights[1:] - weights[0]  # (M, n)
    equal = largest - largest[0] <= _FLAT
    tied = equal[_quartile(size)]
    k, _ = fit_generalized_pareto(torch.where(tied, weights[1:], exceedances))
    few = (~equal).sum(0) < _TAIL_MIN
    heavy = exceedances.sum(0) > _FLAT * (flat - largest[-1]).exp().sum(0)
    k = torch.where(tied & few & heavy, math.inf, k)
    k = torch.where(exceedances[-1] <= _FLAT, -math.inf, k)
    k = torch.where(k.isnan(), math.inf, k)
    return k.reshape(log_w.shape[1:])


def fit_generalized_pareto(exceedances: Float[Tensor, "M n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    r"""Fit the shape k and scale :math:`\sigma` of generalised Pareto draws, each column separately.

    The estimate is the posterior mean of Zhang & Stephens under their data-dependent prior, in one pass without
    iterations. k is then shrunk towards 1/2 with the weight of ten draws, so it is biased for small M. For k > 1 the
    estimate rests on ratios of very large numbers and says only that k is large.

    Args:
        exceedances: Draws of at least zero, in ascending order.

    Returns:
        k and :math:`\sigma`, (n,) each, float64.

    Reference:
        A New and Efficient Estimation Method for the Generalized Pareto Distribution (Zhang & Stephens, 2009),
        https://doi.org/10.1198/tech.2009.08017

    Example:
        >>> u = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
        >>> k, sigma = fit_generalized_pareto(2.0 * ((1 - u) ** -0.3 - 1) / 0.3)  # quantiles at k = 0.3, sigma = 2
        >>> round(k.item(), 1), round(sigma.item(), 1)
        (0.3, 2.0)
    """
    y = exceedances.double()
    size = len(y)
    num_nodes = 30 + math.isqrt(size)
    j = torch.arange(1, num_nodes + 1, dtype=torch.float64, device=y.device).unsqueeze(-1)
    largest = y[-1].clamp_min(torch.finfo(torch.float64).tiny)
    quartile = torch.maximum(y[_quartile(size) - 1], _FALLBACK * largest)
    theta = 1 / largest + (1 - (num_nodes / (j - 0.5)).sqrt()) / (3 * quartile)  # (nodes, n)
    k = torch.log1p(-theta.unsqueeze(1) * y).mean(1)  # (nodes, n)
    log_lik = size * ((-theta / k).log() - k - 1)
    theta = (theta * log_lik.softmax(0)).sum(0)
    k = torch.log1p(-theta * y).mean(0)
    sigma = -k / theta
    return (size * k + _PRIOR_WEIGHT * _PRIOR_K) / (size + _PRIOR_WEIGHT), sigma


def _quartile(size: int) -> int:
    """Return the rank of the first quartile among `size` values in ascending order, from 1."""
    return int(size / 4 + 0.5)


def judged(k: Tensor, standard_error: Tensor, count: int) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Return the error of a mean of `count` draws, infinite where k is too large, and the details that say so."""
    unreliable = k > k_threshold(count)
    number = float(unreliable.sum())
    details: dict[str, Tensor | float] = {"pareto_k": k, "standard_error": standard_error, "num_unreliable": number}
    return torch.where(unreliable, math.inf, standard_error), details


def k_threshold(num_particles: int) -> float:
    r"""Return the largest k for which K weights are enough: :math:`\min(1 - 1/\log_{10} K, 0.7)`.

    Above it the error of the mean falls so slowly with K that neither the estimate nor its standard error means much.
    The threshold is 0.7 from K = 2155 on.

    Args:
        num_particles: K.

    Reference:
        Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024), section 3.2.4,
        https://arxiv.org/abs/1507.02646

    Example:
        >>> k_threshold(100), k_threshold(5000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(num_particles), 0.7) if num_particles > 1 else -math.inf
