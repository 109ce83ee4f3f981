"""A conditional model, one condition at a time: under each it is a model like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor

from ppl_vae.evaluation.elbo import Bound
from ppl_vae.evaluation.evidence import Evidence
from ppl_vae.vae import VAE

_MOST = 1000  # conditions, each of which is evaluated by itself

Found = TypeVar("Found", Evidence, Bound)


def by_condition(vae: VAE, x: Tensor, y: Tensor) -> Iterator[tuple[VAE, Tensor]]:
    """Yield for each condition among some data the model given it, and the rows that have it.

    Args:
        vae: A conditional model.
        x: The data, (n, *x_shape).
        y: Their conditions, (n, k), or labels (n,).

    Raises:
        ValueError: If there are not as many conditions as data, or more than a thousand different ones.
    """
    if len(y) != len(x):
        raise ValueError(f"{len(x)} data were given with {len(y)} conditions; expected one for each datum")
    values, member = y.unique(dim=0, return_inverse=True)
    if len(values) > _MOST:
        raise ValueError(
            f"the data have {len(values)} different conditions; expected at most {_MOST}, as each is evaluated by "
            "itself: take fewer data, or weigh the program, importance((vae.model, vae.guide), x, y, "
            "proposal='posterior')"
        )
    for i, value in enumerate(values):
        condition = value if value.dim() else int(value)
        yield vae.given(condition), (member == i).nonzero()[:, 0]


def each_condition(vae: VAE, x: Tensor, y: Tensor, find: Callable[[VAE, Tensor], Found]) -> Found:
    """What a function finds of the data of each condition, put together in the order of the data."""
    parts, rows = [], []
    for given, index in by_condition(vae, x, y):
        parts.append(find(given, x[index]))
        rows.append(index)
    place = torch.cat(rows).argsort()
    if isinstance(parts[0], Bound):
        names = ("elbo", "rate", "error", "rate_error")
        columns = {name: torch.cat([getattr(part, name) for part in parts])[place] for name in names}
        return cast(Found, Bound(**columns, method=parts[0].method))
    evidence = cast(list[Evidence], parts)
    numbers = [name for name, value in evidence[0].details.items() if not isinstance(value, Tensor)]
    whole = Evidence.joined(evidence, largest=numbers)
    details = {n: v[place] if isinstance(v, Tensor) and v.dim() else v for n, v in whole.details.items()}
    found = Evidence(whole.log_evidence[place], whole.error[place], whole.method, whole.kind, details)
    return cast(Found, found)
