"""Every prior, likelihood, posterior, network and objective of the package, once: one line each.

`test_zoo.py` holds each entry against the conformance properties, and fails if a public class has no entry. A piece's
`make` takes what the tests vary (the latent dimension, or the network) and returns a fresh piece.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True)
class Likelihood:
    name: str
    make: Callable[[Any], Any]  # network -> piece
    domain: Domain  # of its samples, on which it is a density
    closed_form: bool = True  # whether mean and variance have one
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
    Objective("ELBO", lambda k: objectives.ELBO(k)),
    Objective("MeanFieldELBO", lambda k: objectives.MeanFieldELBO(k)),
    Objective("ArticleELBO", lambda k: objectives.ArticleELBO(k), is_elbo=False, fits=_article),
    Objective("ArticleELBO-exact", lambda k: objectives.ArticleELBO(k, eps=0, normalize=True), fits=_article),
]

_SIDE_BY_SIDE: dict[str, Any] = {"vectorize_particles": True}
PYRO_OBJECTIVES = [
    Objective("Trace_ELBO", lambda k: infer.Trace_ELBO(k)),
    Objective("Trace_ELBO-vectorized", lambda k: infer.Trace_ELBO(k, **_SIDE_BY_SIDE)),
    Objective("TraceMeanField_ELBO", lambda k: infer.TraceMeanField_ELBO(k)),
    Objective("TraceMeanField_ELBO-vectorized", lambda k: infer.TraceMeanField_ELBO(k, **_SIDE_BY_SIDE)),
    Objective("RenyiELBO", lambda k: infer.RenyiELBO(num_particles=k), is_elbo=False, averages=False),
    Objective("RenyiELBO-vectorized", lambda k: infer.RenyiELBO(num_particles=k, **_SIDE_BY_SIDE), False, False),
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


def product() -> Iterator[tuple[Prior, Likelihood, Posterior, Objective]]:
    """All combinations that can be trained on thresholded pictures."""
    for combination in itertools.product(PRIORS, LIKELIHOODS, POSTERIORS, OBJECTIVES + PYRO_OBJECTIVES):
        *pieces, objective = combination
        prior, likelihood, posterior = pieces
        if prior.space == posterior.space and likelihood.domain.holds_binary and objective.fits(*pieces):
            yield combination


def pairwise(combinations: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return few of the combinations in which every pair of entries that occurs in any of them occurs.

    Greedy: the combination with most new pairs first.
    """

    def pairs(combination: tuple[Any, ...]) -> set[tuple[int, int, str, str]]:
        named = [(i, entry.name) for i, entry in enumerate(combination)]
        return {(i, j, a, b) for (i, a), (j, b) in itertools.combinations(named, 2)}

    missing = set().union(*map(pairs, combinations))
    chosen = []
    while missing:
        best = max(combinations, key=lambda combination: len(pairs(combination) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def names(entry: Any) -> str:
    """For ``pytest.mark.parametrize(..., ids=names)``."""
    return "+".join(e.name for e in entry) if isinstance(entry, tuple) else entry.name


def standard_error(samples: Tensor) -> Tensor:
    """Of the mean over dim 0."""
    return samples.std(0) / math.sqrt(len(samples))
