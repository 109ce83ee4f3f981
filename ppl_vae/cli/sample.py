"""``ppl-vae sample``: data drawn from a run's model.

ppl-vae sample runs/digits                                 a picture of 100, runs/digits/sample.png
ppl-vae sample runs/digits --mean false --seed 1           other latents, and noise of p(x|z) on top
ppl-vae sample runs/conditional --label 7                  of a conditional model, data of one label
ppl-vae sample runs/digits --size 10000 --out draws.npz    x and z, for numpy.load; or .csv, .parquet
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae import plots
from ppl_vae._machine import check_fits
from ppl_vae._scopes import seeded
from ppl_vae.cli import writing
from ppl_vae.cli.opening import OpenRun
from ppl_vae.cli.rows import BATCH
from ppl_vae.runs import labels_in_turn
from ppl_vae.vae import VAE


def sample(
    run: OpenRun,
    *,
    size: int = 100,
    mean: bool = True,
    label: int | None = None,
    seed: int = 0,
    out: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Draw data from a run's model: z from the prior, x from p(x|z).

    The same seed on the same device gives the same data.

    The means of p(x|z), the default, look smoother than data; draws (--mean false) are data as the model has them.

    Args:
        run: The run.
        size: How many data to draw.
        mean: true for the means of p(x|z), false for draws from it.
        label: For a conditional model, the label to draw under; by default labels in turn, ten of each.
        seed: The seed of the draws, an integer from 0.
        out: The file: .png for a picture; .npz for x, z and, of a conditional model, labels; .csv or .parquet for one
            column a number of them, those of a table under their own names (x_1, ... where one has the name of another
            column, such as z_1), with the words of categories. By default sample.png in the run's folder (sample.npz
            where the data are no images), or the first of sample-2, ... that is free. A file is never replaced unasked.
        overwrite: true to replace a file that is there.
    """
    path = writing.place(run, out, overwrite, (".png", ".npz", ".csv", ".parquet"), "sample")
    picture = path.suffix == ".png"
    check_fits(size * math.prod(run.x_shape if picture else run.vae.latent_shape), f"{size} data", "--size")
    vae, y = run.vae, None
    if vae.y_shape is not None and label is None:
        run.check_labels_suffice()
        y = labels_in_turn(size, vae.y_shape[0]).to(run.device)
    else:
        vae = run.under(label)
    with torch.no_grad(), seeded(seed):
        p_z = vae.p_z(y)
        blocks = _drawn(vae, p_z.sample(() if p_z.batch_shape else (size,)), y, mean)
        if not picture:
            if path.suffix == ".npz":
                return [writing.save_blocks(path, blocks)]
            named = run.config.values["data"]["columns"] or {}
            return [writing.save_columns(path, (_as_table(block, named) for block in blocks))]
        x = torch.cat([block["x"] for block in blocks])
    return [writing.save_picture(path, plots.samples(x, mean=mean, caveat=run.foot()))]


def _drawn(vae: VAE, z: Tensor, y: Tensor | None, mean: bool) -> Iterator[dict[str, Any]]:
    """Yield x at z, block by block."""
    for start in range(0, len(z), BATCH):
        part, labels = z[start : start + BATCH], None if y is None else y[start : start + BATCH]
        p_x = vae.p_x(part, labels)
        yield {"x": p_x.mean if mean else p_x.sample(), "z": part, "labels": labels}


def _as_table(block: dict[str, Any], kinds: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return rows as columns: of a table each of its own, by name, unless another column of the file has that name.

    Args:
        block: The rows.
        kinds: The kind of each column by name, or the values of its categories, of a table that was trained on.
    """
    names = [name for name, kind in kinds.items() if kind != "skip"]
    x, others = block["x"].cpu(), writing.as_columns(block | {"x": None})
    if x.dim() != 2 or len(names) != x.shape[1] or not others.keys().isdisjoint(names):
        return writing.as_columns(block)
    columns: dict[str, Any] = {}
    for name, column in zip(names, x.T, strict=True):
        values = kinds[name]
        coded = isinstance(values, list) and bool((column == column.round()).all())
        columns[name] = np.array([str(value) for value in values])[column.long().numpy()] if coded else column
    return columns | others
