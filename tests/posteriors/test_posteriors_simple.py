"""Posteriors with a density of their own: moments, gradients, KL, float32 at its ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor, nn

from ppl_vae import VAE, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.distributions.box import SquashedNormal
from ppl_vae.distributions.low_rank_normal import LowRankNormal
from ppl_vae.distributions.normal_mixture import NormalMixture
from ppl_vae.objectives import sample_log_weights


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)  # `fresh_state` sets it back


def some_mixture(batch: tuple[int, ...] = ()) -> NormalMixture:
    loc = 0.9 * torch.randn(*batch, 3, 2)
    return NormalMixture(torch.randn(*batch, 3), loc, 0.5 + torch.rand(*batch, 3, 2))


# Full covariance and low rank


def test_the_cholesky_factor_is_filled_row_by_row() -> None:
    network = nn.Linear(1, 9)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 0.5, -0.5, 4.0, 10.0, 20.0, 30.0]))
    q = posteriors.FullCovarianceNormal(network)(torch.zeros(2, 1))
    diagonal = torch.nn.functional.softplus(torch.tensor([0.5, -0.5, 4.0])) + 1e-5
    expected = diagonal.diag()
    expected[1, 0], expected[2, 0], expected[2, 1] = (v / math.sqrt(3) for v in (10.0, 20.0, 30.0))
    assert torch.equal(q.scale_tril, expected.expand(2, 3, 3))
    assert torch.equal(q.mean[0], torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_low_rank_density_is_that_of_its_covariance(rank: int) -> None:
    q = LowRankNormal(torch.randn(4, 5), torch.randn(4, 5, rank), 0.1 + torch.rand(4, 5))
    z = q.rsample((3,))
    expected = dist.MultivariateNormal(q.mean, q.covariance_matrix)
    torch.testing.assert_close(q.log_prob(z), expected.log_prob(z), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(q.log_det(), torch.logdet(q.covariance_matrix), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(q.variance, expected.variance, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(q.expand((3, 4)).log_prob(z), q.log_prob(z), rtol=1e-12, atol=0.0)


def test_low_rank_draws_have_its_covariance() -> None:
    q = LowRankNormal(torch.randn(3), torch.randn(3, 2), 0.1 + torch.rand(3))
    z = q.sample((40_000,)) - q.mean
    products = z.unsqueeze(-1) * z.unsqueeze(-2)
    error = products.std(0) / math.sqrt(len(z))
    assert ((products.mean(0) - q.covariance_matrix).abs() < 5 * error).all()


def test_low_rank_holds_in_float32_where_the_difference_of_large_numbers_does_not() -> None:
    loc, factor, scale = torch.zeros(40), torch.randn(40, 2), torch.full((40,), 3e-4)
    exact = LowRankNormal(loc, factor, scale)
    z = exact.sample((20,))
    single = LowRankNormal(loc.float(), factor.float(), scale.float())
    # z itself is rounded: the density is compared at the number that both are given
    expected = exact.log_prob(z.float().double())
    assert (single.log_prob(z.float()).double() - expected).abs().max() < 0.1
    torchs = dist.LowRankMultivariateNormal(loc.float(), factor.float(), scale.float().square())
    assert (torchs.log_prob(z.float()).double() - expected).abs().max() > 1


@pytest.mark.parametrize("make", [posteriors.FullCovarianceNormal, posteriors.LowRankNormal])
@pytest.mark.parametrize("prior", [priors.StandardNormal, priors.DiagonalNormal])
def test_kl_of_correlated_normals_against_diagonal_ones(make: Callable[..., Any], prior: Callable[..., Any]) -> None:
    vae = VAE((4,), prior=prior(3), likelihood=likelihoods.Normal(), posterior=make())
    p_z = vae.p_z()
    if isinstance(vae.prior, priors.DiagonalNormal):
        with torch.no_grad():
            vae.prior.loc.normal_()
            vae.prior.raw_scale.normal_()
        p_z = vae.p_z()
    q = vae.q_z(torch.randn(5, 4))
    full = dist.MultivariateNormal(p_z.mean, p_z.variance.diag())
    expected = torch.distributions.kl_divergence(dist.MultivariateNormal(q.mean, q.covariance_matrix), full)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, p_z), expected, rtol=1e-10, atol=1e-10)
    weights = sample_log_weights(vae.model, vae.guide, torch.randn(5, 4), num_particles=2)
    assert objectives.MeanFieldELBO(2)(weights).value.shape == (5,)
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(q, dist.Laplace(torch.zeros(3), 1.0).to_event(1))


# The mixture and its gradient


def test_mixture_density_and_moments_are_pyros() -> None:
    for mixture in (some_mixture(), some_mixture((4,))):
        components = dist.Normal(mixture.loc, mixture.scale).to_event(1)
        expected = dist.MixtureSameFamily(dist.Categorical(logits=mixture.logits), components)
        z = 3 * torch.randn(6, 4, 2)
        torch.testing.assert_close(mixture.log_prob(z), expected.log_prob(z), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mixture.mean, expected.mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mixture.variance, expected.variance, rtol=1e-10, atol=1e-12)
        wide = mixture.expand((3, 4))
        assert (wide.batch_shape, wide.mean.shape) == ((3, 4), (3, 4, 2))
        assert wide.sample((2,)).shape == wide.rsample((2,)).shape == (2, 3, 4, 2)
        torch.testing.assert_close(wide.log_prob(z[:3]), expected.log_prob(z[:3]), rtol=1e-10, atol=1e-12)
        assert mixture.log_prob(torch.zeros(2)).shape == mixture.batch_shape


@pytest.mark.parametrize("batch", [(), (4,), (3, 4)], ids=str)
def test_mixture_draws_follow_their_own_batch_entry(batch: tuple[int, ...]) -> None:
    mixture = some_mixture(batch[-1:]).expand(batch)
    z = mixture.sample((20_000,))
    assert ((z.mean(0) - mixture.mean).abs() < 5 * z.std(0) / math.sqrt(len(z))).all()
    squares = (z - mixture.mean).square()
    assert ((squares.mean(0) - mixture.variance).abs() < 5 * squares.std(0) / math.sqrt(len(z))).all()


def some_function(z: Tensor) -> Tensor:
    return (1.3 * z[..., 0] + 0.4).sin() * z[..., 1] + 0.3 * z[..., 0] ** 2 + (2 * z[..., 1]).cos()


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_the_mixture_s_pathwise_gradient_is_that_of_the_expectation(batch: tuple[int, ...]) -> None:
    """Weights, means and scales, against the derivative of a two-dimensional integral."""
    made = some_mixture(batch)
    parameters = [p.detach().requires_grad_() for p in (torch.randn(*batch, 3), made.loc, made.scale)]
    line = torch.linspace(-9, 9, 361)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    grid = grid.reshape(-1, *([1] * len(batch)), 2)
    values = NormalMixture(*parameters).log_prob(grid).exp() * some_function(grid)
    expected = torch.autograd.grad(values.sum() * (line[1] - line[0]) ** 2, parameters)
    found = []
    for _ in range(60):
        z = NormalMixture(*parameters).rsample((2000,))
        found.append(torch.autograd.grad(some_function(z).mean(0).sum(), parameters))
    for i, exact in enumerate(expected):
        gradients = torch.stack([gradient[i] for gradient in found])
        error = gradients.std(0) / math.sqrt(len(gradients))
        assert ((gradients.mean(0) - exact).abs() < 5 * error).all()
        assert (exact.abs() > 5 * error).any(), "the test would pass with no gradient at all"


def test_each_draw_of_a_mixture_moves_along_the_transport_equation() -> None:
    """Without noise: d p(z) / d theta + div(p(z) dz / d theta) = 0 on a grid, for every parameter."""
    parameters = [p.requires_grad_() for p in (torch.randn(2), torch.randn(2, 2), 0.5 + torch.rand(2, 2))]
    z0 = torch.tensor([[0.3, -0.2], [1.0, 0.7]])

    def flux(z: Tensor) -> Tensor:
        """Of every parameter, p(z) dz/dtheta: (n, 2, number of parameters)."""
        mixture = NormalMixture(*parameters)
        mixture.sample = lambda shape=(): z  # type: ignore[method-assign]
        moved = mixture.rsample((len(z),))
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(moved[n, i], parameters, retain_graph=True)])
            for n in range(len(z))
            for i in range(2)
        ]
        return torch.stack(rows).reshape(len(z), 2, -1) * mixture.log_prob(z).exp().detach()[:, None, None]

    step = 1e-4
    divergence = sum(
        (flux(z0 + step * torch.eye(2)[i])[:, i] - flux(z0 - step * torch.eye(2)[i])[:, i]) / (2 * step)
        for i in range(2)
    )
    density = NormalMixture(*parameters).log_prob(z0).exp()
    change = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(p, parameters, retain_graph=True)]) for p in density]
    )
    torch.testing.assert_close(-divergence, change, rtol=1e-5, atol=1e-7)  # second order differences


def test_mixture_in_float32_far_out_and_with_tiny_scales() -> None:
    loc, scale = torch.randn(50, 8), 1e-3 + torch.rand(50, 8)
    z = torch.cat([loc[:5] + scale[:5] * torch.randn(5, 8), 100 * torch.randn(5, 8)]).float()
    single = NormalMixture(torch.zeros(50).float(), loc.float(), scale.float())
    exact = NormalMixture(torch.zeros(50), loc.float().double(), scale.float().double()).log_prob(z.double())
    torch.testing.assert_close(single.log_prob(z).double(), exact, rtol=3e-7, atol=3e-6)  # a few roundings


def test_mixture_gradient_is_finite_between_far_components_in_float32() -> None:
    loc = torch.tensor([[-1e3, 0.0], [1e3, 0.0]]).float().requires_grad_()
    logits = torch.zeros(2).float().requires_grad_()
    mixture = NormalMixture(logits, loc, torch.full((2, 2), 1e-2).float())
    z = mixture.rsample((100,))
    (z.square().sum() + mixture.log_prob(z).sum()).backward()
    assert logits.grad is not None
    assert loc.grad is not None
    assert logits.grad.isfinite().all()
    assert loc.grad.isfinite().all()


# The box


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.3), (1.5, 1.0), (-4.0, 2.0), (6.9, 0.01)])
def test_squashed_normal_is_the_normal_of_its_logit(loc: float, scale: float) -> None:
    q = SquashedNormal(torch.tensor(loc), torch.tensor(scale), -1.0, 2.0)

    def average(function: Callable[[float], float]) -> float:
        def integrand(e: float) -> float:
            return scipy.stats.norm.pdf(e) * function(-1 + 3 / (1 + math.exp(-(loc + scale * e))))

        return scipy.integrate.quad(integrand, -12, 12, epsabs=1e-13, epsrel=1e-12, limit=200)[0]

    mean = average(lambda z: z)
    assert q.mean.item() == pytest.approx(mean, rel=1e-10)
    assert q.variance.item() == pytest.approx(average(lambda z: (z - mean) ** 2), rel=1e-9)
    t = torch.tensor([-1.0, 0.5, 2.0])
    z = -1 + 3 * t.sigmoid()
    jacobian = (3 * t.sigmoid() * (1 - t.sigmoid())).log()
    expected = torch.tensor(scipy.stats.norm.logpdf(t.numpy(), loc, scale)) - jacobian
    torch.testing.assert_close(q.log_prob(z), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (100.0, 101.0), (-3.0, 1e4)])
def test_squashed_normal_never_leaves_the_open_box(dtype: torch.dtype, low: float, high: float) -> None:
    loc = torch.linspace(-200, 200, 41, dtype=dtype).requires_grad_()
    scale = torch.full_like(loc, 2.0).requires_grad_()
    q = SquashedNormal(loc, scale, low, high)
    z = q.rsample((200,))
    assert z.dtype == dtype
    assert ((z > low) & (z < high)).all()
    log_q = q.log_prob(z)
    assert log_q.isfinite().all()
    assert q.log_prob(torch.tensor([[low], [high]], dtype=dtype)).isfinite().all()
    (z.sum() + log_q.sum()).backward()
    assert loc.grad is not None
    assert scale.grad is not None
    assert loc.grad.isfinite().all()
    assert scale.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("box", [(-1.0, 1.0), (100.0, 101.0)])
def test_a_draw_of_a_squashed_normal_is_scored_where_it_was_drawn(scale: float, box: tuple[float, float]) -> None:
    """The mean of log q is minus the entropy in float32 too, where z has lost its digits."""
    single = SquashedNormal(torch.tensor(6.0).float(), torch.tensor(scale).float(), *box)
    found = single.log_prob(single.rsample((10_000,)))
    assert found.dtype == torch.float32
    precise = SquashedNormal(torch.tensor(6.0).double(), torch.tensor(scale).double(), *box)
    expected = precise.log_prob(precise.rsample((10_000,)))
    spread = (found.double().var() + expected.var()).sqrt() / 100
    assert abs(found.double().mean() - expected.mean()) < 5 * spread


def test_the_squashed_posterior_keeps_its_digits_in_float32() -> None:
    """Between |mu| = 7 and s = 2, where it is bounded, densities of draws are right to the digits of z."""
    network = nn.Linear(1, 2)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([1e6, 1e6]))
    q = posteriors.SquashedNormal(network)(torch.zeros(1, 1))
    assert q.base_dist.loc.item() == pytest.approx(7)
    assert q.base_dist.scale.item() == pytest.approx(2, rel=1e-4)
    single = SquashedNormal(*(p.float() for p in (q.base_dist.loc, q.base_dist.scale)), -1.0, 1.0)
    torch.manual_seed(0)
    z = single.sample((1000,)).clone()  # not the draw itself, which is scored at its own t
    exact = q.log_prob(z.double()).unsqueeze(-1)
    assert (single.log_prob(z).double() - exact).abs().max() < 1e-4


def test_a_box_goes_with_its_own_box_alone() -> None:
    def vae(posterior: nn.Module, prior: nn.Module | None = None) -> VAE:
        return VAE(
            (4,), prior=prior or priors.Uniform(2, 0.0, 2.0), likelihood=likelihoods.Normal(), posterior=posterior
        )

    vae(posteriors.SquashedNormal(low=0.0, high=2.0))
    with pytest.raises(ValueError, match="outside the support of the prior BoxUniform"):
        vae(posteriors.SquashedNormal(low=-2.0, high=2.0))
    with pytest.raises(ValueError, match="outside the support of the prior BoxUniform"):
        vae(posteriors.DiagonalNormal())


# Laplace


@pytest.mark.parametrize("make", [posteriors.Laplace, posteriors.DiagonalNormal])
def test_closed_kl_against_the_laplace_prior(make: Callable[..., Any]) -> None:
    """By the trapezoid rule, cut at the two kinks."""
    vae = VAE((4,), prior=priors.Laplace(1, scale=0.7), likelihood=likelihoods.Normal(), posterior=make())
    q, p = vae.q_z(torch.randn(3, 4)), vae.p_z()
    kl = torch.distributions.kl_divergence(q, p)
    for i in range(3):
        loc, scale = q.base_dist.loc[i, 0].item(), q.base_dist.scale[i, 0].item()
        family = scipy.stats.laplace if make is posteriors.Laplace else scipy.stats.norm
        ends = sorted([loc - 40 * scale, loc, loc + 40 * scale] + [0.0] * (abs(loc) < 40 * scale))

        def integrand(z: float, f: Any = family, a: float = loc, b: float = scale) -> float:
            return f.pdf(z, a, b) * (f.logpdf(z, a, b) - scipy.stats.laplace.logpdf(z, 0, 0.7))

        expected = sum(
            scipy.integrate.quad(integrand, low, high, epsabs=1e-12, limit=500)[0]
            for low, high in itertools.pairwise(ends)
        )
        assert kl[i].item() == pytest.approx(expected, rel=1e-8)


# All of them


ALL = [
    posteriors.FullCovarianceNormal,
    posteriors.LowRankNormal,
    posteriors.Laplace,
    posteriors.MixtureOfNormals,
    posteriors.SquashedNormal,
]


@pytest.mark.parametrize("make", ALL)
def test_a_condition_reaches_the_posterior(make: Callable[..., Any]) -> None:
    box = make is posteriors.SquashedNormal
    prior = priors.Uniform(2) if box else priors.StandardNormal(2)
    vae = VAE((4,), prior=prior, likelihood=likelihoods.Normal(), posterior=make(networks.MLP([5])), y_shape=(3,))
    x = torch.randn(1, 4).expand(3, 4)
    q = vae.q_z(x, torch.eye(3))
    assert (q.mean[0] != q.mean[1]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: posteriors.FullCovarianceNormal(floor=0.0), "FullCovarianceNormal: floor is 0.0"),
        (lambda: posteriors.FullCovarianceNormal(nn.Linear(3, 4))(torch.zeros(1, 3)), "has 4 outputs; expected d"),
        (lambda: posteriors.LowRankNormal(rank=0), "LowRankNormal: rank is 0"),
        (lambda: posteriors.LowRankNormal(nn.Linear(3, 5), rank=2)(torch.zeros(1, 3)), "has 5 outputs; expected d"),
        (lambda: posteriors.Laplace(floor=-1.0), "Laplace: floor is -1.0"),
        (lambda: posteriors.MixtureOfNormals(num_components=0), "MixtureOfNormals: num_components is 0"),
        (lambda: posteriors.MixtureOfNormals(nn.Linear(3, 14))(torch.zeros(1, 3)), "has 14 outputs; expected 3"),
        (lambda: posteriors.SquashedNormal(low=1.0, high=1.0), "SquashedNormal: low is 1.0 and high is 1.0"),
        (lambda: posteriors.SquashedNormal(high=math.inf), "expected two finite numbers, low below high"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
