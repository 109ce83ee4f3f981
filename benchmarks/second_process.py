"""What a second process costs and gains on one machine: steps of `fit` in one process and shared by two.

    python benchmarks/second_process.py --json benchmarks/results     # about 5 minutes on two quiet cores

One process of one thread, one of two threads and two of one thread (gloo) train in turn, for some rounds, on made-up
binary images of 784 pixels. A step is the whole batch's: gathering, noise, forward, backward, the exchange, Adam. The
medians of the rounds' milliseconds are printed, and the ratios to one process of one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

import ppl_vae as pv
from ppl_vae import likelihoods, networks, objectives, posteriors, priors
from ppl_vae._machine import processor

NETWORKS = {"784-50-2": [50], "784-500-300-150-2": [500, 300, 150]}
WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread": (2, 1)}
STEPS = 60


def train(widths: list[int], batch: int, particles: int, steps: int) -> float:
    """Return the milliseconds of a step, from the second epoch on."""
    torch.manual_seed(0)
    x = (torch.rand(batch * steps, 784) < 0.3).float()
    vae = pv.VAE(
        (784,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP(widths[::-1])),
        posterior=posteriors.DiagonalNormal(networks.MLP(widths)),
    )
    objective = objectives.ELBO() if particles == 1 else objectives.IWAE(particles)
    run = pv.fit(vae, x, objective=objective, epochs=3, batch_size=batch, seed=0, device="cpu", compile="graph")
    assert run.why_eager is None
    return min(1000 * batch / record["rate"] for record in run.history[1:])


def work(rank: int, count: int, threads: int, folder: str, cases: list[tuple[Any, ...]]) -> None:
    """Time every case in one of `count` processes; the first one writes the figures."""
    torch.set_num_threads(threads)
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    found = [train(NETWORKS[name], batch, particles, steps) for name, batch, particles, steps in cases]
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    if count > 1:
        dist.destroy_process_group()


def main(rounds: int, steps: int, folder: Path | None) -> None:
    """Time all ways in turn, and print the table."""
    cases = [
        (name, batch, particles, steps if batch * particles < 2000 else max(2, steps // 6))
        for name in NETWORKS
        for batch, particles in ((128, 1), (1024, 1), (128, 50))
    ]
    times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    began = time.perf_counter()
    for _ in range(rounds):
        for way, (count, threads) in WAYS.items():
            with tempfile.TemporaryDirectory() as scratch:
                multiprocessing.spawn(work, (count, threads, scratch, cases), nprocs=count)
                times[way].append(json.loads(Path(scratch, "found.json").read_text()))
    result: dict[str, Any] = {
        "command": "python benchmarks/second_process.py",
        "machine": processor(),
        "torch": torch.__version__,
        "rounds": rounds,
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "cases": [],
    }
    print("| networks | batch | K | " + " | ".join(f"{way}, ms" for way in WAYS) + " | of one process |")
    print("|" + "---|" * (len(WAYS) + 4))
    for i, (name, batch, particles, _) in enumerate(cases):
        medians = {way: statistics.median(found[i] for found in times[way]) for way in WAYS}
        one, *others = medians.values()
        ratios = ", ".join(f"{other / one:.2f}" for other in others)
        shown = " | ".join(f"{m:.2f}" for m in medians.values())
        print(f"| {name} | {batch} | {particles} | {shown} | {ratios} |")
        result["cases"].append({"networks": name, "batch": batch, "particles": particles, "ms": medians})
    if folder is not None:
        (folder / "second_process.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.steps, arguments.json)
