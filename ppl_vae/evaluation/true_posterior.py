r"""The true posterior p(z|x) of a model with few latent dimensions: moments, KL from q, and density on a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae._distributions import unwrapped
from ppl_vae._home import at_home
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.evidence.densities import VAEDensities, pair_scores
from ppl_vae.evidence.grids import bounds, support
from ppl_vae.evidence.interpolation import CellRule
from ppl_vae.evidence.quadrature import integrate, quadrature
from ppl_vae.evidence.results import Evidence

if TYPE_CHECKING:
    from jaxtyping import Float

_REACH = 6.0  # half the side of the box around q, in standard deviations of q: beyond it, a normal has 2e-9 per axis
_NODES = {1: (8, 12, 18, 28, 42, 64), 2: (6, 10, 16, 24, 36), 3: (4, 6, 9, 14)}
_FINE = {1: 48, 2: 32, 3: 20}


@dataclass(frozen=True)
class PosteriorMoments:
    """The mean and covariance of the true posterior p(z|x), and the evidence computed with them.

    Attributes:
        mean: The mean, float64.
        covariance: The covariance, float64.
        evidence: log p(x) with its error.
    """

    mean: Float[Tensor, "n d"]
    covariance: Float[Tensor, "n d d"]
    evidence: Evidence


@at_home("x", float64=True)
def posterior_moments(
    densities: VAEDensities,
    x: Float[Tensor, " n *x_shape"],
    *,
    tolerance: float = 1e-3,
    max_latents: int = 5_000_000,
    max_bytes: int = 2**30,
    seed: int = 0,
) -> PosteriorMoments:
    r"""Return mean and covariance of the true posterior p(z|x) = p(x, z) / p(x), by `quadrature` and at its cost.

    **Wrong** as summaries where the posterior has several modes: the mean may then lie where the posterior has no mass.
    The error of the moments is not bounded. Where `evidence.error` is :math:`\epsilon`, mass of about :math:`\epsilon`
    may be misplaced, and at worst the mean of z is off by about :math:`\epsilon` times the extent of the prior.

    Args:
        densities: The model; its latent must have at most three dimensions.
        x: Data.
        tolerance: The error of log p(x) aimed at, nats per datum.
        max_latents: Stop halving once so many latents have been decoded.
        max_bytes: About how much memory to use beyond the data and the model.
        seed: The seed of the draws that give the prior's scale.

    Raises:
        ValueError: As `quadrature`.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(1), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> posterior_moments(VAEDensities(vae), vae.sample(3, mean=False)).covariance.shape
        torch.Size([3, 1, 1])
    """
    return PosteriorMoments(*integrate(densities, x, tolerance, max_latents, max_bytes, seed))


@dataclass(frozen=True)
class Divergence:
    r"""KL(q(z|x) || p(z|x)) of n data, nats.

    Attributes:
        kl: The divergence, float64; infinite where q has mass outside the prior's support.
        error: The possible error of `kl`, float64.
    """

    kl: Float[Tensor, " n"]
    error: Float[Tensor, " n"]


@at_home("x", float64=True)
@torch.no_grad()
def kl_to_posterior(
    densities: VAEDensities,
    x: Float[Tensor, " n *x_shape"],
    evidence: Evidence,
    *,
    tolerance: float = 1e-3,
    max_bytes: int = 2**30,
    seed: int = 0,
) -> Divergence:
    r"""Return the gap of the bound, the KL of q(z|x) from the true posterior, by quadrature under q.

    .. math::
        \mathrm{KL}(q(z|x) \,\|\, p(z|x)) = \log p(x) + \int q(z|x) \big( \log q(z|x) - \log p(x, z) \big) \, dz.

    The integral is over q's own mass, which may lie where the posterior has none. On a box of six standard deviations
    around q's mean, or to the end of its support, log p(x|z) is interpolated at p nodes along each axis; q and the
    prior are exact at many more nodes. p grows for the data whose integral still changes. **Slow**: latents are decoded
    for each datum, 36 to 1300 of them for each p in two dimensions. **Wrong** for a q with heavy tails or far modes:
    for q's mass beyond the box, `error` assumes the largest value of the integrand inside.

    Args:
        densities: The model; its latent must have at most three dimensions.
        x: Data.
        evidence: log p(x) of the same data.
        tolerance: The error aimed at, nats per datum.
        max_bytes: About how much memory to use beyond the data and the model.
        seed: The seed of draws from a q that gives no mean; the global random state is left alone.

    Returns:
        The divergence. `error` is the sum of three terms: twice the change at the last growth of p, or half the change
        before it if that is larger; the possible contribution of q's mass beyond the box; and the error of the
        evidence.

    Raises:
        ValueError: If the evidence is of other data, or the latent has more than three dimensions.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(1), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> densities, x = VAEDensities(vae), vae.sample(3, mean=False)
        >>> bool((kl_to_posterior(densities, x, quadrature(densities, x)).kl > 0).all())
        True
    """
    check_positive(tolerance, "tolerance")
    d = densities.latent_dim
    if d > 3:
        raise ValueError(f"kl_to_posterior was given a latent of {d} dimensions; expected at most 3")
    evidence.require_of(x, "kl_to_posterior")
    cross = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    error, last = torch.full_like(cross, math.inf), torch.full_like(cross, math.inf)
    left = torch.arange(len(x), device=x.device)
    with seeded(seed):
        for num_nodes in _NODES[d]:
            rule = CellRule(d, num_nodes, _FINE[d], torch.zeros(1, dtype=torch.float64, device=x.device))
            latents = len(rule.nodes) * (x[0].numel() + 64) + 4 * len(rule.fine)
            parts = [_cross(densities, x[rows], rule) for rows in left.split(max(1, max_bytes // 8 // (16 * latents)))]
            value, missed = (torch.cat(part) for part in zip(*parts, strict=True))
            change = torch.where(value.isinf(), 0.0, (value - cross[left]).abs())
            # two rules may agree by chance (for one digit in 500 both were wrong), so a third one counts too
            doubt = 2 * torch.maximum(change, torch.where(value.isinf(), 0.0, last[left] / 4))
            cross[left], last[left], error[left] = value, change, doubt + missed
            left = left[doubt > tolerance]
            if not len(left):
                break
    return Divergence(evidence.log_evidence + cross, evidence.error + error)


def _cross(densities: VAEDensities, x: Tensor, rule: CellRule) -> tuple[Tensor, Tensor]:
    """Return E_q[log q(z|x) - log p(x, z)] on the box around q, and what q's mass beyond it may add; each (n,)."""
    q, prior = densities.posterior(x), densities.prior()
    centre, factor = _box(q)
    to_z = lambda unit: centre + torch.einsum("nij,kj->kni", factor, unit)  # noqa: E731
    nodes = to_z(rule.nodes)
    f = densities.log_likelihood(x, nodes.to(x.dtype)).double().T @ rule.to_fine  # (n, m^d)
    z = to_z(rule.fine)
    log_volume = len(rule.nodes[0]) * math.log(2) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_q = _log_density(q, z.to(x.dtype), centre.to(x.dtype)).T
    log_prior = _log_density(prior, z.to(x.dtype), prior.sample().to(x)).T
    weight = (log_q + rule.log_weights + log_volume[:, None]).exp()
    weight = torch.where(weight > 1e-12, weight, 0.0)
    mass = weight.sum(-1)
    height = torch.where(weight > 0, log_q - f - log_prior, 0.0)
    value = (weight * height).sum(-1) / mass
    return value, (mass - 1).abs() * (1 + height.abs().amax(-1))


def _log_density(distribution: Any, z: Tensor, valid: Tensor) -> Tensor:
    """Return the log-density at z, float64, minus infinity outside the support, where `valid` is scored instead."""
    inside = support(distribution).check(z)
    return torch.where(inside, distribution.log_prob(torch.where(inside[..., None], z, valid)).double(), -math.inf)


def _box(q: Any) -> tuple[Tensor, Tensor]:
    """Return the centre of q's mass, (n, d), and the factor that takes [-1, 1]^d to it, (n, d, d), float64.

    Where the axes are those of z, the box ends at q's support: a density that ends at a bound is no polynomial across.
    """
    base = unwrapped(q)
    if hasattr(base, "scale_tril"):
        return base.loc.double(), _REACH * base.scale_tril.double()
    try:
        mean, scale = q.mean.double(), q.stddev.double()
    except NotImplementedError:
        samples = q.sample((2000,)).double()
        mean, scale = samples.mean(0), samples.std(0)
    lower, upper = bounds(q, mean[0])
    low, high = torch.maximum(mean - _REACH * scale, lower), torch.minimum(mean + _REACH * scale, upper)
    return (low + high) / 2, torch.diag_embed((high - low) / 2)


@at_home("x", float64=True)
@torch.no_grad()
def log_posterior_grid(
    densities: VAEDensities,
    x: Float[Tensor, " n *x_shape"],
    bounds: Sequence[tuple[float, float]],
    size: int,
    *,
    log_evidence: Float[Tensor, " n"] | None = None,
    max_bytes: int = 2**30,
) -> Float[Tensor, "n ..."]:
    """Return the log density of the true posterior, log p(z|x), on a regular grid of a 1-D or 2-D latent, for pictures.

    **Wrong** as a basis of integrals: the caller chooses the spacing, and a posterior narrower than this falls between
    the nodes. Choose `bounds` by `posterior_moments`, four standard deviations either way.

    Args:
        densities: The model, with a latent of one or two dimensions.
        x: Data.
        bounds: The lowest and the highest value of each latent; the nodes include both.
        size: The number of nodes along each axis.
        log_evidence: log p(x); by default computed by `quadrature`.
        max_bytes: About how much memory to use at once beyond the data, the model and the result.

    Returns:
        (n, size, size), float64: the first latent along dim 1, the second along dim 2; (n, size) for one latent.

    Raises:
        ValueError: If the latent has more than two dimensions, or the bounds are not a rising pair for each.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> log_p = log_posterior_grid(VAEDensities(vae), vae.sample(1, mean=False), [(-5, 5), (-5, 5)], size=101)
        >>> bool((log_p.exp().sum() * 0.1**2 - 1).abs() < 1e-3)
        True
    """
    check_positive_int(size, "size")
    d = densities.latent_dim
    if d > 2:
        raise ValueError(f"log_posterior_grid was given a latent of {d} dimensions; expected 1 or 2")
    if len(bounds) != d or not all(len(pair) == 2 and pair[0] < pair[1] for pair in bounds):
        raise ValueError(f"log_posterior_grid: bounds are {bounds!r}; expected {d} pairs (low, high), one a latent")
    if log_evidence is None:
        log_evidence = quadrature(densities, x, max_bytes=max_bytes).log_evidence
    prior = densities.prior()
    like = prior.sample()
    lines = [torch.linspace(low, high, size, dtype=like.dtype, device=like.device) for low, high in bounds]
    z = torch.cartesian_prod(*lines).reshape(-1, d)
    log_prior = _log_density(prior, z, like)
    result = torch.empty(len(x), len(z), dtype=torch.float64, device=x.device)
    for rows, nodes, log_lik in pair_scores(densities, x, z, max_bytes):
        result[rows[:, None], nodes] = log_lik + log_prior[nodes]
    return (result - log_evidence[:, None]).unflatten(-1, (size,) * d)
