"""The replicates of a comparison: in this process, or group by group in several, with the same bits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae._jobs import Lost, run_all
from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae._words import one_line
from ppl_vae.capture import buffers_of, modules_of, untouched
from ppl_vae.comparison.contenders import Contender
from ppl_vae.comparison.fixed.blocks import NameBlock, Parameters, find_parameters
from ppl_vae.comparison.fixed.joint import JointStep
from ppl_vae.comparison.fixed.records import Layout, Record, new_records
from ppl_vae.comparison.fixed.steps import Stepper
from ppl_vae.objectives.losses import Program
from ppl_vae.vae import VAE

LEAST_REPLICATES = 20

Range = tuple[int, int]  # the first replicate, and the one after the last


def said(error: Exception) -> str:
    """Return an error as the reason of a failed row."""
    return f"{type(error).__name__}: {one_line(error)}"


def stepper_of(
    contender: Contender, program: Program, parameters: Parameters, tensors: tuple[Tensor, ...], seed: int
) -> Stepper | str:
    """Return a contender's step, or the error that prevents it."""
    try:
        torch.manual_seed(seed)
        return Stepper(contender, program, parameters, tensors)
    except Exception as error:  # a user's objective may raise anything; the other contenders go on
        return said(error)


@dataclass
class Replicates:
    """Steps of several estimators in lockstep, replicate by replicate, and what is kept of them.

    Attributes:
        members: The estimators' steps.
        layout: The layout of their records.
        tensors: The batch.
        seed: For all noise.
        records: The record of each estimator.
        failed: The errors of those that failed, and the groups in which they did.
    """

    members: Sequence[Stepper]
    layout: Layout
    tensors: tuple[Tensor, ...]
    seed: int
    records: dict[Stepper, Record] = field(default_factory=dict)
    failed: dict[Stepper, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.together = JointStep(self.members, self.tensors)
        for stepper in self.members:
            stepper.reset()
        generator = torch.Generator().manual_seed(self.seed)
        self.seeds = torch.randint(2**32, (self.layout.replicates,), generator=generator).tolist()
        # an estimator is without noise if its first replicates are all equal; of two a discrete one is so by chance
        self.told = next(bound for bound in self.layout.bounds if bound >= LEAST_REPLICATES)

    def take(self, start: int, stop: int) -> None:
        """Take a group of replicates.

        An estimator that fails stays in the joint step, since others may share its gradients.
        """
        for r in range(start, stop):
            seen, raised = self.together(self.seeds[r], *self.tensors)
            self.failed |= {stepper: (start, said(error)) for stepper, error in raised.items()}
            self.records = self.records or new_records(self.layout, {s: step.gradients for s, step in seen.items()})
            for stepper, step in seen.items():
                if stepper in self.records:  # one that failed at first has none; one that failed later adds for others
                    self.records[stepper].add(r, *step)
        for stepper, record in self.records.items():
            if stepper not in self.failed and not record.is_finite(start, stop):
                self.failed[stepper] = start, f"a value or a gradient is not finite in replicates {start} to {stop - 1}"
            elif stop == self.told and stepper in self.together.alone and record.same(stop):
                record.fill(stop)
        alone = [s for s in self.together.alone if s not in self.failed and not self.records[s].constant]
        self.together.alone = alone


def store_state() -> dict[str, Any]:
    """Return copies of the bare parameters of Pyro's store; those of modules go with their modules."""
    store = pyro.get_param_store()
    bare = {name: p for name, p in store._params.items() if "$$$" not in name}
    return {
        "params": {name: p.detach().clone().requires_grad_() for name, p in bare.items()},
        "constraints": {name: store._constraints[name] for name in bare},
    }


@dataclass(frozen=True)
class Elsewhere:
    """What another process needs to take replicates of the same program.

    Attributes:
        program: The program.
        states: The states of its modules: functions of a module are pickled by name, without what it holds.
        store: The bare parameters of Pyro's store.
        blocks: What names the blocks, or None.
        evaluation: Whether modules are in evaluation mode.
        jobs: How many processes take replicates; see `ppl_vae._jobs.workers`.
        count: How many these are.
    """

    program: VAE | Program
    states: Sequence[dict[str, Any]]
    store: Any
    blocks: NameBlock | None
    evaluation: bool
    jobs: int | None
    count: int

    def take(self, own: Replicates, groups: Sequence[Range]) -> None:
        """Take groups in other processes, and enter them into the records of this one.

        Estimators whose buffers change from step to step go on here.
        """
        active = [s for s in own.members if s in own.records and s not in own.failed and not own.records[s].constant]
        stateful = [s for s in own.together.alone if s.is_stateful]
        if len(active) > len(stateful):
            away = [i for i, s in enumerate(own.members) if s in own.together.alone and s not in stateful]
            contenders = [stepper.contender for stepper in own.members]
            part = functools.partial(self._part, contenders, own.layout.bounds, own.tensors, own.seed, away)
            size = -(-len(groups) // self.count)
            parts = [groups[i : i + size] for i in range(0, len(groups), size)]

            def done(index: int, found: Any) -> None:
                if isinstance(found, Lost):
                    raise RuntimeError(f"compare: {found.reason}")
                for stepper, entry in zip(own.members, found, strict=True):
                    record, failure = entry
                    if failure is not None and stepper in active:
                        own.failed[stepper] = min(failure, own.failed.get(stepper, failure))
                    if record is not None and stepper in own.records and stepper not in stateful:
                        own.records[stepper].enter(record, parts[index][0][0], parts[index][-1][1])

            run_all([functools.partial(part, some) for some in parts], done, jobs=self.jobs)
        own.together.leave_only(stateful)
        for start, stop in groups if stateful else ():
            own.take(start, stop)

    def _part(
        self,
        contenders: Sequence[Contender],
        bounds: Sequence[int],
        tensors: tuple[Tensor, ...],
        seed: int,
        alone: Sequence[int],
        groups: Sequence[Range],
    ) -> list[tuple[Any, tuple[int, str] | None]]:
        """Take some groups in another process; return each estimator's record of them, and how it failed."""
        program = self.program
        vae = program if isinstance(program, VAE) else None
        pair: Program = (program.model, program.guide) if isinstance(program, VAE) else program
        modules, store = modules_of(*pair), pyro.get_param_store()
        mode = evaluation_mode(*modules) if self.evaluation else nullcontext()
        with store.scope(), untouched_random_state(), mode, untouched(buffers_of(modules)):
            store.set_state(self.store)
            for module, state in zip(modules, self.states, strict=True):
                module.load_state_dict(state)
            parameters = find_parameters(pair, tensors, vae=vae, name_block=self.blocks)
            made = [stepper_of(contender, pair, parameters, tensors, seed) for contender in contenders]
            members = [stepper for stepper in made if isinstance(stepper, Stepper)]
            leaves = list(parameters.leaves.values())
            layout = Layout.of(leaves, parameters.blocks, bounds[-1], seed, num_groups=len(bounds) - 1)
            own = Replicates(members, layout, tensors, seed)
            own.together.alone = [s for i in alone if (s := made[i]) in own.together.alone]
            for start, stop in groups:
                own.take(start, stop)
            start, stop = groups[0][0], groups[-1][1]
            return [
                (None, (start, one))
                if isinstance(one, str)
                else (own.records[one].cut(start, stop) if one in own.records else None, own.failed.get(one))
                for one in made
            ]
