"""The removal of needless operations from a captured graph: views of the same view, sums of one number, constants.

Effect handlers and distributions leave dozens of such operations behind, and without a compiler each costs a call.
Every rule keeps the bits (except the sign of a zero): the same operations run on the same numbers in the same order.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree

from ppl_vae.capture.state import WRITES_UNSAID

_ATEN = torch.ops.aten
_CREATE = {"full", "ones", "zeros", "ones_like", "zeros_like", "full_like", "arange", "scalar_tensor", "eye"}
_MOST_LIFTED = 1024  # elements of a tensor made from Python values: up to here guards look at all of them
_MOST_FOLDED = 2**16  # elements of a constant that is kept; a larger one is computed anew each time


def simplify(graph: fx.GraphModule, *tensors: Tensor) -> fx.GraphModule:
    """Return a shorter graph of the same values, on the same parameters.

    Equal operations on equal arguments become one node, and so do equal views of one storage. Multiplications by one,
    additions of zeros, and sums or means over one element are removed. Constants are computed once, and unused values
    not at all. Random draws, operations that write into a tensor, and everything that shares memory with such a tensor
    stay.

    Args:
        graph: The graph of ATen operations that `make_fx` made.
        *tensors: Its inputs, which give the shapes.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = make_fx(lambda x: (1.0 * x.view(1, 2).sum(0)).exp())(torch.zeros(2))
        >>> [node.op for node in simplify(graph, torch.zeros(2)).graph.nodes]  # `exp` alone is left
        ['placeholder', 'call_function', 'output']
    """
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    graph = fx.GraphModule(graph, copy)
    fakes = _Fakes(graph)
    fakes.run(*(fakes.mode.from_tensor(t, static_shapes=True) for t in tensors))
    _Simplifier(graph, fakes).rewrite()
    graph.graph.eliminate_dead_code(_has_effect)
    graph.graph.lint()
    graph.recompile()
    return graph


class _Fakes(fx.Interpreter):
    """The shape, strides and storage of every value in a graph, found without computing any."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        with self.mode:
            value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, Tensor):
            value = self.mode.from_tensor(value, static_shapes=True)  # the same fake for the same tensor
        self.values[n] = value
        return value


class _Simplifier:
    """One pass over the nodes, each after the nodes that it is computed from."""

    def __init__(self, graph: fx.GraphModule, fakes: _Fakes) -> None:
        self.graph = graph
        self.mode = fakes.mode
        self.fakes = fakes.values
        self.written = {
            storage
            for node in graph.graph.nodes
            if _writes(node)
            for value in self._arguments(node)
            for storage in _storages(value)
        }
        self.known: dict[Any, fx.Node] = {}  # the node that computes each expression or view already
        self.moved: set[fx.Node] = set()  # nodes that replace others in another storage, and nodes computed from them
        self.constants: dict[fx.Node, Tensor] = {}
        tensors = [t for value in self.fakes.values() for t in _pytree.tree_leaves(value) if isinstance(t, Tensor)]
        self.on_gpu = any(t.is_cuda for t in tensors)

    def rewrite(self) -> None:
        for node in list(self.graph.graph.nodes):
            if node.op == "get_attr":
                self._keep_first(node, ("get_attr", id(getattr(self.graph, str(node.target)))))
            elif self._may_go(node):
                self._look_again(node)
                self._fold(node)
                simpler = self._simpler(node)
                if simpler is not None:
                    self._replace(node, simpler)
                else:
                    self._keep_first(node, self._expression(node))
            self._note_view(node)
        self._insert_constants()

    def _look_again(self, node: fx.Node) -> None:
        """Find a node's storage again where an argument has another storage now."""
        if any(argument in self.moved for argument in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.fakes[n])
            with self.mode:
                self.fakes[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            self.moved.add(node)

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.moved.add(by)

    def _may_go(self, node: fx.Node) -> bool:
        """Whether a node is a pure function of tensors that nothing writes into."""
        if node.op != "call_function" or not (node.target is operator.getitem or _is_pure(node)):
            return False
        values = [*self._arguments(node), self.fakes[node]]
        return not any(storage in self.written for value in values for storage in _storages(value))

    def _keep_first(self, node: fx.Node, key: Any) -> None:
        first = self.known.setdefault(key, node)
        if first is not node:
            self._replace(node, first)

    def _note_view(self, node: fx.Node) -> None:
        """Keep the first of all nodes that show the same place of the same storage."""
        value = self.fakes.get(node)
        if isinstance(value, Tensor) and not _storages(value) & self.written and node.op != "output":
            first = self.known.setdefault(_geometry(value), node)
            if first is not node and node.target is not _ATEN.as_strided.default:
                node.replace_all_uses_with(first)

    def _expression(self, node: fx.Node) -> Any:
        """Return the operation and its arguments as a key."""
        flat, structure = _pytree.tree_flatten((node.args, node.kwargs))
        key = tuple(a if isinstance(a, fx.Node) else (type(a).__name__, repr(a)) for a in flat)
        return node.target, key, repr(structure)

    def _simpler(self, node: fx.Node) -> fx.Node | None:
        """Return an earlier node with the same value, or a view that replaces an operation over one element."""
        value = self.fakes[node]
        args: Any = node.args
        if not isinstance(value, Tensor) or not args:
            return None
        name, operand = _name(node), args[0]
        if name in ("stack", "cat") and isinstance(operand, (list, tuple)) and len(operand) == 1:
            return self._reshaped(node, operand[0])
        if name in ("sum", "mean") and self._same_size(operand, value):
            return self._reshaped(node, operand)
        if name == "neg" and isinstance(operand, fx.Node) and operand.target is node.target:
            inner = operand.all_input_nodes[0]
            return None if _storages(self.fakes[inner]) & self.written else inner
        if len(args) != 2 or node.kwargs:
            return None
        if name in ("mul", "div", "pow") and isinstance(args[1], int | float) and args[1] == 1:
            return operand if self._same_kind(operand, value) else None
        if name == "add":
            for zeros, other in ((operand, args[1]), (args[1], operand)):
                constant = self.constants.get(zeros) if isinstance(zeros, fx.Node) else None
                if constant is not None and self._same_kind(other, value) and not constant.any():
                    return other
        return None

    def _same_kind(self, operand: Any, value: Tensor) -> bool:
        """Whether an operand has the shape, layout and type of a result."""
        if not isinstance(operand, fx.Node) or not isinstance(self.fakes[operand], Tensor):
            return False
        given = self.fakes[operand]
        return given.dtype == value.dtype and given.shape == value.shape and given.stride() == value.stride()

    def _same_size(self, operand: Any, value: Tensor) -> bool:
        """Whether a reduction has reduced nothing."""
        given = self.fakes.get(operand)
        return isinstance(given, Tensor) and given.dtype == value.dtype and given.numel() == value.numel() > 0

    def _reshaped(self, node: fx.Node, operand: fx.Node) -> fx.Node | None:
        """Return a view of the operand in the shape of a node, or None where its layout allows none."""
        value, given = self.fakes[node], self.fakes[operand]
        try:
            view = given.view(value.shape)
        except RuntimeError:
            return None
        if view.stride() != value.stride() or _storages(given) & self.written:
            return None
        known = self.known.get(_geometry(view))
        if known is not None:
            return known
        if _geometry(given) == _geometry(view):
            return operand
        with self.graph.graph.inserting_before(node):
            new = self.graph.graph.call_function(_ATEN.view.default, (operand, list(value.shape)))
        self.fakes[new] = view
        self.known[_geometry(view)] = new
        return new

    def _fold(self, node: fx.Node) -> None:
        """Compute a node now if it depends on constants alone."""
        value, inputs = self.fakes[node], node.all_input_nodes
        name = _name(node)
        if not isinstance(value, Tensor) or (name not in _CREATE and not inputs):
            return
        if name in ("ones_like", "zeros_like", "full_like"):  # they depend on the shape of their input alone
            known = {inputs[0]: apart(self.fakes[inputs[0]])}
        elif self.on_gpu and name == "lift_fresh_copy" and value.numel() <= _MOST_LIFTED and inputs[0].op == "get_attr":
            # a number from Python, copied to the GPU once
            known = {inputs[0]: getattr(self.graph, str(inputs[0].target))}
        elif all(i in self.constants for i in inputs):
            known = self.constants
        else:
            return
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
        constant = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(constant, Tensor):
            self.constants[node] = constant

    def _insert_constants(self) -> None:
        """Replace the nodes that compute constants by these constants, where another node uses them."""
        outputs = {node for n in self.graph.graph.nodes if n.op == "output" for node in n.all_input_nodes}
        for node, constant in self.constants.items():
            if node in outputs or all(user in self.constants for user in node.users):
                continue  # the caller must own what is returned
            if (constant == constant.flatten()[:1]).all() and constant.numel() > 1:
                constant = constant.flatten()[0].clone().expand(constant.shape)  # one element of memory
            elif constant.numel() > _MOST_FOLDED:
                continue
            name = f"_folded_{node.name}"
            self.graph.register_buffer(name, constant, persistent=False)
            with self.graph.graph.inserting_before(node):
                node.replace_all_uses_with(self.graph.graph.get_attr(name))

    def _arguments(self, node: fx.Node) -> list[Any]:
        return [self.fakes[n] for n in node.all_input_nodes]


def _is_pure(node: fx.Node) -> bool:
    """Whether a node is an ATen operation that writes into nothing and draws nothing."""
    op = node.target
    return (
        isinstance(op, torch._ops.OpOverload)
        and op.namespace in ("aten", "prims")
        and torch.Tag.nondeterministic_seeded not in op.tags
        and bool(op._schema.returns)  # an operation that returns nothing is a check, and may raise
        and not _writes(node)
        and not op.__name__.startswith(("empty", "new_empty", "rand", "as_strided"))
    )


def _writes(node: fx.Node) -> bool:
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        return False
    return op._schema.is_mutable or any(word in op.__name__ for word in WRITES_UNSAID)


def _has_effect(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    return not (node.target is operator.getitem or _is_pure(node) or _name(node).startswith(("empty", "new_empty")))


def _name(node: fx.Node) -> str:
    """Return the operation's name without its overload."""
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def _storages(value: Any) -> set[int]:
    return {t.untyped_storage()._cdata for t in _pytree.tree_leaves(value) if isinstance(t, Tensor)}


def apart(tensor: Tensor) -> Tensor:
    """Return a tensor of the same layout on memory of its own."""
    if tensor.layout is not torch.strided:
        return tensor.clone()
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _geometry(value: Tensor) -> Any:
    """Return storage, place, shape and type as a key: two tensors with the same key are the same."""
    place = value.untyped_storage()._cdata, value.storage_offset(), tuple(value.shape), value.stride()
    return *place, value.dtype, value.is_conj(), value.is_neg()
