r"""The use of each latent dimension: KL per dimension, active units, and alarms for posterior collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal
from torch.distributions import Normal as TorchNormal

from ppl_vae._distributions import describe
from ppl_vae._home import at_home
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_positive_int
from ppl_vae.distributions.chain import Chain
from ppl_vae.evidence.densities import Densities

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

ACTIVE = 0.01  # Burda et al.'s threshold for the variance of a unit's posterior mean
UNUSED = 0.01  # nats per datum below which a dimension carries nothing
ROWS = 2000  # data encoded at once


@dataclass(frozen=True)
class LatentUse:
    r"""The use of each latent dimension over n data.

    Attributes:
        kl: Mean KL of each dimension, nats per datum; of a ladder, given the level that was drawn before. Bottom-up it
            is a share of the KL that may be negative below the top (`Chain.kl_given`).
        mean_variance: :math:`\mathrm{Var}_x(\mathbb E_{q(z|x)}[z_u])` over the data.
        alarms: One sentence for each fault (more than three unused dimensions count as one fault); empty without
            faults. Dimensions are counted from z_1, as in the pictures.
        dims: The dimensions of the levels of a ladder, from the one that the likelihood reads up; otherwise empty.
    """

    kl: Float[Tensor, " d"]
    mean_variance: Float[Tensor, " d"]
    alarms: tuple[str, ...]
    dims: tuple[int, ...] = ()

    @property
    def levels(self) -> list[dict[str, float]]:
        """For each level of a ladder its dimension, its KL in nats per datum, and the number of its active units."""
        parts = zip(self.kl.split(self.dims), self.active.split(self.dims), strict=True) if self.dims else ()
        return [{"dim": len(kl), "kl": float(kl.sum()), "active": int(active.sum())} for kl, active in parts]

    @property
    def active(self) -> Bool[Tensor, " d"]:
        """Whether each dimension is active (`mean_variance` above 0.01)."""
        return self.mean_variance > ACTIVE

    @property
    def num_active(self) -> int:
        """The number of active dimensions."""
        return int(self.active.sum())

    @property
    def effective_dim(self) -> float:
        r"""The effective number of dimensions that share the KL, :math:`\exp(-\sum_u s_u \log s_u)` of its shares s.

        It is d if all dimensions cost the same KL, 1 if one dimension has all of it, and 0 without any KL.
        """
        kl = self.kl.clamp_min(0)
        if float(kl.sum()) == 0:
            return 0.0
        return float(Categorical(kl / kl.sum(), validate_args=False).entropy().exp())


@at_home("x", float64=True)
@torch.no_grad()
def kl_per_dimension(
    densities: Densities, x: Float[Tensor, " n *x_shape"], *, num_samples: int = 500, seed: int = 0
) -> Float[Tensor, "n d"]:
    r"""Return the KL of each latent dimension's marginal, :math:`\mathrm{KL}(q(z_u|x) \,\|\, p(z_u))`, per datum.

    Its sum over dimensions is the whole KL if both q and p have independent dimensions, and *not* otherwise: no
    marginal contains the correlations within q(z|x) or within the prior. The KL is in closed form for normals. Where
    the marginals of q are known otherwise (independent dimensions, mixtures), it is estimated by Monte Carlo under
    them, with noise of :math:`1/\sqrt{K}`. Where q gives only samples (a flow), it is estimated from the spacings of
    sorted samples, with a bias that falls like :math:`1/\sqrt K` and is about 0.01 nats for K = 500. Between two
    ladders it is no marginal's: it is the KL of each dimension given the level drawn before, the mean over K draws, and
    the sum is the whole KL.

    Args:
        densities: The model, see `densities_of`; it must have ``prior()``, as a `VAE` has.
        x: The data.
        num_samples: K.
        seed: The seed of the draws; the global random state is left alone.

    Returns:
        (n, d), float64, nats.

    Raises:
        ValueError: If the marginals of the prior are not known (a flow).

    Reference:
        A Test for Normality Based on Sample Entropy (Vasicek, 1976; the spacings),
        https://doi.org/10.1111/j.2517-6161.1976.tb01566.x

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> vae = VAE((64,), prior=priors.StandardNormal(3), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> kl_per_dimension(VAEDensities(vae), torch.zeros(5, 64)).shape
        torch.Size([5, 3])
    """
    check_positive_int(num_samples, "kl_per_dimension: num_samples")
    p_z = densities.prior() if hasattr(densities, "prior") else None
    if isinstance(p_z, Chain) and isinstance(densities.posterior(x[:1]), Chain):
        with seeded(seed):
            chains = [densities.posterior(some) for some in x.split(ROWS)]
            draws = ([q.kl_given(p_z, q.sample()).double() for q in chains] for _ in range(num_samples))
            return torch.as_tensor(sum(torch.cat(parts) for parts in draws)) / num_samples
    p_u = None if p_z is None else marginals(p_z)
    if p_u is None:
        raise ValueError(
            f"the KL of each dimension needs the marginals of the prior, which are not known for "
            f"{'a program without prior()' if p_z is None else describe(p_z)}; look at the whole KL, elbo(...).rate"
        )
    with seeded(seed):
        return torch.cat([_marginal_kl(densities.posterior(some), p_u, num_samples) for some in x.split(ROWS)])


@at_home("x", float64=True)
@torch.no_grad()
def latent_use(
    densities: Densities, x: Float[Tensor, " n *x_shape"], *, num_samples: int = 500, seed: int = 0
) -> LatentUse:
    r"""Return active units, KL per dimension and alarms for posterior collapse.

    A unit is active if the mean of its posterior varies with the data,
    :math:`\mathrm{Var}_x(\mathbb E_{q(z|x)}[z_u]) > 0.01` (Burda et al.). This criterion is blind to a unit that codes
    in its variance alone. It also depends on the scale of z, which a prior other than a unit normal may change. So read
    it beside the KL. There is an alarm for each unused dimension (mean KL below 0.01 nats), for each dimension that
    costs KL and does not depend on x, and for the collapse of all dimensions. An unused dimension in a model with many
    others is no fault in itself: models prune what they do not need. The variance is a rough estimate for fewer than
    about 100 data.

    Args:
        densities: The model, see `densities_of`; it must have ``prior()``, as a `VAE` has.
        x: The data, at least two.
        num_samples: As in `kl_per_dimension`.
        seed: The seed of the draws, where there is no closed form.

    Raises:
        ValueError: For fewer than two data; else as `kl_per_dimension`.

    Reference:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2015), https://arxiv.org/abs/1509.00519

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> encoder = torch.nn.Linear(64, 6)
        >>> _ = torch.nn.init.zeros_(encoder.weight), torch.nn.init.zeros_(encoder.bias)
        >>> vae = VAE((64,), prior=priors.StandardNormal(3), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal(encoder, scale="log_var"))
        >>> use = latent_use(VAEDensities(vae), torch.rand(50, 64))
        >>> use.num_active, use.alarms[0]
        (0, 'posterior collapse: q(z|x) equals the prior for all data (KL 0.000 nats), and the decoder ignores z')
    """
    if len(x) < 2:
        raise ValueError(f"latent_use was given {len(x)} data; expected at least 2, for a variance over data")
    kl = kl_per_dimension(densities, x, num_samples=num_samples, seed=seed)
    dims = getattr(densities.posterior(x[:1]), "dims", ())
    with seeded(seed):  # a level of a ladder runs a network for each draw
        moments = [_moments(densities.posterior(some), num_samples) for some in x.split(ROWS // 20 if dims else ROWS)]
    mean, variance, noise = (torch.cat(parts) for parts in zip(*moments, strict=True))
    moves = (variance.std(0) / variance.mean(0).clamp_min(1e-300)) > 0.01  # a dimension may code in its spread alone
    moved, cost = mean.var(0) - noise.mean(0), kl.mean(0)
    size = cost.abs() if dims else cost  # a share of the KL of a bottom-up ladder may be negative
    empty = [level for level, part in enumerate(size.split(dims) if dims else (), 1) if bool((part < UNUSED).all())]
    alarms = [f"level {level} of {len(dims)} is unused: q(z|x) is the prior's conditional there" for level in empty]
    return LatentUse(cost, moved, (*alarms, *_alarms(size, kl.amax(0), moved, moves, variance.mean(0))), dims)


def marginals(distribution: Any) -> Any:
    """Return the marginals of all dimensions, batch shape (..., d), event shape (); None if they are not known."""
    if isinstance(distribution, MixtureSameFamily):
        parts = marginals(distribution.component_distribution)  # (..., components, d)
        if not isinstance(parts, TorchNormal):
            return None
        columns = TorchNormal(parts.loc.mT, parts.scale.mT)  # (..., d, components)
        weights = distribution.mixture_distribution.probs.unsqueeze(-2)  # (..., 1, components)
        return MixtureSameFamily(Categorical(weights.expand(columns.batch_shape)), columns)
    if isinstance(distribution, MultivariateNormal):
        return TorchNormal(distribution.loc, distribution.variance.sqrt())
    if isinstance(distribution, Independent):
        if distribution.reinterpreted_batch_ndims == 1 and not distribution.base_dist.event_shape:
            return distribution.base_dist
        return marginals(distribution.base_dist) if distribution.reinterpreted_batch_ndims == 0 else None
    return None


def _marginal_kl(q: Any, p_u: Any, num_samples: int) -> Tensor:
    q_u = marginals(q)
    if q_u is None:
        return _spacings_kl(q.sample((num_samples,)).double(), p_u)
    try:
        return torch.distributions.kl_divergence(q_u, p_u.expand(q_u.batch_shape)).double()
    except NotImplementedError:
        z = q_u.sample((num_samples,))
        return (q_u.log_prob(z) - p_u.log_prob(z)).double().mean(0)


def _spacings_kl(z: Tensor, p_u: Any) -> Tensor:
    """Return the KL of the marginals of samples (K, n, d): minus Vasicek's entropy, minus the mean of log p."""
    size = len(z)
    m = max(1, round(size**0.5))
    ordered = z.sort(0).values
    padded = torch.cat([ordered[:1].expand(m, *z.shape[1:]), ordered, ordered[-1:].expand(m, *z.shape[1:])])
    width = (padded[2 * m :] - padded[: -2 * m]).clamp_min(1e-300)
    index = torch.arange(size, device=z.device)
    held = (index.clamp_max(m) + (size - 1 - index).clamp_max(m)).to(z)  # spacings inside the sample, fewer at its ends
    entropy = (size * width / held[:, None, None]).log().mean(0)
    return -entropy - p_u.log_prob(z).double().mean(0)


def _moments(q: Any, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means and variances of q, (n, d) each, and the variance of the noise in the means.

    They come from samples where q does not give them.
    """
    try:
        return q.mean.double(), q.variance.double(), torch.zeros_like(q.mean, dtype=torch.float64)
    except (NotImplementedError, AttributeError):
        z = q.sample((num_samples,)).double()
        return z.mean(0), z.var(0), z.var(0) / num_samples


def _alarms(kl: Tensor, worst: Tensor, moved: Tensor, spread_moves: Tensor, variance: Tensor) -> tuple[str, ...]:
    unused = kl < UNUSED
    constant = ~unused & (moved < 1e-4 * variance) & ~spread_moves
    if bool(unused.all()):
        who = "for all data" if float(worst.max()) < UNUSED else "for nearly all data"
        return (
            f"posterior collapse: q(z|x) equals the prior {who} (KL {float(kl.sum()):.3f} nats), and the decoder "
            "ignores z",
        )
    if bool((unused | constant).all()):
        return (
            f"posterior collapse: q(z|x) is the same for all data, and costs {float(kl.sum()):.3f} nats of KL without "
            "carrying anything",
        )
    which = unused.nonzero().flatten().tolist()
    if len(which) > 3:
        names = ", ".join(f"z_{u + 1}" for u in which)
        found = [f"{len(which)} of {len(kl)} dimensions are unused (KL below {UNUSED} nats): {names}"]
    else:
        found = [
            f"z_{u + 1} is unused: KL {kl[u]:.4f} nats, its mean varies by {moved[u]:.2g} over the data" for u in which
        ]
    found += [
        f"z_{u + 1} is the same for all data and costs {float(kl[u]):.3f} nats of KL without carrying anything"
        for u in constant.nonzero().flatten().tolist()
    ]
    return tuple(found)
