"""What training costs beside Pyro, PyTorch by hand, NumPyro and pythae, each in a process of its own, in turn.

    python benchmarks/peers.py install                         # once, for NumPyro and pythae; they are left out without
    python benchmarks/run.py all --json benchmarks/results     # everything: about 25 minutes on two cores
    python benchmarks/run.py step                              # one part; prints its tables
    python benchmarks/run.py report --json benchmarks/results  # the tables of an earlier run again

Parts: step (the article's networks, batch 128), small (784-50-2-50-784), batch (16, 128, 1024), particles (K = 1, 5,
50), depth (1, 3, 6 hidden layers of 300), data (10,000 and 60,000 rows), start (import, first step, compiling, peak
memory), gpu (step, small, K = 50 and 784-200-200-50 on the GPU, where there is one; step and the last in TF32 too).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contenders import (
    BY_HAND,
    CONTENDERS,
    CUDA_GRAPHS,
    EXAMPLE,
    FLOOR,
    FULL,
    GRAPH,
    NUMPYRO,
    OFF,
    PYRO,
    PYTHAE,
    REFERENCE,
    WHOLE_STEP,
    WHOLE_STEP_COMPILED,
)
from contenders.setting import Setting, mnist_file
from race import FailedError, Options, Worker, race, say
from report import report, to_first_step

OF_A_GPU = {CUDA_GRAPHS, WHOLE_STEP, WHOLE_STEP_COMPILED}
AWAY_FROM_A_GPU = {OFF, EXAMPLE, PYTHAE, FLOOR}  # slow, or no bound there
EVERYBODY = [name for name in CONTENDERS if name not in OF_A_GPU]
COMPARED = [REFERENCE, FULL, GRAPH, PYRO, NUMPYRO]
STARTED = [REFERENCE, BY_HAND, FULL, GRAPH, OFF, PYRO, NUMPYRO, PYTHAE]
COMPILED = {REFERENCE, FULL}  # by Inductor, which keeps a cache on disk
SMALL = (50,)


@dataclasses.dataclass(frozen=True)
class Part:
    """Settings to race in, who races, and how many rounds."""

    settings: list[Setting]
    names: list[str]
    rounds: int


def parts(data: str) -> dict[str, Part]:
    """Every part but the one of start-up, which is no race."""
    base = Setting(data=data)

    def change(**changes: Any) -> Setting:
        return dataclasses.replace(base, **changes)

    gpu = {"device": "cuda", "rows": 60_000}
    paper = {**gpu, "hidden": (200, 200), "latent": 50, "batch_size": 100}
    return {
        "step": Part([base], EVERYBODY, 15),
        "small": Part([change(hidden=SMALL)], EVERYBODY, 15),
        "batch": Part([change(batch_size=size) for size in (16, 128, 1024)], COMPARED, 10),
        "particles": Part([change(num_particles=k) for k in (1, 5, 50)], COMPARED, 10),
        "depth": Part([change(hidden=(300,) * depth) for depth in (1, 3, 6)], COMPARED, 10),
        "data": Part([change(rows=rows) for rows in (10_000, 60_000)], COMPARED, 10),
        "gpu": Part(
            [
                change(**gpu),
                change(**gpu, matmul_precision="high"),
                change(**paper),
                change(**paper, matmul_precision="high"),
                change(**gpu, hidden=SMALL),
                change(**gpu, num_particles=50),
            ],
            [name for name in CONTENDERS if name not in AWAY_FROM_A_GPU],
            9,
        ),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*parts("random"), "start"]
    parser.add_argument("part", choices=["all", *names, "report"])
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write (for report: read) a file for each part")
    parser.add_argument("--data", choices=["random", "MNIST"], default="random", help="random bits by default")
    parser.add_argument("--rounds", type=int, help="default: 15 for step and small, 10 for costs, 9 for gpu, 3 else")
    parser.add_argument("--seconds", type=float, default=0.4, help="of a contender's round, about (default: 0.4)")
    parser.add_argument("--cores", type=int, help="pin every contender to so many cores (default: all)")
    parser.add_argument("--verbose", action="store_true", help="show what the contenders' libraries print")
    arguments = parser.parse_args()
    if arguments.part == "report":
        if arguments.json is None:
            parser.error("report needs --json FOLDER, where the results are")
        for name in names:
            if (path := arguments.json / f"{name}.json").exists():
                print(report(json.loads(path.read_text())))
        return
    if arguments.data == "MNIST":
        try:
            mnist_file()
        except ValueError as error:
            parser.error(str(error))
    raced: dict[Setting, dict[str, Any]] = {}
    for name in names if arguments.part == "all" else [arguments.part]:
        result: dict[str, Any] | None = None
        for result in measure(name, arguments, raced):
            if arguments.json:
                arguments.json.mkdir(parents=True, exist_ok=True)
                (arguments.json / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        if result is not None:
            print(report(result), flush=True)


def measure(name: str, arguments: argparse.Namespace, raced: dict[Any, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run one part, and yield what is known of it after each cell; nothing where there is nothing to run it on.

    Args:
        name: The part.
        arguments: The command line's.
        raced: The cells raced so far, by setting, which a later part takes over; added to.
    """
    say(f"{name}:")
    if name == "gpu" and not has_gpu():
        say("  skipped: torch.cuda.is_available() is False")
        return
    options = Options(arguments.rounds or 3, arguments.seconds, arguments.cores, arguments.verbose)
    result: dict[str, Any] = {"part": name, "date": datetime.date.today().isoformat(), "machine": machine(options)}
    if name == "start":
        result["rounds"], result["left_out"] = start(Setting(data=arguments.data), STARTED, options)
        yield described(result, options, [run["cold"] for runs in result["rounds"].values() for run in runs])
        return
    part = parts(arguments.data)[name]
    options = dataclasses.replace(options, rounds=arguments.rounds or part.rounds)
    result["cells"] = []
    for setting in part.settings:
        result["cells"].append(raced_cell(setting, part.names, options, raced))
        ready = [found for cell in result["cells"] for found in cell["contenders"].values()]
        yield described(result, options, ready)


def described(result: dict[str, Any], options: Options, ready: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add what is known of all that ran: the options, the versions, the GPU."""
    versions = {library: v for found in ready for library, v in found["versions"].items()}
    gpu = next((found["gpu"] for found in ready if "gpu" in found), None)
    return {**result, "options": dataclasses.asdict(options), "versions": versions, "gpu": gpu}


def raced_cell(setting: Setting, names: Sequence[str], options: Options, raced: dict[Any, Any]) -> dict[str, Any]:
    """Race in a setting, or take over those rounds of an earlier race that had all of these contenders."""
    cell = raced.get(setting)
    if cell is None or not set(names) <= cell["contenders"].keys() | cell["left_out"].keys():
        say(f" {setting}")
        cell = raced[setting] = race(setting, names, options)
    return {
        "setting": cell["setting"],
        "contenders": {name: cell["contenders"][name] for name in names if name in cell["contenders"]},
        "left_out": {name: cell["left_out"][name] for name in names if name in cell["left_out"]},
    }


def start(
    setting: Setting, names: Sequence[str], options: Options
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Start every contender in a fresh process, one at a time, and again with the compiler's cache that it left.

    Returns:
        For each contender its runs, ``cold`` and, for those compiled by Inductor, ``warm``, each with what
        `worker.serve` says of its set-up; and why others were left out.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    left_out: dict[str, str] = {}
    for _ in range(options.rounds):
        for name in names:
            if name in left_out:
                continue
            with tempfile.TemporaryDirectory() as cache:
                env = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
                run = {}
                for state in ("cold", "warm") if name in COMPILED else ("cold",):
                    try:
                        worker = Worker(name, setting, options, env)
                        run[state] = {**worker.hear(), **worker.ask()}
                        worker.end()
                    except FailedError as why:
                        left_out[name] = str(why)
                        del runs[name]
                        say(f"  {name}: left out: {why}")
                        break
                else:
                    runs[name].append(run)
                    say(f"  {name}: first step after {to_first_step(run['cold']):.1f} s")
    return runs, left_out


def machine(options: Options) -> dict[str, Any]:
    """The processor, how many of its cores are used, and the system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": min(options.cores or present, present),
        "system": platform.platform(),
        "threads_asked_for": os.environ.get("OMP_NUM_THREADS"),
    }


def has_gpu() -> bool:
    """Whether torch sees one; asked in another process, so that this one stays small."""
    import subprocess

    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


if __name__ == "__main__":
    main()
