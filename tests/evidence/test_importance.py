"""Importance sampling against closed forms: unbiased whatever the proposal, and honest about what it cannot know."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from scipy.stats import genpareto, norm
from scipy.stats import t as student_t
from torch import nn
from zoo import standard_error

from ppl_vae import VAE, data, fit, likelihoods, networks, posteriors, priors
from ppl_vae.evidence.annealing import annealed
from ppl_vae.evidence.blocks import capacity
from ppl_vae.evidence.densities import ProgramDensities, VAEDensities
from ppl_vae.evidence.importance import from_log_weights, importance
from ppl_vae.evidence.log_evidence import log_evidence
from ppl_vae.evidence.mixtures import StudentMixture, fit_student_mixture
from ppl_vae.evidence.pareto import effective_sample_size, fit_generalized_pareto, k_threshold, pareto_k
from ppl_vae.evidence.proposals import Defensive, log_joint

DOUBLE = torch.float64


def zhang_stephens(y):
    """The fit of the 2009 paper, one sample at a time, written from its formulas, with PSIS's prior on k."""
    n, m = len(y), 30 + int(math.sqrt(len(y)))
    b = [1 / y[-1] + (1 - math.sqrt(m / (j - 0.5))) / 3 / y[int(n / 4 + 0.5) - 1] for j in range(1, m + 1)]
    profile = [n * (math.log(-bj / np.log1p(-bj * y).mean()) - np.log1p(-bj * y).mean() - 1) for bj in b]
    weights = [1 / np.exp(np.minimum(np.array(profile) - own, 700)).sum() for own in profile]
    b_hat = sum(w * bj for w, bj in zip(weights, b, strict=True))
    k = np.log1p(-b_hat * y).mean()
    return (n * k + 5) / (n + 10), -k / b_hat


@pytest.mark.parametrize("shape", [-0.4, 0.3, 0.7, 1.5])
def test_the_generalised_pareto_fit_is_the_papers_and_finds_the_shape(shape):
    draws = np.sort(genpareto.rvs(shape, scale=2.0, size=(2000, 50), random_state=0), axis=0)
    k, sigma = fit_generalized_pareto(torch.from_numpy(draws))
    by_hand = np.array([zhang_stephens(column) for column in draws.T[:5]])
    np.testing.assert_allclose(k[:5].numpy(), by_hand[:, 0], rtol=1e-10)
    np.testing.assert_allclose(sigma[:5].numpy(), by_hand[:, 1], rtol=1e-10)
    # the estimator's own bias is of order 1/M
    assert abs(k.mean() - (2000 * shape + 5) / 2010) < 5 * standard_error(k) + 0.01
    assert abs(sigma.mean() - 2) < 5 * standard_error(sigma) + 0.02


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_pareto_k_of_weights_is_the_shape_of_their_tail(shape):
    log_w = -shape * torch.rand(5000, 200, dtype=DOUBLE).log()
    k = pareto_k(log_w)
    size = 213  # ceil(3 sqrt 5000)
    assert abs(k.mean() - (size * shape + 5) / (size + 10)) < 5 * standard_error(k) + 0.03
    torch.testing.assert_close(k, pareto_k(log_w - 1e3), rtol=1e-7, atol=1e-7)


def test_pareto_k_of_weights_without_a_tail():
    assert (pareto_k(torch.full((1000, 3), -123.4)) == -math.inf).all()
    rounded = -1000.0 + 1e-4 * torch.randint(2, (1000, 3))  # float32 rounding of equal weights
    assert (pareto_k(rounded) == -math.inf).all()
    assert (pareto_k(torch.rand(5000, 50, dtype=DOUBLE).log()) < 0).all()  # bounded: uniform weights have k = -1
    assert (pareto_k(torch.randn(20, 3)) == math.inf).all()
    assert pareto_k(1e4 * torch.randn(1000, 1)).item() > 3
    only_one = torch.full((1000, 1), -math.inf)
    only_one[17] = 0.0
    assert pareto_k(only_one).item() > 3
    broken = torch.randn(1000, 2)
    broken[5, 0] = math.nan
    assert pareto_k(broken)[0] == math.inf
    assert pareto_k(broken)[1] < 1
    assert [k_threshold(k) for k in (1, 100, 1000, 100_000)] == [-math.inf, 0.5, 1 - 1 / math.log10(1000), 0.7]


def test_pareto_k_of_few_values():
    """A discrete latent has few weights, often equal: bounded, so reliable unless few draws decide."""

    def k(*counts):
        return pareto_k(torch.cat([torch.full((n, 1), w, dtype=DOUBLE) for w, n in counts]).log()).item()

    assert k((0.5, 2400), (1.0, 2500), (1.2, 100)) < 0  # 100 exceed the next largest weight, 113 equal it
    assert k((0.5, 2498), (1.0, 2500), (1.2, 2)) < 0
    assert k((1.0, 4900), (1.2, 100)) < 0
    assert k((1.0, 4940), (1e3, 60)) > 0.7  # ess 60
    assert k((1.0, 4998), (1e4, 2)) == math.inf  # ess 4
    assert k((1e-5, 4999), (1.0, 1)) == math.inf
    assert k((0.5, 2450), (1.0, 2500), (1.0001, 50)) == -math.inf


def test_weights_of_few_states_are_found_reliable():
    """The largest error of 40 data is 0.037 nats; eleven were given none."""
    torch.manual_seed(0)
    vae = VAE(
        (6,),
        prior=priors.BernoulliVector(5),
        likelihood=likelihoods.Bernoulli(nn.Linear(5, 6)),
        posterior=posteriors.BernoulliVector(nn.Linear(6, 5)),
    )
    x = vae.sample(40, mean=False)
    found, exact = importance(vae, x, num_particles=2000), log_evidence(vae, x)
    assert exact.method == "enumeration"
    assert found.details["num_unreliable"] <= 1
    some = found.error.isfinite()
    assert ((found.log_evidence - exact.log_evidence)[some] / found.error[some]).abs().max() < 5


def test_effective_sample_size_and_error_by_hand():
    weights = torch.tensor([[1.0, 2.0], [1.0, 1.0], [4.0, 1.0]], dtype=DOUBLE)
    log_w = weights.log() - 700  # whose exponential underflows
    torch.testing.assert_close(
        effective_sample_size(log_w), weights.sum(0) ** 2 / weights.square().sum(0), rtol=1e-10, atol=0
    )
    evidence = from_log_weights(log_w, num_particles=(1, 3))
    torch.testing.assert_close(evidence.log_evidence, weights.mean(0).log() - 700, rtol=1e-10, atol=0)
    torch.testing.assert_close(evidence.details["log_evidence_1"], log_w[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(evidence.details["elbo"], log_w.mean(0), rtol=1e-10, atol=0)
    error = weights.std(0) / math.sqrt(3) / weights.mean(0)
    torch.testing.assert_close(evidence.details["standard_error"], error, rtol=1e-10, atol=0)
    assert (evidence.error == math.inf).all()  # three weights: no tail to judge by
    assert evidence.details["num_unreliable"] == 2
    assert (evidence.method, evidence.kind) == ("importance", "lower")


def test_a_heavy_tail_voids_the_standard_error():
    log_w = torch.stack([-0.2 * torch.rand(5000).log(), -1.5 * torch.rand(5000).log()], 1)
    evidence = from_log_weights(log_w)
    assert evidence.error.isinf().tolist() == [False, True]
    assert evidence.details["standard_error"].isfinite().all()


def test_all_weights_zero_is_no_evidence():
    evidence = from_log_weights(torch.full((1000, 1), -math.inf))
    assert evidence.log_evidence.item() == -math.inf
    assert evidence.error.item() == math.inf


@pytest.mark.parametrize("proposal", ["posterior", "defensive"])
def test_linear_gaussian_evidence(proposal):
    model = LinearGaussian.random()
    x = model.sample(24)
    evidence = importance(model.vae(), x, num_particles=(100, 2000), proposal=proposal)
    z_score = (evidence.log_evidence - model.log_evidence(x)) / evidence.error
    assert evidence.log_evidence.dtype == DOUBLE
    assert z_score.abs().max() < 5
    assert (evidence.error.isfinite()).float().mean() > (0.95 if proposal == "defensive" else 0.5)
    if proposal == "posterior":  # a mean-field q with too small a spread: the bias falls with K
        small, large = evidence.details["log_evidence_100"], evidence.log_evidence
        assert (small - model.log_evidence(x)).mean() < (large - model.log_evidence(x)).mean()
        difference = evidence.details["elbo"] - model.elbo(x)
        assert abs(difference.mean()) < 5 * standard_error(difference)


def test_the_exact_posterior_needs_one_particle():
    model = LinearGaussian.random(latent_dim=1).take_true_posterior()
    x = model.sample(20)
    evidence = importance(model.vae(), x, num_particles=(1, 500))
    for value in (evidence.log_evidence, evidence.details["log_evidence_1"], evidence.details["elbo"]):
        torch.testing.assert_close(value, model.log_evidence(x), rtol=1e-10, atol=1e-10)
    assert (evidence.details["pareto_k"] == -math.inf).all()
    torch.testing.assert_close(evidence.details["ess"], torch.full((20,), 500.0, dtype=DOUBLE), rtol=1e-10, atol=0)
    assert evidence.error.max() < 1e-8


class Recorder:
    """A proposal that keeps what it drew."""

    def __init__(self, propose):
        self.propose, self.draws = propose, []

    def __call__(self, x):
        self.q = self.propose(x)
        return self

    def sample(self, shape):
        self.draws.append(self.q.sample(shape))
        return self.draws[-1]

    def log_prob(self, z):
        return self.q.log_prob(z)


def test_a_proposal_of_ones_own_and_nested_estimates_by_hand():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(7)
    propose = Recorder(lambda x: dist.Normal(vae.posterior(x).mean, 0.5).to_event(1))
    evidence = importance(vae, x, num_particles=[600, 50], proposal=propose)
    z = torch.cat(propose.draws)
    assert z.shape == (600, 7, 2)
    log_w = dist.Normal(z @ model.weight.T + model.bias, model.scale).log_prob(x).sum(-1)
    log_w = log_w + dist.Normal(torch.zeros(2).double(), 1.0).log_prob(z).sum(-1)
    log_w = log_w - dist.Normal(vae.posterior(x).mean, 0.5).log_prob(z).sum(-1)
    for k in (50, 600):
        by_hand = log_w[:k].logsumexp(0) - math.log(k)
        torch.testing.assert_close(evidence.details[f"log_evidence_{k}"], by_hand, rtol=1e-10, atol=0)
    torch.testing.assert_close(evidence.log_evidence, evidence.details["log_evidence_600"], rtol=0, atol=0)


def test_the_defensive_estimate_is_unbiased():
    """exp of the estimate averages to p(x), however little the adaptation has to go by."""
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(1).expand(1000, -1)
    propose = Defensive(VAEDensities(vae), num_prior_draws=50, num_draws=40, num_rounds=1, target_ess=5.0)
    evidence = importance(vae, x, num_particles=5, proposal=propose)
    ratio = (evidence.log_evidence - model.log_evidence(x)).exp()
    assert abs(ratio.mean() - 1) < 5 * standard_error(ratio)
    assert standard_error(ratio) < 0.05


class Folded(nn.Module):
    """x = (|z_1|, z_2) plus noise of scale 0.05: two modes, at z_1 and -z_1."""

    def forward(self, z):
        mean = torch.stack([z[..., 0].abs(), z[..., 1]], -1)
        return dist.Normal(mean, 0.05).to_event(1)


class OneMode(nn.Module):
    """A q that knows one of the two and is right about it."""

    def forward(self, x):
        return dist.Normal(x, 0.05).to_event(1)


def test_a_missed_mode_is_found_by_the_defensive_proposal_alone():
    vae = VAE((2,), prior=priors.StandardNormal(2).double(), likelihood=Folded(), posterior=OneMode())
    x = torch.tensor([[0.5, 0.3], [1.0, -1.0], [2.0, 1.5], [2.5, -0.2]], dtype=DOUBLE)
    s = math.sqrt(1 + 0.05**2)
    truth = math.log(2) + dist.Normal(0.0, s).log_prob(x).sum(-1)  # 2 N(x_1; 0, s): all x_1 are ten scales from 0
    plain = importance(vae, x, num_particles=2000)
    assert (plain.details["pareto_k"] < 0.7).all()  # nothing in the draws betrays the miss
    torch.testing.assert_close(plain.log_evidence, truth - math.log(2), rtol=0, atol=0.01)
    defensive = importance(vae, x, num_particles=2000, proposal="defensive")
    assert ((defensive.log_evidence - truth) / defensive.error).abs().max() < 5
    assert defensive.error.max() < 0.03
    assert (defensive.details["pareto_k"] < 0.7).all()


class Box(nn.Module):
    def forward(self):
        return dist.Uniform(-torch.ones(2).double(), torch.ones(2).double()).to_event(1)


class Identity(nn.Module):
    def forward(self, z):
        return dist.Normal(z, 0.5).to_event(1)


@pytest.mark.parametrize("proposal", ["posterior", "defensive"])
def test_draws_outside_the_priors_support_weigh_nothing(proposal):
    class Wide(nn.Module):
        def forward(self, x):
            return dist.Normal(x, 0.6).to_event(1)

    vae = VAE((2,), prior=priors.StandardNormal(2), likelihood=Identity(), posterior=Wide())
    vae.prior = Box()  # which VAE would refuse beside this posterior
    x = torch.tensor([[0.0, 0.5], [0.9, -1.3]], dtype=DOUBLE)
    truth = np.log((norm.cdf((1 - x) / 0.5) - norm.cdf((-1 - x) / 0.5)) / 2).sum(-1)
    evidence = importance(vae, x, num_particles=4000, proposal=proposal)
    assert ((evidence.log_evidence - torch.from_numpy(truth)) / evidence.error).abs().max() < 5


def test_blocks_change_nothing_and_bound_the_memory():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(70)  # more than one block of data
    seen = []
    vae.likelihood.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][..., 0].numel()))
    small = 4 * 256 * 8 * 1000
    assert capacity(x, small) == 1000
    for opening in (None, {"num_prior_draws": 2000, "num_draws": 200}):
        found = []
        for budget in ({}, {"max_bytes": small}):
            propose = "posterior" if opening is None else Defensive(VAEDensities(vae), **opening, **budget)
            found.append((importance(vae, x, num_particles=(10, 300), proposal=propose, **budget), max(seen)))
            seen.clear()
        (whole, most), (parts, fewer) = found
        assert fewer <= 1000 < most
        torch.testing.assert_close(parts.log_evidence, whole.log_evidence, rtol=1e-10, atol=0)
        torch.testing.assert_close(parts.details["pareto_k"], whole.details["pareto_k"], rtol=1e-7, atol=1e-7)


def test_a_program_gives_the_same_at_the_same_noise():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(70)
    one, other = importance(vae, x, num_particles=300), importance((vae.model, vae.guide), x, num_particles=300)
    torch.testing.assert_close(one.log_evidence, other.log_evidence, rtol=1e-10, atol=0)
    blocks = importance((vae.model, vae.guide), x, num_particles=300, max_bytes=4 * 8 * 448 * 100)
    assert not torch.equal(blocks.log_evidence, other.log_evidence)  # a guide run in parts draws anew
    distance = (blocks.log_evidence - other.log_evidence) / (blocks.error**2 + other.error**2).sqrt()
    assert distance[distance.isfinite()].abs().max() < 5


def test_a_program_with_one_site_may_be_given_a_defensive_proposal():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(10)
    evidence = importance((vae.model, vae.guide), x, num_particles=500, proposal="defensive")
    assert ((evidence.log_evidence - model.log_evidence(x)) / evidence.details["standard_error"]).abs().max() < 5


def chain_model(x, scale):
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(0.5 * z2, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z1.expand(*z1.shape[:-1], 3), scale.unsqueeze(-1)).to_event(1), obs=x)


def chain_guide(x, scale):
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.Normal(0.9 * x.mean(-1, keepdim=True), 0.7).to_event(1))
        pyro.sample("z2", dist.Normal(0.4 * z1, 1.0).to_event(1))


def test_a_chain_of_latents_with_two_arguments_against_its_closed_form():
    scale = torch.linspace(0.8, 1.2, 70, dtype=DOUBLE)  # differs from datum to datum
    x = torch.randn(70, 3, dtype=DOUBLE) + torch.randn(70, 1, dtype=DOUBLE)
    covariance = 1.25 * torch.ones(3, 3, dtype=DOUBLE) + scale.square()[:, None, None] * torch.eye(3, dtype=DOUBLE)
    truth = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x)
    evidence = importance((chain_model, chain_guide), x, scale, num_particles=2000)
    assert evidence.error.isfinite().float().mean() > 0.9
    assert ((evidence.log_evidence - truth) / evidence.error).abs().max() < 5


def program(size=None, subsample=None, scale=1.0, mask=True, factor=None, extra=False):
    """A model and guide of z ~ N(0, 1) and x ~ N(z, 1), which may be more than one density for each datum."""

    def plate(x):
        return pyro.plate("data", size or len(x), subsample=None if subsample is None else subsample(x), dim=-1)

    def latent(x):
        with pyro.poutine.scale(scale=scale), pyro.poutine.mask(mask=mask):
            return pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))

    def model(x):
        if factor is not None:
            pyro.factor("outside", torch.tensor(factor))
        with plate(x) as rows:
            z = latent(x[rows])
            if extra:
                z = z + pyro.sample("u", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[rows])

    def guide(x):
        with plate(x) as rows:
            latent(x[rows])

    return model, guide


def test_a_subsampled_plates_scale_is_no_part_of_log_p():
    x, z = torch.randn(4, 1, dtype=DOUBLE), torch.randn(3, 4, 1, dtype=DOUBLE)
    pair = program(size=1000, subsample=lambda x: torch.arange(len(x)))
    densities = ProgramDensities(pair, x)
    for several in (z, z[:1]):
        log_prior, log_lik = densities.log_prior(x, several), densities.log_likelihood(x, several)
        torch.testing.assert_close(log_prior, dist.Normal(0.0, 1.0).log_prob(several[..., 0]), rtol=1e-12, atol=0)
        torch.testing.assert_close(log_lik, dist.Normal(several[..., 0], 1.0).log_prob(x[:, 0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.1}, "'z' and 'x' have the scales 0.1 and 1.0"),
        ({"factor": -5.0}, "'outside' lies outside the plate"),
        ({"extra": True}, "the model samples 'u' and the guide does not"),
        ({"mask": torch.tensor(False)}, "'z' is masked"),
        ({"size": 2, "subsample": lambda x: torch.arange(1)}, "weighs 1 of 2 data"),
    ],
)
def test_a_program_that_is_no_density_for_each_datum_has_no_densities(options, message):
    with pytest.raises(ValueError, match=message):
        ProgramDensities(program(**options), torch.zeros(2, 1))


class Positive(nn.Module):
    """q(z|x) of positive latents, the same for every x."""

    def __init__(self, family):
        super().__init__()
        self.family, self.rate = family, nn.Parameter(torch.ones(4, dtype=DOUBLE))

    def forward(self, x):
        rate = self.rate.expand(len(x), 4)
        return (dist.Exponential(rate) if self.family == "Exponential" else dist.LogNormal(0 * rate, rate)).to_event(1)


class Noise(nn.Module):
    """p(x|z), normal around z, where z is positive: elsewhere it is no number."""

    def forward(self, z):
        return dist.Normal(z.sqrt().square(), 0.6).to_event(1)


def positive(family):
    prior = lambda: dist.Exponential(torch.ones(4, dtype=DOUBLE)).to_event(1)  # noqa: E731
    return VAE((4,), prior=prior, likelihood=Noise(), posterior=Positive(family)).double()


@pytest.mark.parametrize("family", ["Exponential", "LogNormal"])
def test_the_proposal_reaches_no_latent_outside_the_support(family):
    """Families give densities of numbers outside their support, or NaN: torch's exponential has exp(-z) everywhere."""
    x = torch.tensor([[0.3] * 4, [3.0, 0.2, 1.0, 2.0]], dtype=DOUBLE)
    truth = (0.18 - x + torch.special.log_ndtr((x - 0.36) / 0.6)).sum(-1)
    found = importance(positive(family), x, num_particles=4000, proposal="defensive")
    assert ((found.log_evidence - truth) / found.error).abs().max() < 5


def test_log_joint_outside_the_support_is_minus_infinity():
    densities, x = VAEDensities(positive("Exponential")), torch.ones(1, 4, dtype=DOUBLE)
    z = torch.tensor([[[0.5, 0.5, 0.5, 0.5]], [[0.5, -0.5, 0.5, 0.5]], [[0.5, math.nan, 0.5, 0.5]]], dtype=DOUBLE)
    with torch.no_grad(), pyro.validation_enabled(False):
        inside, outside = log_joint(densities, x, z[:2])[:, 0]
        assert inside.isfinite()
        assert outside == -math.inf
        with pytest.raises(ValueError, match="are not numbers"):
            log_joint(densities, x, z)


@pytest.mark.parametrize("method", ["importance", "ais", "quadrature"])
@pytest.mark.parametrize("space", ["a discrete set", "the unit sphere"])
def test_methods_that_go_anywhere_refuse_points_and_spheres(method, space):
    bits = (priors.BernoulliVector(3), posteriors.BernoulliVector(nn.Linear(6, 3)))
    sphere = (priors.HypersphericalUniform(3), posteriors.PowerSpherical(nn.Linear(6, 4)))
    prior, posterior = bits if space == "a discrete set" else sphere
    vae = VAE((6,), prior=prior, likelihood=likelihoods.Bernoulli(nn.Linear(3, 6)), posterior=posterior)
    with pytest.raises(ValueError, match=f"a latent on {space}|a discrete prior; use enumerate_evidence"):
        log_evidence(vae, torch.zeros(2, 6), method=method)


def test_nothing_outside_moves():
    vae = VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([9], batch_norm=True)),
        posterior=posteriors.DiagonalNormal(networks.MLP([9], batch_norm=True)),
    )
    x = vae.sample(5, mean=False)
    vae.train()
    before, state = {k: v.clone() for k, v in vae.state_dict().items()}, torch.random.get_rng_state()
    for source in (vae, (vae.model, vae.guide)):
        one, again = importance(source, x, num_particles=30), importance(source, x, num_particles=30)
        assert torch.equal(one.log_evidence, again.log_evidence)
        assert not torch.equal(one.log_evidence, importance(source, x, num_particles=30, seed=1).log_evidence)
        assert not one.log_evidence.requires_grad
    assert torch.equal(state, torch.random.get_rng_state())
    assert vae.training
    assert vae.likelihood.training
    assert all(torch.equal(before[k], v) for k, v in vae.state_dict().items())
    assert torch.distributions.Distribution._validate_args == pyro.distributions.is_validation_enabled()
    assert pyro.distributions.is_validation_enabled()


def test_refusals():
    model = LinearGaussian.random()
    vae, x = model.vae(), model.sample(5)
    with pytest.raises(ValueError, match=r"proposal is 'defensiv'.*did you mean defensive"):
        importance(vae, x, proposal="defensiv")
    with pytest.raises(TypeError, match="a function from data to a distribution"):
        importance(vae, x, proposal=3)
    with pytest.raises(ValueError, match="num_particles is 0"):
        importance(vae, x, num_particles=(0, 5))
    with pytest.raises(ValueError, match="num_particles is empty"):
        importance(vae, x, num_particles=())
    with pytest.raises(ValueError, match=r"2 tensors; expected x alone"):
        importance(vae, x, x)
    with pytest.raises(ValueError, match=r"tensors of \[3, 5\] rows"):
        importance((vae.model, vae.guide), x, x[:3])
    with pytest.raises(ValueError, match="at least one"):
        importance(vae, x[:0])
    with pytest.raises(ValueError, match=r"shape \(100, 2\); expected \(100, 5, 2\)"):
        importance(vae, x, num_particles=100, proposal=lambda x: dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"posterior_share is 0\.9 and prior_share 0\.2"):
        Defensive(VAEDensities(vae), posterior_share=0.9, prior_share=0.2)
    with pytest.raises(ValueError, match="num_rounds is 0"):
        Defensive(VAEDensities(vae), num_rounds=0)
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(K, n\)"):
        from_log_weights(torch.zeros(3))
    with pytest.raises(ValueError, match="1 of 2 data are not numbers"):
        from_log_weights(torch.tensor([[0.0, math.nan], [0.0, 0.0]]))
    with torch.no_grad():
        vae.likelihood.mean.network.bias[0] = math.nan
    with pytest.raises(ValueError, match="5 of 5 data are not numbers"), pyro.validation_enabled(False):
        importance(vae, x, num_particles=3)


def test_data_outside_the_support_are_refused():
    vae = VAE(
        (6,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(), posterior=posteriors.DiagonalNormal()
    )
    for source in (vae, (vae.model, vae.guide)):
        with pytest.raises(ValueError, match="support"):
            importance(source, torch.full((3, 6), 0.5), num_particles=3)


def test_subsampling_is_refused():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2, dim=-1) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pytest.raises(ValueError, match="weighs 2 of 5 data"):
        importance((model, guide), torch.zeros(5, 1), num_particles=3)


def two_students():
    loc = torch.tensor([[[-2.0]], [[1.0]]], dtype=DOUBLE)
    tril = torch.tensor([0.3, 0.8], dtype=DOUBLE).reshape(2, 1, 1, 1)
    return StudentMixture(torch.tensor([[0.3], [0.7]], dtype=DOUBLE).log(), loc, tril)


def test_student_mixtures_density_is_torchs_and_its_draws_follow_it():
    mixture, parts = two_students(), ((0.3, -2.0, 0.3), (0.7, 1.0, 0.8))
    z, dof = torch.linspace(-8, 8, 101, dtype=DOUBLE).reshape(-1, 1, 1), torch.tensor(5.0, dtype=DOUBLE)
    log_p = [math.log(weight) + dist.StudentT(dof, loc, scale).log_prob(z[..., 0]) for weight, loc, scale in parts]
    torch.testing.assert_close(mixture.log_prob(z), torch.stack(log_p).logsumexp(0), rtol=1e-10, atol=0)
    draws = mixture.sample((50_000,))[:, 0, 0]
    for threshold in (-2.3, -1.5, 0.0, 1.0, 3.0):
        expected = sum(weight * student_t.cdf((threshold - loc) / scale, 5) for weight, loc, scale in parts)
        measured = (draws < threshold).double()
        assert abs(measured.mean() - expected) < 5 * standard_error(measured)


def test_student_mixtures_correlate_as_their_scales_say():
    tril = torch.tensor([[1.0, 0.0], [0.9, 0.3]], dtype=DOUBLE)
    mixture = StudentMixture(torch.zeros(1, 2).double(), torch.zeros(1, 2, 2).double(), tril.expand(1, 2, 2, 2))
    z = mixture.sample((100_000,))
    products = torch.einsum("kni,knj->knij", z, z)
    expected = (tril @ tril.T) * 5 / 3  # the covariance of a t of five degrees of freedom
    assert ((products.mean(0) - expected).abs() < 5 * standard_error(products)).all()


def test_a_fit_recovers_a_weighted_mixture():
    z = torch.cat([0.02 * torch.randn(2000, 3, 2), 1 + 0.5 * torch.randn(2000, 3, 2)]).double()
    log_w = torch.cat([torch.zeros(2000, 3), torch.full((2000, 3), -math.log(3))]).double()
    mixture = fit_student_mixture(z, log_w, torch.ones(3, 2), num_components=2)
    first = mixture.loc.square().sum(-1).argmin(0)
    rows = torch.arange(3)
    assert (mixture.log_weight.exp()[first, rows] - 0.75).abs().max() < 0.03
    std = mixture.scale_tril[first, rows].diagonal(dim1=-2, dim2=-1)
    assert ((std / 0.02).log().abs() < 0.35).all()  # a t of the same spread has the smaller scale


@pytest.mark.slow
def test_a_trained_model_against_a_grid():
    """Digits, 2-D latent: defensive importance sampling and annealing against a uniform grid, q alone beside them."""
    digits = data.load("digits", binarize="threshold")
    vae = VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([100, 100])),
        posterior=posteriors.DiagonalNormal(networks.MLP([100, 100])),
    )
    fit(vae, digits, epochs=100)
    densities, x = VAEDensities(vae.cpu()), digits.test.x[:64]
    values = []
    with torch.no_grad():
        for size in (600, 1200):
            axis = torch.linspace(-6, 6, size)
            grid = torch.cartesian_prod(axis, axis).split(60_000)
            log_p = [densities.likelihood_at(z)(x).double() + densities.prior().log_prob(z) for z in grid]
            values.append(torch.cat(log_p, -1).logsumexp(-1) + 2 * math.log(12 / (size - 1)))
    truth = values[1]
    assert (values[1] - values[0]).abs().max() < 1e-3
    evidence = importance(vae, x, num_particles=(100, 2000), proposal="defensive")
    reliable = evidence.error.isfinite()
    assert reliable.float().mean() > 0.9
    assert ((evidence.log_evidence - truth) / evidence.error)[reliable].abs().max() < 5
    plain = importance(vae, x, num_particles=2000)
    assert (plain.log_evidence - truth).abs().mean() > (evidence.log_evidence - truth).abs().mean()
    ais = annealed(vae, x[:16], num_temperatures=300, num_chains=32)
    assert ((ais.log_evidence - truth[:16]) / ais.error).abs().max() < 5
