r"""Score-function estimators, whose gradients need no reparameterised latents.

.. math::
    \nabla_\phi \mathbb E_{q(z|x)}[f] = \mathbb E_{q(z|x)}[f\, \nabla_\phi \log q(z|x)] + \mathbb E[\nabla_\phi f].

These estimators draw all latents without a gradient, reparameterised ones included, unless asked otherwise. They work
for latents of any kind; for reparameterised latents a pathwise gradient has far less variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ppl_vae._validation import check_choice, check_positive_int, is_real
from ppl_vae.objectives.baselines import LearnedBaseline, MovingAverage, leave_one_out
from ppl_vae.objectives.enumeration import EnumeratedELBO
from ppl_vae.objectives.estimate import Estimate, ManyParticles, owner
from ppl_vae.objectives.importance import log_mean_w
from ppl_vae.objectives.log_weights import LogWeights

if TYPE_CHECKING:
    from jaxtyping import Float

Baseline = Literal["none", "moving_average", "leave_one_out", "learned"]


class REINFORCE:
    r"""The ELBO with a score-function gradient and a baseline.

    .. math::
        \nabla_\phi \mathcal L = \mathbb E\Big[\frac1K \sum_k (\log w_k - b_k)\, \nabla_\phi \log q(z_k|x)\Big],
        \qquad \nabla_\theta \mathcal L = \mathbb E\Big[\frac1K \sum_k \nabla_\theta \log p(x, z_k)\Big].

    It is unbiased with every baseline. **Without a baseline the variance is hopeless** for data with many pixels, where
    log w is hundreds of nats; this choice is here for comparison. The gradient omits the gradient of log q in log w,
    whose expectation is zero. The baselines are:

    - ``"none"``: b = 0.
    - ``"moving_average"``: the moving average of log w over earlier batches, one number for all data.
    - ``"leave_one_out"``: for each particle the mean log w of the other particles, K >= 2. This is VarGrad, the
      gradient of half the variance of log w. It costs nothing beyond the particles; start with it.
    - ``"learned"``: a network b(x), fitted to log w by least squares. Its parameters join the optimiser's. It starts
      from the mean of the first signals, so it is unbiased from the second step on.

    An object of this class holds the state of its baseline: use one object per training run.

    Args:
        num_particles: K.
        baseline: The choice of b.
        paths: Whether continuous latents that are reparameterised keep the gradient of their path, and only the others
            take the score. In a program with both kinds of latents this has far less variance.

    Raises:
        ValueError: If the baseline is unknown, or if ``"leave_one_out"`` has a single particle.

    Reference:
        Simple Statistical Gradient-Following Algorithms (Williams, 1992), https://doi.org/10.1007/BF00992696; Neural
        Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014), https://arxiv.org/abs/1402.0030;
        VarGrad (Richter et al., 2020), https://arxiv.org/abs/2010.10436

    Example:
        >>> REINFORCE(4, baseline="leave_one_out")
        REINFORCE(num_particles=4, baseline='leave_one_out')
    """

    reference: ClassVar[EnumeratedELBO] = EnumeratedELBO()  # whose gradient this one has in expectation

    def __init__(self, num_particles: int = 1, baseline: Baseline = "none", paths: bool = False) -> None:
        self.num_particles = check_positive_int(num_particles, f"{owner(self)}: num_particles")
        check_choice(baseline, get_args(Baseline), f"{owner(self)}: baseline")
        if baseline == "leave_one_out" and num_particles == 1:
            raise ValueError(
                f"{owner(self)}: baseline leave_one_out needs at least 2 particles, and num_particles is 1; raise "
                "it, or choose another baseline"
            )
        self.baseline = baseline
        self.paths = paths
        self.moving_average = MovingAverage() if baseline == "moving_average" else None
        self.learned = LearnedBaseline() if baseline == "learned" else None

    def __repr__(self) -> str:
        paths = ", paths=True" if self.paths else ""
        return f"REINFORCE(num_particles={self.num_particles}, baseline={self.baseline!r}{paths})"

    @property
    def latents(self) -> str:
        """How the latents are drawn."""
        return "scored" if self.paths else "detached"

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        scored = log_weights.scored
        if not self.paths or log_weights.enumerated:
            log_weights.require_detached(self)
        signal = log_weights.log_w.detach()
        value = signal.mean(0)
        fit = torch.zeros_like(value)
        if self.baseline == "leave_one_out":
            signal = signal - leave_one_out(signal)
        elif self.moving_average is not None:
            signal = signal - self.moving_average(signal)
        elif self.learned is not None:
            expected = self.learned(log_weights, signal)
            # divided by the scale, so that the gradient of the fit has the size of the network's unscaled outputs
            fit = -0.5 * ((signal - expected) / self.learned.scale).square().mean(0)
            signal = self._normalized(signal - expected.detach())
        mean = torch.full_like(signal, 1 / log_weights.num_particles)
        if len(scored) < len(log_weights.log_q):  # the path of the others is that of log w, without log q of the scored
            log_q = sum(scored.values(), torch.zeros_like(signal))
            surrogate = log_weights.log_w + (1 + signal) * log_q
            return Estimate(value, (mean * surrogate).sum(0) + fit, "lower")
        return Estimate(value, log_weights.surrogate(mean, score=mean * signal) + fit, "lower")

    def _normalized(self, signal: Float[Tensor, "K batch"]) -> Float[Tensor, "K batch"]:
        """Return the signal in another scale."""
        return signal


class NVIL(REINFORCE):
    r"""`REINFORCE` with a learned baseline, and a signal that is centred and divided by its standard deviation.

    .. math::
        g = \frac{1}{\max(1, v^{1/2})} \cdot \frac1K \sum_k (\log w_k - b(x) - c)\, \nabla_\phi \log q(z_k|x),

    with the network b fitted by least squares, and c and v the moving averages of the mean and of the variance of
    :math:`\log w - b(x)` over earlier batches (the paper includes the present one). **The encoder's gradient is
    unbiased but for its scale**, which falls where the signal is noisy; the value and the model's gradient are the
    ELBO's. An object of this class holds its state: use one object per training run.

    Args:
        num_particles: K.
        decay: The share of both averages that each step keeps.

    Raises:
        ValueError: If `decay` is not in (0, 1).

    Reference:
        Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014),
        https://arxiv.org/abs/1402.0030

    Example:
        >>> NVIL()
        NVIL(num_particles=1, decay=0.8)
    """

    def __init__(self, num_particles: int = 1, decay: float = 0.8) -> None:
        super().__init__(num_particles, "learned")
        if not is_real(decay) or not 0 < decay < 1:
            raise ValueError(f"{owner(self)}: decay is {decay!r}; expected a number between 0 and 1, the paper's 0.8")
        self.decay = decay
        self.mean, self.variance = MovingAverage(decay), MovingAverage(decay)

    def __repr__(self) -> str:
        return f"NVIL(num_particles={self.num_particles}, decay={self.decay})"

    def _normalized(self, signal: Float[Tensor, "K batch"]) -> Float[Tensor, "K batch"]:
        own = (signal - signal.mean()).square()
        return (signal - self.mean(signal)) / self.variance(own).sqrt().clamp_min(1.0)


@dataclass(frozen=True)
class VIMCO(ManyParticles):
    r"""The importance-weighted bound with a score-function gradient whose baseline comes from the other particles.

    .. math::
        \nabla_\phi \mathcal L_K = \mathbb E\Big[\sum_k (\hat{\mathcal L} - \hat{\mathcal L}_{-k})
        \nabla_\phi \log q(z_k|x) + \sum_k \tilde w_k \nabla_\phi \log w_k\Big],

    with :math:`\hat{\mathcal L}_{-k}` the bound in which the geometric mean of the other weights replaces w_k. It is
    unbiased for the gradient of the bound, for latents of any kind. The model's gradient is IWAE's. It needs no
    parameters and no state. Its variance falls slowly with K; for reparameterised latents `DReG` is far better.

    Args:
        num_particles: K, at least 2.

    Raises:
        ValueError: If there is only one particle.

    Reference:
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), https://arxiv.org/abs/1602.06725

    Example:
        >>> VIMCO(8)
        VIMCO(num_particles=8)
    """

    latents: ClassVar[str] = "detached"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_several("REINFORCE")

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_detached(self)
        surrogate = log_weights.surrogate(log_weights.normalized, score=self._score(log_weights))
        return Estimate(log_mean_w(log_weights).detach(), surrogate, "lower")

    def _score(self, log_weights: LogWeights) -> Float[Tensor, "K batch"]:
        """Return the weights of the score."""
        log_w = log_weights.log_w.detach()
        without_each = replacing_each(log_w, leave_one_out(log_w))  # the geometric mean of the others replaces w_k
        return log_mean_w(log_weights).detach() - without_each - log_weights.normalized


def replacing_each(log_w: Float[Tensor, "K batch"], others: Float[Tensor, "K batch"]) -> Float[Tensor, "K batch"]:
    """Return the K bounds in which another log-weight replaces that of particle k."""
    k = len(log_w)
    own = torch.eye(k, dtype=torch.bool, device=log_w.device).unsqueeze(-1)
    replaced = torch.where(own, others.unsqueeze(1), log_w.unsqueeze(0))  # (replaced, K, batch)
    return replaced.logsumexp(1) - math.log(k)
