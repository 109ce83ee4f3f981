"""A command line's words: which runs it names, which options it sets. Light, so that what needs no torch stays fast."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ppl_vae._validation import did_you_mean


class Words(NamedTuple):
    """What a command line says.

    Attributes:
        runs: What stands without an option, in order.
        options: ``{"data.root": "/data"}``; of an option given twice the last holds. A flag's value is ``"true"``.
    """

    runs: list[str]
    options: dict[str, str]


def wants_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return any(word in ("-h", "--help") for word in argv)


def split(argv: Sequence[str], flags: Collection[str] = ()) -> Words:
    """Tell runs from options, which are ``--name VALUE`` or ``--name=VALUE``, in any order.

    Args:
        argv: The words after the command.
        flags: Options that take no value.

    Raises:
        ValueError: If an option has no value, or a flag has one.

    Example:
        >>> split(["runs/a", "--size", "3", "--seed=1"])
        Words(runs=['runs/a'], options={'size': '3', 'seed': '1'})
    """
    words, rest = Words([], {}), list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if word.startswith("-"):
                raise ValueError(f"{word!r} is no option; options are --name VALUE")
            words.runs.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name in flags:
            if equals:
                raise ValueError(f"{word!r} has a value; expected --{name} alone")
            value = "true"
        elif not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if not name or not value:
            raise ValueError(f"{word!r} has no value; expected --NAME VALUE")
        words.options[name] = value
    return words


def find_run(word: str) -> Path:
    """Return the folder of a run that was named by its path, by its name under ``runs``, or by a checkpoint in it.

    Raises:
        FileNotFoundError: If there is none.
    """
    candidates = [Path(word), Path("runs") / word]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        nearby = Path(word).parent if Path(word).parent != Path(".") else Path("runs")
        names = [str(path) for path in sorted(nearby.glob("*")) if (path / "run.json").is_file()]
        near = did_you_mean(word, names) or did_you_mean(nearby / word, names)
        raise FileNotFoundError(f"there is no run {word}; expected a run's folder, runs/<name>{near}")
    folder = found.parent if found.is_file() else found
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(f"{found} is no run's folder: run.json, written by ppl-vae train, is missing")
    return found
