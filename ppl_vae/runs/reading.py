"""What a run's folder holds: the model, and the facts of run.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ppl_vae import _files, checkpoints
from ppl_vae._scopes import untouched_random_state
from ppl_vae.configuration.config import CONFIG_LIMIT, Config
from ppl_vae.saving.files import like
from ppl_vae.training import resolve_device
from ppl_vae.vae import VAE


def load_run(path: str | Path, *, trust: bool = False, device: str | torch.device = "cpu") -> VAE:
    """Build the VAE of a run's folder from its config and load its weights, in evaluation mode.

    Args:
        path: The run's folder, ``runs/<name>``, or a checkpoint in it such as ``runs/<name>/last_good.pt``.
        trust: Whether to import and run what the run's config names from outside of this package, torch.nn, torch.optim
            and Pyro. A run that you trained yourself, on this machine, is trusted.
        device: Where the VAE is put: a torch device, or ``"auto"`` (cuda, else mps, else cpu).

    Raises:
        FileNotFoundError: If the folder holds no run of the command line.
        ValueError: If a file is damaged, the config names foreign code that is not trusted, the device cannot be used,
            or the checkpoint is of another model or holds parameters outside the model.
    """
    device, path = resolve_device(device), Path(path)
    folder = path.parent if path.is_file() else path
    if not (folder / "config.yaml").is_file() or not (folder / "run.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no run's folder: config.yaml and run.json, written by ppl-vae train, are missing"
        )
    facts = read_facts(folder)
    text = _files.read_text(folder / "config.yaml", CONFIG_LIMIT)
    with untouched_random_state():
        config = Config.from_yaml(text, str(folder / "config.yaml"), trust=trust)
    return model_of(config, facts["data"], path).to(device)


def model_of(config: Config, data: Mapping[str, Any], checkpoint: Path) -> VAE:
    """Build the VAE of a run's configuration and load its weights, in evaluation mode, on the CPU.

    Args:
        config: The configuration.
        data: What run.json says of the data.
        checkpoint: The run's folder, or a checkpoint in it.

    Raises:
        ValueError: If the checkpoint is damaged, of another model, or holds parameters outside the model.
    """
    with untouched_random_state():
        vae = config.build_vae(like(data["x_shape"], data.get("y_shape")))
    vae.data_mean = None  # the run does not keep it
    vae.column_names = tuple(data.get("column_names") or ()) or None
    vae.categories = tuple(map(tuple, data.get("categories") or ()))
    vae.conditions = tuple(data.get("conditions") or ())
    checkpoint = checkpoint / "checkpoint.pt" if checkpoint.is_dir() else checkpoint
    state = checkpoints.load(checkpoint)
    modules, parameters = state.get("modules"), state.get("parameters")
    if not isinstance(modules, list) or not modules or not isinstance(parameters, dict):
        raise ValueError(f"{checkpoint} is no checkpoint of a run: it lacks the parameters of a program")
    if parameters:
        raise ValueError(
            f"{checkpoint} holds parameters of pyro.param ({', '.join(map(str, parameters))}), which "
            "live in Pyro's store and not in the VAE; take them up with fit(resume=...), or make the piece an "
            "nn.Module that owns them"
        )
    checkpoints.load_module(vae, modules[0], source=str(checkpoint))
    return vae.eval()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint to resume from, with the fingerprint of its run's data; clean up what a kill left beside it.

    Args:
        checkpoint: The run's folder, or a checkpoint in it.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    _files.remove_leftovers(folder)
    state = checkpoints.load(checkpoint)
    if not (folder / "run.json").is_file():
        return state
    return {"data": read_facts(folder)["data"]["fingerprint"], **state}


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the content of a run's run.json, whose entries on the data have been checked.

    Raises:
        ValueError: If it is damaged.
        OSError: If it cannot be read.
    """
    path = folder / "run.json"
    facts = _files.read_json(path)
    data = facts.get("data")
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it says nothing of the data")
    shapes = [data.get("x_shape"), data.get("y_shape") or [1]]
    if not all(isinstance(s, list) and s and all(type(n) is int and n > 0 for n in s) for s in shapes):
        raise ValueError(f"{path} is damaged: it does not say the shape of the data")
    for name in ("column_names", "conditions"):  # runs of old have neither
        if not all(isinstance(text, str) for text in data.get(name) or []):
            raise ValueError(f"{path} is damaged: its {name} are no list of names")
    if not all(isinstance(values, list) for values in data.get("categories") or []):
        raise ValueError(f"{path} is damaged: its categories are no lists of values")
    if not isinstance(data.get("fingerprint"), str):
        raise ValueError(f"{path} is damaged: it does not have the fingerprint of the data")
    return facts
