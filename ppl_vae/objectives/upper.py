r"""Estimates of upper bounds of log p(x), which train only q.

To minimise an upper bound over the model would lower log p(x). So the parameters of the model receive no gradient here:
train them with another objective. The estimates are too low for the bounds, so they are no upper limits of log p(x).
SVI reports minus the value as the loss, as for every objective, so the loss rises as the bound falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ppl_vae._validation import check_positive
from ppl_vae.objectives.estimate import Estimate, ManyParticles, owner
from ppl_vae.objectives.log_weights import LogWeights


@dataclass(frozen=True)
class CUBO(ManyParticles):
    r"""The chi upper bound.

    .. math::
        \mathrm{CUBO}_n(x) = \frac1n \log \mathbb E_{q(z|x)}[w^n] \ge \log p(x), \qquad
        \widehat{\mathrm{CUBO}}_n = \frac1n \log \frac1K \sum_k w_k^n .

    The bound is above log p(x), by an amount that grows with n. **The estimate need not be above log p(x)**: an average
    of K draws inside the logarithm is too low. Where w^n is heavy-tailed it is far too low, and then below log p(x). It
    rises to the bound with K. Only q minimises it, with a score-function gradient whose weights are (n - 1)/n times the
    normalised w^n. This gradient is biased, as the value is. It makes q cover the posterior.

    Args:
        num_particles: K.
        n: The order, above 1.

    Raises:
        ValueError: If n is not above 1.

    Reference:
        Variational Inference via chi Upper Bound Minimization (Dieng et al., 2017), https://arxiv.org/abs/1611.00328

    Example:
        >>> import torch
        >>> weights = LogWeights.of(torch.tensor([[0.0], [2.0]]))
        >>> CUBO(2)(weights).value, CUBO(2)(weights).kind
        (tensor([1.6625]), 'upper')
    """

    n: float = 2.0
    latents: ClassVar[str] = "detached"

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_positive(self.n, f"{owner(self)}: n") <= 1:
            raise ValueError(f"{owner(self)}: n is {self.n}; expected a number above 1 (at 1 the bound is log p(x))")

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_detached(self)
        powers = self.n * log_weights.log_w.detach()
        value = (powers.logsumexp(0) - math.log(log_weights.num_particles)) / self.n
        score = (self.n - 1) / self.n * powers.softmax(0)
        return Estimate(value, log_weights.surrogate(None, score=score), "upper")


@dataclass(frozen=True)
class EUBO(ManyParticles):
    r"""The evidence upper bound: the ELBO with its expectation under the true posterior.

    .. math::
        \mathrm{EUBO}(x) = \mathbb E_{p(z|x)}[\log w] = \log p(x) + \mathrm{KL}(p(z|x) \,\|\, q(z|x)), \qquad
        \widehat{\mathrm{EUBO}} = \sum_k \tilde w_k \log w_k .

    **The estimate is not above log p(x) in expectation**: the K draws come from q, and the normalised weights are
    biased towards q. It lies between IWAE's value and the largest log-weight, hence at most log K above IWAE's value,
    and rises to the bound with K. Only q minimises it. Its gradient is minus the wake-phase gradient of `RWS`; with one
    particle it is nothing but noise.

    Args:
        num_particles: K.

    Reference:
        The Thermodynamic Variational Objective (Masrani et al., 2019), https://arxiv.org/abs/1907.00031

    Example:
        >>> EUBO(64)
        EUBO(num_particles=64)
    """

    latents: ClassVar[str] = "detached"

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_detached(self)
        weights = log_weights.normalized
        value = torch.where(weights > 0, weights * log_weights.log_w.detach(), 0.0).sum(0)  # 0 (-inf) is 0
        return Estimate(value, log_weights.surrogate(None, score=weights), "upper")
