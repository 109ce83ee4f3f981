"""``ppl-vae interpolate``: paths between data through the latent space of a run's model.

ppl-vae interpolate runs/digits                            eight pairs of test data, runs/digits/interpolate.png
ppl-vae interpolate runs/digits --from 3 --to 17           from test datum 3 to test datum 17
ppl-vae interpolate runs/digits --z '[[-2, 0], [2, 0]]' --steps 20 --out path.npz
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae import plots
from ppl_vae.cli import writing
from ppl_vae.cli.opening import DataOptions, OpenRun, SplitName
from ppl_vae.cli.rows import Rows
from ppl_vae.evaluation import paths as latent_paths


def interpolate(
    run: OpenRun,
    data_options: DataOptions,
    *,
    from_: int | None = None,
    to: int | None = None,
    z: list[list[float]] | None = None,
    pairs: int = 8,
    steps: int = 10,
    spherical: bool = False,
    label: int | None = None,
    split: SplitName | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Decode the path between pairs of data, from the mean of q(z|x) of one to that of the other; one row per pair.

    The picture shows the data at both ends, beside their reconstructions. Without --from and --to the pairs are spread
    evenly over the data, so they are the same each time.

    Args:
        run: The run.
        data_options: The data.
        from_: Row of the split to start from, counted from 0; together with --to.
        to: Row of the split to go to, counted from 0.
        z: Latents to pass through instead of data: a list of at least two points, '[[-2, 0], [2, 0]]'. The
            picture has one row for each stretch between two points.
        pairs: How many pairs, if neither --from and --to nor --z sets them.
        steps: Points on each path, both ends included.
        spherical: true to take the great circle instead of the straight line; the length of z then changes evenly from
            one end to the other. Latents on the unit sphere need it; between discrete latents there is no path.
        label: For a conditional model, the label to encode and decode under.
        split: train, validation, test, or all in the order of the source; by default all rows of a file or folder
            given with --data, else test (or another split if test has no rows).
        out: The file: .png for a picture; .npz for z of shape (pairs, steps, latent), x of shape (pairs, steps, ...)
            and, between data, rows of shape (pairs, 2). By default interpolate.png in the run's folder (interpolate.npz
            where the data are no images), or the first of interpolate-2, ... that is free. A file is never replaced
            unasked.
        overwrite: true to replace a file that is there.
    """
    if steps < 2:
        raise ValueError(f"--steps is {steps}; expected an integer from 2, since both ends count")
    path = writing.place(run, out, overwrite, (".png", ".npz"), "interpolate")
    vae = run.under(label)
    if z is not None:
        if data_options.given or split is not None or from_ is not None or to is not None:
            raise ValueError("--z was given beside data; expected either latents or --from, --to, --split and --data")
        points = _points(z, vae.latent_shape)
        latent_paths.check_has_ways(vae, spherical)
        way = latent_paths.path(points[:-1], points[1:], steps, spherical=spherical)
        found, ends, index, rows = latent_paths.Interpolation(way, vae.decode(way)), None, None, None
    else:
        rows = data_options.open(run, split)
        index = _pairs(rows, from_, to, pairs)
        ends = rows.at([pair[0] for pair in index])[0], rows.at([pair[1] for pair in index])[0]
        found = latent_paths.interpolate(vae, *ends, steps, spherical=spherical)
    if path.suffix == ".npz":
        numbers = None if index is None else torch.tensor(index)
        return [writing.save_blocks(path, [{"x": found.x, "z": found.z, "rows": numbers}])]
    return [writing.save_picture(path, plots.interpolations(found.x, *(ends or ()), caveat=run.foot(rows)))]


def _points(z: list[list[float]], latent_shape: tuple[int, ...]) -> Tensor:
    (d,) = latent_shape
    if len(z) < 2 or any(len(point) != d for point in z):
        raise ValueError(f"--z is {z}; expected at least two latents of {d} numbers each, [[...], [...]]")
    points = torch.tensor(z, dtype=torch.get_default_dtype())
    if not points.isfinite().all():
        raise ValueError(f"--z is {z}; expected finite numbers")
    return points


def _pairs(rows: Rows, start: int | None, end: int | None, count: int) -> list[tuple[int, int]]:
    """Return pairs of rows to go from and to."""
    if (start is None) != (end is None):
        raise ValueError("only one of --from and --to was given; expected both, or neither for pairs all over the data")
    if start is not None and end is not None:
        return [(start, end)]
    count = min(count, len(rows) // 2)
    if count < 1:
        raise ValueError(f"{rows.name} has {len(rows)} rows; expected at least two to go between")
    spread = [i * len(rows) // (2 * count) for i in range(2 * count)]  # far apart, where a file is sorted by class
    return list(zip(spread[:count], spread[count:], strict=True))
