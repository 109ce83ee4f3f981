"""``python -m ppl_vae.cli.outlining``: write ``configuration/outlines.json`` from what the package really has."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ppl_vae import _files
from ppl_vae.cli import ON_RUNS, check, comparing, pieces, racing, sweep
from ppl_vae.cli.options import SKIP
from ppl_vae.configuration import outlines
from ppl_vae.configuration.kinds import Arguments, Kind, Target, arguments_of
from ppl_vae.configuration.pieces import CHOICES
from ppl_vae.configuration.resolving import FIT_OBJECTS

_HEAVY = r"(?: \| |, )?\b(?:torch\.Tensor|torch\.device|pathlib\.Path)\b"  # types that a command line cannot give


def text() -> str:
    """Return the content of the file, an entry a line, so that changes side by side merge."""
    found: dict[str, Any] = {f"versions/{package}": outlines.version_of(package) for package in outlines.OTHERS}
    kinds = {**CHOICES.kinds, "network": CHOICES.network}
    found["refused/order"] = {name: list(kind.known) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        found[f"refused/{name}"] = dict(kind.refused)
        for known, target in kind.known.items():
            found[f"kind {name}/{known}"] = _entry(target, kind.arguments(target, name), _first_of(kind, target))
    found["function/load"] = _entry(CHOICES.load, arguments_of(CHOICES.load, "data"))
    found["function/fit"] = _entry(CHOICES.fit, arguments_of(CHOICES.fit, "", FIT_OBJECTS))
    for command in (comparing.fixed, racing.race):
        found[f"function/{command.__name__}"] = _entry(command, arguments_of(command, "", SKIP))
    for name in ON_RUNS:
        module = importlib.import_module(f"ppl_vae.cli.{name}")
        command = getattr(module, name)
        first = [p for p in inspect.signature(command).parameters if p in SKIP]
        found[f"function/{name}"] = _entry(command, arguments_of(command, "", SKIP), first)
        found[f"texts/{name}"] = _help_of(module)
    found["texts/check"] = check.explain()
    found["texts/pieces"] = _help_of(pieces)
    found["texts/sweep"] = _help_of(sweep)
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(found.items())) + "\n}\n"


def _help_of(module: ModuleType) -> str:
    """Return what a module's docstring says below its first line: the help of its command, or examples for it."""
    return (module.__doc__ or "").partition("\n\n")[2]


def _first_of(kind: Kind, target: Target) -> Sequence[str]:
    """Return the parameter of an optimiser or scheduler that a configuration leaves out."""
    return list(inspect.signature(target).parameters)[:1] if kind.is_partial else []


def _entry(target: Target, schema: Arguments, first: Sequence[str] = ()) -> dict[str, Any]:
    own = [[name, None, None, ""] for name in first]
    for name in schema.order:
        action, required = schema.actions[name], name in schema.required
        kind = "NetworkFactory" if name in schema.networks else _type(action)
        default = None if required else repr(action.default).replace("inf", "1e999")
        own.append([name, kind, default, " ".join((action.help or "").split())])
    doc = (inspect.getdoc(target) or "").partition("\nArgs:")[0].strip()
    return {"name": target.__name__, "is_class": inspect.isclass(target), "doc": doc, "parameters": own}


def _type(action: Any) -> str | None:
    """Return a type as text that `outlines` can read; None for an unannotated parameter."""
    hint = getattr(action, "_typehint", None) or action.type
    text = hint.__name__ if inspect.isclass(hint) else str(hint)
    return None if "Untyped" in text else re.sub(_HEAVY, "", text).replace("NoneType", "None")


if __name__ == "__main__":
    _files.write(outlines.FILE, text())
