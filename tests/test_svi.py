"""SVI against Pyro's own, and its handling of parameters."""

from __future__ import annotations

import copy
import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from short_runs import small_vae
from stand_in import stand_in
from torch import nn
from torch.distributions import constraints

from ppl_vae import SVI, VAE, data, fit, likelihoods, networks, posteriors
from ppl_vae._optimizers import TorchOptimizer
from ppl_vae.objectives import ELBO

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * X[:, 0].sin()


def make_vae() -> VAE:
    return small_vae((8,), 16)


def vae_program():
    vae = make_vae()
    x = (torch.rand(16, 8, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    return vae.model, vae.guide, (x,)


def regression_program():
    """Bayesian regression with bare, constrained parameters and a global latent."""

    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        sigma = pyro.param("sigma", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, sigma), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(3))
        scale = pyro.param("scale", torch.full((3,), 0.1), constraint=constraints.positive)
        pyro.sample("weight", dist.Normal(loc, scale).to_event(1))

    return model, guide, (X, Y)


def autoguide_program():
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)

    return model, AutoNormal(model), (X, Y)


def subsampled_program():
    _, guide, _ = regression_program()

    def subsampled(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=10) as index:
            pyro.sample("y", dist.Normal(x[index] @ weight, 0.5), obs=y[index])

    return subsampled, guide, (X, Y)


def masked_and_scaled_program():
    _, guide, _ = regression_program()
    mask = torch.arange(40) % 3 > 0

    def masked(x, y):
        with pyro.poutine.scale(scale=0.5):
            weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
                pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)

    return masked, pyro.poutine.scale(guide, scale=0.5), (X, Y)


class Regression(PyroModule):
    """A PyroModule with a constrained parameter."""

    def __init__(self):
        super().__init__()
        self.sigma = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.weight = PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def forward(self, x, y):
        mean = x @ self.weight
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.sigma), obs=y)


def pyro_module_program():
    model = Regression()
    return model, AutoNormal(model), (X, Y)


PROGRAMS = [
    vae_program,
    regression_program,
    autoguide_program,
    subsampled_program,
    masked_and_scaled_program,
    pyro_module_program,
]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["Trace", "TraceMeanField"])
def test_losses_are_those_of_pyros_svi(make, elbo):
    def losses(make_svi):
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        model, guide, args = make()
        svi = make_svi(model, guide)
        pyro.set_rng_seed(8)
        return [svi.step(*args) for _ in range(100)]

    theirs = losses(lambda m, g: pyro.infer.SVI(m, g, pyro.optim.Adam({"lr": 1e-2}), elbo))
    ours = losses(lambda m, g: SVI(m, g, ADAM, elbo))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[0] != ours[-1]


@pytest.mark.parametrize(
    "make_optim",
    [
        lambda: pyro.optim.Adam({"lr": 1e-2, "betas": (0.8, 0.99)}),
        lambda: pyro.optim.ClippedAdam({"lr": 1e-2, "clip_norm": 0.5, "lrd": 0.99}),
        lambda: pyro.optim.SGD({"lr": 1e-4, "momentum": 0.9}),
    ],
)
def test_pyros_optimisers_are_taken(make_optim):
    def losses(make_svi):
        pyro.clear_param_store()
        model, guide, args = regression_program()
        svi = make_svi(model, guide, make_optim(), Trace_ELBO())
        pyro.set_rng_seed(8)
        return [svi.step(*args) for _ in range(50)]

    assert losses(SVI) == pytest.approx(losses(pyro.infer.SVI), rel=1e-5)


def test_update_follows_the_mean_and_step_the_sum():
    gradients = {}
    for name in ("step", "update"):
        model, guide, (x,) = vae_program()
        svi = SVI(model, guide, functools.partial(torch.optim.SGD, lr=1.0), ELBO())
        before = None
        torch.manual_seed(3)
        svi.backward(x)
        before = [p.detach().clone() for p in svi.parameters.values()]
        for parameter in svi.parameters.values():
            parameter.grad = None
        torch.manual_seed(3)
        getattr(svi, name)(x)
        gradients[name] = [b - p.detach() for b, p in zip(before, svi.parameters.values(), strict=True)]
    for total, mean in zip(gradients["step"], gradients["update"], strict=True):
        torch.testing.assert_close(total, 16 * mean, rtol=1e-3, atol=1e-4)


def test_update_follows_the_mean_where_pyro_leaves_the_gradient_of_the_sum():
    model, guide, (x,) = vae_program()
    svi = SVI(model, guide, ADAM, pyro.infer.RenyiELBO(num_particles=2))
    torch.manual_seed(3)
    svi.backward(x)
    total = [p.grad.clone() for p in svi.parameters.values()]
    torch.manual_seed(3)
    svi.backward(x, mean=True)
    for a, p in zip(total, svi.parameters.values(), strict=True):
        torch.testing.assert_close(a, 16 * p.grad)


def test_evaluate_loss_moves_nothing():
    model, guide, (x,) = vae_program()
    svi = SVI(model, guide, ADAM, ELBO())
    svi.step(x)
    before = [p.detach().clone() for p in svi.parameters.values()]
    torch.manual_seed(2)
    loss = svi.evaluate_loss(x)
    torch.manual_seed(2)
    assert loss == pytest.approx(Trace_ELBO().loss(model, guide, x), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, svi.parameters.values(), strict=True))


def test_one_fused_optimiser_updates_all_parameters():
    model, guide, (x,) = vae_program()
    svi = SVI(model, guide, ADAM, ELBO())
    svi.step(x)
    assert svi.optimizer.defaults["fused"] is True
    assert len(svi.optimizer.param_groups) == 1
    assert len(svi.optimizer.param_groups[0]["params"]) == len(svi.parameters) == 8


@pytest.mark.parametrize(
    ("factory", "fused"), [(torch.optim.Adam, True), (torch.optim.SGD, True), (torch.optim.Adagrad, False)]
)
def test_adagrad_is_fused_on_the_cpu_alone(factory, fused):
    """Torch takes ``fused=True`` for Adagrad on a GPU, and refuses it in the first step."""
    with stand_in("cuda:0") as device:
        parameters = [nn.Parameter(torch.ones(3, device=device))]
        assert parameters[0].device.type == "cuda"
        assert bool(TorchOptimizer(factory).follow(parameters).param_groups[0]["fused"]) is fused


@pytest.mark.parametrize("optimizer", [torch.optim.Rprop, torch.optim.ASGD, torch.optim.NAdam])
def test_an_optimiser_without_a_fused_form_works(optimizer):
    model, guide, (x,) = vae_program()
    svi = SVI(model, guide, functools.partial(optimizer, lr=1e-3), ELBO())
    losses = [svi.step(x) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_a_parameter_that_appears_later_is_trained():
    shown = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            shift = pyro.param("shift", torch.tensor(0.0)) if shown else 0.0
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    svi = SVI(model, guide, ADAM, ELBO())
    svi.step(torch.full((5,), 3.0))
    assert list(svi.parameters) == ["m"]
    shown.append(True)
    svi.step(torch.full((5,), 3.0))
    assert pyro.param("shift").item() != 0.0


class Shifted:
    """A program whose parameter `shift` takes part where `shown` says so."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def model(self, x):
        with pyro.plate("data", len(x)):
            shift = pyro.param("shift", torch.tensor(0.0)) if self.shown else 0.0
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)) + shift, 1.0), obs=x)

    def guide(self, x):
        pass


@pytest.mark.parametrize("appears", [0, 3])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (pyro.optim.Adam({"lr": 0.1}), functools.partial(torch.optim.Adam, lr=0.1)),
        (pyro.optim.SGD({"lr": 0.1, "momentum": 0.9}), functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    ],
    ids=["Adam", "SGD"],
)
def test_a_learning_rate_holds_for_parameters_without_a_gradient_too(theirs, ours, appears):
    def trajectory(optim):
        pyro.clear_param_store()
        program = Shifted(shown=appears == 0)
        svi = SVI(program.model, program.guide, copy.deepcopy(optim), ELBO(), compile="off")
        found = []
        for step in range(6):
            program.shown = step >= 3 or (step == 0 and appears == 0)
            svi.step(torch.ones(4))
            found.append([p.item() for p in svi.parameters.values()])
            if step == 1:
                svi.optimizer.param_groups[0]["lr"] = 1e-3
        assert len(svi.optimizer.param_groups) == 1
        return found

    assert trajectory(theirs) == trajectory(ours)
    found = trajectory(functools.partial(ours, fused=False))
    assert trajectory(ours)[-1] == pytest.approx(found[-1], rel=1e-5)
    assert abs(found[5][1] - found[2][1] if appears == 0 else found[5][1]) < 0.05


FUSED = [
    functools.partial(torch.optim.SGD, lr=0.1),
    functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1, maximize=True),
    functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    functools.partial(torch.optim.Adam, lr=0.1, amsgrad=True, weight_decay=0.1),
    functools.partial(torch.optim.AdamW, lr=0.1, maximize=True),
    functools.partial(torch.optim.Adagrad, lr=0.1, lr_decay=0.1, weight_decay=0.1),
]


@pytest.mark.parametrize("factory", FUSED, ids=lambda f: f"{f.func.__name__}{list(f.keywords)[1:]}")
def test_fused_steps_are_the_plain_ones_whichever_parameters_have_a_gradient(factory):
    found = []
    for make in (factory, functools.partial(factory, fused=False)):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (3, 0, 17, 5)]
        optimizer = TorchOptimizer(make)
        for moved in ([0, 1], [0], [0, 1, 2, 3], [3, 1], [0, 1, 2, 3]):
            for i, p in enumerate(parameters):
                p.grad = torch.randn_like(p) if i in moved else None
            optimizer.step(parameters)
        assert optimizer.optimizer.param_groups[0]["fused"] is (make is factory)
        found.append(torch.cat(parameters).detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("clip_norm", [-1.0, 0.0, float("nan")])
def test_a_norm_to_clip_to_is_positive(clip_norm):
    with pytest.raises(ValueError, match=r"clip_norm is .*; expected a finite number above zero"):
        SVI(lambda x: None, lambda x: None, ADAM, ELBO(), clip_norm=clip_norm)


def test_a_cleared_store_is_noticed():
    model, guide, args = regression_program()
    svi = SVI(model, guide, ADAM, Trace_ELBO())
    svi.step(*args)
    pyro.clear_param_store()
    with pytest.raises(RuntimeError, match="the parameter store was cleared"):
        svi.step(*args)


def test_a_program_without_parameters_is_refused():
    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert SVI(program, guide, ADAM, ELBO()).step(torch.randn(3)) > 0  # as in Pyro, with a warning
    with pytest.raises(ValueError, match="depends on no parameter"):
        fit((program, guide), torch.randn(3), batch_size=3)


@pytest.mark.parametrize("optim", [torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), "Adam", None])
def test_optim_is_a_factory(optim):
    with pytest.raises(TypeError, match="expected a function from parameters to a torch optimiser"):
        SVI(lambda x: None, lambda x: None, optim, ELBO())


def test_gradients_are_clipped():
    model, guide, (x,) = vae_program()
    svi = SVI(model, guide, functools.partial(torch.optim.SGD, lr=1.0), ELBO(), clip_norm=1e-3)
    svi.update(x)
    norm = torch.stack([p.grad.norm() for p in svi.parameters.values()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


class LearntPrior(PyroModule):
    def __init__(self):
        super().__init__("learnt_prior")
        self.loc = PyroParam(torch.zeros(2))
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    def forward(self):
        return dist.Normal(self.loc, self.scale).to_event(1)


@pytest.mark.parametrize("loss", [ELBO(), pyro.infer.RenyiELBO(num_particles=2)], ids=["ELBO", "Renyi"])
def test_a_parameter_under_two_names_is_trained_once(loss):
    """A PyroModule inside a VAE registers its parameters itself, and the VAE registers them too."""
    torch.manual_seed(0)
    vae = VAE(
        (8,),
        prior=LearntPrior(),
        likelihood=likelihoods.Bernoulli(networks.MLP([16])),
        posterior=posteriors.DiagonalNormal(networks.MLP([16])),
    )
    x = (torch.rand(16, 8) > 0.5).float()
    svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.SGD, lr=1.0), loss, clip_norm=1e6)
    svi.update(x)
    assert sum(len(group["params"]) for group in svi.optimizer.param_groups) == len(list(vae.parameters()))
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    torch.manual_seed(3)
    svi.backward(x)
    gradients = {name: p.grad.clone() for name, p in vae.named_parameters()}
    torch.manual_seed(3)
    svi.update(x)
    for name, p in vae.named_parameters():
        torch.testing.assert_close(before[name] - p.detach(), gradients[name] / 16, rtol=1e-3, atol=1e-4)


# What the optimiser leaves out


@pytest.mark.parametrize("how", ["factory", "groups"])
def test_a_parameter_that_the_optimiser_leaves_out_keeps_its_value(how, caplog):
    vae = make_vae()
    left_out = list(vae.posterior.parameters())
    x = torch.ones(4, 8)

    def only_the_likelihood(parameters):
        return torch.optim.Adam(vae.likelihood.parameters(), lr=1e-2)

    factory = only_the_likelihood if how == "factory" else ADAM
    svi = SVI(vae.model, vae.guide, factory, ELBO(), compile="off")
    svi.step(x)
    if how == "groups":
        (group,) = svi.optimizer.param_groups
        group["params"] = [p for p in group["params"] if not any(p is q for q in left_out)]
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    for _ in range(4):
        svi.step(x)
    for name, p in vae.named_parameters():
        assert torch.equal(before[name], p) == name.startswith("posterior")
    said = [r.getMessage() for r in caplog.records if "keep their values" in r.getMessage()]
    assert len(said) == (how == "factory")
    assert not said or f"without {len(left_out)} of the 8 parameters ('{vae.name}$$$posterior." in said[0]


def test_an_optimiser_may_lose_all_its_parameters():
    model, guide, (x,) = vae_program()
    svi = SVI(model, guide, ADAM, ELBO(), compile="off")
    svi.step(x)
    svi.optimizer.param_groups[0]["params"] = []
    before = [p.detach().clone() for p in svi.parameters.values()]
    svi.step(x)
    assert all(map(torch.equal, before, svi.parameters.values()))


@pytest.mark.ci
def test_what_the_optimiser_leaves_out_is_left_out_after_a_restart():
    digits = data.load("digits")

    def run(**options):
        vae = small_vae(digits)
        optimizer = lambda parameters: torch.optim.Adam(vae.likelihood.parameters(), lr=1e-2)  # noqa: E731
        before = [p.detach().clone() for p in vae.posterior.parameters()]
        found = fit(vae, digits, batch_size=500, epochs=3, seed=0, optimizer=optimizer, compile="off", **options)
        kept = [p.cpu() for p in vae.posterior.parameters()]
        assert "resume" in options or all(map(torch.equal, before, kept))
        return found, [p.detach().clone() for p in vae.parameters()]

    _, straight = run()
    stops = iter([False] * 4 + [True])
    stopped, before = run(stop=lambda: next(stops))
    resumed, after = run(resume=stopped.state())
    assert resumed.stopped == "finished"
    assert all(map(torch.equal, straight, after))
    assert not all(map(torch.equal, before, after))


# Gradients of the user's own


def small_program():
    """Parameters `w` and `b`, of which only data of positive sum meet `b`."""

    def model(x):
        w = pyro.param("w", torch.ones(3))
        shift = pyro.param("b", torch.zeros(3)) if x.sum() > 0 else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + shift, 1.0).to_event(1), obs=x)

    return model, lambda x: None


def moves(make_svi, act, compile=None):
    """Return the parameters after each of some steps, before which `act` may do something."""
    pyro.clear_param_store()
    options = {} if compile is None else {"compile": compile}
    svi = make_svi(*small_program(), pyro.optim.SGD({"lr": 1e-2}), Trace_ELBO(), **options)
    svi.step(torch.ones(4, 3))
    found = []
    for number in range(8):
        x = act(number, pyro.get_param_store()._params)
        try:
            svi.step(torch.ones(4, 3) if x is None else x)
        except (RuntimeError, ValueError):
            assert x is not None
        found += [p.detach().clone() for p in pyro.get_param_store()._params.values()]
    return torch.cat(found)


def put(parameter):
    parameter.grad = torch.full((3,), 5.0) if parameter.grad is None else parameter.grad + 5.0


def before_an_error(number, store):
    if number in (2, 5):
        put(store["w"])
        return torch.ones(4, 7)


def without_meeting_it(number, store):
    if number in (2, 3, 6):
        put(store["b"])
        return -torch.ones(4, 3)


@pytest.mark.parametrize("act", [before_an_error, without_meeting_it])
@pytest.mark.parametrize("level", ["off", "graph"])
def test_a_gradient_waits_for_a_step_that_meets_the_parameter_as_in_pyro(act, level):
    torch.testing.assert_close(moves(SVI, act, level), moves(pyro.infer.SVI, act))


@pytest.mark.parametrize("level", ["off", "graph"])
@pytest.mark.parametrize("how", ["anew", "in place", "none", "an error"])
def test_a_step_adds_to_the_users_gradient_and_not_to_that_of_an_update(how, level):
    pyro.clear_param_store()
    svi = SVI(*small_program(), functools.partial(torch.optim.SGD, lr=1.0), ELBO(), compile=level)
    x = torch.zeros(4, 3) + 1.0
    for _ in range(5):
        svi.update(x)
    parameters = list(svi.parameters.values())
    for p in parameters:
        if how == "anew":
            p.grad = torch.full((3,), 7.0)
        elif how == "in place":
            p.grad.fill_(7.0)
    if how == "an error":
        svi.exchange = lambda parameters, loss: 1 / 0
        with pytest.raises(ZeroDivisionError):
            svi.update(x)
        svi.exchange = None
    before = [p.detach().clone() for p in parameters]
    residual = 4 * (x[0] - before[0] - before[1])  # minus the gradient of the loss, in both parameters
    svi.step(x)
    for a, p in zip(before, parameters, strict=True):
        torch.testing.assert_close(p - a, residual - (7.0 if how in ("anew", "in place") else 0.0))


# The mean


def test_the_mean_is_over_the_rows_of_a_keyword_too():
    model, guide, _ = regression_program()
    svi = SVI(model, guide, functools.partial(torch.optim.SGD, lr=0.0), Trace_ELBO().differentiable_loss, compile="off")
    assert [svi.update(X, Y).weight, svi.update(x=X, y=Y).weight, svi.update(y=Y, x=X).weight] == [40.0] * 3


@pytest.mark.parametrize(
    "loss", [pyro.infer.TraceGraph_ELBO(), pyro.infer.RenyiELBO(alpha=0.5, num_particles=2)], ids=["Graph", "Renyi"]
)
def test_the_mean_is_that_of_other_tensors_too(loss):
    """Of an argument and of a tensor that already has a gradient."""
    model, guide, (x,) = vae_program()
    x = x.requires_grad_()
    svi = SVI(model, guide, functools.partial(torch.optim.SGD, lr=0.0), loss)
    found = []
    for take, given in ((svi.backward, 0.0), (svi.update, 3.0), (svi.update, 3.0), (svi.update, 3.0)):
        pyro.set_rng_seed(0)
        x.grad = torch.full_like(x, given) if given else None
        take(x)
        found.append(x.grad - given)
    assert svi.why_eager is None
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0] / 16, rtol=1e-4, atol=1e-5)
