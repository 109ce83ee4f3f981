"""The names, types, defaults and docstrings of all choices and commands, from a file: without importing any of them.

``outlines.json`` beside this module holds them; ``python -m ppl_vae.cli.outlining`` writes it from what there really
is, and a test compares both. A stand-in has the signature and the docstring of a class or function, and does nothing.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import inspect
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ppl_vae.configuration.kinds import Choices, Kind, Target

FILE = Path(__file__).with_name("outlines.json")
OTHERS = {"torch": ("optimizer", "scheduler"), "pyro-ppl": ("objective",)}  # packages, and the kinds that have theirs
_TYPES = {"collections": __import__("collections.abc"), "typing": typing}


class UndecidedError(Exception):
    """The exception that says that only an import can tell: of an import path, of another version's class."""


class NetworkFactory:
    """The type of a parameter that takes a network, `ppl_vae.networks.NetworkFactory`."""


@dataclass(frozen=True)
class Outlines:
    """What the file holds.

    Attributes:
        choices: Stand-ins for all that a configuration may name.
        commands: Stand-ins for the functions of commands.
        texts: Helps, or examples at the end of helps, by command.
        versions: The versions of the packages in `OTHERS` that the file describes.
    """

    choices: Choices
    commands: Mapping[str, Target]
    texts: Mapping[str, str]
    versions: Mapping[str, str]

    def outdated(self) -> list[str]:
        """Return the kinds of choices for which another package's version is installed than the file describes."""
        return [k for p, kinds in OTHERS.items() if version_of(p) != self.versions[p] for k in kinds]


def version_of(package: str) -> str:
    """Return the version of an installed package, without the name of its build."""
    return importlib.metadata.version(package).partition("+")[0]


@functools.cache
def read() -> Outlines:
    """Return the content of the file."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in json.loads(FILE.read_text(encoding="utf-8")).items():
        section, _, name = key.partition("/")
        found.setdefault(section, {})[name] = value if section in ("texts", "versions", "refused") else _stand_in(value)
    kinds = {
        name: _Outlined(name, {n: found[f"kind {name}"][n] for n in names}, found["refused"].get(name, {}))
        for name, names in found["refused"].pop("order").items()
    }
    network, functions = kinds.pop("network"), found["function"]
    choices = Choices(kinds, network, functions.pop("load"), functions.pop("fit"))
    return Outlines(choices, functions, found["texts"], found["versions"])


class _Outlined(Kind):
    def find(self, name: object, option: str) -> Target:
        if isinstance(name, str) and "." in name:
            raise UndecidedError(name)
        return super().find(name, option)


def _stand_in(entry: Mapping[str, Any]) -> Target:
    """Return a class or function that has the signature and docstring of an entry of the file."""
    hints = SimpleNamespace(__annotations__={name: kind for name, kind, _, _ in entry["parameters"] if kind})
    types = typing.get_type_hints(hints, _TYPES | {"NetworkFactory": NetworkFactory})
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=types.get(name, empty),
            default=empty if default is None else ast.literal_eval(default),
        )
        for name, _, default, _ in entry["parameters"]
    ]
    about = "\n".join(f"    {name}: {text}" for name, _, _, text in entry["parameters"] if text)
    doc = f"{entry['doc']}\n\nArgs:\n{about}\n" if about else entry["doc"]

    def call(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("a stand-in of outlines.json does nothing")

    # jsonargparse looks for an object in the packages that its module names: here nothing is to be imported
    own = {"__doc__": doc, "__module__": "builtins", "__qualname__": entry["name"], "__name__": entry["name"]}
    if not entry["is_class"]:
        vars(call).update(__signature__=inspect.Signature(parameters))
        for attribute, value in own.items():
            setattr(call, attribute, value)
        return call
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    vars(call).update(__signature__=inspect.Signature([me, *parameters]))
    call.__name__ = "__init__"  # by which jsonargparse knows that the class has the docstring
    del own["__name__"]
    return type(entry["name"], (), own | {"__init__": call})
