r"""The error of imputed entries of a table, per column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vae._columns import split_kinds
from ppl_vae._home import at_home

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@at_home("filled", "x", "missing", program=None)
def column_errors(
    filled: Float[Tensor, "n columns"],
    x: Float[Tensor, "n columns"],
    missing: Bool[Tensor, "n columns"],
    columns: Sequence[str],
) -> Float[Tensor, " columns"]:
    r"""Return the error of each column of a filled table, over its missing entries.

    The error of a binary (rounded) or categorical column is the share of wrong entries. The error of any other column
    is the root mean squared error in units of the column's standard deviation over all of `x`, so filling in the
    column's mean gives about 1. If the column has a long tail, few entries decide this error.

    Args:
        filled: The filled table, by `impute` or any other method.
        x: The true table; NaN where the truth is unknown.
        missing: A boolean mask of the filled entries.
        columns: The kind of each column, as in `likelihoods.Mixed`.

    Returns:
        (columns,), float64; NaN for a column without any missing entry, and for one that gives no unit: real values
        that are all equal.

    Raises:
        ValueError: For unknown kinds, or shapes that do not fit.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
        >>> column_errors(x.mean(0).expand(2, 2), x, torch.ones(2, 2) > 0, ["real", "binary"])
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    kinds = split_kinds(columns, "column_errors: columns")
    if x.dim() != 2 or filled.shape != x.shape or missing.shape != x.shape or len(kinds) != x.shape[1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (filled, x, missing))
        raise ValueError(f"column_errors was given shapes {shapes} and {len(kinds)} columns; expected (n, columns)")
    found = torch.full((len(kinds),), torch.nan, dtype=torch.float64)
    for j, (kind, _) in enumerate(kinds):
        held = missing[:, j] & ~x[:, j].isnan()
        truth, guess = x[held, j].double(), filled[held, j].double()
        if not len(truth):
            continue
        if kind in ("binary", "categorical"):
            wrong = (guess > 0.5) != (truth > 0.5) if kind == "binary" else guess.round() != truth
            found[j] = wrong.double().mean()
        else:
            known = x[~x[:, j].isnan(), j].double()
            if known.min() < known.max():
                found[j] = (guess - truth).square().mean().sqrt() / known.std(correction=0)
    return found
