"""Densities in float32 against float64 at hostile parameters, and draws against what they were drawn from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import normalize

from ppl_vae import VAE, data, fit, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.distributions.axial import PowerSpherical, VonMisesFisher
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.box import SquashedNormal
from ppl_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from ppl_vae.distributions.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from ppl_vae.distributions.discretized_logistic import DiscretizedLogistic, DiscretizedLogisticMixture
from ppl_vae.distributions.full_normal import FullNormal
from ppl_vae.distributions.grid import GridBinomial, GridCategorical
from ppl_vae.distributions.low_rank_normal import LowRankNormal
from ppl_vae.distributions.normal import Normal
from ppl_vae.distributions.normal_mixture import NormalMixture
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.distributions.relaxed import RelaxedBits, RelaxedOneHotVector
from ppl_vae.distributions.student_t import StudentT
from ppl_vae.evidence.normals import Normals
from ppl_vae.networks import Binding

N = 6  # elements of a generated batch
HOSTILE = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


def few_and_all(few: int, many: int) -> list[Any]:
    """Numbers of generated examples: few in the default run, and all before a release."""
    return [few, pytest.param(many, marks=pytest.mark.slow)]


def real(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of either sign from 10^low to 10^high in size, and zero."""
    size = st.floats(low, high).map(lambda u: 10.0**u)
    return st.one_of(size, size.map(lambda v: -v), st.just(0.0))


def positive(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda u: 10.0**u)


UNIT = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, allow_subnormal=False), positive(-37, 0))


def tensor(draw: Any, strategy: st.SearchStrategy[Any], shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    return torch.tensor(draw(st.lists(strategy, min_size=count, max_size=count)), dtype=torch.float32).reshape(shape)


@dataclass(frozen=True)
class Family:
    """How to make a distribution, and data for it: None for its own draws."""

    make: Callable[..., Any]
    parameters: tuple[tuple[st.SearchStrategy[Any], tuple[int, ...]], ...]
    values: tuple[st.SearchStrategy[Any], tuple[int, ...]] | None = None
    prepare: Callable[[list[Tensor]], list[Tensor]] = lambda parameters: parameters


def level(bins: int) -> tuple[st.SearchStrategy[float], tuple[int, ...]]:
    return st.integers(0, bins - 1).map(lambda k: k / (bins - 1)), (N,)


def unit_axis(parameters: list[Tensor]) -> list[Tensor]:
    axis, concentration = parameters
    axis = axis.double() + 1e-3
    return [normalize(axis, dim=-1).float(), concentration]


COUNT = positive(-1, 7).map(lambda v: float(round(v)))
BITS = st.sampled_from([0.0, 1.0])
FAMILIES = {
    "ContinuousBernoulli": Family(ContinuousBernoulli, ((real(-8, 8), (N,)),), (UNIT, (N,))),
    "ContinuousBernoulli-own": Family(ContinuousBernoulli, ((real(-8, 8), (N,)),)),
    "Poisson": Family(Poisson, ((real(-8, 1.9), (N,)),), (COUNT, (N,))),
    "NegativeBinomial": Family(NegativeBinomial, ((real(-3, 1.9), (N,)), (real(-3, 3), (N,))), (COUNT, (N,))),
    "ZeroInflated": Family(
        ZeroInflatedNegativeBinomial,
        ((real(-3, 1.9), (N,)), (real(-3, 3), (N,)), (real(-8, 8), (N,))),
        (st.one_of(COUNT, st.just(0.0)), (N,)),
    ),
    "DiscretizedLogistic": Family(DiscretizedLogistic, ((real(-6, 8), (N,)), (real(-2, 2.5), (N,))), level(256)),
    "DiscretizedLogisticMixture": Family(
        DiscretizedLogisticMixture,
        ((real(-3, 4), (N, 3)), (real(-6, 8), (N, 3)), (real(-2, 2.5), (N, 3))),
        level(256),
    ),
    "GridBinomial": Family(lambda logits: GridBinomial(logits, 255), ((real(-8, 8), (N,)),), level(256)),
    "GridCategorical": Family(GridCategorical, ((real(-8, 8), (N, 7)),), level(7)),
    **{
        f"StudentT-{df:g}": Family(
            lambda loc, scale, df=df: StudentT(df, loc, scale),
            ((real(-15, 15), (N,)), (positive(-20, 15), (N,))),
            (real(-30, 30), (N,)),
        )
        for df in (0.1, 1.0, 8.0, 1e6)
    },
    "NormalMixture": Family(
        NormalMixture, ((real(-3, 3), (N, 3)), (real(-5, 5), (N, 3, 4)), (positive(-5, 5), (N, 3, 4)))
    ),
    "RelaxedOneHot": Family(RelaxedOneHotVector, ((real(-3, 8), (N, 2, 4)), (positive(-3, 1), (1,)))),
    "RelaxedBits": Family(RelaxedBits, ((real(-3, 8), (N, 3)), (positive(-3, 1), (1,)))),
    "BinaryVector": Family(BinaryVector, ((real(-3, 8), (N, 3)),), (BITS, (N, 3))),
    "OneHot": Family(OneHotVector, ((real(-3, 8), (N, 1, 4)),)),
    **{
        f"{kind.__name__}-{d}": Family(
            lambda loc, kappa, kind=kind: kind(loc, kappa, validate_args=False),
            ((real(-3, 3), (n, d)), (positive(-3, 8), (n,))),
            prepare=unit_axis,
        )
        for kind in (PowerSpherical, VonMisesFisher)
        for d, n in ((2, N), (3, N), (50, 2))  # to generate numbers is what takes time
    },
}


@pytest.mark.ci
@pytest.mark.thinned(3)
@pytest.mark.parametrize("examples", few_and_all(20, 60))
@pytest.mark.parametrize("name", FAMILIES)
def test_density_and_gradient_agree_with_float64(name: str, examples: int) -> None:
    """At the same parameters and the same value; an error of 1e-4 is some hundred roundings of the largest term."""
    checked = given(name=st.just(name), data=st.data(), seed=st.integers(0, 2**31))(check_density_and_gradient)
    settings(HOSTILE, max_examples=examples)(checked)()


def check_density_and_gradient(name: str, data: st.DataObject, seed: int) -> None:
    family = FAMILIES[name]
    narrow = family.prepare([tensor(data.draw, *p) for p in family.parameters])
    wide = [p.double().requires_grad_() for p in narrow]
    for p in narrow:
        p.requires_grad_()
    torch.manual_seed(seed)
    q, exact = family.make(*narrow), family.make(*wide)
    exact._validate_args = False
    value = tensor(data.draw, *family.values) if family.values is not None else q.sample()
    assert value.isfinite().all()
    found, expected = q.log_prob(value), exact.log_prob(value.double())
    held = expected.abs() < 1e37  # what float32 can hold
    error = (found.double() - expected).abs()[held]
    assert bool((error <= 1e-4 * (1 + expected.abs()[held])).all()), (value, found, expected)
    gradients = torch.autograd.grad(found.sum(), narrow, allow_unused=True)
    exact_gradients = torch.autograd.grad(expected.sum(), wide, allow_unused=True)
    for gradient, reference in zip(gradients, exact_gradients, strict=True):
        if gradient is not None:
            assert bool((gradient.isfinite() | ~(reference.abs() < 1e37)).all())
    for moment in ("mean", "variance", "entropy"):
        try:
            a, b = (getattr(d, moment) for d in (q, exact))
            a, b = (a(), b()) if callable(a) else (a, b)
        except NotImplementedError:
            continue
        held = b.abs() < 1e37
        assert bool(((a.double() - b).abs() <= 2e-3 * (1 + b.abs()))[held].all()), moment


class Table(nn.Module):
    """A network that says the same hostile numbers for each of four data."""

    def __init__(self, out_shape: tuple[int, ...], size: float, kind: str, seed: int) -> None:
        super().__init__()
        values = torch.randn(4, *out_shape, generator=torch.Generator().manual_seed(seed))
        wide = values.sign() * (1.5 * values.abs()).exp()
        self.values = nn.Parameter(size * {"normal": values, "sign": values.sign(), "wide": wide}[kind])

    def forward(self, x: Tensor) -> Tensor:
        return self.values[torch.arange(len(x)) % 4]


def bound_prior(dim: int) -> Any:
    """A prior of two levels with its sizes."""
    prior = next(entry for entry in zoo.PRIORS if entry.name == "Ladder").make(dim)
    prior.bind(Binding(x_shape=(4,), latent_shape=(dim,)))
    return prior


def hostile(entry: Any, size: float, kind: str, seed: int, **shapes: Any) -> Any:
    torch.manual_seed(0)
    piece = entry.make(lambda in_shape, out_shape: Table(out_shape, size, kind, seed))
    piece.bind(Binding(**shapes))
    return piece


KINDS, SEEDS = st.sampled_from(["normal", "sign", "wide"]), st.integers(0, 1000)


@pytest.mark.parametrize("examples", few_and_all(10, 25))
@pytest.mark.parametrize("entry", zoo.LIKELIHOODS, ids=zoo.names)
def test_likelihoods_agree_with_float64(entry: zoo.Likelihood, examples: int) -> None:
    """At the same outputs of the network, for data of its own and for those that it is for, with finite gradients."""
    checked = given(entry=st.just(entry), size=positive(-3, 8), kind=KINDS, seed=SEEDS, own=st.booleans())
    settings(HOSTILE, max_examples=examples)(checked(check_likelihood))()


def check_likelihood(entry: zoo.Likelihood, size: float, kind: str, seed: int, own: bool) -> None:
    piece = hostile(entry, size, kind, seed, x_shape=(6,), latent_shape=(2,))
    exact = copy.deepcopy(piece).double()
    torch.manual_seed(seed)
    p_x = piece.eval()(torch.zeros(4, 2))
    x = p_x.sample() if own else entry.draw(4, 6)
    found = p_x.log_prob(x)
    expected = exact.eval()(torch.zeros(4, 2).double()).log_prob(x.double())
    terms = 1 + expected.abs() + (1e-3 * x.double().abs()).sum(-1)  # a count of a million is a rounding of its mean
    assert bool(((found.double() - expected).abs() <= 1e-4 * terms)[expected.abs() < 1e37].all()), (found, expected)
    for gradient in torch.autograd.grad(found.sum(), list(piece.parameters()), allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("examples", few_and_all(4, 12))
@pytest.mark.parametrize("entry", zoo.POSTERIORS, ids=zoo.names)
def test_score_of_own_draws_is_that_of_float64(entry: zoo.Posterior, examples: int) -> None:
    """E log q(z|x) of draws that are made and scored in float32 is what it is in float64, within 5 standard errors."""
    dims = st.sampled_from([2, 3, 10, 30, 100])
    checked = given(entry=st.just(entry), dim=dims, size=positive(-2, 1.2), kind=KINDS, seed=SEEDS)
    settings(HOSTILE, max_examples=examples)(checked(check_own_draws))()


def check_own_draws(entry: zoo.Posterior, dim: int, size: float, kind: str, seed: int) -> None:
    dim = min(dim, 8) if "Flow" in entry.name else dim  # the zoo's are narrower than that
    shapes: dict[str, Any] = {"x_shape": (4,), "latent_shape": (dim,)}
    if entry.space == "levels":  # these take their levels, or their conditionals, from the prior
        shapes["prior"] = bound_prior(max(dim, 2))
        shapes["latent_shape"] = (max(dim, 2),)
    piece, found, n = hostile(entry, size, kind, seed, **shapes), [], 500
    for model, dtype in ((piece, torch.float32), (copy.deepcopy(piece).double(), torch.float64)):
        for prior in getattr(model, "_prior", ()):  # of a precision-weighted ladder: a VAE converts both
            prior.to(dtype)
        torch.manual_seed(1)
        q = model(torch.zeros(4, 4, dtype=dtype)).expand((n, 4))
        with torch.no_grad():
            z = q.sample()
            assert z.dtype is dtype
            found.append(q.log_prob(z).double())
    a, b = found
    assert a.isfinite().all()
    spread = (a.var(0) / n + b.var(0) / n).sqrt()
    assert bool(((a.mean(0) - b.mean(0)).abs() <= 5 * spread + 2e-3 * dim).all()), (a.mean(0), b.mean(0), spread)


def test_a_ladder_scores_the_draws_of_its_levels_from_their_noise() -> None:
    """At a mean of 820 and scales of 1e-5, where z in float32 has lost its noise (half a nat in one dimension)."""
    entry = next(p for p in zoo.POSTERIORS if p.name == "Ladder")
    check_own_draws(entry, dim=2, size=10.0, kind="wide", seed=390)


@pytest.mark.parametrize(("dim", "size"), [(2, 1e6), (50, 1.0), (100, 3.0), (200, 30.0)])
def test_full_normal_scores_what_it_drew(dim: int, size: float) -> None:
    """At condition numbers from 1e4 to beyond 1e38: log q + log|L| is that of standard normal noise, a chi squared."""
    torch.manual_seed(0)
    factor = torch.diag_embed(0.01 + torch.rand(3, dim)) + size * torch.randn(3, dim, dim).tril(-1) / math.sqrt(dim)
    q = FullNormal(torch.zeros(3, dim), scale_tril=factor).expand((400, 3))
    assert torch.linalg.cond(factor.double()).min() > 1e4
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    squares = -2 * (q.log_prob(q.rsample()) + log_det) - dim * math.log(2 * math.pi)
    assert abs(squares.mean() / dim - 1) < 5 * math.sqrt(2 / dim / squares.numel())


@pytest.mark.parametrize(("dim", "rank", "size"), [(2, 2, 1e4), (50, 3, 1e5), (500, 10, 1e3)])
def test_low_rank_normal_scores_what_it_drew(dim: int, rank: int, size: float) -> None:
    torch.manual_seed(0)
    factor, scale = size * torch.randn(3, dim, rank), torch.full((3, dim), 1e-5)
    q = LowRankNormal(torch.zeros(3, dim), factor, scale).expand((400, 3))
    wide = factor.double() / 1e-5
    log_det = torch.logdet(torch.eye(rank).double() + wide.mT @ wide) / 2 + dim * math.log(1e-5)
    squares = -2 * (q.log_prob(q.rsample()).double() + log_det) - dim * math.log(2 * math.pi)
    # log q is a difference of numbers of some thousands in float32 at 500 dimensions
    assert abs(squares.mean() / dim - 1) < 5 * math.sqrt(2 / dim / squares.numel()) + 1e-5


def test_the_elbo_of_a_full_normal_is_evaluated_from_its_noise() -> None:
    """The rate by draws is the KL in closed form, where a solve would find draws of condition 1e9 wrong by 1e9 nats."""
    torch.manual_seed(0)
    factor = torch.diag_embed(0.1 + torch.rand(3, 40)) + 6 * torch.randn(3, 40, 40).tril(-1) / math.sqrt(40)
    assert torch.linalg.cond(factor.double()).min() > 1e8
    q = Normals(torch.randn(3, 40), factor)
    noise = torch.randn(2000, 3, 40)
    prior = torch.distributions.Normal(torch.zeros(40), torch.ones(40))
    ratio = q.log_prob_at(noise) - prior.log_prob(q.at(noise)).double().sum(-1)
    expected = q.kl(Normals(torch.zeros(3, 40), torch.ones(3, 40)))
    assert bool(((ratio.mean(0) - expected).abs() <= 5 * ratio.std(0) / math.sqrt(2000)).all())


def ill_conditioned(dim: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    factor = torch.diag_embed(0.1 + torch.rand(3, dim)) + 3 * torch.randn(3, dim, dim).tril(-1) / math.sqrt(dim)
    return torch.randn(3, dim), factor


def test_score_function_of_a_draw_takes_its_noise() -> None:
    r"""At a z that is held fixed, \nabla \log q = L^-T e by mu and L^-T e e' - diag(1 / L) by L, from the e drawn."""
    loc, factor = (p.requires_grad_() for p in ill_conditioned(30))
    q = FullNormal(loc, scale_tril=factor)
    torch.manual_seed(1)
    z = q.rsample()
    torch.manual_seed(1)
    noise = torch.randn(3, 30).double()
    by_loc, by_factor = torch.autograd.grad(q.log_prob(z.detach()).sum(), (loc, factor))
    back = torch.linalg.solve_triangular(factor.detach().double().mT, noise.unsqueeze(-1), upper=True)
    expected = (
        back * noise.unsqueeze(-2) - torch.diag_embed(1 / factor.detach().double().diagonal(dim1=1, dim2=2))
    ).tril()
    scale = expected.abs().amax((1, 2), keepdim=True)
    # a solve is backward stable: an error of dim times a rounding of the largest entry
    assert bool(((by_factor.double().tril() - expected).abs() <= 1e-4 * scale).all())
    assert bool(((by_loc.double() - back.squeeze(-1)).abs() <= 1e-4 * back.squeeze(-1).abs().amax(1, True)).all())


def test_another_z_is_scored_as_it_is_given() -> None:
    loc, factor = ill_conditioned(30)
    q = FullNormal(loc, scale_tril=factor)
    exact = torch.distributions.MultivariateNormal(loc.double(), scale_tril=factor.double(), validate_args=False)
    z = torch.randn(5, 3, 30)
    torch.testing.assert_close(q.log_prob(z).double(), exact.log_prob(z.double()), rtol=1e-5, atol=0)
    drawn = q.rsample()
    for other in (drawn.clone(), drawn.flip(0), drawn + 0.0):
        torch.testing.assert_close(q.log_prob(other).double(), exact.log_prob(other.double()), rtol=1e-5, atol=0)
    drawn.mul_(1.5)
    torch.testing.assert_close(q.log_prob(drawn).double(), exact.log_prob(drawn.double()), rtol=1e-5, atol=0)


DRAWN: dict[str, Callable[..., Any]] = {
    "normal": Normal,
    "full": lambda m, s: FullNormal(m, scale_tril=s.diag()),
    "low rank": lambda m, s: LowRankNormal(m, s[:, None], s),
    "squashed": lambda m, s: SquashedNormal(m, s, -1.0, 2.0),
}


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
def test_a_draw_is_scored_by_parameters_that_an_optimiser_has_changed_since(make: Callable[..., Any]) -> None:
    loc, scale = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    q = make(loc, scale)
    z = q.sample()
    before = q.log_prob(z)
    loc.add_(0.5)
    assert not torch.allclose(q.log_prob(z), before)
    torch.testing.assert_close(q.log_prob(z), make(loc, scale).log_prob(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("inference", [False, True])
def test_a_draw_that_is_given_a_gradient_or_changed_is_a_value_like_any_other(
    make: Callable[..., Any], inference: bool
) -> None:
    loc, scale = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    with torch.inference_mode(inference):
        q = make(loc, scale)
        z = q.sample((2,))
        z.mul_(0.5)
        torch.testing.assert_close(q.log_prob(z), make(loc, scale).log_prob(z), rtol=1e-12, atol=1e-12)
    loc.requires_grad_()
    q = make(loc, scale)
    z = q.sample((2,)).requires_grad_()
    found = torch.autograd.grad(q.log_prob(z).sum(), [z, loc])
    z = z.detach().clone().requires_grad_()
    for a, b in zip(found, torch.autograd.grad(make(loc, scale).log_prob(z).sum(), [z, loc]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_kl_is_infinite_where_p_excludes_what_q_hardly_draws() -> None:
    q, p = OneHotVector(torch.tensor([[0.0, -25.0]])), OneHotVector(torch.tensor([[0.0, -math.inf]]))
    assert kl_divergence(q, p) == math.inf
    assert kl_divergence(p, q) < 1e-9
    assert kl_divergence(BinaryVector(torch.tensor([-25.0])), BinaryVector(torch.tensor([-math.inf]))) == math.inf
    assert kl_divergence(BinaryVector(torch.tensor([25.0])), BinaryVector(torch.tensor([math.inf]))) == math.inf
    assert kl_divergence(BinaryVector(torch.tensor([math.inf])), BinaryVector(torch.tensor([25.0]))) < 1e-9


@pytest.mark.parametrize("kind", ["normal", "full", "low rank", "squashed"])
def test_gradients_of_a_draw_are_those_of_its_density(kind: str) -> None:
    """In float64, where rounding is no matter: along the path, at a fixed z, at a z of its own."""
    torch.manual_seed(0)
    b, d, r = 4, 5, 2
    wide = {"dtype": torch.float64, "requires_grad": True}
    makes: dict[str, tuple[Callable[..., Any], list[Tensor], Callable[..., Any]]] = {
        "full": (
            lambda m, w, s: FullNormal(m, scale_tril=w.tril(-1) + torch.diag_embed(s.exp())),
            [torch.randn(b, d, **wide), torch.randn(b, d, d, **wide), torch.randn(b, d, **wide)],
            lambda m, w, s: torch.distributions.MultivariateNormal(
                m, scale_tril=w.tril(-1) + torch.diag_embed(s.exp())
            ),
        ),
        "low rank": (
            lambda m, w, s: LowRankNormal(m, w, s.exp()),
            [torch.randn(b, d, **wide), torch.randn(b, d, r, **wide), torch.randn(b, d, **wide)],
            lambda m, w, s: torch.distributions.LowRankMultivariateNormal(m, w, (2 * s).exp()),
        ),
        "normal": (
            lambda m, s: Normal(m, s.exp()),
            [torch.randn(b, d, **wide), torch.randn(b, d, **wide)],
            lambda m, s: torch.distributions.Normal(m, s.exp()),
        ),
        "squashed": (
            lambda m, s: SquashedNormal(m, s.exp(), -1.0, 2.0),
            [torch.randn(b, d, **wide), torch.randn(b, d, **wide)],
            lambda m, s: torch.distributions.TransformedDistribution(
                torch.distributions.Normal(m, s.exp()),
                [torch.distributions.SigmoidTransform(), torch.distributions.AffineTransform(-1.0, 3.0)],
            ),
        ),
    }
    make, parameters, reference = makes[kind]
    q, p = make(*parameters), reference(*parameters)
    z = q.rsample()
    p_cache_free = z.detach().clone().requires_grad_()
    for value in (z, z.detach(), z.detach().requires_grad_(), p_cache_free):
        wrt = [*parameters, *([value] if value.is_leaf and value.requires_grad else [])]
        found = torch.autograd.grad(q.log_prob(value).sum(), wrt, retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(p.log_prob(value).sum(), wrt, retain_graph=True, allow_unused=True)
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.zeros_like(e) if a is None else a, e, rtol=1e-9, atol=1e-9)
    for value in (z.detach(), z.detach().requires_grad_(), p_cache_free):  # derivatives of the derivatives
        wrt = [*parameters, *([value] if value.requires_grad and (kind != "squashed" or value is p_cache_free) else [])]
        weights = [torch.randn_like(t) for t in wrt]
        slopes = [torch.autograd.grad(f.log_prob(value).sum(), wrt, create_graph=True) for f in (q, p)]
        sums = [sum((w * g).sum() for w, g in zip(weights, slope, strict=True)) for slope in slopes]
        for a, e in zip(*(torch.autograd.grad(total, wrt, retain_graph=True) for total in sums), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)  # PyTorch's own rounding, of a Cholesky factor


@pytest.mark.parametrize(
    ("classes", "t_q", "t_p"), [(2, 0.02, 0.02), (5, 0.02, 0.05), (10, 0.02, 0.01), (4, 0.5, 0.7), (10, 0.005, 0.01)]
)
def test_relaxed_one_hot_is_a_density_at_any_temperature(classes: int, t_q: float, t_p: float) -> None:
    """E_q[p / q] = 1, censored entries included: what a bound rests on."""
    torch.manual_seed(0)
    q = RelaxedOneHotVector(0.5 * torch.randn(1, classes), torch.tensor(t_q))
    p = RelaxedOneHotVector(0.5 * torch.randn(1, classes), torch.tensor(t_p))
    z = q.sample((100_000,))
    ratio = (p.log_prob(z) - q.log_prob(z)).double().exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))


def test_censored_entries_have_their_probability() -> None:
    """Two equal classes: the second is below e^-85 with probability sigmoid(-85 T)."""
    torch.manual_seed(0)
    q = RelaxedOneHotVector(torch.zeros(1, 2), torch.tensor(0.02))
    z = torch.tensor([1.0, math.exp(-85.0)])
    expected = 1 / (1 + math.exp(85 * 0.02))
    assert q.log_prob(z).exp() == pytest.approx(expected, rel=1e-5)
    share = (q.sample((100_000,))[:, 1] < 1.001 * math.exp(-85)).double().mean()
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 100_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_logits_are_certainty(dtype: torch.dtype) -> None:
    inf = math.inf
    logits = torch.tensor([inf, -inf, 3.0], dtype=dtype, requires_grad=True)
    bits = BinaryVector(logits)
    sure = torch.tensor([1.0, 0.0, 1.0], dtype=dtype)
    assert bits.log_prob(sure).item() == pytest.approx(-math.log1p(math.exp(-3)))
    assert bits.log_prob(1 - sure) == -inf
    assert torch.autograd.grad(bits.log_prob(sure), logits)[0].isfinite().all()
    assert bits.entropy().item() == pytest.approx(BinaryVector(torch.tensor([3.0])).entropy().item(), rel=1e-6)
    assert (bits.sample((50,))[:, :2] == sure[:2]).all()
    one = OneHotVector(torch.tensor([[inf, 0.0, 1.0], [-inf, 0.0, 0.0]], dtype=dtype))
    assert one.log_prob(torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=dtype)).item() == pytest.approx(-math.log(2))
    assert one.log_prob(torch.tensor([0.0, 1, 0, 0, 1, 0], dtype=dtype)) == -inf
    assert one.entropy().item() == pytest.approx(math.log(2))
    fair = OneHotVector(torch.zeros(2, 3, dtype=dtype))
    assert kl_divergence(fair, one) == inf
    assert kl_divergence(one, fair).item() == pytest.approx(math.log(3) + math.log(1.5))
    assert kl_divergence(one, one).item() == 0
    assert RelaxedBits(logits, torch.tensor(0.5, dtype=dtype)).log_prob(torch.full((3,), 0.5, dtype=dtype)).isfinite()


def test_kl_of_saturated_bits_keeps_its_digits() -> None:
    """KL(Bernoulli(1) || Bernoulli(sigmoid(3))) = log(1 + e^-3)."""
    q, p = BinaryVector(torch.tensor([1e8])), BinaryVector(torch.tensor([3.0]))
    assert kl_divergence(q, p).item() == pytest.approx(math.log1p(math.exp(-3)), rel=1e-5)


def test_kl_of_a_laplace_far_from_0_keeps_its_digits() -> None:
    loc = 1000 + torch.linspace(-0.2, 0.2, 5)
    q, p = pyro.distributions.Laplace(loc, 0.06), Normal(torch.tensor(1000.0), torch.tensor(0.1))
    expected = kl_divergence(
        torch.distributions.Laplace(loc.double() - 1000, q.scale.double()),
        torch.distributions.Normal(0.0, p.scale.double()),
    )
    torch.testing.assert_close(kl_divergence(q, p).double(), expected, rtol=1e-5, atol=0)


def test_entropy_of_a_saturated_continuous_bernoulli() -> None:
    """1 - log of the logit's size on either side: an exponential distribution from the edge."""
    entropy = ContinuousBernoulli(torch.tensor([1e8, -1e8])).entropy()
    torch.testing.assert_close(entropy, torch.full((2,), 1 - math.log(1e8)))


def elbo_of(posterior: Any, prior: Any) -> float:
    digits = data.load("digits", binarize="threshold")
    torch.manual_seed(0)
    vae = VAE(digits, prior=prior, likelihood=likelihoods.Bernoulli(), posterior=posterior)
    run = fit(vae, digits, objective=objectives.ELBO(), epochs=1, device="cpu")
    return min(run.history[-1]["elbo"], -abs(run.history[-1]["validation_elbo"]))


@pytest.mark.ci
@pytest.mark.parametrize("latent_dim", [50, pytest.param(100, marks=pytest.mark.slow)])
def test_full_covariance_of_many_dimensions_trains(latent_dim: int) -> None:
    """Gave an ELBO of +8.7e27 and +1.4e28 for binary data: an epoch takes it between the pixel model's and zero."""
    assert -200 < elbo_of(posteriors.FullCovarianceNormal(), priors.StandardNormal(latent_dim)) < 0


def test_relaxed_one_hot_of_low_temperature_trains() -> None:
    """Gave an ELBO of +65,028 for binary data."""
    piece = posteriors.GumbelSoftmax(networks.MLP([32]), temperature=0.02)
    assert -200 < elbo_of(piece, priors.RelaxedOneHotCategorical(10, temperature=0.02)) < 0


# Infinite terms, arguments by name


@pytest.mark.parametrize(
    ("family", "q", "p"),
    [
        (BinaryVector, [[0.3], [0.2]], [[math.inf], [0.5]]),
        (BinaryVector, [[-1e30], [0.2]], [[1e30], [0.5]]),
        (OneHotVector, [[[0.0, 0.0]], [[0.1, 0.4]]], [[[0.0, -math.inf]], [[0.3, 0.2]]]),
    ],
)
def test_an_infinite_kl_leaves_finite_gradients(family, q, p):
    """The gradient by a datum of finite KL is that which it has alone."""
    logits, prior = torch.tensor(q, requires_grad=True), torch.tensor(p)
    kl = kl_divergence(family(logits), family(prior))
    assert kl[0] == math.inf
    kl.sum().backward()
    alone = torch.tensor(q[1:], requires_grad=True)
    kl_divergence(family(alone), family(prior[1:])).sum().backward()
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(logits.grad[1:], alone.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", [RelaxedBits, RelaxedOneHotVector])
def test_a_relaxed_variable_needs_a_temperature(family):
    with pytest.raises(TypeError, match=f"{family.__name__} needs a temperature"):
        family(torch.zeros(2, 3))


def test_counts_take_their_arguments_by_name():
    zero = torch.zeros(2)
    assert Poisson(log_rate=zero).batch_shape == (2,)
    assert Poisson(zero, False)._validate_args is False
    assert NegativeBinomial(log_mean=zero, log_dispersion=zero).batch_shape == (2,)
    named = ZeroInflatedNegativeBinomial(log_mean=zero, log_dispersion=zero, gate_logits=torch.ones(2))
    assert torch.equal(named.gate_logits, torch.ones(2))


@pytest.mark.parametrize("log_mean", [23.0, 30.0, 50.0])
def test_large_counts_are_drawn_about_their_mean(log_mean: float) -> None:
    torch.manual_seed(0)
    mean = torch.tensor(log_mean, dtype=torch.float64)
    standard = (Poisson(mean).sample((10_000,)) - mean.exp()) / (mean / 2).exp()
    assert abs(standard.mean()) < 5 / 100
    assert abs(standard.square().mean() - 1) < 5 * math.sqrt(2) / 100
    single = torch.tensor(log_mean)
    for p in (Poisson(single), NegativeBinomial(single, torch.tensor(20.0))):
        torch.testing.assert_close(p.sample(), single.exp(), rtol=1e-3, atol=0)
    assert Poisson(torch.tensor(100.0)).sample() == math.inf  # as its mean in float32


@pytest.mark.parametrize("log_dispersion", [20.0, 30.0, 45.0, 59.0])
def test_a_count_that_is_poisson_has_no_slope_in_its_dispersion(log_dispersion: float) -> None:
    log_mean, k = (torch.tensor([[0.0], [7.0], [14.0]]), torch.tensor([1.0, 3.0, 100.0, 1e6]))
    slope = []
    for dtype in (torch.float32, torch.float64):
        log_r = torch.full((3, 4), log_dispersion, dtype=dtype, requires_grad=True)
        NegativeBinomial(log_mean.to(dtype), log_r).log_prob(k.to(dtype)).sum().backward()
        slope.append(log_r.grad.double())
    torch.testing.assert_close(slope[0], slope[1], rtol=1e-3, atol=0.1)  # a rounding of the mean
