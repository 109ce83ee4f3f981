"""Words in a sentence of ours: names in a row, and what an error says."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str], most: int | None = None) -> str:
    """Return the names as ``"A, B and C"``, each once; of more than `most` names the first, and how many others."""
    several = list(dict.fromkeys(names))
    if most is not None and len(several) > most:
        several[most:] = [f"{len(several) - most} more"]
    return several[0] if len(several) == 1 else f"{', '.join(several[:-1])} and {several[-1]}"


def one_line(text: object) -> str:
    """Return a text with its white space folded."""
    return " ".join(str(text).split())


def said_by(error: object) -> str:
    """Return the message of an error in one line; its class where it has none (``raise NotImplementedError``)."""
    return one_line(error) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its class where it has none. Torch's further lines are for C++."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
