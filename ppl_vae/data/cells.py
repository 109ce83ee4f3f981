"""Cells by genes: raw counts, with the batch and the library size of each cell as its condition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ppl_vae.data.conditions import with_labels, with_library_size
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.held import as_split
from ppl_vae.data.partition import Division
from ppl_vae.data.sparse import SparseRows
from ppl_vae.data.streams import chosen


def from_cells(
    cells: Any,
    *,
    layer: str | None = None,
    labels: Any = None,
    conditional: bool = False,
    library: bool = False,
    validation: int | float = 0.1,
    test: int | float | None = None,
    seed: int = 0,
) -> Dataset:
    """Make a data set of raw counts, cells by genes, in three parts.

    A sparse matrix whose dense form takes more than a quarter of the free memory stays sparse, and becomes dense batch
    by batch. `Split.rows` says which cells are in a part.

    Args:
        cells: A scipy sparse matrix, an array or tensor, or an object with ``.X`` and ``.obs``, such as AnnData.
        layer: The name of the layer of raw counts, where ``.X`` holds other values.
        labels: The batches, or with `conditional` off whatever pictures should tell apart, as `as_split` takes them: a
            column of ``.obs``, words or integers (n,).
        conditional: Also give programs the one-hot labels, as a second column. A trained `VAE` takes other data by
            the labels' names.
        library: Also give programs the log of each cell's total, as first entry of the second column; see
            `with_library_size`.
        validation: As in `load`.
        test: As in `load`; None is 0.1.
        seed: The seed of the split.

    Raises:
        TypeError: For cells of another kind.
        ValueError: If values are no counts, as normalised ones are, or columns or labels do not fit.

    Example:
        >>> from scipy import sparse
        >>> counts = sparse.csr_matrix([[1, 2, 0], [0, 5, 0], [3, 0, 0], [1, 1, 1]])
        >>> from_cells(counts, labels=["a", "b", "a", "b"], conditional=True, library=True, validation=0, test=0).train
        Split(4 rows of (3,) and (3,), labels)
    """
    division = Division(validation, test, seed)
    if layer is not None:
        if layer not in (layers := getattr(cells, "layers", {})):
            raise ValueError(f"layer is {layer!r}; expected one of {', '.join(layers) or 'an object with layers'}")
        cells = SimpleNamespace(X=cells.layers[layer], obs=cells.obs)
    whole = as_split(np.asarray(cells) if isinstance(cells, np.memmap) else cells, labels=labels)
    values = whole.x.matrix.data if isinstance(whole.x, SparseRows) else torch.as_tensor(whole.x)
    if len(odd := values[(values < 0) | (values != values.round())]):
        raise ValueError(
            f"the cells hold {float(odd[0]):.4g}, where raw counts were expected: normalised values are no counts; of "
            "an AnnData that keeps the counts in a layer give its name, layer='counts'"
        )
    train, held_out, tested = (chosen(whole, rows) for rows in division.rows(len(whole), "the cells").values())
    dataset = Dataset("cells", train, held_out, tested)
    dataset = with_labels(dataset) if conditional else dataset
    return with_library_size(dataset) if library else dataset
