"""What values a source of rows holds, found in one pass and known from then on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae._distributions import innermost
from ppl_vae.data.arrays import blocks
from ppl_vae.data.binarization import BINS, FINE, Binarization, Dequantization
from ppl_vae.data.rows import LazyRows, Rows
from ppl_vae.data.splits import Split

_BETWEEN = (  # these hold between two numbers at which they hold
    *(type(kind) for kind in (constraints.real, constraints.unit_interval, constraints.positive)),
    *(type(constraints.nonnegative), constraints.less_than, constraints.half_open_interval),
)
_WHOLE = (type(constraints.nonnegative_integer), constraints.integer_interval)  # these, between whole numbers


class Values(NamedTuple):
    """The values of some rows.

    Attributes:
        low: The smallest.
        high: The largest.
        grey: Whether one is neither 0 nor 1.
        whole: Whether all are whole numbers.
        levels: Whether all are known to be 8-bit pixels k / 255.
        broken: How many are NaN or infinite; `low` to `whole` leave the blocks out that hold them.
        first: The first row that holds one of these.
    """

    low: float = float("inf")
    high: float = float("-inf")
    grey: bool = False
    whole: bool = True
    levels: bool = False
    broken: int = 0
    first: int = -1

    def surely_in(self, support: Any, like: Tensor) -> bool:
        """Return whether all values lie in a support; False where only a look at them tells.

        Args:
            support: The support.
            like: Data of the shape, device and dtype that the support checks.
        """
        inner = innermost(support)
        some = [self.low, self.high]
        if self.grey and self.levels:
            some = (torch.arange(BINS, dtype=torch.uint8).to(torch.float32) / (BINS - 1)).tolist()
        between = type(inner) in _BETWEEN or getattr(inner, "is_interval", False)
        told = not self.grey or self.levels or between or (self.whole and type(inner) in _WHOLE)
        return (
            told and not self.broken and all(bool(support.check(torch.full_like(like, value)).all()) for value in some)
        )


_BITS = Values(0.0, 1.0)
_PIXELS = Values(0.5 / FINE / BINS, 1 - 0.5 / FINE / BINS, grey=True, whole=False)  # dequantised
_KNOWN = "_ppl_vae_values"  # the attribute of a source that keeps its values


def survey(rows: Rows, look: Callable[[int, Tensor], None] | None = None) -> Values:
    """Return the values of all rows; a source that is not in memory is read once, and known as long as it lives.

    Of 8-bit pixels nothing is read but what tells whether all are black or white.

    Args:
        rows: The rows.
        look: Called with the number of its first row and each finite block, if the rows are read.
    """
    if isinstance(known := getattr(rows, _KNOWN, None), Values) and not isinstance(rows, Tensor):
        return known
    pixels = getattr(rows, "is_uint8", False)
    found = Values(0.0, 1.0, levels=True) if pixels else Values()
    for start, x in blocks(rows):
        low, high = (float(end) for end in x.aminmax())  # NaN spreads to both
        if (bad := ~x.isfinite().reshape(len(x), -1)).any():  # (rows, values)
            first = found.first if found.broken else start + int(bad.any(1).nonzero()[0])
            found = found._replace(broken=found.broken + int(bad.sum()), first=first)
            continue
        if look is not None:
            look(start, x)
        grey = found.grey or bool(((x != 0) & (x != 1)).any())
        whole = found.whole and bool((x == x.round()).all())
        found = found._replace(low=min(found.low, low), high=max(found.high, high), grey=grey, whole=whole)
        if pixels and grey:
            break
    if not isinstance(rows, Tensor):
        with suppress(AttributeError, TypeError):
            setattr(rows, _KNOWN, found)
    return found


def finite(rows: Rows, what: str, look: Callable[[int, Tensor], None] | None = None) -> Values:
    """Return the values of all rows, or raise an error that counts NaN and infinite ones of `what`."""
    found = survey(rows, look)
    if found.broken:
        values = "1 NaN or infinite value" if found.broken == 1 else f"{found.broken} NaN or infinite values"
        raise ValueError(
            f"{what} holds {values}, first in row {found.first}: fill or drop such rows; a table with missing values "
            "is taken by data.from_table"
        )
    return found


def values_of(split: Split, support: Any) -> Values | None:
    """Return the values of the data x as batches give them; None where they do not tell whether x lies in a support.

    A source of the user's own is read for it once, where `constraints.real` is not all that there is to hold.
    """
    source, drawn = split.x, split.dynamic
    while isinstance(source, LazyRows):
        rule = source.binarization
        if rule is not None and not isinstance(rule, Binarization | Dequantization):
            return None
        source, drawn = source.source, drawn or rule is not None
    inner = innermost(support)
    if getattr(inner, "event_dim", 1) or isinstance(source, Tensor):
        return None
    if drawn:
        return _BITS if split.bins is None else _PIXELS
    told = hasattr(source, "is_uint8") or (inner is not constraints.real and len(source) == len(split))
    return survey(source) if told else None
