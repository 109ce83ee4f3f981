"""Enumeration against explicit sums, the closed form against a density of its own, and who is told apart from whom."""

from __future__ import annotations

import inspect
import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import nn

from ppl_vae import VAE, likelihoods, networks, posteriors, priors
from ppl_vae.evidence.densities import Model, VAEDensities
from ppl_vae.evidence.enumeration import enumerate_evidence
from ppl_vae.evidence.linear_gaussian import closed_form_evidence, linear_gaussian_evidence
from ppl_vae.evidence.log_evidence import log_evidence
from ppl_vae.evidence.quadrature import quadrature


class Bits(nn.Module):
    """q(z|x) of independent bits."""

    def __init__(self, pixels, latent_dim):
        super().__init__()
        self.logits = nn.Linear(pixels, latent_dim)

    def forward(self, x):
        return dist.Bernoulli(logits=self.logits(x)).to_event(1)


class BitsPrior(nn.Module):
    def __init__(self, latent_dim):
        super().__init__()
        self.register_buffer("probs", torch.linspace(0.2, 0.7, latent_dim))

    def forward(self):
        return dist.Bernoulli(self.probs).to_event(1)


class OneHot(Bits):
    def forward(self, x):
        return dist.OneHotCategorical(logits=self.logits(x))


def bits(latent_dim=3, dtype=torch.float64, pixels=4):
    likelihood = likelihoods.Bernoulli(nn.Linear(latent_dim, pixels))
    vae = VAE((pixels,), prior=BitsPrior(latent_dim), likelihood=likelihood, posterior=Bits(pixels, latent_dim))
    return vae.to(dtype)


def everything(pixels, dtype=torch.float64):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=pixels)), dtype=dtype)


def test_a_vae_is_known_by_attributes_that_need_no_getattr():
    """Python 3.12 and later look past ``nn.Module.__getattr__``, and so past submodules."""
    vae = bits()
    for name in {*Model.__annotations__, *(name for name in vars(Model) if not name.startswith("_"))}:
        inspect.getattr_static(vae, name)
    assert isinstance(vae, Model)
    assert not isinstance((vae.model, vae.guide), Model)


def test_bits_against_an_explicit_sum():
    vae, x = bits(), everything(4)
    evidence = enumerate_evidence(vae, x)
    total = torch.zeros(16, dtype=torch.float64)
    with torch.no_grad():
        for z in everything(3):
            total += (vae.prior().log_prob(z) + vae.likelihood(z[None]).log_prob(x)).exp()
    torch.testing.assert_close(evidence.log_evidence, total.log(), rtol=1e-10, atol=0)
    assert abs(evidence.log_evidence.exp().sum().item() - 1) < 1e-12
    assert (evidence.method, evidence.kind, evidence.details["num_states"]) == ("enumeration", "exact", 8)
    assert (evidence.error < 1e-12).all()


def test_one_hot_states():
    vae = VAE(
        (4,),
        prior=lambda: dist.OneHotCategorical(torch.tensor([0.5, 0.2, 0.3])),
        likelihood=likelihoods.Bernoulli(nn.Linear(3, 4)),
        posterior=OneHot(4, 3),
    )
    evidence = enumerate_evidence(VAEDensities(vae), everything(4, torch.float32))
    assert evidence.details["num_states"] == 3
    assert abs(evidence.log_evidence.exp().sum().item() - 1) < 1e-5


def test_categorical_dimensions_that_are_whole_numbers():
    """States of integer type: two dimensions of three values each."""

    class Codes(nn.Module):
        def forward(self, x):
            return dist.Categorical(torch.full((len(x), 2, 3), 1 / 3)).to_event(1)

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Linear(2, 4)

        def forward(self, z):
            return dist.Bernoulli(logits=self.logits(z.to(self.logits.weight.dtype))).to_event(1)

    probs = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    prior = lambda: dist.Categorical(probs).to_event(1)  # noqa: E731
    vae = VAE((4,), prior=prior, likelihood=Pixels(), posterior=Codes())
    evidence = enumerate_evidence(vae, everything(4, torch.float32))
    assert evidence.details["num_states"] == 9
    assert abs(evidence.log_evidence.exp().sum().item() - 1) < 1e-5


def test_float32_error_covers_the_truth():
    vae = bits(8, dtype=torch.float32, pixels=10)
    x = everything(10, torch.float32)[::7]
    evidence = enumerate_evidence(vae, x)
    exact = enumerate_evidence(vae.double(), x.double())
    assert (evidence.error > 0).all()
    assert ((evidence.log_evidence - exact.log_evidence).abs() <= evidence.error).all()


def test_blocks_do_not_matter():
    vae, x = bits(8), everything(4)
    whole, blocks = enumerate_evidence(vae, x), enumerate_evidence(vae, x, max_bytes=1000)
    torch.testing.assert_close(blocks.log_evidence, whole.log_evidence, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0.5, 255.0, math.nan])
@pytest.mark.parametrize("max_bytes", [2**30, 1000])
def test_data_outside_the_support_are_refused(value, max_bytes):
    """A matrix product scores any data: pixels of 255 had a positive log-probability."""
    x = everything(4)
    x[-1, 2] = value
    with pytest.raises(ValueError, match="support"):
        enumerate_evidence(bits(), x, max_bytes=max_bytes)


def test_unequal_counts_are_sampled_as_their_states_are_not_listed():
    class Counts(nn.Module):
        def forward(self, x):
            return dist.Binomial(torch.tensor([2.0, 3.0]).expand(len(x), 2), 0.5 * torch.ones(2)).to_event(1)

    prior = lambda: dist.Binomial(torch.tensor([2.0, 3.0]), 0.3 * torch.ones(2)).to_event(1)  # noqa: E731
    vae = VAE((4,), prior=prior, likelihood=likelihoods.Bernoulli(nn.Linear(2, 4)), posterior=Counts())
    x = everything(4, torch.float32)[:2]
    with pytest.raises(ValueError, match="a prior Binomial, whose support cannot be listed"):
        enumerate_evidence(vae, x)
    assert log_evidence(vae, x, num_particles=(10,)).method == "importance"


@pytest.mark.parametrize("method", ["auto", "posterior", "importance", "ais"])
def test_no_data_are_refused_by_every_method(method):
    with pytest.raises(ValueError, match="was given no data"):
        log_evidence(LinearGaussian.random(x_dim=4).vae(), torch.zeros(0, 4), method=method)


def test_refusals():
    x = everything(4)
    with pytest.raises(ValueError, match="prior of 1024 states; expected at most max_states=1000"):
        enumerate_evidence(bits(10), x, max_states=1000)
    with pytest.raises(ValueError, match="a prior Normal, whose support cannot be listed; use quadrature"):
        enumerate_evidence(LinearGaussian.random(x_dim=4).vae(), x)
    with pytest.raises(ValueError, match="was given no data"):
        enumerate_evidence(bits(2), x[:0])
    with pytest.raises(ValueError, match="discrete prior; use enumerate_evidence"):
        quadrature(VAEDensities(bits(2)), x)
    with pytest.raises(ValueError, match="scale is 0; expected a number"):
        linear_gaussian_evidence(torch.ones(3, 1), torch.zeros(3), 0, torch.zeros(1, 3))


# --------------------------------------------------------------------------------------------- closed form


@pytest.mark.parametrize("scale", [0.7, 1e-3])
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_linear_gaussian(latent_dim, scale):
    model = LinearGaussian.random(x_dim=4, latent_dim=latent_dim, scale=scale)
    x = model.sample(6)
    log_p = linear_gaussian_evidence(model.weight, model.bias, scale, x)
    torch.testing.assert_close(log_p, model.log_evidence(x), rtol=1e-8 if scale < 0.1 else 1e-10, atol=0)


def test_a_scale_for_each_pixel():
    model = LinearGaussian.random(x_dim=4)
    scale, x = torch.tensor([0.1, 0.5, 2.0, 1.0]).double(), model.sample(6)
    covariance = model.weight @ model.weight.T + torch.diag(scale.square())
    truth = torch.distributions.MultivariateNormal(model.bias, covariance).log_prob(x)
    torch.testing.assert_close(linear_gaussian_evidence(model.weight, model.bias, scale, x), truth, rtol=1e-10, atol=0)


def test_a_vae_in_closed_form():
    model = LinearGaussian.random(x_dim=6)
    x = model.sample(5)
    evidence = closed_form_evidence(model.vae(), x)
    torch.testing.assert_close(evidence.log_evidence, model.log_evidence(x), rtol=1e-10, atol=0)
    assert (evidence.method, evidence.kind) == ("closed form", "exact")
    assert ((evidence.log_evidence - model.log_evidence(x)).abs() <= 100 * evidence.error).all()


@pytest.mark.parametrize("hidden", [[], [3, 9]])
def test_pictures_through_several_linear_layers(hidden):
    """Shapes, a prior of another place and width, and float32 parameters."""
    torch.manual_seed(0)
    loc, scale = torch.tensor([0.5, -1.0]), torch.tensor([0.3, 2.0])
    vae = VAE(
        (1, 2, 3),
        prior=lambda: dist.Normal(loc, scale).to_event(1),
        likelihood=likelihoods.Normal(networks.MLP(hidden, activation="none"), scale=0.5),
        posterior=posteriors.DiagonalNormal(networks.MLP([])),
    )
    x = vae.sample(4, mean=False)
    exact = closed_form_evidence(vae, x)
    by_quadrature = quadrature(VAEDensities(vae), x)
    gap = (exact.log_evidence - by_quadrature.log_evidence).abs()
    assert (gap <= exact.error + by_quadrature.error).all()
    assert (by_quadrature.error < 1e-3).all()


def test_models_without_a_closed_form():
    def vae(prior=None, likelihood=None):
        return VAE(
            (6,),
            prior=prior or priors.StandardNormal(2),
            likelihood=likelihood or likelihoods.Normal(networks.MLP([])),
            posterior=posteriors.DiagonalNormal(),
        )

    x = torch.zeros(2, 6)
    zeros, ones = torch.zeros(2), torch.ones(2)
    assert closed_form_evidence(vae(), x) is not None
    assert closed_form_evidence(vae(likelihood=likelihoods.Normal(networks.MLP([4]))), x) is None
    assert closed_form_evidence(vae(likelihood=likelihoods.Normal(networks.MLP([4], batch_norm=True))), x) is None
    assert closed_form_evidence(vae(likelihood=likelihoods.Bernoulli(networks.MLP([]))), x) is None
    assert closed_form_evidence(vae(prior=lambda: dist.Laplace(zeros, ones).to_event(1)), x) is None
    mixture = lambda: dist.MultivariateNormal(zeros, math.e * torch.eye(2))  # noqa: E731
    assert closed_form_evidence(vae(prior=mixture), x) is None
