r"""Distributions on the unit sphere: the uniform one, and the base class of those around an axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.kl import register_kl
from torch.nn.functional import normalize

from ppl_vae.distributions._expanding import Expanding

if TYPE_CHECKING:
    from jaxtyping import Float

_NODES = 80  # of the Gauss-Legendre rule: a relative error of 1e-11 for all densities here
_WIDTHS = 16  # standard deviations on either side of the mode; the mass beyond is under e^-30


def log_area(dim: int) -> float:
    r"""Return the log area of the unit sphere in `dim` dimensions, :math:`2 \pi^{d/2} / \Gamma(d/2)`.

    Example:
        >>> math.isclose(log_area(2), math.log(2 * math.pi))  # the circle's length
        True
    """
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


class SphereUniform(Expanding):
    r"""The uniform distribution on :math:`S^{d-1} \subset \mathbb R^d`.

    .. math::
        p(z) = \Gamma(d/2) / (2 \pi^{d/2}), \qquad \lVert z \rVert = 1,

    a density with respect to the sphere's area, not to volume: it cannot be compared with one on R^d.

    Args:
        dim: d, at least 2.
        like: A tensor whose type and device the draws take.

    Example:
        >>> SphereUniform(3, torch.zeros(())).sample((5,)).norm(dim=-1).allclose(torch.ones(5))
        True
    """

    support = constraints.sphere
    has_rsample = True

    def __init__(self, dim: int, like: Tensor, validate_args: bool | None = None) -> None:
        self._like = like.detach()
        super().__init__(torch.Size(()), torch.Size((dim,)), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean, 0, which is not on the sphere."""
        return self._like.new_zeros(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, 1/d."""
        return self._like.new_full(self._extended_shape(), 1 / self.event_shape[0])

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw a normalised normal vector."""
        shape = self._extended_shape(sample_shape)
        return normalize(torch.randn(shape, dtype=self._like.dtype, device=self._like.device), dim=-1)

    def _log_prob(self, value: Tensor) -> Tensor:
        """Return minus the log area, the same for all points."""
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        # 0 * value keeps the type, and a graph that can be differentiated
        return (0 * value[..., 0]).expand(shape) - log_area(self.event_shape[0])

    def entropy(self) -> Tensor:
        """Return the log area."""
        return self._like.new_full(self.batch_shape, log_area(self.event_shape[0]))


class Axial(Expanding):
    r"""A density :math:`q(z) \propto \exp(\kappa\, h(\theta))` in the angle :math:`\theta` between z and a direction.

    The density of the angle is :math:`g(\theta) \propto \exp(\kappa\, h(\theta)) \sin^{d-2}\theta` on
    :math:`[0, \pi]`. The direction of z across the axis is uniform. A draw of the angle carries the exact implicit
    derivative

    .. math::
        \frac{\partial\theta}{\partial\kappa} = -\frac{1}{g(\theta)} \int_0^\theta (h(\phi) - \mathbb E\,h)\,
        g(\phi)\, \mathrm d\phi,

    a one-dimensional integral of a smooth function, by quadrature (80 nodes, error about 1e-10). Everything about the
    angle is computed in float64, since :math:`1 - \cos\theta` is lost in float32 at large concentrations. Only first
    derivatives are right: a second derivative through a draw is not computed.

    A subclass defines h and its mean, the mode and width of g, and the draw of an angle.

    Reference:
        Implicit Reparameterization Gradients (Figurnov et al., 2018), https://arxiv.org/abs/1805.08498
    """

    arg_constraints = {  # noqa: RUF012 - the base class declares a mutable mapping
        "loc": constraints.sphere,
        "concentration": constraints.positive,
    }
    support = constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.dim = loc.shape[-1]
        if self.dim < 2:
            raise ValueError(f"{type(self).__name__}: loc has {self.dim} dimension; a sphere needs at least 2")
        self.loc = loc.expand(*batch_shape, self.dim)
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, torch.Size((self.dim,)), validate_args=validate_args)

    @property
    def mode(self) -> Tensor:
        """The mode, which is `loc`."""
        return self.loc

    @property
    def mean(self) -> Tensor:
        """The mean, a point inside the sphere along `loc`."""
        return (1 + self._cosine_moments()[0]).to(self.loc)[..., None] * self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate."""
        less, along = (m[..., None] for m in self._cosine_moments())
        across = -less * (2 + less) - along  # the mean of 1 - cos^2
        square = normalize(self.loc.double(), dim=-1).square()  # in float32 1 - square may be negative
        return (along * square + across * (1 - square) / (self.dim - 1)).to(self.loc)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw an angle and a direction across the first axis, then map that axis to `loc`."""
        shape = self._extended_shape(sample_shape)
        kappa = self.concentration.double()
        with torch.no_grad():
            theta = self._draw_angle(shape[:-1]).clamp(1e-12, math.pi - 1e-12)
        if torch.is_grad_enabled() and kappa.requires_grad:
            with torch.no_grad():
                slope = self._angle_derivative(theta)
            theta = theta + slope * (kappa - kappa.detach())
        across = torch.randn(*shape[:-1], self.dim - 1, dtype=self.loc.dtype, device=self.loc.device)
        across = normalize(across, dim=-1) * theta.sin().to(self.loc)[..., None]
        return _turn(theta.cos().to(self.loc)[..., None], across, self.loc)

    def _log_sine(self, theta: Tensor) -> Tensor:
        return (self.dim - 2) * theta.sin().log()

    def _angle_derivative(self, theta: Tensor) -> Tensor:
        """Return the derivative of an angle by the concentration, integrated from theta away from the mode."""
        kappa, mean = self.concentration.double(), self._mean_statistic()
        mode, low, high = self._range()
        end = torch.where(theta < mode, torch.minimum(low, theta), torch.maximum(high, theta))
        x, weight = _gauss_legendre(theta.device)
        # the nodes crowd at the far end, where the density may rise from 0 with any power of the distance
        far, weight = 1 - (1 - x) ** 3, weight * 3 * (1 - x) ** 2
        phi = theta[..., None] + (end - theta)[..., None] * far
        statistic = self._statistic(phi)
        log_ratio = kappa[..., None] * (statistic - self._statistic(theta)[..., None])
        log_ratio = log_ratio + self._log_sine(phi) - self._log_sine(theta)[..., None]
        return (end - theta) * (weight * (statistic - mean[..., None]) * log_ratio.exp()).sum(-1)

    def _range(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mode of the angle and the bounds of the interval that holds its mass."""
        mode, width = self._mode_and_width()
        return mode, (mode - _WIDTHS * width).clamp(min=0.0), (mode + _WIDTHS * width).clamp(max=math.pi)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Return the entropy, in nats."""
        return log_area(self.dim) - self._kl_to_uniform()

    def _chord(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a quarter of the squared distances of a point to `loc` and to the antipode of `loc`.

        They are sin^2 and cos^2 of half the angle. Each is exact where it is small.
        """
        return (value - self.loc).square().sum(-1) / 4, (value + self.loc).square().sum(-1) / 4

    # what a subclass defines
    _statistic: Callable[[Tensor], Tensor]  # h, of the angle
    _mean_statistic: Callable[[], Tensor]
    _mode_and_width: Callable[[], tuple[Tensor, Tensor]]  # of the density of the angle
    _draw_angle: Callable[[torch.Size], Tensor]
    _cosine_moments: Callable[[], tuple[Tensor, Tensor]]  # the mean of the angle's cosine less 1, and the variance
    _kl_to_uniform: Callable[[], Tensor]


@register_kl(Axial, SphereUniform)
def _kl_axial_uniform(q: Axial, p: SphereUniform) -> Tensor:
    return q._kl_to_uniform()


def _turn(along: Tensor, across: Tensor, loc: Tensor) -> Tensor:
    """Map (along, across) from the first axis to `loc`, by a Householder reflection.

    There are two reflections: to `loc` and to its antipode. This function takes the one with the longer vector, at
    least sqrt(2) long, which never degenerates. The choice depends on `loc` alone, not on the draw, so that the
    pathwise derivative stays right.
    """
    sign = torch.where(loc[..., :1] < 0, -1.0, 1.0).to(loc)
    mirror = torch.cat([loc[..., :1] + sign, loc[..., 1:]], -1)
    z = torch.cat([-sign * along, across], -1)
    mirror = mirror.expand(z.shape)
    z = z - mirror * (mirror * z).sum(-1, keepdim=True) / (1 + loc[..., :1].abs())
    return normalize(z, dim=-1)


def _gauss_legendre(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the nodes and weights of the rule on [0, 1]."""
    x, weight = _rule()
    return torch.tensor(x, dtype=torch.float64, device=device), torch.tensor(weight, dtype=torch.float64, device=device)


@functools.cache
def _rule() -> tuple[list[float], list[float]]:
    x, weight = np.polynomial.legendre.leggauss(_NODES)
    return (0.5 * (x + 1)).tolist(), (0.5 * weight).tolist()
