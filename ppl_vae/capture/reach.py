"""The values that a program holds, found without running it: no property is evaluated, no method is called."""

from __future__ import annotations

import argparse
import collections
import contextlib
import contextvars
import dis
import functools
import operator
import os
import random
import sys
import threading
import types
import weakref
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.capture import places
from ppl_vae.capture.entered import Entered, is_library
from ppl_vae.capture.places import LARGE, MISSING, PLAIN, Source

MOST = 20_000  # values that are noted; no further values are seen
_MOST_OF_ARRAYS = 2**16  # array elements that are looked at in a step, and a few elements of each further array
_KEPT = 2**16  # elements of the largest array that is put back if a trial run of the program changes it
_GENERATORS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random, torch.Generator)
_SEQUENCES = (list, collections.deque, tuple, set, frozenset)
_CONTAINERS = (*_SEQUENCES, dict, np.ndarray)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# Python's own classes of objects whose attributes are the user's
_HOLDERS: tuple[type, ...] = (argparse.Namespace, types.SimpleNamespace, threading.local, type(os.environ))
_HOLDERS += (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
_HOLDERS += (collections.UserDict, collections.UserList, collections.ChainMap)
# Pyro hangs it on a parameter each time it looks for it, and copies of modules take it off: it is the parameter itself
_OF_PYRO = "unconstrained"


@dataclass
class Reach:
    """Everything within reach of some objects.

    The search follows closures, defaults, the globals that a function's code names, attributes, slots and items. With
    `entered` it follows only the functions that ran, and only the attributes that their code names: these functions
    can read no others. Without `entered` it follows all functions and attributes.

    Attributes:
        sources: The places that hold values.
        modules: The torch modules met.
        tensors: The tensors met.
        generators: The program's own random generators.
        hooks: The dictionaries in which modules keep hooks, each with the name of the module's class, and the module.
        opaque: The objects that could not be looked at, in words.
        kinds: The objects met, with their classes.
        read_later: Names of attributes that an `operator.attrgetter` reads, or a `methodcaller`.
    """

    entered: Entered | None = None
    sources: list[Source] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    generators: list[Any] = field(default_factory=list)
    hooks: list[tuple[str, dict, nn.Module | None]] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    kinds: list[tuple[Any, type]] = field(default_factory=list)
    read_later: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = None if self.entered is None else self.entered.names()
        self._seen: dict[int, object] = {}
        self._codes: set[types.CodeType] = set()
        self._todo: list[tuple[Any, str]] = []
        self._count = self._arrays = 0
        everywhere = [getattr(nn.modules.module, f"_global{name}") for name in _HOOKS]
        self.hooks += [("module (for all modules)", hooks, None) for hooks in everywhere]
        self._users = {} if self.entered is None else self.entered.users

    @property
    def is_full(self) -> bool:
        """Whether there are more values than are noted."""
        return self._count > MOST

    def let_go(self) -> None:
        """Release the objects met, except for the places themselves."""
        self._seen.clear()

    def visit(self, *roots: object, label: str = "the program") -> Reach:
        """Follow some objects and everything within their reach."""
        self._todo += [(root, label) for root in roots]
        self._todo.reverse()
        while self._todo:
            value, name = self._todo.pop()
            before = len(self._todo)
            self._visit(value, name)
            self._todo[before:] = self._todo[before:][::-1]  # depth first, in the order of the items
        return self

    def visit_entered(self) -> Reach:
        """Follow the functions that ran."""
        assert self.entered is not None
        functions = [f for f in self._seen.values() if type(f) is types.FunctionType]
        self.visit(*self.entered.functions(functions))
        for code, (home, _) in self._users.items():  # of functions that are gone: made, called and dropped in the run
            if code not in self._codes:
                self._codes.add(code)
                self._visit_globals(code, home)
        return self.visit()

    # one object -------------------------------------------------------------------------------------------------

    def _visit(self, value: Any, label: str) -> None:
        kind = type(value)  # `isinstance` would ask the object for its class, which may run the user's code
        if kind in PLAIN or value is MISSING or id(value) in self._seen or self.is_full:
            return
        own = not is_library(kind.__module__)
        if issubclass(kind, PLAIN) and not own:
            return
        self._seen[id(value)] = value
        self.kinds.append((value, kind))
        if issubclass(kind, Tensor):
            self.tensors[id(value)] = value
            if content := dict_of(value):
                kept = {k for k in content if k != _OF_PYRO and (self.names is None or k in self.names)}
                self._visit_entries(content, kept, f"{label}.")
        elif issubclass(kind, (dict, types.MappingProxyType)):
            self._visit_dict(value, label)
        elif issubclass(kind, _SEQUENCES):
            self._visit_sequence(value, label)
        elif issubclass(kind, np.ndarray):
            keeps = (np.copy, np.copyto) if value.size <= _KEPT and value.flags.writeable else (None, None)
            self._arrays += min(value.size, LARGE)
            read = places.read_array if self._arrays <= _MOST_OF_ARRAYS else places.read_few
            self._add(Source(f"the content of {label}", read, value, ("", "", ""), None, *keeps), 16)
        elif issubclass(kind, _GENERATORS):
            self.generators.append(value)
        elif kind is contextvars.ContextVar:
            self._add(Source(label, places.read_context, value, ("",)), 1)
        elif kind is weakref.ref or kind is weakref.KeyedRef:
            self._todo.append((value(), label))
        elif kind is weakref.ProxyType or kind is weakref.CallableProxyType:
            with contextlib.suppress(ReferenceError):
                self._todo.append((value.__dir__.__self__, label))
        elif kind is functools._lru_cache_wrapper:
            if type(value.__wrapped__) is types.FunctionType:  # it may have run before, and be cached
                self._users[value.__wrapped__.__code__] = (value.__wrapped__.__globals__, None)
            self._todo.append((value.__wrapped__, label))
        elif kind is operator.attrgetter:
            self.read_later |= {name for path in value.__reduce__()[1] for name in path.split(".")}
        elif kind is operator.methodcaller:
            made, args = value.__reduce__()
            self.read_later.add((*getattr(made, "args", ()), *args)[0])
        elif kind is functools.partial:
            self._todo += [(value.func, label), (value.args, label), (value.keywords, label)]
        elif kind is types.MethodType:
            self._todo += [(value.__self__, label), (value.__func__, label)]
        elif kind is types.BuiltinMethodType or kind.__name__ == "cython_function_or_method":
            owner = getattr(value, "__self__", None)
            self._todo += [(owner, label)] if type(owner) is not types.ModuleType else []
        elif kind is types.FunctionType:
            self._visit_function(value, label)
        elif issubclass(kind, (staticmethod, classmethod)):
            self._todo.append((value.__func__, label))
        elif kind is property:
            self._todo += [(value.fget, label), (value.fset, label)]
        elif issubclass(kind, type):
            self._visit_class(value)
        elif issubclass(kind, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            self.opaque.append("a torch.jit module, whose attributes cannot be looked at")
            if issubclass(kind, nn.Module):
                self.modules.append(value)
        elif issubclass(kind, types.ModuleType):
            if not is_library(value.__name__):
                del self._seen[id(value)]
                self._visit_module(value, vars(value).keys() if self.names is None else self.names, value.__name__)
        elif kind is not types.CodeType:
            if not own and (memory := places.buffer_of(value)) is not None:
                self._add(Source(f"the content of {label}", places.read_buffer, value, ()), 1 + memory.nbytes // 64)
            self._visit_object(value, kind)
        if own and issubclass(kind, _CONTAINERS):  # a class of the user's, whose objects have attributes
            self._visit_object(value, kind)

    def _visit_dict(self, value: Any, label: str) -> None:
        plain = issubclass(type(value), dict)
        mapping: Any = dict if plain else types.MappingProxyType
        if mapping.__len__(value) > LARGE:
            read: Any = functools.partial(places.read_first, mapping.values)
            self._add(Source(f"the content of {label}", read, value, ()), LARGE)
            return
        keys = tuple(mapping.keys(value))
        names = tuple(f"[{key!r}]" if issubclass(type(key), PLAIN) else "[...]" for key in keys)
        if plain:
            # an OrderedDict keeps an order that `dict.keys` does not know
            read = tuple if type(value) is collections.OrderedDict else dict.keys
            added = Source(f"the keys of {label}", read, value, names, None, dict.copy, places.put_back_dict)
            self._add(added, len(keys))
        if keys or not plain:
            self._add(Source(label, mapping.values, value, names, places.write_value if plain else None), len(keys))
        self._todo += [(item, label + name) for item, name in zip(mapping.values(value), names, strict=True)]

    def _visit_sequence(self, value: Any, label: str) -> None:
        kind = type(value)
        items = list.copy(value) if issubclass(kind, list) else list(value)
        names = tuple(f"[{i}]" for i in range(len(items)))
        if len(items) > LARGE:
            step = len(items) // LARGE
            if issubclass(kind, list):
                read = functools.partial(places.read_sample, step)
                self._add(Source(f"the content of {label}", read, value, ()), LARGE)
            elif not issubclass(kind, (tuple, frozenset)):
                read = functools.partial(places.read_first, iter)
                self._add(Source(f"the content of {label}", read, value, ()), LARGE)
            items = items[::step]
        elif issubclass(kind, list):
            back = places.put_back_list
            self._add(Source(label, list.copy, value, names, list.__setitem__, list.copy, back), len(items))
        elif issubclass(kind, (collections.deque, set)):
            content = f"the content of {label}"
            self._add(Source(content, tuple, value, (), None, tuple, places.put_back_other), len(items))
        self._todo += [(item, label + name) for item, name in zip(items, names, strict=False)]

    def _visit_function(self, function: types.FunctionType, label: str) -> None:
        code = function.__code__
        library = is_library(function.__globals__.get("__name__"))
        cells = list(zip(code.co_freevars, function.__closure__ or (), strict=True))
        if self.entered is not None and not library and code not in self._users:
            return  # it did not run
        for name, cell in cells:
            self._add(Source(name, places.read_cell, cell, ("",), places.write_cell), 1)
            self._todo += [(content, name) for content in places.read_cell(cell) if content is not MISSING]
        if library:
            return
        read = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")
        self._add(Source(function.__name__, read, function, (".__code__", ".__defaults__", ".__kwdefaults__")), 3)
        if code not in self._codes:
            self._codes.add(code)
            self._visit_globals(code, function.__globals__)
        self._todo += [(function.__defaults__, label), (function.__kwdefaults__, label)]
        if vars(function):
            self._todo.append((vars(function), function.__name__))

    def _visit_globals(self, code: types.CodeType, home: dict[str, Any]) -> None:
        names = _names(code)
        loaded = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        loaded |= names if "globals" in names else set()
        self._visit_entries(home, names, "", grows=True, watch=frozenset(loaded - home.keys()))
        for name in names & sys.modules.keys():  # imported where it is used
            if not is_library(name):
                self._visit_module(sys.modules[name], names, name)
        for name in names & home.keys():
            module = home[name]
            if type(module) is types.ModuleType:
                self._visit_module(module, names, name)

    def _visit_module(self, module: types.ModuleType, names: Set[str], label: str) -> None:
        """Follow the entries of an imported module that the code of a function names."""
        own, content = not is_library(module.__name__), vars(module)
        if id(module) in self._seen and own and names is self.names:
            return
        self._seen[id(module)] = module
        watch = frozenset(names - content.keys()) if own else None
        self._visit_entries(content, names, f"{label}.", follow=own or module is os, grows=own, watch=watch)
        if own:
            for name in names & content.keys():
                inner = content[name]
                if type(inner) is types.ModuleType and id(inner) not in self._seen:
                    self._visit_module(inner, names, f"{label}.{name}")

    def _visit_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if is_library(base.__module__):
                if issubclass(base, nn.Module):  # the `forward` of a torch layer may be replaced
                    self._visit_entries(vars(base), {"forward"}, f"{base.__name__}.", follow=False)
                continue
            own = {k for k in vars(base) if not (k.startswith("__") and k.endswith("__")) or k == "__call__"}
            own -= {"_abc_impl"}
            special = {k for k, v in vars(base).items() if k.startswith("__") and type(v) is types.FunctionType}
            wanted = (own if self.names is None else own & self.names) | special
            self._visit_entries(vars(base), wanted, f"{base.__name__}.", grows=True, owner=base)

    def _visit_object(self, value: Any, kind: type) -> None:
        library = is_library(kind.__module__)
        has_content = kind.__module__.split(".")[0] in ("torch", "pyro", "ppl_vae") or issubclass(kind, _HOLDERS)
        if library and not has_content:
            return  # Python's own
        content = dict_of(value)
        label = f"{kind.__name__}."
        if issubclass(kind, nn.Module):
            self.modules.append(value)
            self.hooks += [(kind.__name__, content[k], value) for k in _HOOKS if k in content]
            self._seen |= {id(content[k]): content[k] for k in _HOOKS if k in content}  # they are looked at by `hooks`
            names = {k for k in content if k in _HOOKS or not ("_hooks" in k or k == "_pyro_context")}
            kept = {"training", "_parameters", "_buffers", "_modules", "_pyro_params", "_pyro_samples", *_HOOKS} & names
            wanted = names if self.names is None else (names & self.names) | kept
        elif self.names is None or kind in (argparse.Namespace, types.SimpleNamespace):  # they compare all attributes
            wanted = set(content)
        else:
            wanted = set(content) & self.names
        keys = [k for k in content if type(k) is str and k in wanted]
        self._visit_entries(content, keys, label, grows=not library or issubclass(kind, nn.Module), quiet=library)
        for base in kind.__mro__:
            for name, slot in vars(base).items():
                slotted = type(slot) is types.MemberDescriptorType and "__slots__" in vars(base)
                if slotted and (self.names is None or name in self.names):
                    read = functools.partial(places.read_slot, slot)
                    self._add(Source(label + name, read, value, ("",), functools.partial(places.write_slot, slot)), 1)
                    self._todo += [(item, label + name) for item in read(value) if item is not MISSING]
        self._todo.append((kind, kind.__name__))

    def _visit_entries(
        self,
        home: Mapping[str, Any],
        names: Set[str] | list[str],
        label: str,
        follow: bool = True,
        **more: Any,
    ) -> None:
        """Follow some entries of a namespace, a list of names in its own order; `more` is said of their `Source`."""
        keys = tuple(names if isinstance(names, list) else sorted(names & home.keys()))
        if keys:
            twice = keys if len(keys) > 1 else 2 * keys  # with a single key `itemgetter` returns no tuple
            read, write = operator.itemgetter(*twice), None
            if "owner" in more:
                write = functools.partial(places.write_attribute, more["owner"], twice)
            elif type(home) is dict:
                write = functools.partial(places.write_entry, twice)
            self._add(Source(label, read, home, twice, write, **more), len(keys))
        elif more.get("grows"):
            self._add(Source(label, lambda _: (), home, (), **more), 1)
        if follow:
            self._todo += [(home[key], label + key) for key in keys]

    def _add(self, source: Source, count: int) -> None:
        self._count += count
        self.sources.append(source)


def modules_of(*roots: object) -> list[nn.Module]:
    """Return the modules within reach of some objects, without modules that are parts of another one."""
    modules = Reach().visit(*roots).modules
    parts = {id(part) for module in modules for part in module.modules() if part is not module}
    return [module for module in modules if id(module) not in parts]


def buffers_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the buffers of modules, each once."""
    return list({id(b): b for module in modules for b in module.buffers()}.values())


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    if names & {"globals", "modules", "getattr", "hasattr", "vars", "__dict__"}:
        names.update(const for const in code.co_consts if type(const) is str)
    for const in code.co_consts:
        if type(const) is types.CodeType:
            names |= _names(const)
    return names


def dict_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, without asking its class."""
    try:
        look = threading.local if issubclass(type(value), threading.local) else object
        content = look.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return content if type(content) is dict else {}
