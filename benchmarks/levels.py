r"""Whether the tests of a comparison keep their level: how often they claim what is not so.

    python benchmarks/levels.py bias           # writes benchmarks/results/levels_bias.md, a quarter of an hour

`bias` is the test of `comparison.statistics.zero_bias`: DReG against IWAE, whose gradients by the encoder are the same
in expectation. The models are untrained with sharp likelihoods, where few draws of K have weights in common and the
rare ones that do carry the mean; and one that is nearly fitted. The encoder's output is a leaf for each replicate, so
that thousands of replicates are one batch of `ppl_vae.objectives`, and a replicate's gradient by the parameters follows
linearly. From each cell's pool of replicates, less the mean of its differences (so that there is no bias in the
population that is sampled), every repeat draws R, and R others for the weights. For power, estimators that are biased.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import softplus

import ppl_vae
from ppl_vae import VAE, likelihoods, networks, objectives, posteriors, priors
from ppl_vae._machine import processor
from ppl_vae.comparison.fixed.records import Layout, Record
from ppl_vae.comparison.statistics.zero_bias import effective_number, zero_bias_p

RESULT = Path(__file__).parent / "results" / "levels_bias.md"
REPLICATES = (40, 100, 1000)
PARTICLES = (4, 8, 64)
LEVELS = (0.05, 0.01, 1e-3)
POOL = {4: 100_000, 8: 100_000, 64: 40_000}
TOLERANCE = 1e-4
BATCH, DIM, LATENT, HIDDEN = 8, 6, 2, 16


class Pool(NamedTuple):
    """Replicates of one cell.

    Attributes:
        projected: For each objective the projections of its gradient by the encoder, (N, 16).
        left: What the largest weight leaves to the others, (N, batch).
    """

    projected: dict[str, Tensor]
    left: Tensor


class Count(NamedTuple):
    """What came of the repeats of one cell."""

    cell: str
    replicates: int
    before: float  # the share that sixteen directions reject at 5%, whatever the tails
    repeats: int
    given: int  # with a p-value
    below: tuple[int, ...]  # those below each level


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bias"])
    parser.add_argument("--repeats", type=int, default=2000, help="of each cell")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    counts: list[Count] = []
    power: list[Count] = []
    for name, k, vae, x in cells():
        pool = pool_of(vae, x, k)
        for r in REPLICATES:
            seed = torch.Generator().manual_seed(1000 * len(counts) + r)
            counts.append(count(name, pool, "DReG", r, arguments.repeats, seed, centred=True))
            power.append(count(name, pool, "PIWAE", r, max(1, arguments.repeats // 20), seed))
            print(*counts[-1], "| PIWAE", *power[-1][3:], flush=True)
    straight = [straight_through(r, max(2, arguments.repeats // 100)) for r in REPLICATES]
    minutes = (time.perf_counter() - began) / 60
    arguments.out.write_text("\n".join(report(counts, power, straight, minutes)) + "\n", encoding="utf-8")


def cells() -> Iterator[tuple[str, int, VAE, Tensor]]:
    """The name, K, model and data of each."""
    for k in PARTICLES:
        for scale in (1.0, 0.6, 0.2):
            for factor in (1, 3):
                vae = untrained(scale)
                x = factor * torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(1))
                yield f"scale {scale:g}, data times {factor}, K = {k}", k, vae, x
    for k in PARTICLES:
        vae, x = fitted()
        yield f"fitted, K = {k}", k, vae, x


def untrained(scale: float) -> VAE:
    """Two small networks as they are made, and a normal likelihood of this standard deviation."""
    torch.manual_seed(0)
    return VAE(
        (DIM,),
        prior=priors.StandardNormal(LATENT),
        likelihood=likelihoods.Normal(networks.MLP([HIDDEN]), scale=scale),
        posterior=posteriors.DiagonalNormal(networks.MLP([HIDDEN])),
    )


def fitted(scale: float = 0.7) -> tuple[VAE, Tensor]:
    """A linear model, whose posterior is normal, an encoder a tenth beside it, and data of the model."""
    torch.manual_seed(0)
    weight = torch.randn(DIM, LATENT)
    covariance = torch.linalg.inv(torch.eye(LATENT) + weight.T @ weight / scale**2)
    mean_map, std = covariance @ weight.T / scale**2, 1.2 * covariance.diagonal().sqrt()
    decoder, encoder = nn.Linear(LATENT, DIM), nn.Linear(DIM, 2 * LATENT)
    with torch.no_grad():
        decoder.weight.copy_(weight)
        decoder.bias.zero_()
        encoder.weight.copy_(torch.cat([mean_map + 0.1 * torch.randn(LATENT, DIM), torch.zeros(LATENT, DIM)]))
        encoder.bias.copy_(torch.cat([0.1 * torch.randn(LATENT), std.expm1().log()]))
    vae = VAE(
        (DIM,),
        prior=priors.StandardNormal(LATENT),
        likelihood=likelihoods.Normal(decoder, scale=scale),
        posterior=posteriors.DiagonalNormal(encoder),
    )
    return vae, torch.randn(BATCH, LATENT) @ weight.T + scale * torch.randn(BATCH, DIM)


def pool_of(vae: VAE, x: Tensor, k: int) -> Pool:
    """Draw the replicates, the same noise for each objective."""
    chosen = {"IWAE": objectives.IWAE(k), "DReG": objectives.DReG(k), "PIWAE": objectives.PIWAE(k, groups=k // 2)}
    output = torch.cat(vae.posterior.mean_and_scale(x, None), 1)
    leaves = list(vae.posterior.parameters())
    record = Record(Layout.of(leaves, {"encoder": range(len(leaves))}, output.numel(), seed=0))
    for i, one in enumerate(output.flatten()):
        record.add(i, 0.0, torch.autograd.grad(one, leaves, retain_graph=True))
    directions = record.projected("encoder").float() / len(x)
    found: dict[str, list[Tensor]] = {name: [] for name in chosen}
    left = []
    size = max(1, 300_000 // (k * len(x)))
    for seed in range(math.ceil(POOL[k] / size)):
        for name, objective in chosen.items():
            leaf = output.detach().repeat(size, 1).requires_grad_()
            torch.manual_seed(seed)
            weights = objectives.sample_log_weights(
                vae.model, guide_of(leaf), x.repeat(size, *(1,) * (x.dim() - 1)), num_particles=k
            )
            (gradient,) = torch.autograd.grad(objective(weights).surrogate.sum(), leaf)
            found[name].append(gradient.reshape(size, -1) @ directions)
        left.append(weights.normalized.double().sort(0).values[:-1].sum(0).reshape(size, -1))
    return Pool({name: torch.cat(several).double() for name, several in found.items()}, torch.cat(left))


def guide_of(output: Tensor) -> Callable[[Tensor], None]:
    """`DiagonalNormal` from what its network has returned."""

    def guide(x: Tensor) -> None:
        mean, raw = output.chunk(2, 1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, softplus(raw) + 1e-5).to_event(1))

    return guide


def count(
    cell: str, pool: Pool, name: str, replicates: int, repeats: int, seed: torch.Generator, centred: bool = False
) -> Count:
    """Test as often as there are repeats."""
    reference, size = pool.projected["IWAE"], len(pool.left)
    estimator = pool.projected[name]
    if centred:
        estimator = estimator - (estimator - reference).mean(0)
    before, values = 0, []
    for _ in range(repeats):
        rows, others = torch.randint(size, (2, replicates), generator=seed)
        ties = float(effective_number(pool.left[others]).min())
        first, second = estimator[rows], reference[rows]
        before += hotelling(first - second) < 0.05
        values.append(zero_bias_p(first, second, TOLERANCE, ties))
    given = [p for p in values if p is not None]
    below = tuple(sum(p < level for p in given) for level in LEVELS)
    return Count(cell, replicates, before / repeats, repeats, len(given), below)


def hotelling(difference: Tensor) -> float:
    """The p-value of all directions, as for normal differences."""
    r, p = difference.shape
    mean = difference.mean(0)
    t_squared = r * float(mean @ torch.linalg.lstsq(torch.cov(difference.T), mean).solution)
    return float(stats.f.sf((r - p) / (p * (r - 1)) * t_squared, p, r - p))


def straight_through(replicates: int, repeats: int) -> Count:
    """Bits relaxed on the way back, against the sum over all states, by `compare` from the start to the end."""
    torch.manual_seed(0)
    vae = VAE(
        (16,),
        prior=priors.BernoulliVector(6),
        likelihood=likelihoods.Bernoulli(networks.MLP([HIDDEN])),
        posterior=posteriors.BernoulliVector(networks.MLP([HIDDEN])),
    )
    x = torch.bernoulli(torch.full((BATCH, 16), 0.5))
    values = []
    for seed in range(repeats):
        found = ppl_vae.compare(
            vae, x, objectives="GumbelSoftmaxELBO", particles=1, replicates=replicates, minibatch=False, seed=seed
        )
        values.append(found.rows[0].blocks["encoder"].bias_p)
    given = [p for p in values if p is not None]
    below = tuple(sum(p < level for p in given) for level in LEVELS)
    return Count("straight through, K = 1", replicates, math.nan, repeats, len(given), below)


def report(counts: list[Count], power: list[Count], straight: list[Count], minutes: float) -> Iterator[str]:
    """The lines of the result."""
    grid = [c for c in counts if not c.cell.startswith("fitted")]
    yield "# How often a bias is claimed that is not there"
    yield ""
    machine = f"one thread of {processor()}, torch {torch.__version__}"
    yield f"`python benchmarks/levels.py bias`, {time.strftime('%Y-%m-%d')}: {minutes:.0f} minutes of {machine};"
    yield f"{counts[0].repeats:,} repeats a cell, drawn from pools of {min(POOL.values()):,} to {max(POOL.values()):,}."
    yield ""
    yield "DReG's encoder gradient against IWAE's, equal in expectation. *Before*: Hotelling's test of 16 directions,"
    yield "whatever the tails. *p-value*: the share of repeats in which there is one. Rates: of all repeats, and in"
    yield "brackets of those with a p-value. *Above*: whether the 99.9% lower limit of either rate is above the level."
    yield ""
    yield "| cell | R | before, 5% | p-value | 5% | 99.9% lower | 1% | 99.9% lower | above |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for c in counts:
        rates, above = [], False
        for hits, level in zip(c.below[:2], LEVELS[:2], strict=True):
            low, low_given = lower(hits, c.repeats), lower(hits, c.given)
            above |= max(low, low_given) > level
            given = f"{hits / c.given:.4f}" if c.given else "-"
            rates += [f"{hits / c.repeats:.4f} ({given})", f"{low:.4f} ({low_given:.4f})"]
        yield (
            f"| {c.cell} | {c.replicates:,} | {c.before:.3f} | {c.given / c.repeats:.3f} | "
            + " | ".join([*rates, "**yes**" if above else "no"])
            + " |"
        )
    yield ""
    yield "Pooled:"
    yield ""
    yield "| cells | R | repeats | with a p-value | " + " | ".join(f"{level:g}" for level in LEVELS) + " |"
    yield "|---|---|---|---|" + "---|" * len(LEVELS)
    for title, several in (("sharp", grid), ("fitted", [c for c in counts if c not in grid]), ("all", counts)):
        for r in (*REPLICATES, 0):
            of_r = [c for c in several if r in (0, c.replicates)]
            repeats, given = sum(c.repeats for c in of_r), sum(c.given for c in of_r)
            hits = [sum(c.below[i] for c in of_r) for i in range(len(LEVELS))]
            cells_ = " | ".join(f"{h / repeats:.5f} ({h / max(1, given):.5f})" for h in hits)
            of_which = f"{r:,}" if r else "all"
            yield f"| {title} | {of_which} | {repeats:,} | {given:,} | {cells_} |"
    yield ""
    yield "Power, the share of repeats that claim what is there: PIWAE with K / 2 groups against IWAE, and the"
    yield "straight-through gradient of `GumbelSoftmaxELBO` against `EnumeratedELBO`'s, by `compare` from start to end"
    yield f"({straight[0].repeats} runs each)."
    yield ""
    yield "| cell | R | before, 5% | p-value | " + " | ".join(f"below {level:g}" for level in LEVELS) + " |"
    yield "|---|---|---|---|" + "---|" * len(LEVELS)
    for c in (*power, *straight):
        shares = " | ".join(f"{hits / c.repeats:.2f}" for hits in c.below)
        before = "-" if math.isnan(c.before) else f"{c.before:.2f}"
        yield f"| {c.cell} | {c.replicates:,} | {before} | {c.given / c.repeats:.2f} | {shares} |"


def lower(hits: int, repeats: int) -> float:
    """The 99.9% lower limit of a share (Clopper & Pearson)."""
    return float(stats.beta.ppf(0.001, hits, repeats - hits + 1)) if hits else 0.0


if __name__ == "__main__":
    main()
