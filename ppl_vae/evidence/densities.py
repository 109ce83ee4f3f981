r"""The densities of a program at any latents: what every method for log p(x) needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._distributions import describe, innermost, measure, unwrapped
from ppl_vae._home import at_home
from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae.capture.reach import Reach
from ppl_vae.evidence.grids import support
from ppl_vae.evidence.normals import normal_scores
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.losses import Program
from ppl_vae.objectives.sampling import sample_log_weights
from ppl_vae.objectives.traces import PARTICLES, sample_sites, sum_per_datum

if TYPE_CHECKING:
    from jaxtyping import Float

Score = Callable[[Tensor], Tensor]


class Densities(Protocol):
    """The densities that evaluation needs of a program with one latent vector z per datum x.

    The modules run in evaluation mode. The caller decides whether gradients are recorded. `x` has shape (n, *x_shape),
    a latent (..., d). Log-densities are in nats.
    """

    latent_dim: int

    def prior_sample(self, x: Float[Tensor, " n *x_shape"], size: int) -> Float[Tensor, "size n d"]:
        """Draw `size` latents from p(z) for every datum."""

    def log_prior(self, x: Float[Tensor, " n *x_shape"], z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """Return log p(z_k) for z of shape (K, n, d), as (K, n); minus infinity outside the support."""

    def log_likelihood(self, x: Float[Tensor, " n *x_shape"], z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """Return log p(x|z_k) for z of shape (K, n, d), as (K, n). All K * n decoded data are in memory at once."""

    def posterior(self, x: Float[Tensor, " n *x_shape"]) -> Any:
        """Return q(z|x), a distribution of batch shape (n,) and event shape (d,)."""


@runtime_checkable
class Model(Protocol):
    """A module that holds prior, likelihood and posterior together, as a `VAE` does.

    It names no submodule: `isinstance` looks past ``nn.Module.__getattr__`` since Python 3.12.
    """

    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...] | None
    latent_shape: tuple[int, ...]

    def p_z(self) -> Any:
        """Return p(z)."""

    def p_x(self, z: Tensor) -> Any:
        """Return p(x|z)."""

    def q_z(self, x: Tensor) -> Any:
        """Return q(z|x)."""

    def given(self, y: Any) -> Any:
        """Return the model of one condition."""

    def double(self) -> Any:
        """Turn all parameters into float64."""


class VAEDensities:
    """The densities of a `VAE`, where any latent can be scored against any datum.

    Args:
        vae: The model.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> densities, x, z = VAEDensities(vae), vae.sample(5, mean=False), torch.zeros(3, 2)
        >>> all_pairs = densities.likelihood_at(z)(x)  # every datum under every latent
        >>> one_by_one = densities.log_likelihood(x, z[:, None].expand(3, 5, 2))
        >>> torch.allclose(all_pairs, one_by_one.T)
        True
    """

    def __init__(self, vae: Model) -> None:
        self.vae = vae
        self.modules = [cast(nn.Module, vae)]
        (self.latent_dim,) = vae.latent_shape

    def prior(self) -> Any:
        """Return p(z)."""
        with evaluation_mode(*self.modules):
            return self.vae.p_z()

    def posterior(self, x: Float[Tensor, " n *x_shape"]) -> Any:
        """Return q(z|x)."""
        with evaluation_mode(*self.modules):
            return self.vae.q_z(x)

    def likelihood(self, z: Float[Tensor, "*batch d"]) -> Any:
        """Return p(x|z) for z of shape (..., d)."""
        with evaluation_mode(*self.modules):
            return self.vae.p_x(z)

    def prior_sample(self, x: Float[Tensor, " n *x_shape"], size: int) -> Float[Tensor, "size n d"]:
        """Draw `size` latents from p(z) for every datum."""
        return self.prior().sample((size, len(x)))

    def log_prior(self, x: Float[Tensor, " n *x_shape"], z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """Return log p(z_k)."""
        return log_density(self.prior(), z)

    def log_likelihood(self, x: Float[Tensor, " n *x_shape"], z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """Return log p(x|z_k)."""
        return self.likelihood(z).log_prob(x)

    def likelihood_at(self, z: Float[Tensor, "G d"], dtype: torch.dtype | None = None) -> Score:
        r"""Decode latents z of shape (G, d) once; return a function from data (n, *x_shape) to log p(x|z), (n, G).

        A Bernoulli takes one matrix product, :math:`x \cdot \ell - \sum \log(1 + e^\ell)`. A Normal takes two, in
        float64 because squares cancel. Any other likelihood scores all n * G pairs, so keep n * G small there.

        Args:
            z: The latents, which are decoded in their own precision.
            dtype: The precision of the scores, that of `z` by default; a Bernoulli is also scored in it.
        """
        whole, pixels = self.likelihood(z), math.prod(self.vae.x_shape)
        distribution = unwrapped(whole)
        if type(distribution) is dist.Bernoulli:
            logits = distribution.logits.reshape(len(z), pixels)
            logits = logits if dtype is None else logits.to(dtype)
            normaliser = softplus(logits).sum(-1)
            return lambda x: x.reshape(len(x), pixels).to(logits.dtype) @ logits.T - normaliser
        if type(distribution) is dist.Normal:
            mean = distribution.loc.reshape(len(z), pixels).double()
            scale = distribution.scale.expand(distribution.loc.shape).reshape(len(z), pixels).double()
            score = normal_scores(mean, scale.reciprocal().square(), scale.log().sum(-1))
            return lambda x: score(x.reshape(len(x), pixels)).to(dtype or z.dtype)
        return lambda x: whole.log_prob(x.unsqueeze(1)).to(dtype or z.dtype)


class ProgramDensities:
    """The densities of a ``(model, guide)`` pair with one latent site per datum, read from traces.

    Args:
        program: The pair. Both programs take the data as their only argument. The latent site lies in the data's
            plate (dim -1).
        x: Some data, used to find the latent site.

    Raises:
        NotPerDatumError: If the log-weights do not factorise over data.
        ValueError: If the guide does not have exactly one latent site that holds a vector for each datum, or if it is
            masked.
    """

    @at_home("x", program="program")
    def __init__(self, program: Program, x: Tensor) -> None:
        self.model, self.guide = program
        self.modules = Reach().visit(*program).modules
        with torch.no_grad(), untouched_random_state():
            self._site = self._find(x[:2])
        self.latent_dim = self.posterior(x[:2]).event_shape[-1]

    def posterior(self, x: Float[Tensor, " n *x_shape"]) -> Any:
        """Return q(z|x)."""
        return self._trace(self.guide, x).nodes[self._site]["fn"]

    def prior_sample(self, x: Float[Tensor, " n *x_shape"], size: int) -> Float[Tensor, "size n d"]:
        """Draw `size` latents from p(z) for every datum."""
        p_z: Any = self._trace(self.model, x).nodes[self._site]["fn"]
        return p_z.expand((size, len(x))).sample()

    def log_prior(self, x: Float[Tensor, " n *x_shape"], z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """Return log p(z_k)."""
        site = self._conditioned(x, z)[self._site]
        return log_density(site["fn"], site["value"]).expand(z.shape[:2])

    def log_likelihood(self, x: Float[Tensor, " n *x_shape"], z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """Return log p(x|z_k)."""
        sites = self._conditioned(x, z)
        return sum_per_datum({n: s for n, s in sites.items() if n != self._site}, z.shape[1])

    def _find(self, x: Tensor) -> str:
        with evaluation_mode(*self.modules):
            weights = sample_log_weights(self.model, self.guide, x)  # refuses what has no log-weight for each datum
        sites = list(weights.z)
        if len(sites) != 1 or sites[0] not in weights.prior or weights.z[sites[0]].dim() != 2:
            raise ValueError(
                f"the guide has the sites {sites}; expected one site of a vector per datum, of shape (batch, "
                "latent); importance sampling from the guide, method='posterior', takes any number of sites"
            )
        check_all_weighed(weights, len(x))
        for fn in (weights.prior[sites[0]], weights.posterior[sites[0]]):
            if getattr(fn, "_mask", True) is not True:
                raise ValueError(
                    f"the latent site {sites[0]!r} is masked, and a part of a density is none; expected p(z) and "
                    "q(z|x) without a mask; method='posterior' weighs the program as it is"
                )
        return sites[0]

    def _trace(self, function: Callable[..., Any], x: Tensor) -> poutine.Trace:
        with evaluation_mode(*self.modules):
            return poutine.trace(function).get_trace(x)

    def _conditioned(self, x: Tensor, z: Tensor) -> dict[str, Any]:
        several = len(z) > 1
        model = poutine.condition(self.model, data={self._site: z if several else z[0]})
        if several:
            model = pyro.plate(PARTICLES, len(z), dim=-2)(model)
        return sample_sites(self._trace(model, x))


def log_density(distribution: Any, z: Tensor) -> Tensor:
    """Return the log-density at any z, minus infinity outside a region of space, where families give any number."""
    log_p, space = distribution.log_prob(z), support(distribution)
    if innermost(space) is constraints.real or measure(distribution) != "a region of space":
        return log_p
    inside = space.check(z).reshape(*z.shape[:-1], -1).all(-1) | z.isnan().any(-1)
    return log_p.masked_fill(~inside, -math.inf)


def check_region(distribution: Any, owner: str) -> None:
    """Refuse a latent on points, a sphere or a simplex, for a method that goes anywhere."""
    if innermost(support(distribution)) is constraints.real or measure(distribution) == "a region of space":
        return
    raise ValueError(
        f"{owner} was given a latent on {measure(distribution)} ({describe(distribution)}); expected one in a region "
        "of space: use importance sampling from q(z|x), method='posterior' of log_evidence"
    )


def check_all_weighed(weights: LogWeights, num_data: int) -> None:
    """Refuse a program that weighs a part of its data."""
    if (weighed := weights.log_lik.shape[1]) != num_data:
        raise ValueError(
            f"the program weighs {weighed} of {num_data} data; expected all of them: remove subsampling from its plate"
        )


def densities_of(program: Model | Program, x: Tensor) -> VAEDensities | ProgramDensities:
    """Return the densities of a `VAE`, or of a ``(model, guide)`` pair, whose one latent site is found with `x`."""
    return VAEDensities(program) if isinstance(program, Model) else ProgramDensities(program, x)


def pair_scores(
    densities: VAEDensities, x: Tensor, z: Tensor, max_bytes: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Score data (n, *x_shape) at latents (G, d), each decoded once: yield indices of both and log p(x|z), float64.

    Pyro's validation, where it is on, refuses data outside the support.
    """
    pairs = max(1, max_bytes // 8 // (16 * x[0].numel()))
    for part in x.split(pairs):  # matrix products, as below, take any numbers
        densities.likelihood(z[:1]).log_prob(part.unsqueeze(1))
    for nodes in torch.arange(len(z), device=z.device).split(min(2048, pairs)):
        score = densities.likelihood_at(z[nodes])
        for rows in torch.arange(len(x), device=x.device).split(max(1, pairs // len(nodes))):
            yield rows, nodes, score(x[rows]).double()


def rounding(
    densities: VAEDensities, dtype: torch.dtype, log_p: Callable[[VAEDensities, torch.dtype], Tensor]
) -> float:
    """Return twice the largest change of `log_p`, computed in `dtype`, when it is computed in float64 instead."""
    given = log_p(densities, dtype)
    least = 16 * torch.finfo(torch.float64).eps * max(1.0, given.abs().max().item())
    try:
        precise = log_p(VAEDensities(copy.deepcopy(densities.vae).double()), torch.float64)
    except RuntimeError:  # tensors that the VAE does not register keep their precision, and do not mix with float64
        return least * torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
    return 2 * (given - precise).abs().max().item() + least
