"""Discrete and relaxed latents, against enumeration, quadrature and closed forms."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae import SVI, VAE, likelihoods, objectives, posteriors, priors
from ppl_vae._distributions import measure
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.distributions.relaxed import RelaxedBits, RelaxedOneHotVector
from ppl_vae.evidence.enumeration import enumerate_evidence
from ppl_vae.evidence.log_evidence import log_evidence
from ppl_vae.networks import MLP
from ppl_vae.objectives import as_loss, sample_log_weights

PAIRS = {
    "bits": (lambda: priors.BernoulliVector(4, 0.3, learned=True), posteriors.BernoulliVector),
    "one-hot": (
        lambda: priors.OneHotCategorical(6, 3, learned=True),
        functools.partial(posteriors.OneHotCategorical, num_classes=3),
    ),
    "bits-st": (
        lambda: priors.BernoulliVector(4),
        functools.partial(posteriors.RelaxedBernoulliVector, straight_through=True),
    ),
    "one-hot-st": (
        lambda: priors.OneHotCategorical(6, 3),
        functools.partial(posteriors.GumbelSoftmax, num_classes=3, straight_through=True),
    ),
    "relaxed bits": (lambda: priors.RelaxedBernoulliVector(4, learned=True), posteriors.RelaxedBernoulliVector),
    "simplex": (
        lambda: priors.RelaxedOneHotCategorical(6, num_classes=3, learned=True),
        functools.partial(posteriors.GumbelSoftmax, num_classes=3),
    ),
}
X = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))


@pytest.fixture
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def vae(name: str) -> VAE:
    prior, posterior = PAIRS[name]
    return VAE((3,), prior=prior(), likelihood=likelihoods.Bernoulli(MLP([9])), posterior=posterior(MLP([9])))


def exact_terms(program: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """The ELBO and log p(x) of each datum, by a sum over all states."""
    states = program.p_z().enumerate_support()
    q, p = program.q_z(x), program.p_z()
    log_q = q.log_prob(states[:, None])
    joint = program.p_x(states[:, None]).log_prob(x) + p.log_prob(states)[:, None]
    return (log_q.exp() * (joint - log_q)).sum(0), joint.logsumexp(0)


discrete = pytest.mark.parametrize("name", ["bits", "one-hot", "bits-st", "one-hot-st"])


@discrete
@pytest.mark.usefixtures("float64")
def test_states_mass_moments_entropy_and_kl(name: str) -> None:
    program = vae(name)
    q, p = program.q_z(X.double()), program.p_z()
    states = q.enumerate_support()
    assert states.shape == (16 if "bits" in name else 9, 8, q.event_shape[0])
    assert len({tuple(s.tolist()) for s in states[:, 0]}) == len(states)
    assert p.support.check(states).all()
    assert measure(p) == measure(q) == "a discrete set"
    assert q.enumerate_support(expand=False).shape == (len(states), 1, states.shape[-1])
    log_q = q.log_prob(states)
    mass = log_q.exp()
    exact = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    exact(mass.sum(0), torch.ones(8))
    mean = (mass[..., None] * states).sum(0)
    exact(q.mean, mean)
    exact(q.variance, (mass[..., None] * (states - mean).square()).sum(0))
    exact(q.entropy(), -(mass * log_q).sum(0))
    exact(kl_divergence(q, p.expand((8,))), (mass * (log_q - p.log_prob(states))).sum(0))
    exact(q.log_prob(q.mode), log_q.max(0).values)
    draws = q.sample((20_000,))
    counts = (draws[None] == states[:, None]).all(-1).double()
    assert ((counts.mean(1) - mass).abs() < 5 * (mass * (1 - mass) / 20_000).sqrt()).all()


@discrete
@pytest.mark.usefixtures("float64")
def test_the_evidence_is_a_sum_over_states(name: str) -> None:
    program, x = vae(name), X.double()
    elbo, log_p = exact_terms(program, x)
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0), rtol=1e-10, atol=0.0)  # all that x can be
    found = log_evidence(program, x)
    assert found.method == "enumeration"
    torch.testing.assert_close(found.log_evidence, log_p.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(enumerate_evidence(program, x).log_evidence, log_p.detach(), rtol=1e-10, atol=1e-10)
    assert (elbo <= log_p).all()


@pytest.mark.parametrize("name", ["bits", "one-hot"])
@pytest.mark.usefixtures("float64")
def test_trace_enum_elbo_is_exact_in_value_and_gradient(name: str) -> None:
    program, x = vae(name), X.double()
    elbo, _ = exact_terms(program, x)
    expected = torch.autograd.grad(-elbo.sum(), list(program.parameters()))
    for objective in (TraceEnum_ELBO(max_plate_nesting=1), TraceEnum_ELBO(2, max_plate_nesting=1)):
        loss = as_loss(objective)((program.model, program.guide), x)
        torch.testing.assert_close(loss.loss, -elbo.sum().detach(), rtol=1e-10, atol=0.0)
        gradients = torch.autograd.grad(loss.surrogate, list(program.parameters()))
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)
    svi = SVI(
        program.model, program.guide, functools.partial(torch.optim.Adam, lr=0.01), TraceEnum_ELBO(max_plate_nesting=1)
    )
    losses = [svi.step(x) for _ in range(20)]
    assert losses[-1] < losses[0] == pytest.approx(-elbo.sum().item(), rel=1e-10)


@pytest.mark.ci
@pytest.mark.thinned(4)
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceGraph_ELBO])
@pytest.mark.parametrize("name", ["bits", "one-hot"])
@pytest.mark.filterwarnings("ignore:(?s).*enumerate sites")  # the guide marks its site for `TraceEnum_ELBO`
@pytest.mark.usefixtures("float64")
def test_score_function_gradients_are_unbiased(name: str, objective: Any) -> None:
    program, x = vae(name), X.double()
    elbo, _ = exact_terms(program, x)
    weights = list(program.posterior.parameters())[-1]
    (expected,) = torch.autograd.grad(-elbo.sum(), weights)
    gradients = []
    for _ in range(150):
        program.zero_grad()
        loss = as_loss(objective())((program.model, program.guide), x)
        if loss.surrogate is not None:
            loss.surrogate.backward()
        gradients.append(weights.grad.clone())
    samples = torch.stack(gradients)
    assert ((samples.mean(0) - expected).abs() < 5 * samples.std(0) / math.sqrt(150)).all()


def test_a_posterior_without_a_gradient_is_refused_by_pathwise_objectives() -> None:
    program = vae("bits")
    with pytest.raises(ValueError, match="needs reparameterised latents"):
        objectives.ELBO()(sample_log_weights(program.model, program.guide, X))


@pytest.mark.usefixtures("float64")
def test_straight_through_draws_are_states_with_the_relaxed_gradient() -> None:
    logits = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
    temperature = torch.tensor(0.7)
    torch.manual_seed(3)
    z = BinaryVector(logits, temperature).rsample((50,))
    torch.manual_seed(3)
    noise = -torch.log(torch.empty(50, 3).exponential_()) + torch.log(torch.empty(50, 3).exponential_())
    relaxed = torch.sigmoid((logits + noise) / temperature)
    assert torch.equal(z, (relaxed > 0.5).double())
    weight = torch.randn(50, 3)
    (got,) = torch.autograd.grad((z * weight).sum(), logits)
    (expected,) = torch.autograd.grad((relaxed * weight).sum(), logits)
    torch.testing.assert_close(got, expected)
    logits = torch.randn(2, 3).requires_grad_()
    torch.manual_seed(3)
    z = OneHotVector(logits, temperature).rsample((50,))
    torch.manual_seed(3)
    noise = -torch.log(torch.empty(50, 2, 3).exponential_())
    relaxed = ((logits.log_softmax(-1) + noise) / temperature).softmax(-1)
    assert torch.equal(z.unflatten(-1, (2, 3)).argmax(-1), relaxed.argmax(-1))
    assert OneHotVector(logits).support.check(z).all()
    weight = torch.randn(50, 6)
    (got,) = torch.autograd.grad((z * weight).sum(), logits)
    (expected,) = torch.autograd.grad((relaxed.flatten(-2) * weight).sum(), logits)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 1.0, 15.0])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.usefixtures("float64")
def test_relaxed_bits_mass_draws_and_gradients(logit: float, temperature: float) -> None:
    u = torch.linspace(-12, 12, 200_001)
    z = u.sigmoid()
    weight = z * (1 - z) * (u[1] - u[0])
    weight[[0, -1]] /= 2
    logits = torch.tensor([logit], requires_grad=True)
    q = RelaxedBits(logits, torch.tensor(temperature))
    mass = weight * q.log_prob(z[:, None]).exp()
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0), rtol=1e-6, atol=0.0)  # the trapezoid's, at the ends
    draws = q.rsample((20_000,))
    assert q.support.check(draws).all()
    moments = torch.stack([(mass * u.square()).sum(), (mass * u).sum()])
    drawn = torch.logit(draws[:, 0])
    values = torch.stack([drawn.square(), drawn])
    error = 5 * values.std(-1) / math.sqrt(20_000) + 1e-7 * values.mean(-1).abs()
    assert ((values.mean(-1) - moments).abs() < error).all()
    each = torch.full((20_000, 1), logit, requires_grad=True)
    (gradients,) = torch.autograd.grad(torch.logit(RelaxedBits(each, q.temperature).rsample()).sum(), each)
    (expected,) = torch.autograd.grad(moments[1], logits)
    error = 5 * gradients.std() / math.sqrt(20_000) + 1e-5 * expected.abs()
    assert ((gradients.mean() - expected).abs() < error).all()


@pytest.mark.usefixtures("float64")
def test_relaxed_densities_are_the_papers() -> None:
    """PyTorch's, where it can be computed and nothing is cut off."""
    logits, temperature = torch.randn(5), torch.tensor(2.0)
    z = torch.rand(7, 5) * 0.98 + 0.01
    expected = torch.distributions.RelaxedBernoulli(temperature, logits=logits).log_prob(z).sum(-1)
    torch.testing.assert_close(RelaxedBits(logits, temperature).log_prob(z), expected, rtol=1e-9, atol=1e-8)
    logits = torch.randn(2, 3)
    z = torch.randn(7, 2, 3).softmax(-1)
    expected = torch.distributions.RelaxedOneHotCategorical(temperature, logits=logits).log_prob(z).sum(-1)
    torch.testing.assert_close(RelaxedOneHotVector(logits, temperature).log_prob(z.flatten(-2)), expected)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 2.0])
@pytest.mark.usefixtures("float64")
def test_relaxed_one_hot_mass_and_draws(temperature: float) -> None:
    """Two classes, in the logit u of the first: dz = z (1 - z) du."""
    q = RelaxedOneHotVector(torch.tensor([[0.4, -0.5]]), torch.tensor(temperature))
    u = torch.linspace(-80, 80, 100_001) / min(temperature, 1.0)
    z = torch.stack([u.sigmoid(), (-u).sigmoid()], -1)
    mass = q.log_prob(z).exp() * z.prod(-1) * (u[1] - u[0])
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0), rtol=1e-8, atol=0.0)
    draws = q.sample((20_000,))
    assert q.support.check(draws).all()
    for statistic in (lambda z: z[:, 0], lambda z: z[:, 0] * z[:, 1]):
        values = statistic(draws)
        assert (values.mean() - (mass * statistic(z)).sum()).abs() < 5 * values.std() / math.sqrt(20_000)


@pytest.mark.parametrize("logit", [0.0, 10.0, -60.0, 60.0, 1e4])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
def test_float32_extremes_stay_finite(logit: float, temperature: float) -> None:
    scale = torch.tensor(temperature)
    for make in (
        lambda raw: RelaxedBits(raw.flatten(), scale),
        lambda raw: RelaxedOneHotVector(raw, scale),
        lambda raw: BinaryVector(raw.flatten(), scale),
        lambda raw: OneHotVector(raw, scale),
    ):
        logits = torch.tensor([[logit, 0.0, -logit]], requires_grad=True)
        q = make(logits)
        z = q.rsample((500,))
        assert q.support.check(z).all()
        for value in (z, z.detach()):
            log_q = q.log_prob(value)
            assert log_q.isfinite().all()
            (gradient,) = torch.autograd.grad(log_q.sum(), logits, retain_graph=True)
            assert gradient.isfinite().all()


def test_float32_scores_its_draws_as_float64_does() -> None:
    """At logits and temperatures where PyTorch's relaxed Bernoulli gives nan."""
    logits, temperature = torch.tensor([30.0, -30.0, 0.0]), torch.tensor(0.5)
    z = RelaxedBits(logits, temperature).sample((2000,))
    exact = RelaxedBits(logits.double(), temperature.double()).log_prob(z.double())
    assert (RelaxedBits(logits, temperature).log_prob(z) - exact).abs().max() < 1e-3


@pytest.mark.parametrize("name", list(PAIRS))
def test_expand_mask_validation(name: str) -> None:
    program = vae(name)
    q = program.q_z(X)
    wide = q.expand((5, 8))
    z = wide.sample((2,))
    assert z.shape == (2, 5, 8, q.event_shape[0])
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    assert q.mask(torch.zeros(8, dtype=torch.bool)).log_prob(z[0, 0]).count_nonzero() == 0
    with pytest.raises(ValueError, match="within the support"):
        program.p_z().log_prob(torch.full(q.event_shape, 2.0))
    assert program.reconstruct(X).shape == program.sample(8).shape == (8, 3)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", list(PAIRS))
def test_captured_bit_for_bit_and_follows_the_temperature(name: str) -> None:
    objective = objectives.ELBO(2) if name not in ("bits", "one-hot") else TraceEnum_ELBO(max_plate_nesting=1)

    def steps(level: str) -> tuple[list[float], list[Tensor], str | None]:
        torch.manual_seed(0)
        pyro.clear_param_store()
        program = vae(name)
        optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
        svi = SVI(program.model, program.guide, optimizer, objective, compile=level)
        torch.manual_seed(1)
        losses = []
        for i in range(6):
            for buffer in (b for n, b in program.named_buffers() if n.endswith("temperature")):
                buffer.fill_(1.0 - 0.1 * i)
            losses.append(svi.step(X))
        return losses, [p.detach().clone() for p in program.parameters()], svi.why_eager

    losses, parameters, why = steps("graph")
    expected_losses, expected, _ = steps("off")
    if name in ("bits", "one-hot"):  # enumeration may run as it is written; then it says why
        assert losses == pytest.approx(expected_losses, rel=1e-6)
        return
    assert why is None
    assert losses == expected_losses
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"probability is 1\.5"):
        priors.BernoulliVector(3, 1.5)
    with pytest.raises(ValueError, match="do not divide a latent of 5"):
        priors.OneHotCategorical(5, 3)
    with pytest.raises(ValueError, match="temperature"):
        posteriors.GumbelSoftmax(temperature=0.0)
    with pytest.raises(ValueError, match="expected at most"):
        BinaryVector(torch.zeros(40)).enumerate_support()
    assert not BinaryVector(torch.zeros(40)).has_enumerate_support
    with pytest.raises(ValueError, match="4 classes do not divide a latent of 6 dimensions"):
        posteriors.OneHotCategorical(torch.nn.Linear(3, 6), num_classes=4)(torch.zeros(2, 3))
    for prior, posterior in (
        (priors.OneHotCategorical(6, 2), posteriors.OneHotCategorical(MLP([3]), num_classes=3)),
        (priors.BernoulliVector(4), posteriors.RelaxedBernoulliVector(MLP([3]))),
        (priors.BernoulliVector(4), posteriors.DiagonalNormal(MLP([3]))),
    ):
        with pytest.raises(ValueError, match="choose a posterior for this prior"):
            VAE((3,), prior=prior, likelihood=likelihoods.Bernoulli(MLP([3])), posterior=posterior)


def test_many_bits_go_without_listing_them() -> None:
    program = VAE(
        (3,),
        prior=priors.BernoulliVector(50),
        likelihood=likelihoods.Bernoulli(MLP([9])),
        posterior=posteriors.BernoulliVector(MLP([9])),
    )
    assert as_loss(Trace_ELBO())((program.model, program.guide), X).loss.isfinite()
