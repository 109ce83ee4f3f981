"""The one rule for devices and dtypes: computing happens where the parameters are, in their dtype."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae._tensors import as_numbers, moved
from ppl_vae.capture.reach import Reach

P = ParamSpec("P")
R = TypeVar("R")

_DATA = {"x", "x_from", "x_to", "data"}  # arguments that hold data of a VAE
ROWS = 4096  # of data on the device of the parameters at once, where rows have nothing to do with each other


def modules_in(program: Any) -> list[nn.Module]:
    """Return the modules of a VAE, of a ``(model, guide)`` pair, of densities, or of a piece."""
    if isinstance(program, nn.Module):
        return [program]
    if isinstance(program, tuple) or inspect.isroutine(program):
        return Reach().visit(*(program if isinstance(program, tuple) else (program,))).modules
    return list(getattr(program, "modules", ()))


def home_of(program: Any) -> Tensor | None:
    """Return a tensor with the device and dtype of the parameters, or of the buffers; None if there are neither."""
    if isinstance(program, Tensor):
        return program
    modules = modules_in(program)
    held = [*(p for m in modules for p in m.parameters()), *(b for m in modules for b in m.buffers())]
    return next((t for t in held if t.is_floating_point()), None)


def at_home(
    *names: str, program: str | None = "", rows: bool = False, float64: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function of a program take data of any device and dtype, and answer on the device of the data.

    The named arguments move to the device of the program's parameters and take their floating dtype; integers stay
    integers, but for the data x of a VAE, which become numbers as `fit` makes them. The other arguments only move. What
    is given no data answers on the device of the parameters. A program without parameters, and a function without a
    program, compute where the first data are.

    Args:
        names: The arguments that hold data, the first one first; none where the function moves them itself.
        program: The argument that is the program, or a tensor of parameters; the first one by default, None for none.
        rows: Whether the rows of the data have nothing to do with each other. They then move, are computed and come
            back in blocks of `ROWS`.
        float64: Whether the function computes in float64. A program on a device without it (Apple's MPS) is on the CPU
            meanwhile, with a warning that says so. Autocast, which would round its products, is off meanwhile.

    Raises:
        TypeError: If data are no tensor, array, or part of a data set.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, called = inspect.signature(function), function.__name__.removeprefix("_")
        owner = next(iter(signature.parameters)) if program == "" else program

        @functools.wraps(function)
        def placed(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            values: dict[str, Any] = bound.arguments
            given = {name: values[name] for name in names if name in values and values[name] is not None}
            for name, value in given.items():
                _check(value, f"{called}: {name}")
            held = values.get(owner) if owner else None
            with _with_float64(held, called) if float64 else nullcontext():
                like = home_of(held)
                where = next((_device(value) for value in given.values()), None)
                home = where if like is None else like.device
                if home is None or not names:
                    return function(*args, **kwargs)
                dtype = None if like is None else like.dtype

                def call(data: Mapping[str, Any]) -> R:
                    for name, value in values.items():
                        if name != owner or like is None:
                            values[name] = moved(data.get(name, value), home, dtype if name in names else None)
                    for name in _DATA & values.keys() if hasattr(held, "y_shape") else ():
                        values[name] = _numbers(values[name], dtype, f"{called}: {name}")
                    found = function(*bound.args, **bound.kwargs)
                    return found if where is None else moved(found, where)

                size = len(next(iter(given.values()))) if rows and given else 0
                particles = "z" in given and len(given) > 1 and given["z"].ndim > 2  # a condition is not for each row
                if size <= ROWS or particles or any(len(value) != size for value in given.values()):
                    return call(given)
                blocks = [{n: v[i : i + ROWS] for n, v in given.items()} for i in range(0, size, ROWS)]
                return cast(R, torch.cat([cast(Tensor, call(block)) for block in blocks]))

        return placed

    return decorate


def _check(value: Any, name: str) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, (Tensor, np.ndarray)) and not (is_dataclass(item) and hasattr(item, "to")):
            raise TypeError(f"{name} is a {type(item).__name__}; expected a tensor or a numpy array of data")


def _numbers(x: Any, dtype: torch.dtype | None, what: str) -> Any:
    """Return data of a VAE, a tensor or columns, whose x are numbers."""
    if isinstance(x, tuple) and x:
        return (_numbers(x[0], dtype, what), *x[1:])
    whole = isinstance(x, Tensor) and not x.is_floating_point()
    return as_numbers(x, dtype or torch.get_default_dtype(), what) if whole else x


def _device(value: Any) -> torch.device:
    """Return the device of data: the CPU for a numpy array and for rows that are not in memory."""
    value = value[0] if isinstance(value, tuple) and value else getattr(value, "x", value)
    return value.device if isinstance(value, Tensor) else torch.device("cpu")


@contextmanager
def _with_float64(program: Any, name: str) -> Iterator[None]:
    """Switch autocast off, and keep a program on the CPU meanwhile if its device has no float64."""
    like = home_of(program)
    if like is None or like.device.type != "mps":
        with torch.autocast("cpu" if like is None else like.device.type, enabled=False):
            yield
        return
    device, modules = like.device, modules_in(program)
    warnings.warn(f"{name} needs float64, which {device} does not have: it is computed on the CPU", stacklevel=4)
    try:
        for module in modules:
            module.to("cpu")
        yield
    finally:
        for module in modules:
            module.to(device)
