"""``ppl-vae reconstruct``: data beside their reconstructions by a run's model.

ppl-vae reconstruct runs/digits                            the first 32 test data, runs/digits/reconstruct.png
ppl-vae reconstruct runs/digits --data mine.npy            all rows of a file of yours
ppl-vae reconstruct runs/digits --size 100000 --out r.npz  all test data: x, reconstruction, z, labels, rows, splits
ppl-vae reconstruct runs/table --split all --size 100000 --draws 99   a table's missing entries filled, with intervals
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ppl_vae import plots
from ppl_vae._machine import check_fits
from ppl_vae.cli import writing
from ppl_vae.cli.opening import DataOptions, OpenRun, SplitName
from ppl_vae.cli.rows import Rows
from ppl_vae.evaluation import impute
from ppl_vae.vae import VAE


def reconstruct(
    run: OpenRun,
    data_options: DataOptions,
    *,
    split: SplitName | None = None,
    size: int = 32,
    draws: int | None = None,
    level: float | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Put data beside their reconstructions, the mean of p(x|z) at the mean of q(z|x), without noise.

    The printed reconstruction error is the mean L2 norm of x minus its reconstruction, in units of x, over these data
    and their observed entries. Files of rows are written as they are computed, so that memory holds a thousand of them,
    whatever their number.

    Args:
        run: The run.
        data_options: The data.
        split: train, validation, test, or all in the order of the source; by default all rows of a file or folder
            given with --data, else test (or another split if test has no rows).
        size: How many data from the start of the split; all if there are fewer.
        draws: Fill the missing entries of a table instead, by so many draws given the observed ones (importance
            sampling; right if entries are missing at random). The file holds filled (means given what is
            observed), low and high (the ends of an interval for each missing entry), by column in .csv and .parquet;
            and in .npz x and the draws. By default imputed.csv in the run's folder.
        level: The probability of that interval; by default 0.9.
        out: The file: .png for a picture; .npz for x, reconstruction, z (the means of q(z|x)), rows and splits (the
            number of each row in its source and the split it belongs to), and ids, labels and label_names where the
            data have them; .csv or .parquet for one column a number of them. By default reconstruct.png in the run's
            folder (reconstruct.npz where the data are no images), or the first of reconstruct-2, ... that is free. A
            file is never replaced unasked.
        overwrite: true to replace a file that is there.
    """
    suffixes = (".png", ".npz", ".csv", ".parquet") if draws is None else (".csv", ".npz", ".parquet")
    if level is not None and draws is None:
        raise ValueError(f"--level is {level}, of the intervals of --draws, which is not given")
    path = writing.place(run, out, overwrite, suffixes, "reconstruct" if draws is None else "imputed")
    rows = data_options.open(run, split)
    count, errors = min(size, len(rows)), [0.0]
    if draws is not None:
        if run.vae.y_shape is not None:
            raise ValueError(f"--draws was given, and {run.folder} is a conditional model; use vae.given(y) and impute")
        filled = _filled(run.vae, rows, count, draws, 0.9 if level is None else level, path.suffix)
        return [writing.save_blocks(path, filled)]

    def blocks() -> Iterator[dict[str, Any]]:
        for (x, *y), ids in rows.blocks(count):
            z = run.vae.encode(x, *y)
            reconstruction = run.vae.decode(z, *y)
            gap = torch.where(x.isnan(), 0.0, x - reconstruction)
            errors.append(gap.flatten(1).norm(dim=1).sum().item())
            yield {"x": x, "reconstruction": reconstruction, "z": z, **ids}

    if path.suffix == ".png":
        check_fits(2 * count * math.prod(run.x_shape), f"a picture of {count} data", "--size")
        x, reconstruction = (
            torch.cat(part) for part in zip(*((b["x"], b["reconstruction"]) for b in blocks()), strict=True)
        )
        written = writing.save_picture(path, plots.reconstructions(x, reconstruction, caveat=run.foot(rows)))
    else:
        written = writing.save_blocks(path, blocks())
    error = sum(errors) / count
    return [f"reconstruction error: {error:.3f} (mean L2 norm; {count} of {len(rows)} data of {rows.name})", written]


def _filled(vae: VAE, rows: Rows, count: int, draws: int, level: float, suffix: str) -> Iterator[dict[str, Any]]:
    """Yield rows with their missing entries filled, each block from a seed of its own."""
    for seed, ((x,), ids) in enumerate(rows.blocks(count)):
        found = impute(vae, x, num_draws=draws, sampler="importance", seed=seed)
        low, high = found.interval(level)
        columns = {"filled": found.mean, "low": low, "high": high}
        if suffix == ".npz":
            columns |= {"x": x, "draws": found.draws.movedim(0, 1)}
        elif (names := vae.column_names) is not None:
            columns = {f"{end}_{name}": v[:, j] for end, v in columns.items() for j, name in enumerate(names)}
        yield {**columns, **ids}
