"""Who takes part, by the name in the tables: where its code is, and in which environment it runs.

A contender is a function ``make(setting, ...)`` that returns ``run(steps)``: it takes at least so many training steps,
waits for the last one, and returns how many it took. Whatever it needs it imports itself, so that a process imports
nothing of another contender's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[int], int]

REFERENCE = "hand-written, compiled"
BY_HAND = "hand-written, eager"
CUDA_GRAPHS = "hand-written, compiled, CUDA graphs"
WHOLE_STEP = "hand-written, the whole step as one CUDA graph"
WHOLE_STEP_COMPILED = "hand-written, compiled, the whole step as one CUDA graph"
FIT = 'ppl_vae.fit, compile="full"'
FULL = 'ppl_vae.SVI, compile="full"'
GRAPH = 'ppl_vae.SVI, compile="graph"'
OFF = 'ppl_vae.SVI, compile="off"'
PYRO = "Pyro's SVI, data as one tensor"
EXAMPLE = "Pyro's example, DataLoader"
NUMPYRO = "NumPyro, an epoch in one jit"
PYTHAE = "pythae's BaseTrainer"
FLOOR = "floor: matrix products and Adam"
GALLERY_PYRO = "Pyro's SVI on a program of the gallery"
GALLERY_PYRO_QUIET = "Pyro's SVI on a program of the gallery, validation off"
GALLERY_OFF, GALLERY_GRAPH, GALLERY_FULL = (f"{name} on a program of the gallery" for name in (OFF, GRAPH, FULL))


@dataclass(frozen=True)
class Contender:
    """Where a contender is: the function `name` of ``contenders.<module>``; `peer` names an environment of its own."""

    module: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    peer: str | None = None

    def load(self) -> Callable[..., Run]:
        """Import it and what it needs."""
        function = getattr(importlib.import_module(f"contenders.{self.module}"), self.name)
        return lambda setting, **more: function(setting, **self.arguments, **more)


CONTENDERS: dict[str, Contender] = {
    REFERENCE: Contender("by_hand", "vae", {"compile": True}),
    BY_HAND: Contender("by_hand", "vae", {"compile": False}),
    CUDA_GRAPHS: Contender("by_hand", "vae", {"compile": True, "mode": "reduce-overhead"}),
    WHOLE_STEP: Contender("by_hand", "whole_step", {"compile": False}),
    WHOLE_STEP_COMPILED: Contender("by_hand", "whole_step", {"compile": True}),
    FIT: Contender("ours", "fit", {"compile": "full"}),
    FULL: Contender("ours", "svi", {"compile": "full"}),
    GRAPH: Contender("ours", "svi", {"compile": "graph"}),
    OFF: Contender("ours", "svi", {"compile": "off"}),
    PYRO: Contender("pyro_svi", "svi"),
    EXAMPLE: Contender("pyro_svi", "example"),
    NUMPYRO: Contender("numpyro_svi", "svi", peer="numpyro"),
    PYTHAE: Contender("pythae_trainer", "trainer", peer="pythae"),
    FLOOR: Contender("by_hand", "floor"),
}

GALLERY: dict[str, Contender] = {
    GALLERY_PYRO: Contender("gallery_svi", "svi", {"level": None}),
    GALLERY_PYRO_QUIET: Contender("gallery_svi", "svi", {"level": None, "validate": False}),
    GALLERY_OFF: Contender("gallery_svi", "svi", {"level": "off"}),
    GALLERY_GRAPH: Contender("gallery_svi", "svi", {"level": "graph"}),
    GALLERY_FULL: Contender("gallery_svi", "svi", {"level": "full"}),
}
EVERYONE = CONTENDERS | GALLERY
