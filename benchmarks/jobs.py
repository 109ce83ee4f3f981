"""A race in several processes beside one: 8 objectives x 3 seeds, one thread each; and whether the figures are equal.

    OMP_NUM_THREADS=1 python benchmarks/jobs.py --epochs 20 --jobs 2 --rounds 2 --json FILE

Prints the seconds of a race with jobs=1 and jobs=N in turn, their ratio, and the load of the machine before each: other
work on its cores makes both slower, and the second one more. The first race of several processes starts them, which
takes seconds and is counted; a loaded data set goes to every run.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from pathlib import Path

import torch

from ppl_vae import VAE, data, likelihoods, networks, posteriors, priors, race

OBJECTIVES = ["ELBO", "MeanFieldELBO", "STL", "IWAE", "DReG", "MIWAE", "PIWAE", "CIWAE"]


def make_vae(digits: data.Dataset, seed: int) -> VAE:
    """Two hidden layers of 200 and two latents."""
    return VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([200, 200])),
        posterior=posteriors.DiagonalNormal(networks.MLP([200, 200])),
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    digits = data.load("digits", binarize="threshold")
    run = functools.partial(
        race,
        functools.partial(make_vae, digits),
        digits,
        objectives=OBJECTIVES,
        num_particles=8,
        seeds=3,
        epochs=asked.epochs,
        evaluate_every=asked.epochs,
        evaluation_size=100,
        evidence="posterior",
    )
    rounds = []
    for number in range(asked.rounds):
        seconds, loads, points = {}, {}, {}
        for jobs in (1, asked.jobs) if number % 2 == 0 else (asked.jobs, 1):
            loads[jobs], began = os.getloadavg()[0], time.perf_counter()
            found = run(jobs=jobs)
            seconds[jobs] = time.perf_counter() - began
            points[jobs] = [(r.key, r.seed, [(p.log_evidence, p.elbo, p.bound) for p in r.points]) for r in found.runs]
            print(f"jobs={jobs}: {seconds[jobs]:.1f} s, load before {loads[jobs]:.1f}", flush=True)
        same, ratio = points[1] == points[asked.jobs], seconds[asked.jobs] / seconds[1]
        print(f"ratio {ratio:.2f}; the same figures, bit for bit: {same}", flush=True)
        rounds.append({"seconds": seconds, "loads": loads, "ratio": ratio, "same": same})
    if asked.json is not None:
        content = {"cores": os.cpu_count(), "torch": torch.__version__, "epochs": asked.epochs, "rounds": rounds}
        asked.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
