"""The watch on one run of a race: it times training alone, and evaluates the program in the same way for every run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from ppl_vae._distributions import measure
from ppl_vae._home import home_of
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._tensors import moved
from ppl_vae._validation import check_choice
from ppl_vae.comparison.races.runs import Point
from ppl_vae.evidence.importance import importance
from ppl_vae.evidence.log_evidence import Method, log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives.losses import Program
from ppl_vae.training import Callback, Progress, Run
from ppl_vae.vae import VAE

MakeEvidence = Callable[..., Evidence]

_ELBO_PARTICLES = 100  # draws for the ELBO, unless log p(x) itself is estimated from q(z|x)
_SEED = 0  # of the noise
_MOST_CONDITIONS = 100  # exact methods treat each condition separately


class Look(NamedTuple):
    """One evaluation of a program, in nats, means over data.

    Attributes:
        log_evidence: log p(x), or its estimate.
        error: The mean error bound of an exact log p(x); for an estimate the standard error of the mean, given data and
            program.
        elbo: The ELBO, K = 1.
    """

    log_evidence: float
    error: float
    elbo: float


@dataclass(frozen=True)
class Evaluator:
    """An evaluator that finds log p(x) of the same data in the same way each time.

    Args:
        columns: The data, each (n, ...).
        evidence: ``"auto"`` (exact where that takes reasonable time, else importance sampling from q(z|x)), a method of
            `evaluation.log_evidence`, or a function ``evidence(program, *columns)`` -> `Evidence`.
        num_particles: K of importance sampling.
    """

    columns: tuple[Tensor, ...]
    evidence: Method | MakeEvidence
    num_particles: int

    def __post_init__(self) -> None:
        if not callable(self.evidence):
            check_choice(self.evidence, get_args(Method), "race: evidence")

    def choose(self, program: VAE | Program) -> Method | MakeEvidence:
        """Return the method for a program; ``"auto"`` is resolved by a trial on the first datum."""
        if self.evidence != "auto":
            return self.evidence
        conditions = len(self.columns[1].unique(dim=0)) if len(self.columns) > 1 else 1
        if not isinstance(program, VAE) or conditions > _MOST_CONDITIONS:
            return "posterior"
        x, *y = (column[:1] for column in self.columns)
        with torch.no_grad(), evaluation_mode(program):
            space = measure(program.p_z(*moved(y, None if (like := home_of(program)) is None else like.device)))
        # three dimensions take seconds per datum to integrate: too slow for repeated evaluation
        exact: Method = "closed form" if space == "a region of space" and program.latent_shape[0] > 2 else "exact"
        try:
            log_evidence(program, x, *y, method=exact, seed=_SEED)
        except ValueError:
            return "posterior"
        return exact

    def __call__(self, program: VAE | Program, method: Method | MakeEvidence) -> tuple[Look, Evidence]:
        """Evaluate a program.

        Raises:
            ValueError: If log p(x) of a datum is not finite, or the method does not apply.
        """
        with torch.no_grad(), seeded(_SEED):
            found = self._evidence(program, method)
            elbo: Any = found.details.get("elbo") if method == "posterior" else None
            if elbo is None:
                elbo = self._importance(program, _ELBO_PARTICLES).details["elbo"]
        values, n = found.log_evidence, len(found)
        if not values.isfinite().all():
            raise ValueError(f"log p(x) is not finite for {int((~values.isfinite()).sum())} of {n} data")
        errors: Any = found.details.get("standard_error", found.error)
        error = errors.mean() if found.kind == "exact" else errors.square().sum().sqrt() / n
        return Look(found.mean, float(error), float(elbo.mean())), found

    def _evidence(self, program: VAE | Program, method: Method | MakeEvidence) -> Evidence:
        if callable(method):
            like = home_of(program)
            return method(program, *(self.columns if like is None else moved(self.columns, like.device, like.dtype)))
        if method == "posterior":
            return self._importance(program, self.num_particles)
        return log_evidence(program, *self.columns, method=method, num_particles=(self.num_particles,), seed=_SEED)

    def _importance(self, program: VAE | Program, num_particles: int) -> Evidence:
        """Estimate log p(x) by samples of q(z|x); a conditional VAE runs as a program, which takes any condition."""
        if isinstance(program, VAE) and len(self.columns) > 1:
            program = (program.model, program.guide)
        return importance(program, *self.columns, num_particles=num_particles, proposal="posterior", seed=_SEED)


@dataclass(eq=False)
class Watch(Callback):
    """The callback of one run.

    The clock runs from before the first step of an epoch to after its last. It does not count the evaluation, the work
    of `fit` between epochs (validation for a scheduler, records), or the work before the first step.

    Args:
        evaluator: The evaluator of the race.
        program: The program to evaluate.
        method: How to find log p(x).
        every: Epochs between two evaluations.
        epochs: Epochs of the run; the last is always evaluated.
        max_seconds: The training time after which the run stops; None never stops it.
        tell: Called with every new point.
        clock: A function that returns seconds, from any origin.
    """

    evaluator: Evaluator
    program: VAE | Program
    method: Method | MakeEvidence
    every: int
    epochs: int
    max_seconds: float | None = None
    tell: Callable[[Point], None] = lambda point: None
    clock: Callable[[], float] = time.perf_counter
    points: list[Point] = field(default_factory=list, init=False)
    epoch_seconds: list[float] = field(default_factory=list, init=False)
    epoch: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)
    how: str = field(default="", init=False)
    kind: str = field(default="lower", init=False)
    _seconds: float = field(default=0.0, init=False)
    _since: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.how = str(self.method)

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._seconds + (0.0 if self._since is None else self.clock() - self._since)

    def stop(self) -> bool:
        """Count a step; return whether the time is up."""
        self.steps += 1
        return self.max_seconds is not None and self.seconds >= self.max_seconds

    def on_start(self, run: Run) -> None:
        """Evaluate the initial program, and start the clock."""
        self._look(None)
        self._since = self.clock()

    def on_progress(self, progress: Progress) -> None:
        """Stop the clock at the end of an epoch, when the device has finished its work."""
        if progress.step == progress.steps:
            self._pause()

    def on_epoch(self, run: Run, record: dict[str, float]) -> None:
        """Evaluate if this epoch is due, and start the clock again."""
        self._pause()
        self.epoch = int(record["epoch"])
        self.epoch_seconds.append(self._seconds - sum(self.epoch_seconds))
        if self.epoch % self.every == 0 or self.epoch == self.epochs:
            self._look(record.get("bound"))
        self._since = self.clock()

    def on_end(self, run: Run) -> None:
        """Evaluate once more, if the run took steps after its last evaluation."""
        self._pause()
        if self.points[-1].step != self.steps:
            self._look(None)

    @property
    def setup(self) -> float:
        """The seconds by which the first epoch exceeds the median of the later ones."""
        first, *later = self.epoch_seconds or [0.0]
        return max(0.0, first - median(later)) if later else 0.0

    def curve(self) -> tuple[Point, ...]:
        """Return the points, with their seconds reduced by the setup."""
        return tuple(replace(point, seconds=max(0.0, point.seconds - self.setup)) for point in self.points)

    def _pause(self) -> None:
        if self._since is not None:
            self._seconds += self.clock() - self._since
            self._since = None

    def _look(self, bound: float | None) -> None:
        seen, found = self.evaluator(self.program, self.method)
        self.how, self.kind = _in_words(self.method, found, self.evaluator.num_particles), found.kind
        bound = bound if bound is not None and math.isfinite(bound) else None
        self.points.append(Point(self.epoch, self.steps, self._seconds, *seen, bound))
        self.tell(self.points[-1])


def _in_words(method: Method | MakeEvidence, found: Evidence, num_particles: int) -> str:
    """Return the name of the method: ``"quadrature"``, ``"importance sampling from q(z|x), K = 1000"``."""
    if method == "posterior":
        return f"importance sampling from q(z|x), K = {num_particles}"
    if found.method == "importance" and not callable(method):
        return f"importance sampling from the defensive proposal, K = {num_particles}"
    return found.method
