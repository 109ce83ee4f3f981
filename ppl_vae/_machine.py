"""The machine: the name of its processor, what is installed, and what fits into its memory."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

PACKAGES = ("ppl-vae", "torch", "pyro-ppl", "numpy")  # whose versions tell what wrote a file
_FACTORIES = (
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.rand, torch.randn, torch.randint),
    *(torch.arange, torch.linspace, torch.empty_strided, torch.randperm),
)


def processor() -> str:
    """Return the name of the processor, or of its architecture where the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of Python and of packages; None for one that is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def memory() -> float:
    """Return the bytes of memory that are free for this process, or of the whole machine; inf if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows
        return float("inf")


def check_fits(numbers: float, what: str, fix: str, device: str | torch.device = "cpu") -> None:
    """Refuse work on so many numbers of float32 that they do not fit into memory.

    Args:
        numbers: How many numbers the work holds at once, at least.
        what: What it holds, for the message.
        fix: What to lower.
        device: Where it computes. The memory of a GPU is not looked at: its own error says that it is full.

    Raises:
        ValueError: If they do not; the message says what to lower.
    """
    if torch.device(device).type == "cpu" and 4 * numbers > memory():
        raise ValueError(f"{what} need {_gib(4 * numbers)} and more, and {_gib(memory())} are free; lower {fix}")


class Budget(TorchFunctionMode):
    """A mode in which tensors are not made once all that it made would not fit into memory together.

    It sees the functions that make a tensor from a size, such as those that make parameters, before they allocate.

    Raises:
        ValueError: If a tensor does not fit.
    """

    def __init__(self, fix: str) -> None:
        super().__init__()
        self.fix = fix
        self._free = self._left = memory()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what a factory will allocate, and call it."""
        kwargs = kwargs or {}
        if func in _FACTORIES:
            plain = {name: value for name, value in kwargs.items() if name not in ("generator", "device", "out")}
            self._left -= func(*args, **plain, device="meta").nbytes
            if self._left < 0:
                needs = f"it needs {_gib(self._free - self._left)} and more"
                raise ValueError(f"{needs}, and {_gib(self._free)} are free; lower {self.fix}")
        return func(*args, **kwargs)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB of memory"
