"""The protocol of likelihoods."""

from __future__ import annotations

from typing import Protocol

import pyro.distributions as dist
from torch import Tensor


class Likelihood(Protocol):
    """A callable that returns p(x|z)."""

    def __call__(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), with ``batch_shape == z.shape[:-1]`` and the event shape of one datum."""
        ...
