"""The command line: ``ppl-vae COMMAND``, for the commands in `COMMANDS`.

Nothing heavy is imported before a command runs, so ``ppl-vae --help`` answers at once. A user's error gives one line on
stderr and exit code 2; ``PPL_VAE_DEBUG=1`` adds the traceback. A run that diverges, or that a full disk or an empty
memory ends, exits with 1, and an interrupted run with 130 (143 after SIGTERM, 129 after SIGHUP).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from ppl_vae import __version__
from ppl_vae._validation import did_you_mean
from ppl_vae.cli.errors import BadInput, bad_input, complain, exit_code
from ppl_vae.cli.processor import take_threads, threads
from ppl_vae.cli.prose import fit
from ppl_vae.cli.streams import Stream, guarded
from ppl_vae.cli.words import wants_help
from ppl_vae.configuration import foreign

COMMANDS = {  # each a module of ppl_vae.cli, imported when it runs
    "train": "train a VAE, and write figures, pictures and a checkpoint to runs/<name>",
    "evaluate": "log p(x), the ELBO, the gap between them, and the latent code: a table, JSON and pictures",
    "compare": "estimators side by side: bias, variance, signal-to-noise, cost, or a training race; with pictures",
    "check": "whether pieces, your own too, are the densities they claim to be, on a batch of real data",
    "pieces": "every prior, likelihood, posterior, network and objective, and what combines with what",
    "sweep": "many trainings: a grid, a list or random draws of options, times seeds; one table, and a picture",
    "show": "several runs side by side in one table",
    "report": "a run, or several side by side, as one HTML file with a live latent space",
    "sample": "data drawn from a run's model: a picture, .npz, .csv or .parquet",
    "reconstruct": "data beside what a run's model makes of them: a picture, .npz, .csv or .parquet",
    "encode": "latent means and standard deviations of data: .npz, .csv, .parquet, or a picture",
    "score": "log p(x) of each datum and which are unusual: .csv, .npz, .parquet, or a picture",
    "interpolate": "the way between data through the latent space: a picture, or .npz",
}

# a module of these has a function of its own name, for `options.execute`; any other has run(argv) -> exit code
ON_RUNS = ("sample", "reconstruct", "encode", "score", "interpolate", "evaluate", "report")
SHARED = ("train", "evaluate", "score", "encode")  # by the processes that torchrun starts; others are the first one's


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # as a program
        if _is_idle(words):
            return 0
        os.environ["MPLBACKEND"] = "agg"  # no picture is shown, and a notebook's backend may lack in this environment
    with guarded() as (out, err):
        code = _main(words)
        out.flush()
        return _closing(code, words[:1] in (["train"], ["sweep"]) and not wants_help(words), out, err)


def _is_idle(words: list[str]) -> bool:
    """Whether torchrun has started several processes for what one does, and this is not the first."""
    return _is_later() and (words[:1] == [] or words[0] not in SHARED or wants_help(words))


def _is_later() -> bool:
    """Whether torchrun has started this process beside a first one, which speaks."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def _main(words: list[str]) -> int:
    try:
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())  # for the import paths of users' own pieces; console scripts lack it
    except FileNotFoundError:
        complain(FileNotFoundError("the working directory is gone; change to one that exists"))
        return 2
    if words[:1] == ["--version"]:
        print(f"ppl-vae {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(fit(_help()), end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    try:
        with bad_input():
            if words[0] not in COMMANDS:
                near = did_you_mean(words[0], COMMANDS)
                raise ValueError(f"{words[0]!r} is no command; expected {', '.join(COMMANDS)}, --help, --version{near}")
            argv = [word for word in words[1:] if word != "--trust"]
            argv, count = take_threads(argv) if words[0] != "sweep" else (argv, None)  # its runs have their own
        with foreign.answering(_answer(trusted="--trust" in words)), threads(count):
            if words[0] != "show" and not _is_later():  # which imports less than this would
                with bad_input():
                    text = importlib.import_module("ppl_vae.cli.early").answer(words[0], argv)
                if text is not None:
                    print(text, end="")
                    return 0
            return _run(words[0], argv)
    except BadInput as error:
        if os.environ.get("PPL_VAE_DEBUG"):
            traceback.print_exception(error.__cause__)
        complain(error.__cause__)
        return exit_code(error.__cause__)
    except KeyboardInterrupt:
        print("ppl-vae: aborted", file=sys.stderr)
        return 130


def _run(command: str, argv: list[str]) -> int:
    module = importlib.import_module(f"ppl_vae.cli.{command}")
    if command not in ON_RUNS:
        return int(module.run(argv))
    from ppl_vae.cli import options  # here: the list of commands, and show, do without jsonargparse

    return options.execute(getattr(module, command), argv, shared=command in SHARED)


def _closing(code: int, trained: bool, out: Stream, err: Stream) -> int:
    """Return the exit code after a look at the streams: a reader that goes away is no fault, a full disk is one."""
    if out.failed is None:
        return code
    if isinstance(out.failed, BrokenPipeError) and not trained:
        return code or 141
    if not isinstance(out.failed, BrokenPipeError):
        print(f"ppl-vae: error: the results cannot be printed: {out.failed}", file=err)
    return code or 1


def _answer(trusted: bool) -> foreign.Answer:
    """Return what decides about foreign names in files: the option, else the user at the terminal, else no."""

    def answer(source: str, names: list[str]) -> bool:
        if trusted:
            return True
        if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        print(f"{source} names code that would be imported and run: {', '.join(names)}", file=sys.stderr)
        print("Do you trust it? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return answer


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"""\
usage: ppl-vae COMMAND [--OPTION VALUE ...]

Variational autoencoders as Pyro programs.

commands:
{commands}

  ppl-vae train                      the quick default: handwritten digits, in under a minute
  ppl-vae train --config article     a preset, or a file that --print_config has written
  ppl-vae train --help               every option; --likelihood.help Bernoulli explains one choice
  ppl-vae sample runs/digits         data from the run's model; every command has its own --help

options:
  --help       show this and end
  --threads N  with any command: so many threads compute; by default one for each core, or OMP_NUM_THREADS
  --trust      with any command: import and run what a configuration file or a run's folder names from outside ppl_vae,
               torch.nn, torch.optim and Pyro
  --version    show the version and end
"""
