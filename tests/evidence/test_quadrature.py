"""Quadrature against closed forms, brute force and what is known of awkward models; its error must cover the truth."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import nn

from ppl_vae import VAE, data, likelihoods, networks, posteriors, priors
from ppl_vae.evaluation.true_posterior import kl_to_posterior, log_posterior_grid, posterior_moments
from ppl_vae.evidence.densities import ProgramDensities, VAEDensities
from ppl_vae.evidence.grids import Cells, Region, bounds
from ppl_vae.evidence.interpolation import CellRule, LogSums, cheapest
from ppl_vae.evidence.quadrature import quadrature


def holds(evidence, truth, tolerance=1e-3):
    """The stated error covers the truth, and is as small as was asked."""
    assert (evidence.error <= tolerance).all(), evidence.error
    assert ((evidence.log_evidence - truth).abs() <= evidence.error).all()


# ---------------------------------------------------------------------------------------------- closed forms


@pytest.mark.ci
@pytest.mark.thinned(3)
@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_linear_gaussian(latent_dim):
    model = LinearGaussian.random(x_dim=5, latent_dim=latent_dim)
    x, densities = model.sample(5), VAEDensities(model.vae())
    moments = posterior_moments(densities, x)
    evidence = moments.evidence
    holds(evidence, model.log_evidence(x))
    assert (evidence.method, evidence.kind, len(evidence)) == ("quadrature", "exact", 5)
    torch.testing.assert_close(evidence.log_evidence, model.log_evidence(x), rtol=0, atol=1e-6)
    mean_map, covariance = model.posterior_map()
    torch.testing.assert_close(moments.mean, (x - model.bias) @ mean_map.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(moments.covariance, covariance.expand(5, -1, -1), rtol=0, atol=1e-5)
    divergence = kl_to_posterior(densities, x, evidence)
    assert ((divergence.kl - (model.log_evidence(x) - model.elbo(x))).abs() <= divergence.error).all()
    assert (divergence.error < 1e-3).all()


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-8])
def test_the_tolerance_is_met(tolerance):
    model = LinearGaussian.random(x_dim=5, latent_dim=2, scale=0.05)
    x = model.sample(5)
    holds(quadrature(VAEDensities(model.vae()), x, tolerance=tolerance), model.log_evidence(x), tolerance)


def test_float32_with_its_rounding():
    model = LinearGaussian.random(x_dim=20, latent_dim=2, scale=0.1)
    x = model.sample(20)
    vae = model.vae().float()
    evidence = quadrature(VAEDensities(vae), x.float())
    rounded = LinearGaussian(  # the model with its parameters as float32 has them
        model.weight.float().double(), model.bias.float().double(), 0.1, None, None, None
    )
    holds(evidence, rounded.log_evidence(x.float().double()), tolerance=3e-3)
    assert 1e-9 < evidence.details["rounding"] < 2e-3


def test_narrow_posteriors_far_from_q():
    # width 0.001 in a prior of width 1, and q elsewhere: nothing but the parabola between the first nodes shows it
    model = LinearGaussian.random(x_dim=5, latent_dim=2, scale=0.002)
    model.encoder_bias = model.encoder_bias + 2.0
    x = model.sample(20)
    holds(quadrature(VAEDensities(model.vae()), x), model.log_evidence(x))


def test_a_shifted_and_scaled_prior():
    model = LinearGaussian.random(x_dim=5, latent_dim=2)
    x = model.sample(5)
    vae = model.vae()
    loc, scale = torch.tensor([300.0, -50.0]).double(), torch.tensor([1e3, 1e-3]).double()
    decoder = Rescaled(vae.likelihood, loc, scale)
    vae = VAE((5,), prior=lambda: dist.Normal(loc, scale).to_event(1), likelihood=decoder, posterior=vae.posterior)
    holds(quadrature(VAEDensities(vae), x), model.log_evidence(x))


class Rescaled(nn.Module):
    def __init__(self, likelihood, loc, scale):
        super().__init__()
        self.likelihood, self.loc, self.scale = likelihood, loc, scale

    def forward(self, z):
        return self.likelihood((z.double() - self.loc) / self.scale)


@pytest.mark.ci
def test_probabilistic_pca():
    from sklearn.decomposition import PCA

    x = data.load("digits").train.x.flatten(1).double()[:300]
    pca = PCA(n_components=2).fit(x.numpy())
    noise = math.sqrt(pca.noise_variance_)
    scales = torch.from_numpy(pca.explained_variance_ - pca.noise_variance_).sqrt()
    decoder = nn.Linear(2, 64).double()
    with torch.no_grad():
        decoder.weight.copy_(torch.from_numpy(pca.components_).T * scales)
        decoder.bias.copy_(torch.from_numpy(pca.mean_))
    vae = VAE(
        (64,),
        prior=priors.StandardNormal(2).double(),
        likelihood=likelihoods.Normal(decoder, scale=noise),
        posterior=posteriors.DiagonalNormal(nn.Linear(64, 4).double()),
    )
    holds(quadrature(VAEDensities(vae), x), torch.from_numpy(pca.score_samples(x.numpy())))


# ------------------------------------------------------------------------------------------ foreign pieces


class Encoder(nn.Module):
    """A posterior at one place, whatever the datum."""

    def __init__(self, loc, scale):
        super().__init__()
        self.loc, self.scale = nn.Parameter(loc), scale

    def forward(self, x):
        return dist.Normal(self.loc.expand(len(x), -1), self.scale).to_event(1)


def one_pixel(decode, width):
    """p(x|z) = N(x; decode(z), width^2) for a single x: whatever posterior one wants."""
    return lambda z: dist.Normal(decode(z), width).to_event(1)


def foreign(prior, likelihood, loc, scale=0.1):
    return VAEDensities(VAE((1,), prior=prior, likelihood=likelihood, posterior=Encoder(loc.double(), scale)))


def normal_prior(d):
    zeros, ones = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    return lambda: dist.Normal(zeros, ones).to_event(1)


def normal(x, scale):
    """log N(x; 0, scale^2) in x's precision: a torch.distributions.Normal of numbers would be float32."""
    return -0.5 * (x / scale).square() - math.log(scale * math.sqrt(2 * math.pi))


class Spikes:
    """x = 0 is explained by latents in narrow spikes at given places: p(0|z) = sum_i N(z; loc_i, width^2 I)."""

    def __init__(self, places, width):
        self.places, self.width = places, width

    def __call__(self, z):
        d = z.shape[-1]
        squares = (z[..., None, :] - self.places).square().sum(-1) / self.width**2
        log_p = (-0.5 * squares - d * math.log(self.width * math.sqrt(2 * math.pi))).logsumexp(-1)
        # N(0; 0, s^2) with s chosen so that log p(0|z) is log_p
        return dist.Normal(
            torch.zeros_like(z[..., :1]), (-log_p[..., None] - 0.5 * math.log(2 * math.pi)).exp()
        ).to_event(1)


@pytest.mark.parametrize("width", [0.1, 0.02])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_modes_that_q_misses(latent_dim, width):
    """log p(0) = log sum_i N(loc_i; 0, (1 + width^2) I), exactly; q sits on the first spike alone."""
    places = torch.tensor([[1.013, 0.371], [-1.577, 0.918], [0.219, -2.03]], dtype=torch.float64)[:, :latent_dim]
    densities = foreign(normal_prior(latent_dim), Spikes(places, width), places[0], width)
    truth = normal(places, math.sqrt(1 + width**2)).sum(-1).logsumexp(0)
    evidence = quadrature(densities, torch.zeros(1, 1, dtype=torch.float64))
    holds(evidence, truth)


def test_a_spike_that_only_q_knows_of():
    """A spike of width 0.0003 on a flat background: no node of the first cells lies where it shows."""
    place, width = torch.tensor([0.4131, -0.1718]).double(), 3e-4

    def likelihood(z):
        spike = -0.5 * ((z - place) / width).square().sum(-1) - 2 * math.log(width * math.sqrt(2 * math.pi))
        log_p = torch.logaddexp(spike, torch.zeros_like(spike))[..., None]
        return dist.Normal(torch.zeros_like(log_p), (-log_p - 0.5 * math.log(2 * math.pi)).exp()).to_event(1)

    truth = normal(place, math.sqrt(1 + width**2)).sum().exp().log1p()
    evidence = quadrature(foreign(normal_prior(2), likelihood, place, width), torch.zeros(1, 1, dtype=torch.float64))
    holds(evidence, truth)


def wide(dim):
    return lambda: dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1)


def beside(prior, vae):
    """The densities of a VAE under a prior that it would refuse beside its posterior, which leaves its support."""
    vae.prior = prior  # a plain function beside modules
    return VAEDensities(vae)


def test_uniform_prior():
    """The box cuts the likelihood: the prior is a product, and so is the answer."""
    low, high = torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 3.0]).double()
    prior = lambda: dist.Uniform(low, high).to_event(1)  # noqa: E731
    centre, width = torch.tensor([0.99, 2.4]).double(), 0.05
    likelihood = VAELikelihood(centre)
    densities = beside(prior, VAE((2,), prior=wide(2), likelihood=likelihood, posterior=Encoder(centre, 0.05)))
    x = torch.stack([centre, centre + torch.tensor([0.1, 0.7]), centre + torch.tensor([-3.0, 0.0])])
    normal = torch.distributions.Normal(x, torch.full_like(x, width))
    evidence = quadrature(densities, x)
    inside = log_cdf_between(normal, low, high)
    holds(evidence, (inside - (high - low).log()).sum(-1))


def log_cdf_between(normal, low, high):
    z = lambda t: (t - normal.loc) / normal.scale  # noqa: E731
    right = z(low) > 0  # by symmetry: in the lower tail nothing cancels
    upper = torch.special.log_ndtr(torch.where(right, -z(low), z(high)))
    lower = torch.special.log_ndtr(torch.where(right, -z(high), z(low)))
    return upper + torch.log1p(-(lower - upper).exp())


class VAELikelihood(nn.Module):
    """p(x|z) = N(z, width^2)."""

    def __init__(self, centre, width=0.05):
        super().__init__()
        self.width = width

    def forward(self, z):
        return dist.Normal(z, self.width).to_event(1)


@pytest.mark.parametrize("places", [[0.0, 0.02, 5.0], [0.3, -1.0, 12.0]])
def test_laplace_prior(places):
    """The kink of the prior lies in the posterior; its tails reach far."""
    zeros, ones = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    prior = lambda: dist.Laplace(zeros, ones).to_event(1)  # noqa: E731
    width, x = 0.1, torch.tensor(places, dtype=torch.float64)[:, None]
    densities = VAEDensities(
        VAE((1,), prior=prior, likelihood=VAELikelihood(zeros, width), posterior=Encoder(zeros, 1.0))
    )
    # the convolution of a Laplace and a normal density, term by term
    a = 0.5 * width**2 + x + torch.special.log_ndtr(-(x + width**2) / width)
    b = 0.5 * width**2 - x + torch.special.log_ndtr((x - width**2) / width)
    holds(quadrature(densities, x), (torch.logaddexp(a, b) - math.log(2)).squeeze(-1))


def test_a_kink_and_an_edge_inside_cells_are_found():
    """A prior whose edge lies anywhere: the rule converges slowly there, and says so."""
    edge = torch.tensor([0.3217]).double()

    class Edged(dist.TorchDistribution):
        support = torch.distributions.constraints.independent(torch.distributions.constraints.real, 1)
        arg_constraints = {}  # noqa: RUF012

        def __init__(self):
            super().__init__(event_shape=(1,), validate_args=False)

        def sample(self, sample_shape=()):
            return torch.rand(*sample_shape, 1, dtype=torch.float64) * edge

        rsample = sample

        def log_prob(self, z):
            inside = (z > 0) & (z < edge)
            return torch.where(inside, -edge.log(), -math.inf).squeeze(-1)

    densities = VAEDensities(
        VAE((1,), prior=lambda: Edged(), likelihood=VAELikelihood(edge, 0.1), posterior=Encoder(edge, 0.1))
    )
    x = torch.tensor([[0.3], [0.5]]).double()
    truth = log_cdf_between(torch.distributions.Normal(x, torch.full_like(x, 0.1)), torch.zeros(1), edge) - edge.log()
    evidence = quadrature(densities, x)
    holds(evidence, truth.squeeze(-1))


def test_a_prior_on_half_the_line():
    """An exponential prior and a normal likelihood: an exponentially modified normal density."""
    rate, width = torch.ones(1, dtype=torch.float64), 0.2
    prior = lambda: dist.Exponential(rate).to_event(1)  # noqa: E731
    vae = VAE((1,), prior=wide(1), likelihood=VAELikelihood(None, width), posterior=Encoder(torch.zeros(1), 1.0))
    densities = beside(prior, vae)
    x = torch.tensor([[-0.3], [0.1], [3.0], [30.0]]).double()
    truth = 0.5 * width**2 - x + torch.special.log_ndtr((x - width**2) / width)
    holds(quadrature(densities, x), truth.squeeze(-1))


def test_pieces_that_double_does_not_reach():
    """Float32 tensors in a closure: the rounding cannot be measured, and is taken from the precision."""
    weight = torch.randn(6, 2)
    vae = VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=lambda z: dist.Bernoulli(logits=z @ weight.T).to_event(1),
        posterior=posteriors.DiagonalNormal(),
    )
    evidence = quadrature(VAEDensities(vae), vae.sample(3, mean=False))
    assert 1e-6 < evidence.details["rounding"] < 1e-3


def test_heavy_tails():
    """A Student prior reaches out over many shells, a likelihood that is flat there keeps the mass."""
    prior = lambda: dist.StudentT(torch.tensor([2.0]).double(), 0.0, 1.0).to_event(1)  # noqa: E731
    width = 50.0
    densities = VAEDensities(
        VAE((1,), prior=prior, likelihood=VAELikelihood(None, width), posterior=Encoder(torch.zeros(1), 1.0))
    )
    x = torch.tensor([[0.0], [400.0]]).double()
    t = torch.linspace(-25, 25, 200_001, dtype=torch.float64)
    z = t.sinh()
    log_p = prior().base_dist.log_prob(z[:, None]).sum(-1) + torch.distributions.Normal(z, width).log_prob(x)
    truth = (log_p + t.cosh().log()).logsumexp(-1) + math.log(50 / 200_000)
    holds(quadrature(densities, x), truth)


def test_a_prior_of_narrow_components_is_resolved():
    """A mixture whose components are narrower than the first cells."""
    locs, width = torch.tensor([-2.213, 0.127, 1.9]).double(), 0.01
    weights = torch.tensor([0.2, 0.5, 0.3]).double()

    def prior():
        components = dist.Normal(locs[:, None], torch.full((3, 1), width, dtype=torch.float64)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(weights), components)

    densities = VAEDensities(
        VAE((1,), prior=prior, likelihood=VAELikelihood(None, 1.0), posterior=Encoder(torch.zeros(1), 1.0))
    )
    x = torch.tensor([[0.0], [2.0]]).double()
    truth = normal(x - locs, math.sqrt(1 + width**2)) + weights.log()
    evidence = quadrature(densities, x)
    holds(evidence, truth.logsumexp(-1))
    assert abs(evidence.details["prior_mass"] - 1) < 1e-3


def test_an_unnormalised_prior_has_an_infinite_error():
    model = LinearGaussian.random(latent_dim=1)
    vae = model.vae()

    class Half(dist.Normal):
        def log_prob(self, z):
            return super().log_prob(z) - math.log(2)

    zeros, ones = torch.zeros(1).double(), torch.ones(1).double()
    half = VAE((5,), prior=lambda: Half(zeros, ones).to_event(1), likelihood=vae.likelihood, posterior=vae.posterior)
    assert quadrature(VAEDensities(half), model.sample(2)).error.isinf().all()


@pytest.mark.slow
def test_a_likelihood_that_is_scored_pair_by_pair():
    """Poisson counts, brute force as the truth; memory bounds the blocks, and not the answer."""
    torch.manual_seed(0)
    decoder = nn.Linear(2, 6).double()
    likelihood = Counts(decoder)
    vae = VAE(
        (6,), prior=priors.StandardNormal(2).double(), likelihood=likelihood, posterior=Encoder(torch.zeros(2), 1.0)
    )
    x = torch.poisson(torch.full((4, 6), 2.0)).double()
    densities = VAEDensities(vae)
    evidence = quadrature(densities, x)
    holds(evidence, brute_force(densities, x, 7.0, 0.1))
    small = quadrature(densities, x, max_bytes=2**21)
    torch.testing.assert_close(small.log_evidence, evidence.log_evidence, rtol=1e-10, atol=0)


class Counts(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        return dist.Poisson(self.decoder(z).exp()).to_event(1)


@torch.no_grad()
def brute_force(densities, x, reach, spacing):
    """The trapezoid rule on a uniform grid of two dimensions."""
    axis = torch.arange(-reach, reach, spacing, dtype=torch.float64)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64)
    dtype = densities.prior().sample().dtype
    for part in axis.split(16):
        z = torch.cartesian_prod(part, axis).to(dtype)
        log_p = densities.likelihood_at(z)(x).double() + densities.prior().log_prob(z).double()
        total = torch.logaddexp(total, log_p.logsumexp(-1))
    return total + 2 * math.log(spacing)


# --------------------------------------------------------------------------------------- a trained decoder


@pytest.fixture(scope="module")
def trained():
    """A 2-D VAE of the 8x8 digits, trained for a moment, some data and their evidence."""
    torch.manual_seed(0)
    digits = data.load("digits", binarize="threshold")
    vae = VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([32, 32])),
        posterior=posteriors.DiagonalNormal(networks.MLP([32])),
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    x = digits.train.x
    for step in range(500):
        batch = x[torch.arange(128 * step, 128 * (step + 1)) % len(x)]
        q = vae.posterior(batch)
        z = q.rsample()
        kl = torch.distributions.kl_divergence(q, vae.prior())
        loss = (kl - vae.likelihood(z).log_prob(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    densities, x = VAEDensities(vae), x[:20]
    return densities, x, quadrature(densities, x)


@pytest.mark.ci
def test_against_a_uniform_grid(trained):
    densities, x, evidence = trained
    truth = brute_force(densities, x, 8.0, 0.02)
    holds(evidence, truth)
    elbo = evidence.log_evidence - kl_to_posterior(densities, x, evidence).kl
    assert (elbo < evidence.log_evidence).all()


@pytest.mark.ci
def test_the_reported_error_covers_a_tighter_answer(trained):
    densities, x, _ = trained
    x = x[:5]
    tight = quadrature(VAEDensities(copy.deepcopy(densities.vae).double()), x.double(), tolerance=1e-9)
    assert (tight.error < 1e-9).all()
    for tolerance in (0.1, 1e-2, 1e-3):
        holds(quadrature(densities, x, tolerance=tolerance), tight.log_evidence, tolerance)


@pytest.mark.parametrize("max_latents", [1, 60_000])
def test_the_budget_runs_out_honestly(max_latents):
    model = LinearGaussian.random(x_dim=5, latent_dim=2, scale=0.005)
    x = model.sample(10)
    evidence = quadrature(VAEDensities(model.vae()), x, max_latents=max_latents)
    assert evidence.error.max() > 1e-3
    assert ((evidence.log_evidence - model.log_evidence(x)).abs() <= evidence.error).all()


@pytest.mark.slow
def test_blocks_and_seeds_do_not_matter(trained):
    densities, x, evidence = trained
    state = torch.get_rng_state()
    for other in (quadrature(densities, x, max_bytes=2**24), quadrature(densities, x, seed=5)):
        assert ((other.log_evidence - evidence.log_evidence).abs() <= other.error + evidence.error).all()
    assert torch.equal(torch.get_rng_state(), state)
    one = quadrature(densities, x[:1])
    assert (one.log_evidence - evidence.log_evidence[:1]).abs() <= one.error + evidence.error[:1]


def test_evidence_is_elbo_plus_kl(trained):
    """The ELBO off the grid: KL in closed form, E_q[log p(x|z)] by Gauss-Hermite."""
    densities, x, evidence = trained
    divergence = kl_to_posterior(densities, x, evidence)
    assert (divergence.error < 2e-3).all()
    nodes, weights = map(torch.from_numpy, __import__("numpy").polynomial.hermite_e.hermegauss(24))
    unit, weight = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(-1) / (2 * math.pi)
    with torch.no_grad():
        q = densities.posterior(x)
        z = q.mean + q.stddev * unit[:, None].float()
        log_lik = (weight[:, None] * densities.log_likelihood(x, z)).sum(0)
        elbo = log_lik - torch.distributions.kl_divergence(q, densities.prior())
    assert ((elbo + divergence.kl - evidence.log_evidence).abs() <= divergence.error + 1e-4).all()


# ------------------------------------------------------------------------------------ the true posterior


def test_kl_where_q_leaves_the_support_is_infinite():
    low, high = torch.zeros(1).double(), torch.ones(1).double()
    prior = lambda: dist.Uniform(low, high).to_event(1)  # noqa: E731
    vae = VAE((1,), prior=wide(1), likelihood=VAELikelihood(None, 0.1), posterior=Encoder(torch.zeros(1), 0.2))
    densities = beside(prior, vae)
    x = torch.tensor([[0.2]]).double()
    assert kl_to_posterior(densities, x, quadrature(densities, x)).kl.isinf().all()


@pytest.mark.ci
def test_picture_of_the_posterior(trained):
    densities, x, _ = trained
    moments = posterior_moments(densities, x[:3])
    for k in range(3):
        mean, std = moments.mean[k], moments.covariance[k].diagonal().sqrt()
        bounds = [(float(m - 8 * s), float(m + 8 * s)) for m, s in zip(mean, std, strict=True)]
        log_p = log_posterior_grid(densities, x[k : k + 1], bounds, 81, max_bytes=2**18)
        area = math.prod((high - low) / 80 for low, high in bounds)
        assert abs(log_p.exp().sum().item() * area - 1) < 0.02
        first = torch.linspace(*bounds[0], 81, dtype=torch.float64)
        assert abs((log_p[0].exp().sum(1) @ first).item() * area - mean[0].item()) < 0.1 * std[0]


# ----------------------------------------------------------------------------------------------- the parts


def test_cheapest_spends_each_budget_on_the_least():
    rows = torch.tensor([1, 0, 1, 0, 1])
    cost = torch.tensor([0.5, 3.0, 0.4, 1.0, 0.3]).double()
    mask = cheapest(rows, cost.log(), torch.tensor([1.5, 0.75]).double().log())
    assert mask.tolist() == [False, False, True, True, True]


def test_log_sums_far_outside_floating_point():
    sums = LogSums(2, torch.device("cpu"), width=2)
    terms = torch.tensor([[1.0, 3.0], [1.0, 6.0]]).double()
    sums.add(torch.tensor([0, 0]), torch.tensor([-9000.0, -9000.0]).double(), terms)
    sums.add(torch.tensor([1]), torch.tensor([-4.0]).double(), terms[:1])
    sums.add(torch.tensor([0]), torch.tensor([9000.0]).double(), terms[:1])
    torch.testing.assert_close(sums.log(), torch.tensor([9000.0, -4.0]).double())
    torch.testing.assert_close(sums.ratios(), torch.tensor([[3.0], [3.0]]).double())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_rule_integrates_polynomial_exponents(dim):
    rule = CellRule(dim, 6, 24, torch.zeros(1, dtype=torch.float64))
    centre, width = torch.linspace(-0.2, 0.3, dim).double(), 0.12
    f = (-0.5 * ((rule.nodes - centre) / width).square()).sum(-1)[None]
    measured = rule.measure(f, rule.log_weights + dim * math.log(2))
    expected = torch.tensor([dim * math.log(width * math.sqrt(2 * math.pi))]).double()
    torch.testing.assert_close(measured.log_mass, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(measured.moments[0, :dim], centre, rtol=0, atol=1e-6)
    point = torch.linspace(0.1, 0.6, dim).double()[None]
    value = rule.interpolate(measured, point, torch.tensor([0]))
    torch.testing.assert_close(value, (-0.5 * ((point - centre) / width).square()).sum(-1))


def test_shells_cover_the_plane_once():
    rule = CellRule(2, 6, 10, torch.zeros(1, dtype=torch.float64))
    region = Region(normal_prior(2)(), 0.5, rule.fine, rule.log_weights)
    assert abs(region.prior_mass - 1) < 1e-9
    cells = Cells.joined([region.inner, *region.shells[:2]])
    low, high = (cells.centre - cells.half).amin(0), (cells.centre + cells.half).amax(0)
    torch.testing.assert_close(cells.log_volume().logsumexp(0), (high - low).log().sum())
    # beyond the box of half-width R: about 4 (1 - Phi(R)) in two dimensions
    reach = region.inner.centre.amax(0) + region.inner.half[0]
    exact = math.log(2) + torch.special.log_ndtr(-reach).logsumexp(0)
    assert abs(region.log_beyond[0] - exact) < 0.5


def test_a_support_that_says_nothing_is_the_whole_space():
    class Mute:
        @property
        def support(self):
            raise NotImplementedError

    low, high = bounds(Mute(), torch.zeros(2))
    assert low.tolist() == [-math.inf] * 2
    assert high.tolist() == [math.inf] * 2
    positive = dist.Gamma(torch.ones(2), torch.ones(2)).to_event(1)
    low, high = bounds(positive, torch.zeros(2))
    assert (low.tolist(), high.tolist()) == ([0.0, 0.0], [math.inf, math.inf])


# ------------------------------------------------------------------------------------------------ refusals


def test_refusals(trained):
    densities, x, _ = trained
    model = LinearGaussian.random(latent_dim=2)
    with pytest.raises(ValueError, match="tolerance is 0; expected"):
        quadrature(densities, x, tolerance=0)
    of_program = ProgramDensities((densities.vae.model, densities.vae.guide), x)
    with pytest.raises(TypeError, match="ProgramDensities; it needs the densities of a VAE"):
        quadrature(of_program, x)
    with pytest.raises(ValueError, match="latent of 4 dimensions; expected at most 3"):
        quadrature(VAEDensities(LinearGaussian.random(latent_dim=4).vae()), model.sample(2))
    lost = lambda z: dist.Normal(z * math.nan, 1.0, validate_args=False).to_event(1)  # noqa: E731
    with pyro.validation_enabled(False):
        nan = foreign(normal_prior(1), lost, torch.zeros(1))
        with pytest.raises(ValueError, match="the likelihood is NaN"):
            quadrature(nan, torch.zeros(2, 1).double())
    with pytest.raises(ValueError, match="expected 2 pairs"):
        log_posterior_grid(densities, x, [(-1, 1)], 10)
    with pytest.raises(ValueError, match="4 dimensions; expected 1 or 2"):
        log_posterior_grid(VAEDensities(LinearGaussian.random(latent_dim=4).vae()), model.sample(2), [(-1, 1)] * 4, 10)
    with pytest.raises(ValueError, match="those of the same data"):
        kl_to_posterior(densities, x, quadrature(densities, x[:2]))


# ------------------------------------------------------------------------------------------ the real thing


@pytest.mark.slow
@pytest.mark.data
def test_mnist(real_data):
    """Three epochs of the article's model on binarised MNIST; 200 test digits against a fine uniform grid."""
    import ppl_vae

    digits = data.load("MNIST", binarize="threshold", root=real_data)
    vae = VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([150, 300, 500])),
        posterior=posteriors.DiagonalNormal(networks.MLP([500, 300, 150]), scale="std"),
    )
    ppl_vae.fit(vae, digits, epochs=3, compile="off")
    densities, x = VAEDensities(vae), digits.test.x[:200]
    evidence = quadrature(densities, x)
    holds(evidence, brute_force(densities, x, 8.0, 0.02))  # beyond 6 lie 9% of one digit's mass
