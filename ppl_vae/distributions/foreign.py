r"""Distributions of others (torch, zuko, a user's own) as Pyro distributions."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pyro.distributions
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints


def as_pyro(distribution: Any) -> Any:
    """Return a torch distribution as the Pyro distribution of the same density; anything else stays as it is.

    The result is of a class that inherits the distribution's own and Pyro's mixin, as Pyro makes its classes from
    torch's, so that its methods, its parameters, `has_rsample`, `expand` and every registered KL stay its own. The
    given object is not changed. The support counts all dimensions of the event. It is None where the
    distribution does not say it, as zuko's circular and truncated ones; a prior or posterior needs one.

    **Slow**: some flows score or draw in one pass for each dimension (zuko's autoregressive flows draw so). zuko
    switches off torch's validation when it is imported: no value is refused then, wherever it lies.

    Args:
        distribution: A ``torch.distributions.Distribution``, or anything else.

    Returns:
        A Pyro distribution with the batch and event shape of the given one; or what was given.

    Example:
        >>> normal = torch.distributions.Normal(torch.zeros(2), 1.0)
        >>> as_pyro(normal).to_event(1).expand((3,)).event_shape
        torch.Size([2])
    """
    if isinstance(distribution, TorchDistributionMixin) or not isinstance(distribution, Distribution):
        return distribution
    own = copy.copy(distribution)
    family: Any = type(distribution)
    own.__class__ = _class_of(family)
    if isinstance(own, Independent):  # whose methods call Pyro's of its base
        own.base_dist = as_pyro(own.base_dist)
    return own


@functools.cache
def _class_of(family: Any) -> type:
    known: Any = getattr(pyro.distributions, family.__name__, object)
    if issubclass(known, family) and known.__init__ is family.__init__:  # else it has attributes that ours lacks
        return known

    def support(self: Any) -> Any:
        try:
            found = super(own, self).support
        except NotImplementedError:
            found = _support_of_flow(self)
        missing = 0 if found is None else len(self.event_shape) - found.event_dim
        return constraints.independent(found, missing) if missing > 0 else found

    def log_prob(self: Any, value: Tensor) -> Tensor:
        # zuko's flows do not broadcast a value over their batch
        batch = torch.broadcast_shapes(value.shape[: value.dim() - self.event_dim], self.batch_shape)
        return super(own, self).log_prob(value.expand(batch + self.event_shape))

    methods = {"__module__": family.__module__, "support": property(support), "log_prob": log_prob}
    own: Any = type(family.__name__, (family, TorchDistributionMixin), methods)
    return own


def _support_of_flow(flow: Any) -> Any:
    """Return the support of a zuko flow or mixture, which do not say it; None where it cannot be known.

    A flow from a bounded base says nothing of its own bounds: the density of a circular spline goes on periodically
    outside of its box.
    """
    base, transform = getattr(flow, "base", None), getattr(flow, "transform", None)
    if base is None or (transform is None and not hasattr(flow, "logits")):
        return None
    support = as_pyro(base).support
    if transform is None:
        return support  # a mixture, whose components are in its base
    return transform.domain if getattr(support, "base_constraint", support) is constraints.real else None
