"""The options of a command on a run: read, checked and explained through the signature of its function."""

from __future__ import annotations

import inspect
import re
from argparse import Action
from collections.abc import Callable, Sequence

from ppl_vae import data
from ppl_vae.cli import words
from ppl_vae.cli.errors import bad_input
from ppl_vae.cli.help import Formatter, make_parser
from ppl_vae.cli.opening import DEVICE, DataOptions, OpenRun
from ppl_vae.configuration.pieces import Arguments, arguments_of

Command = Callable[..., list[str]]  # (run, options by keyword) -> the lines to print

SKIP = frozenset({"run", "data_options"})


def execute(command: Command, argv: Sequence[str], example: str) -> int:
    """Run a command on a run's folder, and print its lines.

    Args:
        command: ``command(run, *, [data_options,] ...)``, typed and documented; the other parameters are its options.
            An option named like a keyword of Python is a parameter with an underscore after it.
        argv: The words after the command.
        example: Command lines for the help, and what they do.

    Returns:
        The exit code.
    """
    with bad_input():
        if words.wants_help(argv):
            print(_help(command, example), end="")
            return 0
        lines = _call(command, argv)
    print("\n".join(lines))
    return 0


def _call(command: Command, argv: Sequence[str]) -> list[str]:
    given = words.split(argv)
    if len(given.runs) != 1:
        what = f"the runs {', '.join(given.runs)}" if given.runs else "no run"
        raise ValueError(f"{command.__name__} was given {what}; expected one: ppl-vae {command.__name__} runs/<name>")
    schema, options = arguments_of(command, "", SKIP), dict(given.options)
    device = options.pop("device", "auto")
    further = {}
    if "data_options" in inspect.signature(command).parameters:
        mine = [name for name in options if name.partition(".")[0] == "data"]
        further["data_options"] = DataOptions({name: options.pop(name) for name in mine})
    values = {_parameter(name, schema): value for name, value in options.items()}
    try:
        arguments = schema.objects(values)
    except ValueError as error:
        raise ValueError(_with_option_names(str(error))) from error
    return command(OpenRun.at(given.runs[0], device), **further, **arguments)


def _parameter(option: str, schema: Arguments) -> str:
    return f"{option}_" if f"{option}_" in schema.names else option


def _with_option_names(text: str) -> str:
    return re.sub(r"\b([a-z]+)_(?=[\s,;?]|$)", r"\1", text)


def _help(command: Command, example: str) -> str:
    description = (inspect.getdoc(command) or "").partition("\nArgs:")[0].strip()
    parser = make_parser(f"ppl-vae {command.__name__} RUN [--OPTION VALUE ...]", description, example, _Help)
    group = parser.add_argument_group("options")
    arguments_of(command, "", SKIP).add_to(group)
    group.add_argument("--device", default="auto", help=f"{DEVICE} (default: auto)")
    if "data_options" in inspect.signature(command).parameters:
        group = parser.add_argument_group("data: by default the run's own; what is not given is as in its config.yaml")
        arguments_of(data.load, "data").add_to(group, "data")
    text = parser.format_help().replace("--data.name NAME", "--data NAME     ")
    return re.sub(r"--([a-z]+)_ ([A-Z]+)_", r"--\1 \2  ", text)


class _Help(Formatter):
    """A formatter that writes types and defaults as a command line does; the run sets the defaults of the data."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        text = re.sub(r"Optional\[(.*?)\]([,)])", r"\1\2", text)
        text = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "").replace(", ", " | "), text)
        text = re.sub(r"(?<=default: )(True|False)", lambda m: m[0].lower(), text)
        said = r"required, |, default: [^()]*(?=\)$)" if action.dest.startswith("data.") else r", default: null"
        return re.sub(said, "", text)
