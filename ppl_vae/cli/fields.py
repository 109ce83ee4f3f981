"""The model and data of ``ppl-vae compare``: those of a run, or a model at initialisation and its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ppl_vae import runs
from ppl_vae._validation import check_positive_int
from ppl_vae.cli.opening import DataOptions, OpenRun, Rows, SplitName
from ppl_vae.configuration.config import Config
from ppl_vae.data import Dataset
from ppl_vae.vae import VAE


@dataclass(frozen=True)
class Field:
    """A model with the data to compare estimators on.

    Attributes:
        name: A description for people.
        vae: The model.
        rows: The data of a split, by default test (or another split if test has no rows).
        folder: The default folder for files.
        caveat: The caveat that all output must state, or None.
    """

    name: str
    vae: VAE
    rows: Callable[[SplitName | None], Rows]
    folder: Path
    caveat: str | None = None

    def batch(self, rows: Rows, size: int) -> tuple[Tensor, ...]:
        """Return the first `size` rows, as arguments of the model."""
        return rows.head(check_positive_int(size, "--size"))


def of_run(word: str, options: dict[str, str]) -> Field:
    """Return the field of a trained run.

    Args:
        word: The path or name of the run.
        options: ``--data`` and its arguments; without them the run's own data.
    """
    opened = OpenRun.at(word)
    data = DataOptions(options)
    name = f"{opened.folder}, its {'checkpoint' if opened.checkpoint == opened.folder else opened.checkpoint.name}"
    return Field(name, opened.vae, lambda split: data.open(opened, split), opened.folder / "comparison", opened.caveat)


def of_config(settings: Config) -> Field:
    """Return the field of a model at initialisation, built as ``ppl-vae train`` builds it."""
    dataset = settings.build_dataset()
    vae = settings.build_vae(dataset)
    caveat = vae.check_support(dataset)
    vae.to(settings.values["device"])
    name = f"{settings.name}, a model at initialisation (seed {settings.values['seed']})"
    folder = runs.next_free(Path("runs") / f"compare-{settings.name}")
    return Field(name, vae, lambda split: rows_of(dataset, split), folder, caveat)


def rows_of(dataset: Dataset, split: SplitName | None) -> Rows:
    """Return the rows of a split, by default test (or another split if test has no rows).

    Raises:
        ValueError: If the split has no rows.
    """
    there = [name for name in ("test", "validation", "train") if len(getattr(dataset, name))]
    name = there[0] if split is None else split
    if name not in there:
        raise ValueError(f"--split is {split}, of which {dataset.name} has no rows; expected {', '.join(there)}")
    return Rows(f"{dataset.name}, {name}", (getattr(dataset, name).still(),))
