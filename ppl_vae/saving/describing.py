"""Pieces as plain trees: the import path of each class and the arguments of its constructor, and back.

A tree holds None, numbers, text and tensors. Anything else is a mapping: ``{"class": path, "args": [...], "kwargs":
{...}}`` for an object, ``{"same": 3}`` for the third object again, ``{"name": path}`` for a class or function itself,
``{"list": [...]}`` and the like for what Python holds other values in.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae._piece_checks import GivenPiece
from ppl_vae._recorded import Recorded
from ppl_vae.networks import ParameterNetwork

Tree = Any

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
_SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset, torch.Size)}
_MAPPINGS = {kind.__name__: kind for kind in (dict, OrderedDict)}
_PARTIAL = "functools.partial"
_FUNCTIONS = "torch.nn.functional"  # of softplus and others, which are written in C and do not know where they lie


class Describer:
    """What turns the pieces of one VAE into trees; an object that two of them share is one object again when built."""

    def __init__(self) -> None:
        self._numbers: dict[int, int | None] = {}  # of finished objects, by id; None while one is described
        self._alive: list[object] = []  # an id is an object's own only while it lives

    def __call__(self, value: object, where: str) -> Tree:
        """Return the tree of a value.

        Raises:
            ValueError: If it cannot be made again from names and arguments; the message names the place.
        """
        if type(value) is Tensor:
            return value.detach().cpu().clone()
        if type(value) in PLAIN:
            return value
        if isinstance(value, np.generic | np.ndarray):
            return _of_numpy(value, where)
        if type(value) in _SEQUENCES.values():
            return {type(value).__name__: [self(part, where) for part in value]}  # type: ignore[attr-defined]
        if type(value) in _MAPPINGS.values():
            pairs = [[self(k, where), self(v, f"{where}[{k!r}]")] for k, v in value.items()]  # type: ignore[attr-defined]
            return {type(value).__name__: pairs}
        if isinstance(value, type) or inspect.isroutine(value):
            return {"name": path_of(value, where)}
        return self._object(value, where)

    def _object(self, value: object, where: str) -> Tree:
        if id(value) in self._numbers:
            if (number := self._numbers[id(value)]) is None:
                raise ValueError(f"{where} holds itself, so that it cannot be described by its arguments")
            return {"same": number}
        self._numbers[id(value)] = None
        self._alive.append(value)
        args, kwargs = _arguments_of(value, where)
        tree = {
            "class": path_of(type(value), where),
            "args": [self(argument, where) for argument in args],
            "kwargs": {name: self(argument, f"{where}.{name}") for name, argument in kwargs.items()},
        }
        self._numbers[id(value)] = sum(number is not None for number in self._numbers.values())
        return tree


class Builder:
    """What turns the trees of one `Describer` into objects again. It imports and calls whatever they name."""

    def __init__(self) -> None:
        self._made: list[Any] = []

    def __call__(self, tree: Tree) -> Any:
        """Return the value that a tree describes; errors are those of the constructors, and of a damaged tree."""
        if not isinstance(tree, dict):
            return tree
        if "class" in tree:
            target = _import(tree["class"])
            if not isinstance(target, type):
                raise TypeError(f"{tree['class']} is no class")
            args = [self(argument) for argument in tree["args"]]
            made = target(*args, **{name: self(argument) for name, argument in tree["kwargs"].items()})
            self._made.append(made)
            return made
        ((kind, content),) = tree.items()
        if kind == "same":
            return self._made[content]
        if kind == "name":
            return _import(content)
        if kind == "array":
            return content.numpy()
        if kind in _SEQUENCES:
            return _SEQUENCES[kind](self(part) for part in content)
        return _MAPPINGS[kind]((self(k), self(v)) for k, v in content)


def names(tree: Tree) -> Iterator[str]:
    """Yield the import paths that a tree has imported when it is built."""
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if isinstance(tree, dict):
        yield from (str(tree[key]) for key in ("class", "name") if key in tree and tree[key] != _PARTIAL)
    for part in parts:
        yield from names(part)


def path_of(target: Any, where: str) -> str:
    """Return the shortest import path of a class or function.

    Raises:
        ValueError: If it cannot be imported: a lambda, a local function, something of a script or a notebook.
    """
    home, name = getattr(target, "__module__", None) or "", getattr(target, "__qualname__", "")
    packages = [home[:i] for i, c in enumerate(f"{home}.") if c == "."]
    for module in [_FUNCTIONS, *packages, "torch"]:
        if module != "__main__" and getattr(sys.modules.get(module), name, None) is target:
            return f"{module}.{name}"
    if home == "__main__":
        raise ValueError(
            f"{where}: {name} is defined in a script or a notebook, where no other process can import it from; put it "
            "into a module of its own (a file mymodule.py) and import it"
        )
    raise ValueError(
        f"{where}: {name or target!r} cannot be imported by its name, as a lambda or a function inside another cannot; "
        "define it at the top of a module"
    )


def _of_numpy(value: np.generic | np.ndarray, where: str) -> Tree:
    """Return the tree of a number or an array of NumPy."""
    if isinstance(value, np.generic):
        if type(value.item()) in PLAIN:
            return value.item()
    elif value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return {"array": torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))}
    raise ValueError(f"{where} is of NumPy's {value.dtype}, which no file keeps; give numbers of 64 bits or text")


def _import(path: object) -> Any:
    module, _, name = str(path).rpartition(".")
    return getattr(importlib.import_module(module), name)


def _arguments_of(value: Any, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that make an object again, as it noted them or as it holds them."""
    if isinstance(value, GivenPiece):
        raise ValueError("a model at one condition (VAE.given) is not saved; save the conditional model itself")
    if isinstance(value, Recorded):
        return value.made_with
    if type(value) is functools.partial:
        return (value.func, *value.args), value.keywords
    if type(value) in (nn.Sequential, nn.ModuleDict):
        return (OrderedDict(value._modules),), {}  # where a module may stand twice
    if type(value) is nn.ModuleList:
        return (list(value),), {}
    if isinstance(value, nn.Parameter):
        return (value.detach().cpu().clone(), value.requires_grad), {}
    return (), _held(value, where)


def _held(value: Any, where: str) -> dict[str, Any]:
    """Return the arguments of a constructor that an object keeps as attributes of the same name."""
    kind = type(value).__name__
    try:
        parameters = inspect.signature(type(value)).parameters.values()
    except ValueError as error:
        raise ValueError(f"{where}: {kind} has no signature that tells how to make it again") from error
    held = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # what they changed shows when the copy is held against the original
        if parameter.name in ("device", "dtype") or not hasattr(value, parameter.name):
            if parameter.default is parameter.empty:
                raise ValueError(
                    f"{where}: {kind} does not keep its argument {parameter.name!r}, without which it cannot be made "
                    f"again; keep it as an attribute, self.{parameter.name} = {parameter.name}, in a class of your own "
                    f"around {kind} where {kind} is another's"
                )
            continue
        argument = getattr(value, parameter.name)
        if isinstance(argument, ParameterNetwork):  # a piece's own joint around the network that it was given
            argument = inspect.signature(ParameterNetwork).bind(*argument.made_with[0], **argument.made_with[1])
            argument = argument.arguments["network"]
        if isinstance(parameter.default, bool) and (argument is None or isinstance(argument, Tensor)):
            argument = argument is not None  # nn.Linear(bias=True) keeps the bias itself
        held[parameter.name] = argument
    return held
