"""Wrong command lines, over every command: one line, exit code 2, and nothing written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import traceback
from pathlib import Path

import places
import processes
import pytest

pytestmark = pytest.mark.ci

LIMIT = 10  # seconds of computing
BIG, HUGE = str(10**12), str(10**30)
WRONG = ("word", "0", "-1", "nan", "inf", "1.5", "[1]", "''", HUGE)

RUN = ("sample", "reconstruct", "encode", "score", "interpolate", "evaluate")  # commands that take one run


def positive(command: str, option: str, *further: str, but: tuple[str, ...] = ()) -> list[str]:
    """Command lines that give an option, which takes a positive integer, each wrong value; `but` are right ones."""
    return [f"{command} --{option} {value}" for value in (*WRONG, *further) if value not in but]


TABLE: list[str] = [
    # no command, and options that no command has
    "", "trian", "Train", "--train", "-v", "--", "train train", "train run", "train -e 3", "\0", "--trust",
    *(f"{c} --nonsense 1" for c in ("train", "check", "compare", "pieces", "show run", "sample run", "evaluate run",
                                    "reconstruct run", "encode run", "interpolate run")),
    *(f"{c} --seed" for c in ("train", "check", "compare", "sample run", "evaluate run")),
    *(f"{c} --out" for c in ("train", "compare", "sample run", "reconstruct run", "encode run", "interpolate run")),
    *(f"{c} --=3" for c in ("train", "check", "sample run", "show run")),
    *(f"{c} -x" for c in ("train", "check", "compare", "pieces", "show", "sample", "encode")),
    "pieces Bernouli", "pieces Bernoulli MLP", "pieces --json true x", "pieces prior likelihood", "show",
    "show --json",
    "show --json=true run", "show nowhere", "show folder", "show empty", "show norun/../nowhere", "show loop",
    # runs that are none
    *(f"{c} {word}" for c in RUN for word in ("", "nowhere", "folder", "empty", "norun", "loop", "run run", "x.npy",
                                              "/dev/null", "run/config.yaml/x")),
    "check nowhere", "check folder", "check run run", "compare nowhere", "compare folder", "compare run run",
    "sample run/config.yaml", "sample run/metrics.jsonl", "encode run/run.json",
    # numbers
    *positive("train", "epochs", "-1.0", "1e3x", but=(HUGE,)), *positive("train", "batch_size", but=(HUGE,)),
    *positive("train", "validate_every", but=(HUGE,)), *positive("train", "early_stopping", but=(HUGE,)),
    *positive("train", "clip_norm", but=("1.5", HUGE)), *positive("train", "checkpoint_every", but=("1.5", HUGE)),
    *(f"train --seed {v}" for v in WRONG if v != "0"), *positive("train", "prior.latent_dim"),
    *(f"train --optimizer.lr {v}" for v in ("word", "-1", "nan", "inf", "[1]", "''")),
    *(f"train --likelihood.network.hidden {v}" for v in ("word", "[0]", "[-1]", "[1.5]", "[[1]]", f"[{BIG}]",
                                                         f"[{HUGE}]", "{}", "[nan]", "[1", "[true]")),
    *(f"train --objective IWAE --objective.num_particles {v}" for v in (*WRONG, BIG)),
    *(f"train --data.validation {v}" for v in ("word", "-1", "nan", "inf", "1.5", "1797", HUGE)),
    *(f"train --data.threshold {v}" for v in ("word", "-1", "2", "nan", "inf")),
    *(f"train --data.seed {v}" for v in ("word", "-1", "1.5", HUGE)),
    *(f"train --data.max_in_memory_gib {v}" for v in ("word", "-1", "nan")),
    *(f"train --data.workers {v}" for v in ("word", "-1", "1.5", "nan", "2")),
    *positive("sample run", "size", BIG), *(f"sample run --seed {v}" for v in WRONG if v != "0"),
    *positive("reconstruct run", "size", but=(HUGE,)), *positive("interpolate run", "pairs", but=(HUGE,)),
    *positive("interpolate run", "steps", "1", BIG), *positive("evaluate run", "size", but=(HUGE,)),
    *(f"evaluate run --{name} {v}" for name in ("gaps", "importance", "imputation")
      for v in ("word", "-1", "nan", "inf", "1.5", "[1]")),
    *(f"evaluate run --bins {v}" for v in ("word", "0", "-1", "1", "nan", "1.5")),
    *(f"evaluate run --particles {v}" for v in ("word", "[0]", "[-1]", "[]", "[1.5]", f"[{BIG}]")),
    *(f"evaluate run --seed {v}" for v in WRONG if v != "0"), *(f"check --seed {v}" for v in ("-1", "word", "1.5",
    HUGE)),
    *(f"check run --seed {v}" for v in ("-1", "word", "1.5", HUGE)),
    *positive("compare run", "replicates", "1"), *positive("compare run", "size", but=(HUGE,)),
    *(f"compare run --particles {v}" for v in ("word", "0", "-1", "[0]", "1.5", HUGE)),
    *(f"compare run --seed {v}" for v in ("-1", "word", "1.5", HUGE)),
    *(f"compare --train true --seeds {v}" for v in ("0", "-1", "word", "1.5", "[]", "[-1]")),
    *(f"compare --train true --max_seconds {v}" for v in ("0", "-1", "word", "nan")),
    *(f"compare --train true --evaluate_every {v}" for v in ("0", "-1", "word", "1.5")),
    *(f"compare --train true --evaluation_size {v}" for v in ("0", "-1", "word", "1.5")),
    # names
    "train --prior StandardNormale", "train --prior os.system", "train --prior os.nothing",
    "train --prior no.such.Thing",
    "train --likelihood MLP", "train --posterior Bernoulli", "train --objective ELBOW", "train --optimizer Adamm",
    "train --scheduler Step", "train --scheduler StepLR", "train --device abacus", "train --compile maybe",
    "train --data digit", "train --data ''", "train --data.binarize always", "train --data.nothing 1",
    "train --prior.nothing 1", "train --likelihood.network nothing", "train --likelihood.network.activation sigmoidal",
    "train --prior None", "train --optimizer null", "train --config artcle", "train --data.conditional maybe",
    "train --likelihood Normal --likelihood.scale -1", "train --objective RenyiELBO --objective.alpha nan",
    "compare run --objectives ELBOW", "compare run --objectives ''", "compare run --objectives [",
    "compare run --split half",
    "compare run --reference nothing", "compare run --minibatch maybe", "compare run --train maybe",
    "compare run --train true", "compare --prior StandardNormale", "evaluate run --evidence magic",
    "evaluate run --split half", "encode run --split half", "reconstruct run --split half", "check --only network",
    "check run --only network", "check --only", "check --prior StandardNormale", "check --out x", "check --resume run",
    "sample run --mean maybe", "sample run --label 1", "sample labelled --label 10", "sample labelled --label -1",
    "sample labelled --label word", "reconstruct labelled --label 1", "sample run --overwrite maybe",
    # files
    *(f"train --config {f}" for f in ("folder", "empty", "latin.yaml", "bytes", "list.yaml", "unknown.yaml",
    "twice.yaml",
                                      "deep.yaml", "bomb.yaml", "system.yaml", "huge.yaml", "missing.yaml", "loop",
                                      "/dev/zero", "text.npy", "locked", "/dev/null/x", "''")),
    *(f"train --config {f} --print_config" for f in ("folder", "latin.yaml", "bytes", "list.yaml", "twice.yaml",
    "deep.yaml",
                                                     "bomb.yaml", "/dev/zero", "missing.yaml")),
    *(f"train --data {f}" for f in ("empty.npy", "nan.npy", "rank.npy", "objects.npy", "words.npy", "large.npy",
    "text.npy",
                                    "names.npz", "folder", "empty", "missing.npy", "bytes", "loop", "/dev/null",
                                    "vectors.npy/x", "run")),
    *(f"encode run --data {f}" for f in ("empty.npy", "nan.npy", "rank.npy", "objects.npy", "words.npy", "large.npy",
                                         "text.npy", "names.npz", "folder", "empty", "missing.npy", "wide.npy",
                                         "vectors.npy", "digitz", "/dev/null")),
    *(f"evaluate run --data {f}" for f in ("empty.npy", "wide.npy", "missing.npy", "folder")),
    *(f"train --resume {f}" for f in ("nowhere", "folder", "empty", "norun", "run/config.yaml", "run/metrics.jsonl",
                                      "/dev/null", "loop", "run --prior.latent_dim 3", "run --optimizer.lr 1",
                                      "run --seed 3", "run --data vectors.npy", "run --config article")),
    *(f"train --out {f}" for f in ("x.npy", "run", "/dev/null", "/proc/x", "x.npy/y", "loop")),
    *(f"score run --particles {v}" for v in ("word", "0", "-1", "[1.5]", "[0]", "nan")),
    *positive("score run", "size", but=(HUGE,)), *(f"score run --seed {v}" for v in WRONG if v != "0"),
    *(f"score run --data {f}" for f in ("empty.npy", "wide.npy", "missing.npy", "nan.npy")),
    "score run --evidence quadratur", "score run --split half", "score table --out t.png",
    *(f"{c} run --out {f}" for c in ("sample", "reconstruct", "interpolate", "encode", "score") for f in
      ("x", "x.gif", "folder", "nowhere/x.npz", "/proc/x.npz", "x.npz", "/dev/null")),
    *(f"evaluate run --out {f}" for f in ("x.npy", "/dev/null", "/proc/x", "x.npy/y")),
    "report", "report nowhere", "report folder", "report empty", "report loop", "report run nowhere", "report x.npy",
    "report run --overwrite maybe", "report run --split half", "report run --seed word", "report run --posteriors -1",
    *positive("report run", "size", but=(HUGE,)),
    *(f"report run --out {f}" for f in ("x", "x.png", "folder", "/proc/x.html", "/dev/null", "x.npy/y.html")),
    *(f"compare run --out {f}" for f in ("x.npy", "/dev/null", "/proc/x")),
    "sample table --out t.png", "reconstruct table --out t.png", "interpolate table --out t.png",
    "sample table --label 0",
    "sweep", "sweep nowhere", "sweep plan.yaml plan.yaml", "sweep plan.yaml --dry_run=1", "sweep plan.yaml --nonsense",
    *(f"sweep {f}" for f in ("folder", "empty", "latin.yaml", "bytes", "list.yaml", "unknown.yaml", "twice.yaml",
                             "deep.yaml", "bomb.yaml", "loop", "/dev/null", "text.npy", "system.yaml")),
    *(f"sweep plan{i}.yaml" for i in range(5)), *positive("sweep plan.yaml", "threads", but=(HUGE,)),
    *(f"sweep plan.yaml --jobs {v}" for v in ("word", "0", "-2", "1.5", "nan", "''")),
    *(f"sweep plan.yaml --out {f}" for f in ("x.npy", "folder/../run", "/dev/null", "/proc/x", "x.npy/y", "loop")),
    *(f"compare run --jobs {v}" for v in ("word", "0", "-2", "1.5")),
    *(f"compare --train true --jobs {v}" for v in ("word", "0", "-2", "1.5")),
    # what does not go together
    "interpolate run --from 0", "interpolate run --to 3", "interpolate run --from -1 --to 2",
    f"interpolate run --from 0 --to {BIG}", "interpolate run --from x --to y", "interpolate run --z [[0,0]]",
    "interpolate run --z [[0,0,0],[1,1,1]]", "interpolate run --z [[0,0],[nan,1]]", "interpolate run --z [0,0]",
    "interpolate run --z word", "interpolate run --z [[0,0],[1,1]] --from 0 --to 1",
    "interpolate run --spherical maybe",
    "interpolate labelled", "interpolate run --label 3", "train --data.binarize none", "train --data.dequantize true",
    "train --early_stopping 3 --data.validation 0", "train --likelihood.network.batch_norm true --batch_size 1",
    "train --data vectors.npy --likelihood.network Conv", "train --data.conditional true --data vectors.npy",
    "train --scheduler ReduceLROnPlateau --data.validation 0",
    "train --batch_size 1 --posterior.network.batch_norm true",
]  # fmt: skip


def words(line: str) -> list[str]:
    """Split a command line at spaces; '' is an empty word."""
    return ["" if word == "''" else word for word in line.split()]


def tree() -> dict[str, tuple[int, int]]:
    """The files and folders below the working directory, with size and time."""
    paths = [p for p in Path().rglob("*") if "__pycache__" not in p.parts]
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in paths}


def give_all(lines: list[str], results: Path) -> int:
    """Run command lines in this process, and write a line of JSON for each, before and after."""
    from ppl_vae import cli

    places.add_what_is_no_file()
    before = tree()
    with results.open("w", buffering=1) as out:
        for line in lines:
            out.write(json.dumps({"line": line}) + "\n")
            printed, err = io.StringIO(), io.StringIO()
            signal.setitimer(signal.ITIMER_PROF, LIMIT)
            signal.alarm(20 * LIMIT)
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(err):
                try:
                    code = cli.main(words(line))
                except BaseException:
                    code = None
                    err.write(traceback.format_exc())
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            after = tree()
            changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            before = after
            fault = fault_of(code, printed.getvalue(), err.getvalue(), changed, line)
            out.write(json.dumps({"line": line, "code": code, "fault": fault}) + "\n")
    return 0


def fault_of(code: int | None, printed: str, err: str, changed: list[str], line: str = "") -> str | None:
    """Say what is wrong with the answer to a wrong command line; None if nothing is."""
    lines = err.splitlines()
    if "Traceback" in err:
        return "traceback: " + lines[-1][:300]
    if code != 2:
        return f"exit code {code}: {(err or printed)[-200:]!r}"
    if line and (len(lines) != 1 or not lines[0].startswith("ppl-vae: error: ")):
        return f"{len(lines)} lines: {err[:300]!r}"
    if printed:
        return f"stdout has {printed[:100]!r}"
    if changed:
        return f"files are written or changed: {changed[:5]}"
    return f"a line of {len(err)} characters" if len(err) > 2_500 and line else None


def faults_of(lines: list[str], place: Path, folder: Path) -> list[str]:
    """Run wrong command lines in as many processes as it takes, and return the faults."""
    faults, number = [], 0
    while lines:
        work, results = folder / f"work{number}", folder / f"results{number}"
        shutil.copytree(place, work)
        ended = processes.start(give_all, lines, results, folder=work).end(limit=3600)
        entries = [json.loads(entry) for entry in results.read_text().splitlines()] if results.exists() else []
        done = [entry for entry in entries if "code" in entry]
        faults += [f"ppl-vae {entry['line']}: {entry['fault']}" for entry in done if entry["fault"]]
        if len(done) < len(lines):
            assert len(entries) > 2 * len(done), ended.err  # else the harness itself failed
            end = {-signal.SIGPROF: f"{LIMIT} s of computing", -signal.SIGALRM: "it hangs"}.get(ended.code, ended.code)
            faults.append(f"ppl-vae {lines[len(done)]}: {end} {ended.err[-300:]}")
        lines, number = lines[len(done) + 1 :], number + 1
    return faults


def those_that_can_be_wrong_here(lines: list[str]) -> list[str]:
    """Leave out what this machine does not have: no file is locked for root, and Windows has no /dev."""
    root, devices = hasattr(os, "geteuid") and os.geteuid() == 0, Path("/dev/zero").exists()
    return [line for line in lines if not (root and "locked" in line) and (devices or "/" not in line)]


def test_the_table_is_long_and_has_every_command():
    from ppl_vae import cli

    assert len(set(TABLE)) == len(TABLE) >= 300
    for command in cli.COMMANDS:
        assert sum(line.startswith(command) for line in TABLE) >= 5, command


def test_some_of_the_wrong_command_lines(place, tmp_path):
    faults = faults_of(those_that_can_be_wrong_here(TABLE)[::25], place, tmp_path)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_wrong_command_lines(part, place, tmp_path, record_property):
    lines = those_that_can_be_wrong_here(TABLE)[part::10]
    faults = faults_of(lines, place, tmp_path)
    record_property("times", len(lines))
    record_property("faults", len(faults))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("code", "printed", "err", "changed", "wrong"),
    [
        (2, "", "ppl-vae: error: no\n", [], False),
        (0, "", "", [], True),
        (1, "", "ppl-vae: error: no\n", [], True),
        (2, "x", "ppl-vae: error: no\n", [], True),
        (2, "", "note: a\nppl-vae: error: no\n", [], True),
        (2, "", "ppl-vae: error: no\n", ["runs"], True),
        (None, "", "Traceback (most recent call last):\nKeyError: 1\n", [], True),
    ],
)
def test_what_counts_as_a_fault(code, printed, err, changed, wrong):
    assert (fault_of(code, printed, err, changed, "train x") is not None) == wrong
