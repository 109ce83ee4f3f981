"""Errors of the user and of the machine, distinguished from faults of the program and reported in one line."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ppl_vae._words import first_line, said_by

BAD_INPUT = (ValueError, TypeError, OSError, NotImplementedError)  # the last: no closed form for these pieces
LONGEST = 2_000  # characters of a message
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_TOO_LARGE = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Storage size calculation overflowed|"
    r"numel: integer multiplication overflow|Overflow when unpacking",
    re.IGNORECASE,
)


class BadInput(Exception):  # noqa: N818 - what the user gave, not a fault of the program
    """The exception that carries an error in the user's input to `ppl_vae.cli.main`."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn errors of reading, loading and building, and those of too large a size, into `BadInput`."""
    try:
        yield
    except RecursionError as error:
        raise BadInput from ValueError(f"the input is nested too deeply ({error})")
    except (*BAD_INPUT, MemoryError, RuntimeError, OverflowError) as error:
        if not isinstance(error, BAD_INPUT) and not is_too_large(error):
            raise
        raise BadInput from in_words(error)


def is_too_large(error: BaseException) -> bool:
    """Whether an error says that something does not fit into memory."""
    known = isinstance(error, MemoryError | OverflowError)
    return known or (isinstance(error, RuntimeError | TypeError) and bool(_TOO_LARGE.search(str(error))))


def in_words(error: BaseException) -> BaseException:
    """Return an error, or one in its place that says what to lower where something does not fit into memory."""
    if not is_too_large(error):
        return error
    reason = first_line(error)
    return MemoryError(
        f"out of memory, or a size beyond what can be counted ({reason}); lower the batch size, the number of "
        "particles, the widths of the networks or the size that was asked for"
    )


def exit_code(error: BaseException | None) -> int:
    """Return 2 for an error of the user, and 1 for one of the machine: a full disk, an empty memory."""
    of_the_machine = isinstance(error, OSError) and error.errno in _OF_THE_MACHINE
    return 1 if of_the_machine else 2


def complain(error: BaseException | None) -> None:
    """Print an error as one line on stderr; of a long message the middle is left out."""
    message = said_by(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if len(message) > LONGEST:
        half = LONGEST // 2
        message = f"{message[:half]} ... ({len(message) - LONGEST:,} characters) ... {message[-half:]}"
    print(f"ppl-vae: error: {message}", file=sys.stderr)
