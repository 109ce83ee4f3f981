"""Signals by which a user ends a command that trains."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any


class Signals:
    """Whether a signal asked for the end: Ctrl-C, SIGTERM, SIGHUP (of a closed terminal).

    The first ends a run after its step, and it can be resumed; a second ends it at once.

    Args:
        speaks: Whether this process says so.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.speaks = speaks
        self.seen: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return whether one has come."""
        return self.seen is not None

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells have it."""
        return 128 + (self.seen or signal.SIGINT)

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # other threads may not set signal handlers
            for name in {"SIGINT", "SIGTERM", "SIGHUP"} & vars(signal).keys():  # Windows has no SIGHUP
                if signal.getsignal(number := signal.Signals[name]) != signal.SIG_IGN:  # nohup
                    self._before[number] = signal.signal(number, self._see)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before or signal.SIG_DFL)

    def _see(self, number: int, _: object) -> None:
        self.seen = number
        for other in self._before:
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)
        if not self.speaks:
            return
        with suppress(OSError):  # a closed stderr. `print` fails where the signal interrupts another print
            os.write(2, b"\nppl-vae: ending after this step; a second signal aborts at once\n")
