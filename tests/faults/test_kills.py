"""Runs that are killed or asked to end at random moments, and then resumed: the same run, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import processes
import pytest
import runs_of
from processes import Fault

pytestmark = pytest.mark.ci


class Whole(NamedTuple):
    """A run that nothing disturbed: how long it took, what it left, and whether it drew pictures."""

    seconds: float
    left: dict[str, Any]
    pictures: bool


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """For a variant, the undisturbed run."""
    known: dict[tuple[str, bool], Whole] = {}

    def get(variant: str, pictures: bool = True) -> Whole:
        if (variant, pictures) not in known:
            folder = tmp_path_factory.mktemp("whole") / "work"
            folder.mkdir()
            ended = processes.run(runs_of.train(variant), folder, runs_of.before(pictures))
            assert ended.code == 0, ended.err
            left = runs_of.record(folder / "runs" / "digits")
            assert left["result"]["stopped"] == ("early stopping" if variant == "early stopping" else "finished")
            known[variant, pictures] = Whole(ended.seconds, left, pictures)
        return known[variant, pictures]

    return get


def moments(count: int, seed: int) -> Iterator[tuple[str, float]]:
    """Variants in turn, and moments as fractions of a run: a fifth in its first tenth, a fifth in its last 30%."""
    numbers, variants = random.Random(seed), list(runs_of.VARIANTS)
    for i in range(count):
        low, high = {3: (0.0, 0.1), 4: (0.7, 1.0)}.get(i % 5, (0.0, 1.0))
        yield variants[i % len(variants)], numbers.uniform(low, high)


def disturb(variant: str, moment: float | str, number: int, whole: Whole, folder: Path) -> str:
    """Send a signal at a moment, resume to the end, hold the result against the whole run; return where it struck.

    The moment is a fraction of the whole run's time, or what the run says just before.
    """
    folder.mkdir(parents=True)
    child = processes.command(runs_of.train(variant), folder, runs_of.before(whole.pictures))
    assert number == signal.SIGKILL or child.when(lambda: child.begun)
    if isinstance(moment, str):
        assert child.when(lambda: moment in child.err)
    else:
        time.sleep(moment * whole.seconds)
    child.send(number)
    ended = child.end()
    last = runs_of.newest(folder)
    if number == signal.SIGKILL:
        assert ended.code in (-signal.SIGKILL, 0), ended.err
    else:
        assert "Traceback" not in ended.err
        assert ended.code in (*runs_of.exit_codes(number), 0), ended.err
        if "ending after this step" in ended.err and ended.code != 0:
            assert last is not None
            assert ended.code == 128 + number
    place = "after the end" if ended.code == 0 else "before the first checkpoint" if last is None else "in the run"
    if last is not None and ended.code != 0 and runs_of.is_over(last):
        place = "in the end phase"
    left = runs_of.record(runs_of.finish(runs_of.train(variant), folder, pictures=whole.pictures))
    assert runs_of.differences(whole.left, left) == []
    return place


@pytest.mark.parametrize(
    ("variant", "moment", "pictures"),
    [
        ("dynamic", "epoch 9/12", False),
        pytest.param("dynamic", "epoch 9/12", True, marks=pytest.mark.slow),
        pytest.param("graph", "epoch 4/12", False, marks=pytest.mark.slow),
        pytest.param("early stopping", "epoch 3/60", False, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_is_resumed_bit_for_bit(variant, moment, pictures, whole, tmp_path, record_property):
    place = disturb(variant, moment, signal.SIGKILL, whole(variant, pictures), tmp_path / "work")
    assert place == "in the run"
    record_property(place, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_run_that_is_asked_to_end_is_resumed_bit_for_bit(number, whole, tmp_path, record_property):
    place = disturb("scheduler", "epoch 4/12", number, whole("scheduler", False), tmp_path / "work")
    assert place == "in the run"
    record_property(place, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "moment"), list(moments(100, seed=2)))
def test_of_100_killed_runs_all_are_resumed(variant, moment, whole, tmp_path, record_property):
    place = disturb(variant, moment, signal.SIGKILL, whole(variant), tmp_path / "work")
    record_property(place, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "moment"), list(moments(40, seed=3)))
def test_of_40_terminated_runs_all_are_resumed(variant, moment, whole, tmp_path, record_property):
    place = disturb(variant, moment, signal.SIGTERM, whole(variant), tmp_path / "work")
    record_property(place, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(("variant", "moment"), list(moments(10, seed=4)))
def test_hang_up_and_ctrl_c_are_as_terminate(number, variant, moment, whole, tmp_path, record_property):
    place = disturb(variant, moment, number, whole(variant), tmp_path / "work")
    record_property(place, 1)


# At every step of a write

FEW = ["train", "--epochs", "3", *runs_of.EAGER, *runs_of.SMALL[:-1], "1e-9"]  # a checkpoint each epoch


def killed_in_a_write(fault: Fault, folder: Path, whole: Whole) -> bool:
    """Kill a run in a write, resume it, and return whether the fault struck; at most one epoch is lost."""
    folder.mkdir(parents=True)
    ended = processes.run(FEW, folder, [fault, *runs_of.before(whole.pictures)])
    if not ended.struck:
        return False
    assert ended.code == -signal.SIGKILL, ended.err
    last = runs_of.newest(folder)
    if last is not None:
        assert runs_of.lost_epochs(last) <= 1
    last = runs_of.finish(FEW, folder, "1e-9", whole.pictures)
    assert runs_of.differences(whole.left, runs_of.record(last)) == []
    return True


def few(folder: Path, pictures: bool) -> Whole:
    """The run of `FEW` that nothing disturbed."""
    folder.mkdir()
    ended = processes.run(FEW, folder, runs_of.before(pictures))
    assert ended.code == 0, ended.err
    return Whole(ended.seconds, runs_of.record(folder / "runs" / "digits"), pictures)


@pytest.mark.parametrize("fault", [Fault("replace", 4)], ids=lambda fault: fault.call)
def test_a_kill_in_a_write_loses_at_most_an_epoch(fault, tmp_path):
    whole = few(tmp_path / "whole", pictures=False)
    assert killed_in_a_write(fault, tmp_path / "work", whole)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_kill_at_any_write_loses_at_most_an_epoch(call, tmp_path, record_property):
    struck, whole = 0, few(tmp_path / "whole", pictures=True)
    while killed_in_a_write(Fault(call, struck + 1), tmp_path / str(struck) / "work", whole):
        struck += 1
    record_property("times", struck)
    assert struck >= {"fsync": 8, "replace": 7, "write": 8}[call]


# The second signal


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_second_signal_ends_at_once(number, tmp_path):
    """The second comes before or while the pictures are drawn."""
    folder = tmp_path / "work"
    folder.mkdir()
    child = processes.command(runs_of.train("scheduler"), folder, [processes.EndlessPictures()])
    assert child.when(lambda: "epoch 1/" in child.err)
    child.send(number)
    assert child.when(lambda: "ending after this step" in child.err)
    child.send(number)
    ended = child.end()
    assert ended.code in (-number, 128 + number)
    assert "Traceback" not in ended.err


def test_moments_reach_every_phase():
    """The schedule of the long tests has kills in the first tenth and the last third of a run, of every variant."""
    found = list(moments(100, seed=2))
    assert Counter(variant for variant, _ in found) == dict.fromkeys(runs_of.VARIANTS, 25)
    assert sum(moment < 0.1 for _, moment in found) >= 20
    assert sum(moment > 0.7 for _, moment in found) >= 20


def test_two_runs_in_one_folder_have_an_output_each(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    first, second = processes.run(["trian"], folder), processes.run(["shwo"], folder)
    assert [ended.code for ended in (first, second)] == [2, 2]
    assert "trian" in first.err
    assert "trian" not in second.err
    assert "shwo" in second.err
