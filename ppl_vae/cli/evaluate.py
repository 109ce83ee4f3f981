"""``ppl-vae evaluate``: the quality of a run's model, and the distance of its bound from log p(x).

ppl-vae evaluate runs/digits                         all test data; runs/digits/evaluation
ppl-vae evaluate runs/digits --size 1000 --gaps 200  the first 1,000, the gap taken apart for 200 of them
ppl-vae evaluate runs/wide --evidence ais --size 50  annealed importance sampling, slow
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from torch import Tensor

from ppl_vae import _files, data, evaluation
from ppl_vae._team import Team
from ppl_vae.cli.folders import folder_for
from ppl_vae.cli.opening import DataOptions, OpenRun, SplitName
from ppl_vae.cli.options import several
from ppl_vae.cli.rows import Rows
from ppl_vae.cli.telling import not_drawn, teller
from ppl_vae.evaluation import pictures
from ppl_vae.evidence.log_evidence import Method
from ppl_vae.plots.latent import names_of


def evaluate(
    run: OpenRun,
    data_options: DataOptions,
    *,
    evidence: Method = "auto",
    particles: int | list[int] | None = None,
    split: SplitName | None = None,
    size: int | None = None,
    gaps: int = 500,
    importance: int = 200,
    imputation: int = 200,
    bins: int | None = None,
    seed: int = 0,
    out: str | None = None,
) -> list[str]:
    """Print log p(x), the ELBO, the gap between them and its sources, and measures of the latent code.

    Figures are in nats per datum, with 95% bootstrap intervals over data. The evidence is exact for latents of up to
    three dimensions (quadrature), for discrete latents (enumeration) and for linear-Gaussian models. Otherwise it is
    estimated by importance sampling from a proposal that looks for modes that q(z|x) misses. The command writes
    evaluation.json, per_datum.npz and pictures, and replaces an earlier evaluation in the same place, of another
    checkpoint too.

    Args:
        run: The run.
        data_options: The data.
        evidence: How to find log p(x): auto is the best method that applies, posterior is importance sampling from
            q(z|x), sumo Russian roulette over the number of its draws.
        particles: K of importance sampling, one number or a list for estimates side by side; by default
            [100, 1000, 5000].
        split: train, validation, test, or all; by default test (or another split if test has no rows).
        size: Evaluate only the first so many data; all by default.
        gaps: Split the gap into its parts for the first so many data; 0 for none.
        importance: Beside exact evidence, also sample from q(z|x) for the first so many data; 0 for none.
        imputation: Impute half of the values of the first so many data; 0 for none.
        bins: Levels of dequantised data, for bits per dimension; known for data dequantised here (--data.dequantize).
        seed: The seed of all draws.
        out: The folder to write to; evaluation in the run's folder by default.
    """
    chosen = several(particles)
    folder = folder_for(out, run.folder / "evaluation")
    rows = data_options.open(run, split)
    tell = teller()
    columns = rows.columns()
    found = evaluation.evaluate(
        run.vae,
        data.Split(columns, rows.labels, bins=rows.bins),
        train=_labelled(run, data_options, rows, split),
        evidence=evidence,
        num_particles=chosen,
        size=size,
        gap_size=gaps,
        importance_size=importance,
        imputation_size=imputation,
        bins=bins,
        seed=seed,
        progress=tell,
        team=(team := Team.present()),
    )
    if not team.is_first:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    n = len(found.evidence)
    told = {"data": rows.name, "fingerprint": _fingerprint(columns, n), "checkpoint": run.checkpoint_name}
    content = {**told, "seed": seed, **found.to_dict()}
    _files.write(folder / "evaluation.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    arrays: dict[str, Any] = {name: value.numpy() for name, value in found.per_datum().items()}
    _files.write(folder / "per_datum.npz", lambda file: np.savez(file, **arrays))
    tell("pictures")
    labels = None if rows.labels is None else rows.labels[:n]
    part = f"The first {n:,} of {len(rows):,} data" if n < len(rows) else None
    shown: dict[str, Any] = {"labels": labels, "class_names": names_of(rows.joined), "caveat": run.foot(rows, part)}
    drawn = pictures.draw(run.vae, columns[0][:n], found, folder, **shown)
    tell("")
    written = [f"file: {folder / name}" for name in ("evaluation.json", "per_datum.npz")]
    otherwise = "they need a normal q(z|x), and the latter images and log p(x) by quadrature"
    written += [f"picture: {path}" for path in drawn]
    written += not_drawn(("latent_map", "true_posteriors"), drawn, run.vae, otherwise)
    return [f"{run.checkpoint}: {rows.name}", found.table(), *written]


def _fingerprint(columns: tuple[Tensor, ...], size: int) -> str:
    """Return what tells the evaluated data from others."""
    part = data.Split(columns).head(size)
    return data.Dataset.of("evaluated", part).fingerprint


def _labelled(run: OpenRun, data_options: DataOptions, rows: Rows, split: SplitName | None) -> data.Split | None:
    """Return the training data with labels, to find neighbours among; None if they are evaluated or have no labels."""
    if rows.labels is None or rows.whole or split == "train":
        return None
    train = data_options.open(run, "train")
    if train.labels is None or train.name == rows.name:
        return None
    return data.Split(train.columns(), train.labels)
