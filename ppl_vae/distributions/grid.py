r"""The base class of distributions over the levels of a pixel: their support, and moments as sums over the levels."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_vae._validation import check_positive_int
from ppl_vae.distributions._expanding import Expanding

_ELEMENTS = 2**24  # in one chunk of a sum over the levels, 64 MiB in float32


def check_bins(bins: int, name: str) -> int:
    """Return `bins` if it is an integer of at least two."""
    if check_positive_int(bins, f"{name}: bins") < 2:
        raise ValueError(f"{name}: bins is {bins}; expected at least 2 levels, such as 256 for 8-bit pixels")
    return bins


class Grid(constraints.Constraint):
    r"""The values :math:`k / (\text{bins} - 1)`, :math:`k = 0 \dots \text{bins} - 1`, in [0, 1].

    A value counts as on the grid within a thousandth of a level, or within the rounding of its float type where that
    is coarser (more than 2000 levels in float32). A continuous value passes by chance one time in 500 per pixel.

    Args:
        bins: How many levels.

    Example:
        >>> Grid(256).check(torch.tensor([0.0, 17 / 255, 0.5, 1.0, 256 / 255]))
        tensor([ True,  True, False,  True, False])
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, bins: int) -> None:
        self.bins = bins
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return for each value whether it lies on the grid."""
        level = value * (self.bins - 1)
        off = max(1e-3, 4 * (self.bins - 1) * torch.finfo(level.dtype).eps)
        nearest = level.round()
        return ((level - nearest).abs() <= off) & (nearest >= 0) & (nearest <= self.bins - 1)

    def __repr__(self) -> str:
        return f"Grid(k / {self.bins - 1}, k = 0..{self.bins - 1})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and other.bins == self.bins

    def __hash__(self) -> int:
        return hash((Grid, self.bins))


class GridDistribution(Expanding):
    r"""A distribution of :math:`x = k / (\text{bins} - 1)` whose level k has tail probabilities in closed form.

    Mean and variance are sums over the levels,

    .. math::
        \mathbb E[k - c] = \sum_{j > c} P(k \ge j) - \sum_{j \le c} P(k < j), \qquad
        \mathbb E[(k - c)^2] = \sum_{j > c} (2 (j - c) - 1) P(k \ge j) + \sum_{j \le c} (2 (c - j) + 1) P(k < j),

    over j = 1..bins-1. They are exact for any level c; a c near the mean keeps the digits of small variances. They take
    bins - 1 evaluations of the tails, which is slow for whole data sets. The evaluations come in chunks, so that the
    memory stays bounded without gradients.

    A subclass sets ``bins`` and defines `tails` and `middle`.
    """

    bins: int

    def tails(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return P(k < level) and P(k >= level), for levels of shape (levels, 1, ..., 1) in front of the batch."""
        raise NotImplementedError

    def middle(self) -> Tensor:
        """Return a point near the mean, in levels, of batch shape."""
        raise NotImplementedError

    @property
    def support(self) -> Any:
        """The grid of levels."""
        return Grid(self.bins)

    @property
    def mean(self) -> Tensor:
        """The mean of the discrete variable, not of the continuous variable that was discretized."""
        centre, first, _ = self._moments(second=False)
        return (centre + first) / (self.bins - 1)

    @property
    def variance(self) -> Tensor:
        """The variance of the discrete variable."""
        _, first, second = self._moments(second=True)
        return (second - first.square()) / (self.bins - 1) ** 2

    def level(self, value: Tensor) -> Tensor:
        """Return the level of each value, as a float."""
        return (value * (self.bins - 1)).round()

    def _moments(self, second: bool) -> tuple[Tensor, Tensor, Tensor]:
        centre = self.middle().detach().round().clamp(0, self.bins - 1)
        levels = torch.arange(1, self.bins, device=centre.device, dtype=centre.dtype)
        first, squares = torch.zeros_like(centre), torch.zeros_like(centre)
        for chunk in levels.split(max(1, _ELEMENTS // max(1, centre.numel()))):
            level = chunk.reshape(-1, *[1] * centre.dim())
            below, above = self.tails(level)
            distance = level - centre
            right = distance > 0
            first = first + torch.where(right, above, -below).sum(0)
            if second:
                squares = squares + torch.where(right, (2 * distance - 1) * above, (1 - 2 * distance) * below).sum(0)
        return centre, first, squares
