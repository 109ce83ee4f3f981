"""The VAE as a Pyro program: usable with Pyro's inference, one of many in a process, clear about bad pieces."""

from __future__ import annotations

import copy
import gc
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro import infer, poutine
from pyro.nn import PyroModule, PyroParam
from pyro.ops.stats import effective_sample_size
from torch import Tensor, nn

from ppl_vae import SVI, VAE, data, likelihoods, objectives, posteriors, priors
from ppl_vae._scopes import evaluation_mode
from ppl_vae.networks import MLP

SHAPE, PIXELS, LATENT = (1, 2, 3), 6, 2


def make(x_shape: Any = SHAPE, network: Any = None, **pieces: Any) -> VAE:
    """A small VAE; pieces given by name replace its own."""
    network = MLP([8]) if network is None else network
    defaults = {
        "prior": lambda: priors.StandardNormal(LATENT),
        "likelihood": lambda: likelihoods.Bernoulli(network),
        "posterior": lambda: posteriors.DiagonalNormal(network),
    }
    return VAE(x_shape, **{role: pieces[role] if role in pieces else piece() for role, piece in defaults.items()})


def binary(batch: int = 16) -> Tensor:
    """Data with structure to learn: two patterns and a little noise."""
    pattern = torch.randint(2, (batch, 1, 1, 1)).expand(batch, *SHAPE)
    return (pattern ^ (torch.rand(batch, *SHAPE) < 0.1).long()).float()


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def moved(module: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True)]


def steps(vae: VAE, x: Tensor, count: int, elbo: Any = None, lr: float = 0.02) -> list[float]:
    svi = infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": lr}), elbo or infer.Trace_ELBO())
    return [svi.step(x) for _ in range(count)]


# Pyro's inference, as it is


@pytest.mark.parametrize(
    "elbo",
    [
        infer.Trace_ELBO(),
        infer.Trace_ELBO(4, vectorize_particles=True),
        infer.TraceMeanField_ELBO(),
        infer.TraceMeanField_ELBO(4, vectorize_particles=True),
        infer.RenyiELBO(num_particles=4),
        infer.RenyiELBO(alpha=0.5, num_particles=4, vectorize_particles=True),
    ],
    ids=lambda elbo: f"{type(elbo).__name__}-{elbo.num_particles}",
)
def test_trains_by_pyros_svi(elbo: Any) -> None:
    vae, x = make(), binary()
    before = values(vae)
    losses = steps(vae, x, 40, elbo)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert all(moved(vae, before)), "a parameter of encoder or decoder was not trained"
    names = {name.split("$$$")[1] for name in pyro.get_param_store() if name.startswith(vae.name)}
    assert names == {name for name, _ in vae.named_parameters()}


def test_subsampled_by_the_users_own_plate() -> None:
    """The scale N/B of a plate around the pieces reaches Pyro's loss."""
    vae, x = make(), binary(20)

    def program(role: str) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            pyro.module("mine", vae)
            with pyro.plate("data", len(x), subsample=torch.arange(5), dim=-1) as i:
                z = pyro.sample("z", vae.prior() if role == "model" else vae.posterior(x[i]))
                if role == "model":
                    pyro.sample("x", vae.likelihood(z), obs=x[i])

        return run

    pyro.set_rng_seed(1)
    scaled = infer.TraceMeanField_ELBO().loss(program("model"), program("guide"), x)
    pyro.set_rng_seed(1)
    plain = infer.TraceMeanField_ELBO().loss(vae.model, vae.guide, x[:5])
    assert scaled == pytest.approx(4 * plain, rel=1e-5)


def test_model_scores_p_of_x_and_z() -> None:
    vae, x = make().double(), binary(4).double()
    z = torch.randn(4, LATENT).double()
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(x)
    expected = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x)
    torch.testing.assert_close(trace.log_prob_sum(), expected.sum(), rtol=1e-10, atol=0.0)
    trace = poutine.trace(vae.guide).get_trace(x)
    expected = vae.posterior(x).log_prob(trace.nodes["z"]["value"])
    torch.testing.assert_close(trace.log_prob_sum(), expected.sum(), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("prior", [priors.StandardNormal, priors.MixtureOfNormals, priors.SplineFlow])
@pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli, likelihoods.Beta])
def test_no_data_are_drawn_where_none_are_asked_for(prior: Any, likelihood: Any, mean: bool) -> None:
    vae = VAE((1, 2, 3), prior=prior(2), likelihood=likelihood(MLP([4])), posterior=posteriors.DiagonalNormal(MLP([4])))
    assert vae.sample(0, mean=mean).shape == (0, 1, 2, 3)


def test_model_without_data_samples_it() -> None:
    vae = make()
    x = vae.model(size=5)
    assert x.shape == (5, *SHAPE)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match=r"VAE.model was given neither x nor size; give x to score it, or size=n"):
        vae.model()


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel: bool) -> None:
    vae, x = make(), binary(5)
    prior = infer.Predictive(vae.model, num_samples=7, parallel=parallel)(size=3)
    assert prior["z"].shape == (7, 3, LATENT)
    assert prior["x"].shape == (7, 3, *SHAPE)
    # posterior predictive: new x ~ p(x|z) with z ~ q(z|x)
    unconditioned = poutine.uncondition(vae.model)
    replica = infer.Predictive(unconditioned, guide=vae.guide, num_samples=7, parallel=parallel)(x)
    assert replica["x"].shape == (7, 5, *SHAPE)
    posterior = infer.Predictive(vae.guide, num_samples=7, parallel=parallel)(x)
    assert posterior["z"].shape == (7, 5, LATENT)
    again = infer.Predictive(vae.model, {"z": posterior["z"]}, parallel=parallel)(size=5)
    assert again["x"].shape == (7, 5, *SHAPE)


def test_predictive_follows_the_model() -> None:
    model = LinearGaussian.random()
    vae = model.vae()
    n, (x,) = 4000, model.sample(1)
    prior = infer.Predictive(vae.model, num_samples=1)(size=n)["x"][0]
    assert_mean(prior, model.bias)
    covariance = model.weight @ model.weight.T + model.scale**2 * torch.eye(len(model.bias)).double()
    assert_mean((prior - model.bias) ** 2, covariance.diagonal())
    unconditioned = poutine.uncondition(vae.model)
    replicas = infer.Predictive(unconditioned, guide=vae.guide, num_samples=n, parallel=True)(x[None])["x"][:, 0]
    z_mean = model.encoder_weight @ x + model.encoder_bias
    assert_mean(replicas, model.weight @ z_mean + model.bias)
    spread = (model.weight * model.std) @ (model.weight * model.std).T
    assert_mean((replicas - replicas.mean(0)) ** 2, (spread.diagonal() + model.scale**2) * (n - 1) / n)


def assert_mean(samples: Tensor, expected: Tensor, size: Tensor | int | None = None) -> None:
    """The mean over dim 0 within 5 standard errors; `size` is how many independent samples they are worth."""
    error = samples.std(0) / torch.as_tensor(len(samples) if size is None else size).sqrt()
    assert ((samples.mean(0) - expected).abs() / error).max() < 5


@pytest.mark.slow
def test_nuts_finds_the_posterior_of_one_datum() -> None:
    model = LinearGaussian.random(x_dim=4)
    vae, x = model.vae(), model.sample(1)
    before = values(vae)
    mcmc = infer.MCMC(infer.NUTS(vae.model), num_samples=400, warmup_steps=150, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"][:, 0]
    mean_map, covariance = model.posterior_map()
    mean = mean_map @ (x[0] - model.bias)
    for samples, expected in ((z, mean), ((z - mean) ** 2, covariance.diagonal())):
        size = effective_sample_size(samples[None])
        assert (size > 50).all(), "too few to say anything"
        assert_mean(samples, expected, size)
    products = (z - mean).prod(1, keepdim=True)
    assert_mean(products, covariance[0, 1], effective_sample_size(products[None]))
    assert not any(moved(vae, before)), "MCMC moved the parameters"
    assert all(p.grad is None for p in vae.parameters())


# More than one VAE


def seeded_steps(*vaes: VAE, x: Tensor, count: int = 5) -> None:
    """`count` steps of each VAE in turn, each at its own noise."""
    svis = [infer.SVI(v.model, v.guide, pyro.optim.Adam({"lr": 0.05}), infer.Trace_ELBO()) for v in vaes]
    for i in range(count):
        for place, svi in enumerate(svis):
            pyro.set_rng_seed(1000 * place + i)
            svi.step(x)


@pytest.mark.parametrize("order", ["built together", "built in turn", "copied", "built while training"])
def test_two_vaes_are_each_what_they_are_alone(order: str) -> None:
    x = binary()

    def new(seed: int) -> VAE:
        pyro.set_rng_seed(seed)
        return make()

    alone = new(0)
    seeded_steps(alone, x=x)
    expected = values(alone)
    pyro.clear_param_store()
    a = new(0)
    if order == "copied":
        b = copy.deepcopy(a)  # the same parameters, at other noise
    elif order == "built while training":
        seeded_steps(new(2), x=x)
        b = new(1)
        a = new(0)
    else:
        b = new(1)
        if order == "built in turn":
            seeded_steps(b, x=x)
    seeded_steps(a, b, x=x)
    assert not any(moved(a, expected)), "A is not what it is alone"
    assert all(moved(b, expected)), "B was not trained, or is A"


def test_names_are_unique_and_stay() -> None:
    vae = make()
    other = copy.deepcopy(vae)
    third = copy.copy(vae)
    assert len({vae.name, other.name, third.name, make().name}) == 4
    assert vae.name == vae.name
    x = binary()
    steps(vae, x, 2)
    trained_copy = copy.deepcopy(vae)
    before, before_copy = values(vae), values(trained_copy)
    steps(trained_copy, x, 2)
    assert not any(moved(vae, before))
    assert all(moved(trained_copy, before_copy))


def test_a_name_is_not_used_again_after_a_vae_is_gone() -> None:
    vae, x = make(), binary()
    steps(vae, x, 2)
    name = vae.name
    del vae
    gc.collect()
    other = make()
    before = values(other)
    assert other.name != name
    steps(other, x, 2)
    assert all(moved(other, before))


class Decoder(nn.Module):
    """A foreign likelihood that inherits nothing of ours; its module is called as the encoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(LATENT, PIXELS)

    def forward(self, z: Tensor) -> Any:
        return dist.ContinuousBernoulli(logits=self.network(z).reshape(*z.shape[:-1], *SHAPE)).to_event(3)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(PIXELS, 2 * LATENT)

    def forward(self, x: Tensor) -> Any:
        mean, log_std = self.network(x.flatten(1)).chunk(2, -1)
        return dist.Normal(mean, log_std.exp()).to_event(1)


def test_modules_with_the_same_names_do_not_meet() -> None:
    """Pyro's trap: `pyro.module` under a name that is taken trains the first module in the second one's place."""
    a, b = (make(likelihood=Decoder(), posterior=Encoder()) for _ in range(2))
    x = torch.rand(16, *SHAPE)
    before_a, before_b = values(a), values(b)
    steps(b, x, 2)
    assert not any(moved(a, before_a))
    assert all(moved(b, before_b))
    steps(a, x, 2)
    assert all(moved(a, before_a))


def test_a_piece_that_registers_a_name_that_is_taken_is_refused() -> None:
    def piece(network: nn.Module) -> Callable[[Tensor], Any]:
        def likelihood(z: Tensor) -> Any:
            pyro.module("decoder", network)
            return dist.Bernoulli(logits=network(z).reshape(*z.shape[:-1], *SHAPE)).to_event(3)

        return likelihood

    a = make(likelihood=piece(nn.Linear(LATENT, PIXELS)))
    steps(a, binary(), 1)
    with pytest.raises(ValueError, match=r"likelihood depends on a parameter that the VAE cannot see"):
        make(likelihood=piece(nn.Linear(LATENT, PIXELS)))


class LearntPrior(PyroModule):
    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.loc = PyroParam(torch.zeros(LATENT))
        self.scale = PyroParam(torch.ones(LATENT), constraint=dist.constraints.positive)

    def forward(self) -> Any:
        return dist.Normal(self.loc, self.scale).to_event(1)


def test_a_pyro_module_without_a_name_is_not_shared_in_silence() -> None:
    x = binary()
    a = make(prior=LearntPrior())
    steps(a, x, 3)
    assert a.prior.loc.abs().min() > 0
    with pytest.raises(ValueError, match=r"prior has taken over parameters of another module .* give it a name"):
        make(prior=LearntPrior())
    b = make(prior=LearntPrior("b_prior"))
    assert b.prior.loc.abs().max() == 0
    steps(b, x, 1)
    before = a.prior.loc.detach().clone()
    steps(b, x, 3)
    assert torch.equal(a.prior.loc, before)
    assert b.prior.loc.abs().min() > 0


def test_a_copy_that_would_share_a_pyro_module_is_refused() -> None:
    a, x = make(prior=LearntPrior()), binary()
    steps(a, x, 2)
    b = copy.deepcopy(a)
    with pytest.raises(ValueError, match=r"VAE: Pyro's store holds another tensor than the parameter 'prior"):
        steps(b, x, 3)


# Parameters that Pyro would not train


def test_replaced_parameters_are_not_left_untrained_in_silence() -> None:
    vae, x = make(), binary()
    steps(vae, x, 2)
    vae.load_state_dict({name: value.clone() for name, value in vae.state_dict().items()}, assign=True)
    with pytest.raises(
        ValueError, match=r"holds another tensor than the parameter 'likelihood.*; call pyro.clear_param_store\(\)"
    ):
        steps(vae, x, 1)
    pyro.clear_param_store()
    before = values(vae)
    steps(vae, x, 1)
    assert all(moved(vae, before))


def test_parameters_that_are_not_contiguous_are_not_left_untrained_in_silence() -> None:
    """Pyro's store keeps a contiguous copy of such a parameter, and trains that."""

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(PIXELS, LATENT).T)

        def forward(self, z: Tensor) -> Tensor:
            return z @ self.weight

    vae, x = make((PIXELS,), likelihood=likelihoods.Bernoulli(Transposed())), binary().flatten(1)
    with pytest.raises(ValueError, match=r"'likelihood.logits.network.weight', which nothing would train; make it con"):
        steps(vae, x, 1)
    weight = vae.likelihood.logits.network.weight
    weight.data = weight.data.contiguous()
    pyro.clear_param_store()
    before = values(vae)
    steps(vae, x, 1)
    assert all(moved(vae, before))


def test_loading_moving_and_functional_calls_keep_a_program_trainable() -> None:
    vae, x = make(), binary()
    steps(vae, x, 2)
    vae.load_state_dict({name: value.clone() for name, value in vae.state_dict().items()})
    vae.double()
    before = values(vae)
    steps(vae, x.double(), 2)
    assert all(moved(vae, before))

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, x: Tensor) -> Tensor:
            return objectives.as_loss(objectives.ELBO())((self.vae.model, self.vae.guide), x).loss

    other = {f"vae.{name}": torch.zeros_like(p) for name, p in vae.named_parameters()}
    at_zero = torch.func.functional_call(Loss(), other, (x.double(),))
    assert at_zero.isfinite()
    before = values(vae)
    steps(vae, x.double(), 1)
    assert all(moved(vae, before))


def test_frozen_parameters_stay_without_a_word() -> None:
    vae, x = make(), binary()
    vae.posterior.requires_grad_(False)
    before = values(vae.posterior), values(vae.likelihood)
    steps(vae, x, 2)
    assert not any(moved(vae.posterior, before[0]))
    assert all(moved(vae.likelihood, before[1]))


# Foreign pieces


def test_bare_functions_and_plain_modules() -> None:
    vae = make(prior=lambda: dist.Laplace(torch.zeros(LATENT), 1.0).to_event(1), likelihood=Decoder())
    x = torch.rand(16, *SHAPE)
    before = values(vae)
    losses = steps(vae, x, 30)
    assert losses[-1] < losses[0]
    assert all(moved(vae, before))
    assert vae.sample(3).shape == vae.sample(3, mean=False).shape == (3, *SHAPE)
    for objective in (objectives.ELBO(3), infer.TraceMeanField_ELBO(), infer.RenyiELBO(num_particles=2)):
        assert SVI(vae.model, vae.guide, torch.optim.SGD, objective).evaluate(x).loss.isfinite()
    vae = make(prior=lambda: dist.StudentT(5.0 * torch.ones(LATENT)).to_event(1), likelihood=Decoder())
    with pytest.raises(NotImplementedError, match=r"no closed form of the KL at site 'z' between Normal and StudentT"):
        SVI(vae.model, vae.guide, torch.optim.SGD, objectives.MeanFieldELBO()).evaluate(x)


def test_every_piece_a_function_with_pyro_param() -> None:
    def prior() -> Any:
        loc = pyro.param("prior_loc", lambda: torch.zeros(LATENT))
        scale = pyro.param("prior_scale", lambda: torch.ones(LATENT), constraint=dist.constraints.positive)
        return dist.Normal(loc, scale).to_event(1)

    def likelihood(z: Tensor) -> Any:
        weight = pyro.param("decoder", lambda: torch.randn(LATENT, PIXELS))
        return dist.Bernoulli(logits=(z @ weight).reshape(*z.shape[:-1], *SHAPE)).to_event(3)

    def posterior(x: Tensor) -> Any:
        weight = pyro.param("encoder", lambda: torch.randn(PIXELS, LATENT))
        return dist.Normal(x.flatten(1) @ weight, 0.5).to_event(1)

    vae, x = make(prior=prior, likelihood=likelihood, posterior=posterior), binary()
    store = pyro.get_param_store()
    names = ["prior_loc", "prior_scale", "decoder", "encoder"]
    before = [store[name].detach().clone() for name in names]
    losses = steps(vae, x, 30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert not any(torch.equal(store[name], old) for name, old in zip(names, before, strict=True))
    assert vae.reconstruct(x).shape == x.shape


def test_a_foreign_piece_may_be_bound() -> None:
    class Constant(nn.Module):
        def bind(self, binding: Any) -> None:
            self.mean = nn.Parameter(torch.zeros(binding.x_shape))

        def forward(self, z: Tensor) -> Any:
            return dist.Normal(self.mean.expand(*z.shape[:-1], *self.mean.shape), 1.0).to_event(self.mean.dim())

    vae = make(likelihood=Constant())
    assert vae.likelihood.mean.shape == SHAPE
    assert vae.reconstruct(torch.randn(4, *SHAPE)).shape == (4, *SHAPE)


def test_frozen_networks_out_of_sight_are_allowed() -> None:
    pretrained = nn.Linear(LATENT, PIXELS).requires_grad_(False)
    vae = make(likelihood=lambda z: dist.Normal(pretrained(z).reshape(*z.shape[:-1], *SHAPE), 1.0).to_event(3))
    steps(vae, torch.randn(8, *SHAPE), 2)


# What a VAE is asked


@pytest.mark.parametrize("shape", [(PIXELS,), (1, 2, 3), [3, 2], torch.Size([2, 3, 2])], ids=str)
def test_shapes(shape: Any) -> None:
    vae = make(shape)
    assert vae.x_shape == tuple(shape)
    assert vae.latent_shape == (LATENT,)
    x = torch.rand(5, *shape)
    assert vae.encode(x).shape == (5, LATENT)
    assert vae.decode(torch.randn(5, LATENT)).shape == (5, *shape)
    assert vae.decode(torch.randn(4, 5, LATENT)).shape == (4, 5, *shape)
    assert vae.reconstruct(x).shape == (5, *shape)
    assert vae.sample().shape == (16, *shape)
    assert vae.sample(3, mean=False).shape == (3, *shape)
    for result in (vae.encode(x), vae.reconstruct(x), vae.sample(2)):
        assert not result.requires_grad


def test_sizes_flow_from_the_data() -> None:
    digits = data.load("digits")
    vae = make(digits)
    assert vae.x_shape == (1, 8, 8)
    assert vae.reconstruct(digits.train.x[:3]).shape == (3, 1, 8, 8)


def test_what_is_returned_is_a_mean() -> None:
    vae, x = make(), binary(4)
    assert torch.equal(vae.encode(x), vae.posterior(x).mean)
    z = torch.randn(4, LATENT)
    assert torch.equal(vae.decode(z), torch.sigmoid(vae.likelihood.logits(z)[0]))
    assert torch.equal(vae.reconstruct(x), vae.reconstruct(x)), "no noise is drawn"
    assert set(vae.sample(5, mean=False).unique().tolist()) <= {0.0, 1.0}
    assert not set(vae.sample(5).unique().tolist()) <= {0.0, 1.0}


def test_questions_are_answered_in_evaluation_mode_and_leave_each_mode_as_it_was() -> None:
    vae, x = make(network=MLP([8], batch_norm=True)), binary(4)
    frozen = next(m for m in vae.posterior.modules() if isinstance(m, nn.BatchNorm1d))
    frozen.eval()
    modes = {name: module.training for name, module in vae.named_modules()}
    buffers = {name: value.clone() for name, value in vae.named_buffers()}
    inside: list[bool] = []
    vae.likelihood.register_forward_pre_hook(lambda module, _: inside.extend(m.training for m in vae.modules()))
    for ask in (lambda: vae.encode(x), lambda: vae.decode(torch.zeros(2, LATENT)), lambda: vae.sample(2)):
        ask()
    vae.reconstruct(x)
    assert inside
    assert not any(inside)
    assert {name: module.training for name, module in vae.named_modules()} == modes
    assert modes["posterior"]
    assert not frozen.training
    assert all(torch.equal(value, buffers[name]) for name, value in vae.named_buffers())
    with pytest.raises(ValueError, match="given an input of shape"):
        vae.decode(torch.zeros(2, LATENT + 1))
    assert {name: module.training for name, module in vae.named_modules()} == modes


def test_evaluation_mode_takes_several_modules() -> None:
    a, b = nn.Sequential(nn.Dropout()), nn.Sequential(nn.Dropout().eval())
    with evaluation_mode(a, b):
        assert not any(m.training for m in (a, a[0], b, b[0]))
    assert [m.training for m in (a, a[0], b, b[0])] == [True, True, True, False]


def test_construction_leaves_the_random_state_alone() -> None:
    """Parameters depend on the seed and on the networks' own draws, not on how often pieces are tried."""
    encoder_shapes, decoder_shapes = (SHAPE, (2 * LATENT,)), ((LATENT,), SHAPE)
    pyro.set_rng_seed(3)
    decoder, encoder = MLP([8])(*decoder_shapes), MLP([8])(*encoder_shapes)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    pyro.set_rng_seed(3)
    vae = make()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    for piece, network in ((vae.likelihood, decoder), (vae.posterior, encoder)):
        assert all(torch.equal(p, q) for p, q in zip(piece.parameters(), network.parameters(), strict=True))
    pyro.set_rng_seed(3)
    again = make()
    assert not any(moved(again, values(vae)))
    assert all(p.grad is None for p in vae.parameters())
    assert all(module.training for module in vae.modules())


def test_ready_made_networks_take_no_draw_and_move_no_statistics() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    decoder = nn.Sequential(nn.Linear(LATENT, PIXELS), nn.BatchNorm1d(PIXELS), Noise())
    encoder = nn.Sequential(nn.Linear(PIXELS, 2 * LATENT), nn.BatchNorm1d(2 * LATENT), nn.Dropout())
    before, state = [b.clone() for b in itertools.chain(decoder.buffers(), encoder.buffers())], torch.get_rng_state()
    make((PIXELS,), likelihood=likelihoods.Normal(decoder), posterior=posteriors.DiagonalNormal(encoder))
    assert torch.equal(torch.get_rng_state(), state)
    after = [b.clone() for b in itertools.chain(decoder.buffers(), encoder.buffers())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_global_switch_is_flipped() -> None:
    before = torch.distributions.Distribution._validate_args, pyro.settings.get(), torch.is_grad_enabled()
    vae = make()
    vae.sample(2)
    assert (torch.distributions.Distribution._validate_args, pyro.settings.get(), torch.is_grad_enabled()) == before
    with torch.no_grad():
        make()  # the look for parameters out of sight needs gradients, whatever the caller's mode
        assert not torch.is_grad_enabled()


# Bad pieces


def normal(*shape: int, event: int = 1) -> Any:
    return dist.Normal(torch.zeros(shape), 1.0).to_event(event)


class Hidden:
    """Not an nn.Module, so that its network is out of sight."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, inputs: Tensor) -> Any:
        return dist.Normal(self.network(inputs), 1.0).to_event(1)


class Stiff(torch.distributions.MultivariateNormal):
    def __init__(self) -> None:
        super().__init__(torch.zeros(2), torch.eye(2))


BAD_PIECES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "torch distribution that does not expand",
        {"prior": lambda: Stiff()},
        TypeError,
        r"prior returned Stiff, which does not expand to more data .*; give its class a method expand",
    ),
    (
        "torch distribution of scalars",
        {"posterior": lambda x: torch.distributions.Normal(torch.zeros(len(x), 2), 1.0)},
        ValueError,
        r"posterior returned a distribution of batch_shape \(2, 2\); expected \(2,\)",
    ),
    (
        "nothing",
        {"likelihood": lambda z: None},
        TypeError,
        r"likelihood returned .*NoneType; expected a distribution of Pyro, torch or zuko \(return one\)",
    ),
    (
        "tensor",
        {"likelihood": lambda z: torch.zeros(len(z), PIXELS)},
        TypeError,
        r"likelihood returned torch.Tensor; expected a distribution of Pyro, torch or zuko \(return one\)",
    ),
    (
        "class",
        {"prior": priors.StandardNormal},
        TypeError,
        r"prior is <class .*StandardNormal'>; expected an object or a function",
    ),
    ("class", {"likelihood": likelihoods.Bernoulli}, TypeError, r"likelihood is <class .*Bernoulli'>; expected an obj"),
    ("not callable", {"posterior": 3}, TypeError, r"posterior is 3; expected an object or a function that returns a d"),
    (
        "scalar latent",
        {"prior": lambda: normal(event=0)},
        ValueError,
        r"prior returned a distribution of event_shape \(\); expected \(latent,\)",
    ),
    (
        "latent of two dimensions",
        {"prior": lambda: normal(2, 2, event=2)},
        ValueError,
        r"prior returned a distribution of event_shape \(2, 2\); expected \(latent,\)",
    ),
    (
        "latent of size 0",
        {"prior": lambda: normal(0)},
        ValueError,
        r"prior returned a distribution of event_shape \(0,\); expected \(latent,\), a vector of at least one dim",
    ),
    (
        "prior without to_event",
        {"prior": lambda: normal(2, event=0)},
        ValueError,
        r"prior returned a distribution of batch_shape \(2,\); expected \(\): .*\.to_event\(n\)",
    ),
    (
        "posterior without to_event",
        {"posterior": lambda x: normal(len(x), 2, event=0)},
        ValueError,
        r"posterior returned a distribution of batch_shape \(2, 2\); expected \(2,\): .*\.to_event\(n\)",
    ),
    (
        "posterior of another latent",
        {"posterior": lambda x: normal(len(x), 3)},
        ValueError,
        r"posterior returned a distribution of event_shape \(3,\); expected \(2,\)",
    ),
    (
        "posterior without batch",
        {"posterior": lambda x: normal(2)},
        ValueError,
        r"posterior returned a distribution of batch_shape \(\); expected \(2,\)",
    ),
    (
        "likelihood of another event",
        {"likelihood": lambda z: normal(len(z), 7)},
        ValueError,
        r"likelihood returned a distribution of event_shape \(7,\); expected \(6,\)",
    ),
    (
        "likelihood with too small an event",
        {"likelihood": lambda z: normal(len(z), PIXELS, event=0)},
        ValueError,
        r"likelihood returned a distribution of batch_shape \(2, 6\); expected \(2,\)",
    ),
    (
        "network that does not take z",
        {"likelihood": likelihoods.Bernoulli(nn.Linear(3, PIXELS))},
        ValueError,
        r"likelihood Bernoulli: its network does not take an input of shape \(2,\) per datum",
    ),
    (
        "network that does not give x",
        {"likelihood": likelihoods.Bernoulli(nn.Linear(2, 5))},
        ValueError,
        r"likelihood Bernoulli: its network maps \(2,\) to \(5,\) per datum; expected \(6,\)",
    ),
    (
        "network with one parameter for two",
        {"posterior": posteriors.DiagonalNormal(nn.Linear(PIXELS, 2))},
        ValueError,
        r"posterior DiagonalNormal: its network maps \(6,\) to \(2,\) per datum; expected \(4,\)",
    ),
    (
        "foreign piece that does not take z",
        {"likelihood": lambda z: dist.Normal(z @ torch.zeros(3, PIXELS), 1.0).to_event(1)},
        ValueError,
        r"likelihood failed when called with \(2, 2\): .*mat1 and mat2",
    ),
    (
        "error of any kind",
        {"posterior": lambda x: x.no_such_thing},
        ValueError,
        r"posterior failed when called with \(2, 6\): .*no_such_thing",
    ),
    (
        "undefined parameters",
        {"prior": lambda: dist.Normal(torch.zeros(2), -1.0).to_event(1)},
        ValueError,
        r"prior failed when called with no argument: Expected parameter scale",
    ),
    (
        "hidden parameters",
        {"likelihood": Hidden(nn.Linear(2, PIXELS))},
        ValueError,
        r"likelihood depends on a parameter that the VAE cannot see, so that nothing would train it: make it an nn.Mod",
    ),
    (
        "hidden parameters",
        {"prior": lambda: dist.Normal(nn.Parameter(torch.zeros(2)), 1.0).to_event(1)},
        ValueError,
        r"prior depends on a parameter that the VAE cannot see",
    ),
    (
        "hidden parameters in a list",
        {
            "posterior": type(
                "Listed",
                (nn.Module,),
                {"networks": [nn.Linear(6, 2)], "forward": lambda self, x: Hidden(self.networks[0])(x)},
            )()
        },
        ValueError,
        r"posterior depends on a parameter that the VAE cannot see",
    ),
]


@pytest.mark.parametrize(
    ("pieces", "kind", "message"), [case[1:] for case in BAD_PIECES], ids=[c[0] for c in BAD_PIECES]
)
def test_bad_pieces(pieces: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make((PIXELS,), **pieces)


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ((), "tuple"),
        ((0,), r"\(0,\)"),
        ((1, -8, 8), r"\(1, -8, 8\)"),
        ((2.5,), r"\(2.5,\)"),
        (784, "int"),
        (torch.zeros(5, 6), "Tensor"),
        (None, "NoneType"),
    ],
    ids=str,
)
def test_bad_shapes(shape: Any, given: str) -> None:
    message = rf"VAE: the shape of one datum is {given}; expected positive sizes such as \(1, 28, 28\), or a Dataset"
    with pytest.raises(ValueError, match=message):
        make(shape)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: priors.StandardNormal(0), "prior StandardNormal: latent_dim is 0; expected a positive integer"),
        (lambda: priors.StandardNormal(-2), "prior StandardNormal: latent_dim is -2; expected a positive integer"),
        (lambda: priors.StandardNormal(2.0), "prior StandardNormal: latent_dim is 2.0; expected a positive integer"),
        (lambda: likelihoods.Normal(scale=0.0), "likelihood Normal: scale is 0.0; expected a finite number above zero"),
        (lambda: likelihoods.Normal(scale=-1), "likelihood Normal: scale is -1; expected a finite number above zero"),
        (lambda: likelihoods.Normal(scale=float("nan")), "likelihood Normal: scale is nan; expected a finite number"),
        (lambda: likelihoods.Normal(scale=float("inf")), "likelihood Normal: scale is inf; expected a finite number"),
        (lambda: likelihoods.Normal(scale="1"), "likelihood Normal: scale is '1'; expected a finite number"),
        (lambda: posteriors.DiagonalNormal(floor=0.0), "posterior DiagonalNormal: floor is 0.0; expected a finite"),
        (
            lambda: posteriors.DiagonalNormal(floor=-1e-3),
            "posterior DiagonalNormal: floor is -0.001; expected a finite",
        ),
        (lambda: posteriors.DiagonalNormal(floor=float("nan")), "posterior DiagonalNormal: floor is nan; expected a"),
        (
            lambda: posteriors.DiagonalNormal(scale="logvar"),
            r"DiagonalNormal: scale is 'logvar'; expected one of std, log_var, softplus \(did you mean log_var\?\)",
        ),
    ],
)
def test_bad_hyper_parameters(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_scales_of_the_diagonal_normal_are_their_formulas() -> None:
    raw = torch.tensor([[-3.0, -0.5], [0.0, 2.0]])
    network = nn.Identity()  # the data are mean and raw
    x = torch.cat([torch.zeros_like(raw), raw], 1)
    for scale, floor, expected in (
        ("std", 0.25, raw.abs() + 0.25),
        ("std", 1e-5, raw.abs() + 1e-5),
        ("log_var", 0.25, (raw / 2).exp()),
        ("softplus", 0.25, raw.exp().log1p() + 0.25),
    ):
        q = posteriors.DiagonalNormal(network, scale=scale, floor=floor)(x)
        torch.testing.assert_close(q.base_dist.scale, expected)
        assert torch.equal(q.mean, torch.zeros(2, 2))


@pytest.mark.parametrize("shape", [(4, PIXELS), (4, 2, 3, 1), (4, 2, 1, 3)], ids=str)
def test_data_of_another_layout_are_refused_not_broadcast(shape: tuple[int, ...]) -> None:
    """Under Pyro's validation (4, 1, 2, 3) and (4, 2, 3, 1) broadcast, and the sum over pixels is a wrong one."""
    vae = make()
    with pytest.raises(
        ValueError, match=r"posterior DiagonalNormal was given an input of shape .*; expected \(1, 2, 3"
    ):
        vae.encode(torch.ones(shape))


# Data and likelihood


def dataset(train: Tensor, validation: Tensor | None = None) -> data.Dataset:
    splits = [data.Split((x,)) for x in (train, train[:0] if validation is None else validation, train[:1])]
    return data.Dataset("mine", *splits)


GREY = "grey values under a Bernoulli: the value is not a likelihood"


def test_binary_data_under_a_bernoulli() -> None:
    assert make().check_support(dataset(binary())) is None
    assert make(likelihood=likelihoods.Bernoulli(MLP([3]), allow_grey=True)).check_support(dataset(binary())) is None


@pytest.mark.parametrize(
    ("piece", "name"),
    [
        (likelihoods.Normal, "Normal"),
        (likelihoods.Laplace, "Laplace"),
        (likelihoods.StudentT, "StudentT"),
        (likelihoods.OptimalSigmaNormal, "Normal"),
        (likelihoods.ContinuousBernoulli, "ContinuousBernoulli"),
    ],
)
def test_binary_data_under_a_density(piece: Any, name: str) -> None:
    said = f"0/1 data under a {name}: the value is a density, which no probability is; use Bernoulli"
    vae = make(likelihood=piece(MLP([3])))
    assert vae.check_support(dataset(binary())) == said
    assert vae.check_support(dataset(torch.rand(8, *SHAPE))) is None
    assert vae.check_support(dataset(binary(), torch.rand(8, *SHAPE))) is None
    assert vae.check_support(dataset(torch.zeros(8, *SHAPE))) is None  # one value is no sign of bits
    assert make(likelihood=likelihoods.DiscretizedLogistic(MLP([3]), bins=2)).check_support(dataset(binary())) is None


@pytest.mark.parametrize("split", ["train", "validation"])
def test_grey_data_under_a_bernoulli(split: str) -> None:
    grey = torch.rand(8, *SHAPE)
    splits = dataset(grey) if split == "train" else dataset(binary(), grey)
    message = (
        r"the data hold values from 0\.\d+ to 0\.\d+, outside the support of Bernoulli .*; binarise them "
        r"\(binarize='threshold', 'dynamic' or 'fixed'\), or accept grey values in \[0, 1\], which are no likelihood, "
        "with allow_grey=True; or choose a likelihood for such data, for instance Normal"
    )
    with pytest.raises(ValueError, match=message):
        make().check_support(splits)
    allowed = make(likelihood=likelihoods.Bernoulli(MLP([3]), allow_grey=True))
    assert allowed.check_support(splits) == GREY
    assert make(likelihood=likelihoods.Normal(MLP([3]))).check_support(splits) is None


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("place", ["first", "after grey batches", "validation"])
@pytest.mark.parametrize("allow_grey", [False, True])
def test_values_outside_zero_and_one_are_refused_wherever_they_are(value: float, place: str, allow_grey: bool) -> None:
    train, validation = torch.rand(5000, *SHAPE), torch.rand(3, *SHAPE)
    target = {"first": train[0], "after grey batches": train[4999], "validation": validation[2]}[place]
    target[0, 0, 0] = value
    vae = make(likelihood=likelihoods.Bernoulli(MLP([3]), allow_grey=allow_grey))
    with pytest.raises(ValueError, match=r"outside the support of Bernoulli"):
        vae.check_support(dataset(train, validation))


def test_nan_is_outside_every_support() -> None:
    x = torch.randn(4, *SHAPE)
    x[1] = float("nan")
    with pytest.raises(ValueError, match=r"\(NaN\), outside the support of Normal; likelihoods.Mixed takes"):
        make(likelihood=likelihoods.Normal(MLP([3]))).check_support(dataset(x))


def test_support_of_a_foreign_likelihood() -> None:
    vae = make(likelihood=Decoder())
    assert vae.check_support(dataset(torch.rand(4, *SHAPE))) is None
    with pytest.raises(ValueError, match="outside the support of Decoder"):
        vae.check_support(dataset(2 * torch.rand(4, *SHAPE) + 1))


def test_the_look_at_the_support_leaves_no_trace() -> None:
    vae, x = make(network=MLP([3], batch_norm=True)), binary()
    buffers, state = [b.clone() for b in vae.buffers()], torch.get_rng_state()
    vae.check_support(dataset(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(vae.buffers(), buffers, strict=True))
    assert all(module.training for module in vae.modules())


def test_grey_data_are_scored_where_allowed_and_refused_where_not() -> None:
    grey = torch.rand(8, *SHAPE)
    with pyro.validation_enabled(True):
        losses = steps(make(likelihood=likelihoods.Bernoulli(MLP([3]), allow_grey=True)), grey, 3)
        assert np.isfinite(losses).all()
        with pytest.raises(ValueError, match="within the support"):
            steps(make(), grey, 1)
