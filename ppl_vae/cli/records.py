"""The record of a run from the files of its folder. Imports no torch, and loads no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ppl_vae.configuration._yaml import Loader

NOT_FIGURES = ("stopped", "seconds", "caveat", "best_epoch", "why_eager", "epoch", "step")  # entries of result.json
TOLD = ("latent_dim", "activation", "scale", "num_particles", "lr")  # arguments that a piece's short form names

Record = dict[str, Any]


def describe(path: Path) -> Record:
    """Describe a run in plain values, from the files of its folder.

    For a run that is under way, was aborted or diverged, the record has what the run has written so far.

    Args:
        path: The folder, or a file in it.

    Returns:
        ``run``, ``data``, ``fingerprint``, ``prior``, ``likelihood``, ``posterior``, ``objective``, ``optimizer``,
        ``epochs``, ``epochs_planned``, ``best_epoch``, ``state``, ``figures`` (of the last or chosen epoch),
        ``seconds``, ``seed``, ``compile``, ``device``, ``caveat``, ``config`` (the whole of it) and ``evaluation``
        (by name, with value, low, high).

    Raises:
        ValueError: If a file cannot be read.
    """
    folder = path.parent if path.is_file() else path
    facts, result = read_json(folder / "run.json"), read_json(folder / "result.json")
    config = _yaml(folder / "config.yaml")
    history = _lines(folder / "metrics.jsonl")
    last = result or (history[-1] if history else {})
    data = facts.get("data", {})
    binarize = config.get("data", {}).get("binarize")
    if binarize is None and data.get("name") == "digits":
        binarize = "threshold"  # the meaning of null for this one set
    state = result.get("stopped") or ("diverged" if (folder / "last_good.pt").exists() else "running or aborted")
    return {
        "run": str(folder),
        "data": {key: data.get(key) for key in ("name", "x_shape", "train", "validation", "test")}
        | {"binarize": binarize}
        | {name: True for name in ("dequantize", "conditional") if config.get("data", {}).get(name)},
        "fingerprint": data.get("fingerprint"),
        **{role: _piece(config.get(role)) for role in ("prior", "likelihood", "posterior", "objective", "optimizer")},
        "epochs": len(history),
        "epochs_planned": config.get("epochs"),
        "best_epoch": result.get("best_epoch"),
        "state": state,
        "figures": {name: value for name, value in last.items() if name not in NOT_FIGURES},
        "seconds": last.get("seconds"),
        "seed": facts.get("seed"),
        "compile": facts.get("compile", config.get("compile")),
        "device": facts.get("device"),
        "caveat": facts.get("caveat"),
        "config": config,
        "evaluation": _evaluation(read_json(folder / "evaluation" / "evaluation.json")),
    }


def read_json(path: Path) -> Record:
    """Return the object in a JSON file, or an empty one if there is no file.

    Raises:
        ValueError: If the file holds anything else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def _piece(node: object) -> str | None:
    """Return a piece in short: its class and its distinguishing arguments, ``Bernoulli(MLP(150-300))``."""
    if not isinstance(node, dict):
        return None if node is None else str(node)
    shown = []
    for name, value in node.items():
        if isinstance(value, dict):
            shown.append(str(_piece(value)))
        elif name == "hidden" and isinstance(value, list):
            shown.append("-".join(map(str, value)) or "linear")
        elif name in TOLD:
            shown.append(f"{name} {value}")
    return f"{node.get('class')}({', '.join(shown)})"


def _evaluation(content: Record) -> dict[str, Record]:
    """Return the figures of an evaluation's file: the objects in its ``figures``, else in the file, with a value."""
    figures = content.get("figures", content)
    if not isinstance(figures, dict):
        return {}
    return {
        name: {key: figure.get(key) for key in ("value", "low", "high")}
        for name, figure in figures.items()
        if isinstance(figure, dict) and isinstance(figure.get("value", ""), (int, float, type(None)))
    }


def _yaml(path: Path) -> Record:
    if not path.is_file():
        return {}  # a run that was made in Python
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected options and their values")
    return content


def _lines(path: Path) -> list[Record]:
    """Return the records of a log; a last line that is still being written does not count."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
