r"""Importance-weighted bounds with pathwise gradients: IWAE, and variants without the score of q in the gradient.

Every objective here has the value of IWAE, the log of the average of K weights,

.. math::
    \hat{\mathcal L}_K(x) = \log \frac1K \sum_k w_k, \qquad z_k \sim q(z|x),

which is at most log p(x) in expectation. Its expectation rises with K and tends to log p(x); with K = 1 it is the ELBO.
The objectives differ in the gradient with respect to the parameters of q. The gradient with respect to those of the
model is always :math:`\sum_k \tilde w_k \nabla \log p(x, z_k)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ppl_vae.objectives.estimate import Estimate, Following, ManyParticles
from ppl_vae.objectives.log_weights import LogWeights

if TYPE_CHECKING:
    from jaxtyping import Float


def log_mean_w(log_weights: LogWeights) -> Float[Tensor, " batch"]:
    """Return the log of the average weight."""
    return log_weights.log_w.logsumexp(0) - math.log(log_weights.num_particles)


@dataclass(frozen=True)
class IWAE(ManyParticles):
    r"""The importance-weighted bound, with its own gradient.

    .. math::
        \hat{\mathcal L}_K(x) = \log \frac1K \sum_k w_k, \qquad
        \nabla \hat{\mathcal L}_K = \sum_k \tilde w_k \nabla \log w_k, \qquad \tilde w_k = w_k / \sum_j w_j.

    It is unbiased for the bound and for the gradient of the bound. The bound is below log p(x) by about
    :math:`\mathrm{Var}(w) / (2 K p(x)^2)` where the weights have a finite variance. **The encoder's gradient drowns in
    noise as K grows**: its signal-to-noise ratio falls as :math:`K^{-1/2}`, while the decoder's rises as
    :math:`K^{1/2}`. `DReG` solves this. The cost is one decoder pass per particle.

    On rows with missing entries and a likelihood that integrates them out (`likelihoods.Mixed`) it is the bound of
    MIWAE for missing data (Mattei & Frellsen, 2019) on :math:`\log p(x_\text{obs})`; with `programs.NotMIWAE` that of
    not-MIWAE. `objectives.MIWAE` is another method.

    Args:
        num_particles: K.

    Raises:
        ValueError: If a latent is not reparameterised; use `VIMCO`.

    Reference:
        Importance Weighted Autoencoders (Burda et al., 2015), https://arxiv.org/abs/1509.00519; Tighter Variational
        Bounds are Not Necessarily Better (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537; MIWAE
        (Mattei & Frellsen, 2019), https://arxiv.org/abs/1812.02633

    Example:
        >>> import torch
        >>> log_w = torch.tensor([[0.0], [math.log(3.0)]])
        >>> IWAE(2)(LogWeights.of(log_w)).value.exp()
        tensor([2.])
    """

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        bound = log_mean_w(log_weights)
        return Estimate(bound.detach(), bound, "lower")


@dataclass(frozen=True)
class DReG(Following, ManyParticles):
    r"""IWAE's bound with the doubly reparameterised gradient.

    .. math::
        \nabla_\phi \mathcal L_K = \mathbb E\Big[\sum_k \tilde w_k^2\,
        \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k\Big],

    and :math:`\sum_k \tilde w_k \nabla_\theta \log p(x, z_k)` for the model. It is **unbiased** for the gradient of
    `IWAE`: it reparameterises the score of q a second time. Its signal-to-noise ratio rises with K, and its variance is
    zero where q is the true posterior. With K = 1 it is `STL`. An encoder inside the prior (VampPrior) keeps its
    gradient through log p(z), and q(z2|z1) keeps its gradient through z1. It costs as much as `IWAE` and scores q
    twice. It refuses a q that cannot score an arbitrary z (a planar flow).

    Args:
        num_particles: K.

    Raises:
        ValueError: If a latent is not reparameterised, or q does not score a given z.

    Reference:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019),
        https://arxiv.org/abs/1810.04152

    Example:
        >>> DReG(8).reference
        IWAE(num_particles=8)
    """

    _follows = IWAE

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        weights = log_weights.normalized
        path = None if log_weights.num_particles == 1 else weights  # the weight of a single particle is 1
        return Estimate(log_mean_w(log_weights).detach(), log_weights.surrogate(weights, path=path, score=0.0), "lower")


@dataclass(frozen=True)
class IWAESTL(Following, ManyParticles):
    r"""IWAE's bound without the score of q in its gradient: **biased**, and here for comparison.

    .. math::
        \sum_k \tilde w_k\, \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k.

    For K = 1 the omitted score of q has expectation zero, and this is `STL`. For larger K its expectation is not zero.
    Sample by sample, this gradient is IWAE's plus that of the wake phase,
    :math:`\sum_k \tilde w_k \nabla_\phi \log q(z_k|x)`. The expectation of the latter is the gradient of
    minus KL(p(z|x) || q(z|x)), up to the bias of K draws. So the objective often trains well, but it does not follow
    the bound that it reports. Its signal-to-noise ratio is high; use `DReG` for the bound itself.

    Args:
        num_particles: K.

    Raises:
        ValueError: If a latent is not reparameterised, or q does not score a given z.

    Reference:
        Sticking the Landing (Roeder et al., 2017), https://arxiv.org/abs/1703.09194; the bias: Tucker et al. (2019),
        https://arxiv.org/abs/1810.04152

    Example:
        >>> IWAESTL(8).reference
        IWAE(num_particles=8)
    """

    _follows = IWAE  # with bias

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        surrogate = log_weights.surrogate(log_weights.normalized, score=0.0)
        return Estimate(log_mean_w(log_weights).detach(), surrogate, "lower")
