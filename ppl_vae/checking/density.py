r"""Draws and log-densities of a distribution over flattened events, and the structure that they show."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

from ppl_vae._distributions import innermost, measure
from ppl_vae.checking.axes import Axis, find_axis

_AT_ONCE = 4_000_000  # numbers handed to log_prob at a time
_MOST_COLUMNS = 512  # at most, to be tried one by one where the support is no product


class Density:
    """A batch of distributions over vectors of D numbers.

    Args:
        distribution: The distribution, of batch shape () or (B,).
        num_draws: How many draws to look at.

    Attributes:
        draws: The draws, (n, B, D), in the distribution's own dtype.
        shape: The shape of one event.
        coupled: Whether some coordinate cannot move without the others: on a sphere, or one-hot vectors.
    """

    def __init__(self, distribution: Any, num_draws: int) -> None:
        self.distribution = distribution
        self.shape = tuple(distribution.event_shape)
        self.batch = tuple(distribution.batch_shape)
        self.size = math.prod(self.batch)
        self.dim = math.prod(self.shape)
        with torch.no_grad():
            self.draws = self.sample(num_draws)
        support = innermost(distribution.support)
        self.measure = measure(distribution)
        self._base = _elementwise(distribution)
        self.coupled = getattr(support, "event_dim", 0) > 0 and not self._moves_freely()

    @cached_property
    def independent(self) -> bool:
        """Whether the density is a product over the coordinates, as its class says or its values show."""
        return not self.coupled and (self._base is not None or self._is_additive())

    def sample(self, count: int) -> Tensor:
        """Draw (count, B, D): half by rsample, as programs draw, and half by sample; without rsample all by sample."""
        d = self.distribution
        ways = [(d.rsample, count - count // 2), (d.sample, count // 2)] if d.has_rsample else [(d.sample, count)]
        drawn = [draw((n,)).detach() for draw, n in ways if n]
        return torch.cat(drawn).reshape(count, self.size, self.dim)

    @torch.no_grad()
    def log_prob(self, points: Tensor) -> Tensor:
        """Return the log-densities (m, B) of points (m, B, D), float64; -inf outside the support."""
        rows = max(1, _AT_ONCE // max(1, self.size * self.dim))
        return torch.cat([self._log_prob(part) for part in points.split(rows)])

    def _log_prob(self, points: Tensor) -> Tensor:
        events = points.to(self.draws.dtype).reshape(len(points), *self.batch, *self.shape)
        inside = self.distribution.support.check(events)
        if not inside.all():  # validation refuses points outside; a draw replaces them
            spare = self.draws[0].reshape(*self.batch, *self.shape).expand_as(events)
            events = torch.where(inside.reshape(*inside.shape, *[1] * len(self.shape)), events, spare)
        log_p = torch.where(inside, self.distribution.log_prob(events).double(), -torch.inf)
        return log_p.reshape(len(points), self.size)

    def axis(self, coordinate: int) -> Axis | None:
        """Return the values that a coordinate can take, or None where they are unknown."""
        return None if self.coupled else self._axis(coordinate)

    def _axis(self, coordinate: int) -> Axis | None:
        return find_axis(self._inside(coordinate), self.draws[:500, :, coordinate].double().flatten())

    def _moves_freely(self) -> bool:
        """Return whether each coordinate can change while the others stay fixed, as columns of a table can."""
        if self.measure not in ("a discrete set", "a region of space") or self.dim > _MOST_COLUMNS:
            return False
        return all(self._axis(i) is not None for i in range(self.dim))

    def along(self, coordinate: int, points: Tensor, others: Tensor | None = None) -> Tensor:
        """Return log-densities while one coordinate moves, up to a constant for each event.

        For an `Independent` distribution with an elementwise base, the result is the log-density of the coordinate
        alone, constant included.

        Args:
            coordinate: The index of the coordinate.
            points: The values of the coordinate, (m, B).
            others: The event in which the coordinate moves, (B, D); by default the first draw.
        """
        if self._base is not None:
            return self._elementwise_log_prob(coordinate, points)
        events = (self.draws[0] if others is None else others).expand(len(points), -1, -1).clone()
        events[..., coordinate] = points.to(events.dtype)
        return self.log_prob(events)

    @property
    def has_marginals(self) -> bool:
        """Whether `along` gives the normalised density of the coordinate alone."""
        return self._base is not None or self.dim == 1

    @torch.no_grad()
    def _elementwise_log_prob(self, coordinate: int, points: Tensor) -> Tensor:
        base = self._base
        assert base is not None
        lead = self.draws[0].reshape(*self.batch, *self.shape)
        rows = max(1, _AT_ONCE // lead.numel())
        found = []
        for part in points.split(rows):
            here = part.to(self.draws.dtype).reshape(len(part), *self.batch, *[1] * len(self.shape))
            events = here.expand(len(part), *self.batch, *self.shape)
            inside = base.support.check(events)
            events = torch.where(inside, events, lead)
            log_p = torch.where(inside, base.log_prob(events).double(), -torch.inf)
            found.append(log_p.flatten(log_p.dim() - len(self.shape))[..., coordinate].reshape(len(part), self.size))
        return torch.cat(found)

    def _inside(self, coordinate: int) -> Callable[[Tensor], Tensor]:
        def check(values: Tensor) -> Tensor:
            events = self.draws[0, 0].expand(len(values), -1).clone()
            events[:, coordinate] = values.to(events.dtype)
            events = events.reshape(len(values), *[1] * len(self.batch), *self.shape)
            return self.distribution.support.check(events).reshape(len(values), -1).all(1)

        return check

    def _is_additive(self) -> bool:
        """Return whether the log-densities of two draws keep their sum when the draws swap some coordinates."""
        if self.dim == 1:
            return True
        n = min(len(self.draws) // 2, 16)
        a, b = self.draws[:n], self.draws[n : 2 * n]
        swap = torch.rand(n, 1, self.dim) < 0.5
        mixed, rest = torch.where(swap, b, a), torch.where(swap, a, b)
        if not all(self._in_support(events).all() for events in (mixed, rest)):
            return False
        before, after = self.log_prob(a) + self.log_prob(b), self.log_prob(mixed) + self.log_prob(rest)
        rounding = 1e-5 if self.draws.dtype == torch.float32 else 1e-10
        size = torch.stack([self.log_prob(part).abs() for part in (a, b)]).amax()
        return bool(((before - after).abs() <= rounding * (1 + size)).all())

    def _in_support(self, points: Tensor) -> Tensor:
        return self.distribution.support.check(points.reshape(len(points), *self.batch, *self.shape))


def _elementwise(distribution: Any) -> Any:
    """Return the base of an `Independent` distribution if every number has a density of its own, else None."""
    base, count = distribution, 0
    while type(base).log_prob is Independent.log_prob and isinstance(base, Independent):
        count += base.reinterpreted_batch_ndims
        base = base.base_dist
    whole = count == len(distribution.event_shape) and not base.event_shape
    return base if whole and base.batch_shape == distribution.batch_shape + distribution.event_shape else None
