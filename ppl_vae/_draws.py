"""Draws that a missing number does not stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class UnstoppedDraws(TorchFunctionMode):
    """A mode in which a draw whose probability, rate or scale is none (NaN) is NaN; of a class it is any class then.

    Torch raises an error there on the CPU. **On a GPU its kernel stops, and with it all that the process has there**:
    no tensor can be read any more. Where nothing validates, the draw must go on, and the density of what was drawn is
    NaN in its place, which the caller finds. Other draws are those of torch, bit by bit.

    Attributes:
        met: Whether the program has drawn in such a way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, or its rule where it draws."""
        rule = _RULES.get(func)
        if rule is None:
            return func(*args, **(kwargs or {}))
        self.met = True
        return rule(func, *args, **(kwargs or {}))


def _filled(tensor: Tensor, valid: Tensor, value: float) -> Tensor:
    """Return a tensor with a value where it is not valid, in memory as the tensor is: torch draws in this order."""
    return torch.where(valid, tensor, torch.full((), value, dtype=tensor.dtype, device=tensor.device))


def classes(weights: Tensor, count: int) -> Tensor:
    """Draw `count` classes by weights in the last dimension, each with replacement; any where the weights are none."""
    return _classes(torch.multinomial, weights, count, replacement=True)


def bits(p: Tensor) -> Tensor:
    """Draw bits of probabilities; NaN where one is none."""
    return _bits(torch.bernoulli, p)


def _classes(func: Callable[..., Tensor], input: Tensor, *rest: Any, **more: Any) -> Tensor:
    weights = _filled(input, (input >= 0) & (input < math.inf), 1.0)
    return func(weights + (weights.sum(-1, keepdim=True) <= 0), *rest, **more)


def _bits(func: Callable[..., Tensor], input: Tensor, *rest: Any, **more: Any) -> Tensor:
    if "p" in more or any(isinstance(value, float) for value in rest):  # of a tensor's size alone
        return func(input, *rest, **more)
    valid = (input >= 0) & (input <= 1)
    return func(_filled(input, valid, 0.0), *rest, **more).masked_fill(~valid, math.nan)


def _counts(func: Callable[..., Tensor], input: Tensor, *rest: Any, **more: Any) -> Tensor:
    valid = (input >= 0) & (input < math.inf)
    return func(_filled(input, valid, 0.0), *rest, **more).masked_fill(~valid, math.nan)


def _in_place(func: Callable[..., Tensor], input: Tensor, p: Any = 0.5, **more: Any) -> Tensor:
    if not isinstance(p, Tensor):
        return func(input, p, **more)
    valid = (p >= 0) & (p <= 1)
    drawn = func(input, _filled(p, valid, 0.0), **more)
    return drawn.masked_fill_(~valid, math.nan) if drawn.is_floating_point() else drawn


def _normal(func: Callable[..., Tensor], mean: Any, std: Any = 1.0, *rest: Any, **more: Any) -> Tensor:
    if not isinstance(std, Tensor):
        return func(mean, std, *rest, **more)
    return func(mean, _filled(std, ~std.isnan(), 0.0), *rest, **more).masked_fill(std.isnan(), math.nan)


_RULES: dict[Any, Callable[..., Tensor]] = {
    torch.multinomial: _classes,
    torch.Tensor.multinomial: _classes,
    torch.bernoulli: _bits,
    torch.Tensor.bernoulli: _bits,
    torch.poisson: _counts,
    torch.Tensor.bernoulli_: _in_place,
    torch.normal: _normal,
}
