r"""The ELBO of each datum, with rate and distortion, by Gauss-Hermite nodes under q or by Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ppl_vae._distributions import describe
from ppl_vae._home import at_home
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._validation import check_choice, check_positive, check_positive_int
from ppl_vae.evidence.blocks import MAX_BYTES, particle_blocks, row_blocks
from ppl_vae.evidence.conditional import found_by_condition, many_conditions
from ppl_vae.evidence.densities import Densities, Model
from ppl_vae.evidence.normals import Normals, tensor_nodes
from ppl_vae.evidence.rows import Rows
from ppl_vae.objectives.sampling import sample_log_weights
from ppl_vae.programs import SemiSupervisedVAE

if TYPE_CHECKING:
    from jaxtyping import Float

_DRAWS = 1000  # of a bound by Monte Carlo
Method = Literal["auto", "gauss-hermite", "monte carlo"]


@dataclass(frozen=True)
class Bound(Rows):
    r"""The ELBO of n data and its two parts, nats, float64.

    .. math::
        \mathcal L(x) = -D(x) - R(x), \qquad D = -\mathbb E_{q(z|x)}[\log p(x|z)], \qquad
        R = \mathrm{KL}(q(z|x) \,\|\, p(z)).

    Attributes:
        elbo: The ELBO.
        rate: R, the KL.
        error: The error of `elbo`: see `gauss_hermite_elbo`, or the standard error of Monte Carlo.
        rate_error: The error of `rate`; zero where the rate has a closed form.
        method: ``"gauss-hermite"`` or ``"monte carlo"``.

    Reference:
        Fixing a Broken ELBO (Alemi et al., 2018), https://arxiv.org/abs/1711.00464

    Example:
        >>> zero = torch.zeros(1).double()
        >>> Bound(zero - 90.0, zero + 20.0, zero, zero, "monte carlo").distortion.item()
        70.0
    """

    elbo: Float[Tensor, " n"]
    rate: Float[Tensor, " n"]
    error: Float[Tensor, " n"]
    rate_error: Float[Tensor, " n"]
    method: str

    @property
    def distortion(self) -> Float[Tensor, " n"]:
        """D, the expected negative log-likelihood."""
        return -(self.elbo + self.rate)


@at_home("x", float64=True)
def elbo(
    densities: Densities,
    x: Float[Tensor, " n *x_shape"],
    *,
    posterior: Normals | None = None,
    method: Method = "auto",
    num_samples: int = 1000,
    tolerance: float = 1e-4,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
) -> Bound:
    r"""Return the ELBO of each datum, by the better of two methods.

    These are Gauss-Hermite nodes (`gauss_hermite_elbo`) for normal posteriors in up to three dimensions, and Monte
    Carlo (`monte_carlo_elbo`) otherwise.

    Args:
        densities: The model, see `densities_of`.
        x: The data.
        posterior: Normals to use instead of q(z|x).
        method: ``"gauss-hermite"`` or ``"monte carlo"`` instead of the choice above.
        num_samples: Monte Carlo draws per datum.
        tolerance: The error that Gauss-Hermite aims at, nats.
        max_bytes: About the most memory that decoded data may take.
        seed: The seed of Monte Carlo; the global random state is left alone.

    Raises:
        ValueError: For an unknown method, or a method that does not apply to this posterior.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(torch.nn.Linear(2, 64)),
        ...           posterior=posteriors.DiagonalNormal(torch.nn.Linear(64, 4)))
        >>> bound = elbo(VAEDensities(vae), torch.zeros(5, 64))
        >>> bound.method, bound.elbo.shape, bool(bound.error.max() < 1e-3)
        ('gauss-hermite', torch.Size([5]), True)
    """
    check_choice(method, get_args(Method), "elbo: method")
    if method == "auto":
        quadrature = densities.latent_dim <= 3 and normals_of(densities, x[:1], posterior) is not None
        method = "gauss-hermite" if quadrature else "monte carlo"
    if method == "gauss-hermite":
        return gauss_hermite_elbo(densities, x, posterior=posterior, tolerance=tolerance, max_bytes=max_bytes)
    return monte_carlo_elbo(densities, x, posterior=posterior, num_samples=num_samples, max_bytes=max_bytes, seed=seed)


@at_home("x", float64=True)
@torch.no_grad()
def gauss_hermite_elbo(
    densities: Densities,
    x: Float[Tensor, " n *x_shape"],
    *,
    posterior: Normals | None = None,
    num_nodes: int = 5,
    max_nodes: int | None = None,
    tolerance: float = 1e-4,
    max_bytes: int = MAX_BYTES,
) -> Bound:
    r"""Return the ELBO of each datum by Gauss-Hermite quadrature under q, without noise and without a fixed grid.

    .. math::
        \mathbb E_{q(z|x)}[f(z)] \approx \sum_k w_k f(\mu + S t_k),

    a tensor product of one-dimensional rules with m nodes each, exact for polynomials of degree up to 2m - 1 in each
    direction. The number of decoded nodes per datum is doubled (at d = 2) until the datum's error is below `tolerance`.
    This error is twice the last change, or half the change before it if that is larger (two rules can agree by chance).
    The reported error adds eight units of rounding of the distortion, which are most of the error in float32 (1e-4 nats
    for binarised MNIST).

    Convergence is geometric for smooth networks (softplus, tanh) under narrow posteriors, and slow, like 1/m, for
    rectifiers, where the error shows it. The rule misses a spike of log p(x|z) between all nodes, but a *log*
    likelihood rarely has spikes; the likelihood does. The cost is m^d decoded data per datum, for at most 3 dimensions.

    Args:
        densities: The model, see `densities_of`.
        x: The data.
        posterior: Normals to use instead of q(z|x).
        num_nodes: The number of nodes per dimension at the start.
        max_nodes: The most nodes per dimension. With these, the error may stay above the tolerance. The default is 100,
            80 and 28 in one, two and three dimensions.
        tolerance: The largest error, nats, without rounding.
        max_bytes: About the most memory that decoded data may take.

    Raises:
        ValueError: If q is not normal, or the latent has more than three dimensions.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(torch.nn.Linear(2, 64)),
        ...           posterior=posteriors.DiagonalNormal(torch.nn.Linear(64, 4)))
        >>> x, densities = torch.zeros(5, 64), VAEDensities(vae)
        >>> exact, sampled = gauss_hermite_elbo(densities, x), monte_carlo_elbo(densities, x)
        >>> bool(((exact.elbo - sampled.elbo).abs() < 5 * sampled.error + 1e-3).all())
        True
    """
    q, d = normals_of(densities, x, posterior), densities.latent_dim
    if q is None or d > 3:
        raise ValueError(
            f"Gauss-Hermite nodes need a normal posterior of at most 3 dimensions; this one is "
            f"{describe(densities.posterior(x[:1]))} of {d}; use monte_carlo_elbo"
        )
    check_positive_int(num_nodes, "gauss_hermite_elbo: num_nodes")
    check_positive(tolerance, "gauss_hermite_elbo: tolerance")
    max_nodes = (100, 80, 28)[d - 1] if max_nodes is None else max_nodes
    kl, entropy = closed_form_kl(densities, q), q.entropy()
    log_lik, log_prior = _expectations(densities, x, q, num_nodes, kl is None, max_bytes)
    error, rate_error = torch.full_like(log_lik, torch.inf), torch.zeros_like(log_lik)
    before = torch.zeros_like(log_lik)
    pending, nodes = torch.arange(len(x), device=x.device), num_nodes
    rounding = 8 * torch.finfo(q.loc.dtype).eps
    first = True
    while len(pending) and nodes < max_nodes:
        nodes = min(max(nodes + 1, round(nodes * 2**0.5)), max_nodes)
        new_lik, new_prior = _expectations(densities, x[pending], q[pending], nodes, kl is None, max_bytes)
        change = (new_lik + new_prior - log_lik[pending] - log_prior[pending]).abs()
        error[pending] = 2 * torch.maximum(change, 0.25 * before[pending])
        before[pending] = change
        rate_error[pending] = (new_prior - log_prior[pending]).abs()
        log_lik[pending], log_prior[pending] = new_lik, new_prior
        if not first:  # two rules can agree by chance
            pending = pending[~(error[pending] <= tolerance + rounding * log_lik[pending].abs())]
        first = False
    error += rounding * log_lik.abs()
    rate = -entropy - log_prior if kl is None else kl
    return Bound(log_lik - rate, rate, error, rate_error, "gauss-hermite")


@at_home("x", float64=True)
@torch.no_grad()
def monte_carlo_elbo(
    densities: Densities,
    x: Float[Tensor, " n *x_shape"],
    *,
    posterior: Normals | None = None,
    num_samples: int = 1000,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
) -> Bound:
    r"""Return the ELBO of each datum by Monte Carlo, with its standard error.

    The estimate is unbiased for any q that can be sampled and scored. Where the KL has a closed form, the mean of the
    sampled KL is known, and the sampled KL is a control variate. The draws :math:`\log p(x|z_k) - \mathrm{KL} -
    c\,(\hat{\mathrm{KL}}_k - \mathrm{KL})` contain the two usual estimates (:math:`c = 0`: KL in closed form;
    :math:`c = 1`: sampled KL, without noise at the true posterior) and the best c in between. This c is fitted for each
    half of the draws on the other half, so it adds no bias. The standard error is that of the mean of K draws, and is
    reliable from K of about 30 on.

    Args:
        densities: The model, see `densities_of`.
        x: The data.
        posterior: Normals to use instead of q(z|x).
        num_samples: K.
        max_bytes: About the most memory that decoded data may take.
        seed: The seed of the draws; the global random state is left alone.

    Raises:
        ValueError: If `num_samples` is below 2, where there is no standard error.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> vae = VAE((64,), prior=priors.StandardNormal(9), likelihood=likelihoods.Bernoulli(torch.nn.Linear(9, 64)),
        ...           posterior=posteriors.DiagonalNormal(torch.nn.Linear(64, 18)))
        >>> monte_carlo_elbo(VAEDensities(vae), torch.zeros(5, 64), num_samples=50).elbo.shape
        torch.Size([5])
    """
    if check_positive_int(num_samples, "monte_carlo_elbo: num_samples") < 2:
        raise ValueError("monte_carlo_elbo: num_samples is 1; expected at least 2, for a standard error")
    parts = []
    with seeded(seed):
        for rows in row_blocks(x, max_bytes):
            q = None if posterior is None else posterior[rows]
            draws, kl, log_ratio = draws_of(densities, x[rows], q, num_samples, max_bytes)
            parts.append(_bound_of(draws, log_ratio, kl))
    return Bound.joined(parts)


def bound_by_condition(vae: Any, x: Tensor, y: Tensor, find: Callable[[Model, Tensor], Bound]) -> Bound:
    """Return the bound that `find` computes for the data of each condition, in the order of the data.

    With many conditions it is the mean of 1000 draws for each datum, all data together. Of a semi-supervised model,
    whose program scores the label too, it is the bound of log p(x, y).
    """
    if many_conditions(y):
        blocks = []
        for rows in row_blocks(x, MAX_BYTES, _DRAWS):
            with torch.no_grad(), seeded(rows.start), evaluation_mode(vae):
                w = sample_log_weights(vae.model, vae.guide, x[rows], y[rows], num_particles=_DRAWS)
            blocks.append(_bound_of(w.log_w.double(), (w.log_lik - w.log_w).double()))
        return Bound.joined(blocks)
    parts, place = found_by_condition(vae, x, y, find)
    bound = Bound.joined(parts)[place]
    if isinstance(vae, SemiSupervisedVAE):
        log_p_y = label_log_prob(vae, y)
        bound = replace(bound, elbo=bound.elbo + log_p_y, rate=bound.rate - log_p_y)
    return bound


def label_log_prob(vae: SemiSupervisedVAE, y: Tensor) -> Tensor:
    """Return log p(y) of known labels, (n,)."""
    return vae.p_y().log_prob((vae.one_hot(y) > 0).to(vae.class_logits))


def draws_of(
    densities: Densities, x: Tensor, posterior: Normals | None, num_samples: int, max_bytes: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return K draws whose mean is the ELBO (K, n), the closed-form KL (n,) or None, and the sampled KL (K, n).

    The noise comes from the global generator, and is the same for all normals at the same seed.
    """
    q = normals_of(densities, x, posterior)
    any_q: Any = densities.posterior(x) if q is None else q
    kl = closed_form_kl(densities, any_q)
    log_lik = torch.empty(num_samples, len(x), dtype=torch.float64, device=x.device)
    log_ratio = torch.empty_like(log_lik)
    for k in particle_blocks(num_samples, x, max_bytes):
        size = k.stop - k.start
        if q is None:
            z = any_q.sample((size,))
            log_q = any_q.log_prob(z).double()
        else:
            noise = torch.randn(size, *q.loc.shape, dtype=q.loc.dtype, device=q.loc.device)
            z, log_q = q.at(noise), q.log_prob_at(noise)
        log_lik[k] = densities.log_likelihood(x, z).double()
        log_ratio[k] = log_q - densities.log_prior(x, z).double()
    return _controlled(log_lik, log_ratio, kl), kl, log_ratio


def mean_and_error(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over dim 0 and its standard error."""
    return draws.mean(0), draws.std(0) / len(draws) ** 0.5


def _bound_of(draws: Tensor, log_ratio: Tensor, kl: Tensor | None = None) -> Bound:
    """Return the bound from draws of it and of the rate, (K, n), or from the rate in closed form, (n,)."""
    bound, error = mean_and_error(draws)
    rate, rate_error = mean_and_error(log_ratio) if kl is None else (kl, torch.zeros_like(kl))
    return Bound(bound, rate, error, rate_error, "monte carlo")


def normals_of(densities: Densities, x: Tensor, posterior: Normals | None = None) -> Normals | None:
    """Return `posterior` if given, else q(z|x) as `Normals`, or None if it is not normal."""
    if posterior is not None:
        return posterior
    with torch.no_grad():
        return Normals.of(densities.posterior(x))


def closed_form_kl(densities: Densities, q: Any) -> Tensor | None:
    """Return KL(q(z|x) || p(z)) for `Normals` or a distribution, (n,), float64; None where it has no closed form."""
    prior = getattr(densities, "prior", None)
    if prior is None:
        return None
    p_z = prior()
    try:
        if isinstance(q, Normals):
            normal_prior = Normals.of(p_z.expand((1,)))
            if normal_prior is not None:  # in float64; and torch has no formula for a diagonal and a full normal
                return q.kl(normal_prior)
            q = q.distribution()
        return torch.distributions.kl_divergence(q, p_z.expand(q.batch_shape)).double()
    except NotImplementedError:
        return None


def _expectations(
    densities: Densities, x: Tensor, q: Normals, num_nodes: int, with_prior: bool, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """Return E_q[log p(x|z)] and E_q[log p(z)] (zeros without `with_prior`), (n,) each, in float64."""
    nodes, weights = tensor_nodes(num_nodes, q.latent_dim, q.loc)
    log_lik = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    log_prior = torch.zeros_like(log_lik)
    for rows in row_blocks(x, max_bytes, len(nodes)):
        some_x, some_q = x[rows], q[rows]
        for k in particle_blocks(len(nodes), some_x, max_bytes):
            z = some_q.at(nodes[k, None])
            log_lik[rows] += weights[k] @ densities.log_likelihood(some_x, z).double()
            if with_prior:
                log_prior[rows] += weights[k] @ densities.log_prior(some_x, z).double()
    return log_lik, log_prior


def _controlled(log_lik: Tensor, log_ratio: Tensor, kl: Tensor | None) -> Tensor:
    """Return draws of the ELBO, (K, n), with the sampled KL as a control variate of mean `kl`."""
    if kl is None:
        return log_lik - log_ratio
    draws, half = log_lik - kl, len(log_lik) // 2
    for some, others in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        centred = log_ratio[others] - log_ratio[others].mean(0)
        slope = (centred * log_lik[others]).sum(0) / centred.square().sum(0).clamp_min(1e-300)
        draws[some] -= slope * (log_ratio[some] - kl)
    return draws
