"""The schema of a configuration: the kinds of choices, and the arguments of each choice. Imports no torch.

A `Kind` (prior, likelihood, ..., scheduler) maps short names to classes. `Arguments` is the schema of one chosen class
or function, which jsonargparse reads from its signature. The schema never sees another class, so no argument of a
default class can leak into the chosen one.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ppl_vae._validation import did_you_mean
from ppl_vae._words import one_line
from ppl_vae.configuration import _yaml
from ppl_vae.configuration.importing import Target, imported


class OptionError(ValueError):
    """An option that the configuration does not have (`missing` is false), or one that it lacks.

    Attributes:
        option: Its name, without the dashes.
        missing: Whether it lacks.
    """

    def __init__(self, message: str, option: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.option, self.missing = option, missing


@dataclass(frozen=True)
class Kind:
    """One of the choices that make a run.

    Attributes:
        name: The name of the choice, ``"prior"``.
        known: The classes that have a short name.
        refused: Short names that cannot work, and why.
    """

    name: str
    known: Mapping[str, Target]
    refused: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: object, option: str) -> Target:
        """Return the class or function of this short name or import path.

        Raises:
            ValueError: If there is none; the message names the option, the known names and the nearest one.
        """
        if isinstance(name, str) and name in self.refused:
            raise ValueError(f"{option} {name} cannot be used: {self.refused[name]}")
        if isinstance(name, str) and name in self.known:
            return self.known[name]
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
            names = ", ".join(self.known)
            raise ValueError(
                f"{option} is {name!r}; expected one of {names}, or an import path such as "
                f"mymodule.my_{self.name}{did_you_mean(name, self.known)}"
            )
        return imported(name, option)

    def arguments(self, target: Target, path: str) -> Arguments:
        """Return the schema of the arguments that a configuration may set."""
        parameters = list(inspect.signature(target).parameters)
        if self._is_value(target):
            return arguments_of(target, path, frozenset(parameters))
        own = [*parameters[:1], "last_epoch", "verbose"]  # the last of torch 2.6 alone
        return arguments_of(target, path, frozenset(own if self.is_partial else []))

    def make(self, target: Target, arguments: dict[str, Any]) -> Any:
        """Make the object: an instance of a class, or what the kind makes of a function.

        An optimiser becomes a function of the parameters, and a scheduler a function of the optimiser. A function as a
        network is the factory itself, and a function as an objective is the objective itself. A function as a prior,
        likelihood or posterior is called, and returns the piece.
        """
        if self.is_partial:
            parameters = inspect.signature(target).parameters
            # only what differs from the defaults: SVI chooses the fused form where `fused` is not given
            changed = {n: v for n, v in arguments.items() if n not in parameters or v != parameters[n].default}
            return functools.partial(target, **changed)
        if self._is_value(target):
            return target
        made = target(**arguments)
        modules = [sys.modules.get(name) for name in ("pyro.distributions", "torch.distributions")]
        if any(isinstance(made, m.Distribution) for m in modules if m is not None):  # its maker has imported them
            raise TypeError(
                f"{self.name} {target.__name__} returned a distribution; expected a class, or a function whose result "
                "is the piece, a callable that returns the distribution"
            )
        return made

    @property
    def is_partial(self) -> bool:
        """Whether a configuration leaves the first argument out: an optimiser's parameters, a scheduler's optimiser."""
        return self.name in ("optimizer", "scheduler")

    def _is_value(self, target: Target) -> bool:
        return self.name in ("network", "objective") and not inspect.isclass(target)


@dataclass(frozen=True)
class Choices:
    """All that a configuration may name.

    Attributes:
        kinds: The kinds of choices, by option.
        network: The kind of the networks inside the pieces.
        load: The function of the data, whose arguments are ``--data.ARGUMENT``.
        fit: The function that trains, whose arguments are options.
    """

    kinds: Mapping[str, Kind]
    network: Kind
    load: Target
    fit: Target


class Arguments:
    """The arguments of a class or function, read from its signature.

    Args:
        target: The class or function.
        path: Its path in a configuration, ``"likelihood.network"``, for messages.
        skip: Parameters that a configuration cannot set.

    Attributes:
        names: The parameters that take a value.
        networks: The parameters that take a network, and whether they need one. They are annotated with
            `NetworkFactory`, or unannotated and called ``network``. A network is chosen by class itself. All classes of
            this library have a default network, which a configuration states; another class decides for itself what it
            does without one.
        order: Both kinds of parameters, in the order of the signature.
        actions: jsonargparse's actions for them, by name.
    """

    def __init__(self, target: Target, path: str, skip: frozenset[str] = frozenset()) -> None:
        self.target = target
        self.path = path
        self.skip = skip
        parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
        everything = self.add_to(parser)
        self.actions = {action.dest: action for action in parser._actions}
        parameters = {n: (p, owner) for n, (p, owner) in parameters_of(target).items() if n in everything}
        self.networks = {n: _needs_network(p, owner) for n, (p, owner) in parameters.items() if _is_network(p)}
        self.own = parameters.keys()
        self.required = [n for n, (p, _) in parameters.items() if p.default is p.empty and n not in self.networks]
        self.never_null = [n for n, (p, _) in parameters.items() if _refuses_null(p) and n not in self.networks]
        self.order = list(dict.fromkeys([*parameters, *everything]))
        self.skip = skip | self.networks.keys()
        self._parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
        self.names = self.add_to(self._parser)

    def add_to(self, parser: Any, nested_key: str | None = None) -> list[str]:
        """Add the arguments to a parser, or to a group of one for its help, and return their names."""
        add = parser.add_class_arguments if inspect.isclass(self.target) else parser.add_function_arguments
        return add(self.target, nested_key, as_group=False, skip=set(self.skip), fail_untyped=False)

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments with their defaults, checked by type, as plain values that YAML can hold."""
        values, parsed = self._parse(values)
        plain = yaml.safe_load(self._parser.dump(parsed)) or {}
        said = [name for name in self.names if self._is_said(name, values)]
        return {name: _as_given(values.get(name), plain.get(name)) for name in said}  # no nulls are written

    def objects(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the Python objects to call the target with."""
        values, parsed = self._parse(values)
        found = vars(self._parser.instantiate(parsed))
        return {name: value for name, value in found.items() if self._is_said(name, values)}

    def _is_said(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether to pass an argument on: jsonargparse also finds what functions within take, not all of which fits."""
        return name in self.own or name in values

    def _parse(self, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
        """Return the values, texts of mappings read, and what jsonargparse makes of them."""
        values = {n: v for n, v in values.items() if (n, v) != ("verbose", "deprecated")}  # of schedules in torch 2.6
        for name in values:
            if name not in self.names:
                raise OptionError(self.unknown(name), self._option(name)[2:])
        for name, value in values.items():
            if isinstance(value, str):  # jsonargparse reads it as YAML where it may be a list
                _yaml.check_bounds(value, self._option(name))
        for name in self.required:
            if name not in values:
                message = f"{self._option(name)} is missing: {self.target.__name__} needs it"
                raise OptionError(message, self._option(name)[2:], missing=True)
        try:
            parsed = self._parser.parse_object(dict(values))
        except ArgumentError as error:
            raise ValueError(self._explain(str(error), values)) from error
        texts = [name for name, value in values.items() if isinstance(value, str) and isinstance(parsed[name], dict)]
        if texts:  # in the dialect of configurations, in which no and off are words
            return self._parse({**values, **{name: _yaml.load(values[name], self._option(name)) for name in texts}})
        for name, value in values.items():
            parsed[name] = _as_given(value, parsed[name])
        for name in self.never_null:
            if parsed[name] is None:
                raise ValueError(f"{self._option(name)} is null; expected a value")
        return values, parsed

    def unknown(self, name: str) -> str:
        """Return the message for an argument that the target does not take."""
        takes = f"takes {', '.join(self.order)}" if self.order else "takes no arguments"
        return f"{self._option(name)} is unknown: {self.target.__name__} {takes}{did_you_mean(name, self.order)}"

    def _option(self, name: str) -> str:
        return f"--{self.path}.{name}" if self.path else f"--{name}"

    def _explain(self, message: str, values: Mapping[str, Any]) -> str:
        """Turn jsonargparse's message into one sentence: the option, its value, and what was expected."""
        key = re.search(r'key "([^".]+)', message)
        expected = dict.fromkeys(re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", message, re.MULTILINE))
        kinds = [_type_name(kind) for kind in expected if "import path" not in kind and "Tensor" not in kind]
        if key is None or key[1] not in values or not kinds:
            return f"--{self.path}: {one_line(message)}"
        return f"{self._option(key[1])} is {values[key[1]]!r}; expected {' or '.join(kinds)}"


def _as_given(given: Any, parsed: Any) -> Any:
    """Return what jsonargparse made of an argument; in a mapping texts are as they were: it takes 'no' for false."""
    if not (isinstance(given, dict) and isinstance(parsed, dict)):
        return parsed
    return {name: _texts(value, parsed.get(name)) for name, value in given.items()}


def _texts(given: Any, parsed: Any) -> Any:
    if isinstance(given, list) and isinstance(parsed, list) and len(given) == len(parsed):
        return [_texts(a, b) for a, b in zip(given, parsed, strict=True)]
    return given if isinstance(given, str) else _as_given(given, parsed)


@functools.lru_cache(maxsize=128)
def arguments_of(target: Target, path: str, skip: frozenset[str] = frozenset()) -> Arguments:
    """Return the cached `Arguments`: reading signatures and docstrings takes tens of milliseconds."""
    return Arguments(target, path, skip)


def parameters_of(target: Target) -> dict[str, tuple[inspect.Parameter, str]]:
    """Return the parameters, and those that ``**kwargs`` passes on to a base class, each with its module."""
    found: dict[str, tuple[inspect.Parameter, str]] = {}
    owners = [c for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    for owner in owners:
        parameters = inspect.signature(owner).parameters
        for name, parameter in parameters.items():
            found.setdefault(name, (parameter, owner.__module__))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found


def _is_network(parameter: inspect.Parameter) -> bool:
    if parameter.annotation is parameter.empty:
        return parameter.name == "network"
    return "NetworkFactory" in str(parameter.annotation)


def _refuses_null(parameter: inspect.Parameter) -> bool:
    annotation = str(parameter.annotation)
    typed = parameter.annotation is not parameter.empty and not re.search(r"None|Optional|Any", annotation)
    return typed and parameter.default is not None


def _needs_network(parameter: inspect.Parameter, module: str) -> bool:
    return parameter.default is parameter.empty or module.startswith(("ppl_vae.", "builtins"))  # of a stand-in


_WORDS = {"int": "an integer", "float": "a number", "bool": "true or false", "NoneType": "null", "Sequence": "a list"}


def _type_name(text: str) -> str:
    """Turn ``<class 'float'>`` into ``a number``, and ``typing.Literal['a', 'b']`` into ``one of a, b``."""
    if choices := re.match(r"(?:typing\.)?Literal\[(.*)\]", text):
        return "one of " + choices[1].replace("'", "")
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return _WORDS.get(name, name)
