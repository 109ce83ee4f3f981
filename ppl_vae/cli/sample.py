"""``ppl-vae sample``: data drawn from a run's model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ppl_vae import plots
from ppl_vae._machine import check_fits
from ppl_vae._scopes import untouched_random_state
from ppl_vae._validation import check_positive_int, check_seed
from ppl_vae.cli import writing
from ppl_vae.cli.opening import BATCH, OpenRun
from ppl_vae.cli.options import execute
from ppl_vae.plots.figure import join
from ppl_vae.runs import labels_in_turn

EXAMPLE = """\
ppl-vae sample runs/digits                                 a picture of 100, runs/digits/sample.png
ppl-vae sample runs/digits --mean false --seed 1           other latents, and noise of p(x|z) on top
ppl-vae sample runs/conditional --label 7                  of a conditional model, data of one label
ppl-vae sample runs/digits --size 10000 --out draws.npz    x and z, for numpy.load
"""


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    return execute(sample, argv)


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
    """Draw data from a run's model: z from the prior, x from p(x|z). The same seed gives the same data.

    The means of p(x|z), the default, look smoother than data; draws (--mean false) are data as the model has them.

    Args:
        run: The run.
        size: How many data to draw.
        mean: true for the means of p(x|z), false for draws from it.
        label: For a conditional model, the label to draw under; by default all labels in turn, ten of each.
        seed: The seed of the draws, an integer from 0.
        out: The file: .png for a picture, .npz for x and z. By default sample.png in the run's folder (sample.npz
            where the data are no images), or the first of sample-2, ... that is free. A file is never replaced unasked.
        overwrite: true to replace a file that is there.
    """
    check_positive_int(size, "--size")
    check_fits(size * math.prod(run.x_shape), f"{size} data", "--size")
    check_seed(seed, "--seed")
    path = writing.place(run, out, overwrite, (".png", ".npz"), "sample")
    vae, y = run.vae, None
    if vae.y_shape is not None and label is None:
        y = labels_in_turn(size, vae.y_shape[0])
    else:
        vae = run.under(label)
    with torch.no_grad(), untouched_random_state():
        torch.manual_seed(seed)
        p_z = vae.p_z(y)
        z = p_z.sample(() if p_z.batch_shape else (size,))
        columns = (z,) if y is None else (z, y)
        likelihoods = (vae.p_x(*part) for part in zip(*(c.split(BATCH) for c in columns), strict=True))
        x = torch.cat([p.mean if mean else p.sample() for p in likelihoods])
    if path.suffix.lower() == ".npz":
        return [writing.save_arrays(path, {"x": x, "z": z, "labels": y})]
    note = "Means of p(x|z), not draws." if mean else None
    return [writing.save_picture(path, plots.samples(x, caveat=join(run.caveat, note)))]
