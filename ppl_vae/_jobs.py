"""Many computations: in this process one after another, or in processes of one thread through `joblib.Parallel`."""

from __future__ import annotations

import functools
import pickle
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from ppl_vae._scopes import threads
from ppl_vae._team import sendable
from ppl_vae._validation import is_integer
from ppl_vae._words import said_by

ATTEMPTS = 3  # of a computation whose worker dies; from the last but one on it runs alone, so that it harms no other
_DEATHS = (  # of Dask and Ray, known by name
    "KilledWorker", "CommClosedError", "CancelledError", "RayActorError", "WorkerCrashedError", "NodeDiedError",
    "OutOfMemoryError",
)  # fmt: skip
_ALONE = threading.RLock()  # torch's generator and Pyro's store are of the process: its threads take turns

Task = Callable[..., Any]


@dataclass(frozen=True)
class Lost:
    """What stands in place of a result whose worker died each time."""

    reason: str


def check_jobs(jobs: object, name: str = "jobs") -> int | None:
    """Return the number of jobs, or raise if it is neither None, a positive integer nor -1 (one for each core)."""
    if jobs is not None and (not is_integer(jobs) or (jobs < 1 and jobs != -1)):
        raise ValueError(f"{name} is {jobs!r}; expected a positive integer, or -1 for one job on each core")
    return None if jobs is None else int(jobs)


def workers(jobs: int | None) -> int:
    """Return how many computations run at once; 1 means in this process.

    Args:
        jobs: The number of processes, -1 for one on each core. None takes it from an active ``joblib.parallel_config``,
            with its backend, and is 1 where there is none.
    """
    if jobs == 1:
        return 1
    backend, configured = joblib.parallel.get_active_backend()
    asked = configured if jobs is None else jobs
    return int(backend.effective_n_jobs(backend.default_n_jobs if asked is None else asked))


def run_all(
    tasks: Sequence[Task],
    done: Callable[[int, Any], None],
    *,
    jobs: int | None = None,
    common: tuple[Any, ...] = (),
    told: Callable[[str], None] = lambda text: None,
) -> None:
    """Run every task, and give each result to `done` as it comes.

    With one worker, tasks run in this process and in order. Else they run through ``joblib.Parallel``: in processes of
    this machine (loky), or on the backend of an active ``joblib.parallel_config``. Each uses one thread. If a worker
    dies, what had begun and not ended starts again; a task whose worker dies `ATTEMPTS` times ends as `Lost`.

    Args:
        tasks: Functions of `common`; for processes they are pickled, with what they hold.
        done: Called in this process with a task's index and its result, or `Lost`.
        jobs: See `workers`.
        common: Arguments that all tasks take, such as data: each process of this machine reads them once.
        told: Called with a sentence when computations start again.

    Raises:
        ValueError: If a task cannot be pickled.
        Exception: Whatever a task raises.
    """
    count = workers(jobs)
    if count == 1:
        for index, task in enumerate(tasks):
            done(index, task(*common))
        return
    left, deaths = dict(enumerate(tasks)), Counter[int]()
    while left:
        calm = {i: task for i, task in left.items() if deaths[i] < ATTEMPTS - 1}
        batch = calm or dict([next(iter(left.items()))])
        with tempfile.TemporaryDirectory() as marks:
            cause = ""
            with closing(_results(batch, count, common, marks)) as results:
                while not cause:
                    try:
                        index, fine, value = next(results)
                    except StopIteration:
                        break
                    except Exception as error:
                        if not _is_death(error):
                            raise _explained(error) from error
                        cause = said_by(error).partition(". ")[0][:160]
                        continue
                    del left[index]
                    if not fine:
                        raise value
                    done(index, value)
            begun = {int(path.name) for path in Path(marks).iterdir() if path.name.isdigit()} & left.keys()
        if cause:
            begun = begun or batch.keys() & left.keys()  # workers on other machines leave no marks here
            deaths.update(begun)
            told(f"a worker died; {len(begun)} of {len(tasks)} computations start again ({cause})")
            for index in [i for i in begun if deaths[i] >= ATTEMPTS and len(batch) == 1]:
                del left[index]
                done(index, Lost(f"its worker process died {ATTEMPTS} times: {cause}"))


def _results(
    tasks: Mapping[int, Task], count: int, common: tuple[Any, ...], marks: str
) -> Generator[tuple[int, bool, Any], None, None]:
    """Yield the index of each task, whether it succeeded, and its result or its exception."""
    backend, _ = joblib.parallel.get_active_backend()
    local = type(backend).__name__ == "LokyBackend"
    held: Any = common
    if local and common:
        held = str(Path(marks, "common"))
        with open(held, "wb") as file:
            pickle.dump(joblib.wrap_non_picklable_objects(common, keep_wrapper=False), file)  # by cloudpickle
    count = max(2, min(count, len(tasks)))  # loky starts as many processes as it is given; of one joblib makes none
    calls = [joblib.delayed(_call)(index, task, held, marks) for index, task in tasks.items()]
    as_they_come = backend.supports_return_generator
    mine: Any = joblib.parallel_config("loky", inner_max_num_threads=1) if local else nullcontext()
    with mine:
        options: dict[str, Any] = {"n_jobs": count, "batch_size": 1, "max_nbytes": None}
        parallel = joblib.Parallel(return_as="generator_unordered" if as_they_come else "list", **options)
    if as_they_come:
        yield from parallel(calls)
    else:  # Ray: the death of a worker loses all that was sent with its task
        with parallel:
            for start in range(0, len(calls), count):
                yield from parallel(calls[start : start + count])


def _call(index: int, task: Task, common: tuple[Any, ...] | str, marks: str) -> tuple[int, bool, Any]:
    """Run a task in a worker, on one thread."""
    with suppress(OSError):
        Path(marks, str(index)).touch()
    with _ALONE, threads(1):
        try:
            return index, True, task(*(_read(common) if isinstance(common, str) else common))
        except Exception as error:
            return index, False, sendable(error)


@functools.lru_cache(maxsize=1)
def _read(path: str) -> tuple[Any, ...]:
    with open(path, "rb") as file:
        return pickle.load(file)


def _is_death(error: Exception) -> bool:
    """Whether an error of joblib's says that a worker died."""
    return isinstance(error, BrokenExecutor) or any(kind.__name__ in _DEATHS for kind in type(error).__mro__)


def _explained(error: Exception) -> Exception:
    """Return a sentence in place of an error of pickling, else the error itself."""
    if not isinstance(error, pickle.PicklingError) and "pickle" not in f"{type(error).__name__} {error}":
        return error
    why = str(error.__cause__ or error).strip(' \n"').splitlines()[-1][:300]  # the last line of a traceback
    return ValueError(
        f"jobs: what is to run cannot be sent to another process ({why}); use functions and classes of a module, "
        "without open files, locks or generators, or jobs=1"
    )
