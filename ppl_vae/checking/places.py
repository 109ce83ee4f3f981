"""The source line that a finding is about: in the user's own class or function, where there is one."""

from __future__ import annotations

import ast
import inspect
import itertools
import linecache
import os
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributions import Distribution, Independent, TransformedDistribution

from ppl_vae._piece_checks import GivenPiece

_LIBRARIES = ("torch", "pyro", "ppl_vae", "zuko")
_HIDDEN = (".detach()", ".data", "no_grad", ".item()", ".numpy()", "torch.tensor(", "inference_mode")


def of_call(piece: Any) -> str:
    """Return the line where a piece returns its distribution."""
    return _line(_call_of(piece))


def of_method(distribution: Any, names: tuple[str, ...], piece: Any) -> str:
    """Return the line of a method of the user's own distribution; without such a method, the line of the piece.

    Args:
        distribution: The distribution.
        names: Methods in order of preference; the first that a class outside the libraries defines is used.
        piece: The piece that returned the distribution.
    """
    while True:
        for name, cls in itertools.product(names, type(distribution).__mro__):
            method = getattr(vars(cls).get(name), "fget", vars(cls).get(name))
            if inspect.isfunction(method) and _is_users(cls):
                return _line(method)
        if not isinstance(distribution, (Independent, TransformedDistribution)):
            return of_call(piece)
        distribution = distribution.base_dist


def of_cut(piece: Any) -> str:
    """Return the line of a piece that cuts the gradient, by ``.detach()`` or the like, else the line of its result."""
    for part in piece.modules() if isinstance(piece, nn.Module) else [piece]:
        call = _call_of(part)
        for number, line in _source(call):
            if any(cut in line.partition("#")[0] for cut in _HIDDEN):
                return _say(call, number, line)
    return of_call(piece)


def of_parameter(module: nn.Module, name: str) -> str:
    """Return the line that makes a parameter of a module, found by its dotted name; "" where it is unknown."""
    owners: list[tuple[Any, str]] = []
    owner: Any = module
    for step in name.split("."):
        owners.append((owner, step))
        owner = getattr(owner, step, None)
    for owner, attribute in reversed(owners):
        for cls in filter(_is_users, type(owner).__mro__):
            init = vars(cls).get("__init__")
            for number, line in _source(init):
                if any(made in line for made in (f"self.{attribute} =", f"self.{attribute}:", f'"{attribute}"')):
                    return _say(init, number, line)
    return ""


def of_error(error: BaseException) -> str:
    """Return the deepest line outside the libraries that an error passed through, or "" if there is none."""
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in _LIBRARIES and not _of_environment(frame.f_code.co_filename):
            line = linecache.getline(frame.f_code.co_filename, number).strip()
            found = f"{_short(frame.f_code.co_filename)}:{number}, {frame.f_code.co_qualname}: {line}"
    cause = error.__cause__
    return of_error(cause) or found if cause is not None else found


def name_of(piece: Any) -> str:
    """Return the name of a piece: that of its class or function."""
    if isinstance(piece, GivenPiece):
        return name_of(piece.piece)
    return getattr(piece, "__name__", type(piece).__name__)


def _call_of(piece: Any) -> Callable[..., Any]:
    if isinstance(piece, Distribution) or inspect.isroutine(piece):
        return piece  # type: ignore[return-value]
    if isinstance(piece, nn.Module):
        return type(piece).forward
    return getattr(piece, "func", None) or type(piece).__call__


def _is_users(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").partition(".")[0] not in _LIBRARIES


def _source(function: Any) -> list[tuple[int, str]]:
    """Return the numbered lines of a user's function: users are not asked to mend a library."""
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(function))
    except (OSError, TypeError, ValueError):
        return []
    return list(enumerate(lines, first)) if _is_users(function) else []


def _line(function: Any) -> str:
    """Return the last return statement of a user's function, or the function's first line if there is none."""
    source = _source(function)
    if not source:
        return ""
    try:
        tree = ast.parse(textwrap.dedent("".join(line for _, line in source)))
        last = max((node.lineno for node in ast.walk(tree) if isinstance(node, ast.Return)), default=1)
    except SyntaxError:  # a lambda within an expression
        last = 1
    return _say(function, *source[last - 1])


def _say(function: Any, number: int, line: str) -> str:
    function = inspect.unwrap(function)
    file = inspect.getsourcefile(function) or "?"
    return f"{_short(file)}:{number}, {function.__qualname__}: {line.strip()}"


def _short(file: str) -> str:
    """Return a path relative to the working directory if it lies below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _of_environment(file: str) -> bool:
    return f"{os.sep}site-packages{os.sep}" in file or file.startswith("<") or f"{os.sep}lib{os.sep}python" in file
