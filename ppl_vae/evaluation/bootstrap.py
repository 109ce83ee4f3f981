r"""Bootstrap intervals over data: how much a figure changes with another test set of the same size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from ppl_vae._interval import Interval
from ppl_vae._scopes import seeded
from ppl_vae._tensors import moved
from ppl_vae._validation import check_positive_int

if TYPE_CHECKING:
    from jaxtyping import Float

Statistic = Callable[[Tensor], Tensor]

BLOCK = 2**22  # entries of resamples held at once (float64: 32 MB)


@overload
def interval(
    values: Tensor,
    *,
    statistic: Statistic | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval: ...


@overload
def interval(
    values: Mapping[str, Tensor],
    *,
    statistic: Statistic | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]: ...


def interval(
    values: Tensor | Mapping[str, Tensor],
    *,
    statistic: Statistic | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval | dict[str, Interval]:
    r"""Return a bootstrap confidence interval of a statistic over data.

    The data are resampled with replacement :math:`R` times, and the interval is read from the quantiles of the
    statistic. It covers the effect of the choice of test data and nothing else: not another training run, not the Monte
    Carlo error of each value, and not data that depend on each other (frames of one film). It is too narrow for fewer
    than about 20 data, and for statistics of the extremes (a maximum), whose bootstrap is inconsistent.

    For the mean, the quantiles are corrected for bias and acceleration (BCa). The evidence per datum needs this,
    because it is skewed, with a long tail of bad data. The coverage error of BCa falls like 1/n instead of
    :math:`1/\sqrt n`. Another statistic gets the plain percentiles, since the acceleration would cost n evaluations of
    it.

    Args:
        values: One number per datum, (n,); or a mapping from names to such tensors over the same data, which are
            resampled together.
        statistic: Maps (..., n) to (...); the mean by default.
        level: The share of such intervals that contain the true figure.
        num_resamples: R.
        seed: The seed of the resampling; the global random state is left alone.

    Returns:
        The interval, or one under each name.

    Raises:
        ValueError: For fewer than two data, values that are not finite, lengths that differ, or a level outside (0, 1).

    Reference:
        Better Bootstrap Confidence Intervals (Efron, 1987), https://doi.org/10.1080/01621459.1987.10478410

    Example:
        >>> print(interval(torch.arange(101.0)))
        50.00 [44.1, 55.5]
        >>> print(interval({"median": torch.arange(101.0)}, statistic=lambda v: v.median(-1).values)["median"])
        50.0 [40, 60]
    """
    if not isinstance(level, float) or not 0 < level < 1:
        raise ValueError(f"interval: level is {level!r}; expected a number between 0 and 1, such as 0.95")
    check_positive_int(num_resamples, "interval: num_resamples")
    values = moved(values, "cpu")
    named = dict(values) if isinstance(values, Mapping) else {"values": values}
    table = _table(named)
    resampled = _resampled(table, statistic, num_resamples, seed)  # (R, m)
    ends, found = (0.5 - level / 2, 0.5 + level / 2), {}
    for i, name in enumerate(named):
        column = table[i]
        value = float(column.mean() if statistic is None else statistic(column))
        shares = _bca(column, resampled[:, i], ends) if statistic is None else ends
        low, high = (float(torch.quantile(resampled[:, i], share)) for share in shares)
        found[name] = Interval(value, low, high, level)
    return found if isinstance(values, Mapping) else found["values"]


def difference(first: Float[Tensor, " n"], second: Float[Tensor, " n"], **options: object) -> Interval:
    r"""Return a bootstrap interval of the mean of ``first - second`` over the same data, paired by datum.

    Two models can differ clearly even where their own intervals overlap widely. Data that are hard for one model are
    hard for the other, and pairing removes this common part. Wrong for figures of different data.

    Args:
        first: The figures of one model.
        second: The figures of the other, of the same data in the same order.
        **options: The options of `interval`.

    Raises:
        ValueError: If the lengths differ; else as `interval`.

    Example:
        >>> x = torch.arange(100.0)
        >>> print(difference(x + 1, x))
        1 [1, 1]
    """
    first, second = moved((first, second), "cpu")
    if first.shape != second.shape:
        raise ValueError(
            f"difference was given values of shapes {tuple(first.shape)} and {tuple(second.shape)}; expected the same "
            "data in the same order"
        )
    return interval(first.double() - second.double(), **options)  # type: ignore[call-overload]


def _table(named: Mapping[str, Tensor]) -> Tensor:
    """Return all values as float64, (m, n), after checks."""
    if not named:
        raise ValueError("interval was given no values; expected at least one tensor of a number per datum")
    first, size = next((name, tuple(v.shape)) for name, v in named.items())
    for name, v in named.items():
        if v.dim() != 1 or len(v) < 2 or tuple(v.shape) != size:
            raise ValueError(
                f"interval: {name!r} has shape {tuple(v.shape)} and {first!r} {size}; expected one number for each of "
                "the same n >= 2 data, (n,)"
            )
        if not torch.isfinite(v).all():
            raise ValueError(
                f"interval: {name!r} holds {int((~torch.isfinite(v)).sum())} values that are not finite, whose mean "
                "means nothing; drop those data and say so"
            )
    return torch.stack([v.detach().to("cpu", torch.float64) for v in named.values()])


def _resampled(table: Tensor, statistic: Statistic | None, num_resamples: int, seed: int) -> Tensor:
    """Return the statistic of every row of `table` over the same resamples of its columns, (R, m)."""
    size, found = table.shape[1], []
    step = max(1, BLOCK // size)
    with seeded(seed):
        for start in range(0, num_resamples, step):
            rows = torch.randint(size, (min(step, num_resamples - start), size))
            if statistic is None:  # a mean is a product with the counts of each datum
                ones = torch.ones(1, 1, dtype=torch.float64).expand(rows.shape)
                counts = torch.zeros(rows.shape, dtype=torch.float64).scatter_add_(1, rows, ones)
                found.append(counts @ table.T / size)
            else:
                found.append(torch.stack([statistic(row[rows]).double() for row in table], dim=1))
    return torch.cat(found)


def _bca(values: Tensor, resampled: Tensor, ends: tuple[float, float]) -> tuple[float, float]:
    """Return the quantile levels of the resampled means at the ends of the BCa interval, from uncorrected levels."""
    normal, mean = NormalDist(), values.mean()
    centred = values - mean  # the jackknife's deviations, up to a factor that cancels
    if float(centred.abs().max()) == 0:
        return ends
    acceleration = float(centred.pow(3).sum() / (6 * centred.square().sum().pow(1.5)))
    below = float((resampled < mean).double().mean() + 0.5 * (resampled == mean).double().mean())
    bias = normal.inv_cdf(min(max(below, 1 / len(resampled)), 1 - 1 / len(resampled)))

    def corrected(end: float) -> float:
        shifted = bias + normal.inv_cdf(end)
        return normal.cdf(bias + shifted / (1 - acceleration * shifted))

    return corrected(ends[0]), corrected(ends[1])
