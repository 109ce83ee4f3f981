"""One estimator of a comparison, in any form that it is given: how to make it at each K, and its name."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml
from pyro.infer import ELBO as PyroELBO

from ppl_vae._words import one_line
from ppl_vae.configuration import _yaml
from ppl_vae.configuration.kinds import parameters_of
from ppl_vae.configuration.pieces import KINDS
from ppl_vae.objectives.estimate import Estimate, Objective
from ppl_vae.objectives.log_weights import LogWeights

_UNSAID = ("num_particles", "vectorize_particles", "max_plate_nesting")  # left out of names; K is shown beside a name
_OF_FUNCTIONS = {"max_plate_nesting": 1, "latents": "pathwise", "reference": None}  # attributes, with their defaults


@dataclass(frozen=True)
class FunctionOfLogWeights:
    """A bare function of log-weights, with its number of particles.

    It has the attributes by which the function says how latents are drawn (``latents``, ``max_plate_nesting``) and
    which objective's gradient it estimates (``reference``).

    Args:
        function: ``function(log_weights)`` -> (batch,) or an `Estimate`.
        num_particles: K.
    """

    function: Objective
    num_particles: int = 1

    def __call__(self, log_weights: LogWeights) -> Estimate | Any:
        """Return the function's estimate for each datum."""
        return self.function(log_weights)

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_FUNCTIONS:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.function, name, _OF_FUNCTIONS[name])

    @property
    def __name__(self) -> str:
        """The function's name, for messages."""
        return _name_of(self.function)


class Entry(NamedTuple):
    """One requested objective: how to make it at each K, or once if it fixes K itself."""

    name: str
    make: Callable[[int], Any]
    once: bool


def entry_of(entry: Any) -> Entry:
    """Return the entry of a string, a class, an object or a function; see `contenders.contenders`."""
    if isinstance(entry, str):
        return _from_text(entry)
    has_arguments = isinstance(entry, functools.partial)
    if has_arguments or inspect.isclass(entry) or inspect.isroutine(entry):
        factory = entry if has_arguments else functools.partial(entry)
        target = factory.func
        if inspect.isclass(target) or _particles_given(factory) is not None or _takes_particles(target):
            return _from_factory(factory, _name_of(target))
        return Entry(_name_of(entry), functools.partial(FunctionOfLogWeights, entry), once=False)
    if callable(entry):
        return Entry(_name_of_instance(entry), lambda k: entry, once=True)
    raise TypeError(
        f"objectives has {entry!r}; expected a name such as 'IWAE', a class, an object, a function of log-weights, or "
        "a mapping from names to these"
    )


def _from_text(text: str) -> Entry:
    """Return the entry of a string such as ``"MIWAE(groups=4)"``."""
    kind = KINDS["objective"]
    match = re.fullmatch(r"\s*([^()\s]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None:
        raise ValueError(f"objective is {text!r}; expected a name, with arguments in brackets: 'MIWAE(groups=4)'")
    target = kind.find(match[1], "objective")
    given: dict[str, Any] = {}
    for part in split_at_commas(match[2] or ""):
        key, equals, value = map(str.strip, part.partition("="))
        if not equals or not key.isidentifier():
            raise ValueError(f"objective is {text!r}, where {part!r} is no argument; expected name=value")
        if key in given:
            raise ValueError(f"objective is {text!r}, which has {key} twice; expected each argument once")
        try:
            given[key] = yaml.load(value, Loader=_yaml.Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"objective is {text!r}, where {part!r} is no YAML: {one_line(error)}") from error
    try:
        arguments = kind.arguments(target, "objective").objects(given) if given or inspect.isclass(target) else {}
    except ValueError as error:
        raise ValueError(re.sub(r"^--objective\.?", f"objective {match[1]}: ", str(error))) from error
    short = match[1].rpartition(".")[2]
    if not inspect.isclass(target):
        return Entry(short, functools.partial(FunctionOfLogWeights, target), once=False)
    return _from_factory(functools.partial(target, **{key: arguments[key] for key in given}), short)


def split_at_commas(text: str) -> list[str]:
    """Split a text at the commas outside of brackets and quotes, and drop empty parts.

    Raises:
        ValueError: If brackets or quotes do not close.

    Example:
        >>> split_at_commas("a=[2, 3], b='x,y',")
        ['a=[2, 3]', "b='x,y'"]
    """
    depth, quote, start, parts = 0, "", 0, []
    for i, letter in enumerate(f"{text},"):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
        depth += 0 if quote else (letter in "([{") - (letter in ")]}")
    if depth or quote:
        raise ValueError(f"{text!r} has brackets or quotes that do not close")
    return [part for part in parts if part]


def _from_factory(factory: functools.partial[Any], name: str) -> Entry:
    """Return the entry of a class, or of another function of K, with some arguments."""
    target: Any = factory.func
    own = _particles_given(factory)
    once = own is not None or not _takes_particles(target)
    of_pyro = inspect.isclass(target) and issubclass(target, PyroELBO)
    vectorizes = of_pyro and "vectorize_particles" not in factory.keywords

    def make(k: int) -> Any:
        options: dict[str, Any] = {} if once else {"num_particles": k}
        if vectorizes:
            options["vectorize_particles"] = (k if own is None else own) > 1
        return factory(**options)

    return Entry(_with_arguments(name, factory.keywords), make, once)


def _takes_particles(target: Any) -> bool:
    """Return whether a class or function has a parameter ``num_particles``, or passes one on to a base class."""
    try:
        return "num_particles" in parameters_of(target)
    except (ValueError, TypeError):  # a callable written in C has no signature
        return False


def _particles_given(factory: functools.partial[Any]) -> Any:
    """Return the K that a class or function has already got, by its name or by its place; None without one."""
    try:
        bound = inspect.signature(factory.func).bind_partial(*factory.args, **factory.keywords).arguments
    except (ValueError, TypeError):  # a callable written in C has no signature; what it does not take is its own error
        bound = {}
    return factory.keywords.get("num_particles", bound.get("num_particles"))


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):  # a callable written in C has no signature
        return {}


def _with_arguments(name: str, arguments: Mapping[str, Any]) -> str:
    said = {key: value for key, value in arguments.items() if key not in _UNSAID}
    words = [f"{key}={value if _is_plain(value) else one_line(repr(value))}" for key, value in said.items()]
    return f"{name}({', '.join(words)})" if words else name


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, str))


def _name_of(function: Any) -> str:
    if isinstance(function, functools.partial):
        return _with_arguments(_name_of(function.func), function.keywords)
    return getattr(function, "__name__", type(function).__name__)


def _name_of_instance(objective: Any) -> str:
    """Return the class name with the plain arguments (numbers, strings, booleans) that differ from the defaults."""
    parameters = _parameters(type(objective))
    told = {key: getattr(objective, key, None) for key in parameters}
    told = {key: value for key, value in told.items() if _is_plain(value) and value != parameters[key].default}
    return _with_arguments(type(objective).__name__, told)
