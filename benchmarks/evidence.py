"""Exact log p(x) of a whole test set by adaptive quadrature: seconds, memory, error; and a uniform grid beside it.

    python benchmarks/evidence.py RUN --json benchmarks/results/evidence.json
    python benchmarks/evidence.py --epochs 3           # trains the article's 2-D model for a moment first

RUN is the folder of a run on MNIST binarised by threshold (preset `article`) with a 2-D latent. The quadrature runs in
a process of its own, whose peak resident memory (interpreter, libraries, data and model included) is what is printed,
beside the seconds on the clock those of computing, which a busy machine changes less. On the first `--compare` digits a
uniform grid is the check: it is summed together with the grid of twice the spacing inside it, and where these two agree
the quadrature must agree with them. Threads: as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ppl_vae
from ppl_vae import VAE, data, likelihoods, networks, posteriors, priors
from ppl_vae._machine import processor
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.quadrature import quadrature


def main() -> None:
    """Run the benchmark, or be its worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run; without it, a model is trained first")
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--epochs", type=int, default=3, help="of training, where no run is given")
    parser.add_argument("--digits", type=int, help="how many test data; all by default")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--compare", type=int, default=200, help="data on the uniform grid; 0 for none")
    parser.add_argument("--spacing", type=float, default=0.01, help="of the uniform grid")
    parser.add_argument("--reach", type=float, default=5.0, help="of the uniform grid, either way")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.tolerance)
        return
    digits = data.load("MNIST", binarize="threshold", root=arguments.root)
    vae = ppl_vae.load_run(arguments.run) if arguments.run else train(digits, arguments.epochs)
    x = torch.as_tensor(digits.test.x)[: arguments.digits]
    results: dict[str, Any] = {
        "data": len(x),
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    log_p, error = race(vae, x, arguments.tolerance, results)
    if arguments.compare:
        compare(vae, x[: arguments.compare], log_p, error, arguments, results)
    for name, value in results.items():
        print(f"{name:40} {value:.6g}" if isinstance(value, float) else f"{name:40} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def train(digits: Any, epochs: int) -> VAE:
    """The article's model, for a few epochs."""
    vae = VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([150, 300, 500])),
        posterior=posteriors.DiagonalNormal(networks.MLP([500, 300, 150]), scale="std"),
    )
    ppl_vae.fit(vae, digits, epochs=epochs, compile="off")
    return vae


def race(vae: VAE, x: Tensor, tolerance: float, results: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Quadrature in a process of its own, which is given the model and the data and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.pt"
        torch.save((vae, x), path)
        command = [sys.executable, __file__, "--worker", str(path), "--tolerance", str(tolerance)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        log_p, error = torch.load(path.with_suffix(".out"))
    results.update(json.loads(output.splitlines()[-1]))
    return log_p, error


def work(path: Path, tolerance: float) -> None:
    """Be the worker: print one line of JSON, and leave the answers beside the task."""
    vae, x = torch.load(path, weights_only=False)
    before = peak()
    started, computed = time.perf_counter(), time.process_time()
    evidence = quadrature(VAEDensities(vae), x, tolerance=tolerance)
    figures = {
        "seconds": time.perf_counter() - started,
        "seconds of computing": time.process_time() - computed,
        "peak resident GB": peak(),
        "peak resident GB before": before,
        "mean log p(x)": evidence.mean,
        "largest error": evidence.error.max().item(),
        "mean error": evidence.error.mean().item(),
    }
    for name, value in evidence.details.items():
        figures[name if isinstance(value, float) else f"largest {name}"] = torch.as_tensor(value).max().item()
    torch.save((evidence.log_evidence, evidence.error), path.with_suffix(".out"))
    print(json.dumps(figures))


def peak() -> float:
    """Peak resident memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@torch.no_grad()
def compare(
    vae: VAE, x: Tensor, log_p: Tensor, error: Tensor, arguments: argparse.Namespace, results: dict[str, Any]
) -> None:
    """The trapezoid rule on a uniform grid of the plane, at one spacing and at twice that."""
    densities, spacing = VAEDensities(vae), arguments.spacing
    count = math.ceil(arguments.reach / spacing)
    axis = torch.arange(-count, count + 1) * spacing
    even = torch.arange(-count, count + 1) % 2 == 0
    fine = torch.full((len(x),), -math.inf, dtype=torch.float64)
    coarse = fine.clone()
    started = time.perf_counter()
    for part in torch.arange(len(axis)).split(4):
        z = torch.cartesian_prod(axis[part], axis)
        joint = (densities.likelihood_at(z)(x) + vae.prior().log_prob(z)).double()
        fine = torch.logaddexp(fine, joint.logsumexp(-1))
        both = torch.cartesian_prod(even[part], even).all(-1)
        if both.any():
            coarse = torch.logaddexp(coarse, joint[:, both].logsumexp(-1))
    results["seconds of the uniform grid"] = time.perf_counter() - started
    fine, coarse = fine + 2 * math.log(spacing), coarse + 2 * math.log(2 * spacing)
    change, difference = (fine - coarse).abs(), (fine - log_p[: len(x)]).abs()
    settled = change < 1e-4  # for the others the grid is too coarse to be a check
    results["nodes of the uniform grid"] = len(axis) ** 2
    results["data on the uniform grid"] = len(x)
    results["of these, grid settled to 1e-4"] = int(settled.sum())
    results["largest difference, grid settled"] = difference[settled].max().item()
    results["largest difference beyond errors"] = (difference - error[: len(x)] - change).clamp(min=0).max().item()
    results["largest difference, all"] = difference.max().item()
    results["largest change of the grid, all"] = change.max().item()


if __name__ == "__main__":
    main()
