"""The runs of a race as plain numbers: one curve for each contender and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ppl_vae.comparison.statistics.seeds import at, first_arrival

Stopped = Literal["finished", "out of time", "failed"]
Axis = Literal["step", "seconds"]


@dataclass(frozen=True)
class Point:
    """One look at a run while it trains; nats, means per datum.

    Attributes:
        epoch: Epochs completed.
        step: Steps taken.
        seconds: Of training alone, without evaluation and without the run's `setup`.
        log_evidence: log p(x) of the data looked at, or its estimate.
        log_evidence_error: Of an exact log p(x) the mean error bound; else the standard error of the mean over the
            noise of the estimate, which is not that over data.
        elbo: The ELBO (K = 1) of the same data.
        bound: The objective's own value while training, over the epoch that ended here; None before the first, and
            where a run ended in the midst of an epoch.
    """

    epoch: int
    step: int
    seconds: float
    log_evidence: float
    log_evidence_error: float
    elbo: float
    bound: float | None = None


@dataclass(frozen=True)
class RaceRun:
    """One contender under one seed.

    Attributes:
        name: The contender's.
        num_particles: Its K.
        seed: Of initial parameters, order of the data and noise.
        points: The curve, from step 0.
        method: How log p(x) was found.
        kind: ``"exact"``, or ``"lower"``: an estimate whose expectation is a lower bound.
        stopped: ``"finished"``, ``"out of time"`` (`max_seconds`), or ``"failed"``.
        reason: Why it failed; None otherwise.
        steps: How many it took; of one that diverged, up to the step at which it did.
        why_eager: Why its steps were not captured, or None.
        setup: Seconds that the first epoch took longer than the median of the later ones: capturing or compiling the
            step, first use of memory. Zero where there are no later ones.
        epoch_seconds: What each whole epoch took to train, the setup included.
    """

    name: str
    num_particles: int
    seed: int
    points: tuple[Point, ...]
    method: str
    kind: str
    stopped: Stopped = "finished"
    reason: str | None = None
    steps: int = 0
    why_eager: str | None = None
    setup: float = 0.0
    epoch_seconds: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        """Name and K, which tell contenders apart."""
        return self.name, self.num_particles

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.stopped == "failed"

    @property
    def final(self) -> Point | None:
        """The last point; None for a run that failed before the first."""
        return self.points[-1] if self.points else None

    def column(self, name: str) -> list[Any]:
        """One figure of every point."""
        return [getattr(point, name) for point in self.points]

    def at(self, axis: Axis, where: float) -> float | None:
        """Return log p(x) at a step or a time, linear between evaluations; None beyond the run's end."""
        return at(self.column(axis), self.column("log_evidence"), where)

    def reaches(self, target: float, axis: Axis) -> float | None:
        """Return the step or the time at which log p(x) first comes up to `target`; None if it never does."""
        return first_arrival(self.column(axis), self.column("log_evidence"), target)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RaceRun:
        """Return a run from what `dataclasses.asdict` made of it."""
        points = tuple(Point(**point) for point in content["points"])
        return cls(**{**content, "points": points, "epoch_seconds": tuple(content["epoch_seconds"])})
