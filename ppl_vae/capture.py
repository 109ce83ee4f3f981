"""A step of a Pyro program as one graph: guide, model, objective and gradient, with no Pyro code left in it.

`make_fx` runs the step once on real tensors and records every ATen operation, those of the backward pass among them.
Parameters and buffers stay the tensors that they are, so that an optimiser's update is seen by the next step; random
draws stay operations on torch's generator, so that a captured step draws the noise that the eager one would.

What Python decided while it ran (a branch, a float in a closure, a module's mode) is frozen into the graph. `Guards`
notes every plain Python value within reach of the program, and a graph is used only while all of them are what they
were; besides, a graph is held against the eager program before its first use and every so often after that.
"""

from __future__ import annotations

import functools
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyro
import torch
from pyro.infer import ELBO, trace_elbo, trace_mean_field_elbo
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

from ppl_vae._scopes import untouched_random_state
from ppl_vae.objectives.losses import BatchLoss

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEPTH = 8  # of attributes of attributes that guards follow
_MISSING = object()

Read = Callable[[], Any]


class CaptureError(RuntimeError):
    """A step that cannot be captured, and why, in one sentence."""


class Step(NamedTuple):
    """What a step computes: the loss and its terms, and the gradient of each parameter."""

    loss: BatchLoss
    gradients: list[Tensor | None]


class Guards:
    """The plain Python values within reach of some objects, and what they were.

    Reached are closures, defaults, the globals that a function's code names, attributes of objects and modules, lists,
    tuples and dictionaries. Tensors, functions, modules and other objects are guarded by identity, containers by what
    they hold. Out of sight is what a program computes from elsewhere (a file, a clock, an extension's state), and what
    objects of torch's and Pyro's own hold.

    Args:
        *roots: Functions, modules and objects to start from.
        parameters: Names of parameters in Pyro's store, which must stay the same tensors.

    Attributes:
        modules: The torch modules among what was reached.

    Example:
        >>> beta = 1.0
        >>> guards = Guards(lambda x: beta * x)
        >>> guards.changed() is None
        True
        >>> beta = 2.0
        >>> guards.changed()
        'beta (was 1.0, is 2.0)'
    """

    def __init__(self, *roots: object, parameters: Iterable[str] = ()) -> None:
        self.modules: list[nn.Module] = []
        self._values: list[tuple[Read, str, Any]] = []
        self._seen: set[int] = set()
        store = pyro.get_param_store()._params
        for name in parameters:
            self._visit(functools.partial(store.get, name, _MISSING), f"parameter {name!r}", 0)
        for root in roots:
            self._visit(functools.partial(_same, root), "the program", 0)

    def changed(self) -> str | None:
        """Name the first value that is no longer what it was, with both; None while all hold."""
        for read, name, value in self._values:
            now = read()
            if now is value or (type(now) is type(value) and isinstance(now, _PLAIN) and now == value):
                continue
            return f"{name} (was {_show(value)}, is {_show(now)})"
        return None

    def buffers(self) -> list[Tensor]:
        """The buffers of the modules reached."""
        return list({id(b): b for module in self.modules for b in module.buffers(recurse=False)}.values())

    def _visit(self, read: Read, name: str, depth: int) -> None:
        """Guard a value, and what can be reached from it."""
        value = read()
        if isinstance(value, (dict, list, tuple)):
            self._visit_container(value, read, name, depth)
            return
        if _is_library(value):
            return
        self._values.append((read, name, value))
        if isinstance(value, (*_PLAIN, Tensor)) or depth > _DEPTH or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, functools.partial):
            inner = {"func": value.func, "args": value.args, "keywords": value.keywords}
        elif isinstance(value, types.MethodType):
            inner = {"__self__": value.__self__, "__func__": value.__func__}
        elif isinstance(value, types.FunctionType):
            self._visit_function(value, depth)
            inner = {"defaults": value.__defaults__, "keyword defaults": value.__kwdefaults__}
        else:
            self._visit_attributes(value, depth)
            return
        for what, part in inner.items():
            self._visit(functools.partial(_same, part), f"{name}.{what}", depth + 1)

    def _visit_container(self, value: Any, read: Read, name: str, depth: int) -> None:
        if depth > _DEPTH or id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._values.append((functools.partial(_length, read), f"the length of {name}", len(value)))
        for key in value if isinstance(value, dict) else range(len(value)):
            self._visit(functools.partial(_item, read, key), f"{name}[{key!r}]", depth + 1)

    def _visit_function(self, function: types.FunctionType, depth: int) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._visit(functools.partial(_contents, cell), name, depth + 1)
        for name in sorted(_names(function.__code__) & function.__globals__.keys()):
            self._visit(functools.partial(function.__globals__.get, name, _MISSING), name, depth + 1)

    def _visit_attributes(self, owner: object, depth: int) -> None:
        attributes = getattr(owner, "__dict__", {})
        if isinstance(owner, nn.Module):
            self.modules.append(owner)
        for name in list(attributes):
            if isinstance(owner, nn.Module) and name in ("_parameters", "_buffers", "_modules"):
                for inner in attributes[name]:
                    self._visit(functools.partial(attributes[name].get, inner, _MISSING), inner, depth + 1)
            elif not (isinstance(owner, nn.Module) and (name.startswith("_pyro") or name.endswith("_hooks"))):
                read = functools.partial(attributes.get, name, _MISSING)
                self._visit(read, f"{type(owner).__name__}.{name}", depth + 1)


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
        with _explained(), untouched(guards), _no_waiting():
            graph = make_fx(self._joint)(*tensors)
        if (changed := guards.changed()) is not None:
            raise CaptureError(f"the program changes a Python value while it runs: {changed}")
        self._graph: Callable[..., tuple[Tensor, ...]] = graph
        if full:
            self._graph = torch.compile(graph, dynamic=False, options={"fallback_random": True})
        with _explained():  # a compiler that is missing shows in the first run
            difference = self.difference(tensors)
        if difference is not None:
            raise CaptureError(difference)

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Step:
        """Run the graph."""
        outputs = list(self._graph(*tensors))
        gradients: list[Tensor | None] = [outputs.pop(0) if has else None for has in self._has_gradient]
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
        if not _close(ours.loss.loss, theirs.loss.loss):
            return f"the graph's loss is {ours.loss.loss.item()}, the eager one {theirs.loss.loss.item()}"
        for i, (a, b) in enumerate(zip(ours.gradients, theirs.gradients, strict=True)):
            if (a is None) != (b is None) or (a is not None and b is not None and not _close(a, b)):
                return f"the graph's gradient of parameter {i} differs from the eager one"
        return None

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
    with torch.enable_grad():
        loss = run(*tensors)
        if loss.surrogate is None:
            raise CaptureError("the objective leaves its gradients by itself (loss_and_grads)")
        target = loss.surrogate / loss.weight if mean else loss.surrogate
        return Step(loss, list(torch.autograd.grad(target, leaves, allow_unused=True)))


def signature(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], list[Tensor], Callable[..., Any]]:
    """Split a step's arguments into what a graph is made for and the tensors that it is given.

    Returns:
        The key (structure, shapes and plain values), the tensors, and a function from tensors back to (args, kwargs).

    Raises:
        CaptureError: If an argument is neither a tensor nor a plain value.
    """
    leaves, structure = _pytree.tree_flatten((args, kwargs))
    key: list[Any] = [repr(structure)]  # older torch cannot hash the structure itself
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            key.append((tuple(leaf.shape), leaf.dtype, str(leaf.device), leaf.requires_grad))
        elif isinstance(leaf, _PLAIN):
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

    def as_tensor(x: Any) -> Any:
        return x.detach() if isinstance(x, Tensor) else x

    with ExitStack() as stack:
        for module in (trace_elbo, trace_mean_field_elbo):
            stack.enter_context(mock.patch.object(module, "torch_item", as_tensor))
            stack.enter_context(mock.patch.object(module, "warn_if_nan"))
        yield


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal within 1e-5 of the norm (a compiler and a GPU may add up in another order), NaN and infinities in place."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()) or not torch.allclose(a[~finite], b[~finite], equal_nan=True):
        return False
    return bool((a[finite] - b[finite]).norm() <= 1e-5 * b[finite].norm() + 1e-12)


def _names(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*(_names(c) for c in inner))


def _is_library(value: object) -> bool:
    """Whether a value belongs to Python, torch or Pyro, whose insides are theirs; modules and objectives are not."""
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return True
    if isinstance(value, (*_PLAIN, Tensor, nn.Module, ELBO)) or value is _MISSING:
        return False
    home = value.__module__ if isinstance(value, types.FunctionType) else type(value).__module__
    own = (functools.partial, types.MethodType, types.FunctionType)
    return str(home).split(".")[0] in ("torch", "pyro", *(() if isinstance(value, own) else sys.stdlib_module_names))


def _same(value: Any) -> Any:
    return value


def _length(read: Read) -> int | None:
    value = read()
    return len(value) if isinstance(value, (dict, list, tuple)) else None


def _item(read: Read, key: Any) -> Any:
    try:
        return read()[key]
    except (KeyError, IndexError, TypeError):
        return _MISSING


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _MISSING


def _show(value: object) -> str:
    return repr(value) if isinstance(value, _PLAIN) else f"a {type(value).__name__}"


def _reason(error: BaseException) -> str:
    message = str(error).strip()
    if "_local_scalar_dense" in message:
        return "it reads a number out of a tensor (.item(), float(), a branch on a value)"
    return message.splitlines()[0] if message else type(error).__name__


def _where(error: BaseException) -> str:
    """Where in the user's own code an error arose: the innermost frame outside the libraries."""
    own = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith((own, "<"))]
    return f" (at {mine[-1].filename}:{mine[-1].lineno}, in {mine[-1].name})" if mine else ""
