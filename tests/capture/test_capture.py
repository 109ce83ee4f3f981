"""Captured steps: the same as the eager ones, the user's code called no more, and never used where they are wrong."""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import itertools
import logging
import random
import re
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae import SVI, VAE, capture, data, fit, likelihoods, networks, posteriors, priors
from ppl_vae.capture import compiled
from ppl_vae.objectives import ELBO, ArticleELBO, MeanFieldELBO

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)
OBJECTIVES = {
    "ELBO": ELBO(),
    "ELBO-5": ELBO(num_particles=5),
    "MeanFieldELBO": MeanFieldELBO(num_particles=2),
    "ArticleELBO": ArticleELBO(),
    "function": lambda log_weights: log_weights.log_w.mean(0),
    "Trace_ELBO": Trace_ELBO(num_particles=2),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
    "TraceGraph_ELBO": TraceGraph_ELBO(num_particles=2),
    "RenyiELBO": RenyiELBO(alpha=0.5, num_particles=2),
    "vectorised RenyiELBO": RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True),
}


class Dropout(nn.Module):
    """A network with every kind of state: batch norm and dropout.

    Batch norm takes off the mean, so that the gradient of a bias before it would be rounding alone, which Adam scales
    up to whole steps.
    """

    def __init__(self, n_in, n_out):
        super().__init__()
        first = nn.Linear(n_in, 8, bias=False)
        self.layers = nn.Sequential(first, nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, n_out))

    def forward(self, x):
        return self.layers(x)


X = torch.randn(5, generator=torch.Generator().manual_seed(0))


def make_vae(seed=0, scale="softplus", dropout=False) -> VAE:
    torch.manual_seed(seed)
    mlp = networks.MLP([8])
    return VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(Dropout(2, 6) if dropout else mlp),
        posterior=posteriors.DiagonalNormal(Dropout(6, 4) if dropout else mlp, scale=scale),
    )


def binary(n=10) -> torch.Tensor:
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(n)) > 0.5).float()


def trajectory(svi: SVI, batches, seed=3) -> list[float]:
    torch.manual_seed(seed)
    return [svi.step(*batch) for batch in batches]


def state_of(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("objective", "dropout"),
    [  # without state, one of ours and one of Pyro's stand for all
        *((name, True) for name in OBJECTIVES),
        *(
            pytest.param(name, False, marks=() if name in ("ELBO", "Trace_ELBO") else pytest.mark.slow)
            for name in OBJECTIVES
        ),
    ],
)
def test_a_graph_is_the_eager_program_bit_for_bit(objective, dropout):
    batches = [(binary(10),), (binary(10),), (binary(7),), (binary(10),), (binary(7),)] * 3
    runs = {}
    for level in ("off", "graph"):
        vae = make_vae(dropout=dropout)
        svi = SVI(vae.model, vae.guide, ADAM, copy.copy(OBJECTIVES[objective]), compile=level)
        losses = trajectory(svi, batches)
        assert (svi.why_eager is None) == (level == "graph")
        runs[level] = losses, state_of(vae)
    # Pyro adds up its loss in Python's float64 and the graph in float32; all of ours, and every gradient, is equal
    assert runs["graph"][0] == pytest.approx(runs["off"][0], rel=1e-6 if "Trace" in objective else 0, abs=0)
    assert all(torch.equal(a, b) for a, b in zip(runs["graph"][1], runs["off"][1], strict=True))


@pytest.mark.ci
@pytest.mark.parametrize(
    "objective", ["ELBO", *(pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES if name != "ELBO")]
)
def test_a_compiled_graph_is_the_eager_program_to_rounding(objective):
    runs = []
    for level in ("off", "full"):
        vae = make_vae()
        svi = SVI(vae.model, vae.guide, ADAM, copy.copy(OBJECTIVES[objective]), compile=level)
        runs.append(trajectory(svi, [(binary(),)] * 8))
        assert level == "off" or svi.why_eager is None
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)


def test_the_users_code_is_called_no_more():
    vae = make_vae()
    counter = itertools.count()  # out of the guards' sight

    def model(x):
        next(counter)
        return vae.model(x)

    svi = SVI(model, vae.guide, ADAM, ELBO())
    # as written, captured, checked on other data and after ten uses
    trajectory(svi, [(binary(n),) for _ in range(13) for n in (10, 7)])
    called = next(counter)
    trajectory(svi, [(binary(10),), (binary(7),)] * 40)
    assert next(counter) == called + 1
    assert svi.why_eager is None


def test_a_program_that_counts_its_calls_is_captured_all_the_same(caplog):
    vae, calls = make_vae(), []

    def model(x):
        calls.append(len(x))
        return vae.model(x)

    svi = SVI(model, vae.guide, ADAM, ELBO())
    trajectory(svi, [(binary(n),) for _ in range(13) for n in (10, 7)])
    called = len(calls)
    trajectory(svi, [(binary(10),), (binary(7),)] * 40)
    assert svi.why_eager is None
    assert len(calls) == called
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "changes the length of calls (was 2, is 3) while it runs" in line


def test_a_program_that_computes_with_what_it_changes_trains_as_it_is_written():
    vae, steps = make_vae(), [0]

    def model(x):
        steps[0] += 1
        with pyro.poutine.scale(scale=min(1.0, steps[0] / 10)):
            return vae.model(x)

    svi = SVI(model, lambda x: model_scaled(vae, steps, x), ADAM, ELBO())
    trajectory(svi, [(binary(),)] * 20)
    assert re.search(
        r"changes a Python value while it runs, and computes with it: .*\(was \d+, is \d+\)", svi.why_eager
    )


def model_scaled(vae, steps, x):
    with pyro.poutine.scale(scale=min(1.0, (steps[0] + 1) / 10)):
        return vae.guide(x)


def test_gradients_are_memory_of_their_own():
    """Autograd hands out expanded and shared tensors, which an optimiser would misread and clipping scale twice."""

    def program(x):
        a, b = pyro.param("a", torch.zeros(3)), pyro.param("b", torch.zeros(3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.factor("linear", (a + b).sum().expand(len(x)))

    def guide(x):
        pass

    runs = {}
    for level in ("off", "graph"):
        pyro.clear_param_store()
        svi = SVI(
            program, guide, functools.partial(torch.optim.Adam, lr=0.1), Trace_ELBO(), clip_norm=0.5, compile=level
        )
        for _ in range(5):
            svi.update(torch.ones(4))
        assert (svi.why_eager is None) == (level == "graph")
        gradients = [p.grad for p in svi.parameters.values()]
        assert all(g.stride() == (1,) for g in gradients)
        assert len({g.data_ptr() for g in gradients}) == 2
        runs[level] = [pyro.param(name).detach().clone() for name in "ab"]
    assert all(torch.equal(*pair) for pair in zip(runs["off"], runs["graph"], strict=True))


class Scaled:
    """A program that closes over Python numbers in every way that users do."""

    def __init__(self):
        self.shift = 1.0
        self.options = {"scale": [1.0]}

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.shift, self.options["scale"][0]), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))


GLOBAL_SHIFT = 1.0


def model_of_a_global(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + GLOBAL_SHIFT, 1.0), obs=x)


class Weighted:
    """An objective with a Python number of its own."""

    beta = 1.0

    def __init__(self):
        self.beta = 1.0

    def __call__(self, log_weights):
        return (log_weights.log_lik - self.beta * log_weights.kl).mean(0)


def changing_programs():
    def attribute():
        program = Scaled()
        return program.model, program.guide, ELBO(), lambda v: setattr(program, "shift", v)

    def nested():
        program = Scaled()
        return program.model, program.guide, ELBO(), lambda v: program.options.update(scale=[v])

    def closure():
        shift = 1.0

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

        def change(v):
            nonlocal shift
            shift = v

        return model, Scaled().guide, ELBO(), change

    def global_():
        return model_of_a_global, Scaled().guide, ELBO(), lambda v: globals().update(GLOBAL_SHIFT=v)

    def objective():
        program, objective = Scaled(), Weighted()
        return program.model, program.guide, objective, lambda v: setattr(objective, "beta", v)

    def partial():
        state = {"shift": 1.0}

        def model(x, state):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + state["shift"], 1.0), obs=x)

        return functools.partial(model, state=state), Scaled().guide, ELBO(), lambda v: state.update(shift=v)

    return [attribute, nested, closure, global_, objective, partial]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("make", changing_programs(), ids=lambda f: f.__name__)
def test_a_python_number_that_changes_is_noticed_at_once(make):
    x, losses = torch.randn(5, generator=torch.Generator().manual_seed(0)), {}
    for level in ("off", "graph"):
        pyro.clear_param_store()
        model, guide, objective, change = make()
        change(1.0)
        svi = SVI(model, guide, ADAM, objective, compile=level)
        torch.manual_seed(1)
        losses[level] = []
        for step in range(12):
            if step % 4 == 0:
                change(1.0 + step % 8)  # 1, 5, 1: back to a graph that there is
            losses[level].append(svi.step(x))
        assert level == "off" or svi.why_eager is None
    assert losses["graph"] == losses["off"]
    assert len(svi._graphs) == 2


class Slotted:
    __slots__ = ("beta",)

    def __init__(self):
        self.beta = 1.0


class OfTheClass:
    beta = 1.0


@pytest.mark.parametrize("make", [Slotted, OfTheClass, argparse.Namespace, types.SimpleNamespace, types.ModuleType])
def test_a_number_is_noticed_wherever_users_keep_it(make):
    config = make("config") if make is types.ModuleType else make()
    if not hasattr(config, "beta"):
        config.beta = 1.0
    losses = steps_with(lambda: config.beta, lambda: setattr(config, "beta", 3.0), {"config": config})
    assert losses[-1] > 2 * losses[-2]  # the scale is 3 times what it was, and the step tiny


def steps_with(beta, change, reachable):
    """Losses of a program scaled by beta(), which changes before the last step."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=beta()):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    model.reachable = reachable
    svi = SVI(model, lambda x: None, functools.partial(torch.optim.SGD, lr=1e-6), Trace_ELBO())
    losses = trajectory(svi, [(torch.ones(3, 2),)] * 3)
    change()
    losses += trajectory(svi, [(torch.ones(3, 2),)])
    assert svi.why_eager is None
    return losses


def test_sets_and_arrays_are_noticed_by_what_they_hold():
    array, names = np.ones(3), {"a"}
    for beta, change in (
        (lambda: array.sum() / 3, lambda: array.fill(3.0)),
        (lambda: 2 * len(names) - 1, lambda: names.add("b")),
    ):
        pyro.clear_param_store()
        losses = steps_with(beta, change, None)
        assert losses[-1] > 2 * losses[-2]


def test_other_strides_are_another_graph():
    vae = make_vae()
    svi = SVI(vae.model, vae.guide, ADAM, ELBO())
    trajectory(svi, [(binary(6),)] * 3)
    reference = make_vae()
    eager = SVI(reference.model, reference.guide, ADAM, ELBO(), compile="off")
    trajectory(eager, [(binary(6),)] * 3)
    turned = binary(6).t()
    assert trajectory(svi, [(turned,)]) == trajectory(eager, [(turned,)])
    assert svi.why_eager is None


def test_a_handler_around_the_step_counts():
    vae, reference = make_vae(), make_vae()
    runs = []
    for module, level in ((vae, "graph"), (reference, "off")):
        svi = SVI(module.model, module.guide, ADAM, ELBO(), compile=level)
        losses = trajectory(svi, [(binary(),)] * 3)
        with pyro.poutine.scale(scale=0.1):
            losses += trajectory(svi, [(binary(),)] * 3)
        runs.append(losses + trajectory(svi, [(binary(),)]))
    assert runs[0] == runs[1]
    assert runs[0][-1] > 5 * runs[0][-2]


def test_a_module_that_changes_its_mode_is_noticed():
    vae = make_vae(dropout=True)
    svi = SVI(vae.model, vae.guide, ADAM, ELBO())
    trajectory(svi, [(binary(),)] * 3)
    vae.eval()
    before = [b.clone() for b in vae.buffers()]
    trajectory(svi, [(binary(),)] * 3)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.buffers(), strict=True))
    vae.train()
    svi.step(binary())
    assert not all(torch.equal(a, b) for a, b in zip(before, vae.buffers(), strict=True))
    assert len(svi._graphs) == 2


def test_a_number_that_no_tensor_can_stand_for_is_named_where_it_changes_at_every_step(caplog):
    program = Scaled()

    def model(x):
        return program.model(x * int(program.shift))

    svi = SVI(model, program.guide, ADAM, ELBO())
    for step in range(25):
        program.shift = float(step)
        svi.step(torch.randn(5))
    assert "no graph fits from step to step: Scaled.shift (was 1.0, is 24.0)" in svi.why_eager
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "make what changes a tensor" in line


def test_a_learning_rate_that_changes_needs_no_other_graph():
    vae = make_vae()
    svi = SVI(vae.model, vae.guide, ADAM, ELBO())
    for step in range(10):
        svi.step(binary())
        svi.optimizer.param_groups[0]["lr"] = 1e-3 * step
    assert len(svi._graphs) == 1


def branch_on_a_value(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if z.mean() > 0:  # the line that the log names
            z = z * 2
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def draws_from_python(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + random.random(), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (branch_on_a_value, r"reads a number out of a tensor .*\(at .*test_capture\.py:\d+, in branch_on_a_value\)"),
        (draws_from_python, r"draws from Python's random"),
    ],
)
def test_what_cannot_be_captured_trains_as_it_is_written(model, why, caplog):
    losses = {}
    for level in ("off", "graph"):
        pyro.clear_param_store()
        random.seed(0)
        svi = SVI(model, Scaled().guide, ADAM, ELBO(), compile=level)
        losses[level] = trajectory(svi, [(torch.arange(5.0),)] * 6)
    assert losses["graph"] == losses["off"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line == f"training eagerly, since the step cannot be captured: {svi.why_eager}"
    assert re.search(why, svi.why_eager)


def test_a_graph_that_is_wrong_is_never_used(monkeypatch):
    def broken(function):
        def trace(*args):
            graph = original(function)(*args)
            multiplication = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.mul.Tensor)
            multiplication.target = torch.ops.aten.add.Tensor
            graph.recompile()
            return graph

        return trace

    original = capture.making.make_fx
    monkeypatch.setattr(capture.making, "make_fx", broken)
    vae, reference = make_vae(), make_vae()
    svi = SVI(vae.model, vae.guide, ADAM, ELBO())
    eager = SVI(reference.model, reference.guide, ADAM, ELBO(), compile="off")
    assert trajectory(svi, [(binary(),)] * 4) == trajectory(eager, [(binary(),)] * 4)
    assert "the graph's" in svi.why_eager


def test_nan_and_infinity_are_no_numbers_to_be_close_to():
    nan, inf = float("nan"), float("inf")
    values = [torch.tensor([1.0, v]) for v in (0.0, nan, inf, -inf, 3e38)]
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            assert capture.comparing._close(a, b) == (i == j)
    assert capture.comparing._close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-6]))
    assert not capture.comparing._close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.001]))


@pytest.mark.ci
@pytest.mark.parametrize("fails", [False, True])
def test_a_further_shape_is_compiled_once_it_repays_it(monkeypatch, caplog, fails):
    """The last batch of an epoch has one that is used once an epoch."""
    monkeypatch.setattr("ppl_vae.capture.graphs.REPAY", 5)
    made, trajectories = [], {}

    def without_compiler(*inputs):
        raise RuntimeError("no compiler any more")

    def compiling(graph, on_cpu):
        made.append(graph)
        return without_compiler if fails and len(made) > 1 else compiled.compiled(graph, on_cpu)

    monkeypatch.setattr("ppl_vae.capture.step.compiled", compiling)
    batches = [(binary(),), (binary(3),)] * 10
    for level in ("full", "off"):
        vae = make_vae()
        svi = SVI(vae.model, vae.guide, ADAM, ELBO(), compile=level)
        trajectories[level] = trajectory(svi, batches[:8])
        assert len(made) == 1
        trajectories[level] += trajectory(svi, batches[8:])
        assert len(made) == (2 if level == "full" else 1)
        assert (svi.why_eager is None) == (level == "full")
        made = made[:1]
    np.testing.assert_allclose(trajectories["full"], trajectories["off"], rtol=1e-5)
    assert ("no compiler any more" in caplog.text) == fails


@pytest.mark.ci
def test_a_compiler_that_fails_leaves_the_graph(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing is compiled yet
    vae, reference = make_vae(), make_vae()
    svi = SVI(vae.model, vae.guide, ADAM, ELBO(), compile="full")
    eager = SVI(reference.model, reference.guide, ADAM, ELBO(), compile="off")
    expected = trajectory(eager, [(binary(),)] * 4)
    with importlib.import_module("torch._inductor.config").patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):
        assert trajectory(svi, [(binary(),)] * 4) == expected
    assert svi.why_eager is None
    assert repr(svi) == "SVI(captured in 1 graph)"
    (warning,) = [record.message for record in caplog.records if record.name == "ppl_vae.svi"]
    assert warning.startswith("the captured step runs without Inductor, as at compile='graph': ")
    assert re.search(r"C\+\+ compiler|inductor", warning)


@pytest.mark.ci
def test_code_of_a_compiler_that_computes_something_else_leaves_the_graph(monkeypatch, caplog):
    def wrong(graph, on_cpu):
        return lambda *inputs: tuple(2 * output for output in graph(*inputs))

    monkeypatch.setattr("ppl_vae.capture.step.compiled", wrong)
    found = []
    for level in ("full", "off"):
        vae = make_vae()
        svi = SVI(vae.model, vae.guide, ADAM, ELBO(), compile=level)
        found.append(trajectory(svi, [(binary(),)] * 4))
    assert found[0] == found[1]
    assert "runs without Inductor, as at compile='graph': " in caplog.text
    assert "depends on what a graph cannot follow" not in caplog.text


@pytest.mark.parametrize("level", ["off", "graph", pytest.param("full", marks=pytest.mark.ci)])
@pytest.mark.parametrize(
    "optim",
    [
        ADAM,
        pyro.optim.Adam({"lr": 1e-2}),
        pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.9}),
    ],
)
def test_weights_that_get_other_memory_take_the_same_steps(level, optim):
    def train(svi, vae, given):
        losses = trajectory(svi, [(binary(),)] * 4)
        for n in range(3):
            for p in vae.parameters():
                given(p, n)
            losses += trajectory(svi, [(binary(),)] * 2, seed=n)
        return losses

    def moved(p, n):
        """Give a weight other memory: as it was, transposed, and off any boundary of the processor's."""
        if n == 1 and p.dim() == 2:
            p.data = p.data.T.contiguous().T
        else:
            p.data = torch.cat([p.data.new_zeros(n), p.data.flatten()])[n:].view(p.shape)

    vae, reference = make_vae(dropout=True), make_vae(dropout=True)
    plain = SVI(reference.model, reference.guide, copy.deepcopy(optim), ELBO(), compile="off")
    svi = SVI(vae.model, vae.guide, copy.deepcopy(optim), ELBO(), compile=level)
    expected = train(plain, reference, lambda p, n: None)
    assert train(svi, vae, moved) == pytest.approx(expected, rel=1e-5)
    older = not hasattr(torch._inductor, "standalone_compile")  # whose Inductor leaves other buffers, which is found
    assert level == "off" or (level == "full" and older) or svi.why_eager is None


@pytest.mark.parametrize("level", ["off", "graph"])
def test_a_loaded_state_of_another_layout_takes_the_same_steps(level):
    def loaded(transposed):
        vae = make_vae()
        svi = SVI(vae.model, vae.guide, ADAM, ELBO(), compile=level)
        losses = trajectory(svi, [(binary(),)] * 4)
        state = copy.deepcopy(svi.optimizer.state_dict())
        for moments in state["state"].values():
            for name, value in moments.items():
                moments[name] = value.T.contiguous().T if transposed and value.dim() == 2 else value
        svi.optimizer.load_state_dict(state)
        return losses + trajectory(svi, [(binary(),)] * 4)

    assert loaded(transposed=True) == pytest.approx(loaded(transposed=False), rel=1e-6)


@pytest.mark.parametrize("level", ["graph", "full"])
def test_an_argument_that_is_negated_when_it_is_read_keeps_its_sign(level):
    plain = torch.view_as_complex(torch.stack([torch.zeros(10, 6), binary()], -1))
    other = torch.view_as_complex(torch.stack([torch.zeros(10, 6), -binary()], -1)).conj()
    assert other.imag.is_neg()
    assert torch.equal(plain.imag, other.imag)
    vae, reference = make_vae(), make_vae()
    svi = SVI(vae.model, vae.guide, ADAM, ELBO(), compile=level)
    eager = SVI(reference.model, reference.guide, ADAM, ELBO(), compile="off")
    batches = [(plain.imag,)] * 4 + [(other.imag,)] * 4 + [(plain.imag,)]
    assert trajectory(svi, batches) == pytest.approx(trajectory(eager, [(binary(),)] * 9), rel=1e-5)
    assert svi.why_eager is None


def test_a_graph_for_a_cpu_takes_what_it_holds_as_inputs_once():
    weight, state = nn.Parameter(torch.tensor([2.0])), torch.zeros(1)

    def step(x):
        state.add_(1.0)
        return weight * x + weight.exp() + state

    graph = make_fx(step)(torch.ones(1))
    lifted, held = compiled._lifted(graph)
    assert [t is weight or t is state for t in held] == [True, True]
    assert [n.op for n in lifted.graph.nodes].count("placeholder") == 3
    state.zero_()
    expected = [step(torch.full((1,), float(n))) for n in range(4)]
    state.zero_()
    code = compiled.compiled(graph, on_cpu=True)
    with torch.no_grad():
        found = [code(torch.full((1,), float(n))) for n in range(4)]
        weight.zero_()
        state.zero_()
        after = code(torch.ones(1))
    assert torch.allclose(torch.cat(found), torch.cat(expected), rtol=1e-6)
    assert after.item() == 2.0  # exp(0) and the first count
    assert state.item() == 1.0


def test_what_no_guard_sees_is_found_by_the_check_every_so_often():
    hidden = itertools.chain([0.0] * 8, itertools.repeat(1.0))  # an iterator's insides: out of sight

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + next(hidden), 1.0), obs=x)

    svi = SVI(model, Scaled().guide, ADAM, ELBO())
    for _ in range(99):
        svi.step(X)
    for _ in range(8):
        next(hidden)
    assert svi.why_eager is None
    reasons = []
    for _ in range(100):
        svi.step(X)
        reasons.append(svi.why_eager)
    (reason,) = [reason for reason in reasons if reason]
    assert re.match(r"after 1\d\d steps the graph's loss is", reason)
    assert svi.why_eager is None  # it is captured anew


def test_capturing_moves_no_state():
    vae = make_vae(dropout=True)
    svi = SVI(vae.model, vae.guide, ADAM, ELBO())
    svi.step(binary())
    before, random_state = state_of(vae), torch.get_rng_state()
    svi._capture(False, capture.signature((binary(),), {}), set(), set(), False)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(vae), strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_arguments_that_are_neither_tensors_nor_plain_are_not_captured():
    def program(x, options):
        return vae.model(x)

    vae = make_vae()
    svi = SVI(program, lambda x, options: vae.guide(x), ADAM, ELBO())
    for _ in range(3):
        svi.step(binary(), object())
    assert svi.why_eager == "an argument is a object; expected tensors and plain Python values"
    svi = SVI(program, lambda x, options: vae.guide(x), ADAM, ELBO())
    for options in ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}):
        svi.step(binary(), options)
    assert svi.why_eager is None
    assert len(svi._graphs) == 1  # the number became an input of the graph


def test_fit_gives_the_same_bits_captured_and_not():
    digits = data.load("digits", binarize="dynamic")
    vaes, runs = [], []
    for level in ("off", "graph"):
        torch.manual_seed(0)
        mlp = networks.MLP([16], batch_norm=True)
        vaes.append(
            VAE(
                digits,
                prior=priors.StandardNormal(2),
                likelihood=likelihoods.Bernoulli(mlp),
                posterior=posteriors.DiagonalNormal(mlp),
            )
        )
        runs.append(fit(vaes[-1], digits, epochs=3, seed=0, compile=level))
    assert all(torch.equal(a, b) for a, b in zip(*(vae.state_dict().values() for vae in vaes), strict=True))
    assert [r["loss"] for r in runs[0].history] == [r["loss"] for r in runs[1].history]


@pytest.mark.gpu
@pytest.mark.parametrize("level", ["graph", "full"])
@pytest.mark.parametrize("objective", ["ELBO", "ELBO-5", "MeanFieldELBO", "Trace_ELBO", "RenyiELBO"])
def test_a_cuda_graph_is_the_eager_program(objective, level):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    batches = [(binary(10).cuda(),), (binary(10).cuda(),), (binary(7).cuda(),)] * 4
    runs = {}
    for compile in ("off", level):
        vae = make_vae(dropout=True).cuda()
        svi = SVI(vae.model, vae.guide, ADAM, OBJECTIVES[objective], compile=compile)
        kept = []
        torch.manual_seed(3)
        for batch in batches:
            kept.append(svi.update(*batch).loss)  # not written over by the steps that follow
        assert compile == "off" or svi.why_eager is None
        runs[compile] = [loss.item() for loss in kept], state_of(vae)
    assert runs[level][0] == pytest.approx(runs["off"][0], rel=1e-4)
    for a, b in zip(runs[level][1], runs["off"][1], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)
