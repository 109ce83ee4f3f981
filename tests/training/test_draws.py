"""A training that diverges ends as a divergence, also where torch refuses to draw: a GPU's kernel would end it all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from short_runs import small_vae
from stand_in import Asserting, DeviceAssertError, stand_in
from torch import Tensor, nn

from ppl_vae import fit, objectives, posteriors
from ppl_vae._draws import UnstoppedDraws
from ppl_vae.data import Dataset, Split
from ppl_vae.training import DivergedError

P = torch.rand(40, 5, generator=torch.Generator().manual_seed(0))
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.bernoulli": torch.bernoulli,
    "Tensor.bernoulli": lambda p: p.bernoulli(),
    "Tensor.bernoulli_": lambda p: torch.empty(p.shape).bernoulli_(p),
    "bernoulli of a size": lambda p: torch.bernoulli(torch.full_like(p, math.nan), 0.3),
    "torch.poisson": torch.poisson,
    "torch.multinomial": lambda p: torch.multinomial(p, 1),
    "with replacement": lambda p: torch.multinomial(input=p, num_samples=3, replacement=True),
    "Tensor.multinomial": lambda p: p.multinomial(2),
    "torch.normal": lambda p: torch.normal(p, p),
    "torch.normal of a number": lambda p: torch.normal(mean=0.0, std=p),
    "torch.normal of a size": lambda p: torch.normal(0.0, 1.0, p.shape),
}
LAYOUTS = {"plain": P, "expanded": P[:, :1].expand(40, 5), "transposed": P.reshape(5, 40).T, "one": P[0]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("draw", DRAWS)
def test_draws_without_nan_are_those_of_torch(draw: str, layout: str) -> None:
    torch.manual_seed(0)
    expected = DRAWS[draw](LAYOUTS[layout])
    torch.manual_seed(0)
    with UnstoppedDraws() as mode:
        found = DRAWS[draw](LAYOUTS[layout])
    assert mode.met
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("draw", [name for name in DRAWS if "size" not in name])
def test_a_draw_of_nan_is_nan_or_any_class(draw: str) -> None:
    p = P.clone()
    p[3, 2] = math.nan
    with UnstoppedDraws(), Asserting():
        drawn = DRAWS[draw](p)
    if drawn.is_floating_point():
        assert torch.equal(drawn.isnan(), p.isnan())
    else:
        assert ((drawn >= 0) & (drawn < 5)).all()
    with Asserting(), pytest.raises((DeviceAssertError, RuntimeError)):
        DRAWS[draw](p)


X = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
SITES: dict[str, Callable[[Tensor], Any]] = {
    "Bernoulli": lambda t: dist.Bernoulli(logits=t).to_event(1),
    "OneHotCategorical": lambda t: dist.OneHotCategorical(logits=t),
    "Poisson": lambda t: dist.Poisson(t.exp()).to_event(1),
    "MixtureSameFamily": lambda t: dist.MixtureSameFamily(
        dist.Categorical(logits=t), dist.Normal(t.unsqueeze(-2).expand(-1, 4, 4), 1.0).to_event(1)
    ),
}


def program(site: str, device: str) -> Any:
    """Functions whose latents are drawn in such a way."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(3, 4).to(device), nn.Linear(4, 3).to(device)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", SITES[site](x.new_zeros(len(x), 4)))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", SITES[site](encoder(x)))

    return model, guide


def diverge(made: Any, data: Tensor, compile: str, device: str, **more: Any) -> DivergedError:
    """Train at a rate at which the first step ends all numbers, and take many steps before anybody looks."""
    options: dict[str, Any] = dict(batch_size=8, seed=0, epochs=2, compile=compile, device=device, **more)
    # on the CPU torch itself refuses; a mode around the steps would keep them from being captured
    asserting = Asserting() if device == "cpu" and compile == "off" else nullcontext()
    with asserting, pytest.raises(DivergedError) as caught:
        fit(made, data, optimizer=functools.partial(torch.optim.SGD, lr=1e30), **options)
    return caught.value


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and a GPU where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.mark.parametrize("value", [math.inf, -1e-9, 1.0000002])
@pytest.mark.parametrize("draw", ["torch.bernoulli", "Tensor.bernoulli", "Tensor.bernoulli_", "torch.poisson"])
def test_a_draw_of_what_is_no_probability_is_nan(draw: str, value: float) -> None:
    p = P.clone()
    p[3] = value
    with UnstoppedDraws():
        drawn = DRAWS[draw](p)
    valid = draw == "torch.poisson" and 0 < value < math.inf
    assert drawn[3].isnan().all() != valid
    assert drawn[[0, 1, 2, 4]].isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -1.0, 0.0])
def test_weights_that_are_none_give_some_class(value: float) -> None:
    weights = P.clone()
    weights[3] = value
    with UnstoppedDraws():
        drawn = torch.multinomial(weights, 2, replacement=True)
    assert ((drawn >= 0) & (drawn < 5)).all()


@pytest.mark.parametrize("compile", ["off", "graph"])
@pytest.mark.parametrize("site", SITES)
def test_functions_that_diverge_end_as_a_divergence(site: str, compile: str, device: str) -> None:
    made = program(site, device)
    error = diverge(made, X, compile, device, objective=objectives.REINFORCE(2))
    assert (error.epoch, error.step) == (1, 1)
    weights = error.good_state["modules"][0].values()
    assert all(weight.isfinite().all() for weight in weights)  # the device can still be read
    pyro.clear_param_store()
    run = fit(program(site, device), X, objective=objectives.REINFORCE(2), epochs=2, batch_size=8, device=device)
    assert math.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_mixture_posterior_that_diverges_ends_as_a_divergence(compile: str, device: str) -> None:
    vae = small_vae((3,), posterior=posteriors.MixtureOfNormals)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    error = diverge(vae, (X > 0).float(), compile, device)
    assert (error.epoch, error.step) == (1, 1)
    assert all(torch.equal(value.cpu(), before[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, 1.5, -0.1])
def test_bits_of_what_is_no_probability_are_refused_on_an_accelerator(value: float) -> None:
    p = torch.rand(64, 3, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    expected = torch.bernoulli(p)
    with stand_in() as device, Asserting():
        torch.manual_seed(0)
        (drawn,) = next(Split((p,), dynamic=True).batches(64, device=device))
        assert torch.equal(drawn.cpu(), expected)
        p[60, 1] = value
        rows = Split((p,), dynamic=True)
        nothing = Split((p[:0],))
        with pytest.raises(ValueError, match="Bernoulli"):
            fit(small_vae((3,)), Dataset("p", rows, nothing, nothing), batch_size=8, epochs=1, device=device)


def test_only_a_program_that_draws_so_runs_in_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode sees every call of torch, which takes a microsecond each."""
    entered = []
    enter = UnstoppedDraws.__enter__
    monkeypatch.setattr(UnstoppedDraws, "__enter__", lambda self: entered.append(1) or enter(self))
    fit(small_vae((3,)), (X > 0).float(), batch_size=8, seed=0, epochs=1, compile="off", device="cpu")
    assert len(entered) == 1  # in the rehearsal
    pyro.clear_param_store()
    fit(program("Bernoulli", "cpu"), X, objective=objectives.REINFORCE(2), batch_size=8, epochs=1, compile="off")
    assert len(entered) > 8
