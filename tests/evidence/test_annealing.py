"""Annealed importance sampling against closed forms: invariant transitions, unbiased weights, bounds that hold."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from zoo import standard_error

from ppl_vae import VAE, likelihoods, posteriors, priors
from ppl_vae.evidence.annealing import annealed, bidirectional
from ppl_vae.evidence.blocks import capacity
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.hamiltonian import Path, transition

DOUBLE = torch.float64


def tempered(model, x, beta):
    """Mean (n, d) and covariance of the normal density proportional to p(z) p(x|z)^beta."""
    precision = torch.eye(2, dtype=DOUBLE) + beta * model.weight.T @ model.weight / model.scale**2
    covariance = torch.linalg.inv(precision)
    return beta * (x - model.bias) @ model.weight @ covariance / model.scale**2, covariance


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_a_transition_leaves_its_density_invariant(beta):
    model = LinearGaussian.random()
    x = model.sample(2)
    path = Path.of(VAEDensities(model.vae()), x, "prior")
    mean, covariance = tempered(model, x, beta)
    z = mean + torch.randn(20_000, 2, 2, dtype=DOUBLE) @ torch.linalg.cholesky(covariance).T
    step = torch.tensor([0.6, 0.9], dtype=DOUBLE) * covariance.diagonal().min().sqrt() * 2.2
    for _ in range(3):
        before = z
        z, slope, accepted = transition(path, z, beta, step, num_leapfrog=2)
    assert 0.2 < accepted.mean() < 0.9  # steps so coarse that the test of Metropolis matters
    assert (z != before).any(-1).double().mean().sub(accepted.mean()).abs() < 0.02
    torch.testing.assert_close(slope, path.terms(z)[1], rtol=1e-10, atol=1e-10)
    assert ((z.mean(0) - mean).abs() < 5 * standard_error(z)).all()
    products = torch.einsum("cni,cnj->cnij", z - mean, z - mean)
    assert ((products.mean(0) - covariance).abs() < 5 * standard_error(products)).all()


def test_the_energy_error_falls_as_a_symmetric_integrators():
    """At a fixed number of leapfrog steps it is of third order in their size; of first in one that is not symmetric."""
    model = LinearGaussian.random()
    x = model.sample(1)
    path = Path.of(VAEDensities(model.vae()), x, "prior")
    mean, covariance = tempered(model, x, 1.0)
    z = mean + torch.randn(20_000, 1, 2, dtype=DOUBLE) @ torch.linalg.cholesky(covariance).T
    refused = []
    for size in (0.1, 0.05):
        step = size * covariance.diagonal().min().sqrt().expand(1)
        refused.append(1 - transition(path, z, 1.0, step, num_leapfrog=3)[2].mean())
    assert 6 < refused[0] / refused[1] < 10


def test_the_path_ends_where_it_should():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(3)
    densities, z = VAEDensities(vae), torch.randn(4, 3, 2, dtype=DOUBLE)
    joint = densities.log_prior(x, z) + densities.log_likelihood(x, z)
    for start, first in (("prior", densities.log_prior(x, z)), ("posterior", vae.posterior(x).log_prob(z))):
        path = Path.of(densities, x, start)
        torch.testing.assert_close(path.gradient(z, 0.0)[0], first, rtol=1e-10, atol=1e-10)
        value, gradient, slope = path.gradient(z, 1.0)
        torch.testing.assert_close(value, joint, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(slope, joint - first, rtol=1e-10, atol=1e-10)
        mean, covariance = tempered(model, x, 1.0)
        torch.testing.assert_close(gradient, -(z - mean) @ torch.linalg.inv(covariance), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_linear_gaussian_evidence(start):
    model = LinearGaussian.random()
    x = model.sample(30)
    evidence = annealed(model.vae(), x, num_temperatures=60, num_chains=32, num_leapfrog=5, start=start)
    assert ((evidence.log_evidence - model.log_evidence(x)) / evidence.error).abs().max() < 5
    assert evidence.error.max() < 0.6
    assert (evidence.method, evidence.kind, evidence.log_evidence.dtype) == ("ais", "lower", DOUBLE)
    assert ((evidence.details["acceptance"] - 0.65).abs() < 0.2).all()
    assert evidence.details["log_weight_std"].shape == evidence.details["ess"].shape == (30,)


def test_more_temperatures_tighten_the_bound():
    model = LinearGaussian.random()
    x = model.sample(30)
    few, many = (
        annealed(model.vae(), x, num_temperatures=t, num_chains=4, num_leapfrog=3).log_evidence for t in (3, 60)
    )
    assert (few - model.log_evidence(x)).mean() < (many - model.log_evidence(x)).mean() - 0.1
    assert few.mean() < model.log_evidence(x).mean()


@pytest.mark.parametrize("start", ["prior", "posterior"])
@pytest.mark.parametrize("num_temperatures", [1, 4])
def test_the_weights_are_unbiased_however_few_the_temperatures(num_temperatures, start):
    model = LinearGaussian.random(scale=2.0)
    x = model.sample(1).expand(3000, -1)
    evidence = annealed(model.vae(), x, num_temperatures=num_temperatures, num_chains=2, num_leapfrog=2, start=start)
    ratio = (evidence.log_evidence - model.log_evidence(x)).exp()
    assert abs(ratio.mean() - 1) < 5 * standard_error(ratio)
    assert standard_error(ratio) < 0.05


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_the_reverse_weights_are_unbiased_too(start):
    model = LinearGaussian.random(scale=2.0)
    both = bidirectional(model.vae(), 3000, num_temperatures=4, num_chains=2, num_leapfrog=2, start=start)
    ratio = (model.log_evidence(both.x) - both.upper.log_evidence).exp()
    assert abs(ratio.mean() - 1) < 5 * standard_error(ratio)
    assert standard_error(ratio) < 0.05


@pytest.mark.ci
def test_the_sandwich_holds_the_truth():
    model = LinearGaussian.random()
    gaps = []
    for num_temperatures in (15, 60):
        both = bidirectional(model.vae(), 50, num_temperatures=num_temperatures, num_chains=8, num_leapfrog=5)
        truth = model.log_evidence(both.x)
        below, above = truth - both.lower.log_evidence, both.upper.log_evidence - truth
        assert below.mean() > -5 * standard_error(below)
        assert above.mean() > -5 * standard_error(above)
        torch.testing.assert_close(both.gap, below + above, rtol=1e-10, atol=1e-10)
        gaps.append(both.gap.mean())
    assert 0 < gaps[1] < gaps[0]
    assert gaps[1] < 0.5
    assert (both.lower.kind, both.upper.kind) == ("lower", "upper")


def test_simulated_data_come_with_their_latents():
    model = LinearGaussian.random()
    both = bidirectional(model.vae(), 3000, num_temperatures=1, num_chains=1)
    noise = (both.x - both.z @ model.weight.T - model.bias) / model.scale
    for draws in (both.z, noise):
        assert (draws.mean(0).abs() < 5 * standard_error(draws)).all()
        assert ((draws.square().mean(0) - 1).abs() < 5 * standard_error(draws.square())).all()
    assert both.lower.error.isinf().all()  # one chain knows no spread


def test_blocks_bound_the_memory():
    model = LinearGaussian.random()
    vae, x, seen = model.vae(), model.sample(30), []
    vae.likelihood.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][..., 0].numel()))
    small = 4 * 256 * 8 * 100
    assert capacity(x, small) == 100
    evidence = annealed(vae, x, num_temperatures=20, num_chains=10, num_leapfrog=2, max_bytes=small)
    assert max(n for n in seen if n > 30) <= 50  # gradients take twice the memory
    assert ((evidence.log_evidence - model.log_evidence(x)).abs() < 5).all()


def binary_vae():
    pieces = {"likelihood": likelihoods.Bernoulli(), "posterior": posteriors.DiagonalNormal()}
    return VAE((6,), prior=priors.StandardNormal(2), **pieces)


def test_nothing_outside_moves():
    vae = VAE(
        (6,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(), posterior=posteriors.DiagonalNormal()
    )
    x, state = vae.sample(4, mean=False), torch.random.get_rng_state()
    settings = {"num_temperatures": 5, "num_chains": 3, "num_leapfrog": 2}
    one, again = annealed(vae, x, **settings), annealed(vae, x, **settings)
    assert torch.equal(one.log_evidence, again.log_evidence)
    assert not torch.equal(one.log_evidence, annealed(vae, x, seed=1, **settings).log_evidence)
    first, second = bidirectional(vae, 4, **settings), bidirectional(vae, 4, **settings)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.gap, second.gap)
    assert torch.equal(state, torch.random.get_rng_state())
    assert pyro.distributions.is_validation_enabled()
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert vae.training


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_chains_stay_inside_the_support(start):
    """Torch's exponential density has a finite value below zero, where it has none."""
    ones = torch.ones(2, dtype=DOUBLE)
    vae = VAE(
        (2,),
        prior=lambda: dist.Exponential(ones).to_event(1),
        likelihood=lambda z: dist.Normal(z, 0.6).to_event(1),
        posterior=lambda x: dist.Exponential(ones.expand(len(x), 2)).to_event(1),
    )
    x = torch.tensor([[0.1, 0.1], [-0.2, 0.5]], dtype=DOUBLE)
    truth = (0.18 - x + torch.special.log_ndtr((x - 0.36) / 0.6)).sum(-1)
    found = annealed(vae, x, num_temperatures=12, num_chains=300, num_leapfrog=2, start=start)
    assert ((found.log_evidence - truth) / found.error).abs().max() < 5


def test_refusals():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(5)
    with pytest.raises(ValueError, match=r"start is 'priro'.*did you mean prior"):
        annealed(vae, x, start="priro")
    with pytest.raises(ValueError, match="num_chains is 0"):
        annealed(vae, x, num_chains=0)
    with pytest.raises(ValueError, match="bidirectional: size is -1"):
        bidirectional(vae, -1)
    with pytest.raises(ValueError, match="support"):
        annealed(binary_vae(), torch.full((3, 6), 0.5), num_temperatures=2)
    with torch.no_grad():
        vae.likelihood.mean.network.bias[0] = math.nan
    with pytest.raises(ValueError, match="5 of 5 data are not numbers"), pyro.validation_enabled(False):
        annealed(vae, x, num_temperatures=3)
