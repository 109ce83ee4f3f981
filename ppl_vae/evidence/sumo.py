r"""Log p(x) by Russian roulette over the number of particles: SUMO."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_vae._home import at_home
from ppl_vae._machine import check_fits
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._validation import check_positive_int, check_rows
from ppl_vae.evidence.blocks import MAX_BYTES
from ppl_vae.evidence.densities import Densities, Model
from ppl_vae.evidence.importance import ROWS, weigher
from ppl_vae.evidence.pareto import check_numbers, judged, pareto_k
from ppl_vae.evidence.proposals import Proposal
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives.losses import Program

_KEPT = 0.9  # the share of draws that goes on at each k beyond `alpha`


@at_home("data", float64=True)
def sumo(
    source: Model | Densities | Program,
    *data: Tensor,
    repetitions: int = 400,
    minimum: int = 5,
    largest: int = 1000,
    alpha: int | None = None,
    proposal: str | Callable[[Tensor], Proposal] = "posterior",
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    max_plate_nesting: int = 1,
) -> Evidence:
    r"""Estimate log p(x) by the importance-weighted bound of a random number of particles (SUMO).

    .. math::
        S = \hat L_m + \sum_{k=1}^{\mathcal K} \frac{\hat L_{m+k} - \hat L_{m+k-1}}{P(\mathcal K \ge k)}, \qquad
        P(\mathcal K \ge k) = \frac1k \ \text{for } k \le N, \text{ else } 0,

    with :math:`\hat L_K` the log of the mean of the first K weights. The sum telescopes in expectation, so S is
    unbiased for :math:`\mathbb E\, \hat L_{m+N}`. That is below log p(x) by about :math:`\mathrm{Var}(w) / (2 (m + N)
    p(x)^2)`, for the mean cost of :math:`m + \log N + 0.6` particles. The result is the mean of R independent S.

    **Its variance is large, and has no bound in N.** The differences are of order 1/k, so the variance of S grows as
    log N even for light weights, and heavy-tailed weights make it infinite. The paper's tail (``alpha=80``), 1/k up to
    alpha and :math:`0.9^{k - \alpha} / \alpha` beyond, makes it grow exponentially with N. Without an N the variance is
    infinite, and so is even the mean of the absolute value: a repetition that ends at k has the probability :math:`0.1
    \cdot 0.9^{k - \alpha} / \alpha` and a value of the order of :math:`0.9^{\alpha - k} \alpha / k`. Large k are hardly
    ever met, so that R repetitions look like :math:`\hat L_{m+100}`, and nothing shows it. `error` is the standard
    error over repetitions, inf where Pareto k of their distances from the median is above `k_threshold`. **At the same
    cost `importance` is nearer to log p(x)** where its weights are light: its bias falls as 1/K. This is for where a
    bias cannot be had, as where an average over many data has little other noise.

    Args:
        source: A `VAE`, the densities of one, or a ``(model, guide)`` pair, as for `importance`.
        *data: The arguments of the program.
        repetitions: R, at least 2; below 21 Pareto k and the error are inf.
        minimum: m, the number of particles that every repetition has.
        largest: N, the largest number of further particles.
        alpha: Where the paper's tail begins (80 there); None for 1/k to the end.
        proposal: As for `importance`.
        seed: The seed of all draws; the global random state is left alone.
        max_bytes: About the most memory that decoded data take at once.
        max_plate_nesting: The plate nesting of a pair; see `sample_log_weights`.

    Returns:
        Evidence of method ``"sumo"``, kind ``"lower"``. Details, (n,) each: ``"pareto_k"``; ``"standard_error"``,
        whatever k is; ``"elbo"``, the mean of the log-weights; ``"particles"``, the mean number of a repetition.
        ``"num_unreliable"`` is a number: how many data have k above `k_threshold`.

    Raises:
        ValueError: If the arguments do not fit, or a weight is zero or not a number: a weight of zero makes the
            expectation of :math:`\hat L_m` minus infinity.

    Reference:
        SUMO: Unbiased Estimation of Log Marginal Probability for Latent Variable Models (Luo et al., 2020),
        https://arxiv.org/abs/2004.00353

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> evidence = sumo(vae, vae.sample(5, mean=False), repetitions=30, largest=20)
        >>> evidence.method, evidence.details["pareto_k"].shape
        ('sumo', torch.Size([5]))
    """
    counts = {"repetitions": repetitions, "minimum": minimum, "largest": largest, "max_bytes": max_bytes}
    for name, value in (counts if alpha is None else counts | {"alpha": alpha}).items():
        check_positive_int(value, f"sumo: {name}")
    if repetitions < 2:
        raise ValueError("sumo: repetitions is 1; expected at least 2, as the error comes from their spread")
    check_rows(data, "sumo")
    weights, modules = weigher(source, data, proposal, max_bytes, max_plate_nesting)
    reach = survival(largest, alpha).to(data[0].device)
    parts = []
    with torch.no_grad(), seeded(seed), evaluation_mode(*modules):
        for block in zip(*(d.split(ROWS) for d in data), strict=True):
            u = torch.rand(repetitions, len(block[0]), dtype=torch.float64, device=reach.device)
            sizes = minimum + (reach[:, None, None] > u).sum(0)  # (R, n)
            count = int(sizes.sum(0).max())
            check_fits(2 * count * len(block[0]), f"{count} particles", "repetitions", data[0].device)
            log_w = torch.cat(list(weights(count, *block)))
            check_numbers(log_w, "the log-weights")
            if zero := int((log_w == -torch.inf).any(0).sum()):
                raise ValueError(
                    f"sumo: {zero} of {log_w.shape[1]} data have draws of weight zero, which make the expectation of "
                    "the bound minus infinity; use importance, or a proposal inside the prior's support"
                )
            values = roulette(log_w, sizes, minimum, reach)
            k = pareto_k((values - values.median(0).values).abs().log())
            error, details = judged(k, values.std(0) / math.sqrt(repetitions), repetitions)
            details |= {"elbo": log_w.mean(0), "particles": sizes.double().mean(0)}
            parts.append(Evidence(values.mean(0), error, "sumo", "lower", details))
    return Evidence.joined(parts)


def survival(largest: int, alpha: int | None = None) -> Tensor:
    r"""Return :math:`P(\mathcal K \ge k)` for k = 1, ..., largest, float64.

    Example:
        >>> survival(4), survival(4, alpha=2)[2:]
        (tensor([1.0000, 0.5000, 0.3333, 0.2500], dtype=torch.float64), tensor([0.4500, 0.4050], dtype=torch.float64))
    """
    k = torch.arange(1, largest + 1, dtype=torch.float64)
    return 1 / k if alpha is None else torch.where(k < alpha, 1 / k, _KEPT ** (k - alpha) / alpha)


def roulette(log_w: Tensor, sizes: Tensor, minimum: int, reach: Tensor) -> Tensor:
    """Return the estimates S, (R, n): each takes the next of the log-weights (N, n), as many as its size says.

    Args:
        log_w: Log-weights, (N, n), float64; N at least the sum of the sizes.
        sizes: The number of particles of each repetition, (R, n), from `minimum` to `minimum` plus ``len(reach)``.
        minimum: m.
        reach: The probability of at least k further particles, (largest,).
    """
    first, found = sizes.cumsum(0) - sizes, []
    for start, size in zip(first, sizes, strict=True):
        j = torch.arange(int(size.max()), device=log_w.device).unsqueeze(-1)
        own = log_w.gather(0, (start + j).clamp(max=len(log_w) - 1))
        bounds = own.logcumsumexp(0) - (j + 1).double().log()
        steps = bounds[minimum:] - bounds[minimum - 1 : -1]
        steps = steps / reach[: len(steps), None]
        found.append(bounds[minimum - 1] + torch.where(j[minimum:] < size, steps, 0.0).sum(0))
    return torch.stack(found)
