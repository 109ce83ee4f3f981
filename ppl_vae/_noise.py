"""The noise of a whole batch, of which a process takes its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class RowNoise(TorchDispatchMode):
    """A mode in which noise for some rows of a batch is those rows of the noise for the whole batch.

    Every process draws the noise of the whole batch from the same generator state, so that N processes with parts of
    a batch compute what one process computes, and their generators stay in step. Noise is cheap beside networks.

    The dimension of the data is found by its size: it has as many rows as `rows`, behind the particles where there are
    any, or it is a leading dimension of particles times rows. **Noise that comes from rejection** (gamma, Poisson,
    Dirichlet, binomial) **cannot be split**, since the number of draws depends on other rows: it is drawn for the rows
    alone, and the generators part.

    Args:
        rows: The rows, of a batch that the program runs on.
        total: The number of rows of the whole batch; None gives every row the same noise, without rejection: what the
            program then computes for a datum depends on no other datum, unless it couples them.
        particles: The number of particles.
    """

    def __init__(self, rows: range, total: int | None, particles: int = 1) -> None:
        super().__init__()
        self.rows, self.total, self.particles = rows, total, particles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or its rule where it draws."""
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is None and self.total is None:
            rule = _CENTRES.get(func)
        return func(*args, **kwargs) if rule is None else rule(self, func, args, kwargs)

    def whole(self, shape: Sequence[int], draw: Callable[[list[int]], Tensor], flat: bool = False) -> Tensor:
        """Draw noise of a shape: what `draw` gives for the whole batch, at the rows.

        Args:
            shape: The shape for the rows.
            draw: Draws noise of a shape.
            flat: Whether particles, data and the variables of a datum may lie flat in the first dimension.
        """
        particles, here, total = self.particles, len(self.rows), self.total or 1
        dim = self._place(shape)
        # the first dimension holds all where `flat` allows it, or where `_place` found particles times data there
        if (flat and shape[0] % (particles * here) == 0) or (dim is not None and shape[dim] != here):
            inner = shape[0] // (particles * here)
            drawn = draw([particles * total * inner, *shape[1:]]).reshape(particles, total, inner, *shape[1:])
            dim = 1
        elif dim is None:
            return draw(list(shape))
        else:
            drawn = draw([*shape[:dim], total, *shape[dim + 1 :]])
        if self.total is not None:
            return drawn.narrow(dim, self.rows.start, here).reshape(*shape)
        return drawn.expand(*(here if i == dim else n for i, n in enumerate(drawn.shape))).reshape(*shape)

    def _place(self, shape: Sequence[int]) -> int | None:
        """Return the dimension of the data, perhaps with the particles in it; None if there is none."""
        here, particles, sizes = len(self.rows), self.particles, list(shape)
        for place in range(1, len(sizes)):
            if sizes[place - 1 : place + 1] == [particles, here]:
                return place
        if particles > 1 and sizes[:1] == [particles] and here in sizes[1:]:  # with plates between particles and data
            return sizes.index(here, 1)
        if sizes[:1] in ([here], [particles * here]):
            return 0
        return sizes.index(here) if here in sizes else None


Rule = Callable[[RowNoise, Any, tuple[Any, ...], dict[str, Any]], Tensor]


def _in_place(mode: RowNoise, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Fill a tensor: ``x.normal_(...)`` and the like."""
    return args[0].copy_(_out_of_place(mode, func, args, kwargs))


def _out_of_place(mode: RowNoise, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Fill a new tensor like the first argument: ``torch.bernoulli(x, p)``."""
    x, *rest = args
    return mode.whole(x.shape, lambda shape: func(x.new_empty(shape), *rest, **kwargs))


def _shaped(place: int) -> Rule:
    """Return the rule of a factory, whose argument at `place` is the shape."""

    def rule(mode: RowNoise, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return mode.whole(args[place], lambda shape: func(*args[:place], shape, *args[place + 1 :], **kwargs))

    return rule


def _like(factory: Callable[..., Tensor]) -> Rule:
    """Return the rule of ``torch.rand_like`` and the like, whose noise is that of a factory."""

    def rule(mode: RowNoise, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        x = args[0]
        options = {"dtype": kwargs.get("dtype") or x.dtype, "device": kwargs.get("device") or x.device}
        return mode.whole(x.shape, lambda shape: factory(*args[1:], shape, **options))

    return rule


def _coins(mode: RowNoise, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Toss coins of given probabilities, as torch does on the CPU: a uniform number below each."""
    x, p = (args[0], args[0]) if len(args) == 1 else args[:2]
    level = p.expand(x.shape)
    u = mode.whole(x.shape, lambda shape: torch.rand(shape, dtype=p.dtype, device=p.device, **kwargs))
    tossed = (u < level).to(x.dtype)
    return x.copy_(tossed) if func is aten.bernoulli_.Tensor else tossed


def _normal(mode: RowNoise, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Draw from normals of given means and standard deviations."""
    mean, std = args[0], args[1] if len(args) > 1 else 1.0
    like: Any = mean if isinstance(mean, Tensor) else std
    shape = torch.broadcast_shapes(*(t.shape for t in (mean, std) if isinstance(t, Tensor)))
    noise = mode.whole(shape, lambda whole: torch.randn(whole, dtype=like.dtype, device=like.device, **kwargs))
    return noise * std + mean


def _choices(mode: RowNoise, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Draw classes: one for each row of probabilities, or for each datum from the same probabilities."""
    probs, count, *replacement = args
    if count == 1:
        q = mode.whole(probs.shape, lambda shape: probs.new_empty(shape).exponential_(1, **kwargs), probs.dim() > 1)
        return (probs / q).argmax(-1, keepdim=True)
    if probs.dim() == 1 and replacement == [True]:
        return mode.whole((count,), lambda shape: func(probs, shape[0], *replacement, **kwargs))
    return func(*args, **kwargs)


_RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            aten.normal_.default,
            aten.uniform_.default,
            aten.exponential_.default,
            aten.bernoulli_.float,
            aten.cauchy_.default,
            aten.log_normal_.default,
            aten.geometric_.default,
            aten.random_.default,
            aten.random_.to,
            getattr(aten.random_, "from"),
        ),
        _in_place,
    ),
    **dict.fromkeys((aten.rand.default, aten.rand.generator), _shaped(0)),
    **dict.fromkeys((aten.randn.default, aten.randn.generator), _shaped(0)),
    **dict.fromkeys((aten.randint.default, aten.randint.generator), _shaped(1)),
    **dict.fromkeys((aten.randint.low, aten.randint.low_generator, aten.normal.float_float), _shaped(2)),
    aten.rand_like.default: _like(torch.rand),
    aten.randn_like.default: _like(torch.randn),
    aten.bernoulli.p: _out_of_place,
    aten.bernoulli.default: _coins,
    aten.bernoulli_.Tensor: _coins,
    **dict.fromkeys((aten.normal.Tensor_Tensor, aten.normal.Tensor_float, aten.normal.float_Tensor), _normal),
    aten.multinomial.default: _choices,
}

_CENTRES: dict[Any, Rule] = {  # in place of rejection, where every row has the same noise
    aten._standard_gamma.default: lambda mode, func, args, kwargs: args[0].clone(),
    aten._sample_dirichlet.default: lambda mode, func, args, kwargs: args[0] / args[0].sum(-1, keepdim=True),
    aten.poisson.default: lambda mode, func, args, kwargs: args[0].round(),
    aten.binomial.default: lambda mode, func, args, kwargs: (args[0] * args[1]).round(),
}
