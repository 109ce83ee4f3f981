"""The output streams of a command: texts from files cannot steer the terminal, and a closed stream ends no work."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

_LETTERS = "\n\t"
_BIDIRECTIONAL = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in _LETTERS}
_SHOWN |= {code: f"\\u{code:04x}" for code in _BIDIRECTIONAL}


class Stream(io.TextIOBase):
    """A text stream that shows control characters as escapes, and that swallows its failures.

    Args:
        raw: The stream to write to; None for a closed one.
        lines: Whether a carriage return may pass, for a line that is written over.

    Attributes:
        failed: The first error of the raw stream, after which nothing is written; or None.
    """

    def __init__(self, raw: Any, lines: bool = False) -> None:
        self.raw = raw
        self.failed: Exception | None = None
        self._table = {code: text for code, text in _SHOWN.items() if not (lines and code == ord("\r"))}

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The raw stream's encoding."""
        return getattr(self.raw, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write text, as far as the raw stream takes it."""
        shown = text.translate(self._table)
        with suppress(UnicodeError):
            shown = shown.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._try("write", shown)
        return len(text)

    def flush(self) -> None:
        """Flush the raw stream."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether the raw stream is a terminal."""
        return self.raw is not None and bool(self.raw.isatty())

    def fileno(self) -> int:
        """Return the raw stream's descriptor."""
        if self.raw is None:
            raise io.UnsupportedOperation("the stream is closed")
        return int(self.raw.fileno())

    def _try(self, method: str, *arguments: str) -> None:
        if self.raw is None or self.failed is not None:
            return
        try:
            getattr(self.raw, method)(*arguments)
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self.failed = error
            with suppress(OSError, ValueError):  # Python flushes it again at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.raw.fileno())


@contextmanager
def guarded() -> Iterator[tuple[Stream, Stream]]:
    """Put a `Stream` in the place of stdout and of stderr, and yield both."""
    for descriptor in range(3):  # a closed one would go to the next file that opens, and take its messages
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    out, err = Stream(sys.stdout), Stream(sys.stderr, lines=True)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield out, err
        finally:
            out.flush()
            err.flush()
