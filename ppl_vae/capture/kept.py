"""The values within reach at one time, and a quick check that they are the very same objects."""

from __future__ import annotations

import operator
from collections.abc import Set
from itertools import chain

import torch
from torch import Tensor

from ppl_vae.capture.reach import Reach

of_tensors = operator.attrgetter(
    "requires_grad", "shape", "dtype", "device", "_backward_hooks", "_post_accumulate_grad_hooks"
)


class Kept:
    """What every place, tensor, object and namespace within reach held at one time.

    Args:
        reach: Everything that was met.
        moving: The indices of sources with values that may change, which the quick check leaves out.

    Attributes:
        values: For each source its values.
        namespaces: The sources whose names may grow: the index, the namespace and its names.
        tensors: All tensors, with `flags`: what a graph depends on beside strides.
        strided: The tensors that have strides, with `strides`.
    """

    def __init__(self, reach: Reach, moving: Set[int]) -> None:
        sources = reach.sources
        self.values = [source.values() for source in sources]
        self.namespaces = [(i, s.home, frozenset(s.home)) for i, s in enumerate(sources) if s.grows]
        self.tensors = list(reach.tensors.values())
        self.flags = list(map(of_tensors, self.tensors))
        self.strided = [t for t in self.tensors if t.layout is torch.strided and not t.is_nested]
        self.strides = list(map(Tensor.stride, self.strided))

        still = [(s, values) for i, (s, values) in enumerate(zip(sources, self.values, strict=True)) if i not in moving]
        is_empty = [not values and type(s.home) in (dict, set, list) and not s.home for s, values in still]
        self._empty = [s.home for (s, _), empty in zip(still, is_empty, strict=True) if empty]  # half of all places
        held = [pair for pair, empty in zip(still, is_empty, strict=True) if not empty]
        self._reads = [(source.read, source.home) for source, _ in held]
        self._lengths = [len(values) for _, values in held]
        self._flat = list(chain.from_iterable(values for _, values in held))
        self._sizes = [len(home) for _, home, _ in self.namespaces]
        self._hooks = [hooks for _, hooks, _ in reach.hooks]
        self._objects = [value for value, _ in reach.kinds]
        self._kinds = [kind for _, kind in reach.kinds]

    def is_untouched(self) -> bool:
        """Whether every place holds the very same objects; a few calls into C, and stricter than necessary.

        Raises:
            Exception: As a place whose key or attribute is gone does.
        """
        now = [read(home) for read, home in self._reads]
        return (
            list(map(len, now)) == self._lengths
            and all(map(operator.is_, chain.from_iterable(now), self._flat))
            and not any(self._empty)
            and not any(self._hooks)
            and list(map(type, self._objects)) == self._kinds
            and [len(home) for _, home, _ in self.namespaces] == self._sizes
            and list(map(of_tensors, self.tensors)) == self.flags
            and list(map(Tensor.stride, self.strided)) == self.strides
        )
