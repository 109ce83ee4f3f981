"""What a report is about: plain values from a run's folder, from a `Run`, or from an `Evaluation`."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ppl_vae.data import Split
from ppl_vae.data.streams import Stream
from ppl_vae.evaluation import Evaluation
from ppl_vae.runs.drawing import shown_part
from ppl_vae.training import Run
from ppl_vae.vae import VAE


@dataclass
class Subject:
    """A run, an evaluation or a comparison, as a report shows it; what is None is absent.

    Attributes:
        name: Its name.
        about: What it was made of and came to: ``data``, ``prior``, ``likelihood``, ``posterior``, ``objective``,
            ``regularizer``, ``epochs``, ``epochs_planned``, ``state``, ``seconds``, ``figures``, ``seed``,
            ``device``, or some.
        versions: The versions it was trained with, and the machine, by name.
        config: Its configuration, YAML.
        history: One record per epoch.
        caveat: What every figure of it must state.
        vae: The model.
        data: The data to show, of which the first rows are read, and ``data_name``.
        categories: The words behind the codes of a column of a table, by its name.
        evaluation: What `Evaluation.to_dict` returns.
        per_datum: The evaluation's figures of each datum, lists by name.
        pictures: PNG files of the evaluation, by name.
        comparisons: For each comparison or race its ``kind``, ``name``, ``content`` (its JSON) and ``pictures``.
        absent: Sentences on what there is not, and why.
    """

    name: str
    about: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    history: Sequence[Mapping[str, Any]] = ()
    caveat: str | None = None
    vae: VAE | None = None
    data: Split | None = None
    data_name: str = ""
    categories: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    per_datum: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    comparisons: Sequence[Mapping[str, Any]] = ()
    absent: list[str] = field(default_factory=list)


def of_run(run: Run) -> Subject:
    """Return the subject of a run in memory."""
    vae, parts = run.program, run.data
    about: dict[str, Any] = {
        "data": {"name": parts.name, "x_shape": list(parts.x_shape), "binarize": parts.binarize}
        | {n: None if isinstance(s := getattr(parts, n), Stream) else len(s) for n in ("train", "validation", "test")},
        "epochs": len(run.history),
        "best_epoch": run.best_epoch,
        "state": run.stopped or "not ended",
        "seconds": run.seconds,
        "figures": {n: v for n, v in run.final.items() if n not in ("epoch", "step")},
        "seed": run.seed,
        "device": run.device,
        "fingerprint": parts.fingerprint,
    }
    found = Subject(parts.name, about, {"torch": torch.__version__, "machine": platform.platform()})
    if isinstance(vae, VAE):
        about |= {r: getattr(p, "__name__", type(p).__name__) for r in vae.roles if (p := getattr(vae, r)) is not None}
        name, found.data = shown_part(parts)
        found.vae, found.data_name = vae, f"{parts.name}, {name}"
    else:
        found.absent.append(
            "The program is a (model, guide) pair and no VAE: there are no reconstructions, samples and latent space."
        )
    found.history, found.caveat = run.history, run.caveat
    found.absent.append("A run that was put together in Python keeps no configuration.")
    return found


def with_evaluation(subject: Subject, evaluation: Evaluation) -> None:
    """Put an evaluation into a subject."""
    subject.evaluation = evaluation.to_dict()
    subject.per_datum = {name: value.tolist() for name, value in evaluation.per_datum().items()}
