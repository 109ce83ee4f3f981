"""The estimators of a comparison: objectives by name, import path, class or instance, each at every K."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml
from pyro.infer import ELBO as PyroELBO

from ppl_vae._validation import check_positive_int
from ppl_vae.comparison.words import at_k, one_line
from ppl_vae.configuration import _yaml
from ppl_vae.configuration.kinds import parameters_of
from ppl_vae.configuration.pieces import KINDS
from ppl_vae.objectives.estimate import Estimate, Objective
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.losses import as_loss

_UNSAID = ("num_particles", "vectorize_particles", "max_plate_nesting")  # left out of names; K is shown beside a name
_OF_FUNCTIONS = {"max_plate_nesting": 1, "latents": "pathwise", "reference": None}  # attributes, with their defaults


@dataclass(frozen=True)
class Contender:
    """One estimator in a comparison.

    Attributes:
        name: The name, without K: ``"MIWAE(groups=4)"``.
        num_particles: K; 1 for an objective that takes no particles.
        objective: Any objective that `objectives.as_loss` accepts.
    """

    name: str
    num_particles: int
    objective: Any

    @property
    def key(self) -> tuple[str, int]:
        """Name and K, which identify a contender."""
        return self.name, self.num_particles


class Undefined(NamedTuple):
    """An estimator that does not exist at a K, and the reason that its constructor gives."""

    name: str
    num_particles: int
    reason: str


@dataclass(frozen=True)
class Contenders(Sequence[Contender]):
    """The estimators of a comparison, as a sequence, and the estimators that are left out.

    Attributes:
        items: The estimators that exist, in the order of the objectives, each at its K in turn.
        undefined: The estimators whose constructor refuses a K.
    """

    items: tuple[Contender, ...]
    undefined: tuple[Undefined, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


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


class _Entry(NamedTuple):
    """One requested objective: how to make it at each K, or once if it fixes K itself."""

    name: str
    make: Callable[[int], Any]
    once: bool


def contenders(objectives: object, particles: int | Iterable[int] = (1, 8, 64)) -> Contenders:
    """Return every objective at every K.

    An objective is

    - a string: a short name (``"IWAE"``) or an import path of your own class or function (``"mymodule.my_bound"``),
      with optional arguments as YAML: ``"MIWAE(groups=4)"``;
    - a class or another function of ``num_particles``: ``IWAE``, ``functools.partial(MIWAE, groups=4)``;
    - an object, ``IWAE(num_particles=5)``, which keeps its own K and appears once; so does what is given its K in a
      string or a ``partial``;
    - a function of log-weights;
    - one of Pyro's ELBO classes, with vectorised particles for K > 1 unless ``vectorize_particles`` is given;
    - a mapping from names of your choice to any of these.

    An objective that takes no particles (a sum over all latents) appears once. If a constructor refuses a K by a
    `ValueError`, that K is left out and noted in `undefined`.

    Args:
        objectives: One, or several in a list.
        particles: One K or several.

    Raises:
        TypeError: If an entry is none of these kinds.
        ValueError: If a name or an argument is unknown, two contenders have the same name and K, or none is left.

    Example:
        >>> [(c.name, c.num_particles) for c in contenders(["ELBO", "ArticleELBO(eps=0.0)"], [1, 8])]
        [('ELBO', 1), ('ELBO', 8), ('ArticleELBO(eps=0.0)', 1), ('ArticleELBO(eps=0.0)', 8)]
    """
    several = tuple(particles) if isinstance(particles, Iterable) else (particles,)
    if not several:
        raise ValueError("particles is empty; expected at least one positive integer, such as (1, 8, 64)")
    several = tuple(dict.fromkeys(check_positive_int(k, "particles") for k in several))
    found: dict[tuple[str, int], Contender] = {}
    undefined: list[Undefined] = []
    for entry in _entries(objectives):
        for k in several[:1] if entry.once else several:
            try:
                objective = entry.make(k)
            except (ValueError, AssertionError) as error:  # Pyro refuses by assertions
                if entry.once:
                    raise
                undefined.append(Undefined(entry.name, k, one_line(error)))
                continue
            as_loss(objective)  # raises for an objective without a value or a gradient
            contender = Contender(entry.name, getattr(objective, "num_particles", 1), objective)
            if contender.key in found:
                raise ValueError(
                    f"objectives has two called {contender.name!r} at K = {contender.num_particles}; give one another "
                    "name by a mapping, {'my name': objective}"
                )
            found[contender.key] = contender
    if not found:
        why = f": {at_k(undefined[0])}: {undefined[0].reason}" if undefined else ""
        raise ValueError(f"objectives leave nothing to compare{why}")
    return Contenders(tuple(found.values()), tuple(undefined))


def _entries(objectives: object) -> Iterator[_Entry]:
    if isinstance(objectives, Mapping):
        for name, entry in objectives.items():
            yield _entry(entry)._replace(name=str(name))
    elif isinstance(objectives, (list, tuple)):
        for entry in objectives:
            yield from _entries(entry)
    else:
        yield _entry(objectives)


def _entry(entry: Any) -> _Entry:
    if isinstance(entry, str):
        return _from_text(entry)
    has_arguments = isinstance(entry, functools.partial)
    if has_arguments or inspect.isclass(entry) or inspect.isroutine(entry):
        factory = entry if has_arguments else functools.partial(entry)
        target = factory.func
        if inspect.isclass(target) or _particles_given(factory) is not None or _takes_particles(target):
            return _from_factory(factory, _name_of(target))
        return _Entry(_name_of(entry), functools.partial(FunctionOfLogWeights, entry), once=False)
    if callable(entry):
        return _Entry(_name_of_instance(entry), lambda k: entry, once=True)
    raise TypeError(
        f"objectives has {entry!r}; expected a name such as 'IWAE', a class, an object, a function of log-weights, or "
        "a mapping from names to these"
    )


def _from_text(text: str) -> _Entry:
    """Return the entry of a string such as ``"MIWAE(groups=4)"``."""
    kind = KINDS["objective"]
    match = re.fullmatch(r"\s*([^()\s]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None:
        raise ValueError(f"objective is {text!r}; expected a name, with arguments in brackets: 'MIWAE(groups=4)'")
    target = kind.find(match[1], "objective")
    given: dict[str, Any] = {}
    for part in split_at_commas(match[2] or ""):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"objective is {text!r}, where {part!r} is no argument; expected name=value")
        if key.strip() in given:
            raise ValueError(f"objective is {text!r}, which has {key.strip()} twice; expected each argument once")
        try:
            given[key.strip()] = yaml.load(value.strip(), Loader=_yaml.Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"objective is {text!r}, where {part!r} is no YAML: {one_line(error)}") from error
    try:
        arguments = kind.arguments(target, "objective").objects(given) if given or inspect.isclass(target) else {}
    except ValueError as error:
        raise ValueError(re.sub(r"^--objective\.?", f"objective {match[1]}: ", str(error))) from error
    short = match[1].rpartition(".")[2]
    if not inspect.isclass(target):
        return _Entry(short, functools.partial(FunctionOfLogWeights, target), once=False)
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


def _from_factory(factory: functools.partial[Any], name: str) -> _Entry:
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

    return _Entry(_with_arguments(name, factory.keywords), make, once)


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
