r"""The power spherical distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.kl import register_kl

from ppl_vae.distributions.axial import Axial
from ppl_vae.distributions.sphere_uniform import SphereUniform, log_area


class PowerSpherical(Axial):
    r"""The power spherical distribution on :math:`S^{d-1}`.

    .. math::
        q(z) = \frac{\Gamma(\alpha + \beta)}{2^{\alpha + \beta} \pi^{\beta}\, \Gamma(\alpha)} (1 + \mu' z)^\kappa,
        \qquad \alpha = \beta + \kappa,\ \beta = \tfrac{d - 1}{2}.

    The density is 0 at the antipode of :math:`\mu`: a p(z) with mass there is never covered. The log-density is cut off
    there (at -78 kappa in float32). Everything about the distribution has a closed form: :math:`(1 + \mu'z)/2` is
    Beta(:math:`\alpha, \beta`), so that draws need no rejection.

    Args:
        loc: The direction :math:`\mu`, (*batch, d), of length 1.
        concentration: :math:`\kappa > 0`, (*batch,).

    Reference:
        The Power Spherical Distribution (De Cao & Aziz, 2020), https://arxiv.org/abs/2006.04437

    Example:
        >>> q = PowerSpherical(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(1.0))
        >>> math.isclose(q.log_prob(q.mode).exp().item(), 2 / (4 * math.pi), rel_tol=1e-6)  # (1 + cos) / (4 pi)
        True
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q, of the batch's shape, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        alpha, beta = self._beta()
        log_c = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - beta * math.log(math.pi) - 2 * beta * math.log(2)
        near, far = self._chord(value)
        is_near = near < 0.5
        tiny = torch.finfo(value.dtype).tiny
        log_half = torch.where(
            is_near,
            torch.log1p(-torch.where(is_near, near, 0.25)),
            torch.log(torch.where(is_near, 0.5, far).clamp(min=tiny**0.9)),
        )
        return log_c.to(value.dtype) + self.concentration * log_half

    def entropy(self) -> Tensor:
        """Return the entropy, (*batch,), in nats."""
        return log_area(self.dim) - self._kl_to_uniform()

    def _kl_to_uniform(self) -> Tensor:
        alpha, beta = self._beta()
        log_c = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - beta * math.log(math.pi) - 2 * beta * math.log(2)
        return (log_c + self.concentration.double() * self._mean_statistic() + log_area(self.dim)).to(self.loc.dtype)

    def _beta(self) -> tuple[Tensor, float]:
        beta = 0.5 * (self.dim - 1)
        return self.concentration.double() + beta, beta

    def _statistic(self, theta: Tensor) -> Tensor:
        return 2 * (0.5 * theta).cos().log()  # log((1 + cos) / 2)

    def _mean_statistic(self) -> Tensor:
        alpha, beta = self._beta()
        return torch.digamma(alpha) - torch.digamma(alpha + beta)

    def _mode_and_width(self) -> tuple[Tensor, Tensor]:
        kappa, n = self.concentration.double(), self.dim - 2
        if n == 0:
            return torch.zeros_like(kappa), (2 / kappa).sqrt()
        mode = 2 * torch.atan((n / (2 * kappa + n)).sqrt())
        return mode, (0.5 * kappa / (0.5 * mode).cos().square() + n / mode.sin().square()).rsqrt()

    def _draw_angle(self, shape: torch.Size) -> Tensor:
        alpha, beta = self._beta()
        alpha = alpha.expand(shape)
        # sin^2 of half the angle is Beta(beta, alpha) and cos^2 the rest: their ratio is that of two gamma variables
        ratio = torch._standard_gamma(torch.full_like(alpha, beta)) / torch._standard_gamma(alpha)
        return 2 * torch.atan(ratio.sqrt())

    def _cosine_moments(self) -> tuple[Tensor, Tensor]:
        alpha, beta = self._beta()
        total = alpha + beta
        first = (alpha - beta) / total
        return first, first.square() + 4 * alpha * beta / (total.square() * (total + 1))


@register_kl(PowerSpherical, SphereUniform)
def _kl_power_spherical_uniform(q: PowerSpherical, p: SphereUniform) -> Tensor:
    return q._kl_to_uniform()
