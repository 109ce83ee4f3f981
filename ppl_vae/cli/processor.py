"""The CPU under a command: how many threads compute, whether denormals slow them, and whether it was free for them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from ppl_vae._validation import check_positive_int
from ppl_vae.configuration.words import number

LEAST_SECONDS = 10.0  # of a run, to judge by: a load average is of the last minute


def take_threads(argv: Sequence[str]) -> tuple[list[str], int | None]:
    """Return the words without ``--threads N``, and N; None if it is not given.

    Raises:
        ValueError: If N is no positive integer.

    Example:
        >>> take_threads(["runs/a", "--threads", "2", "--seed=1"])
        (['runs/a', '--seed=1'], 2)
    """
    rest: list[str] = []
    found, words = None, iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--threads":
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        found = check_positive_int(number(value), "--threads")
    return rest, found


def threads(count: int | None) -> AbstractContextManager[None]:
    """Let so many threads compute meanwhile; None leaves torch's choice, which ``OMP_NUM_THREADS`` sets."""
    if count is None:
        return nullcontext()
    from ppl_vae import _scopes  # here: a command that computes nothing does without torch

    return _scopes.threads(count)


class Effort:
    """The time that the CPU gave this process, from now on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def shortage(self) -> str | None:
        """Return a line that says so if other work took the CPU from this process's threads, else None."""
        import torch

        wall, count = time.perf_counter() - self._wall, torch.get_num_threads()
        given = (time.process_time() - self._cpu) / wall
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
        if wall < LEAST_SECONDS or load <= cores or given > 0.6 * count:
            return None
        fix = "; try --threads 1" if count > 1 else ""
        return (
            f"note: the CPU was oversubscribed: {count} thread{'s' * (count > 1)} got {given:.2f} CPU seconds a second "
            f"at a load of {load:.1f} on {cores} core{'s' * (cores > 1)}{fix}"
        )
