"""A state from a file, held against the run that is to go on from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.training.checkpoints import require
from ppl_vae.training.state import TrainingState


def checked(state: Mapping[str, Any], run: TrainingState, fingerprint: str) -> dict[str, Any]:
    """Hold a state from elsewhere against what this run makes, and return it in today's form.

    Args:
        state: The state, with the fingerprint of its data under ``data`` except in files of format 1.
        run: The state of this run, before its first step.
        fingerprint: The fingerprint of this run's data.

    Raises:
        ValueError: If anything in it has another name, shape, dtype or length than in this run, or is of other
            data; the message names it.
    """
    older: dict[str, Any] = {"last": None, "data": fingerprint, "mps_rng": [], "batch_size": run.batch_size}
    state = older | dict(state)  # entries that older files lack
    if isinstance(state.get("terms"), Tensor) and state["terms"].is_floating_point():
        state["terms"] = state["terms"].to(run.terms.dtype)  # float32 in older files, whatever the program's dtype
    try:
        if state["data"] != fingerprint:
            raise ValueError(
                f"its data have the fingerprint {state['data']!r}, and the data given now {fingerprint!r}: they, "
                "their split or their binarisation have changed; resume with the data of the run"
            )
        _check(state, run)
    except ValueError as error:
        raise ValueError(f"the checkpoint is of another run, or damaged: {error}") from error
    return state


def _check(state: dict[str, Any], run: TrainingState) -> None:
    own = run.capture()
    for name in own:
        if name not in state:
            raise ValueError(f"it lacks {name!r}")
    for name in ("epoch", "step", "steps"):
        if type(state[name]) is not int or state[name] < 0:
            raise ValueError(f"{name} is {state[name]!r}; expected an integer from 0")
    if state["step"] and state["steps"] != len(run.terms):
        raise ValueError(
            f"it stands in the midst of an epoch of {state['steps']} steps, and an epoch has {len(run.terms)} "
            "here; resume with the data and the batch_size of the run"
        )
    if state["step"] and state["batch_size"] != run.batch_size:
        raise ValueError(
            f"it stands in the midst of an epoch in batches of {state['batch_size']!r}, and batch_size is "
            f"{run.batch_size} here; resume with the batch_size of the run"
        )
    if state["step"] > len(run.terms):
        raise ValueError(f"step is {state['step']}, and an epoch has {len(run.terms)} steps")
    parameters = {name: own[name] for name in ("modules", "parameters")}
    require({name: state[name] for name in parameters}, parameters, "its program")
    for name, extra in (("best", {"epoch": 0, "score": 0.0}), ("last", {})):
        if state[name] is not None:
            require(state[name], {**parameters, **extra}, f"its {name!r}")
    _check_optimizer(state["optimizer"], run.svi.optimizer)
    require(state["scheduler"], own["scheduler"], "its scheduler")
    require(state["terms"], run.terms[: state["step"]].to(getattr(state["terms"], "device", "cpu")), "its terms")
    require(state["seconds"], 0.0, "its seconds")
    require(state["rng"], own["rng"], "its random state")
    for name in ("cuda_rng", "mps_rng"):
        if not isinstance(state[name], list) or not all(isinstance(rng, Tensor) for rng in state[name]):
            raise ValueError("its random states of GPUs are no list of tensors")
    try:
        torch.Generator().set_state(state["rng"].cpu())
    except RuntimeError as error:
        raise ValueError(f"its random state is none: {error}") from error
    history = state["history"]
    complete = isinstance(history, list) and len(history) == state["epoch"]
    if not complete or any(_epoch_of(record) != epoch for epoch, record in enumerate(history, 1)):
        raise ValueError(f"its history does not hold a record for each of its {state['epoch']} epochs")


def _check_optimizer(state: object, optimizer: torch.optim.Optimizer | None) -> None:
    """Hold the state of an optimiser against what one step of a copy, at gradients of zero, makes."""
    assert optimizer is not None
    trial = _copied(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    type(trial).step(trial)  # the attribute `step` may be a scheduler's wrapper around the optimiser's own
    own = trial.state_dict()
    if not isinstance(state, dict) or state.keys() != own.keys() or not isinstance(state["state"], dict):
        raise ValueError("its optimiser's state has no parameters or no settings")
    require(state["param_groups"], own["param_groups"], "its optimiser's settings")
    for group, own_group in zip(state["param_groups"], own["param_groups"], strict=True):
        if group["params"] != own_group["params"]:  # torch would drop the state of what it does not find
            raise ValueError(
                f"its optimiser's parameters have the numbers {group['params']}; expected {own_group['params']}"
            )
    for index, found in state["state"].items():
        if index not in own["state"]:
            raise ValueError(f"its optimiser has a state for the parameter {index!r}, which this run's lacks")
        require(found, own["state"][index], f"its optimiser's state of the parameter {index}")


def _copied(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Copy an optimiser with all its attributes: torch copies its state and groups alone, and a step may need the rest.

    On a GPU every optimiser looks at an attribute of torch's own, and takes another way where it is missing.
    """
    memo: dict[int, Any] = {}
    trial = copy.deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():
        if name not in vars(trial):
            try:
                vars(trial)[name] = copy.deepcopy(value, memo)
            except Exception:  # as a lock: what cannot be copied is shared
                vars(trial)[name] = value
    return trial


def _epoch_of(record: object) -> object:
    """Return the epoch of a record of the history, or None for what is no record, which holds its step too."""
    if not isinstance(record, dict) or not all(isinstance(v, int | float) for v in record.values()):
        return None
    return record.get("epoch") if type(record.get("step")) is int else None
