"""Every estimator on the linear-Gaussian model, where all that they estimate has a closed form.

One function of an order n gives it all: with J(n) = log of the integral of p(x, z)^n q(z|x)^(1 - n) over z, a Gaussian
integral, log p(x) = J(1), the ELBO is J'(0), the EUBO is J'(1), CUBO_n is J(n) / n, the Renyi bound of order alpha is
J(1 - alpha) / (1 - alpha), and the thermodynamic integrand at beta is J'(beta).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from linear_gaussian import LinearGaussian
from replicates import (
    Measured,
    assert_same,
    assert_within_errors,
    block,
    distance,
    extrapolated,
    flat,
    gradient_at,
    gradient_of,
    mean_gradient,
    mean_value,
    measured,
    part_of,
    value_at,
)
from torch import Tensor

from ppl_vae import VAE, likelihoods, networks, posteriors, priors
from ppl_vae.objectives import (
    CIWAE,
    CUBO,
    ELBO,
    EUBO,
    IWAE,
    IWAESTL,
    JVI,
    MIWAE,
    PIWAE,
    REINFORCE,
    RWS,
    STL,
    TVO,
    VIMCO,
    DReG,
    LogWeights,
    MeanFieldELBO,
    Renyi,
    RWSDReG,
    VRMax,
    sample_log_weights,
)


@dataclass
class Exact:
    """The linear-Gaussian model as a VAE, and its closed forms in the VAE's own parameters."""

    model: LinearGaussian
    vae: VAE
    x: Tensor

    @property
    def program(self) -> tuple[Any, Any]:
        return self.vae.model, self.vae.guide

    def _parts(self) -> tuple[Tensor, ...]:
        decoder, encoder = self.vae.likelihood.mean.network, self.vae.posterior.mean_and_scale.network
        mean, log_var = encoder(self.x).chunk(2, -1)
        return decoder.weight, decoder.bias, mean, log_var

    def log_integral(self, n: Tensor) -> Tensor:
        """J at an order for each datum, (batch,)."""
        w, b, mean, log_var = self._parts()
        d, scale, eye = w.shape[1], self.model.scale, torch.eye(w.shape[1], dtype=torch.float64)
        p_precision = eye + w.T @ w / scale**2
        shift = (self.x - b) @ w / scale**2  # precision times mean of p(z|x), (batch, d)
        q_precision = torch.diag_embed((-log_var).exp())  # (batch, d, d)
        order = n[:, None, None]
        precision = order * p_precision + (1 - order) * q_precision
        assert torch.linalg.eigvalsh(precision.detach()).min() > 0, "the integral is infinite"
        linear = n[:, None] * shift + (1 - n[:, None]) * mean * (-log_var).exp()
        residual = (self.x - b).square().sum(-1) / scale**2 + len(b) * math.log(2 * math.pi * scale**2)
        p_constant = -0.5 * (residual + d * math.log(2 * math.pi))
        q_constant = -0.5 * (mean.square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).sum(-1)
        quadratic = (linear * torch.linalg.solve(precision, linear)).sum(-1)
        gauss = 0.5 * (d * math.log(2 * math.pi) - torch.logdet(precision) + quadratic)
        return n * p_constant + (1 - n) * q_constant + gauss

    def integral(self, n: float) -> Tensor:
        return self.log_integral(torch.full((len(self.x),), n, dtype=torch.float64)).sum()

    def slope(self, n: float) -> Tensor:
        """J' at an order, summed over data and differentiable by the parameters."""
        order = torch.full((len(self.x),), n, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(self.log_integral(order).sum(), order, create_graph=True)[0].sum()

    def elbo(self) -> Tensor:
        return self.slope(0.0)

    def thermodynamic(self, betas: list[float]) -> Tensor:
        """The left Riemann sum of TVO."""
        return sum(((end - beta) * self.slope(beta) for beta, end in itertools.pairwise(betas)), torch.zeros(()))

    def gradient(self, value: Tensor, part: str = "") -> Tensor:
        """The gradient of a closed form in one vector, zero for the parameters that are not of `part`."""
        found = gradient_of(value, self.vae)
        return flat({n: g if n.startswith(part) else torch.zeros_like(g) for n, g in found.items()})

    def mean_gradient(self, objective: object, repeats: int = 500, batches: int = 40, seed: int = 0) -> Measured:
        return mean_gradient(self.program, self.vae, objective, self.x, repeats, batches, seed)

    def mean_value(self, objective: object, repeats: int = 500, batches: int = 40, seed: int = 0) -> Measured:
        return mean_value(self.program, objective, self.x, repeats, batches, seed)


def make_exact(distance: float = 1.0) -> Exact:
    """The model with a posterior at some part of the usual distance from the true one."""
    model = LinearGaussian.random()
    true = replace(model).take_true_posterior()
    model.encoder_weight = true.encoder_weight + distance * (model.encoder_weight - true.encoder_weight)
    model.encoder_bias = true.encoder_bias + distance * (model.encoder_bias - true.encoder_bias)
    vae = model.vae()
    with torch.no_grad():  # a spread that depends on x, so that each of the encoder's parameters has a gradient
        weight = vae.posterior.mean_and_scale.network.weight
        weight[2:] = (
            0.02 * distance * torch.randn(2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        )
    return Exact(model, vae, model.sample(3))


@pytest.fixture
def exact() -> Exact:
    return make_exact()


@pytest.fixture
def near() -> Exact:
    """Weights with so many moments that laws in K hold from few particles on."""
    return make_exact(0.3)


def test_the_closed_forms_are_those_of_the_model() -> None:
    model = LinearGaussian.random()
    exact = Exact(model, model.vae(), model.sample(3))
    close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    close(exact.integral(0.0), torch.zeros((), dtype=torch.float64))
    close(exact.integral(1.0), model.log_evidence(exact.x).sum())
    close(exact.elbo(), model.elbo(exact.x).sum())
    mean_map, covariance = model.posterior_map()
    posterior = torch.distributions.MultivariateNormal((exact.x - model.bias) @ mean_map.T, covariance)
    q = torch.distributions.MultivariateNormal(
        exact.x @ model.encoder_weight.T + model.encoder_bias, model.std.square().diag()
    )
    kl = torch.distributions.kl_divergence(posterior, q)
    close(exact.slope(1.0), (model.log_evidence(exact.x) + kl).sum())  # the EUBO


# Values


ELBOS = [
    ELBO(3),
    STL(2),
    MeanFieldELBO(2),
    REINFORCE(3),
    REINFORCE(1, "moving_average"),
    REINFORCE(3, "leave_one_out"),
    REINFORCE(2, "learned"),
    MIWAE(2, groups=2),
    Renyi(2, alpha=1),
    TVO(4, partitions=1),
]


@pytest.mark.parametrize("objective", ELBOS, ids=repr)
def test_the_expectation_of_an_elbo(exact: Exact, objective: object) -> None:
    assert_within_errors(exact.mean_value(objective, 500), exact.elbo().detach())


def gap(exact: Exact, objective: Callable[[Any], Any], num_particles: int, repeats: int = 2000) -> Measured:
    """Log p(x) minus the expected value of a bound that starts from the average weight, summed over data.

    With d_k = w_k / p(x) - 1, of expectation zero, the noise of first and second order is taken out: the mean of d_k
    and minus half the mean of the products of two different ones.
    """
    torch.manual_seed(num_particles)
    log_p, found = exact.model.log_evidence(exact.x).repeat(repeats), []
    with torch.no_grad():
        for _ in range(20):
            weights = sample_log_weights(*exact.program, exact.x.repeat(repeats, 1), num_particles=num_particles)
            d = (weights.log_w - log_p).expm1()
            noise = d.mean(0)
            if num_particles > 1:
                pairs = (d.sum(0).square() - d.square().sum(0)) / (num_particles * (num_particles - 1))
                noise = noise - pairs / 2
            found.append((log_p + noise - objective(weights).value).sum() / repeats)
    return measured(found)


def test_the_importance_weighted_bound_rises_to_the_evidence_as_one_over_k(near: Exact) -> None:
    """K times the gap tends to half the variance of the normalised weight, which has a closed form."""
    sizes = (1, 2, 4, 8, 16, 32)
    gaps = [gap(near, IWAE(k), k, 500) for k in sizes]
    assert_within_errors(gaps[0], (near.integral(1.0) - near.elbo()).detach())
    for looser, tighter in itertools.pairwise(gaps):
        assert looser.mean - tighter.mean > 5 * (looser.error**2 + tighter.error**2).sqrt()
    assert gaps[-1].mean > 5 * gaps[-1].error
    n = torch.ones(3, dtype=torch.float64)
    variance = ((near.log_integral(2 * n) - 2 * near.log_integral(n)).exp() - 1).sum() / 2
    scaled = {k: Measured(k * g.mean, k * g.error) for k, g in zip(sizes, gaps, strict=True)}
    assert_within_errors(extrapolated(lambda k, _: scaled[k], 16), variance.detach())
    assert scaled[32].mean == pytest.approx(variance.item(), rel=0.05)  # the next term is of order 1/K


def test_the_bounds_with_the_value_of_iwae_have_it(exact: Exact) -> None:
    expected = value_at(exact.program, IWAE(4), exact.x)
    for objective in (DReG(4), IWAESTL(4), VIMCO(4), RWS(4), RWSDReG(4), PIWAE(4, 2), Renyi(4, 0.0), JVI(4, 0)):
        torch.testing.assert_close(value_at(exact.program, objective, exact.x), expected, rtol=1e-12, atol=0.0)


@pytest.mark.slow
def test_the_jackknife_takes_the_leading_bias_away(near: Exact) -> None:
    """At order m the bias falls as K^-(m+1), and is a small part of IWAE's."""
    sizes = (4, 8, 16)
    iwae = [gap(near, IWAE(k), k, 500) for k in sizes]
    first = [gap(near, JVI(k, 1), k, 1500) for k in sizes]
    for bound, better in zip(iwae, first, strict=True):
        assert better.mean.abs() + 5 * better.error < 0.25 * bound.mean
    for order, biases in ((1, iwae), (2, first)):
        ratio = biases[1].mean / biases[2].mean
        error = ratio * ((biases[1].error / biases[1].mean) ** 2 + (biases[2].error / biases[2].mean) ** 2).sqrt()
        assert abs(ratio - 2**order) < 5 * error + 2**order / 8  # the next order in 1/K
    second = gap(near, JVI(8, 2), 8, 1500)
    assert second.mean.abs() + 5 * second.error < first[1].mean.abs()


def test_jackknife_coefficients_and_subsets(exact: Exact) -> None:
    """Against the sum over all subsets, written out."""
    with torch.no_grad():
        weights = sample_log_weights(*exact.program, exact.x, num_particles=5)
    for order in range(4):
        expected = torch.zeros(3, dtype=torch.float64)
        for j, coefficient in enumerate(JVI(5, order).coefficients):
            subsets = torch.combinations(torch.arange(5), 5 - j)
            bounds = torch.stack([weights.log_w[s].logsumexp(0) - math.log(5 - j) for s in subsets])
            expected += coefficient * bounds.mean(0)
        assert sum(JVI(5, order).coefficients) == pytest.approx(1.0, rel=1e-12)
        torch.testing.assert_close(JVI(5, order)(weights).value, expected, rtol=1e-10, atol=1e-10)


def closed_form(exact: Exact, objective: Any) -> Tensor:
    """What an objective estimates, without its bias of order 1/K."""
    if isinstance(objective, Renyi):
        return exact.integral(1 - objective.alpha) / (1 - objective.alpha)
    if isinstance(objective, CUBO):
        return exact.integral(objective.n) / objective.n
    if isinstance(objective, EUBO):
        return exact.slope(1.0)
    assert isinstance(objective, TVO)
    return exact.thermodynamic(objective.betas)


LIMITS: dict[str, Callable[[int], Any]] = {
    "Renyi-0.5": lambda k: Renyi(k, alpha=0.5),
    "Renyi--0.5": lambda k: Renyi(k, alpha=-0.5),
    "Renyi-1.3": lambda k: Renyi(k, alpha=1.3),
    "CUBO-2": lambda k: CUBO(k, n=2),
    "CUBO-1.5": lambda k: CUBO(k, n=1.5),
    "EUBO": lambda k: EUBO(k),
    "TVO": lambda k: TVO(k),
    "TVO-2-pathwise": lambda k: TVO(k, partitions=2, first=0.3, pathwise=True),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", LIMITS)
def test_the_value_at_many_particles(near: Exact, name: str) -> None:
    make = LIMITS[name]
    found = extrapolated(lambda k, seed: near.mean_value(make(k), 100, 40, seed), 32)
    assert_within_errors(found, closed_form(near, make(2)).detach())


def test_what_is_ordered_by_theory_is(exact: Exact) -> None:
    """ELBO <= TVO <= log p(x) <= EUBO, log p(x) <= CUBO_1.5 <= CUBO_2, and Renyi falling in alpha; exactly."""
    log_p = exact.integral(1.0)
    thermodynamic = [exact.thermodynamic(TVO(2, partitions=s).betas) for s in (1, 2, 5, 20)]
    order = [exact.elbo(), *thermodynamic[1:], log_p, exact.integral(1.5) / 1.5, exact.integral(2.0) / 2]
    assert all(a < b for a, b in itertools.pairwise(order))
    assert exact.slope(1.0) > log_p
    renyi = [closed_form(exact, Renyi(1, alpha)) for alpha in (-0.5, 0.5, 1.3)]
    assert renyi[0] > log_p > renyi[1] > exact.elbo() > renyi[2]


# Gradients


# the covariance of weighted draws in TVO is biased by order 1/K: a test of its own
@pytest.mark.parametrize("objective", [*ELBOS[:-1], DReG(1), CIWAE(3, beta=1.0)], ids=repr)
def test_the_gradient_of_an_elbo_by_every_parameter(exact: Exact, objective: object) -> None:
    assert_within_errors(exact.mean_gradient(objective), exact.gradient(exact.elbo()))


def by_score_function(exact: Exact, objective: Any, repeats: int = 500, batches: int = 40) -> Measured:
    r"""The gradient of the expected value by another way: that of the value at fixed z, and the value times the score.

    The value's average over data stands for a baseline.
    """
    x, found, baseline = exact.x.repeat(repeats, 1), [], None
    torch.manual_seed(5)
    for _ in range(batches + 1):
        weights = sample_log_weights(*exact.program, x, num_particles=objective.num_particles, latents="detached")
        with mock.patch.object(LogWeights, "require_pathwise"):  # the value at fixed z is what is wanted here
            value = objective(weights).surrogate
        if baseline is None:  # of a batch of its own, so that it is independent
            baseline = value.detach().reshape(repeats, 3).mean(0).repeat(repeats)
            continue
        score = (value.detach() - baseline) * weights.joint_log_q.sum(0)
        found.append(flat(gradient_of((value + score).sum(), exact.vae)) / repeats)
    return measured(found)


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    "objective",
    [
        IWAE(4),
        Renyi(4, alpha=0.5),
        Renyi(4, alpha=-1.0),
        VRMax(4),
        CIWAE(4, beta=0.3),
        MIWAE(4, groups=2),
        JVI(4, order=1),
        TVO(4, partitions=3, pathwise=True),
    ],
    ids=repr,
)
def test_the_pathwise_gradient_is_that_of_the_expected_value(exact: Exact, objective: Any) -> None:
    assert_within_errors(exact.mean_gradient(objective), by_score_function(exact, objective))


@pytest.mark.thinned(4)
@pytest.mark.parametrize("objective", [DReG(4), VIMCO(4), MIWAE(8, groups=2), Renyi(4, alpha=0)], ids=repr)
def test_the_gradient_of_the_importance_weighted_bound(exact: Exact, objective: Any) -> None:
    found = exact.mean_gradient(objective)
    assert_within_errors(found, by_score_function(exact, IWAE(4)))
    assert_within_errors(found, exact.mean_gradient(IWAE(4), seed=1))


def test_a_convex_combination_has_the_gradients_of_its_parts(exact: Exact) -> None:
    iwae, elbo = exact.mean_gradient(IWAE(4), seed=1), exact.gradient(exact.elbo())
    expected = Measured(0.3 * elbo + 0.7 * iwae.mean, 0.7 * iwae.error)
    assert_within_errors(exact.mean_gradient(CIWAE(4, beta=0.3)), expected)


@pytest.mark.slow
def test_iwae_stl_is_biased_by_the_wake_phase_and_dreg_is_not(exact: Exact) -> None:
    iwae, stl = exact.mean_gradient(IWAE(4), seed=1), exact.mean_gradient(IWAESTL(4))
    assert distance(stl, iwae) > 20
    assert distance(exact.mean_gradient(DReG(4)), iwae) < 5
    wake = exact.mean_gradient(EUBO(4), seed=2)
    assert_within_errors(stl, Measured(iwae.mean + wake.mean, (iwae.error**2 + wake.error**2).sqrt()))


@pytest.mark.slow
def test_the_variance_of_dreg_is_below_that_of_iwae(exact: Exact) -> None:
    """For the encoder, and the more so the more particles."""
    encoder = block(exact.vae, "posterior")
    ratios = []
    for k in (4, 64):
        errors = [exact.mean_gradient(o, 100, 40).error[encoder].square().sum() for o in (IWAE(k), DReG(k))]
        ratios.append(float(errors[0] / errors[1]))
    assert ratios[1] > 3 * ratios[0] > 3


@pytest.mark.parametrize("phase", ["wake", "both"])
def test_the_model_follows_the_importance_weighted_bound_in_wake_sleep(exact: Exact, phase: Any) -> None:
    decoder = {n for n, _ in exact.vae.named_parameters() if n.startswith("likelihood")}
    iwae = gradient_at(exact.program, exact.vae, IWAE(4), exact.x)
    found = gradient_at(exact.program, exact.vae, RWS(4, phase), exact.x)
    assert_same({n: found[n] for n in decoder}, {n: iwae[n] for n in decoder})


def test_the_wake_phase_at_many_particles_is_the_gradient_under_the_true_posterior(near: Exact) -> None:
    """E_{p(z|x)} of grad log q is minus the gradient of the EUBO by q, and the model's is that of log p(x)."""
    found = extrapolated(lambda k, seed: near.mean_gradient(RWS(k), 100, 40, seed), 32)
    expected = near.gradient(-near.slope(1.0), "posterior") + near.gradient(near.integral(1.0), "likelihood")
    assert_within_errors(found, expected)


def test_wake_sleep_with_doubly_reparameterised_gradients_has_the_same_expectation(exact: Exact) -> None:
    assert_within_errors(exact.mean_gradient(RWSDReG(3)), exact.mean_gradient(RWS(3), seed=1))


def sleep_gradient(exact: Exact) -> Tensor:
    """The gradient of E_{p(x, z)} log q(z|x) for one datum: all of it Gaussian moments; log_var is linear in x."""
    w, b = exact.model.weight, exact.model.bias
    encoder = exact.vae.posterior.mean_and_scale.network
    weight, bias = encoder.weight, encoder.bias
    mean = b
    covariance = w @ w.T + exact.model.scale**2 * torch.eye(5, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for j in range(2):
        a, c, v, e = weight[j], bias[j], weight[2 + j], bias[2 + j]
        # log q = -(z_j - a.x - c)^2 exp(-v.x - e) / 2 - (v.x + e) / 2: the exponential tilts the moments of x and z
        tilt = -covariance @ v
        tilted_x = mean + tilt
        tilted_z = -(w.T @ v)[j]
        mgf = (-(mean @ v) - e + 0.5 * v @ covariance @ v).exp()
        shift = tilted_z - a @ tilted_x - c
        variance = 1.0 + a @ covariance @ a - 2 * a @ w[:, j]
        total = total - 0.5 * mgf * (shift.square() + variance) - 0.5 * (v @ mean + e)
    return exact.gradient(total, "posterior")


def test_the_sleep_phase_is_the_gradient_under_the_models_own_data(exact: Exact) -> None:
    found = exact.mean_gradient(RWS(2, "sleep"))
    encoder = block(exact.vae, "posterior")
    dreams = Measured(*(v / 3 for v in part_of(found, encoder)))  # for each of three data a dream
    assert_within_errors(dreams, sleep_gradient(exact)[encoder])
    half = exact.mean_gradient(RWS(2, "both"), seed=3)
    wake = exact.mean_gradient(RWS(2, "wake"), seed=4)
    expected = Measured((found.mean + wake.mean) / 2, (found.error**2 + wake.error**2).sqrt() / 2)
    assert_within_errors(part_of(half, encoder), part_of(expected, encoder))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", ["CUBO-2", "CUBO-1.5", "EUBO"])
def test_the_gradient_of_an_upper_bound_at_many_particles(near: Exact, name: str) -> None:
    make = LIMITS[name]
    found = extrapolated(lambda k, seed: near.mean_gradient(make(k), 100, 40, seed), 32)
    assert_within_errors(found, near.gradient(-closed_form(near, make(2)), "posterior"))


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", ["Renyi-0.5", "Renyi--0.5", "TVO", "TVO-2-pathwise"])
def test_the_gradient_at_many_particles(near: Exact, name: str) -> None:
    make = LIMITS[name]
    found = extrapolated(lambda k, seed: near.mean_gradient(make(k), 100, 40, seed), 32)
    assert_within_errors(found, near.gradient(closed_form(near, make(2))))


@pytest.mark.slow
def test_the_bias_of_the_thermodynamic_gradient_falls_as_one_over_k(exact: Exact) -> None:
    """The covariance's; that of one partition is the ELBO's at any K by the pathwise gradient."""
    expected = exact.gradient(exact.elbo())
    biases = []
    for k in (2, 4, 8):
        found = exact.mean_gradient(TVO(k, partitions=1), 1000)
        assert distance(found, expected) > 10
        along = expected / expected.norm()
        biases.append(Measured((found.mean - expected) @ along, (found.error.square() @ along.square()).sqrt()))
    for larger, smaller in itertools.pairwise(biases):
        error = (larger.error**2 + 4 * smaller.error**2).sqrt()
        assert (larger.mean - 2 * smaller.mean).abs() < 5 * error
        assert larger.mean.abs() > 10 * larger.error
    assert_within_errors(exact.mean_gradient(TVO(2, partitions=1, pathwise=True)), expected)


# Identities, sample by sample


def make_vae(prior: str = "StandardNormal") -> tuple[VAE, Tensor]:
    torch.manual_seed(3)
    prior_piece = priors.VampPrior(2, 3) if prior == "VampPrior" else priors.StandardNormal(2)
    vae = VAE(
        (6,),
        prior=prior_piece,
        likelihood=likelihoods.Bernoulli(networks.MLP([7], activation="tanh")),
        posterior=posteriors.DiagonalNormal(networks.MLP([7], activation="tanh")),
    ).double()
    return vae, (torch.rand(5, 6) > 0.5).double()


ONE: list[tuple[Any, Any]] = [
    (IWAE(1), ELBO(1)),
    (DReG(1), STL(1)),
    (IWAESTL(1), STL(1)),
    (Renyi(6, alpha=0.0), IWAE(6)),
    (Renyi(6, alpha=1.0), ELBO(6)),
    (MIWAE(6, groups=1), IWAE(6)),
    (MIWAE(6, groups=6), ELBO(6)),
    (PIWAE(6, groups=1), IWAE(6)),
    (CIWAE(6, beta=0.0), IWAE(6)),
    (CIWAE(6, beta=1.0), ELBO(6)),
    (JVI(6, order=0), IWAE(6)),
    (TVO(6, partitions=1, pathwise=True), ELBO(6)),
    (VRMax(1), ELBO(1)),
    (VRMax(6), Renyi(6, alpha=-1e12)),
    (Renyi(1, alpha=0.3), ELBO(1)),
]


@pytest.mark.parametrize("prior", ["StandardNormal", "VampPrior"])
@pytest.mark.parametrize(("one", "other"), ONE, ids=[f"{one!r} is {other!r}" for one, other in ONE])
def test_one_objective_is_another_at_the_same_noise(one: Any, other: Any, prior: str) -> None:
    vae, x = make_vae(prior)
    program = (vae.model, vae.guide)
    torch.testing.assert_close(value_at(program, one, x), value_at(program, other, x), rtol=1e-10, atol=0.0)
    expected = gradient_at(program, vae, other, x)
    assert_same(gradient_at(program, vae, one, x), expected)
    assert all(g.abs().max() > 0 for g in expected.values())


def test_renyi_is_continuous_at_one() -> None:
    """The derivative by alpha is finite: the mean of both sides is the ELBO to second order."""
    vae, x = make_vae()
    program, step = (vae.model, vae.guide), 1e-5
    sides = [gradient_at(program, vae, Renyi(6, alpha=1 + sign * step), x) for sign in (-1, 1)]
    middle = {name: (sides[0][name] + sides[1][name]) / 2 for name in sides[0]}
    # step^2 = 1e-10 of the spread of log w, and rounding of 1e-15 / step
    assert_same(middle, gradient_at(program, vae, ELBO(6), x), rtol=1e-8)
    assert value_at(program, Renyi(6, 1 - step), x) > value_at(program, ELBO(6), x)
    assert value_at(program, Renyi(6, 1 + step), x) < value_at(program, ELBO(6), x)


@pytest.mark.parametrize("kind", [MIWAE, PIWAE])
def test_groups_divide_the_particles_of_the_log_weights_too(kind: Any) -> None:
    with pytest.raises(ValueError, match="3 groups do not divide 8 particles"):
        kind(8, groups=3)
    with pytest.raises(ValueError, match="given the log-weights of 8 particles; expected a multiple of its 3 groups"):
        kind(6, groups=3)(LogWeights.of(torch.zeros(8, 2)))


def only(gradients: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: g for name, g in gradients.items() if name.startswith(part)}


def combined(*terms: tuple[float, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: sum(factor * gradients[name] for factor, gradients in terms) for name in terms[0][1]}  # type: ignore


def test_partially_weighted_gradients_are_those_of_two_bounds() -> None:
    vae, x = make_vae()
    program = (vae.model, vae.guide)
    at = functools.partial(gradient_at, program, vae, x=x)
    piwae = at(objective=PIWAE(6, groups=3))
    assert_same(only(piwae, "likelihood"), only(at(objective=IWAE(6)), "likelihood"))
    assert_same(only(piwae, "posterior"), only(at(objective=MIWAE(6, groups=3)), "posterior"))
    assert (
        piwae["posterior.mean_and_scale.network.0.weight"]
        - at(objective=IWAE(6))["posterior.mean_and_scale.network.0.weight"]
    ).abs().max() > 1e-3


@pytest.mark.parametrize("prior", ["StandardNormal", "VampPrior"])
def test_dropping_the_score_adds_the_wake_phase(prior: str) -> None:
    """Per sample: STL = IWAE + wake-phi; and DReG = STL - the wake phase doubly reparameterised."""
    vae, x = make_vae(prior)
    at = functools.partial(gradient_at, (vae.model, vae.guide), vae, x=x)
    stl, iwae, wake = at(objective=IWAESTL(6)), at(objective=IWAE(6)), at(objective=EUBO(6))
    assert_same(stl, combined((1, iwae), (1, wake)))
    assert max(float(g.abs().max()) for g in wake.values()) > 1e-3
    assert all(g.abs().max() == 0 for g in only(wake, "likelihood").values())
    if prior == "StandardNormal":
        dreg, again = at(objective=DReG(6)), at(objective=RWSDReG(6))
        assert_same(only(again, "posterior"), combined((1, only(stl, "posterior")), (-1, only(dreg, "posterior"))))
        assert_same(only(at(objective=RWS(6)), "posterior"), only(wake, "posterior"))  # the EUBO descends by it


def test_leave_one_out_is_the_gradient_of_half_the_variance() -> None:
    """VarGrad: minus the gradient by q of half the sample variance of log w at fixed z."""
    vae, x = make_vae()
    found = gradient_at((vae.model, vae.guide), vae, REINFORCE(6, "leave_one_out"), x)
    torch.manual_seed(11)
    weights = sample_log_weights(vae.model, vae.guide, x, num_particles=6, latents="detached")
    variance = gradient_of(-0.5 * weights.log_w.var(0).sum(), vae)
    assert_same(only(found, "posterior"), only(variance, "posterior"))


def test_baselines_are_what_they_say() -> None:
    vae, x = make_vae()
    program = (vae.model, vae.guide)

    def score(baseline: Tensor | float) -> dict[str, Tensor]:
        torch.manual_seed(11)
        weights = sample_log_weights(vae.model, vae.guide, x, num_particles=3, latents="detached")
        signal = weights.log_w.detach() - baseline
        return gradient_of((signal * weights.joint_log_q + weights.log_p).mean(0).sum(), vae)

    torch.manual_seed(11)
    with torch.no_grad():
        log_w = sample_log_weights(vae.model, vae.guide, x, num_particles=3).log_w
    assert_same(gradient_at(program, vae, REINFORCE(3), x), score(0.0))
    moving = REINFORCE(3, "moving_average")
    assert_same(gradient_at(program, vae, moving, x), score(0.0))  # nothing seen yet
    assert_same(gradient_at(program, vae, moving, x), score(log_w.mean()), rtol=1e-6)  # its buffers are float32
    value_at(program, moving, x, seed=12)
    learned = REINFORCE(3, "learned")
    gradient_at(program, vae, learned, x)
    assert learned.learned is not None
    b = learned.learned.offset + learned.learned.scale * learned.learned.network(x).squeeze(-1)
    assert_same(gradient_at(program, vae, learned, x), score(b.detach()))


def test_a_learned_baseline_is_fitted_to_the_signal() -> None:
    """Its parameters follow the squared error down to what the draws leave."""
    vae, x = make_vae()
    with torch.no_grad():
        vae.likelihood.logits.network[-1].bias += torch.linspace(-4, 4, 6)  # data of different log p(x)
    objective = REINFORCE(4, "learned")
    gradient_at((vae.model, vae.guide), vae, objective, x)
    baseline = objective.learned
    assert baseline is not None
    assert baseline.network is not None
    optimizer = torch.optim.Adam(baseline.network.parameters(), lr=1e-2)
    errors, spreads = [], []
    for seed in range(100):
        torch.manual_seed(seed)
        weights = sample_log_weights(vae.model, vae.guide, x, num_particles=4, latents="detached")
        with torch.no_grad():
            errors.append(float((weights.log_w - baseline(weights, weights.log_w)).square().mean()))
            spreads.append(float(weights.log_w.var(0).mean()))
        optimizer.zero_grad()
        (-objective(weights).surrogate.sum()).backward()
        optimizer.step()
    fitted, floor = sum(errors[-50:]) / 50, sum(spreads) / 100
    assert fitted < 1.3 * floor < 0.5 * errors[0]
