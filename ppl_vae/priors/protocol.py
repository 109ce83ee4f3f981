"""The protocol of priors."""

from __future__ import annotations

from typing import Protocol

import pyro.distributions as dist


class Prior(Protocol):
    """A callable that returns p(z); a prior with a method ``bind`` also has an attribute ``latent_dim``."""

    def __call__(self) -> dist.Distribution:
        """Return p(z), with ``batch_shape == ()`` and ``event_shape == (latent,)``."""
        ...
