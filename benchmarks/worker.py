"""One contender in a process of its own, driven by `race.Worker`.

    python worker.py CONTENDER OPTIONS

It imports what the contender needs, and says so by a line of JSON; then it answers every line of standard input by
another: ``set up`` makes the contender and takes its first steps, ``round`` times as many steps as fill the wished
time. Whatever the libraries print goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

from contenders import EVERYONE
from contenders.setting import Setting

FIRST_STEPS = 3  # timed one by one: among them are capturing, compiling, and making the optimiser's state
WARM_UP = 10
SHORTEST_ROUND = 3
LIBRARIES = ("torch", "pyro-ppl", "numpyro", "jax", "pythae", "numpy")


def main() -> None:
    """Serve until standard input ends."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if options["cores"] is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options["cores"]])
    setting = Setting(**options["setting"] | {"hidden": tuple(options["setting"]["hidden"])})
    served = serve(name, setting, options["started"], options["seconds"])
    while True:
        try:
            answer = next(served)
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)
        if "failed" in answer or not sys.stdin.readline():
            return


def serve(name: str, setting: Setting, started: float, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what happened: the import, the set-up, and then one round after another."""
    make = EVERYONE[name].load()
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
        sys.modules["torch"].set_float32_matmul_precision(setting.matmul_precision)
    yield {"import": time.time() - started}

    began = time.perf_counter()
    run = make(setting)
    made = time.perf_counter() - began
    first = [timed(run, 1)[0] for _ in range(FIRST_STEPS)]
    timed(run, WARM_UP)
    steady, taken = timed(run, SHORTEST_ROUND)
    yield {
        "make": made,
        "first_steps": first,
        "steady_step": steady / taken,
        "peak_mib": peak_mib(),
        **environment(setting),
        **(run.facts() if hasattr(run, "facts") else {}),
    }

    steps = max(SHORTEST_ROUND, math.ceil(seconds * taken / steady))
    while True:
        elapsed, taken = timed(run, steps)
        yield {"milliseconds": 1e3 * elapsed / taken, "steps": taken}


def timed(run: Any, steps: int) -> tuple[float, int]:
    """Run steps; return the seconds, and how many steps it took."""
    began = time.perf_counter()
    taken = run(steps)
    return time.perf_counter() - began, taken


def peak_mib() -> float:
    """The largest resident memory of this process so far, in MiB; a compiler's processes are not counted."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def environment(setting: Setting) -> dict[str, Any]:
    """Versions of what was imported, threads in use, and the GPU's name."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        if library.removesuffix("-ppl") in sys.modules:
            versions[library] = importlib.metadata.version(library)
    torch = sys.modules.get("torch")
    found: dict[str, Any] = {"versions": versions}
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if setting.device == "cuda":
            found["gpu"] = torch.cuda.get_device_name()
    return found


if __name__ == "__main__":
    main()
