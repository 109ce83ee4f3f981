"""The names that a configuration file may bring: this package's pieces, torch's, Pyro's, and what the user trusts.

A configuration names classes and functions by import path, and building it imports and calls them. A name that the user
types is the user's own will. A name in a file may come from anybody: a file may name the classes of `FAMILIES` alone,
unless the user trusts it, by ``--trust``, by an answer on the terminal, or by ``trust=True`` in Python. A run that this
user has trained is known again: the digest of its configuration, with the places of the modules that it names, is kept
in the user's own state folder, outside of the run's.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml

from ppl_vae.configuration import _yaml

FAMILIES = (
    *(
        f"ppl_vae.{room}"
        for room in ("priors", "likelihoods", "posteriors", "networks", "objectives", "regularizers", "distributions")
    ),
    "torch.nn",
    "torch.optim",
    "pyro.distributions",
    "pyro.infer",
    "pyro.nn",
)
_OPERATORS = ("torch._C", "torch._C._nn")  # where torch.nn.functional takes some of its functions from
_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")

Answer = Callable[[str, list[str]], bool]  # (the file, the names) -> whether to import them
_ANSWER: ContextVar[Answer] = ContextVar("_ANSWER", default=lambda source, names: False)


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """Let a function decide about the foreign names of every file that is read inside this block."""
    token = _ANSWER.set(answer)
    try:
        yield
    finally:
        _ANSWER.reset(token)


def require(tree: dict[str, Any], text: str, source: str, *, remembered: bool = True) -> None:
    """Refuse the foreign names of a file unless the user trusts them. Nothing foreign is imported.

    Args:
        tree: What of the file may name code.
        text: The file's text, by whose digest trust is remembered.
        source: The file, for messages.
        remembered: Whether trust in this text is remembered.

    Raises:
        ValueError: If the file names something foreign, and the user does not trust it.
    """
    found = names(tree)
    if not found or (remembered and _digest(text, found) in _remembered()):
        return
    if not _ANSWER.get()(source, found):
        raise ValueError(
            f"{source} names code from outside ppl_vae, torch.nn, torch.optim and Pyro, which would be imported and "
            f"run: {', '.join(found)}; if you trust it, give --trust (in Python, trust=True)"
        )
    if remembered:
        remember(text, found)


def is_path(text: str) -> bool:
    """Whether a text is an import path."""
    return _PATH.fullmatch(text) is not None


def names(tree: object) -> list[str]:
    """Return the import paths in a tree that are not of `FAMILIES`, each once. Imports nothing from elsewhere.

    A text is searched as the YAML that it may be: jsonargparse reads ``"{class_path: os.system}"`` as a mapping. Where
    no YAML can be made of it, the text itself counts as foreign.
    """
    if isinstance(tree, dict):
        return list(dict.fromkeys(name for entry in tree.items() for part in entry for name in names(part)))
    if isinstance(tree, list):
        return list(dict.fromkeys(name for part in tree for name in names(part)))
    if not isinstance(tree, str):
        return []
    try:
        inside = yaml.load(tree, Loader=_yaml.Loader)
    except (yaml.YAMLError, ValueError):
        return [tree]
    if isinstance(inside, dict | list) or (isinstance(inside, str) and inside != tree):
        return names(inside)
    return [path for path in dict.fromkeys(_PATH.findall(tree)) if not _is_known(path)]


def remember(text: str, found: list[str]) -> None:
    """Remember that the user trusts a configuration of this text, with its foreign names and where they lie now."""
    path = _memory()
    with suppress(OSError):  # a home that cannot be written to: the question comes again
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            file.write(_digest(text, found) + "\n")


def _is_known(name: str) -> bool:
    """Whether an import path leads to a class or function that `FAMILIES` themselves define."""
    module, _, attribute = name.rpartition(".")
    if not any(module == family or module.startswith(f"{family}.") for family in FAMILIES):
        return False
    try:
        target = getattr(importlib.import_module(module), attribute)
    except Exception:  # there is no such module or name
        return False
    home = getattr(target, "__module__", None)
    defined = home in (None, *_OPERATORS) or any(home == f or home.startswith(f"{f}.") for f in FAMILIES)
    return defined and (inspect.isclass(target) or inspect.isroutine(target))


def _memory() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".local" / "state") / "ppl_vae" / "trusted"


def _remembered() -> set[str]:
    try:
        return set(_memory().read_text(encoding="ascii").split())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home
        return set()


def _digest(text: str, found: list[str]) -> str:
    """Return the SHA-256 of a text and of the places of the modules that it names: a copy elsewhere is another one."""
    places = sorted(f"{module} {_place(module)}" for module in {name.partition(".")[0] for name in found})
    return hashlib.sha256("\0".join([text, *places]).encode()).hexdigest()


def _place(module: str) -> str | None:
    """Return where a module lies, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    return spec.origin or str(list(spec.submodule_search_locations or []))
