"""Cells by genes: counts with a batch and a library size for each cell, as a data set."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_vae.data.conditions import with_library_size
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.frames import coded_labels
from ppl_vae.data.held import as_split, column_of
from ppl_vae.data.partition import check_options, rows_of_parts
from ppl_vae.data.sparse import SparseRows
from ppl_vae.data.streams import chosen


def from_cells(
    cells: Any,
    *,
    layer: str | None = None,
    batch: Any = None,
    library: bool = False,
    labels: Any = None,
    name: str = "cells",
    validation: int | float = 0.1,
    test: int | float | None = None,
    seed: int = 0,
) -> Dataset:
    """Make a data set of raw counts, cells by genes, in three parts.

    A sparse matrix whose dense form takes more than a quarter of the free memory stays sparse, and becomes dense batch
    by batch. With `batch` or `library` programs get a condition y: first the log library size, then the one-hot batch.

    Args:
        cells: A scipy sparse matrix, an array or tensor, or an object with ``.X`` and ``.obs``, such as AnnData.
        layer: The name of the layer of raw counts, where ``.X`` holds other values.
        batch: The batch of each cell, as `labels`. Batches are coded in sorted order, pandas' categories in their own,
            and as in training where a trained `VAE` is given the data set.
        library: Whether y starts with the log of each cell's total, see `with_library_size`.
        labels: Cell types or the like, for pictures and scores; integers or words (n,), or the name of a column of
            ``.obs``. No program sees them.
        name: The name of the data set.
        validation: As in `load`.
        test: As in `load`; None is 0.1.
        seed: The seed of the split.

    Raises:
        TypeError: For cells of another kind.
        ValueError: If values are no counts, as normalised ones are, or columns or labels do not fit.

    Example:
        >>> from scipy import sparse
        >>> counts = sparse.csr_matrix([[1, 2, 0], [0, 5, 0], [3, 0, 0], [1, 1, 1]])
        >>> from_cells(counts, batch=["a", "b", "a", "b"], library=True, validation=0, test=0).train
        Split(4 rows of (3,) and (3,))
    """
    check_options(None, 0.5, validation, test, seed)
    if layer is not None:
        if layer not in (layers := getattr(cells, "layers", {})):
            raise ValueError(f"layer is {layer!r}; expected one of {', '.join(layers) or 'an object with layers'}")
        cells = SimpleNamespace(X=cells.layers[layer], obs=cells.obs)
    whole = as_split(cells, labels=labels)
    if not isinstance(whole.x, SparseRows | Tensor) or len(whole.x.shape) != 2 or len(whole.columns) > 1:
        raise TypeError(
            f"from_cells was given a {type(cells).__name__}; expected one matrix, or an object with X and obs"
        )
    values = whole.x.matrix.data if isinstance(whole.x, SparseRows) else whole.x
    whole_numbers = (values >= 0) & (values == values.round())
    if not whole_numbers.all():
        raise ValueError(
            f"{name} hold {float(values[~whole_numbers][0]):.4g}, where raw counts were expected: normalised values "
            "are no counts; of an AnnData that keeps the counts in a layer give layer='counts', say"
        )
    if batch is not None:
        obs = getattr(cells, "obs", None)
        given = obs[column_of(getattr(obs, "columns", ()), batch, "batch")] if isinstance(batch, str) else batch
        codes, names = coded_labels(given, len(whole), "batch")
        if not names:
            numbers, codes = codes.unique(return_inverse=True)
            names = tuple(map(str, numbers.tolist()))
        column = one_hot(codes, len(names)).to(torch.float32)
        whole = replace(whole, columns=(whole.x, column), conditions=names)
    parts = rows_of_parts(len(whole), validation, test, seed)
    dataset = Dataset(name, *(chosen(whole, rows) for rows in parts.values()))
    return with_library_size(dataset) if library else dataset
