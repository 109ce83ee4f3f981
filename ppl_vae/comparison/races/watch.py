"""The callback of one run of a race: it times training without evaluation, and records the points of the curve."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

from ppl_vae.comparison.races.evaluation import Evaluator, MakeEvidence, in_words
from ppl_vae.comparison.races.runs import Point
from ppl_vae.evidence.log_evidence import Method
from ppl_vae.objectives.losses import Program
from ppl_vae.training import Callback, Progress, Run
from ppl_vae.vae import VAE


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

    def __init__(
        self,
        evaluator: Evaluator,
        program: VAE | Program,
        method: Method | MakeEvidence,
        *,
        every: int,
        epochs: int,
        max_seconds: float | None = None,
        tell: Callable[[Point], None] = lambda point: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.evaluator, self.program, self.method = evaluator, program, method
        self.every, self.epochs, self.max_seconds, self.tell = every, epochs, max_seconds, tell
        self.points: list[Point] = []
        self.epoch_seconds: list[float] = []
        self.steps = self.epoch = 0
        self.how, self.kind = str(method), "lower"
        self._seconds = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._seconds + (0.0 if self._since is None else self.clock() - self._since)

    def stop(self) -> bool:
        """Count a step; return whether the time is up."""
        self.steps += 1
        return self.is_late

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
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
        self.how, self.kind = in_words(self.method, found, self.evaluator.num_particles), found.kind
        bound = bound if bound is not None and math.isfinite(bound) else None
        self.points.append(Point(self.epoch, self.steps, self._seconds, *seen, bound))
        self.tell(self.points[-1])


def reason_of(error: BaseException) -> str:
    """Return an error's message in one line, with the kind of error unless it is a `ValueError` with a message."""
    words: Any = " ".join(str(error).split())
    return words if isinstance(error, ValueError) and words else f"{type(error).__name__}: {words}".rstrip(": ")
