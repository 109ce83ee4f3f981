"""What a hostile user tried between two steps, beside Pyro's own SVI."""

from __future__ import annotations

import array
import collections
import copy
import functools
import gc
import inspect
import logging
import operator
import sys
import time
import types
import weakref
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from test_capture_changes import Counts, Net, at, beside_pyro, data
from torch import nn

from ppl_vae import SVI, capture

cfg = types.ModuleType("hostile_cfg")
cfg.G = 1.0  # type: ignore[attr-defined]
sys.modules["hostile_cfg"] = cfg


class Point:
    __match_args__ = ("gain", "other")

    def __init__(self):
        self.gain = 1.0
        self.other = 0.0


class Doubled(Point):
    @property
    def value(self):
        return 2.0 * self.gain


class Single(Point):
    @property
    def value(self):
        return self.gain


point = Point()
single = Single()
read_gain = operator.attrgetter("gain")
call_value = operator.methodcaller("value")
referred = weakref.ref(point)
proxy = weakref.proxy(point)
raw = bytearray(b"\x01\x02")
numbers = array.array("d", [1.0, 2.0])
ordered = collections.OrderedDict(a=1.0, b=2.0)
weak = weakref.WeakKeyDictionary({point: 1.0})
tagged = torch.ones(())
held = torch.ones(4)


class Method:
    def value(self):
        return 1.0


method = Method()


@functools.lru_cache
def cached():
    return cfg.G


@functools.singledispatch
def dispatched(value):
    return 1.0


def by_pattern(value):
    match value:
        case Point(gain=g):
            return g
    return 0.0


def by_position(value):
    match value:
        case Point(g, _):
            return g
    return 0.0


def by_import():
    import hostile_cfg

    return hostile_cfg.G


def by_from_import():
    from hostile_cfg import G

    return G


def by_late_name():
    try:
        return HOSTILE_LATE
    except NameError:
        return 1.0


WAYS: dict[str, tuple[Any, Any]] = {
    "pattern": (lambda: by_pattern(point), lambda v: setattr(point, "gain", v)),
    "position": (lambda: by_position(point), lambda v: setattr(point, "gain", v)),
    "attrgetter": (lambda: read_gain(point), lambda v: setattr(point, "gain", v)),
    "methodcaller": (lambda: call_value(method), lambda v: setattr(Method, "value", lambda self: v)),
    "getmembers": (lambda: dict(inspect.getmembers(point))["gain"], lambda v: setattr(point, "gain", v)),
    "proxy": (lambda: proxy.gain, lambda v: setattr(point, "gain", v)),
    "format": (lambda: float("{0.gain}".format(point)), lambda v: setattr(point, "gain", v)),  # noqa: UP030, UP032
    "import": (by_import, lambda v: setattr(cfg, "G", v)),
    "from import": (by_from_import, lambda v: setattr(cfg, "G", v)),
    "sys.modules": (lambda: sys.modules["hostile_cfg"].G, lambda v: setattr(cfg, "G", v)),
    "late global": (by_late_name, lambda v: globals().update(HOSTILE_LATE=v)),
    "late attribute": (lambda: getattr(cfg, "late", 1.0), lambda v: setattr(cfg, "late", v)),
    "class": (lambda: single.value, lambda v: setattr(single, "__class__", Doubled if v > 1 else Single)),
    "weakref": (lambda: referred().gain, lambda v: setattr(point, "gain", v)),
    "weak dictionary": (lambda: weak[point], lambda v: weak.update({point: v})),
    "bytearray": (lambda: float(raw[0]), lambda v: raw.__setitem__(0, int(v))),
    "array": (lambda: numbers[0], lambda v: numbers.__setitem__(0, v)),
    "order": (lambda: next(iter(ordered.values())), lambda v: ordered.move_to_end("a", last=v > 1)),
    "tensor attribute": (lambda: getattr(tagged, "gain", 1.0), lambda v: setattr(tagged, "gain", v)),
    "resized": (lambda: 4.0 / held.numel(), lambda v: held.resize_(4 if v == 1 else 2)),
    "equal": (lambda: 1.0 if torch.equal(held, torch.ones(len(held))) else 2.0, lambda v: held.fill_(v)),
    "nonzero": (lambda: len(held.nonzero()) / 4, lambda v: held[0].fill_(0.0 if v > 1 else 1.0)),
    "cache": (cached, lambda v: (setattr(cfg, "G", v), cached.cache_clear())),
    "dispatch": (lambda: dispatched(1), lambda v: dispatched.register(int, lambda value: v)),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("how", WAYS)
def test_a_number_is_followed(how, caplog):
    read, write = WAYS[how]

    class Scaled(Net):
        def likelihood(self, z):
            return self.d(z) * read()

    def act(step, net, svi):
        if step in (0, 5, 9):
            write({0: 1.0, 5: 3.0, 9: 1.0}[step])

    beside_pyro(act, Scaled, captured=None)
    write(1.0)
    assert not [r for r in caplog.records if "no guard sees" in r.getMessage()]


def test_hooks_of_all_modules():
    handles = []

    def act(step, net, svi):
        if step == 5:
            handle = nn.modules.module.register_module_forward_hook(
                lambda module, inputs, output: output * 2 if isinstance(module, nn.Tanh) else None
            )
            handles.append(handle)
        if step == 10:
            handles.pop().remove()

    beside_pyro(act, captured=False)


def test_a_hook_on_an_argument():
    calls = []

    def act(step, net, svi):
        x = data(step).requires_grad_()
        x.register_hook(lambda gradient: calls.append(1))
        return (x,), {}

    beside_pyro(act, captured=False)
    assert len(calls) == 32


def test_what_only_checks_stays_in_the_graph():
    class Solves(Net):
        def likelihood(self, z):
            return self.d(z) + torch.linalg.cholesky(self.shift.diag() + torch.eye(6)).sum()

    net = Solves()
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for step in range(4):
        svi.step(data(step))
    assert svi.why_eager is None
    net.shift.fill_(-5.0)
    before = [p.clone() for p in net.parameters()]
    random = torch.get_rng_state()
    with pytest.raises(torch.linalg.LinAlgError):
        svi.step(data(5))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    net.shift.fill_(0.0)
    torch.set_rng_state(random)
    loss = svi.step(data(5))
    torch.set_rng_state(random)
    pyro.clear_param_store()
    again = SVI(net.model, net.guide, pyro.optim.SGD({"lr": 0.0}), Trace_ELBO(), compile="off")
    for a, b in zip(net.parameters(), before, strict=True):
        a.data.copy_(b)
    assert again.step(data(5)) == pytest.approx(loss, rel=1e-6)


def test_what_the_user_adds_to_the_gradients_between_steps():
    def act(step, net, svi):
        if step % 3 == 2:
            net.d[0].weight.square().sum().backward()

    beside_pyro(act)


@pytest.mark.parametrize("level", ["off", "graph"])
def test_a_step_after_an_update_takes_its_own_gradient(level):
    found = []
    for mixed in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = Net()
        adam = functools.partial(torch.optim.SGD, lr=0.0)
        svi = SVI(net.model, net.guide, adam, Trace_ELBO(), compile=level)
        for step in range(4):
            (svi.update if mixed else svi.step)(data(step))
        seen = []
        svi._optimizer.step = lambda leaves, seen=seen: seen.append([p.grad.clone() for p in leaves])
        pyro.set_rng_seed(0)
        svi.step(data(9))
        found.append(seen[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("updates", [0, 3])
def test_a_step_adds_to_the_gradients_of_backward_also_after_updates(updates):
    torch.manual_seed(0)
    net = Net()
    svi = SVI(net.model, net.guide, functools.partial(torch.optim.SGD, lr=0.0), Trace_ELBO())
    for _ in range(updates):
        svi.update(data(0))
    random = torch.get_rng_state()
    svi.backward(data(9))
    alone = [p.grad.clone() for p in net.parameters()]
    seen = []
    svi._optimizer.step = lambda leaves: seen.extend(p.grad.clone() for p in net.parameters())
    torch.set_rng_state(random)
    svi.step(data(9))
    for total, once in zip(seen, alone, strict=True):
        torch.testing.assert_close(total, 2 * once)


def test_an_elbo_with_a_loss_and_grads_of_its_own():
    class Doubling(Trace_ELBO):
        def loss_and_grads(self, model, guide, *args, **kwargs):
            loss = 2 * self.differentiable_loss(model, guide, *args, **kwargs)
            loss.backward()
            return loss.item()

    beside_pyro(at(99, lambda net: None), loss=Doubling, captured=None)


class Clamped(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = super().loss_and_grads(model, guide, *args, **kwargs)
        for parameter in pyro.get_param_store()._params.values():
            if parameter.grad is not None:
                parameter.grad.clamp_(-0.1, 0.1)
        return loss


class Tenth(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(gradient=torch.tensor(0.1))
        return loss.detach()


@pytest.mark.parametrize("loss", [Clamped, Tenth])
def test_gradients_that_an_elbo_of_the_users_changes(loss):
    svi = beside_pyro(at(99, lambda net: None), loss=loss, captured=False)
    assert "calls backward() itself" in svi.why_eager
    assert "in loss_and_grads" in svi.why_eager


def test_a_model_that_calls_backward():
    class Probes(Net):
        def likelihood(self, z):
            probe = z.detach().requires_grad_()
            self.d(probe).square().sum().backward()
            return self.d(z) + 0.1 * probe.grad.sign().sum()

    assert "in likelihood" in beside_pyro(at(99, lambda net: None), Probes, captured=False).why_eager


def test_a_discriminator_that_the_loss_trains():
    found = []
    for level in ("off", "graph"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net, judge, elbo = Net(), nn.Linear(2, 1), Trace_ELBO()
        optimizer = torch.optim.SGD(judge.parameters(), lr=1e-2)

        def loss(model, guide, x, judge=judge, elbo=elbo, optimizer=optimizer):
            optimizer.zero_grad()
            judge(torch.randn(len(x), 2)).square().mean().backward()
            optimizer.step()
            return elbo.differentiable_loss(model, guide, x)

        svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-2}), loss, compile=level)
        found.append(([svi.step(data(step)) for step in range(6)], judge.weight))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("take", ["step", "update"])
def test_a_loss_that_sets_gradients_and_returns_its_value_trains_without_a_warning(take, caplog):
    elbo = Trace_ELBO()

    def sets(model, guide, x):
        loss = elbo.differentiable_loss(model, guide, x)
        loss.backward()
        return loss.detach()

    found = []
    for loss in (sets, elbo.differentiable_loss):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = Net()
        svi = SVI(net.model, net.guide, functools.partial(torch.optim.SGD, lr=1e-3), loss)
        for step in range(4):
            getattr(svi, take)(data(step))
        found.append(net.d[0].weight)
    torch.testing.assert_close(*found)
    assert "nothing trains" not in caplog.text


def test_a_program_that_calls_backward_when_a_graph_is_checked(tmp_path):
    class Later(Net):
        def likelihood(self, z):
            self.shift += 1.0
            if (tmp_path / "now").exists():  # what no guard sees
                self.d[0].weight.square().sum().backward()
            return self.d(z) + 0.1 * self.shift

    def act(step, net, svi):
        if step == 2:  # before the check on the first other data
            (tmp_path / "now").touch()
        elif step == 0:
            (tmp_path / "now").unlink(missing_ok=True)

    beside_pyro(act, Later, captured=False)


def test_a_program_that_seeds():
    class Seeds(Net):
        def likelihood(self, z):
            torch.manual_seed(5)
            return self.d(z)

    beside_pyro(at(99, lambda net: None), Seeds, captured=False)


def test_an_argument_that_the_program_knows():
    class Knows(Net):
        ref = None

        def likelihood(self, z):
            return self.d(z) * (3.0 if self.given is self.ref else 1.0)

        def model(self, x, y=None):
            self.given = x
            super().model(x, y)

    x = data(0)

    def act(step, net, svi):
        net.ref = x
        return (x if step % 2 else data(step),), {}

    beside_pyro(act, Knows, captured=None)


def test_a_dictionary_among_the_arguments_that_is_written_into():
    class Writes(Net):
        def model(self, batch):
            batch["out"] = 1
            super().model(batch["x"])

        def guide(self, batch):
            super().guide(batch["x"])

    given: list[dict] = []

    def act(step, net, svi):
        given.append({"x": data(step)})
        return (given[-1],), {}

    beside_pyro(act, Writes, captured=False)
    assert all("out" in batch for batch in given)


def test_a_threshold_in_a_counter_of_the_programs_own():
    class Warm(Counts):
        def likelihood(self, z):
            return self.d(z) * (0.1 if self.steps < 20 else 1.0)

    svi = beside_pyro(at(99, lambda net: None), Warm, steps=30, captured=False)
    assert "computes with it" in svi.why_eager


def test_a_counter_in_a_list_keeps_its_schedule():
    class Listed(Net):
        def __init__(self):
            super().__init__()
            self.steps = [0]

        def guide(self, x, y=None):
            self.steps[0] += 1
            super().guide(x, y)

        def likelihood(self, z):
            return self.d(z) * min(1.0, self.steps[0] / 10)

    beside_pyro(at(99, lambda net: None), Listed, captured=False)


@pytest.mark.ci
def test_a_number_that_numpy_reads_becomes_no_input(caplog):
    class Reads(Net):
        def likelihood(self, z):
            return self.d(z) * float(np.asarray(self.temperature))

    def act(step, net, svi):
        net.temperature = 1.0 if step < 4 else 2.0 if step < 12 else 0.5

    svi = beside_pyro(act, Reads, steps=25)
    assert svi._graphs._fixed
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_an_input_is_checked_at_its_first_other_value(caplog):
    """What is frozen of one input is found though others had changed before: here by a program that looks at an id."""

    class Frozen(Net):
        def model(self, x, weight):
            super().model(x, x * known.get(id(weight), 1.0))

        def guide(self, x, weight):
            super().guide(x)

    weights = [torch.ones(1), torch.ones(1)]
    known = {id(weights[1]): 50.0}
    beside_pyro(lambda step, net, svi: ((data(step), weights[step >= 8]), {}), Frozen, steps=20, captured=False)
    assert [r for r in caplog.records if "no guard sees" in r.getMessage()]


def test_a_count_that_the_graph_does_not_keep_is_no_rounding():
    a, b = torch.tensor([100_000]), torch.tensor([100_001])
    assert not capture.comparing._close(a, b)
    assert capture.comparing._close(a, a.clone())


def test_looking_for_a_hook_again_costs_no_graph(monkeypatch):
    monkeypatch.setattr("ppl_vae.svi._AGAIN", 10)  # eager steps between two looks
    net = Net()
    handle = net.d[2].register_forward_hook(lambda module, inputs, output: output)
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for step in range(100):
        svi.step(data(step % 5))
    handle.remove()
    for step in range(11):
        svi.step(data(step % 5))
    assert svi.why_eager is None
    assert svi._graphs


def test_a_cached_function_that_is_not_pythons():
    class Holds(Net):
        def __init__(self):
            super().__init__()
            self.cached = functools.lru_cache(functools.partial(float, 2.0))
            self.proxy = types.MappingProxyType({"gain": 1.0})

        def likelihood(self, z):
            return self.d(z) * self.cached() * self.proxy["gain"]

    beside_pyro(at(99, lambda net: None), Holds)


def test_whole_numbers_of_an_object_become_inputs(caplog):
    class Epochs(Net):
        def likelihood(self, z):
            return self.d(z) * (1 + self.epoch / 10)

    svi = beside_pyro(lambda step, net, svi: setattr(net, "epoch", step), Epochs, steps=30)
    assert svi._graphs.made <= 3
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_annealing_by_a_scale_around_the_model():
    class Annealed(Net):
        beta = 1.0

        def model(self, x, y=None):
            with pyro.poutine.scale(scale=self.beta):
                super().model(x, y)

    def act(step, net, svi):
        net.beta = 1.0 if step < 4 else 1.0 / step

    beside_pyro(act, Annealed, steps=25)


def test_one_call_that_fails_ends_nothing():
    net = Net()
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for step in range(8):
        if step % 2:
            with pytest.raises(RuntimeError):
                svi.step(torch.randn(5, 3))
        svi.step(data(step))
    assert svi.why_eager is None


def test_arguments_of_other_kinds():
    class Takes(Net):
        def model(self, x, kind, flag):
            super().model(x.to(kind))

        def guide(self, x, kind, flag):
            super().guide(x.to(kind))

    beside_pyro(lambda step, net, svi: ((data(step), torch.float32, np.bool_(True)), {}), Takes)
    svi = beside_pyro(lambda step, net, svi: ((data(step), torch.float32, {1, 2}), {}), Takes, captured=False)
    assert "an argument is a" in svi.why_eager or "set" in svi.why_eager


@pytest.mark.parametrize(
    "number", [lambda step: 2**62 + step * 2**61, lambda step: 1e300 * (1 + step), lambda step: -(2**63) - 2**70 * step]
)
def test_a_large_number_among_the_arguments(number):
    class Seeded(Net):
        def model(self, x, seed):
            super().model(x)

        def guide(self, x, seed):
            super().guide(x)

    beside_pyro(lambda step, net, svi: ((data(step), number(step)), {}), Seeded, captured=None)


def test_sparse_gradients_and_arguments():
    class Embeds(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 6, sparse=True)

        def likelihood(self, z):
            return self.d(z) + self.table(torch.arange(len(z)) % 7)

    found = []
    for make in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = Embeds()
        svi = make(net.model, net.guide, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO())
        pyro.set_rng_seed(0)
        found.append([svi.step(data(step)) for step in range(6)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)

    class Dense(Net):
        def model(self, x, y=None):
            super().model(x.to_dense())

        def guide(self, x, y=None):
            super().guide(x.to_dense())

    svi = beside_pyro(lambda step, net, svi: ((data(step).to_sparse(),), {}), Dense, captured=False)
    assert "sparse" in svi.why_eager


def test_a_copy_goes_on_by_itself():
    net = Net()
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for step in range(4):
        svi.step(data(step))
    twin = copy.deepcopy(svi)
    assert not twin._graphs
    assert svi._graphs


def test_a_large_buffer_costs_nothing():
    class Dataset(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("all", torch.zeros(20_000_000))

    net = Dataset()
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step(data(0))
    began = time.process_time()
    svi.step(data(0))
    svi.step(data(1))
    assert time.process_time() - began < 2
    assert not next(iter(svi._graphs)).written


def test_a_distribution_that_is_made_once():
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    class Held(Net):
        def model(self, x, y=None):
            pyro.module("net", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(self.d(z), 1.0).to_event(1), obs=x)

    beside_pyro(at(99, lambda net: None), Held)


COLLECTED = 0


def count_collections(phase, info):
    global COLLECTED
    COLLECTED += 1


def test_what_the_garbage_collector_calls_is_no_part_of_the_program(caplog):
    before = gc.get_threshold()
    gc.callbacks.append(count_collections)
    gc.set_threshold(1)
    try:
        beside_pyro(at(99, lambda net: None), steps=6)
    finally:
        gc.callbacks.remove(count_collections)
        gc.set_threshold(*before)
    assert gc.isenabled()
    assert COLLECTED > 100
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_what_is_within_reach_and_not_used_hinders_nothing():
    class Carries(Net):
        def __init__(self):
            super().__init__()
            self.archive = [[float(i + j) for j in range(900)] for i in range(100)]
            self.teacher = {"net": nn.Linear(2, 2)}
            self.teacher["net"].register_forward_hook(lambda module, inputs, output: output)

    beside_pyro(at(5, lambda net: net.archive[0].append(1.0)), Carries)
