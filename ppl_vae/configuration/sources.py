"""The texts that configurations come from: presets, files, and the configuration beside a checkpoint."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from ppl_vae._files import read_text
from ppl_vae._validation import did_you_mean
from ppl_vae.configuration import _yaml, foreign

Tree = dict[str, Any]

CONFIG_LIMIT = 2**20  # bytes
_NAMES = ("name", "root", "labels", "ids")  # data options that are text, whatever the text


def presets() -> dict[str, str]:
    """Return the texts of the presets, by name."""
    folder = importlib.resources.files("ppl_vae") / "presets"
    files = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return {name: files[name].read_text(encoding="utf-8") for name in sorted(files)}


def config_beside(checkpoint: str) -> Path:
    """Return the path of the configuration in a run's folder, or beside a checkpoint."""
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
    if not Path(checkpoint).exists() or not (folder / "config.yaml").exists():
        raise FileNotFoundError(
            f"--resume is {checkpoint!r}; expected a run's folder or its checkpoint.pt, with its config.yaml beside it "
            "(or else give --config)"
        )
    return folder / "config.yaml"


def read_config(name: str) -> Tree:
    """Return the content of a preset or a file; a file may come from anybody."""
    texts = presets()
    if name in texts:
        return _yaml.load(texts[name], f"preset {name}")
    if not Path(name).exists() or Path(name).is_dir():
        raise ValueError(
            f"--config is {name!r}; expected a preset ({', '.join(texts)}) or a file{did_you_mean(name, texts)}"
        )
    return read_file(read_text(Path(name), CONFIG_LIMIT), name)


def read_file(text: str, source: str) -> Tree:
    """Read a file that may come from anybody."""
    tree = _yaml.load(text, source)
    foreign.require(searched(tree), text, source)
    return tree


def searched(tree: Tree) -> Tree:
    """Return what may name code: all of a configuration except the names of files, folders and columns of data."""
    node = tree.get("data")
    if not isinstance(node, dict):
        return {**tree, "data": {}}
    columns = node.get("columns")
    kinds = list(columns.values()) if isinstance(columns, dict) else columns
    return {**tree, "data": {n: v for n, v in node.items() if n not in _NAMES} | {"columns": kinds}}
