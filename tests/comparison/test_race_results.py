"""What a race says of its curves, on hand-made runs: interpolation, intervals, arrivals, tables, sentences."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ppl_vae.comparison.contenders import Undefined
from ppl_vae.comparison.races.outcome import Race
from ppl_vae.comparison.races.runs import Point, RaceRun

SETTINGS = {
    "steps": 20,
    "epochs": 2,
    "batch_size": 128,
    "split": "validation",
    "evaluation_size": 100,
}


def run(name, seed, values, *, seconds=(0.0, 1.0, 2.0), k=8, method="quadrature", kind="exact", **more):
    """A run looked at every ten steps."""
    points = tuple(
        Point(i, 10 * i, float(t), v, 0.01, v - 1, None if i == 0 else v - 0.5)
        for i, (t, v) in enumerate(zip(seconds, values, strict=False))
    )
    return RaceRun(name, k, seed, points, method, kind, steps=10 * (len(points) - 1), **more)


def race(*runs, target=None, undefined=()):
    return Race(runs, tuple(undefined), target, SETTINGS, {"device": "cpu"}, 9.0)


# A is ahead of B by 1.0, 1.1, 0.9 at the end, though the seeds move both by tens
SEEDS = {0: -40.0, 1: -60.0, 2: -50.0}
AHEAD = {0: 1.0, 1: 1.1, 2: 0.9}
TWO = race(
    *(run("A", s, [v - 9, v - 4, v]) for s, v in SEEDS.items()),
    *(run("B", s, [v - 9, v - 6, v - AHEAD[s]], seconds=(0, 4, 8)) for s, v in SEEDS.items()),
)


def test_equal_steps_are_the_last_common_ones_and_differences_are_paired():
    a, b = TWO.at_equal_steps()
    assert (TWO.equal_steps, a.best, a.behind, b.best) == (20, True, None, False)
    mean, sem = np.mean(list(SEEDS.values())), stats.sem(list(SEEDS.values()))
    assert a.value == pytest.approx((mean, *stats.t.interval(0.95, 2, mean, sem)), rel=1e-10)
    oracle = stats.ttest_1samp([-1.0, -1.1, -0.9], 0).confidence_interval(0.95)
    assert b.behind == pytest.approx((-1.0, oracle.low, oracle.high), rel=1e-10)
    assert b.behind.high < 0 < b.value.high - a.value.low  # their own intervals overlap, the paired one excludes 0


def test_at_an_earlier_step_curves_are_linear_between_looks():
    a, b = TWO.at_equal_steps(15)
    assert a.value.value == pytest.approx(-50 - 2, rel=1e-12)
    assert b.behind.value == pytest.approx(-1.5, rel=1e-12)  # -(6 + 1)/2 on average, and -2


def test_equal_time_is_what_the_fastest_run_took():
    a, b = TWO.at_equal_time()
    assert TWO.equal_seconds == 2.0
    assert a.value.value == pytest.approx(-50)
    assert b.value.value == pytest.approx(-50 - 7.5)  # half-way to its first look
    late_a, late_b = TWO.at_equal_time(4.0)
    assert late_a.value is None  # its runs do not go so far, and nothing is made up
    assert late_a.seeds == ()
    assert late_b.value.value == pytest.approx(-56)


def test_with_several_contenders_intervals_hold_for_all_at_once():
    three = race(*TWO.runs, *(run("C", s, [v - 9, v - 9, v - 3 + 0.1 * s]) for s, v in SEEDS.items()))
    b = three.at_equal_steps()[1]
    low, high = stats.t.interval(1 - 0.05 / 2, 2, -1.0, 0.1 / math.sqrt(3))
    assert b.behind == pytest.approx((-1.0, low, high), rel=1e-10)


def test_time_to_a_target_by_hand():
    a, b = TWO.time_to(-55.0)
    # A: from v - 9 over v - 4 to v. v = -40: there from the start; -60: never above -60; -50: -59, -54, -50
    assert a.per_seed == {0: (0.0, 0.0), 1: None, 2: (pytest.approx(0.8), pytest.approx(8.0))}
    assert b.per_seed[2] == (pytest.approx(4 + 4 * 1 / 5.1), pytest.approx(10 + 10 * 1 / 5.1))
    assert a.seconds.value == pytest.approx(0.4)  # a plain mean, since one is zero
    assert (a.fastest, b.fastest) == (True, False)
    assert [x.seconds for x in TWO.time_to(-1.0)] == [None, None]
    with pytest.raises(ValueError, match="no target"):
        TWO.time_to()


def test_how_many_times_slower_is_paired_and_geometric():
    found = race(
        *(run("A", s, [-9, -5, -1], seconds=(0, t, 2 * t)) for s, t in enumerate((1.0, 10.0, 100.0))),
        *(run("B", s, [-9, -5, -1], seconds=(0, t, 2 * t)) for s, t in enumerate((2.1, 20.0, 190.0))),
        target=-5.0,
    )
    a, b = found.time_to()
    ratio = stats.ttest_1samp(np.log([2.1, 2.0, 1.9]), 0).confidence_interval(0.95)
    assert b.slower.value == pytest.approx((2.1 * 2.0 * 1.9) ** (1 / 3))
    assert b.slower[1:] == pytest.approx((math.exp(ratio.low), math.exp(ratio.high)))
    assert a.seconds.value == pytest.approx(10)
    assert a.steps == pytest.approx((10, 10, 10))
    said = " ".join(found.sentences())
    assert "A at K = 8 came to the target of -5 nats per datum first" in said
    assert "as multiples of A at K = 8's seconds, B at K = 8 1.99" in said


def test_a_band_is_the_interval_over_seeds_at_each_look():
    band = TWO.band("A", 8)
    assert band.x == [0, 10, 20]
    assert band.value == pytest.approx([-59, -54, -50])
    low, high = stats.t.interval(0.95, 2, -50, stats.sem([-40, -60, -50]))
    assert (band.low[-1], band.high[-1]) == pytest.approx((low, high))
    timed = TWO.band("B", 8, "seconds", num_points=5)
    assert timed.x == [0, 2, 4, 6, 8]
    assert timed.value[1] == pytest.approx(-57.5)
    assert TWO.band("Z", 8).x == []


def test_sentences_claim_what_the_seeds_separate():
    said = TWO.sentences()
    assert said[0].startswith("After 20 steps, A at K = 8 has the highest log p(x), -50")
    assert said[1].startswith("After 20 steps, behind A at K = 8 is B at K = 8 by 1.0")
    assert said[2].startswith("After 2 s of training, A at K = 8 has the highest log p(x)")


def test_sentences_say_where_the_seeds_do_not_separate():
    near = race(
        *(run("A", s, [v - 9, v]) for s, v in SEEDS.items()),
        *(run("B", s, [v - 9, v + d]) for (s, v), d in zip(SEEDS.items(), (-1.0, 1.1, -0.3), strict=True)),
        target=-1.0,
    )
    said = near.sentences()
    assert "A at K = 8 has the highest mean of log p(x)" in said[0]
    assert "3 seeds do not separate it from B at K = 8 (difference -0.07" in said[0]
    assert not any("behind" in s or "first" in s for s in said)
    assert said[-1] == "No contender came to the target of -1 nats per datum."


def test_one_seed_supports_no_claim_beyond_itself():
    one = race(run("A", 0, [-9, -4]), run("B", 0, [-9, -5]), target=-5.0)
    assert math.isinf(one.at_equal_steps()[1].behind.low)
    said = one.sentences()
    assert said[0] == "After 10 steps, A at K = 8 has the highest log p(x) in this run, -4 nats per datum."
    assert not any("behind" in s or "separate" in s or "first" in s for s in said)
    assert said[-1].startswith("One seed was run")
    assert "one seed" in one.table()


def test_runs_that_failed_are_named_and_count_in_no_figure():
    lost = {"stopped": "failed", "reason": "diverged at step 13: the loss is nan"}
    found = race(*TWO.runs, run("C", 0, [-49, -20], **lost), *(run("C", s, [], **lost) for s in (1, 2)), target=-21.0)
    assert found.equal_steps == 20
    c = found.at_equal_steps()[2]
    assert (c.value, c.behind, c.seeds) == (None, None, ())
    assert found.time_to()[2].per_seed[0] is not None  # it came there before it failed
    said = [s for s in found.sentences() if "failed" in s]
    runs = "C at K = 8 failed in 3 of 3 runs, seeds 0, 1, 2 (last seen at log p(x) = -20.00)"
    assert said == [f"{runs}: diverged at step 13: the loss is nan."]
    assert found.table().count("failed: C at K = 8, seed") == 3
    nothing = race(run("C", 0, [], **lost))
    assert (nothing.equal_steps, nothing.at_equal_time()[0].value) == (None, None)
    assert "failed" in nothing.table()


def test_one_that_survived_on_an_easy_seed_is_not_the_best():
    lost = {"stopped": "failed", "reason": "no"}
    lucky = [run("C", 0, [-49, -41, -38.0]), run("C", 1, [], **lost), run("C", 2, [], **lost)]
    found = race(*TWO.runs, *lucky)
    a, _, c = found.at_equal_steps()
    assert a.best
    assert c.behind == (2.0, -math.inf, math.inf)


def test_two_ways_to_log_p_are_told_apart():
    found = race(run("A", 0, [-9, -4]), run("B", 0, [-9, -5], method="importance sampling from q(z|x)", kind="lower"))
    assert any("not found in one way: quadrature (exact) and importance" in s for s in found.sentences())
    alone = race(run("B", 0, [-9, -5], method="importance sampling from q(z|x), K = 10", kind="lower"))
    assert any("leaves q(z|x) too narrow" in s for s in alone.sentences())


def test_an_unsteady_machine_is_told_of():
    first, *rest = TWO.runs
    steady = race(*(replace(r, epoch_seconds=(9.0, 1.0, 1.1, 1.0, 1.05, 1.1)) for r in TWO.runs))
    assert not any("not steady" in s for s in steady.sentences())
    shaken = race(replace(first, epoch_seconds=(9.0, 1.0, 1.0, 2.0, 2.0, 2.0)), *rest)
    assert "took less than 1 seconds and another more than 2, so take the times as rough." in shaken.sentences()[-1]


def test_json_and_csv_hold_everything_and_come_back():
    found = race(
        *TWO.runs,
        run("C, with a comma", 0, [], stopped="failed", reason='said "no"'),
        target=-55.0,
        undefined=[Undefined("VIMCO", 1, "VIMCO: num_particles is 1; expected at least 2")],
    )
    text = json.dumps(found.to_dict(), allow_nan=False)
    back = Race.from_dict(json.loads(text))
    assert back == found
    assert back.sentences() == found.sentences()
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(lines) == 6 * 3 + 1
    points = [p for r in found.runs for p in r.points]
    for line, point in zip(lines, points, strict=False):
        assert (int(line["step"]), float(line["seconds"])) == (point.step, point.seconds)
        assert (float(line["log_evidence"]), float(line["elbo"])) == (point.log_evidence, point.elbo)
        assert line["bound"] == ("" if point.bound is None else str(point.bound))
    assert (lines[-1]["name"], lines[-1]["reason"], lines[-1]["step"]) == ("C, with a comma", 'said "no"', "")
    assert "VIMCO does not exist at K = 1: VIMCO: num_particles is 1; expected at least 2." in found.sentences()


def test_the_table_fits_a_terminal():
    long = "REINFORCE(baseline=moving_average, decay=0.99)"
    found = race(*TWO.runs, *(run(long, s, [v, v + 1e-3, v + 1]) for s, v in SEEDS.items()), target=-55.0)
    lines = found.table().splitlines()
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("REINFORCE(baseline=moving_ave...") for line in lines) == 3
    assert str(found) == found.table()
    assert [line.split()[0] for line in lines if line.startswith(("after", "to "))] == ["after", "after", "to"]
