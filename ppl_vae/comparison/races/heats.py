"""The runs of a race, each of one contender under one seed, from their starts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim

from ppl_vae._jobs import Lost
from ppl_vae._scopes import seeded
from ppl_vae.comparison.contenders import Contender
from ppl_vae.comparison.races.runs import Point, RaceRun, Stopped
from ppl_vae.comparison.races.start import Entrant, MakeProgram, Start
from ppl_vae.comparison.races.watch import Evaluator, Watch
from ppl_vae.comparison.words import at_k, reason_of
from ppl_vae.data import Dataset
from ppl_vae.objectives.losses import Program
from ppl_vae.training import DivergedError, Run
from ppl_vae.vae import VAE

OnRun = Callable[[RaceRun, VAE | Program], None]


@dataclass(frozen=True)
class Track:
    """The settings that all runs have in common; `steps` is the number of steps in an epoch."""

    fit: Callable[..., Run]
    evaluator: Evaluator
    watch: Callable[..., Watch]
    optimizer: Any
    steps: int
    progress: Callable[[str], None]
    on_run: OnRun | None


def _of_its_own(optimizer: Any) -> Any:
    """Return an optimiser without a trace of other runs: Pyro's keep a state, and a scheduler fills a partial's lr."""
    return copy.deepcopy(optimizer) if isinstance(optimizer, PyroOptim | functools.partial) else optimizer


@dataclass
class Starts:
    """The starts of one seed at a time, each program's once."""

    data: Dataset
    device: torch.device
    seed: int | None = None
    held: dict[int, Start] = field(default_factory=dict)

    def of(self, make: MakeProgram, seed: int) -> Start:
        """Return the start of a program; those of another seed are dropped, with what they left in Pyro's store."""
        if seed != self.seed:
            self.held.clear()
            pyro.clear_param_store()
            self.seed = seed
        if id(make) not in self.held:
            batch = next(self.data.train.head(2).batches(2, device=self.device))
            self.held[id(make)] = Start(make, seed, batch, self.device)
        return self.held[id(make)]


@dataclass(frozen=True)
class Heat:
    """One contender under one seed, before its run."""

    contender: Contender
    entrant: Entrant
    make: MakeProgram
    seed: int

    @property
    def label(self) -> str:
        """Seed, contender and K in words."""
        return f"seed {self.seed}, {at_k(self.contender)}"

    def run(self, track: Track, starts: Starts) -> RaceRun:
        """Train the contender from the start that all contenders of its seed share."""

        def tell(point: Point) -> None:
            track.progress(f"{self.label}: epoch {point.epoch} of {watch.epochs}, log p(x) = {point.log_evidence:.2f}")

        start = starts.of(self.make, self.seed)
        start.restore()
        seen = start.program if self.entrant.evaluated_as is None else self.entrant.evaluated_as(start.program)
        watch = track.watch(track.evaluator, seen, track.evaluator.choose(seen), tell=tell)
        stopped: Stopped = "finished"
        reason = why_eager = None
        try:
            with seeded(self.seed):  # an objective may draw while it is copied or made
                run = track.fit(
                    start.program,
                    objective=copy.deepcopy(self.contender.objective),
                    optimizer=_of_its_own(track.optimizer),
                    seed=self.seed,
                    callbacks=[watch],
                    stop=watch.stop,
                )
            stopped, why_eager = ("out of time" if run.stopped == "interrupted" else "finished"), run.why_eager
        except Exception as error:
            stopped, reason = "failed", reason_of(error)
            if isinstance(error, DivergedError):
                watch.steps = (error.epoch - 1) * track.steps + error.step
                reason = f"diverged at step {watch.steps}: {error.term}"
            track.progress(f"{self.label}: failed: {reason}")
        curve = *self.contender.key, self.seed, watch.curve(), watch.how, watch.kind
        found = RaceRun(*curve, stopped, reason, watch.steps, why_eager, watch.setup, tuple(watch.epoch_seconds))
        if track.on_run is not None:
            track.on_run(found, start.program)
        return found

    def lost(self, found: Lost) -> RaceRun:
        """Return the run of a process that died."""
        return RaceRun(*self.contender.key, self.seed, (), "", "lower", "failed", found.reason)


def run_alone(i: int, heats: Sequence[Heat], track: Track, starts: Starts) -> RaceRun:
    """Run one of several in a process that knows of no other run."""
    with seeded(heats[i].seed), pyro.get_param_store().scope():
        return heats[i].run(track, Starts(starts.data, starts.device))


def end_of(run: RaceRun) -> str:
    """Return how a run ended, in words."""
    if run.failed or run.final is None:
        return f"failed: {run.reason}"
    return f"epoch {run.final.epoch}, log p(x) = {run.final.log_evidence:.2f}"


def silent(text: str) -> None:
    """Show no progress."""
