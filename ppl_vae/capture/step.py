"""One step as a graph: traced, held against the program as it is written, run."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

from ppl_vae._scopes import untouched_random_state
from ppl_vae.capture.guards import PLAIN, Guards
from ppl_vae.capture.replay import CudaReplay
from ppl_vae.capture.simplify import simplify
from ppl_vae.objectives.losses import BatchLoss

logger = logging.getLogger(__name__)

# relative differences that are roundings: of a sum in float32 where Pyro adds in float64; and of a compiler or a GPU,
# which add up a gradient over thousands of rows in another order (the terms cancel: 1e-5 was seen for K = 50)
_TRACED, _COMPILED = 1e-5, 1e-4


class CaptureError(RuntimeError):
    """A step that cannot be captured, and why, in one sentence."""


class Step(NamedTuple):
    """What a step computes: the loss and its terms, and the gradient of each parameter."""

    loss: BatchLoss
    gradients: list[Tensor | None]


class CapturedStep:
    """One step as a graph, for one set of shapes and Python values.

    Args:
        run: Runs the step eagerly on its tensors and returns the loss, with gradients attached.
        leaves: The parameters to differentiate by.
        tensors: The tensor arguments.
        guards: Made of the program before.
        mean: Differentiate the mean per datum instead of the sum.
        full: Compile the graph with Inductor.

    Raises:
        CaptureError: If the step cannot be captured, or the graph does not do what the eager step does.
    """

    def __init__(
        self,
        run: Callable[..., BatchLoss],
        leaves: list[Tensor],
        tensors: list[Tensor],
        guards: Guards,
        mean: bool,
        full: bool,
    ) -> None:
        self.guards = guards
        self._has_terms = self._weight_is_tensor = False
        self._weight: float | Tensor = 1.0
        self._run, self._leaves, self._mean = run, leaves, mean
        self._rounds = full or any(t.is_cuda for t in leaves)
        graph = self._trace(tensors)
        if guards.forget_changed():  # by the program itself: does the graph hang on it?
            name = guards.forgotten[-1]
            if not _same_graph(graph, self._trace(tensors)) or guards.changed() is not None:
                raise CaptureError(f"the program changes a Python value while it runs, and computes with it: {name}")
        self.uses = 0
        if full:
            self._take(torch.compile(graph, dynamic=False, options={"fallback_random": True}), tensors)
            return
        try:
            self._take(simplify(graph, *tensors), tensors)
        except Exception as error:  # an operation that tells no shapes (a user's own kernel), or a rule that is wrong
            logger.debug("the captured graph is used as it was traced: %s", error)
            self._take(graph, tensors)

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Step:
        """Run the graph."""
        return self.unpack(self._graph(*tensors))

    @property
    def graph(self) -> Callable[..., tuple[Tensor, ...]]:
        """What is run: an `fx.GraphModule` unless it is compiled, or replayed on a GPU."""
        return self._graph

    def unpack(self, flat: Sequence[Tensor]) -> Step:
        """Return the step that the graph's outputs stand for."""
        outputs = list(flat)
        gradients: list[Tensor | None] = [outputs.pop(0) if has else None for has in self._has_gradient]
        for i in self._borrowed:
            gradients[i] = torch.empty_like(self._leaves[i]).copy_(gradients[i])  # type: ignore[arg-type]
        loss, surrogate, *rest = outputs
        weight = rest.pop(0) if self._weight_is_tensor else self._weight
        log_likelihood, kl = rest if self._has_terms else (None, None)
        return Step(BatchLoss(loss, surrogate, weight, log_likelihood, kl), gradients)

    def difference(self, tensors: list[Tensor]) -> str | None:
        """Run the eager step and the graph on the same noise, moving no state, and say where they differ, if so."""
        with untouched(self.guards):
            ours = self(*tensors)
            buffers = [b.clone() for b in self.guards.buffers()]
        with untouched(self.guards):
            theirs = eager_step(self._run, self._leaves, tensors, self._mean)
            for buffer, now in zip(buffers, self.guards.buffers(), strict=True):
                if not _close(buffer, now):
                    return "the graph leaves a buffer other than the eager program does"
        tolerance = _COMPILED if self._rounds else _TRACED
        if not _close(ours.loss.loss, theirs.loss.loss):
            return f"the graph's loss is {ours.loss.loss.item()}, the eager one {theirs.loss.loss.item()}"
        for i, (a, b) in enumerate(zip(ours.gradients, theirs.gradients, strict=True)):
            if (a is None) != (b is None) or (a is not None and b is not None and not _close(a, b, tolerance)):
                return f"the graph's gradient of parameter {i} differs from the eager one"
        return None

    def _trace(self, tensors: list[Tensor]) -> fx.GraphModule:
        with _explained(), untouched(self.guards), _no_waiting():
            return make_fx(self._joint)(*tensors)

    def _take(self, graph: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor]) -> None:
        """Use this graph, if it does what the eager step does."""
        with _explained():  # a compiler that is missing shows in the first run
            self._graph = graph
            if all(t.is_cuda for t in [*tensors, *self._leaves]):
                self._graph = self._replayed(tensors)
            self._borrowed: list[int] = []
            self._borrowed = self._find_borrowed(tensors)
            difference = self.difference(tensors)
        if difference is not None:
            raise CaptureError(difference)

    def _replayed(self, tensors: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        """The graph as one CUDA graph, or itself where that cannot be."""
        try:
            with untouched(self.guards):
                replay = CudaReplay(self._graph, tensors)
        except RuntimeError as error:
            logger.debug("the captured graph is launched kernel by kernel: %s", error)
            return self._graph
        # the optimiser uses the gradients before the next call, but what was seen may be kept for longer
        first = sum(self._has_gradient)

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            outputs = replay(*tensors)
            return *outputs[:first], *(seen.clone() for seen in outputs[first:])

        return run

    def _find_borrowed(self, tensors: list[Tensor]) -> list[int]:
        """Which gradients are not memory of their own, laid out as their parameter, as optimisers take for granted."""
        with untouched(self.guards):
            gradients = self(*tensors).gradients
        places = [None if g is None else g.untyped_storage().data_ptr() for g in gradients]
        others = {t.untyped_storage().data_ptr() for t in [*tensors, *self._leaves, *self.guards.buffers()]}
        return [
            i
            for i, (g, leaf) in enumerate(zip(gradients, self._leaves, strict=True))
            if g is not None and (g.stride() != leaf.stride() or places.count(places[i]) > 1 or places[i] in others)
        ]

    def _joint(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The step as a function of tensors, to be traced."""
        step = eager_step(self._run, self._leaves, list(tensors), self._mean)
        loss = step.loss
        assert loss.surrogate is not None
        self._has_gradient = [gradient is not None for gradient in step.gradients]
        self._has_terms = loss.log_likelihood is not None and loss.kl is not None
        self._weight_is_tensor, self._weight = isinstance(loss.weight, Tensor), loss.weight
        outputs = [g for g in step.gradients if g is not None] + [loss.loss, loss.surrogate.detach()]
        outputs += [loss.weight] if isinstance(loss.weight, Tensor) else []
        if loss.log_likelihood is not None and loss.kl is not None:
            outputs += [loss.log_likelihood, loss.kl]
        return tuple(outputs)


def eager_step(run: Callable[..., BatchLoss], leaves: list[Tensor], tensors: list[Tensor], mean: bool) -> Step:
    """Run a step as it is written."""
    before = [leaf.grad for leaf in leaves]
    with torch.enable_grad():
        for leaf in leaves:
            leaf.grad = None
        try:
            loss = run(*tensors)
            if loss.surrogate is not None:
                target = loss.surrogate / loss.weight if mean else loss.surrogate
                return Step(loss, list(torch.autograd.grad(target, leaves, allow_unused=True)))
            gradients = [leaf.grad for leaf in leaves]  # the objective has left them there by itself
        finally:
            for leaf, gradient in zip(leaves, before, strict=True):
                leaf.grad = gradient
    if mean:
        gradients = [None if g is None else g / loss.weight for g in gradients]
    return Step(loss._replace(surrogate=loss.loss), gradients)


def signature(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], list[Tensor], Callable[..., Any]]:
    """Split a step's arguments into what a graph is made for and the tensors that it is given.

    Returns:
        The key (structure, shapes and plain values), the tensors, and a function from tensors back to (args, kwargs).

    Raises:
        CaptureError: If an argument is neither a tensor nor a plain value.
    """
    if not kwargs and all(type(a) is Tensor for a in args):  # the usual case, without the cost of the general one
        return tuple(map(_kind, args)), list(args), lambda *new: (new, {})
    leaves, structure = _pytree.tree_flatten((args, kwargs))
    key: list[Any] = [repr(structure)]  # older torch cannot hash the structure itself
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            key.append(_kind(leaf))
        elif isinstance(leaf, PLAIN):
            key.append((type(leaf), leaf))
        else:
            raise CaptureError(f"an argument is a {type(leaf).__name__}; expected tensors and plain Python values")
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuild(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return _pytree.tree_unflatten(filled, structure)

    return tuple(key), [leaves[i] for i in places], rebuild


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """What a graph is made for: another layout in memory takes other operations."""
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.shape, strides, tensor.dtype, tensor.device, tensor.requires_grad


@contextmanager
def untouched(guards: Guards) -> Iterator[None]:
    """Leave the random state and the buffers as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in guards.buffers()]
    with untouched_random_state(), pyro.validation_enabled(False):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@contextmanager
def _explained() -> Iterator[None]:
    """Raise whatever goes wrong as a `CaptureError` that says where in the user's code."""
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{_reason(error)}{_where(error)}") from error


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Let Pyro's ELBO objects keep their loss a tensor: a graph cannot wait for a number."""
    item = Tensor.item

    def as_tensor(x: Tensor) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        return x.detach() if caller.startswith("pyro.infer.") else item(x)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Tensor, "item", as_tensor))
        for name, module in list(sys.modules.items()):
            if name.startswith("pyro.infer.") and hasattr(module, "warn_if_nan"):
                stack.enter_context(mock.patch.object(module, "warn_if_nan"))
        yield


def _same_graph(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Whether two traces hold the same operations on the same tensors and numbers."""
    constants = [[getattr(g, str(n.target)) for n in g.graph.nodes if n.op == "get_attr"] for g in (a, b)]
    return a.code == b.code and all(
        x is y or (isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y))
        for x, y in zip(*constants, strict=True)
    )


def _close(a: Tensor, b: Tensor, tolerance: float = _TRACED) -> bool:
    """Equal within a share of the norm, NaN and infinities in place."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()) or not torch.allclose(a[~finite], b[~finite], equal_nan=True):
        return False
    return bool((a[finite] - b[finite]).norm() <= tolerance * b[finite].norm() + 1e-12)


def _reason(error: BaseException) -> str:
    message = str(error).strip()
    if "_local_scalar_dense" in message:
        return "it reads a number out of a tensor (.item(), float(), a branch on a value)"
    return message.splitlines()[0] if message else type(error).__name__


def _where(error: BaseException) -> str:
    """Where in the user's own code an error arose: the innermost frame outside the libraries."""
    own = str(Path(__file__).parent.parent)
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith((own, "<"))]
    return f" (at {mine[-1].filename}:{mine[-1].lineno}, in {mine[-1].name})" if mine else ""
