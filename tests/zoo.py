"""Every prior, likelihood, posterior, network and objective of the package, once: one line each.

`test_zoo.py` holds each entry against the conformance properties, and fails if a public class has no entry. A piece's
`make` takes what the tests vary (the latent dimension, or the network) and returns a fresh piece.
"""

from __future__ import annotations

import functools
import importlib.util
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
NOT_PIECES = {
    "Binding",
    "ParameterNetwork",
    "LocationScale",
    "LogWeights",
    "Following",
    "ManyParticles",
    "Path",
    "Estimate",
    "BatchLoss",
    "NotPerDatumError",
    "MovingAverage",
    "LearnedBaseline",
    "Coefficient",
    "Drawing",
    "Site",
    "Penalty",
    "Limits",
    "Regularized",
}


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


def _box_nodes(centre: float, width: float) -> tuple[Tensor, Tensor]:
    """Tanh-sinh nodes on BOX_ENDS."""
    low, high = BOX_ENDS
    t = torch.linspace(-3.2, 3.2, 1601, dtype=torch.float64)
    inner = (math.pi / 2) * t.sinh()
    weights = 0.5 * (high - low) * (math.pi / 2) * t.cosh() / inner.cosh().square() * (t[1] - t[0])
    return low + (high - low) * (2 * inner).sigmoid(), weights


BOX_ENDS = (-1.0, 2.0)  # of all pieces on a box
REAL = Domain("real", lambda *shape: 1.5 * torch.randn(shape), _whole_line)
BOX = Domain(
    "box", lambda *shape: BOX_ENDS[0] + (BOX_ENDS[1] - BOX_ENDS[0]) * torch.rand(shape), _box_nodes, holds_binary=False
)
BINARY = Domain("binary", lambda *shape: torch.randint(2, shape).to(torch.get_default_dtype()), _two_points)


def _unit_interval(centre: float, width: float) -> tuple[Tensor, Tensor]:
    """Tanh-sinh: trapezoid in t with x = sigmoid(pi sinh t), to 1e-15 of either end, which is never reached."""
    t = torch.linspace(-3.1, 3.1, 4001, dtype=torch.float64)
    x = (math.pi * t.sinh()).sigmoid()
    return x, math.pi * t.cosh() * x * (math.pi * -t.sinh()).sigmoid() * (t[1] - t[0])


UNIT = Domain("unit", lambda *shape: torch.rand(shape), _unit_interval)
OPEN_UNIT = Domain("open unit", lambda *shape: 0.001 + 0.998 * torch.rand(shape), _unit_interval, holds_binary=False)


def _grid(bins: int) -> Domain:
    levels = torch.arange(bins, dtype=torch.float64) / (bins - 1)
    return Domain(
        f"grid of {bins}",
        lambda *shape: levels[torch.randint(bins, shape)].to(torch.get_default_dtype()),
        lambda centre, width: (levels, torch.ones_like(levels)),
    )


def _counts(centre: float, width: float) -> tuple[Tensor, Tensor]:
    counts = torch.arange(200 + round(centre + 80 * width), dtype=torch.float64)
    return counts, torch.ones_like(counts)


GRID_4, GRID_17, GRID_256 = _grid(4), _grid(17), _grid(256)
COUNTS = Domain("counts", lambda *shape: torch.poisson(torch.full(shape, 3.0)), _counts)


def _logits_to_12(centre: float, width: float) -> tuple[Tensor, Tensor]:
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    z = u.sigmoid()
    weight = z * (1 - z) * (u[1] - u[0])
    weight[[0, -1]] /= 2
    return z, weight


def _one_hots(*shape: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.randint(shape[-1], shape[:-1]), shape[-1]).to(torch.get_default_dtype())


# a relaxed bit's logits are held to [-12, 12]
RELAXED_BIT = Domain("relaxed bit", torch.rand, _logits_to_12)
SPHERE = Domain("sphere", lambda *shape: torch.nn.functional.normalize(torch.randn(shape), dim=-1), _whole_line)
ONE_HOT = Domain("one-hot", _one_hots, _two_points)
SIMPLEX = Domain("simplex", lambda *shape: torch.randn(shape).softmax(-1), _two_points)


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
    min_particles: int = 1
    trains_model: bool = True  # whether p's parameters get a gradient (an upper bound is brought down by q alone)
    gradient: str = ""  # how it is estimated, where objectives of one way are tried with one posterior each

    @functools.cached_property
    def program(self) -> Program:
        """The simplest program that it fits."""
        return next(p for p in (Program(), BITS) if self.fits(p.prior, p.likelihood, p.posterior))

    def particles(self) -> list[int]:
        """Numbers of particles to try it with."""
        return [k for k in (1, 3) if k >= self.min_particles]


def _pathwise(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    return posterior.reparameterised


def _rescored(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    """The score of q is taken away by scoring the same z again."""
    return posterior.reparameterised and posterior.rescores


def _annealed(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    """The latent moves freely, and q scores where it goes."""
    return _rescored(prior, likelihood, posterior) and posterior.space == "real"


def _normal_prior(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    """The prior's score is reparameterised as well."""
    normal = ("StandardNormal", "LearnedNormal", "TorchNormal", "Ladder", "TwoLevel")
    return _rescored(prior, likelihood, posterior) and prior.name in normal


def _scored(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    """Draws without a gradient are scored with one."""
    return posterior.rescores


def _states(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    return posterior.space in ("bits", "one-hot")


def _bits(prior: Prior, likelihood: Likelihood, posterior: Posterior) -> bool:
    return posterior.space == "bits"


@functools.cache
def _example(entry: Prior | Posterior) -> Any:
    """p(z) or q(z|x) of two latents."""
    if isinstance(entry, Prior):
        return Program(entry, LIKELIHOODS[0], goes_with(entry, POSTERIORS)).vae((1, 1, 2), 2).p_z()
    return Program(goes_with(entry, PRIORS), LIKELIHOODS[0], entry).vae((1, 1, 2), 2).q_z(torch.zeros(1, 1, 1, 2))


@functools.cache
def _closed_kl(prior: Prior, posterior: Posterior) -> bool:
    q, p = _example(posterior), _example(prior)
    try:
        q.kl_given(p, q.sample(), closed=True) if hasattr(q, "kl_given") else torch.distributions.kl_divergence(q, p)
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
    Prior("LearnedNormal", lambda latent_dim: priors.DiagonalNormal(latent_dim)),
    Prior("LaplacePrior-0.7", lambda latent_dim: priors.Laplace(latent_dim, scale=0.7), tolerance=1e-5),  # has a kink
    Prior("StudentT-9", lambda latent_dim: priors.StudentT(latent_dim, df=9.0, scale=0.8)),
    Prior("Uniform", lambda latent_dim: priors.Uniform(latent_dim, *BOX_ENDS), BOX, space="box"),
    Prior("MixturePrior-5", lambda latent_dim: priors.MixtureOfNormals(latent_dim, num_components=5)),
    Prior("VampPrior-6", lambda latent_dim: priors.VampPrior(latent_dim, 6)),
    Prior("VampPrior-6-weights", lambda latent_dim: priors.VampPrior(latent_dim, 6, "random", 0.0, 1.0, True)),
    Prior("MaskedFlow", lambda d: priors.MaskedAutoregressiveFlow(d, 2, [9]), closed_form=False),
    Prior("CouplingFlowPrior", lambda d: priors.CouplingFlow(d, 2, [9]), min_latent=2, closed_form=False),
    Prior("SplineFlowPrior", lambda d: priors.SplineFlow(d, 2, [9], 4), closed_form=False, tolerance=1e-4),
    Prior("HypersphericalUniform", priors.HypersphericalUniform, SPHERE, "sphere", min_latent=2, dense=False),
    Prior("BernoulliVector", lambda d: priors.BernoulliVector(d), BINARY, "bits"),
    Prior("BernoulliVector-0.2", lambda d: priors.BernoulliVector(d, 0.2, learned=True), BINARY, "bits"),
    Prior("OneHotCategorical", lambda d: priors.OneHotCategorical(d), ONE_HOT, "one-hot", min_latent=2, dense=False),
    Prior(
        "OneHotCategorical-learned",
        lambda d: priors.OneHotCategorical(d, learned=True),
        ONE_HOT,
        "one-hot",
        min_latent=2,
        dense=False,
    ),
    Prior(
        "RelaxedBernoulliVector",
        lambda d: priors.RelaxedBernoulliVector(d, learned=True),
        RELAXED_BIT,
        "relaxed bits",
        closed_form=False,
    ),
    Prior(
        "RelaxedOneHotCategorical",
        lambda d: priors.RelaxedOneHotCategorical(d, learned=True),
        SIMPLEX,
        "simplex",
        min_latent=2,
        dense=False,
        closed_form=False,
    ),
    Prior(
        "Ladder",
        lambda d: priors.Ladder([d - d // 2, d // 2], MLP([9])),
        space="levels",
        min_latent=2,
        dense=False,
        closed_form=False,
    ),
    Prior("TwoLevel", lambda d: priors.TwoLevel(d, d // 2, MLP([9])), min_latent=2, dense=False, closed_form=False),
]

LIKELIHOODS = [
    Likelihood("Bernoulli", lambda network: likelihoods.Bernoulli(network), BINARY),
    Likelihood("Bernoulli-grey", lambda network: likelihoods.Bernoulli(network, allow_grey=True), BINARY, data=grey),
    Likelihood("Normal", lambda network: likelihoods.Normal(network), REAL),
    Likelihood("Normal-0.3", lambda network: likelihoods.Normal(network, scale=0.3), REAL),
    Likelihood("Normal-global", lambda network: likelihoods.Normal(network, learn="global"), REAL),
    Likelihood("Normal-pixel", lambda network: likelihoods.Normal(network, 0.5, learn="pixel"), REAL),
    Likelihood("Normal-datum", lambda network: likelihoods.Normal(network, learn="datum", floor=0.1), REAL),
    Likelihood("OptimalSigmaNormal", lambda network: likelihoods.OptimalSigmaNormal(network), REAL),
    Likelihood("Laplace", lambda network: likelihoods.Laplace(network), REAL, tolerance=1e-5),
    Likelihood("Laplace-datum", lambda network: likelihoods.Laplace(network, learn="datum"), REAL, tolerance=1e-5),
    Likelihood("StudentT", lambda network: likelihoods.StudentT(network, df=8.0), REAL),
    Likelihood("StudentT-global", lambda network: likelihoods.StudentT(network, df=9.0, learn="global"), REAL),
    Likelihood("ContinuousBernoulli", lambda network: likelihoods.ContinuousBernoulli(network), UNIT),
    Likelihood("Beta", lambda network: likelihoods.Beta(network, precision=20.0, floor=1.0), OPEN_UNIT),
    Likelihood("Beta-concentrations", lambda network: likelihoods.Beta(network, "concentrations", 9.0, 1.0), OPEN_UNIT),
    Likelihood("Mixed-real", lambda network: likelihoods.Mixed("real", network), REAL),
    Likelihood("Mixed-real-network", lambda network: likelihoods.Mixed("real", network, scale="network"), REAL),
    Likelihood("Mixed-binary", lambda network: likelihoods.Mixed("binary", network), BINARY),
    Likelihood("DiscretizedLogistic", lambda network: likelihoods.DiscretizedLogistic(network), GRID_256),
    Likelihood("DiscretizedLogistic-4", lambda network: likelihoods.DiscretizedLogistic(network, bins=4), GRID_4),
    Likelihood(
        "DiscretizedLogistic-pixel-17",
        lambda network: likelihoods.DiscretizedLogistic(network, bins=17, learn="pixel"),
        GRID_17,
    ),
    Likelihood(
        "DiscretizedLogistic-datum",
        lambda network: likelihoods.DiscretizedLogistic(network, scale=0.5, learn="datum", floor=0.01),
        GRID_256,
    ),
    Likelihood("DiscretizedLogisticMixture", lambda network: likelihoods.DiscretizedLogisticMixture(network), GRID_256),
    Likelihood(
        "DiscretizedLogisticMixture-3-4",
        lambda network: likelihoods.DiscretizedLogisticMixture(network, num_components=3, bins=4),
        GRID_4,
    ),
    Likelihood(
        "Categorical-4", lambda network: likelihoods.Categorical(network, bins=4), GRID_4
    ),  # of a family the first stands for all: 256 logits a pixel are slow
    Likelihood("Categorical", lambda network: likelihoods.Categorical(network), GRID_256),
    Likelihood("Binomial", lambda network: likelihoods.Binomial(network), GRID_256),
    Likelihood("Binomial-3", lambda network: likelihoods.Binomial(network, total=3), GRID_4),
    Likelihood("Poisson", lambda network: likelihoods.Poisson(network), COUNTS),
    Likelihood("NegativeBinomial", lambda network: likelihoods.NegativeBinomial(network, start=2.0), COUNTS),
    Likelihood(
        "NegativeBinomial-global",
        lambda network: likelihoods.NegativeBinomial(network, dispersion="global", start=5.0),
        COUNTS,
    ),
    Likelihood(
        "ZeroInflatedNegativeBinomial",
        lambda network: likelihoods.ZeroInflatedNegativeBinomial(network, start=2.0),
        COUNTS,
    ),
    Likelihood(
        "ZeroInflatedNegativeBinomial-datum",
        lambda network: likelihoods.ZeroInflatedNegativeBinomial(network, "datum", start=9.0),
        COUNTS,
    ),
]

POSTERIORS = [
    Posterior("DiagonalNormal", lambda network: Diagonal(network)),
    Posterior("DiagonalNormal-std", lambda network: Diagonal(network, scale="std")),
    Posterior("DiagonalNormal-log_var", lambda network: Diagonal(network, scale="log_var")),
    Posterior("DiagonalNormal-softplus-floor", lambda network: Diagonal(network, scale="softplus", floor=0.1)),
    Posterior("FullCovarianceNormal", lambda network: posteriors.FullCovarianceNormal(network)),
    Posterior("LowRankNormal-2", lambda network: posteriors.LowRankNormal(network, rank=2)),
    Posterior("LaplacePosterior", lambda network: posteriors.Laplace(network), tolerance=1e-5),  # has a kink
    Posterior("MixturePosterior-3", lambda network: posteriors.MixtureOfNormals(network)),
    Posterior("SquashedNormal", lambda network: posteriors.SquashedNormal(network, *BOX_ENDS), BOX, space="box"),
    Posterior(
        "InverseFlow", lambda network: posteriors.InverseAutoregressiveFlow(network, 4, 2, [9]), closed_form=False
    ),
    Posterior(
        "CouplingFlowPosterior",
        lambda network: posteriors.CouplingFlow(network, 4, 2, [9]),
        min_latent=2,
        closed_form=False,
    ),
    Posterior(
        "SplineFlowPosterior",
        lambda network: posteriors.SplineFlow(network, 4, 2, [9], 4),
        min_latent=2,
        closed_form=False,
    ),
    Posterior("PlanarFlow", lambda network: posteriors.PlanarFlow(network, 4, 2), closed_form=False, rescores=False),
    Posterior("PowerSpherical", posteriors.PowerSpherical, SPHERE, "sphere", min_latent=2, dense=False),
    Posterior("VonMisesFisher", posteriors.VonMisesFisher, SPHERE, "sphere", min_latent=2, dense=False),
    Posterior("BernoulliVector", posteriors.BernoulliVector, BINARY, "bits", reparameterised=False),
    Posterior(
        "RelaxedBernoulliVector-straight_through",
        lambda network: posteriors.RelaxedBernoulliVector(network, straight_through=True),
        BINARY,
        "bits",
    ),
    Posterior(
        "OneHotCategorical",
        posteriors.OneHotCategorical,
        ONE_HOT,
        "one-hot",
        min_latent=2,
        dense=False,
        reparameterised=False,
    ),
    Posterior(
        "GumbelSoftmax-straight_through",
        lambda network: posteriors.GumbelSoftmax(network, straight_through=True),
        ONE_HOT,
        "one-hot",
        min_latent=2,
        dense=False,
    ),
    Posterior(
        "RelaxedBernoulliVector", posteriors.RelaxedBernoulliVector, RELAXED_BIT, "relaxed bits", closed_form=False
    ),
    Posterior("GumbelSoftmax", posteriors.GumbelSoftmax, SIMPLEX, "simplex", 2, dense=False, closed_form=False),
    *(
        Posterior(
            name,
            lambda network, name=name: posteriors.Ladder(network, MLP([9]), direction=name[7:] or "top-down"),
            space="levels",
            min_latent=2,
            dense=False,
            closed_form=False,
        )
        for name in ("Ladder", "Ladder-bottom-up", "Ladder-precision-weighted")
    ),
    Posterior(
        "TwoLevel",
        lambda network: posteriors.TwoLevel(1, network, MLP([9])),
        min_latent=2,
        dense=False,
        closed_form=False,
    ),
]


class TorchNormal(torch.nn.Module):
    """Torch's own distributions: a posterior, or a likelihood, of normals around the outputs of a network."""

    def __init__(self, network: Any, latent: bool) -> None:
        super().__init__()
        self.network, self.latent = networks.ParameterNetwork(network, "TorchNormal"), latent

    def bind(self, binding: networks.Binding) -> None:
        shapes = (binding.x_shape, binding.latent_shape)
        self.network.build(*(shapes if self.latent else reversed(shapes)), binding.y_shape)

    def forward(self, inputs: Tensor) -> Any:
        (mean,) = self.network(inputs)
        event_dim = 1 if self.latent else mean.dim() - inputs.dim() + 1
        return torch.distributions.Independent(torch.distributions.Normal(mean, torch.ones_like(mean)), event_dim)


class ZukoFlow(torch.nn.Module):
    """A conditional flow of zuko's as posterior."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = networks.ParameterNetwork(network, "ZukoFlow")

    def bind(self, binding: networks.Binding) -> None:
        self.network.build(binding.x_shape, (4,), binding.y_shape)
        self.flow = zuko().flows.MAF(*binding.latent_shape, 4, transforms=2, passes=2, hidden_features=[9])

    def forward(self, inputs: Tensor) -> Any:
        (context,) = self.network(inputs)
        return self.flow(context)


def zuko() -> Any:
    """The package zuko; importing it switches off the validation of torch, which is switched on again."""
    before = torch.distributions.Distribution._validate_args
    try:
        return importlib.import_module("zuko")
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


class TorchPrior(torch.nn.Module):
    """A prior of torch's own distributions."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.loc = torch.nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> Any:
        return torch.distributions.Independent(torch.distributions.Normal(self.loc, torch.ones_like(self.loc)), 1)


PRIORS += [Prior("TorchNormal", TorchPrior)]
LIKELIHOODS += [Likelihood("TorchNormal", lambda network: TorchNormal(network, latent=False), REAL)]
POSTERIORS += [Posterior("TorchNormal", lambda network: TorchNormal(network, latent=True))]
if importlib.util.find_spec("zuko"):  # else these entries are absent: `test_foreign` skips with the reason
    PRIORS += [
        Prior("ZukoMAF", lambda d: zuko().flows.MAF(d, transforms=2, hidden_features=[9]), closed_form=False),
        Prior(
            "ZukoSpline",
            lambda d: zuko().flows.NSF(d, bins=4, transforms=2, hidden_features=[9]),
            closed_form=False,
            tolerance=1e-4,
        ),
    ]
    POSTERIORS += [Posterior("ZukoFlow", ZukoFlow, min_latent=2, closed_form=False)]

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
    Network("MLP-gelu-layer_norm", lambda: MLP([9, 7], "gelu", layer_norm=True)),
    Network("MLP-leaky_relu", lambda: MLP([9, 7], "leaky_relu", init="torch")),
    Network("MLP-elu", lambda: MLP([9, 7], "elu", init="torch")),
    Network("MLP-silu-dropout", lambda: MLP([9, 7], "silu", init="torch", dropout=0.2), dropout=True),
    Network("TableEncoder", lambda: networks.TableEncoder(network=MLP([9, 7]))),
    Network("TableEncoder-mask", lambda: networks.TableEncoder(network=MLP([9, 7]), mask=True)),
    Network("Log1p", lambda: networks.Log1p(MLP([9, 7]))),
    Network("Log1p-2", lambda: networks.Log1p(MLP([9, 7]), counts=1)),
    Network("GatedMLP", lambda: networks.GatedMLP([9, 7], init="torch")),
    Network("GatedMLP-dropout", lambda: networks.GatedMLP([9], init="torch", dropout=0.2), dropout=True),
    Network("Convolutional", lambda: networks.Convolutional([3, 4], [9], init="torch"), images=True),
    Network(
        "Convolutional-batch_norm",
        lambda: networks.Convolutional([3, 4], [9], batch_norm=True, init="torch"),
        batch_norm=True,
        images=True,
    ),
    Network("ResidualConvolutional", lambda: networks.ResidualConvolutional([3, 4], [9], init="torch"), images=True),
    Network(
        "ResidualConvolutional-batch_norm",
        lambda: networks.ResidualConvolutional([3], [9], batch_norm=True, init="torch"),
        batch_norm=True,
        images=True,
    ),
]

OBJECTIVES = [
    Objective("ELBO", lambda k: objectives.ELBO(k), fits=_pathwise),
    Objective("MeanFieldELBO", lambda k: objectives.MeanFieldELBO(k), fits=_mean_field),
    Objective("ArticleELBO", lambda k: objectives.ArticleELBO(k), is_elbo=False, fits=_article),
    Objective("ArticleELBO-exact", lambda k: objectives.ArticleELBO(k, eps=0, normalize=True), fits=_article),
    Objective("STL", lambda k: objectives.STL(k), fits=_rescored, gradient="rescored"),
    Objective("IWAE", lambda k: objectives.IWAE(k), False, False, _pathwise, gradient="weighted"),
    Objective("DReG", lambda k: objectives.DReG(k), False, False, _rescored, gradient="rescored"),
    Objective("GDReG", lambda k: objectives.GDReG(k), False, False, _normal_prior, gradient="rescored twice"),
    Objective("IWAESTL", lambda k: objectives.IWAESTL(k), False, False, _rescored, gradient="rescored"),
    Objective("Renyi", lambda k: objectives.Renyi(k), False, False, _pathwise, gradient="weighted"),
    Objective("Renyi--1", lambda k: objectives.Renyi(k, alpha=-1.0), False, False, _pathwise, gradient="weighted"),
    Objective("RenyiDReG", lambda k: objectives.RenyiDReG(k, 0.3), False, False, _rescored, gradient="rescored"),
    Objective("VRMax", lambda k: objectives.VRMax(k), False, False, _pathwise, gradient="weighted"),
    Objective("CIWAE", lambda k: objectives.CIWAE(k), False, False, _pathwise, gradient="weighted"),
    Objective("MIWAE", lambda k: objectives.MIWAE(2 * k, groups=2), False, False, _pathwise, gradient="weighted"),
    Objective("PIWAE", lambda k: objectives.PIWAE(k, groups=k), False, False, _pathwise, gradient="path"),
    Objective("JVI", lambda k: objectives.JVI(k, min(1, k - 1)), False, False, _pathwise, gradient="weighted"),
    Objective("REINFORCE", lambda k: objectives.REINFORCE(k), fits=_scored, gradient="score"),
    Objective("REINFORCE-average", lambda k: objectives.REINFORCE(k, "moving_average"), fits=_scored, gradient="score"),
    Objective(
        "REINFORCE-leave_one_out",
        lambda k: objectives.REINFORCE(k, "leave_one_out"),
        fits=_scored,
        min_particles=2,
        gradient="score",
    ),
    Objective("REINFORCE-learned", lambda k: objectives.REINFORCE(k, "learned"), fits=_scored, gradient="score"),
    Objective("NVIL", lambda k: objectives.NVIL(k), fits=_scored, gradient="score"),
    Objective("ARM", lambda k: objectives.ARM(2 * k), fits=_bits, gradient="antithetic"),
    Objective("DisARM", lambda k: objectives.DisARM(2 * k), fits=_bits, gradient="antithetic"),
    Objective("LocalDisARM", lambda k: objectives.LocalDisARM(2 * k), False, False, _bits, gradient="antithetic"),
    Objective("DoubleCV", lambda k: objectives.DoubleCV(k), fits=_states, min_particles=2),
    Objective("REBAR", lambda k: objectives.REBAR(k), fits=_states, gradient="control"),
    Objective("REBAR-fixed", lambda k: objectives.REBAR(k, adapt=False), fits=_states, gradient="control"),
    Objective("RELAX", lambda k: objectives.RELAX(k), fits=_states, gradient="control"),
    Objective("VIMCO", lambda k: objectives.VIMCO(k), False, False, _scored, min_particles=2, gradient="score"),
    Objective("VIMCOStar", lambda k: objectives.VIMCOStar(k), False, False, _scored, min_particles=2, gradient="score"),
    Objective("OVIS", lambda k: objectives.OVIS(k), False, False, _scored, min_particles=2, gradient="score"),
    Objective(
        "OVISMC", lambda k: objectives.OVISMC(k + 2, 2), False, False, _scored, min_particles=2, gradient="score"
    ),
    Objective("RWS", lambda k: objectives.RWS(k), False, False, _scored, gradient="score", min_particles=2),
    Objective(
        "RWS-both", lambda k: objectives.RWS(k, "both"), False, False, _scored, gradient="dream", min_particles=2
    ),
    Objective(
        "RWSDReG", lambda k: objectives.RWSDReG(k), False, False, _rescored, gradient="rescored", min_particles=2
    ),
    Objective(
        "DAIS",
        lambda k: objectives.DAIS(k, transitions=2, step_size=0.003),
        False,
        False,
        _annealed,
        gradient="annealed",
    ),
    Objective("EnumeratedELBO", lambda k: objectives.EnumeratedELBO(), fits=_states),
    Objective("GumbelSoftmaxELBO", lambda k: objectives.GumbelSoftmaxELBO(k), fits=_states, gradient="relaxed"),
    Objective("StraightThroughELBO", lambda k: objectives.StraightThroughELBO(k), fits=_states, gradient="relaxed"),
    Objective("ReinMaxELBO", lambda k: objectives.ReinMaxELBO(k), fits=_states, gradient="relaxed"),
    Objective("GumbelRaoELBO", lambda k: objectives.GumbelRaoELBO(k), fits=_states, gradient="relaxed"),
    Objective("TVO", lambda k: objectives.TVO(k), False, False, _scored, gradient="score", min_particles=2),
    Objective("TVO-pathwise", lambda k: objectives.TVO(k, pathwise=True), False, False, _pathwise, gradient="weighted"),
    Objective("CUBO", lambda k: objectives.CUBO(k), False, False, _scored, trains_model=False, gradient="score"),
    Objective("EUBO", lambda k: objectives.EUBO(k), False, False, _scored, trains_model=False, gradient="score"),
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


BITS = Program(
    next(p for p in PRIORS if p.name == "BernoulliVector"),
    posterior=next(q for q in POSTERIORS if q.name == "BernoulliVector"),
)


def goes_together(prior: Prior, posterior: Posterior) -> bool:
    """Whether they live in the same space; a VampPrior also needs a posterior that can score any z."""
    return prior.space == posterior.space and (posterior.rescores or not prior.name.startswith("VampPrior"))


def family(entry: Any) -> str:
    """The piece of which an entry is a variant: what stands before the first hyphen of its name.

    Objectives whose gradients are estimated in one way are one family.
    """
    return getattr(entry, "gradient", "") or entry.name.partition("-")[0]


def goes_with(entry: Any, others: Sequence[Any]) -> Any:
    """Return the first of some priors or posteriors that lives in the same space."""
    return next(other for other in others if other.space == entry.space)


def program_with(entry: Any) -> Program:
    """The first program, with a piece or a network in its place and what goes with it."""
    match entry:
        case Prior():
            return Program(entry, posterior=goes_with(entry, POSTERIORS))
        case Posterior():
            return Program(goes_with(entry, PRIORS), posterior=entry)
        case _:
            return replace(Program(), **{type(entry).__name__.lower(): entry})


def programs() -> list[Program]:
    """For each piece and each network one program that it appears in."""
    others = [entry for entries in (PRIORS, LIKELIHOODS, POSTERIORS, NETWORKS) for entry in entries[1:]]
    return list(dict.fromkeys([Program(), *map(program_with, others)]))  # a prior and its posterior are one program


def one_of_each_family(entries: Sequence[Any]) -> list[Any]:
    """Return the first entry of each family."""
    return list({family(entry): entry for entry in reversed(entries)}.values())[::-1]


def families() -> list[Program]:
    """Few programs in which every family of pieces and of networks occurs."""
    both = [(prior, goes_with(prior, POSTERIORS)) for prior in one_of_each_family(PRIORS)]
    met = {family(posterior) for _, posterior in both}
    others = [posterior for posterior in one_of_each_family(POSTERIORS) if family(posterior) not in met]
    both += [(goes_with(posterior, PRIORS), posterior) for posterior in others]
    likelihoods_, networks_ = one_of_each_family(LIKELIHOODS), one_of_each_family(NETWORKS)
    turns = range(max(len(both), len(likelihoods_), len(networks_)))
    cycles = zip(turns, itertools.cycle(both), itertools.cycle(likelihoods_), itertools.cycle(networks_), strict=False)
    return [Program(prior, likelihood, posterior, network) for _, (prior, posterior), likelihood, network in cycles]


@functools.cache
def pieces() -> list[tuple[Prior, Likelihood, Posterior]]:
    """All combinations of pieces that can be trained on thresholded pictures."""
    every = itertools.product(PRIORS, LIKELIHOODS, POSTERIORS)
    return [c for c in every if goes_together(c[0], c[2]) and c[1].domain.holds_binary]


@functools.cache
def product() -> list[tuple[Prior, Likelihood, Posterior, Objective]]:
    """All of them with every objective that fits; of objectives of one family each combination has one, in turn."""
    families: dict[str, list[Objective]] = {}
    for objective in OBJECTIVES + PYRO_OBJECTIVES:
        families.setdefault(objective.gradient or objective.name, []).append(objective)
    found = []
    for i, combination in enumerate(pieces()):
        for members in families.values():
            objective = members[i % len(members)]
            if objective.fits(*combination):
                found.append((*combination, objective))
    return found


def with_objective(combination: tuple[Prior, Likelihood, Posterior]) -> tuple[Any, ...]:
    """A combination of pieces with the first objective that fits it."""
    return (*combination, next(o for o in OBJECTIVES + PYRO_OBJECTIVES if o.fits(*combination)))


def covering(
    combinations: Sequence[tuple[Any, ...]],
    together: Sequence[tuple[int, ...]],
    every_entry: bool = True,
) -> list[tuple[Any, ...]]:
    """Return few of the combinations in which every entry occurs, and every families that occur at places together.

    Greedy: for the first thing that is still missing, of the combinations that hold it (some of them, where they are
    many) the one with most that is missing.

    Args:
        combinations: What may be chosen.
        together: The places, for instance ``[(0, 1)]``: the families of every pair at 0 and 1.
        every_entry: Whether every entry must occur, or one of each family.
    """

    def held(combination: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        families = [family(entry) for entry in combination]
        each = [entry.name for entry in combination] if every_entry else families
        return [*((places, *(families[place] for place in places)) for places in together), *enumerate(each)]

    keys = [held(combination) for combination in combinations]
    holders: dict[tuple[Any, ...], list[int]] = {}
    for i, its in enumerate(keys):
        for key in its:
            holders.setdefault(key, []).append(i)
    missing, chosen = dict.fromkeys(holders), []
    while missing:
        found = holders[next(iter(missing))]
        step = max(1, len(found) // 64)
        best = max(found[::step], key=lambda i: sum(key in missing for key in keys[i]))
        chosen.append(combinations[best])
        for key in keys[best]:
            missing.pop(key, None)
    return chosen


def pairwise(combinations: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return few of the combinations in which every pair of families that occurs in any of them occurs."""
    return covering(combinations, list(itertools.combinations(range(len(combinations[0])), 2)))


def names(entry: Any) -> str:
    """For ``pytest.mark.parametrize(..., ids=names)``."""
    return "+".join(e.name for e in entry) if isinstance(entry, tuple) else entry.name


def standard_error(samples: Tensor) -> Tensor:
    """Of the mean over dim 0."""
    return samples.std(0) / math.sqrt(len(samples))
