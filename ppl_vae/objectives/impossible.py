r"""Figures that no model can give, whatever its parameters: a density then does not belong to the draws that it scores.

For each datum :math:`\mathbb E_q[p(z) / q(z|x)] \le 1`. Where the data are discrete, :math:`p(x|z) \le 1` and
:math:`\mathbb E_q[w] = p(x) \le 1`. The draws for n data are independent, so the product of their ratios has an
expectation of at most 1. By Markov's inequality

.. math::
    P\Big(\sum_{i=1}^n \log \frac{p(z_i)}{q(z_i|x_i)} > t\Big) \le e^{-t}, \qquad
    P\Big(\sum_{i=1}^n \hat{\mathcal L}(x_i) > t\Big) \le e^{-t},

for every bound that is at most the log of an average of weights, such as a mean over particles or a power mean. At
t = 40 the probability is at most 4e-18, so chance stops no run in practice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae._distributions import describe, is_discrete
from ppl_vae.objectives.log_weights import LogWeights

CHANCE = 40.0  # t, nats of a batch: e^-40 = 4e-18
_ROUNDING = 0.1  # nats of a datum: a sum over ten thousand pixels in float32 has some hundredths of rounding error
_DIGITS = 0.1  # nats of a datum that the rounding of z may cost
_SIGMAS = 6.0  # between a sampled and an analytic KL, over n * K draws


class Limits(NamedTuple):
    """The terms of a program whose sign is known.

    Attributes:
        likelihood: The name of p(x|z) where the data are discrete, so that log p(x|z) is at most 0; otherwise None.
        latents: The names of q(z|x) and p(z) where every latent is drawn from q and scored by q and p, so that the
            sampled KL cannot be far below 0. Otherwise None: with auxiliary latents, with masks, or where the objective
            makes its own draws.
        lower: Whether the objective's value is a lower bound of log p(x) and has no penalty: a penalty that is sampled
            may be below 0.
    """

    likelihood: str | None = None
    latents: tuple[str, str] | None = None
    lower: bool = False


def limits_of(log_weights: LogWeights, *, drawn: bool = True, lower: bool = False) -> Limits:
    """Return the limits of a program, from its distributions.

    Args:
        log_weights: The log-weights of the program.
        drawn: Whether the latents are draws of the q that scores them, or all its states.
        lower: Whether the objective is a lower bound without a penalty.
    """
    observed = [distribution for distribution, _ in log_weights.observed.values()]
    names = ", ".join(sorted({describe(d) for d in observed}))
    both = [*log_weights.posterior.values(), *log_weights.prior.values()]
    matched = log_weights.posterior.keys() == log_weights.prior.keys() and not any(hasattr(d, "_mask") for d in both)
    q, p = (", ".join(describe(d) for d in site.values()) for site in (log_weights.posterior, log_weights.prior))
    return Limits(
        names if observed and all(is_discrete(d) for d in observed) else None,
        (q, p) if drawn and matched and both else None,
        lower,
    )


def impossible(
    limits: Limits, size: int, *, log_likelihood: float | None, kl: float | None, bound: float | None
) -> str | None:
    """Return a sentence on a figure of a batch that no model can give, or None if there is no such figure.

    Args:
        limits: The limits of the program.
        size: The number of data, n.
        log_likelihood: The mean of log p(x|z) per datum, nats; None if unknown.
        kl: The mean of the sampled or analytic KL per datum, nats; None if unknown.
        bound: The mean value of the objective per datum, nats; None if unknown.

    Example:
        >>> impossible(Limits(latents=("FullNormal", "Normal")), 128, log_likelihood=-90.0, kl=20.0, bound=-110.0)
        >>> impossible(Limits(latents=("Mine", "Normal")), 128, log_likelihood=-90.0, kl=-2.0, bound=-88.0)[:85]
        'the sampled KL(q(z|x) || p(z)) is -2 nats per datum, below 0 by more than chance: the'
    """
    if limits.likelihood is not None and log_likelihood is not None and log_likelihood > _ROUNDING:
        return (
            f"log p(x|z) is {log_likelihood:.5g} nats per datum, and of discrete data it is at most 0: the likelihood "
            f"{limits.likelihood} is no probability"
        )
    if limits.latents is not None and kl is not None and -kl * size > CHANCE:
        q, p = limits.latents
        return (
            f"the sampled KL(q(z|x) || p(z)) is {kl:.5g} nats per datum, below 0 by more than chance: the posterior "
            f"{q} or the prior {p} does not score what was drawn"
        )
    if limits.likelihood is not None and limits.lower and bound is not None and bound * size > CHANCE:
        return (
            f"the bound is {bound:.5g} nats per datum, and log p(x) of discrete data is at most 0: some weights "
            "p(x, z) / q(z|x) are of a z that was not drawn"
        )
    return None


@torch.no_grad()
def strange(log_weights: LogWeights, *, digits: bool = True) -> tuple[str | None, str | None]:
    """Return the impossible figure of some log-weights and the alarm that they raise, each as a sentence or None.

    There are two alarms. Either the sampled KL is far from the analytic KL, or rounding has changed z: the density of a
    draw, computed from its noise, differs from the density at the floats of z.

    Args:
        log_weights: The log-weights of K particles, the more the better.
        digits: Whether to raise the alarm on rounded z. Before training, the z of an encoder of raw columns
            is rounded as well.
    """
    limits = limits_of(log_weights)
    kl, size = log_weights.kl.double(), log_weights.log_lik.shape[1]
    if bool(torch.isnan(kl).any()):
        return None, None  # every figure already shows a NaN
    worst = impossible(
        limits, size, log_likelihood=float(log_weights.log_lik.max()), kl=float(kl.mean(1).min()), bound=None
    )
    if worst is not None:
        return worst, None
    return None, _far_from_analytic(log_weights, kl) or (_lost_digits(log_weights) if digits else None)


@torch.no_grad()
def alarm_of(q: Any, p: Any) -> str | None:
    """Return the alarm of `strange` for one posterior and its prior, without decoding data and ignoring rounded z.

    Args:
        q: q(z|x), batch shape (n,).
        p: p(z), batch shape () or (n,).
    """
    p = p.expand(q.batch_shape)  # as a plate does
    z = q.sample((32,))
    log_q, log_p = q.log_prob(z), p.log_prob(z)
    weights = LogWeights(torch.zeros_like(log_q), {"z": log_p}, {"z": log_q}, {"z": z}, {"z": p}, {"z": q}, {})
    return strange(weights, digits=False)[1]


def _lost_digits(log_weights: LogWeights) -> str | None:
    """Return the alarm on rounded z, for uses that score a given z: importance sampling, DReG, aggregate posterior."""
    for name, q in log_weights.posterior.items():
        try:
            again = log_weights.per_particle(q.log_prob(log_weights.z[name].clone()))
        except NotImplementedError:  # this q scores only its last draw
            continue
        off = float((again - log_weights.log_q[name]).double().abs().mean())
        if off > _DIGITS:
            return (
                f"a z drawn from the posterior {describe(q)} has lost its digits in {again.dtype}: its density at the "
                f"rounded z is {off:.2g} nats from that of what was drawn, so that figures that score a given z "
                "(importance sampling, DReG, the aggregate posterior) are wrong by as much; use float64, vae.double()"
            )
    return None


def _far_from_analytic(log_weights: LogWeights, kl: Tensor) -> str | None:
    try:
        analytic = log_weights.analytic_kl().double()
    except NotImplementedError:
        return None
    difference = (kl - analytic).mean(1)  # (K,)
    sampled, error = difference.mean(), difference.std() / len(difference) ** 0.5
    missed = 5 / kl.numel()  # the probability of outcomes that so many draws may all have missed: the error knows none
    slack = _SIGMAS * error + (1e-3 + missed) * (1 + analytic.abs().mean())
    if len(difference) < 2 or bool(sampled.abs() <= slack):
        return None
    return (
        f"the sampled KL(q(z|x) || p(z)), {kl.mean():.5g} nats per datum, is {sampled:+.4g} from the analytic one "
        f"(standard error {error:.2g}): one of the two densities, or their KL, is wrong"
    )
