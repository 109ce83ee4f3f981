"""Many computations: in order in this process, or in processes of one thread that may die."""

from __future__ import annotations

import functools
import os
import signal
import threading
from pathlib import Path

import joblib
import pytest
import torch

from ppl_vae import _jobs


def threads_of(number: int) -> tuple[int, int, int]:
    return number, torch.get_num_threads(), os.getpid()


def dying(path: str, times: int, number: int) -> int:
    """Return the number, after so many processes have died of it."""
    died = Path(path) / f"{number}"
    count = len(died.read_text()) if died.exists() else 0
    if count < times:
        died.write_text("x" * (count + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def raising(number: int) -> int:
    raise ArithmeticError(f"no luck with {number}")


def test_one_job_runs_here_and_in_order():
    found = []
    before = torch.get_num_threads()
    _jobs.run_all([functools.partial(threads_of, i) for i in range(3)], lambda i, v: found.append((i, v)), jobs=1)
    assert found == [(i, (i, before, os.getpid())) for i in range(3)]
    with pytest.raises(ArithmeticError, match="no luck with 1"):
        _jobs.run_all([functools.partial(raising, 1)], lambda i, v: None)


def test_workers():
    assert [_jobs.workers(jobs) for jobs in (None, 1, 2, 5)] == [1, 1, 2, 5]
    assert _jobs.workers(-1) == joblib.cpu_count()
    with joblib.parallel_config("loky", n_jobs=3):
        assert [_jobs.workers(jobs) for jobs in (None, 1, 2)] == [3, 1, 2]
    with joblib.parallel_config(n_jobs=4):
        assert _jobs.workers(None) == 4
    assert [_jobs.check_jobs(jobs) for jobs in (None, 1, -1)] == [None, 1, -1]
    for wrong in (0, -2, 1.5, "2", True):
        with pytest.raises(ValueError, match=r"jobs is .*; expected a positive integer, or -1"):
            _jobs.check_jobs(wrong)


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
def test_processes_have_one_thread_each_and_a_death_costs_one_start(tmp_path):
    tasks = [functools.partial(threads_of, i) for i in range(3)]
    tasks.insert(1, functools.partial(dying, str(tmp_path), 1, 7))
    found, said = {}, []
    _jobs.run_all(tasks, found.__setitem__, jobs=2, told=said.append)
    assert found.pop(1) == 7
    assert [found[i][:2] for i in (0, 2, 3)] == [(0, 1), (1, 1), (2, 1)]
    assert os.getpid() not in {pid for _, _, pid in found.values()}
    assert len(said) == 1
    assert said[0].startswith("a worker died; ")
    with pytest.raises(ArithmeticError, match="no luck with 3"):
        _jobs.run_all([functools.partial(raising, 3)] * 2, lambda i, v: None, jobs=2)
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        _jobs.run_all([functools.partial(threads_of, threading.Lock())] * 2, lambda i, v: None, jobs=2)


@pytest.mark.ci
def test_no_more_processes_start_than_there_are_computations(monkeypatch):
    asked, make = [], joblib.Parallel
    monkeypatch.setattr(joblib, "Parallel", lambda **how: asked.append(how["n_jobs"]) or make(**how))
    for count in (1, 2):
        _jobs.run_all([functools.partial(threads_of, i) for i in range(count)], lambda i, v: None, jobs=1000)
    assert asked == [2, 2]  # one would be this process, with all of its threads


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_what_kills_its_worker_each_time_is_lost_and_the_others_are_not(tmp_path):
    tasks = [functools.partial(threads_of, i) for i in range(6)]
    tasks.insert(2, functools.partial(dying, str(tmp_path), 100, 7))
    found, said = {}, []
    _jobs.run_all(tasks, found.__setitem__, jobs=2, told=said.append)
    lost = found.pop(2)
    assert isinstance(lost, _jobs.Lost)
    assert lost.reason.startswith("its worker process died 3 times: ")
    assert [value[0] for _, value in sorted(found.items())] == list(range(6))
    assert len((tmp_path / "7").read_text()) == _jobs.ATTEMPTS == len(said)


def test_threads_of_one_process_take_turns(tmp_path):
    """As under a Dask worker of several threads, or joblib's threading."""
    found = {}
    with joblib.parallel_config("threading", n_jobs=3):
        _jobs.run_all([functools.partial(draws, i) for i in range(6)], found.__setitem__)
    assert all(found[i] == draws(i) for i in range(6))


def draws(seed: int) -> list[float]:
    """Draw from torch's global generator, slowly."""
    torch.manual_seed(seed)
    found = []
    for _ in range(20):
        found.append(float(torch.rand(())))
        threading.Event().wait(0.001)
    return found
