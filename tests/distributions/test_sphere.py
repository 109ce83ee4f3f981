"""Latents on the unit sphere, against quadrature, scipy and closed forms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import constraints
from scipy import special
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae import SVI, VAE, likelihoods, networks, objectives, posteriors, priors
from ppl_vae._distributions import centre, measure
from ppl_vae.distributions.axial import PowerSpherical, VonMisesFisher
from ppl_vae.distributions.sphere import SphereUniform, log_area
from ppl_vae.networks import MLP

both = pytest.mark.parametrize("family", [PowerSpherical, VonMisesFisher])
CONCENTRATIONS = [1e-3, 0.3, 1.0, 2.5, 30.0, 1e3, 1e5]


@pytest.fixture
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def unit(values: list[float]) -> Tensor:
    vector = torch.tensor(values)
    return vector / vector.norm()


def around(direction: Tensor, theta: Tensor) -> Tensor:
    """Points at these angles from a direction, each across in some way, (n, d)."""
    across = torch.randn(len(theta), len(direction))
    for _ in range(2):  # once more for what rounding left
        across = across - (across @ direction)[:, None] * direction
        across = across / across.norm(dim=-1, keepdim=True)
    return theta.cos()[:, None] * direction + theta.sin()[:, None] * across


@functools.cache
def gauss(n: int = 400) -> tuple[Tensor, Tensor]:
    x, weight = np.polynomial.legendre.leggauss(n)
    return torch.tensor(x), torch.tensor(weight)


def angles(concentration: float, d: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes of the angle, with the sphere's area element, fine where a density of this width is."""
    x, weight = gauss()
    high = min(math.pi, 40 * math.sqrt((d + 1) / max(concentration, 1e-9)))
    theta = 0.5 * high * (x + 1)
    return theta, 0.5 * high * weight * theta.sin() ** (d - 2) * math.exp(log_area(d - 1))


@both
@pytest.mark.parametrize("d", [2, 3, 7, 40])
@pytest.mark.parametrize("concentration", CONCENTRATIONS)
@pytest.mark.usefixtures("float64")
def test_total_mass_entropy_and_moments(family: Any, d: int, concentration: float) -> None:
    direction = unit([0.3, -0.8, *[0.1] * (d - 2)])
    q = family(direction, torch.tensor(concentration))
    theta, weight = angles(concentration, d)
    log_q = q.log_prob(around(direction, theta))
    mass = weight * log_q.exp()
    # the rule's error: the power spherical density at small kappa is nearly singular at the antipode
    exact = functools.partial(torch.testing.assert_close, rtol=1e-7, atol=2e-8)
    exact(mass.sum(), torch.tensor(1.0))
    exact(q.entropy(), -(mass * log_q).sum())
    exact(kl_divergence(q, SphereUniform(d, direction)), (mass * log_q).sum() + log_area(d))
    first, second = (mass * theta.cos()).sum(), (mass * theta.cos().square()).sum()
    exact(q.mean, first * direction)
    square = direction.square()
    exact(q.variance, (second - first**2) * square + (1 - second) * (1 - square) / (d - 1), atol=1e-8)


@both
@pytest.mark.parametrize("concentration", [1e-3, 1e4, 1e6])
def test_variance_keeps_its_digits_in_float32(family: Any, concentration: float) -> None:
    loc = torch.eye(4)
    loc[0, 0] = 1 + 2e-7  # 1, but for the rounding of a normalised vector
    loc[3] = unit([0.3, -0.8, 0.1, 0.1])
    concentrations = torch.full((4,), concentration)
    q, p = family(loc, concentrations), family(loc.double(), concentrations.double(), validate_args=False)
    torch.testing.assert_close(q.variance.double(), p.variance, rtol=1e-6, atol=1e-30)
    assert (q.variance >= 0).all()


@pytest.mark.parametrize("d", [2, 3, 5, 20, 100])
@pytest.mark.usefixtures("float64")
def test_von_mises_fisher_normaliser_is_the_bessel_function(d: int) -> None:
    kappa = np.array([1e-2, 0.3, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5])
    direction = unit([1.0] * d)
    concentration = torch.tensor(kappa, requires_grad=True)
    q = VonMisesFisher(direction.expand(len(kappa), d), concentration)
    order = d / 2 - 1
    bessel = special.ive(order, kappa)
    known = bessel > 1e-280  # scipy underflows beyond
    expected = order * np.log(kappa) - d / 2 * np.log(2 * np.pi) - np.log(np.where(known, bessel, 1.0))
    np.testing.assert_allclose(q.log_prob(direction).detach().numpy()[known], expected[known], rtol=1e-11, atol=1e-11)
    # d log C / d kappa = -A(kappa), the ratio of Bessel functions; at the mode kappa is added
    (gradient,) = torch.autograd.grad(q.log_prob(direction).sum(), concentration)
    ratio = special.ive(order + 1, kappa) / np.where(known, bessel, 1.0)
    np.testing.assert_allclose(gradient.numpy()[known], 1 - ratio[known], rtol=1e-8, atol=1e-13)


@pytest.mark.thinned(2)
@both
@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("concentration", [0.05, 1.0, 8.0, 1e4])
@pytest.mark.usefixtures("float64")
def test_draws_follow_the_density(family: Any, d: int, concentration: float) -> None:
    direction = unit([-0.5, 0.2, *[0.3] * (d - 2)])
    q = family(direction, torch.tensor(concentration))
    z = q.sample((40_000,))
    assert constraints.sphere.check(z).all()
    theta, weight = angles(concentration, d)
    mass = weight * q.log_prob(around(direction, theta)).exp()
    got = 2 * torch.asin((z - direction).norm(dim=-1) / 2)
    scale = (mass * theta).sum()
    for statistic in (
        lambda t: t / scale,
        lambda t: (t / scale) ** 2,
        lambda t: (5 * t / scale - 5).sigmoid(),
        torch.cos,
    ):
        values = statistic(got)
        expected = (mass * statistic(theta)).sum()
        assert (values.mean() - expected).abs() < 5 * values.std() / 200
    # across the direction every way is as likely: the mean and covariance are those stated
    assert ((z.mean(0) - q.mean).abs() < 5 * z.std(0) / 200).all()
    squares = (z - q.mean).square()
    assert ((squares.mean(0) - q.variance).abs() < 5 * squares.std(0) / 200).all()


@both
@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("concentration", [1e-3, 0.4, 3.0, 200.0, 1e5])
@pytest.mark.usefixtures("float64")
def test_derivative_of_an_angle_is_that_of_its_distribution_function(family: Any, d: int, concentration: float) -> None:
    """At a fixed quantile: d theta / d kappa = -(dF / d kappa) / g."""
    direction = torch.eye(d)[0]
    q = family(direction, torch.tensor(concentration))
    theta = q._draw_angle(torch.Size((5,)))

    def below(kappa: float, angle: float, upper: bool) -> Tensor:
        x, weight = gauss()
        far = min(math.pi, angle + 30 * math.sqrt((d + 1) / max(concentration, 1e-9))) if upper else 0.0
        phi = angle + (far - angle) * 0.5 * (x + 1)
        density = family(direction, torch.tensor(kappa)).log_prob(around(direction, phi)).exp()
        return (0.5 * (far - angle) * weight * density * phi.sin() ** (d - 2)).sum() * math.exp(log_area(d - 1))

    for angle, slope in zip(theta.tolist(), q._angle_derivative(theta), strict=True):
        upper = abs(float(below(concentration, angle, True))) < 0.5  # the smaller side: no cancellation
        h = 1e-3 * concentration
        f = functools.partial(below, angle=angle, upper=upper)
        change = (
            (8 * (f(concentration + h) - f(concentration - h)) - f(concentration + 2 * h) + f(concentration - 2 * h))
            / 12
            / h
        )
        density = q.log_prob(around(direction, torch.tensor([angle])))[0].exp() * math.sin(angle) ** (d - 2)
        # integrals from the angle on have the sign of dF on either side: -F below, 1 - F above
        # the tolerance is the reference's: at small kappa the density is nearly singular at the antipode
        torch.testing.assert_close(slope, change / density / math.exp(log_area(d - 1)), rtol=1e-5, atol=1e-9)


@both
@pytest.mark.parametrize("raw", [[0.4, 1.3], [-0.7, 0.2]])
@pytest.mark.usefixtures("float64")
def test_gradient_of_an_expectation_on_the_circle(family: Any, raw: list[float]) -> None:
    """By draws against the derivative of a quadrature, for the direction and the concentration."""

    def f(z: Tensor) -> Tensor:
        return (1.5 * z[..., 0] + 0.5).exp() * (z[..., 1] + 0.3 * z[..., 0] * z[..., 1])

    def expectation(parameters: Tensor) -> Tensor:
        q = family(parameters[:2] / parameters[:2].norm(), parameters[2])
        t = torch.linspace(0, 2 * math.pi, 4001)[:-1]
        z = torch.stack([t.cos(), t.sin()], -1)
        return (q.log_prob(z).exp() * f(z)).sum() * (2 * math.pi / 4000)

    parameters = torch.tensor([*raw, 2.3], requires_grad=True)
    (expected,) = torch.autograd.grad(expectation(parameters), parameters)
    n = 20_000
    each = parameters.expand(n, 3).detach().requires_grad_()
    q = family(each[:, :2] / each[:, :2].norm(dim=-1, keepdim=True), each[:, 2])
    (gradients,) = torch.autograd.grad(f(q.rsample()).sum(), each)
    error = gradients.std(0) / math.sqrt(n)
    assert ((gradients.mean(0) - expected).abs() < 5 * error).all(), (gradients.mean(0), expected, error)


@both
@pytest.mark.usefixtures("float64")
def test_gradient_of_an_expectation_on_the_sphere(family: Any) -> None:
    """The mean of z has derivative A'(kappa) along the direction, and A(kappa) across it."""
    n = 20_000
    for direction in ([0.2, 0.5, -0.4], [-0.9, 0.1, 0.1]):
        each = torch.tensor([*direction, 5.0]).expand(n, 4).clone().requires_grad_()
        q = family(each[:, :3] / each[:, :3].norm(dim=-1, keepdim=True), each[:, 3])
        weights = torch.tensor([0.3, -1.0, 0.7])
        (gradients,) = torch.autograd.grad((q.rsample() @ weights).sum(), each, retain_graph=True)
        (expected,) = torch.autograd.grad((q.mean @ weights).sum(), each)
        assert ((gradients.mean(0) - expected[0]).abs() < 5 * gradients.std(0) / math.sqrt(n)).all()


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_stay_finite_and_right(family: Any, dtype: torch.dtype) -> None:
    kappa = torch.tensor([1e-6, 1e-2, 1.0, 1e3, 1e5], dtype=dtype, requires_grad=True)
    for d in (2, 3, 50):
        raw = torch.zeros(5, d, dtype=dtype)
        raw[:, 0], raw[:, -1] = -1.0, 1e-4
        raw.requires_grad_()
        q = family(raw / raw.norm(dim=-1, keepdim=True), kappa)
        z = q.rsample((200,))
        assert constraints.sphere.check(z).all()
        ends = torch.stack([q.loc, -q.loc]).detach()  # the mode and its antipode
        for value in (z, z.detach(), ends):
            log_q = q.log_prob(value)
            assert log_q.isfinite().all()
            gradients = torch.autograd.grad(log_q.sum(), [raw, kappa], retain_graph=True)
            assert all(g.isfinite().all() for g in gradients)
        precise = family(q.loc.double() / q.loc.double().norm(dim=-1, keepdim=True), kappa.double())
        exact = precise.log_prob(z.double() / z.double().norm(dim=-1, keepdim=True))
        assert (q.log_prob(z) - exact).abs().max() < (0.02 if dtype == torch.float32 else 1e-9)
        kl = kl_divergence(q, SphereUniform(d, z))
        assert kl.isfinite().all()
        assert (kl > -1e-6).all()


@both
def test_expand_broadcast_and_validation(family: Any) -> None:
    q = family(unit([1.0, 2.0, 2.0]), torch.tensor([1.0, 4.0]))
    assert (q.batch_shape, q.event_shape) == ((2,), (3,))
    wide = q.expand((5, 2))
    z = wide.rsample((4,))
    assert z.shape == (4, 5, 2, 3)
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    assert wide.entropy().shape == (5, 2)
    assert q.mask(torch.tensor([True, False])).log_prob(z[0, 0])[1] == 0
    with pytest.raises(ValueError, match="within the support"):
        family(unit([1.0, 2.0, 2.0]), torch.tensor(1.0), validate_args=True).log_prob(torch.ones(3))
    with pytest.raises(ValueError, match="needs at least 2"):
        family(torch.ones(1), torch.tensor(1.0))
    with pytest.raises(ValueError, match="concentration"):
        family(unit([1.0, 2.0, 2.0]), torch.tensor(-1.0), validate_args=True)


def test_uniform_on_the_sphere() -> None:
    p = SphereUniform(3, torch.zeros((), dtype=torch.float64))
    assert p.log_prob(p.sample()).item() == pytest.approx(-math.log(4 * math.pi), rel=1e-14)
    z = p.expand((2,)).sample((20_000,))
    assert z.shape == (20_000, 2, 3)
    assert ((z.mean(0) - p.mean).abs() < 5 * z.std(0) / math.sqrt(20_000)).all()
    assert ((z.square().mean(0) - p.variance).abs() < 5 * z.square().std(0) / math.sqrt(20_000)).all()
    assert p.expand((2,)).entropy().shape == (2,)


def vae(posterior: Any, latent_dim: int = 3) -> VAE:
    return VAE(
        (6,),
        prior=priors.HypersphericalUniform(latent_dim),
        likelihood=likelihoods.Bernoulli(MLP([9])),
        posterior=posterior(MLP([9])),
    )


pieces = pytest.mark.parametrize("posterior", [posteriors.PowerSpherical, posteriors.VonMisesFisher])


@pieces
def test_in_a_vae(posterior: Any) -> None:
    program = vae(posterior)
    x = torch.randint(2, (7, 6)).float()
    assert measure(program.q_z(x)) == measure(program.p_z()) == "the unit sphere"
    torch.testing.assert_close(centre(program.q_z(x)), program.q_z(x).mode)
    assert constraints.sphere.check(program.encode(x)).all()
    assert (program.q_z(x).concentration > 1).all()
    weights = objectives.sample_log_weights(program.model, program.guide, x, num_particles=4000)
    kl = weights.kl.mean(0)
    assert ((kl - weights.analytic_kl()[0]).abs() < 5 * weights.kl.std(0) / math.sqrt(4000)).all()


@pieces
def test_a_network_that_says_nothing_has_a_direction(posterior: Any) -> None:
    network = torch.nn.Linear(6, 4)
    torch.nn.init.zeros_(network.weight)
    torch.nn.init.zeros_(network.bias)
    q = posterior(network)(torch.zeros(2, 6))
    q.rsample().sum().backward()
    torch.testing.assert_close(q.mode, torch.eye(3)[0].expand(2, 3))
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()


@pieces
def test_refusals(posterior: Any) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        priors.HypersphericalUniform(1)
    with pytest.raises(ValueError, match="choose a posterior for this prior"):
        VAE((6,), prior=priors.StandardNormal(3), likelihood=likelihoods.Bernoulli(), posterior=posterior(MLP([9])))
    with pytest.raises(ValueError, match="a sphere needs at least 2"):
        VAE((6,), prior=priors.StandardNormal(1), likelihood=likelihoods.Bernoulli(), posterior=posterior(MLP([9])))


def steps(make: Callable[[], VAE], objective: Any, level: str) -> tuple[list[float], list[Tensor], str | None]:
    torch.manual_seed(0)
    pyro.clear_param_store()
    program = make()
    svi = SVI(program.model, program.guide, functools.partial(torch.optim.Adam, lr=1e-3), objective, compile=level)
    torch.manual_seed(1)
    x = torch.randint(2, (8, 6)).float()
    return [svi.step(x) for _ in range(4)], [p.detach().clone() for p in program.parameters()], svi.why_eager


@pieces
@pytest.mark.thinned(3)
@pytest.mark.parametrize("objective", [objectives.MeanFieldELBO(2), objectives.ELBO(2)])
def test_captured_bit_for_bit(posterior: Any, objective: Any) -> None:
    losses, parameters, why = steps(lambda: vae(posterior), objective, "graph")
    expected_losses, expected, _ = steps(lambda: vae(posterior), objective, "off")
    assert why is None
    assert losses == expected_losses
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))


@pytest.mark.ci
@pytest.mark.thinned(2)
@pieces
def test_a_point_mass_on_the_sphere_is_learned(posterior: Any) -> None:
    """Data around a circle: the bound rises above that of the pixel means, with the latent in use."""
    t = 2 * math.pi * torch.rand(256)
    x = torch.stack([t.cos(), t.sin(), -t.cos(), -t.sin()], -1)
    program = VAE(
        (4,),
        prior=priors.HypersphericalUniform(2),
        likelihood=likelihoods.Normal(networks.MLP([]), scale=0.1),
        posterior=posterior(networks.MLP([16])),
    )
    svi = SVI(program.model, program.guide, functools.partial(torch.optim.Adam, lr=0.02), objectives.MeanFieldELBO())
    losses = [svi.step(x) / 256 for _ in range(150)]
    without = 4 * (0.5 * math.log(2 * math.pi) + math.log(0.1)) + 0.5 * 2 / 0.01  # x around 0, variance 1/2 each
    assert losses[-1] < 0.2 * without
    assert (program.q_z(x).concentration > 10).all()
