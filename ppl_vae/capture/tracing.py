"""Pyro under tracing: operations replace code that reads values out of tensors, which a graph cannot do."""

from __future__ import annotations

import sys
import threading
import traceback
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyro.infer.util
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx.experimental import proxy_tensor

from ppl_vae._words import first_line
from ppl_vae.capture.entered import is_library

_OWN = str(Path(__file__).parent.parent)


class CaptureError(RuntimeError):
    """A step that cannot be captured, with the reason in one sentence."""

    def __str__(self) -> str:
        """Return the reason, without the table of shapes that Pyro adds to an error in a program."""
        return super().__str__().partition("\n")[0]


class OutgrownError(CaptureError):
    """A program that was captured, and does in a later step what no graph can hold."""


class NotNowError(CaptureError):
    """A step that cannot be captured now but may be later: the program has a hook, for example."""


class _Namespace:
    """A module or namespace with some of its names replaced."""

    def __init__(self, home: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._home = home

    def __getattr__(self, name: str) -> Any:
        return getattr(self._home, name)


@contextmanager
def traceable_pyro() -> Iterator[None]:
    """Run Pyro's objectives so that they wait for no number, and its distributions without validation.

    A graph cannot wait for a value. Pyro's objectives add up their loss as a float; here it stays a tensor. They warn
    of NaN; here they do not. `TraceEnum_ELBO` leaves out terms of probability zero where there are any; here zeros
    always replace these terms, which gives the same sum. A distribution that was made under validation checks the
    values that it scores; here it does not.
    """
    item, select = Tensor.item, Tensor.masked_select

    def as_tensor(x: Tensor) -> Any:
        return x.detach() if _called_by("pyro.infer.") else item(x)

    def as_zeros(x: Tensor, mask: Tensor) -> Tensor:
        if not _called_by("pyro.infer.util"):
            return select(x, mask)
        return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device)).flatten()

    tracing = _Namespace(torch, _C=_Namespace(torch._C, _get_tracing_state=lambda: True))
    with ExitStack() as stack:
        for owner, name, replacement in (
            (Tensor, "item", as_tensor),
            (Tensor, "masked_select", as_zeros),
            (pyro.infer.util, "torch", tracing),
            # a fake tensor for every result, which nobody reads: half of the time of `make_fx`
            (proxy_tensor, "extract_val", lambda value, **options: None),
            (Distribution, "_validate_sample", lambda self, value: None),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        for name, module in list(sys.modules.items()):
            if name.startswith("pyro.infer.") and "warn_if_nan" in vars(module):
                stack.enter_context(mock.patch.object(module, "warn_if_nan"))
        yield


def _called_by(module: str) -> bool:
    """Whether the caller's caller belongs to a module whose name starts so."""
    return str(sys._getframe(2).f_globals.get("__name__")).startswith(module)


@contextmanager
def backward_noted(until: types.CodeType) -> Iterator[list[Tensor]]:
    """Note the tensors that Pyro's objectives would differentiate in this thread, instead of differentiating them.

    A backward pass that the user's code takes, or is around, is refused: what that code does with the gradients is no
    part of a graph.

    Args:
        until: The code of the function that enters this context.
    """
    noted: list[Tensor] = []
    backward, thread = torch.autograd.backward, threading.get_ident()

    def note(tensors: Any, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() != thread:
            return backward(tensors, *args, **kwargs)
        frame: Any = sys._getframe(1)
        while frame.f_code is not until:
            if not is_library(frame.f_globals.get("__name__")):
                place = f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
                raise CaptureError(f"it calls backward() itself (at {place}); return the loss to differentiate instead")
            frame = frame.f_back
        noted.extend([tensors] if isinstance(tensors, Tensor) else tensors)

    with mock.patch.object(torch.autograd, "backward", note):
        yield noted


@contextmanager
def explained() -> Iterator[None]:
    """Raise any error as a `CaptureError` that says where it arose, in the user's code or Pyro's, and what to do."""
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{_reason(error)}{_where(error)}") from error


def _reason(error: BaseException) -> str:
    message = str(error)
    if "_local_scalar_dense" in message or "data-dependent" in message.lower():
        return (
            "it reads a number out of a tensor (.item(), float(), a branch on a value); compute with tensors, as by "
            "torch.where"
        )
    return first_line(error)


def _where(error: BaseException) -> str:
    """Say where an error arose: the innermost frame of the user's code, and of Pyro's if that code called it."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [i for i, f in enumerate(frames) if not _is_installed(f.filename)]
    pyros = [i for i, f in enumerate(frames) if "/pyro/" in f.filename.replace("\\", "/")]
    places = []
    if pyros and (not mine or pyros[-1] > mine[-1]):
        frame = frames[pyros[-1]]
        short = frame.filename.replace("\\", "/").rpartition("/pyro/")[2]
        places.append(f"Pyro's {short}:{frame.lineno}, in {frame.name}")
    if mine:
        frame = frames[mine[-1]]
        places.append(f"{frame.filename}:{frame.lineno}, in {frame.name}")
    return f" (at {', called from '.join(places)})" if places else ""


def _is_installed(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith((_OWN, "<")) or "/lib/python" in filename
