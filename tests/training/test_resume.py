"""A state from a file: held against the run before anything is loaded, and the end of an early stop is an end."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from short_runs import small_vae

from ppl_vae import VAE, data, fit
from ppl_vae.training import checkpoints


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def make(dataset) -> VAE:
    return small_vae(dataset, batch_norm=True)


OPTIONS: dict[str, Any] = {
    "batch_size": 500,
    "scheduler": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2),
    "early_stopping": 50,
    "compile": "off",
}


@pytest.fixture(scope="module")
def state(digits):
    stops = iter([False] * 7 + [True])
    return fit(make(digits), digits, epochs=4, seed=0, stop=lambda: next(stops), **OPTIONS).state()


def changed(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    inner = state
    for name in path[:-1]:
        inner = inner[name]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return state


WEIGHT = "posterior.mean_and_scale.network.1.weight"
NUMBERS = torch.get_rng_state()
HOSTILE = {
    "no parameters": (("modules",), []),
    "another shape of a parameter": (("modules", 0, WEIGHT), torch.zeros(3)),
    "another dtype of a parameter": (("modules", 0, WEIGHT), torch.zeros(8, 64).double()),
    "a parameter that is none": (("modules", 0, WEIGHT), 1.0),
    "a sparse parameter": (("modules", 0, WEIGHT), torch.zeros(8, 64).to_sparse()),
    "a parameter too many": (("modules", 0, "more"), torch.zeros(1)),
    "parameters of Pyro": (("parameters",), {"scale": torch.ones(1)}),
    "no optimiser": (("optimizer",), None),
    "another shape in the optimiser": (("optimizer", "state", 0, "exp_avg"), torch.zeros(2)),
    "no number in the optimiser": (("optimizer", "state", 0, "step"), "three"),
    "a moment that is missing": (("optimizer", "state", 0, "exp_avg_sq"), KeyError),
    "a parameter that the optimiser has not": (("optimizer", "state", 99), {}),
    "a group without parameters": (("optimizer", "param_groups", 0, "params"), []),
    "parameters that the optimiser numbers otherwise": (("optimizer", "param_groups", 0, "params", 0), 1),
    "no groups": (("optimizer", "param_groups"), []),
    "a learning rate that is text": (("optimizer", "param_groups", 0, "lr"), "high"),
    "a setting of another optimiser": (("optimizer", "param_groups", 0, "momentum"), 0.9),
    "no scheduler": (("scheduler",), None),
    "another scheduler": (("scheduler", "gamma"), KeyError),
    "a negative epoch": (("epoch",), -1),
    "an epoch that is no integer": (("epoch",), 1.5),
    "more epochs than records": (("epoch",), 3),
    "more epochs than anything holds": (("epoch",), 10**60),
    "a step beyond the epoch": (("step",), 10**6),
    "steps of another batch size": (("steps",), 4),
    "a batch size of as many steps": (("batch_size",), 499),
    "terms of other steps": (("terms",), torch.zeros(7, 4)),
    "no random state": (("rng",), torch.zeros(5, dtype=torch.uint8)),
    "a random state of junk": (("rng",), torch.full_like(NUMBERS, 255)),
    "random states that are none": (("cuda_rng",), {"cuda": 1}),
    "a history of text": (("history",), "long ago"),
    "a history with a gap": (("history", 0, "epoch"), 2),
    "a record without its step": (("history", 0, "step"), KeyError),
    "seconds that are none": (("seconds",), "soon"),
    "a seed that is none": (("seed",), "seven"),
    "a best epoch without parameters": (("best",), {"epoch": 1, "score": 1.0}),
    "a best score that is none": (("best", "score"), "high"),
    "last parameters of another model": (("last",), {"modules": [], "parameters": {}}),
    "other data": (("data",), "0" * 16),
    "an entry that is missing": (("optimizer",), KeyError),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_state_that_does_not_fit_is_refused_in_words_and_nothing_is_loaded(name, state, digits, tmp_path):
    vae = make(digits)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    path = checkpoints.save(changed(state, *HOSTILE[name]), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"of another run, or damaged: |is no checkpoint"):
        fit(vae, digits, epochs=4, resume=checkpoints.load(path), **OPTIONS)
    assert all(torch.equal(before[k], v.cpu()) for k, v in vae.state_dict().items())


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(torch.optim.SGD, lr=0.1),
        functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        functools.partial(torch.optim.Adam, amsgrad=True),
        torch.optim.AdamW,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.Adagrad,
        torch.optim.ASGD,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adafactor,
    ],
    ids=lambda factory: getattr(factory, "__name__", str(factory)),
)
def test_every_optimisers_own_state_is_taken(optimizer, digits):
    """One step of a copy knows what state an optimiser has; a run that is resumed is the run."""
    options = {"seed": 0, "batch_size": 500, "compile": "off", "optimizer": optimizer}
    whole, half = make(digits), make(digits)
    fit(whole, digits, epochs=2, **options)
    resumed = fit(half, digits, epochs=1, **options).state()
    fit(half, digits, epochs=2, resume=resumed, **options)
    for one, other in zip(whole.state_dict().values(), half.state_dict().values(), strict=True):
        assert torch.equal(one, other)


class Halved(torch.optim.SGD):
    """An optimiser whose steps need what it has besides its state and its groups."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.share, self.taken = 0.5, [0]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.taken[0] += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = p.grad * self.share
        super().step()


def test_an_optimiser_with_attributes_of_its_own_is_taken(digits):
    options = {"seed": 0, "batch_size": 500, "compile": "off"}
    made = []

    def optimizer(parameters):
        made.append(Halved(parameters))
        return made[-1]

    whole, half = make(digits), make(digits)
    fit(whole, digits, epochs=2, optimizer=optimizer, **options)
    resumed = fit(half, digits, epochs=1, optimizer=optimizer, **options).state()
    fit(half, digits, epochs=2, resume=resumed, optimizer=optimizer, **options)
    for one, other in zip(whole.state_dict().values(), half.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert made[2].taken == made[1].taken  # the copy's step is not counted


def test_a_state_of_the_first_format_says_nothing_of_its_data_and_is_taken(state, digits):
    old = {name: value for name, value in state.items() if name not in ("data", "last", "batch_size")}
    assert fit(make(digits), digits, epochs=3, resume=old, **OPTIONS).history[-1]["epoch"] == 3


def test_data_that_have_changed_are_refused(state, digits):
    other = data.load("digits", seed=1)
    with pytest.raises(ValueError, match=r"its data have the fingerprint .* resume with the data of the run"):
        fit(make(digits), other, epochs=3, resume=state, **OPTIONS)


def overfitting(patience: int, epochs: int, resume: dict[str, Any] | None = None):
    """A run whose validation ELBO peaks early: a few data, a high learning rate."""
    digits = data.load("digits")
    few = data.Dataset("few", digits.train.head(60), digits.validation, digits.test, binarize=digits.binarize)
    options = {"optimizer": functools.partial(torch.optim.Adam, lr=0.03), "batch_size": 60, "compile": "off"}
    return fit(make(few), few, epochs=epochs, early_stopping=patience, seed=0, resume=resume, **options)


def test_an_early_stop_is_an_end_also_after_resuming():
    whole = overfitting(patience=3, epochs=200)
    assert whole.stopped == "early stopping"
    again = overfitting(patience=3, epochs=200, resume=whole.state())
    assert again.stopped == "early stopping"
    assert again.best_epoch == whole.best_epoch
    assert again.history == whole.history
    for one, other in zip(whole.program.parameters(), again.program.parameters(), strict=True):
        assert torch.equal(one, other)


def test_more_patience_goes_on_from_the_last_parameters_and_not_from_the_best():
    longer = overfitting(patience=6, epochs=200)
    resumed = overfitting(patience=6, epochs=200, resume=overfitting(patience=3, epochs=200).state())
    assert resumed.best_epoch == longer.best_epoch
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in longer.history]
    assert math.isfinite(longer.history[-1]["loss"])
    for one, other in zip(longer.program.parameters(), resumed.program.parameters(), strict=True):
        assert torch.equal(one, other)
