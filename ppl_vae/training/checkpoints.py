"""Checkpoints: the state of a training run in one file that loads without executing code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = "ppl_vae checkpoint 1"


def save(state: dict[str, Any], path: str | Path) -> Path:
    """Write a state (nested dicts and lists of tensors, numbers and text) completely or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save({"format": FORMAT, **state}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed (``weights_only=True``).

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the file is truncated, or is not a checkpoint of this package.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save({"epoch": 3, "weight": torch.ones(2)}, Path(folder) / "checkpoint.pt"))["weight"]
        tensor([1., 1.])
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; expected one that training wrote, runs/<name>/checkpoint.pt")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises errors of many kinds, and none names the file
        raise ValueError(f"{path} is truncated or is no checkpoint: it does not load as tensors and numbers") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this version; expected the format {FORMAT!r}")
    return state


def load_module(module: nn.Module, state: dict[str, Tensor], source: str = "the checkpoint") -> None:
    """Load parameters and buffers into a module.

    Raises:
        ValueError: If names or shapes differ, as in a checkpoint of another model.
    """
    own = module.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        where = f"lacks {name!r}, which the model has" if name in own else f"has {name!r}, which the model lacks"
        raise ValueError(f"{source} is of another model: it {where}; build the model from the run's own config.yaml")
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise ValueError(
                f"{source} is of another model: {name!r} has shape {tuple(value.shape)} there and "
                f"{tuple(own[name].shape)} in the model; build the model from the run's own config.yaml"
            )
    module.load_state_dict(state)
