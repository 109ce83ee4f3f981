r"""The logistic distribution over the levels of a pixel."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import log_softmax, logsigmoid

from ppl_vae._numbers import bounded
from ppl_vae.distributions.grid import GridDistribution

_LARGEST, _FAR = 80.0, 1e30  # the largest logarithm; the largest distance, in scales
_SERIES = 1e-3  # below it three terms of log((1 - e^-w) / w) are exact in float64: the next is w^4 / 2880


def log_mass(level: Tensor, loc: Tensor, log_scale: Tensor, bins: int) -> Tensor:
    r"""Return the log mass of a logistic distribution on one level of a grid, whose end levels are open outwards.

    .. math::
        \log(\sigma(b) - \sigma(a)) = \log\sigma(b) + \log\sigma(-a) + \log(1 - e^{-(b - a)}), \qquad
        a = \frac{k - \frac12 - m}{s}, \quad b = \frac{k + \frac12 - m}{s},

    in units of one level. The identity holds because
    :math:`\sigma(b) - \sigma(a) = (e^{-a} - e^{-b}) / ((1 + e^{-a})(1 + e^{-b}))`. Each of its terms is finite and has
    a finite gradient, also where the difference itself cancels or underflows.

    A mean can be so many scales away that the log mass is below -1e30. The result is then -1e30 without a gradient,
    since the float type could hold neither.

    Args:
        level: k = 0..bins-1, as floats.
        loc: The mean m of the logistic, in units of x.
        log_scale: log of its scale, in units of x; its exponential must fit the float type.
        bins: How many levels.

    Returns:
        The log mass, of the broadcast shape.
    """
    # In units of levels k -+ 1/2 is exact: the upper edge of one level and the lower edge of the next are the same
    # number to the last bit. No mass is lost or counted twice between them at any scale.
    middle = loc * (bins - 1)
    log_width = bounded(-log_scale - math.log(bins - 1), _LARGEST)  # of one level, in scales
    width = log_width.exp()
    series = log_width - width / 2 + width.square() / 24
    inner = torch.where(width < _SERIES, series, torch.log(-torch.expm1(-width.clamp(min=_SERIES))))
    lowest, highest = level <= 0, level >= bins - 1
    below = torch.where(highest, 0.0, logsigmoid(bounded((level + 0.5 - middle) * width, _FAR)))
    above = torch.where(lowest, 0.0, logsigmoid(bounded((middle - (level - 0.5)) * width, _FAR)))
    return below + above + torch.where(lowest | highest, 0.0, inner)


def draw(loc: Tensor, log_scale: Tensor, bins: int) -> Tensor:
    """Draw a logistic variable for each element of `loc` and return its nearest level, in units of x."""
    noise = torch.logit(torch.rand_like(loc), eps=torch.finfo(loc.dtype).tiny)
    level = (loc + log_scale.exp() * noise) * (bins - 1)
    return level.round().clamp(0, bins - 1) / (bins - 1)


def odds(level: Tensor, loc: Tensor, log_scale: Tensor, bins: int) -> Tensor:
    """Return the log odds of lying at or above `level`, for levels from 1 up."""
    return (loc * (bins - 1) - (level - 0.5)) * (-log_scale - math.log(bins - 1)).exp()


class DiscretizedLogistic(GridDistribution):
    r"""The logistic distribution of the nearest level of a pixel, the end levels open to infinity.

    .. math::
        P(x = \tfrac{k}{n - 1}) = \sigma\Big(\frac{e_{k+1} - m}{s}\Big) - \sigma\Big(\frac{e_k - m}{s}\Big), \qquad
        e_k = \frac{k - \frac12}{n - 1}, \quad e_0 = -\infty, \quad e_n = \infty,

    for k = 0..n-1. The total mass is 1 for every mean and scale. The mean of x is not `loc` where mass gathers at the
    ends.

    Args:
        loc: The mean m of the logistic, in units of x, anywhere on the line.
        log_scale: log s, in units of x; beyond +-80 its exponential leaves the range of float32.
        bins: The number n of levels, at least 2.

    Example:
        >>> pixel = DiscretizedLogistic(torch.tensor(2.0), torch.tensor(0.0), bins=2)  # a coin of logit 3/2
        >>> pixel.log_prob(torch.tensor([0.0, 1.0])).exp()
        tensor([0.1824, 0.8176])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "log_scale": constraints.real}

    def __init__(self, loc: Tensor, log_scale: Tensor, bins: int = 256, validate_args: bool | None = None) -> None:
        self.bins = bins
        self._log_scale = log_scale  # not broadcast, so that one scale for all pixels takes one exponential
        self.loc, self.log_scale = broadcast_all(loc, log_scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        return log_mass(self.level(value), self.loc, self._log_scale, self.bins)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws: the nearest level of a logistic variable."""
        return draw(self.loc.expand(self.shape(sample_shape)), self._log_scale, self.bins)

    def tails(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return P(k < level) and P(k >= level)."""
        logit = odds(level, self.loc, self._log_scale, self.bins)
        return torch.sigmoid(-logit), torch.sigmoid(logit)

    def middle(self) -> Tensor:
        """Return the mean of the logistic, in levels."""
        return self.loc * (self.bins - 1)


class DiscretizedLogisticMixture(GridDistribution):
    r"""A mixture of discretized logistics on one grid.

    .. math::
        P(x) = \sum_m \pi_m \, \mathrm{DL}(x; m_m, s_m), \qquad \pi = \mathrm{softmax}(\ell).

    Args:
        logits: The logits of the weights, (..., M); the last dimension of all three tensors indexes the components.
        loc: The means of the logistics, in units of x, (..., M).
        log_scale: Their log scales, in units of x, (..., M).
        bins: The number of levels, at least 2.

    Example:
        >>> ends = DiscretizedLogisticMixture(torch.zeros(2), torch.tensor([0.0, 1.0]), torch.full((2,), -9.0), bins=3)
        >>> ends.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
        tensor([0.5000, 0.0000, 0.5000])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "log_scale": constraints.real_vector,
    }

    def __init__(
        self, logits: Tensor, loc: Tensor, log_scale: Tensor, bins: int = 256, validate_args: bool | None = None
    ) -> None:
        self.bins = bins
        self.logits, self.loc, self.log_scale = broadcast_all(logits, loc, log_scale)
        super().__init__(self.loc.shape[:-1], validate_args=validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        components = log_mass(self.level(value).unsqueeze(-1), self.loc, self.log_scale, self.bins)
        return torch.logsumexp(log_softmax(self.logits, -1) + components, -1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws."""
        shape = self.shape(sample_shape)
        chosen = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        index = chosen.unsqueeze(-1)
        loc, log_scale = (p.expand(*shape, -1).gather(-1, index).squeeze(-1) for p in (self.loc, self.log_scale))
        return draw(loc, log_scale, self.bins)

    def tails(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return P(k < level) and P(k >= level)."""
        parts = [p.unbind(-1) for p in (self.logits.softmax(-1), self.loc, self.log_scale)]
        # one component after another, so that the chunks of levels bound the memory here too
        tails = [
            (weight, odds(level, loc, log_scale, self.bins)) for weight, loc, log_scale in zip(*parts, strict=True)
        ]
        below = sum(weight * torch.sigmoid(-logit) for weight, logit in tails)
        return below, sum(weight * torch.sigmoid(logit) for weight, logit in tails)

    def middle(self) -> Tensor:
        """Return the weighted mean of the logistics' means, each clamped to [0, 1], in levels."""
        return (self.logits.softmax(-1) * self.loc.clamp(0, 1)).sum(-1) * (self.bins - 1)
