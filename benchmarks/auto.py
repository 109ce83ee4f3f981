"""Whether `compile="auto"` chooses well: whole runs of `fit` at each level, start-up and compiling included.

    python benchmarks/auto.py --json benchmarks/results            # about 8 minutes on two quiet cores

The article's networks on 10,240 rows of random data in batches of 128, for 1, 10 and 100 epochs. Each run is a process
of its own, timed from its start to its end; Inductor's cache is empty, or as the run before of the same level left it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ppl_vae._machine import processor

LEVELS = ("off", "graph", "full", "auto")
RUN = """
import sys, torch, ppl_vae as pv
from beside import program
torch.set_flush_denormal(True)
torch.manual_seed(0)
x = (torch.rand(10_240, 784) > 0.5).float()
pv.fit(program([500, 300, 150], "cpu"), x, epochs=int(sys.argv[1]), compile=sys.argv[2], seed=0, device="cpu")
"""


def seconds(epochs: int, level: str, cache: str) -> float:
    """Return what one run takes."""
    began = time.perf_counter()
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-c", RUN, str(epochs), level]
    subprocess.run(command, cwd=Path(__file__).parent, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--json", type=Path, help="a folder for auto.json")
    args = parser.parse_args()
    rows = []
    print("| epochs | cache | off, s | graph, s | full, s | auto, s | auto / best |\n|---|---|---|---|---|---|---|")
    for epochs in args.epochs:
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("empty", "filled"):
                taken = {level: seconds(epochs, level, f"{folder}/{level}") for level in LEVELS}
                ratio = taken["auto"] / min(taken[level] for level in LEVELS[:-1])
                rows.append({"epochs": epochs, "cache": cache, "seconds": taken})
                print(
                    f"| {epochs} | {cache} | {' | '.join(f'{s:.1f}' for s in taken.values())} | {ratio:.2f} |",
                    flush=True,
                )
    if args.json:
        found = {"processor": processor(), "cores": os.cpu_count(), "date": f"{datetime.date.today()}", "runs": rows}
        (args.json / "auto.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
