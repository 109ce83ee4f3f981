"""Damaged files of every kind that is read: one line or a right result; no traceback, crash, hang, or gigabytes.

The commands run in a process forked for a batch of files, so that a crash is seen as one.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import mutate
import places
import processes
import pytest
import torch
import yaml
from places import train

from ppl_vae.training import checkpoints

pytestmark = pytest.mark.ci

LIMIT = 10  # seconds of computing for a command
MEMORY = 2 * 2**30  # bytes that a command may take beside what the process has

SAMPLE = ["sample", "{run}", "--size", "3", "--out", "out.npz", "--overwrite", "true"]
RESUME = ["train", "--resume", "{run}", "--epochs", "2", "--out", "new"]
PRINT = ["train", "--config", "{run}/config.yaml", "--print_config"]
CONFIG = ["train", "--config", "{run}/config.yaml", "--epochs", "1", "--out", "new"]
SHOW = ["show", "{run}"]
JSON = ["show", "{run}", "--json"]
CHECK = ["check", "{run}"]


def encode(data: str, run: str = "run") -> list[str]:
    return ["encode", run, "--data", data, "--out", "out.npz", "--overwrite", "true"]


class Subject(NamedTuple):
    """A file that is read, the commands that read it, and the share of the mutations that it gets."""

    file: str
    commands: list[list[str]]
    weight: int = 1


def on(run: str, *commands: list[str]) -> list[list[str]]:
    return [[word.format(run=run) for word in command] for command in commands]


SUBJECTS = [
    Subject("run/checkpoint.pt", on("run", SAMPLE, RESUME), 2),
    Subject("old_run/checkpoint.pt", on("old_run", SAMPLE, RESUME)),
    Subject("run/config.yaml", on("run", SAMPLE, PRINT, CONFIG, SHOW, RESUME), 2),
    Subject("run/run.json", on("run", SAMPLE, SHOW, JSON, RESUME), 2),
    Subject("run/result.json", on("run", SHOW, JSON)),
    Subject("run/metrics.jsonl", on("run", SHOW, JSON)),
    Subject("run/evaluation/evaluation.json", on("run", SHOW, JSON)),
    Subject("x.npy", [encode("x.npy"), train("x.npy")]),
    Subject("x.npz", [encode("x.npz"), train("x.npz")]),
    Subject("packed.npz", [encode("packed.npz"), train("packed.npz")]),
    *(
        Subject(f"root/MNIST/raw/{part}", [train("mnist", "--data.root", "root"), encode("mnist", "square")[:-4]
                + ["--data.root", "root", "--out", "out.npz", "--overwrite", "true"]])
        for part in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte")
    ),
    Subject("images/0.png", [encode("images"), train("images")]),
]  # fmt: skip


class Case(NamedTuple):
    """One damaged file, read by one command.

    Attributes:
        file: The file.
        what: How it is damaged, in words.
        argv: The command.
        seed: Of the damage.
    """

    file: str
    what: str
    argv: list[str]
    seed: int


def damaged(case: Case) -> tuple[bytes, str]:
    """Return the damaged content of a case's file in this working directory, and what was done in words."""
    good, numbers = Path(case.file).read_bytes(), random.Random(case.seed)
    if case.what in mutate.KINDS:
        return mutate.damage(good, case.what, numbers), case.what
    if case.file.endswith(".pt"):
        state, what = mutate.edit(checkpoints.load(case.file), numbers, tensors=True)
        state.pop("format", None)
        return checkpoints.save(state, "edited.pt").read_bytes(), what
    if case.file.endswith(".yaml"):
        tree, what = mutate.edit(yaml.safe_load(good), numbers)
        return yaml.safe_dump(tree).encode(), what
    tree, what = mutate.edit(json.loads(good), numbers)
    return json.dumps(tree).encode(), what


def cases(count: int, seed: int) -> list[Case]:
    """Damaged bytes of every file in turn, each read by each of its commands in turn."""
    subjects = [subject for subject in SUBJECTS for _ in range(subject.weight)]
    found = []
    for i in range(count):
        subject = subjects[i % len(subjects)]
        turn = i // len(subjects)
        argv = subject.commands[turn % len(subject.commands)]
        kind = random.Random(seed * 10**6 + i).choice(mutate.KINDS)
        found.append(Case(subject.file, kind, argv, seed * 10**6 + i))
    return found


EDITED = [
    Subject("run/checkpoint.pt", on("run", RESUME, RESUME, SAMPLE), 3),
    Subject("run/config.yaml", on("run", PRINT, SAMPLE, CONFIG, SHOW), 2),
    Subject("run/run.json", on("run", SHOW, SAMPLE, RESUME, JSON)),
    Subject("run/result.json", on("run", SHOW, JSON)),
    Subject("run/evaluation/evaluation.json", on("run", SHOW, JSON)),
]


def edits(count: int, seed: int) -> list[Case]:
    """Good files with a wrong value in them."""
    subjects = [subject for subject in EDITED for _ in range(subject.weight)]
    found = []
    for i in range(count):
        subject = subjects[i % len(subjects)]
        turn = i // len(subjects)
        found.append(Case(subject.file, "edit", subject.commands[turn % len(subject.commands)], seed * 10**6 + i))
    return found


def read_all(batch: list[Case], results: Path) -> int:
    """Read each damaged file in this process; write what came out as a line of JSON each, before and after."""
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, resource.RLIM_INFINITY))  # spares the machine
    with results.open("w", buffering=1) as lines, mock.patch("ppl_vae.runs.folder.draw", return_value=[]):
        for number, case in enumerate(batch):
            good = Path(case.file).read_bytes()
            content, what = damaged(case)
            lines.write(json.dumps({"case": number, "what": what}) + "\n")
            Path(case.file).write_bytes(content)
            before = processes.peak()
            signal.setitimer(signal.ITIMER_PROF, LIMIT)
            signal.alarm(20 * LIMIT)
            try:
                code, err = _call(case.argv)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            fault = fault_of(code, err)
            if processes.peak() - before > MEMORY:
                fault = f"it took {(processes.peak() - before) / 2**30:.1f} GB"
            if fault is None and code == 0 and content != good:
                fault = accepted(case)
            lines.write(json.dumps({"case": number, "code": code, "fault": fault, "err": err[-600:]}) + "\n")
            Path(case.file).write_bytes(good)
            shutil.rmtree("new", ignore_errors=True)
    return 0


def _call(argv: list[str]) -> tuple[int | None, str]:
    from ppl_vae import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            return cli.main(argv), err.getvalue()
        except SystemExit as error:
            return None, f"{err.getvalue()}Traceback: SystemExit({error.code!r})"
        except BaseException:
            return None, err.getvalue() + traceback.format_exc()


def fault_of(code: int | None, err: str) -> str | None:
    """Say what is wrong with an exit code and its stderr; None if nothing is."""
    lines = [line for line in err.splitlines() if not line.startswith(("note: ", "epoch "))]
    if code is None or "Traceback" in err:
        return "traceback: " + err.strip().splitlines()[-1][:300]
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("ppl-vae: error: ")):
        return f"{len(lines)} lines for exit code 2: {lines[:3]}"
    if any("Warning" in line or "/site-packages/" in line for line in lines):
        return f"a warning of Python or torch: {lines[:2]}"
    if any(len(line) > 3_000 for line in lines):
        return f"a line of {max(map(len, lines))} characters"
    return None


def accepted(case: Case) -> str | None:
    """Say what is wrong with taking damaged bytes of a checkpoint; None where the state is the good one after all."""
    if not case.file.endswith(".pt") or case.what not in mutate.KINDS:
        return None
    if case.file == "run/checkpoint.pt":
        return "damaged bytes of a checkpoint were accepted"
    state, good = checkpoints.load(case.file), checkpoints.load(places.OLD)
    return None if _same(state, good) else "damaged bytes of a checkpoint gave other values"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one))


def faults_of(batch: list[Case], place: Path, folder: Path) -> tuple[list[str], dict[str, int]]:
    """Read damaged files in as many processes as it takes; return the faults, and how often each exit code came."""
    faults: list[str] = []
    codes: dict[str, int] = {}
    number = 0
    while batch:
        work = folder / f"work{number}"
        shutil.copytree(place, work)
        results = folder / f"results{number}"
        child = processes.start(read_all, batch, results, folder=work)
        ended = child.end(limit=3600)
        entries = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        what = {entry["case"]: entry["what"] for entry in entries if "what" in entry}
        done = [entry for entry in entries if "code" in entry]
        for entry in done:
            codes[str(entry["code"])] = codes.get(str(entry["code"]), 0) + 1
            if entry["fault"] is not None:
                faults.append(f"{_in_words(batch[entry['case']], what[entry['case']])}: {entry['fault']}")
        if ended.code != 0 or len(done) < len(batch):
            assert len(what) > len(done), ended.err  # else the harness itself failed
            names = {-signal.SIGPROF: f"{LIMIT} s of computing", -signal.SIGALRM: f"{20 * LIMIT} s"}
            end = names.get(ended.code, f"exit code {ended.code}")
            faults.append(f"{_in_words(batch[len(done)], what[len(done)])}: {end}: {ended.err[-300:]}")
            codes[end] = codes.get(end, 0) + 1
        shutil.rmtree(work)
        batch, number = batch[len(done) + 1 :], number + 1
    return faults, codes


def _in_words(case: Case, what: str) -> str:
    return f"{case.file} ({what}, seed {case.seed}), {' '.join(case.argv)}"


def note(record_property: Callable[[str, object], None], faults: list[str], codes: dict[str, int]) -> None:
    """Tell the report what came out."""
    record_property("times", sum(codes.values()))
    record_property("faults", len(faults))
    for code, times in codes.items():
        record_property({"None": "a traceback"}.get(code, f"exit code {code}" if code.isdigit() else code), times)


def test_damaged_files(place, tmp_path, record_property):
    faults, codes = faults_of(cases(30, seed=1), place, tmp_path)
    note(record_property, faults, codes)
    assert not faults, "\n".join(faults)
    assert sum(codes.values()) == 30
    assert codes.keys() >= {"0", "2"}  # damage that is seen, and damage that is none


def test_good_files_with_a_wrong_value(place, tmp_path, record_property):
    faults, codes = faults_of(edits(15, seed=1), place, tmp_path)
    note(record_property, faults, codes)
    assert not faults, "\n".join(faults)
    assert codes.keys() >= {"2"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 16))
def test_7000_damaged_files(seed, place, tmp_path, record_property):
    faults, codes = faults_of(cases(500, seed=seed), place, tmp_path)
    note(record_property, faults, codes)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_3000_good_files_with_a_wrong_value(seed, place, tmp_path, record_property):
    faults, codes = faults_of(edits(500, seed=seed), place, tmp_path)
    note(record_property, faults, codes)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("code", "err", "wrong"),
    [
        (0, "note: a word\n", False),
        (2, "ppl-vae: error: no\n", False),
        (2, "note: a word\nppl-vae: error: no\n", False),
        (2, "", True),
        (2, "ppl-vae: error: no\nppl-vae: error: no\n", True),
        (3, "ppl-vae: error: no\n", True),
        (None, "Traceback (most recent call last):\nKeyError: 1\n", True),
        (1, "x.py:3: UserWarning: something\n", True),
    ],
)
def test_what_counts_as_a_fault(code, err, wrong):
    assert (fault_of(code, err) is not None) == wrong


@pytest.mark.parametrize("kind", mutate.KINDS)
def test_damage_changes_the_bytes(kind):
    content = b'{"epoch": 12, "loss": 3.5, "name": "digits"}' * 3
    changed = [mutate.damage(content, kind, random.Random(seed)) for seed in range(50)]
    assert sum(one != content for one in changed) > 40
    assert len(set(changed)) > 20
