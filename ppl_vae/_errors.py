"""What an error says, for a sentence of ours."""

from __future__ import annotations


def one_line(text: object) -> str:
    """Return a text with its white space folded."""
    return " ".join(str(text).split())


def said_by(error: object) -> str:
    """Return the message of an error in one line; its class where it has none (``raise NotImplementedError``)."""
    return one_line(error) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its class where it has none. Torch's further lines are for C++."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
