"""Statistics over seeds: means, and intervals of a few paired runs against the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ppl_vae._measured import Measured
from ppl_vae.comparison.statistics.measured import exponential

LEVEL = 0.95


def over_seeds(values: Sequence[float], *, level: float = LEVEL) -> Measured:
    r"""Return the mean over seeds with its t interval.

    .. math:: \bar v \pm t_{n-1}\!\left(1 - \frac{1 - \ell}{2}\right) \frac{s}{\sqrt n}

    The interval is right for values that are about normal over seeds. It is wide for few seeds: at n = 3 it extends 2.5
    standard deviations to each side. One seed says nothing about another: its interval is the whole line.

    Args:
        values: One value per seed.
        level: The share of intervals that contain the true mean.

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
    """Return the geometric mean over seeds of times or ratios, with the t interval of their logarithms.

    If a value is zero, return the arithmetic mean instead.

    Example:
        >>> print(geometric([4.0, 4.0]))
        4 [4, 4]
    """
    if min(values) <= 0:
        return over_seeds(values)
    return exponential(over_seeds([math.log(value) for value in values]))


class BesideBest(NamedTuple):
    """The differences of k contenders from the best; leading dimensions are those of the values.

    Attributes:
        best: The index of the highest mean among the contenders with the most seeds.
        difference: (..., k), a contender's values minus those of `best`, the mean over the seeds that both have; NaN
            where there are none.
        low: (..., k), lower ends of the simultaneous intervals.
        high: (..., k), upper ends of the simultaneous intervals.
        may_be_best: (..., k), whether the data leave it possible that the contender is the best.
    """

    best: NDArray[np.intp]
    difference: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    may_be_best: NDArray[np.bool_]


def beside_the_best(values: NDArray[np.float64], *, level: float = LEVEL) -> BesideBest:
    r"""Return simultaneous intervals for the difference of each contender from the best.

    The best contender is unknown, and often it is not the contender with the highest mean. An interval against the
    highest mean ignores that the data chose that contender. Let :math:`\bar d_{ij}` and :math:`s_{ij}` be the mean and
    the standard deviation of the differences over the :math:`n_{ij}` seeds that i and j both have. The interval of a
    pair is

    .. math:: \bar d_{ij} \pm t_{n_{ij} - 1}\!\left(1 - \frac{1 - \ell}{2 (k - 1)}\right) s_{ij} / \sqrt{n_{ij}},

    with each pair's own variance: a seed may shift all contenders together, and some more than others. Contender i may
    be the best if no other contender is above it by the whole interval of their pair. G is the set of these contenders.
    The interval of :math:`\theta_i - \max_{j \ne i} \theta_j` is

    - for i outside of G: the hull of the intervals of (i, j), j in G, without the part above 0;
    - for i in G: from the lowest lower end of (i, j), j in G, to the lowest upper end of (i, j) over all j; it starts
      at 0 if i is alone in G.

    All intervals hold if the k - 1 intervals of the pairs (true best, other) hold: then the true best is in G, and the
    hull of every other contender contains its interval against the true best. The choice of these pairs does not depend
    on the data, so Bonferroni's inequality counts k - 1. With a probability of at least the level, every contender
    whose upper end is below 0 is behind the best, and if G is one contender, no other contender is better. Both also
    hold where several contenders are equally good.

    The best is the best of the contenders with the most seeds. Contenders with fewer seeds are compared with it, and
    their intervals are not cut at 0.

    Where it is wrong: the level is for differences that are normal over seeds (`benchmarks/results/levels_race.md`).
    Heavy tails on both sides do no harm, but one skewed contender does: with one lognormal contender beside steady
    ones, 17% of races have a wrong interval instead of 5%. Whether a seed is missing must not depend on the
    differences: if a contender fails on hard seeds, its figures describe the other seeds only. The interval of a pair
    with fewer than two seeds in common is the whole line; if one of the pair may be the best, the interval of the other
    is open. Two more seeds help a lot: at 12 contenders a pair's half-width is 8.5 standard deviations of its
    differences at 3 seeds, and 2.6 at 5.

    Edwards & Hsu (1983), Multiple comparisons with the best treatment, derive such intervals from any intervals that
    compare with a control. Hsu's constrained intervals (1984) come from one-sided comparisons and are narrower. They
    end at 0 for contenders outside of G: they show that a contender is not the only best, but neither that it is behind
    nor by how much at least.

    Args:
        values: (..., k, seeds), higher is better, NaN where a contender has no value; at least one value is a number.
        level: The share of sets of k intervals in which all k hold.

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
    may |= full & ~may.any(-1, keepdims=True)  # each may be below another if they miss different seeds
    np.put_along_axis(may, best[..., None], True, -1)
    candidates = may[..., None, :] & other
    lowest = np.min(low, -1, where=candidates, initial=np.inf)
    highest = np.max(high, -1, where=candidates, initial=-np.inf)
    lowest = np.where(full, np.minimum(lowest, 0.0), lowest)  # 0 for a contender alone in G
    highest = np.where(may, np.maximum(nearest, 0.0), np.where(full, np.minimum(highest, 0.0), highest))
    of_best = np.take_along_axis(mean, best[..., None, None], -1)[..., 0]
    return BesideBest(best, of_best, lowest, highest, may)


def _quantile(comparisons: NDArray[np.intp], freedom: NDArray[np.intp], level: float) -> NDArray[np.float64]:
    """Return the t quantiles of two-sided intervals that hold for all comparisons (...) at once, (..., k, k)."""
    m, df = np.arange(1, comparisons.max() + 1)[:, None], np.arange(1, freedom.max() + 1)
    return stats.t.ppf(1 - (1 - level) / (2 * m), df)[comparisons[..., None, None] - 1, freedom - 1]
