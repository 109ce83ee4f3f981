"""A sweep in this process: folders as train makes them, taken up where they stopped, and failures that stop nobody."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from short_runs import without_pictures

from ppl_vae import _files, checkpoints, cli, sweeps
from ppl_vae.sweeps import training
from ppl_vae.sweeps.sweep import sweep

SMALL = "likelihood.network.hidden: [8], posterior.network.hidden: [8], compile: 'off'"
PLAN = f"base: {{epochs: 2, {SMALL}}}\nseeds: 2\ngrid: {{optimizer.lr: [1e-3, 1e-2]}}\n"


def diverging(log_weights):
    """A bound that is not a number once the model has learnt a little."""
    log_w = log_weights.log_w.mean(0)
    return log_w * (math.nan if DIVERGE["now"] else 1.0)


DIVERGE = {"now": True}


@pytest.fixture(autouse=True)
def no_pictures():
    with mock.patch("ppl_vae.runs.folder.draw", return_value=[]):
        yield


@pytest.fixture
def plan(tmp_path):
    def make(text: str = PLAN) -> Path:
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        return path

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / "checkpoint.pt")["modules"][0]


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.ci
def test_a_run_is_that_of_train(plan, tmp_path):
    found = sweep(plan(), tmp_path / "out")
    assert [run.state for run in found.runs] == ["finished"] * 4
    argv = "--epochs 2 --likelihood.network.hidden [8] --posterior.network.hidden [8] --compile off"
    own = tmp_path / "own"
    more = ["--optimizer.lr", "1e-2", "--seed", "1", "--out", str(own), "--threads", "1"]
    with without_pictures():
        assert cli.main(["train", *argv.split(), *more]) == 0
    last = Path(found.runs[-1].folder)
    assert last.name == "lr=0.01,seed=1"
    assert same(last, own)
    assert (last / "config.yaml").read_text() == (own / "config.yaml").read_text()
    assert {path.name.split(".")[0] for path in last.iterdir()} == {path.name.split(".")[0] for path in own.iterdir()}
    result = json.loads((own / "result.json").read_text())
    assert found.runs[-1].figures["validation_elbo"] == result["validation_elbo"]


@pytest.mark.ci
def test_what_is_over_is_kept_and_what_was_interrupted_goes_on(plan, tmp_path):
    whole = sweep(plan(), tmp_path / "whole")
    calls = []

    def stop_in_the_second_run() -> bool:
        calls.append(1)
        return (tmp_path / "out" / "lr=0.001,seed=1" / "metrics.jsonl").is_file()

    at_once = mock.patch("ppl_vae.sweeps.training._LOOK_EVERY", 0.0)  # the stop file is seen after the step
    with at_once, mock.patch("ppl_vae.training.loop.Loop.tell", _slowly):
        first = sweep(plan(), tmp_path / "out", stop=stop_in_the_second_run)
    states = [run.state for run in first.runs]
    assert states[:2] == ["finished", "interrupted"]
    assert states[2:] == ["interrupted"] * 2
    assert "not finished: 3 of 4 runs" in first.table()
    kept = (tmp_path / "out" / "lr=0.001,seed=0" / "result.json").stat().st_mtime_ns
    said = []
    second = sweep(plan(), tmp_path / "out", progress=said.append)
    assert said[0] == "1 of 4 runs are there already"
    assert (tmp_path / "out" / "lr=0.001,seed=0" / "result.json").stat().st_mtime_ns == kept
    assert len(second.finished) == 4
    for run in whole.runs:
        assert same(Path(run.folder), tmp_path / "out" / run.name)
    assert second.table().splitlines()[0] == whole.table().splitlines()[0]
    third = sweep(plan(), tmp_path / "out", progress=said.append)
    assert said[-1] == "4 of 4 runs are there already"
    assert third.figure("validation_elbo") == second.figure("validation_elbo") == whole.figure("validation_elbo")


def _slowly(self, event, *arguments):
    """Give the watcher time to see that the run has begun, after its first epoch."""
    for callback in self.callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            self.svi.begin_stretch()
            method(*arguments)
    if event == "on_epoch":
        time.sleep(0.4)


@pytest.mark.ci
def test_a_plan_may_only_get_further_runs(plan, tmp_path):
    sweep(plan(), tmp_path / "out")
    more = PLAN.replace("seeds: 2", "seeds: 3").replace("1e-2]", "1e-2], batch_size: [128]")
    said = []
    found = sweep(plan(more), tmp_path / "out", progress=said.append)
    assert said[0] == "4 of 6 runs are there already"
    assert len(found.finished) == 6
    with pytest.raises(ValueError, match="holds 6 runs that the plan does not have any more"):
        sweep(plan(PLAN.replace("epochs: 2", "epochs: 3")), tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds 2 runs that the plan does not have any more, such as lr=0.001,seed=2"):
        sweep(plan(), tmp_path / "out")


@pytest.mark.ci
def test_a_folder_of_other_settings_is_refused(plan, tmp_path):
    sweep(plan(), tmp_path / "out")
    path = tmp_path / "out" / "lr=0.01,seed=1" / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
    with pytest.raises(ValueError, match=r"holds a run of other settings \(epochs\)"):
        sweep(plan(), tmp_path / "out")


def test_a_folder_that_holds_something_else_is_refused(plan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else than a sweep"):
        sweep(plan(), tmp_path / "out")


@pytest.mark.ci
def test_two_sweeps_in_one_folder_are_refused(plan, tmp_path):
    (tmp_path / "out").mkdir()
    lock = _files.Lock(tmp_path / "out")
    with pytest.raises(FileExistsError, match="another process writes to"):
        sweep(plan(), tmp_path / "out")
    lock.release()
    assert len(sweep(plan(), tmp_path / "out").finished) == 4


def test_a_setting_that_cannot_be_trained_is_refused_before_any_is(plan, tmp_path):
    text = f"base: {{epochs: 1, {SMALL}}}\nseeds: 1\ngrid: {{epochs: [1, 0]}}"
    with pytest.raises(ValueError, match="epochs=0: epochs is 0; expected a positive integer"):
        sweep(plan(text), tmp_path / "out")
    text = f"base: {{epochs: 1, {SMALL}}}\nseeds: 1\ngrid: {{posterior: [DiagonalNormal, OneHotCategorical]}}"
    with pytest.raises(ValueError, match="posterior=OneHotCategorical: "):
        sweep(plan(text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.ci
def test_a_run_that_diverges_is_shown_and_tried_again(plan, tmp_path, monkeypatch):
    text = PLAN.replace("grid: {", "grid: {objective: [ELBO, test_sweep.diverging], ").replace("[1e-3, 1e-2]", "[1e-3]")
    from ppl_vae.configuration import foreign

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import test_sweep

    monkeypatch.setitem(test_sweep.DIVERGE, "now", False)
    with foreign.answering(lambda *_: True):
        plan = sweeps.read(plan(text))
    rehearsal = mock.patch("ppl_vae.sweeps.sweep.rehearse")
    test_sweep.DIVERGE["now"] = True
    with rehearsal:
        found = sweep(plan, tmp_path / "out")
    assert [run.state for run in found.runs] == ["finished", "finished", "failed", "failed"]
    assert "diverged" in found.failed[0].reason
    table = found.table()
    assert "failed: objective=test_sweep.diverging,seed=0: training diverged at step " in table
    assert "objective=test_sweep.diverging failed in all of its runs." in found.sentences()
    assert (Path(found.failed[0].folder) / "last_good.pt").exists()
    test_sweep.DIVERGE["now"] = False
    with rehearsal:
        again = sweep(plan, tmp_path / "out")
    assert [run.state for run in again.runs] == ["finished"] * 4
    folder = Path(again.runs[2].folder)
    assert not (folder / "last_good.pt").exists()
    assert len(list(folder.glob("events.out.*"))) == 1
    assert again.runs[2].figures["validation_elbo"] == pytest.approx(again.runs[0].figures["validation_elbo"], rel=1e-5)


def test_a_signal_to_a_worker_ends_its_run_after_its_step(tmp_path, monkeypatch):
    path, killed = tmp_path / ".stop", []
    monkeypatch.setattr(training, "_PARENT_WITHIN", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "kill", lambda *how: killed.append(how))
    for both in (True, False):  # the parent got it too, or this process alone
        path.touch() if both else path.unlink()
        stop = training.StopFile(str(path), in_worker=True)
        with training._signals(stop):
            signal.raise_signal(signal.SIGINT)
            assert not stop.seen
            signal.raise_signal(signal.SIGTERM)
            assert stop()
        assert killed == ([] if both else [(os.getpid(), signal.SIGTERM)])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_whose_parent_died_ends_its_run(tmp_path, monkeypatch):
    stops = [training.StopFile(str(tmp_path / ".stop"), in_worker) for in_worker in (True, False)]
    monkeypatch.setattr(training, "_LOOK_EVERY", 0.0)
    assert not any(stop() for stop in stops)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    stops.append(training.StopFile(str(tmp_path / ".stop"), in_worker=True))  # of the next run
    assert [stop() for stop in stops] == [True, False, True]


@pytest.mark.parametrize("jobs", [0, -2, 1.5, "2", True])
def test_jobs_that_mean_nothing(plan, tmp_path, jobs):
    with pytest.raises(ValueError, match=r"jobs is .*; expected a positive integer, or -1"):
        sweep(plan(), tmp_path / "out", jobs=jobs)


def test_a_run_without_its_facts_is_not_resumed(tmp_path, monkeypatch):
    """Nothing says then that the data are those of its checkpoint."""
    monkeypatch.setattr(training, "check_same", lambda folder, settings: None)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        training._state_of(tmp_path, None)
