"""Whether two checkouts print the same figures: what docs/results.md gets in under five minutes, and the commands.

    git worktree add /tmp/before HEAD~1
    python benchmarks/same_digits.py /tmp/before .

Runs each of `COMMANDS` in both checkouts, on one thread, and compares what they print line by line, or, where tables
with times are printed, the .csv files that they write. Times and memory are masked. Prints one line for each command,
then the first lines that differ; the exit code is 1 if any does. A change that leaves behaviour alone leaves every
digit alone. Takes about six minutes.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

CLI = "import sys; from ppl_vae.cli import main; sys.exit(main(sys.argv[1:]))"
COMMANDS = {  # in order: later commands read the run of the first
    "train": ["-c", CLI, "train", "--epochs", "5", "--out", "run"],
    "evaluate": ["-c", CLI, "evaluate", "run", "--size", "40"],
    "compare": ["-c", CLI, "compare", "run", "--particles", "8", "--replicates", "100"],
    "race": ["-c", CLI, "compare", "--train", "true", "--epochs", "2", "--seeds", "2", "--objectives", "[ELBO, IWAE]"],
    "pieces": ["-c", CLI, "pieces"],
    "three_elbos": ["examples/three_elbos.py"],
    "missed_modes": ["examples/missed_modes.py"],
    "table_imputation": ["examples/table_imputation.py"],
    "tighter_bounds": ["examples/tighter_bounds.py", "--out", "tighter_bounds.png"],
}
_NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
_TIME = re.compile(rf"{_NUMBER}\s*(?:s|ms|us|µs|min|minutes|seconds|per second|steps/s)\b")


def _cells(paths: Iterable[Path]) -> list[str]:
    """Return the cells of .csv files, a line each, without those of times and memory."""
    lines = []
    for path in sorted(paths):
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                cells = {k: v for k, v in row.items() if not k.startswith(("seconds", "bytes"))}
                lines += [f"{path.name} row {number}: {key} = {value}" for key, value in cells.items()]
    return lines


def _without_times(text: str) -> list[str]:
    """Return the lines of a text, with times masked: numbers with a unit, and a table's last column of seconds."""
    lines, timed = [], False
    for line in text.splitlines():
        shown = _TIME.sub("TIME", line).rstrip()
        lines.append(re.sub(r"\s+\S+$", " TIME", shown) if timed else shown)
        timed = bool(shown) and (timed or shown.endswith("seconds"))
    return lines


def figures(checkout: Path, folder: Path, words: list[str]) -> list[str]:
    """Run Python in a checkout and return the lines that it prints or writes, without times."""
    words = [str(checkout / word) if word.startswith("examples/") else word for word in words]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    earlier = set(folder.rglob("*.csv"))
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(words)} failed:\n{done.stderr}")
    lines = _cells(set(folder.rglob("*.csv")) - earlier) if "compare" in words else _without_times(done.stdout)
    if not lines:
        raise SystemExit(f"{checkout}: {' '.join(words)} gave no figure to compare")
    return lines


def main(words: list[str] | None = None) -> int:
    """Compare two checkouts and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    args = parser.parse_args(words)
    differ = 0
    with tempfile.TemporaryDirectory() as before, tempfile.TemporaryDirectory() as after:
        for name in args.only:
            pairs = zip_longest(
                figures(args.before.resolve(), Path(before), COMMANDS[name]),
                figures(args.after.resolve(), Path(after), COMMANDS[name]),
                fillvalue="(nothing)",
            )
            lines = list(pairs)
            unlike = [(a, b) for a, b in lines if a != b]
            differ += bool(unlike)
            print(f"{name}: {len(lines)} lines, {len(unlike) or 'none'} differ", flush=True)
            for a, b in unlike[:10]:
                print(f"  before  {a}\n  after   {b}", flush=True)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
