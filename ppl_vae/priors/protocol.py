"""What a VAE needs of a prior."""

from __future__ import annotations

from typing import Protocol

import pyro.distributions as dist


class Prior(Protocol):
    """What a VAE needs of p(z); a prior that has a method ``bind`` also states its ``latent_dim``."""

    def __call__(self) -> dist.Distribution:
        """Return p(z), with ``batch_shape == ()`` and ``event_shape == (latent,)``."""
        ...
