"""Straight-through and its relatives: what is exact in them, what is not, and the law of their noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from replicates import (
    assert_within_errors,
    block,
    distance,
    flat,
    gradient_at,
    gradient_of,
    mean_gradient,
    mean_value,
    part_of,
)
from scipy import stats
from test_estimators_discrete import VAES, Chain, X, exact_elbo, states_of
from torch import Tensor

from ppl_vae import VAE, likelihoods, posteriors, priors
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    REBAR,
    REINFORCE,
    EnumeratedELBO,
    GumbelRaoELBO,
    GumbelSoftmaxELBO,
    ReinMaxELBO,
    StraightThroughELBO,
    as_loss,
    sample_log_weights,
)
from ppl_vae.objectives.states import States, noisy_given

DOUBLE = torch.float64
ALL = [StraightThroughELBO(2), ReinMaxELBO(2), GumbelSoftmaxELBO(2), GumbelRaoELBO(2)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def make(kind: str) -> tuple[Tensor, Callable[[Tensor], States]]:
    """Logits, and the states that they give: four bits, or two blocks of three classes."""
    torch.manual_seed(1)
    if kind == "bits":
        return torch.randn(4, dtype=DOUBLE, requires_grad=True), BinaryVector
    return torch.randn(2, 3, dtype=DOUBLE, requires_grad=True), OneHotVector


def polynomial(order: int, dim: int) -> Callable[[Tensor], Tensor]:
    """A random polynomial of all entries of z, coupled, of an order up to three."""
    torch.manual_seed(2)
    linear, square, cube = (torch.randn(*(dim,) * n, dtype=DOUBLE) for n in (1, 2, 3))

    def f(z: Tensor) -> Tensor:
        value = z @ linear
        if order > 1:
            value = value + torch.einsum("...i,...j,ij->...", z, z, square)
        return value + torch.einsum("...i,...j,...k,ijk->...", z, z, z, cube) if order > 2 else value

    return f


def expected_gradients(objective: Any, kind: str, order: int) -> tuple[Tensor, Tensor]:
    """The expectation of the estimator over all draws, and the exact gradient of E f by the logits."""
    logits, family = make(kind)
    states = family(logits)
    z = states.enumerate_support()
    f = polynomial(order, z.shape[-1])
    probability = states.log_prob(z).exp()
    (exact,) = torch.autograd.grad((probability * f(z)).sum(), logits, retain_graph=True)
    leaf = z.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(leaf).sum(), leaf)
    smooth = torch.stack([objective._smooth(family(logits), one) for one in z])
    (found,) = torch.autograd.grad((probability.detach()[:, None] * slope * smooth).sum(), logits)
    return found, exact


@pytest.mark.parametrize("kind", ["bits", "one-hot"])
@pytest.mark.parametrize(
    ("objective", "order"),
    [(StraightThroughELBO(), 1), (ReinMaxELBO(), 1), (ReinMaxELBO(), 2)],
    ids=lambda v: str(v),
)
def test_it_is_exact_up_to_its_order(objective: Any, order: int, kind: str) -> None:
    close(*expected_gradients(objective, kind, order))


@pytest.mark.parametrize("kind", ["bits", "one-hot"])
@pytest.mark.parametrize(
    ("objective", "order"),
    [(StraightThroughELBO(), 2), (ReinMaxELBO(), 3), (ReinMaxELBO(temperature=2.0), 2), (ReinMaxELBO(1, 2.0), 1)],
    ids=lambda v: str(v),
)
def test_it_is_biased_beyond(objective: Any, order: int, kind: str) -> None:
    found, exact = expected_gradients(objective, kind, order)
    assert (found - exact).norm() > 0.01 * exact.norm()


@pytest.mark.parametrize("kind", ["bits", "one-hot"])
def test_reinmax_is_the_formula(kind: str) -> None:
    logits, family = make(kind)
    z = family(logits).enumerate_support()
    weights = torch.randn(z.shape[-1], dtype=DOUBLE)
    for one in z[:5]:
        (found,) = torch.autograd.grad((weights * ReinMaxELBO(1, 1.5)._smooth(family(logits), one)).sum(), logits)
        pairs = torch.stack([logits, torch.zeros_like(logits)], -1) if kind == "bits" else logits
        drawn = torch.stack([one, 1 - one], -1) if kind == "bits" else one.reshape(2, 3)
        g = torch.stack([weights, torch.zeros_like(weights)], -1) if kind == "bits" else weights.reshape(2, 3)
        jacobian = lambda p: torch.diag_embed(p) - p[..., :, None] * p[..., None, :]  # noqa: E731
        middle = ((pairs / 1.5).softmax(-1) + drawn) / 2
        whole = 2 * jacobian(middle) - 0.5 * jacobian(pairs.softmax(-1))
        expected = (whole @ g[..., None])[..., 0]
        close(found, expected[..., 0] if kind == "bits" else expected)


def quadratic(name: str) -> VAE:
    """A linear decoder with normal noise: log p(x|z) is quadratic in z, and log p(z), log q(z|x) are linear."""
    torch.manual_seed(4)
    bits = name == "bits"
    return VAE(
        (3,),
        prior=priors.BernoulliVector(3, 0.3, learned=True) if bits else priors.OneHotCategorical(6, 3, learned=True),
        likelihood=likelihoods.Normal(MLP([], init="torch"), scale=0.7),
        posterior=posteriors.BernoulliVector(MLP([5], "tanh", init="torch"))
        if bits
        else posteriors.OneHotCategorical(MLP([5], "tanh", init="torch"), num_classes=3),
    ).double()


def exact_expectation(objective: Any, vae: VAE, x: Tensor) -> Tensor:
    """The expected gradient for one datum: a copy of it with each state, weighed by its probability."""
    z = states_of(vae)

    class Forced(type(objective)):  # type: ignore[misc]
        def _draw(self, states: States) -> Tensor:
            smooth = self._smooth(states, z)
            return z + (smooth - smooth.detach())

    forced = Forced(**{**vars(objective), "num_particles": 1})
    weights = sample_log_weights(vae.model, vae.guide, x.expand(len(z), -1), latents=forced.latents)
    probability = weights.joint_log_q[0].exp().detach()
    assert probability.sum() == pytest.approx(1.0, rel=1e-12)
    return flat(gradient_of((probability * forced(weights).surrogate).sum(), vae))


@pytest.mark.parametrize("name", ["bits", "one-hot"])
def test_reinmax_is_exact_for_a_quadratic_elbo(name: str) -> None:
    vae, x = quadratic(name), torch.tensor([[0.3, -1.0, 0.8]], dtype=DOUBLE)
    exact = flat(gradient_at((vae.model, vae.guide), vae, EnumeratedELBO(), x))
    close(exact_expectation(ReinMaxELBO(), vae, x), exact)
    other, encoder = exact_expectation(StraightThroughELBO(), vae, x), block(vae, "posterior")
    assert (other - exact)[encoder].norm() > 0.05 * exact[encoder].norm()


@pytest.mark.thinned(8)
@pytest.mark.parametrize("name", ["bits", "one-hot"])
@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_the_value_is_unbiased_and_the_gradient_of_the_encoder_is_not(objective: Any, name: str) -> None:
    vae = bent(name)
    program, elbo = (vae.model, vae.guide), exact_elbo(vae, X).sum()
    exact = flat(gradient_of(elbo, vae))
    encoder = block(vae, "posterior")
    assert_within_errors(mean_value(program, objective, X, 200), elbo.detach())
    found = mean_gradient(program, vae, objective, X, 200)
    assert_within_errors(part_of(found, ~encoder), exact[~encoder])  # p sees states
    assert torch.cosine_similarity(found.mean[encoder], exact[encoder], 0) > 0.9
    bias = (found.mean - exact)[encoder].norm() / exact[encoder].norm()
    assert distance(found, exact) > 5
    assert bias < (0.1 if isinstance(objective, ReinMaxELBO) else 0.5)
    if not isinstance(objective, (GumbelSoftmaxELBO, GumbelRaoELBO)):  # the noise is that of the draw alone
        alone = [exact_expectation(objective, vae, x[None]) for x in X]
        assert_within_errors(found, torch.stack(alone).sum(0))


def bent(name: str) -> VAE:
    """A decoder that bends."""
    vae = VAES[name]()
    with torch.no_grad():
        for parameter in vae.likelihood.parameters():
            parameter.mul_(2)
    return vae


# Gumbel-Rao


def laws(kind: str) -> tuple[States, Any]:
    if kind == "bits":
        return BinaryVector(torch.tensor([-2.0, 0.0, 0.7, 3.0], dtype=DOUBLE)), stats.logistic
    return OneHotVector(torch.tensor([[-2.0, 0.0, 1.0], [0.3, 0.2, -4.0]], dtype=DOUBLE)), stats.gumbel_r


@pytest.mark.parametrize("kind", ["bits", "one-hot"])
def test_noise_given_the_draw_gives_the_draw_and_has_the_law_of_noise(kind: str) -> None:
    states, law = laws(kind)
    torch.manual_seed(0)
    z = states.expand((20_000,)).sample()
    noisy = noisy_given(states.expand((20_000,)), z, 5)
    for scores in noisy:
        assert torch.equal(states._nearest(scores), z), "the nearest state is the draw, always"
    noise = (noisy[0] - states.logits).flatten(1)
    for column in noise.T:
        assert stats.kstest(column.numpy(), law.cdf).pvalue > 1e-4
    correlation = torch.corrcoef(noise.T) - torch.eye(noise.shape[1], dtype=DOUBLE)
    assert correlation.abs().max() < 5 / 20_000**0.5, "independent of each other"


def test_noise_given_the_draw_is_the_noise_of_those_draws() -> None:
    """The law of all noisy logits of the first class given that it was drawn, by rejection."""
    states, _ = laws("one-hot")
    torch.manual_seed(0)
    free = states._noisy((200_000,))[:, 0]
    kept = free[free.argmax(-1) == 1]
    z = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0], dtype=DOUBLE)
    given = noisy_given(states, z, 50_000)[:, 0]
    for a, b in zip(kept.T, given.T, strict=True):
        assert stats.ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["bits", "one-hot"])
def test_impossible_states_have_a_finite_gradient(kind: str) -> None:
    logits = torch.tensor([-torch.inf, 0.3, torch.inf] if kind == "bits" else [[-torch.inf, 0.3, 0.4]], dtype=DOUBLE)
    for objective in ALL:
        leaf = logits.clone().requires_grad_()
        z = objective._draw(BinaryVector(leaf) if kind == "bits" else OneHotVector(leaf))
        assert z.isfinite().all()
        if kind == "bits" and isinstance(objective, GumbelSoftmaxELBO) and not isinstance(objective, GumbelRaoELBO):
            continue  # infinite plus noise, as ever
        (gradient,) = torch.autograd.grad(z.sum() + z[0], leaf)
        assert gradient.isfinite().all()


def of_draws(objective: Any, kind: str, seed: int, size: int = 20_000) -> Tensor:
    """The gradients by the logits of a polynomial at independent draws, (size, logits)."""
    logits, family = make(kind)
    leaf = logits.detach().expand(size, *logits.shape).clone().requires_grad_()
    torch.manual_seed(seed)
    z = objective._draw(family(leaf))
    return torch.autograd.grad(polynomial(3, z.shape[-1])(z).sum(), leaf)[0].flatten(1)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("kind", ["bits", "one-hot"])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_gumbel_rao_has_the_expectation_of_gumbel_softmax_and_less_variance(temperature: float, kind: str) -> None:
    """Rao-Blackwell, for each logit: one inner sample changes nothing, more only help."""
    plain = of_draws(GumbelSoftmaxELBO(1, temperature), kind, 0)
    size, before = len(plain), None
    for seed, inner in enumerate([1, 4, 32], 1):
        found = of_draws(GumbelRaoELBO(1, temperature, inner), kind, seed)
        error = ((found.var(0) + plain.var(0)) / size).sqrt()
        assert ((found.mean(0) - plain.mean(0)).abs() < 5 * error).all()
        squares = (found - found.mean(0)).square()
        variance, noise = squares.mean(0), squares.std(0) / size**0.5
        if before is None:
            squares = (plain - plain.mean(0)).square()
            spread = (noise**2 + squares.var(0) / size).sqrt()
            assert ((variance - squares.mean(0)).abs() < 5 * spread).all(), "the same law"
        else:
            assert (variance < before[0] + 5 * (noise**2 + before[1] ** 2).sqrt()).all(), "never more"
            assert variance.sum() < before[0].sum() - 5 * (noise**2 + before[1] ** 2).sum().sqrt(), "less in all"
        before = variance, noise


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_sites_that_depend_on_each_other_and_of_pyros_own(objective: Any) -> None:
    """A bit given a class, each a site of its own: draws are states, and the values add up."""
    chain = Chain()
    program = (chain.model, chain.guide)
    assert_within_errors(mean_value(program, objective, X, 100), chain.elbo(X).sum().detach())
    weights = sample_log_weights(*program, X, num_particles=3, latents=objective.latents)
    assert set(weights.z["b"].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(weights.z["c"].detach().sum(-1), torch.ones(3, 8, dtype=DOUBLE))
    found = gradient_at(program, chain, objective, X)
    assert all(g.abs().max() > 0 for n, g in found.items() if "encoder" in n)


def test_particles_are_averaged() -> None:
    vae = VAES["bits"]()
    program = (vae.model, vae.guide)
    assert_within_errors(
        mean_gradient(program, vae, ReinMaxELBO(6), X, 100), mean_gradient(program, vae, ReinMaxELBO(1), X, 500, seed=1)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReinMaxELBO(temperature=0.5), r"ReinMaxELBO: temperature is 0.5; expected 1 .* or more"),
        (lambda: ReinMaxELBO(temperature=0.0), "ReinMaxELBO: temperature"),
        (lambda: GumbelRaoELBO(inner=0), "GumbelRaoELBO: inner"),
        (lambda: GumbelRaoELBO(temperature=-1.0), "GumbelRaoELBO: temperature"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_other_latents_are_refused_by_name(objective: Any) -> None:
    vae = VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(MLP([5])),
        posterior=posteriors.DiagonalNormal(MLP([5])),
    )
    name = type(objective).__name__
    with pytest.raises(TypeError, match=rf"{name} relaxes bits and one-hot vectors, and q at site 'z' is Normal"):
        as_loss(objective)((vae.model, vae.guide), X.float())


def test_a_mixture_of_pyros_one_hots_is_refused_as_a_prior() -> None:
    """It scores the nearest state: its density has no slope and jumps between states."""

    def model(x: Tensor) -> None:
        mixing = dist.Categorical(torch.tensor([0.3, 0.7]))
        parts = dist.OneHotCategorical(logits=torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.MixtureSameFamily(mixing, parts))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits of the guide", torch.zeros(3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    x = torch.zeros(4)
    assert as_loss(REINFORCE(2))((model, guide), x).loss.isfinite()
    for objective in (GumbelSoftmaxELBO(2), ReinMaxELBO(2), REBAR(2)):
        with pytest.raises(TypeError, match=r"MixtureSameFamily scores the one-hot state that is nearest to z"):
            as_loss(objective)((model, guide), x)
