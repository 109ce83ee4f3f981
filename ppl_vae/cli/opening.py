"""The input of a command: a run's model, and the data to use it on."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ppl_vae import data
from ppl_vae._files import read_text
from ppl_vae.cli.rows import Rows
from ppl_vae.cli.telling import note
from ppl_vae.cli.words import find_run
from ppl_vae.configuration.config import CONFIG_LIMIT, Config
from ppl_vae.configuration.pieces import arguments_of
from ppl_vae.data.conditions import recoded
from ppl_vae.data.loading import key_of
from ppl_vae.data.partition import drawn_as_split, rows_of_parts
from ppl_vae.plots.figure import about
from ppl_vae.runs.reading import model_of, read_facts
from ppl_vae.training import resolve_device
from ppl_vae.vae import VAE

SplitName = Literal["train", "validation", "test", "all"]

OF_ONE_SET = ("validation", "test", "seed", "labels", "ids")  # of the run's own data, which mean nothing in another set
PLACES = ("root", "max_in_memory_gib", "workers")  # options that say how the data are read, and not which data


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
        return model_of(self.config, self.facts["data"], self.checkpoint).to(self.device)

    @property
    def caveat(self) -> str | None:
        """The caveat that every picture made from the run must state, or None."""
        return self.facts.get("caveat")

    @property
    def checkpoint_name(self) -> str | None:
        """The name of the checkpoint, or None where the run's folder was named."""
        return None if self.checkpoint == self.folder else self.checkpoint.name

    def foot(self, rows: Rows | None = None, *notes: str | None) -> str | None:
        """Return the foot of a picture: the run, the rows or else the run's data set, the caveat, and notes."""
        of = ", ".join(filter(None, (self.folder.absolute().name, self.checkpoint_name)))
        return about(of, self.facts["data"]["name"] if rows is None else rows.name, self.caveat, *notes)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.facts["data"]["x_shape"])

    def under(self, label: int | None) -> VAE:
        """Return the model, or a conditional model at one label.

        Raises:
            ValueError: If a model without labels is given one, or a conditional model is given none that it has, or
                has library sizes among its conditions.
        """
        if self.vae.y_shape is None:
            if label is not None:
                raise ValueError(f"--label was given, and {self.folder} is no conditional model; leave it out")
            return self.vae
        self.check_labels_suffice()
        if label is None or not 0 <= label < self.vae.y_shape[0]:
            raise ValueError(
                f"--label is {label}, and {self.folder} is a conditional model; expected 0 to {self.vae.y_shape[0] - 1}"
            )
        return self.vae.given(label)

    def check_labels_suffice(self) -> None:
        """Refuse a conditional model whose conditions are more than labels.

        Raises:
            ValueError: If they hold the library size of each datum.
        """
        if self.config.values["data"]["library"]:
            raise ValueError(
                f"{self.folder} was trained with the library size of each datum as condition, and here a label alone "
                "can be given; in Python, pass conditions as data.load gives them: vae.sample(y=y), vae.encode(x, y)"
            )


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
        other = not _same(values["name"], own["name"])
        if other:
            defaults = arguments_of(data.load, "data").complete({"name": values["name"]})
            values |= {name: defaults[name] for name in OF_ONE_SET if name not in given}
            if own["binarize"] is None and "binarize" not in given and key_of(own["name"]) == "digits":
                values["binarize"] = "threshold"  # null means threshold for digits alone; keep what the model was given
        if split is None and other and _is_file(values["name"]):
            split = "all"
        if split == "all" and run.config.values["classifier"] is not None:  # few labels: their rows are there once
            values |= {"labels": None, "conditional": values["labels"] is not None}
        schema = arguments_of(data.load, "data")
        try:
            dataset = _whole(schema.complete(values)) if split == "all" else data.load(**schema.objects(values))
        except (OSError, ValueError) as error:
            hint = "" if self.given else " (the run's own data; --data, --data.root and so on name others)"
            raise (OSError if isinstance(error, OSError) else ValueError)(f"{error}{hint}") from error
        if values["conditional"]:
            dataset = _coded_as_in(run, dataset, other)
        if dataset.x_shape != run.x_shape:
            raise ValueError(
                f"--data {values['name']} has data of shape {dataset.x_shape}; expected {run.x_shape}, as {run.folder} "
                "was trained on"
            )
        as_trained = split != "all" and not given.keys() - set(PLACES)
        rows = _rows(dataset, split, None if other else schema.complete(values))
        if as_trained and dataset.fingerprint != run.facts["data"].get("fingerprint"):
            change = f"{values['name']} has changed since {run.folder} was trained on it, and so may its split"
            note(change)
            rows = replace(rows, note=change)
        if given:
            _check_support(run.vae, dataset, rows)
        return rows


def _coded_as_in(run: OpenRun, dataset: data.Dataset, other: bool) -> data.Dataset:
    """Return labelled data whose conditions mean what they meant in training."""
    conditions = run.facts["data"].get("conditions")
    if not conditions:
        if other:
            note(f"{run.folder} does not tell its labels: those of {dataset.name} are coded in their own order")
        return dataset
    names = ("train", "validation", "test")
    parts: dict[str, Any] = {name: recoded(getattr(dataset, name), conditions) for name in names}
    return replace(dataset, **parts)


def _whole(values: dict[str, Any]) -> data.Dataset:
    """Load all rows of a set in its own order: as training data, beside validation and test data of the set's own."""
    schema = arguments_of(data.load, "data")
    try:
        return data.load(**schema.objects(values | {"validation": 0, "test": 0}))
    except ValueError:  # a set with its own test data takes no `test`; any other error is raised again here
        return data.load(**schema.objects(values | {"validation": 0, "test": None}))


def _rows(dataset: data.Dataset, split: SplitName | None, own: dict[str, Any] | None) -> Rows:
    """Return the rows to work on; `own` are the data options if the data are the run's own, so that it trained on some.

    The sources of validation and test data of their own number their rows from 0 too.
    """
    if split == "all":
        parts = {name: part for name in ("train", "validation", "test") if len(part := getattr(dataset, name))}
        splits = [np.full(len(part), "all" if own is None else name, "<U10") for name, part in parts.items()]
        if own is not None:
            held, tested = (0 if name in parts else own[name] for name in ("validation", "test"))  # 0: of its own
            numbers = rows_of_parts(len(dataset.train), held, tested, own["seed"])
            for name, rows in numbers.items():
                splits[0][rows.numpy()] = name
            parts["train"] = drawn_as_split(dataset.train, numbers["train"], own["seed"])
        still = tuple(part.still() for part in parts.values())
        return Rows(f"{dataset.name}, all", still, tuple(splits), whole=True)
    return Rows.of(dataset, choose_split(dataset, split, " or all"))


def choose_split(dataset: data.Dataset, split: SplitName | None, also: str = "") -> str:
    """Return the name of a split, by default test (or another split if test has no rows).

    Raises:
        ValueError: If the split has no rows; the message names those that have, and `also`.
    """
    there = [name for name in ("test", "validation", "train") if len(getattr(dataset, name))]
    name = there[0] if split is None else split
    if name not in there:
        raise ValueError(f"--split is {split}, of which {dataset.name} has no rows; expected {', '.join(there)}{also}")
    return name


def _same(name: str, other: str) -> bool:
    """Return whether two names mean the same built-in set, file or folder."""
    if not (_is_file(name) or _is_file(other)):
        return key_of(name) == key_of(other)
    return os.path.realpath(os.path.expanduser(name)) == os.path.realpath(os.path.expanduser(other))


def _is_file(name: str) -> bool:
    """Return whether a name means the user's own file or folder, and no built-in set."""
    built_in = {key_of(known) for known in data.names()}
    return key_of(name) not in built_in and not key_of(name).startswith("emnist") and Path(name).expanduser().exists()


def _check_support(vae: VAE, dataset: data.Dataset, rows: Rows) -> None:
    for part in rows.parts:
        try:
            vae.check_support(data.Dataset.of(dataset.name, part))
        except ValueError as error:
            message = str(error).partition(";")[0]
            raise ValueError(
                f"{message}, for which the run was trained; scale them to the data of the run, or make them 0 or 1 "
                "with --data.binarize threshold"
            ) from error
