"""A stand-in for an accelerator: tensors on the CPU that report another device, and that do not mix with others.

As on a real device, an operation on tensors of two devices is an error, except for a CPU tensor without dimensions and
for indices on the CPU. A tensor made without ``device=`` is on the CPU. NumPy cannot read the pretended device, and no
generator of the CPU draws on it. Everything is computed by the CPU's kernels, so that every figure must come out equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_READS = (
    "aten.index.Tensor",
    "aten.index_put",
    "aten._index_put_impl",
    "aten._unsafe_index",
)  # take indices of the CPU
_COPIES = ("aten.copy_", "aten._to_copy", "aten.set_")


def pretends(tensor: Tensor) -> bool:
    """Whether a tensor is on the pretended device: a mark on its storage, which views and ``.data`` share."""
    return getattr(tensor.untyped_storage(), "pretends", False)


def _mark(tensor: Tensor, there: bool = True) -> None:
    if tensor.untyped_storage() is not None and pretends(tensor) != there:
        tensor.untyped_storage().pretends = there


class _Kernels(TorchDispatchMode):
    """Every operation of ATen: refuses two devices, and leaves its results on that of its arguments."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        tensors = [t for t in tree_flatten((args, kwargs or {}))[0] if isinstance(t, Tensor)]
        there = any(map(pretends, tensors))
        if name == "aten.index_put.default" and there:
            _mark(args[0])  # the backward pass of an index makes tensors without a call from Python
            _mark(args[2])
        if there and not name.startswith(_COPIES):
            checked = [args[0]] + [t for t in args[2:] if isinstance(t, Tensor)] if name.startswith(_READS) else tensors
            strangers = [t for t in checked if not pretends(t) and t.dim()]
            if strangers:
                raise RuntimeError(
                    f"{name}: expected all tensors to be on the same device, but found {self.device} and cpu"
                )
        if name.startswith(_READS) and not pretends(args[0]) and there:
            raise RuntimeError(f"{name}: indices should be on the CPU, as the indexed tensor is")
        result = func(*args, **(kwargs or {}))
        if there:
            if name.startswith("aten.copy_"):
                there = pretends(args[0])
            for t in tree_flatten(result)[0]:
                if isinstance(t, Tensor) and there:
                    self._no_float64(t)
                    _mark(t)
        return result

    def _no_float64(self, tensor: Tensor) -> None:
        if self.device.type == "mps" and tensor.dtype is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")


class _Calls(TorchFunctionMode):
    """Every call of torch from Python: factories, moves, and questions for the device."""

    def __init__(self, device: torch.device, kernels: _Kernels) -> None:
        super().__init__()
        self.device, self.kernels = device, kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = resolve_name(func) or getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "torch.Tensor.device.__get__":
            return self.device if pretends(first) else func(*args)
        if name in ("torch.Tensor.is_cpu.__get__", "torch.Tensor.is_mps.__get__"):
            own = "cpu" if "is_cpu" in name else "mps"
            return (self.device.type if pretends(first) else "cpu") == own
        if name in ("torch.Tensor.numpy", "torch.Tensor.__array__") and pretends(first):
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        if name == "torch.Tensor.data.__set__":
            there = pretends(args[1])
            func(*args)
            assert pretends(first) == there
            return None
        if name in ("torch.Tensor.to", "torch.Tensor.cpu", "torch.Tensor.type_as"):
            return self._move(func, name, first, args[1:], kwargs)
        if name == "torch.quantile" and pretends(first) and isinstance(args[1], float):
            number = torch.tensor(args[1], dtype=first.dtype)  # its own would be made on the CPU
            _mark(number)
            args = (first, number, *args[2:])
        given = kwargs.get("device")
        there = given is not None and torch.device(given).type == self.device.type
        if there:
            if kwargs.get("generator") is not None:
                raise RuntimeError(f"Expected a '{self.device}' device type for generator but found 'cpu'")
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        if name in ("torch.Tensor.new_tensor", "torch.Tensor.new") and given is None:
            _mark(result, pretends(first))
        if given is not None and isinstance(result, Tensor):
            if first is not None and result is first and pretends(first) != there:
                result = result.clone()
            if there:
                self.kernels._no_float64(result)
            _mark(result, there)
        return result

    def _move(self, func: Any, name: str, tensor: Tensor, args: Any, kwargs: Any) -> Any:
        there = False if name.endswith("cpu") else pretends(tensor)
        plain = []
        for value in (*args, *((kwargs.pop("device"),) if "device" in kwargs else ())):
            if isinstance(value, Tensor):
                there = pretends(value)
                plain.append(value.dtype)
            elif isinstance(value, (str, torch.device)):
                there = torch.device(value).type == self.device.type
            elif isinstance(value, torch.dtype):  # not `non_blocking` or `copy`
                plain.append(value)
        result = torch.Tensor.to(tensor, *plain, **kwargs) if plain or kwargs else tensor
        if pretends(tensor) and not there and result is not tensor:
            _mark(result, False)
        if pretends(result) != there:
            result = result.clone()
            _mark(result, there)
        if there:
            self.kernels._no_float64(result)
        return result


class DeviceAssertError(BaseException):
    """A kernel has stopped, and with it all that the process has on its GPU: no code may catch this and go on."""


class Asserting(TorchDispatchMode):
    """The draws of a GPU, whose kernels stop for good at a probability or a rate that is NaN."""

    _DRAWS = ("aten.multinomial.", "aten.bernoulli.", "aten.bernoulli_.Tensor", "aten.poisson.")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(self._DRAWS):
            given = [t for t in args if isinstance(t, Tensor)][-1]
            most = 1 if "bernoulli" in str(func) else torch.inf
            if not bool(((given >= 0) & (given <= most)).all()):
                raise DeviceAssertError(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def stand_in(name: str = "hpu:0") -> Iterator[torch.device]:
    """Pretend that a device of this name exists; ``"mps"`` has no float64."""
    device = torch.device(name)
    kernels = _Kernels(device)
    with kernels, _Calls(device, kernels):
        yield device


def places(value: Any) -> set[bool]:
    """Whether the tensors anywhere in a value are on the pretended device."""
    found: set[bool] = set()
    seen: set[int] = set()

    def look(item: Any) -> None:
        if id(item) in seen:
            return
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.add(pretends(item))
        elif isinstance(item, dict):
            for inner in item.values():
                look(inner)
        elif isinstance(item, (list, tuple)):
            for inner in item:
                look(inner)
        elif hasattr(item, "__dict__") and not isinstance(item, (type, torch.nn.Module)):
            look(vars(item))

    look(value)
    return found
