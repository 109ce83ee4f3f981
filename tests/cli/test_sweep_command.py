"""``ppl-vae sweep``: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest

from ppl_vae import cli
from ppl_vae.cli.signals import Signals

PLAN = """
base: {epochs: 1, likelihood.network.hidden: [8], posterior.network.hidden: [8], compile: 'off'}
seeds: 2
grid: {prior: [StandardNormal, Laplace]}
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(PLAN)
    with mock.patch("ppl_vae.runs.folder.draw", return_value=[]):
        yield


def test_help_and_a_dry_run_write_nothing(capsys):
    assert cli.main(["sweep", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: ppl-vae sweep SWEEP.yaml")
    assert "--dry_run" in out
    assert cli.main(["sweep", "plan.yaml", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prior=StandardNormal,seed=0  to begin"
    assert lines[-1] == "4 runs in runs/plan; nothing was trained"
    assert [path.name for path in Path().iterdir()] == ["plan.yaml"]


@pytest.mark.ci
def test_a_sweep_from_the_command_line(capsys):
    assert cli.main(["sweep", "plan.yaml", "--threads", "1"]) == 0
    printed = capsys.readouterr()
    assert "plan: 2 settings, seeds 0, 1" in printed.out
    assert "4 of 4: prior=Laplace,seed=1: finished" in printed.err
    folder = Path("runs/plan")
    assert {"summary.txt", "sweep.csv", "sweep.json", "sweep.png", "sweep.yaml"} <= {p.name for p in folder.iterdir()}
    content = json.loads((folder / "sweep.json").read_text())
    assert content["plan"] == "plan.yaml"
    assert [run["state"] for run in content["runs"]] == ["finished"] * 4
    assert cli.main(["show", *(str(path) for path in sorted(folder.glob("prior=*")))]) == 0
    capsys.readouterr()
    assert cli.main(["sweep", "plan.yaml", "--dry_run"]) == 0
    assert "prior=Laplace,seed=1  finished" in capsys.readouterr().out
    (folder / "prior=Laplace,seed=0" / "result.json").unlink()
    (folder / "prior=Laplace,seed=0" / "checkpoint.pt").write_bytes(b"no checkpoint")
    assert cli.main(["sweep", "plan.yaml"]) == 1
    printed = capsys.readouterr()
    assert "3 of 4 runs are there already" in printed.err
    assert "failed: prior=Laplace,seed=0: " in printed.out
    assert "prior=Laplace failed in 1 of 2 runs" in printed.out


def test_a_signal_ends_it_and_says_how_to_go_on(capsys, monkeypatch):
    class Seen(Signals):
        def __enter__(self):
            self.seen = 15
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("ppl_vae.cli.sweep.Signals", Seen)
    import ppl_vae.sweeps.training as training

    monkeypatch.setattr(training.StopFile, "__call__", lambda self: True)
    assert cli.main(["sweep", "plan.yaml"]) == 128 + 15
    printed = capsys.readouterr().out
    assert "not finished: 4 of 4 runs" in printed
    assert "continue with: ppl-vae sweep plan.yaml --out runs/plan" in printed


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sweep", "sweep was given no plan"),
        ("sweep nowhere.yaml", "there is no file nowhere.yaml"),
        ("sweep plan.yaml plan.yaml", "expected one at most"),
        (
            "sweep plan.yaml --job 2",
            "--job is unknown; sweep takes --out, --jobs",
        ),
        ("sweep plan.yaml --jobs 0", "--jobs is 0; expected a positive integer, or -1"),
        ("sweep plan.yaml --jobs -2", "--jobs is -2"),
        ("sweep plan.yaml --jobs two", "--jobs is 'two'"),
        ("sweep plan.yaml --threads 0", "--threads is 0; expected a positive integer"),
        ("sweep plan.yaml --dry_run=1", "expected --dry_run alone"),
        ("sweep plan.yaml --out plan.yaml", "is a file; expected a folder"),
        ("sweep plan.yaml --out .", "holds something else than a sweep"),
    ],
)
def test_what_it_refuses(line, said, capsys):
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
