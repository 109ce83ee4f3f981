"""Data as pictures or rows of a table: reconstructions, samples, a grid over the latent plane."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppl_vae._distributions import is_discrete
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae.data.arrays import CHANNELS
from ppl_vae.report.latent import columns_of, conditions_of
from ppl_vae.report.markup import Safe, joined, number, picture, table, tag
from ppl_vae.report.subject import Subject
from ppl_vae.vae import VAE

_PAIRS, _DRAWN, _ACROSS = 16, 32, 8
_ROWS, _COLUMNS = 5, 40  # of a table, and of the bars of a datum
_SIDE = 12  # of the grid that is printed


def form_of(subject: Subject) -> dict[str, Any]:
    """Return how the page shows a datum: an image with the range of its values, or columns with theirs."""
    vae, data = subject.vae, subject.data
    assert vae is not None
    assert data is not None
    x, _ = columns_of(vae, data, 2000)
    shape = vae.x_shape
    if len(shape) == 2 or (len(shape) == 3 and shape[0] in CHANNELS):
        shape = shape if len(shape) == 3 else (1, *shape)
        seen = x[x.isfinite()]
        low, high = (0.0, 1.0) if not len(seen) else (min(0.0, float(seen.min())), max(1.0, float(seen.max())))
        return {"kind": "image", "shape": list(shape), "low": low, "high": high}
    flat = x.flatten(1).double().cpu().numpy()
    known = np.where(np.isfinite(flat), flat, np.nan)
    empty = np.isnan(known).all(0)
    known[:, empty] = 0.0
    names = [*(vae.column_names or data.column_names or ())]
    names = names if len(names) == flat.shape[1] else [f"x{i + 1}" for i in range(flat.shape[1])]
    order = (
        np.argsort(-np.nanstd(known, 0), kind="stable")[:_COLUMNS] if flat.shape[1] > _COLUMNS else range(len(names))
    )
    return {
        "kind": "columns",
        "names": names,
        "shown": [int(i) for i in order],
        "low": np.nanmin(known, 0).tolist(),
        "high": np.nanmax(known, 0).tolist(),
        "words": [[str(w) for w in subject.categories.get(name, ())] or None for name in names],
    }


def mosaic(images: Tensor, form: Mapping[str, Any], across: int) -> bytes:
    """Return images (n, *shape) side by side as a PNG, a transparent line between them."""
    channels, height, width = form["shape"]
    tiles = images.detach().cpu().double().nan_to_num(form["low"]).reshape(len(images), channels, height, width)
    tiles = ((tiles - form["low"]) / (form["high"] - form["low"])).clamp(0, 1) * 255
    down = math.ceil(len(images) / across)
    gap = max(1, height // 14)
    canvas = np.zeros((down * (height + gap) - gap, across * (width + gap) - gap, 4), np.uint8)
    for i, tile in enumerate(tiles.round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()):
        top, left = i // across * (height + gap), i % across * (width + gap)
        canvas[top : top + height, left : left + width, :3] = tile
        canvas[top : top + height, left : left + width, 3] = 255
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG", optimize=True)
    return file.getvalue()


def reconstructions(subject: Subject, form: Mapping[str, Any]) -> Safe:
    """Return the first data beside their reconstructions."""
    vae, data = subject.vae, subject.data
    assert vae is not None
    assert data is not None
    image = form["kind"] == "image"
    x, y = columns_of(vae, data, _PAIRS if image else _ROWS)
    made = vae.reconstruct(x, y)
    if not made.isfinite().all():
        return tag("p", "A reconstruction is not finite: nothing is shown.", class_="absent")
    said = f"The first {len(x)} data of {subject.data_name}, each above its reconstruction: the mean of p(x|z) at the "
    said += "centre of q(z|x), no draw."
    if image:
        size, across = len(x), min(_ACROSS, len(x))
        order = [part for start in range(0, size, across) for rows in (x, made) for part in _row(rows, start, across)]
        return tag("figure", picture(mosaic(torch.stack(order), form, across), said), tag("figcaption", said))
    rows = [row for i in range(len(x)) for row in ((f"datum {i + 1}", x[i]), ("reconstruction", made[i]))]
    return _rows(rows, form, said)


def _row(rows: Tensor, start: int, across: int) -> list[Tensor]:
    """Return the images of one row of a mosaic, filled up with nothing."""
    part = list(rows[start : start + across])
    return part + [torch.full_like(rows[0], math.nan)] * (across - len(part))


def samples(subject: Subject, form: Mapping[str, Any], seed: int) -> Safe:
    """Return means of p(x|z) and draws from it, at the same draws of the prior."""
    vae, data = subject.vae, subject.data
    assert vae is not None
    assert data is not None
    image = form["kind"] == "image"
    n = _DRAWN if image else _ROWS
    _, y = columns_of(vae, data, 1000)
    values, names = conditions_of(vae, data, y)
    under = None if values is None else values[torch.arange(n) * len(values) // n]
    with torch.no_grad(), seeded(seed), evaluation_mode(vae):
        p_z = vae.p_z(*([] if under is None else [under]))
        z = p_z.sample(() if p_z.batch_shape else (n,))
        drawn = vae.p_x(z, *([] if under is None else [under])).sample()
    parts = []
    given = "" if names is None else f" The conditions come in turn: {', '.join(names)}."
    for x, said in (
        (vae.decode(z, under), "Means of p(x|z) at draws of the prior p(z): smoother than data, and no draws."),
        (drawn, "Draws from p(x|z) at the same z: data as the model has them."),
    ):
        if not x.isfinite().all():
            parts.append(tag("p", f"{said} Some are not finite: they are not shown.", class_="absent"))
        elif image:
            parts.append(tag("figure", picture(mosaic(x, form, _ACROSS), said), tag("figcaption", said + given)))
        else:
            parts.append(_rows([(f"{i + 1}", row) for i, row in enumerate(x)], form, said + given))
    return tag("div", *parts, class_="pair" if image else None)


def _rows(rows: Sequence[tuple[str, Tensor]], form: Mapping[str, Any], caption: str) -> Safe:
    kept = form["shown"][:12]
    left = len(form["names"]) - len(kept)
    caption += f" {left} of {len(form['names'])} columns are left out." if left else ""
    lines = [[name, *(cell(float(x.flatten()[j]), form["words"][j]) for j in kept)] for name, x in rows]
    return table(["", *(form["names"][j] for j in kept)], lines, caption)


def cell(value: float, words: Sequence[str] | None) -> str:
    """Return a value of a table as text: the word of a category where it is one."""
    if words and value == round(value) and 0 <= value < len(words):
        return words[int(value)]
    return number(value)


def printed_grid(vae: VAE, form: Mapping[str, Any], found: Mapping[str, Any]) -> Safe | None:
    """Return the plane decoded on a grid, for paper and for readers without scripts; None where it needs a choice."""
    if form["kind"] != "image" or found["dim"] != 2 or vae.y_shape is not None or is_discrete(vae.p_z()):
        return None
    low, high = found["low"], found["high"]
    line = low + (torch.arange(_SIDE) + 0.5) * (high - low) / _SIDE
    across, up = torch.meshgrid(line, line.flip(0), indexing="xy")
    x = vae.decode(torch.stack([across, up], -1).reshape(-1, 2))
    said = (
        f"Means of p(x|z) over the plane: z1 from {low:.3g} to {high:.3g} across, z2 from {low:.3g} to {high:.3g} up."
    )
    return tag("figure", picture(mosaic(x, form, _SIDE), said), tag("figcaption", said), class_="still")


def absent(sentences: Sequence[str]) -> Safe | None:
    """Return sentences on what there is not."""
    return joined(*(tag("p", text, class_="absent") for text in sentences)) if sentences else None
