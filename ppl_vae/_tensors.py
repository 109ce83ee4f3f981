"""Tensors wherever they are held, moved to a device."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree


def exact_up_to(dtype: torch.dtype) -> int:
    """Return the number up to which a floating dtype has every whole number: 2^24 of float32."""
    return int(2 / torch.finfo(dtype).eps)


def as_numbers(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """Return data as real numbers of a dtype; images of 8-bit pixels (uint8) are divided by 255.

    Raises:
        ValueError: If the tensor holds whole numbers that the dtype rounds, or rows of uint8, which may be pixels or
            counts.
    """
    if tensor.dtype == torch.uint8:
        if tensor.dim() < 3:
            raise ValueError(
                f"{what} holds rows of uint8, which may be pixels or counts: give x / 255 for pixels, x.astype(float) "
                "(of a tensor, x.float()) for counts"
            )
        return tensor.to(dtype).div_(255)
    if tensor.numel() and not tensor.is_floating_point() and tensor.dtype != torch.bool:
        low, high = (tensor if tensor.dtype.is_signed else tensor.to(torch.float64)).aminmax()
        if max(-low.item(), high.item()) > (limit := exact_up_to(dtype)):
            power = limit.bit_length() - 1
            raise ValueError(f"{what} holds whole numbers above 2^{power}, which {dtype} rounds: scale or shift them")
    return tensor.to(dtype)


@torch.no_grad()
def copied(value: Any) -> Any:
    """Return a copy of nested containers; their tensors are copied together, on a GPU by one kernel or a few."""
    leaves, form = _pytree.tree_flatten(value)
    dense = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
    copies = [torch.empty_like(leaf, requires_grad=False) for leaf in dense]
    if dense:
        torch._foreach_copy_(copies, dense)
    new = {id(leaf): own for leaf, own in zip(dense, copies, strict=True)}
    return _pytree.tree_unflatten([new[id(v)] if id(v) in new else copy.deepcopy(v) for v in leaves], form)


def moved(value: Any, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Any:
    """Return a value with all its tensors on a device; it is the same object where nothing moves.

    Tuples, lists, mappings, dataclasses and data sets are searched. NumPy arrays become tensors, as copies. Float64
    stays on the CPU where the device has none (Apple's MPS).

    Args:
        value: The value.
        device: The device; None leaves tensors where they are.
        dtype: The dtype of floating tensors; by default they keep theirs.
    """
    device = None if device is None else torch.device(device)
    if isinstance(value, np.ndarray):
        # a copy of its own, as torch takes neither negative strides nor the byte order of another machine
        value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if isinstance(value, Tensor):
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        stays = device is None or (device.type == "mps" and value.dtype is torch.float64)
        return value if stays else value.to(device)
    again = functools.partial(moved, device=device, dtype=dtype)
    if isinstance(value, Mapping):
        found = {name: again(item) for name, item in value.items()}
        return value if all(found[name] is value[name] for name in found) else found
    if isinstance(value, (tuple, list)):
        items = [again(item) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not is_dataclass(value) or isinstance(value, (type, nn.Module)):
        return value
    if hasattr(value, "to"):  # a data set or one of its parts
        return value if device is None else value.to(device, dtype)
    parts = {f.name: getattr(value, f.name) for f in fields(value)}
    changed = {name: new for name, part in parts.items() if (new := again(part)) is not part}
    if changed:
        value = copy.copy(value)
        for name, new in changed.items():
            object.__setattr__(value, name, new)  # of a frozen dataclass, in a copy of our own
    return value


def in_words(value: Any) -> str:
    """Return what a value is, for an error: its type, and the shape and dtype of a tensor."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"


def leaves_of(tensor: Tensor) -> list[Tensor]:
    """Return the leaves that a tensor's gradient flows to."""
    seen, todo, leaves = set(), [tensor.grad_fn], []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        todo += [following for following, _ in node.next_functions]
    return leaves
