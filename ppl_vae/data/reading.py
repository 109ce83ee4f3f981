"""Rows read ahead of their use, by a thread or by worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_vae._words import said_by

AHEAD = 2**26  # bytes of rows that wait for their use, beside the batch that is read
MOST = 16  # batches that wait for their use
MAX_WORKERS = 8  # or the number of cores, if that is lower, where nobody says
# what multiprocessing raises where a worker has ended while its batch was on the way: the socket or the file is gone
_LOST = (ConnectionError, EOFError, FileNotFoundError)


def ahead(read: Callable[[Tensor], Tensor], pieces: Sequence[Tensor], row_bytes: int) -> Iterator[Tensor]:
    """Yield ``read(piece)`` for each piece in turn, read ahead by one thread.

    Args:
        read: Reads some rows; nothing else may depend on the thread that calls it.
        pieces: The numbers of the rows, int64.
        row_bytes: The bytes of a row that has been read.
    """
    depth = _most(pieces, row_bytes)
    waiting = deque[Future[Tensor]]()
    with ThreadPoolExecutor(1, "ppl_vae.data") as thread:
        try:
            for piece in pieces:
                waiting.append(thread.submit(read, piece))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def by_workers(
    items: Any, pieces: Sequence[Tensor], collate: Callable[[Any], Any], workers: int, row_bytes: int
) -> Iterator[Any]:
    """Yield what `collate` makes of the items of each piece in turn, read ahead by torch's worker processes.

    An exception that `collate` returns is raised here; one that a worker raises would come with its traceback as text.

    Args:
        items: The object whose items are asked for, by ``__getitems__`` if it has that.
        pieces: The numbers of the items, int64.
        collate: Makes a batch of items.
        workers: The number of processes, which hold one or two batches each and end with the pass; 0 reads in this
            process, as do a single piece and a daemon.
        row_bytes: The bytes of an item.

    Raises:
        RuntimeError: If a worker process has ended before its time.
    """
    most = _most(pieces, row_bytes)
    alone = len(pieces) < 2 or multiprocessing.current_process().daemon  # a daemon may start no processes
    workers = 0 if alone else workers
    loader: DataLoader = DataLoader(
        items,
        batch_sampler=(piece.tolist() for piece in pieces),  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=None if not workers else 2 if 2 * workers <= most else 1,
        generator=torch.Generator(),  # otherwise every pass draws a number from the global one
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches, None)
        except (RuntimeError, *_LOST) as error:
            said = said_by(error)
            lost = isinstance(error, _LOST) and workers and not said.startswith("Caught ")  # by torch, in an item
            if not lost and not said.startswith("DataLoader worker"):
                raise
            raise RuntimeError(
                f"a worker process that reads the data has ended ({said}): something killed it, such as "
                "a lack of memory, or an item crashed; workers=0 reads in this process, which shows where"
            ) from error
        if batch is None:
            return
        if isinstance(batch, Exception):
            raise batch
        yield batch


def cores() -> int:
    """Return the number of worker processes where nobody says: as many as cores, up to `MAX_WORKERS`."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, found)


def _most(pieces: Sequence[Tensor], row_bytes: int) -> int:
    """Return how many batches may wait: those of `AHEAD` bytes, from 1 to `MOST`."""
    return max(1, min(MOST, AHEAD // max(1, len(pieces[0]) * row_bytes))) if pieces else 1
