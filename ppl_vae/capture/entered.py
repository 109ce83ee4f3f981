"""The Python functions that a run enters, noted by Python's own profiling hook."""

from __future__ import annotations

import dis
import gc
import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

_NAME = re.compile(r"[^\W\d]\w*")
# these read attributes by names that may stand in no code
_DYNAMIC = {"getattr", "hasattr", "vars", "__dict__", "attrgetter", "methodcaller", "eval", "exec", "globals", "dir"}
_DYNAMIC |= {"getmembers", "__getattribute__"}
# packages that read whole tensors and decide nothing by it
_MAY_READ = ("pyro.", "ppl_vae.", "torch.fx.", "torch._subclasses.", "torch.utils.")
_READS = ("tolist", "numpy", "__array__", "data_ptr", "__dlpack__")
LIBRARIES = frozenset(
    ("torch", "pyro", "numpy", "scipy", "opt_einsum", "ppl_vae", *sys.stdlib_module_names)
    # torch imports these when it first needs them, which may be while a program is watched
    + ("functorch", "torchgen", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "triton", "optree")
    + ("typing_extensions", "filelock", "fsspec", "packaging", "setuptools")
)


class Entered:
    """A context that notes the functions that run in it, in this thread, and the names that their code uses.

    It calls and evaluates nothing of the program. It takes the profiling hook, so do not enter it while another
    profiler has the hook (`signature.can_watch`).

    Args:
        watch: False notes nothing, and costs nothing; the garbage collector rests either way.

    Attributes:
        codes: The code of each function that ran, with its globals and its first argument.
        also: Names that may be read besides those in the code.
        read: Tensors that Python or NumPy read as a whole (``tolist``, ``numpy``).

    Example:
        >>> def double(x):
        ...     return 2 * x
        >>> with Entered() as entered:
        ...     _ = double(1)
        >>> double.__code__ in entered.codes
        True
    """

    def __init__(self, watch: bool = True) -> None:
        self._watch = watch
        self.codes: dict[types.CodeType, tuple[dict[str, Any], Any]] = {}
        self.read: list[Tensor] = []
        self.also: set[str] = set()

    def __enter__(self) -> Entered:
        self._collects = gc.isenabled()
        gc.disable()  # what the garbage collector calls is no part of the program
        if self._watch:
            sys.setprofile(self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._watch:
            sys.setprofile(None)
        if self._collects:
            gc.enable()
        self.codes.pop(type(self).__exit__.__code__, None)

    def _note(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            reads = argument.__name__ in _READS and issubclass(type(argument.__self__), Tensor)
            if reads and not str(frame.f_globals.get("__name__")).startswith(_MAY_READ):
                self.read.append(argument.__self__)
            return
        if event == "call" and (code := frame.f_code) not in self.codes:
            first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            self.codes[code] = frame.f_globals, first

    def let_go(self) -> None:
        """Release the arguments and tensors noted."""
        self.read.clear()
        self.codes = {code: (home, None) for code, (home, _) in self.codes.items()}

    @property
    def users(self) -> dict[types.CodeType, tuple[dict[str, Any], Any]]:
        """The entries of `codes` that belong to no library."""
        return {code: seen for code, seen in self.codes.items() if not is_library(seen[0].get("__name__"))}

    def names(self) -> frozenset[str] | None:
        """Return every name that the functions could read; None where the user's code may make names at run time."""
        names = self.also.union(*(code.co_names for code in self.codes))
        for code in self.users:  # names may stand in text and in patterns
            names.update(name for text in _texts(code.co_consts) for name in _NAME.findall(text))
        dynamic = any(_DYNAMIC.intersection(code.co_names) or _matches(code) for code in self.users)
        asdict = any(seen[0].get("__name__") == "dataclasses" for seen in self.codes.values())
        return None if dynamic or asdict else frozenset(names)

    def functions(self, known: Iterable[types.FunctionType] = ()) -> list[types.FunctionType]:
        """Return the functions behind `users`, found by the first argument's class, globals, or garbage collector."""
        missing = self.users
        found = [f for f in known if f.__code__ in missing]
        for function in found:
            missing.pop(function.__code__, None)
        for code, (home, first) in list(missing.items()):
            kinds = first.__mro__ if issubclass(type(first), type) else type(first).__mro__
            candidates = [*(vars(kind).get(code.co_name) for kind in kinds), home.get(code.co_name)]
            named = next((f for f in map(_plain_function, candidates) if f and f.__code__ is code), None)
            if named is not None:
                found.append(named)
                del missing[code]
        if missing:
            codes = list(missing)
            found += [f for f in gc.get_referrers(*codes) if type(f) is types.FunctionType and f.__code__ in missing]
        return found


def _texts(constants: tuple[Any, ...]) -> Iterator[str]:
    for constant in constants:
        if type(constant) is str:
            yield constant
        elif type(constant) is tuple:
            yield from _texts(constant)


def is_library(module: object) -> bool:
    """Whether a module of this name is Python's, torch's, Pyro's or this package's."""
    return str(module).split(".")[0] in LIBRARIES or str(module).startswith("namedtuple_")


def _matches(code: types.CodeType) -> bool:
    """Whether a pattern matches attributes by position: only the class has their names."""
    return any(instruction.opname == "MATCH_CLASS" for instruction in dis.get_instructions(code))


def _plain_function(value: Any) -> types.FunctionType | None:
    if issubclass(type(value), (staticmethod, classmethod)):
        value = value.__func__
    elif type(value) is property:
        value = value.fget
    return value if type(value) is types.FunctionType else None
