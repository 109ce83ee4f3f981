"""The record of a run from the files of its folder. Imports no torch, and loads no model."""

from __future__ import annotations

import reprlib
from numbers import Real
from pathlib import Path
from typing import Any

from ppl_vae import _files
from ppl_vae.configuration import _yaml

NOT_FIGURES = ("stopped", "seconds", "caveat", "best_epoch", "why_eager", "epoch", "step")  # entries of result.json
# arguments that a piece's short form names
TOLD = ("latent_dim", "activation", "scale", "num_particles", "beta", "nats", "weight", "lr", "gamma")

ROLES = ("prior", "likelihood", "posterior", "classifier", "objective", "regularizer", "optimizer", "scheduler")
FIGURES = {  # the title of each, and its number format
    "validation_elbo": ("ELBO, validation", ".2f"),
    "validation_bound": ("bound, validation", ".2f"),
    "validation_kl": ("KL, validation", ".2f"),
    "reconstruction_error": ("reconstruction error", ".3f"),
    "classification_error": ("classification error, validation", ".2%"),
    "elbo": ("ELBO, training", ".2f"),
}

Record = dict[str, Any]


def describe(path: Path) -> Record:
    """Describe a run in plain values, from the files of its folder.

    For a run that is under way, was aborted or diverged, the record has what the run has written so far.

    Args:
        path: The folder, or a file in it.

    Returns:
        ``run``, ``damage`` (what could not be read of its metrics, or None), ``data``, ``fingerprint``, ``prior``,
        ``likelihood``, ``posterior``, ``classifier``, ``objective``, ``regularizer``, ``optimizer``, ``scheduler``,
        ``epochs``, ``epochs_planned``, ``best_epoch``, ``state``, ``figures`` (of the last or chosen epoch),
        ``seconds``, ``seed``, ``compile``, ``device``, ``caveat``, ``config`` (the whole of it) ``evaluation`` (by
        name, with value, low, high), ``evaluated`` (``data``, ``num_data``, ``fingerprint`` of these, ``checkpoint`` if
        one was named) and ``exact`` (whether log p(x) is).

    Raises:
        ValueError: If a file cannot be read.
    """
    folder = path.parent if path.is_file() else path
    facts, result = _object(folder / "run.json"), _object(folder / "result.json")
    config = _config(folder / "config.yaml")
    evaluation = _object(folder / "evaluation" / "evaluation.json")
    epochs, damage = history(folder)
    last = result or (epochs[-1] if epochs else {})
    data, named = facts.get("data") or {}, config.get("data") or {}
    _expect(folder / "run.json", facts, data=dict, device=str, caveat=str, compile=str, seed=int)
    _expect(folder / "run.json", data, name=str, x_shape=list, train=int, validation=int, test=int, fingerprint=str)
    _expect(folder / "result.json", result, stopped=str, best_epoch=int)
    _expect(folder / "result.json" if result else folder / "metrics.jsonl", last, seconds=Real)
    _expect(folder / "evaluation" / "evaluation.json", evaluation, fingerprint=str, checkpoint=str)
    _expect(folder / "config.yaml", config, data=dict | str, epochs=int)
    named = {"name": named} if isinstance(named, str) else named
    binarize = named.get("binarize")
    if binarize is None and data.get("name") == "digits":
        binarize = "threshold"  # the meaning of null for this one set
    state = result.get("stopped") or ("diverged" if (folder / "last_good.pt").exists() else "running or aborted")
    return {
        "run": str(folder),
        "damage": damage,
        "data": {key: data.get(key) for key in ("name", "x_shape", "train", "validation", "test")}
        | {"binarize": binarize}
        | {name: True for name in ("dequantize", "conditional", "library") if named.get(name)}
        | ({"labels": named["labels"]} if config.get("classifier") else {}),
        "fingerprint": data.get("fingerprint"),
        **{role: _piece(config.get(role)) for role in ROLES},
        "epochs": len(epochs),
        "epochs_planned": config.get("epochs"),
        "best_epoch": result.get("best_epoch"),
        "state": state,
        "figures": {name: v for name, v in last.items() if name not in NOT_FIGURES and _is_figure(v)},
        "seconds": last.get("seconds"),
        "seed": facts.get("seed"),
        "compile": facts.get("compile", config.get("compile")),
        "device": facts.get("device"),
        "caveat": facts.get("caveat"),
        "config": config,
        "evaluation": _evaluation(evaluation),
        "evaluated": {name: evaluation.get(name) for name in ("data", "num_data", "fingerprint", "checkpoint")},
        "exact": evaluation.get("kind") == "exact",
    }


def _expect(path: Path, content: Record, **kinds: Any) -> None:
    """Refuse entries of another type; an entry may lack, or be null."""
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind | None):
            raise ValueError(f"{path} is damaged: {name!r} is {reprlib.repr(content[name])}")


def _object(path: Path) -> Record:
    return _files.read_json(path) if path.is_file() else {}


def _config(path: Path) -> Record:
    return _yaml.load(_files.read_text(path), str(path)) if path.is_file() else {}  # none: a run made in Python


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
        if isinstance(figure, dict) and "value" in figure
        if all(_is_figure(figure.get(key)) for key in ("value", "low", "high"))
    }


def _is_figure(value: object) -> bool:
    """Whether a value is null, or a number that a table can show."""
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def history(folder: Path) -> tuple[list[Record], str | None]:
    """Return the records of a run's log, and what is lost of it: a last line that is still being written is not."""
    path = folder / "metrics.jsonl"
    lines = _files.read_text(path).splitlines(keepends=True) if path.is_file() else []
    records, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = _files.parse_json(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines) or line.endswith("\n"):
            damaged.append(number)
    if not damaged:
        return records, None
    shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    return records, f"{path} is damaged: of {len(lines)} records {len(damaged)} cannot be read (line {shown})"
