"""The results of a sweep: what is said of settings, and what is not, from runs that are made up."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ppl_vae import plots
from ppl_vae.comparison.statistics.seeds import beside_the_best
from ppl_vae.comparison.sweeps import Sweep, SweepRun


def run_of(label: str, seed: int, elbo: float | None, **more) -> SweepRun:
    figures = {} if elbo is None else {"validation_elbo": elbo, "validation_bound": elbo, "elbo": elbo + 1}
    state = "failed" if elbo is None else "finished"
    made = SweepRun(
        f"{label},seed={seed}", label, {"prior": label}, seed, state, "diverged" if elbo is None else None, figures,
        2, 3.0, f"out/{label}", "abc", None, "Bernoulli",
    )  # fmt: skip
    return replace(made, **more)


def sweep_of(values: dict[str, list[float | None]]) -> Sweep:
    return Sweep(tuple(run_of(n, s, v) for n, own in values.items() for s, v in enumerate(own)), ("prior",))


CLEAR = {"A": [-10.0, -11.0, -12.0], "B": [-20.1, -21.0, -21.9], "C": [-10.2, -11.3, -11.9]}


def test_standings_are_those_of_the_race():
    standings = sweep_of(CLEAR).standings()
    found = beside_the_best(np.array(list(CLEAR.values())))
    for i, standing in enumerate(standings):
        assert standing.value.value == pytest.approx(np.mean(CLEAR[standing.name]), rel=1e-12)
        assert standing.may_be_best == found.may_be_best[i]
        if not standing.best:
            assert standing.behind == pytest.approx((found.difference[i], found.low[i], found.high[i]), rel=1e-12)
    assert [s.name for s in standings if s.best] == ["A"]


def test_sentences_say_what_the_seeds_show_and_what_they_can_show():
    said = " ".join(sweep_of(CLEAR).sentences())
    assert "A has the highest mean of ELBO on validation data, -11.00" in said
    assert "3 seeds do not separate it from C" in said
    assert "behind the best, whichever it is, is B by 10.0" in said
    half = stats.t.ppf(1 - 0.05 / 4, 2) / math.sqrt(3)
    assert f"only if they differ by {half:.1f} standard deviations" in said
    alone = " ".join(sweep_of({"A": [-1.0], "B": [-2.0]}).sentences())
    assert "A has the highest ELBO on validation data in this run" in alone
    assert "One seed was run, so nothing is known of how the order would change" in alone


def test_many_rivals_are_counted_and_not_listed():
    some = {f"s{i}": [float(v) for v in np.random.default_rng(i).normal(size=3)] for i in range(20)}
    said = sweep_of(some).sentences()[0]
    assert re.search(r"and 1\d more: each of them may be the best", said)
    assert said.count("difference") == 5


def test_failures_are_shown_and_count_in_no_figure():
    found = sweep_of({"A": [-10.0, -11.0, -12.0], "B": [-9.0, None, -9.5], "C": [None] * 3})
    assert found.figure("validation_elbo")["B", 1] == {0: -9.0, 2: -9.5}
    table = found.table()
    assert "failed: B,seed=1: diverged" in table
    assert [line.split()[:2] for line in table.splitlines()[1:4]] == [["B", "2/3"], ["A", "3/3"], ["C", "0/3"]]
    assert "B failed in 1 of 3 runs, so its figures are of the other seeds." in found.sentences()
    assert "C failed in all of its runs." in found.sentences()
    assert next(s for s in found.standings() if s.best).name == "A"  # B has fewer seeds
    nothing = sweep_of({"A": [None]})
    assert nothing.sentences()[0] == "No run finished, so there is nothing to compare."
    assert "failed: A,seed=0: diverged" in nothing.table()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"fingerprint": "other"}, "different data"),
        ({"caveat": "grey values under a Bernoulli"}, "no likelihoods, so they are not compared: grey values"),
        ({"likelihood": "Normal"}, "different likelihoods (Bernoulli and Normal)"),
    ],
)
def test_what_is_not_compared(more, said):
    found = sweep_of(CLEAR)
    found = replace(found, runs=(*found.runs[:-1], replace(found.runs[-1], **more)))
    assert said in found.incomparable
    assert "behind the best" not in found.table()
    assert [s for s in found.sentences() if "best" in s] == []
    plots.sweep_results(found)


def test_without_validation_data_the_training_elbo_counts():
    found = sweep_of({"A": [-1.0, -2.0], "B": [-3.0, -4.5]})
    runs = tuple(replace(run, figures={"elbo": run.figures["elbo"]}) for run in found.runs)
    found = replace(found, runs=runs)
    assert found.measure == "elbo"
    assert "ELBO on training data, 0" not in found.table()
    assert "ELBO, training" in found.table()


def test_lines_are_narrow_whatever_the_labels():
    label = "prior=VampPrior num_components=500 likelihood.network.hidden=[500, 300, 150] optimizer.lr=0.0012345"
    found = sweep_of({label: [-10.0, -11.0], label * 2: [-20.0, -21.5]})
    assert max(map(len, found.table().splitlines())) <= 120
    assert plots.sweep_results(found).axes[0].get_yticklabels()[1].get_text().endswith("…")


def test_json_and_csv_hold_every_run():
    found = sweep_of({"A": [-10.0, None], "B": [-9.0, 5.0]})
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [run["figures"].get("validation_elbo") for run in content["runs"]] == [-10.0, None, -9.0, 5.0]
    assert content["measure"] == "validation_elbo"
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["prior"] for row in rows] == ["A", "A", "B", "B"]
    assert [row["state"] for row in rows] == ["finished", "failed", "finished", "finished"]


def test_the_picture_has_a_row_for_each_setting():
    found = sweep_of(CLEAR)
    (axes,) = plots.sweep_results(found).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "C", "B"]
    filled = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert [colour == "#FFFFFF" for colour in filled] == [False, False, True]  # B is behind
    many = sweep_of({f"s{i}": [float(-i), -i - 0.5] for i in range(50)})
    figure = plots.sweep_results(many)
    assert len(figure.axes[0].get_yticklabels()) == 40
    assert "best 40 of 50" in " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    with pytest.raises(ValueError, match="none of 1 runs finished"):
        plots.sweep_results(sweep_of({"A": [None]}))


def without_elbo(label: str) -> SweepRun:
    """A run whose objective knows no ELBO, as Pyro's TraceEnum_ELBO."""
    return run_of(label, 0, -1.0, figures={"bound": -1.0, "validation_bound": -1.0})


def test_settings_without_an_elbo_stand_beside_the_others_and_are_not_compared():
    found = Sweep((run_of("A", 0, -10.0), run_of("B", 0, -12.0), without_elbo("C")), ("prior",))
    assert found.measure == "validation_elbo"
    head, *lines = found.table().splitlines()
    assert "ELBO, validation" in head
    assert "behind the best" in head
    assert "ELBO, training" not in head
    assert [line.split()[:3] for line in lines[:3]] == [["A", "1/1", "-10"], ["B", "1/1", "-12"], ["C", "1/1", "-"]]
    assert "No ELBO is known of C, by which to compare." in found.sentences()


def test_a_sweep_of_which_no_elbo_is_known_has_a_table():
    found = Sweep((without_elbo("A"), without_elbo("B")), ("prior",))
    assert "behind the best" not in found.table()
    assert found.sentences()[0] == "No ELBO is known of A and B, by which to compare."
    with pytest.raises(ValueError, match="none of 2 runs finished with an ELBO"):
        plots.sweep_results(found)


def test_a_setting_called_like_another_column_has_one_of_its_own():
    runs = tuple(run_of(f"epochs={n}", 0, -1.0, setting={"epochs": n}, epochs=7) for n in ("10", "20"))
    lines = list(csv.DictReader(io.StringIO(Sweep(runs, ("epochs",)).to_csv())))
    assert [(line["setting.epochs"], line["epochs"]) for line in lines] == [("10", "7"), ("20", "7")]
