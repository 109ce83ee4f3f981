"""Small numerical functions that several pieces share."""

from __future__ import annotations

import math


def inverse_softplus(value: float) -> float:
    """Return r with log(1 + e^r) = `value`, which must be above zero."""
    return value + math.log(-math.expm1(-value))
