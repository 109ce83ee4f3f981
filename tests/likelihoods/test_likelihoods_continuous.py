"""Likelihoods of continuous data against quadrature, SciPy and closed forms; extremes of float32; where they start."""

from __future__ import annotations

import functools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch

from ppl_vae import SVI, VAE, data, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.distributions.continuous_bernoulli import ContinuousBernoulli, logit_of_mean
from ppl_vae.distributions.student_t import StudentT, _log_normaliser
from ppl_vae.networks import Binding

LOGITS = [0.0, 1e-9, -1e-4, 0.0299, 0.0301, -0.5, 0.9999, 1.0001, -2.5, 17.0, -40.0, 300.0]
EPS = torch.finfo(torch.float32).eps
DOUBLE = {"dtype": torch.float64}


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)


def built(likelihood, x_shape=(3,), latent=2, train=None):
    likelihood.bind(Binding(x_shape, (latent,), train=train))
    return likelihood


def moments(logit):
    """Normaliser, mean and variance of exp(logit x) on [0, 1], by quadrature, scaled by its largest value."""
    peak = max(logit, 0.0)
    points = [1 / abs(logit), 10 / abs(logit)] if abs(logit) > 20 else []
    points = [1 - p if logit > 0 else p for p in points]

    def integral(f):
        g = lambda x: f(x) * math.exp(logit * x - peak)  # noqa: E731
        return scipy.integrate.quad(g, 0, 1, points=points or None, epsabs=0, epsrel=1e-13)[0]

    total = integral(lambda x: 1.0)
    mean = integral(lambda x: x) / total
    return peak + math.log(total), mean, integral(lambda x: (x - mean) ** 2) / total


# Continuous Bernoulli


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_against_quadrature(logit):
    log_total, mean, variance = moments(logit)
    p = ContinuousBernoulli(torch.tensor(logit, **DOUBLE))
    x = torch.tensor([0.0, 0.3, 0.7, 1.0], **DOUBLE)
    torch.testing.assert_close(p.log_prob(x), logit * x - log_total, rtol=1e-10, atol=1e-12)
    assert p.mean.item() == pytest.approx(mean, rel=1e-10)
    assert p.variance.item() == pytest.approx(variance, rel=1e-10)
    assert p.entropy().item() == pytest.approx(log_total - logit * mean, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_derivatives(logit):
    """d log p / d logit = x - mean, d mean / d logit = variance, d quantile / d logit = - (d cdf / d logit) / p."""
    logit = torch.tensor(logit, **DOUBLE, requires_grad=True)
    p, x = ContinuousBernoulli(logit), torch.tensor(0.3, **DOUBLE)
    torch.testing.assert_close(torch.autograd.grad(p.log_prob(x), logit)[0], (x - p.mean).detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.autograd.grad(p.mean, logit)[0], p.variance.detach(), rtol=1e-9, atol=0)
    quantile = p.icdf(torch.tensor(0.4, **DOUBLE))
    (slope,) = torch.autograd.grad(quantile, logit)
    (of_cdf,) = torch.autograd.grad(p.cdf(quantile.detach()), logit)
    torch.testing.assert_close(-of_cdf / p.log_prob(quantile).exp(), slope, rtol=1e-10, atol=0)
    step = 1e-4 * max(1.0, abs(logit.item()))
    sides = [ContinuousBernoulli(logit.detach() + s * step).icdf(torch.tensor(0.4, **DOUBLE)) for s in (1, -1)]
    assert slope.item() == pytest.approx(((sides[0] - sides[1]) / (2 * step)).item(), rel=1e-5)


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_quantiles_invert_the_distribution_function(logit):
    p, u = ContinuousBernoulli(torch.tensor(logit, **DOUBLE)), torch.linspace(0, 1, 41, **DOUBLE)
    x = p.icdf(u)
    assert ((x >= 0) & (x <= 1)).all()
    torch.testing.assert_close(p.cdf(x), u, rtol=1e-10, atol=1e-12)
    if abs(logit) < 40:
        inside = p.log_prob(torch.linspace(0, 0.6, 2001, **DOUBLE)).exp()
        assert torch.trapezoid(inside, dx=0.0003).item() == pytest.approx(p.cdf(torch.tensor(0.6)).item(), rel=1e-5)


@pytest.mark.parametrize("logit", [0.0, 0.01, -3.0, 30.0, -1e6])
def test_continuous_bernoulli_draws(logit):
    n = 100_000
    draws = ContinuousBernoulli(torch.tensor(logit)).expand((2, 3)).sample((n,))
    assert draws.shape == (n, 2, 3)
    assert ((draws >= 0) & (draws <= 1)).all()
    p = ContinuousBernoulli(torch.tensor(logit, **DOUBLE))
    u = p.cdf(draws[:, 0, 0].double()).sort().values
    assert (u - (torch.arange(n) + 0.5) / n).abs().max() * math.sqrt(n) < 1.95  # Kolmogorov: once in a thousand


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 0.03, 1.0, 16.0, 88.0, 100.0, 1e6, 1e30])
def test_continuous_bernoulli_in_float32(size):
    """Where torch's own saturates (logit 16), and beyond."""
    logits = torch.tensor([size, -size], requires_grad=True)
    p = ContinuousBernoulli(logits)
    for value in (0.0, 1e-6, 0.25, 1.0):
        x = torch.tensor(value)
        log_prob = p.log_prob(x)
        expected = ContinuousBernoulli(logits.double()).log_prob(x.double())
        torch.testing.assert_close(log_prob.double(), expected, rtol=16 * EPS, atol=2 * EPS)  # some ten operations
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, x - p.mean.detach(), rtol=1e-5, atol=2e-7)
    assert p.rsample((1000,)).isfinite().all()
    assert torch.autograd.grad(p.rsample((1000,)).sum(), logits)[0].isfinite().all()
    exact = ContinuousBernoulli(logits.double())
    torch.testing.assert_close(p.mean.double(), exact.mean, rtol=16 * EPS, atol=0)
    torch.testing.assert_close(p.variance.double(), exact.variance, rtol=1e-5, atol=1e-37)


def test_torch_saturates_where_this_does_not():
    ours, torchs = ContinuousBernoulli(torch.tensor(100.0)), dist.ContinuousBernoulli(logits=torch.tensor(100.0))
    one = torch.tensor(1.0)
    assert ours.log_prob(one).item() == pytest.approx(math.log(100), rel=1e-6)
    assert torchs.log_prob(one).item() < math.log(100) - 1


def test_the_mean_of_a_continuous_bernoulli_is_inverted():
    mean = torch.tensor([1e-3, 0.1, 0.5, 0.5 + 1e-9, 0.9, 0.999], **DOUBLE)
    torch.testing.assert_close(ContinuousBernoulli(logit_of_mean(mean)).mean, mean, rtol=1e-10, atol=0)


def test_continuous_bernoulli_refuses_what_lies_outside():
    with pytest.raises(ValueError, match="within the support"):
        ContinuousBernoulli(torch.zeros(2), validate_args=True).log_prob(torch.tensor([0.5, 1.1]))


# Heavy tails


@pytest.mark.parametrize("df", [1.5, 4.0, 30.0, 1999.0, 2001.0, 1e6])
def test_student_t_against_scipy(df):
    x = torch.tensor([-1e6, -3.0, 0.2, 0.21, 5.0, 1e12], **DOUBLE)
    p = StudentT(df, torch.full((6,), 0.2, **DOUBLE), torch.full((6,), 0.7, **DOUBLE))
    expected = scipy.stats.t.logpdf(x.numpy(), df, loc=0.2, scale=0.7)
    # SciPy's difference of two lgammas loses digits at many degrees of freedom
    torch.testing.assert_close(p.log_prob(x), torch.from_numpy(expected), rtol=1e-10 if df < 1e4 else 1e-9, atol=1e-9)


def test_student_t_with_many_degrees_of_freedom_is_normal():
    x, zero, one = torch.linspace(-3, 3, 7, **DOUBLE), torch.zeros(7, **DOUBLE), torch.ones(7, **DOUBLE)
    torch.testing.assert_close(
        StudentT(1e14, zero, one).log_prob(x), dist.Normal(zero, one).log_prob(x), rtol=1e-10, atol=0
    )
    for df in (1999.0, 2000.0, 1e6, 1e9, 1e13, 1e17):
        above = StudentT(df, zero, one).entropy() - dist.Normal(zero, one).entropy()
        torch.testing.assert_close(above, zero + 1 / df + 0.25 / df**2, rtol=0, atol=df**-3 + 1e-13)
    assert _log_normaliser(2000 * (1 - 1e-12)) == pytest.approx(_log_normaliser(2000), rel=1e-13)


@pytest.mark.parametrize("make", [likelihoods.Laplace, likelihoods.StudentT])
def test_heavy_tails_in_float32(make):
    likelihood = built(make(networks.MLP([5])))
    z = torch.zeros(1, 2)
    p = likelihood(z)
    for size in (0.0, 1e-30, 1e3, 1e19, 1e30):
        x = torch.full((1, 3), size, requires_grad=True)
        log_prob = p.log_prob(x)
        exact = built(make(networks.MLP([5])))
        exact.load_state_dict(likelihood.state_dict())
        torch.testing.assert_close(
            log_prob.double(), exact.double()(z.double()).log_prob(x.double()), rtol=16 * EPS, atol=0
        )
        assert torch.autograd.grad(log_prob.sum(), x)[0].isfinite().all()


# Beta


@pytest.mark.parametrize("parameters", ["mean_precision", "concentrations"])
def test_beta_against_scipy(parameters, float64):
    likelihood = built(likelihoods.Beta(networks.MLP([5]), parameters))
    z = torch.randn(50, 2)
    p = likelihood(z)
    a, b = p.base_dist.concentration1, p.base_dist.concentration0
    x = p.sample()
    expected = scipy.stats.beta.logpdf(x.numpy(), a.detach().numpy(), b.detach().numpy()).sum(1)
    torch.testing.assert_close(p.log_prob(x).detach(), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
    at_zero = likelihood._pixels(torch.zeros(1), torch.zeros(1))
    at_zero = torch.cat([at_zero.concentration1, at_zero.concentration0])
    torch.testing.assert_close(at_zero, torch.ones(2), rtol=1e-10, atol=0)  # uniform


@pytest.mark.parametrize("parameters", ["mean_precision", "concentrations"])
@pytest.mark.parametrize("raw", [-1e4, -100.0, 0.0, 100.0, 1e4, 1e30])
def test_beta_in_float32(parameters, raw):
    likelihood = likelihoods.Beta(torch.nn.Identity(), parameters)
    for other in (-raw, 0.0, raw):
        z = torch.tensor([[raw, other]], requires_grad=True)
        p = likelihood(z)
        for value in (1e-30, 2**-17 / 256, 0.5, 1 - 2**-24):
            x = torch.tensor([[value]])
            log_prob = p.log_prob(x)
            exact = likelihood(z.double()).log_prob(x.double())
            # the concentrations themselves have seven digits
            size = (p.base_dist.concentration1.detach().double() * math.log(value)).abs().item() + 2e6
            assert abs(log_prob.item() - exact.item()) < 1e-6 * size
            assert torch.autograd.grad(log_prob.sum(), z, retain_graph=True)[0].isfinite().all()
        draws = p.sample((1000,))
        assert p.support.check(draws).all()
        assert p.mean.isfinite().all()


def test_the_edges_are_outside_a_beta_and_dequantised_pixels_inside():
    pixels = torch.randint(256, (60, 4), dtype=torch.uint8)
    pixels[0], pixels[1] = 0, 255

    def vae(x):
        posterior = posteriors.DiagonalNormal(networks.MLP([3]))
        return VAE(x, prior=priors.StandardNormal(2), likelihood=likelihoods.Beta(), posterior=posterior)

    plain = data.from_tensors(pixels, test=1, validation=1)
    with pytest.raises(ValueError, match=r"outside the support of Beta.*neither 0 nor 1: dequantise"):
        vae(plain).check_support(plain)
    fine = data.from_tensors(pixels, test=1, validation=1, dequantize=True)
    assert vae(fine).check_support(fine) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": 0.0}, "precision is 0.0"),
        ({"precision": 1e6}, "half is not between floor"),
        ({"floor": 2.0}, "half is not between floor"),
        ({"parameters": "mean"}, "expected one of mean_precision"),
    ],
)
def test_beta_refuses(arguments, message):
    with pytest.raises(ValueError, match=f"likelihood Beta: .*{message}"):
        likelihoods.Beta(**arguments)


# Scales


@pytest.mark.parametrize("make", [likelihoods.Normal, likelihoods.Laplace, likelihoods.StudentT])
@pytest.mark.parametrize("learn", ["fixed", "global", "pixel", "datum"])
def test_the_scale_begins_where_it_is_told(make, learn):
    count = 2 if learn == "datum" else 1
    network = torch.nn.Linear(2, 3 * count)
    torch.nn.init.zeros_(network.bias)
    likelihood = built(make(network, scale=0.05, learn=learn, floor=0.01))
    p = likelihood(torch.zeros(4, 2)).base_dist
    torch.testing.assert_close(p.scale, torch.full((4, 3), 0.05))
    learned = {name: tuple(v.shape) for name, v in likelihood.named_parameters() if "raw_scale" in name}
    assert learned == {"global": {"raw_scale": ()}, "pixel": {"raw_scale": (3,)}}.get(learn, {})


@pytest.mark.parametrize("learn", ["global", "pixel", "datum"])
def test_a_learned_scale_has_a_floor_and_a_gradient(learn):
    likelihood = built(likelihoods.Normal(torch.nn.Linear(2, 6 if learn == "datum" else 3), learn=learn, floor=0.02))
    for parameter in likelihood.parameters():
        torch.nn.init.constant_(parameter, -30.0)
    p = likelihood(torch.ones(1, 2))
    torch.testing.assert_close(p.base_dist.scale, torch.full((1, 3), 0.02))
    p.log_prob(p.mean.detach() + 1.0).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in likelihood.parameters())


@pytest.mark.parametrize(("learn", "expected"), [("global", 0.7211), ("pixel", None)])
def test_learned_scales_find_those_of_the_data(learn, expected):
    torch.manual_seed(0)
    x = torch.randn(4000, 2) * torch.tensor([0.2, 1.0])
    network = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(network.weight)
    likelihood = built(likelihoods.Normal(network, learn=learn), (2,))
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-likelihood(torch.zeros(1, 2)).log_prob(x).mean()).backward()
        optimizer.step()
    best = x.std(0, correction=0)
    best = best if learn == "pixel" else best.square().mean().sqrt().expand(2)
    assert expected is None or best[0].item() == pytest.approx(expected, rel=0.02)
    torch.testing.assert_close(likelihood(torch.zeros(1, 2)).base_dist.scale[0], best, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "scale is 0.0"),
        ({"floor": -1.0}, "floor is -1.0"),
        ({"learn": "globl"}, "did you mean global"),
        ({"learn": "global", "scale": 1e-4}, "not above the floor 0.001"),
    ],
)
@pytest.mark.parametrize("make", [likelihoods.Normal, likelihoods.Laplace, likelihoods.StudentT])
def test_scales_refuse(make, arguments, message):
    with pytest.raises(ValueError, match=f"likelihood {make.__name__}: .*{message}"):
        make(**arguments)


def test_a_scale_per_pixel_needs_sizes():
    with pytest.raises(RuntimeError, match="likelihood Normal has no sizes yet"):
        likelihoods.Normal(torch.nn.Linear(2, 3), learn="pixel")(torch.zeros(1, 2))


def test_student_t_refuses_a_law_without_mean():
    with pytest.raises(ValueError, match=r"df is 1\.0.*more than 1"):
        likelihoods.StudentT(df=1.0)


# The optimal sigma


def optimal(**arguments):
    return built(likelihoods.OptimalSigmaNormal(torch.nn.Linear(2, 3), **arguments))


def test_the_optimal_sigma_is_the_one_of_greatest_likelihood(float64):
    likelihood, z, x = optimal(), torch.randn(4, 7, 2), torch.randn(7, 3)
    mean = likelihood(z).mean
    sigma = (x - mean).square().mean().sqrt().item()
    found = likelihood(z).log_prob(x)
    torch.testing.assert_close(found, dist.Normal(mean, sigma).to_event(1).log_prob(x), rtol=1e-10, atol=0)
    for other in (0.99 * sigma, 1.01 * sigma):
        assert dist.Normal(mean, other).to_event(1).log_prob(x).sum() < found.sum()


def test_its_gradient_is_that_of_the_paper(float64):
    """Through the optimal sigma as well: its derivative is zero there."""
    likelihood, z, x = optimal(), torch.randn(7, 2), torch.randn(7, 3)
    weights = list(likelihood.parameters())
    ours = torch.autograd.grad(likelihood(z).log_prob(x).sum(), weights)
    (mean,) = likelihood.mean(z)
    sigma = (x - mean).square().mean().sqrt()
    papers = torch.autograd.grad(dist.Normal(mean, sigma).log_prob(x).sum(), weights)
    for one, other in zip(ours, papers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_evaluation_scores_a_density_and_moves_nothing(float64):
    likelihood, z = optimal(), torch.randn(7, 2)
    batches = [torch.randn(7, 3) for _ in range(3)]
    errors = []
    for x in batches:
        likelihood(z).log_prob(x)
        errors.append((x - likelihood(z).mean).square().mean())
    torch.testing.assert_close(likelihood.variance, torch.stack(errors).mean(), rtol=1e-10, atol=0)  # of few batches
    likelihood.eval()
    before = likelihood.variance.clone()
    together = likelihood(z).log_prob(batches[0])
    apart = torch.cat([likelihood(z[i : i + 1]).log_prob(batches[0][i : i + 1]) for i in range(7)])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=0)
    assert torch.equal(likelihood.variance, before)
    assert likelihood.num_batches == 3
    expected = dist.Normal(likelihood(z).mean, before.sqrt()).to_event(1).log_prob(batches[0])
    torch.testing.assert_close(together, expected, rtol=1e-10, atol=0)


def test_the_running_mean_forgets_with_its_momentum(float64):
    likelihood, z = optimal(momentum=0.5), torch.zeros(7, 2)
    for i in range(40):
        likelihood(z).log_prob(likelihood(z).mean + (3.0 if i < 20 else 2.0))
    assert likelihood.variance.item() == pytest.approx(4.0 + 5.0 * 0.5**20, rel=1e-10)


@pytest.mark.parametrize("batches", [0, 1])
@pytest.mark.parametrize("lost", [torch.full((7, 3), math.nan), torch.full((7, 3), 1e30), torch.zeros(0, 3)])
def test_a_batch_without_a_variance_leaves_no_trace(lost, batches):
    likelihood = optimal()
    for _ in range(batches):
        likelihood(torch.zeros(7, 2)).log_prob(torch.ones(7, 3))
    before = likelihood.variance.clone()
    likelihood._fit(lost)
    assert torch.equal(likelihood.variance, before)
    assert likelihood.num_batches == batches


def test_a_perfect_fit_meets_the_floor():
    likelihood, z = optimal(floor=0.05), torch.zeros(7, 2)
    x = likelihood(z).mean.detach()
    expected = 3 * (-math.log(0.05) - 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(likelihood(z).log_prob(x), torch.full((7,), expected))
    torch.testing.assert_close(likelihood.eval()(z).log_prob(x), torch.full((7,), expected))


def test_the_optimal_sigma_is_captured_and_a_validation_leaves_it_alone():
    x = torch.randn(16, 3)

    def run(level):
        torch.manual_seed(0)
        likelihood = likelihoods.OptimalSigmaNormal(networks.MLP([5]))
        posterior = posteriors.DiagonalNormal(networks.MLP([5]))
        vae = VAE((3,), prior=priors.StandardNormal(2), likelihood=likelihood, posterior=posterior)
        assert likelihood.num_batches == 0, "putting a VAE together is no training"
        svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-2), objectives.ELBO(2), compile=level)
        torch.manual_seed(1)
        losses = [svi.step(x) for _ in range(4)]
        before = likelihood.variance.clone()
        vae.reconstruct(x)
        vae.sample(3)
        vae.eval()
        svi.evaluate_loss(x)
        assert torch.equal(before, likelihood.variance)
        assert likelihood.num_batches == 4
        return losses, likelihood.variance, svi.why_eager

    captured, eager = run("graph"), run("off")
    assert captured[2] is None
    assert captured[0] == eager[0]
    assert torch.equal(captured[1], eager[1])


def test_momentum_is_a_weight():
    with pytest.raises(ValueError, match=r"momentum is 1\.5"):
        likelihoods.OptimalSigmaNormal(momentum=1.5)


# Where they start

GREY = {
    "Bernoulli": lambda network: likelihoods.Bernoulli(network, allow_grey=True, start_from_data=True),
    "ContinuousBernoulli": lambda network: likelihoods.ContinuousBernoulli(network, start_from_data=True),
    "Beta": lambda network: likelihoods.Beta(network, start_from_data=True),
    "Beta-concentrations": lambda network: likelihoods.Beta(
        network, "concentrations", precision=7.0, start_from_data=True
    ),
    "Normal": lambda network: likelihoods.Normal(network, start_from_data=True),
    "Normal-datum": lambda network: likelihoods.Normal(network, learn="datum", start_from_data=True),
    "OptimalSigmaNormal": lambda network: likelihoods.OptimalSigmaNormal(network, start_from_data=True),
    "Laplace": lambda network: likelihoods.Laplace(network, learn="pixel", start_from_data=True),
    "StudentT": lambda network: likelihoods.StudentT(network, start_from_data=True),
}


@pytest.mark.parametrize("make", GREY.values(), ids=GREY)
def test_means_start_at_those_of_the_data(make):
    x = torch.rand(200, 1, 2, 3) ** torch.linspace(0.2, 4, 6).view(1, 2, 3)
    x[:, 0, 0, 0] = 0.0  # a pixel that is never lit: its logit is finite
    train = data.from_tensors(x).train
    likelihood = built(make(networks.MLP([])), (1, 2, 3), train=train)
    grey = "Normal" not in repr(type(likelihood)) and not isinstance(
        likelihood, (likelihoods.Laplace, likelihoods.StudentT)
    )
    expected = train.x.mean(0).clamp(1e-3, 1 - 1e-3) if grey else train.x.mean(0)
    torch.testing.assert_close(likelihood.eval()(torch.zeros(1, 2)).mean[0], expected, rtol=2e-4, atol=1e-6)


def test_without_data_there_is_no_start():
    with pytest.raises(ValueError, match="likelihood ContinuousBernoulli starts from the training data"):
        built(likelihoods.ContinuousBernoulli(start_from_data=True))


def test_a_network_without_bias_cannot_start():
    train = data.from_tensors(torch.rand(50, 3)).train
    with pytest.raises(ValueError, match=r"likelihood Normal: .*no bias"):
        built(likelihoods.Normal(torch.nn.Linear(2, 3, bias=False), start_from_data=True), train=train)


# Together


def test_the_normaliser_matters():
    """The cross-entropy of grey values misses a normaliser of up to log 2 per pixel, here at every logit."""
    logits = torch.linspace(-8, 8, 33, **DOUBLE)
    x = torch.rand(33, **DOUBLE)
    entropy = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    missing = ContinuousBernoulli(logits).log_prob(x) - entropy
    expected = [math.log(scipy.special.expit(-t) * np.exp(moments(t)[0])) for t in logits.tolist()]
    torch.testing.assert_close(missing, -torch.tensor(expected, **DOUBLE), rtol=1e-10, atol=1e-12)
    assert missing.min().item() == pytest.approx(math.log(2))
