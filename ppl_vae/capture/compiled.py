"""A captured graph as code of Inductor's, called without Dynamo in between."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

_OPTIONS: dict[str, Any] = {"fallback_random": True}  # else Inductor draws other numbers than torch


def compiled(graph: fx.GraphModule, on_cpu: bool) -> Callable[..., tuple[Tensor, ...]]:
    """Return the graph compiled by Inductor at its first call; on a CPU the code is called without Dynamo.

    `torch.compile` lets Dynamo look at every call whether the code fits: on a CPU 0.1 to 0.2 ms, a tenth of a step of
    a small network (`benchmarks/inductor.py`). On a GPU a CUDA graph is replayed, in which Dynamo has no part.
    """
    if on_cpu and hasattr(torch._inductor, "standalone_compile"):  # from torch 2.8 on
        return _Code(graph)
    return torch.compile(graph, dynamic=False, options=_OPTIONS)


class _Code:
    """Inductor's code of a graph; the caller answers for shapes, strides, types and devices of all that it reads."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph, self._held = _lifted(graph)
        self._code: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the code."""
        if self._code is None:
            self._code = torch._inductor.standalone_compile(
                self._graph,
                [*inputs, *self._held],
                dynamic_shapes="from_example_inputs",
                options={"config_patches": _OPTIONS},
            )
        return self._code(*inputs, *self._held)


def _lifted(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return the graph with the tensors that it holds as its last inputs, and these tensors.

    Inductor takes a held tensor for a constant, and may compile its present value in.
    """
    nodes = list(graph.graph.nodes)
    tensors = {n: t for n in nodes if n.op == "get_attr" and isinstance(t := attrgetter(str(n.target))(graph), Tensor)}
    lifted, new = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in nodes:
        if node.op == "placeholder":
            new[node] = lifted.node_copy(node)
    held = {id(t): t for t in tensors.values()}
    inputs = {identity: lifted.placeholder(f"held_{i}") for i, identity in enumerate(held)}
    for node in nodes:
        if node in tensors:
            new[node] = inputs[id(tensors[node])]
        elif node.op != "placeholder":
            new[node] = lifted.node_copy(node, new.__getitem__)
    return fx.GraphModule(graph, lifted), list(held.values())
