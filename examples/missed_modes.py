"""log p(x) in four ways: exactly, and by three estimates, one of which misses what the encoder misses.

    python examples/missed_modes.py                        # trains a 2-D VAE on the digits first: about a minute
    python examples/missed_modes.py runs/mnist --size 64   # a run of ppl-vae train with a 2-D latent, on its test data

For each way the mean error against adaptive quadrature, the worst datum, how many data the method itself calls
unreliable, and how many of the others lie within five of its standard errors. Expect importance sampling from q(z|x)
with K = 5000, the usual estimate of log p(x), to be too low wherever q misses a mode, and the defensive proposal to be
right; the larger the model and the longer it was trained, the more so. Annealing, from the prior, is low where chains
are too few and too fast, and its standard error is rough.
"""

from __future__ import annotations

import argparse
import time

import torch

import ppl_vae as pv
from ppl_vae.evaluation import Evidence, VAEDensities, annealed
from ppl_vae.evidence import importance, quadrature


def main(run: str | None = None, size: int = 64, epochs: int = 100, temperatures: int = 100) -> dict[str, Evidence]:
    """Print the table, and return what each way found."""
    vae, x = trained(epochs) if run is None else of_run(run)
    x = x[:size]
    densities = VAEDensities(vae)
    exact = quadrature(densities, x)
    ways = {
        "importance sampling from q": lambda: importance(densities, x, num_particles=5000),
        "from the defensive proposal": lambda: importance(densities, x, num_particles=5000, proposal="defensive"),
        "annealed importance sampling": lambda: annealed(densities, x, num_temperatures=temperatures, num_chains=16),
    }
    lines = [
        f"{len(x)} data, mean log p(x) {exact.mean:.3f} by quadrature, errors below {exact.error.max():.1e} nats",
        "",
        f"{'nats':<30}{'mean error':>12}{'worst':>10}{'unreliable':>12}{'others within 5 s.e.':>22}{'seconds':>9}",
    ]
    results = {"exact": exact}
    for name, way in ways.items():
        began = time.perf_counter()
        found = results[name] = way()
        seconds = time.perf_counter() - began
        error = found.log_evidence - exact.log_evidence
        sure = found.error.isfinite()
        within = error.abs()[sure] <= 5 * found.error[sure] + exact.error[sure]
        lines.append(
            f"{name:<30}{error.mean():>12.4f}{error[error.abs().argmax()]:>10.3f}{int((~sure).sum()):>12}"
            f"{f'{int(within.sum())} of {int(sure.sum())}':>22}{seconds:>9.0f}"
        )
    print("\n".join(lines))
    return results


def trained(epochs: int) -> tuple[pv.VAE, torch.Tensor]:
    """A VAE trained on scikit-learn's digits, and their test part."""
    torch.manual_seed(0)
    digits = pv.data.load("digits")
    mlp = pv.networks.MLP([128, 64])
    vae = pv.VAE(
        digits,
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP([64, 128])),
        posterior=pv.posteriors.DiagonalNormal(mlp),
    )
    pv.fit(vae, digits, epochs=epochs, seed=0)
    return vae, digits.test.x


def of_run(folder: str) -> tuple[pv.VAE, torch.Tensor]:
    """The model of a run, and the test part of its data."""
    from ppl_vae.cli.opening import DataOptions, OpenRun

    run = OpenRun.at(folder)
    return run.vae, DataOptions({}).open(run, "test").head(10_000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run's folder; by default a model is trained on the digits")
    parser.add_argument("--size", type=int, default=64, help="how many test data (default: 64)")
    parser.add_argument("--epochs", type=int, default=100, help="of training on the digits (default: 100)")
    parser.add_argument("--temperatures", type=int, default=100, help="of annealing (default: 100)")
    arguments = parser.parse_args()
    main(arguments.run, arguments.size, arguments.epochs, arguments.temperatures)
