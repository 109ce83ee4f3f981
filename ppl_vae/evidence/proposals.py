r"""Proposals for importance sampling of p(z|x), fitted to each datum so that they reach modes that q(z|x) misses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ppl_vae._draws import classes
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_positive_int
from ppl_vae.evidence.blocks import MAX_BYTES, capacity, particle_blocks, row_blocks
from ppl_vae.evidence.densities import Densities, VAEDensities, check_region, log_density
from ppl_vae.evidence.mixtures import StudentMixture, fit_student_mixture
from ppl_vae.evidence.pareto import check_numbers, effective_sample_size

_WIDENED = (1.5, 4.0)  # in standard deviations of q, which is more often too narrow than too wide
_MOMENT_DRAWS = 256


class Proposal(Protocol):
    """A proposal for n data; any Pyro or torch distribution of batch shape (n,) and event shape (d,) is one."""

    def sample(self, sample_shape: torch.Size) -> Tensor:
        """Draw latents, (K, n, d) for a `sample_shape` of (K,)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of latents (K, n, d), as (K, n)."""


def log_joint(densities: Densities, x: Tensor, z: Tensor, max_bytes: int = MAX_BYTES) -> Tensor:
    """Return log p(x, z_k) for latents of shape (K, n, d), as (K, n), float64, decoded in pieces of bounded memory.

    Args:
        densities: The model.
        x: Data, (n, *x_shape).
        z: Latents. The result is -inf where the prior's log-density is, as outside its support.
        max_bytes: About the most memory that decoded data take at once.

    Raises:
        ValueError: If a log-density is not a number.
    """
    num_particles, num_data = z.shape[:2]
    log_p = torch.empty(num_particles, num_data, dtype=torch.float64, device=z.device)
    for rows in row_blocks(x, max_bytes):
        for k in particle_blocks(num_particles, x[rows], max_bytes):
            log_prior = densities.log_prior(x[rows], z[k, rows]).double()
            log_lik = densities.log_likelihood(x[rows], z[k, rows])  # of any value, or NaN, outside the support
            log_p[k, rows] = log_prior + torch.where(log_prior.isneginf(), 0.0, log_lik)
    check_numbers(log_p, "the values of log p(x, z)")
    return log_p


@dataclass(frozen=True)
class DefensiveMixture:
    r"""A mixture of q(z|x), the prior and a fitted mixture, as one proposal for each of n data.

    .. math::
        m(z|x) = \alpha_q\, q(z|x) + \alpha_p\, p(z) + \alpha_f \sum_c \pi_c\, t_\nu(z; \mu_c, \Sigma_c).

    The denominator of a weight is the whole density. So a weight is at most p(x|z) over the prior's share, and bounded
    whatever q and the fit are.

    Attributes:
        densities: The model, for p(z).
        x: The data, (n, *x_shape).
        posterior: q(z|x).
        fitted: The mixture.
        log_share: The logs of the three shares of each datum, (3, n): q, prior, fitted mixture.
    """

    densities: Densities
    x: Tensor
    posterior: Any
    fitted: StudentMixture
    log_share: Tensor

    def sample(self, sample_shape: torch.Size) -> Tensor:
        """Draw latents, (K, n, d), in the posterior's precision."""
        (size,) = sample_shape
        z = self.posterior.sample(sample_shape)
        from_prior = self.densities.prior_sample(self.x, size).to(z.dtype)
        from_fit = self.fitted.sample(sample_shape).to(z.dtype)
        part = classes(self.log_share.exp().T, size).T.unsqueeze(-1)  # (K, n, 1)
        return torch.where(part == 0, z, torch.where(part == 1, from_prior, from_fit))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density, (K, n), float64."""
        return (self.log_share.unsqueeze(1) + self.log_parts(z)).logsumexp(0)

    def log_parts(self, z: Tensor) -> Tensor:
        """Return the log-densities of q, prior and fit, (3, K, n), float64."""
        log_q = log_density(self.posterior, z).double()
        log_prior = self.densities.log_prior(self.x, z).double()
        return torch.stack([log_q, log_prior, self.fitted.log_prob(z)])


@dataclass(frozen=True)
class Defensive:
    r"""A proposal adapted to each datum by population Monte Carlo, which finds modes that q(z|x) misses.

    The adaptation starts with latents from the prior (for a `VAE` they are decoded once and scored against all data)
    and from a widened q, weighted by p(x, z) over the density they were drawn from. A mixture of Student t densities is
    fitted to them; draws from it are weighted and fitted again. Weights are tempered to :math:`w^\beta`, with the
    largest :math:`\beta \le 1` that leaves `target_ess` effective draws, so that a spike far narrower than the distance
    between draws is approached in steps. The shares of q, prior and fit minimise KL(p(z|x) || m) on draws that the fit
    has not seen, subject to floors. No draw of the adaptation enters the final estimate. Its draws are fresh, and it is
    unbiased for p(x) whatever was fitted.

    There is no guarantee of finding every mode: a mode is found if a prior draw comes near enough to feel its slope.
    In two dimensions, against a broad mode that q covers, the defaults found isolated spikes of width 0.01 up to three
    prior standard deviations out, and none of width 0.003. Prior draws are useless in many dimensions (beyond about
    8). There the proposal still has a q with heavier tails, and a share of q of at least `posterior_share`, so at worst
    K draws are worth that share of K draws from q.

    A latent that is discrete, or lies on a sphere or simplex, is refused: the fitted mixture is a density in space.

    The cost is at most ``num_rounds + 1`` times `num_draws` decoded latents per datum, besides the estimate's own K.

    Args:
        densities: The model.
        num_prior_draws: Latents from the prior at the start of the search. A `VAE` shares them between data; any other
            model draws at most `num_draws` for each datum.
        num_draws: Latents per round and datum.
        num_rounds: The most rounds of drawing and fitting.
        num_components: The most components of the fitted mixture.
        target_ess: Effective draws below which weights are tempered.
        posterior_share: The least share of q.
        prior_share: The least share of the prior.
        max_bytes: About the most memory that decoded data take at once.

    Reference:
        Population Monte Carlo (Cappé, Guillin, Marin & Robert, 2004), https://doi.org/10.1198/106186004X12803;
        Adaptive Importance Sampling in General Mixture Classes (Cappé, Douc, Guillin, Marin & Robert, 2008),
        https://arxiv.org/abs/0710.4242; Safe and Effective Importance Sampling (Owen & Zhou, 2000),
        https://doi.org/10.1080/01621459.2000.10473909

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> propose = Defensive(VAEDensities(vae), num_prior_draws=200, num_draws=100)
        >>> with torch.no_grad():
        ...     proposal = propose(vae.sample(5, mean=False))
        >>> proposal.sample((7,)).shape
        torch.Size([7, 5, 2])
    """

    densities: Densities
    num_prior_draws: int = 2**15
    num_draws: int = 1000
    num_rounds: int = 4
    num_components: int = 8
    target_ess: float = 40.0
    posterior_share: float = 0.2
    prior_share: float = 0.05
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        for name in ("num_prior_draws", "num_draws", "num_rounds", "num_components"):
            check_positive_int(getattr(self, name), f"proposal Defensive: {name}")
        if not (self.posterior_share > 0 and self.prior_share > 0 and self.posterior_share + self.prior_share < 1):
            raise ValueError(
                f"proposal Defensive: posterior_share is {self.posterior_share} and prior_share {self.prior_share}; "
                "expected both above zero and their sum below one, such as 0.2 and 0.05"
            )

    def __call__(self, x: Tensor) -> DefensiveMixture:
        """Return the proposal for data (n, *x_shape)."""
        with torch.no_grad():
            q = self.densities.posterior(x)
            check_region(q, "proposal Defensive")
            mean, covariance = _moments(q)
            z, log_w = self._open(x, mean, covariance)
            variance = covariance.diagonal(dim1=-2, dim2=-1)
            count = min(self.num_components, max(1, self.num_draws // (10 * z.shape[-1])))
            shares = [self.posterior_share, self.prior_share, 1 - self.posterior_share - self.prior_share]
            floors = torch.tensor(shares, dtype=torch.float64, device=z.device)[:, None].expand(3, len(x))
            for _ in range(self.num_rounds):
                log_w, enough = _tempered(log_w, self.target_ess, 0.25 * self.num_draws)
                fitted = fit_student_mixture(*_heaviest(z, log_w, self.num_draws), variance, count)
                mixture = DefensiveMixture(self.densities, x, q, fitted, floors.log())
                z = mixture.sample(torch.Size([self.num_draws]))
                log_parts = mixture.log_parts(z)
                log_m = (mixture.log_share.unsqueeze(1) + log_parts).logsumexp(0)
                log_w = log_joint(self.densities, x, z, self.max_bytes) - log_m
                if enough:
                    break
            # the fit has not seen these draws, so they judge its share fairly
            share = _best_share(log_parts, log_w, floors.log())
            share[:2] = torch.maximum(share[:2], floors[:2])
            return DefensiveMixture(self.densities, x, q, fitted, (share / share.sum(0)).log())

    def _open(self, x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return draws from the prior and from a widened q, with log-weights against the mixture of both."""
        widths = torch.tensor(_WIDENED, dtype=torch.float64, device=mean.device)
        tril = torch.linalg.cholesky(covariance)
        wide = StudentMixture(
            mean.new_full((len(widths), len(x)), -math.log(len(widths))),
            mean.expand(len(widths), *mean.shape),
            widths[:, None, None, None] * tril,
        )
        z = wide.sample(torch.Size([self.num_draws])).to(x.dtype)
        log_p = log_joint(self.densities, x, z, self.max_bytes)
        if isinstance(self.densities, VAEDensities):
            shared, log_joint_at = self._shared
            z_prior, log_p_prior = shared.unsqueeze(1).expand(-1, len(x), -1), log_joint_at(x)
        else:
            z_prior = self.densities.prior_sample(x, min(self.num_prior_draws, self.num_draws))
            log_p_prior = log_joint(self.densities, x, z_prior, self.max_bytes)
        z, log_p = torch.cat([z, z_prior.to(z.dtype)]), torch.cat([log_p, log_p_prior])
        log_w = torch.empty_like(log_p)
        for k in range(0, len(z), self.num_draws):  # in pieces, as whitened draws take memory too
            piece = slice(k, k + self.num_draws)
            from_wide = wide.log_prob(z[piece]) + math.log(self.num_draws)
            from_prior = self.densities.log_prior(x, z[piece]).double() + math.log(len(z_prior))
            log_w[piece] = log_p[piece] - torch.logaddexp(from_wide, from_prior)
        return z, log_w

    @cached_property
    def _shared(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Prior draws (G, d), decoded once for all data, and a function from data to log p(x, z) at them, (G, n)."""
        densities = cast(VAEDensities, self.densities)
        pixels = math.prod(densities.vae.x_shape)
        with seeded(0):
            z = densities.prior().sample((1,))
            held = max(pixels, 64 * densities.latent_dim) * z.element_size()  # decoded, or copied for 64 data
            size = max(1, min(self.num_prior_draws, self.max_bytes // held))
            z = densities.prior().sample((size,))
        pairs = capacity(z.new_empty(1, pixels), self.max_bytes)
        at_once = min(1024, pairs)
        scores = [densities.likelihood_at(piece) for piece in z.split(at_once)]
        log_prior = densities.prior().log_prob(z).double()

        def log_joint_at(x: Tensor) -> Tensor:
            rows = x.split(max(1, pairs // at_once))
            log_lik = torch.cat([torch.cat([score(part) for score in scores], -1) for part in rows])
            return log_prior.unsqueeze(-1) + log_lik.T.double()

        return z, log_joint_at


def _moments(q: Any) -> tuple[Tensor, Tensor]:
    """Return the mean (n, d) and covariance (n, d, d) of q, float64, from draws, which any q has."""
    z = q.sample(torch.Size([_MOMENT_DRAWS])).double()
    mean = z.mean(0)
    centred = (z - mean).permute(1, 2, 0)  # (n, d, K)
    covariance = centred @ centred.mT / (_MOMENT_DRAWS - 1)
    floor = 1e-12 * (1 + mean.square())  # where q is almost a point
    return mean, 0.9 * covariance + torch.diag_embed(0.1 * covariance.diagonal(dim1=-2, dim2=-1) + floor)


def _tempered(log_w: Tensor, target: float, enough: float) -> tuple[Tensor, bool]:
    """Return log-weights times the largest power up to 1 that leaves `target` draws; and whether all had `enough`."""
    low = torch.zeros_like(log_w[0])
    high = torch.ones_like(low)
    ess = effective_sample_size(log_w)
    for _ in range(30):
        middle = 0.5 * (low + high)
        fine = effective_sample_size(middle * log_w) >= target
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    power = torch.where(ess >= target, 1.0, low)
    return power * log_w, bool((ess >= enough).all())


def _heaviest(z: Tensor, log_w: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the heaviest draws of each datum: at most `count`, fewer if they hold all but 1e-3 of the weight."""
    log_w, index = log_w.topk(min(count, len(log_w)), dim=0)
    covered = log_w.softmax(0).cumsum(0) < 1 - 1e-3
    count = min(len(log_w), int(covered.sum(0).max()) + 1)
    index = index[:count]
    return z.gather(0, index.unsqueeze(-1).expand(-1, -1, z.shape[-1])), log_w[:count]


def _best_share(log_parts: Tensor, log_w: Tensor, log_share: Tensor, num_steps: int = 20) -> Tensor:
    """Return the shares (3, n) that minimise KL(p(z|x) || m) on weighted draws: Cappé et al., 2008, equation 8."""
    log_w = log_w.log_softmax(0)
    for _ in range(num_steps):
        responsibility = (log_share.unsqueeze(1) + log_parts).log_softmax(0)
        log_share = (responsibility + log_w).logsumexp(1)
    return log_share.exp()
