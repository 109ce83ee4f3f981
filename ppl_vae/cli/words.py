"""The words of a command line: runs and options. The module imports no torch, to keep light commands fast."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ppl_vae._validation import did_you_mean


class Words(NamedTuple):
    """The words of a command line.

    Attributes:
        runs: The words that belong to no option, in order.
        options: ``{"data.root": "/data"}``; the last value of a repeated option counts. A flag has the value
            ``"true"``.
    """

    runs: list[str]
    options: dict[str, str]

    def only(self, command: str, expected: str = "one") -> str | None:
        """Return the word that belongs to no option, or None if there is none.

        Raises:
            ValueError: If there are several; the message names the command, and what was expected.
        """
        if len(self.runs) > 1:
            raise ValueError(f"{command} was given {', '.join(self.runs)}; expected {expected} at most")
        return self.runs[0] if self.runs else None


def wants_help(argv: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return any(word in ("-h", "--help") for word in argv)


def split(argv: Sequence[str], flags: Collection[str] = ()) -> Words:
    """Split words into runs and options; options are ``--name VALUE`` or ``--name=VALUE``, in any order.

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
    """Return the path of a run, named by its folder, by its name under ``runs``, or by a checkpoint in it.

    For a checkpoint the path is that of its file.

    Raises:
        FileNotFoundError: If there is no such run.
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
