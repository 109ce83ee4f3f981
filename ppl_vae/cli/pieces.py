"""``ppl-vae pieces``: everything that a VAE can be made of, and what combines with what.

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

from __future__ import annotations

import functools
import inspect
import json
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ppl_vae._piece_checks import bind_piece
from ppl_vae._validation import did_you_mean
from ppl_vae.checking.axes import Axis
from ppl_vae.checking.density import Density
from ppl_vae.cli import help as explained
from ppl_vae.cli import words
from ppl_vae.cli.errors import bad_input
from ppl_vae.configuration.pieces import CHOICES, KINDS, NETWORK, Kind, Target
from ppl_vae.likelihoods import Normal
from ppl_vae.networks import MLP, Binding
from ppl_vae.objectives import as_loss
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.priors import StandardNormal
from ppl_vae.vae import VAE

LISTED = (*(KINDS[name] for name in ("prior", "likelihood", "posterior")), NETWORK, KINDS["objective"])
_X_SHAPE = (1, 4, 4)
_WIDTH = 112


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    with bad_input():
        given = words.split(argv, flags=("json",))
        given.check_options("pieces", ("json",))
        name = given.only("pieces", "one name")
        kinds = [] if name is None else _kinds_of(name)
    found = _everything() if name is None else {kind.name: [_describe(kind, name)] for kind in kinds}
    if "json" in given.options:
        print(json.dumps(found, indent=2))
    elif kinds:
        print("\n".join(_detail(kind, *found[kind.name]) for kind in kinds), end="")
    else:
        print(_table(found))
    return 0


def _kinds_of(name: str) -> list[Kind]:
    """Return the kinds that have a piece of this name; one name may be both a likelihood and a prior."""
    found = [kind for kind in LISTED if name in kind.known]
    if not found:
        known = [known for kind in LISTED for known in kind.known]
        raise ValueError(f"there is no piece {name!r}; ppl-vae pieces lists them{did_you_mean(name, known)}")
    return found


def _everything() -> dict[str, list[dict[str, Any]]]:
    return {kind.name: [_describe(kind, name) for name in kind.known] for kind in LISTED}


def _describe(kind: Kind, name: str) -> dict[str, Any]:
    """Describe a piece in plain values."""
    target = kind.known[name]
    found = {"name": name, "summary": explained.summary(target), "signature": _signature(target)}
    if kind.name == "prior":
        return found | {"posteriors": [n for n, q in KINDS["posterior"].known.items() if _goes_with(target, q)]}
    if kind.name == "likelihood":
        return found | {"data": _data(target)}
    if kind.name == "posterior":
        priors = [n for n, p in KINDS["prior"].known.items() if _goes_with(p, target)]
        return found | {"priors": priors, "reparameterised": _reparameterised(target)}
    if kind.name == "objective":
        return found | {"needs_reparameterised": _needs_reparameterised(target)}
    return found


def _signature(target: Target) -> str:
    """Return names and defaults, without annotations."""
    parameters = inspect.signature(target).parameters.values()
    plain = [p.replace(annotation=p.empty) for p in parameters]
    return f"{target.__name__}{inspect.Signature(plain)}"


def _small(target: Target) -> Any:
    """Make an instance with its own defaults and small networks; raises if it needs arguments from the user."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if "NetworkFactory" in str(parameter.annotation):
            given[name] = MLP([4])
        elif name == "max_plate_nesting":
            given[name] = 1  # Pyro's objectives would guess it, and say so
        elif name == "dims":
            given[name] = (1, 1)
        elif parameter.default is parameter.empty and name == "latent_dim":
            given[name] = 2
        elif parameter.default is parameter.empty and parameter.annotation in ("int", int):
            given[name] = 1
    return target(**given)


@functools.cache
@torch.no_grad()
def _goes_with(prior: Target, posterior: Target) -> bool:
    """Return whether a VAE takes small instances of both, and their densities refer to the same measure."""
    torch.manual_seed(0)
    try:
        vae = _vae(prior=_small(prior), posterior=_small(posterior)).eval()
        p_z, q_z = vae.p_z(), vae.q_z(torch.rand(3, *_X_SHAPE))
        # a simplex or one-hot vectors inside a larger set: densities with respect to other measures
        return (Density(p_z, 50).axis(0) is None) == (Density(q_z, 50).axis(0) is None)
    except Exception:  # any error says that the two cannot be combined
        return False


def _vae(**pieces: Any) -> VAE:
    """Return a small VAE of normal pieces, but for those given."""
    usual = {"prior": StandardNormal(2), "likelihood": Normal(MLP([4])), "posterior": DiagonalNormal(MLP([4]))}
    return VAE(_X_SHAPE, **(usual | pieces))


def _reparameterised(target: Target) -> bool | None:
    try:
        return bool(_sized(target)(torch.rand(3, *_X_SHAPE)).has_rsample)
    except Exception:  # it needs arguments
        return None


@torch.no_grad()
def _data(target: Target) -> str | None:
    """Return in words the values that a likelihood is a density of; None if that depends on required arguments."""
    try:
        p = _sized(target)(torch.zeros(1, 2))
        axis = Density(p, 200).axis(0)
    except Exception:  # it needs arguments
        return None
    return _in_words(axis) if axis is not None else str(p.support)


def _sized(target: Target) -> Any:
    piece = _small(target)
    bind_piece(piece, Binding(_X_SHAPE, (2,)))
    return piece


def _in_words(axis: Axis) -> str:
    if axis.states is None:
        if (axis.low, axis.high) == (-torch.inf, torch.inf):
            return "real numbers"
        left = "[" if axis.low in axis.edges else "("
        right = "]" if axis.high in axis.edges else ")"
        return f"numbers in {left}{axis.low + 0.0:g}, {axis.high + 0.0:g}{right}"
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
    vae = _vae(posterior=_Opaque(MLP([4])))
    try:
        with warnings.catch_warnings(action="ignore"):  # of Pyro, about programs that nobody will train
            as_loss(_small(target))((vae.model, vae.guide), torch.rand(3, *_X_SHAPE))
    except ValueError as error:
        return True if "reparameterised" in str(error) else None
    except Exception:  # an objective for other programs, or one that needs arguments
        return None
    return False


def _table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for kind, entries in found.items():
        lines.append(f"{kind} (--{kind if kind != 'network' else 'likelihood.network, --posterior.network'})")
        width = max(len(entry["name"]) for entry in entries) + 4
        for entry in entries:
            for start, text in ((f"  {entry['name']}", entry["summary"]), ("", _note(entry))):
                lines += textwrap.wrap(f"{start:{width}}{text}", _WIDTH, subsequent_indent=" " * width)
        lines.append("")
    return "\n".join([*lines, "ppl-vae pieces NAME explains one; ppl-vae check tries your own."])


def _note(entry: dict[str, Any]) -> str:
    """Return in words what a piece combines with; empty if nothing is known."""
    partners = entry.get("posteriors", entry.get("priors"))
    if partners is not None:
        manner = {True: "reparameterised; ", False: "not reparameterised; ", None: ""}[entry.get("reparameterised")]
        return f"{manner}with {', '.join(partners) or 'what its arguments say'}"
    if entry.get("data"):
        return f"data: {entry['data']}"
    return "needs reparameterised posteriors" if entry.get("needs_reparameterised") else ""


def _detail(kind: Kind, entry: dict[str, Any]) -> str:
    """Return the text on one piece: its docstring, its arguments, and what it combines with."""
    path = "likelihood.network" if kind.name == "network" else kind.name
    text = explained.text([f"--{path}.help", entry["name"]], CHOICES)
    note = _note(entry)
    combined = f"\n{kind.name} {entry['name']}: {note}\n" if note else ""
    return f"{entry['signature']}\n\n{text}{combined}"
