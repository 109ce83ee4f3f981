"""``ppl-vae compare``: estimators side by side, at fixed parameters or while training.

Compare estimators of the bound and of its gradient: one model under ELBO, STL, IWAE, DReG, ..., on the same data and
the same noise.

With a RUN, at the parameters that training has left there; without one, at those of a model at initialisation, put
together from --config, --data, --prior, --likelihood and --posterior with their arguments, as for ppl-vae train. With
--train true, models are trained from the same start under each estimator, and raced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ppl_vae.cli import words
from ppl_vae.cli.errors import bad_input
from ppl_vae.cli.help import make_parser
from ppl_vae.cli.options import SKIP
from ppl_vae.cli.telling import tell_taken
from ppl_vae.cli.words import RACED
from ppl_vae.configuration import meaning, outlines, resolving
from ppl_vae.configuration.kinds import Arguments, arguments_of

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
PIECES = ("config", "data", *resolving.PIECES, "device")  # options of a model at initialisation


class Asked(NamedTuple):
    """What a command line asks for.

    Attributes:
        word: The run, or None for a model from a configuration.
        train: Whether to race.
        arguments: The arguments of `ppl_vae.cli.comparing.fixed` or `ppl_vae.cli.racing.race`.
        options: The options of ppl-vae train.
        taken: The options that do not exist, each with the one that it was taken for.
    """

    word: str | None
    train: bool
    arguments: dict[str, Any]
    options: dict[str, str]
    taken: dict[str, str]


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    with bad_input():
        asked = read(argv)
        from ppl_vae.cli import comparing, racing  # they import torch, and help and refusals need none
        from ppl_vae.configuration import config

        tell_taken(asked.taken)
        if asked.word is not None:
            lines = comparing.fixed(comparing.of_run(asked.word, asked.options), **asked.arguments)
        else:
            settings = config.parse(words.joined(asked.options))
            if asked.train:
                lines = racing.race(settings, **asked.arguments)
            else:
                lines = comparing.fixed(comparing.of_config(settings), **asked.arguments)
    print("\n".join(lines))
    return 0


def read(argv: Sequence[str]) -> Asked:
    """Return what a command line asks for; nothing is imported but signatures from a file.

    Raises:
        ValueError: If an option, a name or a value does not fit.
        FileNotFoundError: If there is no such run.
    """
    given = words.split(argv)
    word, options = given.only("compare"), given.options
    train = options.pop("train", "false").lower()
    if train not in ("true", "false"):
        raise ValueError(f"--train is {train!r}; expected true or false")
    racing = train == "true"
    modes = ("race", "fixed") if racing else ("fixed", "race")
    own, other = (arguments_of(outlines.read().commands[mode], "", SKIP) for mode in modes)
    unknown = _check_names(options, own, other.names, racing, word is not None)
    kept = {name: value for name, value in options.items() if name not in unknown}
    taken = meaning.place(unknown, _names(own, kept, racing, word is not None), kept) if unknown else {}
    options = kept | {taken[name]: options[name] for name in unknown}
    if word is not None:
        found = words.find_run(word)
        if racing:
            raise ValueError(
                f"--train true starts from initial parameters, and {word} is trained; give --config {found}/config.yaml"
            )
    mine = {name: options.pop(name) for name in list(options) if name in own.names}
    if word is None and not racing and "seed" in mine:
        options["seed"] = mine["seed"]
    return Asked(word, racing, own.objects(mine), options, taken)


def _names(own: Arguments, options: Mapping[str, str], train: bool, of_a_run: bool) -> list[str]:
    """Return the names of all options that mean something here."""
    choices = outlines.read().choices
    names = [*own.names, "device", "train", *(f"data.{name}" for name in arguments_of(choices.load, "data").names)]
    if of_a_run:
        return names
    roots = (*PIECES, *RACED) if train else PIECES
    with suppress(outlines.UndecidedError):
        settings = resolving.read(words.joined({n: v for n, v in options.items() if n not in own.names}), choices)
        names += [name for name, _ in resolving.leaves(settings.values) if name.partition(".")[0] in roots]
    return list(dict.fromkeys(names))


def _check_names(
    options: Collection[str], schema: Arguments, other: Collection[str], train: bool, of_a_run: bool
) -> dict[str, str]:
    """Refuse options that mean nothing here, and say where they do; return the unknown ones, with a message each."""
    unknown, choices = {}, outlines.read().choices
    fit = arguments_of(choices.fit, "", resolving.FIT_OBJECTS)
    pieces = ("data", "device") if of_a_run else (*PIECES, *RACED) if train else PIECES
    for name in options:
        root = name.partition(".")[0]
        if name in schema.names or root in pieces:
            continue
        if name == "seed" or root == "objective":
            meant = "--seeds, how many or which" if name == "seed" else "--objectives, a list"
            raise ValueError(f"--{name} is of one run; expected {meant}")
        if name in other or (root in RACED and not train):
            where = "at fixed parameters; leave out --train" if train else "of training; add --train true"
            raise ValueError(f"--{name} is an option {where}")
        if of_a_run and root in PIECES:
            raise ValueError(f"--{name} cannot be given for a run, whose model is trained; leave out the run, or this")
        if root in {*choices.kinds, *fit.names, *resolving.NOT_RECORDED}:
            raise ValueError(f"--{name} is an option of ppl-vae train that means nothing here; leave it out")
        known = [*schema.names, *pieces, "train"]
        names = ", ".join(f"--{n}" for n in known)
        unknown[name] = f"--{name} is unknown; options are {names}"
    return unknown


def explain() -> str:
    """Return the help."""
    parts = []
    for name, title in (("fixed", "at fixed parameters"), ("race", "with --train true")):  # two: they share names
        parser = make_parser(USAGE, (__doc__ or "").partition("\n\n")[2], f"{FURTHER}\n{EXAMPLE}")
        arguments_of(outlines.read().commands[name], "", SKIP).add_to(parser.add_argument_group(title))
        parts.append(parser.format_help().partition(f"{title}:"))
    (head, *fixed), (_, *race) = parts
    return head + "".join(fixed).partition("\n\n")[0] + "\n\n" + "".join(race)
