"""What users change between two steps, beside Pyro's own SVI: the same losses from the same seed."""

from __future__ import annotations

import collections
import contextvars
import enum
import functools
import gc
import itertools
import logging
import os
import random
import threading
import time
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from ppl_vae import SVI
from ppl_vae.capture import Guards

DEVICE = os.environ.get("PPL_VAE_TEST_DEVICE", "cpu")  # cuda: the whole file on a GPU
T = 1.0  # a global that some programs read


class Net(nn.Module):
    """A two-layer VAE as its users write it, with a place for everything that they change."""

    beta = 1.0  # of the class

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.d = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))
        self.register_buffer("shift", torch.zeros(6))
        self.temperature = temperature
        self.options = {"scale": [1.0], "tuple": (1.0, 2.0)}
        self.array = np.ones(6, dtype=np.float32)
        self.large = np.ones(5000, dtype=np.float32)
        self.fixed = torch.zeros(6)
        self.number = torch.tensor(1.0)
        self.settings = Settings()

    def noise(self, default: float = 1.0) -> Any:
        return default

    def likelihood(self, z: torch.Tensor) -> torch.Tensor:
        return self.d(z)

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        pyro.module("net", self)
        y = x if y is None else y
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            loc = self.likelihood(z)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


@dataclass
class Settings:
    """A dataclass within reach."""

    gain: float = 1.0
    gains: list = field(default_factory=lambda: [1.0])


@pytest.fixture(autouse=True)
def on_device():
    torch.set_default_device(DEVICE if DEVICE != "cpu" else None)
    yield
    torch.set_default_device(None)


def data(seed: int = 0, n: int = 10) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), device="cpu").to(DEVICE)


def losses(make_svi: Callable[..., Any], net: Net, act: Callable[..., Any], loss: Any, steps: int) -> list[float]:
    """Losses of steps between which `act` changes something, or which it takes itself."""
    pyro.clear_param_store()
    svi = make_svi(net.model, net.guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    pyro.set_rng_seed(1)
    found = []
    for step in range(steps):
        given = act(step, net, svi)
        args, kwargs = given if isinstance(given, tuple) else ((data(step),), {})
        found.append(svi.step(*args, **kwargs))
    return found


def beside_pyro(
    act: Callable[..., Any],
    kind: type[Net] = Net,
    loss: Callable[[], Any] = Trace_ELBO,
    steps: int = 16,
    captured: bool | None = True,
) -> SVI:
    """Hold our losses against Pyro's, and say whether the last step was captured."""
    found, svis, nets = [], [], []
    for make in (pyro.infer.SVI, SVI):
        torch.manual_seed(0)
        net = kind()
        nets.append(net)

        def keep(*args: Any, make: Any = make) -> Any:
            svis.append(make(*args))
            return svis[-1]

        found.append(losses(keep, net, act, loss(), steps))
    assert found[1] == pytest.approx(found[0], rel=1e-5 if DEVICE == "cpu" else 1e-3)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        if DEVICE == "cpu":  # on a GPU Adam makes steps out of gradients that are nothing but rounding
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    svi = svis[1]
    assert captured is None or (svi.why_eager is None) == captured, svi
    assert not captured or svi._graphs
    assert len(svi._graphs) <= 8
    return svi


def at(step: int, change: Callable[[Net], Any]) -> Callable[..., None]:
    """Change the network before one step."""

    def act(now: int, net: Net, svi: Any) -> None:
        if now == step:
            change(net)

    return act


# arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "arguments",
    [
        lambda s, x: ((x, x), {}) if s < 4 else ((x + 100, x), {}),
        lambda s, x: ((x, x), {}) if s % 3 else ((x + 100, x), {}),
        lambda s, x: ((x, x[:]), {}) if s < 4 else ((x + 100, x), {}),
        lambda s, x: ((x,), {"y": x}) if s < 4 else ((x,), {"y": x + 100}),
        lambda s, x: ((x,), {"y": x}) if s < 4 else ((x + 1,), {"y": x}),
        lambda s, x: ((x[:5], x[5:]), {}),
        lambda s, x: ((x, x.clone()), {}) if s < 4 else ((x, x), {}),
    ],
)
def test_arguments_that_are_one_tensor_and_then_are_not(arguments):
    beside_pyro(lambda step, net, svi: arguments(step, data(step)))


X = data(99)


class ReadsAGlobal(Net):
    def model(self, x, y=None):
        super().model(x, X if y is None else y)


class ReadsABuffer(Net):
    def model(self, x, y=None):
        super().model(x + self.shift.sum(), y)


def test_an_argument_that_is_a_global_the_program_reads_too():
    beside_pyro(lambda step, net, svi: ((X,), {}) if step < 5 else ((X + 100,), {}), ReadsAGlobal)


def test_an_argument_that_is_a_buffer_of_the_module():
    def act(step, net, svi):
        return ((net.shift.expand(10, 6),), {}) if step < 5 else ((data(step),), {})

    beside_pyro(act, ReadsABuffer)


@pytest.mark.parametrize("how", ["fresh", "same"])
def test_an_input_that_requires_a_gradient_has_one(how):
    grads = []

    def act(step, net, svi):
        x = data(0 if how == "same" else step).requires_grad_()
        grads.append(x)
        return (x,), {}

    beside_pyro(act)
    half = len(grads) // 2
    for theirs, ours in zip(grads[:half], grads[half:], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_of_an_argument_runs_at_every_step(register):
    calls = []

    def act(step, net, svi):
        x = data(step).requires_grad_()
        getattr(x, register)(lambda tensor: calls.append(step))
        return (x,), {}

    beside_pyro(act, captured=False)
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]


class HoldsALeaf(Net):
    def __init__(self):
        super().__init__()
        self.held = [torch.zeros(6, requires_grad=True)]

    def likelihood(self, z):
        return self.d(z) + self.held[0]


def test_a_tensor_that_the_program_holds_and_requires_a_gradient_has_one():
    grads = []

    def act(step, net, svi):
        grads.append(None if net.held[0].grad is None else net.held[0].grad.clone())
        if step == 8:
            net.held[0].grad = None

    beside_pyro(act, HoldsALeaf)
    half = len(grads) // 2
    assert grads[3] is not None
    for theirs, ours in zip(grads[:half], grads[half:], strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_an_input_computed_from_a_leaf_runs_as_it_is_written():
    leaf = torch.ones(6, requires_grad=True)
    svi = beside_pyro(lambda step, net, svi: ((data(step) * leaf,), {}), captured=False)
    assert "computed from tensors that require a gradient" in svi.why_eager
    assert leaf.grad is not None


class Annealed(Net):
    def model(self, x, annealing, n=1):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=annealing):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.d(z) * n, 1.0).to_event(1), obs=x)

    def guide(self, x, annealing, n=1):
        pyro.module("net", self)
        with pyro.plate("data", len(x)), poutine.scale(scale=annealing):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def test_a_float_among_the_arguments_becomes_an_input():
    svi = beside_pyro(lambda step, net, svi: ((data(step), 0.1 + step / 20), {}), Annealed, steps=25)
    assert len(svi._graphs) == 1


def test_a_whole_number_among_the_arguments_becomes_an_input():
    svi = beside_pyro(lambda step, net, svi: ((data(step), 1.0), {"n": step % 7}), Annealed, steps=25)
    assert len(svi._graphs) == 1


class Sized(Net):
    def model(self, x, n):
        pyro.module("net", self)
        super().model(x[: n + 2])

    def guide(self, x, n):
        super().guide(x[: n + 2])


def test_a_number_that_no_tensor_can_stand_for_runs_as_written_with_one_warning(caplog):
    svi = beside_pyro(lambda step, net, svi: ((data(step, 40), step), {}), Sized, steps=30, captured=False)
    assert "numbers change" in svi.why_eager
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
    beside_pyro(lambda step, net, svi: ((data(step, 40), step % 2), {}), Sized, steps=30)


def test_a_new_length_at_every_step_makes_no_graph_and_one_warning(caplog):
    svi = beside_pyro(lambda step, net, svi: ((data(step, 10 + step),), {}), steps=30, captured=False)
    assert not svi._graphs
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "shapes are new" in warning
    assert "pad data" in warning


@pytest.mark.slow
def test_graphs_are_bounded_in_all(caplog):
    svi = beside_pyro(lambda step, net, svi: ((data(step, 5 + step % 12),), {}), steps=60, captured=None)
    assert len(svi._graphs) == 8
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


# parameters and modules ----------------------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_freezing_and_unfreezing():
    def act(step, net, svi):
        if step in (4, 11):
            net.encoder.requires_grad_(step == 11)
        if step == 7:
            net.d[0].weight.requires_grad_(False)

    beside_pyro(act, steps=20)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_a_module_frozen_from_the_start_trains_once_it_is_unfrozen():
    beside_pyro(lambda step, net, svi: net.d.requires_grad_(step >= 6) and None)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_all_frozen_runs_as_in_pyro():
    beside_pyro(at(5, lambda net: net.requires_grad_(False)), captured=None)


def test_a_hook_that_is_registered_later_runs():
    calls = []

    def hook(module, inputs, output):
        calls.append(1)
        return output * 3

    svi = beside_pyro(at(4, lambda net: net.d[2].register_forward_hook(hook)), captured=False)
    assert len(calls) == 2 * 12
    assert "a Linear has a hook" in svi.why_eager


@pytest.mark.ci
def test_a_hook_that_is_removed_lets_steps_be_captured_again():
    handles = []

    def act(step, net, svi):
        if step == 4:
            handles.append(net.d[2].register_forward_hook(lambda module, inputs, output: output * 3))
        if step == 8:
            handles.pop(0).remove()

    beside_pyro(act, steps=130)


@pytest.mark.parametrize("hook", ["forward_pre", "backward", "tensor"])
def test_other_hooks(hook):
    def change(net):
        if hook == "forward_pre":
            net.d[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
        elif hook == "backward":
            net.d[0].register_full_backward_hook(lambda module, gi, go: tuple(g * 2 for g in gi))
        else:
            net.d[0].weight.register_hook(lambda g: g * 0.1)

    beside_pyro(at(4, change), captured=False)


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.d.append(nn.Linear(6, 6)),
        lambda net: net.d.insert(1, nn.Linear(8, 8)),
        lambda net: net.d.pop(1),
        lambda net: net.d.__setitem__(1, nn.ReLU()),
        lambda net: setattr(net, "d", nn.Linear(2, 6)),
        lambda net: setattr(net.d[1], "forward", torch.relu),
    ],
    ids=["append", "insert", "pop", "replace", "set", "forward"],
)
def test_the_make_up_of_a_module(change):
    def seeded(net):
        torch.manual_seed(5)
        change(net)

    beside_pyro(at(4, seeded))


class Dropped(Net):
    def __init__(self):
        super().__init__()
        # without a bias: batch norm takes it out, and Adam makes steps of a gradient that is nothing but rounding
        linear = nn.Linear(2, 8, bias=False)
        self.d = nn.Sequential(linear, nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6))


@pytest.mark.ci
def test_modes_and_rates_of_dropout():
    def act(step, net, svi):
        if step % 6 == 3:
            net.train(step % 12 == 3)
        if step == 10:
            net.d[2].p = 0.1
        if step == 14:
            net.d[1].momentum = 0.5

    beside_pyro(act, Dropped, steps=24)


def test_a_parameter_with_other_memory_is_the_parameter():
    def act(step, net, svi):
        if step % 3 == 0:
            net.d[0].weight.data = net.d[0].weight.data.clone() * 1.1

    beside_pyro(act)


# Python values -------------------------------------------------------------------------------------------------------


class ReadsT(Net):
    def noise(self):
        return T

    def likelihood(self, z):
        return self.d(z) * self.noise()


def set_global(value):
    globals()["T"] = value


@pytest.fixture
def restored():
    yield
    set_global(1.0)
    config.value = 1.0
    Net.beta = 1.0
    os.environ.pop("PPL_VAE_TEST_GAIN", None)


config = types.ModuleType("config")
config.value = 1.0  # type: ignore[attr-defined]
context = contextvars.ContextVar("context", default=1.0)
local = threading.local()


def default(value=1.0):
    return value


@functools.lru_cache
def cached():
    return 1.0


class Slots:
    __slots__ = ("value",)


slots = Slots()


class WithProperty:
    def __init__(self):
        self.inner = 1.0

    @property
    def value(self):
        return self.inner * 2

    @property
    def raises(self):
        raise RuntimeError("not attached")


with_property = WithProperty()


def keyword(*, value=1.0):
    return value


bound = functools.partial(keyword, value=1.0)
keyed = {"gain": 1.0}
listed = [[1.0], (2.0, [3.0])]


def number(how: str, net: Net) -> Any:  # what the programs below are scaled by
    match how:
        case "class":
            return net.beta
        case "module":
            return config.value
        case "default":
            return default()
        case "keyword":
            return keyword()
        case "partial":
            return bound()
        case "dict":
            return keyed["gain"]
        case "nested":
            return listed[1][1][0]
        case "slots":
            return slots.value
        case "property":
            return with_property.value
        case "dataclass":
            return net.settings.gain * net.settings.gains[0]
        case "getattr":
            return getattr(net, "temp" + "erature")
        case "vars":
            return vars(net)["temperature"]
        case "globals":
            return globals()["T"]
        case "context":
            return context.get()
        case "local":
            return local.value
        case "environment":
            return float(os.environ.get("PPL_VAE_TEST_GAIN", "1"))
        case "method":
            return net.noise()
        case "function":
            return number.gain
        case "item":
            return net.number.item()
        case "tolist":
            return net.number.tolist()
        case "buffer":
            return float(net.shift[0]) + 1.0
        case "array":
            return float(net.array.sum()) / 6
        case "generator":
            return sum(v for v in keyed.values())


number.gain = 1.0


def change_to(how: str, net: Net, value: float) -> None:
    match how:
        case "class":
            type(net).beta = value
        case "module":
            config.value = value
        case "default":
            default.__defaults__ = (value,)
        case "keyword":
            keyword.__kwdefaults__ = {"value": value}
        case "partial":
            bound.keywords["value"] = value
        case "dict" | "generator":
            keyed["gain"] = value
        case "nested":
            listed[1][1][0] = value
        case "slots":
            slots.value = value
        case "property":
            with_property.inner = value
        case "dataclass":
            net.settings.gain = value
        case "getattr" | "vars":
            net.temperature = value
        case "globals":
            set_global(value)
        case "context":
            context.set(value)
        case "local":
            local.value = value
        case "environment":
            os.environ["PPL_VAE_TEST_GAIN"] = str(value)
        case "method":
            type(net).noise = lambda self: value
        case "function":
            number.gain = value
        case "item" | "tolist":
            net.number.fill_(value)
        case "buffer":
            net.shift.fill_(value - 1.0)
        case "array":
            net.array[:] = value


WAYS = [
    *(
        "class",
        "module",
        "default",
        "keyword",
        "partial",
        "dict",
        "nested",
        "slots",
        "property",
        "dataclass",
        "getattr",
    ),
    *("vars", "globals", "context", "local", "environment", "method", "function", "item", "tolist", "buffer", "array"),
    "generator",
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", WAYS)
def test_a_number_is_followed_wherever_it_is_kept(how, again, restored):
    class Scaled(Net):
        def likelihood(self, z):
            return self.d(z) * number(how, self)

    def act(step, net, svi):
        if step == 0:
            change_to(how, net, 1.0)
        if step in (4, 10):
            change_to(how, net, 100.0 if step == 4 else 2.0)

    beside_pyro(act, Scaled, steps=16 if again else 8, captured=None)
    change_to(how, Scaled(), 1.0)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("how", ["class", "module", "dict", "slots", "getattr", "globals", "local"])
def test_a_float_that_changes_at_every_step_becomes_an_input(how, restored, caplog):
    class Scaled(Net):
        def likelihood(self, z):
            return self.d(z) * number(how, self)

    svi = beside_pyro(lambda step, net, svi: change_to(how, net, 1.0 + step / 10), Scaled, steps=25)
    assert svi._graphs.made <= 3
    assert not caplog.records
    change_to(how, Scaled(), 1.0)


def test_a_global_read_in_a_method(restored):
    beside_pyro(lambda step, net, svi: set_global(1.0 if step < 4 else 100.0), ReadsT)


class Large(Net):
    def likelihood(self, z):
        return self.d(z) * float(self.large[1])


def test_a_large_array_changed_in_place_is_followed():
    beside_pyro(at(4, lambda net: np.copyto(net.large, 100.0)), Large)


def test_one_element_of_a_large_array_is_found_by_the_check(caplog):
    def change(net):
        net.large[1] = 100.0

    torch.manual_seed(0)
    net = Large()
    svi = SVI(net.model, net.guide, functools.partial(torch.optim.SGD, lr=0.0), Trace_ELBO())
    pyro.set_rng_seed(0)
    for _ in range(20):
        before = svi.step(X)
    change(net)
    after = [svi.step(X) for _ in range(130)]
    reference = SVI(net.model, net.guide, functools.partial(torch.optim.SGD, lr=0.0), Trace_ELBO(), compile="off")
    expected = np.mean([reference.step(X) for _ in range(100)])
    found = [i for i, loss in enumerate(after) if loss > (before + expected) / 2]
    assert found[0] <= 100
    assert found == list(range(found[0], 130))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "depends on what no guard sees" in warning
    assert "captured anew" in warning


def test_python_and_numpy_random_numbers_are_not_captured():
    generator = np.random.default_rng(0)
    own = random.Random(0)
    for draw, name in (
        (random.random, "Python's random"),
        (np.random.rand, "numpy's random"),
        (generator.random, "a numpy generator"),
        (own.random, "a random.Random"),
    ):

        class Noisy(Net):
            def likelihood(self, z, draw=draw):
                return self.d(z) * draw()

        def act(step, net, svi):
            if step == 0:
                random.seed(0)
                np.random.seed(0)
                own.seed(0)
                generator.bit_generator.state = np.random.default_rng(0).bit_generator.state

        svi = beside_pyro(act, Noisy, captured=False)
        assert name in svi.why_eager


class Counts(Net):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def guide(self, x, y=None):
        self.steps += 1
        super().guide(x, y)


class AnnealsItself(Counts):
    def likelihood(self, z):
        return self.d(z) * min(1.0, self.steps / 10)


def test_a_program_that_anneals_by_its_own_counter_keeps_its_schedule():
    svi = beside_pyro(at(99, lambda net: None), AnnealsItself, captured=False)
    assert "changes a Python value while it runs, and computes with it" in svi.why_eager


def test_capturing_leaves_a_programs_own_counter_alone():
    counts = []
    beside_pyro(lambda step, net, svi: counts.append(net.steps), Counts, steps=3)
    assert counts == [0, 1, 2, 0, 1, 1]  # the last is captured, and counts no more


class Running(Net):
    """A running mean, in a tensor that is replaced, or written in place."""

    replaced = True

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(6)

    def model(self, x, y=None):
        if self.replaced:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        else:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        super().model(x, x - self.mean)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_running_tensor_of_the_program(replaced):
    kind = type("Running", (Running,), {"replaced": replaced})
    beside_pyro(at(99, lambda net: None), kind, captured=not replaced)


class WritesIntoItsInput(Net):
    def guide(self, x, y=None):
        x.clamp_(-1, 1)
        super().guide(x, y)


def test_a_program_that_writes_into_its_argument():
    given = []

    def act(step, net, svi):
        given.append(data(step))
        return (given[-1],), {}

    svi = beside_pyro(act, WritesIntoItsInput, captured=False)
    assert "writes into one of its arguments" in svi.why_eager
    assert all(x.abs().max() <= 1 for x in given)


class ReadsNumbersOfItsInput(Net):
    def model(self, x, y=None):
        super().model(x, x + float(np.asarray(x.detach().numpy()).mean()))


class Tagged(list):
    gain = 1.0


class Table(dict):
    pass


class Weights(np.ndarray):
    pass


class Mode(int, enum.Enum):
    ON = 1


class Degrees(float):
    def __repr__(self):
        return "degrees"


class Plain:
    gain = 1.0


kept = Plain()


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: Tagged([1.0]), lambda h: setattr(h.it, "gain", 3.0)),
        (lambda: Tagged([1.0]), lambda h: setattr(Tagged, "gain", Tagged.gain + 1.0)),
        (Table, lambda h: setattr(h.it, "gain", 3.0)),
        (lambda: np.ones(3).view(Weights), lambda h: setattr(h.it, "gain", 3.0)),
        (lambda: Mode.ON, lambda h: setattr(h.it, "gain", getattr(h.it, "gain", 0.0) + 1.0)),
        (lambda: Degrees(1.0), lambda h: setattr(h, "it", Degrees(2.0))),
        (lambda: Tagged([1.0]), lambda h: (setattr(h, "it", Tagged([1.0])), setattr(h.it, "gain", 3.0))),
        (lambda: weakref.proxy(kept), lambda h: setattr(kept, "gain", kept.gain + 1.0)),
        (lambda: dict.fromkeys(range(2000), 1.0), lambda h: h.it.update(dict.fromkeys(range(2000), 2.0))),
        (lambda: set(range(2000)), lambda h: (h.it.clear(), h.it.update(range(2, 2002)))),
        (lambda: collections.deque([1.0] * 2000), lambda h: (h.it.clear(), h.it.extend([2.0] * 2000))),
    ],
)
def test_a_change_in_what_a_class_of_the_users_or_a_large_container_holds(make, change):
    holder = types.SimpleNamespace(it=make())
    guards = Guards(holder)
    assert guards.hold()
    change(holder)
    assert not guards.hold()


def test_an_equal_object_of_a_class_of_the_users_is_the_same():
    holder = types.SimpleNamespace(it=Degrees(1.0), them=Tagged([np.float64(2.0)]))
    guards = Guards(holder)
    holder.it, holder.them = Degrees(1.0), Tagged([np.float64(2.0)])
    assert guards.hold()
    holder.them[0] = np.float64(3.0)
    assert not guards.hold()


def test_a_hook_in_a_dictionary_that_is_new():
    def act(step, net, svi):
        if step == 5:
            for module in net.modules():
                module._forward_hooks = collections.OrderedDict()
        if step == 6:
            net.d[0].register_forward_hook(lambda module, given, out: 2 * out)

    beside_pyro(act, captured=False)


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.d = nn.Sequential(nn.Linear(2, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6))


def test_buffers_of_other_memory_are_written_once():
    found = []
    for make in (pyro.infer.SVI, SVI):
        torch.manual_seed(0)
        net = Normed()

        def act(step, net, svi):
            if step == 6:  # before the check after ten uses
                for buffer in net.buffers():
                    buffer.data = buffer.data.clone()

        losses(make, net, act, Trace_ELBO(), 16)
        found.append(list(net.buffers()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_program_that_gives_a_tensor_other_memory():
    class Anneals(Net):
        def likelihood(self, z):
            self.shift.data = self.shift.data + 0.1
            return self.d(z) + self.shift.clamp(max=0.5)

    svi = beside_pyro(at(99, lambda net: None), Anneals, captured=False)
    assert ".data =" in svi.why_eager


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.full((6,), 0.5)), nn.Parameter(torch.full((6,), 0.5))
        self.b.data = self.a.data

    def likelihood(self, z):
        return self.d(z) * self.a + self.b.exp()


def untie(net):
    net.b.data = net.b.data.clone() + 3.0


def test_parameters_of_the_same_memory_that_part():
    beside_pyro(at(6, untie), Tied)


def test_a_held_tensor_that_becomes_a_view_of_a_written_buffer():
    class Both(Net):
        def likelihood(self, z):
            before = self.fixed * 1.5
            self.shift.add_(0.1)
            return self.d(z) + before * (self.fixed * 1.5)

    def act(step, net, svi):
        net.fixed = torch.full((6,), float(step)) if step < 8 else net.shift.view(6)

    beside_pyro(act, Both, captured=None)


class Powers(Net):
    def likelihood(self, z):
        return self.d(z) * (1.0 + 1.0 / 2**self.steps)


@pytest.mark.parametrize("steps", [lambda step: 1 + step if step < 8 else 64, lambda step: 59 + step])
def test_a_whole_number_that_overflows_as_a_tensor(steps):
    beside_pyro(lambda step, net, svi: setattr(net, "steps", steps(step)), Powers, steps=12, captured=None)


def test_a_number_that_loses_its_digits_as_a_tensor():
    class Phase(Net):
        def likelihood(self, z):
            return self.d(z) * (1.0 + self.time % 1.0)

    def act(step, net, svi):
        net.time = 0.3 * step if step < 8 else 30_000_000.25 + step

    beside_pyro(act, Phase, captured=None)


def test_an_input_of_the_graph_keeps_its_type():
    def act(step, net, svi):
        net.number = [1.0, 1.0, 1.5, 2, 3, 4, 4.5, 5][min(step, 7)]

    class Number(Net):
        def likelihood(self, z):
            return self.d(z) * self.number

    svi = beside_pyro(act, Number)
    graphs = list(svi._graphs)
    (lifted,) = [graph for graph in graphs if graph.guards.lifted_labels]
    assert lifted.inputs([])[0].dtype == torch.float32
    act(3, lifted.guards._given[0][0].__self__, svi)
    assert lifted.guards.hold()
    assert lifted.inputs([])[0].dtype == torch.float32


def test_a_whole_number_that_becomes_a_fraction():
    def act(step, net, svi):
        net.number = [1, 1, 2, 3, 3.5, 3.75, 4, 5.25][min(step, 7)]

    class Number(Net):
        def likelihood(self, z):
            return self.d(z) * (self.number if isinstance(self.number, float) else self.number**2 // 3)

    beside_pyro(act, Number, captured=None)


def test_a_held_tensor_that_is_negated_when_it_is_read_is_no_input_of_the_same_graph():
    settings = types.SimpleNamespace(shift=torch.ones(6, dtype=torch.complex64).imag)
    guards = Guards(settings)
    guards.lift(["SimpleNamespace.shift"])
    settings.shift = torch.zeros(6, dtype=torch.complex64).imag
    assert guards.hold()
    settings.shift = torch.zeros(6, dtype=torch.complex64).conj().imag
    assert not guards.hold()


@pytest.mark.skipif(DEVICE != "cpu", reason="NumPy cannot read a GPU's memory")
def test_numbers_read_out_of_an_argument_by_numpy_are_never_frozen():
    svi = beside_pyro(at(99, lambda net: None), ReadsNumbersOfItsInput, captured=False)
    assert "reads numbers out of a tensor" in svi.why_eager


def test_the_clock_and_iterators_are_found_by_the_check():
    ticks = itertools.count()

    class Ticks(Net):
        def likelihood(self, z):
            return self.d(z) * (1.0 + next(ticks))

    net = Ticks()
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        svi.step(X)
    assert "the graph's" in svi.why_eager


# switches ------------------------------------------------------------------------------------------------------------


def test_autocast_entered_later():
    found = []
    for make in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = Net()
        svi = make(net.model, net.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        pyro.set_rng_seed(0)
        losses = []
        for step in range(20):
            with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=5 <= step < 12):
                losses.append(svi.step(data(step)))
        found.append(losses)
    assert svi.why_eager is None
    assert len(svi._graphs) == 2
    assert found[1] == pytest.approx(found[0], rel=1e-5 if DEVICE == "cpu" else 1e-2)


def test_the_default_dtype_and_that_of_the_module():
    def act(step, net, svi):
        if step == 5:
            net.double()
            torch.set_default_dtype(torch.float64)
        return (data(step).to(net.fixed.dtype if step < 5 else torch.float64),), {}

    def run(*args, **kwargs):
        try:
            return losses(*args, **kwargs)
        finally:
            torch.set_default_dtype(torch.float32)

    found = []
    for level in ("off", "graph"):
        torch.manual_seed(0)
        make = functools.partial(_torch_svi, compile=level)
        found.append(run(make, Net(), act, Trace_ELBO(), 12))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def _torch_svi(model, guide, optim, loss, **kwargs):
    return SVI(model, guide, functools.partial(torch.optim.SGD, lr=1e-4), loss, **kwargs)


def test_gradients_switched_off():
    """Pyro goes on by momentum: the gradients are zeros."""

    def run(make):
        torch.manual_seed(0)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        net = Net()
        svi = make(net.model, net.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        found = []
        for step in range(8):
            with torch.set_grad_enabled(step not in (4, 5)):
                found.append(svi.step(data(step)))
            if step == 4 and make is SVI:
                assert svi.why_eager == "gradients are switched off"
        return found

    assert run(SVI) == pytest.approx(run(pyro.infer.SVI), rel=1e-5 if DEVICE == "cpu" else 1e-3)


# Pyro's objects ------------------------------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.parametrize(
    ("loss", "change"),
    [
        (Trace_ELBO, lambda e: setattr(e, "num_particles", 5)),
        (TraceMeanField_ELBO, lambda e: setattr(e, "num_particles", 3)),
        (functools.partial(RenyiELBO, alpha=0.5, num_particles=3), lambda e: setattr(e, "alpha", -1.0)),
        (functools.partial(TraceGraph_ELBO, num_particles=1), lambda e: setattr(e, "num_particles", 2)),
    ],
)
@pytest.mark.thinned(3)
@pytest.mark.parametrize("level", ["graph", "off"])
def test_attributes_of_the_objective_are_read_when_it_is_used(loss, change, level):
    found = []
    for make in (pyro.infer.SVI, functools.partial(SVI, compile=level)):
        elbo = loss()
        torch.manual_seed(0)
        found.append(losses(make, Net(), lambda s, n, v, e=elbo: change(e) if s == 4 else None, elbo, 10))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "optim",
    [
        lambda: pyro.optim.Adam({"lr": 1e-2}),
        lambda: pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99}),
        lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
        lambda: pyro.optim.Adam(lambda name: {"lr": 1e-2 if "d." in name else 1e-3}),
        lambda: pyro.optim.Adam({"lr": 1e-2}, {"clip_norm": 0.1}),
        lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.9}),
    ],
)
def test_an_optimiser_of_pyros_keeps_its_state_and_is_shared(optim):
    found, states = [], []
    for make in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net, shared = Net(), optim()
        first = make(net.model, net.guide, shared, Trace_ELBO())
        second = make(net.model, net.guide, shared, TraceMeanField_ELBO())
        pyro.set_rng_seed(2)
        run = []
        for step in range(12):
            run.append((first if step % 3 else second).step(data(step)))
            if isinstance(shared, pyro.optim.PyroLRScheduler):
                shared.step()
        state = shared.get_state()
        again = optim()
        again.set_state(state)
        third = make(net.model, net.guide, again, Trace_ELBO())
        run += [third.step(data(step)) for step in range(6)]
        states.append(again.get_state())
        found.append(run)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) == 8


def test_a_learning_rate_that_is_changed_in_pyros_object_or_in_the_joint_one():
    def act(step, net, svi, ours=False):
        if step == 4:
            for optimizer in svi.optim.optim_objs.values() if hasattr(svi, "optim") else optims(svi):
                optimizer.param_groups[0]["lr"] = 1e-1
        if step == 8:
            if hasattr(svi, "optim"):
                for optimizer in svi.optim.optim_objs.values():
                    optimizer.param_groups[0]["lr"] = 1e-3
            else:
                svi.optimizer.param_groups[0]["lr"] = 1e-3

    def optims(svi):
        return svi._optimizer.optim.optim_objs.values()

    beside_pyro(act)


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "loss",
    [
        lambda: pyro.infer.EnergyDistance(),
        lambda: Trace_ELBO().differentiable_loss,
        lambda: own_loss,
        lambda: functools.partial(own_loss, weight=2.0),
    ],
    ids=["EnergyDistance", "differentiable_loss", "own", "partial"],
)
def test_losses_in_pyros_form(loss):
    beside_pyro(at(99, lambda net: None), Reparameterised, loss)


class Reparameterised(Net):
    """EnergyDistance draws the data."""


def own_loss(model, guide, *args, weight=1.0):
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    return weight * (guide_trace.log_prob_sum() - model_trace.log_prob_sum())


def test_a_loss_that_touches_no_parameter_runs_as_in_pyro(caplog):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def run(make):
        pyro.clear_param_store()
        svi = make(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        return [svi.step(torch.arange(5.0) + i) for i in range(30)]

    assert run(SVI) == pytest.approx(run(pyro.infer.SVI), rel=1e-6)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "depends on no parameter" in warning


def test_a_decaying_average_baseline():
    class Discrete(Net):
        def model(self, x, y=None):
            pyro.module("net", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x), 2)).to_event(1))
                pyro.sample("x", dist.Normal(self.d(z), 1.0).to_event(1), obs=x)

        def guide(self, x, y=None):
            pyro.module("net", self)
            with pyro.plate("data", len(x)):
                logits = self.encoder(x)[:, :2]
                fn = dist.Bernoulli(logits=logits).to_event(1)
                pyro.sample("z", fn, infer={"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}})

    svi = beside_pyro(at(99, lambda net: None), Discrete, TraceGraph_ELBO, captured=False)
    assert "in Pyro's store while it runs" in svi.why_eager


# what cannot be looked at --------------------------------------------------------------------------------------------


class Unattached(Net):
    @property
    def trainer(self):
        raise RuntimeError("not attached to a Trainer")


def test_a_property_that_raises_is_never_evaluated():
    beside_pyro(at(99, lambda net: None), Unattached)


class Scripted(Net):
    def __init__(self):
        super().__init__()
        self.d = torch.jit.script(self.d)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torch_jit_module_runs_as_it_is_written():
    svi = beside_pyro(at(99, lambda net: None), Scripted, captured=False)
    assert "torch.jit" in svi.why_eager


class Hostile:
    """An object that minds being looked at."""

    def __init__(self):
        self.value = 1.0

    def __getattribute__(self, name):
        if name.startswith("__"):
            raise RuntimeError("do not look")
        return object.__getattribute__(self, name)

    def __eq__(self, other):
        raise RuntimeError("do not compare")

    __hash__ = None  # type: ignore[assignment]

    def __len__(self):
        raise RuntimeError("do not count")

    def __bool__(self):
        raise RuntimeError("do not ask")


def test_an_object_that_minds_being_looked_at():
    class Holds(Net):
        def __init__(self):
            super().__init__()
            self.hostile = [Hostile()]

        def likelihood(self, z):
            return self.d(z) * self.hostile[0].value

    beside_pyro(at(4, lambda net: setattr(net.hostile[0], "value", 100.0)), Holds)


# data that the program holds -----------------------------------------------------------------------------------------


class HoldsData(Net):
    """The batch is an attribute, a buffer or an item, replaced before each step."""

    how = "attribute"

    def __init__(self):
        super().__init__()
        self.batch = data(0)
        self.batches = [self.batch]
        self.register_buffer("buffered", data(0))

    def held(self):
        return {"attribute": self.batch, "item": self.batches[0], "buffer": self.buffered}[self.how]

    def model(self, x=None, y=None):
        super().model(self.held())

    def guide(self, x=None, y=None):
        super().guide(self.held())


@pytest.mark.ci
@pytest.mark.thinned(3)
@pytest.mark.parametrize("how", ["attribute", "item", "buffer"])
def test_a_tensor_that_is_replaced_by_one_like_it_becomes_an_input(how, caplog):
    kind = type("HoldsData", (HoldsData,), {"how": how})

    def act(step, net, svi):
        batch = data(step, 6 if step > 14 else 10)
        if how == "attribute":
            net.batch = batch
        elif how == "item":
            net.batches[0] = batch
        else:
            net.buffered = batch
        return (), {}

    svi = beside_pyro(act, kind, steps=25)
    assert svi._graphs.made <= 5
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.ci
def test_a_graph_keeps_no_batch_alive():
    svi = None
    net = Net()
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    batches = [data(step) for step in range(5)]
    seen = [weakref.ref(batch) for batch in batches]
    for batch in batches:
        svi.step(batch, y=batch)
    assert svi.why_eager is None
    del batch, batches
    gc.collect()
    assert not [ref for ref in seen if ref() is not None]


@pytest.mark.ci
def test_large_structures_within_reach_cost_little():
    class Holds(Net):
        def __init__(self):
            super().__init__()
            self.rows = [float(i) for i in range(200_000)]
            self.table = {i: float(i) for i in range(100_000)}
            self.matrix = np.zeros((2000, 1000))

        def likelihood(self, z):
            return self.d(z) * (1.0 + self.rows[0] + self.table[0] + float(self.matrix[0, 0]))

    svi = beside_pyro(at(5, lambda net: net.rows.__setitem__(0, 1.0)), Holds)
    guards = list(svi._graphs)[-1].guards
    began = time.process_time()
    for _ in range(100):
        assert guards.hold()
    assert time.process_time() - began < 0.1  # under a millisecond each


def test_too_much_to_look_at_runs_as_it_is_written():
    class Holds(Net):
        def __init__(self):
            super().__init__()
            self.rows = [[float(i + j) for j in range(900)] for i in range(100)]

        def likelihood(self, z):
            return self.d(z) * (1.0 + self.rows[3][0])

    svi = beside_pyro(at(5, lambda net: net.rows[3].__setitem__(0, 9.0)), Holds, captured=False)
    assert "too many to look at" in svi.why_eager


class CountsInItsClass(Net):
    steps = 0

    def guide(self, x, y=None):
        type(self).steps += 1
        super().guide(x, y)

    def likelihood(self, z):
        return self.d(z) * min(1.0, type(self).steps / 10)


def test_a_counter_of_the_class_keeps_its_schedule():
    def act(step, net, svi):
        if step == 0:
            CountsInItsClass.steps = 0

    beside_pyro(act, CountsInItsClass, captured=False)


def test_an_attribute_that_a_subclass_is_given_later():
    kind = type("Derived", (Net,), {"likelihood": lambda self, z: self.d(z) * self.beta})

    def act(step, net, svi):
        if step == 0 and "beta" in vars(kind):
            del kind.beta  # Pyro's run has set it
        if step == 5:
            kind.beta = 50.0

    beside_pyro(act, kind)


def test_an_attribute_that_an_object_is_given_later():
    class Derived(Net):
        def likelihood(self, z):
            return self.d(z) * self.beta * getattr(self.settings, "extra", 1.0)

    def change(net):
        net.beta = 3.0
        net.settings.extra = 5.0

    beside_pyro(at(5, change), Derived)


FILLED = {
    list: lambda extra: extra.append(2.0),
    dict: lambda extra: extra.update({2.0: None}),
    set: lambda extra: extra.add(2.0),
}


@pytest.mark.parametrize("kind", FILLED)
def test_a_container_that_was_empty_is_followed_once_it_is_filled(kind):
    class Extra(Net):
        def __init__(self):
            super().__init__()
            self.extra = kind()

        def likelihood(self, z):
            return self.d(z) * (1.0 + sum(self.extra))

    beside_pyro(at(7, lambda net: FILLED[kind](net.extra)), Extra, steps=25)
