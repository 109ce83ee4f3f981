"""Run every test of faults in its full count, and write what came out to docs/reliability.md.

    python tests/faults/reliability.py                 everything: about 40 minutes on two quiet cores
    python tests/faults/reliability.py -k mutations    a part, to look at; it is printed, and the page stays as it is

Tests say what they counted by pytest's `record_property`: ``times`` and ``faults``, and anything else as an outcome.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "reliability.md"

WHAT = {  # a test -> what it does, in a row of the table; tests of the tests are left out
    "test_of_100_killed_runs_all_are_resumed": "SIGKILL at a random moment, then resumed",
    "test_a_killed_run_is_resumed_bit_for_bit": "the same, other moments",
    "test_of_40_terminated_runs_all_are_resumed": "SIGTERM at a random moment, then resumed",
    "test_hang_up_and_ctrl_c_are_as_terminate": "SIGHUP and SIGINT at a random moment, then resumed",
    "test_a_run_that_is_asked_to_end_is_resumed_bit_for_bit": "SIGTERM in the midst, then resumed",
    "test_a_kill_at_any_write_loses_at_most_an_epoch": "SIGKILL at the n-th write, fsync or rename, then resumed",
    "test_a_kill_in_a_write_loses_at_most_an_epoch": "the same, one of them",
    "test_a_second_signal_ends_at_once": "a second SIGINT or SIGTERM",
    "test_7000_damaged_files": "damaged bytes in a file that a command reads",
    "test_damaged_files": "the same, other damage",
    "test_3000_good_files_with_a_wrong_value": "a wrong value in a checkpoint, config, run.json, result or evaluation",
    "test_good_files_with_a_wrong_value": "the same, other values",
    "test_wrong_command_lines": "wrong command lines, over every command",
    "test_training_outlives_its_streams": "training with a closed, broken or full stdout or stderr",
    "test_a_command_that_prints_ends_quietly": "a command that prints, with such a stream",
    "test_commands_that_print_end_quietly": "commands that print, with such a stream",
    "test_in_a_shell": "the same from a shell, to the interpreter's own end",
    "test_a_working_directory_that_is_gone_is_said_in_one_line": "a command in a folder that is gone",
    "test_data_that_change_under_training_are_noticed": "data truncated, removed or changed under training",
    "test_a_run_whose_folder_goes_away_ends_in_one_sentence": "a run's folder renamed or removed under training",
    "test_any_write_may_fail": "no space, no quota or a bad disk at the n-th write, fsync or rename of training",
    "test_a_write_that_fails_ends_training_in_one_sentence": "the same, two of them",
    "test_a_limit_on_the_size_of_files": "a limit on the size of files",
    "test_small_disks": "training on a disk of 8 kB to 4 MB",
    "test_a_small_disk": "the same, one size",
    "test_a_full_disk_leaves_an_earlier_evaluation": "evaluate over an earlier evaluation, on a full disk",
    "test_a_disk_that_is_full_at_any_write_of_a_command": "no space at the n-th write of any other command",
    "test_four_trainings_at_once_take_four_folders": "four trainings at once",
    "test_four_samples_at_once_write_four_files": "four times sample at once",
    "test_of_two_trainings_with_one_out_one_runs_and_one_refuses": "two trainings into one folder at once",
    "test_a_second_training_into_a_run_that_is_under_way_is_refused": "a training into a folder where one is under way",
    "test_what_a_system_lacks_is_left_out": "without locks, links, SIGHUP or the flush of folders",
    "test_each_thing_that_a_system_lacks_is_left_out": "without one of these",
}


class Row(NamedTuple):
    """What came out of one test, over all its cases."""

    what: str
    times: int
    faults: int
    outcomes: Counter[str]


def rows(report: Path) -> list[Row]:
    """Add up the cases of each test in a JUnit report, in the order of `WHAT`."""
    found: dict[str, Row] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].partition("[")[0]
        if name not in WHAT or case.find("skipped") is not None:
            continue
        told = [(p.attrib["name"], p.attrib["value"]) for p in case.iter("property")]
        counts = {key: int(value) for key, value in told if key in ("times", "faults")}
        failed = case.find("failure") is not None or case.find("error") is not None
        faults = max(counts.get("faults", 0), int(failed))
        row = found.get(name, Row(WHAT[name], 0, 0, Counter()))
        for key, value in told:
            if key not in counts:
                row.outcomes[key] += int(value)
        found[name] = row._replace(times=row.times + counts.get("times", 1), faults=row.faults + faults)
    return [found[name] for name in WHAT if name in found]


def page(table: Iterable[Row], command: str, minutes: float) -> str:
    """Return the page."""
    import torch

    from ppl_vae._machine import processor

    table = list(table)
    lines = [
        "# Reliability: faults on purpose",
        "",
        "What happens to runs that are killed, disks that are full, files that are damaged and words that are wrong.",
        "`tests/faults` does it; a few of each kind in every run of the tests, and all of it by",
        "",
        f"    {command}",
        "",
        f"which made this page on {time.strftime('%Y-%m-%d')}: Python {platform.python_version()}, torch "
        f"{torch.__version__}, {platform.system()}, {os.cpu_count()} cores ({processor()}), {minutes:.0f} minutes.",
        "",
        "| what was done | times | faults | what came out |",
        "|---|---:|---:|---|",
    ]
    for row in table:
        outcomes = ", ".join(f"{name} {n:,}" for name, n in sorted(row.outcomes.items()))
        lines.append(f"| {row.what} | {row.times:,} | {row.faults:,} | {outcomes} |")
    return "\n".join([*lines, "", MEANING])


MEANING = """\
**Resumed** means: `ppl-vae train --resume FOLDER` until a run ends (started anew where it was killed before its first
checkpoint). Then everything in `checkpoint.pt` (parameters, optimiser, random state, best and last parameters,
history), `result.json`, `metrics.jsonl`, `config.yaml` and the list of files is, apart from times, bit for bit that
of a run which nothing disturbed. The runs take turns: a captured graph, early stopping that stops, dynamic
binarisation, a schedule with batch normalisation. At least two in five moments lie in the first tenth of a run or in
its last third, where pictures are drawn.

**Damaged bytes** are flipped bits, cuts, insertions, copies, zeros, swaps and other digits, in checkpoints of both
formats, config.yaml, run.json, result.json, metrics.jsonl, evaluation.json, `.npy`, `.npz`, MNIST's idx files and a
PNG of a folder, each read by the commands that read it. A fault is a traceback, a crash, a warning of Python's, more
than one line for exit code 2, more than 10 s of computing, more than 2 GB of memory, or damaged bytes of a checkpoint
taken.

**A wrong command line** must give one line on stderr and exit code 2 within 10 s, and leave every file as it was.

**A full disk** must end training with exit code 1 and one sentence that names the file and the cause. Checkpoints and
results that were there before must load, and no temporary file may be left.
"""


def main(argv: Sequence[str]) -> int:
    """Run the tests, and write the page, or print it if only a part of the tests was asked for."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(HERE), "-m", "slow or not slow", "-q", "--tb=short", *argv]
        code = subprocess.run([*command, f"--junitxml={report}", "-o", "junit_family=xunit1"]).returncode
        table = rows(report)
    text = page(table, "python tests/faults/reliability.py", (time.monotonic() - began) / 60)
    if argv:
        print(text)
    else:
        PAGE.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
