r"""Bounds of log p(x) by annealed importance sampling; upper bounds only on data simulated from the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from ppl_vae._home import at_home
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_choice, check_positive_int, check_rows
from ppl_vae.evidence.blocks import MAX_BYTES, capacity
from ppl_vae.evidence.densities import Densities, Model, VAEDensities
from ppl_vae.evidence.hamiltonian import Path, transition
from ppl_vae.evidence.pareto import check_numbers, relative_error
from ppl_vae.evidence.results import Evidence

if TYPE_CHECKING:
    from jaxtyping import Float

_ACCEPTANCE = 0.65  # optimal for HMC in many dimensions: Neal 2011, section 4.4
_GAIN = 0.2  # change of log step size per transition and unit of acceptance; if all is rejected, steps shrink by 1.14
_SLOPE = 4.0  # of the sigmoidal schedule, Wu et al.
_FIRST_STEP = 0.5  # in standard deviations of the starting distribution
_PILOT_CHAINS = 8
_SIMULATED = 256  # data drawn together


@at_home("x", float64=True)
def annealed(
    densities: Model | Densities,
    x: Float[Tensor, " n *x_shape"],
    *,
    num_temperatures: int = 500,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    start: str = "prior",
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Evidence:
    r"""Estimate log p(x) by annealed importance sampling: a stochastic lower bound.

    Each chain moves from a distribution that can be sampled to the posterior through

    .. math::
        f_\beta(z) = p(z)\, p(x|z)^\beta \quad\text{or}\quad q(z|x)^{1-\beta}\, p(x, z)^\beta, \qquad
        \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log\frac{f_1(z_{t-1})}{f_0(z_{t-1})},

    where one HMC transition that leaves :math:`f_{\beta_t}` invariant leads from :math:`z_{t-1}` to :math:`z_t`, and
    the :math:`\beta_t` are evenly spaced on a sigmoid. :math:`\mathbb E\, w = p(x)` whether the transitions mix or not.
    So :math:`\log \frac1C \sum_c w_c` is too low in expectation, and more than b nats too high with probability at most
    :math:`e^{-b}`.

    The estimate is far too low where chains do not mix. It misses a mode that neither the start nor the early
    temperatures lead into, and `error`, the standard error over the C chains, does not show this. `error` also means
    little where ``"ess"`` is below about 5. Starting from q (``start="posterior"``) needs fewer temperatures where q is
    good, but hardly leaves the modes that q covers.

    The cost is about ``num_temperatures * num_leapfrog * (num_chains + 8)`` gradients of the decoder per datum, many
    seconds each on a CPU. Where quadrature or ``importance(..., proposal="defensive")`` applies, it is cheaper and
    tighter.

    A separate pilot run adapts one step size for each datum and temperature to 65% acceptance. Its chains are then
    discarded. Adapting along the weighted chains would make a transition depend on their past and leave no
    :math:`f_\beta` invariant. With step sizes fixed before the first weighted draw, w is unbiased given these sizes,
    and so unbiased overall.

    Args:
        densities: The model: a `VAE` or its densities. Gradients move the latents, through a region of space; moves
            across an edge of the prior's support are rejected, so many such edges make it slow.
        x: Data.
        num_temperatures: T. Once the chains mix, doubling T roughly halves the variance of log w.
        num_chains: C.
        num_leapfrog: Leapfrog steps of a transition.
        start: ``"prior"`` or ``"posterior"``.
        seed: The seed of all draws; the global random state is left alone.
        max_bytes: About the most memory that decoded data take at once. It decides how many data run side by side, and
            so which draws each datum gets.

    Returns:
        Evidence of method ``"ais"``, kind ``"lower"``; `error` is the standard error over chains. Details, (n,) each:
        ``"ess"``, the effective sample size of the chains' weights; ``"log_weight_std"``, the standard deviation of
        log w over chains; ``"acceptance"``, the mean over temperatures and chains (if far from 0.65, use more
        temperatures); ``"step_size"``, the last one.

    Raises:
        ValueError: If an argument does not fit, or if the latent is discrete or lies on a sphere or simplex.

    Reference:
        Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008;
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov & Grosse, 2017),
        https://arxiv.org/abs/1611.04273

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> evidence = annealed(vae, vae.sample(3, mean=False), num_temperatures=5, num_chains=4, num_leapfrog=2)
        >>> len(evidence), evidence.kind
        (3, 'lower')
    """
    settings = _Settings(num_temperatures, num_chains, num_leapfrog, start, max_bytes)
    check_rows([x], "annealed importance sampling")
    densities = VAEDensities(densities) if isinstance(densities, Model) else densities
    with seeded(seed):
        parts = [_forward(Path.of(densities, part, start), settings)[0] for part in x.split(settings.rows(x))]
    return Evidence.joined(parts)


@dataclass(frozen=True)
class Sandwich:
    """Data simulated from a model, with log p(x) bounded from both sides.

    Attributes:
        x: The data.
        z: The latents that generated the data, exact draws of p(z|x).
        lower: The lower bound, by annealed importance sampling.
        upper: The upper bound, by the same chains run backwards from z.
    """

    x: Float[Tensor, " n *x_shape"]
    z: Float[Tensor, "n d"]
    lower: Evidence
    upper: Evidence

    @property
    def gap(self) -> Float[Tensor, " n"]:
        """The upper bound minus the lower bound, nats; below zero only by noise."""
        return self.upper.log_evidence - self.lower.log_evidence


@at_home(float64=True)
def bidirectional(
    densities: Model | VAEDensities,
    size: int,
    *,
    num_temperatures: int = 500,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    start: str = "prior",
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Sandwich:
    r"""Bound log p(x) from below and above (BDMC), on data simulated from the model.

    A pair z ~ p(z), x ~ p(x|z) contains an exact draw z of p(z|x). The chain of `annealed`, run backwards from z, has
    :math:`\mathbb E\, w^{-1} = 1/p(x)`, so that

    .. math::
        \mathbb E \Big[ -\log \frac1C \sum_c w_c^{-1} \Big] \ge \log p(x).

    The gap bounds the error of both bounds in expectation, and so validates the settings of `annealed` *on simulated
    data*. The model explains real data less well, and their posteriors can mix worse. The standard error of the upper
    bound covers the noise of the chains, but not the choice of z, which they share.

    Args:
        densities: The model: a `VAE` or its densities.
        size: How many data to simulate.
        num_temperatures: T, for both directions.
        num_chains: C, for both directions.
        num_leapfrog: Leapfrog steps of a transition.
        start: The other end of the path, ``"prior"`` or ``"posterior"``.
        seed: The seed of all draws, including the data; the global random state is left alone.
        max_bytes: About the most memory that decoded data take at once.

    Returns:
        The data and both bounds.

    Raises:
        ValueError: If an argument does not fit, or if the latent is discrete or lies on a sphere or simplex.

    Reference:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse, Ghahramani & Adams, 2015),
        https://arxiv.org/abs/1511.02543

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> sandwich = bidirectional(vae, 3, num_temperatures=20, num_chains=8, num_leapfrog=2)
        >>> sandwich.lower.kind, sandwich.upper.kind, sandwich.gap.shape
        ('lower', 'upper', torch.Size([3]))
    """
    settings = _Settings(num_temperatures, num_chains, num_leapfrog, start, max_bytes)
    check_positive_int(size, "bidirectional: size")
    densities = VAEDensities(densities) if isinstance(densities, Model) else densities
    lower, upper = [], []
    with seeded(seed):
        with torch.no_grad():
            z = densities.prior().sample((size,))
            x = torch.cat([densities.likelihood(part).sample() for part in z.split(_SIMULATED)])
        rows = settings.rows(x)
        for part, exact in zip(x.split(rows), z.split(rows), strict=True):
            path = Path.of(densities, part, start)
            below, steps = _forward(path, settings)
            lower.append(below)
            chains = exact.expand(num_chains, *exact.shape)
            upper.append(_run(path, chains, steps, settings, backwards=True))
    return Sandwich(x, z, Evidence.joined(lower), Evidence.joined(upper))


@dataclass(frozen=True)
class _Settings:
    num_temperatures: int
    num_chains: int
    num_leapfrog: int
    start: str
    max_bytes: int

    def __post_init__(self) -> None:
        for name in ("num_temperatures", "num_chains", "num_leapfrog", "max_bytes"):
            check_positive_int(getattr(self, name), f"annealed importance sampling: {name}")
        check_choice(self.start, ("prior", "posterior"), "annealed importance sampling: start")

    def rows(self, x: Tensor) -> int:
        """Return how many data run side by side; gradients take twice the memory."""
        return max(1, capacity(x, self.max_bytes) // (2 * max(self.num_chains, _PILOT_CHAINS)))

    def schedule(self) -> list[float]:
        """Return the T + 1 inverse temperatures, from 0 to 1."""
        t = torch.linspace(-_SLOPE, _SLOPE, self.num_temperatures + 1, dtype=torch.float64).sigmoid()
        return ((t - t[0]) / (t[-1] - t[0])).tolist()


def _forward(path: Path, settings: _Settings) -> tuple[Evidence, Tensor]:
    """Return the lower bound, and the step sizes (T - 1, n) that the pilot run found."""
    with torch.no_grad(), pyro.validation_enabled(False):
        pilot = path.sample(_PILOT_CHAINS)
        log_step = torch.full((len(path.x),), math.log(_FIRST_STEP), dtype=torch.float64, device=pilot.device)
        steps = log_step.new_empty(settings.num_temperatures - 1, len(path.x))
        for t, beta in enumerate(settings.schedule()[1:-1]):
            pilot, _, accepted = transition(path, pilot, beta, log_step.exp(), settings.num_leapfrog)
            log_step = log_step + _GAIN * (accepted.mean(0) - _ACCEPTANCE)
            steps[t] = log_step.exp()
        z = path.sample(settings.num_chains)
    return _run(path, z, steps, settings, backwards=False), steps


def _run(path: Path, z: Tensor, steps: Tensor, settings: _Settings, backwards: bool) -> Evidence:
    """Return the lower bound from chains at z (C, n, d) on f_0; or, backwards, the upper bound from draws of p(z|x)."""
    with torch.no_grad(), pyro.validation_enabled(False):
        betas, intervals = settings.schedule(), list(range(settings.num_temperatures))
        if backwards:
            intervals.reverse()
        slope = path.terms(z)[1].double()
        log_w, acceptance = torch.zeros_like(slope), torch.zeros_like(slope[0])
        for place, t in enumerate(intervals):
            log_w = log_w + (betas[t + 1] - betas[t]) * slope  # (C, n)
            if place < len(steps):
                between = max(t, intervals[place + 1])  # the temperature that both intervals share
                z, slope, accepted = transition(path, z, betas[between], steps[between - 1], settings.num_leapfrog)
                acceptance = acceptance + accepted.mean(0) / len(steps)
    check_numbers(log_w, "annealed importance sampling: the weights")
    count, sign = len(log_w), -1 if backwards else 1  # the mean weight, or backwards the harmonic mean
    ess, error = relative_error(sign * log_w)
    details = {
        "ess": ess,
        "log_weight_std": log_w.std(0) if count > 1 else torch.full_like(ess, math.inf),
        "acceptance": acceptance,
        "step_size": steps[-1] if len(steps) else torch.full_like(ess, math.nan),
    }
    estimate = sign * ((sign * log_w).logsumexp(0) - math.log(count))
    return Evidence(estimate, error, "ais", "upper" if backwards else "lower", details)
