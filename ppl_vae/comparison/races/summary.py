"""A training race as sentences, which claim only what the figures support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import quantiles

from ppl_vae.comparison.races.results import Arrival, RaceResults, Standing
from ppl_vae.comparison.races.runs import RaceRun
from ppl_vae.comparison.races.tables import methods_of, seconds_in_words, shown
from ppl_vae.comparison.statistics.measured import negated
from ppl_vae.comparison.words import listed

_FEW = 5  # epochs, too few for quartiles
_UNSTEADY = 1.25  # a greater ratio of quartiles brings a warning


def sentences_of(race: RaceResults) -> list[str]:
    """Return sentences on who leads at equal steps, at equal time and to the target, and on failures.

    Contenders are compared with the true best, which need not be the contender with the highest mean. All sentences on
    one list of standings or arrivals hold together with 95% (`seeds.beside_the_best`). A contender is called the best
    if no other may be the best, and behind the best if its interval ends below 0. For the rest, the sentences say that
    the seeds leave it open.
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
    if len(best.seeds) == 1:
        return [f"{when}, {_name(best)} has the highest log p(x) in this run, {figure}."]
    behind = sorted((s for s in others if s.behind is not None and s.behind.high < 0), key=_by_behind)
    rivals = [s for s in others if s.may_be_best]
    unclear = [s for s in others if s not in behind and s not in rivals]
    if rivals:
        some = listed([f"{_name(s)} ({_difference(s)})" for s in rivals])
        said = [
            f"{when}, {_name(best)} has the highest mean of log p(x), {figure}, but {_count(best.seeds)} do not "
            f"separate it from {some}: each of them may be the best."
        ]
    else:
        fewer = any(len(s.seeds) < len(best.seeds) for s in unclear)
        among = f" of those with {_count(best.seeds)}" if fewer else ""
        said = [f"{when}, {_name(best)} has the highest log p(x){among}, {figure}."]
    if behind:
        by = [f"{_name(s)} by {shown(None if s.behind is None else negated(s.behind))}" for s in behind]
        whom = "the best, whichever it is," if rivals else _name(best)
        said.append(f"{when}, behind {whom} {_are(behind)} {listed(by)} nats per datum.")
    if unclear:
        some = listed([f"{_name(s)} ({_difference(s)})" for s in unclear])
        said.append(f"{when}, the seeds leave open whether {some} {_are(unclear)} behind the best.")
    return said


def _of_arrivals(race: RaceResults) -> list[str]:
    arrivals, target = race.time_to(), f"{race.target:g} nats per datum"
    came = [a for a in arrivals if a.seconds is not None]
    never = [a for a in arrivals if a.seconds is None]
    if not came:
        return [f"No contender came to the target of {target}."]
    fastest = next(a for a in came if a.fastest)
    others = [a for a in came if a is not fastest and len(fastest.per_seed) > 1]
    slower = sorted((a for a in others if a.slower is not None and a.slower.low > 1), key=_by_slower)
    rivals = [a for a in others if a.may_be_fastest]
    unclear = [a for a in others if a not in slower and a not in rivals]
    time = f"{shown(fastest.seconds)} seconds and {shown(fastest.steps)} steps{_in_seeds(fastest)}"
    if rivals:
        some = listed([f"{_name(a)}{_in_seeds(a)} ({_times(a)})" for a in rivals])
        said = [
            f"{_name(fastest)} came to the target of {target} in {time}, the shortest mean, but the seeds do not "
            f"separate it from {some}: each of them may be the fastest."
        ]
    elif others:
        fewer = any(_arrived(a) < _arrived(fastest) for a in unclear)
        among = f" of those that came there in {_arrived(fastest)} seeds" if fewer else ""
        said = [f"{_name(fastest)} came to the target of {target} first{among}, in {time}."]
    else:
        said = [f"{_name(fastest)} came to the target of {target} in {time}."]
    if slower:
        took = [f"{_name(a)} {shown(a.slower)}{_in_seeds(a)}" for a in slower]
        whose = "the fastest's seconds, whichever it is" if rivals else f"{_name(fastest)}'s seconds"
        said.append(f"To the target took, as multiples of {whose}, {listed(took)}.")
    if unclear:
        some = listed([f"{_name(a)}{_in_seeds(a)} ({_times(a)})" for a in unclear])
        said.append(f"The seeds leave open whether {some} {_are(unclear)} slower to the target than the fastest.")
    if never:
        said.append(f"{listed([_name(a) for a in never])} never came to the target of {target}.")
    return said


def _of_failures(race: RaceResults) -> list[str]:
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


def _caveats(race: RaceResults) -> list[str]:
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
        said.append(f"log p(x) was not found in one way: {listed(methods)}; compare across them with care.")
    elif any("importance sampling from q" in method for method in methods):
        said.append(
            f"log p(x) is estimated by {methods[0]}: an estimator that leaves q(z|x) too narrow looks worse by it "
            "than its model is."
        )
    return said


def _unsteadiness(run: RaceRun) -> float:
    """Return the ratio of the quartiles of the epoch times, without the first epoch."""
    low, _, high = quantiles(run.epoch_seconds[1:], n=4)
    return high / low if low > 0 else math.inf


def _name(found: Standing | Arrival) -> str:
    return f"{found.name} at K = {found.num_particles}"


def _arrived(found: Arrival) -> int:
    return sum(time is not None for time in found.per_seed.values())


def _in_seeds(found: Arrival) -> str:
    came = _arrived(found)
    return "" if came == len(found.per_seed) else f" (in {came} of {len(found.per_seed)} seeds)"


def _count(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seeds"


def _are(some: Sequence[Standing] | Sequence[Arrival]) -> str:
    return "is" if len(some) == 1 else "are"


def _difference(found: Standing) -> str:
    return "no seed in common" if found.behind is None else f"difference {shown(found.behind)}"


def _times(found: Arrival) -> str:
    return "not to be compared" if found.slower is None else f"{shown(found.slower)} times its seconds"


def _by_behind(found: Standing) -> float:
    return 0.0 if found.behind is None else -found.behind.value


def _by_slower(found: Arrival) -> float:
    return 0.0 if found.slower is None else found.slower.value


def _whole(reason: str) -> str:
    """Return the reason with a full stop."""
    return reason if reason.endswith(".") else f"{reason}."
