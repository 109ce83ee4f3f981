"""``ppl-vae encode``: where data lie in the latent space of a run's model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vae._distributions import centre
from ppl_vae.cli import writing
from ppl_vae.cli.opening import DataOptions, OpenRun, Rows, SplitName
from ppl_vae.cli.options import execute
from ppl_vae.vae import VAE

EXAMPLE = """\
ppl-vae encode runs/digits                                 the test data, runs/digits/encode.npz
ppl-vae encode runs/digits --split all --out all.csv       every row, in the order of the source
ppl-vae encode runs/digits --data mine.npy --out mine.npz  all rows of a file of yours
"""


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    return execute(encode, argv)


def encode(
    run: OpenRun,
    data_options: DataOptions,
    *,
    split: SplitName | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the mean and standard deviation of q(z|x) and the label of each datum, one row per datum.

    Standard deviations are left out if q(z|x) does not have them (a flow), and labels if the data have none.

    Args:
        run: The run.
        data_options: The data.
        split: train, validation, test, or all in the order of the source; by default all rows of a file or folder
            given with --data, else test (or another split if test has no rows).
        out: The file: .npz for the arrays mean and std of shape (n, latent) and labels of shape (n,), .csv for the
            columns mean_1, ..., std_1, ..., label. By default encode.npz in the run's folder, or the first of
            encode-2.npz, ... that is free. A file is never replaced unasked.
        overwrite: true to replace a file that is there.
    """
    path = writing.place(run, out, overwrite, (".npz", ".csv"), "encode")
    rows = data_options.open(run, split)
    mean, std = _moments(run.vae, rows)
    if path.suffix.lower() == ".npz":
        return [writing.save_arrays(path, {"mean": mean, "std": std, "labels": rows.labels})]
    moments = (("mean", mean), ("std", std))
    columns = {f"{name}_{i}": c for name, m in moments if m is not None for i, c in enumerate(m.T, 1)}
    return [writing.save_table(path, columns | ({} if rows.labels is None else {"label": rows.labels}))]


@torch.no_grad()
def _moments(vae: VAE, rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Return the means and standard deviations of q(z|x), (n, latent); the latter is None if q does not have them."""
    means, stds = [], []
    for batch in rows.batches():
        q = vae.q_z(*batch)
        means.append(centre(q))
        try:
            stds.append(q.stddev)
        except (NotImplementedError, AttributeError):
            continue
    return torch.cat(means), torch.cat(stds) if len(stds) == len(means) else None
