"""Small numerical functions that several pieces share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_softplus(value: float) -> float:
    """Return r with log(1 + e^r) = `value`, which must be above zero."""
    return value + math.log(-math.expm1(-value))


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on devices that have it (mps has not)."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def finite(logits: Tensor) -> Tensor:
    """Return logits with infinite ones at a quarter of the largest number, 0 times which is 0."""
    largest = torch.finfo(logits.dtype).max / 4
    return logits.clamp(-largest, largest)


def impossible(log_prob: Tensor) -> Tensor:
    """Return log-probabilities with those that rest on an infinite logit at minus infinity."""
    return torch.where(log_prob < -(torch.finfo(log_prob.dtype).max ** 0.75), -torch.inf, log_prob)
