"""The processes that ``torchrun`` starts for one command: they join, and the first one speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any, TypeVar

from ppl_vae.cli.errors import BadInput

T = TypeVar("T")


class Team:
    """This process among those that run the command.

    Attributes:
        rank: Its number; 0 speaks and writes.
        count: How many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_first(self) -> bool:
        """Whether this process speaks."""
        return self.rank == 0

    @property
    def is_restarted(self) -> bool:
        """Whether ``torchrun --max_restarts`` has started the command again, after a process of it had ended."""
        return self.count > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def together(self, act: Callable[[], T]) -> T:
        """Act on every process; an error in the user's input on any of them ends all, and the first one says it."""
        error: BadInput | None = None
        result: T
        try:
            result = act()
        except BadInput as found:
            error = found
        said = self.gather(None if error is None else str(error.__cause__))
        if all(text is None for text in said):
            return result
        if not self.is_first:
            raise SystemExit(2)
        if error is not None:
            raise error
        rank = next(i for i, text in enumerate(said) if text is not None)
        raise BadInput from ValueError(f"on process {rank}: {said[rank]}")


class _Prefixed:
    """A stream in which each line names the process that writes it."""

    def __init__(self, stream: IO[str], rank: int) -> None:
        self.stream, self.prefix = stream, f"process {rank}: "

    def write(self, text: str) -> int:
        """Write text."""
        lines = text.splitlines(keepends=True)
        self.stream.write("".join(self.prefix + line if line.strip() else line for line in lines))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def team() -> Iterator[Team]:
    """Join the processes that ``torchrun`` has started, by gloo on CPUs and NCCL on GPUs; alone, do nothing.

    Processes after the first print nothing but errors, each line with their number.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if count == 1:
        yield Team()
        return
    import torch
    import torch.distributed as dist

    with_gpu = torch.cuda.is_available()
    if with_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if with_gpu else "gloo")
    here = Team(dist.get_rank(), count)
    if here.is_first:
        yield here
    else:
        prefixed: Any = _Prefixed(sys.stderr, here.rank)
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(prefixed):
            yield here
    dist.destroy_process_group()  # not after an error: others may be gone, and it would wait for them
