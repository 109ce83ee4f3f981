"""Imputation against the linear-Gaussian conditional mean, and neighbours in the latent space."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from ppl_vae import VAE, likelihoods, networks, posteriors, priors
from ppl_vae.evaluation.practical import impute, knn_accuracy


def conditional(model: LinearGaussian, x: torch.Tensor, missing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E[x_mis | x_obs] and Var, of the joint normal of x."""
    covariance = model.weight @ model.weight.T + model.scale**2 * torch.eye(len(model.bias)).double()
    seen = ~missing
    gain = covariance[missing][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    mean = model.bias[missing] + (x[:, seen] - model.bias[seen]) @ gain.T
    return mean, covariance[missing][:, missing] - gain @ covariance[seen][:, missing]


@pytest.fixture
def model():
    return LinearGaussian.random(x_dim=6, latent_dim=2, scale=0.7)


MISSING = torch.tensor([True, False, True, False, False, False])


def test_mean_is_the_conditional_one(model):
    x = model.sample(10)
    hidden = torch.where(MISSING, torch.nan, x)  # what is missing is not read
    found = impute(model.vae(), hidden, MISSING, num_steps=1000, num_chains=8)
    mean, _ = conditional(model, x, MISSING)
    z = (found.mean[:, MISSING] - mean) / found.error[:, MISSING]
    assert z.abs().max() < 5 * 1.8  # a standard error of 8 chains: Student's t with 7 degrees, as far out as 5 sigma
    assert (found.mean[:, MISSING] - mean).abs().mean() < 0.05
    assert torch.equal(found.mean[:, ~MISSING], x[:, ~MISSING])
    assert (found.error[:, ~MISSING] == 0).all()
    assert ((found.acceptance > 0.05) & (found.acceptance < 1)).all()


def test_pseudo_gibbs_is_wrong_where_metropolis_is_right(model):
    """An encoder far too wide and off: pseudo-Gibbs believes it, the other corrects it."""
    model.encoder_bias = model.encoder_bias + 0.5
    model.std = 2 * model.std
    x = model.sample(10)
    mean, _ = conditional(model, x, MISSING)
    off = {}
    for sampler in ("metropolis", "pseudo-gibbs"):
        found = impute(model.vae(), x, MISSING, num_steps=1000, num_chains=8, sampler=sampler)
        off[sampler] = (found.mean[:, MISSING] - mean).abs().mean().item()
    assert off["metropolis"] < 0.1
    assert off["pseudo-gibbs"] > 0.3


def test_draws_have_the_conditional_spread(model):
    x = model.sample(1).expand(400, 6)
    found = impute(model.vae(), x, MISSING, num_steps=60, num_chains=1)
    mean, covariance = conditional(model, x[:1], MISSING)
    draws = found.draw[:, MISSING]
    error = (covariance.diagonal() / 400).sqrt()
    assert ((draws.mean(0) - mean[0]) / error).abs().max() < 5
    assert ((draws.var(0) / covariance.diagonal() - 1) / (2 / 400) ** 0.5).abs().max() < 5
    assert found.error[:, MISSING].isnan().all()


def test_nothing_missing_and_everything_missing(model):
    x = model.sample(5)
    vae = model.vae()
    none = impute(vae, x, torch.zeros(6, dtype=torch.bool), num_steps=5)
    assert torch.equal(none.mean, x)
    assert torch.equal(none.draw, x)
    assert none.root_mean_square(x).isnan().all()
    every = impute(vae, x, torch.ones(5, 6, dtype=torch.bool), num_steps=1200, num_chains=8)
    # E[x] = bias; the chains mix slowly here (z and x are drawn in turn), hence the measured error
    assert ((every.mean - model.bias) / every.error).abs().max() < 5 * 1.8


def test_error_measures():
    torch.manual_seed(0)
    vae = VAE(
        (8,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([16])),
        posterior=posteriors.DiagonalNormal(networks.MLP([16])),
    )
    x = vae.sample(6, mean=False)
    missing = torch.rand(6, 8) < 0.5
    before = torch.random.get_rng_state()
    found = impute(vae, x, missing, num_steps=20)
    assert torch.equal(before, torch.random.get_rng_state())
    assert vae.training
    for n in range(6):
        m = missing[n]
        off = (found.mean[n, m] - x[n, m]).double()
        assert found.root_mean_square(x)[n].item() == pytest.approx(off.square().mean().sqrt().item(), rel=1e-5)
        wrong = (found.mean[n, m].round() != x[n, m]).double().mean().item()
        assert found.share_wrong(x)[n].item() == pytest.approx(wrong)
    assert set(found.draw[missing].tolist()) <= {0.0, 1.0}


def test_errors_of_images_are_in_the_unit_that_they_were_imputed_in():
    torch.manual_seed(0)
    vae = VAE(
        (1, 2, 2),
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Normal(networks.MLP([2])),
        posterior=posteriors.DiagonalNormal(networks.MLP([2])),
    )
    pixels = torch.randint(256, (3, 1, 2, 2), dtype=torch.uint8)
    x, missing = pixels.float() / 255, torch.tensor([True, False]).expand(3, 1, 2, 2)
    found = impute(vae, pixels, missing, num_steps=2)
    assert torch.equal(found.root_mean_square(pixels), found.root_mean_square(x))
    assert torch.equal(found.share_wrong(pixels), found.share_wrong(x))


def test_structure_helps_over_the_marginal_mean(model):
    """The filled values beat the mean over data, as they must where x_obs tells of z."""
    x = model.sample(40)
    found = impute(model.vae(), x, MISSING, num_steps=400)
    plain = (x[:, MISSING] - model.bias[MISSING]).square().mean(-1).sqrt()
    assert found.root_mean_square(x).mean() < plain.mean()


class Tied(nn.Module):
    """A likelihood whose values depend on each other given z."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(2, 6)

    def forward(self, z):
        return dist.MultivariateNormal(self.mean(z), torch.eye(6))


def test_impute_refuses(model):
    x, vae = model.sample(3), model.vae()
    with pytest.raises(TypeError, match="boolean"):
        impute(vae, x, torch.zeros(6))
    with pytest.raises(ValueError, match=r"missing has shape \(5,\)"):
        impute(vae, x, torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="x has shape"):
        impute(vae, x[:, :4], MISSING[:4])
    with pytest.raises(ValueError, match="observed value"):
        impute(vae, x * math.nan, MISSING)
    with pytest.raises(ValueError, match="sampler"):
        impute(vae, x, MISSING, sampler="gibbs")
    tied = VAE((6,), prior=priors.StandardNormal(2), likelihood=Tied(), posterior=posteriors.DiagonalNormal())
    with pytest.raises(ValueError, match="depend on each other"):
        impute(tied, x.float(), MISSING)


def test_knn_accuracy_is_scikit_learns():
    torch.manual_seed(0)
    labels = torch.randint(3, (600,))
    means = torch.randn(600, 2) + 2 * torch.nn.functional.one_hot(labels, 3)[:, :2]
    train, test = slice(0, 400), slice(400, None)
    found = knn_accuracy(means[train], labels[train], means[test], labels[test], k=7)
    score = (
        KNeighborsClassifier(7)
        .fit(means[train].numpy(), labels[train].numpy())
        .score(means[test].numpy(), labels[test].numpy())
    )
    assert found.value == pytest.approx(score)
    half = 1.96 * (score * (1 - score) / 200) ** 0.5
    assert found.low == pytest.approx(score - half, abs=0.02)
    assert found.high == pytest.approx(score + half, abs=0.02)


def test_knn_refuses():
    means, labels = torch.zeros(4, 2), torch.zeros(4)
    with pytest.raises(ValueError, match="k is 5"):
        knn_accuracy(means, labels, means, labels)
    with pytest.raises(ValueError, match="shapes"):
        knn_accuracy(means, labels[:3], means, labels, k=1)
