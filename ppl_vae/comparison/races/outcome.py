"""The results of a training race, as a table, as sentences, for JSON and for CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ppl_vae.comparison.contenders import Undefined
from ppl_vae.comparison.races.results import Arrival, RaceResults, Standing
from ppl_vae.comparison.races.runs import Point, RaceRun
from ppl_vae.comparison.races.summary import sentences_of
from ppl_vae.comparison.races.tables import table_of
from ppl_vae.comparison.statistics.measured import Measured


@dataclass(frozen=True)
class Race(RaceResults):
    """A training race; its attributes are those of `RaceResults`."""

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return lines of at most 120 characters: standings, arrivals, failures, and what a reader must know."""
        return table_of(self)

    def sentences(self) -> list[str]:
        """Return the statements that the figures support, as sentences."""
        return sentences_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all results for JSON; infinite and undefined numbers are None. `from_dict` reads them."""
        content = {
            "runs": [asdict(run) for run in self.runs],
            "undefined": [u._asdict() for u in self.undefined],
            "target": self.target,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "seconds": self.seconds,
            "equal_steps": {"step": self.equal_steps, "standings": _plain(self.at_equal_steps())},
            "equal_time": {"seconds": self.equal_seconds, "standings": _plain(self.at_equal_time())},
            "arrivals": None if self.target is None else _plain(self.time_to()),
            "sentences": self.sentences(),
        }
        return json.loads(json.dumps(content), parse_constant=lambda _: None)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Race:
        """Return the race that `to_dict` wrote."""
        return cls(
            runs=tuple(RaceRun.from_dict(run) for run in content["runs"]),
            undefined=tuple(Undefined(**u) for u in content["undefined"]),
            target=content["target"],
            settings=content["settings"],
            machine=content["machine"],
            seconds=content["seconds"],
        )

    def to_csv(self) -> str:
        """Return one line for each evaluation of each run, with a header.

        A run without an evaluation also has one line. A field without a figure is empty.
        """
        own = ["name", "num_particles", "seed", "method", "kind", "stopped", "reason", "steps"]
        text = io.StringIO()
        writer = csv.DictWriter(text, [*own, *Point.__dataclass_fields__], restval="", lineterminator="\n")
        writer.writeheader()
        for run in self.runs:
            for point in run.points or (None,):
                line = {name: getattr(run, name) for name in own} | ({} if point is None else asdict(point))
                writer.writerow({name: "" if value is None else value for name, value in line.items()})
        return text.getvalue()


def _plain(rows: Iterable[Standing | Arrival]) -> list[dict[str, Any]]:
    return [{k: v._asdict() if isinstance(v, Measured) else v for k, v in row._asdict().items()} for row in rows]
