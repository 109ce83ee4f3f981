"""A training race as sentences, which claim only what the figures support."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import quantiles

from ppl_vae._words import listed
from ppl_vae.comparison.races.results import Arrival, RaceResults, Standing, arrived
from ppl_vae.comparison.races.runs import RaceRun
from ppl_vae.comparison.statistics.measured import negated
from ppl_vae.comparison.words import at_k, seconds_in_words, shown

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
        found += of_standings(f"After {race.equal_steps:,} steps", race.at_equal_steps())
        found += of_standings(f"After {seconds_in_words(race.equal_seconds)} of training", race.at_equal_time())
    if race.target is not None:
        found += _of_arrivals(race)
    found += _of_failures(race)
    found += [f"{u.name} does not exist at K = {u.num_particles}: {_whole(u.reason)}" for u in race.undefined]
    return found + _caveats(race)


def of_standings(
    when: str,
    standings: Sequence[Standing],
    *,
    figure: str = "log p(x)",
    name: Callable[[Standing], str] = at_k,
    most: int | None = None,
) -> list[str]:
    """Return sentences on who leads and who is behind.

    Args:
        when: The first words of each.
        standings: The contenders.
        figure: The name of what is compared.
        name: A function that names a contender.
        most: Of longer lists of contenders, name so many.
    """

    def differing(found: Standing) -> str:
        difference = "no seed in common" if found.behind is None else f"difference {shown(found.behind)}"
        return f"{name(found)} ({difference})"

    best = next((s for s in standings if s.best), None)
    if best is None:
        return []
    value, seeds = f"{shown(best.value)} nats per datum", f"{len(best.seeds)} seeds"
    others = [s for s in standings if s.value is not None and not s.best]
    if not others:
        return [f"{when}, {name(best)}'s {figure} is {value}."]
    if len(best.seeds) == 1:
        return [f"{when}, {name(best)} has the highest {figure} in this run, {value}."]
    behind = [(negated(s.behind), s) for s in others if s.behind is not None and s.behind.high < 0]
    rivals = [s for s in others if s.may_be_best]
    unclear = [s for s in others if not s.may_be_best and (s.behind is None or s.behind.high >= 0)]
    if rivals:
        said = [
            f"{when}, {name(best)} has the highest mean of {figure}, {value}, but {seeds} do not "
            f"separate it from {listed(map(differing, rivals), most)}: each of them may be the best."
        ]
    else:
        among = f" of those with {seeds}" if any(len(s.seeds) < len(best.seeds) for s in unclear) else ""
        said = [f"{when}, {name(best)} has the highest {figure}{among}, {value}."]
    if behind:
        by = [f"{name(s)} by {shown(distance)}" for distance, s in sorted(behind, key=lambda pair: pair[0].value)]
        whom = "the best, whichever it is," if rivals else name(best)
        said.append(f"{when}, behind {whom} {_are(by)} {listed(by, most)} nats per datum.")
    if unclear:
        some = listed(map(differing, unclear), most)
        said.append(f"{when}, the seeds leave open whether {some} {_are(unclear)} behind the best.")
    return said


def _of_arrivals(race: RaceResults) -> list[str]:
    arrivals, target = race.time_to(), f"the target of {race.target:g} nats per datum"
    came = [a for a in arrivals if a.seconds is not None]
    never = [at_k(a) for a in arrivals if a.seconds is None]
    if not came:
        return [f"No contender came to {target}."]
    fastest = next(a for a in came if a.fastest)
    others = [a for a in came if a is not fastest and len(fastest.per_seed) > 1]
    slower = [(a.slower, a) for a in others if a.slower is not None and a.slower.low > 1]
    rivals = [a for a in others if a.may_be_fastest]
    unclear = [a for a in others if not a.may_be_fastest and (a.slower is None or a.slower.low <= 1)]
    time = f"{shown(fastest.seconds)} seconds and {shown(fastest.steps)} steps{_in_seeds(fastest)}"
    if rivals:
        said = [
            f"{at_k(fastest)} came to {target} in {time}, the shortest mean, but the seeds do not "
            f"separate it from {listed(map(_times, rivals))}: each of them may be the fastest."
        ]
    elif others:
        fewer = any(arrived(a) < arrived(fastest) for a in unclear)
        among = f" of those that came there in {arrived(fastest)} seeds" if fewer else ""
        said = [f"{at_k(fastest)} came to {target} first{among}, in {time}."]
    else:
        said = [f"{at_k(fastest)} came to {target} in {time}."]
    if slower:
        took = [
            f"{at_k(a)} {shown(times)}{_in_seeds(a)}" for times, a in sorted(slower, key=lambda pair: pair[0].value)
        ]
        whose = "the fastest's seconds, whichever it is" if rivals else f"{at_k(fastest)}'s seconds"
        said.append(f"To the target took, as multiples of {whose}, {listed(took)}.")
    if unclear:
        some = listed(map(_times, unclear))
        said.append(f"The seeds leave open whether {some} {_are(unclear)} slower to the target than the fastest.")
    if never:
        said.append(f"{listed(never)} never came to {target}.")
    return said


def _of_failures(race: RaceResults) -> list[str]:
    failed: dict[tuple[str, int, str | None], list[RaceRun]] = {}
    for key in race.contenders:
        for run in race.runs_of(*key, failed=True):
            if run.failed:
                failed.setdefault((*key, run.reason), []).append(run)
    said = []
    for (name, k, reason), runs in failed.items():
        reached = [f"{run.final.log_evidence:.2f}" for run in runs if run.final is not None and run.final.step]
        last = f" (last seen at log p(x) = {', '.join(reached)})" if reached else ""
        seeds = f"seed{'s' * (len(runs) > 1)} {', '.join(str(run.seed) for run in runs)}"
        share = f"{len(runs)} of {len(race.runs_of(name, k, failed=True))} runs, {seeds}"
        said.append(f"{name} at K = {k} failed in {share}{last}: {_whole(reason or 'no reason was given')}")
    return said


def _caveats(race: RaceResults) -> list[str]:
    said = []
    if (planned := race.settings.get("planned_runs", 0)) > len(race.runs):
        said.append(f"The race was ended before its end: {len(race.runs)} of {planned} runs had finished.")
    if (jobs := race.machine.get("jobs", 1)) > 1:
        said.append(f"{jobs} runs shared the machine at a time, so take the times as rough.")
    if len(race.seeds) == 1:
        said.append("One seed was run, so nothing is known of how the order would change with another.")
    rough = max((run for run in race.runs if len(run.epoch_seconds) > _FEW), key=_unsteadiness, default=None)
    if rough is not None and _unsteadiness(rough) > _UNSTEADY:
        low, _, high = quantiles(rough.epoch_seconds[1:], n=4)
        said.append(
            f"The machine was not steady: a quarter of the epochs of one run took less than {low:.3g} seconds and "
            f"another more than {high:.3g}, so take the times as rough."
        )
    methods = race.methods
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


def _in_seeds(found: Arrival) -> str:
    came, started = arrived(found), len(found.per_seed)
    return "" if came == started else f" (in {came} of {started} seeds)"


def _are(some: Sequence[object]) -> str:
    return "is" if len(some) == 1 else "are"


def _times(found: Arrival) -> str:
    times = "not to be compared" if found.slower is None else f"{shown(found.slower)} times its seconds"
    return f"{at_k(found)}{_in_seeds(found)} ({times})"


def _whole(reason: str) -> str:
    """Return the reason with a full stop."""
    return f"{reason.removesuffix('.')}."
