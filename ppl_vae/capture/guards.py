"""The Python values that a captured graph was made under: what they were, and whether they still are."""

from __future__ import annotations

import argparse
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyro
from pyro.infer import ELBO
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEPTH = 8  # of attributes of attributes that guards follow
_LARGE = 1024  # elements of an array, above which its content is not looked at in every step
_DATA = (*PLAIN, dict, list, tuple, set, frozenset, np.ndarray)
_LIBRARIES = ("torch", "pyro", "numpy", "scipy", "ppl_vae")
_MISSING = object()

Read = Callable[[], Any]


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
        forgotten: What is guarded no more, in words.

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
        self.forgotten: list[str] = []
        self._values: list[tuple[Read, str, Any]] = []
        self._seen: set[int] = set()
        store = pyro.get_param_store()._params
        for name in parameters:
            self._visit(functools.partial(store.get, name, _MISSING), f"parameter {name!r}", 0)
        for root in roots:
            self._visit(functools.partial(_same, root), "the program", 0)

    def changed(self) -> str | None:
        """Name the first value that is no longer what it was, with both; None while all hold."""
        return next(self._changes(), (None, ""))[1] or None

    def forget_changed(self) -> bool:
        """Guard what has changed no more, and note it in `forgotten`; return whether there was any."""
        changes = dict(self._changes())
        self._values = [value for i, value in enumerate(self._values) if i not in changes]
        self.forgotten += changes.values()
        return bool(changes)

    def _changes(self) -> Iterator[tuple[int, str]]:
        for i, (read, name, value) in enumerate(self._values):
            now = read()
            if now is value or (type(now) is type(value) and isinstance(now, PLAIN) and now == value):
                continue
            yield i, f"{name} (was {_show(value)}, is {_show(now)})"

    def buffers(self) -> list[Tensor]:
        """The buffers of the modules reached."""
        return list({id(b): b for module in self.modules for b in module.buffers(recurse=False)}.values())

    def _visit(self, read: Read, name: str, depth: int) -> None:
        """Guard a value, and what can be reached from it."""
        value = read()
        if isinstance(value, (dict, list, tuple)):
            self._visit_container(value, read, name, depth)
            return
        if isinstance(value, (set, frozenset, np.ndarray)):
            read = functools.partial(_content, read)
            self._values.append((read, f"the content of {name}", read()))
            return
        if _is_library(value):
            return
        self._values.append((read, name, value))
        if isinstance(value, (*PLAIN, Tensor)) or depth > _DEPTH or id(value) in self._seen:
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
        names = _names(function.__code__)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        reads: dict[str, Read] = {name: functools.partial(_contents, cell) for name, cell in cells}
        for name in sorted(names & function.__globals__.keys()):
            reads.setdefault(name, functools.partial(function.__globals__.get, name, _MISSING))
        for name, read in reads.items():
            self._visit(read, name, depth + 1)
            home = read()
            if isinstance(home, (type, types.ModuleType)) and not _is_of_a_library(home):
                for inner in sorted(names & vars(home).keys()):
                    self._visit(functools.partial(getattr, home, inner, _MISSING), f"{name}.{inner}", depth + 1)

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
        for kind in type(owner).__mro__:  # what the class has, until the object has its own; slots
            if not _is_of_a_library(kind):
                for name in sorted(vars(kind).keys() - attributes.keys()):
                    if not name.startswith("__") and isinstance(getattr(owner, name, None), _DATA):
                        read = functools.partial(getattr, owner, name, _MISSING)
                        self._visit(read, f"{type(owner).__name__}.{name}", depth + 1)


def modules_of(*roots: object) -> list[nn.Module]:
    """Return the modules within reach of some objects, as `Guards` reaches them, without their parts."""
    modules = Guards(*roots).modules
    parts = {id(part) for module in modules for part in module.modules() if part is not module}
    return [module for module in modules if id(module) not in parts]


def _names(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*(_names(c) for c in inner))


def _is_of_a_library(home: type | types.ModuleType) -> bool:
    """Whether a class or a module is not the user's, and so holds nothing that they would change."""
    name = home.__module__ if isinstance(home, type) else home.__name__
    return name.split(".")[0] in (*_LIBRARIES, *sys.stdlib_module_names)


def _is_library(value: object) -> bool:
    """Whether a value belongs to Python, torch or Pyro, whose insides are theirs; modules and objectives are not."""
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return True
    guarded = (*PLAIN, Tensor, nn.Module, ELBO, argparse.Namespace, types.SimpleNamespace)
    if isinstance(value, guarded) or value is _MISSING:
        return False
    home = value.__module__ if isinstance(value, types.FunctionType) else type(value).__module__
    own = (functools.partial, types.MethodType, types.FunctionType)
    return str(home).split(".")[0] in ("torch", "pyro", *(() if isinstance(value, own) else sys.stdlib_module_names))


def _same(value: Any) -> Any:
    return value


def _length(read: Read) -> int | None:
    value = read()
    return len(value) if isinstance(value, (dict, list, tuple)) else None


def _content(read: Read) -> Any:
    """What a set or an array holds, as a plain value; of a large array that it is the same one."""
    value = read()
    if isinstance(value, (set, frozenset)):
        return repr(sorted(map(repr, value)))
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.size <= _LARGE else id(value)
    return None


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
    return repr(value) if isinstance(value, PLAIN) else f"a {type(value).__name__}"
