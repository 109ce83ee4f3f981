"""The steps of several estimators as one graph, which runs common computations once.

Estimators on the same program and noise share the encoder, the draws and the decoder, and often whole gradients: the
decoder's gradient is the same under ELBO and sticking the landing. The joint graph merges their captured graphs: it
uses the same draws for all, and equal operations on equal arguments become one.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from ppl_vae.capture import CapturedStep, untouched
from ppl_vae.capture.replay import CudaReplay, is_on_gpu
from ppl_vae.capture.simplify import simplify
from ppl_vae.comparison.fixed.steps import Seen, Stepper, seen_of

logger = logging.getLogger(__name__)

Graph = Callable[..., tuple[Tensor, ...]]

_WRITES_UNSAID = ("batch_norm", "instance_norm")  # they write into buffers that their schemas do not declare


class JointStep:
    """The steps of several estimators, taken together on the same noise.

    An estimator steps alone, from the same seed, if it runs eagerly (without a captured graph), draws other noise,
    writes into a buffer or draws nothing. On a GPU the joint graph is one CUDA graph; where that cannot be recorded,
    all estimators step alone. What a call returns there lies in memory that the next call overwrites.

    Args:
        steppers: The estimators' steps.
        tensors: A batch.

    Attributes:
        alone: The estimators that step alone.
    """

    def __init__(self, steppers: Sequence[Stepper], tensors: Sequence[Tensor]) -> None:
        self.alone: list[Stepper] = []
        self._members: list[tuple[Stepper, CapturedStep, int]] = []  # with the end of its outputs in the graph's
        builder = _Builder(len(tensors))
        for stepper in steppers:
            captured = stepper.captured
            graph = None if captured is None else captured.kernels
            if captured is not None and isinstance(graph, fx.GraphModule) and builder.add(graph):
                self._members.append((stepper, captured, len(builder.outputs)))
            else:
                self.alone.append(stepper)
        self._graph = self._joined(builder, tensors) if len(self._members) > 1 else None
        if self._graph is None or not self._agrees(self._graph, tensors):
            self._graph, self.alone = None, list(steppers)

    def _joined(self, builder: _Builder, tensors: Sequence[Tensor]) -> Graph | None:
        """Return the joint graph, on a GPU as a CUDA graph; None where that cannot be recorded."""
        graph = builder.module(tensors)
        if not all(map(is_on_gpu, tensors)):
            return graph
        held = [*builder.constants, *(t for _, captured, _ in self._members for t in captured.state)]
        if not all(map(is_on_gpu, held)):  # a recording would freeze its present value
            return None
        try:
            with untouched():
                return CudaReplay(graph, tensors, list({id(t): t for t in held}.values()))
        except RuntimeError as error:
            logger.debug("the estimators step one by one: %s", error)
            return None

    def __call__(self, seed: int, *tensors: Tensor) -> tuple[dict[Stepper, Seen], dict[Stepper, Exception]]:
        """Take all steps from this seed; return the steps, and the exceptions of those that raised one."""
        seen: dict[Stepper, Seen] = {}
        raised: dict[Stepper, Exception] = {}
        if self._graph is not None:
            torch.manual_seed(seed)
            seen = self._split(self._graph, tensors)
        for stepper in self.alone:
            torch.manual_seed(seed)
            try:
                seen[stepper] = stepper(*tensors)
            except Exception as error:  # a user's objective may raise anything
                raised[stepper] = error
        return seen, raised

    def leave_only(self, alone: Sequence[Stepper]) -> None:
        """Take only the steps of some that step alone from now on."""
        self._graph, self.alone = None, list(alone)

    @torch.no_grad()
    def _split(self, graph: Graph, tensors: Sequence[Tensor]) -> dict[Stepper, Seen]:
        outputs, start, found = graph(*tensors), 0, {}
        for stepper, captured, end in self._members:
            found[stepper], start = seen_of(captured.unpack(outputs[start:end])), end
        return found

    def _agrees(self, graph: Graph, tensors: Sequence[Tensor]) -> bool:
        """Return whether the graph agrees with every step taken alone."""
        torch.manual_seed(0)
        for stepper, seen in self._split(graph, tensors).items():
            torch.manual_seed(0)
            alone = stepper(*tensors)
            if not all(map(_close, (seen.value, *seen.gradients), (alone.value, *alone.gradients))):
                return False
        return True


class _Builder:
    """A builder of one graph from several with the same inputs, parameters and draws."""

    def __init__(self, num_inputs: int) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.outputs: list[fx.Node] = []
        self._inputs = [self.graph.placeholder(f"input_{i}") for i in range(num_inputs)]
        self._known: dict[Any, fx.Node] = {}
        self._num_draws = 0
        self._constants: list[tuple[Tensor, fx.Node]] = []

    def add(self, module: fx.GraphModule) -> bool:
        """Merge a graph and return True, or return False if it cannot be merged."""
        calls = [node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
        if not any(map(_draws, calls)) or not all(map(_is_pure, calls)):
            return False
        mapped: dict[fx.Node, Any] = {}
        inputs, draws, outputs = iter(self._inputs), 0, []
        for node in module.graph.nodes:
            if node.op == "placeholder":
                mapped[node] = next(inputs)
            elif node.op == "get_attr":
                mapped[node] = self._attribute(module, str(node.target))
            elif node.op == "output":
                outputs = [mapped[n] for n in node.args[0]]
            else:
                key, args, kwargs = self._key(node, mapped)
                if _draws(node):
                    key = draws, key  # with the place in the stream of noise, which all graphs share
                    draws += 1
                    if draws <= self._num_draws and key not in self._known:
                        return False  # the nodes that are there by now are dead, unless another graph has them too
                if key not in self._known:
                    self._known[key] = self.graph.call_function(node.target, args, kwargs)
                mapped[node] = self._known[key]
        self._num_draws = max(draws, self._num_draws)
        self.outputs += outputs
        return True

    def module(self, tensors: Sequence[Tensor]) -> fx.GraphModule:
        """Return the joint graph."""
        self.graph.output(tuple(self.outputs))
        return simplify(fx.GraphModule(self.root, self.graph), *tensors)

    @property
    def constants(self) -> list[Tensor]:
        """The tensors that the joint graph reads besides its inputs."""
        return [value for value, _ in self._constants]

    def _attribute(self, module: fx.GraphModule, name: str) -> fx.Node:
        value = getattr(module, name)
        own = name.startswith(("_folded", "_tensor_constant"))
        for other, node in self._constants:
            if other is value or (own and _equal(other, value) and not isinstance(other, nn.Parameter)):
                return node
        new = f"attribute_{len(self._constants)}"
        setattr(self.root, new, value)
        node = self.graph.get_attr(new)
        self._constants.append((value, node))
        return node

    def _key(self, node: fx.Node, mapped: Mapping[fx.Node, Any]) -> tuple[Any, Any, Any]:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: mapped[n])
        flat, structure = _pytree.tree_flatten((args, kwargs))
        parts = tuple(a if isinstance(a, fx.Node) else (type(a).__name__, repr(a)) for a in flat)
        return (node.target, parts, repr(structure)), args, kwargs


def _draws(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _is_pure(node: fx.Node) -> bool:
    """Return whether an operation does nothing but return a tensor: it neither writes into another nor checks one."""
    op = node.target
    return op is operator.getitem or (
        isinstance(op, torch._ops.OpOverload)
        and op.namespace in ("aten", "prims")
        and bool(op._schema.returns)
        and not op._schema.is_mutable
        and not any(word in op.__name__ for word in _WRITES_UNSAID)
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and a.device == b.device
    return same and torch.equal(a, b)


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    a, b = a.double(), b.double()
    return bool(((a - b).norm() <= 1e-5 * b.norm() + 1e-12) | (a.isnan().any() & b.isnan().any()))
