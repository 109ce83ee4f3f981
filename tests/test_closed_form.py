"""The article's formulas against torch.distributions, quadrature, autograd and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from ppl_vae import closed_form

SHAPE = (3, 5, 4)  # particles, batch, event
RTOL = 1e-10  # identities, in float64


def close(actual: Tensor, expected: Tensor, rtol: float = RTOL) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0.0)


@pytest.fixture
def mean() -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64)


@pytest.fixture
def std() -> Tensor:
    """Standard deviations of both signs, from 0.05 to 20."""
    magnitude = torch.linspace(math.log(0.05), math.log(20.0), math.prod(SHAPE), dtype=torch.float64).exp()
    sign = torch.where(torch.rand(SHAPE) < 0.5, -1.0, 1.0)
    return magnitude.reshape(SHAPE) * sign


@pytest.fixture
def logits() -> Tensor:
    return 4 * torch.randn(SHAPE, dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.bernoulli(torch.full(SHAPE, 0.4, dtype=torch.float64))


def independent_normal(mean: Tensor, std: Tensor) -> Independent:
    return Independent(Normal(mean, std), 1)


# The KL


def test_kl_is_that_of_torch_distributions(mean: Tensor, std: Tensor) -> None:
    standard = independent_normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(independent_normal(mean, std.abs()), standard)
    assert expected.shape == SHAPE[:-1]
    close(closed_form.kl_std(mean, std), expected)
    close(closed_form.kl_log_var(mean, std.square().log()), expected)


def test_kl_is_the_expected_log_ratio_by_quadrature() -> None:
    # Gauss-Hermite is exact here: log q - log p is a quadratic in z
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(8))
    mean = torch.tensor([-1.5, 0.0, 0.3, 2.0], dtype=torch.float64)
    std = torch.tensor([0.1, 3.0, -0.7, -1.0], dtype=torch.float64)
    z = mean + std * nodes[:, None]  # (nodes, 4)
    log_ratio = Normal(mean, std.abs()).log_prob(z) - Normal(0.0, 1.0).log_prob(z)  # (nodes, 4)
    expected = (weights[:, None] * log_ratio).sum(0) / math.sqrt(2 * math.pi)  # (4,)
    close(closed_form.kl_std(mean, std, event_dim=0), expected)
    close(closed_form.kl_log_var(mean, 2 * std.abs().log(), event_dim=0), expected)


def test_kl_gradients_are_the_hand_derived_ones(mean: Tensor, std: Tensor) -> None:
    mean.requires_grad_()
    std.requires_grad_()
    by_mean, by_std = torch.autograd.grad(closed_form.kl_std(mean, std).sum(), (mean, std))
    close(by_mean, mean.detach())
    close(by_std, (std - 1 / std).detach())

    log_var = std.detach().square().log().requires_grad_()
    by_mean, by_log_var = torch.autograd.grad(closed_form.kl_log_var(mean, log_var).sum(), (mean, log_var))
    close(by_mean, mean.detach())
    close(by_log_var, 0.5 * torch.expm1(log_var.detach()))


def test_kl_does_not_see_the_sign_of_std(mean: Tensor, std: Tensor) -> None:
    assert torch.equal(closed_form.kl_std(mean, std), closed_form.kl_std(mean, -std))
    assert torch.equal(closed_form.kl_std(mean, std, eps=1e-8), closed_form.kl_std(mean, -std, eps=1e-8))


def test_kl_vanishes_at_the_prior_and_is_infinite_at_a_point() -> None:
    assert closed_form.kl_std(torch.zeros(2), torch.ones(2)) == 0
    assert closed_form.kl_log_var(torch.zeros(2), torch.zeros(2)) == 0
    assert closed_form.kl_std(torch.zeros(2), torch.tensor([1.0, 0.0])) == math.inf


def test_kl_of_a_std_whose_square_underflows() -> None:
    std = torch.tensor([1e-30])
    assert std.square() == 0
    expected = -0.5 - math.log(1e-30)
    torch.testing.assert_close(closed_form.kl_std(torch.zeros(1), std).item(), expected, rtol=1e-6, atol=0.0)


def test_kl_with_the_eps_of_the_article(mean: Tensor, std: Tensor) -> None:
    eps = 1e-8
    gap = closed_form.kl_std(mean, std) - closed_form.kl_std(mean, std, eps=eps)
    expected = 0.5 * torch.log1p(eps / std.square()).sum(-1)
    # both are differences of sums of about 100: 1e-13 is their rounding
    torch.testing.assert_close(gap, expected, rtol=0.0, atol=1e-13)

    point = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = closed_form.kl_std(torch.zeros(1, dtype=torch.float64), point, eps=eps)
    close(value.detach(), torch.tensor(-0.5 - 0.5 * math.log(eps), dtype=torch.float64))  # 8.7, not infinity
    (gradient,) = torch.autograd.grad(value, point)
    assert gradient == 0  # and nothing pushes away from it

    deepest = torch.tensor([math.sqrt(1 - 0.1)], dtype=torch.float64)
    lowest = closed_form.kl_std(torch.zeros_like(deepest), deepest, eps=0.1)
    close(lowest, torch.tensor(-0.05, dtype=torch.float64))  # no KL: it may be negative


def test_the_noise_of_the_articles_comment_does_not_belong_to_the_kl() -> None:
    log_var, noise = torch.tensor([-2.0, 0.0, math.log(4.0)]), torch.tensor(1.0)
    right, article = torch.exp(0.5 * log_var) * noise, torch.exp(log_var) * 0.5 * noise
    torch.testing.assert_close(article, right.square() / 2)
    assert (article != right).tolist()[:2] == [True, True]
    torch.testing.assert_close(article[2], right[2])  # equal at std 2 alone
    zeros = torch.zeros(3)
    torch.testing.assert_close(closed_form.kl_log_var(zeros, log_var, 0), closed_form.kl_std(zeros, right, event_dim=0))


# The cross-entropy


def test_cross_entropy_is_that_of_torch_distributions(x: Tensor, logits: Tensor) -> None:
    expected = -Independent(Bernoulli(logits=logits), 1).log_prob(x)
    close(closed_form.cross_entropy_from_logits(x, logits), expected)
    close(closed_form.cross_entropy(x, torch.sigmoid(logits), eps=0.0), expected)


def test_cross_entropy_sums_to_one_over_all_data() -> None:
    logits = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
    all_data = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)  # (8, 3)
    total = torch.exp(-closed_form.cross_entropy_from_logits(all_data, logits)).sum()
    close(total, torch.tensor(1.0, dtype=torch.float64))


def test_cross_entropy_of_grey_pixels_is_no_density() -> None:
    grey = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    logits = torch.tensor([1.0], dtype=torch.float64)
    density = torch.exp(-closed_form.cross_entropy_from_logits(grey, logits))  # (1001,)
    mass = torch.trapezoid(density, dx=1e-3)
    exact = torch.sigmoid(-logits) * torch.expm1(logits)  # the integral of (1 - p) exp(l x)
    torch.testing.assert_close(mass, exact[0], rtol=1e-6, atol=0.0)  # trapezoid: dx^2 / 12
    assert abs(mass - 1) > 0.5


def test_cross_entropy_gradients_are_the_hand_derived_ones(x: Tensor, logits: Tensor) -> None:
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(closed_form.cross_entropy_from_logits(x, logits).sum(), logits)
    close(gradient, (torch.sigmoid(logits) - x).detach(), rtol=1e-9)  # sigmoid - 1 loses digits, not we

    probs = torch.sigmoid(logits.detach()).requires_grad_()
    (gradient,) = torch.autograd.grad(closed_form.cross_entropy(x, probs, eps=0.0).sum(), probs)
    close(gradient, ((1 - x) / (1 - probs) - x / probs).detach())


def test_cross_entropy_from_logits_has_its_gradient_at_zero() -> None:
    # where a form written with relu and abs would have another
    logits = torch.zeros(2, requires_grad=True)
    x = torch.tensor([0.0, 1.0])
    (gradient,) = torch.autograd.grad(closed_form.cross_entropy_from_logits(x, logits), logits)
    assert gradient.tolist() == [0.5, -0.5]


def test_cross_entropy_from_logits_keeps_small_losses() -> None:
    logits = torch.tensor([[40.0], [-40.0]], dtype=torch.float64)
    x = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    close(closed_form.cross_entropy_from_logits(x, logits), torch.full((2,), math.exp(-40), dtype=torch.float64))


def test_exact_cross_entropy_at_probabilities_of_zero_and_one() -> None:
    certain = torch.tensor([0.0, 1.0], requires_grad=True)
    value = closed_form.cross_entropy(torch.tensor([0.0, 1.0]), certain, eps=0.0, event_dim=0)
    assert value.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(value.sum(), certain)
    assert gradient.tolist() == [1.0, -1.0]  # 1 / (1 - p) and -1 / p; torch.xlogy has NaN here

    impossible = closed_form.cross_entropy(torch.tensor([1.0, 0.0]), certain, eps=0.0, event_dim=0)
    assert impossible.tolist() == [math.inf, math.inf]

    grey = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)  # and by the data
    value = closed_form.cross_entropy(grey, torch.tensor([0.2, 0.2, 0.2]), eps=0.0)
    (gradient,) = torch.autograd.grad(value, grey)
    torch.testing.assert_close(gradient, torch.full((3,), math.log(0.8 / 0.2)))


def test_the_eps_of_the_article_saturates_in_float32() -> None:
    x = torch.zeros(1)
    for logit in (17.0, 30.0, 1000.0):
        logits = torch.tensor([logit], requires_grad=True)
        probs = torch.sigmoid(logits)
        assert probs == 1

        saturated = closed_form.cross_entropy(x, probs)
        assert saturated.item() == pytest.approx(-math.log(1e-8), rel=1e-6)  # 18.42
        (gradient,) = torch.autograd.grad(saturated, logits)
        assert gradient == 0

        exact = closed_form.cross_entropy_from_logits(x, logits)
        assert exact.item() == pytest.approx(logit, rel=1e-6)
        (gradient,) = torch.autograd.grad(exact, logits)
        assert gradient.item() == pytest.approx(1.0, rel=1e-6)


def test_the_eps_of_the_article_elsewhere(x: Tensor) -> None:
    probs = torch.full(SHAPE, 0.3, dtype=torch.float64)
    assert torch.equal(closed_form.cross_entropy(x, probs), closed_form.cross_entropy(x, probs, eps=1e-8))
    article = -(x * torch.log(probs + 1e-8) + (1 - x) * torch.log(1 - probs + 1e-8)).sum(-1)
    close(closed_form.cross_entropy(x, probs), article)
    change = closed_form.cross_entropy(x, probs, eps=0.0) - article
    expected = 1e-8 * (x / probs + (1 - x) / (1 - probs)).sum(-1)
    torch.testing.assert_close(change, expected, rtol=1e-6, atol=1e-14)  # first order, rounding of about 4


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_binarised_data_need_not_be_floating(x: Tensor, logits: Tensor, dtype: torch.dtype) -> None:
    integer = x.to(dtype)
    probs = torch.sigmoid(logits)
    close(
        closed_form.cross_entropy_from_logits(integer, logits),
        closed_form.cross_entropy_from_logits(x, logits),
    )
    close(closed_form.cross_entropy(integer, probs), closed_form.cross_entropy(x, probs))
    close(closed_form.squared_error(integer, logits), closed_form.squared_error(x, logits))
    close(
        closed_form.normal_log_likelihood(integer, logits, 2.0),
        closed_form.normal_log_likelihood(x, logits, 2.0),
    )


# The squared error


def test_normal_log_likelihood_is_that_of_torch_distributions(mean: Tensor, std: Tensor) -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    for scale in (std.abs(), torch.tensor(0.3, dtype=torch.float64), std.abs()[0, 0], std.abs()[..., :1]):
        expected = independent_normal(mean, scale.expand(SHAPE)).log_prob(x)
        close(closed_form.normal_log_likelihood(x, mean, scale), expected)
    close(
        closed_form.normal_log_likelihood(x, mean, 0.3),
        closed_form.normal_log_likelihood(x, mean, torch.tensor(0.3, dtype=torch.float64)),
    )


def test_squared_error_is_the_likelihood_without_factor_and_constant(mean: Tensor) -> None:
    x, scale, size = torch.randn(SHAPE, dtype=torch.float64), 0.3, SHAPE[-1]
    error = closed_form.squared_error(x, mean)
    close(error, (x - mean).norm(dim=-1).square())
    close(
        closed_form.normal_log_likelihood(x, mean, scale),
        -error / (2 * scale**2) - size / 2 * math.log(2 * math.pi * scale**2),
    )
    # the article's loss is the Normal's of variance 1/2, but for a constant
    constant = closed_form.normal_log_likelihood(x, mean, math.sqrt(0.5)) + error
    close(constant, torch.full(SHAPE[:-1], -size / 2 * math.log(math.pi), dtype=torch.float64))


def test_normal_log_likelihood_integrates_to_one() -> None:
    x = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    density = torch.exp(closed_form.normal_log_likelihood(x, torch.tensor(0.5), 0.7, event_dim=0))
    close(torch.trapezoid(density, x), torch.tensor(1.0, dtype=torch.float64))


def test_normal_log_likelihood_of_a_scale_whose_square_underflows() -> None:
    scale = 1e-30
    value = closed_form.normal_log_likelihood(torch.zeros(1), torch.zeros(1), torch.tensor(scale))
    assert value.item() == pytest.approx(-math.log(scale) - 0.5 * math.log(2 * math.pi), rel=1e-6)


def test_normal_gradients_are_the_hand_derived_ones(mean: Tensor, std: Tensor) -> None:
    x, scale = torch.randn(SHAPE, dtype=torch.float64), std.abs().requires_grad_()
    mean.requires_grad_()
    value = closed_form.normal_log_likelihood(x, mean, scale).sum()
    by_mean, by_scale = torch.autograd.grad(value, (mean, scale))
    residual = (x - mean).detach()
    close(by_mean, residual / std.square())
    close(by_scale, (residual.square() / std.abs() ** 3 - 1 / std.abs()), rtol=1e-9)  # a difference


# Shapes and messages


def test_event_dim_says_what_is_one_datum(mean: Tensor, std: Tensor, x: Tensor, logits: Tensor) -> None:
    probs, scale = torch.sigmoid(logits), std.abs()
    functions = [
        lambda d: closed_form.kl_std(mean, std, event_dim=d),
        lambda d: closed_form.kl_log_var(mean, logits, event_dim=d),
        lambda d: closed_form.cross_entropy(x, probs, event_dim=d),
        lambda d: closed_form.cross_entropy_from_logits(x, logits, event_dim=d),
        lambda d: closed_form.squared_error(x, mean, event_dim=d),
        lambda d: closed_form.normal_log_likelihood(x, mean, scale, event_dim=d),
    ]
    for function in functions:
        single = function(0)
        assert single.shape == SHAPE
        for event_dim in (1, 2, 3):
            close(function(event_dim), single.sum(tuple(range(-event_dim, 0))))


def test_data_broadcast_against_particles(x: Tensor, logits: Tensor, mean: Tensor) -> None:
    batch = x[0]  # (batch, event), seen by every particle
    close(
        closed_form.cross_entropy_from_logits(batch, logits),
        closed_form.cross_entropy_from_logits(batch.expand(SHAPE), logits),
    )
    close(
        closed_form.normal_log_likelihood(batch, mean, 0.5),
        closed_form.normal_log_likelihood(batch.expand(SHAPE), mean, 0.5),
    )


@pytest.mark.parametrize("eps", [-1e-8, math.nan, math.inf])
def test_eps_must_not_be_negative(eps: float) -> None:
    with pytest.raises(ValueError, match="kl_std: eps is"):
        closed_form.kl_std(torch.zeros(2), torch.ones(2), eps=eps)
    with pytest.raises(ValueError, match="cross_entropy: eps is"):
        closed_form.cross_entropy(torch.zeros(2), torch.ones(2), eps=eps)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="normal_log_likelihood: scale is"):
        closed_form.normal_log_likelihood(torch.zeros(2), torch.zeros(2), scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_every_entry_of_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="normal_log_likelihood: scale holds"):
        closed_form.normal_log_likelihood(torch.zeros(2), torch.zeros(2), torch.tensor([1.0, scale]))


def test_shapes_must_broadcast_and_hold_the_event() -> None:
    with pytest.raises(ValueError, match=r"mean \(2,\) and std \(3,\) do not broadcast"):
        closed_form.kl_std(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"x \(4, 2\) and mean \(4, 2\) and scale \(4,\) do not broadcast"):
        closed_form.normal_log_likelihood(torch.zeros(4, 2), torch.zeros(4, 2), torch.ones(4))
    with pytest.raises(ValueError, match="event_dim is 2; expected 0 to 1"):
        closed_form.squared_error(torch.zeros(2), torch.zeros(2), event_dim=2)
    with pytest.raises(ValueError, match="event_dim is -1; expected 0 to 1"):
        closed_form.squared_error(torch.zeros(2), torch.zeros(2), event_dim=-1)


@pytest.mark.ci
def test_the_formulas_can_be_captured() -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
            normal = closed_form.normal_log_likelihood(x, mean, scale)
            bernoulli = closed_form.cross_entropy(x, torch.sigmoid(mean), eps=0.0)
            exact = closed_form.cross_entropy_from_logits(x, mean)
            return normal - bernoulli - exact - closed_form.kl_std(mean, scale)

    arguments = (torch.ones(3, 2), torch.randn(3, 2), torch.rand(3, 2) + 0.1)
    captured = torch.export.export(Loss(), arguments, strict=False).module()
    assert torch.equal(captured(*arguments), Loss()(*arguments))
