"""The common part of both modes of ``ppl-vae compare``: default estimators, the output folder, the files."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_vae import objectives, plots
from ppl_vae._scopes import untouched_random_state
from ppl_vae.comparison.contenders import split_at_commas
from ppl_vae.objectives.losses import as_loss
from ppl_vae.vae import VAE

REPARAMETERISED = ("ELBO", "MeanFieldELBO", "STL", "IWAE", "DReG", "MIWAE", "PIWAE", "CIWAE")
DISCRETE = (
    "REINFORCE",
    "REINFORCE(baseline=moving_average)",
    "REINFORCE(baseline=leave_one_out)",
    "VIMCO",
    "RWS",
    "GumbelSoftmaxELBO",
    "EnumeratedELBO",
)
RACING = ("ELBO", "STL", "IWAE", "DReG")  # a race takes minutes to hours for each estimator
RACING_DISCRETE = ("REINFORCE(baseline=leave_one_out)", "VIMCO", "RWS", "GumbelSoftmaxELBO")

_IF_DEFINED: Mapping[str, Any] = {  # defaults only where the program has what they need
    "MeanFieldELBO": objectives.MeanFieldELBO,
    "GumbelSoftmaxELBO": objectives.GumbelSoftmaxELBO,
    "EnumeratedELBO": objectives.EnumeratedELBO,
}
_FEW_STATES = 256  # at most, for enumeration by default


def read_objectives(text: str) -> list[Any]:
    """Return the objectives of ``--objectives``: ``'[ELBO, "MIWAE(groups=4)", {mine: mymodule.bound}]'``, or one name.

    Commas inside brackets belong to an objective, whether or not it has quotes around it.

    Raises:
        ValueError: If the text is no such list.

    Example:
        >>> read_objectives("[ELBO, RWS(guide=wake, num_particles=8), {mine: my.bound}]")
        ['ELBO', 'RWS(guide=wake, num_particles=8)', {'mine': 'my.bound'}]
        >>> read_objectives("ELBO, STL")
        ['ELBO', 'STL']
    """
    inside = text.strip()
    inside = inside[1:-1] if inside.startswith("[") and inside.endswith("]") else inside
    try:
        parts = split_at_commas(inside)
    except ValueError as error:
        raise ValueError(f"--objectives is {text!r}, whose brackets or quotes do not close; {_EXPECTED}") from error
    entries = []
    for part in parts:
        try:
            entry = yaml.safe_load(part) if part.startswith(("{", '"', "'")) else part
        except yaml.YAMLError as error:
            raise ValueError(f"--objectives is {text!r}, where {part!r} is no objective; {_EXPECTED}") from error
        if not isinstance(entry, str) and not (
            isinstance(entry, dict) and all(isinstance(v, str) for kv in entry.items() for v in kv)
        ):
            raise ValueError(f"--objectives is {text!r}, where {part!r} is no objective; {_EXPECTED}")
        entries.append(entry)
    if not entries:
        raise ValueError(f"--objectives is {text!r}; {_EXPECTED}")
    return entries


_EXPECTED = "expected a list of names or import paths, '[ELBO, \"MIWAE(groups=4)\", mymodule.my_objective]'"


@torch.no_grad()
def defaults_for(vae: VAE, columns: tuple[Tensor, ...], *, racing: bool = False) -> list[str]:
    """Return the estimators to compare by default, which depend on whether the latents are reparameterised.

    Args:
        vae: The program.
        columns: A batch of two or more data.
        racing: Whether they are for a race, where each takes long to train.
    """
    with untouched_random_state():
        trace = prune_subsample_sites(poutine.trace(vae.guide).get_trace(*columns))
        latents: list[Any] = [site["fn"] for name, site in trace.iter_stochastic_nodes() if not site["is_observed"]]
        if all(fn.has_rsample for fn in latents):
            chosen: tuple[str, ...] = RACING if racing else REPARAMETERISED
        else:
            chosen = RACING_DISCRETE if racing else DISCRETE
        return [name for name in chosen if name not in _IF_DEFINED or _is_defined(name, vae, columns, latents)]


def _is_defined(name: str, vae: VAE, columns: tuple[Tensor, ...], latents: list[Any]) -> bool:
    try:
        if name == "EnumeratedELBO":
            states = [len(fn.enumerate_support(expand=False)) for fn in latents]
            return torch.tensor(states).prod().item() <= _FEW_STATES
        as_loss(_IF_DEFINED[name]())((vae.model, vae.guide), *columns)
    except (ValueError, NotImplementedError, TypeError):  # no closed form, nothing to enumerate or to relax
        return False
    return True


def check_folder(folder: Path) -> Path:
    """Return the folder to write to, after a check that it can be written to.

    Raises:
        OSError: If the folder is a file, or cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--out {folder} is a file; expected a folder")
    above = next(path for path in (folder, *folder.parents) if path.exists())
    near = above == folder or above == folder.parent or folder.parent == Path("runs")
    if not near or not above.is_dir() or not os.access(above, os.W_OK):
        raise PermissionError(
            f"cannot write to {folder}: its parent is no folder that can be written to; choose an --out"
        )
    return folder


def write(
    folder: Path, stem: str, content: Mapping[str, Any], table: str, text: str, pictures: Mapping[str, Any]
) -> list[str]:
    """Write the figures, the text and then the pictures; return the lines that name the files.

    Args:
        folder: The folder to write to.
        stem: The name of the figures' files, ``"comparison"`` or ``"race"``.
        content: The content of the JSON file.
        table: The content of the CSV file.
        text: The text that is also printed.
        pictures: Functions that draw the pictures, by name. A function with nothing to draw raises a `ValueError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / f"{stem}.csv").write_text(table, encoding="utf-8")
    (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
    lines = [f"file: {folder / name}" for name in (f"{stem}.csv", f"{stem}.json", "summary.txt")]
    for name, draw in pictures.items():
        drawn = _drawn(draw)
        if drawn is not None:
            lines.append(f"picture: {plots.save(drawn, folder / f'{name}.png')}")
    return lines


def _drawn(draw: Callable[[], Figure]) -> Figure | None:
    try:
        return draw()
    except ValueError:  # nothing to show: all estimators failed, as table and summary say
        return None


def bullets(sentences: list[str]) -> list[str]:
    """Return sentences as a bulleted list, in lines of at most 120 characters."""
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(
            sentence,
            120,
            initial_indent="- ",
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    ]
