"""Command lines in processes of their own: killed, signalled, short of disk, and held against a time limit.

Every process is forked from one that has imported all that the commands need, which takes a tenth of a second. It has a
folder of its own as working directory, and its output goes to files beside that folder.
"""

from __future__ import annotations

import errno
import faulthandler
import io
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

LIMIT = 240.0  # seconds until a process counts as hung; a run takes two, and other processes may want the machine
UNEXPECTED = 70  # exit code of an exception that the command line let through

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [*(f"ppl_vae.cli.{name}" for name in ("train", "sample", "encode", "evaluate", "show", "check", "compare"))]
    + ["ppl_vae.training.run", "sklearn.datasets", "torch.utils.tensorboard", "matplotlib.backends.backend_agg"]
)


@dataclass
class Fault:
    """What happens to a process at the n-th call of a function of `os` or, for ``write``, at the n-th write to a file.

    Attributes:
        call: ``fsync``, ``replace``, ``link`` or ``write``.
        nth: The call, from 1.
        does: ``kill``, or the error that this call and all later ones meet: ``ENOSPC``, ``EDQUOT``, ``EIO``.
        once: Whether later calls work again.
    """

    call: str
    nth: int
    does: str = "kill"
    once: bool = False
    calls: int = field(default=0, init=False)

    def __call__(self) -> None:
        """Lay the fault into this process."""
        if self.call == "write":
            real_open = io.open

            def opened(*arguments: Any, **options: Any) -> Any:
                file = real_open(*arguments, **options)
                mode = arguments[1] if len(arguments) > 1 else options.get("mode", "r")
                return _Full(file, self) if set(mode) & set("wax") and not isinstance(arguments[0], int) else file

            io.open = opened
            return
        real = getattr(os, self.call)

        def counted(*arguments: Any, **options: Any) -> Any:
            self.meet(arguments[0] if isinstance(arguments[0], str | Path) else None)
            return real(*arguments, **options)

        setattr(os, self.call, counted)

    def meet(self, path: Any = None) -> None:
        """Count a call, and fail or die if it is its turn."""
        self.calls += 1
        if self.calls < self.nth or (self.once and self.calls > self.nth):
            return
        Path(f"{os.environ['FAULTS_OUTPUT']}.struck").touch()
        if self.does == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.does)
        raise OSError(number, os.strerror(number), path)


class WithoutPictures:
    """A run draws no pictures, which take most of a short run's time."""

    def __call__(self) -> None:
        mock.patch("ppl_vae.runs.folder.draw", return_value=[]).start()  # raises if the name is gone


class EndlessPictures:
    """A run draws its pictures for an hour."""

    def __call__(self) -> None:
        mock.patch("ppl_vae.runs.folder.draw", side_effect=lambda *_, **__: time.sleep(3600)).start()


class _Full:
    """An open file whose writes meet a fault."""

    def __init__(self, file: Any, fault: Fault) -> None:
        self._file, self._fault = file, fault

    def write(self, content: Any) -> int:
        self._fault.meet()
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Full:
        self._file.__enter__()
        return self

    def __exit__(self, *found: Any) -> Any:
        return self._file.__exit__(*found)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; minus the number of a signal that ended it.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
        seconds: How long it ran.
        struck: Whether a `Fault` that was laid into it came to its call.
    """

    code: int
    out: str
    err: str
    seconds: float
    struck: bool

    @property
    def lines(self) -> list[str]:
        """The lines of stderr that are neither notes nor progress."""
        return [line for line in self.err.splitlines() if line and not line.startswith(("note: ", "epoch "))]


@dataclass
class Child:
    """A process that is running.

    Attributes:
        process: The process.
        output: The path of its output, without ``.out`` and ``.err``.
    """

    process: Any
    output: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        path = Path(f"{self.output}.err")
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def begun(self) -> bool:
        """Whether the process has come to its work."""
        return Path(f"{self.output}.begun").exists()

    def send(self, number: int) -> bool:
        """Send a signal, and return whether the process was there to get it."""
        if self.process.exitcode is not None:
            return False
        try:
            os.kill(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def when(self, seen: Callable[[], bool], limit: float = LIMIT) -> bool:
        """Wait until something is seen, and return whether it came before the process ended."""
        end = time.monotonic() + limit
        while time.monotonic() < end and self.process.is_alive():
            if seen():
                return True
            time.sleep(0.002)
        return seen()

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait for the end.

        Raises:
            TimeoutError: If it does not come; the process is killed.
        """
        self.process.join(limit)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"the process hung for {limit} s; stderr: {self.err[-2000:]}")
        texts = [Path(f"{self.output}{end}").read_text(errors="replace") for end in (".out", ".err")]
        struck = Path(f"{self.output}.struck").exists()
        return Ended(self.process.exitcode, *texts, time.monotonic() - self.started, struck)


def start(work: Callable[..., int], *arguments: Any, folder: Path, before: Sequence[Callable[[], None]] = ()) -> Child:
    """Start a function in a process of its own, in a working directory of its own.

    Args:
        work: A function of a module; what it returns is the exit code.
        arguments: Its arguments.
        folder: The working directory.
        before: What is done in the process first, such as a `Fault`.
    """
    number = len(list(folder.parent.glob(f"{folder.name}.*.err")))
    output = folder.parent / f"{folder.name}.{number}"
    Path(f"{output}.err").touch()
    process = _CONTEXT.Process(target=_child, args=(work, arguments, folder, output, before))
    with mock.patch.dict(sys.modules, {"__main__": types.ModuleType("__main__")}):  # the child need not import it
        process.start()
    return Child(process, output)


def command(argv: Sequence[str], folder: Path, before: Sequence[Callable[[], None]] = ()) -> Child:
    """Start a command line."""
    return start(main, list(argv), folder=folder, before=before)


def run(argv: Sequence[str], folder: Path, before: Sequence[Callable[[], None]] = (), limit: float = LIMIT) -> Ended:
    """Run a command line to its end."""
    return command(argv, folder, before).end(limit)


def main(argv: Sequence[str]) -> int:
    """Run a command line in this process."""
    from ppl_vae import cli

    return cli.main(argv)


def peak() -> int:
    """The largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _child(work: Callable[..., int], arguments: Any, folder: Path, output: Path, before: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ["FAULTS_OUTPUT"] = str(output)
    os.environ["XDG_STATE_HOME"] = str(folder.parent / "state")
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        handle = os.open(f"{output}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, descriptor)
        os.close(handle)
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    faulthandler.enable()
    code = UNEXPECTED
    try:
        for prepare in before:
            prepare()
        Path(f"{output}.begun").touch()
        code = work(*arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else UNEXPECTED
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
