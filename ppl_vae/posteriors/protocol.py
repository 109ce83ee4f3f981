"""What a VAE needs of a posterior."""

from __future__ import annotations

from typing import Protocol

import pyro.distributions as dist
from torch import Tensor


class Posterior(Protocol):
    """What a VAE needs of q(z|x)."""

    def __call__(self, x: Tensor) -> dist.Distribution:
        """Return q(z|x), with ``batch_shape == (batch,)`` and ``event_shape == (latent,)``."""
        ...
