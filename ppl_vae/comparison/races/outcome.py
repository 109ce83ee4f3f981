"""The results of a training race, as a table, as sentences, for JSON and for CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ppl_vae.comparison.contenders import Undefined
from ppl_vae.comparison.races.results import Arrival, RaceResults, Standing, arrived
from ppl_vae.comparison.races.runs import Point, RaceRun
from ppl_vae.comparison.races.summary import sentences_of
from ppl_vae.comparison.words import aligned, at_k, cut, for_json, plain, seconds_in_words, shown, to_csv

_NAME = 32  # longest name that a line shows whole


@dataclass(frozen=True, repr=False)
class Race(RaceResults):
    """A training race; its attributes are those of `RaceResults`."""

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return lines of at most 120 characters: standings, arrivals, failures, and what a reader must know."""
        s = self.settings
        lines = [
            f"{s['steps']:,} steps ({s['epochs']} epochs in batches of {s['batch_size']}), seeds "
            f"{', '.join(map(str, self.seeds))}; nats per datum",
            f"log p(x) of {s['evaluation_size']:,} {s['split']} data by {', '.join(self.methods)}",
        ]
        if self.equal_steps is not None and self.equal_seconds is not None:
            lines += _standings(self, f"after {self.equal_steps:,} steps", self.at_equal_steps(), rates=True)
            lines += _standings(self, f"after {seconds_in_words(self.equal_seconds)}", self.at_equal_time())
        if self.target is not None:
            lines += _arrivals(self)
        failures = [f"failed: {at_k(run)}, seed {run.seed}: {run.reason}" for run in self.runs if run.failed]
        missing = [f"left out: {at_k(entry)}: {entry.reason}" for entry in self.undefined]
        lines += [cut(line) for line in (*failures, *missing)]
        over = "95% intervals over seeds" if len(self.seeds) > 1 else "one seed, which says nothing about another"
        lines += ["", f"{over}; differences are within seeds (same start, same order of the data)"]
        if len(self.seeds) > 1 and len(self.contenders) > 2:
            lines.append("and from the true best, which another than the first may be, 95% for all of a column at once")
        return "\n".join(lines)

    def sentences(self) -> list[str]:
        """Return the statements that the figures support, as sentences."""
        return sentences_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all results for JSON; infinite and undefined numbers are None. `from_dict` reads them."""
        further = {
            "runs": [asdict(run) for run in self.runs],
            "undefined": [entry._asdict() for entry in self.undefined],
            "equal_steps": {"step": self.equal_steps, "standings": _plain(self.at_equal_steps())},
            "equal_time": {"seconds": self.equal_seconds, "standings": _plain(self.at_equal_time())},
            "arrivals": None if self.target is None else _plain(self.time_to()),
            "sentences": self.sentences(),
        }
        return for_json(vars(self) | further)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Race:
        """Return the race that `to_dict` wrote."""
        runs = tuple(RaceRun.from_dict(run) for run in content["runs"])
        undefined = tuple(Undefined(**u) for u in content["undefined"])
        return cls(runs, undefined, *(content[name] for name in ("target", "settings", "machine", "seconds")))

    def to_csv(self) -> str:
        """Return one line for each evaluation of each run, with a header.

        A run without an evaluation also has one line. A field without a figure is empty.
        """
        own = ["name", "num_particles", "seed", "method", "kind", "stopped", "reason", "steps"]
        nothing = dict.fromkeys(Point.__dataclass_fields__)
        lines = []
        for run in self.runs:
            line = {name: getattr(run, name) for name in own}
            lines += [line | (nothing if point is None else asdict(point)) for point in run.points or (None,)]
        return to_csv(lines)


def _plain(rows: Iterable[Standing | Arrival]) -> list[dict[str, Any]]:
    return [plain(row._asdict()) for row in rows]


def _standings(race: RaceResults, title: str, standings: Sequence[Standing], *, rates: bool = False) -> list[str]:
    lines = [[title, "K", "log p(x)", "behind the best", "seeds", *(["ms a step"] if rates else [])]]
    for found in sorted(standings, key=lambda s: math.inf if s.value is None else -s.value.value):
        key = found.name, found.num_particles
        runs, started = race.runs_of(*key), race.runs_of(*key, failed=True)
        value = shown(found.value) if runs else "failed"
        behind = "best" if found.best else shown(found.behind)
        cells = [cut(found.name, _NAME), str(key[1]), value, behind, f"{len(found.seeds)}/{len(started)}"]
        lines.append([*cells, *([_rate(runs)] if rates else [])])
    return ["", *aligned(lines)]


def _arrivals(race: RaceResults) -> list[str]:
    lines = [[f"to {race.target:g} nats", "K", "seconds", "steps", "times the fastest", "seeds"]]
    for found in sorted(race.time_to(), key=lambda a: math.inf if a.seconds is None else a.seconds.value):
        slower = "never came there" if found.seconds is None else "fastest" if found.fastest else shown(found.slower)
        figures = shown(found.seconds), shown(found.steps), slower, f"{arrived(found)}/{len(found.per_seed)}"
        lines.append([cut(found.name, _NAME), str(found.num_particles), *figures])
    return ["", *aligned(lines)]


def _rate(runs: Sequence[RaceRun]) -> str:
    """Return the training milliseconds per step, the mean over seeds."""
    found = [1000 * run.points[-1].seconds / run.points[-1].step for run in runs if run.points[-1].step]
    return f"{sum(found) / len(found):.3g}" if found else "-"
