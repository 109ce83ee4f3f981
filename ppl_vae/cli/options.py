"""The options of a command on a run: read, checked and explained through the signature of its function."""

from __future__ import annotations

import inspect
import re
from argparse import Action
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppl_vae._validation import check_count, check_positive_int, check_seed
from ppl_vae.cli import words
from ppl_vae.cli.errors import bad_input
from ppl_vae.cli.help import Formatter, make_parser
from ppl_vae.cli.launched import launched, together
from ppl_vae.cli.telling import tell_taken
from ppl_vae.configuration import meaning, outlines
from ppl_vae.configuration.kinds import Arguments, Target, arguments_of

Command = Callable[..., list[str]]  # (run, options by keyword) -> the lines to print

DEVICE = "where the model computes: auto (cuda, else mps, else cpu) or a torch device"  # of --device
SKIP = frozenset({"run", "runs", "data_options", "device", "field", "settings"})  # parameters that are no options
_CHECKS = {  # by the name of an option: what its value must be beyond its type, in every command that has it
    "seed": check_seed,
    **dict.fromkeys(("size", "pairs"), check_positive_int),
    **dict.fromkeys(("gaps", "importance", "imputation", "posteriors"), check_count),
}


def execute(command: Command, argv: Sequence[str], *, shared: bool = False) -> int:
    """Run a command on a run's folder, and print its lines.

    Args:
        command: ``command(run, *, [data_options,] ...)``, typed and documented; the other parameters are its options.
            One on several runs takes their paths, ``runs``, and ``device`` in place of ``run``. An option named like a
            keyword of Python is a parameter with an underscore after it.
        argv: The words after the command.
        shared: Whether the processes that ``torchrun`` has started, if it has, share the work.

    Returns:
        The exit code.
    """
    if shared:
        with launched() as team:
            return together(team, lambda: execute(command, argv))
    with bad_input():
        asked = read(command, argv)
        from ppl_vae.cli.opening import DataOptions, OpenRun  # they import torch, and help and refusals need none

        tell_taken(asked.taken)
        further = {} if asked.data is None else {"data_options": DataOptions(asked.data)}
        if _takes_several(command):
            lines = command(found(command, asked), device=asked.device, **further, **asked.arguments)
        else:
            lines = command(OpenRun.at(asked.runs[0], asked.device), **further, **asked.arguments)
    print("\n".join(lines))
    return 0


class Asked(NamedTuple):
    """What a command line asks for.

    Attributes:
        runs: The runs; one, but for a command on several.
        device: Where the model computes.
        data: The options ``--data`` and ``--data.ARGUMENT``, or None for a command that takes no data.
        arguments: The arguments of the command.
        taken: The options that do not exist, each with the one that it was taken for.
    """

    runs: list[str]
    device: str
    data: dict[str, str] | None
    arguments: dict[str, Any]
    taken: dict[str, str]


def read(command: Target, argv: Sequence[str]) -> Asked:
    """Return what a command line asks for; nothing is imported.

    Args:
        command: The command, or the stand-in for it.
        argv: The words after the command.

    Raises:
        ValueError: If an option or a value does not fit, or there is not one run (of a command on several: none).
    """
    given = words.split(argv)
    if len(given.runs) != 1 and not (given.runs and _takes_several(command)):
        what = f"the runs {', '.join(given.runs)}" if given.runs else "no run"
        raise ValueError(f"{command.__name__} was given {what}; expected one: ppl-vae {command.__name__} runs/<name>")
    schema, load = arguments_of(command, "", SKIP), arguments_of(outlines.read().choices.load, "data")
    of_data = _takes_data(command)
    own = {name.rstrip("_"): name for name in schema.names}
    names = [*own, "device", *(("data", *(f"data.{name}" for name in load.names)) if of_data else ())]
    unknown = {name: _unknown(name, command, schema, load) for name in given.options if name not in names}
    taken = meaning.place(unknown, names, given.options)
    options = {taken.get(name, name): value for name, value in given.options.items()}
    device = options.pop("device", "auto")
    data = {name: options.pop(name) for name in list(options) if of_data and name.partition(".")[0] == "data"}
    try:
        arguments = schema.objects({own[name]: value for name, value in options.items()})
        load.complete({name.partition(".")[2] or "name": v for name, v in ({"data": "digits"} | data).items()})
    except ValueError as error:
        raise ValueError(_with_option_names(str(error))) from error
    for name, value in arguments.items():
        if name in _CHECKS and value is not None:
            _CHECKS[name](value, f"--{name}")
    return Asked(list(dict.fromkeys(given.runs)), device, data if of_data else None, arguments, taken)


def found(command: Target, asked: Asked) -> list[Path]:
    """Return the paths of the runs that a command line asks for; a command on several takes comparisons too.

    Raises:
        FileNotFoundError: If there is no such run.
    """
    return [words.find_run(run, words.COMPARED if _takes_several(command) else ()) for run in asked.runs]


def several(particles: int | list[int] | None) -> tuple[int, ...]:
    """Return K of importance sampling, of one number, a list, or the default."""
    found = (100, 1000, 5000) if particles is None else (particles,) if isinstance(particles, int) else tuple(particles)
    for k in found:
        check_positive_int(k, "--particles")
    return found


def _unknown(name: str, command: Target, schema: Arguments, load: Arguments) -> str:
    if name.startswith("data.") and _takes_data(command):
        return load.unknown(name.removeprefix("data."))
    return _with_option_names(schema.unknown(name))


def _takes_data(command: Target) -> bool:
    return "data_options" in inspect.signature(command).parameters


def _takes_several(command: Target) -> bool:
    return "runs" in inspect.signature(command).parameters


def _with_option_names(text: str) -> str:
    return re.sub(r"\b([a-z]+)_(?=[\s,;?]|$)", r"\1", text)


def explain(command: Target, example: str) -> str:
    """Return the help of a command, or of the stand-in for it."""
    description = (inspect.getdoc(command) or "").partition("\nArgs:")[0].strip()
    words_of_runs = "RUN [RUN ...]" if _takes_several(command) else "RUN"
    parser = make_parser(
        f"ppl-vae {command.__name__} {words_of_runs} [--OPTION VALUE ...]", description, example, _Help
    )
    group = parser.add_argument_group("options")
    arguments_of(command, "", SKIP).add_to(group)
    group.add_argument("--device", default="auto", help=f"{DEVICE} (default: auto)")
    if _takes_data(command):
        group = parser.add_argument_group("data: by default the run's own; what is not given is as in its config.yaml")
        arguments_of(outlines.read().choices.load, "data").add_to(group, "data")
    text = parser.format_help().replace("--data.name NAME", "--data NAME     ")
    return re.sub(r"--([a-z]+)_ ([A-Z]+)_", r"--\1 \2  ", text)


class _Help(Formatter):
    """A formatter without defaults of the data, which the run sets."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        return re.sub(r"required, |, default: [^()]*(?=\)$)", "", text) if action.dest.startswith("data.") else text
