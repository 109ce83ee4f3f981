"""What the user got wrong: told apart from faults of the program, and said in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

BAD_INPUT = (ValueError, TypeError, OSError, NotImplementedError)  # the last: no closed form for what was put together


class BadInput(Exception):  # noqa: N818 - what the user gave, not a fault of the program
    """Carries the error that a user's input led to, to `ppl_vae.cli.main`."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Take what reading, loading and building raise for a fault in what the user gave."""
    try:
        yield
    except BAD_INPUT as error:
        raise BadInput from error


def complain(error: BaseException | None) -> None:
    """Print an error as one line on stderr."""
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"ppl-vae: error: {message}", file=sys.stderr)
