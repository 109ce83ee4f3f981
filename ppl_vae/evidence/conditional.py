"""The evaluation of a conditional model under one condition at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ppl_vae.evidence.densities import Model
from ppl_vae.evidence.results import Evidence

MOST = 1000  # conditions; each is evaluated separately
MANY = 50  # conditions up to which methods do so that need not

Found = TypeVar("Found")


def many_conditions(y: Tensor, most: int = MANY) -> bool:
    """Whether there are so many conditions, as with library sizes, that the data are better sampled all together."""
    return len(y) > most and len(y.unique(dim=0)) > most


def found_by_condition(
    vae: Model, x: Tensor, y: Tensor, find: Callable[[Model, Tensor], Found]
) -> tuple[list[Found], Tensor]:
    """Return the results of `find` for each condition, and the place of each datum in their concatenation.

    Args:
        vae: A conditional model.
        x: The data, (n, *x_shape).
        y: Their conditions, (n, k), or labels (n,).
        find: A function of the model given one condition, and of the data of this condition.

    Raises:
        ValueError: If the numbers of conditions and data differ, or more than a thousand conditions are different.
    """
    if len(y) != len(x):
        raise ValueError(f"{len(x)} data were given with {len(y)} conditions; expected one for each datum")
    values, member = y.unique(dim=0, return_inverse=True)
    if len(values) > MOST:
        raise ValueError(
            f"the data have {len(values)} different conditions; expected at most {MOST}, as each is evaluated by "
            "itself: take fewer data, or weigh the program, importance((vae.model, vae.guide), x, y, "
            "proposal='posterior')"
        )
    rows = [(member == i).nonzero()[:, 0] for i in range(len(values))]
    parts = [find(given(vae, value), x[index]) for value, index in zip(values, rows, strict=True)]
    return parts, torch.cat(rows).argsort()


def given(vae: Model, value: Tensor) -> Model:
    """Return the model of one condition, (k,), or label, ()."""
    if not value.dim() and value.is_floating_point():
        raise ValueError(
            f"a condition is the number {value.item():g}; expected labels of an integer type, (n,), or conditions, "
            "(n, k): for k = 1 give y[:, None]"
        )
    return vae.given(value if value.dim() else int(value))


def evidence_by_condition(vae: Model, x: Tensor, y: Tensor, find: Callable[[Model, Tensor], Evidence]) -> Evidence:
    """Return the evidence that `find` computes for the data of each condition, in the order of the data."""
    parts, place = found_by_condition(vae, x, y, find)
    return Evidence.joined(parts)[place]
