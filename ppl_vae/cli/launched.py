"""The processes that ``torchrun`` starts for one command: they join, and the first one speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any, TypeVar

from ppl_vae._team import Team
from ppl_vae.cli.errors import BadInput

T = TypeVar("T")


def is_restarted() -> bool:
    """Whether ``torchrun --max_restarts`` has started the command again, after a process of it had ended."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def together(team: Team, act: Callable[[], T]) -> T:
    """Act on every process; an error in the user's input on any of them ends all, and the first one says it."""
    error: BadInput | None = None
    result: T
    try:
        result = act()
    except BadInput as found:
        error = found
    said = team.gather(None if error is None else str(error.__cause__), "errors")
    if all(text is None for text in said):
        return result
    if error is not None and team.is_first:
        raise error
    if not team.is_first:
        raise SystemExit(2)
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
def launched() -> Iterator[Team]:
    """Join the processes that ``torchrun`` has started, by gloo on CPUs and NCCL on GPUs; alone, do nothing.

    Processes after the first print nothing but errors, each line with their number.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if count == 1:
        yield Team()
        return
    import torch
    import torch.distributed as dist

    with_gpu, place = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    if with_gpu and place < torch.cuda.device_count():  # more processes than GPUs may train on the CPU
        torch.cuda.set_device(place)
    store, rank, size = next(dist.rendezvous("env://"))
    # of a command that is started again the store still has the addresses of processes that are gone
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if with_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    here = Team.present()
    if here.is_first:
        yield here
    else:
        prefixed: Any = _Prefixed(sys.stderr, here.rank)
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(prefixed):
            yield here
    dist.destroy_process_group()  # not after an error: others may be gone, and it would wait for them
