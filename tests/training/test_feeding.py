"""Steps that draw their batches and note their figures themselves, on a stand-in for CUDA graphs, and on a GPU."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO
from replays import TracedReplay, stand_in
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ppl_vae import VAE, fit, likelihoods, networks, objectives, posteriors, priors, regularizers
from ppl_vae.data import Dataset, Split, from_tensors
from ppl_vae.objectives.losses import BatchLoss
from ppl_vae.training import DivergedError
from ppl_vae.training.feeding import EpochFeed
from ppl_vae.training.loop import Loop
from ppl_vae.training.run import Callback

pytestmark = pytest.mark.ci

X = (torch.rand(100, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)
HALVING = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> type[TracedReplay]:
    return stand_in(monkeypatch)


def program() -> VAE:
    torch.manual_seed(0)
    return VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([5])),
        posterior=posteriors.DiagonalNormal(networks.MLP([5])),
    )


@pytest.fixture(scope="module")
def plain() -> Any:
    """The run with the options by default, its steps taken one by one."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        return trained(patch, False)[0]


class Halved(Callback):
    """Halves the parameters after an epoch."""

    def on_epoch(self, run: Any, record: dict[str, float]) -> None:
        if record["epoch"] == 2:
            with torch.no_grad():
                for parameter in run.program.parameters():
                    parameter.mul_(0.5)


def trained(monkeypatch: pytest.MonkeyPatch, by_itself: bool, data: Any = X, **options: Any) -> tuple[Any, list[int]]:
    """Fit from the same seed; also return how many steps were taken without Python, each time."""
    taken: list[int] = []
    follow = Loop._follow

    def noted(self: Loop) -> int:
        taken.append(follow(self) if by_itself else 0)
        return taken[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_follow", noted)
        options = {"optimizer": ADAM, "epochs": 4, "batch_size": 4, "seed": 3, "compile": "graph"} | options
        run = fit(program(), data, **options)
    return run, [count for count in taken if count]


def assert_same_run(ours: Any, theirs: Any) -> None:
    clocks = {"seconds", "rate"}
    histories = [[{k: v for k, v in r.items() if k not in clocks} for r in run.history] for run in (ours, theirs)]
    assert histories[0] == histories[1]
    for a, b in zip(ours.program.parameters(), theirs.program.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"batch_size": 7}, id="ragged"),  # the last batch of an epoch is smaller
        pytest.param({"regularizer": regularizers.KLWeight(schedule="linear", steps=60)}, id="weight"),  # counts steps
        pytest.param({"callbacks": [Halved()]}, id="callback"),
        pytest.param({"objective": Trace_ELBO(), "clip_norm": 0.1}, id="Pyro"),  # tells no terms
        pytest.param({"objective": objectives.IWAE(3)}, id="IWAE", marks=pytest.mark.slow),
        pytest.param({"scheduler": HALVING}, id="schedule", marks=pytest.mark.slow),
        pytest.param({"stop": lambda: False}, id="stop", marks=pytest.mark.slow),
        pytest.param({"precision": "bf16"}, id="bf16", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_bit_for_bit_that_of_steps_one_by_one(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    ours, taken = trained(monkeypatch, True, **copy.deepcopy(options))
    theirs, none = trained(monkeypatch, False, **copy.deepcopy(options))
    assert sum(taken) > 20
    assert not none
    assert_same_run(ours, theirs)


@pytest.mark.parametrize("binarize", ["dynamic", "none"])
def test_a_dynamic_split_is_drawn_as_it_is_one_by_one(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch, binarize: str
) -> None:
    grey = torch.rand(100, 6, generator=torch.Generator().manual_seed(1))
    data = from_tensors(grey, binarize=binarize, validation=0)
    if binarize == "none":
        data = from_tensors((grey > 0.5).float(), validation=0)
    runs = [trained(monkeypatch, by_itself, data) for by_itself in (True, False)]
    assert sum(runs[0][1]) > 20
    assert_same_run(runs[0][0], runs[1][0])


def test_a_run_that_is_resumed_in_an_epoch_goes_on_bit_for_bit(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes wherever a look back is: within an epoch of 250 steps."""
    data, states = X.repeat(10, 1), []

    def stop() -> bool:
        return bool(states)

    class Stopped(Callback):
        def on_progress(self, progress: Any) -> None:
            if progress.epoch == 2 and progress.step >= 100:
                states.append(progress)

    whole, _ = trained(monkeypatch, True, data, epochs=3)
    first, taken = trained(monkeypatch, True, data, epochs=3, callbacks=[Stopped()], stop=stop)
    assert first.stopped == "interrupted"
    assert max(taken) > 80
    second, _ = trained(monkeypatch, True, data, epochs=3, resume=first.state())
    for a, b in zip(whole.program.parameters(), second.program.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.history[-1]["elbo"] == second.history[-1]["elbo"]


def test_an_interrupt_between_two_steps_leaves_a_state_that_knows_how_many_were_taken(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, states = X.repeat(10, 1), []

    class Kept(Callback):
        def on_error(self, run: Any, error: BaseException) -> None:
            states.append(run.state())

    whole, _ = trained(monkeypatch, True, data, epochs=3)
    call, count = TracedReplay.__call__, iter(range(10**6))

    def interrupted(self: TracedReplay, *tensors: Tensor) -> tuple[Tensor, ...]:
        if next(count) == 444:
            raise KeyboardInterrupt
        return call(self, *tensors)

    with monkeypatch.context() as patch:
        patch.setattr(TracedReplay, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(monkeypatch, True, data, epochs=3, callbacks=[Kept()])
    (state,) = states
    assert state["step"] % 100  # in the midst of a stretch
    second, _ = trained(monkeypatch, True, data, epochs=3, resume=state)
    for a, b in zip(whole.program.parameters(), second.program.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_divergence_names_the_step_of_one_by_one(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = X.repeat(4, 1)
    growing = functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0 if epoch < 2 else 1e30)
    options = {"optimizer": functools.partial(torch.optim.SGD, lr=1e-3), "scheduler": growing}
    said = []
    for by_itself in (True, False):
        with pytest.raises(DivergedError) as caught:
            trained(monkeypatch, by_itself, data, **options)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "epoch 3" in said[0]


def test_what_changes_is_followed(replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen layer is recorded anew; with a hook of the optimiser steps are taken one by one."""

    class Changed(Callback):
        def on_epoch(self, run: Any, record: dict[str, float]) -> None:
            if record["epoch"] == 2:
                next(run.program.parameters()).requires_grad_(False)
            if record["epoch"] == 4:
                self.calls = []
                self.handle = register_optimizer_step_post_hook(lambda *_: self.calls.append(1))

    runs, calls = [], []
    for by_itself in (True, False):
        changed = Changed()
        try:
            run, _ = trained(monkeypatch, by_itself, epochs=6, callbacks=[changed])
        finally:
            changed.handle.remove()
        calls.append(len(changed.calls))
        runs.append(run)
    assert calls == [50, 50]  # the hook is called at every step of two epochs
    for a, b in zip(runs[0].program.parameters(), runs[1].program.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_number_that_a_callback_changes_is_followed(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It becomes an input of the step after its first change."""

    class Weighted(Callback):
        def __init__(self) -> None:
            self.regularizer = regularizers.KLWeight(2.0)

        def on_epoch(self, run: Any, record: dict[str, float]) -> None:
            self.regularizer.weight.stop = 2.0 + 0.25 * record["epoch"]

    found = []
    for by_itself in (True, False):
        weighted = Weighted()
        options = {"epochs": 5, "callbacks": [weighted], "regularizer": weighted.regularizer}
        found.append(trained(monkeypatch, by_itself, **options))
    assert sum(found[0][1][-10:]) > 50
    assert_same_run(found[0][0], found[1][0])


class Flipped(Split):
    """A split with batches of its own."""

    def batches(self, *args: Any, **options: Any) -> Any:
        for x, *rest in super().batches(*args, **options):
            yield (1 - x, *rest)


def test_a_split_of_the_users_own_gives_its_own_batches(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Split((X[:0],))
    data = Dataset("flipped", Flipped((X,)), nothing, nothing)
    ours, taken = trained(monkeypatch, True, data)
    theirs, _ = trained(monkeypatch, False, Dataset("plain", Split((1 - X,)), nothing, nothing))
    assert not taken
    assert_same_run(ours, theirs)


def test_a_setting_that_changes_each_epoch_keeps_its_recordings(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=9)  # changes Adam's betas
    data, options = X.repeat(5, 1), {"epochs": 8, "scheduler": cycle}
    (ours, taken), (theirs, _) = (trained(monkeypatch, by_itself, data, **options) for by_itself in (True, False))
    assert sum(taken) > 0.8 * 8 * 125
    assert_same_run(ours, theirs)


def test_a_recording_that_fails_leaves_steps_one_by_one(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch, plain: Any
) -> None:
    def fails(self: EpochFeed) -> tuple[Tensor, ...]:
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(EpochFeed, "draw", fails)
        ours, taken = trained(monkeypatch, True)
    assert not taken
    assert_same_run(ours, plain)


def test_a_recording_that_draws_other_rows_is_refused(
    replays: type[TracedReplay], monkeypatch: pytest.MonkeyPatch, plain: Any
) -> None:
    """As one in which a place was frozen."""
    draw, calls = EpochFeed.draw, []

    def frozen(self: EpochFeed) -> tuple[Tensor, ...]:
        calls.append(1)
        return tuple(x.flip(-1) for x in draw(self)) if len(calls) < 5 else draw(self)  # in the recording

    with monkeypatch.context() as patch:
        patch.setattr(EpochFeed, "draw", frozen)
        ours, taken = trained(monkeypatch, True)
    assert calls
    assert not taken
    assert_same_run(ours, plain)


@pytest.mark.parametrize("known", [True, False])
def test_figures_are_noted_as_by_the_state(known: bool) -> None:
    terms = torch.full((3, 4), float("nan"))
    feed = EpochFeed(Split((X,)), 33, terms)
    a, b = (torch.tensor(2.5), torch.tensor(0.5)) if known else (None, None)
    loss = BatchLoss(torch.tensor(-2.0), None, 33.0, a, b)
    feed.go_on_at(1)
    feed.place()
    feed.note(loss)
    middle = float("nan")
    expected = [[middle] * 4, [-2.0, 2.5, 0.5, 33.0] if known else [-2.0, middle, middle, 33.0], [middle] * 4]
    torch.testing.assert_close(terms, torch.tensor(expected), equal_nan=True)
    assert feed.reached() == 2
    feed.go_on_at(0)
    assert feed.reached() == 0  # nothing was taken


def test_batches_are_those_of_the_split() -> None:
    split, order = Split((X, torch.arange(100.0))), torch.randperm(100, generator=torch.Generator().manual_seed(2))
    feed = EpochFeed(split, 33, torch.zeros(4, 4))
    feed.begin(order)
    for step, batch in enumerate(split.batches(33, order=order)):
        assert all(map(torch.equal, batch, feed.batch(step)))
        assert feed.fits(batch) is (step < 3)
        if step < 3:
            feed.go_on_at(step)
            feed.place()
            assert all(map(torch.equal, batch, feed.draw()))


@pytest.mark.gpu
@pytest.mark.parametrize("level", ["graph", "full"])
@pytest.mark.parametrize("binarize", ["dynamic", "threshold"])
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, level: Any, binarize: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    grey = torch.rand(1000, 6, generator=torch.Generator().manual_seed(1))
    data = from_tensors(grey, binarize=binarize, validation=100)
    options = {"device": "cuda", "compile": level, "batch_size": 7, "epochs": 3}
    (ours, taken), (theirs, _) = (trained(monkeypatch, by_itself, data, **options) for by_itself in (True, False))
    assert sum(taken) > 200
    assert_same_run(ours, theirs)
