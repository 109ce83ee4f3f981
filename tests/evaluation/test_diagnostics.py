"""Rate, KL per dimension, active units, the collapse alarm, ELBO surgery, bits per dimension."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import nn

from ppl_vae import VAE, likelihoods, posteriors, priors
from ppl_vae.evaluation.bits import bits_per_dim
from ppl_vae.evaluation.diagnostics import LatentUse, kl_per_dimension, latent_use
from ppl_vae.evaluation.elbo import elbo
from ppl_vae.evaluation.surgery import aggregate_posterior, mixture_score, surgery
from ppl_vae.evidence.densities import VAEDensities


class Encoded:
    """Densities of a foreign kind: q(z|x) and p(z) given outright; x holds the rows of q."""

    def __init__(self, q, p=None) -> None:
        self.q, self.latent_dim = q, q.event_shape[0]
        self.p = p or dist.Normal(torch.zeros(self.latent_dim).double(), 1.0).to_event(1)

    def prior(self):
        return self.p

    def posterior(self, x):
        return self.q

    def prior_sample(self, x, size):
        return self.p.sample((size, len(x)))

    def log_prior(self, x, z):
        return self.p.log_prob(z)


def diagonal(mean, std) -> Encoded:
    return Encoded(dist.Normal(mean.double(), std.double()).to_event(1))


def some(n: int = 40, d: int = 3) -> Encoded:
    torch.manual_seed(0)
    return diagonal(torch.randn(n, d), 0.2 + torch.rand(n, d))


def rows(n: int) -> torch.Tensor:
    return torch.zeros(n, 1).double()


def marginal_distance(q, p, n: int = 20_001) -> torch.Tensor:
    """KL of one-dimensional marginals by the trapezoid rule, q and p given as functions of z (n,) -> (n,)."""
    z = torch.linspace(-12, 12, n, dtype=torch.float64)
    log_q = q(z)
    return (log_q.exp() * (log_q - p(z))).sum() * (z[1] - z[0])


# KL per dimension


def test_kl_per_dimension_sums_to_the_rate():
    model = LinearGaussian.random(latent_dim=3)
    densities, x = VAEDensities(model.vae()), model.sample(20)
    kl = kl_per_dimension(densities, x)
    mean, variance = x @ model.encoder_weight.T + model.encoder_bias, model.std.square()
    torch.testing.assert_close(kl, 0.5 * (mean.square() + variance - 1 - variance.log()), rtol=1e-10, atol=0)
    torch.testing.assert_close(kl.sum(-1), elbo(densities, x).rate, rtol=1e-10, atol=0)


def test_marginals_of_a_full_covariance():
    """KL per dimension leaves out what the correlations cost: their sum is below the whole."""
    factor = torch.tensor([[0.5, 0.0], [0.4, 0.3]], dtype=torch.float64).expand(4, 2, 2)
    q = dist.MultivariateNormal(torch.ones(4, 2).double(), scale_tril=factor)
    kl = kl_per_dimension(Encoded(q), rows(4))
    variance = torch.tensor([0.25, 0.25], dtype=torch.float64)
    expected = 0.5 * (1 + variance - 1 - variance.log())
    torch.testing.assert_close(kl, expected.expand(4, 2), rtol=1e-10, atol=0)
    p = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    assert (kl.sum(-1) < torch.distributions.kl_divergence(q, p)).all()


def test_sampled_marginals_of_a_mixture_prior():
    weights = dist.Categorical(torch.tensor([0.3, 0.7]).double())
    parts = dist.Normal(torch.tensor([[-2.0, 0.0], [1.0, 3.0]]).double(), 0.5).to_event(1)
    encoded = Encoded(some(10, 2).q, dist.MixtureSameFamily(weights, parts))
    kl = kl_per_dimension(encoded, rows(10), num_samples=20_000)
    for n in (0, 7):
        for u in range(2):
            q = dist.Normal(encoded.q.base_dist.loc[n, u], encoded.q.base_dist.scale[n, u])
            component = dist.Normal(parts.base_dist.loc[:, u], 0.5)
            exact = marginal_distance(
                q.log_prob, lambda z, c=component: (c.log_prob(z[:, None]) + weights.logits).logsumexp(-1)
            )
            # log q - log p has a standard deviation of a few nats here: 5 sd / sqrt(20,000)
            assert kl[n, u].item() == pytest.approx(exact.item(), abs=5 * 3 / 20_000**0.5)


def test_marginals_from_samples_alone():
    """A posterior without known marginals: a log-normal, through a transform."""
    base = dist.Normal(torch.zeros(3, 2).double(), torch.tensor([[0.3, 0.6]]).double().expand(3, 2)).to_event(1)
    q = dist.TransformedDistribution(base, [torch.distributions.transforms.ExpTransform()])
    kl = kl_per_dimension(Encoded(q), rows(3), num_samples=5000)
    for u, scale in enumerate((0.3, 0.6)):
        z = torch.linspace(1e-4, 30, 300_000, dtype=torch.float64)
        log_q = torch.distributions.LogNormal(0.0, scale).log_prob(z)
        exact = ((log_q.exp() * (log_q - dist.Normal(0.0, 1.0).log_prob(z))).sum() * (z[1] - z[0])).item()
        # bias of the spacings, below 0.01 at K = 5000, and noise of sd about 1.5 / sqrt(5000)
        assert kl[:, u].mean().item() == pytest.approx(exact, abs=0.01 + 5 * 1.5 / 15_000**0.5)


def test_prior_without_marginals_is_refused():
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [torch.distributions.transforms.ExpTransform()]
    )
    with pytest.raises(ValueError, match="marginals of the prior"):
        kl_per_dimension(Encoded(some(4, 2).q, flow), rows(4))


# use of the latents


def test_a_healthy_encoder_raises_no_alarm():
    use = latent_use(some(200), rows(200))
    assert use.alarms == ()
    assert use.num_active == 3
    torch.testing.assert_close(use.mean_variance, some(200).q.mean.var(0))
    assert 2.5 < use.effective_dim <= 3


def test_effective_dim():
    use = lambda *kl: LatentUse(torch.tensor(kl), torch.zeros(len(kl)), ()).effective_dim  # noqa: E731
    assert use(2.0, 2.0, 2.0) == pytest.approx(3)
    assert use(2.0, 0.0, 0.0) == pytest.approx(1)
    assert use(0.0, 0.0) == 0
    assert use(1.0, 3.0) == pytest.approx(math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)), rel=1e-6)


def test_one_unused_dimension_is_named():
    torch.manual_seed(0)
    mean, std = torch.randn(100, 3), torch.full((100, 3), 0.3)
    mean[:, 1], std[:, 1] = 0.01 * mean[:, 1], 1.0
    use = latent_use(diagonal(mean, std), rows(100))
    assert use.active.tolist() == [True, False, True]
    assert len(use.alarms) == 1
    assert use.alarms[0].startswith("z_2 is unused: KL 0.0")


def test_a_dimension_that_costs_and_carries_nothing_is_named():
    torch.manual_seed(0)
    mean, std = torch.randn(100, 2), torch.full((100, 2), 0.3)
    mean[:, 0] = 1.0
    (alarm,) = latent_use(diagonal(mean, std), rows(100)).alarms
    assert "z_1 is the same for all data" in alarm


def test_a_code_in_the_variance_is_no_alarm():
    torch.manual_seed(0)
    use = latent_use(diagonal(torch.zeros(100, 1), 0.1 + torch.rand(100, 1)), rows(100))
    assert use.alarms == ()
    assert use.num_active == 0  # Burda's measure does not see it, as documented


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [(0.0, 1.0, "equals the prior for all data"), (2.0, 0.5, "the same for all data, and costs 4.6")],
)
def test_collapse(mean, std, words):
    (alarm,) = latent_use(diagonal(torch.full((50, 2), mean), torch.full((50, 2), std)), rows(50)).alarms
    assert alarm.startswith("posterior collapse")
    assert words in alarm


def test_collapse_of_a_vae():
    encoder = nn.Linear(12, 8)
    nn.init.zeros_(encoder.weight)
    nn.init.zeros_(encoder.bias)
    vae = VAE(
        (12,),
        prior=priors.StandardNormal(4),
        likelihood=likelihoods.Bernoulli(nn.Linear(4, 12)),
        posterior=posteriors.DiagonalNormal(encoder, scale="log_var"),
    )
    x = torch.bernoulli(torch.full((30, 12), 0.5))
    use = latent_use(VAEDensities(vae), x)
    assert not use.mean_variance.requires_grad
    assert use.num_active == 0
    assert use.effective_dim == 0
    assert "posterior collapse" in use.alarms[0]
    with pytest.raises(ValueError, match="at least 2"):
        latent_use(VAEDensities(vae), x[:1])


# surgery


def test_surgery_adds_up_and_gives_the_rate():
    encoded = some(60)
    parts = surgery(encoded, rows(60), num_samples=200)
    assert parts.rate == pytest.approx(parts.mutual_information + parts.marginal_kl, rel=1e-12)
    mean, std = encoded.q.mean, encoded.q.stddev
    rate = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1).mean().item()
    assert abs(parts.rate - rate) < 5 * parts.rate_error


def test_surgery_of_one_dimension_by_quadrature():
    encoded = some(15, 1)
    parts = surgery(encoded, rows(15), num_samples=2000)
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_q = encoded.q.log_prob(z[:, None, None])  # (G, N)
    whole = log_q.logsumexp(-1) - math.log(15)
    step = z[1] - z[0]
    information = (log_q.exp() * (log_q - whole[:, None])).sum(0).mean() * step
    marginal = (whole.exp() * (whole - dist.Normal(0.0, 1.0).log_prob(z))).sum() * step
    assert abs(parts.mutual_information - information.item()) < 5 * parts.mutual_information_error
    assert abs(parts.marginal_kl - marginal.item()) < 5 * parts.marginal_kl_error


def test_identical_posteriors_tell_nothing():
    parts = surgery(diagonal(torch.ones(30, 2), torch.full((30, 2), 0.5)), rows(30))
    assert parts.mutual_information == pytest.approx(0, abs=1e-12)
    assert not parts.saturated


def test_separate_posteriors_tell_log_n():
    encoded = diagonal(torch.arange(30.0)[:, None], torch.full((30, 1), 1e-3))
    parts = surgery(encoded, rows(30))
    assert parts.mutual_information == pytest.approx(math.log(30), rel=1e-8)  # (z / std)^2 is 1e9
    assert parts.ceiling == math.log(30)
    assert parts.saturated


@pytest.mark.parametrize("max_bytes", [2**10, 2**27])
def test_mixture_score_is_the_explicit_sum(max_bytes):
    torch.manual_seed(0)
    z = torch.randn(50, 3).double()
    narrow = diagonal(5 + torch.randn(40, 3), 1e-3 + 0.01 * torch.rand(40, 3)).q
    full = dist.MultivariateNormal(
        torch.randn(40, 3).double(), scale_tril=torch.eye(3).double() + 0.2 * torch.ones(3, 3).tril(-1)
    )
    for q in (some(40).q, narrow, full, dist.Laplace(torch.randn(40, 3).double(), 1.0).to_event(1)):
        explicit = torch.stack([q.log_prob(point) for point in z]).logsumexp(-1) - math.log(40)
        torch.testing.assert_close(mixture_score(q, max_bytes)(z), explicit, rtol=1e-9, atol=1e-9)


def test_aggregate_posterior_that_is_the_prior():
    """Posteriors of a true model: q(z) over its own data is the prior."""
    torch.manual_seed(0)
    mean = 0.8 * torch.randn(4000, 2)
    found = aggregate_posterior(diagonal(mean, torch.full((4000, 2), 0.6)), rows(4000), num_draws=4000, level=0.05)
    # the threshold, a quantile, is itself noisy by sqrt(0.05 * 0.95 / 4000)
    assert abs(found.empty_share - 0.05) < 5 * 2**0.5 * found.empty_share_error + 0.01
    torch.testing.assert_close(found.variance, torch.ones(2).double(), atol=0.1, rtol=0)
    torch.testing.assert_close(found.prior_variance, torch.ones(2).double(), atol=0.12, rtol=0)


def test_aggregate_posterior_on_half_the_prior():
    """All data on the right: the left half of the prior is empty."""
    torch.manual_seed(0)
    mean = torch.randn(3000, 1).abs()
    found = aggregate_posterior(diagonal(mean, torch.full((3000, 1), 0.01)), rows(3000), num_draws=5000)
    # the edge of the data is blurred by the posteriors' width: P(-0.03 < z < 0.03) = 0.024
    assert abs(found.empty_share - 0.5) < 5 * found.empty_share_error + 0.024
    exact = mean.double().var(0, correction=0) + 1e-4
    torch.testing.assert_close(found.variance, exact)
    torch.testing.assert_close(found.mean, mean.double().mean(0))


def test_surgery_and_aggregate_refuse_and_leave_the_random_state():
    encoded, before = some(5), torch.random.get_rng_state()
    surgery(encoded, rows(5))
    aggregate_posterior(encoded, rows(5), num_draws=7)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="at least 2 of each"):
        surgery(encoded, rows(5), num_samples=1)
    with pytest.raises(ValueError, match="level is 2"):
        aggregate_posterior(encoded, rows(5), level=2)


# bits


def test_bits_of_coins_and_bytes():
    coin = dist.Bernoulli(torch.full((6,), 0.5)).to_event(1)
    x = coin.sample((4,))
    torch.testing.assert_close(
        bits_per_dim(coin.log_prob(x).double(), x, coin), torch.ones(4).double(), rtol=1e-6, atol=0
    )
    levels = torch.randint(256, (4, 100)).double()
    x = (levels + torch.rand(4, 100)) / 256
    flat = dist.Uniform(torch.zeros(100).double(), 1.0).to_event(1)
    torch.testing.assert_close(bits_per_dim(flat.log_prob(x), x, flat, bins=256), torch.full((4,), 8.0).double())


def test_bits_bound_those_of_the_integers():
    """Theis et al.: with a density that is flat within each level, bits are those of the levels exactly."""
    shares = torch.tensor([0.5, 0.25, 0.125, 0.125]).double()
    levels = dist.Categorical(shares).sample((1, 4000))
    x = (levels + torch.rand(1, 4000)) / 4
    log_p = (shares[levels] * 4).log().sum(-1)
    like = SimpleNamespace(support=torch.distributions.constraints.unit_interval)
    expected = -shares[levels].log2().mean(-1)
    torch.testing.assert_close(bits_per_dim(log_p, x, like, bins=4), expected)


@pytest.mark.parametrize(
    ("x", "likelihood", "bins", "message"),
    [
        (
            torch.full((2, 4), 0.5),
            dist.Bernoulli(torch.full((4,), 0.5), validate_args=False),
            None,
            "outside the support",
        ),
        (torch.ones(2, 4), dist.Bernoulli(torch.full((4,), 0.5)), 256, "leave it out"),
        (torch.rand(2, 4), dist.Normal(torch.zeros(4), 1.0), None, "density"),
        (torch.randn(20, 4), dist.Normal(torch.zeros(4), 1.0), 256, r"expected data\s+dequantised"),
        (torch.randint(256, (9, 50)) / 255, dist.Normal(torch.zeros(50), 1.0), 256, "lie on a grid of 255"),
        (torch.randint(256, (9, 50)) / 256, dist.Normal(torch.zeros(50), 1.0), 256, "lie on a grid of 256"),
        (torch.rand(2, 4), dist.Normal(torch.zeros(4), 1.0), 0, "positive integer"),
    ],
)
def test_bits_that_mean_nothing_are_refused(x, likelihood, bins, message):
    with pytest.raises(ValueError, match=message):
        bits_per_dim(torch.zeros(len(x)), x, likelihood.to_event(1), bins=bins)
