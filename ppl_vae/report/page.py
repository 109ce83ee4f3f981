"""The page: styles, scripts and values in one file that asks nothing of a network; the scripts draw the values."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from ppl_vae import __version__, _files
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_count, check_positive_int, check_seed
from ppl_vae._words import first_line
from ppl_vae.evaluation import Evaluation
from ppl_vae.evaluation.figures import UNITS
from ppl_vae.report.latent import latent_space
from ppl_vae.report.markup import block, plain
from ppl_vae.report.shown import examples, form_of
from ppl_vae.report.subject import Subject, of_run, with_evaluation
from ppl_vae.training import Run

_POLICY = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"  # no request ever leaves
_SCRIPTS = ("core", "decoder", "curves", "densities", "pictures", "latent", "words", "sections")


def write(
    path: str | os.PathLike[str],
    subjects: Sequence[Subject],
    *,
    command: str,
    size: int = 2000,
    posteriors: int = 50,
    seed: int = 0,
    to: Callable[[_files.Content], Path] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a report, whole or not at all, and return its path.

    Args:
        path: The file.
        subjects: What it shows, side by side.
        command: What made it, for its head.
        size: How many data are points of the latent space.
        posteriors: How many data get their true posterior, of a latent of one or two numbers.
        seed: The seed of all draws; the global random state is left alone.
        to: A function that writes the content; by default the file is written, and replaced if it is there.
        tell: A function that is called with the name of each part as it begins.

    Raises:
        ValueError: If there is nothing to show, or a number is none.
        OSError: If the file cannot be written.
    """
    check_positive_int(size, "report: size")
    check_count(posteriors, "report: posteriors")
    check_seed(seed, "report: seed")
    if not subjects:
        raise ValueError("report was given nothing to show; expected one run or more")
    shown = [_values(subject, size, posteriors, seed, tell) for subject in subjects]
    style, script = _read("page.css"), "\n".join(['"use strict";', *(_read(f"{name}.js") for name in _SCRIPTS)])
    parts = {
        "policy": f"{_POLICY}; style-src {_hash(style)}; script-src {_hash(script)}",
        "title": html.escape(", ".join(subject.name for subject in subjects)),
        "made": f"Made {time.strftime('%Y-%m-%d %H:%M %z')} by ppl_vae {__version__} with torch {torch.__version__}.",
        "command": html.escape(command),
        "style": style,
        "script": script,
        "values": block({"subjects": shown, "units": UNITS}),
    }
    tell("")
    text = re.sub(r"@(\w+)@", lambda found: parts[found[1]], _read("page.html"))
    return _files.write(Path(path), text) if to is None else to(text)


def _values(subject: Subject, size: int, posteriors: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return a subject as values for JSON, with what its model shows."""
    names = ("name", "about", "versions", "config", "history", "caveat", "absent", "data_name", "evaluation")
    found = {name: plain(getattr(subject, name)) for name in (*names, "pictures", "comparisons")}
    per_datum = subject.per_datum
    if {"log_evidence", "elbo"} <= set(per_datum):
        pairs = zip(per_datum["log_evidence"], per_datum["elbo"], strict=True)
        found["gap"] = plain([log_p - elbo for log_p, elbo in pairs])
    vae, data = subject.vae, subject.data
    if vae is None or data is None or not len(data):
        return found
    with seeded(seed):
        tell(f"{subject.name}: pictures")
        form = form_of(subject, vae, data)
        found |= {"form": form, "examples": examples(vae, data, form)}
        tell(f"{subject.name}: the latent space")
        try:
            found["space"], found["notes"] = latent_space(vae, data, form, size=size, posteriors=posteriors)
            found["space"]["of"] = len(data)
        except (ValueError, NotImplementedError) as error:
            found["notes"] = [f"There is no live latent space: {first_line(error)}."]
    return found


def write_report(path: str | os.PathLike[str], thing: Run | Evaluation, other: Run | Evaluation | None = None) -> Path:
    """Write the report of a run, of an evaluation, or of both; `Run.report` and `Evaluation.report` call it.

    Raises:
        TypeError: If the other is not of the other kind.
    """
    run, evaluation = (thing, other) if isinstance(thing, Run) else (other, thing)
    if not isinstance(run, Run | None) or not isinstance(evaluation, Evaluation | None):
        kinds = f"{type(other).__name__} beside {type(thing).__name__}"
        raise TypeError(f"report was given {kinds}; expected a run and its evaluation")
    subject = Subject("evaluation") if run is None else of_run(run)
    if evaluation is not None:
        with_evaluation(subject, evaluation)
    if run is None:
        subject.absent.append("An evaluation holds no model: evaluation.report(path, run) shows that of its run.")
    return write(path, [subject], command=f"{type(thing).__name__}.report")


def _read(name: str) -> str:
    return (resources.files("ppl_vae.report") / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
