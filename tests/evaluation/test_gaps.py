"""The ELBO off the grid, refined posteriors and the two gaps, held against closed forms."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import nn

from ppl_vae import VAE, data, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.evaluation.elbo import elbo, gauss_hermite_elbo, monte_carlo_elbo
from ppl_vae.evaluation.gaps import gaps
from ppl_vae.evaluation.refinement import refine
from ppl_vae.evidence.densities import ProgramDensities, VAEDensities
from ppl_vae.evidence.normals import Normals, tensor_nodes
from ppl_vae.evidence.results import Evidence


class FullNormal(nn.Module):
    """A foreign posterior with full covariance, the same for all data."""

    def __init__(self, x_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(x_dim, latent_dim)
        self.factor = nn.Parameter(torch.eye(latent_dim) + 0.3 * torch.ones(latent_dim, latent_dim).tril(-1))

    def forward(self, x):
        return dist.MultivariateNormal(self.mean(x), scale_tril=self.factor)


class Heavy(nn.Module):
    """A foreign posterior that is not normal."""

    def __init__(self, x_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(x_dim, latent_dim)

    def forward(self, x):
        return dist.Laplace(self.mean(x), 0.5).to_event(1)


def linear(d: int, n: int = 6, x_dim: int = 25) -> tuple[LinearGaussian, torch.Tensor, VAEDensities]:
    model = LinearGaussian.random(x_dim=x_dim, latent_dim=d)
    return model, model.sample(n), VAEDensities(model.vae())


def full_covariance(model: LinearGaussian) -> VAEDensities:
    x_dim, d = model.weight.shape
    vae = model.vae()
    return VAEDensities(
        VAE(
            (x_dim,),
            prior=vae.prior,
            likelihood=vae.likelihood,
            posterior=FullNormal(x_dim, d).double(),
        )
    )


def exact(model: LinearGaussian, x: torch.Tensor) -> Evidence:
    log_p = model.log_evidence(x)
    return Evidence(log_p, torch.zeros_like(log_p), "closed form")


def mean_field_gap(model: LinearGaussian) -> float:
    """KL(q* || p(z|x)) for the best diagonal normal: its variances are 1 / diag(precision)."""
    covariance = model.posterior_map()[1]
    precision = torch.linalg.inv(covariance)
    return 0.5 * (precision.diagonal().log().sum() + covariance.logdet()).item()


def bernoulli(latent_dim: int = 2, posterior=None, hidden=(32,)) -> VAE:
    torch.manual_seed(3)
    return VAE(
        (20,),
        prior=priors.StandardNormal(latent_dim),
        likelihood=likelihoods.Bernoulli(networks.MLP(list(hidden), activation="tanh")),
        posterior=posterior or posteriors.DiagonalNormal(networks.MLP([8])),
    )


# ELBO


@pytest.mark.parametrize("d", [1, 2, 3])
def test_gauss_hermite_is_the_closed_form(d):
    model, x, densities = linear(d)
    found = elbo(densities, x)
    assert found.method == "gauss-hermite"
    torch.testing.assert_close(found.elbo, model.elbo(x), rtol=1e-10, atol=0)
    torch.testing.assert_close(-found.distortion - found.rate, found.elbo, rtol=1e-12, atol=1e-12)
    assert found.error.max() < 1e-7
    assert found.rate_error.max() == 0


def test_monte_carlo_agrees_with_the_closed_form_within_its_error():
    model, x, densities = linear(6, n=50)
    found = elbo(densities, x, num_samples=2000)
    assert found.method == "monte carlo"
    z = (found.elbo - model.elbo(x)) / found.error
    assert z.abs().max() < 5
    assert 0.5 < z.std() < 1.5  # the stated error is the true one


def test_control_variate_has_no_noise_at_the_true_posterior():
    """log w is constant there, and the best combination finds that out; the KL in closed form alone is noisy."""
    model = LinearGaussian.random(x_dim=8, latent_dim=4)
    model.weight = torch.linalg.qr(model.weight).Q * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    model.take_true_posterior()  # exact: W'W is diagonal
    x = model.sample(5)
    found = monte_carlo_elbo(VAEDensities(model.vae()), x, num_samples=100)
    torch.testing.assert_close(found.elbo, model.log_evidence(x), rtol=1e-8, atol=0)
    assert found.error.max() < 1e-7


def test_control_variate_lowers_the_error():
    densities = VAEDensities(bernoulli(6))
    x = torch.bernoulli(torch.full((40, 20), 0.5))
    q = densities.posterior(x)
    with torch.no_grad():
        z = q.sample((2000,))
        log_lik, ratio = densities.log_likelihood(x, z), q.log_prob(z) - densities.log_prior(x, z)
    usual = torch.minimum(log_lik.std(0), (log_lik - ratio).std(0)) / 2000**0.5
    assert (monte_carlo_elbo(densities, x, num_samples=2000).error < 1.1 * usual).all()


@pytest.mark.parametrize("full", [False, True])
def test_methods_agree_for_a_network(full):
    densities = VAEDensities(bernoulli(posterior=FullNormal(20, 2) if full else None))
    x = torch.bernoulli(torch.full((30, 20), 0.5))
    nodes, sampled = gauss_hermite_elbo(densities, x), monte_carlo_elbo(densities, x, num_samples=3000)
    assert ((nodes.elbo - sampled.elbo) / (sampled.error + nodes.error)).abs().max() < 5
    finer = gauss_hermite_elbo(densities, x, num_nodes=31, max_nodes=62)
    assert ((nodes.elbo - finer.elbo).abs() <= nodes.error + finer.error + 1e-5).all()


def test_error_of_a_rectifier_is_shown():
    """Kinks converge slowly; the change on doubling says so."""
    torch.manual_seed(0)
    vae = VAE(
        (20,),
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Bernoulli(networks.MLP([8], activation="relu")),
        posterior=posteriors.DiagonalNormal(nn.Linear(20, 2)),
    ).double()
    x = torch.bernoulli(torch.full((10, 20), 0.5, dtype=torch.float64))
    found = gauss_hermite_elbo(VAEDensities(vae), x, num_nodes=5, max_nodes=10)
    truth = gauss_hermite_elbo(VAEDensities(vae), x, num_nodes=150, max_nodes=300)
    assert found.error.max() > 1e-4
    assert ((found.elbo - truth.elbo).abs() <= 3 * found.error + truth.error).all()


def test_prior_without_closed_form_is_integrated():
    class Cauchy:
        def __call__(self):
            return dist.Cauchy(torch.zeros(2).double(), 1.0).to_event(1)

    model, x, _ = linear(2)
    vae = model.vae()
    densities = VAEDensities(VAE((25,), prior=Cauchy(), likelihood=vae.likelihood, posterior=vae.posterior))
    nodes, sampled = gauss_hermite_elbo(densities, x), monte_carlo_elbo(densities, x, num_samples=4000)
    assert (sampled.rate_error > 0).all()
    assert ((nodes.rate - sampled.rate) / sampled.rate_error).abs().max() < 5
    assert ((nodes.elbo - sampled.elbo) / sampled.error).abs().max() < 5


def test_program_gives_the_same_as_the_vae():
    model, x, densities = linear(2)
    vae = densities.vae
    program = ProgramDensities((vae.model, vae.guide), x)
    torch.testing.assert_close(elbo(program, x).elbo, model.elbo(x), rtol=1e-10, atol=0)
    assert ((elbo(program, x, method="monte carlo").elbo - model.elbo(x)).abs() < 1).all()


def test_blocks_do_not_change_the_elbo():
    _, x, densities = linear(2)
    whole, tiny = elbo(densities, x), elbo(densities, x, max_bytes=2**16)
    torch.testing.assert_close(whole.elbo, tiny.elbo, rtol=1e-12, atol=0)
    assert monte_carlo_elbo(densities, x, max_bytes=2**16).elbo.shape == (6,)


def test_random_state_stays():
    _, x, densities = linear(2)
    before = torch.random.get_rng_state()
    monte_carlo_elbo(densities, x, num_samples=10)
    refine(densities, x)
    gaps(densities, x, Evidence(torch.zeros(6).double(), torch.zeros(6).double(), "closed form"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_elbo_refuses():
    vae = bernoulli(posterior=Heavy(20, 2))
    x = torch.zeros(3, 20)
    with pytest.raises(ValueError, match="Laplace"):
        gauss_hermite_elbo(VAEDensities(vae), x)
    assert elbo(VAEDensities(vae), x, num_samples=20).method == "monte carlo"
    with pytest.raises(ValueError, match="expected one of"):
        elbo(VAEDensities(vae), x, method="hermite")
    with pytest.raises(ValueError, match="at least 2"):
        monte_carlo_elbo(VAEDensities(vae), x, num_samples=1)


# normals


def test_normals_round_trip_and_kl():
    torch.manual_seed(0)
    loc, factor = torch.randn(4, 3).double(), torch.randn(4, 3, 3).double().tril() + 4 * torch.eye(3)
    diagonal, full = Normals(loc, factor.diagonal(dim1=1, dim2=2)), Normals(loc + 1, factor)
    for q in (diagonal, full):
        again = Normals.of(q.distribution())
        assert torch.equal(again.loc, q.loc)
        assert torch.allclose(again.scale, q.scale)
        noise = torch.randn(5, 4, 3).double()
        torch.testing.assert_close(q.whitened(q.at(noise)), noise)
        torch.testing.assert_close(q.entropy(), q.distribution().entropy())
        torch.testing.assert_close(q.std, q.distribution().stddev)
    z = full.distribution().sample((20_000,))
    sampled = full.distribution().log_prob(z) - diagonal.distribution().log_prob(z)
    assert ((full.kl(diagonal) - sampled.mean(0)) / (sampled.std(0) / 20_000**0.5)).abs().max() < 5


# refinement


@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_refined_diagonal_normal_is_the_known_one(d):
    model, x, densities = linear(d)
    q = refine(densities, x, tolerance=1e-14, num_iterations=300)
    mean_map, covariance = model.posterior_map()
    torch.testing.assert_close(q.loc, (x - model.bias) @ mean_map.T, atol=1e-5, rtol=0)
    best = torch.linalg.inv(covariance).diagonal().rsqrt()
    torch.testing.assert_close(q.scale, best.expand_as(q.scale), rtol=1e-8, atol=0)


@pytest.mark.parametrize("d", [2, 5])
def test_refined_full_normal_is_the_true_posterior(d):
    model, x, _ = linear(d)
    q = refine(full_covariance(model), x, tolerance=1e-14)
    mean_map, covariance = model.posterior_map()
    torch.testing.assert_close(q.loc, (x - model.bias) @ mean_map.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(q.scale @ q.scale.mT, covariance.expand(6, d, d), rtol=1e-6, atol=1e-8)
    assert q.scale.triu(1).abs().max() == 0


@pytest.mark.slow
def test_refinement_agrees_with_long_adam():
    """Another optimiser, on the exact ELBO of a network in two dimensions."""
    densities = VAEDensities(bernoulli().double())
    x = torch.bernoulli(torch.full((8, 20), 0.5, dtype=torch.float64))
    with torch.no_grad():
        q = Normals.of(densities.posterior(x))
    ours = gauss_hermite_elbo(densities, x, posterior=refine(densities, x, tolerance=1e-8, num_iterations=200))
    nodes, weights = tensor_nodes(9, 2, q.loc)
    loc, log_scale = q.loc.clone().requires_grad_(), q.scale.log().requires_grad_()
    optimiser = torch.optim.Adam([loc, log_scale], lr=0.02)
    for _ in range(600):
        optimiser.zero_grad()
        moving = Normals(loc, log_scale.exp())
        z = moving.at(nodes[:, None])
        joint = weights @ (densities.log_likelihood(x, z) + densities.log_prior(x, z))
        (-(joint + log_scale.sum(-1)).sum()).backward()
        optimiser.step()
    theirs = gauss_hermite_elbo(densities, x, posterior=Normals(loc.detach(), log_scale.detach().exp()))
    # both climb the rule of 9 nodes a dimension, which is off by up to 1e-3 for the widest of these posteriors
    torch.testing.assert_close(ours.elbo, theirs.elbo, atol=1e-3, rtol=0)


def test_refine_refuses_other_families():
    with pytest.raises(ValueError, match=r"Laplace.*cannot be refined"):
        refine(VAEDensities(bernoulli(posterior=Heavy(20, 2))), torch.zeros(3, 20))


# gaps


@pytest.mark.parametrize("d", [2, 3])
def test_gaps_are_the_known_ones(d):
    model, x, densities = linear(d)
    found = gaps(densities, x, exact(model, x), tolerance=1e-12)
    expected = torch.full_like(found.elbo, mean_field_gap(model))
    torch.testing.assert_close(found.approximation_gap, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.gap, model.log_evidence(x) - model.elbo(x), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.amortisation_gap, found.gap - mean_field_gap(model), rtol=0, atol=1e-7)
    assert not found.elsewhere.any()  # a normal posterior has one mode


def test_gaps_by_monte_carlo_are_the_known_ones():
    model, x, densities = linear(6, n=30)
    found = gaps(densities, x, exact(model, x), tolerance=1e-8, num_samples=2000)
    expected = found.gap.mul(0) + mean_field_gap(model)
    assert ((found.approximation_gap - expected) / found.approximation_error).abs().max() < 5
    truth = model.log_evidence(x) - model.elbo(x) - mean_field_gap(model)
    z = (found.amortisation_gap - truth) / found.amortisation_error
    assert z.abs().max() < 5


def test_the_same_noise_for_both_bounds_lowers_the_error_of_a_small_gap():
    model, x, _ = linear(6)
    model.take_true_posterior()
    model.std = 1.01 * torch.linalg.inv(model.posterior_map()[1]).diagonal().rsqrt()
    found = gaps(VAEDensities(model.vae()), x, exact(model, x), num_samples=200)
    assert (found.amortisation_error < 0.2 * found.elbo_error).all()


def test_full_covariance_has_no_approximation_gap():
    model, x, _ = linear(2)
    found = gaps(full_covariance(model), x, exact(model, x), tolerance=1e-12)
    assert found.approximation_gap.abs().max() < 1e-6
    assert (found.amortisation_gap > 1e-3).all()


def test_no_amortisation_gap_where_q_is_the_best_one():
    model, x, _ = linear(2)
    model.take_true_posterior()
    model.std = torch.linalg.inv(model.posterior_map()[1]).diagonal().rsqrt()
    found = gaps(VAEDensities(model.vae()), x, exact(model, x))
    assert found.amortisation_gap.abs().max() < 1e-10
    assert (found.amortisation_gap >= 0).all()  # the better is kept


class TwoValleys(nn.Module):
    """x = |z|, seen through narrow noise: two modes, at x and at -x, in one dimension."""

    def forward(self, z):
        return dist.Normal((z.square() + 1e-4).sqrt(), 0.05).to_event(1)


class RightValley(nn.Module):
    """An encoder that puts every datum at +2."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1).double())

    def forward(self, x):
        return dist.Normal(2 + self.shift + 0 * x, 0.05).to_event(1)


class Lopsided(nn.Module):
    """A prior by far heavier on the left."""

    def forward(self):
        return dist.Normal(torch.tensor([-1.0]).double(), 0.5).to_event(1)


def test_a_wrong_mode_counts_as_amortisation():
    """The left mode holds nearly all mass; ascent from the right cannot reach it, another start does."""
    vae = VAE((1,), prior=Lopsided(), likelihood=TwoValleys().double(), posterior=RightValley())
    densities, x = VAEDensities(vae), torch.linspace(0.8, 1.5, 8, dtype=torch.float64)[:, None]
    z = torch.linspace(-6, 6, 24_001, dtype=torch.float64)[:, None]
    log_p = (densities.likelihood_at(z)(x) + densities.log_prior(x[:1], z[:, None]).T).logsumexp(1) + math.log(5e-4)
    evidence = Evidence(log_p.detach(), torch.zeros(8).double(), "quadrature")
    local, best = gaps(densities, x, evidence, num_starts=1), gaps(densities, x, evidence, num_starts=2)
    assert not local.elsewhere.any()
    assert best.elsewhere.all()
    assert (local.approximation_gap > 2).all()
    assert (best.approximation_gap.abs() < 0.05).all()
    torch.testing.assert_close(local.gap, best.gap)


@pytest.fixture(scope="module")
def trained() -> tuple[VAEDensities, torch.Tensor, Evidence]:
    """A 2-D model of binarised digits after 250 steps, and log p(x) of some by a fine grid, all in float64."""
    torch.manual_seed(0)
    digits = data.load("digits", binarize="threshold")
    vae = VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([64, 64])),
        posterior=posteriors.DiagonalNormal(networks.MLP([64, 64])),
    )
    optimiser, objective = torch.optim.Adam(vae.parameters(), lr=3e-3), objectives.MeanFieldELBO()
    for _ in range(250):
        batch = digits.train.x[torch.randint(len(digits.train), (128,))]
        optimiser.zero_grad()
        (-objective(objectives.sample_log_weights(vae.model, vae.guide, batch)).surrogate.mean()).backward()
        optimiser.step()
    vae.double()
    densities, x = VAEDensities(vae), digits.test.x[:60].double()
    line = torch.linspace(-7, 7, 281, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_joint = densities.likelihood_at(z)(x) + densities.log_prior(x[:1], z[:, None]).T
    log_p = log_joint.logsumexp(1) + 2 * math.log(0.05)
    return densities, x, Evidence(log_p, torch.full_like(log_p, 1e-6), "quadrature")


@pytest.mark.ci
def test_gaps_of_a_trained_model(trained):
    """Order and sum; and log p(x) = ELBO + KL(q || p(z|x)), the KL from the log-weights on the grid's normaliser."""
    densities, x, evidence = trained
    found = gaps(densities, x, evidence)
    assert (found.approximation_gap >= -found.approximation_error).all()
    assert (found.amortisation_gap >= 0).all()
    torch.testing.assert_close(found.approximation_gap + found.amortisation_gap, found.gap)
    assert (found.amortisation_gap > 1e-3).double().mean() > 0.9  # a trained encoder is never the best for a datum
    with torch.no_grad():
        q = densities.posterior(x)
        z = q.sample((4000,))
        log_joint = densities.log_likelihood(x, z) + densities.log_prior(x, z)
        kl = q.log_prob(z) - (log_joint - evidence.log_evidence)
    assert ((found.gap - kl.mean(0)) / (kl.std(0) / 4000**0.5)).abs().max() < 5


def test_gaps_do_not_depend_on_blocks(trained):
    densities, x, evidence = trained
    x, evidence = x[:12], Evidence(evidence.log_evidence[:12], evidence.error[:12], "quadrature")
    whole, small = (gaps(densities, x, evidence, max_bytes=size) for size in (2**27, 2**20))
    torch.testing.assert_close(whole.refined_elbo, small.refined_elbo, rtol=0, atol=1e-6)


def test_gaps_of_a_program_start_at_the_encoder():
    model, x, densities = linear(2)
    program = ProgramDensities((densities.vae.model, densities.vae.guide), x)
    found = gaps(program, x, exact(model, x), tolerance=1e-10)
    torch.testing.assert_close(found.approximation_gap, found.gap.mul(0) + mean_field_gap(model), rtol=0, atol=1e-6)


def test_gaps_refuse():
    _, x, densities = linear(2)
    zero = torch.zeros(2).double()
    with pytest.raises(ValueError, match="evidence of 2 data and 6"):
        gaps(densities, x, Evidence(zero, zero, "closed form"))
    heavy = VAEDensities(bernoulli(posterior=Heavy(20, 2)))
    with pytest.raises(ValueError, match=r"Laplace.*cannot be refined"):
        gaps(heavy, torch.zeros(2, 20), Evidence(zero, zero, "closed form"))
