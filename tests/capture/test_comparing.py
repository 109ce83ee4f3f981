"""When two steps count as equal, and what a capture spends its time on."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ppl_vae import SVI
from ppl_vae.capture import comparing
from ppl_vae.capture.comparing import Comparison, Outcome
from ppl_vae.capture.eager import Step
from ppl_vae.capture.state import Snapshot
from ppl_vae.objectives.losses import BatchLoss


def outcome(*gradients: torch.Tensor | None) -> Outcome:
    loss = BatchLoss(torch.tensor(5.0), torch.tensor(5.0), 1.0, None, None)
    return Outcome(Step(loss, list(gradients)), Snapshot([]))


def difference(ours: Outcome, theirs: Outcome, full: bool = True) -> str | None:
    leaves = [torch.zeros(3) for _ in theirs.step.gradients]
    comparison = Comparison(theirs.step, leaves, ("weight", "bias"), full=full, autocast=False)
    return comparison.difference(ours, theirs, lambda way: theirs.step)


LARGE = torch.full((3,), 1000.0)
NOISE = 1000 * 2**-23 * torch.tensor([1.0, -2.0, 0.5])  # two roundings of the largest gradient


def test_a_gradient_of_zero_but_for_rounding_may_be_other_noise_once_compiled():
    """As of a bias before batch normalisation."""
    assert difference(outcome(LARGE, -NOISE), outcome(LARGE, NOISE)) is None
    assert "'bias'" in difference(outcome(LARGE, -NOISE), outcome(LARGE, NOISE), full=False)


@pytest.mark.parametrize("factor", [10.0, 1e3])
def test_what_is_more_than_rounding_must_agree(factor):
    assert "'bias'" in difference(outcome(LARGE, -factor * NOISE), outcome(LARGE, factor * NOISE))
    assert "'bias'" in difference(outcome(LARGE, NOISE), outcome(LARGE, factor * NOISE))
    assert "'bias'" in difference(outcome(LARGE, factor * NOISE), outcome(LARGE, NOISE))


def test_what_roundings_of_the_parameters_change_is_no_difference():
    """As where a scale near zero makes a gradient of great terms that cancel."""
    theirs, ours = outcome(LARGE, LARGE), outcome(LARGE, 1.01 * LARGE)
    comparison = Comparison(theirs.step, [torch.zeros(3)] * 2, ("weight", "bias"), full=True, autocast=False)
    for change, agree in ((1.001, True), (1.0001, False), (1.0, False), (float("nan"), False)):
        told = comparison.difference(ours, theirs, lambda way, change=change: outcome(LARGE, change * LARGE).step)
        assert (told is None) is agree
    missing = comparison.difference(ours, theirs, lambda way: outcome(LARGE, None).step)
    assert "'bias'" in missing
    assert "'bias'" in comparison.difference(outcome(LARGE, None), theirs, lambda way: outcome(LARGE, 2 * LARGE).step)


def test_a_change_that_is_not_finite_is_no_measure():
    change = torch.tensor([1.0, 1.0, float("inf")])
    assert not comparing._is_rounding(7 * torch.ones(3), torch.ones(3), [change], 32)
    assert comparing._is_rounding(7 * torch.ones(3), torch.ones(3), [change, 2 * torch.ones(3)], 32)


def test_complex_gradients_are_measured():
    a, b, c = torch.tensor([[1 + 1j], [1 + 1.01j], [1 + 1.001j]]).unbind()
    assert comparing._is_rounding(a, b, [c], 32)
    assert not comparing._is_rounding(a, b, [c], 0.1)


def test_parameters_are_off_by_a_rounding_and_back():
    leaves = [torch.randn(2, 3), torch.randn(3, 2, dtype=torch.float64).T, torch.randn(())]
    before = [leaf.clone() for leaf in leaves]
    comparison = Comparison(outcome(*leaves).step, leaves, (), full=True, autocast=False)
    with comparison.off_by_a_rounding(0):
        for leaf, value in zip(leaves, before, strict=True):
            error = ((leaf - value) / value).abs() / torch.finfo(leaf.dtype).eps
            assert error.max() <= 2
            assert error.mean() > 0.5
    assert all(map(torch.equal, leaves, before))


@pytest.mark.parametrize("compile", ["graph", "full"])
def test_a_program_is_no_further_from_its_graph_than_roundings(monkeypatch, compile):
    """Every gradient is held against roundings alone, and changes by more than 32 of them in no check."""
    monkeypatch.setattr(Comparison, "_close_gradients", lambda *_: False)
    net, x = nn.Linear(4, 4), torch.randn(8, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, torch.ones(4)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 0.5).to_event(1))

    svi = SVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=compile)
    for _ in range(30):
        svi.step(x)
    assert svi.why_eager is None
    assert svi._graphs


@pytest.mark.parametrize(("precision", "shape"), [("high", (3,)), ("highest", (3, 1, 1)), ("medium", (3,))])
def test_tf32_rounds_more(monkeypatch, precision, shape):
    """Products do on a GPU if the user lets them, convolutions by torch's default; float64 and biases never do."""
    monkeypatch.setattr("ppl_vae.capture.comparing.is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    theirs = outcome(LARGE, 2e-3 * LARGE)
    close, far = outcome(1.01 * LARGE, -2e-3 * LARGE), outcome(1.03 * LARGE, 2e-3 * LARGE)
    for dtype, agree in ((torch.float32, True), (torch.float64, False)):
        leaves = [torch.zeros(shape, dtype=dtype), torch.zeros(3, dtype=dtype)]
        comparison = Comparison(theirs.step, leaves, ("net.weight", "net.bias"), full=True, autocast=False)
        assert "weight'" in comparison.difference(far, theirs, lambda way: theirs.step)
        assert (comparison.difference(close, theirs, lambda way: theirs.step) is None) is agree
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    comparison = Comparison(theirs.step, [torch.zeros(3)] * 2, ("weight", "bias"), full=True, autocast=False)
    assert "weight'" in comparison.difference(close, theirs, lambda way: theirs.step)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_nothing_is_noise_beside_a_gradient_that_is_not_finite(value):
    broken = LARGE.clone()
    broken[0] = value
    assert "'bias'" in difference(outcome(broken, -NOISE), outcome(broken, NOISE))
    assert difference(outcome(broken, NOISE), outcome(broken, NOISE)) is None


def test_a_small_gradient_of_another_module_is_no_noise():
    """Of a guide beside a model whose gradient is ten million times as large: held against its own module alone."""
    for names, found in ((("net.weight", "net.bias"), None), (("decoder.weight", "guide.bias"), "'guide.bias'")):
        theirs = outcome(LARGE, NOISE)
        comparison = Comparison(theirs.step, [torch.zeros(3)] * 2, names, full=True, autocast=False)
        told = comparison.difference(outcome(LARGE, -NOISE), theirs, lambda way, step=theirs.step: step)
        assert told is None if found is None else found in told


def test_a_gradient_that_is_not_there_is_no_zero():
    assert "'bias'" in difference(outcome(LARGE, None), outcome(LARGE, NOISE))
    assert "'bias'" in difference(outcome(LARGE, NOISE), outcome(LARGE, None))
    assert difference(outcome(LARGE, None), outcome(LARGE, None)) is None


def test_tracing_makes_no_fake_tensor_for_each_result(monkeypatch):
    """`make_fx` would make a mode for each, which is half of the time that a capture takes."""
    made = []
    make = FakeTensorMode.__init__
    monkeypatch.setattr(FakeTensorMode, "__init__", lambda self, *a, **k: made.append(1) or make(self, *a, **k))

    def modes(layers: int) -> int:
        network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))

        def model(x):
            pyro.module("network", network)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(network(x), 1.0).to_event(1), obs=x)

        pyro.clear_param_store()
        made.clear()
        svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        for _ in range(3):
            svi.step(torch.ones(4, 2))
        assert svi.why_eager is None
        assert svi._graphs
        return len(made)

    assert modes(1) == modes(8) > 0
