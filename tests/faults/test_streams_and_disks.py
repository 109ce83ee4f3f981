"""Streams that are closed or full, folders that go away, disks that are full: training ends well or goes on."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import places
import processes
import pytest
import runs_of
from processes import Ended, Fault, WithoutPictures

from ppl_vae.training import checkpoints

pytestmark = pytest.mark.ci

TRAIN = ["train", "--epochs", "2", *runs_of.EAGER, *runs_of.SMALL]
LONG = ["train", "--epochs", "400", *runs_of.EAGER, *runs_of.SMALL]
EVALUATE = ["evaluate", "run", "--size", "6", "--gaps", "2", "--importance", "4", "--imputation", "2"]
FULL = "No space left on device"


@dataclass
class Broken:
    """A standard stream that is closed (``closed``), a pipe that nobody reads (``pipe``), or full (``full``)."""

    descriptor: int
    how: str

    def __call__(self) -> None:
        name = {1: "stdout", 2: "stderr"}[self.descriptor]
        if self.how == "closed":  # as the shell's >&-: Python starts without the stream
            os.close(self.descriptor)
            setattr(sys, name, None)
            return
        if self.how == "full":
            handle = os.open("/dev/full", os.O_WRONLY)
        else:
            reader, handle = os.pipe()
            os.close(reader)
        os.dup2(handle, self.descriptor)


@dataclass
class SmallFiles:
    """A limit on the size of every file that the process writes, as a quota may set one."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


class Removed:
    """The working directory is removed under the process."""

    def __call__(self) -> None:
        shutil.rmtree(Path.cwd())


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def require_dev_full() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")


# Streams

STREAMS = [(d, how) for d in (1, 2) for how in ("closed", "pipe", "full")]


@pytest.mark.parametrize(
    ("descriptor", "how"),
    [pytest.param(*s, marks=[] if s in ((1, "full"), (2, "pipe")) else pytest.mark.slow) for s in STREAMS],
)
def test_training_outlives_its_streams(descriptor, how, work):
    require_dev_full()
    ended = processes.run(TRAIN, work, [Broken(descriptor, how), WithoutPictures()])
    assert "Traceback" not in ended.err
    assert runs_of.is_over(work / "runs" / "digits")
    if descriptor == 2 or how == "closed":
        assert ended.code == 0
    else:
        assert ended.code == 1
        assert len(ended.lines) == (how == "full"), ended.err


LINES = {
    "show run": 0,
    "train --help": 0,
    "pieces Bernoulli": 0,
    "sample run --out out.npz": 0,
    "trian": 2,
}  # exit codes
SHORT = [("show run", *stream) for stream in STREAMS] + [("train --help", 1, "pipe"), ("trian", 2, "closed")]


def ends_quietly(line: str, descriptor: int, how: str, place: Path, folder: Path) -> None:
    """Run a command with a broken stream, and look at its exit code and at what it says on the other stream."""
    require_dev_full()
    ended = processes.run(line.split(), runs_of.copy(place, folder), [Broken(descriptor, how)])
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err
    if descriptor == 2 or how == "closed" or LINES[line]:
        assert ended.code == LINES[line]
    elif how == "full":
        assert ended.code == 1
        assert len(ended.lines) == 1
    else:
        assert ended.code in (0, 141)
        assert ended.err == ""


@pytest.mark.parametrize(("line", "descriptor", "how"), SHORT)
def test_a_command_that_prints_ends_quietly(line, descriptor, how, place, tmp_path):
    ends_quietly(line, descriptor, how, place, tmp_path / "work")


@pytest.mark.slow
@pytest.mark.parametrize(("descriptor", "how"), STREAMS)
@pytest.mark.parametrize("line", LINES)
def test_commands_that_print_end_quietly(line, descriptor, how, place, tmp_path):
    ends_quietly(line, descriptor, how, place, tmp_path / "work")


@pytest.mark.slow
@pytest.mark.parametrize("end", [">&-", "2>&-", ">&- 2>&-", "| head -c 1", "2>&1 | head -c 1", "> /dev/full"])
@pytest.mark.parametrize("line", ["show run", "train --help", "sample run --out out.npz", "trian"])
def test_in_a_shell(line, end, place, tmp_path):
    """What the interpreter itself prints at its end is seen here alone."""
    require_dev_full()
    work = runs_of.copy(place, tmp_path / "work")
    command = f"{sys.executable} -m ppl_vae.cli {line} {end}"
    found = subprocess.run(command, shell=True, cwd=work, capture_output=True, text=True, timeout=600)
    for word in ("Traceback", "Exception ignored", "BrokenPipeError", "Bad file descriptor"):
        assert word not in found.stderr
    assert found.stderr.count("\n") <= 1


# Folders that go away


def test_a_working_directory_that_is_gone_is_said_in_one_line(work):
    ended = processes.run(["sample", "run"], work, [Removed()])
    assert ended.code == 2
    assert ended.err == "ppl-vae: error: the working directory is gone; change to one that exists\n"


@pytest.mark.parametrize(
    "how", ["renamed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("removed", "without working directory"))]
)
def test_a_run_whose_folder_goes_away_ends_in_one_sentence(how, work):
    child = processes.command(LONG, work, [WithoutPictures()])
    assert child.when(lambda: "epoch 20/" in child.err), child.err
    run = work / "runs" / "digits"
    away = work.parent / "elsewhere"
    (work if how == "without working directory" else run).rename(away)
    if how != "renamed":
        shutil.rmtree(away)
    ended = child.end()
    said = [line for line in ended.lines if line.startswith("ppl-vae: error: ")]
    assert "Traceback" not in ended.err
    assert ended.code == 1, ended.err
    assert len(said) == 1, ended.err
    assert "digits" in said[0]
    assert len(ended.lines) <= 2, ended.err
    if how == "renamed":
        assert checkpoints.load(away)["epoch"] > 0
        shutil.move(away, run)
        argv = ["train", "--resume", "runs/digits", "--epochs", str(checkpoints.load(run)["epoch"] + 1)]
        assert processes.run(argv, work, [WithoutPictures()]).code == 0


# Data that go away


@pytest.mark.parametrize(
    ("data", "how"),
    [
        ("x.npy", "truncated"),
        ("images", "removed"),
        *(pytest.param("x.npy", how, marks=pytest.mark.slow) for how in ("removed", "changed")),
        *(pytest.param("images", how, marks=pytest.mark.slow) for how in ("truncated", "changed")),
    ],
)
def test_data_that_change_under_training_are_noticed(data, how, place, tmp_path):
    """The rows are read from disk batch by batch, and each time from the file of that name."""
    work = runs_of.copy(place, tmp_path / "work")
    more = ["--data.max_in_memory_gib", "0", "--epochs", "300"]
    child = processes.command([*places.train(data), *more], work, [WithoutPictures()])
    assert child.when(lambda: "epoch 1/" in child.err), child.err
    path = work / ("images/0.png" if data == "images" else data)
    if how == "truncated":
        os.truncate(path, 40)
    elif how == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    if how == "changed" and data == "images":  # the last byte of a PNG is of no picture
        child.send(signal.SIGTERM)
    ended = child.end()
    assert "Traceback" not in ended.err
    assert ended.code in ((1, 143) if (data, how) == ("images", "changed") else (1,)), ended.err
    if ended.code == 1:
        (said,) = (line for line in ended.lines if line.startswith("ppl-vae: error: "))
        assert path.name in said
    assert checkpoints.load(work / "new")["epoch"] > 0


# Full disks


def ends_for_want_of_space(ended: Ended, run: Path, words: str = FULL) -> bool:
    """Whether a run met the full disk; if so it has ended in one sentence, and what it left is whole."""
    assert "Traceback" not in ended.err
    if ended.code == 0:
        assert runs_of.is_over(run)
        return False
    assert ended.code == 1, ended.err
    assert sum(line.startswith("ppl-vae: error: ") for line in ended.lines) == 1, ended.err
    (said,) = (line for line in ended.lines if line.startswith("ppl-vae: error: "))
    assert words in said
    assert run.name in said, "the sentence names the file"
    others = [line for line in ended.lines if line != said]
    resumable = (run / "checkpoint.pt").is_file()
    assert others in ([], [f"continue with: ppl-vae train --resume {run.relative_to(run.parent.parent)}"]), ended.err
    if resumable:
        assert checkpoints.load(run)["format"] == checkpoints.FORMAT
    if run.is_dir():
        assert runs_of.leftovers(run) == []
    for name in ("run.json", "result.json"):
        if (run / name).is_file():
            assert isinstance(json.loads((run / name).read_text()), dict)
    return True


@pytest.mark.parametrize(
    "fault",
    [Fault("write", 5, "EDQUOT"), Fault("fsync", 5, "ENOSPC")],
    ids=lambda fault: f"{fault.does} at {fault.call} {fault.nth}",
)
def test_a_write_that_fails_ends_training_in_one_sentence(fault, work):
    ended = processes.run(TRAIN, work, [fault, WithoutPictures()])
    assert ends_for_want_of_space(ended, work / "runs" / "digits", os.strerror(getattr(errno, fault.does)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "does", "once"),
    [
        *((call, "ENOSPC", once) for call in ("write", "fsync", "replace") for once in (False, True)),
        ("write", "EDQUOT", False),
        ("fsync", "EIO", False),
    ],
)
def test_any_write_may_fail(call, does, once, tmp_path, record_property):
    met = 0
    for nth in itertools.count(1):
        work = tmp_path / str(nth) / "work"
        work.mkdir(parents=True)
        ended = processes.run(TRAIN, work, [Fault(call, nth, does, once)])
        met += ends_for_want_of_space(ended, work / "runs" / "digits", os.strerror(getattr(errno, does)))
        if not ended.struck:
            break
    record_property("times", nth - 1)
    record_property("ended in one sentence", met)
    assert met >= 5


@pytest.mark.parametrize(("size", "fails"), [(20_000, True), (300_000, False)])
def test_a_limit_on_the_size_of_files(size, fails, work):
    """A checkpoint has 32 kB, TensorBoard's file 190 kB and more: the run goes on without the latter."""
    ended = processes.run([*TRAIN[:1], "--epochs", "12", *TRAIN[3:]], work, [SmallFiles(size), WithoutPictures()])
    assert ends_for_want_of_space(ended, work / "runs" / "digits", "File too large") == fails
    if not fails:
        assert sum("TensorBoard" in line for line in ended.err.splitlines()) == 1
        assert len([line for line in ended.err.splitlines() if not line.startswith("epoch ")]) == 1, ended.err


@pytest.fixture
def disk(work: Path, request: pytest.FixtureRequest):
    """A working directory on a file system of a few kilobytes."""
    mounted = sys.platform == "linux" and hasattr(os, "geteuid") and os.geteuid() == 0
    argv = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(work)]
    if not mounted or subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield work
    subprocess.run(["umount", "-l", str(work)], check=True)


@pytest.mark.parametrize("disk", [120], indirect=True)
def test_a_small_disk(disk):
    assert ends_for_want_of_space(processes.run(TRAIN, disk), disk / "runs" / "digits")


@pytest.mark.slow
@pytest.mark.parametrize("disk", [8, 16, 24, 32, 48, 64, 96, 200, 300, 400, 500, 600, 800, 1000, 4000], indirect=True)
def test_small_disks(disk):
    met = ends_for_want_of_space(processes.run(TRAIN, disk), disk / "runs" / "digits")
    assert met or shutil.disk_usage(disk).total > 300_000


@pytest.mark.parametrize("fault", [Fault("write", 1, "ENOSPC")], ids=["write"])
def test_a_full_disk_leaves_an_earlier_evaluation(fault, place, tmp_path):
    work = runs_of.copy(place, tmp_path / "work")
    path = work / "run" / "evaluation" / "evaluation.json"
    before = path.read_bytes()
    ended = processes.run(EVALUATE, work, [fault])
    assert "Traceback" not in ended.err
    assert ended.code == 1, ended.err
    assert FULL in ended.lines[-1]
    assert "evaluation" in ended.lines[-1]
    assert path.read_bytes() == before or "seed" in json.loads(path.read_bytes())  # the earlier one, or the new one
    assert runs_of.leftovers(path.parent) == []


@pytest.mark.slow
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_is_full_at_any_write_of_a_command(call, place, tmp_path, record_property):
    """Every command that writes says so in one line, and what was there before is whole."""
    times = 0
    for line in (EVALUATE, ["sample", "run"], ["encode", "run", "--out", "e.csv"], ["reconstruct", "run"],
                 ["interpolate", "run", "--out", "i.npz"]):  # fmt: skip
        for nth in itertools.count(1):
            work = runs_of.copy(place, tmp_path / f"{line[0]}{nth}" / "work")
            before = {p.name for p in work.rglob("*")}
            ended = processes.run(line, work, [Fault(call, nth, "ENOSPC")])
            assert "Traceback" not in ended.err
            json.loads((work / "run" / "evaluation" / "evaluation.json").read_text())
            assert runs_of.leftovers(work / "run") == []
            times += ended.struck
            if not ended.struck:
                assert nth > 1
                assert ended.code == 0
                break
            if ended.code == 0:  # the flush of the folder, which is not asked for
                assert call == "fsync"
                continue
            assert ended.code == 1
            assert FULL in ended.lines[-1]
            assert line[0] == "evaluate" or {p.name for p in work.rglob("*")} == before
    record_property("times", times)
