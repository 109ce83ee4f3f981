r"""The total mass of a density, which should be one.

The mass is exact where possible: a sum over listed values, or quadrature over one coordinate, over each coordinate of a
product density, or over two coordinates together. Otherwise it is estimated by importance sampling, whose own error
says whether the estimate can be trusted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.nn.functional import logsigmoid, normalize

from ppl_vae.checking.asking import Unanswered
from ppl_vae.checking.density import Density
from ppl_vae.evidence.pareto import k_threshold, pareto_k

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

_NODES = (1201, 4801, 19_201)
_PLANES = (241, 481, 961)  # nodes per side of a grid in the plane
_WORK = 300_000_000  # numbers to score at most
_TOLERANCE = 5e-3  # of the mass of one coordinate: a kink between nodes costs 1e-4
_MOST_LOST = 1e-2  # of the mass of one coordinate
_MOST_STATES = 65_536


class Mass(NamedTuple):
    """A total mass.

    Attributes:
        log_mass: The log-mass of the worst distribution of the batch, nats.
        error: The tolerance on `log_mass`, nats: what quadrature may be wrong by, or 0.01 plus five standard errors of
            sampling.
        how: The method, in words.
    """

    log_mass: float
    error: float
    how: str

    @property
    def is_one(self) -> bool:
        """Whether the mass is one within its error."""
        return abs(self.log_mass) <= self.error


def total_mass(density: Density) -> Mass:
    """Return the mass of the worst distribution of a batch.

    Raises:
        Unanswered: If it is unknown.
    """
    if density.measure == "a discrete set" and not density.independent:
        points = density.states(most=_MOST_STATES)
        log_mass = density.log_prob(points.expand(-1, density.size, -1)).logsumexp(0)
        return _worst(log_mass, f"summed over {len(points)} states")
    if density.measure == "the unit sphere":
        return _on_sphere(density)
    if density.coupled and density.dim == 2 and (found := on_segment(density, 0, 1)) is not None:
        return _worst(found.log_mass.logsumexp(0), "integrated over the segment")
    if density.coupled:
        raise Unanswered(f"a density on {density.support} in {density.dim} coordinates that move only together")
    if density.independent:
        return _of_product(density)
    return _of_plane(density) if density.dim == 2 else _sampled(density)


def _worst(log_mass: Tensor, how: str, error: float = _TOLERANCE) -> Mass:
    log_mass = log_mass.flatten()
    return Mass(log_mass[log_mass.abs().argmax()].item(), error, how)


class Segment(NamedTuple):
    """The line on which two coordinates change and their sum does not, parametrised by their log-ratio.

    Attributes:
        ratio: Log-ratios of the two coordinates.
        log_mass: The log-mass at each ratio; the line of a draw is as long as the sum of its coordinates.
        own: The log-ratios of the draws.
    """

    ratio: Float[Tensor, "m n B"]
    log_mass: Float[Tensor, "m n B"]
    own: Float[Tensor, "n B"]


def on_segment(density: Density, i: int, j: int, count: int = 20) -> Segment | None:
    """Move two coordinates of draws, positive and at a fixed sum; return None where the support does not allow it.

    Raises:
        Unanswered: If several draws share the smallest value to the last digit, as censored draws do. The score of such
            a draw is a probability there, and no density along the segment.
    """
    draws = density.draws[:count].double()
    if not (draws >= 0).all():
        return None
    least = torch.minimum(density.draws[..., i], density.draws[..., j])
    tied = least == least.amin(0)
    if bool((tied.sum(0) > 1).any()):
        raise Unanswered(
            f"{tied.double().mean().item():.1%} of the draws share the smallest value of coordinates {i} and {j}, "
            f"{least.min().item():.3g}: they have a probability there, not a density"
        )
    total = draws[..., i] + draws[..., j]
    half = draws.clone()
    half[..., i] = half[..., j] = 0.5 * total
    if not density.log_prob(half).isfinite().all():
        return None
    all_ratios = density.draws[..., i].double().log() - density.draws[..., j].double().log()
    centre, width = spread(all_ratios.clamp(-600, 600))
    t = torch.linspace(-7, 7, 401, dtype=torch.float64)[:, None, None]
    ratio = (centre + width * t.sinh()).expand(-1, len(draws), -1)
    events = draws.expand(len(ratio), *draws.shape).clone()
    events[..., i] = total * ratio.sigmoid()
    events[..., j] = total * (-ratio).sigmoid()
    log_p = density.log_prob(events)
    log_p = torch.where(log_p.isfinite(), log_p, -torch.inf)
    slope = logsigmoid(ratio) + logsigmoid(-ratio) + (width * t.cosh() * (14 / 400)).log()
    return Segment(ratio, log_p + slope + total.log(), all_ratios[:count])


def spread(values: Shaped[Tensor, " n *shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return the median and width of draws; the width is the scale of a normal with the same quartiles."""
    values = values.double()
    low, centre, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    width = (high - low) / 1.35
    width = torch.where(width > 0, width, values.std(0))
    return centre, torch.where(width > 0, width, torch.ones_like(width))


def without_poles(log_p: Tensor) -> Tensor:
    """Return log-densities with minus infinity at integrable poles, which lie on an edge."""
    return torch.where(log_p < torch.inf, log_p, -torch.inf)


class Line(NamedTuple):
    """One coordinate, on points that resolve its density.

    Attributes:
        points: The points, ascending.
        log_mass: The log-mass at each point, up to a constant.
        lost: The largest share of the mass that lies nearer to an end than numbers reach.
    """

    points: Float[Tensor, "m B"]
    log_mass: Float[Tensor, "m B"]
    lost: float


def on_coordinate(density: Density, i: int) -> Line:
    """Integrate the density of one coordinate with as many points as it takes.

    Raises:
        Unanswered: If half of the most points find another mass, or too much of the mass lies beside an end.
    """
    axis = density.known_axis(i)
    where = spread(axis.unbounded(density.draws[..., i].double()))
    for count in _NODES:
        points, weights = axis.nodes(count, *where)
        log_p = without_poles(density.along(i, points))
        log_mass = log_p + weights.log()
        fine, coarse = log_mass.logsumexp(0), log_mass[::2].logsumexp(0) + math.log(2)
        if axis.states is not None:
            break
        if ((fine - coarse).abs() <= _TOLERANCE).all() and not _fall_between(density, i, points, log_p):
            break
    else:
        raise Unanswered(f"coordinate {i} has parts too narrow or too far apart to be integrated")
    lost = max(_beyond(points, log_p - fine, end) for end in (axis.low, axis.high))
    if lost > _MOST_LOST:
        raise Unanswered(f"{lost:.1%} of the mass of coordinate {i} lies nearer to an end than numbers reach")
    return Line(points, log_mass, lost)


def _fall_between(density: Density, i: int, points: Tensor, log_p: Tensor) -> bool:
    """Whether some of the draws lie on a peak of the density that no point beside them sees."""
    draws = density.draws[:500, :, i].double()
    above = torch.searchsorted(points.T.contiguous(), draws.T.contiguous()).T.clamp(1, len(points) - 1)
    beside = torch.maximum(log_p.gather(0, above - 1), log_p.gather(0, above))
    return bool(((density.along(i, draws) > beside + 2).double().mean(0) > _TOLERANCE).any())


def _of_product(density: Density) -> Mass:
    """Return the worst mass of a single coordinate, or the mass of all together if single ones are not normalised."""
    single = density.has_marginals
    coordinates = density.some_coordinates(12) if single else list(range(density.dim))
    if not single and len(coordinates) * _NODES[0] * density.size * density.dim > _WORK:
        raise Unanswered(f"{density.dim} coordinates take too long to integrate one by one; try smaller data")
    how = "summed" if density.measure == "a discrete set" else "integrated"
    log_masses, lost = [], 0.0
    for i in coordinates:
        line = on_coordinate(density, i)
        log_masses.append(line.log_mass.logsumexp(0))
        lost = max(lost, line.lost)
    error = _TOLERANCE - math.log1p(-lost)
    if not single:
        at_draw = density.log_prob(density.draws[0])
        log_mass = sum((found - at_draw for found in log_masses), torch.zeros(())) + at_draw
        return _worst(log_mass, f"{how} over each coordinate", error * math.sqrt(density.dim))
    which = [f"coordinate {i} of {density.dim}" if density.dim > 1 else "its one coordinate" for i in coordinates]
    masses = [_worst(found, f"{how} over {name}", error) for found, name in zip(log_masses, which, strict=True)]
    return max(masses, key=lambda mass: abs(mass.log_mass))


def _beyond(points: Tensor, log_p: Tensor, end: float) -> float:
    """Return the share of mass between a finite end and the nearest node, from a power law in the distance.

    A beta variable of concentration 0.1 has 3% of its mass closer to 1 than any number in float64.
    """
    if not math.isfinite(end):
        return 0.0
    distance = (points - end).abs()
    log_near = torch.where((distance > 0) & log_p.isfinite(), distance.log(), torch.inf)
    first = log_near.argmin(0, keepdim=True)
    log_first = log_near.gather(0, first)
    second = (log_near - (log_first + 5)).abs().argmin(0, keepdim=True)
    rise = log_p.gather(0, second) - log_p.gather(0, first)
    run = log_near.gather(0, second) - log_first
    power = (1 + rise / run).nan_to_num(1.0).clamp(min=1e-2)
    lost = ((log_first + log_p.gather(0, first)).exp() / power).nan_to_num(0.0).max().item()
    return lost / (1 + lost)


def _of_plane(density: Density) -> Mass:
    for side in _PLANES:
        found = _of_grid(density, side)
        if found.error < 0.1:
            return found
    raise Unanswered(f"quadrature in the plane is still {found.error:.2g} nats unsure")


def _of_grid(density: Density, side: int) -> Mass:
    axes = [density.known_axis(i) for i in range(2)]
    draws = density.draws.double()
    middle = torch.zeros(())
    basis = torch.eye(2, dtype=torch.float64).expand(density.size, 2, 2)
    if all(axis.is_line for axis in axes):
        middle = draws.median(0).values
        draws = draws - middle
        clipped = draws.clamp(-20, 20)  # the covariance of heavy tails need not exist
        basis = torch.linalg.eigh(torch.einsum("nbi,nbj->bij", clipped, clipped)).eigenvectors
    turned = torch.einsum("nbi,bij->nbj", draws, basis)
    (u, wu), (v, wv) = (axis.nodes(side, *spread(axis.unbounded(turned[..., i]))) for i, axis in enumerate(axes))
    sides = len(u), len(v)
    points = torch.stack([u[:, None].expand(*sides, -1), v[None].expand(*sides, -1)], -1)  # (U, V, B, 2)
    log_p = without_poles(density.log_prob(torch.einsum("uvbj,bij->uvbi", points, basis) + middle))
    mass = log_p + (wu[:, None] * wv[None]).log()
    fine = mass.logsumexp((0, 1))
    coarse = mass[::2, ::2].logsumexp((0, 1)) + math.log(4)
    worst = int(fine.abs().argmax())
    error = 2e-2 + 3 * (fine - coarse).abs()[worst].item()
    return Mass(fine[worst].item(), error, "integrated over the plane")


def _on_sphere(density: Density) -> Mass:
    """Integrate over a circle by the trapezoid rule, and over other spheres by uniformly distributed points."""
    if density.dim == 2:
        angle = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)[:-1]
        points = torch.stack([angle.cos(), angle.sin()], -1)[:, None].expand(-1, density.size, -1)
        log_mass = (density.log_prob(points) + math.log(2 * math.pi / 20_000)).logsumexp(0)
        return _worst(log_mass, "integrated over the circle")
    points = normalize(torch.randn(20_000, density.size, density.dim, dtype=torch.float64), dim=-1)
    log_area = math.log(2) + density.dim / 2 * math.log(math.pi) - math.lgamma(density.dim / 2)
    return _from_weights(density.log_prob(points) + log_area, "sampled evenly on the sphere")


def _sampled(density: Density) -> Mass:
    """Estimate the mass with draws of a fitted normal and with draws of the density; keep the more certain estimate."""
    draws = density.draws.double()
    n, _, d = draws.shape
    if n < 20 * d:
        raise Unanswered(f"{d} coordinates that hang together are too many to integrate")
    fitted, fresh = draws[: n // 2], draws[n // 2 :]
    mean = fitted.mean(0)
    covariance = torch.einsum("nbi,nbj->bij", fitted - mean, fitted - mean) / (n // 2 - 1)
    covariance = covariance + 1e-9 * torch.eye(d) * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    narrow, wide = (MultivariateNormal(mean, by * covariance, validate_args=False) for by in (0.9, 1.3))
    points = wide.sample((n // 2,))
    forward = density.log_prob(points) - wide.log_prob(points)
    backward = narrow.log_prob(fresh) - density.log_prob(fresh)
    found = []
    for log_w, sign in ((forward, 1), (backward, -1)):
        try:
            found.append(_from_weights(log_w, "by importance sampling", sign))
        except Unanswered as error:
            why = error
    if not found:
        raise why
    return min(found, key=lambda mass: mass.error)


def _from_weights(log_w: Tensor, how: str, sign: int = 1) -> Mass:
    n = len(log_w)
    if not (log_w < torch.inf).all() or log_w.isnan().any():
        raise Unanswered(f"{how}: log-weights are not finite")
    log_mean = log_w.logsumexp(0) - math.log(n)
    relative = ((log_w - log_mean).exp().var(0) / n).sqrt()
    if relative.max() > 0.1 or (pareto_k(log_w) > k_threshold(n)).any():
        known_to = math.exp(min(5 * relative.max().item(), 20))
        raise Unanswered(f"{how} its mass is known to a factor of {known_to:.2g} only")
    worst = int((log_mean.abs() / (5 * relative + 1e-2)).argmax())
    return Mass(sign * log_mean[worst].item(), 1e-2 + 5 * relative[worst].item(), how)
