"""The runs of a race as plain numbers: one curve per contender and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Stopped = Literal["finished", "out of time", "failed"]
Axis = Literal["step", "seconds"]


@dataclass(frozen=True)
class Point:
    """One evaluation of a run while it trains; nats, means per datum.

    Attributes:
        epoch: Epochs completed.
        step: Steps taken.
        seconds: Training time, without evaluation and without the run's `setup`.
        log_evidence: log p(x) of the evaluated data, or its estimate.
        log_evidence_error: The mean error bound of an exact log p(x); for an estimate the standard error of the mean
            over its own noise, not over data.
        elbo: The ELBO (K = 1) of the same data.
        bound: The objective's own value in training, over the epoch that ended here; None before the first epoch, and
            where a run ended within an epoch.
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
        name: The contender's name.
        num_particles: Its K.
        seed: The seed of initial parameters, order of the data and noise.
        points: The curve, from step 0.
        method: How log p(x) was found.
        kind: ``"exact"``, or ``"lower"``: an estimate whose expectation is a lower bound.
        stopped: ``"finished"``, ``"out of time"`` (`max_seconds`), or ``"failed"``.
        reason: Why it failed; None otherwise.
        steps: The number of steps; for a run that diverged, up to the step at which it diverged.
        why_eager: Why its steps were not captured, or None.
        setup: Seconds by which the first epoch exceeds the median of the later ones: capturing or compiling the step,
            first use of memory. Zero where there are no later ones.
        epoch_seconds: The training time of each whole epoch, the setup included.
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
        """Name and K, which identify a contender."""
        return self.name, self.num_particles

    @property
    def failed(self) -> bool:
        """Whether the run failed."""
        return self.stopped == "failed"

    @property
    def final(self) -> Point | None:
        """The last point; None for a run that failed before its first."""
        return self.points[-1] if self.points else None

    def column(self, name: str) -> list[Any]:
        """Return one figure of every point."""
        return [getattr(point, name) for point in self.points]

    def at(self, axis: Axis, where: float) -> float | None:
        """Interpolate log p(x) linearly at a step or a time; return None beyond the run's end."""
        x = self.column(axis)
        return float(np.interp(where, x, self.column("log_evidence"))) if x and x[0] <= where <= x[-1] else None

    def reaches(self, target: float, axis: Axis) -> float | None:
        """Return the step or the time at which log p(x) first reaches `target`; None if it never does."""
        x, y = self.column(axis), self.column("log_evidence")
        i = next((i for i, value in enumerate(y) if value >= target), None)
        if i is None or i == 0:
            return None if i is None else float(x[0])
        share = (target - y[i - 1]) / (y[i] - y[i - 1])
        return float(x[i - 1] + share * (x[i] - x[i - 1]))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RaceRun:
        """Return a run from the output of `dataclasses.asdict`."""
        points = tuple(Point(**point) for point in content["points"])
        return cls(**{**content, "points": points, "epoch_seconds": tuple(content["epoch_seconds"])})
