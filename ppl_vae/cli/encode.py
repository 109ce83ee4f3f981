"""``ppl-vae encode``: where data lie in the latent space of a run's model.

ppl-vae encode runs/digits                                 the test data, runs/digits/encode.npz
ppl-vae encode runs/digits --split all --out all.csv       every row, in the order of the source; or all.parquet
ppl-vae encode runs/digits --out plane.png                 of a latent of two dimensions, a picture by label
ppl-vae encode runs/digits --data mine.npy --out mine.npz  all rows of a file of yours
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from ppl_vae import plots
from ppl_vae._distributions import expectation
from ppl_vae._team import Team
from ppl_vae._tensors import moved
from ppl_vae.cli import writing
from ppl_vae.cli.opening import DataOptions, OpenRun, SplitName
from ppl_vae.cli.rows import Rows
from ppl_vae.plots.latent import MOST_CLASSES, names_of
from ppl_vae.vae import VAE


def encode(
    run: OpenRun,
    data_options: DataOptions,
    *,
    split: SplitName | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the mean and standard deviation of q(z|x) of each datum, one row per datum, and whose row it is.

    That is the number of the row in its source, the split it belongs to, and its label if the data have labels. Rows
    are written as they are computed: memory holds a thousand of them, whatever their number. Standard deviations are
    left out if q(z|x) does not have them (a flow).

    Args:
        run: The run.
        data_options: The data.
        split: train, validation, test, or all in the order of the source; by default all rows of a file or folder
            given with --data, else test (or another split if test has no rows).
        out: The file: .npz for the arrays mean and std of shape (n, latent), rows (numbers in the source) and splits of
            shape (n,), and ids, labels and label_names where the data have them; .csv or .parquet for the columns
            mean_1, ..., std_1, ..., id, label, label_name, row, split; .png for a picture of a latent of two
            dimensions. By default encode.npz in the run's folder, or the first of encode-2.npz, ... that is free. A
            file is never replaced unasked.
        overwrite: true to replace a file that is there.
    """
    path = writing.place(run, out, overwrite, (".npz", ".csv", ".parquet", ".png"), "encode", images=False)
    if path.suffix == ".png" and run.vae.latent_shape != (2,):
        raise ValueError(
            f"--out is {out!r}, and {run.folder} has latents of shape {run.vae.latent_shape}; a picture needs two "
            "dimensions; give an --out that ends in .npz, .csv or .parquet"
        )
    rows = data_options.open(run, split)
    blocks = _moments(run.vae, rows, run.device, team := Team.present())
    if not team.is_first:
        collections.deque(blocks, maxlen=0)  # which the first process writes
        return []
    if path.suffix != ".png":
        return [writing.save_blocks(path, blocks)]
    mean, labels = zip(*((block["mean"], block["labels"]) for block in blocks), strict=True)
    told = None if labels[0] is None else torch.cat(labels)
    told = told if told is not None and len(told.unique()) <= MOST_CLASSES else None
    names = None if told is None else names_of(rows.joined)
    figure = plots.latent_scatter(torch.cat(mean), told, class_names=names, caveat=run.foot(rows))
    return [writing.save_picture(path, figure)]


@torch.no_grad()
def _moments(vae: VAE, rows: Rows, device: torch.device, team: Team) -> Iterator[dict[str, Any]]:
    """Yield the means and standard deviations of q(z|x), (rows, latent); the latter are None if q has none."""

    def moments(batch: tuple[torch.Tensor, ...], ids: dict[str, Any]) -> dict[str, Any]:
        q = vae.q_z(*moved(batch, device))
        try:
            std = q.stddev
        except (NotImplementedError, AttributeError):
            std = None
        return {"mean": expectation(q), "std": std, **ids}

    blocks = rows.blocks()
    while some := list(itertools.islice(blocks, team.size)):
        yield from team.share([functools.partial(moments, *block) for block in some], "moments")
