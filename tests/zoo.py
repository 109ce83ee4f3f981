"""Every prior, likelihood, posterior, network and objective of the package, once: one line each.

`test_zoo.py` holds each entry against the conformance properties, and fails if a public class has no entry. A piece's
`make` takes what the tests vary (the latent dimension, or the network) and returns a fresh piece.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import infer
from torch import Tensor

from ppl_vae import VAE, likelihoods, networks, objectives, posteriors, priors

Shape = tuple[int, ...]

# Public classes that are no pieces: what pieces, networks and objectives are made of or speak in.
NOT_PIECES = {"Binding", "ParameterNetwork", "LogWeights", "Estimate", "BatchLoss", "NotPerDatumError"}


@dataclass(frozen=True)
class Domain:
    """Where a variable lies: how to draw data from it, and how to sum or integrate over one dimension of it.

    Attributes:
        draw: ``draw(*shape)``: data that lie in the support and fill it.
        nodes: ``nodes(centre, width)``: points and weights, so that ``(weights * f(points)).sum()`` is the sum or the
            integral of f, for a density around `centre` with scale `width`.
        holds_binary: Whether 0 and 1 lie in it, so that thresholded pictures can be trained on.
    """

    name: str
    draw: Callable[..., Tensor]
    nodes: Callable[[float, float], tuple[Tensor, Tensor]]
    holds_binary: bool = True


def _whole_line(centre: float, width: float) -> tuple[Tensor, Tensor]:
    """Trapezoid in t with x = centre + width sinh(t): exact to rounding for smooth densities, heavy tails included."""
    t = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    return centre + width * t.sinh(), width * t.cosh() * (t[1] - t[0])


def _two_points(centre: float, width: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)


REAL = Domain("real", lambda *shape: 1.5 * torch.randn(shape), _whole_line)
BINARY = Domain("binary", lambda *shape: torch.randint(2, shape).to(torch.get_default_dtype()), _two_points)


def grey(*shape: int) -> Tensor:
    return torch.rand(shape)


@dataclass(frozen=True)
class Prior:
    name: str
    make: Callable[[int], Any]  # latent_dim -> piece
    domain: Domain = REAL
    space: str = "real"  # where its latents live; it goes with the posteriors of the same space
    min_latent: int = 1
    dense: bool = True  # whether one latent has a density on `domain` (not on a sphere)
    closed_form: bool = True  # whether mean and variance have one
    tolerance: float = 1e-10  # of its mass, mean and variance against quadrature


@dataclass(frozen=True)
class Likelihood:
    name: str
    make: Callable[[Any], Any]  # network -> piece
    domain: Domain  # of its samples, on which it is a density
    closed_form: bool = True  # whether mean and variance have one
    tolerance: float = 1e-10  # of its mass, mean and variance against quadrature
    data: Callable[..., Tensor] | None = None  # data that it scores, where these are more than its domain

    @property
    def draw(self) -> Callable[..., Tensor]:
        return self.domain.draw if self.data is None else self.data

    @property
    def is_density(self) -> bool:
        """Whether it is a density for all data that it scores."""
        return self.data is None


@dataclass(frozen=True)
class Posterior:
    name: str
    make: Callable[[Any], Any]  # network -> piece
    domain: Domain = REAL
    space: str = "real"
    min_latent: int = 1
    dense: bool = True
    closed_form: bool = True  # whether mean and variance have one
    tolerance: float = 1e-10  # of its mass, mean and variance against quadrature
    reparameterised: bool = True
    rescores: bool = True  # whether it can score a z that it did not draw (planar flows cannot)


@dataclass(frozen=True)
class Network:
    name: str
    make: Callable[[], Any]  # -> factory
    batch_norm: bool = False
    images: bool = False  # whether its input or output must be an image, (channels, height, width)
    dropout: bool = False


@dataclass(frozen=True)
class Objective:
    name: str
    make: Callable[[int], Any]  # num_particles -> objective
    is_elbo: bool = True  # whether its expectation is the ELBO
    averages: bool = True  # whether more particles lower its variance alone, not its expectation
    fits: Callable[[Prior, Likelihood, Posterior], bool] = lambda prior, likelihood, posterior: True


def _pathwise(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    return posterior.reparameterised


@functools.cache
def _closed_kl(prior: Prior, posterior: Posterior) -> bool:
    vae = Program(prior, LIKELIHOODS[0], posterior).vae((1, 1, 2), 2)
    try:
        torch.distributions.kl_divergence(vae.q_z(torch.zeros(1, 1, 1, 2)), vae.p_z())
    except NotImplementedError:
        return False
    return True


def _mean_field(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    return posterior.reparameterised and _closed_kl(prior, posterior)


def _article(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    kinds = ("StandardNormal", ("Bernoulli", "Normal"), "DiagonalNormal")
    return all(e.name.startswith(kind) for e, kind in zip((prior, likelihood, posterior), kinds, strict=True))


MLP, Diagonal = networks.MLP, posteriors.DiagonalNormal

PRIORS = [
    Prior("StandardNormal", lambda latent_dim: priors.StandardNormal(latent_dim)),
]

LIKELIHOODS = [
    Likelihood("Bernoulli", lambda network: likelihoods.Bernoulli(network), BINARY),
    Likelihood("Bernoulli-grey", lambda network: likelihoods.Bernoulli(network, allow_grey=True), BINARY, data=grey),
    Likelihood("Normal", lambda network: likelihoods.Normal(network), REAL),
    Likelihood("Normal-0.3", lambda network: likelihoods.Normal(network, scale=0.3), REAL),
]

POSTERIORS = [
    Posterior("DiagonalNormal", lambda network: Diagonal(network)),
    Posterior("DiagonalNormal-std", lambda network: Diagonal(network, scale="std")),
    Posterior("DiagonalNormal-log_var", lambda network: Diagonal(network, scale="log_var")),
    Posterior("DiagonalNormal-softplus-floor", lambda network: Diagonal(network, scale="softplus", floor=0.1)),
]

NETWORKS = [
    Network("MLP-softplus", lambda: MLP([9, 7])),
    Network("MLP-relu", lambda: MLP([9, 7], activation="relu")),
    Network("MLP-sigmoid", lambda: MLP([9, 7], activation="sigmoid")),
    Network("MLP-tanh", lambda: MLP([9, 7], activation="tanh")),
    Network("MLP-none", lambda: MLP([9, 7], activation="none")),
    Network("MLP-linear", lambda: MLP([])),
    Network("MLP-torch", lambda: MLP([9, 7], init="torch")),
    Network("MLP-batch_norm", lambda: MLP([9, 7], batch_norm=True), batch_norm=True),
    Network("MLP-tanh-batch_norm-torch", lambda: MLP([9], "tanh", batch_norm=True, init="torch"), batch_norm=True),
]

OBJECTIVES = [
    Objective("ELBO", lambda k: objectives.ELBO(k), fits=_pathwise),
    Objective("MeanFieldELBO", lambda k: objectives.MeanFieldELBO(k), fits=_mean_field),
    Objective("ArticleELBO", lambda k: objectives.ArticleELBO(k), is_elbo=False, fits=_article),
    Objective("ArticleELBO-exact", lambda k: objectives.ArticleELBO(k, eps=0, normalize=True), fits=_article),
]

_SIDE: dict[str, Any] = {"vectorize_particles": True}
PYRO_OBJECTIVES = [
    Objective("Trace_ELBO", lambda k: infer.Trace_ELBO(k)),
    Objective("Trace_ELBO-vectorized", lambda k: infer.Trace_ELBO(k, **_SIDE)),
    Objective("TraceMeanField_ELBO", lambda k: infer.TraceMeanField_ELBO(k), fits=_pathwise),
    Objective("TraceMeanField_ELBO-vectorized", lambda k: infer.TraceMeanField_ELBO(k, **_SIDE), fits=_pathwise),
    Objective("RenyiELBO", lambda k: infer.RenyiELBO(num_particles=k), False, False, _pathwise),
    Objective("RenyiELBO-vectorized", lambda k: infer.RenyiELBO(num_particles=k, **_SIDE), False, False, _pathwise),
]


@dataclass(frozen=True)
class Program:
    """A prior, a likelihood, a posterior and their networks, put together by `vae`."""

    prior: Prior = PRIORS[0]
    likelihood: Likelihood = LIKELIHOODS[0]
    posterior: Posterior = POSTERIORS[0]
    network: Network = NETWORKS[0]

    def vae(self, x_shape: Shape = (1, 2, 3), latent_dim: int = 2) -> VAE:
        return VAE(
            x_shape,
            prior=self.prior.make(latent_dim),
            likelihood=self.likelihood.make(self.network.make()),
            posterior=self.posterior.make(self.network.make()),
        )

    @property
    def name(self) -> str:
        return "+".join(piece.name for piece in (self.prior, self.likelihood, self.posterior, self.network))

    @property
    def min_latent(self) -> int:
        return max(self.prior.min_latent, self.posterior.min_latent)


def goes_with(entry: Any, others: Sequence[Any]) -> Any:
    """Return the first of some priors or posteriors that lives in the same space."""
    return next(other for other in others if other.space == entry.space)


def programs() -> list[Program]:
    """For each piece and each network one program that it appears in."""
    first = Program()
    found = [first]
    found += [replace(first, prior=prior, posterior=goes_with(prior, POSTERIORS)) for prior in PRIORS[1:]]
    found += [replace(first, likelihood=likelihood) for likelihood in LIKELIHOODS[1:]]
    found += [replace(first, posterior=posterior, prior=goes_with(posterior, PRIORS)) for posterior in POSTERIORS[1:]]
    found += [replace(first, network=network) for network in NETWORKS[1:]]
    return found


@functools.cache
def pieces() -> list[tuple[Prior, Likelihood, Posterior]]:
    """All combinations of pieces that can be trained on thresholded pictures."""
    every = itertools.product(PRIORS, LIKELIHOODS, POSTERIORS)
    return [c for c in every if c[0].space == c[2].space and c[1].domain.holds_binary]


@functools.cache
def product() -> list[tuple[Prior, Likelihood, Posterior, Objective]]:
    """All of them with every objective that fits."""
    objectives = OBJECTIVES + PYRO_OBJECTIVES
    return [(*c, objective) for c in pieces() for objective in objectives if objective.fits(*c)]


def with_objective(combination: tuple[Prior, Likelihood, Posterior]) -> tuple[Any, ...]:
    """A combination of pieces with the first objective that fits it."""
    return (*combination, next(o for o in OBJECTIVES + PYRO_OBJECTIVES if o.fits(*combination)))


def covering(combinations: Sequence[tuple[Any, ...]], together: Sequence[tuple[int, ...]]) -> list[tuple[Any, ...]]:
    """Return few of the combinations in which all that occurs in any of them at some places together occurs.

    Greedy: for the first thing that is still missing, of the combinations that hold it (some of them, where they are
    many) the one with most that is missing.

    Args:
        combinations: What may be chosen.
        together: The places, for instance ``[(0, 1), (2,)]``: every pair at 0 and 1, and every entry at 2.
    """

    def held(combination: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return [(places, *(combination[place].name for place in places)) for places in together]

    holders: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for combination in combinations:
        for key in held(combination):
            holders.setdefault(key, []).append(combination)
    missing, chosen = dict.fromkeys(holders), []
    while missing:
        found = holders[next(iter(missing))]
        step = max(1, len(found) // 64)
        best = max(found[::step], key=lambda combination: sum(key in missing for key in held(combination)))
        chosen.append(best)
        for key in held(best):
            missing.pop(key, None)
    return chosen


def pairwise(combinations: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return few of the combinations in which every pair of entries that occurs in any of them occurs."""
    return covering(combinations, list(itertools.combinations(range(len(combinations[0])), 2)))


def names(entry: Any) -> str:
    """For ``pytest.mark.parametrize(..., ids=names)``."""
    return "+".join(e.name for e in entry) if isinstance(entry, tuple) else entry.name


def standard_error(samples: Tensor) -> Tensor:
    """Of the mean over dim 0."""
    return samples.std(0) / math.sqrt(len(samples))
