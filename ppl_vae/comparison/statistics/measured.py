"""Figures with their intervals: Student's t for a mean, percentiles for a bootstrap."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

from scipy import stats
from torch import Tensor

from ppl_vae._measured import Measured

if TYPE_CHECKING:
    from jaxtyping import Float


def exponential(figure: Measured) -> Measured:
    """Return the exponential of a figure and of its interval."""
    return Measured(*(math.exp(number) if number < 700 else math.inf for number in figure))


def negated(figure: Measured) -> Measured:
    """Return a figure with the opposite sign."""
    return Measured(-figure.value, -figure.high, -figure.low)


def measured(
    resampled: Float[Tensor, " 1+B"], num_units: int, ends: tuple[float, float] = (-math.inf, math.inf)
) -> Measured:
    r"""Return a figure with its 95% interval from ``[figure, *resamples]``.

    The ends are percentiles at levels that correct for few units. A bootstrap of n units has a spread that is too small
    by :math:`\sqrt{(n - 1) / n}`, and the tails of a normal where Student's t is right (Hesterberg, What Teachers
    Should Know About the Bootstrap, 2015, https://doi.org/10.1080/00031305.2015.1089789).

    Args:
        resampled: The figure and its B resamples; NaN where a resample has no figure, which may then be anywhere.
        num_units: n, the number of units that the bootstrap draws from.
        ends: The least and the largest value that the figure can have.
    """
    share = 0.025
    if num_units > 1:
        share = NormalDist().cdf(math.sqrt(num_units / (num_units - 1)) * float(stats.t.ppf(0.025, num_units - 1)))
    draws = resampled[1:]
    least, largest = (draws.where(~draws.isnan(), end).sort().values for end in ends)
    last = len(draws) - 1  # no interpolation: some may be infinite
    return Measured(
        float(resampled[0]), float(least[math.floor(share * last)]), float(largest[math.ceil((1 - share) * last)])
    )
