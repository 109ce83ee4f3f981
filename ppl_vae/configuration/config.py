"""The configuration of a training run: from the command line and YAML to the objects that `fit` takes.

A configuration is a tree, and an option of the command line is a leaf: ``--likelihood.network.hidden '[300]'`` is

    likelihood:
      class: Bernoulli          # a short name, or the import path of your own class or function
      network:
        class: MLP
        hidden: [300]           # arguments of the constructor stand beside its name

One rule decides what overrides what: **naming a class starts from that class's own defaults; an argument without a
class changes what is there.** So ``--objective RenyiELBO`` never inherits the particles of the objective it replaces.

A network belongs to the role and not to the piece. If one piece replaces another, the old networks stay unless new ones
are named: ``--config article --likelihood Normal`` has the article's decoder. Data options are the arguments of one
function, `ppl_vae.data.load`, so ``--data MNIST`` keeps the other arguments. A file states what differs from the preset
``digits``, and the command line states what differs from the file.
"""

from __future__ import annotations

import importlib.resources
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_vae import data, training
from ppl_vae._files import read_text
from ppl_vae._machine import Budget
from ppl_vae._validation import check_positive, did_you_mean
from ppl_vae.configuration import _yaml, foreign
from ppl_vae.configuration.pieces import KINDS, NETWORK, Arguments, Kind, arguments_of
from ppl_vae.configuration.tables import with_table
from ppl_vae.networks import Shape
from ppl_vae.vae import VAE

Tree = dict[str, Any]

DEFAULT_PRESET = "digits"
DEFAULT_NETWORK = "MLP"
PIECES = ("prior", "likelihood", "posterior")
RESUMED = ("optimizer", "scheduler", "seed")  # a checkpoint brings these with it
NOT_RECORDED = ("config", "out", "resume", "checkpoint_every", "print_config")
CONFIG_LIMIT = 2**20  # bytes
FIT_OBJECTS = frozenset(
    {"program", "data", "objective", "regularizer", "optimizer", "scheduler", "callbacks", "stop", "resume"}
)
_AT_HAND = "\0networks"  # key of the networks of a replaced piece; no file can hold this name
OPTIONAL = ("regularizer", "scheduler")  # these may be null


@dataclass(frozen=True)
class Config:
    """The complete configuration of a training run: every argument is explicit, and the device is resolved.

    Attributes:
        values: The tree of plain values.
        out: The folder to write the run to; not part of the run, and not in `to_yaml`.
        resume: The checkpoint to continue from; not in `to_yaml` either.
        checkpoint_every: Seconds between checkpoints, or None for the default; not in `to_yaml` either.
        print_only: Whether to print the configuration and train nothing.
        source: The value of ``--config``, or the configuration beside `resume`; not in `to_yaml` either.
    """

    values: Tree
    out: str | None = None
    resume: str | None = None
    print_only: bool = False
    source: str | None = None
    checkpoint_every: float | None = None

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
            return cls(_resolve(_read(text, source), {}))

    def to_yaml(self) -> str:
        """Return the configuration as YAML; `from_yaml` and ``--config`` read it back unchanged."""
        return yaml.dump(self.values, Dumper=_yaml.Dumper, sort_keys=False, allow_unicode=True, width=110)

    def build_dataset(self) -> data.Dataset:
        """Load the data."""
        return data.load(**arguments_of(data.load, "data").objects(self.values["data"]))

    def build_vae(self, dataset: data.Dataset | Shape) -> VAE:
        """Build the VAE; the same seed gives the same initial parameters. Seeds torch's global generator.

        Args:
            dataset: The data, or the shape of one datum.
        """
        torch.manual_seed(self.values["seed"])
        with Budget("the widths of the networks or the number of latents"):
            return VAE(dataset, **{name: self.build(name) for name in PIECES})

    def build_fit_arguments(self) -> dict[str, Any]:
        """Return the arguments that `fit` takes besides program and data."""
        schema = arguments_of(training.fit, "", FIT_OBJECTS)
        arguments = schema.objects({name: self.values[name] for name in schema.names})
        return arguments | {name: self.build(name) for name in ("objective", "regularizer", "optimizer", "scheduler")}

    def check(self) -> None:
        """Make every piece, objective, optimiser and scheduler once, so that refusals come before any data are loaded.

        Raises:
            ValueError: If one of them refuses its arguments.
        """
        training.resolve_device(self.values["device"])
        for name in (*PIECES, "objective", "regularizer"):
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
    options = _split(argv)
    source, out, resume, every, print_only = (options.pop(name, None) for name in NOT_RECORDED)
    for option in options if resume is not None else ():
        if option.partition(".")[0] in RESUMED:
            raise ValueError(f"--{option} cannot change: the run that --resume continues keeps its own; leave it out")
    if source is None and resume is not None:
        source = str(_config_beside(resume))
    values = _resolve(_read_config(source) if source else {}, options, read_table=True)
    seconds = None if every is None else check_positive(_number(every), "--checkpoint_every")
    config = Config(values, out, resume, print_only is not None, source, seconds)
    if not config.print_only:  # to print builds nothing
        config.check()
    return config


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def presets() -> dict[str, str]:
    """Return the texts of the presets, by name."""
    folder = importlib.resources.files("ppl_vae") / "presets"
    files = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return {name: files[name].read_text(encoding="utf-8") for name in sorted(files)}


def _split(argv: Sequence[str]) -> dict[str, str]:
    """Split ``--a.b 1 --c=2`` into ``{"a.b": "1", "c": "2"}``; the last value of a repeated option counts."""
    options, rest = {}, list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"{word!r} is no option; options are --name value, and lists one value: '[300, 150]'")
        name, equals, value = word[2:].partition("=")
        if name == "print_config":
            value = "true"
        elif not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if not name or not value:
            raise ValueError(f"{word!r} has no value; expected --name VALUE")
        options[name] = value
    return options


def _config_beside(checkpoint: str) -> Path:
    """Return the path of the configuration in a run's folder, or beside a checkpoint."""
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
    if not Path(checkpoint).exists() or not (folder / "config.yaml").exists():
        raise FileNotFoundError(
            f"--resume is {checkpoint!r}; expected a run's folder or its checkpoint.pt, with its config.yaml beside it "
            "(or else give --config)"
        )
    return folder / "config.yaml"


def _read_config(name: str) -> Tree:
    texts = presets()
    if name in texts:
        return _yaml.load(texts[name], f"preset {name}")
    if not Path(name).exists() or Path(name).is_dir():
        raise ValueError(
            f"--config is {name!r}; expected a preset ({', '.join(texts)}) or a file{did_you_mean(name, texts)}"
        )
    return _read(read_text(Path(name), CONFIG_LIMIT), name)


def _read(text: str, source: str) -> Tree:
    """Read a file that may come from anybody."""
    tree = _yaml.load(text, source)
    foreign.require(searched(tree), text, source)
    return tree


def searched(tree: Tree) -> Tree:
    """Return what may name code: all of a configuration except the names of files and folders of data."""
    node = tree.get("data")
    data_options = (
        {name: v for name, v in node.items() if name not in ("name", "root")} if isinstance(node, dict) else {}
    )
    return {**tree, "data": data_options}


def _overlay(base: Tree, tree: Tree) -> Tree:
    """Lay `tree` over `base`: a node with a class replaces the old node, and a node without one changes it."""
    merged = dict(base)
    for name, node in tree.items():
        before = base.get(name)
        if isinstance(before, dict) and isinstance(node, dict) and "class" not in node:
            node = _overlay(before, node)
        elif isinstance(before, dict) and "class" in before and isinstance(node, dict | str):
            node = _exchanged(before, node)
        merged[name] = node
    return merged


def _exchanged(before: object, node: Tree | str) -> Tree:
    """Put a piece, a name or a node, in the place of another, and keep the networks of the old piece at hand."""
    node = {"class": node} if isinstance(node, str) else node
    old = before if isinstance(before, dict) else {}
    networks = {name: value for name, value in old.items() if isinstance(value, dict) and "class" in value}
    return {_AT_HAND: old.get(_AT_HAND, {}) | networks, **node}


def _resolve(tree: Tree, given: Mapping[str, str], read_table: bool = False) -> Tree:
    """Return every value of a configuration, from a file's tree and the options of a command line.

    With `read_table` a file of data that is a table is looked into, for the kinds of its columns.
    """
    options = dict(given)
    fit = arguments_of(training.fit, "", FIT_OBJECTS)
    _check_names(["data", *KINDS, *fit.names], tree, options)
    if isinstance(tree.get("data"), str):
        tree = tree | {"data": {"name": tree["data"]}}
    own = tree
    tree = _overlay(_yaml.load(presets()[DEFAULT_PRESET], f"preset {DEFAULT_PRESET}"), tree)

    values: Tree = {"data": _resolve_data(tree.pop("data"), options)}
    if read_table:
        values["data"], tree = with_table(values["data"], tree, own)
    for name, kind in KINDS.items():
        values[name] = _resolve_piece(kind, name, tree.pop(name, None), options)
        if values[name] is None and name not in OPTIONAL:
            raise ValueError(f"--{name} is null; expected one of {', '.join(kind.known)}, or an import path")
    values |= fit.complete(_take(fit, tree, options))
    if values["seed"] is None:
        raise ValueError("--seed is null; expected an integer, so that the run can be repeated")
    if values["device"] == "auto":
        values["device"] = str(training.resolve_device("auto"))
    training.resolve_compile(values["compile"])
    return values


def _check_names(known: list[str], tree: Tree, options: Mapping[str, str]) -> None:
    for name in [*map(str, tree), *(option.partition(".")[0] for option in options)]:
        if name in NOT_RECORDED:
            raise ValueError(f"--{name} belongs on the command line, once; it is no part of a configuration file")
        if name not in known:
            names = ", ".join(f"--{n}" for n in [*known, *NOT_RECORDED])
            raise ValueError(f"--{name} is unknown; options are {names}{did_you_mean(name, [*known, *NOT_RECORDED])}")


def _resolve_data(node: object, options: dict[str, str]) -> Tree:
    values = dict(node) if isinstance(node, dict) else {"name": node}
    if "data" in options:
        values["name"] = options.pop("data")
    schema = arguments_of(data.load, "data")
    return schema.complete(_take(schema, values, options))


def _resolve_piece(
    kind: Kind, path: str, node: Any, options: dict[str, str], default: str | None = None, optional: bool = True
) -> Tree | None:
    """Return a piece with every argument of its own and of its networks, or None for no piece.

    Args:
        kind: The kind of the piece.
        path: Its path in the configuration, ``"likelihood.network"``.
        node: Its node in the file.
        options: The options of the command line; those of the piece are removed.
        default: The class of a piece for which only arguments are given.
        optional: Whether there may be no piece; if not, no node means `default`.
    """
    if path in options:
        text = options.pop(path)
        node = None if text == "null" else _exchanged(node, text)
    elif isinstance(node, str):
        node = {"class": node}
    if node is None and optional and not any(option.startswith(f"{path}.") for option in options):
        return None
    if not isinstance(node, dict | None):
        raise ValueError(f"--{path} is {node!r}; expected a name, or 'class' and arguments")
    values: Tree = {"class": default} | (node or {})
    name, at_hand = values.pop("class"), values.pop(_AT_HAND, {})
    if name is None:
        raise ValueError(
            f"--{path} has arguments but no class; choose one of {', '.join(kind.known)}, or an import path"
        )

    target = kind.find(name, f"--{path}")
    schema = kind.arguments(target, path)
    resolved = {}
    for parameter, needed in schema.networks.items():
        below = f"{path}.{parameter}"
        network = values.pop(parameter, at_hand.get(parameter))
        resolved[parameter] = _resolve_piece(NETWORK, below, network, options, DEFAULT_NETWORK, optional=not needed)
    resolved |= schema.complete(_take(schema, values, options))
    return {"class": name, **{parameter: resolved[parameter] for parameter in schema.order if parameter in resolved}}


def _take(schema: Arguments, values: Tree, options: dict[str, str]) -> Tree:
    """Return the values for a schema; those of the command line take precedence, and leave `options`."""
    prefix = f"{schema.path}." if schema.path else ""
    mine = [option for option in options if option.startswith(prefix)]
    return values | {option.removeprefix(prefix): options.pop(option) for option in mine}


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
