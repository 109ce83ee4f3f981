"""Sparse matrices, made dense a batch at a time."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae._tensors import exact_up_to
from ppl_vae.data.rows import LazyRows, Rows, stream


class SparseRows:
    """The rows of a scipy sparse matrix, made dense when they are used."""

    def __init__(self, matrix: Any, dtype: torch.dtype = torch.float32) -> None:
        if (not np.issubdtype(matrix.dtype, np.number) and matrix.dtype != bool) or np.iscomplexobj(matrix):
            raise ValueError(f"the sparse matrix has dtype {matrix.dtype}, where real numbers were expected")
        self.matrix = matrix.tocsr()
        self.dtype = dtype
        self.shape: tuple[int, ...] = tuple(matrix.shape)
        if 0 in self.shape:
            raise ValueError(f"the sparse matrix has shape {self.shape}: at least one row and one column were expected")
        if not np.isfinite(self.matrix.data).all():
            raise ValueError("the sparse matrix holds NaN or infinite values: fill or drop them")
        if matrix.nnz and matrix.dtype.kind in "iu" and abs(self.matrix).max() > (limit := exact_up_to(dtype)):
            power = limit.bit_length() - 1
            raise ValueError(f"the sparse matrix holds whole numbers above 2^{power}, which {dtype} rounds: scale them")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return torch.from_numpy(self.matrix[index.cpu().numpy()].toarray()).to(self.dtype)

    def identity(self) -> str:
        """Return a hash of the matrix."""
        digest = hashlib.sha256()
        for part in (self.matrix.indptr, self.matrix.indices, self.matrix.data):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


def dense_up_to(most: float, rows: SparseRows) -> Rows:
    """Return the rows as a tensor if that takes at most so many bytes as float32, else as they are."""
    return rows[torch.arange(len(rows))] if 4 * rows.shape[0] * rows.shape[1] <= most else rows


def row_totals(rows: Rows) -> Tensor:
    """Return the sum of each row, (n,), float64, on the CPU; no sparse row becomes dense."""
    source: Rows = rows
    index: Any = slice(None)
    if isinstance(rows, LazyRows) and rows.binarization is None:
        source, index = rows.source, rows.chosen
    if isinstance(source, SparseRows):
        return torch.from_numpy(np.asarray(source.matrix.sum(1, dtype=np.float64)).ravel())[index]
    pieces = torch.arange(len(rows)).split(4096)
    return torch.cat([x.flatten(1).sum(1, dtype=torch.float64).cpu() for x in stream(rows, pieces)])
