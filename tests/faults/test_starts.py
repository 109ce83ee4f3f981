"""Several at once: each gets a folder or a file of its own; and what other systems lack is left out."""

from __future__ import annotations

import errno
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
import pytest
import runs_of
from archives import arrays_of
from processes import WithoutPictures

pytestmark = pytest.mark.ci

TRAIN = ["train", "--epochs", "2", *runs_of.EAGER, *runs_of.SMALL]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_four_trainings_at_once_take_four_folders(work):
    children = [processes.command(TRAIN, work, [WithoutPictures()]) for _ in range(4)]
    ended = [child.end() for child in children]
    assert [one.code for one in ended] == [0] * 4, [one.err for one in ended]
    assert {path.name for path in (work / "runs").iterdir()} == {"digits", "digits-2", "digits-3", "digits-4"}
    assert all(runs_of.is_over(path) for path in (work / "runs").iterdir())
    said = {line for one in ended for line in one.out.splitlines() if line.startswith("run: ")}
    assert len(said) == 4
    first, *others = (runs_of.record(path) for path in sorted((work / "runs").iterdir()))
    assert all(runs_of.differences(first, other) == [] for other in others)


def test_four_samples_at_once_write_four_files(place, tmp_path):
    work = runs_of.copy(place, tmp_path / "work")
    argv = ["sample", "table", "--size", "1000"]  # sample.npz, for data that are no images
    children = [processes.command([*argv, "--seed", str(seed)], work) for seed in range(4)]
    ended = [child.end() for child in children]
    assert [one.code for one in ended] == [0] * 4, [one.err for one in ended]
    files = sorted((work / "table").glob("sample*.npz"))
    assert [file.name for file in files] == ["sample-2.npz", "sample-3.npz", "sample-4.npz", "sample.npz"]
    arrays = [arrays_of(file)["x"].tobytes() for file in files]
    assert len(set(arrays)) == 4
    assert runs_of.leftovers(work / "table") == []


def test_of_two_trainings_with_one_out_one_runs_and_one_refuses(work):
    children = [processes.command([*TRAIN, "--out", "one"], work, [WithoutPictures()]) for _ in range(2)]
    first, second = sorted((child.end() for child in children), key=lambda one: one.code)
    assert (first.code, second.code) == (0, 2), second.err
    assert len(second.lines) == 1
    assert "choose another --out" in second.err
    assert runs_of.is_over(work / "one")


def test_a_second_training_into_a_run_that_is_under_way_is_refused(work):
    child = processes.command(["train", "--epochs", "3000", *TRAIN[3:], "--out", "one"], work)
    assert child.when(lambda: "epoch 1/" in child.err)
    second = processes.run([*TRAIN, "--out", "one"], work)
    child.send(signal.SIGKILL)
    child.end()
    assert second.code == 2
    assert len(second.lines) == 1
    third = processes.run(["train", "--resume", "one", "--epochs", "1", "--out", "two"], work, [WithoutPictures()])
    assert third.code in (0, 2)
    assert "Traceback" not in third.err
    assert runs_of.leftovers(work / "one") == []


# What other systems lack


@dataclass
class Without:
    """A system that lacks something.

    Attributes:
        what: ``fcntl``, ``SIGHUP`` or ``link`` for a name that Python lacks there; ``locks``, ``links`` for what the
            file system refuses; ``folders`` for folders that cannot be opened, ``flushes`` for those not flushed.
    """

    what: str

    def __call__(self) -> None:
        real_open, real_fsync = os.open, os.fsync

        def no_links(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        def files_alone(path: Any, *arguments: Any, **options: Any) -> int:
            if Path(path).is_dir():
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real_open(path, *arguments, **options)

        def flush(handle: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{handle}"):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            real_fsync(handle)

        def no_locks(*_: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        if self.what == "fcntl":
            sys.modules["fcntl"] = None  # type: ignore[assignment]
        elif self.what == "locks":
            import fcntl

            fcntl.flock = no_locks
        elif self.what == "SIGHUP":
            del signal.SIGHUP
        elif self.what == "link":
            del os.link
        elif self.what == "links":
            os.link = no_links
        elif self.what == "folders":
            os.open = files_alone
        else:
            os.fsync = flush


WINDOWS = [Without(what) for what in ("fcntl", "SIGHUP", "link", "folders")]
NETWORK_DISK = [Without(what) for what in ("locks", "links", "flushes")]


def several(lines: list[list[str]]) -> int:
    """Run command lines one after the other, and stop at the first that fails."""
    return next((code for line in lines if (code := processes.main(line))), 0)


@pytest.mark.parametrize("lacking", [WINDOWS, NETWORK_DISK], ids=["Windows", "a network disk"])
def test_what_a_system_lacks_is_left_out(lacking, work):
    lines = [
        [*TRAIN, "--epochs", "1"],
        ["train", "--resume", "runs/digits", "--epochs", "2"],
        *(["sample", "runs/digits", "--size", "2"] for _ in range(2)),
    ]
    ended = processes.start(several, lines, folder=work, before=[*lacking, WithoutPictures()]).end()
    assert ended.code == 0, ended.err
    assert {path.name for path in (work / "runs").iterdir()} == {"digits", "digits-2"}
    assert runs_of.is_over(work / "runs" / "digits-2")
    assert {path.name for path in (work / "runs" / "digits").glob("sample*.png")} >= {"sample.png", "sample-2.png"}
    assert ended.lines == []


@pytest.mark.slow
@pytest.mark.parametrize("lacking", [*WINDOWS, *NETWORK_DISK], ids=lambda one: one.what)
def test_each_thing_that_a_system_lacks_is_left_out(lacking, work):
    test_what_a_system_lacks_is_left_out([lacking], work)
