"""Context managers that restore what they set: random state, modes of modules, precision, threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae._validation import check_seed

Precision = Literal["full", "bf16"]
MatmulPrecision = Literal["highest", "high", "medium"]


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Restore torch's random state on exit, on the CPU and on every accelerator in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


@contextmanager
def reseeded() -> Iterator[Callable[[int], None]]:
    """Give a function that seeds torch's generator of the CPU, NumPy's and Python's; restore all three on exit."""

    def draw_from(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield draw_from
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed inside the block, and restore torch's random state on exit.

    Raises:
        ValueError: If it is no seed; torch takes the integer part of a number.
    """
    with untouched_random_state():
        torch.manual_seed(check_seed(seed))
        yield


@contextmanager
def kept_modes(*modules: nn.Module) -> Iterator[None]:
    """Restore the mode of each submodule on exit: training or evaluation."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for m, training in modes:
            if m.training is not training:  # setting an attribute of a module is slow
                m.training = training


@contextmanager
def kept_values(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values of tensors on exit."""
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, and on exit restore the mode of each submodule."""
    with kept_modes(*modules):
        for module in modules:
            if any(m.training for m in module.modules()):
                module.eval()
        yield


@contextmanager
def rounded(device: str, precision: Precision, matmul_precision: MatmulPrecision | None) -> Iterator[None]:
    """Round inside the block as `fit` explains."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul_precision or before)
    try:
        with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers too small for full precision (below 1e-38 in float32) for zero meanwhile, where the CPU can.

    They come from saturated pixels and from the moments of weights whose gradient has vanished, and slow an Intel's
    step by a third and more. The switch is of a thread, and threads made later inherit it: this must begin before the
    first computation that several threads share. A pool made earlier keeps its own.
    """
    before = bool((torch.tensor(1e-38) * 0.1) == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
