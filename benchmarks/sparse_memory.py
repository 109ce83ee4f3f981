"""The memory that sparse counts take: 200,000 cells by 20,000 genes with 1% of the entries, 15 GiB if dense.

    python benchmarks/sparse_memory.py              # seconds and peak memory after each stage; about two minutes
    python benchmarks/sparse_memory.py --cells 2000 # a trial

The figures of docs/counts.md. Nothing is learned in five steps; the memory of a step does not depend on their number.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import sparse

import ppl_vae as pv
from ppl_vae import data, likelihoods, networks, posteriors, priors


def counts(cells: int, genes: int) -> sparse.csr_matrix:
    """A random matrix with a hundredth of the entries."""
    rng, per = np.random.default_rng(0), genes // 100
    columns = rng.integers(0, genes, (cells, per), dtype=np.int32)
    columns.sort(1)
    values = rng.poisson(2, (cells, per)).astype(np.float32) + 1
    rows = np.arange(0, cells * per + 1, per, dtype=np.int32)
    matrix = sparse.csr_matrix((values.ravel(), columns.ravel(), rows), shape=(cells, genes))
    matrix.sum_duplicates()
    return matrix


def stages(cells: int, genes: int) -> Iterator[str]:
    """Do one thing after another; yield the name of what was done."""
    matrix = counts(cells, genes)
    yield "the matrix"
    found = data.from_cells(matrix, labels=np.arange(cells) % 3, conditional=True, library=True)
    yield "from_cells"
    vae = pv.VAE(
        found,
        prior=priors.StandardNormal(10),
        likelihood=likelihoods.NegativeBinomial(
            networks.MLP([32]), library="condition", dispersion="condition", start_from_data=True
        ),
        posterior=posteriors.DiagonalNormal(networks.Log1p(networks.MLP([32]), counts=genes)),
    )
    yield "VAE"
    pv.fit(vae, found, epochs=1, seed=0, stop=after(5), compile="graph")
    yield "fit, 5 steps of 128"
    z = torch.cat([vae.encode(*batch) for batch in found.test.batches(min(1000, len(found.test)))])
    assert len(z) == len(found.test)
    yield "encode, in blocks of 1,000"
    pv.evidence.importance((vae.model, vae.guide), *next(iter(found.test.batches(64))), num_particles=10)
    yield "log p(x) of 64"


def after(steps: int) -> Callable[[], bool]:
    """A function that is true from its n-th call on."""
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


def main() -> None:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=20_000)
    given = parser.parse_args()
    began = time.perf_counter()
    for stage in stages(given.cells, given.genes):
        now = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{stage:28s}{now - began:8.1f} s   peak {peak:5.2f} GiB", flush=True)
        began = now


if __name__ == "__main__":
    main()
