"""The programs of examples/gallery, under Pyro's SVI and ours: one program, one optimiser, one sequence of batches."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI as PyroSVI

from contenders.setting import Setting
from ppl_vae import SVI

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "gallery"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py"))
COMPARED = 100  # losses, from the first
# batches that are not alike come in turn, and a round is a whole number of turns
TURN = {"deep_markov_model": 12, "semi_supervised_vae": 4}


class Trained:
    """A program in training: called with a number of steps, it takes them, rounded up to whole turns."""

    def __init__(self, svi: Any, batches: Any, turn: int) -> None:
        self._svi, self._batches, self._turn, self._taken = svi, batches, turn, 0
        self._losses = [self._step() for _ in range(COMPARED)]

    def _step(self) -> float:
        self._taken += 1
        return self._svi.step(*self._batches(self._taken - 1))

    def __call__(self, steps: int) -> int:
        """Take steps; return how many."""
        steps = -(-steps // self._turn) * self._turn
        for _ in range(steps):
            self._step()
        return steps

    def facts(self) -> dict[str, Any]:
        """The first losses, and what our SVI says of itself."""
        ours = isinstance(self._svi, SVI)
        return {"losses": self._losses} | ({"why_eager": self._svi.why_eager, "said": repr(self._svi)} if ours else {})


def svi(setting: Setting, level: str | None, validate: bool = True, size: str = "full") -> Trained:
    """A program under our SVI at a level of capture, or under Pyro's where it is None, from one seed.

    Args:
        setting: Names the program.
        level: ``compile`` of `ppl_vae.SVI`, or None.
        validate: Whether Pyro validates, as it does by default.
        size: ``"full"`` or ``"small"``.
    """
    spec = importlib.util.spec_from_file_location(setting.program, FOLDER / f"{setting.program}.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    pyro.enable_validation(validate)
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
    model, guide, loss, batches = module.make(0, size)
    optimiser = module.optimiser()
    trained = (
        PyroSVI(model, guide, optimiser, loss) if level is None else SVI(model, guide, optimiser, loss, compile=level)
    )
    pyro.set_rng_seed(1)
    return Trained(trained, batches, TURN.get(setting.program, 1))
