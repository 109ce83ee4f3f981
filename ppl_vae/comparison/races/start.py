"""The starts of a race's runs: one program per seed, put back to the same parameters before every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae._home import home_of
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._tensors import copied, moved
from ppl_vae.capture import modules_of
from ppl_vae.comparison.contenders import contenders
from ppl_vae.objectives.losses import Program
from ppl_vae.vae import VAE

MakeProgram = Callable[[int], VAE | Program]


@dataclass(frozen=True)
class Entrant:
    """An objective that brings its own program to a race, such as a relaxation of discrete latents.

    Its runs start from the program that *its* `make_program` returns for a seed. This is the start of the other
    contenders only if that function draws the same parameters in the same order; the curves at step 0 show whether it
    does.

    Args:
        objective: An objective as `comparison.contenders` takes it.
        make_program: A function from a seed to a `VAE` or a ``(model, guide)`` pair; None uses the race's function.
        evaluated_as: A function from the trained program to the program whose log p(x) is evaluated: for a relaxation,
            the VAE with true discrete latents around the same networks. It is called once per run, before training, so
            it must share the parameters and not copy them. None evaluates the program itself.
    """

    objective: Any
    make_program: MakeProgram | None = None
    evaluated_as: Callable[[Any], VAE | Program] | None = None


def take_apart(objectives: Any) -> tuple[Any, list[tuple[str, Entrant]]]:
    """Separate the objectives, as `comparison.contenders` takes them, from the entrants and their names.

    A tuple inside a mapping, ``{"relaxed": (objective, make_program)}``, is an `Entrant`.
    """
    own: list[tuple[str, Entrant]] = []

    def bare(entry: Any, name: str | None = None) -> Any:
        if isinstance(entry, Mapping):
            return {key: bare(value, str(key)) for key, value in entry.items()}
        if isinstance(entry, tuple) and name is not None:
            if not 1 <= len(entry) <= 3 or not all(part is None or callable(part) for part in entry[1:]):
                raise TypeError(
                    f"objectives[{name!r}] is {entry!r}; expected (objective, make_program), and perhaps a third "
                    "function from the trained program to the one to evaluate"
                )
            entry = Entrant(*entry)
        if isinstance(entry, (list, tuple)):
            return [bare(part) for part in entry]
        if not isinstance(entry, Entrant):
            return entry
        if name is None:
            raise TypeError(f"objectives has {entry!r} without a name; expected a mapping, {{'my name': Entrant(...)}}")
        own.append((name, entry))
        return entry.objective

    return bare(objectives), own


def at_each_k(own: Iterable[tuple[str, Entrant]], particles: int | Iterable[int]) -> dict[tuple[str, int], Entrant]:
    """Return the entrants by name and K. A contender of the same name and another K need not be an entrant."""
    found: dict[tuple[str, int], Entrant] = {}
    for name, entrant in own:
        with suppress(ValueError):  # it is defined at no K, which the field of all contenders says
            found |= dict.fromkeys((c.key for c in contenders({name: entrant.objective}, particles)), entrant)
    return found


class Start:
    """A program and the initial parameters, buffers and entries of Pyro's store for its runs.

    Only tensors are put back, not a plain Python value that a program changes while it runs.

    Args:
        make_program: The function that makes the program.
        seed: The argument of that function, and the seed of its draws.
        batch: Data for a first run of the program, which creates parameters that appear on first use (``pyro.param``,
            an autoguide).
        device: The device of the program.
    """

    def __init__(self, make_program: MakeProgram, seed: int, batch: tuple[Tensor, ...], device: torch.device) -> None:
        with seeded(seed):
            made: Any = make_program(seed)
            pair = (made.model, made.guide) if isinstance(made, VAE) else made
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(callable, pair)):
                raise TypeError(
                    f"make_program returned a {type(made).__name__}; expected a VAE, or a pair of functions "
                    "(model, guide)"
                )
            model, guide = pair
            self.program: VAE | Program = made if isinstance(made, VAE) else (model, guide)
            self.modules = modules_of(model, guide)
            for module in self.modules:
                module.to(device)
            if (like := home_of(self.program)) is not None:
                batch = moved(batch, like.device, like.dtype)
            with torch.no_grad(), evaluation_mode(*self.modules):
                trace = poutine.trace(guide).get_trace(*batch)
                poutine.replay(model, trace)(*batch)
        self._states = [copied(module.state_dict()) for module in self.modules]
        self._store = copied(dict(pyro.get_param_store()._params))

    @torch.no_grad()
    def restore(self) -> None:
        """Put every tensor back, and remove from Pyro's store the entries that a run has added."""
        for module, state in zip(self.modules, self._states, strict=True):
            module.load_state_dict(copied(state))  # a module may go on with what its own state holds
            module.zero_grad(set_to_none=True)
        store = pyro.get_param_store()
        for name, leaf in list(store._params.items()):
            if name in self._store:
                leaf.copy_(self._store[name])
                leaf.grad = None
            else:
                del store[name]
