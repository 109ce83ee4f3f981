"""The protocol of posteriors."""

from __future__ import annotations

from typing import Protocol

import pyro.distributions as dist
from torch import Tensor


class Posterior(Protocol):
    """A callable that returns q(z|x)."""

    def __call__(self, x: Tensor) -> dist.Distribution:
        """Return q(z|x), with ``batch_shape == (batch,)`` and ``event_shape == (latent,)``."""
        ...
