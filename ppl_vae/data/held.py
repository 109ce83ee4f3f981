"""What people hold as data, as a `Split`: arrays, frames, sparse and annotated matrices, torch's sets, loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from ppl_vae._machine import memory
from ppl_vae._tensors import as_numbers
from ppl_vae._validation import check_count, did_you_mean
from ppl_vae.data.columns import coded
from ppl_vae.data.conditions import recoded
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.files import mapped
from ppl_vae.data.forms import Form
from ppl_vae.data.frames import coded_labels, frame_columns, ids_of, is_frame
from ppl_vae.data.sparse import SparseRows, dense_up_to
from ppl_vae.data.splits import Split
from ppl_vae.data.streams import ItemSplit, Stream, chosen, gathered

_SHARE = 4  # a sparse matrix is made dense where that takes at most this part of the free memory
KINDS = (
    "a Split, tensors, numpy arrays, a pandas or polars frame, a scipy sparse matrix, an object with .X and .obs, a "
    "torch Dataset, a DataLoader or another iterable of batches"
)


def as_split(
    held: Any, *, labels: Any = None, columns: int | None = 1, in_memory: bool = False, workers: int | None = None
) -> Split:
    """Make a `Split` of what people hold, all rows in one part, in their order.

    `fit`, `evaluate`, `compare`, `race` and `check` do this themselves. Call it to name labels, to read a loader into
    memory, or to make a data set of parts that are held apart:
    ``Dataset("mine", as_split(a), as_split(b), as_split(c))``.

    - **Arrays, tensors**, or a tuple of them: the columns that a program takes. Shapes stay. Numbers become float32,
      and images of 8-bit pixels (uint8) are divided by 255; rows of uint8 are refused, which may be counts. NaN stays,
      for `likelihoods.Mixed`.
    - **A numpy.memmap**, or a contiguous part of one, that takes more than a quarter of the free memory: read batch by
      batch from its file, ahead of use. Make the split once, so that what a pass over it finds is known to each `fit`.
    - **A pandas or polars frame** of numbers: its columns, in its order. A VAE that was trained on a frame or a table
      takes those of training, by their names, and codes them as there. Other words are refused, since their codes would
      follow from these rows alone: see `from_table`. An index that is no running number becomes the ids.
    - **A scipy sparse matrix** of counts: dense if that takes a quarter of the free memory, else batch by batch.
    - **An object with** ``.X`` **and** ``.obs``, such as AnnData: its X, and a column of `obs` as labels. A layer
      of raw counts is a matrix to give in its place.
    - **A torch Dataset**, or any object with a length and items: x, (x, label), or a dict with such names. A
      `TensorDataset` is in memory. Other items are asked for when they are used, so that augmentation is fresh each
      time: in this process, which is slow, or by `workers`.
    - **A DataLoader, or another iterable of batches**: read as it comes, a pass an epoch. Its batch size, last batch,
      order and workers are its own. A generator has one pass.

    Args:
        held: The data.
        labels: The labels: integers of shape (n,), words, or the name of a column of a frame or of `obs`. Words are
            coded in sorted order, pandas' categories in their own. They are for pictures and scores; no program sees
            them.
        columns: How many columns programs take, 2 for data with conditions. One more column, of integers, is labels.
        in_memory: Read all rows now, once. What items draw at random stays as it was drawn.
        workers: The processes that read the items of a torch Dataset ahead of use; they end with each pass, and start
            again in the next, which takes seconds where the system spawns them (a script then needs
            ``if __name__ == "__main__":``). Before each item (each batch, of a data set with ``__getitems__`` such as a
            `Subset`) the global generators of torch, NumPy and Python are seeded from torch's seed and the rows of the
            batch. Augmentation that draws from them is therefore the same for any number of workers, 0 included, and
            after a resumption. A generator of the data set's own is copied to each worker, and repeats itself. None
            reads in this process, and draws go on from the state of its generators.

    Raises:
        TypeError: For data of another kind.
        ValueError: For values that are no finite numbers (NaN aside), or columns or labels that do not fit.

    Example:
        >>> import numpy as np
        >>> as_split(np.random.rand(100, 3), labels=["a", "b"] * 50)
        Split(100 rows of (3,), labels)
        >>> as_split([torch.zeros(8, 3), torch.ones(5, 3)], in_memory=True)
        Split(13 rows of (3,))
    """
    split = split_of(held, Form(columns), labels)
    if workers is not None:
        if not isinstance(split, ItemSplit):
            raise ValueError("workers was given beside data that are no torch Dataset read item by item: leave it out")
        split = replace(split, workers=check_count(workers, "as_split: workers"))
    return gathered(split) if in_memory else split


def split_of(held: Any, form: Form, labels: Any = None) -> Split:
    """Make a split of what people hold, in the form that a program takes; see `as_split`."""
    if isinstance(held, Dataset):
        raise TypeError("a Dataset was given, which has three parts: give one of them, such as dataset.test")
    split, frame = _split_of(held, form, labels)
    if labels is None:
        return split
    if isinstance(split, ItemSplit | Stream):
        raise ValueError("labels were given beside items or batches, which bring their own: leave them out")
    if isinstance(labels, str):
        labels = frame[_column_of([] if frame is None else frame.columns, labels)]
    codes, words = coded_labels(labels, len(split), "labels")
    return replace(split, labels=codes, label_names=words)


def _split_of(held: Any, form: Form, labels: Any = None) -> tuple[Split, Any]:
    """Return the split, and the frame in which a column of labels may be named."""
    if isinstance(held, Split):
        held = _as_trained(held, form)
        return recoded(held, form.conditions) if form.conditions and held.conditions else held, None
    if isinstance(held, str | Path | Mapping):
        raise TypeError(f"data is a {type(held).__name__}; expected {KINDS} (data.load reads names and files)")
    if sparse.issparse(held):
        return Split((dense_up_to(memory() / _SHARE, SparseRows(held, form.dtype)),)), None
    if hasattr(held, "X") and hasattr(held, "obs"):
        matrix = held.X.to_memory() if hasattr(held.X, "to_memory") else held.X
        split, _ = _split_of(matrix if sparse.issparse(matrix) else _counted(np.asarray(matrix)), form)
        return replace(split, ids=ids_of(held.obs)), held.obs
    if is_frame(held):
        return _frame(held, form, labels), held
    if isinstance(held, TensorDataset):
        return _split_of(held.tensors, form)
    if isinstance(held, Subset):
        if not len(held.indices):
            raise ValueError("the data are a Subset that names no rows: name at least one")
        whole = _split_of(held.dataset, form)[0]
        if not isinstance(whole, ItemSplit | Stream):
            rows = torch.as_tensor(held.indices)
            if not 0 <= int(rows.min()) <= int(rows.max()) < len(whole):
                raise ValueError(
                    f"a Subset names rows up to {int(rows.max())} of {len(whole)}: name rows that are there"
                )
            return chosen(whole, rows), None
    filed = isinstance(held, np.memmap) and held.filename and held.mode != "c" and held.flags.c_contiguous
    if filed and 4 * held.size * _SHARE > memory():
        return Split((mapped(held, form.read_rows),)), None
    if isinstance(held, Tensor | np.ndarray | tuple):
        columns, labels = form.read(held)
        return Split(columns, labels), None
    if hasattr(held, "__getitem__") and hasattr(held, "__len__") and not isinstance(held, list | IterableDataset):
        return ItemSplit.of(held, form.read), None
    if isinstance(held, Iterable):
        return Stream.of(held, form.read), None
    raise TypeError(f"data is a {type(held).__name__}; expected a Dataset or {KINDS}")


def _frame(frame: Any, form: Form, labels: Any) -> Split:
    own = str(_column_of(frame.columns, labels)) if isinstance(labels, str) else None
    found = {name: column for name, column in frame_columns(frame).items() if name != own}
    codes = dict(zip(form.names or (), form.categories, strict=False))
    for name, (values, _) in found.items():
        if not codes.get(name) and values.dtype.kind not in "fiub":
            raise ValueError(
                f"column {name!r} of the frame holds words or objects, whose codes would follow from these rows alone: "
                "make a table of it, data.from_table(frame), or name it as labels"
            )
    names = tuple(found)
    order = _order("frame", names, form)

    def numbers(name: str) -> Tensor:
        what, values = f"column {name!r} of the frame", found[name][0]
        given = coded(values, codes[name], what)[0] if codes.get(name) else values
        return as_numbers(_counted(given), form.dtype, what)

    columns, _ = form.read(torch.stack([numbers(name) for name in order], 1))
    return Split(columns, ids=ids_of(frame), column_names=order, categories=form.categories or tuple(() for _ in order))


def _order(what: str, names: tuple[str, ...], form: Form) -> tuple[str, ...]:
    """Return the names in the order of the form, which must have the same."""
    if form.names is None:
        return names
    if set(form.names) != set(names):
        missing = [name for name in form.names if name not in names]
        other = f"lacks {missing[0]!r}" if missing else f"has {next(n for n in names if n not in form.names)!r} beside"
        raise ValueError(
            f"the {what} {other}, and the columns {', '.join(form.names)} were trained on: give these, in any order (a "
            "column of labels is named as labels)"
        )
    return form.names


def _as_trained(split: Split, form: Form) -> Split:
    """Return a part with the columns of a form in its order, which must have its codes."""
    names = split.column_names
    if names is None or form.names is None:
        return split
    places = [names.index(name) for name in _order("split", names, form)]
    categories = tuple(split.categories[place] for place in places) if split.categories else ()
    for name, codes, known in zip(form.names, categories, form.categories, strict=False):
        if bool(codes) != bool(known) or codes != known[: len(codes)]:
            own, trained = (
                f"codes of {', '.join(map(str, c[:5]))}" if c else "numbers as given" for c in (codes, known)
            )
            raise ValueError(
                f"column {name!r} of the data has {own}, and {trained} were trained on: give the frame itself, which "
                "is coded as in training, or make the table by the schema of that one, data.from_table(frame, schema)"
            )
    if names == form.names:
        return split
    x = cast(Tensor, split.x)
    x = x[:, torch.tensor(places, device=x.device)]
    return replace(split, columns=(x, *split.columns[1:]), column_names=form.names, categories=categories)


def _counted(array: np.ndarray) -> Tensor:
    """Return an array that holds no pixels, of a frame or of cells by genes, as a tensor of its own."""
    return torch.from_numpy(np.array(array, dtype=np.int64 if array.dtype == np.uint8 else array.dtype))


def _column_of(names: Iterable[Any], labels: str) -> Any:
    """Return the name of the column of labels, which must be there, as the frame has it."""
    if labels not in (known := {str(name): name for name in names}):
        hint = did_you_mean(labels, known)
        raise ValueError(f"labels is {labels!r}; expected a column of {', '.join(known) or 'a frame'}{hint}")
    return known[labels]
