"""Small numerical functions that several pieces share."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

Number = TypeVar("Number", float, Tensor)


def inverse_softplus(value: Number) -> Number:
    """Return r with log(1 + e^r) = `value`; `value` must be above zero."""
    if isinstance(value, Tensor):
        return value + torch.log(-torch.expm1(-value))
    return value + math.log(-math.expm1(-value))


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64; on mps, which has no float64, return it unchanged."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def bounded(values: Tensor, limit: float) -> Tensor:
    """Return values clipped to [-limit, limit], without `torch.clamp`, whose derivative writes in place."""
    return hardtanh(values, -limit, limit)


def finite(logits: Tensor) -> Tensor:
    """Return logits clipped to a quarter of the largest float, so that 0 times a logit is 0 and not NaN."""
    return bounded(logits, torch.finfo(logits.dtype).max / 4)


def impossible(log_prob: Tensor) -> Tensor:
    """Return log-probabilities with minus infinity where they come from an infinite logit clipped by `finite`."""
    return torch.where(log_prob < -(torch.finfo(log_prob.dtype).max ** 0.75), -torch.inf, log_prob)


def expected(prob: Tensor, log_ratio: Tensor) -> Tensor:
    """Return ``prob * log_ratio``: 0 where `prob` is 0, minus infinity where the ratio comes from a clipped logit.

    An infinite term has no gradient, so that one datum of infinite KL leaves the gradients of the others finite.
    """
    ratio = impossible(torch.where(prob > 0, log_ratio, 0.0))
    possible = ratio != -torch.inf
    return torch.where(possible, prob * torch.where(possible, ratio, 0.0), ratio.detach())
