"""Progress messages of a command: on one line of a terminal, or as lines of a log."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable


def teller(*, log: bool = False) -> Callable[[str], None]:
    """Return a function that shows a message, or clears the line for an empty one.

    Args:
        log: Whether to write lines where there is no terminal, for long work; if not, the function is silent there.
    """
    if sys.stderr.isatty():
        return _on_terminal
    return _as_line if log else _not_at_all


def _on_terminal(what: str) -> None:
    room = shutil.get_terminal_size().columns - 5
    what = what if len(what) <= room else f"{what[: room - 1]}…"
    text = f"{what} ..." if what else ""
    print(f"\r{text:{room + 4}}\r{text}", end="", file=sys.stderr, flush=True)


def _as_line(what: str) -> None:
    if what:
        print(what, file=sys.stderr, flush=True)


def _not_at_all(what: str) -> None:
    pass
