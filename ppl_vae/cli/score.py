"""``ppl-vae score``: log p(x) of each datum under a run's model, and which data are unusual.

ppl-vae score runs/digits                             log p(x) of the test data, runs/digits/score.csv
ppl-vae score runs/digits --out unusual.png           a picture of the most unusual, the least probable first
ppl-vae score runs/digits --data mine.npy --out s.npz data of yours, for numpy.load; or .parquet
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ppl_vae import plots
from ppl_vae._team import Team
from ppl_vae.cli import writing
from ppl_vae.cli.opening import DataOptions, OpenRun, SplitName
from ppl_vae.cli.options import several
from ppl_vae.cli.telling import teller
from ppl_vae.evidence.log_evidence import Method, log_evidence
from ppl_vae.programs import SemiSupervisedVAE

_SHOWN = 100  # images in a picture
_NAMED = 5  # rows in the printed line


def score(
    run: OpenRun,
    data_options: DataOptions,
    *,
    evidence: Method = "auto",
    particles: int | list[int] | None = None,
    split: SplitName | None = None,
    size: int | None = None,
    seed: int = 0,
    out: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write log p(x) of each datum in nats, its error, and its rank: 1 is the least probable, the most unusual.

    A conditional model scores log p(x|y), a semi-supervised one log p(x, y), or log p(x) of a row without label. Where
    log p(x) is not exact it is a stochastic lower bound, whose error is infinite where it is unreliable. Training data
    score better than new data. A rank compares rows in which as many values are there. An unusual datum need not have a
    low score: a plain image can be more probable than any digit.

    Args:
        run: The run.
        data_options: The data.
        evidence: How to find log p(x): auto is the best method that applies, posterior is importance sampling from
            q(z|x).
        particles: K of importance sampling, one number, or a list of which the largest counts; by default
            [100, 1000, 5000], as in evaluate.
        split: train, validation, test, or all in the order of the source; by default all rows of a file or folder
            given with --data, else test (or another split if test has no rows).
        size: Score only the first so many data; all by default.
        seed: The seed of all draws.
        out: The file: .csv or .parquet for the columns log_p, error, rank, row (its number in the source) and split,
            and id, label and label_name where the data have them; .npz for the same arrays; .png for a picture of the
            most unusual images. By default score.csv in the run's folder, or the first of score-2.csv, ... that is
            free. A file is never replaced unasked.
        overwrite: true to replace a file that is there.
    """
    chosen = several(particles)
    path = writing.place(run, out, overwrite, (".csv", ".npz", ".parquet", ".png"), "score")
    rows = data_options.open(run, split)
    blocks = list(rows.blocks(size))
    x, *y = (torch.cat(column) for column in zip(*(batch for batch, _ in blocks), strict=True))
    tell = teller()
    tell(f"log p(x) of {len(x)} data")
    team = Team.present()
    found = log_evidence(run.vae, x, *y, method=evidence, num_particles=chosen, seed=seed, team=team)
    tell("")
    if not team.is_first:
        return []
    log_p = found.log_evidence.cpu()
    if log_p.isnan().any():
        raise ValueError(
            f"log p(x) is not a number for {int(log_p.isnan().sum())} of {len(x)} data; has the run diverged?"
        )
    order = log_p.argsort(stable=True)
    rank = order.argsort() + 1
    told = {name: _joined([about[name] for _, about in blocks]) for name in blocks[0][1]}
    kind = {"exact": "exact", "lower": "a stochastic lower bound", "upper": "a stochastic upper bound"}[found.kind]
    what, unlabelled = "log p(x|y)" if y else "log p(x)", 0
    if y and isinstance(vae := run.vae, SemiSupervisedVAE):
        what, unlabelled = "log p(x, y)", int((~vae.one_hot(y[0]).any(-1)).sum())
    name = "rows" if told["ids"] is None else "ids"
    lines = [
        f"{len(x)} data of {rows.name}: {what} by {found.method} ({kind}), mean {found.mean:.3f} nats, "
        f"from {log_p.min():.3f} to {log_p.max():.3f}, largest error {found.error.max():.2g}",
        f"the most unusual: {name} {', '.join(str(told[name][i].item()) for i in order[:_NAMED])}",
    ]
    if run.caveat:
        lines.append(f"caveat: {run.caveat}")
    if unlabelled:
        lines.append(
            f"note: {unlabelled} of {len(x)} rows have no label: theirs is log p(x), so that ranks compare unlike rows"
        )
    if "train" in told["splits"]:
        lines.append("note: the model was fitted to the training rows, which score better than new data would")
    if x.flatten(1).isnan().any():
        lines.append("note: a row with missing values is scored on the others, so that ranks compare unlike rows")
    if path.suffix == ".png":
        note = f"The {min(_SHOWN, len(x))} least probable of {len(x)} data, the least probable first."
        worst, foot = x[order[:_SHOWN]], run.foot(rows, note)
        picture = plots.image_grid(worst, columns=10, title="The least probable", caveat=foot)
        return [*lines, writing.save_picture(path, picture)]
    return [*lines, writing.save_blocks(path, [{"log_p": log_p, "error": found.error, "rank": rank, **told}])]


def _joined(parts: list[Any]) -> Any:
    if parts[0] is None:
        return None
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else np.concatenate(parts)
