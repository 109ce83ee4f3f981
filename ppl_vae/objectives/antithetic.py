r"""Estimators for bits from antithetic pairs of draws: ARM, and DisARM for one draw and for several.

The logistic noise :math:`\epsilon` of a bit makes a pair of draws, :math:`b = 1[\ell + \epsilon > 0]` and
:math:`\tilde b = 1[\ell - \epsilon > 0]`, each with the law of q. Variables whose two draws agree get no gradient. The
first half of the particles holds the draws :math:`b`, the second half their partners in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppl_vae.objectives.enumeration import EnumeratedELBO
from ppl_vae.objectives.estimate import Estimate, ManyParticles, owner
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.logits import Drawing, Site
from ppl_vae.objectives.score_function import VIMCO, replacing_each


@dataclass(frozen=True)
class _Pairs(ManyParticles):
    """Antithetic pairs of draws of bits."""

    num_particles: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_particles % 2:
            raise ValueError(
                f"{owner(self)}: num_particles is {self.num_particles}, and draws come in antithetic pairs; expected "
                "an even number"
            )

    @property
    def latents(self) -> Drawing:
        """The handler that draws in place of the guide."""
        return Drawing(type(self).__name__, antithetic=True)

    def _site(self, log_weights: LogWeights) -> Site:
        site = Site.of(log_weights, self, only_bits=True)
        if not getattr(log_weights.drawing, "antithetic", False):
            raise ValueError(
                f"{owner(self)} needs antithetic pairs, and these draws are independent; sample the log-weights with "
                f"latents={type(self).__name__}().latents"
            )
        return site

    def _weights(self, site: Site) -> Tensor:
        r"""Return :math:`(b - \tilde b)\, \sigma(|\ell|)` for each pair: zero where the two draws agree."""
        first, second = site.z.detach().chunk(2)
        return (first - second) * site.logits.detach().abs().sigmoid().chunk(2)[0]


@dataclass(frozen=True)
class DisARM(_Pairs):
    r"""The ELBO of bits with the gradient of antithetic pairs: DisARM, also known as U2G.

    .. math::
        g_i = \tfrac12 \big(f(b) - f(\tilde b)\big)\, (b_i - \tilde b_i)\, \sigma(|\ell_i|), \qquad f = \log w,

    at the logits of each pair, averaged over pairs. It is **unbiased**. It is the expectation of `ARM` given the two
    draws, so its variance is never above ARM's. It costs no parameters, no state and no third decoder pass. Against
    ``REINFORCE(2, "leave_one_out")``, which costs the same, its variance is usually lower, but no theorem says so. The
    model's gradient is the mean over both draws.

    Args:
        num_particles: K, twice the number of pairs.

    Raises:
        ValueError: If K is odd, or the draws are not antithetic.
        TypeError: If the program has another latent than one site of independent bits.

    Reference:
        DisARM: An Antithetic Gradient Estimator for Binary Latent Variables (Dong, Mnih & Tucker, 2020),
        https://arxiv.org/abs/2006.10680; Probabilistic Best Subset Selection via Gradient-Based Optimization (Yin et
        al., 2020), https://arxiv.org/abs/2006.06448

    Example:
        >>> DisARM(4)
        DisARM(num_particles=4)
    """

    reference: ClassVar[EnumeratedELBO] = EnumeratedELBO()  # whose gradient this one has in expectation

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        site = self._site(log_weights)
        f = log_weights.log_w.detach()
        first, second = f.chunk(2)
        pairs = 0.5 * (first - second).unsqueeze(-1) * self._weights(site)
        return site.estimate(f.mean(0), torch.full_like(f, 1 / len(f)), torch.cat([pairs, pairs]) / len(f))


@dataclass(frozen=True)
class ARM(DisARM):
    r"""The ELBO of bits with the augment-REINFORCE-merge gradient; **here for contrast, use** `DisARM`.

    .. math::
        g_i = \big(f(b) - f(\tilde b)\big)\, (u_i - \tfrac12), \qquad u_i = \sigma(\epsilon_i) \text{ uniform}, \quad
        f = \log w,

    at the logits of each pair, averaged over pairs. It is unbiased. Bits whose two draws agree still get noise, so its
    variance is never below that of `DisARM`, at the same cost.

    Args:
        num_particles: K, twice the number of pairs.

    Raises:
        ValueError: If K is odd, or the draws are not antithetic.
        TypeError: If the program has another latent than one site of independent bits.

    Reference:
        ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks (Yin & Zhou, 2019),
        https://arxiv.org/abs/1807.11143

    Example:
        >>> ARM(2)
        ARM(num_particles=2)
    """

    def _weights(self, site: Site) -> Tensor:
        noise = site.log_weights.drawing.noise[site.name].reshape(site.z.shape)
        return 2 * noise.chunk(2)[0].sigmoid() - 1


@dataclass(frozen=True)
class LocalDisARM(_Pairs):
    r"""The importance-weighted bound of bits with the gradient of antithetic pairs: local DisARM.

    .. math::
        g_{ki} = \tfrac12 \big(\hat{\mathcal L}(b_{1:n}) - \hat{\mathcal L}(b_{1:n} \text{ with } \tilde b_k)\big)\,
        (b_{ki} - \tilde b_{ki})\, \sigma(|\ell_i|) - (\tilde w_k - \tfrac1n)\, (b_{ki} - \mu_i)

    for each of n = K/2 pairs; :math:`\hat{\mathcal L}` is the bound of n draws, and the second term is that of log q
    inside the bound. It is **unbiased** for the bound's gradient. There are two differences from the paper. The
    constant 1/n takes away noise of expectation zero. The two halves exchange roles, and value and gradient are the
    means of both, which has the same expectation and no more variance. **The bound is that of K/2 particles**, at the
    cost of K. With one pair it is `DisARM`.

    Args:
        num_particles: K, twice the number of pairs.

    Raises:
        ValueError: If K is odd, or the draws are not antithetic.
        TypeError: If the program has another latent than one site of independent bits.

    Reference:
        DisARM: An Antithetic Gradient Estimator for Binary Latent Variables (Dong, Mnih & Tucker, 2020),
        https://arxiv.org/abs/2006.10680

    Example:
        >>> LocalDisARM(8).reference  # the same bound
        VIMCO(num_particles=4)
    """

    num_particles: int = 8

    @property
    def reference(self) -> VIMCO | EnumeratedELBO:
        """The objective whose gradient this one has in expectation."""
        return EnumeratedELBO() if self.num_particles == 2 else VIMCO(self.num_particles // 2)

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        site = self._site(log_weights)
        first, second = log_weights.log_w.detach().chunk(2)
        bounds = [half.logsumexp(0) - math.log(len(half)) for half in (first, second)]
        signals = bounds[0] - replacing_each(first, second), replacing_each(second, first) - bounds[1]
        pairs = 0.25 * (signals[0] + signals[1]).unsqueeze(-1) * self._weights(site)
        weights = torch.cat([first.softmax(0), second.softmax(0)]) / 2
        inside = (weights - 1 / len(weights)).unsqueeze(-1) * site.score
        return site.estimate((bounds[0] + bounds[1]) / 2, weights, torch.cat([pairs, pairs]) / 2 - inside)
