"""Errors of the user, distinguished from faults of the program and reported in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

BAD_INPUT = (ValueError, TypeError, OSError, NotImplementedError)  # the last: no closed form for these pieces


class BadInput(Exception):  # noqa: N818 - what the user gave, not a fault of the program
    """The exception that carries an error in the user's input to `ppl_vae.cli.main`."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn the errors of reading, loading and building into `BadInput`."""
    try:
        yield
    except BAD_INPUT as error:
        raise BadInput from error


def complain(error: BaseException | None) -> None:
    """Print an error as one line on stderr."""
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"ppl-vae: error: {message}", file=sys.stderr)
