"""The optimiser's update in the CUDA graph of a step, on a stand-in that freezes what a CUDA graph freezes."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import types
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from replays import TracedReplay, stand_in
from torch import Tensor

from ppl_vae import SVI, VAE, fit, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.capture import graphs as graphs_module
from ppl_vae.capture import whole
from ppl_vae.training import DivergedError


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> type[TracedReplay]:
    return stand_in(monkeypatch)


pytestmark = pytest.mark.ci

X = (torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


def program(device: str = "cpu") -> VAE:
    torch.manual_seed(0)
    vae = VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([5])),
        posterior=posteriors.DiagonalNormal(networks.MLP([5])),
    )
    return vae.to(device)


def trained(
    optim: Any = ADAM,
    steps: int = 24,
    between: Callable[[SVI, int], object] | None = None,
    device: str = "cpu",
    **options: Any,
) -> tuple[SVI, list[float], list[Tensor]]:
    """Train from the same seeds; call `between` before every step."""
    vae, data = program(device), X.to(device)
    svi = SVI(vae.model, vae.guide, optim, objectives.ELBO(), **options)
    torch.manual_seed(1)
    losses = []
    for step in range(steps):
        if between is not None:
            between(svi, step)
        losses.append(svi.update(data[step % 4 :][:8]).loss.item())
    return svi, losses, [p.detach().clone() for p in svi.parameters.values()]


def wholes(svi: SVI) -> list[whole.WholeStep]:
    return [graph.whole for graph in svi._graphs if graph.whole is not None]


def compared(**options: Any) -> SVI:
    """Hold a captured run against the program's, and return its SVI."""
    ours, theirs = trained(**options), trained(**options, compile="off")
    assert_same(ours, theirs)
    return ours[0]


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-5)


OPTIMIZERS = {
    "Adam": ADAM,
    "AdamW": functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    "amsgrad": functools.partial(torch.optim.Adam, lr=1e-2, amsgrad=True),
    "SGD": functools.partial(torch.optim.SGD, lr=1e-2),
    "momentum": functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize(("name", "clip_norm"), list(zip(OPTIMIZERS, [None, 0.1, None, 0.1, 0.1], strict=True)))
def test_steps_with_the_update_inside_are_the_programs(
    replays: type[TracedReplay], name: str, clip_norm: float | None
) -> None:
    assert wholes(compared(optim=OPTIMIZERS[name], clip_norm=clip_norm))[0].uses > 12


def test_a_step_of_the_sum_leaves_no_gradient_and_an_update_leaves_its_own(replays: type[TracedReplay]) -> None:
    svi, _, _ = trained()
    assert wholes(svi)[0].uses
    eager, _, _ = trained(compile="off")
    for a, b in zip(svi.parameters.values(), eager.parameters.values(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    sums = {}
    for level in ("graph", "off"):
        vae = program()
        one = SVI(vae.model, vae.guide, ADAM, objectives.ELBO(), compile=level)
        torch.manual_seed(1)
        sums[level] = [one.step(X[:8]) for _ in range(20)]
        assert all(p.grad is None for p in one.parameters.values())
        for p in one.parameters.values():  # as in Pyro, a step adds to it
            p.grad = torch.ones_like(p)
        sums[level] += [one.step(X[:8]) for _ in range(3)]
    torch.testing.assert_close(sums["graph"], sums["off"], rtol=1e-4, atol=1e-4)


def schedule(svi: SVI, step: int) -> None:
    """Change the rate as schedules do."""
    if svi.optimizer is not None:
        svi.optimizer.param_groups[0]["lr"] = 1e-2 * 0.9**step


def test_a_learning_rate_that_changes_at_every_step_is_followed_by_one_recording(replays: type[TracedReplay]) -> None:
    svi = compared(between=schedule)
    assert wholes(svi)[0].uses > 12
    assert replays.made == 2  # the step alone, and with its update
    assert svi.optimizer.param_groups[0]["lr"] == 1e-2 * 0.9**23  # a number still


def another_beta(svi: SVI, step: int) -> None:
    if step == 15:
        svi.optimizer.param_groups[0]["betas"] = (0.5, 0.9)


def another_state(svi: SVI, step: int) -> None:
    if step == 15:
        state = copy.deepcopy(svi.optimizer.state_dict())
        for own in state["state"].values():
            own["exp_avg"].mul_(3)
        svi.optimizer.load_state_dict(state)


def written_state(svi: SVI, step: int) -> None:
    if step == 15:
        for own in svi.optimizer.state.values():
            own["exp_avg"].mul_(3)


def frozen(svi: SVI, step: int) -> None:
    next(iter(svi.parameters.values())).requires_grad_(not 10 <= step < 20)


def elsewhere(svi: SVI, step: int) -> None:
    if step == 15:
        parameter = next(iter(svi.parameters.values()))
        parameter.data = parameter.data.clone() * 1.5


def clipped(svi: SVI, step: int) -> None:
    svi.clip_norm = 0.05 if step > 15 else None


def hooked(svi: SVI, step: int) -> None:
    """Halve the gradients by a hook of the optimiser."""
    if step == 15:
        svi.optimizer.register_step_pre_hook(
            lambda optimizer, args, kwargs: [p.grad.mul_(0.5) for p in optimizer.param_groups[0]["params"]] and None
        )


def a_second_group(svi: SVI, step: int) -> None:
    if step == 15:
        first = svi.optimizer.param_groups[0]
        svi.optimizer.add_param_group({**first, "params": [first["params"].pop()], "lr": 0.5})


def rate_as_a_tensor(svi: SVI, step: int) -> None:
    if step == 15:
        svi.optimizer.param_groups[0]["lr"] = torch.tensor(0.05)
    if step == 20:
        svi.optimizer.param_groups[0]["lr"].fill_(0.2)


def state_lost(svi: SVI, step: int) -> None:
    if step == 15:
        svi.optimizer.state.clear()


def state_of_one_lost(svi: SVI, step: int) -> None:
    if step == 15:
        del svi.optimizer.state[next(iter(svi.parameters.values()))]


def amsgrad(svi: SVI, step: int) -> None:
    if step == 15:
        svi.optimizer.param_groups[0]["amsgrad"] = True
        for own in svi.optimizer.state.values():
            own["max_exp_avg_sq"] = torch.zeros_like(own["exp_avg_sq"])


def lower_rate_in_a_hook(svi: SVI, step: int) -> None:
    """Let a hook of the optimiser lower the rate after each step."""
    if step == 10:
        svi.optimizer.register_step_post_hook(
            lambda optimizer, args, kwargs: optimizer.param_groups[0].update(lr=optimizer.param_groups[0]["lr"] * 0.8)
        )


def a_step_of_ones_own_under_a_schedule(svi: SVI, step: int) -> None:
    if step == 5:
        own = type(svi.optimizer).step

        def halved(self: Any, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                p.grad.mul_(0.5)
            own(self)

        svi.optimizer.step = types.MethodType(halved, svi.optimizer)
        torch.optim.lr_scheduler.ExponentialLR(svi.optimizer, 0.9)


def applied_otherwise(svi: SVI, step: int) -> None:
    if step == 10:
        apply = svi.apply

        def noisy() -> None:
            for p in svi.parameters.values():
                p.grad.add_(0.1)
            apply()

        svi.apply = noisy  # type: ignore[method-assign]


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "change",
    [
        state_lost,
        state_of_one_lost,
        amsgrad,
        lower_rate_in_a_hook,
        a_step_of_ones_own_under_a_schedule,
        applied_otherwise,
        another_beta,
        another_state,
        written_state,
        frozen,
        elsewhere,
        clipped,
        hooked,
        a_second_group,
        rate_as_a_tensor,
    ],
)
def test_what_changes_between_two_steps_is_followed(
    replays: type[TracedReplay], change: Callable[[SVI, int], object]
) -> None:
    def after_the_first(svi: SVI, step: int) -> None:
        if step:
            change(svi, step)

    compared(between=after_the_first)
    assert replays.calls > 5


class Lion(torch.optim.Optimizer):
    """An optimiser of somebody's own, which counts in Python."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3, "fused": True})
        self.count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.count += 1
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad.sign(), alpha=-1e-3 * self.count)


@pytest.mark.parametrize(
    ("optim", "reason"),
    [
        (functools.partial(torch.optim.RMSprop, lr=1e-3), "RMSprop has neither a fused form"),
        (Lion, "Lion is no optimiser of torch, or has a hook"),
        (pyro.optim.Adam({"lr": 1e-2}), None),
    ],
)
def test_other_updates_stay_outside_and_one_line_says_so(
    replays: type[TracedReplay], caplog: pytest.LogCaptureFixture, optim: Any, reason: str | None
) -> None:
    with caplog.at_level(logging.INFO, "ppl_vae.capture.whole"):
        svi = compared(optim=optim) if reason else trained(optim)[0]
    assert not wholes(svi)
    assert [reason in message for message in caplog.messages] == [True] * (reason is not None)


def test_a_setting_that_changes_at_every_step_ends_the_recordings(
    replays: type[TracedReplay], caplog: pytest.LogCaptureFixture
) -> None:
    def decay(svi: SVI, step: int) -> None:
        if step:
            svi.optimizer.param_groups[0]["weight_decay"] = 1e-3 * step

    with caplog.at_level(logging.INFO, "ppl_vae.capture.whole"):
        compared(between=decay)
    assert replays.made == 1 + whole._MOST_SHORT
    assert "its settings change" in caplog.text


def test_a_recording_that_moves_the_parameters_otherwise_is_not_used(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    called = TracedReplay.__call__

    def doubled(self: TracedReplay, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = called(self, *tensors)
        if self.is_whole:
            self._state[0].data.mul_(1.001)
        return outputs

    monkeypatch.setattr(TracedReplay, "__call__", doubled)
    with caplog.at_level(logging.INFO, "ppl_vae.capture.whole"):
        assert not wholes(compared())
    assert "moves the parameters otherwise" in caplog.text


def test_a_recording_that_fails_leaves_everything_as_it_was(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: whole.WholeStep, *inputs: Tensor) -> tuple[Tensor, ...]:
        self._moved(self._graph.launched(*inputs))
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(whole.WholeStep, "_taken", fails)
    assert not wholes(compared())


def test_the_update_stays_outside_where_processes_exchange_gradients(replays: type[TracedReplay]) -> None:
    def exchange(parameters: dict[str, Tensor], loss: Any) -> Any:
        for p in parameters.values():
            p.grad.mul_(0.5)
        return loss

    def shared(svi: SVI, step: int) -> None:
        svi.exchange = exchange

    assert not wholes(compared(between=shared))


def test_what_no_guard_sees_is_found_after_uses_of_the_whole_step(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(graphs_module._INTERVAL, "cpu", 20)
    vae = program()
    hidden = itertools.chain([1.0] * 15, itertools.repeat(0.0))  # an iterator's insides: out of sight

    def model(x: Tensor) -> None:
        vae.model(x * next(hidden))

    svi = SVI(model, vae.guide, ADAM, objectives.ELBO())
    for step in range(70):
        if step == 40:
            assert wholes(svi)[0].uses > 20
            assert not caplog.text
            for _ in range(15):
                next(hidden)
        svi.update(X[:8])
    assert "this step was taken as the program is written, and it is captured anew" in caplog.text


def test_a_copy_makes_recordings_of_its_own(replays: type[TracedReplay]) -> None:
    svi, _, _ = trained()
    twin = copy.deepcopy(svi)
    assert wholes(svi)
    assert not wholes(twin)
    before = [p.detach().clone() for p in svi.parameters.values()]
    for _ in range(8):
        twin.update(X[:8])
    assert all(torch.equal(a, b) for a, b in zip(before, svi.parameters.values(), strict=True))


def test_a_number_on_the_cpu_that_the_program_writes_is_in_no_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph repeats nothing that the CPU does: the step is launched kernel by kernel."""
    replays, held = stand_in(monkeypatch), []
    monkeypatch.setattr("ppl_vae.capture.step.is_on_gpu", lambda tensor: all(tensor is not h for h in held))
    found = {}
    for level in ("graph", "off"):
        vae, temperature = program(), torch.tensor(1.0)
        held[:] = [temperature]

        def guide(x: Tensor, vae: VAE = vae, temperature: Tensor = temperature) -> Any:
            temperature.mul_(0.995)
            return vae.guide(x * temperature)

        svi = SVI(vae.model, guide, ADAM, objectives.ELBO(), compile=level)
        torch.manual_seed(1)
        for _ in range(20):
            svi.update(X[:8])
        found[level] = float(temperature)
        assert level == "off" or svi.why_eager is None
    assert found["graph"] == pytest.approx(0.995**20) == found["off"]
    assert replays.made == 0


def test_fit_follows_its_schedule_and_names_a_divergence(replays: type[TracedReplay]) -> None:
    options = {
        "epochs": 3,
        "batch_size": 10,
        "seed": 0,
        "optimizer": ADAM,
        "scheduler": functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        "device": "cpu",
    }
    runs = [fit(program(), X, **options, compile=level) for level in ("graph", "off")]
    assert replays.calls > 5
    ours, theirs = ([record["elbo"] for record in run.history] for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(DivergedError, match="epoch 1"):
        fit(program(), X, **options | {"optimizer": functools.partial(torch.optim.SGD, lr=1e30)})


@pytest.mark.gpu
@pytest.mark.parametrize("level", ["graph", "full"])
@pytest.mark.parametrize("between", [None, schedule])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_cuda_graphs_with_the_update_inside_are_the_programs(name: str, between: Any, level: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    options = {"optim": OPTIMIZERS[name], "between": between, "clip_norm": 0.1, "device": "cuda"}
    ours, theirs = (trained(**options, compile=c) for c in (level, "off"))
    assert wholes(ours[0])[0].uses > 12
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-3, atol=1e-4)
