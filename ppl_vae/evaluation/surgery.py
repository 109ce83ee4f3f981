r"""The aggregate posterior q(z) = 1/N sum q(z|x_n): the parts of the rate, and the prior mass without any datum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae._home import at_home
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_positive_int
from ppl_vae.distributions.chain import Chain
from ppl_vae.evidence.blocks import MAX_BYTES
from ppl_vae.evidence.densities import Densities, Score
from ppl_vae.evidence.normals import Normals, normal_scores

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Surgery:
    r"""The rate of N data in two parts, nats per datum.

    .. math::
        \frac1N \sum_n \mathrm{KL}(q(z|x_n) \,\|\, p(z)) = I_q(n; z) + \mathrm{KL}(q(z) \,\|\, p(z)).

    Attributes:
        rate: The left side.
        mutual_information: :math:`I_q(n; z)`, the information in z about the index of its datum; at most log N.
        marginal_kl: :math:`\mathrm{KL}(q(z) \,\|\, p(z))`, from the aggregate posterior to the prior.
        rate_error: The Monte Carlo standard error of `rate` for these data; it does not cover the choice of data.
        mutual_information_error: That of `mutual_information`.
        marginal_kl_error: That of `marginal_kl`.
        num_data: N.
    """

    rate: float
    mutual_information: float
    marginal_kl: float
    rate_error: float
    mutual_information_error: float
    marginal_kl_error: float
    num_data: int

    @property
    def ceiling(self) -> float:
        """Log N, the largest mutual information that N data can show."""
        return math.log(self.num_data)

    @property
    def saturated(self) -> bool:
        """Whether the mutual information is within one nat of its ceiling: then it says only that it is high."""
        return self.mutual_information > self.ceiling - 1


@dataclass(frozen=True)
class AggregatePosterior:
    """The aggregate posterior beside the prior.

    Attributes:
        mean: The mean of the aggregate posterior, float64.
        variance: The variance of the aggregate posterior.
        prior_mean: The mean of the prior, from the same prior draws as `empty_share`.
        prior_variance: The variance of the prior, from the same draws.
        empty_share: The share of prior mass outside the densest region that holds 1 - `level` of the aggregate
            posterior; `level` itself where the two agree.
        empty_share_error: Its standard error.
        level: The `level` of `aggregate_posterior`.
    """

    mean: Float[Tensor, " d"]
    variance: Float[Tensor, " d"]
    prior_mean: Float[Tensor, " d"]
    prior_variance: Float[Tensor, " d"]
    empty_share: float
    empty_share_error: float
    level: float


@at_home("x", float64=True)
@torch.no_grad()
def surgery(
    densities: Densities,
    x: Float[Tensor, " N *x_shape"],
    *,
    num_samples: int = 4,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
) -> Surgery:
    r"""Split the mean KL into mutual information and the KL of the aggregate posterior from the prior (ELBO surgery).

    The mutual information uses the exact mixture density of all N data, including the datum's own component:

    .. math::
        I_q = \frac1N \sum_n \mathbb E_{q(z|x_n)}\Big[\log q(z|x_n) - \log \frac1N \sum_m q(z|x_m)\Big].

    It is exact (up to Monte Carlo error) for *these* N data. As an estimate for the population it is too small: the
    mutual information of N data is at most log N (9.2 nats for 10,000), while that of the population has no such
    ceiling. The marginal KL is too large by the same amount. Well separated posteriors give log N, whatever their other
    properties. Compare models on the same data and N. The cost is S N^2 d operations. For 10,000 data this takes
    seconds for diagonal normals, by matrix products, and a minute or more for other posteriors.

    Args:
        densities: The model, see `densities_of`.
        x: The data.
        num_samples: S, the draws per datum, at least two.
        max_bytes: About the most memory that densities of pairs may take.
        seed: The seed of the draws; the global random state is left alone.

    Raises:
        ValueError: For fewer than two data or draws.

    Reference:
        ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016),
        http://approximateinference.org/2016/accepted/HoffmanJohnson2016.pdf

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> parts = surgery(VAEDensities(vae), torch.rand(100, 64))
        >>> abs(parts.rate - parts.mutual_information - parts.marginal_kl) < 1e-9 * max(1, parts.rate)
        True
    """
    if len(x) < 2 or check_positive_int(num_samples, "surgery: num_samples") < 2:
        raise ValueError(f"surgery was given {len(x)} data and num_samples={num_samples}; expected at least 2 of each")
    q = _precise(densities.posterior(x))
    score = mixture_score(q, max_bytes)
    with seeded(seed):
        z = q.sample((num_samples,))  # (S, N, d)
    own = q.log_prob(z).double()
    whole = torch.stack([score(draw) for draw in z])
    prior = torch.stack([densities.log_prior(x, draw[None].to(x.dtype))[0].double() for draw in z])
    parts = {"rate": own - prior, "mutual_information": own - whole, "marginal_kl": whole - prior}
    means = {name: float(part.mean()) for name, part in parts.items()}
    errors = {f"{name}_error": math.sqrt(float(v.var(0).mean()) / v.numel()) for name, v in parts.items()}
    return Surgery(**means, **errors, num_data=len(x))


@at_home("x", float64=True)
@torch.no_grad()
def aggregate_posterior(
    densities: Densities,
    x: Float[Tensor, " N *x_shape"],
    *,
    num_draws: int = 10_000,
    level: float = 0.01,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
) -> AggregatePosterior:
    r"""Compare the aggregate posterior with the prior: moments, and the share of prior mass where there is no datum.

    Samples of a VAE are drawn from the prior and decoded. Where the aggregate posterior is empty, the decoder has seen
    no datum. A point counts as empty if log q(z) is below the `level` quantile of log q at draws from q(z) itself, so
    that a perfect match gives an empty share of `level`. The mixture of *these* N data is not smoothed. If posteriors
    are narrower than the distance between neighbours (few data, many dimensions), nearly all of the prior is empty,
    which says little about the population.

    Args:
        densities: The model, see `densities_of`.
        x: The data.
        num_draws: The draws from the prior, and from q(z).
        level: The share of q(z) outside its densest region.
        max_bytes: About the most memory that densities of pairs may take.
        seed: The seed of the draws; the global random state is left alone.

    Raises:
        ValueError: If `level` is outside (0, 1).

    Reference:
        Distribution Matching in Variational Inference (Rosca, Lakshminarayanan & Mohamed, 2018),
        https://arxiv.org/abs/1802.06847

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> encoder = torch.nn.Linear(64, 4)
        >>> _ = torch.nn.init.zeros_(encoder.weight), torch.nn.init.zeros_(encoder.bias)
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal(encoder, scale="log_var"))
        >>> found = aggregate_posterior(VAEDensities(vae), torch.rand(20, 64), num_draws=1000)  # q(z|x) = p(z)
        >>> found.variance, found.empty_share < 0.03
        (tensor([1., 1.], dtype=torch.float64), True)
    """
    check_positive_int(num_draws, "aggregate_posterior: num_draws")
    if not 0 < level < 1:
        raise ValueError(f"aggregate_posterior: level is {level!r}; expected a share between 0 and 1, such as 0.01")
    q = _precise(densities.posterior(x))
    with seeded(seed):
        drawn = q.sample((-(-num_draws // len(x)),)).flatten(0, 1)
        drawn = drawn[torch.randperm(len(drawn), device=x.device)[:num_draws]]
        prior = densities.prior_sample(x[:1], num_draws)[:, 0].to(drawn.dtype)  # which q's networks may be of
    score = mixture_score(q, max_bytes)
    threshold = torch.quantile(score(drawn), level)
    empty = float((score(prior) < threshold).double().mean())
    mean, variance = _moments(q, drawn)
    empty_error = math.sqrt(empty * (1 - empty) / num_draws)
    of_prior = prior.double().mean(0), prior.double().var(0)
    return AggregatePosterior(mean, variance, *of_prior, empty, empty_error, level)


def mixture_score(q: Any, max_bytes: int = MAX_BYTES) -> Score:
    """Return the exact function from latents (M, d) to log 1/N sum_n q(z|x_n), (M,), float64, of N posteriors.

    It works in blocks of bounded memory, for diagonal normals by two matrix products.

    Example:
        >>> from pyro import distributions as dist
        >>> q = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        >>> mixture_score(q)(torch.zeros(1, 2))
        tensor([-1.8379], dtype=torch.float64)
    """
    normals = Normals.of(q)
    size, dim = q.batch_shape[0], q.event_shape[0]
    if normals is not None and normals.diagonal:
        precision = normals.scale.double().square().reciprocal()
        log_pairs, held = normal_scores(normals.loc.double(), precision, normals.log_det()), 16
    else:
        log_pairs = lambda z: q.log_prob(z.unsqueeze(1)).double()  # noqa: E731
        runs = 16 if isinstance(q, Chain) and q.top_down else 1  # its networks run for each pair
        held = 8 * (4 + 2 * dim * (1 if normals is None else dim)) * runs  # bytes for each pair

    def score(z: Tensor) -> Tensor:
        parts = z.split(max(1, max_bytes // (held * size)))
        return torch.cat([log_pairs(some).logsumexp(-1) for some in parts]) - math.log(size)

    return score


def _precise(q: Any) -> Any:
    """Return q in float64 if it is normal; a narrow posterior far from zero loses digits in float32."""
    normals = Normals.of(q)
    return q if normals is None else Normals(normals.loc.double(), normals.scale.double()).distribution()


def _moments(q: Any, drawn: Tensor) -> tuple[Tensor, Tensor]:
    try:
        mean, variance = q.mean.double(), q.variance.double()
    except (NotImplementedError, AttributeError):
        return drawn.double().mean(0), drawn.double().var(0)
    return mean.mean(0), variance.mean(0) + mean.var(0, correction=0)
