"""A step of this checkout beside that of another one, in one run: is speed lost?

    git worktree add /tmp/before COMMIT
    python benchmarks/beside.py /tmp/before [--device cuda] [--levels graph full] [--rounds 15]

A process for each checkout holds all its contenders. Rounds go over all of them in turn, one computing at a time; a
ratio is that of the two checkouts in the same round, and shown are its median and quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NETWORKS = {"article 784-500-300-150-2, batch 128": ([500, 300, 150], 128), "small 784-50-2, batch 128": ([50], 128)}


def program(hidden: list[int], device: str) -> Any:
    """The VAE whose steps are timed, always the same."""
    import torch

    import ppl_vae as pv

    torch.manual_seed(0)
    return pv.VAE(
        (784,),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP(hidden[::-1])),
        posterior=pv.posteriors.DiagonalNormal(pv.networks.MLP(hidden)),
    ).to(device)


def contenders(levels: list[str], device: str) -> dict[str, Any]:
    """What takes steps, by name."""
    import functools

    import torch

    import ppl_vae as pv

    found: dict[str, Any] = {}
    for name, (hidden, batch) in NETWORKS.items():
        for level in levels:
            vae = program(hidden, device)
            adam = functools.partial(torch.optim.Adam, lr=1e-3)
            svi = pv.SVI(vae.model, vae.guide, adam, pv.objectives.ELBO(), compile=level)
            x = (torch.rand(20 * batch, 784) > 0.5).float().to(device).split(batch)

            def steps(count: int, svi: Any = svi, x: Any = x, method: str = "update") -> None:
                take = getattr(svi, method)
                for i in range(count):
                    take(x[i % len(x)])
                if device != "cpu":
                    torch.cuda.synchronize()

            found[f"{name}, {level}, update"] = steps
            found[f"{name}, {level}, step"] = functools.partial(steps, method="step")
    return found


def worker(levels: list[str], device: str) -> None:
    """Answer lines ``name seconds`` with the milliseconds of a step."""
    import pyro

    pyro.enable_validation(False)
    ready = contenders(levels, device)
    for steps in ready.values():
        steps(40)
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = json.loads(line)
        steps, count, began = ready[name], 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            steps(20)
            count += 20
        print(1000 * (time.perf_counter() - began) / count, flush=True)


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--levels", nargs="+", default=["graph", "full"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.levels, args.device)
        return
    here = Path(__file__).resolve().parent.parent
    command = [sys.executable, __file__, str(args.other), "--worker", "--device", args.device, "--levels", *args.levels]
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])},
        )
        for home in (args.other.resolve(), here)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    names = [
        f"{name}, {level}, {method}" for name in NETWORKS for level in args.levels for method in ("update", "step")
    ]
    taken: dict[str, list[list[float]]] = {name: [[], []] for name in names}
    for turn in range(args.rounds):
        for name in names:
            for i in (0, 1) if turn % 2 else (1, 0):
                processes[i].stdin.write(json.dumps([name, args.seconds]) + "\n")
                processes[i].stdin.flush()
                taken[name][i].append(float(processes[i].stdout.readline()))
    print("| step | other, ms | this, ms | this / other (quartiles) |\n|---|---|---|---|")
    for name, (other, this) in taken.items():
        ratios = sorted(a / b for a, b in zip(this, other, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = statistics.median(other), statistics.median(this)
        print(f"| {name} | {medians[0]:.3f} | {medians[1]:.3f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    for process in processes:
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
