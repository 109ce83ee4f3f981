"""What people write in Pyro, beside Pyro's own SVI: captured, and the same losses from the same seed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, autoguide, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_mean
from pyro.nn import PyroModule, PyroSample
from torch import nn

from ppl_vae import SVI

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, 2.0, -1.0]) + 0.1 * X[:, 0].sin()


def beside_pyro(make: Callable[[], Any], loss: Callable[[], Any], args: Any, steps: int = 100, **optim: Any) -> SVI:
    """Hold a hundred losses against Pyro's."""
    found = []
    for kind in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide = make()
        svi = kind(model, guide, pyro.optim.Adam({"lr": 1e-2, **optim}), loss())
        pyro.set_rng_seed(1)
        found.append([svi.step(*(args(i) if callable(args) else args)) for i in range(steps)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert svi.why_eager is None
    assert svi._graphs
    return svi


class Regression(PyroModule):
    """A Bayesian neural network."""

    def __init__(self):
        super().__init__()
        self.hidden = PyroModule[nn.Linear](3, 4)
        self.hidden.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
        self.hidden.bias = PyroSample(dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        self.out = PyroModule[nn.Linear](4, 1)
        self.out.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 4]).to_event(2))
        self.out.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        mean = self.out(torch.tanh(self.hidden(x))).squeeze(-1)
        sigma = pyro.sample("sigma", dist.Uniform(0.1, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return pyro.deterministic("mean", mean)


@pytest.mark.ci
@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    "guide",
    [
        "AutoNormal",
        "AutoDelta",
        "AutoDiagonalNormal",
        "AutoMultivariateNormal",
        "AutoLowRankMultivariateNormal",
        "AutoIAFNormal",
        "AutoLaplaceApproximation",
        "AutoStructured",
        "AutoGaussian",
    ],
)
def test_pyro_modules_with_autoguides(guide, caplog):
    def make():
        model = Regression()
        return model, getattr(autoguide, guide)(model)

    beside_pyro(make, Trace_ELBO, (X, Y), steps=30)
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]  # its guide's own bookkeeping is no fault


@pytest.mark.ci
def test_a_pyro_sample_that_is_replaced():
    def make():
        model = Regression()
        made.append(model)
        return model, AutoNormal(model)

    made = []

    def args(step):
        if step == 12:
            made[-1].hidden.bias = PyroSample(dist.Normal(0.0, 3.0).expand([4]).to_event(1))
        return X, Y

    beside_pyro(make, Trace_ELBO, args, steps=30)


@config_enumerate
def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(3)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[which], scale), obs=x)


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
def test_a_mixture_with_enumeration(guide):
    def make():
        exposed = poutine.block(mixture, expose=["weights", "locs", "scale"])
        return mixture, guide(exposed, init_loc_fn=init_to_mean)

    x = torch.cat([X[:, 0] - 3, X[:, 1] + 3])
    beside_pyro(make, lambda: TraceEnum_ELBO(max_plate_nesting=1), (x,))


class SemiSupervised(nn.Module):
    """The semi-supervised VAE, its labels summed out where there are none."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2 + self.classes, 8), nn.Tanh(), nn.Linear(8, 3))
        self.classifier = nn.Linear(3, self.classes)
        self.encoder = nn.Linear(3 + self.classes, 4)

    def joined(self, a, b):
        batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
        return torch.cat([a.expand(*batch, -1), b.expand(*batch, -1)], -1)

    def model(self, x, y=None):
        pyro.module("semi", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            label = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), self.classes) / self.classes), obs=y)
            pyro.sample("x", dist.Normal(self.decoder(self.joined(z, label)), 1.0).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)), infer={"enumerate": "parallel"})
            loc, scale = self.encoder(self.joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_a_semi_supervised_vae():
    def make():
        net = SemiSupervised()
        return net.model, net.guide

    labels = torch.eye(3)[torch.arange(40) % 3]
    args = lambda i: (X, labels) if i % 3 == 0 else (X,)  # noqa: E731
    svi = beside_pyro(make, lambda: TraceEnum_ELBO(max_plate_nesting=1), args)
    assert len(svi._graphs) == 2


def test_enumeration_with_states_of_probability_zero():
    """Pyro leaves their terms out; in a graph they are zeros."""

    def model(x):
        shift = pyro.param("shift", torch.zeros(3))
        with pyro.plate("data", len(x)):
            which = pyro.sample("which", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(shift[which], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(2))
        probs = torch.cat([logits.softmax(0), torch.zeros(1)])
        with pyro.plate("data", len(x)):
            pyro.sample("which", dist.Categorical(probs), infer={"enumerate": "parallel"})

    pyro.enable_validation(False)
    try:
        beside_pyro(lambda: (model, guide), lambda: TraceEnum_ELBO(max_plate_nesting=1), (X[:, 0],))
    finally:
        pyro.enable_validation(True)


@pytest.mark.ci
def test_two_svis_on_one_program():
    """A model that is trained under two objectives in turn, with its parameters in common."""
    found = []
    for kind in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        net = SemiSupervised()
        labels = torch.eye(3)[torch.arange(40) % 3]
        svis = [
            kind(net.model, net.guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO(max_plate_nesting=1)),
            kind(net.model, net.guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO()),
        ]
        found.append([svis[i % 2].step(X, *([labels] if i % 2 else [])) for i in range(30)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_message_names_pyros_own_line_and_what_to_do():
    def model(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", torch.tensor(0.0))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            if loc > 1e3:
                raise ValueError("far out")

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        svi.step(Y)
    assert "compute with tensors" in svi.why_eager
    assert "in model)" in svi.why_eager
    assert repr(svi) == f"SVI(the last step ran as written: {svi.why_eager})"
