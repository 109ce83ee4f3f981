r"""Penalties on the KL: a weight, free bits, a capacity."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from ppl_vae._validation import check_choice, check_not_negative, check_positive
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.regularized import Penalty
from ppl_vae.regularizers.schedule import Schedule, Shape
from ppl_vae.regularizers.terms import Term, kl, kl_per_dimension

Over = Literal["dimension", "datum"]
Average = Literal["batch", "datum"]


class KLWeight(nn.Module):
    r"""A weight beta on the KL: a beta-VAE, or KL annealing.

    .. math::
        \mathrm{penalty}(x) = (\beta - 1)\, \mathrm{KL}(q(z|x) \,\|\, p(z)).

    beta = 1 changes nothing. Above one the objective stays a lower bound, a looser one; **below one it is none**, and
    while it anneals none is claimed. Under a bound of K particles this is :math:`\mathcal L_K - (\beta - 1)
    \mathrm{KL}`: the weight stays outside of the logarithm. The KL is in closed form where it has one, else sampled
    with the objective's own draws.

    Args:
        beta: The weight, at the end of the schedule.
        schedule: ``"constant"``, ``"linear"``, ``"cyclical"`` or ``"sigmoid"``, see `Schedule`.
        steps: Training steps of the schedule.
        start: The weight that it begins with.
        cycles: Ramps of a cyclical schedule.

    Raises:
        ValueError: If a weight is negative, or a schedule lacks its steps.

    Reference:
        beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl; Ladder Variational Autoencoders
        (Sønderby et al., 2016), https://arxiv.org/abs/1602.02282, for the warm-up

    Example:
        >>> KLWeight(beta=1.0, schedule="linear", steps=1000)
        KLWeight(
          (weight): Schedule(linear, 0.0 to 1.0 in 1000 steps)
        )
    """

    def __init__(
        self,
        beta: float = 1.0,
        schedule: Shape = "constant",
        steps: int | None = None,
        start: float = 0.0,
        cycles: int = 4,
    ) -> None:
        super().__init__()
        for name, value in (("beta", beta), ("start", start)):
            check_not_negative(value, f"regularizer KLWeight: {name}")
        self.weight = Schedule(schedule, beta, start, steps, cycles, "regularizer KLWeight")

    def forward(self, log_weights: LogWeights) -> Penalty | None:
        """Return the penalty of each datum."""
        if self.weight.shape == "constant":
            if self.weight.stop == 1:
                return None
            weight: Any = self.weight.stop - 1
        else:
            weight = (self.weight() - 1).to(log_weights.log_lik)
        term = kl(log_weights)
        at_least_one = self.weight.shape == "constant" and self.weight.stop >= 1
        return Penalty(weight * term.value, weight * term.surrogate, at_least_one)


class FreeBits(nn.Module):
    r"""Free bits: a KL below lambda is not paid for, so that no dimension is given up early.

    .. math::
        \mathrm{penalty} = \sum_j \max(\lambda, \mathrm{KL}_j) - \mathrm{KL}_j, \qquad j \text{ over dimensions, or one
        for all.}

    lambda = 0 changes nothing. Never negative: a lower bound stays one, but **one that pays lambda nats for each
    dimension whether it is used or not**, so compare models by the ELBO or log p(x) instead. Over what is averaged
    before the maximum matters: over the batch (the default, as in the paper) a dimension may be free for one datum and
    dear for another; for each datum by itself it may not, which is the harder constraint.

    Args:
        nats: lambda, nats per group.
        over: Groups: each latent ``"dimension"`` (closed form needed), or all of z, ``"datum"``.
        average: Whether the KL of a group is averaged over the ``"batch"`` before the maximum is taken, or taken for
            each ``"datum"``.

    Raises:
        ValueError: If `nats` is negative, an option is unknown, or the KL does not split into dimensions.

    Reference:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        https://arxiv.org/abs/1606.04934

    Example:
        >>> FreeBits(0.25).over
        'dimension'
    """

    def __init__(self, nats: float = 0.5, over: Over = "dimension", average: Average = "batch") -> None:
        super().__init__()
        self.nats = check_not_negative(nats, "regularizer FreeBits: nats")
        check_choice(over, get_args(Over), "regularizer FreeBits: over")
        check_choice(average, get_args(Average), "regularizer FreeBits: average")
        self.over: Over = over
        self.average: Average = average

    def extra_repr(self) -> str:
        """What tells it from others."""
        return f"{self.nats} nats over {self.over}, averaged over {self.average}"

    def forward(self, log_weights: LogWeights) -> Penalty | None:
        """Return the penalty of each datum."""
        if self.nats == 0:
            return None
        if self.over == "dimension":
            term = kl_per_dimension(log_weights, "regularizer FreeBits over dimensions")
        else:
            term = Term(*(part.unsqueeze(-1) for part in kl(log_weights)))
        if self.average == "batch":
            term = _batch_mean(term)
        lack = (self.nats - term.value).clamp_min(0.0)
        free = (lack > 0).to(lack)
        return Penalty(lack.sum(-1), -(free * term.surrogate).sum(-1), True)


class Capacity(nn.Module):
    r"""A capacity C for the KL, which is drawn to it from above and below.

    .. math::
        \mathrm{penalty} = \gamma\, \lvert \mathrm{KL} - C \rvert - \mathrm{KL},

    with the KL averaged over the batch, and C rising linearly from zero if `steps` are given. **No bound.**

    Args:
        nats: C at the end, nats.
        gamma: The force.
        steps: Training steps over which C rises; None for C from the start.

    Raises:
        ValueError: If a number is not positive.

    Reference:
        Understanding disentangling in beta-VAE (Burgess et al., 2018), https://arxiv.org/abs/1804.03599

    Example:
        >>> Capacity(25.0, gamma=100.0, steps=10_000).gamma
        100.0
    """

    def __init__(self, nats: float = 25.0, gamma: float = 100.0, steps: int | None = None) -> None:
        super().__init__()
        self.gamma = check_positive(gamma, "regularizer Capacity: gamma")
        check_positive(nats, "regularizer Capacity: nats")
        self.capacity = Schedule(
            "constant" if steps is None else "linear", nats, 0.0, steps, name="regularizer Capacity"
        )

    def forward(self, log_weights: LogWeights) -> Penalty:
        """Return the penalty of each datum."""
        term = _batch_mean(kl(log_weights))
        excess = term.value - self.capacity().to(term.value)
        slope = self.gamma * excess.sign() - 1
        return Penalty(self.gamma * excess.abs() - term.value, slope * term.surrogate, False)


def _batch_mean(term: Term) -> Term:
    return Term(*(part.mean(0, keepdim=True).expand_as(part) for part in term))
