"""A class or function by its import path: the user's own pieces."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from ppl_vae._validation import did_you_mean

Target = Callable[..., Any]


def imported(path: str, option: str) -> Target:
    """Return the class or function of an import path.

    Raises:
        ValueError: If there is none, or it has no signature; the message names the option, and where was looked for it.
    """
    module_name, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{option} {path} cannot be imported ({reason}); {_where(module_name, name, error)}"
        ) from error
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        raise ValueError(f"{option} {path} is a {type(target).__name__}; expected a class or a function")
    try:
        inspect.signature(target)
    except ValueError as error:
        raise ValueError(f"{option} {path} has no signature to read arguments from; wrap it in a function") from error
    return target


def _where(module_name: str, name: str, error: BaseException) -> str:
    """Return in words where an import looked, and what to do."""
    module = sys.modules.get(module_name)
    if module is not None:
        file = getattr(module, "__file__", None) or "the interpreter"
        return f"{module_name} comes from {file}{did_you_mean(name, [n for n in vars(module) if n[0] != '_'])}"
    top = module_name.partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or error.name is None or top != error.name.partition(".")[0]:
        return f"{module_name} was found, and it fails while it is imported"
    return (
        f"it was looked for in the working directory, {os.getcwd()}, and in {len(sys.path)} folders of sys.path "
        f"(PYTHONPATH and the environment {sys.prefix}); change to the folder that holds {top}.py or {top}/, or name "
        f"that folder in PYTHONPATH"
    )
