"""The choices of device and compilation that `fit` makes where the user leaves them to it."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from typing import cast, get_args

import torch
from torch import Tensor

from ppl_vae._home import home_of
from ppl_vae._validation import check_choice, check_positive_int
from ppl_vae._words import first_line
from ppl_vae.capture.graphs import REPAY
from ppl_vae.data import Dataset
from ppl_vae.data.streams import Stream
from ppl_vae.objectives.losses import Program
from ppl_vae.svi import Compile


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device; ``"auto"`` is cuda, else mps, else cpu, as available.

    Raises:
        ValueError: If the device cannot be used.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise ValueError(f"device {device!r} cannot be used ({reason}); expected auto, cpu, cuda or mps") from error
    return resolved


def device_of(program: Program, data: Dataset) -> torch.device:
    """Return where a pair of functions computes: at the parameters of its modules, or without any at the data."""
    like = home_of(program)
    if like is None and isinstance(data.train.columns[0], Tensor):
        like = data.train.columns[0]
    return torch.device("cpu") if like is None else like.device


def resolve_compile(
    compile: str,
    data: Dataset | None = None,
    *,
    objective: object = None,
    epochs: int = 1,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
) -> Compile:
    """Return the level of compilation; ``"auto"`` depends on the run's settings, never on a clock.

    ``"auto"`` gives ``"full"`` where a compiler is at hand and the run is long enough to pay for compiling: the saving
    of the run must exceed 20 seconds for each shape of batch that is compiled: one, or in a run of 100 epochs and more
    two, unless the batch size divides the number of data. The saving is the number of steps times the saving of one
    step: half a millisecond of calls, and 4 nanoseconds for every number in a batch of reconstructions (measured in
    benchmarks/ on two cores). Otherwise ``"auto"`` gives ``"graph"``, which needs no compiler and changes no bit. Large
    programs (flows, hierarchies) take up to a minute to compile, and a second run of the same program 2 seconds.

    Raises:
        ValueError: If there is no such level, or a number is not positive.

    Example:
        >>> resolve_compile("auto")
        'graph'
    """
    check_choice(compile, ("auto", *get_args(Compile)), "compile")
    if compile != "auto":
        return cast(Compile, compile)
    if data is None:
        return "graph"
    batch_size, epochs = check_positive_int(batch_size, "batch_size"), check_positive_int(epochs, "epochs")
    numbers = batch_size * math.prod(data.x_shape) * getattr(objective, "num_particles", 1)
    steps = data.train.num_batches(batch_size)
    if steps is None:
        return "graph"
    saved = epochs * steps * (5e-4 + 4e-9 * numbers)
    alike = not isinstance(data.train, Stream) and len(data.train) % min(batch_size, len(data.train)) == 0
    shapes = 1 if alike or epochs < REPAY else 2
    return "full" if saved > 20 * shapes and _has_compiler(resolve_device(device)) else "graph"


def _has_compiler(device: torch.device) -> bool:
    """Whether Inductor finds its compiler: a C++ compiler, or Triton on a GPU."""
    if device.type != "cpu":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
