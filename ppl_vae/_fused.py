"""The fused steps of torch's optimisers: one kernel for all parameters, and what keeps it right."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Optimizer
from torch.optim import optimizer as torch_optimizer

from ppl_vae.capture.replay import is_on_gpu

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]

_WITH_FUSED = ("cpu", "cuda", "mps", "xpu")  # devices with fused kernels


def make_fused(factory: OptimizerFactory, parameters: list[Tensor]) -> Optimizer:
    """Make the optimiser, in its fused form where the class has one and the device supports it."""
    partial = factory if isinstance(factory, functools.partial) else functools.partial(factory)
    kind, chosen = partial.func, {"fused", "foreach", "differentiable"} & partial.keywords.keys()
    if not chosen and isinstance(kind, type) and "fused" in inspect.signature(kind).parameters:
        # torch looks in the first step: before 2.7 in any case, and for Adagrad, which has a kernel for the CPU alone
        devices = ("cpu",) if issubclass(kind, Adagrad) else _WITH_FUSED
        plain = (p.is_floating_point() and (p.grad is None or not p.grad.is_sparse) for p in parameters)
        if all(plain) and all(p.device.type in devices for p in parameters):
            with suppress(RuntimeError, NotImplementedError):  # this device has no fused kernel
                return factory(parameters, fused=True)  # type: ignore[call-arg]
    return factory(parameters)


def take_step(optimizer: Optimizer) -> None:
    """Take a step.

    SGD's fused form refuses a group in which only some parameters have a momentum yet, so such a group takes a plain
    step. The fused forms of Adam, AdamW and Adagrad count the steps of each parameter.
    """
    groups = optimizer.param_groups if isinstance(optimizer, SGD) else []
    mixed = [g for g in groups if g.get("fused") and g["momentum"] and len(set(_have_momentum(optimizer, g))) > 1]
    with _changed("fused", [(group, False) for group in mixed]):
        optimizer.step()


@contextmanager
def _changed(name: str, values: Iterable[tuple[dict[str, Any], Any]]) -> Iterator[None]:
    """Give groups of an optimiser another value of a setting meanwhile."""
    given = [(group, group[name], value) for group, value in values]
    for group, _, value in given:
        group[name] = value
    try:
        yield
    finally:
        for group, before, _ in given:
            group[name] = before


def _have_momentum(optimizer: Optimizer, group: Mapping[str, Any]) -> Iterable[bool]:
    moved = (p for p in group["params"] if p.grad is not None)
    return (optimizer.state.get(p, {}).get("momentum_buffer") is not None for p in moved)


class Layout:
    """Keeps gradients and states in memory as their parameters are: strides change by ``p.data = ...``, for example.

    A fused optimiser pairs the numbers of a parameter with those of its gradient and its state by their places in
    memory, and says nothing where these differ.
    """

    def __init__(self) -> None:
        self._strides: list[tuple[int, ...]] = []  # of the parameters, at the last look
        self._states: list[Any] = []

    def keep(self, parameters: Sequence[Tensor], optimizers: Sequence[Optimizer]) -> None:
        """Lay out the gradients, and the states where a parameter or a state is another one since the last look."""
        for p in parameters:
            if p.grad is not None and p.grad.layout is torch.strided and p.grad.stride() != p.stride():
                p.grad = _as_laid_out(p, p.grad)
        strides, states = list(map(Tensor.stride, parameters)), [optimizer.state for optimizer in optimizers]
        if strides == self._strides and list(map(id, states)) == list(map(id, self._states)):
            return
        for p, state in chain.from_iterable(state.items() for state in states):
            for name, value in state.items() if isinstance(p, Tensor) else ():  # a loaded state may belong to none
                if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                    state[name] = _as_laid_out(p, value)
        self._strides, self._states = strides, states


def _as_laid_out(parameter: Tensor, value: Tensor) -> Tensor:
    """Return the values of a parameter's shape, in memory as the parameter is."""
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


class Rates:
    """The learning rates of fused groups on a GPU as tensors, which a recorded step reads.

    Torch wants them in float32. Groups with parameters in float64 keep their numbers, and so do optimisers in whose
    steps Python code of the user's may look at them.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, float]] = {}  # by the group's place, each with its value

    def follow(self, optimizer: Optimizer) -> list[Tensor | None]:
        """Return the tensor of each group, with its present rate; None for a group that keeps its number."""
        own, found = not runs_python(optimizer), list[Tensor | None]()
        for place, group in enumerate(optimizer.param_groups):
            rate, parameters = group["lr"], group["params"]
            lent = own and not isinstance(rate, Tensor) and _is_fused_on_gpu(group)
            if not lent or any(p.dtype is torch.float64 for p in parameters):
                self._held.pop(place, None)
                found.append(None)
                continue
            tensor, value = self._held.get(place, (None, None))
            if tensor is None or tensor.device != parameters[0].device:
                tensor = torch.tensor(float(rate), dtype=torch.float32, device=parameters[0].device)
            elif rate != value:
                tensor.fill_(rate)
            self._held[place] = tensor, rate
            found.append(tensor)
        return found

    @contextmanager
    def lent(self, optimizer: Optimizer) -> Iterator[None]:
        """Give the groups their tensors for one step."""
        groups = optimizer.param_groups
        rates = [(g, rate) for g, rate in zip(groups, self.follow(optimizer), strict=True) if rate is not None]
        # torch demands capturable=True while it records a graph; a fused step does not depend on it
        fused = [(g, True) for g in groups if g.get("capturable") is False and _is_fused_on_gpu(g)]
        asked = fused if fused and torch.cuda.is_current_stream_capturing() else []
        with _changed("lr", rates), _changed("capturable", asked):
            yield


def _is_fused_on_gpu(group: Mapping[str, Any]) -> bool:
    return bool(group.get("fused") and group["params"] and all(map(is_on_gpu, group["params"])))


def runs_python(optimizer: Optimizer) -> bool:
    """Whether a step runs code of the user's: a class, a hook, or another `step` than torch's (or its schedules')."""
    hooks = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
    )
    step, kind = vars(optimizer).get("step"), type(optimizer)
    scheduled = hasattr(step, "_wrapped_by_lr_sched") and getattr(step, "__wrapped__", None) is kind.step
    return any(hooks) or not kind.__module__.startswith("torch.optim.") or not (step is None or scheduled)
