"""Three levels of latents on scikit-learn's digits: which are active, and what warm-up and free bits do about it.

    python examples/ladder.py                          # about 10 minutes of one core
    python examples/ladder.py --epochs 20 --seeds 1    # a look

Trains p(z3) p(z2|z3) p(z1|z2) p(x|z1) with 8, 4 and 2 dimensions, with a posterior that draws bottom-up, top-down, or
top-down and weighted with the prior by precision; each as it is, with a KL that is warmed up from the bottom level to
the top one (`KLWeight`), and with free bits for each level (`FreeBits`). Shown are the KL of each level, its active
units and the ELBO on the test digits, mean and standard error over seeds. Before that, the bounds of a model of 1 and 1
dimensions beside its log p(x) by quadrature, which they do not exceed but by their noise.

Expect (3 seeds, nats): top-down, without a remedy, KL 4.55, 0.00, 0.00 and ELBO -18.77 +- 0.11; warmed up 3.15, 0.63,
0.96 and -18.64, better by 0.13 +- 0.06 seed by seed; with free bits 2.0 each and -19.14. Bottom-up: 4.75, 0.13, 0.03
and -18.81; warmed up better by 0.26 +- 0.06. Weighted by precision (2 seeds) the top level takes all and 150 epochs are
too few: -22.8, warmed up -21.1, with free bits -19.7. docs/depth.md has the whole table.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch

import ppl_vae as pv
from ppl_vae.evaluation import VAEDensities, latent_use
from ppl_vae.evidence import quadrature
from ppl_vae.objectives import ELBO, IWAE, MeanFieldELBO, as_loss

DIRECTIONS = ("bottom-up", "top-down", "precision-weighted")


def make(data: Any, dims: list[int], direction: Any) -> pv.VAE:
    """A ladder of these dimensions on the data."""
    mlp = pv.networks.MLP
    return pv.VAE(
        data,
        prior=pv.priors.Ladder(dims, mlp([64], init="torch")),
        likelihood=pv.likelihoods.Bernoulli(mlp([128], init="torch")),
        posterior=pv.posteriors.Ladder(
            mlp([128], init="torch"), mlp([64], init="torch"), direction=direction, features=64
        ),
    )


def remedies(steps: int) -> dict[str, Any]:
    """Nothing; a warm-up that ends at the bottom level first and at the top last; two nats of each level free."""
    return {
        "none": None,
        "warm-up": pv.regularizers.KLWeight(schedule="linear", steps=[steps // 8, steps // 4, steps // 2]),
        "free bits": pv.regularizers.FreeBits(2.0, over="level"),
    }


def train(digits: Any, direction: str, remedy: str, epochs: int, seed: int) -> torch.Tensor:
    """The KL of each level, its active units, and the ELBO on the test digits, of one training."""
    torch.manual_seed(seed)
    vae = make(digits, [8, 4, 2], direction)
    steps = epochs * math.ceil(len(digits.train) / 100)
    pv.fit(vae, digits, objective=objective(direction), regularizer=remedies(steps)[remedy], epochs=epochs, seed=seed)
    use = latent_use(VAEDensities(vae), digits.test.x, num_samples=50)
    levels = [level[name] for name in ("kl", "active") for level in use.levels]
    return torch.tensor([*levels, bounds(vae, digits.test.x, ELBO(10)).mean()])


def objective(direction: str) -> Any:
    """Top-down, the KL between q and p has a closed form at every level."""
    return ELBO() if direction == "bottom-up" else MeanFieldELBO()


@torch.no_grad()
def bounds(vae: pv.VAE, x: torch.Tensor, estimator: Any) -> torch.Tensor:
    """Ten draws of the value of an objective, nats per datum."""
    torch.manual_seed(0)
    loss, program = as_loss(estimator), (vae.eval().model, vae.guide)
    return torch.stack([-loss(program, x).loss / len(x) for _ in range(10)])


def main(epochs: int = 150, seeds: int = 3, directions: tuple[str, ...] = DIRECTIONS) -> dict[str, Any]:
    """Print the table of bounds and that of levels, and return them."""
    digits, began = pv.data.load("digits"), time.perf_counter()
    print("two levels of one dimension, nats per datum; log p(x) by quadrature in two dimensions")
    found: dict[str, Any] = {}
    for direction in directions:
        torch.manual_seed(0)
        vae = make(digits, [1, 1], direction)
        pv.fit(vae, digits, objective=objective(direction), epochs=epochs // 3, seed=0)
        x = digits.test.x[:50]
        exact = quadrature(VAEDensities(vae), x)
        found[direction] = [bounds(vae, x, ELBO(100)), bounds(vae, x, IWAE(100)), exact.mean]
        elbo, iwae = (f"{b.mean():8.3f}+-{b.std() / math.sqrt(10):5.3f}" for b in found[direction][:2])
        print(f"{direction:20}ELBO {elbo}   IWAE, K = 100 {iwae}   log p(x) {exact.mean:8.3f}")
    print(f"\n{'posterior':20}{'remedy':11}{'KL of levels 1, 2, 3':>33}{'active':>18}{'ELBO':>17}")
    for direction in directions:
        for remedy in remedies(8):
            runs = torch.stack([train(digits, direction, remedy, epochs, seed) for seed in range(seeds)])
            mean, error = runs.mean(0), runs.std(0, correction=min(1, seeds - 1)) / math.sqrt(seeds)
            found[direction, remedy] = mean
            shown = [f"{m:6.2f}+-{e:4.2f}" for m, e in zip(mean, error, strict=True)]
            active = "".join(f"{value:6.1f}" for value in mean[3:6])
            print(f"{direction:20}{remedy:10}{''.join(shown[:3])}{active}{shown[6]:>17}", flush=True)
    print(f"\n{seeds} seeds, +- one standard error; {(time.perf_counter() - began) / 60:.1f} minutes")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.seeds)
