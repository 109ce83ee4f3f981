"""Random programs, and random changes between their steps, beside Pyro: what no test writer thinks of."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from ppl_vae import SVI

GAIN = 1.0
LEVELS = {"a": 1.0, "b": [1.0, 2.0]}

# where a program takes a number from, how it uses it, and what may happen between two steps
SOURCES = [
    "none",
    "attribute",
    "class",
    "global",
    "dict",
    "list",
    "default",
    "closure",
    "array",
    "buffer",
    "tensor",
    "set",
]
USES = ["scale", "loc", "branch", "count", "kl", "repeat"]
CHANGES = [
    *(
        "none",
        "number",
        "number",
        "same number",
        "whole number",
        "freeze",
        "thaw",
        "train",
        "eval",
        "dropout",
        "append",
    ),
    *("replace layer", "swap data", "half batch", "alias", "clone", "particles", "hook", "unhook", "weights", "seed"),
    *("attribute", "rate", "expand", "transpose", "step under scale"),
]


class Base(nn.Module):
    """A program with everything that the changes touch."""

    gain = 1.0

    def __init__(self, source: str, use: str, norm: bool) -> None:
        super().__init__()
        self.source, self.use = source, use
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
        middle = [nn.BatchNorm1d(6), nn.Dropout(0.2)] if norm else [nn.Tanh()]
        # no bias before batch norm: its gradient is nothing but rounding, of which Adam makes whole steps
        self.decoder = nn.Sequential(nn.Linear(2, 6, bias=not norm), *middle, nn.Linear(6, 4))
        self.own = 1.0
        self.held = torch.tensor(1.0)
        self.array = np.ones(3)
        self.flags = {1.0}
        self.register_buffer("kept", torch.ones(()))
        self.unused = 0
        value = 1.0

        def default(value: float = 1.0) -> float:
            return value

        def closure() -> float:
            return value

        def set_closure(new: float) -> None:
            nonlocal value
            value = new

        self.default, self.closure, self.set_closure = default, closure, set_closure
        self.handles: list[Any] = []

    def number(self) -> Any:
        match self.source:
            case "attribute":
                return self.own
            case "class":
                return self.gain
            case "global":
                return GAIN
            case "dict":
                return LEVELS["a"]
            case "list":
                return LEVELS["b"][1] - 1.0
            case "default":
                return self.default()
            case "closure":
                return self.closure()
            case "array":
                return float(self.array[1])
            case "buffer":
                return self.kept
            case "tensor":
                return self.held.item()
            case "set":
                return sum(self.flags)
        return 1.0

    def set_number(self, new: float) -> None:
        global GAIN
        match self.source:
            case "attribute":
                self.own = new
            case "class":
                type(self).gain = new
            case "global":
                GAIN = new
            case "dict":
                LEVELS["a"] = new
            case "list":
                LEVELS["b"][1] = new + 1.0
            case "default":
                self.default.__defaults__ = (new,)
            case "closure":
                self.set_closure(new)
            case "array":
                self.array[1] = new
            case "buffer":
                self.kept.fill_(new)
            case "tensor":
                self.held.fill_(new)
            case "set":
                self.flags = {new}

    def model(self, x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.module("net", self)
        number = self.number()
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=number if self.use == "kl" else 1.0):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            loc, scale = self.decoder(z), 1.0
            match self.use:
                case "scale":
                    scale = 0.5 + abs(number)
                case "loc":
                    loc = loc * number
                case "branch":
                    loc = loc * 3 if number > 1.5 else loc
                case "count":
                    for _ in range(int(number)):
                        loc = torch.tanh(loc)
                case "repeat":
                    loc = torch.stack([loc * k for k in [number, 2.0]]).sum(0)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=y)

    def guide(self, x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)), poutine.scale(scale=self.number() if self.use == "kl" else 1.0):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.clamp(-3, 3).exp()).to_event(1))


def data(seed: int, n: int = 8) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


class Player:
    """Plays one sequence of changes under one SVI."""

    def __init__(self, make: Any, program: tuple[str, str, bool, bool]) -> None:
        global GAIN
        GAIN = 1.0
        LEVELS.update(a=1.0, b=[1.0, 2.0])
        source, use, norm, mean_field = program
        pyro.clear_param_store()
        torch.manual_seed(0)
        self.net = type("Program", (Base,), {})(source, use, norm)
        self.elbo = TraceMeanField_ELBO() if mean_field else Trace_ELBO()
        self.svi = make(self.net.model, self.net.guide, pyro.optim.Adam({"lr": 1e-3}), self.elbo)
        self.x = self.y = data(0)
        pyro.set_rng_seed(1)
        self.added = 0

    def change(self, kind: str, value: float) -> None:
        net = self.net
        match kind:
            case "number" | "same number":
                net.set_number(value if kind == "number" else net.number() * 1.0)
            case "whole number":
                net.set_number(int(value) + 1)
            case "freeze" | "thaw":
                (net.encoder if value < 1.5 else net.decoder[0]).requires_grad_(kind == "thaw")
            case "train" | "eval":
                net.train(kind == "train")
            case "dropout":
                for layer in net.decoder:
                    if isinstance(layer, nn.Dropout):
                        layer.p = 0.1 * value
            case "append" if self.added < 2:
                torch.manual_seed(7)
                self.added += 1
                net.decoder.append(nn.Linear(4, 4))
            case "replace layer":
                net.encoder[1] = nn.ReLU() if value < 1.5 else nn.Tanh()
            case "swap data":
                self.x = data(int(10 * value))
                self.y = self.x
            case "half batch":
                self.x, self.y = self.x[: max(2, len(self.x) // 2)], self.y[: max(2, len(self.x) // 2)]
            case "alias":
                self.y = self.x
            case "clone":
                self.y = self.x.clone() + value
            case "expand":
                self.x = self.x[:1].expand(len(self.x), 4)
            case "transpose":
                self.x = self.x.t().contiguous().t()
            case "particles":
                self.elbo.num_particles = 1 + int(value)
            case "hook":
                net.handles.append(net.decoder[0].register_forward_hook(lambda module, inputs, output: output * 1.5))
            case "unhook" if net.handles:
                net.handles.pop().remove()
            case "weights":
                with torch.no_grad():
                    net.decoder[0].weight.mul_(0.9)
                    net.encoder[0].weight.data = net.encoder[0].weight.data.clone() * 0.9
            case "seed":
                pyro.set_rng_seed(int(100 * value))
            case "attribute":
                net.unused += 1
                net.another = value
            case "rate":
                for optimizer in optim_objs(self.svi).values():
                    optimizer.param_groups[0]["lr"] = 1e-3 * value

    def step(self, kind: str) -> float:
        with poutine.scale(scale=0.5 if kind == "step under scale" else 1.0):
            if kind == "step under scale":
                return self.svi.step(self.x, self.y)
        return self.svi.step(self.x, self.y)


def optim_objs(svi: Any) -> Any:
    return svi.optim.optim_objs if hasattr(svi, "optim") else svi._optimizer.optim.optim_objs


programs = st.tuples(st.sampled_from(SOURCES), st.sampled_from(USES), st.booleans(), st.booleans())
changes = st.lists(
    st.tuples(st.sampled_from(CHANGES), st.sampled_from([0.3, 1.0, 1.25, 2.0, 2.5]), st.integers(1, 4)),
    min_size=2,
    max_size=7,
)


def play(program: tuple[str, str, bool, bool], sequence: list[tuple[str, float, int]]) -> None:
    found = []
    for make in (pyro.infer.SVI, SVI):
        player = Player(make, program)
        losses: list[float | str] = [player.step("none") for _ in range(3)]
        for kind, value, steps in sequence:
            try:
                player.change(kind, value)
                losses += [player.step(kind) for _ in range(steps)]
            except Exception as error:  # what Pyro refuses we refuse
                losses.append(type(error).__name__)
                break
        found.append(losses)
    theirs, ours = found
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        if isinstance(a, str) or isinstance(b, str):
            assert a == b
        else:
            assert b == pytest.approx(a, rel=2e-5, abs=1e-4, nan_ok=True)
    assert len(player.svi._graphs) <= 8
    assert player.svi._graphs.made <= 8


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Any:
    """No difference may be left to the check: all of these changes can be seen."""
    caplog.set_level(logging.WARNING, "ppl_vae.svi")
    yield caplog
    assert not [r.getMessage() for r in caplog.records if "no guard sees" in r.getMessage()]


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_random_changes_between_steps(seen: Any) -> None:
    _run(5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_two_thousand_random_changes(seen: Any) -> None:
    _run(2000)


def _run(examples: int) -> None:
    checked = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    checked(given(programs, changes)(play))()
