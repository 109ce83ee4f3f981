"""The figures of a training race: standings at equal steps and equal time, arrivals at a target, bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ppl_vae._measured import Measured
from ppl_vae._shown import Shown
from ppl_vae.comparison.contenders import Undefined
from ppl_vae.comparison.races.runs import Axis, RaceRun
from ppl_vae.comparison.statistics.measured import exponential, negated
from ppl_vae.comparison.statistics.seeds import beside_the_best, geometric, over_seeds


class Standing(NamedTuple):
    """The standing of a contender at a step or a time.

    Attributes:
        name: The contender's name.
        num_particles: Its K.
        value: log p(x), nats per datum, the mean over seeds with its 95% interval; None where no run got there.
        behind: The contender's log p(x) minus the best's, paired by seed. The figure is the mean difference from the
            contender with the highest mean (`best`), over the seeds that both have. The interval is against the true
            best, whichever of the candidates that is, with 95% for all contenders at once (`seeds.beside_the_best`); it
            is wholly below 0 if this contender is behind the best. None for the contender with the highest mean, and
            where the two share no seed.
        seeds: The seeds whose runs got there.
        best: Whether it has the highest mean of the contenders with the most seeds.
        may_be_best: Whether the seeds leave it possible that it is the best of the contenders with the most seeds.
    """

    name: str
    num_particles: int
    value: Measured | None
    behind: Measured | None
    seeds: tuple[int, ...]
    best: bool
    may_be_best: bool = False


class Arrival(NamedTuple):
    """The time at which a contender reached the target.

    Times are compared over the seeds in which both contenders reached the target. If a contender misses the target on
    hard seeds, its figures describe the other seeds, not the time that it would take on all.

    Attributes:
        name: The contender's name.
        num_particles: Its K.
        seconds: Training time, the geometric mean over the seeds that reached the target, with its 95% interval; None
            if none did.
        steps: The number of steps, in the same way.
        slower: The seconds as a multiple of the fastest's, paired (geometric mean). The figure is against the contender
            with the lowest mean (`fastest`). The interval is against the true fastest, whichever that is, with 95% for
            all contenders at once, as in `Standing.behind`. None for the contender with the lowest mean, where the two
            share no seed, and for all contenders if a run was at the target from the start (zero has no multiple).
        per_seed: ``(seconds, steps)`` by seed; None where the run did not reach the target.
        fastest: Whether it has the lowest `seconds` of the contenders that reached the target in the most seeds.
        may_be_fastest: Whether the seeds leave it possible that it is the fastest of those contenders. True for all
            that reached the target if a run was at the target from the start.
    """

    name: str
    num_particles: int
    seconds: Measured | None
    steps: Measured | None
    slower: Measured | None
    per_seed: Mapping[int, tuple[float, float] | None]
    fastest: bool
    may_be_fastest: bool = False


def arrived(found: Arrival) -> int:
    """Return the number of seeds that reached the target."""
    return sum(time is not None for time in found.per_seed.values())


class Band(NamedTuple):
    """A contender's curve over seeds: x (steps or seconds), the mean of log p(x), and its 95% interval at each x."""

    x: list[float]
    value: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class RaceResults(Shown):
    """A training race; figures in nats per datum.

    Runs that failed count in no figure over seeds, except in the arrivals at a target that they reached before. The
    table and the sentences name them, and their curves are kept as far as they go.

    Attributes:
        runs: One run per contender and seed, in the order in which they ran.
        undefined: The contenders that do not exist at their K, and why.
        target: The log p(x) to reach, chosen before the race; None for none.
        settings: The common settings of all runs, for the record.
        machine: Device, torch version, threads.
        seconds: The duration of the whole race, evaluation included.
    """

    runs: tuple[RaceRun, ...]
    undefined: tuple[Undefined, ...]
    target: float | None
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    seconds: float

    def __repr__(self) -> str:
        entered = ", ".join(f"{name} at K = {k}" for name, k in self.contenders)
        failed = sum(run.failed for run in self.runs)
        ended = f", {failed} of {len(self.runs)} runs failed" if failed else ""
        return f"{type(self).__name__}({entered}; seeds {', '.join(map(str, self.seeds))}{ended})"

    @property
    def contenders(self) -> list[tuple[str, int]]:
        """Name and K of each contender, in the order of the first seed."""
        return list(dict.fromkeys(run.key for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return sorted({run.seed for run in self.runs})

    def runs_of(self, name: str, num_particles: int, *, failed: bool = False) -> list[RaceRun]:
        """Return a contender's runs by seed; runs that failed only if `failed` is set."""
        own = [run for run in self.runs if run.key == (name, num_particles) and (failed or not run.failed)]
        return sorted(own, key=lambda run: run.seed)

    @property
    def equal_steps(self) -> int | None:
        """The last step that all runs took, without runs that failed; None if all failed."""
        return min((run.points[-1].step for run in self.runs if not run.failed), default=None)

    @property
    def equal_seconds(self) -> float | None:
        """The shortest training time of a whole run, without runs that failed; None if all failed."""
        return min((run.points[-1].seconds for run in self.runs if not run.failed), default=None)

    @property
    def methods(self) -> list[str]:
        """The methods for log p(x), each once: ``"quadrature (exact)"``."""
        kinds = {"exact": "exact", "lower": "a lower bound in expectation", "upper": "an upper bound in expectation"}
        return list(dict.fromkeys(f"{run.method} ({kinds.get(run.kind, run.kind)})" for run in self.runs if run.points))

    def at_equal_steps(self, step: float | None = None) -> list[Standing]:
        """Return the standings after `step` steps, `equal_steps` by default."""
        return self._standings("step", self.equal_steps if step is None else step)

    def at_equal_time(self, seconds: float | None = None) -> list[Standing]:
        """Return the standings after `seconds` of training, `equal_seconds` by default.

        Curves are linear between evaluations. The time depends on the machine and its other load.
        """
        return self._standings("seconds", self.equal_seconds if seconds is None else seconds)

    def time_to(self, target: float | None = None) -> list[Arrival]:
        """Return when each contender's log p(x) first reached a target, by default the target of the race.

        Curves are linear between evaluations. A run that failed counts if it reached the target before.

        Raises:
            ValueError: If there is no target.
        """
        target = self.target if target is None else target
        if target is None:
            raise ValueError("time_to was given no target, nor was the race; expected a log p(x) in nats per datum")
        reached: dict[tuple[str, int], dict[int, tuple[float, float] | None]] = {key: {} for key in self.contenders}
        for key, found in reached.items():
            for run in self.runs_of(*key, failed=True):
                after = run.reaches(target, "seconds"), run.reaches(target, "step")
                found[run.seed] = None if after[0] is None or after[1] is None else (after[0], after[1])
        times = {key: {s: t[0] for s, t in found.items() if t is not None} for key, found in reached.items()}
        from_start = any(t <= 0 for found in times.values() for t in found.values())
        speed = {key: {s: -t if from_start else -math.log(t) for s, t in f.items()} for key, f in times.items()}
        arrivals = []
        for (key, found), (behind, fastest, may_be) in zip(reached.items(), _beside(speed), strict=True):
            came = [t for t in found.values() if t is not None]
            seconds, steps = (geometric([t[i] for t in came]) if came else None for i in (0, 1))
            slower = None if behind is None or from_start else exponential(negated(behind))
            may_be = may_be or (from_start and bool(came))
            arrivals.append(Arrival(*key, seconds, steps, slower, found, fastest, may_be))
        return arrivals

    def band(self, name: str, num_particles: int, axis: Axis = "step", *, num_points: int = 101) -> Band:
        """Return a contender's curve over seeds, as far as all of its runs go, without runs that failed.

        The points against steps are the evaluations; the points against seconds are `num_points` times.
        """
        runs = self.runs_of(name, num_particles)
        if not runs:
            return Band([], [], [], [])
        end = min(run.column(axis)[-1] for run in runs)
        if axis == "step":
            grid = sorted({float(x) for run in runs for x in run.column(axis) if x <= end})
        else:
            grid = [float(x) for x in np.linspace(0.0, end, num_points)]
        found = [over_seeds([v for run in runs if (v := run.at(axis, x)) is not None]) for x in grid]
        return Band(grid, [m.value for m in found], [m.low for m in found], [m.high for m in found])

    def _standings(self, axis: Axis, where: float | None) -> list[Standing]:
        values = {
            key: {r.seed: v for r in self.runs_of(*key) if where is not None and (v := r.at(axis, where)) is not None}
            for key in self.contenders
        }
        return standings_of(values)


def standings_of(values: Mapping[tuple[str, int], Mapping[int, float]]) -> list[Standing]:
    """Return the standing of each contender, from the values of its seeds; higher is better."""
    standings = []
    for (key, found), (behind, *best) in zip(values.items(), _beside(values), strict=True):
        mean = over_seeds([*found.values()]) if found else None
        standings.append(Standing(*key, mean, behind, tuple(found), *best))
    return standings


def _beside(values: Mapping[tuple[str, int], Mapping[int, float]]) -> list[tuple[Measured | None, bool, bool]]:
    """Compare each contender with the best; higher is better.

    Returns:
        For each contender its values minus the best's (None for the best, and where the two share no seed), whether it
        has the highest mean, and whether it may be the best.
    """
    seeds = sorted({seed for found in values.values() for seed in found})
    if not seeds:
        return [(None, False, False)] * len(values)
    beside = beside_the_best(np.array([[found.get(seed, math.nan) for seed in seeds] for found in values.values()]))
    places: list[tuple[Measured | None, bool, bool]] = []
    for i, may_be_best in enumerate(beside.may_be_best.tolist()):
        figures = Measured(float(beside.difference[i]), float(beside.low[i]), float(beside.high[i]))
        best = i == int(beside.best)
        places.append((None if best or math.isnan(figures.value) else figures, best, may_be_best))
    return places
