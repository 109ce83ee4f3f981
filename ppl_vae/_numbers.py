"""Small numerical functions that several pieces share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import hardtanh


def inverse_softplus(value: float) -> float:
    """Return r with log(1 + e^r) = `value`, which must be above zero."""
    return value + math.log(-math.expm1(-value))


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on devices that have it (mps has not)."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def bounded(values: Tensor, limit: float) -> Tensor:
    """Return values held to [-limit, limit]: `torch.clamp`, whose derivative would write in place."""
    return hardtanh(values, -limit, limit)


def finite(logits: Tensor) -> Tensor:
    """Return logits with infinite ones at a quarter of the largest number, 0 times which is 0."""
    return bounded(logits, torch.finfo(logits.dtype).max / 4)


def impossible(log_prob: Tensor) -> Tensor:
    """Return log-probabilities with those that rest on an infinite logit at minus infinity."""
    return torch.where(log_prob < -(torch.finfo(log_prob.dtype).max ** 0.75), -torch.inf, log_prob)
