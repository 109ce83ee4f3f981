"""A source, and its division into three parts, each binarised or dequantised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, get_args

import torch
from torch import Tensor

from ppl_vae._validation import did_you_mean, is_integer, is_real
from ppl_vae.data.arrays import to_float
from ppl_vae.data.binarization import BINS, Binarization, Binarize, Dequantization, Rule, check_levels, noise_key
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.rows import LazyRows, Rows
from ppl_vae.data.splits import Split
from ppl_vae.data.survey import finite

TRAIN_PART, TEST_PART, HELD_PART = 0, 1, 3  # parts of a source, for the noise of fixed draws


@dataclass(frozen=True, eq=False)
class Source:
    """Rows, channels first: a uint8 or float32 tensor, or float32 rows that are read when they are used."""

    name: str
    x: Rows
    labels: Tensor | None = None
    columns: tuple[Tensor, ...] = ()  # other columns that programs take
    x_test: Rows | None = None  # None: the test set is split off x
    labels_test: Tensor | None = None
    x_held: Rows | None = None  # validation data of its own; None: they are split off x
    labels_held: Tensor | None = None
    binarize: Binarize = "none"  # the default, if the user does not choose
    file: str | None = None  # the file that it was read from
    label_names: tuple[str, ...] = ()  # the words behind the labels

    @property
    def title(self) -> str:
        """The name of the source in errors."""
        return self.file or self.name


def check_options(
    binarize: Any, threshold: Any, validation: Any, test: Any, seed: Any, dequantize: Any = False
) -> None:
    """Refuse options that are wrong for every source, before one is read or downloaded."""
    modes = get_args(Binarize)
    if binarize is not None and binarize not in modes:
        hint = did_you_mean(binarize, modes)
        raise ValueError(f"binarize={binarize!r} is unknown{hint}: give one of {', '.join(modes)}")
    if not isinstance(dequantize, bool):
        raise ValueError(f"dequantize={dequantize!r} was given, where True or False was expected")
    if dequantize and binarize not in (None, "none"):
        raise ValueError(
            f"dequantize=True and binarize={binarize!r} were given, and pixels cannot be both: choose one of them"
        )
    if not is_real(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold!r} was given, where a number from 0 to 1 was expected")
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r} was given, where an integer from 0 to 2**63 - 1 was expected")
    for option, value in (("validation", validation), ("test", 0 if test is None else test)):
        if not (is_integer(value) and value >= 0) and not (is_real(value) and 0 <= value < 1):
            raise ValueError(
                f"{option}={value!r} was given, where a number of rows (an integer from 0) or a fraction "
                "of them (a float in [0, 1)) was expected"
            )


def divide(
    source: Source,
    binarize: Binarize,
    threshold: float,
    validation: Any,
    test: Any,
    seed: int,
    dequantize: bool = False,
) -> Dataset:
    """Check the values, cut the source into its three parts, and binarise or dequantise each."""
    x, x_test = source.x, source.x_test
    _check_values(x, source.title, binarize, dequantize)
    if x_test is not None:
        _check_values(x_test, f"the test set of {source.title}", binarize, dequantize)
        if test is not None:
            raise ValueError(f"test={test!r} was given, but {source.title} has a test set of its own: leave test out")
    x_held = source.x_held
    if x_held is not None:
        _check_values(x_held, f"the validation set of {source.title}", binarize, dequantize)
        if validation not in (0, 0.1):
            raise ValueError(
                f"validation={validation!r} was given, but {source.title} has validation data of its own: leave it out"
            )
        validation = 0
    parts = rows_of_parts(len(x), validation, 0 if x_test is not None else test, seed, source.title)
    for_training, for_validation, for_test = parts.values()
    dynamic, bins = dequantize or binarize == "dynamic", BINS if dequantize else None

    def rule(source_part: int, fresh: bool = False) -> Rule | None:
        if fresh if dynamic else binarize == "none":
            return None
        key = noise_key(seed, source_part)
        if dequantize:
            return Dequantization(key)
        return Binarization("threshold" if binarize == "threshold" else "fixed", threshold, key)

    def part(rows: Tensor, fresh: bool = False) -> Split:
        data = _chosen(x, rows, rule(TRAIN_PART, fresh))
        others = [column[rows.to(column.device)] for column in source.columns]
        labels = None if source.labels is None else source.labels[rows.to(source.labels.device)]
        return Split(
            (data, *others), labels, dynamic=fresh and dynamic, bins=bins, rows=rows, label_names=source.label_names
        )

    def own(x: Rows, labels: Tensor | None, source_part: int) -> Split:
        data = _chosen(x, torch.arange(len(x)), rule(source_part))
        return Split((data,), labels, bins=bins, label_names=source.label_names)

    tested = part(for_test) if x_test is None else own(x_test, source.labels_test, TEST_PART)
    held_out = part(for_validation) if x_held is None else own(x_held, source.labels_held, HELD_PART)
    return Dataset(source.name, part(for_training, fresh=True), held_out, tested, binarize)


def rows_of_parts(size: int, validation: Any, test: Any, seed: int, what: str = "") -> dict[str, Tensor]:
    """Return which rows of a source are for training, validation and test, in order; `test` None is a tenth.

    Raises:
        ValueError: If no row of `what` is left for training.
    """
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    num_test = min(_count(0.1 if test is None else test, size), size)
    num_validation = min(_count(validation, size - num_test), size - num_test)
    if what and num_test + num_validation == size:
        raise ValueError(
            f"validation={validation!r} ({num_validation} rows) and test={test!r} ({num_test} rows) leave nothing to "
            f"train on of the {size} rows of {what}: lower them"
        )
    parts = order.split([num_test, num_validation, size - num_test - num_validation])
    return dict(zip(("train", "validation", "test"), (rows.sort().values for rows in reversed(parts)), strict=True))


def _chosen(x: Rows, rows: Tensor, rule: Rule | None) -> Rows:
    if not isinstance(x, Tensor):
        return LazyRows(x, rows, rule)
    chosen = to_float(x[rows.to(x.device)])
    return chosen if rule is None else rule(chosen, rows)


def _check_values(x: Rows, what: str, binarize: Binarize, dequantize: bool) -> None:
    if getattr(x, "dtype", None) == torch.uint8 or getattr(x, "is_uint8", False):
        return  # finite and in [0, 1]
    low, high, *_ = finite(x, what, partial(check_levels, what) if dequantize else None)
    if binarize != "none" and not (low >= 0 and high <= 1):
        raise ValueError(
            f"binarize={binarize!r} needs values in [0, 1], and {what} has values from {low:g} to {high:g}: "
            "scale it, or leave it as it is with binarize='none'"
        )


def _count(value: int | float, rows: int) -> int:
    """Return the number of rows for a count or a fraction of them; a fraction above 0 gives at least one."""
    if is_integer(value):
        return int(value)
    return max(1, round(float(value) * rows)) if value else 0


def drawn_as_split(whole: Split, trained: Tensor, seed: int) -> Split:
    """Return all rows of a source, each with the fixed draw that it has in its own part, if the source is drawn from.

    Args:
        whole: The rows, in the order of the source, as training data.
        trained: The numbers of those to train on, in order.
        seed: The seed of the division.
    """
    if not whole.dynamic:
        return whole
    of_training: Any = cast(LazyRows, whole.still().x).binarization
    place = torch.full((len(whole),), -1)
    place[trained] = torch.arange(len(trained))
    rule = _OfParts(of_training, replace(of_training, key=noise_key(seed, TRAIN_PART)), place)
    drawn = LazyRows(whole.x, torch.arange(len(whole)), rule)
    return replace(whole, columns=(drawn, *whole.columns[1:]), dynamic=False)


@dataclass(frozen=True, eq=False)
class _OfParts:
    """The rule of each row: training data are drawn by their place among these, others by their number."""

    training: Rule
    others: Rule
    place: Tensor  # of each row among the training data, else -1

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        own = self.place[rows]
        drawn, there = self.others(x, rows), own >= 0
        drawn[there] = self.training(x[there], own[there])
        return drawn
