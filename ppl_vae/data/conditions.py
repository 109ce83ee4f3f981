"""Labels and library sizes as conditions: a column of a data set that programs take beside the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_vae._validation import check_positive_int, check_seed, is_real
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.sparse import row_totals
from ppl_vae.data.splits import Split
from ppl_vae.data.streams import chosen

LIBRARY_SIZE = "log library size"  # in `Split.conditions`, for the entry that holds it


def with_labels(dataset: Dataset) -> Dataset:
    """Return a labelled data set with its one-hot labels as second column, for a conditional model.

    Entry k of the column stands for the k-th label in ascending order, over all three parts. The labels are renumbered
    from 0 in the same order, so that they agree with the column; `Split.conditions` says what each stood for. Words
    that the parts have coded apart keep the order of the training data, and others follow.

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
    coded = same_labels(*parts.values())
    labels = [split.labels for split in coded if split.labels is not None]
    known = torch.cat([label.cpu() for label in labels]).unique()
    words = next((split.label_names for split in coded if split.label_names), None)
    names = tuple(str(int(k)) if words is None else words[int(k)] for k in known)

    def with_column(split: Split) -> Split:
        if split.labels is None:  # empty
            return replace(split, columns=(*split.columns, torch.zeros(0, len(known))))
        rows = torch.searchsorted(known.to(split.labels.device), split.labels)
        column = one_hot(rows, len(known)).to(torch.float32)
        return replace(split, columns=(*split.columns, column), labels=rows, label_names=names, conditions=names)

    train, validation, test = map(with_column, coded)
    return replace(dataset, train=train, validation=validation, test=test)


def same_labels(*splits: Split) -> tuple[Split, ...]:
    """Return parts whose words have the same codes in each: those of the first, and others behind them."""
    words = tuple(dict.fromkeys(word for split in splits for word in split.label_names))

    def coded(split: Split) -> Split:
        if split.labels is None or not split.label_names or split.label_names == words:
            return split
        codes = torch.tensor([words.index(word) for word in split.label_names])
        return replace(split, labels=codes.to(split.labels.device)[split.labels], label_names=words)

    return tuple(map(coded, splits))


def with_library_size(dataset: Dataset) -> Dataset:
    r"""Return a data set of counts with the log library size of each row as first entry of its condition.

    The library size is the row's total, :math:`l = \sum_i x_i`. It is for a likelihood with ``library="condition"``,
    whose p(x|z, l) then conditions on a function of x. What such a model gives is log p(x|l), and its log p(x|l) does
    not sum to 1 over the x of this total: compare it with log p(x|l) of models that take the same l, and with no
    log p(x). ``library="latent"`` has a log p(x).

    Args:
        dataset: Counts, with or without conditions (`with_labels`), which stay behind the new entry.

    Raises:
        ValueError: If a row has no counts, whose logarithm is infinite, or negative ones, or if batches are drawn
            afresh.

    Example:
        >>> import torch
        >>> from ppl_vae import data
        >>> counts = data.from_tensors(torch.tensor([[1.0, 2.0], [0.0, 5.0]]), validation=0, test=0)
        >>> with_library_size(counts).train.columns[1].exp().flatten().tolist()
        [3.0, 5.0]
    """
    if dataset.train.dynamic:
        raise ValueError(
            f"{dataset.name} is drawn afresh for each batch, and so has no totals to be its library sizes: leave "
            "binarize, dequantize or library out"
        )

    def with_size(split: Split) -> Split:
        size = row_totals(split.x)
        if len(empty := (~(size > 0)).nonzero()[:, 0]):
            raise ValueError(
                f"{dataset.name} has no counts in row {int(empty[0])} ({len(empty)} such rows of a part), and so no "
                "library size: leave such rows out"
            )
        where = getattr(split.x, "device", None) or "cpu"
        columns: list[Any] = [size.log().to(where, torch.float32)[:, None], *split.columns[1:]]
        names = (LIBRARY_SIZE, *split.conditions) if split.conditions or len(columns) == 1 else ()
        return replace(split, columns=(split.x, torch.cat(columns, 1)), conditions=names)

    train, validation, test = map(with_size, (dataset.train, dataset.validation, dataset.test))
    return replace(dataset, train=train, validation=validation, test=test)


def with_few_labels(dataset: Dataset, labels: int, *, seed: int = 0, share: float = 0.1) -> Dataset:
    r"""Return a labelled data set that keeps the labels of few training data, for `programs.SemiSupervisedVAE`.

    The second column is that of `with_labels`, in the training data with zeros for a label that is forgotten. The
    labels that are kept are drawn at random, as many of each class (or one more). Their rows stand in the training data
    r times each, so that `share` of a batch has labels on average; a row of the column is then the one-hot label
    divided by r, and its sum is the weight with which a copy counts. **A row of zeros still has its label in**
    `Split.labels`, which no program sees. Validation and test data keep all labels.

    Args:
        dataset: A data set with labels in all parts that have rows.
        labels: The number of training data that keep theirs, from the number of classes on.
        seed: The seed of their choice.
        share: The part of the rows that has labels, from 0 (each row once) to below 1.

    Raises:
        ValueError: If there are no labels, fewer than classes or more than training data are to be kept, or a class has
            too few.

    Example:
        >>> from ppl_vae import data
        >>> train = with_few_labels(data.load("digits"), 50).train
        >>> train, int((train.columns[1].sum(1) > 0).sum())
        (Split(1555 rows of (1, 8, 8) and (10,), labels), 150)
    """
    labels, seed = check_positive_int(labels, "labels"), check_seed(seed)
    if not is_real(share) or not 0 <= share < 1:
        raise ValueError(f"share is {share!r}; expected a number from 0 to below 1")
    if type(dataset.train) is not Split:
        raise ValueError(f"{dataset.name} is read item by item, so that no labels can be chosen; load it into memory")
    found = dataset if dataset.train.conditions else with_labels(dataset)
    train, own, every = found.train, cast(Tensor, found.train.labels), cast(Tensor, found.train.columns[1])
    total, classes = every.shape
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).to(own.device)
    rank = one_hot(own[order], classes).cumsum(0).gather(1, own[order, None]).squeeze(1)  # within its class
    kept = order[rank.argsort(stable=True)[:labels]]
    counts = own[kept].bincount(minlength=classes)
    if not classes <= labels <= total or counts.max() - counts.min() > 1:
        raise ValueError(
            f"labels is {labels}, of which each class keeps as many or one more; expected {classes}, one for each "
            f"class of {dataset.name}, to {total}, all training data, and no more than the smallest class has"
        )
    copies = max(1, round(share / (1 - share) * (total - labels) / labels))
    column = torch.zeros_like(every).index_copy_(0, kept, every[kept] / copies)
    rows = torch.cat([torch.arange(total, device=kept.device), kept.repeat(copies - 1)])
    return replace(found, train=chosen(replace(train, columns=(train.x, column)), rows))


def recoded(split: Split, conditions: Sequence[str]) -> Split:
    """Return a part of a data set with its conditions coded as elsewhere, and its labels where they are its conditions.

    Args:
        split: The part.
        conditions: What each entry of a condition stands for elsewhere: a label, or first the log library size.

    Raises:
        ValueError: If the part has a label that is none of them, or one has a library size or labels and the other has
            none.
    """
    if not split.conditions or split.conditions == tuple(conditions):
        return split
    sized = LIBRARY_SIZE in conditions
    names, own = tuple(conditions)[sized:], split.conditions[LIBRARY_SIZE in split.conditions :]
    for what, trained, given in (
        ("a library size", sized, LIBRARY_SIZE in split.conditions),
        ("labels", bool(names), bool(own)),
    ):
        if trained != given:
            there, verb = ("are not", "with") if trained else ("are", "without")
            raise ValueError(f"the data {there} given with {what}, and the model was trained {verb} {what}")
    if unknown := next((name for name in own if name not in names), None):
        raise ValueError(f"the data have the label {unknown}, and {', '.join(names)} were trained on")
    column: Any = split.columns[1]
    codes = torch.tensor([names.index(name) for name in own], device=column.device)
    coded = column.new_zeros(len(column), len(names)).index_copy_(1, codes, column[:, int(sized) :])
    labels, words = split.labels, split.label_names
    if labels is not None and words in ((), own):
        labels, words = codes.to(labels.device)[labels], names
    columns = (split.x, torch.cat([column[:, : int(sized)], coded], 1))
    return replace(split, columns=columns, labels=labels, label_names=words, conditions=tuple(conditions))
