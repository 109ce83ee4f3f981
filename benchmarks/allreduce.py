"""What one flat all-reduce under gloo takes, against the number of floats, for processes of one machine.

    python benchmarks/allreduce.py --out benchmarks/results/allreduce.json     # 1 to 3 minutes

Each process has one thread. The processes meet at a barrier, and each then times one `all_reduce` of a float32 tensor.
A time is that of the slowest process. The fit is alpha + 2 (N - 1) / N * bytes / B, by least squares of relative errors
over all sizes. All processes share the cores of this machine, and its memory in the place of a network: more processes
than cores measure the scheduler too. The JSON says how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ppl_vae._machine import processor

FLOATS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
PROCESSES = (2, 4)


def worker(rank: int, world: int, meeting: str, floats: list[int], repeats: int, seconds: float, out: str) -> None:
    """One process: the times of its all-reduces, of which rank 0 writes those of the slowest process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    found = []
    for number in floats:
        x = torch.ones(number)
        times: list[float] = []
        began = time.perf_counter()
        for turn in range(repeats + 3):  # the first three warm up
            x.fill_(1.0)
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(x)
            took = torch.tensor([time.perf_counter() - start, time.perf_counter() - began], dtype=torch.float64)
            if x[0] != world or x[-1] != world:
                raise RuntimeError(f"the sum over {world} processes is {x[0]}")
            dist.all_reduce(took, dist.ReduceOp.MAX)  # all know the slowest, and stop together
            times.append(float(took[0]))
            if took[1] > seconds and turn >= 8:
                break
        found.append(times[3:])
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def measure(world: int, floats: list[int], repeats: int, seconds: float) -> list[dict[str, Any]]:
    """The times of so many processes: median and quartiles for each number of floats."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/times.json"
        mp.spawn(worker, (world, f"{folder}/meeting", floats, repeats, seconds, out), nprocs=world)
        times = json.loads(Path(out).read_text())
    rows = []
    for number, found in zip(floats, times, strict=True):
        low, median, high = (float(q) for q in np.quantile(found, [0.25, 0.5, 0.75]))
        row = {"floats": number, "repeats": len(found), "median": median, "low": low, "high": high, "least": min(found)}
        rows.append(row)
    return rows


def transfer(world: int, floats: float) -> float:
    """The bytes that each of N processes sends: 2 (N - 1) / N of the buffer."""
    return 2 * (world - 1) / world * 4 * floats


def fit(world: int, rows: list[dict[str, Any]], of: str = "median") -> dict[str, float]:
    """The latency in seconds, the bandwidth in bytes a second, and the largest relative error of the fit."""
    times = np.array([row[of] for row in rows])
    sent = np.array([transfer(world, row["floats"]) for row in rows])
    design = np.stack([np.ones_like(sent), sent], 1) / times[:, None]
    latency, per_byte = np.linalg.lstsq(design, np.ones_like(sent), rcond=None)[0]
    errors = (latency + per_byte * sent) / times - 1
    return {"latency": float(latency), "bandwidth": float(1 / per_byte), "error": float(np.abs(errors).max())}


def table(result: dict[str, Any]) -> str:
    """The times and the fits as Markdown."""
    worlds = [cell["processes"] for cell in result["cells"]]
    head = "".join(f" {world} processes, ms (quartiles) |" for world in worlds)
    lines = [f"| floats |{head}", "|---" * (1 + len(worlds)) + "|"]
    for rows in zip(*(cell["rows"] for cell in result["cells"]), strict=True):
        cells = (f"{1e3 * r['median']:.3g} ({1e3 * r['low']:.3g} to {1e3 * r['high']:.3g})" for r in rows)
        lines.append(f"| {rows[0]['floats']:,} | " + " | ".join(cells) + " |")
    fits = (f"{1e6 * c['fit']['latency']:.0f} us, {c['fit']['bandwidth'] / 1e9:.2f} GB/s" for c in result["cells"])
    return "\n".join([*lines, "| latency, bandwidth | " + " | ".join(fits) + " |"])


def main(argv: list[str] | None = None) -> None:
    """Measure, write the result, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("allreduce.json"))
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES))
    parser.add_argument("--floats", type=int, nargs="+", default=list(FLOATS))
    parser.add_argument("--repeats", type=int, default=200, help="at most, of each size (200)")
    parser.add_argument("--seconds", type=float, default=8.0, help="at most, for each size (8)")
    arguments = parser.parse_args(argv)
    began, load = time.perf_counter(), os.getloadavg()[0]
    cells = []
    for world in arguments.processes:
        rows = measure(world, arguments.floats, arguments.repeats, arguments.seconds)
        cells.append(
            {"processes": world, "rows": rows, "fit": fit(world, rows), "fit_least": fit(world, rows, "least")}
        )
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": 1, "load": round(load, 2)},
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "backend": "gloo",
        "cells": cells,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
