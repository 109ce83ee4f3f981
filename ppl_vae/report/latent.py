r"""What the live latent space shows: data, densities and true posteriors in the plane, and a decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae._distributions import centre, measure
from ppl_vae._scopes import evaluation_mode
from ppl_vae._tensors import as_numbers
from ppl_vae._words import first_line
from ppl_vae.data import Split
from ppl_vae.evaluation.diagnostics import kl_per_dimension
from ppl_vae.evaluation.elbo import elbo
from ppl_vae.evaluation.true_posterior import log_posterior_grid, posterior_moments
from ppl_vae.evidence.conditional import found_by_condition
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.normals import Normals
from ppl_vae.programs import SemiSupervisedVAE
from ppl_vae.report.decoder import decoded_grid, perceptron
from ppl_vae.report.markup import packed
from ppl_vae.vae import VAE

_ROWS = 500  # data encoded at once
_CELLS = 96  # of the prior's density, along an axis
_NODES = {1: 201, 2: 48}  # of a true posterior, along an axis
_REACH = 4.5  # half the side of its box, in its standard deviations
_DRAWS = 4000
_PROBES = 32  # latents at which the page's decoder is compared with the model


def latent_space(
    vae: VAE, data: Split, form: dict[str, Any], *, size: int, posteriors: int
) -> tuple[dict[str, Any], list[str]]:
    """Return what the live latent space shows, for JSON, and sentences on what it lacks.

    Args:
        vae: The model.
        data: The data to show; the first `size` rows.
        form: How the page shows a datum: ``kind`` and what belongs to it.
        size: How many data are points of the plane.
        posteriors: How many of the first data get their true posterior.

    Raises:
        ValueError: If the latent is no region of space.
    """
    x, y = columns_of(vae, data, size)
    with torch.no_grad(), evaluation_mode(vae):
        blocks = x.split(_ROWS)
        conditions = [None] * len(blocks) if y is None else y.split(_ROWS)
        q = [vae.q_z(a, b) for a, b in zip(blocks, conditions, strict=True)]
        if measure(q[0]) != "a region of space":
            raise ValueError(f"its latent lives on {measure(q[0])}, in which no pointer moves")
        means = torch.cat([centre(part) for part in q])
        normals = [Normals.of(part) for part in q]
        spread = [n for n in normals if n is not None and n.diagonal]
        drawn = torch.cat([part.sample() for part in q])
        values, names = conditions_of(vae, data, y)
        prior = vae.p_z(None if values is None else values[:1])
        of_prior = prior.sample((_DRAWS,)).reshape(-1, means.shape[1])
    if not means.isfinite().all():
        raise ValueError("a mean of q(z|x) is not finite")
    dim, notes = means.shape[1], list[str]()
    low, high = _box(means, of_prior)
    if outside := int(((means < low) | (means > high)).any(1).sum()):
        notes.append(f"{outside} of these points lie far from the others, outside the plane.")
    found: dict[str, Any] = {
        "dim": dim,
        "low": low,
        "high": high,
        "datum": form,
        "points": packed(means.cpu()),
        "labels": _labels(data, len(means)),
        "conditions": names,
        "values": None if values is None else packed(values.cpu()),
        "prior": _prior(vae, values, low, high, dim),
        "order": _use(vae, x, y, means).argsort(descending=True).tolist(),
    }
    whole = len(spread) == len(q)
    found["spread" if whole else "draws"] = packed(torch.cat([n.scale for n in spread]).cpu() if whole else drawn.cpu())
    if found["prior"] is None:
        notes.append("The prior's density is not shown: it is not that of the same independent normals everywhere.")
    probes = low + (high - low) * torch.rand(_PROBES, dim)
    some = None if values is None else values[torch.arange(_PROBES) % len(values)]
    try:
        found["decoder"] = perceptron(vae, probes, some)
    except ValueError as error:
        axes = tuple(range(dim)) if dim <= 2 else tuple(sorted(found["order"][:2]))
        found["decoder"] = decoded_grid(vae, low, high, axes, means.mean(0), values)
        latents = " and ".join(str(axis + 1) for axis in axes)
        between = f" over the latents {latents}, the others at the mean of these data" if dim > 2 else ""
        notes.append(
            f"Decoded means are interpolated, between those of a grid of {found['decoder']['size']} nodes an axis"
            f"{between}: the page cannot compute this decoder, since {error}."
        )
    found["data"] = {"x": as_shown(x[:posteriors], form), "number": len(x[:posteriors])}
    try:
        found["data"] |= _true_posteriors(vae, x[:posteriors], None if y is None else y[:posteriors])
    except (ValueError, NotImplementedError) as error:
        notes.append(f"True posteriors are not shown: {first_line(error)[:200]}.")
    if found["conditions"] is not None and y is not None:
        found["data"]["y"] = packed(y[:posteriors].cpu())
    return found, notes


def columns_of(vae: VAE, data: Split, size: int) -> tuple[Tensor, Tensor | None]:
    """Return the first rows as numbers where the model is: data and conditions, None of a model without them."""
    like = next(vae.parameters(), torch.empty(0))
    x, *rest = data.head(size).columns
    x = as_numbers(torch.as_tensor(x), like.dtype, "the data").to(like.device)
    if vae.y_shape is None or not rest:
        return x, None
    y = as_numbers(torch.as_tensor(rest[0]), like.dtype, "the condition").to(like.device)
    if isinstance(vae, SemiSupervisedVAE):  # rows of training data are weights of labels, or no label
        with torch.no_grad(), evaluation_mode(vae):
            y = vae.q_y(x, y).mode.to(x)
    return x, y


def conditions_of(vae: VAE, data: Split, y: Tensor | None) -> tuple[Tensor | None, list[str] | None]:
    """Return conditions to decode under, (c, k), with a name each: every label, few numbers, or those of some data."""
    if vae.y_shape is None or y is None:
        return None, None
    (k,) = vae.y_shape
    one_hot = bool((((y == 0) | (y == 1)).all(1) & (y.sum(1) <= 1)).all())
    if one_hot and 1 < k <= 50:
        known = vae.conditions or data.conditions
        return torch.eye(k).to(y), [str(name) for name in known] if len(known) == k else [str(i) for i in range(k)]
    if k == 1 and len(values := y.unique(dim=0)) <= 10:
        return values, [f"{value:g}" for value in values[:, 0].tolist()]
    first = y[:10]
    return first, [f"that of datum {i + 1}" for i in range(len(first))]


def _use(vae: VAE, x: Tensor, y: Tensor | None, means: Tensor) -> Tensor:
    """Return how much each latent is used: its mean KL, or the variance of its means where that has no answer."""
    with suppress(ValueError, NotImplementedError):
        if y is None and means.shape[1] > 2:
            return kl_per_dimension(VAEDensities(vae), x[:_ROWS]).mean(0)
    return means.var(0, correction=0)


def _box(means: Tensor, prior: Tensor) -> tuple[float, float]:
    """Return one range for all latents, which holds all data but those far out and nearly all of the prior."""
    ends = []
    for draws, share, reach in ((means, 0.005, 0.5), (prior[prior.isfinite().all(1)], 0.001, 0.0)):
        if len(draws):
            values = draws.cpu().double().numpy()
            left, right = np.quantile(values, [share, 1 - share], axis=0)
            more = reach * (right - left)
            ends += [np.maximum(left - more, values.min(0)).min(), np.minimum(right + more, values.max(0)).max()]
    low, high = float(min(ends)), float(max(ends))
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _labels(data: Split, n: int) -> dict[str, Any] | None:
    """Return the labels of the points: classes with their names, or numbers."""
    if data.labels is None:
        return None
    labels = data.labels[:n].cpu().double().numpy()
    if not np.isfinite(labels).all():
        return None
    classes, index = np.unique(labels, return_inverse=True)
    words = data.label_names
    if len(classes) > 10:
        ends = {"low": float(classes[0]), "high": float(classes[-1])}
        return {"classes": None, "values": packed(labels), "words": list(words), **ends}
    names = [words[int(c)] if words and 0 <= int(c) < len(words) else f"{c:g}" for c in classes]
    digits = classes[0] >= 0 and classes[-1] < 10 and np.array_equal(classes, classes.round())
    colours = classes if digits else np.arange(len(classes))  # a digit keeps its own, whichever others are present
    return {"classes": names, "values": packed(index), "colours": colours.astype(int).tolist()}


@torch.no_grad()
def _prior(vae: VAE, values: Tensor | None, low: float, high: float, dim: int) -> dict[str, Any] | None:
    """Return the prior's density on cells of the plane, one for each condition, or its independent normals."""
    with evaluation_mode(vae):
        of_each = values if values is None or vae._takes_y["prior"] else values[:1]
        priors: list[Any] = [vae.p_z(y) for y in ([None] if of_each is None else of_each.unsqueeze(1))]
        if dim > 2:
            normals = Normals.of(priors[0] if priors[0].batch_shape else priors[0].expand((1,)))
            if normals is None or not normals.diagonal or len(priors) > 1:
                return None
            return {"mean": normals.loc[0].tolist(), "std": normals.scale[0].tolist()}
        middles = low + (torch.arange(_CELLS) + 0.5) * (high - low) / _CELLS
        z = torch.stack(torch.meshgrid(*[middles] * dim, indexing="ij"), -1).reshape(-1, dim)
        grids = []
        for prior in priors:
            like = prior.sample()
            inside = prior.support.check(z.to(like))
            valid = torch.where(inside[:, None], z.to(like), like.reshape(-1, dim)[:1])
            density = torch.where(inside, prior.log_prob(valid), -math.inf).exp()
            grids.append((density / density.max().clamp_min(1e-300)).cpu())
    return {"cells": _CELLS, "density": packed((255 * torch.stack(grids).sqrt()).round().nan_to_num(0), "uint8")}


def as_shown(x: Tensor, form: Mapping[str, Any]) -> dict[str, Any]:
    """Return data for the page, flat: of an image the 256 levels that a screen has."""
    flat = x.flatten(1).cpu().float()
    if form["kind"] != "image":
        return packed(flat)
    share = (flat.nan_to_num(form["low"]) - form["low"]) / (form["high"] - form["low"])
    return packed((255 * share.clamp(0, 1)).round(), "uint8")


def _true_posteriors(vae: VAE, x: Tensor, y: Tensor | None) -> dict[str, Any]:
    """Return the density of p(z|x) on a box of its own for each datum, as uint8 of its root, with q's moments.

    Raises:
        ValueError: If the latent has more than two dimensions, or the posterior cannot be integrated.
    """
    if not len(x):
        return {}
    if vae.latent_shape[0] > 2:
        raise ValueError(f"they need a latent of one or two numbers, and this one has {vae.latent_shape[0]}")
    parts, order = ([_of_one_model(vae, x)], slice(None)) if y is None else found_by_condition(vae, x, y, _of_one_model)
    found = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
    return {n: packed(v.cpu(), "uint8" if n == "density" else "float32") for n, v in found.items()}


@torch.no_grad()
def _of_one_model(vae: Any, x: Tensor) -> dict[str, Tensor]:
    densities = VAEDensities(vae)
    moments = posterior_moments(densities, x)
    log_p = moments.evidence.log_evidence
    q = densities.posterior(x)
    normals = Normals.of(q)
    mean, std = moments.mean, moments.covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12).sqrt()
    low, high = mean - _REACH * std, mean + _REACH * std
    if normals is not None:  # the whole of q is in the box too
        low = torch.minimum(low, normals.loc.double() - 3 * normals.std.double())
        high = torch.maximum(high, normals.loc.double() + 3 * normals.std.double())
    middle, half = (low + high) / 2, ((high - low) / 2).amax(-1, keepdim=True)  # one scale for both axes
    low, high = middle - half, middle + half
    grids = []
    for i in range(len(x)):
        bounds = list(zip(low[i].tolist(), high[i].tolist(), strict=True))
        log_density = log_posterior_grid(
            densities, x[i : i + 1], bounds, _NODES[densities.latent_dim], log_evidence=log_p[i : i + 1]
        )
        grids.append((255 * (0.5 * (log_density - log_density.max())).exp()).round())
    found = {"density": torch.cat(grids), "low": low, "high": high, "log_evidence": log_p}
    found |= {"error": moments.evidence.error, "elbo": elbo(densities, x).elbo}
    if normals is None:
        return found
    scale = torch.diag_embed(normals.scale) if normals.diagonal else normals.scale
    return found | {"mean": normals.loc, "covariance": scale @ scale.mT}
