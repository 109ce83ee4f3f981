"""Whether denormal numbers slow the training of a trained model: a step with and without flushing them to zero.

    python benchmarks/denormals.py runs/mnist     # a run of ppl-vae train, on its own data; a quarter of a minute

Rounds with and without `torch.set_flush_denormal` alternate in one process; the medians of their steps are printed, and
what share of the decoder's Bernoulli probabilities is denormal in float32 at the latent means of the first data.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time

import pyro
import torch

import ppl_vae as pv
from ppl_vae.cli.opening import DataOptions, OpenRun

BATCH, STEPS, ROUNDS = 128, 20, 15


def main(folder: str) -> None:
    """Print the table."""
    run = OpenRun.at(folder, "cpu")
    x, *_ = DataOptions({}).open(run, "train").head(BATCH * STEPS)
    vae = run.vae
    with torch.no_grad():
        probs = vae.likelihood(vae.encode(x)).mean
    tiny = torch.finfo(torch.float32).tiny
    print(f"denormal probabilities: {((probs > 0) & (probs < tiny)).float().mean():.2%}")
    svi = pv.SVI(
        vae.train().model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-6), pv.objectives.MeanFieldELBO()
    )
    svi.step(x[:BATCH])
    pyro.enable_validation(False)
    svi.update(x[:BATCH])
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for flush, found in times.items():
            torch.set_flush_denormal(flush)
            for batch in x.split(BATCH):
                began = time.perf_counter()
                svi.update(batch)
                found.append(1e3 * (time.perf_counter() - began))
    for flush, found in times.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"{'flushed' if flush else 'as they are'}: {middle:.2f} ms per step ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(sys.argv[1])
