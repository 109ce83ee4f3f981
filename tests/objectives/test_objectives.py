"""Three ways to the same ELBO, Pyro's objects beside ours, and what is refused."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from torch import Tensor, nn

from ppl_vae import VAE, likelihoods, networks, posteriors, priors
from ppl_vae.objectives import ELBO, ArticleELBO, MeanFieldELBO, as_loss, sample_log_weights

LIKELIHOODS = {"Bernoulli": likelihoods.Bernoulli, "Normal": lambda n: likelihoods.Normal(n, scale=0.6)}


def make_vae(likelihood="Bernoulli", scale="std", seed=0) -> VAE:
    torch.manual_seed(seed)
    mlp = networks.MLP([9], activation="tanh")
    vae = VAE(
        (3, 4),
        prior=priors.StandardNormal(2),
        likelihood=LIKELIHOODS[likelihood](mlp),
        posterior=posteriors.DiagonalNormal(mlp, scale=scale),
    )
    return vae.double()


def binary(n=6) -> Tensor:
    return (torch.rand(n, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) > 0.5).double()


def loss_and_gradients(vae: VAE, objective: object, x: Tensor, seed=11) -> list[Tensor]:
    """The loss of a batch, and its gradient by every parameter, at the noise of a seed."""
    vae.zero_grad()
    torch.manual_seed(seed)
    result = as_loss(objective)((vae.model, vae.guide), x)
    if result.surrogate is not None:
        result.surrogate.backward()
    return [result.loss, *(p.grad.clone() for p in vae.parameters())]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("scale", ["std", "log_var", "softplus"])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_analytic_and_closed_form_are_one_at_the_same_noise(likelihood, scale, num_particles):
    vae, x = make_vae(likelihood, scale), binary()
    pyros = TraceMeanField_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    reference = loss_and_gradients(vae, pyros, x)
    assert all(g.abs().max() > 0 for g in reference[1:])
    assert_same(loss_and_gradients(vae, MeanFieldELBO(num_particles), x), reference)
    assert_same(loss_and_gradients(vae, ArticleELBO(num_particles, eps=0.0, normalize=True), x), reference)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_sampled_elbo_is_pyros_at_the_same_noise(likelihood, num_particles):
    vae, x = make_vae(likelihood), binary()
    pyros = Trace_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    assert_same(loss_and_gradients(vae, ELBO(num_particles), x), loss_and_gradients(vae, pyros, x))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sampled_and_analytic_agree_within_their_standard_errors(likelihood):
    vae, x = make_vae(likelihood), binary()
    log_weights = sample_log_weights(vae.model, vae.guide, x, num_particles=20_000)
    difference = log_weights.kl - log_weights.analytic_kl()
    error = difference.std(0) / math.sqrt(len(difference))
    assert (difference.mean(0).abs() < 5 * error).all()
    assert (error > 0).all()


def test_article_eps_caps_the_loss_of_a_pixel_and_stops_its_gradient():
    vae = make_vae().float()
    x = torch.zeros(2, 3, 4)
    with torch.no_grad():
        vae.likelihood.logits.network[-2].weight.zero_()
        vae.likelihood.logits.network[-2].bias.fill_(20.0)  # sigmoid(20) is 1 in float32: a wrong pixel, 12 times
    capped = loss_and_gradients(vae, ArticleELBO(), x)
    exact = loss_and_gradients(vae, MeanFieldELBO(), x)
    kl = MeanFieldELBO()(sample_log_weights(vae.model, vae.guide, x)).kl.sum()
    torch.testing.assert_close(capped[0] - kl, torch.tensor(2 * 12 * -math.log(1e-8)), rtol=1e-4, atol=0)
    torch.testing.assert_close(exact[0] - kl, torch.tensor(2 * 12 * 20.0), rtol=1e-4, atol=0)
    bias = [name for name, _ in vae.named_parameters()].index("likelihood.logits.network.2.bias") + 1
    assert capped[bias].abs().max() == 0
    assert exact[bias].min() == pytest.approx(2.0)  # one for each datum


def test_article_eps_is_small_where_nothing_saturates():
    vae, x = make_vae(), binary()
    exact, article = loss_and_gradients(vae, ArticleELBO(eps=0.0), x), loss_and_gradients(vae, ArticleELBO(), x)
    torch.testing.assert_close(article[0], exact[0], rtol=1e-6, atol=0)
    assert article[0] != exact[0]


def test_article_squared_error_is_the_normal_of_scale_sqrt_half_without_its_constant():
    vae, x = make_vae("Normal"), binary()
    vae.likelihood.scale = math.sqrt(0.5)
    article = loss_and_gradients(vae, ArticleELBO(eps=0.0), x)
    normal = loss_and_gradients(vae, MeanFieldELBO(), x)
    constant = 6 * 12 / 2 * math.log(2 * math.pi * 0.5)
    torch.testing.assert_close(article[0] + constant, normal[0], rtol=1e-10, atol=0)
    assert_same(article[1:], normal[1:])


def test_kinds_say_what_is_a_bound():
    bernoulli, normal, x = make_vae(), make_vae("Normal"), binary()

    def kind(objective, vae):
        return objective(sample_log_weights(vae.model, vae.guide, x)).kind

    assert kind(ELBO(), bernoulli) == kind(MeanFieldELBO(), bernoulli) == "lower"
    assert kind(ArticleELBO(), bernoulli) == kind(ArticleELBO(eps=0.0), normal) == "neither"
    assert kind(ArticleELBO(eps=0.0), bernoulli) == kind(ArticleELBO(eps=0.0, normalize=True), normal) == "lower"


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3),
        TraceMeanField_ELBO(num_particles=2),
        TraceGraph_ELBO(),
        RenyiELBO(alpha=0.0, num_particles=4),
        RenyiELBO(alpha=0.5, num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=lambda e: f"{type(e).__name__}-{e.num_particles}",
)
def test_pyros_objects_run_unchanged(elbo):
    vae, x = make_vae(), binary()
    torch.manual_seed(11)
    vae.zero_grad()
    loss = elbo.loss_and_grads(vae.model, vae.guide, x)
    reference = [torch.tensor(loss, dtype=torch.float64), *(p.grad.clone() for p in vae.parameters())]
    assert_same(loss_and_gradients(vae, elbo, x), reference)
    torch.manual_seed(11)
    with torch.no_grad():
        assert as_loss(elbo)((vae.model, vae.guide), x).loss.item() == pytest.approx(loss, rel=1e-10)


def test_terms_of_pyros_objects_are_read_from_their_own_traces():
    vae, x = make_vae(), binary()
    torch.manual_seed(2)
    ours = as_loss(ELBO())((vae.model, vae.guide), x)
    torch.manual_seed(2)
    theirs = as_loss(Trace_ELBO())((vae.model, vae.guide), x)
    for name in ("loss", "log_likelihood", "kl"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-10, atol=1e-10)
    assert theirs.weight == ours.weight == 6
    assert float(theirs.kl - theirs.log_likelihood) == pytest.approx(float(theirs.loss), rel=1e-10)


def test_an_adapted_pyro_object_stays_as_it_was():
    elbo = Trace_ELBO()
    before = dict(vars(elbo))
    as_loss(elbo)
    assert vars(elbo) == before


def test_pyros_object_takes_a_program_with_a_global_latent_and_has_no_terms():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.5)), 1.0))

    result = as_loss(Trace_ELBO())((model, guide), torch.randn(7))
    assert result.kl is None
    assert result.weight == 7


def test_an_enumerated_latent_has_no_terms_to_report():
    """Its traces hold every value of z side by side: their sum is the log-likelihood of no data."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(pyro.param("m", torch.zeros(3))[z], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})

    x = torch.randn(7)
    result = as_loss(TraceEnum_ELBO(max_plate_nesting=1))((model, guide), x)
    assert result.loss.item() == pytest.approx(-dist.Normal(0.0, 1.0).log_prob(x).sum().item(), rel=1e-5)
    assert result.log_likelihood is None
    assert result.kl is None
    assert result.weight == 7


def test_a_function_of_log_weights_is_an_objective():
    vae, x = make_vae(), binary()

    def iwae(log_weights):
        return log_weights.log_w.logsumexp(0) - math.log(log_weights.num_particles)

    iwae.num_particles = 4
    value = loss_and_gradients(vae, iwae, x)
    renyi = RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    assert_same(value, loss_and_gradients(vae, renyi, x))


def test_an_objective_that_does_not_speak_per_datum_is_refused():
    vae, x = make_vae(), binary()
    with pytest.raises(ValueError, match=r"returned a value of shape \(1, 6\); expected one value per datum, \(6,\)"):
        as_loss(lambda log_weights: log_weights.log_w)((vae.model, vae.guide), x)
    with pytest.raises(ValueError, match="expected one value per datum"):
        as_loss(lambda log_weights: log_weights.log_w.mean())((vae.model, vae.guide), x)
    with pytest.raises(ValueError, match="returned a value of shape None"):
        as_loss(lambda log_weights: 3.0)((vae.model, vae.guide), x)


def test_what_is_no_objective_is_refused():
    with pytest.raises(TypeError, match=r"did you mean ELBO\(\)"):
        as_loss(ELBO)
    with pytest.raises(TypeError, match="a function of log-weights"):
        as_loss("ELBO")
    for elbo in (ReweightedWakeSleep(), TraceTailAdaptive_ELBO(vectorize_particles=True)):
        with pytest.raises(TypeError, match="has two values or none, where one to follow was expected"):
            as_loss(elbo)


@pytest.mark.parametrize("objective", [ELBO, MeanFieldELBO, ArticleELBO])
@pytest.mark.parametrize("num_particles", [0, -1, 2.5, True])
def test_particles_are_a_positive_integer(objective, num_particles):
    with pytest.raises(ValueError, match=r"num_particles is .*; expected a positive integer"):
        objective(num_particles=num_particles)


@pytest.mark.parametrize("eps", [-1e-8, math.nan, 1.0])
def test_eps_is_checked(eps):
    with pytest.raises(ValueError, match="eps is"):
        ArticleELBO(eps=eps)


class _StudentT(nn.Module):
    """q(z|x) without a closed-form KL to a normal."""

    def forward(self, x):
        return dist.StudentT(5.0, torch.zeros(len(x), 2, dtype=torch.float64), 1.0).to_event(1)


class _Laplace(nn.Module):
    """p(x|z) of a kind the article does not know."""

    def forward(self, z):
        return dist.Laplace(torch.zeros(*z.shape[:-1], 3, 4), 1.0).to_event(2)


def test_a_site_without_closed_form_is_refused_by_name():
    vae = make_vae()
    vae.posterior = _StudentT()
    with pytest.raises(NotImplementedError, match="site 'z' between StudentT and Normal; use the sampled one"):
        MeanFieldELBO()(sample_log_weights(vae.model, vae.guide, binary()))
    with pytest.raises(ValueError, match="given StudentT and Normal; use ELBO"):
        ArticleELBO()(sample_log_weights(vae.model, vae.guide, binary()))


def test_the_article_refuses_what_it_has_no_formula_for():
    vae, x = make_vae(), binary()
    vae.prior.loc += 1.0
    with pytest.raises(ValueError, match="needs a standard normal prior"):
        ArticleELBO()(sample_log_weights(vae.model, vae.guide, x))
    vae = make_vae()
    vae.likelihood = _Laplace()
    with pytest.raises(ValueError, match="knows Bernoulli and Normal likelihoods, not Laplace"):
        ArticleELBO()(sample_log_weights(vae.model, vae.guide, x))


@pytest.mark.parametrize("objective", [ELBO(), MeanFieldELBO()])
def test_a_latent_that_is_not_reparameterised_is_refused_while_training(objective):
    def program(observe):
        def run(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.3)))
                if observe:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    log_weights = sample_log_weights(program(True), program(False), torch.randn(5))
    with pytest.raises(ValueError, match=r"q at site 'z' \(Bernoulli\) is not; use REINFORCE or VIMCO"):
        objective(log_weights)
    with torch.no_grad():
        assert objective(log_weights).value.shape == (5,)
