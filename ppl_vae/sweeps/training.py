"""One run of a sweep, in whatever process it runs: trained into its folder, or taken up where it stopped."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppl_vae import _files, runs
from ppl_vae._scopes import flushed_denormals, threads, untouched_random_state
from ppl_vae._words import one_line
from ppl_vae.comparison.words import reason_of
from ppl_vae.configuration import _yaml
from ppl_vae.configuration.config import Config
from ppl_vae.data import Dataset
from ppl_vae.runs.reading import read_facts, read_state
from ppl_vae.training import Callback, DivergedError, Run, fit

OVER = ("finished", "early stopping")  # how a run ends that nothing is left to do for
_LOOK_EVERY = 0.2  # seconds between two looks for the stop file
_PARENT_WITHIN = 1.0  # seconds in which the parent, which has got the same signal, writes it
_REST_OF_DIVERGED = ("last_good.pt", "checkpoint.pt", "result.json", "events.out.*")

State = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Ended:
    """How a run ended: its state, why it failed, and the warnings on the way."""

    state: State
    reason: str | None = None
    notes: tuple[str, ...] = ()


class StopFile:
    """Whether a file is there, by which one process asks others to end after their step; or a worker's parent died."""

    def __init__(self, path: str, in_worker: bool = False) -> None:
        self.path, self.parent = path, _first_parent(os.getpid()) if in_worker else None
        self.seen, self._looked = False, -_LOOK_EVERY

    def __call__(self) -> bool:
        """Return whether the end is asked for; look at most five times a second."""
        if not self.seen and time.monotonic() - self._looked >= _LOOK_EVERY:
            orphan = self.parent is not None and os.getppid() != self.parent
            self.seen, self._looked = orphan or os.path.exists(self.path), time.monotonic()
        return self.seen


@functools.cache
def _first_parent(pid: int) -> int:
    """Return the parent that this process had when it was first asked; one that dies leaves the process to another."""
    return os.getppid()


@dataclass(frozen=True)
class Training:
    """The training of one run; it pickles.

    Attributes:
        text: The configuration.
        folder: The run's folder, whole.
        stop_file: The file that asks for the end, whole.
        place: The working directory, to which paths of data are relative.
        num_threads: The threads that compute.
        parent: The process that runs the sweep.
        checkpoint_every: Seconds between checkpoints.
    """

    text: str
    folder: str
    stop_file: str
    place: str
    num_threads: int
    parent: int
    checkpoint_every: float

    def __call__(self) -> Ended:
        """Train, go on with, or keep the run, and say how it ended."""
        in_worker = os.getpid() != self.parent
        stop = StopFile(self.stop_file, in_worker)
        if self.place not in sys.path:
            sys.path.append(self.place)  # where the user's own modules are
        with (
            chdir(self.place),
            _signals(stop) if in_worker else nullcontext(),
            untouched_random_state(),
            warnings.catch_warnings(record=True) as caught,
        ):
            try:
                with threads(self.num_threads), flushed_denormals():
                    state, reason = self._train(stop), None
            except Exception as error:  # whatever a piece of the user's raises
                state, reason = "failed", str(error) if isinstance(error, DivergedError) else reason_of(error)
            notes = dict.fromkeys(one_line(found.message) for found in caught)
        return Ended(state, reason, tuple(notes))

    def _train(self, stop: StopFile) -> State:
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._await(folder, stop)
        if stop():
            return "interrupted"
        settings = Config.from_yaml(self.text, self.folder, trust=True)
        if is_over(folder):
            check_same(folder, settings)
            return "finished"
        dataset = settings.build_dataset()
        vae = settings.build_vae(dataset)
        resume = _state_of(folder, settings)
        arguments = settings.build_fit_arguments_for(dataset)
        writer = runs.RunFolder(folder, settings.to_yaml(), checkpoint_every=self.checkpoint_every, again=True)
        settings.remember()
        run = fit(vae, dataset, callbacks=[writer], stop=stop, resume=resume, **arguments)
        return "interrupted" if run.stopped == "interrupted" else "finished"

    def _await(self, folder: Path, stop: StopFile) -> None:
        """Wait for a process of an earlier start that still trains this run, as after the death of its parent."""
        while not stop():
            with suppress(FileExistsError):
                _files.Lock(folder).release()
                return
            time.sleep(_LOOK_EVERY)


class _Ready(Callback):
    """A callback that ends a training before its first step."""

    def on_start(self, run: Run) -> None:
        raise _ReadyError


class _ReadyError(Exception):
    pass


def rehearse(settings: Config, dataset: Dataset, label: str) -> None:
    """Do all that a training does before its first step, to refuse now what cannot work.

    Raises:
        ValueError: If the program or an argument does not fit; the message names the setting.
    """
    with untouched_random_state(), warnings.catch_warnings(), suppress(_ReadyError):
        warnings.simplefilter("ignore")  # the run itself tells them
        try:
            fit(settings.build_vae(dataset), dataset, callbacks=[_Ready()], **settings.build_fit_arguments())
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(f"{label}: {error}") from error


def is_over(folder: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    try:
        return _files.read_json(folder / "result.json").get("stopped") in OVER
    except (OSError, ValueError):  # none, or a damaged one: the run goes on from its checkpoint
        return False


def check_same(folder: Path, settings: Config) -> None:
    """Raise a ValueError if a run in this folder has other settings than these."""
    path = folder / "config.yaml"
    if not path.is_file():
        return
    found, wanted = _yaml.load(_files.read_text(path), str(path)), dict(settings.values)
    if wanted["compile"] == "auto":  # the run's own says what auto came to
        wanted["compile"] = found.get("compile")
    if found != _yaml.load(Config(wanted).to_yaml(), "the sweep"):
        names = sorted(name for name in wanted if wanted[name] != found.get(name))
        raise ValueError(f"{folder} holds a run of other settings ({', '.join(names)}); choose another --out")


def _state_of(folder: Path, settings: Config) -> dict[str, Any] | None:
    """Return the state to go on from; None for a new run, and for one that diverged, which begins again."""
    _files.remove_leftovers(folder)  # without a checkpoint too
    check_same(folder, settings)
    if (folder / "last_good.pt").exists():
        for path in (path for name in _REST_OF_DIVERGED for path in folder.glob(name)):
            path.unlink()
    if not (folder / "checkpoint.pt").is_file():
        return None
    read_facts(folder)  # without which nothing says that the data are the same
    return read_state(folder)


@contextmanager
def _signals(stop: StopFile) -> Iterator[None]:
    """Ignore Ctrl-C, and end the run after its step on other signals by which a user ends programs.

    A terminal, a scheduler or systemd sends a signal to all processes of a command; then the parent asks for the end
    by the stop file too. If it does not, the signal was for this process alone, which dies, and its run starts again.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads may not set signal handlers
        yield
        return
    got: list[int] = []

    def end(number: int, _: object) -> None:
        got.append(number)
        stop.seen = True

    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for name in {"SIGTERM", "SIGHUP"} & vars(signal).keys():  # Windows has no SIGHUP
        before[signal.Signals[name]] = signal.signal(signal.Signals[name], end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if got:
            time.sleep(_PARENT_WITHIN)
            if not os.path.exists(stop.path):
                os.kill(os.getpid(), got[0])
