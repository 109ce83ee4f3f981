"""The steps of several estimators as one graph, which runs common computations once.

Estimators on the same program and noise share the encoder, the draws and the decoder, and often whole gradients: the
decoder's gradient is the same under ELBO and sticking the landing. The joint graph merges their captured graphs: it
uses the same draws for all, and equal operations on equal arguments become one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from ppl_vae.capture import CapturedStep
from ppl_vae.capture.simplify import simplify
from ppl_vae.comparison.fixed.steps import Seen, Stepper, seen_of

_WRITES_UNSAID = ("batch_norm", "instance_norm")  # they write into buffers that their schemas do not declare


class _ApartError(Exception):
    """A graph that cannot be merged with the others."""


class JointStep:
    """The steps of several estimators, taken together on the same noise.

    An estimator steps alone, from the same seed, if it runs eagerly (without a captured graph), draws other noise,
    writes into a buffer or draws nothing. On a GPU all estimators step alone.

    Args:
        steppers: The estimators' steps.
        tensors: A batch.

    Attributes:
        alone: The keys of the estimators that step alone.
    """

    def __init__(self, steppers: Mapping[int, Stepper], tensors: Sequence[Tensor]) -> None:
        self.alone: list[int] = []
        self._steppers = steppers
        self._members: dict[int, CapturedStep] = {}
        self._ends: list[int] = []
        self._graph: Callable[..., tuple[Tensor, ...]] | None = None
        builder = _Builder(len(tensors))
        for key, stepper in steppers.items():
            captured = stepper.captured
            graph = None if captured is None else captured.graph
            if captured is None or not isinstance(graph, fx.GraphModule) or not builder.add(graph):
                self.alone.append(key)
                continue
            self._members[key] = captured
            self._ends.append(len(builder.outputs))
        if len(self._members) > 1:
            self._graph = self._agreed(builder.module(tensors), tensors)
        if self._graph is None:
            self.alone, self._members = list(steppers), {}

    def __call__(self, seed: int, *tensors: Tensor) -> dict[int, Seen | Exception]:
        """Take all steps from this seed; an exception stands in place of the step that raised it."""
        found: dict[int, Seen | Exception] = {}
        if self._graph is not None:
            torch.manual_seed(seed)
            found |= self._split(self._graph, tensors)
        for key in self.alone:
            torch.manual_seed(seed)
            try:
                found[key] = self._steppers[key](*tensors)
            except Exception as error:  # a user's objective may raise anything
                found[key] = error
        return found

    @torch.no_grad()
    def _split(self, graph: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor]) -> dict[int, Seen]:
        outputs, start, found = graph(*tensors), 0, {}
        for (key, captured), end in zip(self._members.items(), self._ends, strict=True):
            found[key], start = seen_of(captured.unpack(outputs[start:end])), end
        return found

    def _agreed(
        self, graph: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor]
    ) -> Callable[..., tuple[Tensor, ...]] | None:
        """Return the graph if it agrees with every step taken alone, else None."""
        torch.manual_seed(0)
        together = self._split(graph, tensors)
        for key, seen in together.items():
            torch.manual_seed(0)
            alone = self._steppers[key](*tensors)
            pairs = zip((seen.value, *seen.gradients), (alone.value, *alone.gradients), strict=True)
            if not all((a is None and b is None) or _close(a, b) for a, b in pairs):
                return None
        return graph


class _Builder:
    """A builder of one graph from several with the same inputs, parameters and draws."""

    def __init__(self, num_inputs: int) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.outputs: list[fx.Node] = []
        self._inputs = [self.graph.placeholder(f"input_{i}") for i in range(num_inputs)]
        self._draws: list[tuple[Any, fx.Node]] = []
        self._known: dict[Any, fx.Node] = {}
        self._constants: list[tuple[Tensor, fx.Node]] = []
        self._names = itertools.count()

    def add(self, module: fx.GraphModule) -> bool:
        """Merge a graph and return True; change nothing and return False if it cannot be merged."""
        before = len(self.graph.nodes), len(self._draws), dict(self._known), len(self._constants)
        try:
            outputs = self._copied(module)
        except _ApartError:
            for node in reversed(list(self.graph.nodes)[before[0] :]):
                self.graph.erase_node(node)
            del self._draws[before[1] :], self._constants[before[3] :]
            self._known = before[2]
            return False
        self.outputs += outputs
        return True

    def module(self, tensors: Sequence[Tensor]) -> fx.GraphModule:
        """Return the joint graph."""
        self.graph.output(tuple(self.outputs))
        return simplify(fx.GraphModule(self.root, self.graph), *tensors)

    def _copied(self, module: fx.GraphModule) -> list[fx.Node]:
        mapped: dict[fx.Node, Any] = {}
        inputs, draws, outputs = iter(self._inputs), 0, None
        for node in module.graph.nodes:
            if node.op == "placeholder":
                mapped[node] = next(inputs)
            elif node.op == "get_attr":
                mapped[node] = self._attribute(module, str(node.target))
            elif node.op == "output":
                outputs = [mapped[n] for n in node.args[0]]
            elif _draws(node):
                mapped[node] = self._draw(draws, *self._key(node, mapped))
                draws += 1
            elif _is_pure(node):
                key, args, kwargs = self._key(node, mapped)
                if key not in self._known:
                    self._known[key] = self.graph.call_function(node.target, args, kwargs)
                mapped[node] = self._known[key]
            else:
                raise _ApartError(f"{node.target} writes")
        if outputs is None or not draws:
            raise _ApartError("nothing is drawn")
        return outputs

    def _draw(self, place: int, key: Any, args: Any, kwargs: Any) -> fx.Node:
        """Return the draw at this place of the stream of noise, which all graphs share."""
        if place == len(self._draws):
            self._draws.append((key, self.graph.call_function(key[0], args, kwargs)))
        if self._draws[place][0] != key:
            raise _ApartError("other noise is drawn")
        return self._draws[place][1]

    def _attribute(self, module: fx.GraphModule, name: str) -> fx.Node:
        value = getattr(module, name)
        own = name.startswith(("_folded", "_tensor_constant"))
        for other, node in self._constants:
            if other is value or (own and _equal(other, value) and not isinstance(other, nn.Parameter)):
                return node
        new = f"attribute_{next(self._names)}"  # attributes of a rejected graph stay, unused
        if isinstance(value, nn.Parameter):
            self.root.register_parameter(new, value)
        else:
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
    """Return whether an operation writes into no tensor."""
    if node.target is operator.getitem:
        return True
    op = node.target
    return (
        isinstance(op, torch._ops.OpOverload)
        and op.namespace in ("aten", "prims")
        and not op._schema.is_mutable
        and not any(word in op.__name__ for word in _WRITES_UNSAID)
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and a.device == b.device
    return same and torch.equal(a, b)


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return False
    a, b = a.double(), b.double()
    return bool(((a - b).norm() <= 1e-5 * b.norm() + 1e-12) | (a.isnan().any() & b.isnan().any()))
