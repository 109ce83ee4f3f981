"""The parameters of a program, collected as it runs, and the leaves of what a loss differentiates itself."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae._tensors import leaves_of

_REPLACED = "__baseline_avg_downstream_cost_"  # TraceGraph_ELBO keeps averages in the store, which are no parameters


class ParameterCollector(Messenger):
    """A handler that collects the unconstrained leaf of every parameter that a program touches."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: dict[str, Tensor] = {}
        self.touched: set[int] = set()  # the identities of the leaves that the current run has met
        self.settled = False  # True from the first step on: a leaf must then stay the same tensor

    def _pyro_post_param(self, msg: Any) -> None:
        name, leaf = msg["name"], msg["value"].unconstrained()
        known = self.leaves.get(name)
        self.touched.add(id(leaf))
        if known is leaf or name.startswith(_REPLACED):
            return
        if known is None or not self.settled:  # an autoguide replaces its leaves while it sets itself up
            # a PyroModule inside a module registers its parameters a second time, under names of its own
            if not any(other is leaf for other in self.leaves.values()):
                self.leaves[name] = leaf
                leaf.grad = None  # another SVI may have left a gradient there
        else:
            raise RuntimeError(
                f"parameter {name!r} is another tensor than in the steps before: the parameter store was cleared or "
                "overwritten while training; make a new SVI"
            )


@contextmanager
def leaves_noted() -> Iterator[dict[Tensor, Tensor | None]]:
    """Note the leaves of what this thread calls ``backward`` on, each with a copy of the gradient that it had."""
    before: dict[Tensor, Tensor | None] = {}
    backward, thread = torch.autograd.backward, threading.get_ident()

    def note(tensors: Any, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread:
            for leaf in itertools.chain(*map(leaves_of, [tensors] if isinstance(tensors, Tensor) else tensors)):
                before.setdefault(leaf, None if leaf.grad is None else leaf.grad.clone())
        backward(tensors, *args, **kwargs)

    with mock.patch.object(torch.autograd, "backward", note):
        yield before
