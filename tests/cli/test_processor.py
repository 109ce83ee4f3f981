"""Where and with what a command computes: the device of a run's model, threads, denormals, a busy CPU."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import arrays_of
from short_runs import without_pictures
from stand_in import pretends, stand_in

from ppl_vae import cli, load_run
from ppl_vae.cli import processor

TRAIN = ["train", "--epochs", "1", "--compile", "off", "--device", "cpu"]
SMALL = ["--likelihood.network.hidden", "[4]", "--posterior.network.hidden", "[4]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plane"
    with without_pictures():
        assert cli.main([*TRAIN, *SMALL, "--out", str(path)]) == 0
    return path


@pytest.mark.thinned(2)
@pytest.mark.parametrize("command", ["encode", "sample", "reconstruct", "interpolate"])
def test_a_model_on_another_device_gives_the_same_files(command: str, run: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    assert cli.main([command, str(run), "--device", "cpu", "--out", str(here)]) == 0
    with stand_in() as device:
        assert cli.main([command, str(run), "--device", str(device), "--out", str(there)]) == 0
    first, second = arrays_of(here), arrays_of(there)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.ci
@pytest.mark.parametrize("evidence", ["posterior", pytest.param("quadrature", marks=pytest.mark.slow)])
def test_an_evaluation_on_another_device_is_the_same(run: Path, tmp_path: Path, evidence: str) -> None:
    few = ["--evidence", evidence, "--particles", "[20]"] if evidence == "posterior" else []
    few += ["--size", "3", "--gaps", "1", "--importance", "0", "--imputation", "0", "--out"]
    assert cli.main(["evaluate", str(run), "--device", "cpu", *few, str(tmp_path / "here")]) == 0
    with stand_in() as device:
        assert cli.main(["evaluate", str(run), "--device", str(device), *few, str(tmp_path / "there")]) == 0
    first, second = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("here", "there"))
    assert first.keys() == second.keys()
    assert first["figures"] == second["figures"]
    assert evidence == "posterior" or (tmp_path / "there" / "true_posteriors.png").is_file()


def test_a_run_is_loaded_where_it_is_asked(run: Path) -> None:
    assert next(load_run(run).parameters()).device.type == "cpu"
    with stand_in() as device:
        assert all(pretends(p) for p in load_run(run, device=device).parameters())
    with pytest.raises(ValueError, match="device 'moon' cannot be used"):
        load_run(run, device="moon")


@pytest.mark.parametrize("command", ["encode", "evaluate", "compare", "check"])
def test_a_device_that_is_none_is_refused(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, str(run), "--device", "moon"]) == 2
    assert "device 'moon' cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--threads", "3"], ["--threads=3"]])
def test_so_many_threads_compute(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("ppl_vae.cli.show.run", lambda argv: seen.append((argv, torch.get_num_threads())) or 0)
    before = torch.get_num_threads()
    assert cli.main(["show", "runs/a", *words, "--json"]) == 0
    assert seen == [(["runs/a", "--json"], 3)]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "words",
    [["--threads", "0"], ["--threads", "two"], ["--threads"], ["--threads=-1"], ["--threads=+2"], ["--threads", "1_0"]],
)
def test_a_number_of_threads_that_is_none_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *words]) == 2
    assert "--threads is" in capsys.readouterr().err


def is_flushed() -> bool:
    return bool(torch.tensor(1e-38) * 0.1 == 0)


def test_denormals_are_zero_while_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("ppl_vae.training.resolve_compile", lambda *_, **__: seen.append(is_flushed()) or 1 / 0)
    assert not is_flushed()
    with pytest.raises(ZeroDivisionError):
        cli.main([*TRAIN, "--out", str(tmp_path / "run")])
    assert seen == [True]
    assert not is_flushed()


@pytest.mark.parametrize(
    ("wall", "cpu", "load", "count", "said"),
    [
        (100.0, 30.0, 9.0, 2, "2 threads got 0.30 CPU seconds a second at a load of 9.0 on 2 cores; .*--threads 1"),
        (100.0, 30.0, 9.0, 1, "1 thread got 0.30 CPU seconds a second at a load of 9.0 on 2 cores$"),
        (100.0, 30.0, 1.5, 2, None),  # it waited for something else
        (100.0, 190.0, 9.0, 2, None),  # it had its share
        (5.0, 1.0, 9.0, 2, None),  # too short to say
    ],
)
def test_an_oversubscribed_cpu_is_said(
    wall: float, cpu: float, load: float, count: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = {"perf_counter": iter([0.0, wall]), "process_time": iter([0.0, cpu])}
    for name, values in clocks.items():
        monkeypatch.setattr(time, name, lambda values=values: next(values))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    found = processor.Effort().shortage()
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(said, found)
