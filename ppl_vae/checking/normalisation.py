r"""The total mass of a density, which should be one.

The mass is exact where possible: a sum over listed values, or quadrature over one coordinate, over each coordinate of a
product density, or over two coordinates together. Otherwise it is estimated by importance sampling, whose own error
says whether the estimate can be trusted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_vae.checking.asking import Unanswered
from ppl_vae.checking.density import Density
from ppl_vae.evidence.pareto import k_threshold, pareto_k

_NODES = 1201
_PLANES = (241, 481, 961)  # nodes per side of a grid in the plane
_WORK = 300_000_000  # numbers to score at most
_TOLERANCE = 5e-3  # of the mass of one coordinate: a kink between nodes costs 1e-4
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


def total_mass(density: Density) -> Mass | str:
    """Return the mass of the worst distribution of a batch, or the reason why it is unknown."""
    if density.measure == "a discrete set" and not density.independent:
        return _enumerated(density)
    if density.measure == "the unit sphere":
        return _on_sphere(density)
    if density.coupled and density.dim == 2 and (found := on_segment(density, 0, 1)) is not None:
        log_mass = found.log_mass.logsumexp(0).flatten()
        return Mass(log_mass[log_mass.abs().argmax()].item(), _TOLERANCE, "integrated over the segment")
    if density.coupled:
        return f"a density on {density.distribution.support} in {density.dim} coordinates that move only together"
    if density.independent:
        return _of_product(density)
    return _of_plane(density) if density.dim == 2 else _sampled(density)


class Segment(NamedTuple):
    """The line on which two coordinates change and their sum does not, parametrised by their log-ratio.

    Attributes:
        ratio: Log-ratios of the two coordinates, (m, n, B).
        log_mass: The log-mass at each ratio, (m, n, B); the line of a draw is as long as the sum of its coordinates.
        own: The log-ratios of the draws, (n, B).
    """

    ratio: Tensor
    log_mass: Tensor
    own: Tensor


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
    log_p = density.log_prob(events.reshape(-1, density.size, density.dim)).reshape(ratio.shape)
    log_p = torch.where(log_p.isfinite(), log_p, -torch.inf)
    slope = logsigmoid(ratio) + logsigmoid(-ratio) + (width * t.cosh() * (14 / 400)).log()
    return Segment(ratio, log_p + slope + total.log(), all_ratios[:count])


def spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median and width of draws (n, ...); the width is the scale of a normal with the same quartiles."""
    values = values.double()
    low, centre, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    width = (high - low) / 1.35
    width = torch.where(width > 0, width, values.std(0))
    return centre, torch.where(width > 0, width, torch.ones_like(width))


def _of_product(density: Density) -> Mass | str:
    """Return the worst mass of a single coordinate, or the mass of all together if single ones are not normalised."""
    coordinates = range(density.dim)
    if density.has_marginals:
        coordinates = sorted({round(i) for i in torch.linspace(0, density.dim - 1, 12).tolist()})  # type: ignore[assignment]
    total: Tensor | float = 0.0
    worst, where, lost = 0.0, 0, 0.0
    work = len(coordinates) * _NODES * density.size * density.dim
    if not density.has_marginals and work > _WORK:
        return f"{density.dim} coordinates take too long to integrate one by one; try smaller data"
    for i in coordinates:
        axis = density.axis(i)
        if axis is None:
            return f"its support {density.distribution.support} does not let coordinate {i} move by itself"
        centre, width = spread(density.draws[..., i])
        points, weights = axis.nodes(_NODES, centre, width)
        log_p = density.along(i, points)
        log_p = torch.where(log_p < torch.inf, log_p, -torch.inf)  # an integrable pole at an edge
        reference = 0.0 if density.has_marginals else density.log_prob(density.draws[:1])
        log_mass = (log_p - reference + weights.log()).logsumexp(0).flatten()
        total = total + log_mass
        for end in (axis.low, axis.high):
            lost = max(lost, _beyond(points, log_p - reference, end))
        if density.has_marginals and log_mass.abs().max() > abs(worst):
            worst, where = log_mass[log_mass.abs().argmax()].item(), i
    if density.has_marginals:
        of_what = f"coordinate {where} of {density.dim}" if density.dim > 1 else "its one coordinate"
        return Mass(worst, _TOLERANCE + lost, f"{_rule(density)} over {of_what}")
    sums = (total + density.log_prob(density.draws[:1])).flatten()
    log_mass_all = sums[sums.abs().argmax()].item()
    return Mass(log_mass_all, (_TOLERANCE + lost) * math.sqrt(density.dim), f"{_rule(density)} over each coordinate")


def _beyond(points: Tensor, log_p: Tensor, end: float) -> float:
    """Return the mass between a finite end and the nearest node, from a power law in the distance; 0 at infinity.

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
    lost = (log_first + log_p.gather(0, first)).exp() / power
    return lost.nan_to_num(0.0).max().item()


def _rule(density: Density) -> str:
    return "summed" if density.measure == "a discrete set" else "integrated"


def _of_plane(density: Density) -> Mass | str:
    for side in _PLANES:
        found = _of_grid(density, side)
        if isinstance(found, Mass) and found.error < 0.1:
            return found
    return found if isinstance(found, str) else f"quadrature in the plane is still {found.error:.2g} nats unsure"


def _of_grid(density: Density, side: int) -> Mass | str:
    axes = [density.axis(i) for i in range(2)]
    if any(axis is None for axis in axes):
        return f"its support {density.distribution.support} does not let a coordinate move by itself"
    draws = density.draws.double()
    rotate = all(axis.low == -torch.inf and axis.high == torch.inf for axis in axes if axis is not None)
    centred = draws - draws.median(0).values
    if rotate:
        clipped = centred.clamp(-20, 20)  # the covariance of heavy tails need not exist
        basis = torch.linalg.eigh(torch.einsum("nbi,nbj->bij", clipped, clipped)).eigenvectors
    else:
        basis = torch.eye(2, dtype=torch.float64).expand(density.size, 2, 2)
    turned = torch.einsum("nbi,bij->nbj", centred if rotate else draws, basis)
    grids = []
    for i, axis in enumerate(axes):
        assert axis is not None
        centre, width = spread(turned[..., i])
        grids.append(axis.nodes(side, centre, width))
    (u, wu), (v, wv) = grids
    sides = len(u), len(v)
    points = torch.stack([u[:, None].expand(*sides, -1), v[None].expand(*sides, -1)], -1)  # (U, V, B, 2)
    points = torch.einsum("uvbj,bij->uvbi", points, basis)
    if rotate:
        points = points + draws.median(0).values
    log_p = density.log_prob(points.reshape(-1, density.size, 2)).reshape(*sides, -1)
    log_p = torch.where(log_p < torch.inf, log_p, -torch.inf)
    mass = log_p + (wu[:, None] * wv[None]).log()
    fine = mass.logsumexp((0, 1))
    coarse = mass[::2, ::2].logsumexp((0, 1)) + math.log(4)
    worst = int(fine.abs().argmax())
    error = 2e-2 + 3 * (fine - coarse).abs()[worst].item()
    return Mass(fine[worst].item(), error, "integrated over the plane")


def _enumerated(density: Density) -> Mass | str:
    try:
        states = density.distribution.enumerate_support(expand=False)
    except NotImplementedError:
        return f"a density on {density.distribution.support} whose values it does not list (enumerate_support)"
    if len(states) > _MOST_STATES:
        return f"it has {len(states):,} states"
    points = states.reshape(len(states), 1, density.dim).expand(-1, density.size, -1)
    log_mass = density.log_prob(points).logsumexp(0)
    return Mass(log_mass[log_mass.abs().argmax()].item(), _TOLERANCE, f"summed over {len(states)} states")


def _on_sphere(density: Density) -> Mass | str:
    """Integrate over a circle by the trapezoid rule, and over other spheres by uniformly distributed points."""
    if density.dim == 2:
        angle = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)[:-1]
        points = torch.stack([angle.cos(), angle.sin()], -1)[:, None].expand(-1, density.size, -1)
        log_mass = (density.log_prob(points) + math.log(2 * math.pi / 20_000)).logsumexp(0)
        return Mass(log_mass[log_mass.abs().argmax()].item(), _TOLERANCE, "integrated over the circle")
    points = torch.nn.functional.normalize(torch.randn(20_000, density.size, density.dim, dtype=torch.float64), dim=-1)
    log_area = math.log(2) + density.dim / 2 * math.log(math.pi) - math.lgamma(density.dim / 2)
    return _from_weights(density.log_prob(points) + log_area, "sampled evenly on the sphere")


def _sampled(density: Density) -> Mass | str:
    """Estimate the mass with draws of a fitted normal and with draws of the density; keep the more certain estimate."""
    draws = density.draws.double()
    n, _, d = draws.shape
    if n < 20 * d:
        return f"{d} coordinates that hang together are too many to integrate"
    fitted = draws[: n // 2]
    mean = fitted.mean(0)
    covariance = torch.einsum("nbi,nbj->bij", fitted - mean, fitted - mean) / (n // 2 - 1)
    covariance = covariance + 1e-9 * torch.eye(d) * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    narrow = torch.distributions.MultivariateNormal(mean, 0.9 * covariance, validate_args=False)
    fresh = draws[n // 2 :]
    backward = _from_weights(narrow.log_prob(fresh) - density.log_prob(fresh), "by importance sampling", sign=-1)
    wide = torch.distributions.MultivariateNormal(mean, 1.3 * covariance, validate_args=False)
    points = wide.sample((n // 2,))
    forward = _from_weights(density.log_prob(points) - wide.log_prob(points), "by importance sampling")
    known = [mass for mass in (forward, backward) if isinstance(mass, Mass)]
    return min(known, key=lambda mass: mass.error) if known else backward


def _from_weights(log_w: Tensor, how: str, sign: int = 1) -> Mass | str:
    n = len(log_w)
    if not (log_w < torch.inf).all() or log_w.isnan().any():
        return f"{how}: log-weights are not finite"
    log_mean = log_w.logsumexp(0) - math.log(n)
    relative = ((log_w - log_mean).exp().var(0) / n).sqrt()
    if relative.max() > 0.1 or (pareto_k(log_w) > k_threshold(n)).any():
        return f"{how} its mass is known to a factor of {math.exp(min(5 * relative.max().item(), 20)):.2g} only"
    worst = int((log_mean.abs() / (5 * relative + 1e-2)).argmax())
    return Mass(sign * log_mean[worst].item(), 1e-2 + 5 * relative[worst].item(), how)
