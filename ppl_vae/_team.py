"""The processes that share a piece of work under `torch.distributed`."""

from __future__ import annotations

import io
import os
import pickle
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Team(NamedTuple):
    """This process among those that share a piece of work; alone by default.

    Attributes:
        rank: Its number; the first, 0, speaks and writes.
        size: How many there are.

    Example:
        >>> Team().share([lambda: 1, lambda: 2])
        [1, 2]
        >>> [list(Team(rank, 3).rows(5)) for rank in range(3)]
        [[0, 1], [2, 3], [4]]
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def present(cls) -> Team:
        """Return the place of this process in the initialised process group, or alone."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process speaks."""
        return self.rank == 0

    def rows(self, total: int) -> range:
        """Return this process's rows of a batch of `total`; none where the batch has fewer rows than processes.

        The rows of all processes are contiguous parts that cover the batch without overlap, and their numbers differ
        by at most one.
        """
        least, more = divmod(total, self.size)
        start = self.rank * least + min(self.rank, more)
        return range(start, start + least + (self.rank < more))

    def taken(self, total: int) -> range:
        """Return `rows`, or the first row where there are none: it is computed and counts nothing."""
        return self.rows(total) or range(1)

    def gather(self, value: T, what: str = "") -> list[T]:
        """Return the values of all processes, in order.

        Args:
            value: What can be pickled.
            what: A name of the exchange, the same on all processes.

        Raises:
            RuntimeError: If the processes are at different exchanges, as after an error on one of them.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        received: list[Any] = [None] * self.size
        dist.all_gather_object(received, _packed((what, value)))
        values = [_unpacked(data) for data in received]
        if len({name for name, _ in values}) > 1:
            raise RuntimeError(
                f"the processes have parted: they exchange {', '.join(repr(name) for name, _ in values)}"
            )
        return [found for _, found in values]

    def share(self, tasks: Sequence[Callable[[], T]], what: str = "tasks") -> list[T]:
        """Return the results of all tasks, of which this process does every `size`-th; all on every process.

        Raises:
            Exception: The first error of a task, on every process.
        """
        if self.size == 1:
            return [task() for task in tasks]
        mine: list[Any] = []
        for task in tasks[self.rank :: self.size]:
            try:
                mine.append(task())
            except Exception as error:
                mine.append(sendable(error))
        all_of_them = self.gather(mine, what)
        results = [all_of_them[i % self.size][i // self.size] for i in range(len(tasks))]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results


ALONE = Team()


def _packed(value: Any) -> bytes:
    import torch

    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def _unpacked(data: bytes) -> Any:
    """Return a value from another process, with what was on its GPU on the present one."""
    import torch

    here = lambda storage, place: storage if place == "cpu" else storage.cuda()  # noqa: E731
    return torch.load(io.BytesIO(data), map_location=here, weights_only=False)


def sendable(error: Exception) -> Exception:
    """Return an error, or what it says where it cannot be sent to other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def launch() -> str | None:
    """Return what names the call of ``torchrun`` that has started this process, its restarts too; None without one."""
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{platform.node()} {os.getppid()}" if given in ("", "none") else given  # its name where none is given


def refuse_shared(what: str) -> None:
    """Refuse what only one process of several can do.

    Raises:
        RuntimeError: Inside a process group of several processes.
    """
    if (size := Team.present().size) > 1:
        raise RuntimeError(f"{what} runs in one process, and torch.distributed joins {size}: call it before they join")
