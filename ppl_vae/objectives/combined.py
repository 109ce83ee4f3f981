r"""Combinations of several importance-weighted bounds: CIWAE, MIWAE, PIWAE, and the jackknife."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae._validation import check_positive_int, is_integer, is_real
from ppl_vae.objectives.estimate import Estimate, Following, ManyParticles, owner
from ppl_vae.objectives.importance import IWAE, log_mean_w
from ppl_vae.objectives.log_weights import LogWeights

_SMALLEST = 1e-20  # the smallest weight to divide a gradient by: negligible beside one, in float64 too
_MOST_SUBSETS = 5000


@dataclass(frozen=True)
class CIWAE(ManyParticles):
    r"""A convex combination of the ELBO and the importance-weighted bound.

    .. math::
        \hat{\mathcal L} = \beta \cdot \frac1K \sum_k \log w_k + (1 - \beta) \log \frac1K \sum_k w_k.

    It is a lower bound between the two. The bound comes nearer to log p(x) as beta falls, and the encoder's gradient
    becomes less noisy as beta rises. beta = 1 is `ELBO`, beta = 0 is `IWAE`; the cost is theirs.

    Args:
        num_particles: K.
        beta: The share of the ELBO.

    Raises:
        ValueError: If `beta` is not in [0, 1], or a latent is not reparameterised.

    Reference:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537

    Example:
        >>> log_w = torch.tensor([[0.0], [2.0]])
        >>> CIWAE(2, beta=1.0)(LogWeights.of(log_w)).value
        tensor([1.])
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.beta) or not 0 <= self.beta <= 1:
            raise ValueError(f"{owner(self)}: beta is {self.beta!r}; expected the ELBO's share, from 0 to 1")

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        bound = self.beta * log_weights.log_w.mean(0) + (1 - self.beta) * log_mean_w(log_weights)
        return Estimate(bound.detach(), bound, "lower")


@dataclass(frozen=True)
class _Grouped(ManyParticles):
    """Particles in groups of one size."""

    groups: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int(self.groups, f"{owner(self)}: groups")
        if self.num_particles % self.groups:
            raise ValueError(
                f"{owner(self)}: {self.groups} groups do not divide {self.num_particles} particles evenly; choose "
                "num_particles a multiple of groups"
            )

    def _in_groups(self, log_w: Tensor) -> Tensor:
        """Return log-weights as (M, K / M, batch)."""
        if len(log_w) % self.groups:
            raise ValueError(
                f"{owner(self)} was given the log-weights of {len(log_w)} particles; expected a multiple of its "
                f"{self.groups} groups"
            )
        return log_w.unflatten(0, (self.groups, -1))


@dataclass(frozen=True)
class MIWAE(_Grouped):
    r"""The mean of the importance-weighted bounds of M groups of particles.

    .. math::
        \hat{\mathcal L} = \frac1M \sum_m \log \frac{M}{K} \sum_{k \in m} w_k.

    It is the bound of K/M particles, with a variance M times smaller. For a fixed K, more groups mean a looser bound
    and a less noisy encoder gradient. One group is `IWAE`; K groups are `ELBO`. For M groups of k particles, the
    paper's MIWAE(M, k), give ``num_particles=M * k``. The method of the same name for missing data is `IWAE` on
    incomplete rows.

    Args:
        num_particles: K, the number of particles in all groups together.
        groups: M, which divides K.

    Raises:
        ValueError: If M does not divide K, or a latent is not reparameterised.

    Reference:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537

    Example:
        >>> MIWAE(num_particles=64, groups=8)  # the mean of eight bounds of eight particles each
        MIWAE(num_particles=64, groups=8)
    """

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        groups = self._in_groups(log_weights.log_w)
        bound = groups.logsumexp(1).mean(0) - math.log(groups.shape[1])
        return Estimate(bound.detach(), bound, "lower")


@dataclass(frozen=True)
class PIWAE(Following, _Grouped):
    r"""The importance-weighted bound of all K particles for the model, and the mean bound of M groups for q.

    .. math::
        \nabla_\theta: \ \log \frac1K \sum_k w_k, \qquad
        \nabla_\phi: \ \frac1M \sum_m \log \frac{M}{K} \sum_{k \in m} w_k.

    Each network follows the bound that suits it: many particles improve the decoder's gradient and harm the encoder's.
    The two gradients belong to different functions, so **no single bound is maximised**. The value and the `reference`
    are those of the first bound, `IWAE`; the encoder's gradient differs from the reference on purpose. One group is
    `IWAE`. A parameter of both p and q (an encoder inside a VampPrior) follows the first bound through log p(z) and the
    second through log q.

    Args:
        num_particles: K, the number of particles in all groups together.
        groups: M, which divides K.

    Raises:
        ValueError: If M does not divide K, or a latent is not reparameterised.

    Reference:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537

    Example:
        >>> PIWAE(num_particles=64, groups=8).reference
        IWAE(num_particles=64)
    """

    _follows = IWAE  # as the model does

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        bound = log_mean_w(log_weights)
        if self.groups == 1:
            return Estimate(bound.detach(), bound, "lower")
        model = log_weights.normalized.clamp_min(_SMALLEST)
        inner = self._in_groups(log_weights.log_w.detach()).softmax(1) / self.groups
        path = inner.flatten(0, 1) / model
        return Estimate(bound.detach(), log_weights.surrogate(model, path=path), "lower")


@dataclass(frozen=True)
class JVI(ManyParticles):
    r"""Jackknife variational inference: the importance-weighted bound without its leading bias.

    .. math::
        \hat{\mathcal L} = \sum_{j=0}^m c_j\, \overline{\mathcal L}_{K-j}, \qquad
        c_j = \frac{(-1)^j (K - j)^m}{(m - j)!\, j!},

    with :math:`\overline{\mathcal L}_{K-j}` the mean of the bound over all subsets of K - j particles. The bias against
    log p(x) falls from order :math:`K^{-1}` to :math:`K^{-(m+1)}` where the weights have enough moments. The value is
    **neither a lower nor an upper bound**. The coefficients grow as :math:`K^m`, so they amplify the noise of
    heavy-tailed weights. Order 0 is `IWAE`. The cost is one decoder pass per particle and :math:`\binom Km` sums of K
    numbers.

    Args:
        num_particles: K, larger than the order.
        order: m.

    Raises:
        ValueError: If the order is negative or not below K, if there are more than 5,000 subsets, or if a latent is not
            reparameterised.

    Reference:
        Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife Variational Inference
        (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb

    Example:
        >>> JVI(8, order=1).coefficients
        [8.0, -7.0]
    """

    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_integer(self.order) or not 0 <= self.order < self.num_particles:
            raise ValueError(
                f"{owner(self)}: order is {self.order!r}; expected an integer from 0 to {self.num_particles - 1}, "
                "below num_particles"
            )
        subsets = max(math.comb(self.num_particles, j) for j in range(self.order + 1))
        if subsets > _MOST_SUBSETS:
            raise ValueError(
                f"{owner(self)}: {self.num_particles} particles have {subsets:,} subsets without up to {self.order} of "
                f"them; expected at most {_MOST_SUBSETS:,}: lower the order or num_particles"
            )

    @property
    def coefficients(self) -> list[float]:
        """The factors of the bounds of K, K - 1, ... particles, which sum to one."""
        return self._coefficients(self.num_particles)

    def _coefficients(self, k: int) -> list[float]:
        m = self.order
        return [(-1) ** j * (k - j) ** m / (math.factorial(m - j) * math.factorial(j)) for j in range(m + 1)]

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        # the coefficients sum to one, so the bound may be computed relative to the maximum, where less cancels
        top = log_weights.log_w.detach().max(0).values
        centred, value = log_weights.log_w - top, top
        for left_out, coefficient in enumerate(self._coefficients(log_weights.num_particles)):
            value = value + coefficient * self._mean_bound(centred, left_out)
        return Estimate(value.detach(), value, "lower" if self.order == 0 else "neither")

    def _mean_bound(self, log_w: Tensor, left_out: int) -> Tensor:
        """Return the bound of K - left_out particles, averaged over all subsets, (batch,)."""
        k = len(log_w)
        if left_out == 0:
            return log_w.logsumexp(0) - math.log(k)
        without = _without(k, left_out, log_w.dtype, log_w.device)
        return (log_w + without).logsumexp(1).mean(0) - math.log(k - left_out)


@functools.lru_cache(maxsize=32)
def _without(num_particles: int, left_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 0 for the particles of each subset and minus infinity for the others, (subsets, K, 1); cached."""
    subsets = torch.combinations(torch.arange(num_particles), left_out)
    mask = torch.zeros(len(subsets), num_particles, dtype=dtype).scatter_(1, subsets, -math.inf)
    return mask.unsqueeze(-1).to(device)
