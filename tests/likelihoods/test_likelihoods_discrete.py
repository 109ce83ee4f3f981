"""Pixels on a grid and counts: masses, gradients, samples and starts, each against the same number found otherwise."""

from __future__ import annotations

import functools
import math
from decimal import Decimal, localcontext
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from ppl_vae import SVI, VAE, data, likelihoods, networks, objectives, posteriors, priors
from ppl_vae._distributions import measure
from ppl_vae.distributions import counts
from ppl_vae.distributions.discretized_logistic import DiscretizedLogistic, DiscretizedLogisticMixture
from ppl_vae.distributions.grid import Grid, GridBinomial, GridCategorical

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
MEANS = (-1e6, -5.0, -0.1, 0.0, 1e-3, 0.3, 127.5 / 255, 1.0, 1.1, 7.0, 1e6)  # beyond either edge, and at one
SCALES = (1e-6, 1e-4, 4e-3, 0.1, 1.0, 1e3, 1e6)


def grid(bins: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.arange(bins, dtype=dtype) / (bins - 1)


def moments(distribution: Any, points: Tensor) -> tuple[Tensor, Tensor]:
    mass = distribution.log_prob(points).exp()
    mean = (mass * points).sum()
    return mean, (mass * (points - mean) ** 2).sum()


def chi_square(samples: Tensor, points: Tensor, mass: Tensor) -> float:
    """The p-value of a histogram, points of small mass gathered in one cell."""
    observed = (samples[:, None] == points).sum(0).double().numpy()
    expected = mass.double().numpy() * len(samples)
    assert observed.sum() == len(samples) or expected.sum() < len(samples)
    large = expected >= 10
    rest = len(samples) - expected[large].sum(), len(samples) - observed[large].sum()
    cells = [*expected[large], max(rest[0], 1e-9)], [*observed[large], rest[1]]
    statistic = sum((o - e) ** 2 / e for e, o in zip(*cells, strict=True) if e >= 1)
    return float(stats.chi2.sf(statistic, large.sum()))


# The discretized logistic


@both
@pytest.mark.parametrize("bins", [2, 3, 17, 256])
def test_a_logistic_has_mass_one_on_any_grid(bins: int, dtype: torch.dtype) -> None:
    for mean in MEANS:
        for scale in SCALES:
            loc = torch.tensor(mean, dtype=dtype, requires_grad=True)
            log_scale = torch.tensor(scale, dtype=dtype).log().requires_grad_()
            log_mass = DiscretizedLogistic(loc, log_scale, bins).log_prob(grid(bins, dtype))
            assert log_mass.isfinite().all()
            assert all(g.isfinite() for g in torch.autograd.grad(log_mass.sum(), [loc, log_scale]))
            assert abs(log_mass.double().exp().sum() - 1) < (1e-6 if dtype == torch.float32 else 1e-12)


def decimal_mass(k: int, middle: Decimal, width: Decimal, bins: int) -> Decimal:
    def survival(j: int) -> Decimal:  # P(level >= j)
        if j <= 0 or j >= bins:
            return Decimal(int(j <= 0))
        return 1 / (1 + (-(middle - j + Decimal("0.5")) * width).exp())

    return survival(k) - survival(k + 1)


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_a_logistic_against_sixty_digits(bins: int) -> None:
    with localcontext() as context:
        context.prec = 60
        for mean in (-0.1, 0.0, 0.3, 127.5 / 255, 1.25):
            for scale in (4e-3, 0.05, 1.0, 1e4):
                loc, log_scale = torch.tensor(mean).double(), torch.tensor(scale).double().log()
                log_mass = DiscretizedLogistic(loc, log_scale, bins).log_prob(grid(bins))
                width = (-Decimal(log_scale.item())).exp() / (bins - 1)
                for k in {0, 1, bins // 3, bins // 2, bins - 2, bins - 1}:
                    exact = decimal_mass(k, Decimal(loc.item()) * (bins - 1), width, bins)
                    if exact > Decimal("1e-50"):  # below, sixty digits do not hold the difference
                        assert log_mass[k].item() == pytest.approx(float(exact.ln()), rel=1e-12, abs=1e-13)


def test_float32_gradients_of_a_logistic_are_those_of_float64() -> None:
    for mean in (-0.1, 0.3, 1.25):
        for scale in (4e-3, 0.05, 1.0, 1e4):
            found = []
            for dtype in (torch.float32, torch.float64):
                parameters = [torch.tensor(v, dtype=torch.float32).to(dtype) for v in (mean, math.log(scale))]
                loc, log_scale = (p.requires_grad_() for p in parameters)
                log_mass = DiscretizedLogistic(loc, log_scale, 256).log_prob(grid(256, dtype))
                rows = [
                    torch.stack(torch.autograd.grad(v, [loc, log_scale], retain_graph=True)) for v in log_mass[::15]
                ]
                found.append(torch.stack(rows).double())
            size = found[1].abs().amax(0)
            assert ((found[0] - found[1]).abs() <= 1e-5 * size).all()


def test_gradients_of_the_grid_distributions_are_their_differences() -> None:
    x, parameter = grid(17), functools.partial(torch.randn, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda m, s: DiscretizedLogistic(m, s, 17).log_prob(x), (parameter(17), parameter(17)))
    mixture = tuple(parameter(17, 3) for _ in range(3))
    torch.autograd.gradcheck(lambda w, m, s: DiscretizedLogisticMixture(w, m, s, 17).log_prob(x), mixture)
    torch.autograd.gradcheck(lambda logits: GridCategorical(logits).log_prob(x), (parameter(17, 17),))
    torch.autograd.gradcheck(lambda logits: GridBinomial(logits, 16).log_prob(x), (parameter(17),))


def mixture(dtype: torch.dtype = torch.float64) -> DiscretizedLogisticMixture:
    logits, loc = torch.tensor([0.5, -1.0, 40.0], dtype=dtype), torch.tensor([0.2, 1.3, -1e6], dtype=dtype)
    return DiscretizedLogisticMixture(logits, loc, torch.tensor([-2.0, -4.0, 9.0], dtype=dtype), 17)


@both
def test_a_mixture_is_the_sum_of_its_parts(dtype: torch.dtype) -> None:
    whole, x = mixture(dtype), grid(17, dtype)
    weights = whole.logits.softmax(-1)
    parts = [DiscretizedLogistic(m, s, 17).log_prob(x).exp() for m, s in zip(whole.loc, whole.log_scale, strict=True)]
    rtol = 1e-5 if dtype == torch.float32 else 1e-10
    expected = sum(w * p for w, p in zip(weights, parts, strict=True))
    torch.testing.assert_close(whole.log_prob(x).exp(), expected, rtol=rtol, atol=1e-12)
    assert abs(whole.log_prob(x).double().exp().sum() - 1) < (1e-6 if dtype == torch.float32 else 1e-12)


GRIDS = {
    "logistic": DiscretizedLogistic(torch.tensor(0.9).double(), torch.tensor(-1.5).double(), 17),
    "logistic-outside": DiscretizedLogistic(torch.tensor(-0.1).double(), torch.tensor(-2.5).double(), 17),
    "mixture": DiscretizedLogisticMixture(
        torch.tensor([0.5, -1.0]).double(), torch.tensor([0.2, 1.0]).double(), torch.tensor([-2.0, -4.0]).double(), 17
    ),
    "categorical": GridCategorical(torch.linspace(-2, 1, 17, dtype=torch.float64).sin() * 3),
    "binomial": GridBinomial(torch.tensor(-0.7).double(), 16),
}


@pytest.mark.parametrize("name", GRIDS)
def test_samples_means_and_variances_on_a_grid(name: str) -> None:
    distribution, x = GRIDS[name], grid(17)
    mean, variance = moments(distribution, x)
    torch.testing.assert_close(distribution.mean, mean, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(distribution.variance, variance, rtol=1e-10, atol=0.0)
    mass = distribution.log_prob(x).exp()
    assert chi_square(distribution.sample((20_000,)), x, mass) > 1e-4
    assert chi_square(distribution.sample((20_000,)), x, mass.roll(1)) < 1e-6, "the test must be able to fail"
    many = distribution.expand((3, 2))
    assert many.sample((5,)).shape == (5, 3, 2)
    torch.testing.assert_close(many.mean, mean.expand(3, 2), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(many.log_prob(x[4]), distribution.log_prob(x[4]).expand(3, 2), rtol=1e-10, atol=0.0)
    assert measure(distribution) == "a discrete set"


def test_moments_in_chunks_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = GRIDS["mixture"].expand((3,))
    expected = distribution.mean, distribution.variance
    monkeypatch.setattr("ppl_vae.distributions.grid._ELEMENTS", 10)
    torch.testing.assert_close((distribution.mean, distribution.variance), expected, rtol=1e-12, atol=0.0)


@both
@pytest.mark.parametrize("bins", [2, 256, 65536])
def test_the_grid_knows_its_own_values(bins: int, dtype: torch.dtype) -> None:
    x = (np.arange(bins) / (bins - 1)).astype(np.float32 if dtype == torch.float32 else np.float64)
    assert Grid(bins).check(torch.from_numpy(x)).all()
    outside = torch.tensor([-1 / (bins - 1), bins / (bins - 1), 0.4 / (bins - 1), math.nan], dtype=dtype)
    assert not Grid(bins).check(outside).any()


def test_grids_of_as_many_levels_are_equal() -> None:
    own = type("OwnGrid", (Grid,), {})(4)
    assert own == Grid(4) == own
    assert hash(own) == hash(Grid(4))
    own.bins = 5
    assert own == Grid(5) != Grid(4)


# The binomial


@both
def test_binomial_against_scipy(dtype: torch.dtype) -> None:
    for total in (1, 3, 255):
        k = np.arange(total + 1)
        for logit in (-8.0, -0.3, 0.0, 0.04, 2.0, 6.0):
            p = 1 / (1 + math.exp(-torch.tensor(logit, dtype=dtype).item()))
            found = GridBinomial(torch.tensor(logit, dtype=dtype), total).log_prob(grid(total + 1, dtype))
            error = 3e-6 if dtype == torch.float32 else 1e-10
            np.testing.assert_allclose(found.numpy(), stats.binom.logpmf(k, total, p), rtol=error, atol=error)


def test_binomial_logits_may_be_extreme() -> None:
    logits = torch.tensor([-1e6, -200.0, 200.0, 1e6], requires_grad=True)
    log_mass = GridBinomial(logits, 255).log_prob(grid(256, torch.float32)[:, None])
    assert log_mass.isfinite().all()
    assert torch.autograd.grad(log_mass.sum(), logits)[0].isfinite().all()


# Counts

COUNTS = np.array([0, 1, 2, 5, 15, 16, 17, 100, 1000, 999_999, 1_000_000], dtype=float)
RATES = (1e-6, 1e-3, 0.5, 3.7, 50.0, 1e3, 1e6)


def assert_finite(distribution: Any, k: Tensor, *parameters: Tensor) -> None:
    log_mass = distribution.log_prob(k)
    assert log_mass.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(log_mass.sum(), parameters))


def scaled(found: Tensor, expected: Any) -> float:
    return float(np.max(np.abs(found.detach().double().numpy() - expected) / (1 + np.abs(expected))))


@both
def test_poisson_against_scipy(dtype: torch.dtype) -> None:
    for rate in RATES:
        log_rate = torch.tensor(rate, dtype=dtype).log().requires_grad_()
        distribution, k = counts.Poisson(log_rate), torch.tensor(COUNTS, dtype=dtype)
        expected = stats.poisson.logpmf(COUNTS, math.exp(log_rate.item()))
        assert scaled(distribution.log_prob(k), expected) < (2e-5 if dtype == torch.float32 else 1e-10)
        assert_finite(distribution, k, log_rate)


@both
def test_negative_binomial_against_scipy_and_its_limit(dtype: torch.dtype) -> None:
    k = torch.tensor(COUNTS, dtype=dtype)
    for mean in RATES:
        for r in (1e-6, 1e-3, 0.5, 1.0, 20.0, 1e4, 1e12, 1e25, 1e35):
            parameters = [torch.tensor(v, dtype=dtype).log().requires_grad_() for v in (mean, r)]
            mu, dispersion = (math.exp(p.item()) for p in parameters)
            distribution = counts.NegativeBinomial(parameters[0], parameters[1])
            assert_finite(distribution, k, *parameters)
            if r < 1e5:
                expected = stats.nbinom.logpmf(COUNTS, dispersion, dispersion / (dispersion + mu))
                limit = 2e-5 if dtype == torch.float32 else 1e-8  # scipy's own digits
            else:
                expected, limit = (
                    stats.poisson.logpmf(COUNTS, mu),
                    2e-5 if r < 1e13 or dtype == torch.float32 else 1e-10,
                )
            assert scaled(distribution.log_prob(k), expected) < limit


def test_zero_inflation_by_hand() -> None:
    mean, r, gate = torch.tensor([0.3, 2.0, 40.0]).double(), torch.tensor(1.5).double(), torch.tensor(-0.4).double()
    plain = counts.NegativeBinomial(mean.log(), r.log())
    inflated = counts.ZeroInflatedNegativeBinomial(mean.log(), r.log(), gate)
    pi, k = torch.sigmoid(gate), torch.arange(3000, dtype=torch.float64)[:, None]
    expected = (1 - pi) * plain.log_prob(k).exp() + pi * (k == 0)
    torch.testing.assert_close(inflated.log_prob(k).exp(), expected, rtol=1e-10, atol=1e-300)
    torch.testing.assert_close(expected.sum(0), torch.ones(3).double(), rtol=1e-10, atol=0.0)
    average = (expected * k).sum(0)
    torch.testing.assert_close(inflated.mean, average, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(inflated.variance, (expected * (k - average) ** 2).sum(0), rtol=1e-10, atol=0.0)


def test_zero_inflation_at_the_extremes() -> None:
    k = torch.tensor([0.0, 1.0, 1e6])[:, None, None, None]
    means, dispersions, gates = (
        torch.tensor(v, requires_grad=True)
        for v in ([-14.0, 0.0, 14.0], [[-30.0], [0.0], [70.0]], [[[-1e4]], [[-30.0]], [[30.0]], [[1e4]]])
    )
    assert_finite(counts.ZeroInflatedNegativeBinomial(means, dispersions, gates), k, means, dispersions, gates)


@pytest.mark.parametrize(
    "distribution",
    [
        counts.Poisson(torch.tensor(1.0)),
        counts.NegativeBinomial(torch.tensor(1.0), torch.tensor(0.3)),
        counts.ZeroInflatedNegativeBinomial(torch.tensor(1.0), torch.tensor(0.3), torch.tensor(-1.0)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_samples_of_counts(distribution: Any) -> None:
    k = torch.arange(200.0)
    mass = distribution.log_prob(k).exp()
    assert chi_square(distribution.sample((20_000,)), k, mass) > 1e-4
    assert chi_square(distribution.sample((20_000,)), k, mass.roll(1)) < 1e-6
    many = distribution.expand((3, 2))
    assert many.sample((5,)).shape == (5, 3, 2)
    assert many.log_prob(k[4]).shape == many.mean.shape == many.variance.shape == (3, 2)


# The pieces


def vae_of(likelihood: Any, dataset: Any) -> Any:
    small = networks.MLP([9], init="torch")
    return VAE(
        dataset, prior=priors.StandardNormal(2), likelihood=likelihood, posterior=posteriors.DiagonalNormal(small)
    )


@pytest.fixture(scope="module")
def grey() -> Any:
    return data.load("digits", binarize="none")  # 17 levels


SMALL = networks.MLP([9], init="torch")
ON_GREY = {
    "logistic": lambda **options: likelihoods.DiscretizedLogistic(SMALL, 17, **options),
    "logistic-pixel": lambda **options: likelihoods.DiscretizedLogistic(SMALL, 17, learn="pixel", **options),
    "logistic-datum": lambda **options: likelihoods.DiscretizedLogistic(SMALL, 17, learn="datum", **options),
    "mixture": lambda **options: likelihoods.DiscretizedLogisticMixture(SMALL, 3, 17, **options),
    "categorical": lambda **options: likelihoods.Categorical(SMALL, 17, **options),
    "binomial": lambda **options: likelihoods.Binomial(SMALL, 16, **options),
}
ON_COUNTS = {
    "poisson": lambda **options: likelihoods.Poisson(SMALL, **options),
    "poisson-exp": lambda **options: likelihoods.Poisson(SMALL, link="exp", **options),
    "nb": lambda **options: likelihoods.NegativeBinomial(SMALL, **options),
    "nb-datum": lambda **options: likelihoods.NegativeBinomial(SMALL, "datum", **options),
    "zinb": lambda **options: likelihoods.ZeroInflatedNegativeBinomial(SMALL, **options),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", [*ON_GREY, *ON_COUNTS])
def test_captured_bit_for_bit(name: str, grey: Any) -> None:
    make = {**ON_GREY, **ON_COUNTS}[name]
    x = grey.train.x[:16] * (1 if name in ON_GREY else 16)

    def steps(level: Literal["off", "graph"]) -> tuple[list[float], list[Tensor]]:
        torch.manual_seed(0)
        vae = vae_of(make(), (1, 8, 8))
        svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-3), objectives.ELBO(2), compile=level)
        torch.manual_seed(1)
        losses = [svi.step(x) for _ in range(4)]
        assert level == "off" or svi.why_eager is None
        return losses, [value.clone() for value in vae.state_dict().values()]

    (losses, state), (expected, expected_state) = steps("graph"), steps("off")
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(state, expected_state, strict=True))


@pytest.mark.parametrize("name", ON_GREY)
def test_data_on_the_grid_are_accepted_and_others_refused(name: str, grey: Any) -> None:
    assert vae_of(ON_GREY[name](), grey).check_support(grey) is None
    wrong = likelihoods.DiscretizedLogistic(SMALL, bins=256)  # 1/16 is no level of 255
    with pytest.raises(ValueError, match=r"outside the support of DiscretizedLogistic .*k / 255"):
        vae_of(wrong, grey).check_support(grey)


@pytest.mark.parametrize("name", ["logistic", "categorical", "binomial"])
def test_start_from_the_data(name: str, grey: Any) -> None:
    vae = vae_of(ON_GREY[name](start_from_data=True), grey)
    last = [m for m in vae.likelihood.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    pixels, mean = vae.p_x(torch.zeros(1, 2)), grey.train.x.mean(0)
    # the mean of the discrete variable is moved by its open ends
    found = pixels.base_dist.loc[0] if name == "logistic" else pixels.mean[0]
    torch.testing.assert_close(found, mean, rtol=0.0, atol=2e-3)  # of the count that is added, and the margin


@pytest.mark.parametrize("name", ["poisson", "poisson-exp", "nb", "nb-datum", "zinb"])
def test_counts_start_from_the_data(name: str, grey: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mean = torch.linspace(0.01, 50.0, 64).reshape(1, 8, 8)
    monkeypatch.setattr(networks.Binding, "data_mean", lambda self, piece: mean.double())
    vae = vae_of(ON_COUNTS[name](start_from_data=True), grey)
    last = [m for m in vae.likelihood.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    torch.testing.assert_close(vae.p_x(torch.zeros(1, 2)).mean[0], mean, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: likelihoods.DiscretizedLogistic(bins=1), r"DiscretizedLogistic: bins is 1; expected at least 2"),
        (lambda: likelihoods.DiscretizedLogistic(scale=1e-5), r"not above the floor"),
        (lambda: likelihoods.DiscretizedLogisticMixture(scale=1e-5), r"not above the floor"),
        (lambda: likelihoods.DiscretizedLogisticMixture(num_components=0), r"num_components is 0"),
        (lambda: likelihoods.Categorical(bins=1), r"Categorical: bins is 1"),
        (lambda: likelihoods.Binomial(total=0), r"Binomial: total is 0"),
        (lambda: likelihoods.Poisson(link="log"), r"Poisson: link is 'log'"),  # type: ignore[arg-type]
        (lambda: likelihoods.NegativeBinomial(start=0.0), r"NegativeBinomial: start is 0.0"),
        (lambda: likelihoods.ZeroInflatedNegativeBinomial(dispersion="gene"), r"dispersion is 'gene'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
