"""Labels as conditions: a column of a data set that conditional models take beside the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import one_hot

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.splits import Split


def with_labels(dataset: Dataset) -> Dataset:
    """Return a labelled data set with its one-hot labels as second column, for a conditional model.

    Entry k of the column stands for the k-th label in ascending order, over all three parts. The labels are renumbered
    from 0 in the same order, so that they agree with the column; `Split.conditions` says what each stood for.

    Args:
        dataset: a data set with one column, and with labels in all parts that have rows.

    Returns:
        A new data set that shares the data; the new column is float32, (n, number of labels).

    Raises:
        ValueError: if a part has no labels, or there is a second column already.

    Example:
        >>> from ppl_vae import data
        >>> with_labels(data.load("digits")).train
        Split(1455 rows of (1, 8, 8) and (10,), labels)
    """
    parts = {part: getattr(dataset, part) for part in ("train", "validation", "test")}
    for part, split in parts.items():
        if len(split) and split.labels is None:
            raise ValueError(
                f"{dataset.name} has no labels for its {part} data, where conditions were to be made of them: pass "
                "them as labels, or a column of conditions of your own to from_tensors"
            )
        if len(split.columns) > 1:
            raise ValueError(f"{dataset.name} has {len(split.columns)} columns already: conditions would be one more")
    labels = [split.labels for split in parts.values() if split.labels is not None]
    known = torch.cat([label.cpu() for label in labels]).unique()
    words = next((split.label_names for split in parts.values() if split.label_names), None)
    names = tuple(str(int(k)) if words is None else words[int(k)] for k in known)

    def with_column(split: Split) -> Split:
        if split.labels is None:  # empty
            return replace(split, columns=(*split.columns, torch.zeros(0, len(known))))
        rows = torch.searchsorted(known.to(split.labels.device), split.labels)
        column = one_hot(rows, len(known)).to(torch.float32)
        return replace(split, columns=(*split.columns, column), labels=rows, label_names=names, conditions=names)

    train, validation, test = map(with_column, parts.values())
    return replace(dataset, train=train, validation=validation, test=test)


def recoded(split: Split, conditions: Sequence[str]) -> Split:
    """Return a part of a data set of `with_labels` whose labels and conditions are coded as elsewhere.

    Args:
        split: The part.
        conditions: The label that each entry of a condition stands for elsewhere.

    Raises:
        ValueError: If the part has a label that is none of them.
    """
    if split.labels is None or split.conditions == tuple(conditions):
        return split
    if unknown := next((name for name in split.conditions if name not in conditions), None):
        raise ValueError(f"the data have the label {unknown}, and {', '.join(conditions)} were trained on")
    codes = torch.tensor([list(conditions).index(name) for name in split.conditions])
    rows = codes.to(split.labels.device)[split.labels]
    column = one_hot(rows, len(conditions)).to(torch.float32)
    names = tuple(conditions)
    return replace(split, columns=(split.columns[0], column), labels=rows, label_names=names, conditions=names)
