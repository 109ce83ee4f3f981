"""``ppl-vae check``: checks that pieces, or a whole program, are what they claim to be, on a batch of real data.

options:
  --only PIECE  prior, likelihood or posterior: ask about this piece alone
  --seed SEED   of all draws (default: 0)

All options of ppl-vae train say what is checked: --data, --prior, --likelihood, --posterior, --objective and their
arguments (ppl-vae train --help); for a RUN, only --data with its arguments, and --device. The exit code is 0 if
nothing is wrong, 1 if something is, and 2 if there is nothing to check.

ppl-vae check                                       the quick default on handwritten digits
ppl-vae check --prior mymodule.MyPrior              a piece of yours; arguments as for ppl-vae train
ppl-vae check --config mine.yaml --only likelihood  one piece alone
ppl-vae check runs/digits                           a trained run, on its test data
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ppl_vae._validation import check_seed
from ppl_vae.checking import check
from ppl_vae.cli import words
from ppl_vae.cli.errors import bad_input
from ppl_vae.cli.opening import DataOptions, OpenRun
from ppl_vae.cli.telling import tell_taken
from ppl_vae.configuration import config

_BATCH = 64

USAGE = "ppl-vae check [RUN] [--config PRESET|FILE] [--only PIECE] [--OPTION VALUE ...]"


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    with bad_input():
        given = words.split(argv)
        word, options = given.only("check"), given.options
        only = options.pop("only", None)
        report = check(only=only, **(_of_config(options) if word is None else _of_run(word, options)))
    print(report)
    return 0 if report else 1


def _of_config(options: dict[str, str]) -> dict[str, Any]:
    if meaningless := [name for name in ("out", "resume", "checkpoint_every", "print_config") if name in options]:
        raise ValueError(f"--{meaningless[0]} is an option of ppl-vae train; check writes nothing")
    settings = config.parse(words.joined(options))
    tell_taken(settings.taken)
    dataset = settings.build_dataset()
    objective = settings.build_fit_arguments()["objective"]
    torch.manual_seed(check_seed(settings.values["seed"]))
    pieces = {name: settings.build(name) for name in config.PIECES}  # not put together: what VAE refuses is a finding
    return {"data": dataset, **pieces, "objective": objective, "seed": settings.values["seed"]}


def _of_run(word: str, options: dict[str, str]) -> dict[str, Any]:
    seed = check_seed(words.number(options.pop("seed", "0")), "--seed")
    device = options.pop("device", "auto")
    if other := [name for name in options if name.partition(".")[0] != "data"]:
        raise ValueError(
            f"--{other[0]} cannot be given for a run, whose pieces are trained; expected --data, --device, --only or "
            "--seed"
        )
    opened = OpenRun.at(word, device)
    rows = DataOptions(options).open(opened, None)
    batch = dict(zip(("data", "y"), rows.head(_BATCH), strict=False))  # y for a conditional model
    objective = opened.config.build_fit_arguments()["objective"]
    return {"program": opened.vae, **batch, "objective": objective, "seed": seed}


def explain() -> str:
    """Return the help."""
    description = (inspect.getdoc(check) or "").partition("\nArgs:")[0].replace("``", "").strip()
    options = (__doc__ or "").partition("\n\n")[2]
    return f"usage: {USAGE}\n\n{description}\n\n{options}"
