"""One step of one estimator (value and gradient), as a captured graph where possible, and its time and memory."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from ppl_vae.capture import CapturedStep, CaptureError, Step, buffers_of, eager_step, modules_of
from ppl_vae.comparison.contenders import Contender
from ppl_vae.comparison.fixed.blocks import Parameters
from ppl_vae.objectives.estimate import evaluate_objective, sampling_of
from ppl_vae.objectives.losses import Program, as_loss, kind_of
from ppl_vae.objectives.sampling import sample_log_weights

if TYPE_CHECKING:
    from jaxtyping import Float64

_WARM_UP, _MOST_ROUNDS, _MOST_SECONDS = 3, 40, 8.0


class Seen(NamedTuple):
    """The result of an estimator's step: the mean per datum, and its gradient by each parameter (None if unused)."""

    value: Tensor
    gradients: Sequence[Tensor | None]


def seen_of(step: Step) -> Seen:
    """Return the value (the mean per datum) and the gradients of a step."""
    return Seen(-step.loss.loss / step.loss.weight, step.gradients)


class Stepper:
    """An estimator's step on a batch of given shapes, at fixed parameters.

    The stepper copies the objective: what the objective learns or counts while it runs (a moving average) does not
    change the caller's own.

    Args:
        contender: The estimator.
        program: Model and guide.
        parameters: The parameters of the gradient.
        tensors: The batch.

    Attributes:
        contender: The estimator.
        kind: The kind of bound of its value: ``"lower"``, ``"upper"``, ``"neither"``.
        captured: The step as a captured graph; None where it runs eagerly.
        why_eager: Why steps run eagerly, without a captured graph; None if captured.

    Raises:
        Exception: Whatever the objective raises on this program.
    """

    def __init__(
        self, contender: Contender, program: Program, parameters: Parameters, tensors: Sequence[Tensor]
    ) -> None:
        self.contender = contender
        self.why_eager: str | None = None
        objective = contender.objective
        with suppress(Exception):  # an objective that cannot be copied runs itself
            objective = copy.deepcopy(objective)
        loss = as_loss(objective)
        self._leaves = list(parameters.leaves.values())
        self._run = functools.partial(loss, program)
        self.captured: CapturedStep | None = None
        self.kind = _kind(objective, program, tensors)
        if all(gradient is None for gradient in self._eager(*tensors).gradients):
            raise ValueError("the objective depends on no parameter of the program")
        # saved after the first step: a baseline starts from what it learnt on its first batch
        self._state = [(buffer, buffer.clone()) for buffer in buffers_of(modules_of(loss))]
        try:
            self.captured = CapturedStep(
                self._run,
                self._leaves,
                list(tensors),
                roots=(*program, loss),
                parameters=parameters.leaves,
                mean=True,
                full=False,
            )
        except CaptureError as error:
            self.why_eager = str(error)

    def __call__(self, *tensors: Tensor) -> Seen:
        """Take a step on a batch of the same shapes."""
        return seen_of(self._eager(*tensors) if self.captured is None else self.captured(*tensors))

    def _eager(self, *tensors: Tensor) -> Step:
        return eager_step(self._run, self._leaves, list(tensors), mean=True)

    @property
    def is_stateful(self) -> bool:
        """Whether the objective has buffers, which a step may change for the next one."""
        return bool(self._state)

    @torch.no_grad()
    def reset(self) -> None:
        """Put the objective's buffers back to their values after its first step."""
        for buffer, before in self._state:
            buffer.copy_(before)

    def bytes(self, *tensors: Tensor) -> int:
        """Return the memory that an eager step keeps for its backward pass, without parameters and data.

        On a GPU, return the most that the step allocates.
        """
        if self._leaves[0].is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._eager(*tensors)
            return torch.cuda.max_memory_allocated() - before
        own = {t.untyped_storage().data_ptr() for t in (*self._leaves, *tensors)}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._eager(*tensors)
        return sum(kept.values())


def time_steps(
    steppers: Sequence[Stepper], tensors: Sequence[Tensor]
) -> tuple[dict[Stepper, Float64[Tensor, " rounds"]], dict[Stepper, Exception]]:
    """Return the seconds of single steps of each estimator, and the exceptions of those that raised one.

    The estimators warm up, then take turns, so that other load on the machine affects all alike. There are 40 rounds;
    fewer, but at least five, if they take more than eight seconds.

    Args:
        steppers: The steps to time.
        tensors: The batch.
    """
    waits = any(t.is_cuda for t in tensors)
    taken: dict[Stepper, list[float]] = {stepper: [] for stepper in steppers}
    raised: dict[Stepper, Exception] = {}
    began = time.perf_counter()
    for turn in range(_WARM_UP + _MOST_ROUNDS):
        for stepper, seconds in taken.items():
            if stepper in raised:
                continue
            start = time.perf_counter()
            try:
                stepper(*tensors)
            except Exception as error:  # a user's objective may raise anything
                raised[stepper] = error
            if waits:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        if turn >= _WARM_UP + 5 and time.perf_counter() - began > _MOST_SECONDS:
            break
    fine = {stepper: seconds[_WARM_UP:] for stepper, seconds in taken.items() if stepper not in raised}
    return {stepper: torch.tensor(seconds, dtype=torch.float64) for stepper, seconds in fine.items()}, raised


def _kind(objective: Any, program: Program, tensors: Sequence[Tensor]) -> str:
    if isinstance(objective, PyroELBO):
        return kind_of(objective)
    log_weights = sample_log_weights(*program, *tensors, **sampling_of(objective))
    return evaluate_objective(objective, log_weights).kind
