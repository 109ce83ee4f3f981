"""Data for the page to draw: how it shows one, reconstructions, samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae._scopes import evaluation_mode
from ppl_vae.data import Split
from ppl_vae.data.arrays import is_image
from ppl_vae.report.latent import as_shown, columns_of, conditions_of
from ppl_vae.report.subject import Subject
from ppl_vae.vae import VAE

_IMAGES, _ROWS = 32, 5  # samples; there are half as many reconstructions of images
_COLUMNS = 40  # of the bars of a datum


def form_of(subject: Subject, vae: VAE, data: Split) -> dict[str, Any]:
    """Return how the page shows a datum: an image with the range of its values, or columns with theirs."""
    x, _ = columns_of(vae, data, 2000)
    shape = vae.x_shape
    if is_image(shape):
        ends = x[x.isfinite()].aminmax() if x.isfinite().any() else (torch.zeros(()), torch.ones(()))
        low, high = min(0.0, float(ends[0])), max(1.0, float(ends[1]))
        return {"kind": "image", "shape": [*(1,) * (3 - len(shape)), *shape], "low": low, "high": high}
    flat = x.flatten(1).double().cpu().numpy()
    known = np.where(np.isfinite(flat), flat, np.nan)
    known[:, np.isnan(known).all(0)] = 0.0  # of a column without a value
    names = [*(vae.column_names or data.column_names or ())]
    names = names if len(names) == flat.shape[1] else [f"x{i + 1}" for i in range(flat.shape[1])]
    varied = np.argsort(-np.nanstd(known, 0), kind="stable")[:_COLUMNS].tolist()
    return {
        "kind": "columns",
        "names": names,
        "shown": list(range(len(names))) if len(names) <= _COLUMNS else varied,
        "low": np.nanmin(known, 0).tolist(),
        "high": np.nanmax(known, 0).tolist(),
        "words": [[str(w) for w in subject.categories.get(name, ())] or None for name in names],
    }


def examples(vae: VAE, data: Split, form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first data with their reconstructions, and means of p(x|z) with draws from it at the same z.

    ``cut`` is the share of values of images that lie outside the range shown.
    """
    n = _IMAGES if form["kind"] == "image" else _ROWS
    x, y = columns_of(vae, data, _IMAGES // 2 if form["kind"] == "image" else _ROWS)
    values, names = conditions_of(vae, data, columns_of(vae, data, 1000)[1])
    turn = torch.arange(n) * len(names or ()) // n
    under = None if values is None else values[turn]
    with torch.no_grad(), evaluation_mode(vae):
        p_z = vae.p_z(under)
        z = p_z.sample(() if p_z.batch_shape else (n,))
        drawn = vae.p_x(z, under).sample()
    pictures: dict[str, Tensor] = {"x": x, "made": vae.reconstruct(x, y), "means": vae.decode(z, under), "draws": drawn}
    shown = {n: as_shown(v, form) if n == "x" or v.isfinite().all() else None for n, v in pictures.items()}
    cut = {}
    if form["kind"] == "image":  # of which `as_shown` cuts values
        cut = {n: float(((v < form["low"]) | (v > form["high"])).double().mean()) for n, v in pictures.items()}
    return {**shown, "cut": cut, "conditions": None if names is None else [names[i] for i in turn.tolist()]}
