"""``ppl-vae report``: runs, evaluations and comparisons as one HTML file, with a live latent space.

ppl-vae report runs/digits                        runs/digits/report.html
ppl-vae report runs/digits runs/wide --out a.html two runs side by side
ppl-vae report runs/mnist --data.root ../data     where the data lie elsewhere
ppl-vae report runs/compare-digits                a comparison or a race alone
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ppl_vae import _files
from ppl_vae import _records as records
from ppl_vae import report as reports
from ppl_vae.cli import writing
from ppl_vae.cli.opening import DataOptions, OpenRun, SplitName
from ppl_vae.cli.telling import teller

_ABOUT = ("data", *records.ROLES, "epochs", "epochs_planned", "best_epoch", "state", "figures", "seconds", "seed")
_SHOWN = {  # pictures of each kind of file, in the order of the page
    "evaluation": ("gaps", "true_posteriors", "evidence"),
    "comparison": ("values", "bias_variance", "signal_to_noise", "cost"),
    "race": ("race",),
}


def report(
    runs: list[Path],
    data_options: DataOptions,
    device: str,
    *,
    split: Literal["train", "validation", "test"] | None = None,
    size: int = 2000,
    posteriors: int = 50,
    seed: int = 0,
    out: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write one HTML file on a run, or on several side by side, that opens without a server or a network.

    It shows the run in words, its configuration and curves, reconstructions and samples, the evaluation and the
    comparisons that its folder holds (ppl-vae evaluate and ppl-vae compare make them), and a live latent space: the
    decoder runs in the browser as the pointer moves, where it is a multi-layer perceptron; means of other decoders are
    interpolated between those of a grid. What there is not, a sentence says.

    Args:
        runs: The runs, and folders of comparisons.
        data_options: The data.
        device: Where the model computes.
        split: train, validation or test; by default test (or another split if test has no rows).
        size: How many data, from the first, are points of the latent space.
        posteriors: How many of the first data get their true posterior, where the latent has one or two dimensions; 0
            for none.
        seed: The seed of all draws.
        out: The file, .html; by default report.html in the first run's folder, or the first of report-2, ... that is
            free. A file is never replaced unasked.
        overwrite: true to replace a file that is there.
    """
    first = runs[0].parent if runs[0].is_file() else runs[0]
    place = writing.place_in(first, out, overwrite, (".html",), "report")
    given = sys.argv[1:] if sys.argv[1:2] == ["report"] else ["report", *map(str, runs)]
    tell = teller()
    subjects = [_subject(path, data_options, device, split) for path in runs]
    tell("")
    path = reports.write(
        place.path,
        subjects,
        command=shlex.join(["ppl-vae", *given]),
        size=size,
        posteriors=posteriors,
        seed=seed,
        to=place.write,
        tell=tell,
    )
    return [f"report: {path} ({path.stat().st_size / 1e6:.1f} MB; open it in a browser)"]


def _subject(path: Path, options: DataOptions, device: str, split: SplitName | None) -> reports.Subject:
    """Return what a folder holds, and sentences on what it does not."""
    folder = path.parent if path.is_file() else path
    found = reports.Subject(str(path))
    found.comparisons = _comparisons(folder, found.absent)
    if not (folder / "run.json").is_file():
        found.absent.append("This is the folder of a comparison, and of no run: there is no model.")
        return found
    record = records.describe(folder)
    facts = _files.read_json(folder / "run.json")
    found.about = {name: record[name] for name in (*_ABOUT, "device", "fingerprint")}
    found.versions = {**(facts.get("versions") or {}), **(facts.get("machine") or {}), "started": facts.get("started")}
    found.history, damage = records.history(folder)
    found.caveat = record["caveat"]
    found.absent += [f"{damage}."] if damage else []
    config = folder / "config.yaml"
    found.config = _files.read_text(config) if config.is_file() else None
    _read_evaluation(found, folder / "evaluation")
    try:
        opened = OpenRun.at(str(path), device)
        found.vae = opened.vae
    except (OSError, ValueError) as error:
        found.absent.append(f"The model cannot be loaded: {error}.")
        return found
    try:
        rows = options.open(opened, split)
    except (OSError, ValueError) as error:
        found.absent.append(f"The data are not there: {error}. Without them there are no pictures of the model.")
        return found
    found.data, found.data_name = rows.joined, rows.name
    found.absent += [f"{rows.note}: pictures and the latent space may show data of training."] if rows.note else []
    columns = opened.config.values["data"]["columns"] or {}
    found.categories = {name: kind for name, kind in columns.items() if isinstance(kind, list)}
    return found


def _read_evaluation(found: reports.Subject, folder: Path) -> None:
    """Put the files of an evaluation into a subject, as far as they can be read."""
    if not (folder / "evaluation.json").is_file():
        return
    try:
        content = _files.read_json(folder / "evaluation.json")
        if not (isinstance(content.get("num_data"), int) and isinstance(content.get("figures"), dict)):
            raise ValueError("it was written by a version of old; run ppl-vae evaluate again")
        found.evaluation = content
        with np.load(folder / "per_datum.npz") as arrays:
            found.per_datum = {name: arrays[name].tolist() for name in arrays}
    except (OSError, ValueError, KeyError) as error:
        found.absent.append(f"{folder} cannot be read whole: {error}.")
    found.pictures = _pictures(folder, "evaluation")


def _comparisons(folder: Path, absent: list[str]) -> list[dict[str, Any]]:
    """Return the comparisons and races in a folder and in those right below it."""
    found = []
    for place in [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]:
        for kind in ("comparison", "race"):
            if (file := place / f"{kind}.json").is_file():
                try:
                    content = _files.read_json(file)
                except (OSError, ValueError) as error:
                    absent.append(f"{error}.")
                    continue
                found.append({"kind": kind, "name": str(place), "content": content, "pictures": _pictures(place, kind)})
    return found


def _pictures(folder: Path, kind: str) -> dict[str, bytes]:
    files = {name: folder / f"{name}.png" for name in _SHOWN[kind]}
    return {name: path.read_bytes() for name, path in files.items() if path.is_file()}
