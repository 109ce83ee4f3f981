"""Commands that ``torchrun`` starts in several processes: one speaks and writes, and the figures are one process's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import arrays_of

from ppl_vae import checkpoints
from ppl_vae._team import Team, _packed, _unpacked, sendable
from ppl_vae.cli import main, train

TRAIN = ["train", "--epochs", "2", "--seed", "0", "--compile", "off"]


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes compute on the CPU: each would take a GPU of its own, of which a machine may have fewer."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def launch(*words: str, where: Path, processes: int = 2, restarts: int = 0) -> subprocess.Popen[str]:
    """Start a command as torchrun does."""
    how = ["--nproc_per_node", str(processes), "--max_restarts", str(restarts), "-m", "ppl_vae"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", *how, *words]
    with (where / "out.txt").open("w") as out, (where / "err.txt").open("w") as err:
        return subprocess.Popen(program, cwd=where, env=environment, stdout=out, stderr=err, text=True)


def run(*words: str, where: Path) -> tuple[int, str, str]:
    """Run a command in two processes, and return its exit code and what it says."""
    code = launch(*words, where=where).wait(240)
    return code, (where / "out.txt").read_text(), (where / "err.txt").read_text()


def history(folder: Path) -> list[dict[str, float]]:
    """The figures of a run."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "rate")} for record in records]


@pytest.mark.ci
def test_one_process_speaks_and_writes_what_one_alone_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run(*TRAIN, "--out", "two", where=tmp_path)
    assert code == 0, err
    assert out.count("ELBO on validation") == 1
    assert err.count("epoch 2/2") == 1
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--out", "one"]) == 0
    for ours, alone in zip(history(tmp_path / "two"), history(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--epochs", "-1"],
        ["train", "--nonsense", "3"],
        ["score", "nowhere"],
        ["train", "--epochs", "1", "--out", "/proc/run"],
        ["train", "--epochs", "1", "--likelihood", "OptimalSigmaNormal"],
    ],
    ids=" ".join,
)
def test_an_error_is_said_once(words: list[str], tmp_path: Path) -> None:
    code, out, err = run(*words, where=tmp_path)
    assert code != 0
    assert err.count("ppl-vae: error:") == 1
    assert "process 1:" not in err
    assert not out


@pytest.mark.slow
def test_a_restart_leaves_an_older_run_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start is refused, since the folder holds a run, and so is the second."""
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--out", "run"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert launch("train", "--epochs", "4", "--out", "run", where=tmp_path, restarts=1).wait(240) != 0
    assert (tmp_path / "err.txt").read_text().count("already holds a run") == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_only_the_run_of_the_same_launch_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"data": {"x_shape": [2], "fingerprint": ""}}
    for name, launch in (("run", None), ("run-2", "ours"), ("other", "theirs")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({**facts, **({"launch": launch} if launch else {})}))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    assert train._last_run(tmp_path / "run", numbered=True) == tmp_path / "run-2"
    assert train._last_run(tmp_path / "run", numbered=False) is None
    assert train._last_run(tmp_path / "other", numbered=False) is None


@pytest.mark.slow
def test_evaluation_is_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--out", "run"]) == 0
    for number, words in enumerate(
        [
            ["score", "run", "--out", "{}.npz"],
            ["encode", "run", "--out", "{}.npz", "--split", "all"],
            ["score", "run", "--split", "all", "--evidence", "importance", "--particles", "20", "--out", "{}.npz"],
        ]
    ):
        code, _, err = run(*(word.format(f"two{number}") for word in words), where=tmp_path)
        assert code == 0, err
        assert main([word.format(f"one{number}") for word in words]) == 0
        two, one = arrays_of(f"two{number}.npz"), arrays_of(f"one{number}.npz")
        assert two.keys() == one.keys()
        for name in one:
            if name != "error":  # a quadrature's grids are shared by other data
                np.testing.assert_allclose(two[name], one[name], rtol=1e-9) if one[name].dtype.kind == "f" else (
                    np.testing.assert_array_equal(two[name], one[name])
                )
    options = ["--gaps", "20", "--importance", "20", "--imputation", "20"]
    code, _, err = run("evaluate", "run", "--out", "two", *options, where=tmp_path)
    assert code == 0, err
    assert main(["evaluate", "run", "--out", "one", *options]) == 0
    two, one = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("two", "one"))
    assert two["figures"].pop("log_evidence_error")["value"] < 1e-3 > one["figures"].pop("log_evidence_error")["value"]
    assert two["figures"] == one["figures"]
    assert two["notes"] == one["notes"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_process_ends_the_run_within_seconds_with_a_checkpoint(
    rank: int, restarts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = "40"
    words = ["train", "--epochs", epochs, "--seed", "0", "--compile", "off", "--checkpoint_every", "10000"]
    launched = launch(*words, "--out", "run", where=tmp_path, restarts=restarts)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 5):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(_process(launched.pid, rank), signal.SIGKILL)
    began = time.monotonic()
    code = launched.wait(240)
    if not restarts:
        assert code != 0
        assert time.monotonic() - began < 30
        assert checkpoints.load(tmp_path / "run")["epoch"] >= 4
        return
    assert code == 0, (tmp_path / "err.txt").read_text()
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--out", "alone"]) == 0
    assert len(history(tmp_path / "run")) == int(epochs)
    assert history(tmp_path / "run")[-1] == pytest.approx(history(tmp_path / "alone")[-1], rel=1e-5)


def _process(parent: int, rank: int) -> int:
    """The process of a rank, among those that a process has started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "status").read_text()
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"\nPPid:\t{parent}\n" in status and f"RANK={rank}".encode() in environment:
            return int(path.name)
    raise AssertionError(f"no process of rank {rank}")


def test_what_processes_send_arrives() -> None:
    class Odd(Exception):  # noqa: N818
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    assert str(_unpacked(_packed(sendable(Odd(1, 2))))) == "Odd: 1 and 2"
    assert str(_unpacked(_packed(sendable(ValueError("no"))))) == "no"
    value = {"a": torch.ones(2, requires_grad=True) * 2, "b": None}
    assert _unpacked(_packed(value))["a"].tolist() == [2, 2]


def test_tasks_are_done_in_turn_and_errors_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    assert Team().share([lambda: 1, lambda: 2]) == [1, 2]
    assert Team().gather("a") == ["a"]
    with pytest.raises(ValueError, match="no"):
        Team().share([fail])


@pytest.mark.parametrize("total", range(1, 9))
@pytest.mark.parametrize("processes", range(1, 6))
def test_the_rows_of_a_team_cover_a_batch_without_overlap(total: int, processes: int) -> None:
    team = [Team(rank, processes) for rank in range(processes)]
    rows = [list(member.rows(total)) for member in team]
    assert [row for own in rows for row in own] == list(range(total))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    for member, own in zip(team, rows, strict=True):
        assert list(member.taken(total)) == (own or [0])
