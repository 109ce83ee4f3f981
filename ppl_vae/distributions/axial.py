r"""Distributions on the unit sphere around an axis: power spherical and von Mises-Fisher."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.distributions.sphere import Axial, _gauss_legendre, log_area

# Proposals for each angle, all at once. The probability of acceptance is never under 0.65, so that none is accepted for
# 1 angle in 10^14, which takes its first proposal.
_PROPOSALS = 32


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

    def _log_prob(self, value: Tensor) -> Tensor:
        near, far = self._chord(value)
        is_near = near < 0.5
        tiny = torch.finfo(value.dtype).tiny
        log_half = torch.where(
            is_near,
            torch.log1p(-torch.where(is_near, near, 0.25)),
            torch.log(torch.where(is_near, 0.5, far).clamp(min=tiny**0.9)),
        )
        return self._log_constant().to(value.dtype) + self.concentration * log_half

    def _kl_to_uniform(self) -> Tensor:
        mean = self._log_constant() + self.concentration.double() * self._mean_statistic()  # of log q
        return (mean + log_area(self.dim)).to(self.loc.dtype)

    def _log_constant(self) -> Tensor:
        alpha, beta = self._beta()
        return torch.lgamma(alpha + beta) - torch.lgamma(alpha) - beta * math.log(math.pi) - 2 * beta * math.log(2)

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
        return -2 * beta / total, 4 * alpha * beta / (total.square() * (total + 1))


class VonMisesFisher(Axial):
    r"""The von Mises-Fisher distribution on :math:`S^{d-1}`: a normal distribution conditioned on the sphere.

    .. math::
        q(z) = \frac{\kappa^{d/2 - 1}}{(2\pi)^{d/2} I_{d/2 - 1}(\kappa)} \exp(\kappa\, \mu' z).

    It is slower than the power spherical distribution. Each angle draws 32 proposals and takes the first that is
    accepted, since a loop of unknown length could not be captured in a graph. The normaliser is not a Bessel function
    but an integral over the angle by quadrature,
    :math:`\int e^{\kappa (\cos\theta - 1)} \sin^{d-2}\theta\, \mathrm d\theta`. This holds for all d and for
    :math:`\kappa` from 1e-6 to 1e6. The gradient of a draw is the exact implicit one, without the correction term that
    reparameterised rejection sampling needs.

    Args:
        loc: The direction :math:`\mu`, (*batch, d), of length 1.
        concentration: :math:`\kappa > 0`, (*batch,).

    Reference:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), https://arxiv.org/abs/1804.00891; the
        proposals: Simulation of the von Mises Fisher distribution (Wood, 1994),
        https://doi.org/10.1080/03610919408813161

    Example:
        >>> q = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(2.0))
        >>> expected = 2 / (2 * math.pi * (1 - math.exp(-4)))  # on the sphere in 3 dimensions
        >>> math.isclose(q.log_prob(q.mode).exp().item(), expected, rel_tol=1e-6)
        True
    """

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(loc, concentration, validate_args=validate_args)
        # once here, not again for each of the particles that `expand` may add, over which they broadcast
        self._log_normaliser, self._moments = self._integrate()

    def _log_prob(self, value: Tensor) -> Tensor:
        near, _ = self._chord(value)
        return -2 * self.concentration * near - self._log_normaliser.to(value.dtype)

    def _kl_to_uniform(self) -> Tensor:
        kl = self.concentration.double() * self._mean_statistic() - self._log_normaliser + log_area(self.dim)
        return kl.to(self.loc.dtype)

    def _integrate(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        r"""Return the log normaliser of :math:`e^{\kappa (\cos - 1)}`, and the means of cos - 1 and of its square."""
        kappa = self.concentration.double()
        with torch.no_grad():
            _, low, high = self._range()
            x, weight = _gauss_legendre(kappa.device)
            theta = low[..., None] + (high - low)[..., None] * x
            fixed = self._log_sine(theta) + weight.log() + (high - low)[..., None].log()
            statistic = self._statistic(theta)
        log_mass = kappa[..., None] * statistic + fixed
        share = log_mass.softmax(-1)
        moments = tuple((share * power).sum(-1) for power in (statistic, statistic.square()))
        return log_mass.logsumexp(-1) + log_area(self.dim - 1), moments

    def _statistic(self, theta: Tensor) -> Tensor:
        return -2 * (0.5 * theta).sin().square()  # cos - 1, without its cancellation

    def _mean_statistic(self) -> Tensor:
        return self._moments[0]

    def _mode_and_width(self) -> tuple[Tensor, Tensor]:
        kappa, n = self.concentration.double(), self.dim - 2
        # kappa sin^2 = (d - 2) cos at the mode, and 1 - cos without cancellation
        root = (n * n + 4 * kappa.square()).sqrt()
        cosine = 2 * kappa / (n + root)
        mode = 2 * torch.asin(((n + n * n / (root + 2 * kappa)) / (2 * (n + root))).clamp(max=0.5).sqrt())
        curvature = kappa * cosine + (n / mode.sin().square() if n else 0.0)
        return mode, curvature.rsqrt()

    def _draw_angle(self, shape: torch.Size) -> Tensor:
        kappa, n = self.concentration.double().expand(shape), self.dim - 1
        b = n / (2 * kappa + (4 * kappa.square() + n * n).sqrt())
        shapes = torch.full((_PROPOSALS, *shape), 0.5 * n, dtype=torch.float64, device=kappa.device)
        ratio = b * torch._standard_gamma(shapes) / torch._standard_gamma(shapes)  # tan^2 of half the angle
        less, x0 = 2 * ratio / (1 + ratio), (1 - b) / (1 + b)  # 1 - cos
        log_accept = kappa * (1 - x0 - less) + n * torch.log((1 - x0 + x0 * less) / (1 - x0.square()))
        accepted = torch.rand_like(ratio).log() <= log_accept
        first = accepted.to(torch.uint8).argmax(0, keepdim=True)
        return 2 * torch.atan(ratio.gather(0, first)[0].sqrt())

    def _cosine_moments(self) -> tuple[Tensor, Tensor]:
        first, second = self._moments
        return first, second - first.square()
