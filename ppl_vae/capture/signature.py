"""The key of a step's graph: the step's arguments, and the switches of torch that it runs under."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _pytree
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ppl_vae.capture.places import PLAIN, kind_of
from ppl_vae.capture.tracing import CaptureError

_VALUES = (*PLAIN, np.bool_, torch.dtype, torch.device, enum.Enum, range)  # types of values that a key can hold


class Signature(NamedTuple):
    """A step's arguments, split into the key of a graph and the inputs of that graph.

    Attributes:
        key: Structure, shapes, strides, types and devices; which tensors are the same; plain values except numbers.
        tensors: The tensors, in order.
        numbers: The integers and floats, in order.
        rebuild: Turns tensors and numbers (or tensors in place of numbers) back into (args, kwargs).
    """

    key: tuple[Any, ...]
    tensors: list[Tensor]
    numbers: tuple[float, ...]
    rebuild: Callable[..., tuple[Any, dict[str, Any]]]


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
    """Split a step's arguments into the key of a graph and its inputs.

    Raises:
        CaptureError: If an argument is neither a tensor nor a plain value.
    """
    if not kwargs and len(args) == 1 and type(args[0]) is Tensor:  # the usual case, without the cost of the general one
        return Signature((_kind(args[0]),), list(args), (), lambda *new: (new, {}))
    leaves, structure = _pytree.tree_flatten((args, kwargs))
    key: list[Any] = [repr(structure)]  # older torch cannot hash the structure itself
    places, numbers, where = [], [], []
    first: dict[int, int] = {}
    for i, leaf in enumerate(leaves):
        if type(leaf) in (Tensor, nn.Parameter):
            places.append(i)
            key.append((_kind(leaf), first.setdefault(id(leaf), i)))
        elif type(leaf) in (int, float) or isinstance(leaf, (np.integer, np.floating)):
            where.append(i)
            numbers.append(leaf.item() if isinstance(leaf, np.generic) else leaf)
            key.append(type(leaf))
        elif isinstance(leaf, _VALUES):
            key.append((type(leaf), leaf))
        else:
            raise CaptureError(f"an argument is a {type(leaf).__name__}; expected tensors and plain Python values")

    tensors = [leaves[place] for place in places]
    for place in places:  # a graph keeps `rebuild`, which should keep no batch alive
        leaves[place] = None

    def rebuild(*new: Any) -> Any:
        filled = list(leaves)
        for place, value in zip(places + where, new, strict=True):
            filled[place] = value
        return _pytree.tree_unflatten(filled, structure)

    return Signature(tuple(key), tensors, tuple(numbers), rebuild)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """Return a tensor's part of the key, with its strides: another memory layout takes other operations."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise CaptureError("an argument is a sparse or nested tensor")
    return kind_of(tensor)


def environment() -> tuple[Any, ...]:
    """Return the switches of torch that decide which operations a step takes."""
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_anomaly_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._len_torch_function_stack() and repr([m.device for m in _get_current_function_mode_stack()]),
    )


def unusual(tensors: list[Tensor]) -> str | None:
    """Say why this one step runs eagerly, or return None if it need not."""
    if _PYRO_STACK:  # a handler changes the program
        return "an effect handler of Pyro's is around the step"
    if not torch.is_grad_enabled():
        return "gradients are switched off"
    modes = _get_current_function_mode_stack() if torch._C._len_torch_function_stack() else []
    if torch._C._len_torch_dispatch_stack():
        modes += _get_current_dispatch_mode_stack()
    if not all(type(mode) is DeviceContext for mode in modes):
        return "a mode of torch's is around the step"
    for tensor in tensors:
        if tensor.requires_grad and not tensor.is_leaf:
            return "an argument is computed from tensors that require a gradient"
        if tensor.requires_grad and (tensor._backward_hooks or tensor._post_accumulate_grad_hooks):
            return "an argument has a hook"
        if tensor.is_neg() or tensor.is_conj():  # compiled code reads the memory alone
            return "an argument is negated or conjugated when it is read; give x.resolve_neg() or x.resolve_conj()"
    return None


def can_watch() -> bool:
    """Whether the functions that a step enters can be noted now, which making a graph requires."""
    return sys.getprofile() is None  # else another profiler has the hook that `Entered` takes
