"""The pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ppl_vae import plots
from ppl_vae._home import at_home
from ppl_vae._scopes import seeded
from ppl_vae.evaluation.bootstrap import Interval, interval
from ppl_vae.evaluation.figures import Evaluation
from ppl_vae.evaluation.true_posterior import log_posterior_grid
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.normals import Normals
from ppl_vae.evidence.results import Evidence
from ppl_vae.plots.figure import join
from ppl_vae.plots.latent import MOST_CLASSES
from ppl_vae.vae import VAE

_ALL = "evidence", "gaps", "particles", "rate_distortion", "aggregate_posterior", "latent_map", "true_posteriors"
_WORST = 10
_SHARES = (0.1, 0.5, 0.9, 0.99, 1.0)  # quantiles of the gap: the true posteriors of these data are drawn
_NODES = 200  # of a picture of p(z|x) along each axis: about one a pixel
_SHOWN = 10_000  # draws of the aggregate posterior


@at_home("x", float64=True)
@torch.no_grad()
def draw(
    vae: VAE,
    x: Tensor,
    evaluation: Evaluation,
    folder: str | Path,
    *,
    labels: Tensor | None = None,
    class_names: Mapping[int, str] | None = None,
    caveat: str | None = None,
) -> list[Path]:
    """Draw the pictures of an evaluation into a folder, in place of those of an earlier one, and return their paths.

    There are always a histogram of log p(x) and the ELBO (with the worst data, if they are images) and the
    rate-distortion plane. If the evaluation has them, there are also the gap per class, the estimates against K and the
    aggregate posterior beside the prior. A 2-D latent adds a map of the latent space coloured by the gap, and for
    images the true posterior beside q for some data.

    Args:
        vae: The model.
        x: The evaluated data, (n, *x_shape).
        evaluation: The result of `evaluate` for these data.
        folder: An existing folder.
        labels: The labels of the data, (n,).
        class_names: The name of each label.
        caveat: A text under every picture, such as the run, the data set and its split.
    """
    figures: dict[str, Any] = {}
    densities, bound, evidence = VAEDensities(vae), evaluation.bound, evaluation.evidence
    image = x.dim() == 3 or (x.dim() == 4 and x.shape[1] in (1, 3))
    whole = labels is not None and bool((labels == labels.round()).all())
    classes = labels.long() if labels is not None and whole and len(labels.unique()) <= MOST_CLASSES else None
    worst: dict[str, Any] = {}
    if image:
        rows = evidence.log_evidence.nan_to_num(torch.inf).argsort()[:_WORST]
        worst = {"worst_images": x[rows], "worst_values": evidence.log_evidence[rows]}
        worst["worst_captions"] = None if classes is None else [f"class {c}" for c in classes[rows].tolist()]
    figures["evidence"] = plots.evidence_histogram(evidence.log_evidence, elbo=bound.elbo, caveat=caveat, **worst)
    if evaluation.gaps is not None:
        split = evaluation.gaps
        some = None if classes is None else classes[: len(split.gap)]
        figures["gaps"] = plots.gaps_by_class(
            split.approximation_gap,
            split.amortisation_gap,
            some,
            intervals=None if some is None else _by_class(split.gap, some),
            class_names=None if some is None else class_names,
            caveat=join(caveat, _first(len(split.gap), len(x))),
        )
    by_particles = evaluation.sampled or (evidence if evidence.method == "importance" else None)
    if by_particles is not None:
        note = join(caveat, _first(len(by_particles), len(x)))
        figures |= _by_particles(evaluation, by_particles, note)
    rate, distortion, mean = (cast(Interval, evaluation.figures[n]) for n in ("rate", "distortion", "log_evidence"))
    figures["rate_distortion"] = plots.rate_distortion(
        {"this model": [rate.value, distortion.value]},
        intervals={"this model": (rate, distortion)},
        log_evidence={"this model": mean.value},
        caveat=caveat,
    )
    if vae.y_shape is None:
        figures |= _of_latents(densities, x, evaluation, classes, image, caveat)
    saved = [plots.save(figure, Path(folder) / f"{name}.png") for name, figure in figures.items()]
    for name in set(_ALL) - set(figures):
        (Path(folder) / f"{name}.png").unlink(missing_ok=True)
    return saved


def _first(n: int, total: int) -> str | None:
    return f"Here the first {n:,} of these {total:,} data" if n < total else None


def _of_latents(
    densities: VAEDensities, x: Tensor, evaluation: Evaluation, labels: Tensor | None, image: bool, caveat: str | None
) -> dict[str, Any]:
    """Draw the pictures that need one latent space for all data."""
    figures: dict[str, Any] = {}
    evidence, q = evaluation.evidence, densities.posterior(x)
    if evaluation.use is not None:
        with seeded(0):
            drawn = q.sample((1 + _SHOWN // len(x),)).flatten(0, 1)[:_SHOWN]
            from_prior = densities.prior_sample(x[:1], _SHOWN)[:, 0]
        figures["aggregate_posterior"] = plots.aggregate_posterior(
            drawn, from_prior, kl=evaluation.use.kl, caveat=caveat
        )
    normals = Normals.of(q)
    if densities.latent_dim == 2 and normals is not None:
        prior = Normals.of(densities.prior().expand((1,)))
        figures["latent_map"] = plots.latent_map(
            normals.loc,
            evidence.log_evidence - evaluation.bound.elbo,
            label="log p(x) - ELBO, nats",
            prior_circles=prior is not None and bool((prior.loc == 0).all() and (prior.std == 1).all()),
            caveat=caveat,
        )
        if image and evidence.kind == "exact" and evidence.method == "quadrature":
            figures["true_posteriors"] = _true_posteriors(densities, x, evaluation, normals, labels, caveat)
    return figures


def _by_class(values: Tensor, labels: Tensor) -> dict[int, Interval]:
    parts = {int(label): values[labels == label] for label in labels.unique()}
    return {label: interval(part) for label, part in parts.items() if len(part) > 1 and bool(part.isfinite().all())}


def _by_particles(evaluation: Evaluation, sampled: Evidence, caveat: str | None) -> dict[str, Any]:
    """Draw the estimates at each K on the sampled data, beside the exact mean of the same data, if two are finite."""
    n, prefix = len(sampled), "log_evidence_"
    found: dict[str, Any] = {name: value for name, value in sampled.details.items() if name.startswith(prefix)}
    estimates: dict[int, Tensor] = {int(name.removeprefix(prefix)): value for name, value in found.items()}
    columns = [*estimates.values(), evaluation.bound.elbo[:n], evaluation.evidence.log_evidence[:n]]
    finite = torch.stack(columns).isfinite().all(0)
    if finite.sum() < 2:
        return {}
    *values, elbo, truth = (interval(column[finite]) for column in columns)
    exact = evaluation.evidence.kind == "exact"
    figure = plots.evidence_by_particles(
        list(estimates),
        [v.value for v in values],
        values,
        exact=truth.value if exact else None,
        exact_interval=truth if exact else None,
        exact_name=f"exact, by {evaluation.evidence.method}",
        elbo=elbo.value,
        elbo_interval=elbo,
        caveat=caveat,
    )
    return {"particles": figure}


def _true_posteriors(
    densities: VAEDensities, x: Tensor, evaluation: Evaluation, q: Normals, labels: Tensor | None, caveat: str | None
) -> Any:
    """Draw the whole of p(z|x) and close-ups of it, for data from a small gap to the largest."""
    log_p, elbo = evaluation.evidence.log_evidence, evaluation.bound.elbo
    order = (log_p - elbo).argsort()
    chosen = torch.stack([order[round(share * (len(order) - 1))] for share in _SHARES])
    mean, std, covariance = q.loc[chosen], q.std[chosen], torch.diag_embed(q.std[chosen].square())
    if not q.diagonal:
        covariance = q.scale[chosen] @ q.scale[chosen].mT
    with seeded(0):
        prior = densities.prior_sample(x[:1], _SHOWN)[:, 0]
    low = torch.minimum(prior.amin(0), (mean - 4 * std).amin(0)).min().item()
    high = torch.maximum(prior.amax(0), (mean + 4 * std).amax(0)).max().item()

    def grid(rows: Tensor, box: Any, size: int = _NODES) -> Tensor:
        sides = [(float(box[0]), float(box[1])), (float(box[2]), float(box[3]))]
        return log_posterior_grid(densities, x[rows], sides, size, log_evidence=log_p[rows])

    whole = [low, high, low, high]
    fine = grid(chosen, whole, 2 * _NODES - 1)  # what a close-up should show is narrow in the whole plane
    boxes = plots.posterior_close_ups(fine, whole, mean, covariance)  # (n, 2, 4)
    views = [fine[:, ::2, ::2]]
    for v in range(boxes.shape[1]):
        close = [
            torch.zeros_like(views[0][0]) if np.isnan(box).any() else grid(row[None], box)[0]
            for row, box in zip(chosen, boxes[:, v], strict=True)
        ]
        views.append(torch.stack(close))
    extents = np.concatenate([np.tile(whole, (len(chosen), 1))[:, None], boxes], 1)
    captions = None if labels is None else [f"class {label}" for label in labels[chosen].tolist()]
    return plots.true_posteriors(
        x[chosen],
        torch.stack(views, 1),
        extents,
        mean,
        covariance,
        captions,
        log_evidence=log_p[chosen],
        elbo=elbo[chosen],
        caveat=caveat,
    )
