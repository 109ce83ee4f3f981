"""A figure with its confidence interval, and its text form; not in `ppl_vae.evaluation`, which loads torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval, written as ``-136.82 [-137.9, -135.7]``.

    The text shows both ends to two significant digits of the half-width, and the figure to one digit more. A format
    (``f"{interval:.3f}"``) applies to all three numbers.

    Attributes:
        value: The figure, computed from the data without resampling.
        low: The lower end.
        high: The upper end.
        level: The confidence level: the share of such intervals that contain the true figure.

    Example:
        >>> str(Interval(-136.82, -137.9, -135.7)), f"{Interval(0.25, 0.2, 0.3125):.2f}"
        ('-136.82 [-137.9, -135.7]', '0.25 [0.20, 0.31]')
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        half = 0.5 * (self.high - self.low)
        if not 0 < half < math.inf:
            return self._format(".6g", ".6g")
        decimals = max(0, 1 - math.floor(math.log10(half)))
        return self._format(f".{decimals + 1}f", f".{decimals}f")

    def __format__(self, spec: str) -> str:
        return self._format(spec, spec) if spec else str(self)

    def _format(self, value: str, end: str) -> str:
        return f"{self.value:{value}} [{self.low:{end}}, {self.high:{end}}]"
