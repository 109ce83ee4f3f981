"""Bits and one-hot vectors of a guide, as the estimators of discrete latents need them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppl_vae._distributions import unwrapped
from ppl_vae._numbers import finite
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.distributions.relaxed import gumbel_noise, logistic_noise

States = BinaryVector | OneHotVector


def states_of(distribution: Any) -> States | None:
    """Return the bits or one-hot variables of a distribution, in flat vectors; None if it has neither."""
    base = unwrapped(distribution)
    if isinstance(base, (BinaryVector, dist.Bernoulli)):
        return BinaryVector(base.logits)
    if isinstance(base, OneHotVector):
        return OneHotVector(base.logits)
    return OneHotVector(base.logits.unsqueeze(-2)) if isinstance(base, dist.OneHotCategorical) else None


def noise_of(states: States) -> Tensor:
    """Return fresh noise that makes a draw of the logits: logistic for bits, Gumbel for one-hot variables."""
    return (logistic_noise if isinstance(states, BinaryVector) else gumbel_noise)(states.logits.detach())


def noisy_given(states: States, z: Tensor, size: int = 1) -> Tensor:
    r"""Draw noisy logits, (size, *logits), among those that make the draw z; differentiable in the logits.

    With exponential :math:`E`, and i the class of z, the largest of the noisy logits is :math:`-\log E_i`, and the
    others are :math:`-\log(E_j / \pi_j + E_i)`. A bit is the difference of two classes.
    """
    if isinstance(states, BinaryVector):
        sign = 2 * z - 1
        logits = sign * states.logits
        return sign * softplus(softplus(logits) + logistic_noise(logits.detach().expand(size, *logits.shape)))
    drawn = z.reshape(states.logits.shape) > 0.5
    noise = gumbel_noise(states.logits.detach().expand(size, *states.logits.shape))
    largest = torch.where(drawn, noise, 0.0).sum(-1, keepdim=True)
    return torch.where(drawn, noise, -torch.logaddexp(-noise - states.logits, -largest))


def slope(states: States, probs: Tensor) -> Tensor:
    """Return a tensor whose derivative by the logits is that of a softmax, or sigmoid, with the values `probs`."""
    return covariance(states, probs.detach(), finite(states.logits))


def covariance(states: States, probs: Tensor, v: Tensor) -> Tensor:
    """Return the covariance of independent variables with the probabilities `probs`, times v in the form of the logits.

    Args:
        states: The variables, for their form.
        probs: The probabilities, flat.
        v: The vector, (..., d) for bits, (..., V, C) for one-hot variables.
    """
    if isinstance(states, BinaryVector):
        return probs * (1 - probs) * v
    probs = probs.unflatten(-1, v.shape[-2:])
    return (probs * (v - (probs * v).sum(-1, keepdim=True))).flatten(-2)
