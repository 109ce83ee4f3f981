r"""A test of whether draws follow the density.

Take a line through a draw, along which one coordinate moves and all others stay fixed. The density alone gives the
fraction u of the line's mass that lies below the draw. If the draws come from the density, u is uniform on [0, 1],
whatever the family, its dimension or its normaliser: this is the conditional form of the probability integral
transform. On a sphere the lines are great circles through the draw. The test compares the mean of u with 1/2 and the
mean of (2u - 1)^2 with 1/3, in standard errors.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ppl_vae.checking.asking import Unanswered
from ppl_vae.checking.axes import Axis
from ppl_vae.checking.density import Density
from ppl_vae.checking.normalisation import on_coordinate, on_segment, spread, without_poles

_FEW = 401  # on the line of a single draw
_LINES = 300  # draws with a line of their own
_LIMIT = 5.5  # standard errors: a false alarm in 13 million questions
_COORDINATES = 8
_RESOLVED = 8.0  # nodes that must share the mass of a line; a normal with 2 nodes per deviation has 8
_NARROWER = 14  # tries, each with a fifth of the width: down to 1e-9 of it


class Deviation(NamedTuple):
    """The deviation of draws from the density.

    Attributes:
        errors: The largest deviation, in standard errors.
        what: Where the draws deviate and in which direction, in words.
    """

    errors: float
    what: str

    @property
    def agrees(self) -> bool:
        """Whether chance explains the deviation."""
        return self.errors <= _LIMIT


def deviation(density: Density) -> Deviation:
    """Return the largest deviation of draws from the density.

    Raises:
        Unanswered: If it is unknown.
    """
    if density.coupled and density.measure == "a discrete set":
        return _frequencies(density)
    if density.measure == "the unit sphere":
        return _uniformity(_on_circles(density), "along great circles")
    if density.coupled:
        for i, j in itertools.pairwise(range(density.dim)):
            if (line := on_segment(density, i, j, _LINES)) is not None:
                u = _below(line.ratio, line.log_mass, line.own[None])[0]
                return _uniformity(u, f"between coordinates {i} and {j}")
        raise Unanswered(f"a density on {density.support} in coordinates that move only together")
    worst = Deviation(0.0, f"{len(density.draws)} draws")
    for i in density.some_coordinates(_COORDINATES):
        axis = density.known_axis(i)
        u = (_from_shared_line if density.independent else _from_own_lines)(density, i, axis)
        found = _uniformity(u, f"in coordinate {i}")
        if not found.errors <= worst.errors:
            worst = found
    return worst


def _from_shared_line(density: Density, i: int, axis: Axis) -> Tensor:
    line = on_coordinate(density, i)
    return _below(line.points, line.log_mass, density.draws[..., i].double(), listed=axis.states is not None)


def _from_own_lines(density: Density, i: int, axis: Axis) -> Tensor:
    draws = density.draws[:_LINES].double()
    _, width = spread(axis.unbounded(density.draws[..., i].double()))
    found = []
    for part in draws.split(max(1, 2_000_000 // (_FEW * density.size * density.dim))):
        here = part[..., i]  # (m, B)
        own_width = width.expand_as(here)
        for _ in range(_NARROWER):
            points, weights = axis.nodes(_FEW, axis.unbounded(here), own_width)
            events = part.expand(len(points), *part.shape).clone()
            events[..., i] = points
            log_mass = without_poles(density.log_prob(events)) + weights.log()
            # if coordinates depend on each other, a line is narrower than all draws together and may fall between nodes
            coarse = _nodes_used(log_mass) < _RESOLVED
            if axis.states is not None or not coarse.any():
                break
            own_width = torch.where(coarse, 0.2 * own_width, own_width)
        else:
            raise Unanswered(f"along coordinate {i} alone it is too narrow to be resolved")
        found.append(_below(points, log_mass, here[None], listed=axis.states is not None)[0])
    return torch.cat(found)


def _nodes_used(log_mass: Tensor) -> Tensor:
    """Return how many nodes share the mass: the exponential of its entropy."""
    mass = (log_mass - log_mass.amax(0)).exp()
    return torch.special.entr(mass / mass.sum(0)).sum(0).exp()


def _below(points: Tensor, log_mass: Tensor, draws: Tensor, *, listed: bool = False) -> Tensor:
    """Return the fraction of the mass below each draw; mass at a listed value or within a cell is spread evenly."""
    mass = (log_mass - log_mass.amax(0)).exp()
    total = mass.sum(0).unsqueeze(-1)
    tensors = (points, mass, mass.cumsum(0), draws)
    points, mass, cumulative, at = (t.movedim(0, -1).contiguous() for t in tensors)
    last = points.shape[-1] - 1
    if listed:
        index = torch.searchsorted(points, at - 1e-6).clamp(max=last)
        own = mass.gather(-1, index)
        u = cumulative.gather(-1, index) - own + torch.rand(at.shape, dtype=torch.float64) * own
    else:
        # the trapezoid rule puts half the mass of each node between the two
        index = torch.searchsorted(points, at).clamp(1, last)
        left, right = points.gather(-1, index - 1), points.gather(-1, index)
        share = ((at - left) / (right - left).clamp(min=1e-300)).clamp(0, 1)
        before = cumulative.gather(-1, index - 1) - 0.5 * mass.gather(-1, index - 1)
        u = before + share * (0.5 * (mass.gather(-1, index - 1) + mass.gather(-1, index)))
    return (u / total).movedim(-1, 0)


def _uniformity(u: Tensor, where: str) -> Deviation:
    """Compare the first two moments of u (n, B) with those of a uniform, which u is if draws and density agree."""
    n = len(u)
    centred = 2 * u - 1
    shift = centred.mean(0) * math.sqrt(3 * n)
    width = ((centred**2).mean(0) - 1 / 3) * math.sqrt(45 * n / 4)
    if not (shift.isfinite().all() and width.isfinite().all()):
        return Deviation(math.inf, f"{where} the density at the draws is not a number")
    off, more, less = width, "spread wider", "spread narrower"
    if shift.abs().max() > width.abs().max():
        off, more, less = shift, "lie higher", "lie lower"
    worst = off[off.abs().argmax()].item()
    way = more if worst > 0 else less
    return Deviation(abs(worst), f"{where} draws {way} than log_prob says, by {abs(worst):.1f} standard errors")


def _frequencies(density: Density) -> Deviation:
    """Compare how often each of a few listed states is drawn with its probability."""
    points = density.states(most=512)
    p = density.log_prob(points.expand(-1, density.size, -1)).softmax(0)
    same = (density.draws[:, None] == points.to(density.draws.dtype)).all(-1).double()  # (n, states, B)
    n = len(density.draws)
    # a standard error that allows for rare states
    errors = (same.mean(0) - p).abs() / (p * (1 - p) / n + 2 / n**2).sqrt()
    worst = int(errors.amax(1).argmax())
    what = f"state {worst} of {len(points)} is drawn {same.mean(0)[worst].max():.3f} of the time where log_prob says"
    return Deviation(errors.max().item(), f"{what} {p[worst].max():.3f}")


def _on_circles(density: Density) -> Tensor:
    """Return the fraction of mass that lies before each draw on a random great circle through the draw, (n, B)."""
    x = normalize(density.draws[:_LINES].double(), dim=-1)
    v = torch.randn_like(x)
    v = normalize(v - (v * x).sum(-1, keepdim=True) * x, dim=-1)
    pole = normalize(density.draws.double().mean((0, 1)) + 1e-3 * torch.randn(density.dim), dim=0)
    start = torch.atan2(v @ pole, x @ pole)  # the point nearest to the pole: the same for all draws on a circle
    angle = torch.linspace(0, 2 * math.pi, 2 * _FEW, dtype=torch.float64)[:, None, None] + start + math.pi
    points = angle.cos()[..., None] * x + angle.sin()[..., None] * v  # (m, n, B, D)
    log_mass = without_poles(density.log_prob(points))
    own = (-(start + math.pi)).remainder(2 * math.pi)  # the draw itself is at angle 0
    return _below(angle - start - math.pi, log_mass, own[None])[0]
