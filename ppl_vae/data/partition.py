"""A source, and its division into three parts, each binarised or dequantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

_NOISE = {"train": 0, "test": 1, "validation": 3}  # each part that a source brings has fixed draws of its own
_OF_ITS_OWN = {  # parts that a source may bring beside its rows: in words, and the sizes that leave them as they are
    "test": ("a test set", (None,)),
    "validation": ("validation data", (0, 0.1)),
}


@dataclass(frozen=True, eq=False)
class Source:
    """Rows, channels first: a uint8 or float32 tensor, or float32 rows that are read when they are used."""

    name: str
    x: Rows
    labels: Tensor | None = None
    columns: tuple[Tensor, ...] = ()  # other columns that programs take
    own: Mapping[str, tuple[Rows, Tensor | None]] = field(default_factory=dict)  # x and labels of a part of its own
    binarize: Binarize = "none"  # the default, if the user does not choose
    file: str | None = None  # the file that it was read from
    label_names: tuple[str, ...] = ()  # the words behind the labels

    @property
    def title(self) -> str:
        """The name of the source in errors."""
        return self.file or self.name


@dataclass(frozen=True)
class Division:
    """How a source is cut into three parts and drawn from, as `load` explains.

    Raises:
        ValueError: For an option that is wrong for every source, before one is read or downloaded.
    """

    validation: Any
    test: Any
    seed: Any
    binarize: Any = None
    threshold: Any = 0.5
    dequantize: Any = False

    def __post_init__(self) -> None:
        modes, binarize = get_args(Binarize), self.binarize
        if binarize is not None and binarize not in modes:
            hint = did_you_mean(binarize, modes)
            raise ValueError(f"binarize={binarize!r} is unknown{hint}: give one of {', '.join(modes)}")
        if not isinstance(self.dequantize, bool):
            raise ValueError(f"dequantize={self.dequantize!r} was given, where True or False was expected")
        if self.dequantize and binarize not in (None, "none"):
            raise ValueError(
                f"dequantize=True and binarize={binarize!r} were given, and pixels cannot be both: choose one of them"
            )
        if not is_real(self.threshold) or not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold!r} was given, where a number from 0 to 1 was expected")
        if not is_integer(self.seed) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r} was given, where an integer from 0 to 2**63 - 1 was expected")
        for option, value in (("validation", self.validation), ("test", 0 if self.test is None else self.test)):
            if not (is_integer(value) and value >= 0) and not (is_real(value) and 0 <= value < 1):
                raise ValueError(
                    f"{option}={value!r} was given, where a number of rows (an integer from 0) or a fraction "
                    "of them (a float in [0, 1)) was expected"
                )

    def rows(self, size: int, what: str) -> dict[str, Tensor]:
        """Return which of so many rows of a source are in each part; see `rows_of_parts`."""
        return rows_of_parts(size, self.validation, self.test, int(self.seed), what)


def divide(source: Source, division: Division) -> Dataset:
    """Check the values, cut the source into its three parts, and binarise or dequantise each."""
    seed, dequantize = int(division.seed), division.dequantize
    binarize = division.binarize or ("none" if dequantize else source.binarize)
    _check_values(source.x, source.title, binarize, dequantize)
    for name, (x, _) in source.own.items():
        _check_values(x, f"the {name} set of {source.title}", binarize, dequantize)
        words, unset = _OF_ITS_OWN[name]
        if (given := getattr(division, name)) not in unset:
            raise ValueError(f"{name}={given!r} was given, but {source.title} has {words} of its own: leave {name} out")
    rows_of = replace(division, **dict.fromkeys(source.own, 0)).rows(len(source.x), source.title)

    def rule(key: int) -> Rule | None:
        if dequantize:
            return Dequantization(key)
        if binarize == "none":
            return None
        return Binarization("threshold" if binarize == "threshold" else "fixed", float(division.threshold), key)

    def part(name: str) -> Split:
        own = name in source.own
        x, labels = source.own[name] if own else (source.x, source.labels)
        rows = torch.arange(len(x)) if own else rows_of[name]
        fresh = name == "train" and (dequantize or binarize == "dynamic")
        noise = _NOISE[name] if own else _NOISE["train"]  # parts of the same rows have draws by the rows' numbers
        data = _chosen(x, rows, None if fresh else rule(noise_key(seed, noise)))
        others = () if own else (column[rows.to(column.device)] for column in source.columns)
        return Split(
            (data, *others),
            None if labels is None else labels[rows.to(labels.device)],
            dynamic=fresh,
            bins=BINS if dequantize else None,
            rows=None if own else rows,
            label_names=source.label_names,
        )

    return Dataset(source.name, part("train"), part("validation"), part("test"), binarize)


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
    rule = _OfParts(of_training, replace(of_training, key=noise_key(seed, _NOISE["train"])), place)
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
