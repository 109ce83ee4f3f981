"""A training race as lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppl_vae.comparison.races.results import RaceResults, Standing
from ppl_vae.comparison.races.runs import RaceRun
from ppl_vae.comparison.statistics.measured import Measured

WIDTH = 120
_NAME = 32  # longest name that a line shows whole


def table_of(race: RaceResults) -> str:
    """Return lines of at most 120 characters: standings, arrivals, failures, and what a reader must know."""
    s = race.settings
    lines = [
        f"{s['steps']:,} steps ({s['epochs']} epochs in batches of {s['batch_size']}), seeds "
        f"{', '.join(map(str, race.seeds))}; nats per datum",
        f"log p(x) of {s['evaluation_size']:,} {s['split']} data by {', '.join(methods_of(race))}",
    ]
    if race.equal_steps is not None and race.equal_seconds is not None:
        steps, seconds = race.at_equal_steps(), race.at_equal_time()
        lines += _standings(race, f"after {race.equal_steps:,} steps", steps, [("ms a step", _rates(race))])
        lines += _standings(race, f"after {seconds_in_words(race.equal_seconds)}", seconds, [])
    if race.target is not None:
        lines += _arrivals(race)
    for run in race.runs:
        if run.failed:
            lines.append(_cut(f"failed: {run.name} at K = {run.num_particles}, seed {run.seed}: {run.reason}"))
    for missing in race.undefined:
        lines.append(_cut(f"left out: {missing.name} at K = {missing.num_particles}: {missing.reason}"))
    over = "95% intervals over seeds" if len(race.seeds) > 1 else "one seed, which says nothing about another"
    lines += ["", f"{over}; differences are within seeds (same start, same order of the data)"]
    if len(race.seeds) > 1 and len(race.contenders) > 2:
        lines.append("and from the true best, which another than the first may be, 95% for all of a column at once")
    return "\n".join(lines)


def methods_of(race: RaceResults) -> list[str]:
    """Return the methods for log p(x), each once: ``"quadrature (exact)"``."""
    kinds = {"exact": "exact", "lower": "a lower bound in expectation", "upper": "an upper bound in expectation"}
    return list(dict.fromkeys(f"{run.method} ({kinds.get(run.kind, run.kind)})" for run in race.runs if run.points))


def shown(measured: Measured | None) -> str:
    """Return a figure with its interval; without one if the interval is infinite, as for a single seed."""
    if measured is None:
        return "-"
    if math.isinf(measured.low) or math.isinf(measured.high):
        return f"{measured.value:.5g}"
    return str(measured)


def seconds_in_words(seconds: float) -> str:
    """Return a time with three digits: ``"12.3 s"``, ``"1,234 s"``."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def _standings(
    race: RaceResults, title: str, standings: Sequence[Standing], more: list[tuple[str, dict[tuple[str, int], str]]]
) -> list[str]:
    head = [title, "K", "log p(x)", "behind the best", "seeds", *(name for name, _ in more)]
    rows = []
    for found in sorted(standings, key=lambda s: -s.value.value if s.value is not None else math.inf):
        key = (found.name, found.num_particles)
        behind = "best" if found.best else shown(found.behind)
        seeds = f"{len(found.seeds)}/{len(race.runs_of(*key, failed=True))}"
        value = "failed" if found.value is None and not race.runs_of(*key) else shown(found.value)
        rows.append(
            [_name(found.name), str(found.num_particles), value, behind, seeds, *(figures[key] for _, figures in more)]
        )
    return ["", *_aligned(head, rows)]


def _arrivals(race: RaceResults) -> list[str]:
    rows = []
    for found in sorted(race.time_to(), key=lambda a: a.seconds.value if a.seconds is not None else math.inf):
        came = sum(time is not None for time in found.per_seed.values())
        slower = "never came there" if found.seconds is None else "fastest" if found.fastest else shown(found.slower)
        rows.append(
            [
                _name(found.name),
                str(found.num_particles),
                shown(found.seconds),
                shown(found.steps),
                slower,
                f"{came}/{len(found.per_seed)}",
            ]
        )
    return ["", *_aligned([f"to {race.target:g} nats", "K", "seconds", "steps", "times the fastest", "seeds"], rows)]


def _rates(race: RaceResults) -> dict[tuple[str, int], str]:
    """Return the training milliseconds per step of each contender, the mean over seeds."""

    def rate(runs: list[RaceRun]) -> str:
        found = [1000 * run.points[-1].seconds / run.points[-1].step for run in runs if run.points[-1].step]
        return f"{sum(found) / len(found):.3g}" if found else "-"

    return {key: rate(race.runs_of(*key)) for key in race.contenders}


def _aligned(head: list[str], rows: list[list[str]]) -> list[str]:
    """Align the first column to the left, and the other columns to the right."""
    first, *others = (max(len(row[i]) for row in [head, *rows]) for i in range(len(head)))
    lines = []
    for name, *figures in [head, *rows]:
        cells = (cell.rjust(width) for cell, width in zip(figures, others, strict=True))
        lines.append("  ".join([name.ljust(first), *cells]))
    return lines


def _name(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
