r"""The variational Renyi bound, its doubly reparameterised gradient, and its limit, which takes the best particle."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppl_vae._validation import is_real
from ppl_vae.objectives.estimate import Estimate, ManyParticles, owner
from ppl_vae.objectives.log_weights import LogWeights

_NEARLY_ELBO = 1e-3  # below this distance of alpha from one, the logarithm of the sum loses its digits


@dataclass(frozen=True)
class Renyi(ManyParticles):
    r"""The variational Renyi bound of order alpha, from K particles.

    .. math::
        \hat{\mathcal L}_\alpha(x) = \frac{1}{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}.

    The bound falls as alpha rises: alpha = 0 is `IWAE`, alpha = 1 (the limit) is `ELBO`. For alpha >= 0 it is at most
    IWAE's value at the same draws, hence a lower bound of log p(x) for every K. For alpha < 0 the exact bound is
    *above* log p(x), but the average of K draws inside the logarithm is too low: the estimate is **neither a lower nor
    an upper bound**. There are two differences from Pyro's `RenyiELBO`. The scale of a subsampled plate stays outside
    the logarithm. This objective refuses a latent that is not reparameterised, whose gradient in Pyro is zero at
    alpha = 0.

    Args:
        num_particles: K.
        alpha: The order, any finite number.

    Raises:
        ValueError: If `alpha` is not finite, or a latent is not reparameterised.

    Reference:
        Renyi Divergence Variational Inference (Li & Turner, 2016), https://arxiv.org/abs/1602.02311

    Example:
        >>> import torch
        >>> log_w = torch.tensor([[0.0], [2.0]])
        >>> weights = LogWeights.of(log_w)
        >>> [round(Renyi(2, alpha)(weights).value.item(), 3) for alpha in (0.0, 0.5, 1.0)]
        [1.434, 1.24, 1.0]
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.alpha) or not math.isfinite(self.alpha):
            raise ValueError(
                f"{owner(self)}: alpha is {self.alpha!r}; expected a finite number (for minus infinity use VRMax)"
            )

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        log_w = log_weights.log_w
        if self.alpha == 1:
            bound = log_w.mean(0)
        elif abs(order := 1 - self.alpha) < _NEARLY_ELBO:
            mean = log_w.mean(0)
            bound = mean + (order * (log_w - mean)).expm1().mean(0).log1p() / order
        else:
            bound = ((order * log_w).logsumexp(0) - math.log(log_weights.num_particles)) / order
        return Estimate(bound.detach(), bound, "lower" if self.alpha >= 0 else "neither")


@dataclass(frozen=True)
class RenyiDReG(Renyi):
    r"""The variational Renyi bound with the doubly reparameterised gradient (DREP of the VR-IWAE bound).

    .. math::
        \nabla_\phi \mathcal L_\alpha = \mathbb E\Big[\sum_k \big(\alpha v_k + (1 - \alpha) v_k^2\big)\,
        \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k\Big], \qquad
        v_k = \frac{w_k^{1 - \alpha}}{\sum_j w_j^{1 - \alpha}},

    and :math:`\sum_k v_k \nabla_\theta \log p(x, z_k)` for the model. It is **unbiased** for the gradient of the
    expected value of `Renyi` at the same K, which is the VR-IWAE bound: it reparameterises the score of q a second
    time. Its variance is zero where q is the true posterior. alpha = 0 is `DReG`, alpha = 1 is `STL`. The bound loosens
    as alpha rises, and the encoder's gradient becomes less noisy. It costs as much as `Renyi` and scores q twice. It
    refuses a q that cannot score an arbitrary z (a planar flow).

    Args:
        num_particles: K.
        alpha: The order, any finite number; the bound is a lower one from 0 on.

    Raises:
        ValueError: If `alpha` is not finite, a latent is not reparameterised, or q does not score a given z.

    Reference:
        Alpha-divergence Variational Inference Meets Importance Weighted Auto-Encoders (Daudel, Benton, Shi & Doucet,
        2022), https://arxiv.org/abs/2210.06226

    Example:
        >>> RenyiDReG(8, alpha=0.2).reference
        Renyi(num_particles=8, alpha=0.2)
    """

    @property
    def reference(self) -> Renyi:
        """The objective whose gradient this one has in expectation."""
        return Renyi(self.num_particles, self.alpha)

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        value, _, kind, *_ = super().__call__(log_weights)
        weights = ((1 - self.alpha) * log_weights.log_w.detach()).softmax(0)
        path = self.alpha + (1 - self.alpha) * weights
        return Estimate(value, log_weights.surrogate(weights, path=path, score=0.0), kind)


@dataclass(frozen=True)
class VRMax(ManyParticles):
    r"""The largest log-weight of K particles; gradients flow through this particle only.

    .. math::
        \hat{\mathcal L}(x) = \max_k \log w_k.

    It is the limit of `Renyi` as alpha falls to minus infinity, and a cheap substitute for `IWAE`: only the chosen
    particle needs a backward pass. It is **no bound**: it exceeds IWAE's value at the same draws by up to log K. This
    implementation makes the backward pass for all particles and saves nothing; it is here for comparison.

    Args:
        num_particles: K.

    Raises:
        ValueError: If a latent is not reparameterised.

    Reference:
        Renyi Divergence Variational Inference (Li & Turner, 2016), section 4.2, https://arxiv.org/abs/1602.02311

    Example:
        >>> VRMax(5)
        VRMax(num_particles=5)
    """

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        value = log_weights.log_w.max(0).values
        return Estimate(value.detach(), value, "lower" if log_weights.num_particles == 1 else "neither")
