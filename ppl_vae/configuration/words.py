"""The words of a command line: what belongs to no option, options with their values, and numbers."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from ppl_vae._validation import did_you_mean
from ppl_vae.configuration import meaning


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

    def check_options(self, command: str, known: Sequence[str]) -> None:
        """Refuse options that a command does not have.

        Raises:
            ValueError: If there is one; the message names those that the command has, and the nearest.
        """
        for name in sorted(self.options.keys() - set(known)):
            takes = f"{command} takes {', '.join(f'--{n}' for n in known)} and --help"
            raise ValueError(f"--{name} is unknown; {takes}{did_you_mean(name, [*known, 'help'])}")


def number(text: str) -> int | float | str:
    """Return the number that a text says; another text stays as it is, for a check to refuse.

    Example:
        >>> number("3"), number("1e-3"), number("three"), number("1_000")
        (3, 0.001, 'three', '1_000')
    """
    if text.removeprefix("-").isdecimal():
        return int(text)
    if text.startswith("+") or "_" in text:  # Python alone reads +2 and 1_000 as numbers
        return text
    with suppress(ValueError):
        return float(text)
    return text


def word_of(value: object) -> str:
    """Return a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def joined(options: Mapping[str, str]) -> list[str]:
    """Return options with their values as words of a command line, which `split` takes apart."""
    return [f"--{name}={value}" for name, value in options.items()]


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
            meant = meaning.with_value(name)
            raise ValueError(
                f"{word!r} has no value; " + ("expected --NAME VALUE" if meant is None else f"did you mean --{meant}?")
            )
        words.options[name] = value
    return words
