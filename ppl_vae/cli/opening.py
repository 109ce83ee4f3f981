"""The input of a command: a run's model, and the data to use it on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppl_vae import data
from ppl_vae._files import read_text
from ppl_vae.cli.words import find_run
from ppl_vae.configuration.config import CONFIG_LIMIT, Config
from ppl_vae.configuration.pieces import arguments_of
from ppl_vae.data.arrays import CHANNELS
from ppl_vae.data.partition import rows_of_parts
from ppl_vae.runs import load_run, read_facts
from ppl_vae.training import resolve_device
from ppl_vae.vae import VAE

SplitName = Literal["train", "validation", "test", "all"]

Ids = dict[str, Any]  # labels (None where there are none), rows (numbers in the source) and splits of some rows

BATCH = 1000
OF_ONE_SET = ("validation", "test", "seed", "labels", "ids")  # of the run's own data, which mean nothing in another set
PLACES = ("root", "max_in_memory_gib")  # options that say where the data are, and not which data they are


@dataclass(frozen=True)
class OpenRun:
    """A trained run on disk.

    Attributes:
        folder: The folder of the run.
        checkpoint: The folder, or the checkpoint in it that was named.
        config: The configuration of the run.
        facts: The content of run.json.
        device: Where the model computes.
    """

    folder: Path
    checkpoint: Path
    config: Config
    facts: dict[str, Any]
    device: torch.device

    @classmethod
    def at(cls, word: str, device: str = "auto") -> OpenRun:
        """Read the run of this path or name; its model is loaded on the device at its first use.

        Raises:
            FileNotFoundError: If there is no such run, or it has no config.yaml.
            ValueError: If its configuration cannot be read, or the device cannot be used.
        """
        where = resolve_device(device)
        checkpoint = find_run(word)
        folder = checkpoint.parent if checkpoint.is_file() else checkpoint
        if not (folder / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{folder} has no config.yaml to build the model from: it was trained in Python; use vae.sample, "
                "vae.encode and vae.reconstruct there"
            )
        path = folder / "config.yaml"
        config = Config.from_yaml(read_text(path, CONFIG_LIMIT), str(path))
        return cls(folder, checkpoint, config, read_facts(folder), where)

    @cached_property
    def vae(self) -> VAE:
        """The model, in evaluation mode."""
        return load_run(self.checkpoint, device=self.device)

    @property
    def caveat(self) -> str | None:
        """The caveat that every picture made from the run must state, or None."""
        return self.facts.get("caveat")

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.facts["data"]["x_shape"])

    def under(self, label: int | None) -> VAE:
        """Return the model, or a conditional model at one label.

        Raises:
            ValueError: If a model without labels is given one, or a conditional model is given none that it has.
        """
        if self.vae.y_shape is None:
            if label is not None:
                raise ValueError(f"--label was given, and {self.folder} is no conditional model; leave it out")
            return self.vae
        if label is None or not 0 <= label < self.vae.y_shape[0]:
            raise ValueError(
                f"--label is {label}, and {self.folder} is a conditional model; expected 0 to {self.vae.y_shape[0] - 1}"
            )
        return self.vae.given(label)

    @property
    def draws_images(self) -> bool:
        """Whether the run's data can be drawn as images."""
        return len(self.x_shape) == 2 or (len(self.x_shape) == 3 and self.x_shape[0] in CHANNELS)


@dataclass(frozen=True)
class DataOptions:
    """The options ``--data`` and ``--data.ARGUMENT`` of a command line; without any, the run's own data."""

    given: dict[str, str]

    def open(self, run: OpenRun, split: SplitName | None) -> Rows:
        """Load the data, and check that they fit the run's model.

        Args:
            run: The run, whose configuration sets the options that are not given.
            split: The split; by default all rows of a file or folder that is given, else test (or another split if
                test has no rows).

        Raises:
            ValueError: If an option does not fit, or the data have another shape, lie outside the support of the
                likelihood, or have no such split.
            OSError: If the data cannot be read.
        """
        own = run.config.values["data"]
        given = {name.removeprefix("data").lstrip(".") or "name": value for name, value in self.given.items()}
        values = own | given
        other = _key(values["name"]) != _key(own["name"])
        if other:
            defaults = arguments_of(data.load, "data").complete({"name": values["name"]})
            values |= {name: defaults[name] for name in OF_ONE_SET if name not in given}
            if own["binarize"] is None and "binarize" not in given and own["name"] == "digits":
                values["binarize"] = "threshold"  # null means threshold for digits alone; keep what the model was given
        if split is None and other and _is_file(values["name"]):
            split = "all"
        schema = arguments_of(data.load, "data")
        try:
            dataset = _whole(schema.complete(values)) if split == "all" else data.load(**schema.objects(values))
        except (OSError, ValueError) as error:
            hint = "" if self.given else " (the run's own data; --data, --data.root and so on name others)"
            raise (OSError if isinstance(error, OSError) else ValueError)(f"{error}{hint}") from error
        if dataset.x_shape != run.x_shape:
            raise ValueError(
                f"--data {values['name']} has data of shape {dataset.x_shape}; expected {run.x_shape}, as {run.folder} "
                "was trained on"
            )
        as_trained = split != "all" and not given.keys() - set(PLACES)
        if as_trained and dataset.fingerprint != run.facts["data"].get("fingerprint"):
            message = f"note: {values['name']} has changed since {run.folder} was trained on it, and so may its split"
            print(message, file=sys.stderr)
        rows = _rows(dataset, split, None if other else schema.complete(values))
        if given:
            _check_support(run.vae, dataset, rows)
        return rows


@dataclass(frozen=True)
class Rows:
    """The rows that a command works on.

    Attributes:
        name: The name of the rows, ``mnist, test``.
        parts: The splits that hold the rows, one after the other.
        splits: The split of each row, for each of the parts.
        whole: Whether they are all rows of their source, training data included.
    """

    name: str
    parts: tuple[data.Split, ...]
    splits: tuple[np.ndarray, ...] = ()
    whole: bool = False

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def labels(self) -> Tensor | None:
        """The labels, (n,), or None if some rows have none."""
        labels = [part.labels for part in self.parts if part.labels is not None]
        return torch.cat(labels) if len(labels) == len(self.parts) else None

    @property
    def bins(self) -> int | None:
        """The number of levels of dequantised pixels; None for other data."""
        return self.parts[0].bins

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield all rows in order, batch by batch: (x,), or (x, y) for a conditional model."""
        for part in self.parts:
            yield from part.batches(min(BATCH, len(part)))

    def blocks(self, size: int | None = None) -> Iterator[tuple[tuple[Tensor, ...], Ids]]:
        """Yield the first `size` rows in order, batch by batch, each with what tells its rows apart."""
        left, labelled = len(self) if size is None else size, self.labels is not None
        named = labelled and all(part.label_names for part in self.parts)
        ids = _of_one_width([part.ids for part in self.parts])
        words = _of_one_width([np.array(part.label_names) for part in self.parts])
        for part, splits, own, names in zip(self.parts, self.splits, ids, words, strict=True):
            here = min(left, len(part))
            left -= here
            batches = part.batches(min(BATCH, here), order=torch.arange(here)) if here else iter(())
            start = 0
            for batch in batches:
                span = slice(start, start := start + len(batch[0]))
                rows = torch.arange(span.start, span.stop) if part.rows is None else part.rows[span]
                labels = part.labels[span] if labelled and part.labels is not None else None
                yield (
                    batch,
                    {
                        "ids": None if own is None else own[span],
                        "labels": labels,
                        "label_names": None if labels is None or not named else names[labels.cpu().numpy()],
                        "rows": rows,
                        "splits": splits[span],
                    },
                )

    def columns(self) -> tuple[Tensor, ...]:
        """Return all rows in memory, in the columns of `batches`."""
        return tuple(torch.cat(column) for column in zip(*self.batches(), strict=True))

    def at(self, index: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the rows with these numbers, in the columns of `batches`, each of shape (len(index), ...).

        Raises:
            ValueError: If a row does not exist.
        """
        found: dict[int, tuple[Tensor, ...]] = {}
        wanted, start = torch.tensor(index), 0
        for i in index:
            if not 0 <= i < len(self):
                raise ValueError(f"there is no row {i} in {self.name}; expected 0 to {len(self) - 1}")
        for part in self.parts:
            here = wanted[(wanted >= start) & (wanted < start + len(part))]
            batches = part.batches(min(BATCH, len(part)), order=here - start)
            rows = (row for batch in batches for row in zip(*batch, strict=True))
            found |= dict(zip(here.tolist(), rows, strict=True))
            start += len(part)
        return tuple(torch.stack(column) for column in zip(*(found[i] for i in index), strict=True))

    def head(self, size: int) -> tuple[Tensor, ...]:
        """Return the first `size` rows, or all if there are fewer, as `at` returns them."""
        return self.at(range(min(size, len(self))))


def _of_one_width(texts: Sequence[np.ndarray | None]) -> Sequence[Any]:
    """Return arrays of text, all of the width of the longest, or None for each if one is missing."""
    if any(text is None for text in texts):
        return [None] * len(texts)
    arrays = [np.asarray(text, dtype=str) for text in texts]
    return [array.astype(max(a.dtype for a in arrays)) for array in arrays]


def _whole(values: dict[str, Any]) -> data.Dataset:
    """Load all rows of a set in its own order: as training data, and as test data where the set has its own."""
    schema = arguments_of(data.load, "data")
    try:
        return data.load(**schema.objects(values | {"validation": 0, "test": 0}))
    except ValueError:  # a set with its own test data takes no `test`; any other error is raised again here
        return data.load(**schema.objects(values | {"validation": 0, "test": None}))


def _rows(dataset: data.Dataset, split: SplitName | None, own: dict[str, Any] | None) -> Rows:
    """Return the rows to work on; `own` are the data options if the data are the run's own, so that it trained on some.

    The source of a test set of its own numbers its rows from 0 too.
    """
    if split == "all":
        parts = tuple(part.still() for part in (dataset.train, dataset.test) if len(part))
        splits = [np.full(len(part), "all") for part in parts]
        if own is not None:
            has_test = len(parts) > 1
            of_parts = rows_of_parts(len(parts[0]), own["validation"], 0 if has_test else own["test"], own["seed"])
            splits[0] = np.full(len(parts[0]), "validation")  # the longest name
            for name, numbers in of_parts.items():
                splits[0][numbers.numpy()] = name
            splits[1:] = [np.full(len(part), "test", splits[0].dtype) for part in parts[1:]]
        return Rows(f"{dataset.name}, all", parts, tuple(splits), whole=True)
    there = [name for name in ("test", "validation", "train") if len(getattr(dataset, name))]
    name = there[0] if split is None else split
    if name not in there:
        raise ValueError(f"--split is {split}, of which {dataset.name} has no rows; expected {', '.join(there)} or all")
    part = getattr(dataset, name).still()
    return Rows(f"{dataset.name}, {name}", (part,), (np.full(len(part), name),))


def _key(name: str) -> str:
    """Return the name of a built-in set as `ppl_vae.data.load` compares it."""
    return re.sub(r"[-_\s]", "", name.lower())


def _is_file(name: str) -> bool:
    """Return whether a name means the user's own file or folder, and no built-in set."""
    built_in = {_key(known) for known in data.names()}
    return _key(name) not in built_in and not _key(name).startswith("emnist") and Path(name).expanduser().exists()


def _check_support(vae: VAE, dataset: data.Dataset, rows: Rows) -> None:
    for part in rows.parts:
        try:
            vae.check_support(data.Dataset(dataset.name, part, part.head(0), part.head(0)))
        except ValueError as error:
            message = str(error).partition(";")[0]
            raise ValueError(
                f"{message}, for which the run was trained; scale them to the data of the run, or make them 0 or 1 "
                "with --data.binarize threshold"
            ) from error
