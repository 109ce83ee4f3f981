"""The configuration of a training run, as the objects that `fit` takes; `resolving` says what overrides what."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_vae import data, training
from ppl_vae._machine import Budget
from ppl_vae._validation import check_seed
from ppl_vae.configuration import _yaml, foreign
from ppl_vae.configuration.kinds import Kind, arguments_of
from ppl_vae.configuration.pieces import CHOICES, KINDS, NETWORK
from ppl_vae.configuration.resolving import FIT_OBJECTS, NOT_RECORDED, PIECES, Asked, read, resolve
from ppl_vae.configuration.sources import CONFIG_LIMIT, Tree, presets, read_file, searched
from ppl_vae.configuration.tables import with_table
from ppl_vae.networks import Shape
from ppl_vae.programs import SemiSupervisedVAE
from ppl_vae.vae import VAE

__all__ = ["CONFIG_LIMIT", "FIT_OBJECTS", "NOT_RECORDED", "PIECES", "Config", "parse", "presets"]


@dataclass(frozen=True)
class Config(Asked):
    """The complete configuration of a training run: every argument is explicit, and the device is resolved."""

    @property
    def name(self) -> str:
        """The name of the run: that of the file or preset of ``--config``, or else that of the data."""
        stem = Path(self.source or "config").stem
        return stem if stem != "config" else Path(os.path.realpath(self.values["data"]["name"])).stem or "data"

    @classmethod
    def from_yaml(cls, text: str, source: str = "the configuration", *, trust: bool = False) -> Config:
        """Read a configuration; values that it leaves out come from the preset ``digits``.

        Args:
            text: The YAML.
            source: Where it comes from, for messages.
            trust: Whether to import and run what it names from outside of this package, torch.nn, torch.optim and Pyro.

        Raises:
            ValueError: If it is not valid YAML, names or values do not fit, or it names foreign code that nobody
                trusts (see `ppl_vae.configuration.foreign`).
        """
        with foreign.answering(lambda *_: True) if trust else nullcontext():
            return cls(_settled(resolve(read_file(text, source), {}, CHOICES)[0]))

    def to_yaml(self) -> str:
        """Return the configuration as YAML; `from_yaml` and ``--config`` read it back unchanged."""
        return yaml.dump(self.values, Dumper=_yaml.Dumper, sort_keys=False, allow_unicode=True, width=110)

    def remember(self) -> None:
        """Remember that the user trusts the foreign names of this configuration, if it has any."""
        if found := foreign.names(searched(self.values)):
            foreign.remember(self.to_yaml(), found)

    def build_dataset(self) -> data.Dataset:
        """Load the data."""
        return data.load(**arguments_of(data.load, "data").objects(self.values["data"]))

    def build_vae(self, dataset: data.Dataset | Shape) -> VAE:
        """Build the VAE; the same seed gives the same initial parameters. Seeds torch's global generator.

        Args:
            dataset: The data, or the shape of one datum.
        """
        torch.manual_seed(check_seed(self.values["seed"]))
        with Budget("the widths of the networks or the number of latents"):
            pieces = {name: self.build(name) for name in PIECES}
            if self.values["classifier"] is None:
                return VAE(dataset, **pieces)
            return SemiSupervisedVAE(dataset, classifier=self.build("classifier"), **pieces)

    def build_fit_arguments(self) -> dict[str, Any]:
        """Return the arguments that `fit` takes besides program and data."""
        schema = arguments_of(training.fit, "", FIT_OBJECTS)
        arguments = schema.objects({name: self.values[name] for name in schema.names})
        return arguments | {name: self.build(name) for name in ("objective", "regularizer", "optimizer", "scheduler")}

    def build_fit_arguments_for(self, dataset: data.Dataset) -> dict[str, Any]:
        """Return the arguments of `fit` with the level of compilation for these data, which the values then say too."""
        arguments = self.build_fit_arguments()
        choice = {name: arguments[name] for name in ("compile", "objective", "epochs", "batch_size", "device")}
        arguments["compile"] = self.values["compile"] = training.resolve_compile(data=dataset, **choice)
        return arguments

    def check(self) -> None:
        """Make every piece, objective, optimiser and scheduler once, so that refusals come before any data are loaded.

        Raises:
            ValueError: If one of them refuses its arguments.
        """
        training.resolve_device(self.values["device"])
        for name in (*PIECES, "classifier", "objective", "regularizer"):
            self.build(name)
        with _naming("optimizer", self.values["optimizer"]["class"]):
            parameter = torch.nn.Parameter(torch.zeros(1))
            parameter.grad = torch.zeros(1)
            optimizer = self.build("optimizer")([parameter])
            optimizer.step()  # differentiable=True fails here
        if self.values["scheduler"] is not None:
            with _naming("scheduler", self.values["scheduler"]["class"]):
                scheduler = self.build("scheduler")(optimizer)
                optimizer.step()
                scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))  # step_size=0 fails here
                scheduler.state_dict()  # LambdaLR cannot save a function that is not written in Python
        for name in ("optimizer", "scheduler"):
            for argument, value in (self.values[name] or {}).items():
                if isinstance(value, float) and math.isnan(value):  # some of torch's classes accept it
                    raise ValueError(f"--{name}.{argument} is nan; expected a number")

    def build(self, name: str) -> Any:
        """Make the piece, objective, optimiser or scheduler of this name; None if the configuration has none."""
        return _build(KINDS[name], name, self.values[name])


def parse(argv: Sequence[str]) -> Config:
    """Return the configuration of a command line, with every value checked.

    Raises:
        ValueError: If an option, a name or a value does not fit; the message names it in one line.
        OSError: If the file of ``--config`` cannot be read.
    """
    asked = read(argv, CHOICES, with_table)
    config = Config(**vars(asked) | {"values": _settled(asked.values)})
    if not config.print_only:  # to print builds nothing
        config.check()
    return config


def _settled(values: Tree) -> Tree:
    """Return the values with the device that auto means here, and a way to run the steps that exists."""
    if values["device"] == "auto":
        values["device"] = str(training.resolve_device("auto"))
    training.resolve_compile(values["compile"])
    return values


def _build(kind: Kind, path: str, node: Tree | None) -> Any:
    """Make the object that a resolved piece describes."""
    if node is None:
        return None
    values = dict(node)
    name = values.pop("class")
    target = kind.find(name, f"--{path}")
    schema = kind.arguments(target, path)
    networks = {
        parameter: _build(NETWORK, f"{path}.{parameter}", values.pop(parameter)) for parameter in schema.networks
    }
    given = {parameter: network for parameter, network in networks.items() if network is not None}
    with _naming(path, name):
        return kind.make(target, schema.objects(values) | given)


@contextmanager
def _naming(path: str, name: str) -> Iterator[None]:
    """Turn an error of a constructor into one line that names the option behind it."""
    try:
        yield
    except (Exception, SystemExit) as error:  # whatever a class of the user's does
        message = re.sub(rf"^({re.escape(path)} )?{re.escape(name)}: ", "", str(error)) or type(error).__name__
        raise ValueError(f"--{path} {name}: {message}") from error
