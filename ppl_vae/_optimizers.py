"""The optimiser of an SVI: one torch optimiser over all parameters, or an optimiser object of Pyro."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae._fused import Layout, OptimizerFactory, Rates, make_fused, runs_python, take_step
from ppl_vae.capture.replay import is_on_gpu

logger = logging.getLogger(__name__)

_NONE = object()


class TorchOptimizer:
    """One torch optimiser over all parameters, in its fused form where it has one."""

    def __init__(self, factory: OptimizerFactory) -> None:
        self._factory = factory
        self._layout = Layout()
        self._rates = Rates()
        self._offered: set[Tensor] = set()  # what the optimiser moves or leaves out as it pleases
        self.optimizer: Optimizer | None = None

    def follow(self, parameters: Sequence[Tensor]) -> Optimizer:
        """Make the optimiser for these parameters, or add new ones to its first group, which a schedule knows.

        A parameter that the factory leaves out stays as it is, and so does one that is taken out of the groups later.
        """
        made = self.optimizer is None
        if self.optimizer is None:
            self.optimizer = make_fused(self._factory, list(parameters))
        elif self._offered.issuperset(parameters):
            return self.optimizer
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        new = [p for p in parameters if id(p) not in known and p not in self._offered]
        if made:
            _tell_left_out([p for p in new if p.requires_grad], len(parameters))
        elif new:
            self.optimizer.add_param_group({"params": new})
            self.optimizer.param_groups[0]["params"] += self.optimizer.param_groups.pop()["params"]
        self._offered.update(p for p in parameters if p.requires_grad or id(p) in known)
        return self.optimizer

    def left_out(self) -> list[Tensor]:
        """Return the parameters that the optimiser could have and has not."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        held = {id(p) for group in groups for p in group["params"]}
        return [p for p in self._offered if id(p) not in held]

    def forget(self, parameters: Sequence[Tensor]) -> None:
        """Drop parameters and their state."""
        self._offered.difference_update(parameters)
        if self.optimizer is not None:
            _drop(self.optimizer, parameters)

    def step(self, parameters: Sequence[Tensor]) -> None:
        """Take a step."""
        optimizer = self.follow(parameters)
        self._layout.keep(parameters, [optimizer])
        if parameters and is_on_gpu(parameters[0]):
            with self._rates.lent(optimizer):
                take_step(optimizer)
        else:
            take_step(optimizer)

    def why_outside(self, parameters: Sequence[Tensor]) -> str | None:
        """Say why a step cannot be part of a CUDA graph; None where it can."""
        optimizer = self.optimizer
        name = type(optimizer).__name__
        if optimizer is None or runs_python(optimizer):
            return f"{name} is no optimiser of torch, or has a hook, whose Python code runs at every step"
        if not all(group.get("fused") or group.get("capturable") for group in optimizer.param_groups):
            return f"{name} has neither a fused form on this device nor capturable=True"
        state = [value for own in optimizer.state.values() for value in own.values() if value is not None]
        if not all(isinstance(value, Tensor) for value in state) or not all(map(is_on_gpu, self.held()[1])):
            return f"{name} has a state or a setting on the CPU"
        if sorted(map(id, parameters)) != sorted(id(p) for group in optimizer.param_groups for p in group["params"]):
            return f"{name} moves other parameters than the step has"
        return None

    def mappings(self) -> list[tuple[Any, Any]]:
        """Return the mappings of state and settings, each with a copy, to be put back after a trial."""
        assert self.optimizer is not None
        own = [self.optimizer.state, *self.optimizer.state.values(), *self.optimizer.param_groups]
        return [(mapping, dict(mapping)) for mapping in own]

    def held(self) -> tuple[Any, list[Tensor]]:
        """Return the settings that a recorded step freezes, and the tensors that it reads and writes."""
        assert self.optimizer is not None
        rates = self._rates.follow(self.optimizer)
        groups = self.optimizer.param_groups
        settings = [
            {k: v for k, v in group.items() if k != "params" and not (k == "lr" and rate is not None)}
            for group, rate in zip(groups, rates, strict=True)
        ]
        state = self.optimizer.state  # whose keys are tensors: to look one up is slow
        tensors = [v for own in state.values() for v in own.values() if isinstance(v, Tensor)]
        values = (v for group in settings for v in group.values())
        tensors += [t for v in values for t in (v if isinstance(v, tuple) else (v,)) if isinstance(t, Tensor)]
        places = [list(map(id, parameters)) for parameters in (state, *(g["params"] for g in groups))]
        frozen = [settings, places, runs_python(self.optimizer)]
        return frozen, tensors + [rate for rate in rates if rate is not None]


class PyroOptimizer:
    """A `pyro.optim` object with all that it has in Pyro: state, settings per parameter, clipping and schedules.

    Pyro keeps a torch optimiser for every parameter, and their steps run one after another. If all have the same
    settings and nothing is clipped or scheduled, this class takes the steps in one pass, with one joint torch optimiser
    over all parameters. The joint optimiser shares the state and the settings of Pyro's optimisers. So `get_state`,
    `set_state`, a second SVI with the same object, and changes of settings in either place act as in Pyro.

    Attributes:
        optimizer: The optimiser over all parameters; None where Pyro's object takes the steps itself.
    """

    def __init__(self, optim: PyroOptim) -> None:
        self.optim: Any = optim
        self.optimizer: Optimizer | None = None
        self._layout = Layout()
        self._joined: list[Any] = []
        self._settings: dict[str, Any] = {}
        self._changed: dict[str, Any] = {}  # the settings that were changed in the joint optimiser, between two steps

    def follow(self, parameters: Sequence[Tensor]) -> Optimizer | None:
        """Synchronise the joint optimiser with Pyro's object; return None if Pyro's object must take the step."""
        optim = self.optim
        if not isinstance(optim.pt_optim_args, dict) or optim.pt_clip_args or isinstance(optim, PyroLRScheduler):
            self.optimizer = None
            return None
        if self.optimizer is not None:
            self._changed |= self._take_over(self.optimizer.param_groups[0]["params"])
        for parameter in parameters:
            if parameter not in optim.optim_objs:
                self._make(parameter)
        own = [optim.optim_objs[parameter] for parameter in parameters]
        groups = [o.param_groups[0] for o in own]
        settings = _settings(groups[0])
        if any(_settings(group) != settings for group in groups) or len({type(o) for o in own}) > 1:
            self.optimizer = None
            return None
        if self.optimizer is None:
            self.optimizer = make_fused(self._factory(), list(parameters))
        joint = self.optimizer.param_groups[0]
        joint.update(settings)
        self._settings = settings
        joined = [*parameters, *(o.state for o in own), self.optimizer.state]
        if len(joined) != len(self._joined) or any(a is not b for a, b in zip(joined, self._joined, strict=True)):
            joint["params"] = list(parameters)
            for parameter, single in zip(parameters, own, strict=True):
                self.optimizer.state[parameter] = single.state[parameter]  # one dictionary, which both optimisers write
            self._joined = joined
        return self.optimizer

    def step(self, parameters: Sequence[Tensor]) -> None:
        """Take a step."""
        moved = [p for p in parameters if p.grad is not None]
        known = [p for p in parameters if p.grad is not None or p in self.optim.optim_objs]
        optimizer = self.follow(known) if moved else None
        if optimizer is not None:
            self._layout.keep(known, [optimizer])
            take_step(optimizer)
            self._take_over(moved)  # an optimiser may change its settings during a step
        else:
            own = self.optim.optim_objs.values()  # optimisers, or their schedules
            self._layout.keep(moved, [getattr(o, "optimizer", o) for o in own])
            self.optim(moved)

    def left_out(self) -> list[Tensor]:
        """Return the parameters that the optimiser could have and has not: Pyro's has all."""
        return []

    def forget(self, parameters: Sequence[Tensor]) -> None:
        """Drop parameters and their state, of the joint optimiser and of Pyro's."""
        if self.optimizer is not None:
            _drop(self.optimizer, parameters)
        for parameter in parameters:
            self.optim.optim_objs.pop(parameter, None)
            self.optim.grad_clip.pop(parameter, None)

    def _factory(self) -> OptimizerFactory:
        return functools.partial(self.optim.pt_optim_constructor, **self.optim.pt_optim_args)

    def _make(self, parameter: Tensor) -> None:
        """Make Pyro's optimiser for a parameter, as Pyro does at the first step of the parameter."""
        optim = self.optim
        own = optim.optim_objs[parameter] = make_fused(self._factory(), [parameter])
        own.param_groups[0].update(self._changed)
        optim.grad_clip[parameter] = None
        state = optim._state_waiting_to_be_consumed.pop(pyro.get_param_store().param_name(parameter), None)
        if state is not None:
            own.load_state_dict(state)

    def _take_over(self, parameters: Sequence[Tensor]) -> dict[str, Any]:
        """Copy changed settings, which are returned, and a newly loaded state from the joint optimiser to Pyro's."""
        assert self.optimizer is not None
        settings = _settings(self.optimizer.param_groups[0])
        before = {k: self._settings.get(k, _NONE) for k in settings}
        changed = {k: v for k, v in settings.items() if v is not before[k] and v != before[k]}
        if changed:
            for parameter in parameters:
                self.optim.optim_objs[parameter].param_groups[0].update(changed)
            self._settings = settings
        if self._joined and self.optimizer.state is not self._joined[-1]:
            for parameter, state in self.optimizer.state.items():
                self.optim.optim_objs[parameter].state[parameter] = state
            self._joined = []
        return changed


def as_optimizer(optim: object) -> TorchOptimizer | PyroOptimizer:
    """Return the optimiser of an SVI from the argument `optim`.

    Raises:
        TypeError: If `optim` is neither a function from parameters to a torch optimiser nor a `pyro.optim` object.
    """
    if isinstance(optim, PyroOptim):
        return PyroOptimizer(optim)
    if isinstance(optim, Optimizer) or not callable(optim):
        raise TypeError(
            f"SVI: optim is a {type(optim).__name__}; expected a function from parameters to a torch optimiser, "
            "such as functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    return TorchOptimizer(optim)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _tell_left_out(parameters: Sequence[Tensor], count: int) -> None:
    if parameters:
        name = pyro.get_param_store().param_name(parameters[0])
        logger.warning(
            "the optimiser is made without %d of the %d parameters (%r is one), which keep their values; to train all, "
            "make it from what its function is given",
            *(len(parameters), count, name),
        )


def _drop(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    dropped = set(map(id, parameters))
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in dropped]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
