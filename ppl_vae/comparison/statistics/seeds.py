"""Arithmetic on curves and over seeds: interpolation, first arrivals, intervals from a few paired runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ppl_vae.comparison.statistics.measured import Measured

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


def over_seeds(values: Sequence[float], *, level: float = LEVEL) -> Measured:
    r"""Return the mean over seeds with its t interval.

    .. math:: \bar v \pm t_{n-1}\!\left(1 - \frac{1 - \ell}{2}\right) \frac{s}{\sqrt n}

    Right for values that are about normal over seeds; wide for few of them (at n = 3, 2.5 standard deviations to each
    side). One seed says nothing about another: its interval is the whole line.

    Args:
        values: One a seed.
        level: The share of intervals that hold the true mean.

    Example:
        >>> print(over_seeds([1.0, 2.0, 3.0]))
        2.00 [-0.5, 4.5]
    """
    numbers = np.asarray(values, dtype=np.float64)
    mean, n = float(numbers.mean()), len(numbers)
    if n < 2:
        return Measured(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(1 - (1 - level) / 2, n - 1)) * float(numbers.std(ddof=1)) / math.sqrt(n)
    return Measured(mean, mean - half, mean + half)


def geometric(values: Sequence[float]) -> Measured:
    """Return the geometric mean over seeds of times or ratios, with the interval of the logarithms' mean.

    The plain mean where a value is zero.

    Example:
        >>> print(geometric([4.0, 4.0]))
        4 [4, 4]
    """
    if min(values) <= 0:
        return over_seeds(values)
    return exponential(over_seeds([math.log(value) for value in values]))


def exponential(measured: Measured) -> Measured:
    """Return a figure on the scale of logarithms as what it is the logarithm of."""
    return Measured(*(math.exp(number) if number < 700 else math.inf for number in measured))


def negated(measured: Measured) -> Measured:
    """Return a figure with its sign turned."""
    return Measured(-measured.value, -measured.high, -measured.low)


class BesideBest(NamedTuple):
    """Each of k contenders beside the best; leading dimensions are those of the values.

    Attributes:
        best: Which has the highest mean of those with the most seeds.
        difference: (..., k), a contender's values minus those of `best`, the mean over the seeds that both have; NaN
            where there are none.
        low: (..., k), lower ends of the simultaneous intervals.
        high: Their upper ends.
        may_be_best: (..., k), whether the data leave it possible that it is the best.
    """

    best: NDArray[np.intp]
    difference: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    may_be_best: NDArray[np.bool_]


def beside_the_best(values: NDArray[np.float64], *, level: float = LEVEL) -> BesideBest:
    r"""Return intervals for what separates each contender from the best, right for all of them at once.

    Which contender is the best is not known, and the one with the highest mean is often another: an interval against
    that one does not pay for its having been chosen. With :math:`\bar d_{ij}` and :math:`s_{ij}` of the differences
    over the :math:`n_{ij}` seeds that i and j both have, the interval of a pair is

    .. math:: \bar d_{ij} \pm t_{n_{ij} - 1}\!\left(1 - \frac{1 - \ell}{2 (k - 1)}\right) s_{ij} / \sqrt{n_{ij}},

    with each pair's own variance, so that seeds may move all contenders together and some more than others. Contender
    i may be the best if no other is above it by its pair's whole interval; G are those. The interval of
    :math:`\theta_i - \max_{j \ne i} \theta_j` is

    - for i outside of G the hull of the intervals of (i, j), j in G, without what is above 0;
    - for i in G from the lowest end of (i, j), j in G, to the lowest upper end of (i, j) of all j; from 0 where i alone
      is in G.

    All hold where the k - 1 pairs of the true best and the others hold, whose choice does not depend on the data, so
    that Bonferroni's inequality counts k - 1: then the true best is in G, and the interval of each other with it in the
    hull. So with probability of at least the level, also where several are equally good, every contender whose upper
    end is below 0 is behind the best, and if G is one contender, none is better than it.

    The best is that of the contenders with the most seeds; others are held against it, with intervals not cut at 0.

    Where it is wrong: the level is for differences that are normal over seeds (`benchmarks/results/levels_race.md`).
    Heavy tails on both sides do no harm, but one skewed contender does: lognormal beside steady ones, 17% of races have
    a wrong interval instead of 5%. Missing seeds must not depend on the differences: of a contender that fails on hard
    seeds is told how it does on the others. A pair with less than two seeds in common has the whole line, and one that
    may be the best then leaves the other's interval open. Two seeds more are worth a lot: at 12 contenders a pair's
    half-width is 8.5 standard deviations of its differences at 3 seeds, 2.6 at 5.

    Edwards & Hsu (1983), Multiple comparisons with the best treatment, which makes such intervals of any that compare
    with a control. Hsu's constrained intervals (1984), of one-sided comparisons, are narrower, and end at 0 for those
    outside of G: they say who is not the only best, but neither that one is behind nor by how much at least.

    Args:
        values: (..., k, seeds), higher is better, NaN where a contender has none; somebody has one.
        level: The share of sets of k intervals that all hold.

    Example:
        >>> found = beside_the_best(np.array([[5.0, 7.0, 6.0], [4.0, 5.9, 5.1], [1.0, 1.0, 1.0]]))
        >>> found.low.round(1).tolist(), found.high.round(1).tolist(), found.may_be_best.tolist()
        ([0.0, -1.4, -8.6], [1.4, -0.6, -1.4], [True, False, False])
    """
    present = ~np.isnan(values)
    seeds = present.sum(-1)
    full = seeds == seeds.max(-1, keepdims=True)
    means = np.where(present, values, 0.0).sum(-1) / np.maximum(seeds, 1)
    best = np.where(full, means, -np.inf).argmax(-1)

    differences = values[..., :, None, :] - values[..., None, :, :]  # (..., i, j, seeds)
    both = ~np.isnan(differences)
    n = both.sum(-1)
    mean = np.where(both, differences, 0.0).sum(-1) / np.where(n > 0, n, np.nan)
    squares = np.where(both, (differences - mean[..., None]) ** 2, 0.0).sum(-1)
    others = np.maximum((seeds > 0).sum(-1) - 1, 1)
    enough = np.maximum(n, 2)
    half = _quantile(others, enough - 1, level) * np.sqrt(squares / (enough * (enough - 1)))
    low, high = np.where(n > 1, mean - half, -np.inf), np.where(n > 1, mean + half, np.inf)

    other = ~np.eye(values.shape[-2], dtype=bool)
    rivals = full[..., None, :] & other
    nearest = np.min(high, -1, where=rivals, initial=np.inf)
    may = full & (nearest >= 0)
    may |= full & ~may.any(-1, keepdims=True)  # with different seeds missing each may be below another
    np.put_along_axis(may, best[..., None], True, -1)
    candidates = may[..., None, :] & other
    lowest = np.min(low, -1, where=candidates, initial=np.inf)
    highest = np.max(high, -1, where=candidates, initial=-np.inf)
    lowest = np.where(full, np.minimum(lowest, 0.0), lowest)  # 0 for one that is alone
    highest = np.where(may, np.maximum(nearest, 0.0), np.where(full, np.minimum(highest, 0.0), highest))
    of_best = np.take_along_axis(mean, best[..., None, None], -1)[..., 0]
    return BesideBest(best, of_best, lowest, highest, may)


def _quantile(comparisons: NDArray[np.intp], freedom: NDArray[np.intp], level: float) -> NDArray[np.float64]:
    """The quantile of t for two-sided intervals that hold for all of so many comparisons (...) at once, (..., k, k)."""
    m, df = np.arange(1, comparisons.max() + 1)[:, None], np.arange(1, freedom.max() + 1)
    return stats.t.ppf(1 - (1 - level) / (2 * m), df)[comparisons[..., None, None] - 1, freedom - 1]
