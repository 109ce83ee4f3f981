"""DAIS: volumes, weights and gradients of its paths, and E w = p(x) where p(x) has a closed form."""

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
from replicates import assert_within_errors, gradient_of, measured, value_at
from torch import Tensor

from ppl_vae import SVI, VAE, likelihoods, networks, posteriors, priors
from ppl_vae.evidence import closed_form_evidence, dais
from ppl_vae.objectives import DAIS, IWAE, as_loss, sample_log_weights
from ppl_vae.objectives.annealed import _Site


def linear() -> tuple[VAE, Tensor]:
    """A linear-Gaussian model with a posterior that is roughly right, and four data of its own."""
    torch.manual_seed(3)
    vae = VAE(
        (4,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(networks.MLP([], init="torch"), scale=0.8),
        posterior=posteriors.DiagonalNormal(networks.MLP([], init="torch"), scale="std"),
    ).double()
    for name, parameter in vae.posterior.named_parameters():  # one scale for all data
        with torch.no_grad():
            parameter[2:] = 0.8 if name.endswith("bias") else 0.0
    return vae, vae.sample(4, mean=False).detach()


def paths(objective: DAIS, vae: VAE, x: Tensor, num_particles: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return objective.log_weights(sample_log_weights(vae.model, vae.guide, x, num_particles=num_particles))


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "objective",
    [
        DAIS(transitions=1, step_size=0.3),
        DAIS(transitions=5, step_size=0.3, refresh=0.0),
        DAIS(transitions=5, step_size=0.3, refresh=0.9),
        DAIS(transitions=3, leapfrogs=4, step_size=0.4),
        DAIS(transitions=2, step_size=0.7),
    ],
    ids=repr,
)
def test_the_weights_have_the_expectation_p_of_x(objective: DAIS) -> None:
    vae, x = linear()
    exact = closed_form_evidence(vae, x)
    assert exact is not None
    with torch.no_grad():
        ratios = (paths(objective, vae, x, 40_000) - exact.log_evidence).exp()
    assert_within_errors(measured(list(ratios)), torch.ones(4, dtype=torch.float64))


def test_steps_preserve_volume_and_can_be_reversed() -> None:
    vae, x = linear()
    weights = sample_log_weights(vae.model, vae.guide, x[:1])
    site = _Site(weights, DAIS())
    step, beta = 0.3, torch.tensor(0.6, dtype=torch.float64)

    def leap(both: Tensor) -> Tensor:
        z, v = both[:2].unsqueeze(0), both[2:].unsqueeze(0)
        z = z + 0.5 * step * v
        v = v + step * site.slope(z, beta)
        z = z + 0.5 * step * v
        return torch.cat([z[0], v[0]])

    start = torch.tensor([0.3, -0.7, 1.1, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.functional.jacobian(leap, start).det() == pytest.approx(1.0, rel=1e-12)
    end = leap(start)
    turn = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(leap(turn * end) * turn, start, rtol=1e-10, atol=1e-12)


def test_a_path_of_no_effect_is_importance_weighting() -> None:
    vae, x = linear()
    objective = DAIS(3, transitions=4, step_size=1e-14)
    torch.testing.assert_close(
        value_at((vae.model, vae.guide), objective, x), value_at((vae.model, vae.guide), IWAE(3), x), rtol=1e-10, atol=0
    )


def test_one_transition_is_the_formula() -> None:
    """N(0, 1) to N(0, s^2) by one leapfrog step, whose every term can be written down."""
    s, step = 1.7, 0.4

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=x.dtype), s).to_event(1))
            pyro.sample("x", dist.Normal(0.0 * z.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1))

    x = torch.zeros(6, dtype=torch.float64)
    objective = DAIS(1, transitions=1, step_size=step)
    torch.manual_seed(5)
    start = sample_log_weights(model, guide, x)
    state = torch.get_rng_state()
    found = objective.log_weights(start)[0]
    torch.set_rng_state(state)
    z0 = start.z["z"][:, 0]
    v0 = torch.randn_like(z0.unsqueeze(-1))[:, 0]
    half = z0 + step / 2 * v0
    v1 = v0 - step * half / s**2  # beta is 1 in the only transition
    z1 = half + step / 2 * v1

    def log_normal(value: Tensor, scale: float) -> Tensor:
        return -0.5 * (value / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)

    likelihood = log_normal(torch.zeros(6, dtype=torch.float64), 1.0)
    expected = log_normal(z1, s) + likelihood - log_normal(z0, 1.0) + log_normal(v1, 1.0) - log_normal(v0, 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.ci
def test_longer_paths_are_tighter_and_stay_below() -> None:
    vae, x = linear()
    exact = closed_form_evidence(vae, x)
    assert exact is not None
    bounds = []
    for transitions in (1, 4, 16, 64):
        objective = DAIS(1, transitions=transitions, step_size=0.3, leapfrogs=2)
        with torch.no_grad():
            bounds.append(measured(list(paths(objective, vae, x, 4000).mean(1))))
    for a, b in itertools.pairwise(bounds):
        assert b.mean - a.mean > 5 * (a.error**2 + b.error**2).sqrt()
    assert bounds[-1].mean < exact.mean
    assert exact.mean - bounds[-1].mean < 0.1
    elbo = as_loss(IWAE(1))
    torch.manual_seed(0)
    with torch.no_grad():  # a path of one transition jumps to p at once, and is worse than none at this step size
        assert -float(elbo((vae.model, vae.guide), x.repeat(500, 1)).loss) / 2000 > bounds[0].mean


@pytest.mark.parametrize("leapfrogs", [1, 2])
def test_the_gradient_is_that_of_the_value(leapfrogs: int) -> None:
    """Through the draws, the path, its step size, refreshment and schedule: by finite differences at one noise."""
    vae, x = linear()
    objective = DAIS(2, transitions=3, leapfrogs=leapfrogs, step_size=0.2)
    program = (vae.model, vae.guide)
    value_at(program, objective, x)
    both = torch.nn.ModuleList([vae, objective.path])
    torch.manual_seed(11)
    found = gradient_of(-as_loss(objective)(program, x).surrogate, both)
    for name, parameter in both.named_parameters():
        entry = (0,) * parameter.dim()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[entry] += sign * 1e-6
                ends.append(value_at(program, objective, x))
                parameter[entry] -= sign * 1e-6
        expected = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(found[name][entry], expected, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("compile", ["off", "graph"])
def test_it_trains_program_and_path(compile: str) -> None:
    vae, x = linear()
    vae, x = vae.float(), x.float().repeat(8, 1)
    objective = DAIS(1, transitions=4, step_size=0.05)
    svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=0.01), objective, compile=compile)
    torch.manual_seed(0)
    losses = [svi.step(x) for _ in range(80)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 5
    assert objective.path.log_step.detach().exp() > 0.055
    assert objective.path.increments.abs().max() > 0
    fixed = DAIS(1, transitions=4, step_size=0.05, refresh=0.0, adapt=False)
    SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=0.01), fixed, compile=compile).step(x)
    torch.testing.assert_close(fixed.path.log_step.exp(), torch.tensor(0.05))


def test_evidence_nears_the_closed_form_and_is_repeatable() -> None:
    vae, x = linear()
    exact = closed_form_evidence(vae, x)
    assert exact is not None
    objective = DAIS(transitions=32, step_size=0.3, leapfrogs=2)
    program = (vae.model, vae.guide)
    found = dais(program, x, objective=objective, num_particles=200, seed=1)
    assert (found.method, found.kind) == ("dais", "lower")
    assert ((found.log_evidence - exact.log_evidence).abs() < 5 * found.error + 1e-3).all()
    assert found.error.max() < 0.1
    assert torch.equal(dais(vae, x, objective=objective, num_particles=200, seed=1).log_evidence, found.log_evidence)
    before = torch.get_rng_state()
    dais(program, x[:1], objective=objective, num_particles=2)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"dais was given no data"):
        dais(program, x[:0], objective=objective)
    with pytest.raises(ValueError, match=r"dais: num_particles"):
        dais(program, x, objective=objective, num_particles=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"refresh": 1.0}, r"DAIS: refresh is 1.0; expected the share of the momentum that is kept"),
        ({"step_size": 0.0}, r"DAIS: step_size"),
        ({"transitions": 0}, r"DAIS: transitions"),
        ({"leapfrogs": 1.5}, r"DAIS: leapfrogs"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DAIS(**arguments)


def test_latents_that_cannot_move_are_refused() -> None:
    for prior, posterior, message in (
        (
            priors.HypersphericalUniform(3),
            posteriors.VonMisesFisher(networks.MLP([5])),
            "unconstrained values, and q at site 'z'",
        ),
        (priors.BernoulliVector(3), posteriors.BernoulliVector(networks.MLP([5])), "needs reparameterised latents"),
    ):
        vae = VAE((4,), prior=prior, likelihood=likelihoods.Bernoulli(networks.MLP([5])), posterior=posterior)
        with pytest.raises((TypeError, ValueError), match=message):
            as_loss(DAIS())((vae.model, vae.guide), torch.zeros(3, 4))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("b", dist.Normal(a, 1.0).to_event(1))

    with pytest.raises(TypeError, match=r"DAIS moves one latent site .* this one has \['a', 'b'\]; use IWAE"):
        as_loss(DAIS())((model, guide), torch.zeros(3))


def test_a_copy_has_parameters_of_its_own() -> None:
    objective = DAIS()
    other = copy.deepcopy(objective)
    assert other.path.log_step is not objective.path.log_step
    assert repr(other) == repr(objective)
