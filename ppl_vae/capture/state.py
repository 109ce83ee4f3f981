"""The state that a step uses besides its inputs (tensors, random states, Pyro's store), noted and put back."""

from __future__ import annotations

import functools
import pickle
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

WRITES_UNSAID = ("batch_norm", "instance_norm")  # operations whose schema hides that they write into their buffers
# operations that use only the shape of their argument
_OF_SHAPES = ("new_ones", "new_zeros", "new_full", "ones_like", "zeros_like", "full_like")
# code whose results may have shapes that depend on values: it never computes with these shapes
_OF_ANY_SHAPE = "pyro.distributions.transforms.spline"


class Written(TorchDispatchMode):
    """A mode that notes which older tensors are written to, and which tensors are read as Python numbers.

    Attributes:
        before: A tensor on each storage that was written to, with a copy from before the first write.
        numbers: Tensors from which Python read a number or a truth value.

    Raises:
        RuntimeError: At an operation whose result has a shape that depends on values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.numbers: list[Tensor] = []
        self._made: dict[int, StorageWeakRef] = {}
        self._constant: set[int] = set()  # storages that depend on no older values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and note what it writes and what Python reads."""
        for tensor in _written(func, args, kwargs or {}):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self.before:
                everything = whole(tensor)
                self.before[storage._cdata] = everything, everything.clone()
        inputs = list(_tensors((args, kwargs)))
        given = storages(inputs)
        constant = func.__name__.startswith(_OF_SHAPES) or given <= self._constant
        if torch.Tag.dynamic_output_shape in func.tags and not constant and _by_values(func, args):
            raise RuntimeError(
                f"it takes a shape from values ({func.__name__.partition('.')[0]}, as in x[mask] or nonzero); use "
                "torch.where"
            )
        result = func(*args, **(kwargs or {}))
        if torch.Tag.data_dependent_output in func.tags:
            self.numbers += inputs
        constant = constant and torch.Tag.nondeterministic_seeded not in func.tags
        if not constant:
            self._constant -= storages(_written(func, args, kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self._made[storage._cdata] = StorageWeakRef(storage)  # keeps the address from being reused
                if constant:
                    self._constant.add(storage._cdata)
        return result

    def is_old(self, tensor: Tensor) -> bool:
        """Whether a tensor existed before the mode began."""
        return tensor.untyped_storage()._cdata not in self._made

    def touches(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of these tensors was written to."""
        return not self.before.keys().isdisjoint(storages(tensors))

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the tensors that were written to."""
        for everything, before in self.before.values():
            everything.copy_(before)

    def tensors(self) -> list[Tensor]:
        """Return the tensors that were written to, each storage as one tensor."""
        return [everything for everything, _ in self.before.values()]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor on all memory of another one."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


def sharing(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """Return which tensors lie in the memory of another one, in which, and how far from its beginning."""
    spans = []
    for i, t in enumerate(tensors):
        span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        spans.append((t.data_ptr(), t.data_ptr() + (t.element_size() * span if t.numel() else 0), i))
    found, last = [], (0, 0, 0)
    for start, end, i in sorted(spans):
        if start < last[1]:
            found.append((i, last[2], start - last[0]))
        if end > last[1]:
            last = start, end, i
    return sorted(found)


def storages(tensors: Iterable[Tensor]) -> set[int]:
    """Return the identities of the memory of some tensors."""
    return {t.untyped_storage()._cdata for t in tensors if t.layout is torch.strided}


def _by_values(func: Any, args: Any) -> bool:
    """Whether a shape depends on values. That of an indexed tensor does where the index is a mask.

    A backward pass, of the step or of an objective, has the shapes of its forward pass, which has been looked at.
    """
    if func.__name__.startswith("index.") and not any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1:])):
        return False
    frame: Any = sys._getframe(2)
    while frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] == "torch":
        if frame.f_code.co_name == "_engine_run_backward":
            return False
        frame = frame.f_back
    if frame is None:  # a thread of the backward pass: that of a GPU is another than the program's
        return False
    return not str(frame.f_globals.get("__name__")).startswith(_OF_ANY_SHAPE)


def _tensors(value: Any) -> Iterator[Tensor]:
    for leaf in _pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield leaf


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    schema = func._schema
    if schema.is_mutable:
        for place, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield from _tensors(args[place] if place < len(args) else kwargs.get(argument.name))
    elif any(word in func.__name__ for word in WRITES_UNSAID) and "backward" not in func.__name__:
        yield from (t for t in _tensors(args[1:]) if not t.requires_grad)


class PythonRandom:
    """The states of the global random generators of Python and NumPy, and of a program's own generators."""

    def __init__(self, own: Iterable[Any] = ()) -> None:
        self._own = list(own)
        self._states = self._read()

    def _read(self) -> list[tuple[str, Any, Callable[[Any], object]]]:
        states: list[tuple[str, Any, Callable[[Any], object]]] = [
            ("Python's random", random.getstate(), random.setstate),
            ("numpy's random", np.random.get_state(), np.random.set_state),
        ]
        for generator in self._own:
            if isinstance(generator, random.Random):
                states.append(("a random.Random", generator.getstate(), generator.setstate))
            elif isinstance(generator, torch.Generator):
                states.append(("a torch.Generator", generator.get_state(), generator.set_state))
            elif isinstance(generator, np.random.RandomState):
                states.append(("a numpy RandomState", generator.get_state(), generator.set_state))
            else:
                bits = getattr(generator, "bit_generator", generator)
                states.append(("a numpy generator", bits.state, functools.partial(setattr, bits, "state")))
        return states

    def put_back(self) -> str | None:
        """Put the states back, and name the first generator that had moved."""
        moved = None
        for (name, before, write), (_, now, _) in zip(self._states, self._read(), strict=True):
            if _bytes(before) != _bytes(now):
                moved = moved or name
                write(before)
        return moved


def _bytes(state: Any) -> bytes:
    return state.numpy().tobytes() if isinstance(state, Tensor) else pickle.dumps(state)


class Snapshot:
    """A copy of some tensors, torch's random state and Pyro's store.

    Attributes:
        copies: The copies of the tensors.
        random: The state of torch's generator on the CPU.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._tensors = list(tensors)
        self.copies = [t.detach().clone() for t in self._tensors]
        self.random = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._store = [dict(home) for home in _homes()]

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore everything."""
        for tensor, copy in zip(self._tensors, self.copies, strict=True):
            tensor.detach().copy_(copy)
        torch.set_rng_state(self.random)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        for now, before in zip(_homes(), self._store, strict=True):
            if now.keys() != before.keys() or any(now[key] is not before[key] for key in now):
                now.clear()
                now.update(before)

    def replaced(self) -> str | None:
        """Name a parameter of Pyro's store that is another tensor now, or return None."""
        now, before = _homes()[0], self._store[0]
        return next((name for name in before if now.get(name) is not before[name]), None)


def _homes() -> tuple[dict, dict, dict]:
    store = pyro.get_param_store()
    return store._params, store._constraints, store._param_to_name


@contextmanager
def untouched(tensors: Iterable[Tensor] = ()) -> Iterator[None]:
    """Restore torch's random state, Pyro's store and some tensors afterwards; Pyro's validation is off meanwhile."""
    before = Snapshot(tensors)
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        before.put_back()
