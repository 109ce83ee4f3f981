"""Help, and refusals of what a command line says, in a moment: from `ppl_vae.configuration.outlines`, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from ppl_vae._files import is_table
from ppl_vae.cli import compare, help, options, words
from ppl_vae.cli.prose import fit
from ppl_vae.configuration import outlines, resolving
from ppl_vae.configuration.outlines import Outlines
from ppl_vae.configuration.sources import Tree

_WRITES = ("out", "resume", "checkpoint_every", "print_config")


def answer(command: str, argv: Sequence[str]) -> str | None:
    """Return the help that a command line asks for, or None for one to run.

    Args:
        command: The command.
        argv: The words after it.

    Raises:
        ValueError: If an option, a name or a value does not fit.
        OSError: If a run or a file of the command line cannot be read.
    """
    known = outlines.read()
    about = {word.partition("=")[0].lstrip("-").partition(".")[0] for word in argv if word.startswith("--")}
    imports = bool(about.intersection(known.outdated()))
    try:
        if not (imports and help.wanted(argv)):
            return _answer(command, list(argv), known)
    except outlines.UndecidedError:
        pass
    except ValueError:
        if imports:  # another torch or Pyro than the file describes: it may know the name
            return None
        raise
    if help.wanted(argv):
        from ppl_vae.configuration.pieces import CHOICES  # torch, after all

        return help.text(argv, CHOICES)
    return None


def _answer(command: str, argv: list[str], known: Outlines) -> str | None:
    if words.wants_help(argv):
        if command in known.commands:
            return options.explain(known.commands[command], known.texts[command])
        if command in known.texts:
            return fit(known.texts[command])
        if command == "compare":
            return compare.explain()
    if command in ("train", "check", "compare") and help.wanted(argv):
        return help.text(argv, known.choices)
    if command in known.commands:
        options.found(known.commands[command], options.read(known.commands[command], argv))
    elif command == "train":
        resolving.read(argv, known.choices, _untold)
    elif command == "compare" and (asked := compare.read(argv)).word is None:
        resolving.read(words.joined(asked.options), known.choices, _untold)
    elif command == "check":
        given = words.split(argv)
        if given.only("check") is None:
            own = {n: v for n, v in given.options.items() if n not in ("only", *_WRITES)}
            resolving.read(words.joined(own), known.choices, _untold)
    return None


def _untold(values: Tree, tree: Tree, _: Tree) -> tuple[Tree, Tree]:
    if is_table(values["name"]):
        raise outlines.UndecidedError(values["name"])
    return values, tree
