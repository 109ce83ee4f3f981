"""What lower precision costs in nats: the validation ELBO after equal steps, in float32, bfloat16 and rounded products.

    python benchmarks/precision.py                           # scikit-learn's digits, 3 seeds
    python benchmarks/precision.py --mnist FOLDER --epochs 3 # and the article's networks on MNIST, 1 seed

Prints the table of docs/gpu.md: the validation ELBO in nats per datum, always computed in float32, and the relative
difference of the bounds of the first epoch, whose steps round. A processor without bfloat16 products gives equal or
slow rows, not wrong ones.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import ppl_vae as pv
from ppl_vae import data, likelihoods, posteriors, priors
from ppl_vae._machine import processor
from ppl_vae.networks import MLP

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    '`matmul_precision="medium"`': {"matmul_precision": "medium"},
    '`precision="bf16"`': {"precision": "bf16"},
}


def trained(split: Any, hidden: list[int], epochs: int, batch_size: int, seed: int, **options: Any) -> Any:
    """A run of two latents."""
    torch.manual_seed(seed)
    vae = pv.VAE(
        split,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(MLP(hidden[::-1])),
        posterior=posteriors.DiagonalNormal(MLP(hidden)),
    )
    return pv.fit(vae, split, epochs=epochs, batch_size=batch_size, seed=seed, validate_every=epochs, **options)


def rows(name: str, split: Any, hidden: list[int], epochs: int, batch_size: int, seeds: int) -> None:
    """One row for each way."""
    first: list[float] = []
    for way, options in WAYS.items():
        began = time.perf_counter()
        runs = [trained(split, hidden, epochs, batch_size, seed, **options) for seed in range(seeds)]
        seconds = time.perf_counter() - began
        elbos = torch.tensor([run.history[-1]["validation_elbo"] for run in runs])
        bounds = [run.history[0]["bound"] for run in runs]
        first = first or bounds
        off = max(abs(a / b - 1) for a, b in zip(bounds, first, strict=True))
        shown = f"{elbos.mean():.3f}" + (f" +- {elbos.std() / len(elbos) ** 0.5:.3f}" if len(elbos) > 1 else "")
        print(f"| {name} | {way} | {shown} | {off:.1e} | {seconds:.0f} |", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="the folder that holds MNIST")
    parser.add_argument("--epochs", type=int, default=3, help="of MNIST")
    parser.add_argument("--seeds", type=int, default=3, help="of the digits")
    given = parser.parse_args()
    print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    print("| data | way | validation ELBO | difference of the first epoch's bound | seconds |")
    print("|---|---|---|---|---|")
    rows("digits, 150 epochs", data.load("digits", binarize="threshold"), [128, 128], 150, 97, given.seeds)
    if given.mnist is not None:
        mnist = data.load("MNIST", root=given.mnist, binarize="threshold", validation=10_000)
        rows(f"MNIST, {given.epochs} epochs", mnist, [500, 300, 150], given.epochs, 128, 1)


if __name__ == "__main__":
    main()
