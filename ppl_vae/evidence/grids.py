"""Cells of latent space: boxes that cover a prior's mass, in an inner box and ever wider shells."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae._distributions import innermost
from ppl_vae.evidence.rows import Rows

_INNER = 6.0  # the inner box reaches this many scales of the prior either way
_SHELLS = 40  # each twice as wide as the last
_SAMPLES = 10_000


@dataclass(frozen=True)
class Cells(Rows):
    """Boxes whose sides are parallel to the axes.

    Attributes:
        centre: (m, d), float64.
        half: Half of the sides, (m, d), float64.

    Example:
        >>> cells = Cells.between([torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 1.0])])
        >>> cells.centre.tolist(), len(cells.halved())
        ([[0.5, 0.5], [2.0, 0.5]], 8)
    """

    centre: Tensor
    half: Tensor

    @staticmethod
    def between(edges: list[Tensor]) -> Cells:
        """Return the cells of the regular grid with these edges along each axis."""
        d = len(edges)
        centre = torch.cartesian_prod(*[(e[1:] + e[:-1]) / 2 for e in edges]).reshape(-1, d)
        return Cells(centre, torch.cartesian_prod(*[(e[1:] - e[:-1]) / 2 for e in edges]).reshape(-1, d))

    def nodes(self, unit: Tensor) -> Tensor:
        """Map points of the cube [-1, 1]^d, (k, d), into each cell, (m, k, d)."""
        return self.centre[:, None] + self.half[:, None] * unit

    def halved(self) -> Cells:
        """Return the 2^d children of each cell; the children of one cell are adjacent."""
        d = self.centre.shape[1]
        signs = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=d))).to(self.centre)
        return Cells(self.nodes(signs).reshape(-1, d), (self.half / 2).repeat_interleave(len(signs), dim=0))

    def log_volume(self) -> Tensor:
        """Return the log volume of each cell, (m,)."""
        return (2 * self.half).log().sum(-1)

    def holds(self, points: Tensor) -> Tensor:
        """Return a mask (..., m): whether cell i holds row i of `points`, (..., m, d) or (..., 1, d)."""
        axes = range(self.centre.shape[1])  # one by one: a reduction over so few numbers is slow
        inside = [(points[..., i] - self.centre[:, i]).abs() <= self.half[:, i] for i in axes]
        return functools.reduce(torch.logical_and, inside)


class Region:
    r"""The inner box that holds a prior's bulk, and shells around it, each twice as wide as the one before.

    Where the prior's support is bounded, the region ends at its bounds. Otherwise the region is centred on the prior's
    mean, so that a kink there (Laplace) falls on edges of cells too. Cells that do not resolve the prior are halved
    until they do; the tests are the prior's integral and the places of 10,000 draws. Whatever stays unresolved shows
    in `prior_mass`, which should be 1. Slow for priors of thousands of narrow components.

    Args:
        prior: p(z).
        side: The side of the inner cells, in scales of the prior (half of the central 68%).
        fine: Quadrature nodes of [-1, 1]^d, (k, d), float64.
        log_weights: The logs of their weights, which add to one.

    Attributes:
        inner: The cells of the inner box, in descending order of prior mass.
        shells: A list of the cells of each shell.
        log_beyond: The log of the prior's mass beyond the first k shells, for each k from none to all.
        prior_mass: The integral of the prior over the box and all shells.
    """

    def __init__(self, prior: Any, side: float, fine: Tensor, log_weights: Tensor) -> None:
        self._prior, self._fine, self._log_weights = prior, fine, log_weights
        samples = prior.sample((_SAMPLES,))
        self._dtype, samples = samples.dtype, samples.double()
        lower, upper = bounds(prior, samples[0])
        low, high = samples.quantile(torch.tensor([0.1587, 0.8413]).to(samples), dim=0)
        scale = ((high - low) / 2).clamp(min=torch.finfo(torch.float32).tiny)
        edges = [_edges(*axis, side) for axis in zip(_centre(prior, samples), scale, lower, upper, strict=True)]
        cells = self._resolved(Cells.between(edges), samples)
        log_mass = self._log_mass(cells)
        self.inner = cells[log_mass.argsort(descending=True)]
        self.shells: list[Cells] = []
        log_masses = []
        open_axes = [(math.isinf(lo), math.isinf(hi)) for lo, hi in zip(lower.tolist(), upper.tolist(), strict=True)]
        low, high = torch.stack([e[0] for e in edges]), torch.stack([e[-1] for e in edges])
        while any(map(any, open_axes)) and len(self.shells) < _SHELLS:
            low, high, shell = _shell(low, high, open_axes)
            log_masses.append(self._log_mass(shell).logsumexp(0).item())
            self.shells.append(shell)
            if log_masses[-1] < -2000:
                break
        self.log_beyond = _log_beyond(log_masses)
        self.prior_mass = math.exp(_log_sum(log_mass.logsumexp(0).item(), *log_masses))

    def log_prior(self, cells: Cells) -> Tensor:
        """Return log p(z) at the fine nodes, plus the log of their weights and of the cell's volume, (m, k)."""
        log_p = self._prior.log_prob(cells.nodes(self._fine).to(self._dtype)).double()
        return log_p + self._log_weights + cells.log_volume()[:, None]

    def _log_mass(self, cells: Cells) -> Tensor:
        return torch.cat([self.log_prior(cells[rows]).logsumexp(-1) for rows in torch.arange(len(cells)).split(4096)])

    def _resolved(self, cells: Cells, samples: Tensor) -> Cells:
        finished, most = [], 4 * len(cells)
        for _ in range(12):
            mass = self._log_mass(cells).exp()
            children = cells.halved()
            change = (self._log_mass(children).exp().reshape(len(cells), -1).sum(-1) - mass).abs()
            parts = (cells[rows] for rows in torch.arange(len(cells)).split(64))
            share = torch.cat([some.holds(samples[:, None]).sum(0) for some in parts]).double() / len(samples)
            missed = share - mass > 5 * (share / len(samples)).sqrt() + 5 / len(samples)
            split = (change > 1e-3 * mass + 1e-7) | missed
            finished.append(cells[~split])
            cells = children[split.repeat_interleave(2 ** cells.centre.shape[1])]
            if not len(cells) or len(cells) > most:
                break
        return Cells.joined([*finished, cells])


def support(prior: Any) -> Any:
    """Return the support of a prior, or the whole space if it declares none."""
    try:
        declared = prior.support
    except NotImplementedError:
        declared = None
    return constraints.real_vector if declared is None else declared


def bounds(prior: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of a prior's support along each axis, (d,) as `like`; infinite where there are none."""
    constraint = innermost(support(prior))
    lower = torch.as_tensor(getattr(constraint, "lower_bound", -math.inf)).to(like)
    upper = torch.as_tensor(getattr(constraint, "upper_bound", math.inf)).to(like)
    if lower.dim() > like.dim():  # a mixture has a row for each component
        lower, upper = lower.flatten(0, -2).amin(0), upper.flatten(0, -2).amax(0)
    return lower.expand_as(like), upper.expand_as(like)


def _centre(prior: Any, samples: Tensor) -> Tensor:
    median = samples.median(0).values
    try:
        mean = prior.mean.to(samples)
    except NotImplementedError:
        return median
    return torch.where(mean.isfinite(), mean, median)


def _edges(centre: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, side: float) -> Tensor:
    """Return the edges of an even number of cells, so that the centre lies on an edge."""
    if lower.isfinite():
        low, high = lower, upper if upper.isfinite() else lower + 2 * _INNER * scale
    elif upper.isfinite():
        low, high = upper - 2 * _INNER * scale, upper
    else:
        low, high = centre - _INNER * scale, centre + _INNER * scale
    count = 2 * max(2, math.ceil(((high - low) / (2 * side * scale)).item() - 1e-9))
    return low + (high - low) * torch.linspace(0, 1, count + 1, dtype=low.dtype, device=low.device)


def _shell(low: Tensor, high: Tensor, open_axes: list[tuple[bool, bool]]) -> tuple[Tensor, Tensor, Cells]:
    """Return the box of twice the width (along unbounded axes), and its cells outside the given box."""
    edges, inside = [], []
    for lo, hi, (below, above) in zip(low, high, open_axes, strict=True):
        before = 0 if not below else 2 if above else 4
        after = 0 if not above else 2 if below else 4
        steps = torch.arange(-before, 4 + after + 1).to(lo)
        edges.append(lo + (hi - lo) * steps / 4)
        inside.append((steps[:-1] >= 0) & (steps[:-1] < 4))
    outside = ~torch.cartesian_prod(*inside).reshape(-1, len(edges)).all(-1)
    return torch.stack([e[0] for e in edges]), torch.stack([e[-1] for e in edges]), Cells.between(edges)[outside]


def _log_beyond(log_masses: list[float]) -> list[float]:
    """Return the log mass beyond the first k shells, for each k; mass beyond the last shell is extrapolated."""
    if not log_masses:
        return [-math.inf]
    last = log_masses[-1]
    if len(log_masses) > 1 and math.isfinite(last):
        fall = min(last - log_masses[-2], -0.1)
        last = last + fall - math.log(-math.expm1(fall))
    beyond = [last]
    for log_mass in reversed(log_masses):
        beyond.append(_log_sum(beyond[-1], log_mass))
    return beyond[::-1]


def _log_sum(*logs: float) -> float:
    return torch.tensor(logs, dtype=torch.float64).logsumexp(0).item()
