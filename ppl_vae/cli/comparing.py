"""``ppl-vae compare`` at fixed parameters: the model, its data, and the estimators on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ppl_vae import comparison, plots, runs
from ppl_vae._validation import check_positive_int, check_seed
from ppl_vae.cli import estimators
from ppl_vae.cli.folders import folder_for
from ppl_vae.cli.opening import DataOptions, OpenRun, SplitName, choose_split
from ppl_vae.cli.rows import Rows
from ppl_vae.cli.telling import teller
from ppl_vae.configuration import config
from ppl_vae.vae import VAE


class Field(NamedTuple):
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


def fixed(
    field: Field,
    *,
    objectives: str | None = None,
    particles: int | list[int] | None = None,
    replicates: int = 1000,
    size: int = 8,
    split: Literal["train", "validation", "test"] | None = None,
    reference: str = "own",
    minibatch: bool = True,
    seed: int = 0,
    out: str | None = None,
    jobs: int | None = None,
) -> list[str]:
    """Compare estimators at fixed parameters.

    Args:
        field: The model and its data.
        objectives: The estimators to compare: a list of names, with arguments in brackets, and of import paths to your
            own classes or functions of log-weights, '[ELBO, "MIWAE(groups=4)", mymodule.my_bound]'. By default ELBO,
            MeanFieldELBO (where KL has a closed form), STL, IWAE, DReG, MIWAE, PIWAE and CIWAE; for discrete latents
            REINFORCE with its baselines, VIMCO, RWS, ReinMaxELBO, GumbelSoftmaxELBO, DisARM for bits, and
            EnumeratedELBO where there are few states.
        particles: K, one number or a list; by default [1, 8, 64].
        replicates: How many gradients each figure is computed from.
        size: How many data the batch has: the first ones of the split.
        split: train, validation or test; by default test (or another one if test has no rows).
        reference: The expected gradient that each estimator is compared with: own for the gradient that the estimator
            claims to have (that of IWAE for DReG), one objective for all estimators, or none.
        minibatch: Whether to report the noise of the choice of data as well.
        seed: The seed of all noise, and of the parameters of a model at initialisation.
        out: The folder to write to; by default comparison in the run's folder, else runs/compare-NAME, or the first of
            compare-NAME-2, ... that is free.
        jobs: Take the replicates in so many processes of one thread each, -1 for one on each core; by default in this
            process. Figures depend on the number of threads in their last digits, and not on this.
    """
    check_seed(seed, "--seed")
    folder = folder_for(out, field.folder)
    asked = None if objectives is None else estimators.read_objectives(objectives)
    several = [1, 8, 64] if particles is None else particles
    if asked is not None:
        torch.manual_seed(seed)
        comparison.contenders(asked, several)  # refuses a wrong name before anything is loaded
    rows = field.rows(split)
    tell = teller()
    found = comparison.compare(
        field.vae,
        rows.head(check_positive_int(size, "--size")),
        objectives=asked or estimators.defaults_for(field.vae, rows.head(2)),
        particles=several,
        replicates=replicates,
        reference=_reference(reference),
        seed=seed,
        minibatch=minibatch,
        progress=tell,
        jobs=jobs,
    )
    return estimators.write(
        found,
        folder,
        "comparison",
        title=f"{field.name}: the first {found.data_shape[0]} of {rows.name}",
        facts={"model": field.name, "data": rows.name},
        caveat=field.caveat,
        pictures={
            "bias_variance": plots.bias_variance,
            "signal_to_noise": plots.signal_to_noise,
            "cost": plots.cost_of_precision,
            "values": plots.estimator_values,
        },
        tell=tell,
    )


def _reference(word: str) -> Any:
    if word in ("own", "none", "null"):
        return "own" if word == "own" else None
    found = estimators.read_objectives(word)
    if len(found) > 1:
        raise ValueError(f"--reference is {word!r}; expected own, none or one objective")
    return found[0]


def of_run(word: str, options: dict[str, str]) -> Field:
    """Return the field of a trained run.

    Args:
        word: The path or name of the run.
        options: ``--device``, and ``--data`` with its arguments; without them the run's own data.
    """
    opened = OpenRun.at(word, options.pop("device", "auto"))
    data = DataOptions(options)
    name = f"{opened.folder}, its {opened.checkpoint_name or 'checkpoint'}"
    return Field(name, opened.vae, lambda split: data.open(opened, split), opened.folder / "comparison", opened.caveat)


def of_config(settings: config.Config) -> Field:
    """Return the field of a model at initialisation, built as ``ppl-vae train`` builds it."""
    dataset = settings.build_dataset()
    vae = settings.build_vae(dataset)
    caveat = vae.check_support(dataset)
    vae.to(settings.values["device"])
    name = f"{settings.name}, a model at initialisation (seed {settings.values['seed']})"
    folder = runs.next_free(Path("runs") / f"compare-{settings.name}")
    return Field(name, vae, lambda split: Rows.of(dataset, choose_split(dataset, split)), folder, caveat)
