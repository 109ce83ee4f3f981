r"""Penalties on the KL: a weight, free bits, a capacity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from ppl_vae._validation import check_choice, check_not_negative, check_positive
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.regularized import Penalty
from ppl_vae.regularizers.schedule import Schedule, Shape
from ppl_vae.regularizers.terms import Term, kl, kl_per_dimension, kl_per_level

Over = Literal["dimension", "level", "datum"]
Average = Literal["batch", "datum"]


class KLWeight(nn.Module):
    r"""A weight beta on the KL: a beta-VAE, or KL annealing.

    .. math::
        \mathrm{penalty}(x) = (\beta - 1)\, \mathrm{KL}(q(z|x) \,\|\, p(z)).

    beta = 1 changes nothing. With a weight above one the objective is still a lower bound, but a looser one. **Below
    one it is no lower bound**, and while the weight anneals none is claimed. A bound of K particles becomes
    :math:`\mathcal L_K - (\beta - 1) \mathrm{KL}`: the weight stays outside the logarithm. The KL is in closed form
    where one exists, otherwise sampled with the draws of the objective. An object of this class holds the place in its
    schedule: use one object per training run.

    Args:
        beta: The weight at the end of the schedule. A list gives each level of a latent its own, from z_1 up (for a
            program of several latent sites in the guide's order); the objective is then **no bound** by itself.
        schedule: ``"constant"``, ``"linear"``, ``"cyclical"`` or ``"sigmoid"``; see `Schedule`.
        steps: The number of training steps of the schedule, or a list of those of each level.
        start: The weight at the start of the schedule.
        cycles: The number of ramps of a cyclical schedule.

    Raises:
        ValueError: If a weight is negative, the schedule needs `steps`, or the latent has not as many levels as a list.

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
        beta: float | Sequence[float] = 1.0,
        schedule: Shape = "constant",
        steps: int | Sequence[int] | None = None,
        start: float = 0.0,
        cycles: int = 4,
    ) -> None:
        super().__init__()
        owner = "regularizer KLWeight"
        lists = [value for value in (beta, steps) if isinstance(value, Sequence)]
        count = len(lists[0]) if lists else 1
        if not count or any(len(value) != count for value in lists):
            raise ValueError(f"{owner}: beta is {beta!r} and steps is {steps!r}; expected lists of one length")
        if isinstance(steps, Sequence) and schedule == "constant":
            raise ValueError(f"{owner}: steps is {list(steps)} and the schedule is constant; expected 'linear' or so")
        betas: Any = beta if isinstance(beta, Sequence) else [beta] * count
        lengths: Any = steps if isinstance(steps, Sequence) else [steps] * count
        for name, value in [*(("beta", stop) for stop in betas), ("start", start)]:
            check_not_negative(value, f"{owner}: {name}")
        each = [Schedule(schedule, b, start, n, cycles, owner) for b, n in zip(betas, lengths, strict=True)]
        self.weight: Schedule | nn.ModuleList = nn.ModuleList(each) if lists else each[0]

    def forward(self, log_weights: LogWeights) -> Penalty | None:
        """Return the penalty of each datum."""
        if isinstance(self.weight, nn.ModuleList):
            return self._by_level(log_weights, self.weight)
        constant = self.weight.shape == "constant"
        if constant and self.weight.stop == 1:
            return None
        weight = self.weight.stop - 1 if constant else (self.weight() - 1).to(log_weights.log_lik)
        term = kl(log_weights)
        return Penalty(weight * term.value, weight * term.surrogate, constant and self.weight.stop >= 1)

    def _by_level(self, log_weights: LogWeights, weights: nn.ModuleList) -> Penalty:
        term = kl_per_level(log_weights, "regularizer KLWeight with a list")
        if term.value.shape[-1] != len(weights):
            raise ValueError(
                f"regularizer KLWeight has lists of {len(weights)}, and the latent has {term.value.shape[-1]} levels"
            )
        weight = torch.stack([schedule() for schedule in weights]).to(term.value) - 1
        return Penalty((weight * term.value).sum(-1), (weight * term.surrogate).sum(-1), False)


class FreeBits(nn.Module):
    r"""Free bits: every KL below lambda costs the same, so training does not give up a dimension early.

    .. math::
        \mathrm{penalty} = \sum_j \max(\lambda, \mathrm{KL}_j) - \mathrm{KL}_j, \qquad j \text{ over dimensions,
        levels, or one for all.}

    lambda = 0 changes nothing. The penalty is never negative, so a lower bound stays one. But **the bound pays lambda
    nats for each dimension, used or unused**, so compare models by the ELBO or log p(x) instead. It matters what is
    averaged before the maximum. With an average over the batch (the default, as in the paper), the KL of a dimension
    may be below lambda for one datum if it is above for another. With the maximum for each datum it may not; this is
    the harder constraint.

    Args:
        nats: lambda, nats per group.
        over: The groups: each latent ``"dimension"`` (needs a closed-form KL), each ``"level"`` of a
            `posteriors.Ladder` or each latent site, or all of z, ``"datum"``.
        average: ``"batch"`` to average the KL of a group over the batch before the maximum, ``"datum"`` to take the
            maximum for each datum.

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
        """Return the settings for ``repr``."""
        return f"{self.nats} nats over {self.over}, averaged over {self.average}"

    @property
    def couples_batch(self) -> bool:
        """Whether the penalty of a datum depends on the others of its batch."""
        return self.average == "batch"

    def forward(self, log_weights: LogWeights) -> Penalty | None:
        """Return the penalty of each datum."""
        if self.nats == 0:
            return None
        if self.over == "dimension":
            term = kl_per_dimension(log_weights, "regularizer FreeBits over dimensions")
        elif self.over == "level":
            term = kl_per_level(log_weights, "regularizer FreeBits over levels")
        else:
            term = Term(*(part.unsqueeze(-1) for part in kl(log_weights)))
        if self.couples_batch:
            term = _batch_mean(term)
        lack = (self.nats - term.value).clamp_min(0.0)
        free = (lack > 0).to(lack)
        return Penalty(lack.sum(-1), -(free * term.surrogate).sum(-1), True)


class Capacity(nn.Module):
    r"""A capacity C, towards which the penalty pulls the KL from above and below.

    .. math::
        \mathrm{penalty} = \gamma\, \lvert \mathrm{KL} - C \rvert - \mathrm{KL},

    with the KL averaged over the batch. If `steps` is given, C rises linearly from zero. The value is **no bound**. An
    object of this class holds the steps that it took: use one object per training run.

    Args:
        nats: The final C, nats.
        gamma: The strength of the pull.
        steps: The number of training steps over which C rises; None for the final C from the start.

    Raises:
        ValueError: If a number is not positive.

    Reference:
        Understanding disentangling in beta-VAE (Burgess et al., 2018), https://arxiv.org/abs/1804.03599

    Example:
        >>> Capacity(25.0, gamma=100.0, steps=10_000).gamma
        100.0
    """

    couples_batch = True

    def __init__(self, nats: float = 25.0, gamma: float = 100.0, steps: int | None = None) -> None:
        super().__init__()
        self.gamma = check_positive(gamma, "regularizer Capacity: gamma")
        check_positive(nats, "regularizer Capacity: nats")
        shape: Shape = "constant" if steps is None else "linear"
        self.capacity = Schedule(shape, nats, 0.0, steps, name="regularizer Capacity")

    def forward(self, log_weights: LogWeights) -> Penalty:
        """Return the penalty of each datum."""
        term = _batch_mean(kl(log_weights))
        excess = term.value - self.capacity().to(term.value)
        slope = self.gamma * excess.sign() - 1
        return Penalty(self.gamma * excess.abs() - term.value, slope * term.surrogate, False)


def _batch_mean(term: Term) -> Term:
    return Term(*(part.mean(0, keepdim=True).expand_as(part) for part in term))
