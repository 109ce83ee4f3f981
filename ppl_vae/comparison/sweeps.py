"""The results of a sweep: its settings side by side, over seeds; as a table, as sentences, for JSON and for CSV."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from ppl_vae._records import FIGURES
from ppl_vae._words import listed, one_line
from ppl_vae.comparison.races.results import Standing, standings_of
from ppl_vae.comparison.races.summary import of_standings
from ppl_vae.comparison.statistics.seeds import LEVEL, over_seeds
from ppl_vae.comparison.words import aligned, cut, for_json, plain, shown, to_csv

_MOST = 5  # settings that a sentence names


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        name: The name of its folder.
        label: Its setting in short, ``"prior=VampPrior lr=0.003"``.
        setting: The options in which the settings differ, with the run's values.
        seed: The seed.
        state: ``"finished"``, ``"interrupted"`` (to be gone on with) or ``"failed"``.
        reason: Why it failed, or None.
        figures: The figures of the last epoch (of the chosen one, under early stopping); None for no finite number.
        epochs: The epochs that it has taken.
        seconds: The seconds of training, or None.
        folder: The folder.
        fingerprint: The hash of its data, or None.
        caveat: What a reader of its figures must know, or None.
        likelihood: The class of its likelihood.
    """

    name: str
    label: str
    setting: Mapping[str, str]
    seed: int
    state: str
    reason: str | None
    figures: dict[str, float | None]
    epochs: int | None
    seconds: float | None
    folder: str
    fingerprint: str | None
    caveat: str | None
    likelihood: str


@dataclass(frozen=True, repr=False)
class Sweep:
    """The runs of a sweep, and what can be said of their settings.

    Settings are compared by the ELBO (K = 1, KL weight 1) on validation data, or on training data where there are no
    others, within seeds: runs of a seed have the same order of the data. Intervals against the best setting hold for
    all settings at once (`ppl_vae.comparison.statistics.seeds.beside_the_best`). **The best of many settings looks
    better than it is**: judge it once more on test data (``ppl-vae evaluate``). Runs that failed count in no figure.

    Attributes:
        runs: The runs, setting by setting.
        varied: The options in which the settings differ.
        repeated: How many settings were left out since they are the same as an earlier one.
        jobs: How many runs were trained at a time.
        seconds: The time that this start of the sweep took.
    """

    runs: tuple[SweepRun, ...]
    varied: tuple[str, ...]
    repeated: int = 0
    jobs: int = 1
    seconds: float = 0.0

    def __repr__(self) -> str:
        counts = Counter(run.state for run in self.runs)
        counted = ", ".join(f"{counts[s]} {s}" for s in ("finished", "interrupted", "failed") if counts[s])
        return f"{type(self).__name__}({len(self.settings)} settings; {counted})"

    def __str__(self) -> str:
        return self.table()

    @property
    def settings(self) -> list[str]:
        """The settings in short, in order."""
        return list(dict.fromkeys(run.label for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return sorted({run.seed for run in self.runs})

    @property
    def failed(self) -> list[SweepRun]:
        """The runs that failed."""
        return [run for run in self.runs if run.state == "failed"]

    @property
    def finished(self) -> list[SweepRun]:
        """The runs that came to their end."""
        return [run for run in self.runs if run.state == "finished"]

    @property
    def measure(self) -> str:
        """The figure by which settings are compared: ``"validation_elbo"``, or ``"elbo"`` without validation data."""
        have_one = [run.figures for run in self.finished if "elbo" in run.figures]  # some objectives know no ELBO
        return "validation_elbo" if all("validation_elbo" in figures for figures in have_one) else "elbo"

    def figure(self, name: str) -> dict[tuple[str, int], dict[int, float]]:
        """Return a figure of the runs that finished, by setting and seed."""
        found: dict[tuple[str, int], dict[int, float]] = {(label, 1): {} for label in self.settings}
        for run in self.finished:
            value = run.seconds if name == "seconds" else run.figures.get(name)
            if value is not None:
                found[run.label, 1][run.seed] = value
        return found

    def standings(self) -> list[Standing]:
        """Return the standing of each setting by `measure`; K has no meaning here."""
        return standings_of(self.figure(self.measure))

    @property
    def incomparable(self) -> str | None:
        """Why settings cannot be compared, in a sentence, or None."""
        if len({run.fingerprint for run in self.finished}) > 1:
            return "The runs had different data (or splits of them), so their figures are not compared."
        if caveats := sorted({run.caveat for run in self.finished if run.caveat}):
            return f"The figures are no likelihoods, so they are not compared: {caveats[0]}"
        if len(kinds := sorted({run.likelihood for run in self.finished})) > 1:
            return (
                f"The runs have different likelihoods ({listed(kinds)}), whose figures compare only if all are "
                "probabilities or all are densities; the folders do not say so, and they are not compared."
            )
        return None

    def table(self) -> str:
        """Return a line for each setting, best first, and what failed, in at most 120 characters."""
        shown_by_others = {"elbo"} - {self.measure}
        if all(_is_elbo(run.figures) for run in self.finished):
            shown_by_others.add("validation_bound")
        known = {name for run in self.finished for name in run.figures} - shown_by_others
        names = [name for name in FIGURES if name in known]
        rows = [["setting", "seeds", *(FIGURES[n][0] for n in names), "seconds"]]
        if compared := self.incomparable is None and self.measure in names:
            rows[0].insert(rows[0].index(FIGURES[self.measure][0]) + 1, "behind the best")
        finished, started = (Counter(run.label for run in runs) for runs in (self.finished, self.runs))
        for found in sorted(self.standings(), key=lambda s: math.inf if s.value is None else -s.value.value):
            cells = [found.name, f"{finished[found.name]}/{started[found.name]}"]
            for name in names:
                some = list(self.figure(name)[found.name, 1].values())
                cells.append(shown(over_seeds(some)) if some else "-")
                if compared and name == self.measure:
                    cells.append("best" if found.best else shown(found.behind))
            seconds = list(self.figure("seconds")[found.name, 1].values())
            cells.append(f"{sum(seconds) / len(seconds):,.3g}" if seconds else "-")
            rows.append(cells)
        lines = aligned(rows)
        lines += [cut(f"failed: {run.name}: {one_line(run.reason)}") for run in self.failed]
        if left := sum(run.state == "interrupted" for run in self.runs):
            lines.append(f"not finished: {left} of {len(self.runs)} runs; start the sweep again to go on")
        over = "one seed, which says nothing of another"
        if len(self.seeds) > 1:
            over = "means and 95% intervals over seeds"
        lines += ["", f"nats per datum; {over}; differences are within seeds, 95% for all of them at once"]
        return "\n".join(lines)

    def sentences(self) -> list[str]:
        """Return the statements that the figures support, and why others cannot be made."""
        said = []
        if not self.finished:
            said.append("No run finished, so there is nothing to compare.")
        elif self.incomparable is not None:
            said.append(self.incomparable)
        else:
            title = "ELBO on validation data" if self.measure == "validation_elbo" else "ELBO on training data"
            said += of_standings(
                "At the end of training", self.standings(), figure=title, name=lambda s: s.name, most=_MOST
            )
            known = self.figure(self.measure)
            if without := [run.label for run in self.finished if not known[run.label, 1]]:
                said.append(f"No ELBO is known of {listed(without, _MOST)}, by which to compare.")
            said += self._reach()
        failed, started = (Counter(run.label for run in runs) for runs in (self.failed, self.runs))
        for label, count in failed.items():
            some = f"{label} failed in {count} of {started[label]} runs, so its figures are of the other seeds."
            said.append(some if count < started[label] else f"{label} failed in all of its runs.")
        if self.repeated:
            said.append(f"{self.repeated} settings were the same as an earlier one, and are left out.")
        return said

    def _reach(self) -> list[str]:
        """Say what so few seeds can show of so many settings."""
        seeds, settings = len(self.seeds), len(self.settings)
        if settings < 2:
            return []
        if seeds < 2:
            return ["One seed was run, so nothing is known of how the order would change with another; give seeds: 3."]
        half = float(stats.t.ppf(1 - (1 - LEVEL) / (2 * (settings - 1)), seeds - 1)) / math.sqrt(seeds)
        said = f"With {seeds} seeds and {settings} settings, two are told apart only if they differ by {half:.1f} "
        return [f"{said}standard deviations of their difference over seeds."]

    def to_dict(self) -> dict[str, Any]:
        """Return all results for JSON; infinite and undefined numbers are None."""
        standings = self.standings()
        further = {
            "runs": [asdict(run) for run in self.runs],
            "seeds": self.seeds,
            "measure": self.measure,
            "standings": [plain({k: v for k, v in s._asdict().items() if k != "num_particles"}) for s in standings],
            "incomparable": self.incomparable,
            "sentences": self.sentences(),
        }
        return for_json(vars(self) | further)

    def to_csv(self) -> str:
        """Return one line for each run, with its settings and figures.

        A setting called like another column (``epochs``, which are those taken) stands under ``setting.epochs``.
        """
        own = ("name", "seed", "state", "reason", "epochs", "seconds", "folder")
        taken = {*own, *(name for run in self.runs for name in run.figures)}
        column = {name: f"setting.{name}" if name in taken else name for name in self.varied}
        columns = dict.fromkeys([*own[:1], *column.values(), *own[1:]])
        lines = [
            {column.get(name, name): value for name, value in run.setting.items()}
            | {name: getattr(run, name) for name in own}
            | run.figures
            for run in self.runs
        ]
        return to_csv([columns | line for line in lines])


def _is_elbo(figures: Mapping[str, float | None]) -> bool:
    """Whether the objective's own bound is the ELBO."""
    bound, elbo = figures.get("validation_bound"), figures.get("validation_elbo")
    return bound is None or elbo is None or math.isclose(bound, elbo, rel_tol=1e-6)
