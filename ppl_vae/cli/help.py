"""The texts of ``ppl-vae train --help`` and ``--likelihood.help Bernoulli``, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, Action
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ppl_vae.cli.prose import fit, plain
from ppl_vae.configuration.kinds import Choices, Kind, Target, arguments_of
from ppl_vae.configuration.resolving import CHECKPOINT_EVERY, DEFAULT_PRESET, FIT_OBJECTS, leaves, read
from ppl_vae.configuration.sources import Tree, presets

USAGE = "ppl-vae train [--config PRESET|FILE] [--OPTION VALUE ...]"
DESCRIPTION = """\
Train a VAE, and write its figures, pictures and checkpoint to a folder.

A piece is chosen by its class name or by the import path of your own class or factory, and its arguments follow its
option: --likelihood Bernoulli --likelihood.network.hidden '[300, 150]'. Naming a class starts from that class's own
defaults; an argument without a class changes what the configuration has. In YAML an option's dots are its levels, and
the name of a class is the key 'class'; --print_config shows it.
"""
EPILOG = """\
--prior.help lists what can be chosen there; --likelihood.help Bernoulli and --likelihood.network.help MLP explain one
choice. Likewise --posterior.help, --objective.help, --optimizer.help and --scheduler.help.
"""


def wanted(argv: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return any(word in ("-h", "--help") or word.partition("=")[0].endswith(".help") for word in argv)


def text(argv: Sequence[str], choices: Choices) -> str:
    """Return the help that a command line asks for; the rest of the command line sets the defaults.

    Raises:
        ValueError: If it asks for help on something unknown.
    """
    for i, word in enumerate(argv):
        option, _, name = word.partition("=")
        if option.endswith(".help"):
            name = name or next(iter(argv[i + 1 : i + 2]), "")
            return _piece(option.removesuffix(".help").removeprefix("--"), name, choices)
    return _everything(read([word for word in argv if word not in ("-h", "--help")], choices).values, choices)


def _piece(path: str, name: str, choices: Choices) -> str:
    """Return the help on one class, or the list of classes."""
    kinds = choices.kinds
    kind = kinds.get(path) or (choices.network if path.rpartition(".")[0] in kinds else None)
    if kind is None:
        raise ValueError(f"--{path}.help is unknown; expected one of {', '.join(f'--{k}.help' for k in kinds)}")
    if not name or name.startswith("-"):
        summaries = {known: summary(target) for known, target in kind.known.items()}
        lines = [f"  {known:30} {summary}" for known, summary in summaries.items()]
        text = "\n".join([f"--{path} is one of", "", *lines, "", "or an import path such as mymodule.MyClass."])
        return fit(text)
    target = kind.find(name, f"--{path}")
    parser = make_parser(f"ppl-vae train --{path} {name} [--{path}.ARGUMENT VALUE ...]", _description(target))
    group = parser.add_argument_group("arguments")
    schema = kind.arguments(target, path)
    for network in schema.networks:
        group.add_argument(f"--{path}.{network}", metavar="CLASS", help=_choices(choices.network))
    schema.add_to(group, path)
    return parser.format_help()


def _everything(values: Tree, choices: Choices) -> str:
    parser = make_parser(USAGE, DESCRIPTION, EPILOG, _Brief)
    group = parser.add_argument_group("the run")
    for option, metavar, meaning in (
        ("config", "PRESET|FILE", f"A preset ({', '.join(presets())}), or a YAML file; {DEFAULT_PRESET} by default."),
        ("print_config", None, "Print the configuration, every value explicit, and end."),
        ("out", "FOLDER", "Where the run goes; by default runs/NAME, or the first of NAME-2, ... that is free."),
        ("resume", "FOLDER", "Continue the run of this folder (with its configuration and data) in a new one."),
        ("checkpoint_every", "SECONDS", f"Seconds between checkpoints; {CHECKPOINT_EVERY:g} by default."),
        ("trust", None, "Import and run what the configuration names from outside ppl_vae, torch and Pyro."),
    ):
        kind_of_value: dict[str, Any] = {"action": "store_true"} if metavar is None else {"metavar": metavar}
        group.add_argument(f"--{option}", help=meaning, default=SUPPRESS, **kind_of_value)
    group = parser.add_argument_group("data")
    arguments_of(choices.load, "data").add_to(group, "data")
    for name, kind in choices.kinds.items():
        _describe(parser, kind, name, values[name], choices)
    arguments_of(choices.fit, "", FIT_OBJECTS).add_to(parser.add_argument_group("training"))
    known = {action.dest for action in parser._actions}
    defaults = dict(leaves(values)) | {"data.name": values["data"]["name"]}
    parser.set_defaults({key: value for key, value in defaults.items() if key in known})
    return parser.format_help().replace("--data.name NAME", "--data NAME     ")


def _describe(parser: ArgumentParser, kind: Kind, path: str, node: Tree | None, choices: Choices) -> None:
    """Add a piece's option and arguments and those of its networks to the parser, one group each."""
    name = None if node is None else node["class"]
    group = parser.add_argument_group(path if name is None else f"{path}: {name}")
    group.add_argument(f"--{path}", metavar="CLASS", default=name, help=_choices(kind))
    if node is None:
        return
    schema = kind.arguments(kind.find(name, f"--{path}"), path)
    schema.add_to(group, path)
    for network in schema.networks:
        _describe(parser, choices.network, f"{path}.{network}", node[network], choices)


def _choices(kind: Kind) -> str:
    return f"One of {', '.join(kind.known)}, or an import path."


def summary(target: Target) -> str:
    """Return the first sentence of a docstring."""
    paragraph = plain(" ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split()))
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def _description(target: Target) -> str:
    """Return a docstring without its arguments, which the help lists below."""
    return plain((inspect.getdoc(target) or "").partition("\nArgs:")[0])


class Formatter(DefaultHelpFormatter):
    """A formatter that keeps paragraphs of docstrings, and omits what jsonargparse says about tensors as arguments."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return fit(text, width)

    def _format_action(self, action: Action) -> str:
        hidden = any(option.endswith(".help") for option in action.option_strings)
        return "" if hidden else super()._format_action(action)

    def _format_action_invocation(self, action: Action) -> str:
        return super()._format_action_invocation(action).partition(", --")[0]

    def _get_help_string(self, action: Action) -> str:
        facts = super()._get_help_string(action).removeprefix(action.help or "")
        text = re.sub(r"\s*\(default: (?:[^()]|\([^()]*\))*\)", "", plain(action.help or ""))  # the facts state it too
        return self._shorten(text) + facts

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        text = re.sub(r", known subclasses: [^)]*| \| Tensor|(?<=\()required, (?=type: .*default)", "", text)
        text = re.sub(
            r"(?:Optional|Union)\[((?:[^][]|\[(?:[^][]|\[[^][]*\])*\])*)\]", lambda m: m[1].replace(", ", " | "), text
        )
        text = re.sub(r"Literal\[(.*?)\]", lambda m: " | ".join(re.findall(r"'([^']*)'", m[1])), text)
        text = re.sub(r"(?<=default: )(True|False)", lambda m: m[0].lower(), text)
        return re.sub(r", default: null| \| NoneType| \| null| \| Untyped", "", text)

    def _shorten(self, text: str) -> str:
        return text


class _Brief(Formatter):
    """A formatter that shows the first sentence of each argument."""

    def _shorten(self, text: str) -> str:
        return re.split(r"\. (?=[A-Z`])", text)[0].rstrip(".") + ("." if text else "")


def make_parser(
    usage: str, description: str, epilog: str = "", formatter: type[DefaultHelpFormatter] = Formatter
) -> ArgumentParser:
    """Return a parser that explains options and accepts no abbreviations."""
    return ArgumentParser(
        usage=usage,
        description=description,
        epilog=epilog,
        add_help=False,
        allow_abbrev=False,
        formatter_class=formatter,
    )
