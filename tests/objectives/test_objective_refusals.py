"""Objectives given log-weights that they cannot use, or numbers at the edge: refused in a sentence, or right."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro import poutine
from torch import Tensor, nn

from ppl_vae import SVI, VAE, likelihoods, networks, posteriors, priors
from ppl_vae.comparison import compare
from ppl_vae.objectives import (
    CUBO,
    ELBO,
    EUBO,
    IWAE,
    JVI,
    MIWAE,
    REINFORCE,
    RWS,
    TVO,
    VIMCO,
    EnumeratedELBO,
    Estimate,
    GumbelSoftmaxELBO,
    LogWeights,
    Renyi,
    RWSDReG,
    StraightThroughELBO,
    as_loss,
    sample_log_weights,
)


def my_bound(log_weights):
    return log_weights.log_w.logsumexp(0) - math.log(log_weights.num_particles)


def bits() -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    vae = VAE(
        (4,),
        prior=priors.BernoulliVector(3),
        likelihood=likelihoods.Bernoulli(nn.Linear(3, 4)),
        posterior=posteriors.BernoulliVector(nn.Linear(4, 3)),
    )
    return vae, torch.randint(2, (5, 4)).float()


def by_hand(log_w: Tensor) -> LogWeights:
    """Log-weights that are all likelihood."""
    return LogWeights.of(log_w)


def test_a_function_on_latents_without_a_path_is_refused_by_its_name():
    vae, x = bits()
    with pytest.raises(ValueError, match=r"objective my_bound needs reparameterised latents.*use REINFORCE or VIMCO"):
        as_loss(my_bound)((vae.model, vae.guide), x)
    with torch.no_grad():
        assert as_loss(my_bound)((vae.model, vae.guide), x).loss.isfinite()


def test_a_function_may_say_that_it_needs_no_path():
    def signal(log_weights):
        return (log_weights.log_w.detach() * log_weights.joint_log_q).mean(0)

    signal.latents = "detached"
    vae, x = bits()
    assert as_loss(signal)((vae.model, vae.guide), x).surrogate.requires_grad


@pytest.mark.parametrize("objective", [REINFORCE(3), VIMCO(3), RWS(3), TVO(3), CUBO(3), EUBO(3)], ids=repr)
def test_the_score_beside_the_path_is_refused(objective):
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(4)
    with pytest.raises(ValueError, match=r"carries a gradient; sample the log-weights with latents='detached'"):
        objective(sample_log_weights(vae.model, vae.guide, x, num_particles=3))


def test_the_path_without_a_gradient_is_refused():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(4)
    detached = sample_log_weights(vae.model, vae.guide, x, num_particles=3, latents="detached")
    with pytest.raises(ValueError, match=r"drawn without a gradient; sample the log-weights with latents='pathwise'"):
        IWAE(3)(detached)
    vae.posterior.requires_grad_(False)  # where q is not trained there is no path to follow
    IWAE(3)(sample_log_weights(vae.model, vae.guide, x, num_particles=3, latents="detached"))


def test_another_word_for_how_latents_are_drawn_is_refused():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(4)
    with pytest.raises(ValueError, match=r"latents is 'pathwize'; expected one of .*did you mean pathwise"):
        sample_log_weights(vae.model, vae.guide, x, latents="pathwize")


def test_states_are_no_draws_and_draws_no_states():
    vae, x = bits()
    states = sample_log_weights(vae.model, vae.guide, x, latents="enumerated")
    for objective in (ELBO(8), IWAE(8), REINFORCE(8), StraightThroughELBO()):
        with pytest.raises(ValueError, match=r"was given log-weights of all states; use EnumeratedELBO"):
            objective(states)
        with torch.no_grad(), pytest.raises(ValueError, match=r"was given log-weights of all states"):
            objective(states)
    with pytest.raises(ValueError, match=r"was given log-weights of draws; sample them with latents='enumerated'"):
        EnumeratedELBO()(sample_log_weights(vae.model, vae.guide, x, num_particles=8, latents="detached"))


def test_draws_that_are_not_relaxed_are_refused_where_their_gradient_is_followed():
    vae, x = bits()
    with pytest.raises(ValueError, match=r"z at site 'z' carries none; .* latents=StraightThroughELBO"):
        StraightThroughELBO()(sample_log_weights(vae.model, vae.guide, x))
    with torch.no_grad():
        assert StraightThroughELBO()(sample_log_weights(vae.model, vae.guide, x)).value.isfinite().all()
    vae.posterior.requires_grad_(False)  # where q is not trained there is no gradient to follow
    StraightThroughELBO()(sample_log_weights(vae.model, vae.guide, x))


def test_a_function_of_all_states_reports_the_elbo_that_they_weigh():
    def total(log_weights):
        return log_weights.expectation(log_weights.log_w)

    total.latents = "enumerated"
    vae, x = bits()
    ours, theirs = (as_loss(objective)((vae.model, vae.guide), x) for objective in (total, EnumeratedELBO()))
    torch.testing.assert_close(ours.log_likelihood, theirs.log_likelihood)
    torch.testing.assert_close(ours.kl, theirs.kl)


@pytest.mark.parametrize("inside", [False, True], ids=["handler", "distribution"])
def test_a_state_that_a_mask_leaves_out_keeps_its_probability(inside):
    shown, p, q = torch.tensor([True, False]), torch.tensor(0.3).double(), torch.tensor(0.6).double()
    x = torch.tensor([0.5, 0.7]).double()

    def draw(prob):
        if inside:
            return pyro.sample("y", dist.Bernoulli(prob.expand(2)).mask(shown))
        with poutine.mask(mask=shown):
            return pyro.sample("y", dist.Bernoulli(prob))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(draw(p), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            draw(q)

    states = sample_log_weights(model, guide, x, latents="enumerated")
    y = torch.tensor([[0.0], [1.0]]).double()
    log_lik, log_p, log_q = dist.Normal(y, 1.0).log_prob(x), *(dist.Bernoulli(prob).log_prob(y) for prob in (p, q))
    counted = log_lik + (log_p - log_q) * shown
    torch.testing.assert_close(EnumeratedELBO()(states).value, (log_q.exp() * counted).sum(0))
    torch.testing.assert_close(states.normalized, (log_q + counted).softmax(0))


@pytest.mark.parametrize("objective", [MIWAE(8, 2), JVI(8, 0), JVI(8, 1)], ids=repr)
def test_the_particles_that_are_given_count(objective):
    log_w = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    fitting = replace(objective, num_particles=4)
    assert torch.equal(objective(by_hand(log_w)).value, fitting(by_hand(log_w)).value)


@pytest.mark.parametrize("make", [TVO, RWS, RWSDReG, VIMCO])
def test_one_particle_is_refused_where_it_teaches_q_nothing(make):
    with pytest.raises(ValueError, match=f"objective {make.__name__}: num_particles is 1"):
        make(1)
    assert RWS(1, "sleep").num_particles == TVO(1, pathwise=True).num_particles == 1


def test_more_subsets_than_can_be_listed_are_refused():
    with pytest.raises(ValueError, match="184,756 subsets"):
        JVI(20, order=19)
    assert JVI(8, order=7).coefficients


def test_a_learned_baseline_takes_missing_values():
    torch.manual_seed(0)
    vae = VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Mixed("real", nn.Linear(2, 3)),
        posterior=posteriors.DiagonalNormal(networks.TableEncoder(network=networks.MLP([4]))),
    )
    x = torch.randn(6, 3)
    x[0, 1] = math.nan
    log_weights = sample_log_weights(vae.model, vae.guide, x, num_particles=2, latents="detached")
    assert REINFORCE(2, "learned")(log_weights).surrogate.isfinite().all()


@pytest.mark.parametrize(
    "objective",
    [JVI(32, order=1), JVI(32, order=2), *(Renyi(32, alpha) for alpha in (0.999, 0.99999, 0.9999999, 1.0000001))],
    ids=repr,
)
def test_large_log_weights_in_float32(objective):
    """Five hundred nats take away all but 3e-5 of float32; what is subtracted must not lose more."""
    torch.manual_seed(0)
    log_w = (-500 + 3 * torch.randn(32, 100)).double()
    exact = objective(by_hand(log_w)).value
    rounded = objective(by_hand(log_w.float())).value.double()
    tolerance = 3e-4 * sum(map(abs, getattr(objective, "coefficients", [1.0])))  # roundings of the bounds, amplified
    assert (rounded - exact).abs().max() < tolerance


@pytest.mark.parametrize("objective", [EUBO(4), TVO(4), CUBO(4), VIMCO(4), RWS(4)], ids=repr)
def test_a_draw_of_zero_density_spoils_nothing(objective):
    log_w = torch.tensor([[-3.0], [-2.0], [-4.0], [-math.inf]])
    estimate = objective(by_hand(log_w))
    assert not estimate.value.isnan().any()
    if not isinstance(objective, TVO):  # which averages the log-weights themselves: minus infinity
        assert estimate.value.isfinite().all()


def test_what_gumbel_softmax_cannot_relax_is_refused_in_one_line():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(4)
    with pytest.raises(TypeError, match="relaxes bits and one-hot vectors") as caught:
        as_loss(GumbelSoftmaxELBO())((vae.model, vae.guide), x)
    assert "\n" not in str(caught.value)


@pytest.mark.ci
def test_a_function_takes_part_in_a_comparison_as_it_says_that_it_draws():
    def score_elbo(log_weights):
        signal = log_weights.log_w.detach()
        return Estimate(
            signal.mean(0), log_weights.surrogate(torch.full_like(signal, 0.5), score=0.5 * signal), "lower"
        )

    score_elbo.latents = "detached"
    vae, x = bits()
    found = compare(vae, x, objectives=["REINFORCE", score_elbo, my_bound], particles=2, replicates=40)
    theirs, ours = found.row("REINFORCE", 2), found.row("score_elbo", 2)
    assert ours.blocks["encoder"].variance == theirs.blocks["encoder"].variance
    assert "objective my_bound needs reparameterised latents" in str(found.row("my_bound", 2).failed)


def test_a_copy_of_a_learned_baseline_trains_itself():
    vae, x = bits()
    first = REINFORCE(2, "learned")
    second = copy.deepcopy(first)
    for objective in (first, second):
        svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-2), objective)
        svi.step(x)
        before = [p.detach().clone() for p in objective.learned.parameters()]
        for _ in range(3):
            svi.step(x)
        assert not any(torch.equal(a, b) for a, b in zip(before, objective.learned.parameters(), strict=True))
