"""``ppl-vae pieces``: everything that a VAE can be made of, and what combines with what."""

from __future__ import annotations

import inspect
import json
import logging
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ppl_vae._distributions import check_same_space
from ppl_vae._validation import did_you_mean
from ppl_vae.checking.axes import Axis
from ppl_vae.checking.density import Density
from ppl_vae.cli import help as explained
from ppl_vae.cli import words
from ppl_vae.cli.errors import bad_input
from ppl_vae.configuration.pieces import KINDS, NETWORK, Kind, Target
from ppl_vae.likelihoods import Normal
from ppl_vae.networks import MLP, Binding
from ppl_vae.objectives import as_loss
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.priors import StandardNormal
from ppl_vae.vae import VAE

USAGE = """\
usage: ppl-vae pieces [NAME] [--json]

Every prior, likelihood, posterior, network and objective that goes by name, a line each, and what combines with what:
which posteriors live where a prior does, which data a likelihood is a density of, which objectives need reparameterised
posteriors. Found out by trying small instances of each. With NAME one of them, its arguments and their defaults.
Pieces of your own go by import path everywhere, --prior mymodule.MyPrior; ppl-vae check tries them.

options:
  --json  the same for a program to read

ppl-vae pieces
ppl-vae pieces VampPrior
"""
LISTED = (*(KINDS[name] for name in ("prior", "likelihood", "posterior")), NETWORK, KINDS["objective"])
_X_SHAPE = (1, 4, 4)
_WIDTH = 112


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    if words.wants_help(argv):
        print(USAGE, end="")
        return 0
    with bad_input():
        given = words.split(argv, flags=("json",))
        if unknown := given.options.keys() - {"json"}:
            raise ValueError(f"--{sorted(unknown)[0]} is unknown; ppl-vae pieces takes a name and --json")
        if len(given.runs) > 1:
            raise ValueError(f"pieces was given {', '.join(given.runs)}; expected one name at most")
        name = given.runs[0] if given.runs else None
        if name is not None:
            _kinds_of(name)
    found = _everything() if name is None else {kind.name: _describe(kind, [name]) for kind in _kinds_of(name)}
    if "json" in given.options:
        print(json.dumps(found, indent=2))
    elif name is None:
        print(_table(found))
    else:
        print("\n".join(_detail(kind, found[kind.name][0]) for kind in _kinds_of(name)), end="")
    return 0


def _kinds_of(name: str) -> list[Kind]:
    """Return the kinds that have a piece of this name; one name may be both a likelihood and a prior."""
    found = [kind for kind in LISTED if name in kind.known]
    if not found:
        known = [known for kind in LISTED for known in kind.known]
        raise ValueError(f"there is no piece {name!r}; ppl-vae pieces lists them{did_you_mean(name, known)}")
    return found


def _everything() -> dict[str, list[dict[str, Any]]]:
    return {kind.name: _describe(kind, list(kind.known)) for kind in LISTED}


def _describe(kind: Kind, names: list[str]) -> list[dict[str, Any]]:
    """Describe some pieces of a kind in plain values."""
    combined = _combinations(kind, names) if kind.name in ("prior", "posterior") else {}
    found = []
    for name in names:
        target = kind.known[name]
        entry: dict[str, Any] = {"name": name, "summary": _summary(target), "signature": _signature(target)}
        if kind.name == "prior":
            entry["posteriors"] = combined[name]
        if kind.name == "posterior":
            entry["priors"] = combined[name]
            entry["reparameterised"] = _reparameterised(target)
        if kind.name == "likelihood":
            entry["data"] = _data(target)
        if kind.name == "objective":
            entry["needs_reparameterised"] = _needs_reparameterised(target)
        found.append(entry)
    return found


def _summary(target: Target) -> str:
    paragraph = " ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split())
    line = re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]
    line = re.sub(r"``?([^`]*)``?", r"\1", line.replace(":math:", ""))
    line = re.sub(r"\*+([^*]+)\*+", r"\1", line)  # emphasis
    line = re.sub(r"\\subset\b", "in", re.sub(r"\\mathbb ?", "", line))
    return line.replace("\\", "")


def _signature(target: Target) -> str:
    """Return names and defaults, without annotations."""
    parameters = inspect.signature(target).parameters.values()
    plain = [p.replace(annotation=p.empty) for p in parameters]
    return f"{target.__name__}{inspect.Signature(plain)}"


def _small(target: Target) -> Any:
    """Make an instance with its own defaults and small networks; None if it needs arguments from the user."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if "NetworkFactory" in str(parameter.annotation):
            given[name] = MLP([4])
        elif parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            if name != "latent_dim" and parameter.annotation not in ("int", int):
                return None
            given[name] = 2 if name == "latent_dim" else 1
    try:
        return target(**given)
    except Exception:  # defaults that contradict each other until the user chooses
        return None


def _pair(prior: Target, posterior: Target) -> tuple[Any, Any] | None:
    """Return p(z) and q(z|x) of two small instances, or None if one cannot be made."""
    p, q = _small(prior), _small(posterior)
    if p is None or q is None:
        return None
    binding = Binding(_X_SHAPE, (getattr(p, "latent_dim", 2),))
    if hasattr(q, "bind"):
        q.bind(binding)
    if hasattr(p, "bind"):
        p.bind(replace(binding, posterior=q))
    if isinstance(p, nn.Module):
        p.eval()
    if isinstance(q, nn.Module):
        q.eval()
    return p(), q(torch.rand(3, *_X_SHAPE))


def _goes_with(prior: Target, posterior: Target) -> bool:
    try:
        with torch.no_grad():
            pair = _pair(prior, posterior)
            if pair is None or tuple(pair[0].event_shape) != tuple(pair[1].event_shape):
                return False
            check_same_space(*pair)
            # a simplex or one-hot vectors inside a larger set: densities with respect to other measures
            free = [Density(p, 50).axis(0) is not None for p in pair]
            if free[0] != free[1]:
                return False
    except Exception:  # any error says that the two cannot be combined
        return False
    return True


def _combinations(kind: Kind, names: list[str]) -> dict[str, list[str]]:
    """Return for each prior the posteriors that go with it, or the other way round."""
    torch.manual_seed(0)
    if kind.name == "prior":
        others = KINDS["posterior"].known
        return {n: [o for o, q in others.items() if _goes_with(kind.known[n], q)] for n in names}
    others = KINDS["prior"].known
    return {n: [o for o, p in others.items() if _goes_with(p, kind.known[n])] for n in names}


def _reparameterised(target: Target) -> bool | None:
    q = _small(target)
    try:
        if hasattr(q, "bind"):
            q.bind(Binding(_X_SHAPE, (2,)))
        return bool(q(torch.rand(3, *_X_SHAPE)).has_rsample)
    except Exception:  # it needs arguments
        return None


def _data(target: Target) -> str | None:
    """Return in words the values that a likelihood is a density of; None if that depends on required arguments."""
    likelihood = _small(target)
    try:
        with torch.no_grad():
            if hasattr(likelihood, "bind"):
                likelihood.bind(Binding(_X_SHAPE, (2,)))
            p = likelihood(torch.zeros(1, 2))
            axis = Density(p, 200).axis(0)
    except Exception:  # it needs arguments
        return None
    return _in_words(axis) if axis is not None else str(p.support)


def _in_words(axis: Axis) -> str:
    if axis.states is None:
        ends = (axis.low, axis.high)
        if ends == (-torch.inf, torch.inf):
            return "real numbers"
        left = "[" if axis.low in axis.edges else "("
        right = "]" if axis.high in axis.edges else ")"
        low, high = ("-inf" if e == -torch.inf else "inf" if e == torch.inf else f"{e + 0.0:g}" for e in ends)
        return f"numbers in {left}{low}, {high}{right}"
    states = axis.states.tolist()
    if states == [0.0, 1.0]:
        return "0 or 1"
    if len(states) > 1500:
        return f"whole numbers from {states[0]:g}"
    middle = ", ..." if len(states) > 3 else ""
    return f"{states[0]:.4g}, {states[1]:.4g}{middle}, {states[-1]:.4g} ({len(states)} values)"


class _Opaque(DiagonalNormal):
    """A normal posterior that cannot be reparameterised."""

    def forward(self, x: Any, y: Any = None) -> Any:
        q: Any = super().forward(x, y)
        q.base_dist.__class__ = type("Opaque", (type(q.base_dist),), {"has_rsample": False})
        return q


def _needs_reparameterised(target: Target) -> bool | None:
    """Return whether an objective refuses a posterior that is not reparameterised; None if it cannot be tried."""
    objective = _small(target)
    if objective is None:
        return None
    vae = VAE(_X_SHAPE, prior=StandardNormal(2), likelihood=Normal(MLP([4])), posterior=_Opaque(MLP([4])))
    try:
        with _quiet():
            as_loss(objective)((vae.model, vae.guide), torch.rand(3, *_X_SHAPE))
    except ValueError as error:
        return True if "reparameterised" in str(error) else None
    except Exception:  # an objective for other programs
        return None
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pyro's messages about programs that nobody will train."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for kind, entries in found.items():
        lines += [f"{kind} (--{kind if kind != 'network' else 'likelihood.network, --posterior.network'})"]
        width = max(len(entry["name"]) for entry in entries)
        for entry in entries:
            lines += _wrapped(f"  {entry['name']:{width}}  ", entry["summary"])
            if note := _note(entry):
                lines += _wrapped(" " * (width + 4), note)
        lines += [""]
    return "\n".join([*lines, "ppl-vae pieces NAME explains one; ppl-vae check tries your own."])


def _note(entry: dict[str, Any]) -> str:
    if "posteriors" in entry:
        return f"with {_several(entry['posteriors'])}"
    if "priors" in entry:
        manner = {True: "reparameterised; ", False: "not reparameterised; ", None: ""}[entry["reparameterised"]]
        return f"{manner}with {_several(entry['priors'])}"
    if entry.get("data"):
        return f"data: {entry['data']}"
    if entry.get("needs_reparameterised"):
        return "needs reparameterised posteriors"
    return ""


def _several(names: list[str]) -> str:
    return ", ".join(names) if names else "what its arguments say"


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(start + text, _WIDTH, subsequent_indent=" " * len(start), drop_whitespace=True) or [start]


def _detail(kind: Kind, entry: dict[str, Any]) -> str:
    """Return the text on one piece: its docstring, its arguments, and what it combines with."""
    path = "likelihood.network" if kind.name == "network" else kind.name
    text = explained.text([f"--{path}.help", entry["name"]])
    note = _note(entry)
    combined = f"\n{kind.name} {entry['name']}: {note}\n" if note else ""
    return f"{entry['signature']}\n\n{text}{combined}"
