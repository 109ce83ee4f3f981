r"""Score-function gradients of the importance-weighted bound whose signal-to-noise rises with K: VIMCO-star and OVIS.

The score :math:`\nabla_\phi \log q(z_k|x)` has the weight :math:`d_k - c_k`, where :math:`d_k = \hat{\mathcal L} -
\tilde w_k`. A c_k that does not depend on z_k leaves it unbiased. That of `VIMCO` leaves noise of order 1/K in the
weight. Those here cancel this order: what is left is of order :math:`\tilde w_k^2`. Only `OVIS` with gamma above 0 has
a c_k that depends on z_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vae._validation import check_positive_int, is_real
from ppl_vae.objectives.estimate import Estimate, Following, owner
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.score_function import VIMCO

if TYPE_CHECKING:
    from jaxtyping import Float

_SMALL = 1e-2  # the weight below which -log(1 - w) - w is a series: in float32 the difference loses its digits there


@dataclass(frozen=True)
class VIMCOStar(Following, VIMCO):
    r"""The importance-weighted bound with a score-function gradient whose signal-to-noise rises with K (VIMCO-star).

    .. math::
        \nabla_\phi \mathcal L_K = \mathbb E\Big[\sum_k \big(-\log(1 - \tilde w_k) - \tilde w_k\big)\,
        \nabla_\phi \log q(z_k|x)\Big].

    It is `VIMCO` with the baseline :math:`\log \frac1K \sum_{j \ne k} w_j`: the other weights alone, without a mean in
    the place of w_k. It is **unbiased** for the gradient of the bound, for latents of any kind, without parameters or
    state. The weights of the score are all positive and about :math:`\tilde w_k^2 / 2`. So the variance falls as
    :math:`K^{-3}` and the signal-to-noise rises as :math:`K^{1/2}`, where that of `VIMCO` falls, provided the weights
    have enough moments. **Where one weight is nearly all, it gains nothing.** The model's gradient is IWAE's. The cost
    is that of `VIMCO`, with memory of order K instead of K squared. It equals `OVIS` at gamma = 0. The paper's
    estimators of other orders alpha are not here; the formula at alpha = 0 is that of a published implementation, which
    cites the paper's equation 15.

    Args:
        num_particles: K, at least 2.

    Raises:
        ValueError: If there is only one particle.

    Reference:
        Importance Weighted Variational Inference without the Reparameterization Trick (Daudel et al., 2026),
        https://arxiv.org/abs/2602.01412

    Example:
        >>> VIMCOStar(8).reference
        VIMCO(num_particles=8)
    """

    _follows = VIMCO  # and `OVIS` with bias

    def _score(self, log_weights: LogWeights) -> Float[Tensor, "K batch"]:
        log_w = log_weights.log_w.detach()
        w = log_w.softmax(0)
        series = w * w * (1 / 2 + w * (1 / 3 + w * (1 / 4 + w * (1 / 5 + w * (1 / 6 + w / 7)))))
        return torch.where(w < _SMALL, series, -log_others(log_w) - w)


@dataclass(frozen=True)
class OVIS(VIMCOStar):
    r"""The importance-weighted bound with the asymptotic optimal control variate of OVIS.

    .. math::
        c_k = \log \frac{1}{K - 1} \sum_{j \ne k} w_j - \gamma \tilde w_k + (1 - \gamma) \log(1 - 1/K).

    **For gamma above 0 it is biased**: this c_k depends on z_k. Its gradient is that of the bound plus gamma times the
    wake phase of `RWS`, sample by sample, less a multiple of the score that has expectation zero:

    .. math::
        d_k - c_k = -\log(1 - \tilde w_k) - \tilde w_k + \gamma\, (\tilde w_k + \log(1 - 1/K)).

    So at gamma = 1, the authors' choice where the effective sample size is large, q follows the wake phase, which is of
    order one, rather than the bound, whose gradient by q is of order 1/K. At gamma = 0, their choice where the
    effective sample size is near 1, it is unbiased and equals `VIMCOStar`. `OVISMC` is unbiased as well. The latents
    may be of any kind. The model's gradient is IWAE's.

    Args:
        num_particles: K, at least 2.
        gamma: The share of the wake phase, from 0 to 1.

    Raises:
        ValueError: If there is only one particle, or gamma is not from 0 to 1.

    Reference:
        Optimal Variance Control of the Score Function Gradient Estimator for Importance Weighted Bounds (Lievin,
        Dittadi, Christensen & Winther, 2020), https://arxiv.org/abs/2008.01998

    Example:
        >>> OVIS(8)
        OVIS(num_particles=8, gamma=1.0)
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.gamma) or not 0 <= self.gamma <= 1:
            raise ValueError(f"{owner(self)}: gamma is {self.gamma!r}; expected a number from 0 (unbiased) to 1")

    def _score(self, log_weights: LogWeights) -> Float[Tensor, "K batch"]:
        wake = log_weights.log_w.detach().softmax(0) + math.log1p(-1 / log_weights.num_particles)
        return super()._score(log_weights) + self.gamma * wake


@dataclass(frozen=True)
class OVISMC(VIMCO):
    r"""The importance-weighted bound with the control variate of OVIS from auxiliary draws.

    .. math::
        c_k = \frac1S \sum_s d_k(z^{(s)}, z_{-k}), \qquad d_k = \hat{\mathcal L} - \tilde w_k,

    with one of S further draws in the place of z_k. It is **unbiased** for the gradient of the bound of the first K
    particles, for latents of any kind, and c_k tends to the best baseline, the expectation of d_k given the others, as
    S grows. **With few of them it is noisy.** The auxiliary draws serve q's gradient alone; the value and the model's
    gradient are those of the first K. The cost is K + S passes.

    Args:
        num_particles: All draws, K + S.
        auxiliary: S, which leaves K at least 2.

    Raises:
        ValueError: If fewer than 2 particles are left.

    Reference:
        Optimal Variance Control of the Score Function Gradient Estimator for Importance Weighted Bounds (Lievin,
        Dittadi, Christensen & Winther, 2020), https://arxiv.org/abs/2008.01998

    Example:
        >>> OVISMC(12, auxiliary=4).reference  # a bound of eight
        VIMCO(num_particles=8)
    """

    auxiliary: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int(self.auxiliary, f"{owner(self)}: auxiliary")
        if self.num_particles - self.auxiliary < 2:
            raise ValueError(
                f"{owner(self)}: {self.num_particles} particles, {self.auxiliary} of them auxiliary, leave "
                f"{self.num_particles - self.auxiliary} for the bound; expected at least 2: raise num_particles"
            )

    @property
    def reference(self) -> VIMCO:
        """An objective whose gradient has the same expectation."""
        return VIMCO(self.num_particles - self.auxiliary)

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_detached(self)
        k = self.num_particles - self.auxiliary
        log_w, extra = log_weights.log_w.detach().split([k, self.auxiliary])
        total = log_w.logsumexp(0)
        others = total + log_others(log_w)
        swapped = torch.logaddexp(others.unsqueeze(1), extra)  # (K, S, batch)
        own = (extra - swapped).exp()
        weights = log_w.softmax(0)
        score = total - weights - (swapped - own).mean(1)
        none = torch.zeros_like(extra)
        surrogate = log_weights.surrogate(torch.cat([weights, none]), score=torch.cat([score, none]))
        return Estimate(total - math.log(k), surrogate, "lower")


def log_others(log_w: Float[Tensor, "K batch"]) -> Float[Tensor, "K batch"]:
    """Return log(1 - w~), the logarithm of the share of the others, exact also where one weight is nearly all."""
    w = log_w.softmax(0)
    largest = log_w == log_w.max(0).values
    rest = log_w.masked_fill(largest, -torch.inf).logsumexp(0) - log_w.logsumexp(0)
    return torch.where(w > 0.5, rest, torch.log1p(-w))
