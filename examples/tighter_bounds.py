"""Tighter bounds are not necessarily better: more particles, and the encoder's gradient drowns in noise; and the cure.

The Gaussian model of Rainforth et al., Tighter Variational Bounds are Not Necessarily Better (2018),
https://arxiv.org/abs/1802.04537: p(z) = N(mu, I), p(x|z) = N(z, I) and q(z|x) = N(A x + b, 2/3 I) in 20 dimensions,
each parameter N(0, 0.01^2) away from its best value; a batch of 64 of 1,024 data; float64. Expect

- of the gradients' signal-to-noise, in powers of K: decoder +1/2 for all; encoder -1/2 for IWAE, towards +1/2 for DReG
  (0.34 in all, 0.48 from K = 256 to 1024), and +1/2 for ELBO and STL, trivially, since they average over K. Fitted
  from K = 4 on (at K = 1 all are ELBO or STL) to the norm of the mean gradient over the root of its whole variance,
  the noise of the mean taken out; beside it the power of the median over single parameters, which sinks into the
  noise earlier;
- the bound L_K to rise with K, and K (log p(x) - L_K) to tend to Var(w) / (2 p(x)^2);
- at the true posterior no noise in the encoder gradients of STL and DReG, and as much as ever in ELBO's and IWAE's;
- DReG's gradient to be IWAE's in expectation, and IWAESTL's not to be.

The generative side has one parameter, mu, which sits in the prior; it is called the decoder here.

    python examples/tighter_bounds.py --out tighter_bounds.png        (90 seconds on one core)
    python examples/tighter_bounds.py --replicates 200                (a look, noisier)
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae.comparison import Block, Comparison, Measured, Row, Slope
from ppl_vae.comparison.fixed.slopes import slopes_of
from ppl_vae.objectives import sample_log_weights

OBJECTIVES = ("ELBO", "STL", "IWAE", "DReG", "IWAESTL")
PARTICLES = (1, 4, 16, 64, 256, 1024)
DIM, NUM_DATA, BATCH = 20, 1024, 64


class Prior(nn.Module):
    """N(mu, I), with mu learnt."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean)

    def forward(self) -> dist.Distribution:
        """Return p(z)."""
        return dist.Normal(self.mean, torch.ones_like(self.mean)).to_event(1)


def likelihood(z: Tensor) -> dist.Distribution:
    """N(z, I)."""
    return dist.Normal(z, torch.ones_like(z)).to_event(1)


class Posterior(nn.Module):
    """N(A x + b, variance I), with A and b learnt."""

    def __init__(self, weight: Tensor, bias: Tensor, variance: float) -> None:
        super().__init__()
        self.weight, self.bias, self.variance = nn.Parameter(weight), nn.Parameter(bias), variance

    def forward(self, x: Tensor) -> dist.Distribution:
        """Return q(z|x)."""
        mean = x @ self.weight.T + self.bias
        return dist.Normal(mean, torch.full_like(mean, math.sqrt(self.variance))).to_event(1)


class Gaussian(NamedTuple):
    """The model and a batch, (64, 20), with what is known in closed form.

    p(z|x) = N((x + mu) / 2, I / 2), and for the weights w = p(x, z) / q(z|x) all moments are Gaussian integrals.
    """

    vae: pv.VAE
    x: Tensor

    @classmethod
    def make(cls, perturbation: float = 0.01, variance: float = 2 / 3, seed: int = 0) -> Gaussian:
        """The best parameters, each moved by normal noise; at 0.0 and 1/2 the posterior is the true one."""
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        x = noise(DIM) + math.sqrt(2) * noise(NUM_DATA, DIM)
        mean = x.mean(0)
        weight = torch.eye(DIM, dtype=torch.float64) / 2 + perturbation * noise(DIM, DIM)
        posterior = Posterior(weight, mean / 2 + perturbation * noise(DIM), variance)
        prior = Prior(mean + perturbation * noise(DIM))
        return cls(pv.VAE((DIM,), prior=prior, likelihood=likelihood, posterior=posterior), x[:BATCH])

    @property
    def log_p(self) -> Tensor:
        """Log p(x), (batch,)."""
        return dist.Normal(self.vae.prior.mean.detach(), math.sqrt(2)).log_prob(self.x).sum(-1)

    def gap(self) -> float:
        """The gap of the ELBO, log p(x) - L_1 = KL(q || p(z|x)), the mean over the batch."""
        ratio = 2 * self.vae.posterior.variance
        return float((DIM * (ratio - 1 - math.log(ratio)) / 2 + self._distance).mean())

    def limit(self) -> float:
        """The limit of K (log p(x) - L_K), Var(w) / (2 p(x)^2), the mean over the batch."""
        p, q = 2.0, 1 / self.vae.posterior.variance  # precisions of p(z|x) and q(z|x)
        both = 2 * p - q  # and of p(z|x)^2 / q(z|x), whose integral is the second moment of w / p(x)
        second = (p**2 / (q * both)) ** (DIM / 2) * (p * q / both * self._distance).exp()
        return float((second - 1).mean() / 2)

    @property
    def _distance(self) -> Tensor:
        """The squared distance of the means of q(z|x) and p(z|x), (batch,)."""
        q = self.vae.posterior(self.x).mean.detach()
        return (q - (self.x + self.vae.prior.mean.detach()) / 2).square().sum(-1)


class Gap(NamedTuple):
    """Log p(x) - L_K by sampling, nats per datum: the mean over the batch, and its standard error."""

    num_particles: int
    value: float
    error: float


@torch.no_grad()
def gaps(model: Gaussian, particles: Sequence[int], draws: int, seed: int = 0) -> list[Gap]:
    """Measure log p(x) - L_K from independent draws of K particles.

    With r the average of w / p(x), whose expectation is 1, this is E[-log r] = E[r - 1 - log r]: that has the noise of
    a square, and so K times it can be told for any K.
    """
    torch.manual_seed(seed)
    found = []
    for k in particles:
        means = []
        for _ in range(draws):
            log_w = sample_log_weights(model.vae.model, model.vae.guide, model.x, num_particles=k).log_w
            log_r = log_w.logsumexp(0) - math.log(k) - model.log_p
            means.append((log_r.expm1() - log_r).mean())
        each = torch.stack(means)
        found.append(Gap(k, float(each.mean()), float(each.std() / math.sqrt(draws))))
    return found


def compare(
    model: Gaussian, particles: Sequence[int], replicates: int, objectives: Sequence[str] = OBJECTIVES
) -> Comparison:
    """The estimators side by side, with the gradients by A and b apart from that by mu."""
    return pv.compare(
        model.vae,
        model.x,
        objectives=objectives,
        particles=particles,
        replicates=replicates,
        log_evidence=model.log_p,
        blocks=lambda name: "encoder" if name.startswith("posterior") else "decoder",
        minibatch=False,
    )


def pooled(rows: Sequence[Row]) -> list[Row]:
    """The rows with the signal-to-noise of the whole gradient in place of that of the median parameter.

    The norm of the mean gradient, without the noise of the mean, over the root of the total variance: of 440 parameters
    together it can be told where that of one is far below the noise.
    """

    def whole(block: Block) -> Block:
        norm, variance = block.norm, block.variance
        snr = Measured(0.0, 0.0, 0.0)
        if norm.value > 0:
            value, spread = norm.value / math.sqrt(variance.value), (variance.high / variance.low - 1) / 4
            below, above = (math.hypot(end / norm.value - 1, spread) for end in norm[1:])
            snr = Measured(value, max(0.0, value * (1 - below)), value * (1 + above))
        return dataclasses.replace(block, snr=snr, snr_floor=0.0)

    return [dataclasses.replace(row, blocks={name: whole(b) for name, b in row.blocks.items()}) for row in rows]


def powers(rows: Sequence[Row], least: int = 4) -> dict[tuple[str, str], Slope]:
    """The fitted powers of K by estimator and block, from some K on."""
    return {(slope.name, slope.block): slope for slope in slopes_of(r for r in rows if r.num_particles >= least)}


def noise_at_the_truth(num_particles: int = 8, replicates: int = 100) -> dict[str, float]:
    """The variance of each encoder gradient where q is the true posterior, as a share of ELBO's."""
    rows = compare(Gaussian.make(0.0, 0.5), [num_particles], replicates).rows
    variance = {row.name: row.blocks["encoder"].variance.value for row in rows}
    return {name: value / variance["ELBO"] for name, value in variance.items()}


def main(
    out: str | None = None, replicates: int = 1000, particles: Sequence[int] = PARTICLES, draws: int = 150
) -> tuple[list[Row], list[Gap], dict[str, float]]:
    """Measure, print and draw; return the rows of the comparison, the gaps, and the noise at the true posterior."""
    model = Gaussian.make()
    # up to K = 64 IWAE's encoder can be told from noise, by many replicates; beyond, a few show the others
    rows = [*compare(model, [k for k in particles if k <= 64], replicates).rows]
    if large := [k for k in particles if k > 64]:
        rows += compare(model, large, max(20, replicates // 20)).rows
    of_k = gaps(model, particles, draws)
    still = noise_at_the_truth()
    print("\n".join([*table(model, rows, of_k), "", *sentences(model, rows, of_k, still)]))
    if out is not None:
        pv.plots.save(draw(model, rows, of_k), out, dpi=130)
    return rows, of_k, still


def table(model: Gaussian, rows: Sequence[Row], of_k: Sequence[Gap]) -> list[str]:
    """The signal-to-noise of the whole gradients with the powers, and the gap of the bound beside theory."""
    whole, median = pooled(rows), powers(rows)
    fitted = powers(whole)
    particles = sorted({row.num_particles for row in rows})
    head = "".join(f"{f'K = {k}':>9}" for k in particles)
    lines = [f"{'signal-to-noise':<18}{head}{'power of K':>22}{'median parameter':>22}"]
    for block in ("encoder", "decoder"):
        for name in OBJECTIVES:
            found = {row.num_particles: row.blocks[block].snr for row in whole if row.name == name}
            cells = "".join(f"{found[k].value:>9.3f}" if found[k].low > 0 else f"{'(noise)':>9}" for k in particles)
            said = "".join(f"{_power(slopes.get((name, block))):>22}" for slopes in (fitted, median))
            lines.append(f"{f'{block} {name}':<18}{cells}{said}")
    lines += ["", f"{'K':>6}{'log p - L_K':>22}{'K (log p - L_K)':>22}"]
    for k, value, error in of_k:
        lines.append(f"{k:>6}{f'{value:.5f} +- {error:.5f}':>22}{f'{k * value:.4f} +- {k * error:.4f}':>22}")
    return [*lines, f"theory: KL(q || p(z|x)) = {model.gap():.4f} at K = 1, {model.limit():.4f} in the limit"]


def sentences(model: Gaussian, rows: Sequence[Row], of_k: Sequence[Gap], still: dict[str, float]) -> list[str]:
    """What the numbers say."""
    said = []
    for (name, block), slope in powers(pooled(rows)).items():
        if block == "encoder" or name in ("ELBO", "IWAE"):  # the decoder's are one of these
            way = "falls" if slope.high < 0 else "grows" if slope.low > 0 else "shows no trend:"
            about = f"K = {slope.particles[0]} to {slope.particles[-1]}"
            said.append(f"The signal-to-noise of {name}'s {block} gradient {way} as K^{_power(slope)}, {about}.")
    steps = [(a.value - b.value) / math.hypot(a.error, b.error) for a, b in itertools.pairwise(of_k)]
    rises = f"rises at every step of K, by {min(steps):.0f} standard errors or more"
    last = of_k[-1]
    said.append(
        f"L_K {rises if min(steps) > 5 else 'does not rise at every step of K'}; at K = {last.num_particles} the gap "
        f"times K is {last.num_particles * last.value:.3f}, where Var(w) / (2 p(x)^2) = {model.limit():.3f}."
    )
    silent = [name for name, share in still.items() if share < 1e-20]
    others = ", ".join(f"{name} {share:.2g}" for name, share in still.items() if name not in silent)
    said.append(
        f"At the true posterior there is no noise in the encoder gradients of {', '.join(silent)}; of the others, as "
        f"shares of ELBO's variance: {others}."
    )
    for name in ("DReG", "IWAESTL"):
        tested = [(r.num_particles, r.blocks["encoder"]) for r in rows if r.name == name and r.num_particles > 1]
        p = min(1.0, min((len(tested) * b.bias_p for _, b in tested if b.bias_p is not None), default=1.0))
        verdict = "is biased against" if p < 0.01 else "shows no bias against"
        k, found = tested[len(tested) // 2]
        (own,) = (r.blocks["encoder"] for r in rows if (r.name, r.num_particles) == ("IWAE", k))
        said.append(
            f"{name}'s encoder gradient {verdict} IWAE's, p {'< 1e-12' if p < 1e-12 else f'= {p:.2g}'} of "
            f"{len(tested)} tests together; at K = {k} its bias has a norm of {found.bias}, IWAE's own gradient one of "
            f"{own.norm}."
        )
    return said


def _power(slope: Slope | None) -> str:
    return "-" if slope is None else f"{slope.value:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}]"


def draw(model: Gaussian, rows: Sequence[Row], of_k: Sequence[Gap]) -> Figure:
    """Three panels against K: signal-to-noise of encoder and decoder, and the scaled gap of the bound."""
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    encoder, decoder, bound = figure.subplots(1, 3)
    whole = pooled(rows)
    slopes = powers(whole)
    colours = dict(zip(OBJECTIVES, ("#009E73", "#56B4E9", "#D55E00", "#0072B2", "#CC79A7"), strict=True))
    marks, look = dict(zip(OBJECTIVES, "osD^v", strict=True)), {"ms": 3.5, "lw": 1}
    alike = {"ELBO": "ELBO, STL", "IWAE": "IWAE, DReG, IWAESTL"}  # the decoder's gradient is the same
    for axes, block, names in ((encoder, "encoder", {n: n for n in OBJECTIVES}), (decoder, "decoder", alike)):
        for name, label in names.items():
            shown = [(r.num_particles, r.blocks[block].snr) for r in whole if r.name == name]
            k, snr = zip(*((k, snr) for k, snr in shown if snr.low > 0), strict=True)
            ends = [[s.value - s.low for s in snr], [s.high - s.value for s in snr]]
            if (slope := slopes.get((name, block))) is not None:
                label += f": $K^{{{slope.value:+.2f}}}$"
                over = slope.particles[0], slope.particles[-1]
                line = [math.exp(slope.intercept + slope.value * math.log(end)) for end in over]
                axes.plot(over, line, color=colours[name], lw=1.2)
            axes.errorbar(k, [s.value for s in snr], ends, color=colours[name], fmt=marks[name], label=label, **look)
        axes.set(yscale="log", title=f"{block} gradient", ylabel="signal-to-noise, whole gradient")
    scaled = [gap.num_particles * gap.value for gap in of_k]
    bars = [1.96 * gap.num_particles * gap.error for gap in of_k]
    bound.errorbar([g.num_particles for g in of_k], scaled, bars, color="#000000", fmt="o", label="measured", **look)
    bound.axhline(model.limit(), color="#D55E00", lw=1.2, label=r"theory: $\mathrm{Var}(w)\,/\,2p(x)^2$")
    bound.set(title="the bound", ylabel=r"$K\,(\log p(x) - L_K)$, nats")
    bound.set_ylim(0, 1.3 * max(scaled))
    for axes in (encoder, decoder, bound):
        axes.set_xscale("log")
        axes.set_xticks([g.num_particles for g in of_k], [f"{g.num_particles:,}" for g in of_k], fontsize=7)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("particles $K$")
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="a PNG file for the picture (default: none)")
    parser.add_argument("--replicates", type=int, default=1000, help="gradients of each estimator (default: 1000)")
    arguments = parser.parse_args()
    main(arguments.out, arguments.replicates)
