r"""The values that one coordinate of a random vector can take, found through the support.

Every distribution answers ``support.check``. The answers along one coordinate distinguish a line, an interval and a
list of values, without knowledge of the family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

_REACH = 12.0  # sinh(12) = 81,377 widths to either side
_FAR = 700.0  # exp of it is still a number
_MOST_STATES = 2048

Inside = Callable[[Tensor], Tensor]  # values of one coordinate, (n,) -> whether each lies in the support


@dataclass(frozen=True)
class Axis:
    """The values of one coordinate.

    Attributes:
        states: All values, ascending; None if they cannot be listed.
        low: The least value, -inf if there is none.
        high: The largest value, inf if there is none.
        edges: The ends that lie in the support themselves.
    """

    states: Tensor | None = None
    low: float = -torch.inf
    high: float = torch.inf
    edges: tuple[float, ...] = ()

    @property
    def is_line(self) -> bool:
        """Whether every number is a value."""
        return self.states is None and self.low == -torch.inf and self.high == torch.inf

    def unbounded(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return values on the whole line, where `nodes` places its points: logits between two ends, logs above one."""
        low, high = ((values - end).abs().clamp(min=1e-300).log() for end in (self.low, self.high))
        if self.states is not None or self.is_line:
            return values
        if self.low == -torch.inf:
            return -high
        return low if self.high == torch.inf else low - high

    def nodes(
        self, count: int, centre: Float[Tensor, "*shape"], width: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, " count *shape"], Float[Tensor, " count *shape"]]:
        """Return the points and weights of the trapezoid rule in a transformed variable.

        Points crowd around the centre, and reach the numbers next to an end, where a density may be infinite. Listed
        values are the points themselves, with weight 1.

        Args:
            count: How many points.
            centre: The centre of the values, `unbounded`.
            width: The width of the values, `unbounded`.
        """
        if self.states is not None:
            states = self.states.reshape(-1, *[1] * centre.dim()).expand(-1, *centre.shape)
            return states, torch.ones_like(states)
        t = torch.linspace(-_REACH, _REACH, count, dtype=torch.float64).reshape(-1, *[1] * centre.dim())
        u = centre + width * t.sinh()
        slope = width * t.cosh() * (2 * _REACH / (count - 1))
        if self.is_line:
            return u, slope
        slope = torch.where(u.abs() < _FAR, slope, 0.0)
        u = u.clamp(-_FAR, _FAR)
        if self.low > -torch.inf and self.high < torch.inf:
            size = self.high - self.low
            points = torch.where(u < 0, self.low + size * u.sigmoid(), self.high - size * (-u).sigmoid())
            return points, slope * size * u.sigmoid() * (-u).sigmoid()
        end, sign = (self.low, 1.0) if self.low > -torch.inf else (self.high, -1.0)
        return end + sign * (sign * u).exp(), slope * (sign * u).exp()


def find_axis(inside: Inside, values: Float[Tensor, " n"]) -> Axis | None:
    """Return the axis of a coordinate, or None if the coordinate moves neither freely nor along a known list of values.

    Args:
        inside: Whether values of this coordinate lie in the support while the other coordinates stay fixed.
        values: Some values of the coordinate, float64.
    """
    middle = values.median()
    near = torch.stack([middle + 1.37e-3, middle - 1.37e-3])
    if not inside(near).any():
        return _listed(inside, values)
    ends = [_edge(inside, middle.item(), sign) for sign in (-1.0, 1.0)]
    (low, _), (high, _) = ends
    return Axis(None, low, high, tuple(end for end, contained in ends if contained))


def _listed(inside: Inside, values: Tensor) -> Axis | None:
    """Match values to a usual list: whole numbers, or 8-bit grey levels in their scalings; None without a match.

    Several lists hold values that are all 0 or 1. The list with the most values in the support is the coordinate's.
    """
    bits = torch.arange(256, dtype=torch.float64)
    seen = values.unique()
    whole = torch.arange(-_MOST_STATES // 2, _MOST_STATES, dtype=torch.float64)
    matches = [
        states[inside(states)]
        for states in (whole, bits / 255, bits / 127.5 - 1, bits / 256, (bits + 0.5) / 256)
        if (seen[:, None] - states).abs().min(1).values.max() < 1e-5
    ]
    states = max(matches, key=len, default=seen[:0])
    return Axis(states) if len(states) > 1 else None


def _edge(inside: Inside, start: float, sign: float) -> tuple[float, bool]:
    """Return how far a coordinate can go in one direction, and whether the support contains that end."""
    steps = sign * 10.0 ** torch.arange(-6, 9, dtype=torch.float64)
    ok = inside(start + steps)
    if ok.all():
        return sign * torch.inf, False
    first = int((~ok).nonzero()[0])
    near = start if first == 0 else start + steps[first - 1].item()
    far = start + steps[first].item()
    for _ in range(60):
        middle = 0.5 * (near + far)
        near, far = (middle, far) if inside(torch.tensor([middle], dtype=torch.float64))[0] else (near, middle)
    end = round(far, 6) + 0.0 if abs(far - round(far, 6)) < 1e-6 * max(1.0, abs(far)) else far
    return end, bool(inside(torch.tensor([end], dtype=torch.float64))[0])
