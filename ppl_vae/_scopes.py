"""Context managers that restore the random state or the modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Restore torch's random state on exit, on the CPU and, if CUDA is in use, on every GPU."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed inside the block, and restore torch's random state on exit."""
    with untouched_random_state():
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, and on exit restore the mode of each submodule."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
