"""Estimators of the second form, whose gradient is stated at the logits, against sums over all that is drawn.

The antithetic pair of a bit has four states of known probability, so the expectation and the variance of DisARM are
sums over the pairs of all bits. The noise of relaxed draws is continuous: there, expectations are within 5 standard
errors, and the laws of the noise are tested.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from replicates import assert_same, assert_within_errors, block, flat, gradient_at, gradient_of, mean_gradient, measured
from test_estimators_discrete import VAES, X, bits, close, every_vae, exact_bound, exact_elbo, one_hots, states_of
from torch import Tensor, nn

from ppl_vae import SVI, VAE, likelihoods, objectives, posteriors, priors
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    ARM,
    ELBO,
    NVIL,
    REBAR,
    REINFORCE,
    RELAX,
    VIMCO,
    DisARM,
    DoubleCV,
    EnumeratedELBO,
    Estimate,
    GumbelRaoELBO,
    GumbelSoftmaxELBO,
    LocalDisARM,
    ReinMaxELBO,
    StraightThroughELBO,
    as_loss,
    sample_log_weights,
)
from ppl_vae.objectives.baselines import observed_rows
from ppl_vae.objectives.logits import Drawing
from ppl_vae.objectives.states import States, noisy_given
from ppl_vae.regularizers import terms


class Given(Drawing):
    """Gives the latent its particles and their noise."""

    def __init__(self, z: Tensor, noise: Tensor | None = None, *, antithetic: bool = False, leaf: bool = False) -> None:
        super().__init__("Given", antithetic=antithetic, leaf=leaf)
        self.z = z.clone().requires_grad_() if leaf else z
        if noise is not None:
            self.noise["z"] = noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z":
            msg["value"], msg["done"] = self.z, True


def at_logits(objective: Any, vae: VAE, x: Tensor, num_particles: int, drawing: Drawing) -> Tensor:
    """The gradient of an objective at the logits of each row of a batch, (rows, logits)."""
    weights = sample_log_weights(vae.model, vae.guide, x, num_particles=num_particles, latents=drawing)
    q = weights.posterior["z"]
    (found,) = torch.autograd.grad(objective(weights).surrogate.sum(), q.logits)
    return free(found.sum(0) if num_particles > 1 else found, vae.q_z(x)).flatten(1)


def free(gradient: Tensor, q: States) -> Tensor:
    """The gradient at free logits of one at normalised ones; bits have free logits."""
    if isinstance(q, BinaryVector):
        return gradient
    return gradient - q.probs.detach() * gradient.sum(-1, keepdim=True)


def exact_at_logits(vae: VAE, x: Tensor, elbo: Any = exact_elbo) -> Tensor:
    """The gradient of the exact ELBO at the logits of each datum, normalised for one-hot variables."""
    kept: list[Any] = []

    def keep(q: Any, *_: Any) -> Any:
        made = q(x)
        kept.append(made)
        return made

    posterior, vae.q_z = vae.q_z, functools.partial(keep, vae.q_z)  # type: ignore[method-assign]
    try:
        (found,) = torch.autograd.grad(elbo(vae, x).sum(), kept[0].logits)
        return free(found, kept[0]).flatten(1)
    finally:
        vae.q_z = posterior  # type: ignore[method-assign]


def pairs_of(vae: VAE, x: Tensor, pairs: int = 1) -> tuple[Tensor, Tensor]:
    """All antithetic pairs of the bits of one datum, (2 * pairs, tuples, d), and their probabilities."""
    p = vae.q_z(x).probs[0].detach()
    first, second = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64).T
    both, none = (2 * p - 1).clamp_min(0), (1 - 2 * p).clamp_min(0)
    differ = torch.minimum(p, 1 - p)
    table = torch.stack([none, differ, differ, both])  # (4 states, bits) in the order of `first` and `second`
    tuples = torch.cartesian_prod(*[torch.arange(4)] * (len(p) * pairs)).reshape(-1, pairs, len(p))
    probability = table.gather(0, tuples.reshape(-1, len(p))).reshape(tuples.shape).prod(-1).prod(-1)
    z = torch.cat([first[tuples], second[tuples]], 1).transpose(0, 1)
    return z, probability


def moments_of_pairs(objective: Any, vae: VAE, x: Tensor, pairs: int = 1) -> tuple[Tensor, Tensor]:
    z, probability = pairs_of(vae, x, pairs)
    copies = x.expand(z.shape[1], -1)
    found = at_logits(objective, vae, copies, 2 * pairs, Given(z, antithetic=True))
    mean = probability @ found
    return mean, probability @ (found - mean).square()


def moments_of_tuples(objective: Any, vae: VAE, x: Tensor, k: int, leaf: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance at the logits over all tuples of k independent states."""
    z = states_of(vae)
    tuples = torch.cartesian_prod(*[torch.arange(len(z))] * k).reshape(-1, k)
    copies = x.expand(len(tuples), -1)
    log_q = vae.q_z(x).log_prob(z).detach()
    probability = log_q[tuples].sum(1).exp()
    found = at_logits(objective, vae, copies, k, Given(z[tuples.T], leaf=leaf))
    mean = probability @ found
    return mean, probability @ (found - mean).square()


# ARM and DisARM


@pytest.mark.parametrize("datum", range(0, 8, 3))
def test_disarm_is_unbiased_over_all_pairs(datum: int) -> None:
    vae, x = bits(), X[datum : datum + 1]
    _, probability = pairs_of(vae, x)
    assert probability.sum() == pytest.approx(1.0, rel=1e-12)
    close(moments_of_pairs(DisARM(), vae, x)[0], exact_at_logits(vae, x)[0])


def test_local_disarm_is_unbiased_for_the_bound_of_one_half() -> None:
    vae, x = bits(2), X[3:4]
    mean, variance = moments_of_pairs(LocalDisARM(4), vae, x, pairs=2)
    expected = exact_at_logits(vae, x, lambda vae, x: bound_through(vae, x, 2))[0]
    close(mean, expected)
    assert float(variance.sum()) < float(moments_of_tuples(VIMCO(2), vae, x, 2)[1].sum())
    close(moments_of_tuples(VIMCO(2), vae, x, 2)[0], expected)
    close(bound_through(vae, x, 2), exact_bound(vae, x, 2))


def bound_through(vae: VAE, x: Tensor, k: int) -> Tensor:
    """The bound of k particles of one datum, by a single pass through the encoder."""
    q, z = vae.q_z(x), states_of(vae)
    log_q = q.log_prob(z[:, None])[:, 0]
    log_p = (vae.p_x(z[:, None]).log_prob(x) + vae.p_z().log_prob(z)[:, None])[:, 0]
    tuples = torch.cartesian_prod(*[torch.arange(len(z))] * k).reshape(-1, k)
    bound = (log_p - log_q)[tuples].logsumexp(1) - math.log(k)
    return (log_q[tuples].sum(1).exp() * bound).sum()


def test_local_disarm_of_one_pair_is_disarm() -> None:
    vae, x = bits(), X[5:6]
    z, _ = pairs_of(vae, x)
    copies = x.expand(z.shape[1], -1)
    found = at_logits(LocalDisARM(2), vae, copies, 2, Given(z, antithetic=True))
    close(found, at_logits(DisARM(2), vae, copies, 2, Given(z, antithetic=True)))
    assert repr(LocalDisARM(2).reference) == "EnumeratedELBO()"


def test_disarm_is_the_expectation_of_arm_given_the_pair() -> None:
    """ARM is linear in u, so its expectation given the pair is its value at the mean of u given the pair."""
    vae, x = bits(), X[1:2]
    z, probability = pairs_of(vae, x)
    p = vae.q_z(x).probs[0].detach()
    one, two = z[0], z[1]
    top = torch.maximum(p, 1 - p)  # u lies above it where b = 1 alone, below 1 - it where the partner alone is 1
    u = torch.where(one == two, 0.5, torch.where(one > two, (1 + top) / 2, (1 - top) / 2))
    noise = u.logit()
    drawing = Given(z, torch.stack([noise, -noise]), antithetic=True)
    possible = probability > 0
    copies = x.expand(z.shape[1], -1)
    close(
        at_logits(ARM(), vae, copies, 2, drawing)[possible],
        at_logits(DisARM(), vae, copies, 2, Given(z, antithetic=True))[possible],
    )


def test_antithetic_draws_are_what_their_probabilities_say() -> None:
    """Each half has the law of q, and the two are the coupling of which the other tests take the expectation."""
    vae, x = bits(), X[6:7]
    copies = x.expand(40_000, -1)
    torch.manual_seed(0)
    z = sample_log_weights(vae.model, vae.guide, copies, num_particles=2, latents=DisARM().latents).z["z"]
    p = vae.q_z(x).probs[0].detach()
    for half in z:
        assert_within_errors(measured(list(half)), p)
    assert_within_errors(measured(list(z[0] * z[1])), (2 * p - 1).clamp_min(0))


def test_variance_is_ordered_as_theorems_say() -> None:
    """DisARM is a conditional expectation of ARM, so its variance is at most ARM's."""
    vae, x = bits(), X[1:2]
    torch.manual_seed(1)
    copies = x.expand(40_000, -1)
    samples = {o: at_logits(o, vae, copies, 2, o.latents).square() for o in (ARM(), DisARM())}
    excess = samples[ARM()] - samples[DisARM()]  # equal means, so second moments say what variances do
    found = measured(list(excess))
    assert (found.mean > -5 * found.error).all()
    assert (found.mean > 5 * found.error).any()
    mean, variance = moments_of_pairs(DisARM(), vae, x)
    assert_within_errors(measured(list(samples[DisARM()])), variance + mean.square())


@pytest.mark.parametrize("objective", [ARM(4), DisARM(4), LocalDisARM(4)], ids=repr)
def test_antithetic_estimators_are_unbiased_for_all_parameters(objective: Any) -> None:
    vae = bits()
    expected: Any = flat(gradient_of(exact_elbo(vae, X).sum(), vae))
    if isinstance(objective, LocalDisARM):
        expected = flat(gradient_of(sum(exact_bound(vae, x[None], 2) for x in X), vae))  # type: ignore[arg-type]
    assert_within_errors(mean_gradient((vae.model, vae.guide), vae, objective, X, 500, 40), expected)


# Double CV


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("alpha", [0.0, -1.0, 0.7])
@pytest.mark.parametrize("name", ["bits", "one-hot"])
def test_double_cv_is_unbiased_over_all_tuples(name: str, alpha: float, k: int) -> None:
    vae, x = VAES[name](), X[2:3]
    objective = DoubleCV(k)
    objective.coefficient.forward = lambda g0, g1: torch.tensor(alpha, dtype=torch.float64)  # type: ignore[method-assign]
    mean, variance = moments_of_tuples(objective, vae, x, k, leaf=True)
    close(mean, exact_at_logits(vae, x)[0])
    if alpha == 0.0:
        plain = moments_of_tuples(REINFORCE(k, "leave_one_out"), vae, x, k)
        close(mean, plain[0])
        close(variance, plain[1])


def test_the_second_control_variate_lowers_the_variance() -> None:
    vae, x = bits(), X[2:3]
    _, without = moments_of_tuples(REINFORCE(2, "leave_one_out"), vae, x, 2)
    objective = DoubleCV(2)
    torch.manual_seed(0)
    for _ in range(30):
        as_loss(objective)((vae.model, vae.guide), x.expand(500, -1))
    learned = objective.coefficient(torch.zeros(1), torch.zeros(1))
    assert -1.5 < float(learned) < -0.2
    fixed = copy.deepcopy(objective)
    fixed.coefficient.forward = lambda g0, g1: learned.double()  # type: ignore[method-assign]
    _, found = moments_of_tuples(fixed, vae, x, 2, leaf=True)
    assert float(found.sum()) < 0.75 * float(without.sum())
    for other in (float(learned) - 0.3, float(learned) + 0.3):  # it is the best one
        fixed.coefficient.forward = lambda g0, g1, a=other: torch.tensor(a, dtype=torch.float64)  # type: ignore[misc]
        assert float(moments_of_tuples(fixed, vae, x, 2, leaf=True)[1].sum()) > float(found.sum())


class Linear(nn.Module):
    """A program whose log-weight is linear in its bits: the likelihood is exp(a z) by a Bernoulli without an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64))
        self.slope = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            # p(z) is q(z) without a gradient, so that log w is the likelihood's term alone
            z = pyro.sample("z", dist.Bernoulli(logits=self.logits.detach()).to_event(1))
            pyro.sample("x", dist.Normal((z * self.slope).sum(-1), 1.0), obs=x)
            pyro.sample("y", dist.Normal((z * self.slope).sum(-1), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("linear", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.logits).to_event(1))


def test_double_cv_has_no_variance_where_f_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """With alpha = -1 the two control variates are f itself, and what is left is its exact gradient."""
    program = Linear()

    def linear(self: Any, value: Tensor) -> Tensor:
        return self.loc

    monkeypatch.setattr(dist.Normal, "log_prob", linear)
    objective = DoubleCV(2)
    objective.coefficient.forward = lambda g0, g1: torch.tensor(-1.0, dtype=torch.float64)  # type: ignore[method-assign]
    p = program.logits.detach().sigmoid()
    expected = 2 * program.slope * p * (1 - p)
    for seed in range(5):
        torch.manual_seed(seed)
        loss = as_loss(objective)((program.model, program.guide), torch.zeros(1, dtype=torch.float64))
        (found,) = torch.autograd.grad(-loss.surrogate, program.logits)
        close(found, expected)


# REBAR and RELAX


def test_conditional_noise_is_right_where_a_bit_is_almost_sure() -> None:
    logits = torch.tensor([-80.0, -30.0, 0.0, 30.0, 80.0], dtype=torch.float32).expand(1000, 5)
    states = BinaryVector(logits)
    for z in (torch.zeros_like(logits), torch.ones_like(logits)):
        (again,) = noisy_given(states, z)
        assert again.isfinite().all()
        assert torch.equal(states._nearest(again), z)


@pytest.mark.ci
@pytest.mark.thinned(6)
@every_vae
@pytest.mark.parametrize("make", [REBAR, RELAX])
def test_relaxed_controls_are_unbiased(name: str, make: Any) -> None:
    vae = VAES[name]()
    expected = flat(gradient_of(exact_elbo(vae, X).sum(), vae))
    objective = make(1, temperature=0.3, adapt=False)
    as_loss(objective)((vae.model, vae.guide), X)  # makes the network of RELAX
    torch.manual_seed(3)
    with torch.no_grad():  # any parameters will do
        for parameter in objective.control.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert_within_errors(mean_gradient((vae.model, vae.guide), vae, objective, X, 500, 40), expected)


def test_rebar_without_its_weight_is_reinforce() -> None:
    vae = bits()
    objective = REBAR(3, adapt=False)
    with torch.no_grad():
        objective.control.weight.zero_()
    torch.manual_seed(2)
    weights = sample_log_weights(vae.model, vae.guide, X, num_particles=3, latents=objective.latents)
    found = gradient_of(objective(weights).surrogate.sum(), vae)
    plain = sample_log_weights(vae.model, vae.guide, X, num_particles=3, latents=Given(weights.z["z"]))
    assert_same(found, gradient_of(REINFORCE(3)(plain).surrogate.sum(), vae))


@pytest.mark.parametrize("make", [functools.partial(REBAR, 2), functools.partial(RELAX, 2)])
def test_controls_follow_the_gradient_of_the_variance(make: Any) -> None:
    """The term that the surrogate adds has the gradient of the sum of squares, by finite differences."""
    vae, objective = bits(), make(temperature=0.4)
    program = (vae.model, vae.guide)
    as_loss(objective)(program, X)
    objective.control.double()

    def square() -> Tensor:
        torch.manual_seed(5)
        weights = sample_log_weights(*program, X, num_particles=2, latents=objective.latents)
        logits = weights.posterior["z"].logits
        (found,) = torch.autograd.grad(objective(weights).surrogate.sum(), logits, retain_graph=True)
        return found.sum(0).square().sum()

    for parameter in (objective.control.weight, objective.control.log_temperature):
        torch.manual_seed(5)
        surrogate = -as_loss(objective)(program, X).surrogate
        (found,) = torch.autograd.grad(surrogate, parameter)
        step = 1e-5
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step)
            ends.append(square())
            with torch.no_grad():
                parameter.sub_(sign * step)
        close_to = (ends[1] - ends[0]) / (2 * step)
        torch.testing.assert_close(found, close_to, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("objective", [REBAR(2), RELAX(2), DoubleCV(2), DisARM(2), LocalDisARM(4), NVIL(2)], ids=repr)
@pytest.mark.parametrize("compile", ["graph", "off"])
@pytest.mark.thinned(3)
def test_they_train(objective: Any, compile: str) -> None:
    vae = bits().float()
    objective = copy.deepcopy(objective)
    svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=0.02), objective, compile=compile)
    x = X.float()
    before = exact_elbo(vae, x).mean()
    torch.manual_seed(0)
    for _ in range(60):
        svi.step(x)
    assert exact_elbo(vae, x).mean() > before + 0.05
    if isinstance(objective, REBAR):
        assert objective.control.weight != 1.0
        assert svi.compile == compile
    if isinstance(objective, RELAX):
        assert objective.control.network[-1].weight.abs().max() > 0


@pytest.mark.slow
def test_relax_lowers_the_variance_while_it_trains_alone() -> None:
    """With the program fixed, the parameters of the control variate lower the variance at the logits."""
    vae = bits().float()
    program, x = (vae.model, vae.guide), X.float()[2:3].expand(200, -1)
    objective = RELAX(1, temperature=2.0)
    as_loss(objective)(program, x)

    def variance(seed: int) -> float:
        torch.manual_seed(seed)
        return float(at_logits(objective, vae, x.repeat(20, 1), 1, objective.latents).var(0).sum())

    before = variance(0)
    optimizer = torch.optim.Adam(objective.control.parameters(), lr=0.02)
    torch.manual_seed(1)
    for _ in range(150):
        optimizer.zero_grad()
        as_loss(objective)(program, x).surrogate.backward()
        optimizer.step()
    assert variance(0) < 0.8 * before


# NVIL


def test_nvil_is_reinforce_in_another_scale() -> None:
    vae = bits()
    program = (vae.model, vae.guide)
    objective = NVIL(1, decay=0.5)
    torch.manual_seed(0)
    for _ in range(5):
        as_loss(objective)(program, X)
    centre, spread = (m.total / m.weight for m in (objective.mean, objective.variance))
    state = copy.deepcopy(objective)
    weights = sample_log_weights(*program, X, latents="detached")
    found = gradient_of(state(weights).surrogate.sum(), vae)
    assert state.learned is not None
    b = state.learned(weights, weights.log_w.detach()).detach()
    signal = (weights.log_w.detach() - b - centre) / spread.sqrt().clamp_min(1.0)
    weights = sample_log_weights(*program, X, latents=Given(weights.z["z"]))  # the same draws in a graph of their own
    assert_same(found, gradient_of((weights.log_p + signal * weights.joint_log_q).sum(), vae))
    encoder = block(vae, "posterior")
    assert flat(found)[encoder].abs().max() > 0


def test_nvil_does_not_lift_a_quiet_signal() -> None:
    objective = NVIL(1)
    signal = 1e-3 * torch.arange(4.0).reshape(1, 4)
    objective._normalized(signal)
    torch.testing.assert_close(objective._normalized(signal), signal - signal.mean())


# Refusals


def test_refusals() -> None:
    vae, x = bits(), X
    program = (vae.model, vae.guide)
    for odd in (DisARM, ARM, LocalDisARM):
        with pytest.raises(ValueError, match=r"draws come in antithetic pairs; expected an even number"):
            odd(3)
    with pytest.raises(ValueError, match=r"DoubleCV: num_particles is 1, .* or use REBAR"):
        DoubleCV(1)
    with pytest.raises(ValueError, match=r"REBAR: temperature"):
        REBAR(1, temperature=0.0)
    with pytest.raises(ValueError, match=r"RELAX: hidden"):
        RELAX(1, hidden=0)
    with pytest.raises(ValueError, match=r"NVIL: decay is 1.0; expected a number between 0 and 1"):
        NVIL(1, decay=1.0)
    independent = sample_log_weights(*program, x, num_particles=2, latents="detached")
    with pytest.raises(ValueError, match=r"DisARM needs antithetic pairs, and these draws are independent"):
        DisARM(2)(independent)
    with pytest.raises(ValueError, match=r"REBAR needs the noise of the draws"):
        REBAR(2)(independent)
    with pytest.raises(ValueError, match=r"these draws carry no gradient"):
        DoubleCV(2)(independent)
    with pytest.raises(ValueError, match=r"averages over draws of q, and was given log-weights of all states"):
        DoubleCV(2)(sample_log_weights(*program, x, latents="enumerated"))


@pytest.mark.parametrize("objective", [DisARM(2), ARM(2), LocalDisARM(4), DoubleCV(2), REBAR(1), RELAX(1)], ids=repr)
def test_programs_that_do_not_fit_are_refused(objective: Any) -> None:
    name = type(objective).__name__
    normal = VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(MLP([5])),
        posterior=posteriors.DiagonalNormal(MLP([5])),
    )
    with pytest.raises(TypeError, match=rf"objective {name} needs .* and q at site 'z' is Normal; use REINFORCE"):
        as_loss(objective)((normal.model, normal.guide), X.float())

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(0.2 + 0.3 * (a + b)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Bernoulli(logits=logits).to_event(1))
            pyro.sample("b", dist.Bernoulli(logits=logits).to_event(1))

    with pytest.raises(TypeError, match=rf"objective {name} needs a program with one latent site"):
        as_loss(objective)((model, guide), X.float())
    if isinstance(objective, (DisARM, LocalDisARM)):
        vae = one_hots()
        with pytest.raises(TypeError, match=rf"objective {name} needs bits, and q at site 'z' is OneHotVector"):
            as_loss(objective)((vae.model, vae.guide), X)


def test_masks_over_data_take_their_gradient_away() -> None:
    vae = bits()
    keep = torch.tensor([True] * 3 + [False] * 5)
    masked = tuple(poutine.mask(part, mask=keep) for part in (vae.model, vae.guide))
    for objective in (DisARM(2), DoubleCV(2), REBAR(2)):
        weights = sample_log_weights(*masked, X, num_particles=2, latents=objective.latents)
        logits = weights.posterior["z"].base_dist.logits
        (found,) = torch.autograd.grad(objective(weights).surrogate.sum(), logits)
        assert found[:, ~keep].abs().max() == 0
        assert found[:, keep].abs().max() > 0


# Pyro's own sites, and penalties beside an objective that makes its own draws


class Sites(nn.Module):
    """A program with one discrete site in a form of Pyro's, or in this package's; the parameters are the same."""

    def __init__(self, form: str, size: int, own: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.form, self.own = form, own
        self.encoder, self.decoder = nn.Linear(3, size).double(), nn.Linear(size, 3).double()
        self.prior = nn.Parameter(torch.randn(size, dtype=torch.float64))

    def latent(self, logits: Tensor) -> Any:
        if "bit" in self.form:
            if self.own:
                return BinaryVector(logits)
            if self.form == "a bit":
                return dist.Bernoulli(logits=logits[..., 0])
            return dist.Bernoulli(logits=logits.unflatten(-1, (-1, 2))).to_event(2)
        blocks = logits.unflatten(-1, (-1, 3))
        if self.own:
            return OneHotVector(blocks)
        if self.form == "classes":
            return dist.OneHotCategorical(logits=blocks).to_event(1)
        return dist.OneHotCategorical(logits=logits)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            prior = self.latent(self.prior)
            z = pyro.sample("z", prior.mask(torch.tensor(True)) if self.form == "a class" else prior)
            z = z.reshape(*z.shape[: z.dim() - self.event_dim], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z).sin()).to_event(1), obs=x)

    @property
    def event_dim(self) -> int:
        return 1 if self.own else {"a bit": 0, "bits": 2, "a class": 1, "classes": 2}[self.form]

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.latent(self.encoder(x)))


@pytest.mark.parametrize("form", ["a bit", "bits", "a class", "classes"])
@pytest.mark.parametrize("k", [1, 2])
def test_pyros_own_sites_are_those_of_this_package(form: str, k: int) -> None:
    """Pyro scores the class that is nearest to z: between states its density would have no slope and jump."""
    own, pyros = (Sites(form, {"a bit": 1, "bits": 4, "a class": 3, "classes": 6}[form], own) for own in (True, False))
    makers: list[Any] = [REBAR, RELAX, StraightThroughELBO, ReinMaxELBO, GumbelSoftmaxELBO, GumbelRaoELBO]
    makers += [] if k == 1 else [DoubleCV]
    makers += [DisARM, ARM, LocalDisARM] if k == 2 and "bit" in form else []
    for make in makers:
        objectives = make(k), make(k)
        for step in range(2):
            one, other = (
                gradient_at((m.model, m.guide), m, o, X, seed=step)
                for m, o in zip((own, pyros), objectives, strict=True)
            )
            assert max(float(g.abs().max()) for n, g in one.items() if "encoder" in n) > 0.01
            assert_same(other, one)


@pytest.mark.parametrize("make", [DoubleCV, REBAR, RELAX, functools.partial(REBAR, temperature=0.1), DisARM, ARM])
@pytest.mark.parametrize("family", [BinaryVector, OneHotVector])
def test_an_infinite_logit_is_a_certain_state(make: Any, family: Any) -> None:
    """The gradients of the program and of the control are those at a logit whose probabilities are 0 and 1 as well."""
    if family is OneHotVector and make in (DisARM, ARM):
        return
    decoder, found = nn.Linear(4, 3).double(), []
    for large in (2000.0, math.inf):
        leaf = torch.tensor([[large, -large, 0.3, -0.2]], dtype=torch.float64).expand(8, 4).clone().requires_grad_()
        shape = (4,) if family is BinaryVector else (2, 2)

        def model(x: Tensor, shape: Any = shape) -> None:
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", family(torch.full(shape, 0.2, dtype=torch.float64)))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z).sin()).to_event(1), obs=x)

        def guide(x: Tensor, shape: Any = shape, leaf: Tensor = leaf) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", family(leaf.reshape(-1, *shape)))

        torch.manual_seed(7)
        objective = make(2)
        loss = as_loss(objective)
        loss((model, guide), X)  # DoubleCV has no control variate at its first step
        surrogate = loss((model, guide), X).surrogate
        assert surrogate is not None
        control = list(objective.control.parameters()) if isinstance(objective, REBAR) else []
        parameters = [leaf, *decoder.parameters(), *control]
        found.append(torch.autograd.grad(surrogate, parameters, allow_unused=True, materialize_grads=True))
    for at_finite, at_infinite in zip(*found, strict=True):
        torch.testing.assert_close(at_infinite, at_finite, rtol=1e-10, atol=1e-12)


def test_a_penalty_that_is_sampled_has_the_gradient_of_its_expectation() -> None:
    """No path leads from the leaves of DoubleCV to q, and an antithetic partner is no baseline for its draw."""
    vae, x = bits(2), X[3:4]

    def penalty(weights: Any) -> Any:
        return Estimate(weights.log_lik[0].detach(), terms.expected(weights.log_lik, weights).surrogate, "lower")

    def exactly(vae: VAE, x: Tensor) -> Tensor:
        q, z = vae.q_z(x), states_of(vae)
        return (q.log_prob(z[:, None]).exp() * vae.p_x(z[:, None]).log_prob(x)).sum()

    expected = exact_at_logits(vae, x, exactly)[0]
    for pairs in (1, 2):
        close(moments_of_pairs(penalty, vae, x, pairs)[0], expected)
    close(moments_of_tuples(penalty, vae, x, 2, leaf=True)[0], expected)
    leaves = sample_log_weights(vae.model, vae.guide, X, num_particles=2, latents=DoubleCV(2).latents)
    with pytest.raises(ValueError, match=r"needs latents that carry a gradient"):
        terms.one_site(leaves, "regularizer InfoVAE")
    with pytest.raises(ValueError, match=r"objective ELBO needs reparameterised latents"):
        ELBO()(leaves)


def test_a_baseline_sees_the_data_of_its_own_row_under_plates_inside() -> None:
    x = torch.arange(24.0).reshape(2, 4, 3)  # two measurements of three numbers of each of four data

    def model(x: Tensor) -> None:
        with pyro.plate("data", 4, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.4)).to_event(1))
            with pyro.plate("measurements", 2, dim=-2):
                pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4, dim=-1):
            pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.4)).to_event(1))

    weights = sample_log_weights(model, guide, x, num_particles=3, max_plate_nesting=2, latents="detached")
    assert torch.equal(observed_rows(weights), x.transpose(0, 1).reshape(4, 6))


@pytest.mark.parametrize("k", [1, 2])
def test_a_given_subsample_with_plates_inside_the_data_is_a_batch_with_one_event(k: int) -> None:
    """The latent lies in the plate of the data alone, and the plate's rows are given, for every way to draw."""
    torch.manual_seed(3)
    program = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 3)]).double()

    def rows(given: bool) -> Any:
        return pyro.plate("data", 80, subsample=torch.arange(8).flip(0), dim=-1) if given else pyro.plate("data", 8)

    def model(x: Tensor, given: bool) -> None:
        with rows(given) as index:
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.4, dtype=torch.float64)).to_event(1))
            if not given:
                pyro.sample("x", dist.Bernoulli(logits=program[1](z)).to_event(1), obs=x)
                return
            with pyro.plate("pixels", 3, dim=-2):
                logits = program[1](z).reshape(-1, 8, 3)  # (K, batch, pixels), and K must lead the plate of pixels
                logits = logits.transpose(1, 2) if k > 1 else logits[0].T
                pyro.sample("x", dist.Bernoulli(logits=logits), obs=x[7 - index].T)

    def guide(x: Tensor, given: bool) -> None:
        with rows(given) as index:
            pyro.sample("z", dist.Bernoulli(logits=program[0](x[7 - index] if given else x)).to_event(1))

    makers: list[Any] = [REBAR, RELAX, REINFORCE, ReinMaxELBO]
    makers += [] if k == 1 else [DisARM, ARM, LocalDisARM, DoubleCV, VIMCO]
    for make in makers:
        found = []
        for given in (True, False):
            torch.manual_seed(9)
            objective = make(k)
            weights = sample_log_weights(
                model, guide, X, given, num_particles=k, latents=objective.latents, max_plate_nesting=1 + given
            )
            assert weights.scale == (10.0 if given else 1.0)
            found.append(gradient_of(objective(weights).surrogate.sum(), program))
        assert_same(*found)


def test_every_new_name_is_public() -> None:
    for name in ("ARM", "DisARM", "LocalDisARM", "DoubleCV", "REBAR", "RELAX", "NVIL"):
        assert name in objectives.__all__
    assert repr(DisARM().reference) == repr(EnumeratedELBO())
