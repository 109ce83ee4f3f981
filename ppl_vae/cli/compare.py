"""``ppl-vae compare``: estimators side by side, at fixed parameters or while training.

Compare estimators of the bound and of its gradient: one model under ELBO, STL, IWAE, DReG, ..., on the same data and
the same noise.

With a RUN, at the parameters that training has left there; without one, at those of a model at initialisation, put
together from --config, --data, --prior, --likelihood and --posterior with their arguments, as for ppl-vae train. With
--train true, models are trained from the same start under each estimator, and raced.
"""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ppl_vae import comparison, plots, runs
from ppl_vae._validation import check_positive_int, check_seed, did_you_mean
from ppl_vae.cli import estimators, words
from ppl_vae.cli import help as explained
from ppl_vae.cli.errors import bad_input
from ppl_vae.cli.folders import folder_for
from ppl_vae.cli.help import Formatter, make_parser
from ppl_vae.cli.opening import DataOptions, OpenRun, Rows, SplitName
from ppl_vae.cli.racing import TRAINING, race
from ppl_vae.cli.telling import teller
from ppl_vae.configuration import config
from ppl_vae.configuration.pieces import KINDS, Arguments, arguments_of
from ppl_vae.data import Dataset
from ppl_vae.training import fit
from ppl_vae.vae import VAE

USAGE = "ppl-vae compare [RUN] [--config PRESET|FILE] [--train true] [--OPTION VALUE ...]"
EXAMPLE = """\
ppl-vae compare runs/digits                                  the usual estimators at K = 1, 8, 64
ppl-vae compare runs/digits --objectives '[IWAE, DReG, "MIWAE(groups=4)", mymodule.my_bound]' --particles '[8, 512]'
ppl-vae compare --config article --data.root ../data         a model at initialisation
ppl-vae compare --train true --objectives '[ELBO, IWAE]' --particles 8 --seeds 3 --epochs 20 --target -25
"""
FURTHER = """\
All options of ppl-vae train that make a model say what is compared: --config, --data, --prior, --likelihood,
--posterior, --device and their arguments (ppl-vae train --help); for a RUN, only --data with its arguments, and
--device. With --train true also --optimizer, --scheduler, --epochs, --batch_size and --clip_norm.

Written are a table (.csv), everything (.json), what is printed (summary.txt) and pictures.
"""
PIECES = ("config", "data", *config.PIECES, "device")  # options of a model at initialisation

_SKIP = frozenset({"field", "settings"})


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


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    with bad_input():
        if explained.wanted(argv):
            print(_help() if words.wants_help(argv) else explained.text(argv), end="")
            return 0
        lines = _compare(argv)
    print("\n".join(lines))
    return 0


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
) -> list[str]:
    """Compare estimators at fixed parameters.

    Args:
        field: The model and its data.
        objectives: The estimators to compare: a list of names, with arguments in brackets, and of import paths to your
            own classes or functions of log-weights, '[ELBO, "MIWAE(groups=4)", mymodule.my_bound]'. By default ELBO,
            MeanFieldELBO (where KL has a closed form), STL, IWAE, DReG, MIWAE, PIWAE and CIWAE; for discrete latents
            REINFORCE with its baselines, VIMCO, RWS, GumbelSoftmaxELBO, and EnumeratedELBO where there are few states.
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


def _compare(argv: Sequence[str]) -> list[str]:
    given = words.split(argv)
    word, options = given.only("compare"), given.options
    train = options.pop("train", "false").lower()
    if train not in ("true", "false"):
        raise ValueError(f"--train is {train!r}; expected true or false")
    command, other = (race, fixed) if train == "true" else (fixed, race)
    schema = arguments_of(command, "", _SKIP)
    _check_names(options, schema, arguments_of(other, "", _SKIP).names, command is race, word is not None)
    if word is not None and command is race:
        raise ValueError(
            f"--train true starts from initial parameters, and {word} is trained; give --config "
            f"{words.find_run(word)}/config.yaml"
        )
    mine = {name: options.pop(name) for name in list(options) if name in schema.names}
    arguments = schema.objects(mine)
    if word is not None:
        return fixed(_of_run(word, options), **arguments)
    if command is fixed and "seed" in mine:
        options["seed"] = mine["seed"]
    settings = config.parse([f"--{name}={value}" for name, value in options.items()])
    return race(settings, **arguments) if command is race else fixed(_of_config(settings), **arguments)


def _of_run(word: str, options: dict[str, str]) -> Field:
    """Return the field of a trained run.

    Args:
        word: The path or name of the run.
        options: ``--device``, and ``--data`` with its arguments; without them the run's own data.
    """
    opened = OpenRun.at(word, options.pop("device", "auto"))
    data = DataOptions(options)
    name = f"{opened.folder}, its {'checkpoint' if opened.checkpoint == opened.folder else opened.checkpoint.name}"
    return Field(name, opened.vae, lambda split: data.open(opened, split), opened.folder / "comparison", opened.caveat)


def _of_config(settings: config.Config) -> Field:
    """Return the field of a model at initialisation, built as ``ppl-vae train`` builds it."""
    dataset = settings.build_dataset()
    vae = settings.build_vae(dataset)
    caveat = vae.check_support(dataset)
    vae.to(settings.values["device"])
    name = f"{settings.name}, a model at initialisation (seed {settings.values['seed']})"
    folder = runs.next_free(Path("runs") / f"compare-{settings.name}")
    return Field(name, vae, lambda split: _rows_of(dataset, split), folder, caveat)


def _rows_of(dataset: Dataset, split: SplitName | None) -> Rows:
    """Return the rows of a split, by default test (or another split if test has no rows).

    Raises:
        ValueError: If the split has no rows.
    """
    there = [name for name in ("test", "validation", "train") if len(getattr(dataset, name))]
    name = there[0] if split is None else split
    if name not in there:
        raise ValueError(f"--split is {split}, of which {dataset.name} has no rows; expected {', '.join(there)}")
    return Rows(f"{dataset.name}, {name}", (getattr(dataset, name).still(),))


def _check_names(
    options: Collection[str], schema: Arguments, other: Collection[str], train: bool, of_a_run: bool
) -> None:
    """Refuse options that mean nothing here, and say where they mean something."""
    pieces = ("data", "device") if of_a_run else (*PIECES, *TRAINING) if train else PIECES
    for name in options:
        root = name.partition(".")[0]
        if name in schema.names or root in pieces:
            continue
        if name == "seed" or root == "objective":
            meant = "--seeds, how many or which" if name == "seed" else "--objectives, a list"
            raise ValueError(f"--{name} is of one run; expected {meant}")
        if name in other or (root in TRAINING and not train):
            where = "at fixed parameters; leave out --train" if train else "of training; add --train true"
            raise ValueError(f"--{name} is an option {where}")
        if of_a_run and root in PIECES:
            raise ValueError(f"--{name} cannot be given for a run, whose model is trained; leave out the run, or this")
        if root in {*KINDS, *arguments_of(fit, "", config.FIT_OBJECTS).names, *config.NOT_RECORDED}:
            raise ValueError(f"--{name} is an option of ppl-vae train that means nothing here; leave it out")
        known = [*schema.names, *pieces, "train"]
        names = ", ".join(f"--{n}" for n in known)
        raise ValueError(f"--{name} is unknown; options are {names}{did_you_mean(name, known)}")


def _help() -> str:
    parser = make_parser(USAGE, (__doc__ or "").partition("\n\n")[2], EXAMPLE, _Help)
    for prefix, title, command in (("", "at fixed parameters", fixed), ("race", "with --train true", race)):
        arguments_of(command, "", _SKIP).add_to(parser.add_argument_group(title), prefix or None)
    own, *rest = parser.format_help().partition(EXAMPLE)
    return "".join([own.replace("--race.", "--"), FURTHER, "\n", *rest])


class _Help(Formatter):
    """A formatter that writes types and defaults as a command line does."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        text = re.sub(r"(?:Optional|Union)\[((?:[^][]|\[[^][]*\])*)\]", lambda m: m[1].replace(", ", " | "), text)
        text = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "").replace(", ", " | "), text)
        text = re.sub(r"(?<=default: )(True|False)", lambda m: m[0].lower(), text)
        return re.sub(r", default: null| \| NoneType| \| null", "", text)
