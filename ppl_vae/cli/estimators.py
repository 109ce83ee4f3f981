"""The common part of both modes of ``ppl-vae compare``: the estimators to compare, and the files of the results."""

from __future__ import annotations

import json
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

from ppl_vae import _files, objectives, plots
from ppl_vae._scopes import untouched_random_state
from ppl_vae._tensors import moved
from ppl_vae.comparison.contenders import split_at_commas
from ppl_vae.objectives.losses import as_loss
from ppl_vae.plots.figure import join
from ppl_vae.vae import VAE

REPARAMETERISED = ("ELBO", "MeanFieldELBO", "STL", "IWAE", "DReG", "MIWAE", "PIWAE", "CIWAE")
DISCRETE = (
    "REINFORCE",
    "REINFORCE(baseline=moving_average)",
    "REINFORCE(baseline=leave_one_out)",
    "DisARM",
    "VIMCO",
    "RWS",
    "ReinMaxELBO",
    "GumbelSoftmaxELBO",
    "EnumeratedELBO",
)
RACING = ("ELBO", "STL", "IWAE", "DReG")  # a race takes minutes to hours for each estimator
RACING_DISCRETE = ("REINFORCE(baseline=leave_one_out)", "DisARM", "VIMCO", "RWS", "GumbelSoftmaxELBO")

# where the program has what they need
_IF_DEFINED = ("MeanFieldELBO", "DisARM", "ReinMaxELBO", "GumbelSoftmaxELBO", "EnumeratedELBO")
_FEW_STATES = 256  # at most, for enumeration by default
_BULLETS = textwrap.TextWrapper(
    120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
)


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
        except yaml.YAMLError:
            entry = None
        words = [word for pair in entry.items() for word in pair] if isinstance(entry, dict) else [entry]
        if not all(isinstance(word, str) for word in words):
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
        columns: A batch of two or more data, wherever they are.
        racing: Whether they are for a race, where each takes long to train.
    """
    like = next(vae.parameters(), torch.empty(0))
    columns = moved(columns, like.device, like.dtype)
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
            states = [len(fn.enumerate_support(expand=False)) for fn in latents if fn.has_enumerate_support]
            return bool(states) and torch.tensor(states).prod().item() <= _FEW_STATES
        as_loss(getattr(objectives, name)())((vae.model, vae.guide), *columns)
    except (ValueError, NotImplementedError, TypeError):  # no closed form, nothing to enumerate or to relax
        return False
    return True


def write(
    found: Any,
    folder: Path,
    stem: str,
    *,
    title: str,
    facts: Mapping[str, Any],
    caveat: str | None,
    pictures: Mapping[str, Callable[..., Figure]],
    tell: Callable[[str], None],
) -> list[str]:
    """Write the figures, the text and then the pictures; return the lines to print.

    Args:
        found: The results of a comparison or of a race.
        folder: The folder to write to.
        stem: The name of the figures' files, ``"comparison"`` or ``"race"``.
        title: The first line of the text.
        facts: What the JSON file says before the results.
        caveat: The caveat that text, file and pictures state, or None.
        pictures: Functions that draw the results, by name. A function with nothing to draw raises a `ValueError`.
        tell: A function that shows progress.
    """
    tell("pictures")
    head = [title, f"note: {caveat}"] if caveat else [title]
    text = "\n".join([*head, "", found.table(), "", *map(_BULLETS.fill, found.sentences())])
    content = {**facts, "caveat": caveat, **found.to_dict()}
    files = {
        f"{stem}.csv": found.to_csv(),
        f"{stem}.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        "summary.txt": text + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in pictures:
        (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier comparison
    for name, written in files.items():
        _files.write(folder / name, written)
    lines = [text, "", *(f"file: {folder / name}" for name in files)]
    for name, draw in pictures.items():
        try:
            figure = draw(found, caveat=join(title, caveat))
        except ValueError:  # nothing to show: all estimators failed, as table and summary say
            continue
        lines.append(f"picture: {plots.save(figure, folder / f'{name}.png')}")
    tell("")
    return lines
