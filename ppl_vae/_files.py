"""Files: written whole or not at all, read up to a limit, one writer for a folder; and which of them are tables."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

TEXT_LIMIT = 64 * 2**20  # bytes; no text file of a run comes near
TABLES = (".csv", ".tsv", ".parquet")  # endings of files that are read as tables
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


Content = bytes | str | Callable[[BinaryIO], object]


def write(path: str | Path, content: Content, *, replace: bool = True, numbered: bool = False) -> Path:
    """Write a file whole or not at all, and return its path.

    The content goes to a temporary file in the same folder, is flushed to the disk and read back, and takes the name
    in one move. A crash or a full disk at any moment leaves the earlier file as it was.

    Args:
        path: The file.
        content: Bytes, text, or a function that writes to an open file (which is not read back).
        replace: Whether the file may replace another of its name.
        numbered: Whether it takes the first free name of ``stem.suffix``, ``stem-2.suffix``, ... where it may not. The
            content is made once, whatever name it gets.

    Raises:
        FileExistsError: If there is such a file and `replace` and `numbered` are false.
        OSError: If the file cannot be written, or reads back as something else.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        if isinstance(content, bytes) and temporary.read_bytes() != content:
            raise OSError(f"{path} does not read back as it was written; the disk may be full or damaged")
        if replace:
            os.replace(temporary, path)
        else:
            path = _take_name(temporary, path, numbered)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)
    return path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of writing the name of the file: a failed write knows none, and an open file's is temporary."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def write_new(path: Path, content: Content) -> Path:
    """Write a file under the first free name of ``stem.suffix``, ``stem-2.suffix``, ..., and return its path."""
    return write(path, content, replace=False, numbered=True)


def to_json(content: Mapping[str, Any], indent: int | None = None) -> str:
    """Return content as JSON, with null for NaN and infinities, which JSON lacks."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}
    return json.dumps(finite, indent=indent, allow_nan=False)


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """Return a text file's content.

    Raises:
        ValueError: If it is larger than `limit` bytes, or is not UTF-8.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} is larger than {limit:,} bytes; expected a text file such as ppl-vae train writes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: byte {error.start} is not UTF-8") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: If the file holds anything else.
        OSError: If it cannot be read.
    """
    text = read_text(path)
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # an integer of more than 4,300 digits; a thousand brackets
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def parse_json(text: str) -> Any:
    """Return what a JSON text holds; NaN, infinities and numbers beyond float64 or int64 are None.

    Raises:
        ValueError: If it is not JSON, or an integer has more than 4,300 digits.
        RecursionError: If it is nested too deeply.
    """

    def number(text: str) -> float | None:
        return value if math.isfinite(value := float(text)) else None

    def integer(text: str) -> int | None:
        return value if abs(value := int(text)) < 2**63 else None

    return json.loads(text, parse_float=number, parse_int=integer, parse_constant=lambda _: None)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder. Windows cannot ask for a process."""
    with suppress(OSError):
        for path in folder.iterdir():
            found = _TEMPORARY.fullmatch(path.name)
            if found and os.name != "nt" and not _lives(int(found[1])):
                path.unlink(missing_ok=True)


class Lock:
    """The lock of a folder that one process writes to; it ends with the process. Systems without `fcntl` have none.

    Raises:
        FileExistsError: If another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._file: Any = None
        try:
            import fcntl
        except ImportError:
            return
        path = folder / ".lock"
        while self._file is None:
            file = path.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    self._file = file
                    continue
            except FileNotFoundError:  # its holder has just removed it
                pass
            except BlockingIOError as error:
                file.close()
                message = f"another process writes to {folder}; choose another --out, or wait for it"
                raise FileExistsError(message) from error
            except OSError:  # a file system without locks
                file.close()
                return
            file.close()

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._file is not None:
            with suppress(OSError):
                os.unlink(self._file.name)
            self._file.close()
            self._file = None


def _take_name(temporary: Path, path: Path, numbered: bool) -> Path:
    """Give a file the first name that no other file has, in one move where the file system has links."""
    for number in itertools.count(1):
        name = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            os.link(temporary, name)
        except FileExistsError:
            if not numbered:
                raise
        except (OSError, AttributeError):  # some systems have no links
            if not name.exists():
                os.replace(temporary, name)
                return name
            if not numbered:
                raise FileExistsError(f"{name} is there already") from None
        else:
            return name
    raise AssertionError


def _flush_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk; Windows and some network disks cannot."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def is_table(name: Any) -> bool:
    """Whether a name is that of a file that is read as a table."""
    return isinstance(name, str | Path) and Path(name).suffix.lower() in TABLES
