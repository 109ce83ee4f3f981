r"""Distributions on a box."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from ppl_vae._validation import is_real
from ppl_vae.distributions._expanding import Expanding, Scored
from ppl_vae.distributions._last_draw import LastDraw, recall

_NODES = 121  # of the trapezoid rule for moments, over 9 standard deviations to either side
_REACH = 9.0


def check_box(low: object, high: object, name: str) -> tuple[float, float]:
    """Return the two ends of an interval if they are finite numbers, the lower first."""
    numbers = all(map(is_real, (low, high)))
    if not numbers or not -math.inf < low < high < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: low is {low!r} and high is {high!r}; expected two finite numbers, low below high")
    return float(low), float(high)  # type: ignore[arg-type]


class BoxUniform(Scored, dist.Uniform):
    """A uniform distribution on the closed interval [low, high].

    PyTorch's class gives density 0 at `high`, although its own draws reach `high` by rounding in float32.
    """

    def _log_prob(self, value: Tensor) -> Tensor:
        inside = (value >= self.low) & (value <= self.high)
        log_density = -(self.high - self.low).log()
        return torch.where(inside, log_density, torch.full_like(log_density, -math.inf))


class SquashedNormal(Expanding):
    r"""A normal variable squashed into an interval by the logistic function.

    .. math::
        z = l + (h - l)\, \sigma(t), \quad t \sim \mathcal N(\mu, s^2), \qquad
        \log p(z) = \log \mathcal N(t; \mu, s^2) + \log \frac{h - l}{(z - l)(h - z)}, \quad
        t = \log \frac{z - l}{h - z}.

    A z near an end keeps few digits of its distance to that end. In float32 on [-1, 1], z determines t to 0.001 at
    :math:`|t| = 10` and to 0.2 at 15. From 17 on every t rounds to the last number before the end, and the density
    there is that of this number, not that of t. The last draw of an object is therefore scored at its own t, whatever
    digits z has lost. Draws never lie on an end itself, and the density at an end is that of the neighbouring number,
    so that both are finite. Far from 0 (on [100, 101]) the digits run out earlier. The distribution is bimodal, with
    modes towards both ends, where s is larger than about 1.7. The second derivative of the last draw's score by
    ``z.detach()`` is not computed; that of any other z is.

    Args:
        loc: The mean :math:`\mu` of t.
        scale: The standard deviation s of t.
        low: The lower end l.
        high: The upper end h.
        validate_args: As in `torch.distributions`.

    Example:
        >>> SquashedNormal(torch.zeros(3), torch.ones(3), 0.0, 1.0).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.real,
        "high": constraints.real,
    }
    has_rsample = True
    _last: LastDraw | None = None  # with its t, of which z has lost digits

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        low: Tensor | float,
        high: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """The closed interval."""
        return constraints.interval(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        """The mean, by a trapezoid rule in t: right to 1e-10 of the width for s up to 5, to 1e-5 for s = 10."""
        return self._average(lambda z: z)

    @property
    def variance(self) -> Tensor:
        """The variance, by the same rule."""
        mean = self.mean
        return self._average(lambda z: (z - mean.unsqueeze(-1)).square())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws that carry the gradient."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        t = self.loc + self.scale * noise
        z = self._inside(self._squash(t, self.low, self.high))
        self._last = LastDraw(z, t, parameters=(self.loc, self.scale, self.low, self.high))
        return z

    def _log_prob(self, value: Tensor) -> Tensor:
        last = recall(self._last, value)
        if last is not None:
            (t,) = last.parts
            if not last.is_on_path(value):  # z is held fixed, or is an independent variable
                t = t.detach()
                slope = (self.high - self.low) * t.sigmoid() * (-t).sigmoid()  # dz/dt
                t = t + (value - value.detach()) / slope if value.requires_grad else t
            standard = (t - self.loc) / self.scale
            log_normal = -0.5 * (standard.square() + math.log(2 * math.pi)) - self.scale.log()
            return log_normal - (self.high - self.low).log() - logsigmoid(t) - logsigmoid(-t)
        value = self._inside(value)
        # each distance is exact near its end; 1 minus (value - low) / width is not
        log_below, log_above = (value - self.low).log(), (self.high - value).log()
        standard = (log_below - log_above - self.loc) / self.scale
        log_normal = -0.5 * (standard.square() + math.log(2 * math.pi)) - self.scale.log()
        return log_normal + (self.high - self.low).log() - log_below - log_above

    def _inside(self, value: Tensor) -> Tensor:
        # beside an end at 0 the next float is so small that its reciprocal overflows in the gradient
        margin = (self.high - self.low) * torch.finfo(value.dtype).eps ** 4
        low = torch.maximum(torch.nextafter(self.low, self.high), self.low + margin)
        high = torch.minimum(torch.nextafter(self.high, self.low), self.high - margin)
        return torch.minimum(torch.maximum(value, low), high)

    @staticmethod
    def _squash(t: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return low + (high - low) * t.sigmoid()

    def _average(self, function: Any) -> Tensor:
        nodes = torch.linspace(-_REACH, _REACH, _NODES, dtype=self.loc.dtype, device=self.loc.device)
        weights = (-0.5 * nodes.square()).softmax(-1)
        loc, scale, low, high = (p.unsqueeze(-1) for p in (self.loc, self.scale, self.low, self.high))
        return (weights * function(self._squash(loc + scale * nodes, low, high))).sum(-1)
