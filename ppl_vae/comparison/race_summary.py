"""A training race in sentences, each of which follows from its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import quantiles
from typing import TYPE_CHECKING

from ppl_vae.comparison.race_runs import RaceRun
from ppl_vae.comparison.race_tables import methods_of, seconds_in_words, shown
from ppl_vae.comparison.results import Measured

if TYPE_CHECKING:
    from ppl_vae.comparison.race_results import Arrival, Race, Standing

_FEW = 5  # epochs, of which there are no quartiles worth the name
_UNSTEADY = 1.25  # the ratio of quartiles from which on a reader is warned


def sentences_of(race: Race) -> list[str]:
    """Return what the figures support: who is ahead at equal steps, at equal time and to the target, and what failed.

    One is said to be ahead of another where the paired interval over seeds, 95% for all comparisons with the best at
    once, excludes no difference; where it does not, that is said.
    """
    found: list[str] = []
    if race.equal_steps is not None and race.equal_seconds is not None:
        found += _of_standings(f"After {race.equal_steps:,} steps", race.at_equal_steps())
        found += _of_standings(f"After {seconds_in_words(race.equal_seconds)} of training", race.at_equal_time())
    if race.target is not None:
        found += _of_arrivals(race)
    found += _of_failures(race)
    found += [f"{u.name} does not exist at K = {u.num_particles}: {_whole(u.reason)}" for u in race.undefined]
    return found + _caveats(race)


def _of_standings(when: str, standings: Sequence[Standing]) -> list[str]:
    best = next((s for s in standings if s.best), None)
    if best is None:
        return []
    figure = f"{shown(best.value)} nats per datum"
    others = [s for s in standings if s.value is not None and not s.best]
    if not others:
        return [f"{when}, {_name(best)}'s log p(x) is {figure}."]
    ahead = [s for s in others if s.behind is not None and s.behind.high < 0]
    unclear = [s for s in others if s not in ahead]
    if len(best.seeds) == 1:
        return [f"{when}, {_name(best)} has the highest log p(x) in this run, {figure}."]
    if not unclear:
        said = [f"{when}, {_name(best)} has the highest log p(x), {figure}."]
    else:
        said = [
            f"{when}, {_name(best)} has the highest mean of log p(x), {figure}, but {_count(best.seeds)} do not "
            f"separate it from {_listed([f'{_name(s)} ({_difference(s.behind)})' for s in unclear])}."
        ]
    if ahead:
        behind = [f"{_name(s)} by {shown(_negated(s.behind))}" for s in sorted(ahead, key=_by_behind)]
        verb = "are" if len(ahead) > 1 else "is"
        said.append(f"{when}, behind {_name(best)} {verb} {_listed(behind)} nats per datum.")
    return said


def _of_arrivals(race: Race) -> list[str]:
    arrivals, target = race.time_to(), f"{race.target:g} nats per datum"
    came = [a for a in arrivals if a.seconds is not None]
    never = [a for a in arrivals if a.seconds is None]
    if not came:
        return [f"No contender came to the target of {target}."]
    said = []
    fastest = next(a for a in came if a.fastest)
    others = [a for a in came if a is not fastest]
    many = len(fastest.per_seed) > 1
    slower = [a for a in others if many and a.slower is not None and a.slower.low > 1]
    unclear = [a for a in others if a not in slower]
    time = f"{shown(fastest.seconds)} seconds and {shown(fastest.steps)} steps{_in_seeds(fastest)}"
    if others and not unclear:
        said.append(f"{_name(fastest)} came to the target of {target} first, in {time}.")
    elif others and many:
        said.append(
            f"{_name(fastest)} came to the target of {target} in {time}, the shortest mean, but the seeds do not "
            f"separate it from {_listed([f'{_name(a)}{_in_seeds(a)} ({_times(a)})' for a in unclear])}."
        )
    else:
        said.append(f"{_name(fastest)} came to the target of {target} in {time}.")
    if slower:
        took = [f"{_name(a)} {shown(a.slower)}{_in_seeds(a)}" for a in sorted(slower, key=_by_slower)]
        said.append(f"To the target took, as multiples of {_name(fastest)}'s seconds, {_listed(took)}.")
    if never:
        said.append(f"{_listed([_name(a) for a in never])} never came to the target of {target}.")
    return said


def _of_failures(race: Race) -> list[str]:
    said = []
    for key in race.contenders:
        runs = race.runs_of(*key, failed=True)
        failed = [run for run in runs if run.failed]
        reasons = list(dict.fromkeys(run.reason for run in failed))
        for reason in reasons:
            some = [run for run in failed if run.reason == reason]
            seeds = ", ".join(str(run.seed) for run in some)
            reached = [run.final.log_evidence for run in some if run.final is not None and run.final.step]
            last = f" (last seen at log p(x) = {', '.join(f'{v:.2f}' for v in reached)})" if reached else ""
            share = f"{len(some)} of {len(runs)} runs, seed{'s' * (len(some) > 1)} {seeds}"
            said.append(f"{key[0]} at K = {key[1]} failed in {share}{last}: {_whole(reason or 'no reason was given')}")
    return said


def _caveats(race: Race) -> list[str]:
    said = []
    if len(race.seeds) == 1:
        said.append("One seed was run, so nothing is known of how the order would change with another.")
    rough = max((run for run in race.runs if len(run.epoch_seconds) > _FEW), key=_unsteadiness, default=None)
    if rough is not None and _unsteadiness(rough) > _UNSTEADY:
        low, _, high = quantiles(rough.epoch_seconds[1:], n=4)
        said.append(
            f"The machine was not steady: a quarter of the epochs of one run took less than {low:.3g} seconds and "
            f"another more than {high:.3g}, so take the times as rough."
        )
    methods = methods_of(race)
    if len(methods) > 1:
        said.append(f"log p(x) was not found in one way: {_listed(methods)}; compare across them with care.")
    elif any("importance sampling from q" in method for method in methods):
        said.append(
            f"log p(x) is estimated by {methods[0]}: an estimator that leaves q(z|x) too narrow looks worse by it "
            "than its model is."
        )
    return said


def _unsteadiness(run: RaceRun) -> float:
    """The ratio of the quartiles of what epochs took, the first apart."""
    low, _, high = quantiles(run.epoch_seconds[1:], n=4)
    return high / low if low > 0 else math.inf


def _name(found: Standing | Arrival) -> str:
    return f"{found.name} at K = {found.num_particles}"


def _in_seeds(found: Arrival) -> str:
    came = sum(time is not None for time in found.per_seed.values())
    return "" if came == len(found.per_seed) else f" (in {came} of {len(found.per_seed)} seeds)"


def _count(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seeds"


def _difference(behind: Measured | None) -> str:
    return "no seed in common" if behind is None else f"difference {shown(behind)}"


def _times(found: Arrival) -> str:
    return "no seed in common" if found.slower is None else f"{shown(found.slower)} times its seconds"


def _negated(measured: Measured | None) -> Measured | None:
    return None if measured is None else Measured(-measured.value, -measured.high, -measured.low)


def _by_behind(found: Standing) -> float:
    return 0.0 if found.behind is None else -found.behind.value


def _by_slower(found: Arrival) -> float:
    return 0.0 if found.slower is None else found.slower.value


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _whole(reason: str) -> str:
    """The reason as the end of a sentence."""
    return reason if reason.endswith(".") else f"{reason}."
