"""What lies inside a distribution's wrappers."""

from __future__ import annotations

from typing import Any

from torch.distributions import Independent


def unwrapped(distribution: Any) -> Any:
    """Return a distribution without its `Independent` wrappers."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def describe(distribution: Any) -> str:
    """Return the name of a distribution's family."""
    return type(unwrapped(distribution)).__name__
