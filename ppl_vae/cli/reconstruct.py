"""``ppl-vae reconstruct``: data beside their reconstructions by a run's model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ppl_vae import plots
from ppl_vae._validation import check_positive_int
from ppl_vae.cli import writing
from ppl_vae.cli.opening import BATCH, DataOptions, OpenRun, SplitName
from ppl_vae.cli.options import execute

EXAMPLE = """\
ppl-vae reconstruct runs/digits                            the first 32 test data, runs/digits/reconstruct.png
ppl-vae reconstruct runs/digits --data mine.npy            all rows of a file of yours
ppl-vae reconstruct runs/digits --size 100000 --out r.npz  all test data: x, reconstruction, z, labels
"""


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    return execute(reconstruct, argv)


def reconstruct(
    run: OpenRun,
    data_options: DataOptions,
    *,
    split: SplitName | None = None,
    size: int = 32,
    out: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Put data beside their reconstructions, the mean of p(x|z) at the mean of q(z|x), without noise.

    The printed reconstruction error is the mean L2 norm of x minus its reconstruction, in units of x, over these data.

    Args:
        run: The run.
        data_options: The data.
        split: train, validation, test, or all in the order of the source; by default all rows of a file or folder
            given with --data, else test (or another split if test has no rows).
        size: How many data from the start of the split; all if there are fewer.
        out: The file: .png for a picture, .npz for x, reconstruction, z (the means of q(z|x)) and labels. By default
            reconstruct.png in the run's folder (reconstruct.npz where the data are no images), or the first of
            reconstruct-2, ... that is free. A file is never replaced unasked.
        overwrite: true to replace a file that is there.
    """
    check_positive_int(size, "--size")
    path = writing.place(run, out, overwrite, (".png", ".npz"), "reconstruct")
    rows = data_options.open(run, split)
    x, *y = rows.head(size)
    z = torch.cat([run.vae.encode(*part) for part in zip(*(c.split(BATCH) for c in (x, *y)), strict=True)])
    decoded = [run.vae.decode(*part) for part in zip(*(c.split(BATCH) for c in (z, *y)), strict=True)]
    reconstruction = torch.cat(decoded)
    error = (x - reconstruction).flatten(1).norm(dim=1).mean()
    lines = [f"reconstruction error: {error:.3f} (mean L2 norm; {len(x)} of {len(rows)} data of {rows.name})"]
    if path.suffix.lower() == ".npz":
        labels = None if rows.labels is None else rows.labels[: len(x)]
        arrays = {"x": x, "reconstruction": reconstruction, "z": z, "labels": labels}
        return [*lines, writing.save_arrays(path, arrays)]
    return [*lines, writing.save_picture(path, plots.reconstructions(x, reconstruction, caveat=run.caveat))]
