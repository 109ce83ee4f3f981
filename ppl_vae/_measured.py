"""A figure with its 95% interval, as comparisons report it and pictures draw it."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.special import stdtrit

from ppl_vae._interval import Interval


def t_quantile(replicates: int) -> float:
    """Return the half-width of a 95% interval in standard errors, from Student's t with R - 1 degrees of freedom."""
    return float(stdtrit(replicates - 1, 0.975))


class Measured(NamedTuple):
    """A figure with its 95% interval.

    Attributes:
        value: The figure; NaN where it is undefined; it may be infinite.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        ends = (self.low, self.high)
        if all(map(math.isfinite, self)) and max(map(abs, self)) >= 1e5:
            return f"{self.value:.3g} [{ends[0]:.2g}, {ends[1]:.2g}]"
        return str(Interval(self.value, *ends))
