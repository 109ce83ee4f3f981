"""Arithmetic on curves and over seeds: interpolation, first arrivals, intervals from a few paired runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from ppl_vae.comparison.results import Measured

LEVEL = 0.95


def at(x: Sequence[float], y: Sequence[float], where: float) -> float | None:
    """Return a curve's value at `where`, linear between its points; None outside of them.

    Example:
        >>> at([0.0, 10.0, 20.0], [1.0, 2.0, 4.0], 15.0), at([0.0, 10.0], [1.0, 2.0], 11.0)
        (3.0, None)
    """
    if not x or not x[0] <= where <= x[-1]:
        return None
    return float(np.interp(where, x, y))


def first_arrival(x: Sequence[float], y: Sequence[float], target: float) -> float | None:
    """Return where a curve first comes up to `target`, linear between its points; None if it never does.

    Example:
        >>> first_arrival([0.0, 10.0, 20.0], [0.0, 2.0, 6.0], 4.0), first_arrival([0.0, 10.0], [0.0, 2.0], 4.0)
        (15.0, None)
    """
    for i, value in enumerate(y):
        if value < target:
            continue
        if i == 0:
            return float(x[0])
        share = (target - y[i - 1]) / (value - y[i - 1])
        return float(x[i - 1] + share * (x[i] - x[i - 1]))
    return None


def over_seeds(values: Sequence[float], *, comparisons: int = 1, level: float = LEVEL) -> Measured:
    r"""Return the mean over seeds with its t interval.

    .. math:: \bar v \pm t_{n-1}\!\left(1 - \frac{1 - \ell}{2 m}\right) \frac{s}{\sqrt n}

    Right for values that are about normal over seeds; wide for few of them (at n = 3, 2.5 standard deviations to each
    side). One seed says nothing about another: its interval is the whole line.

    Args:
        values: One a seed.
        comparisons: m, for intervals that hold for all of m figures at once (Bonferroni).
        level: The share of intervals (of sets of m) that hold the true mean.

    Example:
        >>> print(over_seeds([1.0, 2.0, 3.0]))
        2.00 [-0.5, 4.5]
    """
    numbers = np.asarray(values, dtype=np.float64)
    mean, n = float(numbers.mean()), len(numbers)
    if n < 2:
        return Measured(mean, -math.inf, math.inf)
    quantile = float(stats.t.ppf(1 - (1 - level) / (2 * max(1, comparisons)), n - 1))
    half = quantile * float(numbers.std(ddof=1)) / math.sqrt(n)
    return Measured(mean, mean - half, mean + half)


def geometric(values: Sequence[float], *, comparisons: int = 1) -> Measured:
    """Return the geometric mean over seeds of times or ratios, with the interval of the logarithms' mean.

    The plain mean where a value is zero.

    Example:
        >>> print(geometric([4.0, 4.0]))
        4 [4, 4]
    """
    if min(values) <= 0:
        return over_seeds(values, comparisons=comparisons)
    found = over_seeds([math.log(value) for value in values], comparisons=comparisons)
    low, high = (math.exp(end) if end < 700 else math.inf for end in (found.low, found.high))
    return Measured(math.exp(found.value), low, high)


def paired(first: Mapping[int, float], second: Mapping[int, float], *, comparisons: int = 1) -> Measured | None:
    """Return the interval of ``first - second`` over the seeds that both have; None if there are none.

    Runs of a seed share their initial parameters and the order of the data, and so part of what a seed does to them,
    which the difference takes out.

    Example:
        >>> print(paired({0: 1.0, 1: 3.0}, {0: 0.5, 1: 2.5, 2: 9.0}))
        0.5 [0.5, 0.5]
    """
    both = sorted(first.keys() & second.keys())
    return over_seeds([first[s] - second[s] for s in both], comparisons=comparisons) if both else None


def paired_ratio(first: Mapping[int, float], second: Mapping[int, float], *, comparisons: int = 1) -> Measured | None:
    """Return the interval of the geometric mean of ``first / second``, as `paired`; None where a figure is zero.

    Example:
        >>> print(paired_ratio({0: 2.0, 1: 6.0}, {0: 1.0, 1: 3.0}))
        2 [2, 2]
    """
    both = sorted(first.keys() & second.keys())
    if not both or min(min(first[s], second[s]) for s in both) <= 0:
        return None
    return geometric([first[s] / second[s] for s in both], comparisons=comparisons)
