"""Estimators for discrete latents, against sums over all states and over all tuples of particles.

The expectation of an estimator of K particles is a sum over the tuples of K states, each with its probability: nothing
is drawn, and unbiased means equal to 1e-10. Where the probabilities of q are multiples of 1/K, K particles that hold
each state in proportion stand for infinitely many draws.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from replicates import (
    assert_same,
    assert_within_errors,
    block,
    distance,
    flat,
    gradient_at,
    gradient_of,
    mean_gradient,
    mean_value,
    measured,
    part_of,
)
from torch import Tensor, nn

from ppl_vae import VAE, likelihoods, posteriors, priors
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    CUBO,
    ELBO,
    EUBO,
    REINFORCE,
    RWS,
    TVO,
    VIMCO,
    EnumeratedELBO,
    GumbelSoftmaxELBO,
    as_loss,
    sample_log_weights,
)
from ppl_vae.objectives.baselines import MovingAverage

X = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)


def bits(latent_dim: int = 3) -> VAE:
    torch.manual_seed(4)
    return VAE(
        (3,),
        prior=priors.BernoulliVector(latent_dim, 0.3, learned=True),
        likelihood=likelihoods.Bernoulli(MLP([5], "tanh", init="torch")),
        posterior=posteriors.BernoulliVector(MLP([5], "tanh", init="torch")),
    ).double()


def one_hots() -> VAE:
    torch.manual_seed(4)
    return VAE(
        (3,),
        prior=priors.OneHotCategorical(4, 2, learned=True),
        likelihood=likelihoods.Bernoulli(MLP([5], "tanh", init="torch")),
        posterior=posteriors.OneHotCategorical(MLP([5], "tanh", init="torch"), num_classes=2),
    ).double()


VAES: dict[str, Callable[[], VAE]] = {"bits": bits, "two bits": functools.partial(bits, 2), "one-hot": one_hots}
every_vae = pytest.mark.parametrize("name", VAES)


def states_of(vae: VAE) -> Tensor:
    return vae.p_z().enumerate_support()


def log_joint(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(x, z) and log q(z|x) for all states, (states, batch)."""
    z = states_of(vae)
    log_p = vae.p_x(z[:, None]).log_prob(x) + vae.p_z().log_prob(z)[:, None]
    return log_p, vae.q_z(x).log_prob(z[:, None].expand(-1, len(x), -1))


def exact_elbo(vae: VAE, x: Tensor) -> Tensor:
    log_p, log_q = log_joint(vae, x)
    return (log_q.exp() * (log_p - log_q)).sum(0)


class Given(Messenger):
    """Gives a latent site its particles."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z":
            msg["value"], msg["done"] = self.z, True


def over_tuples(vae: VAE, objective: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The exact expectations of an objective's value and of its gradient for one datum, over all tuples of states."""
    z = states_of(vae)
    tuples = torch.cartesian_prod(*[torch.arange(len(z))] * k).reshape(-1, k)
    copies = x.expand(len(tuples), -1)
    particles = z[tuples[:, 0]] if k == 1 else z[tuples.T]  # (K, tuples, d), or (tuples, d)
    weights = sample_log_weights(vae.model, vae.guide, copies, num_particles=k, latents=Given(particles))
    probability = weights.joint_log_q.sum(0).exp().detach()
    assert probability.sum() == pytest.approx(1.0, rel=1e-12)
    estimate = objective(weights)
    return (probability * estimate.value).sum(), flat(gradient_of((probability * estimate.surrogate).sum(), vae))


def exact_bound(vae: VAE, x: Tensor, k: int) -> Tensor:
    """The importance-weighted bound of one datum: a sum over all tuples, differentiable in every way."""
    log_p, log_q = (v[:, 0] for v in log_joint(vae, x))
    tuples = torch.cartesian_prod(*[torch.arange(len(log_p))] * k).reshape(-1, k)
    probability = log_q[tuples].sum(1).exp()
    return (probability * ((log_p - log_q)[tuples].logsumexp(1) - math.log(k))).sum()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# Enumeration


@every_vae
def test_enumeration_is_the_sum_over_states(name: str) -> None:
    vae = VAES[name]()
    elbo = exact_elbo(vae, X)
    program = (vae.model, vae.guide)
    weights = sample_log_weights(*program, X, latents="enumerated")
    estimate = EnumeratedELBO()(weights)
    close(estimate.value, elbo.detach())
    assert weights.num_particles == len(states_of(vae))
    log_q = log_joint(vae, X)[1]
    kl = (log_q.exp() * (log_q - vae.p_z().log_prob(states_of(vae))[:, None])).sum(0)
    assert estimate.kl is not None
    assert estimate.log_likelihood is not None
    close(estimate.kl, kl.detach())
    close(estimate.log_likelihood - estimate.kl, elbo.detach())
    expected = gradient_of(elbo.sum(), vae)
    assert_same(gradient_at(program, vae, EnumeratedELBO(), X), expected)
    assert all(g.abs().max() > 0 for g in expected.values())


@every_vae
def test_enumeration_is_pyros(name: str) -> None:
    vae = VAES[name]()
    enum = TraceEnum_ELBO(max_plate_nesting=1)
    ours = as_loss(EnumeratedELBO())((vae.model, vae.guide), X)
    theirs = enum.differentiable_loss(vae.model, config_enumerate(vae.guide), X)
    close(ours.loss, theirs.detach())
    assert_same(gradient_of(ours.surrogate, vae), gradient_of(theirs, vae))
    assert ours.log_likelihood is not None
    assert ours.kl is not None
    close(ours.log_likelihood - ours.kl, -ours.loss)


class Chain(nn.Module):
    """b -> c -> x with a guide c -> b: a bit and a class of three, each of its own kind of site."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.b_prior = nn.Parameter(torch.tensor(0.4))
        self.c_prior = nn.Linear(1, 3)
        self.decoder = nn.Linear(3, 3)
        self.c_encoder = nn.Linear(3, 3)
        self.b_encoder = nn.Linear(6, 1)
        self.double()

    def model(self, x: Tensor) -> None:
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=self.b_prior))
            c = pyro.sample("c", dist.OneHotCategorical(logits=self.c_prior(b[..., None])))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(c)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=self.c_encoder(x)))
            both = torch.cat([x.expand(*c.shape[:-1], 3), c], -1)
            pyro.sample("b", dist.Bernoulli(logits=self.b_encoder(both)[..., 0]))

    def elbo(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), dtype=torch.float64)
        for b, c in itertools.product([0.0, 1.0], torch.eye(3, dtype=torch.float64)):
            bit = torch.full((len(x), 1), b, dtype=torch.float64)
            states = c.expand(len(x), 3)
            log_p = dist.Bernoulli(logits=self.b_prior).log_prob(bit[:, 0])
            log_p = log_p + self.c_prior(bit).log_softmax(-1) @ c
            log_p = log_p + dist.Bernoulli(logits=self.decoder(states)).log_prob(x).sum(-1)
            log_q = self.c_encoder(x).log_softmax(-1) @ c
            logits = self.b_encoder(torch.cat([x, states], -1))[:, 0]
            log_q = log_q + dist.Bernoulli(logits=logits).log_prob(bit[:, 0])
            total = total + log_q.exp() * (log_p - log_q)
        return total


@pytest.mark.ci
def test_two_dependent_sites_are_enumerated_jointly() -> None:
    chain = Chain()
    program = (chain.model, chain.guide)
    weights = sample_log_weights(*program, X, latents="enumerated")
    assert weights.num_particles == 6
    states = torch.cat([weights.z["b"][:, :1], weights.z["c"][:, 0]], -1)
    assert len({tuple(s.tolist()) for s in states}) == 6
    close(EnumeratedELBO()(weights).value, chain.elbo(X).detach())
    expected = gradient_of(chain.elbo(X).sum(), chain)
    assert_same(gradient_at(program, chain, EnumeratedELBO(), X), expected)
    assert all(g.abs().max() > 1e-6 for g in expected.values())
    for objective in (REINFORCE(3, "leave_one_out"), REINFORCE(2, "moving_average")):  # more than one site to score
        assert_within_errors(mean_gradient(program, chain, objective, X, 500, 40), flat(expected))


def test_a_subsampled_plate_weighs_the_sum_and_not_the_states() -> None:
    vae = bits()

    def thin(part: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        return pyro.poutine.scale(part, scale=2.5)

    whole = as_loss(EnumeratedELBO())((vae.model, vae.guide), X)
    scaled = as_loss(EnumeratedELBO())((thin(vae.model), thin(vae.guide)), X)
    close(scaled.loss, 2.5 * whole.loss)
    assert scaled.weight == 20.0


def test_enumeration_refuses_what_has_no_states_or_too_many() -> None:
    normal = VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(MLP([5])),
        posterior=posteriors.DiagonalNormal(MLP([5])),
    )
    with pytest.raises(ValueError, match=r"q at site 'z' \(Normal\) lists no states; use a discrete posterior"):
        as_loss(EnumeratedELBO())((normal.model, normal.guide), X.float())
    many = bits(17)
    with pytest.raises(ValueError, match=r"have 131072 states; expected 2 to 65,536"):
        as_loss(EnumeratedELBO())((many.model, many.guide), X)

    def program(observe: bool) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                with pyro.plate("inner", 2, dim=-2):
                    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
                if observe:
                    pyro.sample("x", dist.Normal(z.sum(-2), 1.0), obs=x)

        return run

    objective = EnumeratedELBO()
    with pytest.raises(ValueError, match=r"site 'z' lies in more than the plate of the data"):
        sample_log_weights(
            program(True), program(False), torch.randn(4), max_plate_nesting=2, latents=objective.latents
        )


# Score functions, exactly


@every_vae
@pytest.mark.parametrize(
    ("objective", "k"),
    [
        (REINFORCE(1), 1),
        (REINFORCE(2), 2),
        (REINFORCE(2, "leave_one_out"), 2),
        (REINFORCE(2, "moving_average"), 2),
        (REINFORCE(1, "learned"), 1),
    ],
    ids=repr,
)
def test_reinforce_is_unbiased(name: str, objective: REINFORCE, k: int) -> None:
    vae = VAES[name]()
    for i in (0, 3):
        x = X[i : i + 1]
        over_tuples(vae, objective, x, k)  # now the baselines are not zero
        value, gradient = over_tuples(vae, objective, x, k)
        expected = exact_elbo(vae, x).sum()
        close(value, expected.detach())
        close(gradient, flat(gradient_of(expected, vae)))


@pytest.mark.parametrize("name", ["two bits", "one-hot"])
@pytest.mark.parametrize("k", [2, 3])
def test_vimco_is_unbiased_for_the_importance_weighted_bound(name: str, k: int) -> None:
    vae = VAES[name]()
    for i in (0, 5):
        x = X[i : i + 1]
        expected = exact_bound(vae, x, k)
        value, gradient = over_tuples(vae, VIMCO(k), x, k)
        close(value, expected.detach())
        close(gradient, flat(gradient_of(expected, vae)))
        assert exact_elbo(vae, x).sum() < value < log_joint(vae, x)[0].logsumexp(0).sum()


@pytest.mark.parametrize("k", [2, 3])
def test_the_wake_phase_over_all_tuples(k: int) -> None:
    """What it says: the normalised weights of each tuple on grad log q, and on grad log p."""
    vae, x = bits(2), X[3:4]
    log_p, log_q = (v[:, 0] for v in log_joint(vae, x))
    tuples = torch.cartesian_prod(*[torch.arange(4)] * k).reshape(-1, k)
    probability = log_q[tuples].sum(1).exp().detach()
    weights = (log_p - log_q).detach()[tuples].softmax(1)
    expected = (probability[:, None] * weights * (log_p + log_q)[tuples]).sum()
    value, gradient = over_tuples(vae, RWS(k), x, k)
    close(gradient, flat(gradient_of(expected, vae)))
    close(value, exact_bound(vae, x, k).detach())


# As many particles as there are draws


def proportional() -> tuple[VAE, Tensor]:
    """Two bits under q = (1/4, 3/4): sixteen particles that are all that q can say."""
    vae = bits(2)
    layer = vae.posterior.logits.network[-1]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([-math.log(3), math.log(3)], dtype=torch.float64))
    z = states_of(vae)
    counts = (16 * vae.q_z(X[:1]).log_prob(z[:, None])[:, 0].exp()).round().long()
    assert sorted(counts.tolist()) == [1, 3, 3, 9]
    return vae, z.repeat_interleave(counts, 0)[:, None]


@pytest.mark.parametrize("objective", [TVO(16), TVO(16, 1), TVO(16, 3, 0.2), RWS(16), EUBO(16), CUBO(16), CUBO(16, 3)])
def test_the_limit_of_many_draws(objective: Any) -> None:
    vae, z = proportional()
    x = X[3:4]
    weights = sample_log_weights(vae.model, vae.guide, x, num_particles=16, latents=Given(z))
    estimate = objective(weights)
    log_p, log_q = (v[:, 0] for v in log_joint(vae, x))
    log_w, log_evidence = log_p - log_q, log_p.logsumexp(0)

    def under(beta: float) -> Tensor:
        return (((1 - beta) * log_q + beta * log_p).softmax(0) * log_w).sum()

    posterior, encoder = (log_p - log_evidence).exp().detach(), block(vae, "posterior")
    if isinstance(objective, TVO):
        expected = sum((end - beta) * under(beta) for beta, end in itertools.pairwise(objective.betas))
        gradient = flat(gradient_of(expected, vae))
    elif isinstance(objective, RWS):
        expected = log_evidence
        gradient = flat(gradient_of(log_evidence + (posterior * log_q).sum(), vae))
    else:  # an upper bound, which q alone brings down
        expected = under(1.0)
        if isinstance(objective, CUBO):
            expected = (objective.n * log_p + (1 - objective.n) * log_q).logsumexp(0) / objective.n
        assert expected > log_evidence
        gradient = torch.where(encoder, -flat(gradient_of(expected, vae)), 0.0)
    close(estimate.value[0], expected.detach())
    close(flat(gradient_of(estimate.surrogate.sum(), vae)), gradient)


# By drawing


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", ["bits", "one-hot"])
def test_gumbel_softmax_has_the_value_and_not_quite_the_gradient(name: str) -> None:
    vae = VAES[name]()
    with torch.no_grad():  # a decoder that bends
        for parameter in vae.likelihood.parameters():
            parameter.mul_(2)
    program, elbo = (vae.model, vae.guide), exact_elbo(vae, X).sum()
    exact = flat(gradient_of(elbo, vae))
    encoder = block(vae, "posterior")
    objective = GumbelSoftmaxELBO(2, temperature=0.5)
    assert_within_errors(mean_value(program, objective, X, 500), elbo.detach())
    found = mean_gradient(program, vae, objective, X, 500)
    assert distance(found, exact) > 5  # straight through
    assert torch.cosine_similarity(found.mean[encoder], exact[encoder], 0) > 0.9
    assert_within_errors(part_of(found, ~encoder), exact[~encoder])  # p sees discrete draws


def test_gumbel_softmax_draws_states_with_the_relaxed_gradient() -> None:
    vae = bits()
    torch.manual_seed(0)
    weights = sample_log_weights(
        vae.model, vae.guide, X, num_particles=4000, latents=GumbelSoftmaxELBO(1, temperature=0.5).latents
    )
    z = weights.z["z"]
    assert ((z == 0) | (z == 1)).all()
    assert z.requires_grad
    probs = vae.q_z(X).probs.detach()
    assert ((z.detach().mean(0) - probs).abs() < 5 * (probs * (1 - probs) / 4000).sqrt()).all()


def test_gumbel_softmax_refuses_other_latents() -> None:
    vae = VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(MLP([5])),
        posterior=posteriors.DiagonalNormal(MLP([5])),
    )
    with pytest.raises(TypeError, match=r"relaxes bits and one-hot vectors, and q at site 'z' is Normal; use REINF"):
        as_loss(GumbelSoftmaxELBO())((vae.model, vae.guide), X.float())


@pytest.mark.parametrize("objective", [ELBO(2), TVO(2, pathwise=True)], ids=repr)
def test_pathwise_objectives_refuse_discrete_latents(objective: Any) -> None:
    vae = bits()
    with pytest.raises(ValueError, match=r"needs reparameterised latents, .* use REINFORCE or VIMCO"):
        as_loss(objective)((vae.model, vae.guide), X)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, Trace_ELBO(4, vectorize_particles=True)])
def test_pyros_score_functions_have_the_same_expectation(elbo: Any) -> None:
    vae = bits()
    objective = elbo() if isinstance(elbo, type) else elbo
    x = X.repeat(50, 1)
    torch.manual_seed(0)
    found = []
    for _ in range(40):
        vae.zero_grad()
        loss = as_loss(objective)((vae.model, vae.guide), x)
        if loss.surrogate is not None:
            loss.surrogate.backward()
        found.append(-flat({n: p.grad.clone() for n, p in vae.named_parameters()}) / 50)
    exact = flat(gradient_of(exact_elbo(vae, X).sum(), vae))
    assert_within_errors(measured(found), exact)


def test_the_variance_of_the_baselines_is_in_the_published_order() -> None:
    """Leave-one-out and the moving average are far below none; a data-dependent offset asks for a learned one."""
    vae = bits()
    program = (vae.model, vae.guide)
    encoder = block(vae, "posterior")
    spread = {}
    for baseline in ("none", "moving_average", "leave_one_out"):
        objective = REINFORCE(4, baseline)
        mean_gradient(program, vae, objective, X, 50, 5)
        spread[baseline] = mean_gradient(program, vae, objective, X, 50).error[encoder].square().sum()
    assert spread["none"] > 5 * spread["moving_average"]
    assert spread["none"] > 5 * spread["leave_one_out"]


@pytest.mark.parametrize("lost", [math.nan, -math.inf])
def test_a_moving_average_leaves_out_what_is_not_finite(lost: float) -> None:
    average, other = MovingAverage(), MovingAverage()
    for signal in (lost, -3.0, lost, -5.0):
        average(torch.tensor([signal, -1.0]))
        if math.isfinite(signal):
            other(torch.tensor([signal, -1.0]))
    assert torch.equal(average(torch.zeros(2)), other(torch.zeros(2)))
