r"""Draws and log-densities of a distribution over flattened events, and the structure that they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Independent

from ppl_vae._distributions import describe, innermost, measure
from ppl_vae.checking.asking import Unanswered
from ppl_vae.checking.axes import Axis, find_axis

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped

_AT_ONCE = 4_000_000  # numbers handed to log_prob at a time
_MOST_COLUMNS = 512  # at most, to be tried one by one where the support is no product


class Density:
    """A batch of distributions over vectors of D numbers, wherever they are; all points and answers are on the CPU.

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
        self.support = support_of(distribution)
        self.shape = tuple(distribution.event_shape)
        self.batch = tuple(distribution.batch_shape)
        self.size = math.prod(self.batch)
        self.dim = math.prod(self.shape)
        with torch.no_grad():
            self.draws = self.sample(num_draws)
        self.measure = measure(distribution)
        self._base = _elementwise(distribution)
        self.coupled = getattr(innermost(self.support), "event_dim", 0) > 0 and not self._moves_freely()

    @cached_property
    def independent(self) -> bool:
        """Whether the density is a product over the coordinates, as its class says or its values show."""
        return not self.coupled and (self._base is not None or self._is_additive())

    def sample(self, count: int) -> Shaped[Tensor, "count B D"]:
        """Draw, half by rsample, as programs draw, and half by sample; without rsample all by sample."""
        d = self.distribution
        ways = [(d.rsample, count - count // 2), (d.sample, count // 2)] if d.has_rsample else [(d.sample, count)]
        drawn = torch.cat([draw((n,)).detach() for draw, n in ways if n])
        self.device = drawn.device
        return drawn.cpu().reshape(count, self.size, self.dim)

    def log_prob(self, points: Shaped[Tensor, "*m B D"]) -> Float[Tensor, "*m B"]:
        """Return the log-densities of points, float64; -inf outside the support."""
        return torch.cat(list(self._scored(self.distribution, self._events(points)))).reshape(points.shape[:-1])

    def in_support(self, points: Shaped[Tensor, "m B D"]) -> Bool[Tensor, " m *batch"]:
        """Return whether each of the points lies in the support."""
        return self.support.check(self._events(points)).cpu()

    def _events(self, points: Tensor) -> Tensor:
        return points.to(self.device, self.draws.dtype).reshape(-1, *self.batch, *self.shape)

    @torch.no_grad()
    def _scored(self, distribution: Any, events: Tensor) -> Iterator[Tensor]:
        """Yield the log-densities of events block by block."""
        spare = self._events(self.draws[0])
        for part in events.split(max(1, _AT_ONCE // max(1, spare.numel()))):
            inside = distribution.support.check(part)
            # validation refuses points outside; a draw replaces them
            valid = part.where(inside.reshape(*inside.shape, *[1] * (part.dim() - inside.dim())), spare)
            yield torch.where(inside, distribution.log_prob(valid).double(), -torch.inf).cpu()

    def some_coordinates(self, count: int) -> list[int]:
        """Return at most `count` coordinates, spread evenly."""
        return sorted({round(i) for i in torch.linspace(0, self.dim - 1, count).tolist()})

    def states(self, most: int) -> Shaped[Tensor, "m 1 D"]:
        """Return all states of a discrete distribution."""
        try:
            states = self.distribution.enumerate_support(expand=False)
        except NotImplementedError:
            raise Unanswered(f"a density on {self.support} whose values it does not list (enumerate_support)") from None
        if len(states) > most:
            raise Unanswered(f"it has {len(states):,} states")
        return states.cpu().reshape(len(states), 1, self.dim)

    def axis(self, coordinate: int) -> Axis | None:
        """Return the values that a coordinate can take, or None where they are unknown."""
        return None if self.coupled else self._axis(coordinate)

    def known_axis(self, coordinate: int) -> Axis:
        """Return the values that a coordinate can take, or leave the question unanswered."""
        if (axis := self.axis(coordinate)) is None:
            raise Unanswered(f"its support {self.support} does not let coordinate {coordinate} move by itself")
        return axis

    def _axis(self, coordinate: int) -> Axis | None:
        return find_axis(self._inside(coordinate), self.draws[:500, :, coordinate].double().flatten())

    def _moves_freely(self) -> bool:
        """Return whether each coordinate can change while the others stay fixed, as columns of a table can."""
        if self.measure not in ("a discrete set", "a region of space") or self.dim > _MOST_COLUMNS:
            return False
        if self.measure == "a discrete set" and len(self.draws.double().sum(-1).unique()) == 1:
            return False  # counts of a total, though the support may name no total
        return all(self._axis(i) is not None for i in range(self.dim))

    def along(self, coordinate: int, points: Float[Tensor, "m B"]) -> Float[Tensor, "m B"]:
        """Return log-densities while one coordinate moves, in the first draw, up to a constant.

        For an `Independent` distribution with an elementwise base, the result is the log-density of the coordinate
        alone, constant included.

        Args:
            coordinate: The index of the coordinate.
            points: The values of the coordinate.
        """
        if self._base is not None:
            alike = points.to(self.draws.dtype).unsqueeze(-1).expand(-1, -1, self.dim)
            parts = self._scored(self._base, self._events(alike))
            return torch.cat([part.reshape(len(part), self.size, self.dim)[..., coordinate] for part in parts])
        events = self.draws[0].expand(len(points), -1, -1).clone()
        events[..., coordinate] = points.to(events.dtype)
        return self.log_prob(events)

    @property
    def has_marginals(self) -> bool:
        """Whether `along` gives the normalised density of the coordinate alone."""
        return self._base is not None or self.dim == 1

    def _inside(self, coordinate: int) -> Callable[[Tensor], Tensor]:
        def check(values: Tensor) -> Tensor:
            events = self.draws[0, 0].expand(len(values), -1).clone()
            events[:, coordinate] = values.to(events.dtype)
            events = events.reshape(len(values), *[1] * len(self.batch), *self.shape)
            whole = events.is_floating_point() or values.frac() == 0  # which the type of draws may round to
            return whole & self.support.check(events.to(self.device)).cpu().reshape(len(values), -1).all(1)

        return check

    def _is_additive(self) -> bool:
        """Return whether the log-densities of two draws keep their sum when the draws swap some coordinates."""
        if self.dim == 1:
            return True
        n = min(len(self.draws) // 2, 16)
        a, b = self.draws[:n], self.draws[n : 2 * n]
        swap = torch.rand(n, 1, self.dim) < 0.5
        mixed, rest = torch.where(swap, b, a), torch.where(swap, a, b)
        if not all(self.in_support(events).all() for events in (mixed, rest)):
            return False
        before, after = self.log_prob(a) + self.log_prob(b), self.log_prob(mixed) + self.log_prob(rest)
        rounding = 1e-5 if self.draws.dtype == torch.float32 else 1e-10
        size = torch.stack([self.log_prob(part).abs() for part in (a, b)]).amax()
        return bool(((before - after).abs() <= rounding * (1 + size)).all())


def support_of(distribution: Any) -> Any:
    """Return the support that a distribution states."""
    if (support := getattr(distribution, "support", None)) is None:
        raise Unanswered(f"{describe(distribution)} does not say its support; give it a property support")
    return support


def _elementwise(distribution: Any) -> Any:
    """Return the base of an `Independent` distribution if every number has a density of its own, else None."""
    base, count = distribution, 0
    while type(base).log_prob is Independent.log_prob and isinstance(base, Independent):
        count += base.reinterpreted_batch_ndims
        base = base.base_dist
    whole = count == len(distribution.event_shape) and not base.event_shape
    return base if whole and base.batch_shape == distribution.batch_shape + distribution.event_shape else None
