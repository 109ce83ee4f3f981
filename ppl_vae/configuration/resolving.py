"""From the command line and YAML to every value of a configuration. Imports no torch.

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

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppl_vae._files import is_table
from ppl_vae._validation import check_positive, did_you_mean
from ppl_vae.configuration import _yaml, meaning
from ppl_vae.configuration.kinds import Arguments, Choices, Kind, OptionError, arguments_of
from ppl_vae.configuration.sources import Tree, config_beside, presets, read_config
from ppl_vae.configuration.words import number, split

DEFAULT_PRESET = "digits"
DEFAULT_NETWORK = "MLP"
PIECES = ("prior", "likelihood", "posterior")
CHECKPOINT_EVERY = 30.0  # seconds
RESUMED = ("optimizer", "scheduler", "seed")  # a checkpoint brings these with it
NOT_RECORDED = ("config", "out", "resume", "checkpoint_every", "print_config")
FIT_OBJECTS = frozenset(
    {"program", "data", "objective", "regularizer", "optimizer", "scheduler", "callbacks", "stop", "resume"}
)
# (the data's values, the tree, the file's own) -> values and tree with what the data say; `tables.with_table`
Look = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
_AT_HAND = "\0networks"  # key of the networks of a replaced piece; no file can hold this name
OPTIONAL = ("classifier", "regularizer", "scheduler")  # these may be null
FEW_LABELS = {"classifier": DEFAULT_NETWORK, "objective": "EnumeratedELBO", "regularizer": "LabelLikelihood"}


@dataclass(frozen=True)
class Asked:
    """What a command line asks for, with every argument explicit.

    Attributes:
        values: The tree of plain values.
        out: The folder to write the run to; not part of the run, and not in `Config.to_yaml`.
        resume: The checkpoint to continue from; not in the YAML either.
        print_only: Whether to print the configuration and train nothing.
        source: The value of ``--config``, or the configuration beside `resume`; not in the YAML either.
        checkpoint_every: Seconds between checkpoints; not in the YAML either.
        taken: The options that do not exist, each with the one that it was taken for.
    """

    values: Tree
    out: str | None = None
    resume: str | None = None
    print_only: bool = False
    source: str | None = None
    checkpoint_every: float = CHECKPOINT_EVERY
    taken: Mapping[str, str] = field(default_factory=dict)


def read(argv: Sequence[str], choices: Choices, look: Look | None = None) -> Asked:
    """Return what a command line of ``ppl-vae train`` asks for.

    Args:
        argv: The words after the command.
        choices: All that may be chosen.
        look: What looks into data that say more than their options do, tables.

    Raises:
        ValueError: If an option, a name or a value does not fit; the message names it in one line.
        OSError: If the file of ``--config`` cannot be read.
    """
    given = split(argv, flags=("print_config",))
    if given.runs:
        raise ValueError(f"{given.runs[0]!r} is no option; options are --name value, and lists one value: '[300, 150]'")
    options = given.options
    source, out, resume, every, print_only = (options.pop(name, None) for name in NOT_RECORDED)
    for option in options if resume is not None else ():
        if option.partition(".")[0] in RESUMED:
            raise ValueError(f"--{option} cannot change: the run that --resume continues keeps its own; leave it out")
    if source is None and resume is not None:
        source = str(config_beside(resume))
    values, taken = resolve(read_config(source) if source else {}, options, choices, look)
    seconds = CHECKPOINT_EVERY if every is None else check_positive(number(every), "--checkpoint_every")
    return Asked(values, out, resume, print_only is not None, source, seconds, taken)


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


def resolve(
    tree: Tree, given: Mapping[str, str], choices: Choices, look: Look | None = None
) -> tuple[Tree, dict[str, str]]:
    """Return every value of a configuration, from a file's tree and the options of a command line.

    Returns:
        The values, and the options that do not exist, each with the one that it was taken for.

    Raises:
        ValueError: If a name or a value does not fit.
    """
    options, unknown, messages = dict(given), dict[str, str](), dict[str, str]()
    values = None
    while values is None:
        try:
            values = _resolve(tree, options, choices, look)
        except OptionError as error:
            near = [option for option in unknown if error.missing and meaning.fits(option, error.option)]
            if near:
                options[error.option] = unknown[near[0]]
            elif error.missing or error.option not in options:
                raise
            else:
                unknown[error.option], messages[error.option] = options.pop(error.option), str(error)
    if not unknown:
        return values, {}
    names = [name for name, _ in leaves(values)] + list(NOT_RECORDED)
    taken = meaning.place(messages, names, given, lambda option: _having(option, choices))
    meant = {name: value for name, value in given.items() if name not in unknown}
    meant |= {taken[name]: value for name, value in unknown.items()}
    return _resolve(tree, meant, choices, look), taken


def leaves(tree: Tree, prefix: str = "") -> list[tuple[str, Any]]:
    """Return every value with its dotted name; a class has the name of its piece, and the data's name that of data."""
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{name}.")
        else:
            of_node = name == "class" or prefix + name == "data.name"
            found.append((prefix.rstrip(".") if of_node else prefix + name, value))
    return found


def _having(option: str, choices: Choices) -> list[str]:
    """Return the choices of an option's kind, or of any kind, that have its argument."""
    root, _, argument = option.rpartition(".")
    return [
        f"--{kind} {name}"
        for kind, choice in choices.kinds.items()
        for name, target in choice.known.items()
        if root in ("", kind) and argument in inspect.signature(target).parameters
    ]


def _resolve(tree: Tree, given: Mapping[str, str], choices: Choices, look: Look | None) -> Tree:
    options = dict(given)
    fit = arguments_of(choices.fit, "", FIT_OBJECTS)
    _check_names(["data", *choices.kinds, *fit.names], tree, options)
    if isinstance(tree.get("data"), str):
        tree = tree | {"data": {"name": tree["data"]}}
    own = tree
    tree = _overlay(_yaml.load(presets()[DEFAULT_PRESET], f"preset {DEFAULT_PRESET}"), tree)

    values: Tree = {"data": _resolve_data(tree.pop("data"), options, choices)}
    if look is not None:
        values["data"], tree = look(values["data"], tree, own)
    few = isinstance(values["data"]["labels"], int) and not is_table(values["data"]["name"])
    if few:  # semi-supervised, unless the file or the command line says otherwise
        tree |= {name: {"class": default} for name, default in FEW_LABELS.items() if name not in own}
    for name, kind in choices.kinds.items():
        values[name] = _resolve_piece(kind, name, tree.pop(name, None), options, choices)
        if values[name] is None and name not in OPTIONAL:
            raise ValueError(f"--{name} is null; expected one of {', '.join(kind.known)}, or an import path")
    if few != (values["classifier"] is not None):
        fix = "--classifier is null, and few labels are kept (--data.labels); expected a network such as MLP"
        raise ValueError(fix if few else "--classifier is given without --data.labels, the number of labels to keep")
    values |= fit.complete(_take(fit, tree, options))
    if values["seed"] is None:
        raise ValueError("--seed is null; expected an integer, so that the run can be repeated")
    return values


def _check_names(known: list[str], tree: Tree, options: Mapping[str, str]) -> None:
    for name in map(str, tree):
        if name in NOT_RECORDED:
            raise ValueError(f"--{name} belongs on the command line, once; it is no part of a configuration file")
        if name not in known:
            names = ", ".join(f"--{n}" for n in known)
            raise ValueError(f"--{name} is unknown; options are {names}{did_you_mean(name, known)}")
    for option in options:
        if option.partition(".")[0] in NOT_RECORDED:
            raise ValueError(f"--{option} is unknown; --{option.partition('.')[0]} has no arguments")
        if option.partition(".")[0] not in known:
            names = ", ".join(f"--{name}" for name in [*known, *NOT_RECORDED])
            raise OptionError(f"--{option} is unknown; options are {names}", option)


def _resolve_data(node: object, options: dict[str, str], choices: Choices) -> Tree:
    values = dict(node) if isinstance(node, dict) else {"name": node}
    if "data" in options:
        values["name"] = options.pop("data")
    schema = arguments_of(choices.load, "data")
    return schema.complete(_take(schema, values, options))


def _resolve_piece(
    kind: Kind,
    path: str,
    node: Any,
    options: dict[str, str],
    choices: Choices,
    default: str | None = None,
    optional: bool = True,
) -> Tree | None:
    """Return a piece with every argument of its own and of its networks, or None for no piece.

    Args:
        kind: The kind of the piece.
        path: Its path in the configuration, ``"likelihood.network"``.
        node: Its node in the file.
        options: The options of the command line; those of the piece are removed.
        choices: All that may be chosen.
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
        resolved[parameter] = _resolve_piece(
            choices.network, below, network, options, choices, DEFAULT_NETWORK, optional=not needed
        )
    resolved |= schema.complete(_take(schema, values, options))
    return {"class": name, **{parameter: resolved[parameter] for parameter in schema.order if parameter in resolved}}


def _take(schema: Arguments, values: Tree, options: dict[str, str]) -> Tree:
    """Return the values for a schema; those of the command line take precedence, and leave `options`."""
    prefix = f"{schema.path}." if schema.path else ""
    mine = [option for option in options if option.startswith(prefix)]
    return values | {option.removeprefix(prefix): options.pop(option) for option in mine}
