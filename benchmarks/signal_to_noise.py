r"""The signal-to-noise of the encoder's gradient against K, of estimators of importance-weighted bounds.

    python benchmarks/signal_to_noise.py --json benchmarks/results      # 5 minutes on a quiet core

The model is that of `examples/tighter_bounds.py`: 20 dimensions, normal, each parameter 0.01 away from the best, a
batch of 64, float64. The signal-to-noise is that of the whole gradient: the norm of the mean over the root of the trace
of the covariance, without the noise of the mean. The powers are fitted by `comparison.fixed.slopes`, with 95%
intervals.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from ppl_vae._machine import processor
from ppl_vae.comparison import Row

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = ("VIMCO", "VIMCOStar", "OVIS", "OVISMC", "RWS", "IWAE", "DReG")
PARTICLES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FIT_FROM = 16  # particles


def example() -> Any:
    """Return the module of the example."""
    spec = importlib.util.spec_from_file_location("tighter_bounds", ROOT / "examples" / "tighter_bounds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(replicates: dict[int, int]) -> tuple[Any, list[Row]]:
    """Return the example, and the rows of all estimators from so many gradients at each K."""
    module = example()
    model, rows = module.Gaussian.make(), []
    for k, number in replicates.items():
        start = time.perf_counter()
        rows += module.compare(model, [k], number, [n for n in OBJECTIVES if k > 2 or n != "OVISMC"]).rows
        print(f"K = {k}: {number} gradients of each, {time.perf_counter() - start:.0f} s", flush=True)
    return module, rows


def table(module: Any, rows: list[Row], replicates: dict[int, int]) -> str:
    """Return the table for the documentation."""
    whole = module.pooled(rows)
    powers = module.powers(whole, FIT_FROM)
    head = "".join(f" {k:,} |" for k in replicates)
    lines = [f"| encoder's gradient | K ={head} power of K from {FIT_FROM} on |", "|---" * (len(replicates) + 2) + "|"]
    for name in OBJECTIVES:
        found = {row.num_particles: row.blocks["encoder"].snr for row in whole if row.name == name}
        cells = "".join(
            " - |" if k not in found else f" {found[k].value:.3g} |" if found[k].low > 0 else " noise |"
            for k in replicates
        )
        slope = powers.get((name, "encoder"))
        fitted = "-" if slope is None else f"{slope.value:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}]"
        lines.append(f"| `{name}` |{cells} {fitted} |")
    return "\n".join([*lines, "| gradients drawn |" + "".join(f" {r:,} |" for r in replicates.values()) + " |"])


def main() -> None:
    """Measure, print the table, and write it with all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="a folder for signal_to_noise.json (default: none)")
    parser.add_argument("--replicates", type=int, default=500, help="gradients up to K = 16, fewer beyond (500)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    replicates = {k: max(40, min(arguments.replicates, 16 * arguments.replicates // k)) for k in PARTICLES}
    module, rows = measure(replicates)
    print(text := table(module, rows, replicates))
    if arguments.json is None:
        return
    cells = [
        {"estimator": row.name, "K": row.num_particles}
        | {
            block: {"snr": list(b.snr), "norm": list(b.norm), "variance": list(b.variance)}
            for block, b in row.blocks.items()
        }
        for row in module.pooled(rows)
    ]
    content = {
        "part": "signal_to_noise",
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor(), "threads": 1},
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time()),
        "replicates": {str(k): r for k, r in replicates.items()},
        "cells": cells,
        "table": text.splitlines(),
    }
    path = Path(arguments.json) / "signal_to_noise.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
