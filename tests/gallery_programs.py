"""The programs of examples/gallery, for its tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine

GALLERY = Path(__file__).resolve().parent.parent / "examples" / "gallery"
PROGRAMS = sorted(path.stem for path in GALLERY.glob("*.py"))


def program(name: str) -> Any:
    """The module of a program."""
    spec = importlib.util.spec_from_file_location(name, GALLERY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(name: str, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Model, guide, loss and batches in float64, small."""
    torch.set_default_dtype(torch.float64)
    return program(name).make(seed, "small")


def drawn(model: Any, guide: Any, loss: Any, args: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the guide draws from a seed, by site, and Pyro's loss from the same seed."""
    pyro.set_rng_seed(7)
    nodes = poutine.trace(guide).get_trace(*args).nodes
    z = {name: node["value"].detach() for name, node in nodes.items() if node["type"] == "sample"}
    pyro.set_rng_seed(7)
    return z, torch.tensor(loss.loss(model, guide, *args))
