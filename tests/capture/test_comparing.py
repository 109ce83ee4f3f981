"""When two steps count as equal, and what a capture spends its time on."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ppl_vae import SVI
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
    return comparison.difference(ours, theirs)


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
        assert "weight'" in comparison.difference(far, theirs)
        assert (comparison.difference(close, theirs) is None) is agree
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    comparison = Comparison(theirs.step, [torch.zeros(3)] * 2, ("weight", "bias"), full=True, autocast=False)
    assert "weight'" in comparison.difference(close, theirs)


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
        told = comparison.difference(outcome(LARGE, -NOISE), theirs)
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
