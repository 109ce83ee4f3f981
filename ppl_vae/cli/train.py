"""``ppl-vae train``: from a configuration to a run's folder, with a display of the progress."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ppl_vae import checkpoints, data, runs, training
from ppl_vae._scopes import flushed_denormals
from ppl_vae._team import Team, launch
from ppl_vae.cli.errors import BAD_INPUT, BadInput, bad_input, complain, in_words, is_too_large
from ppl_vae.cli.launched import is_restarted, launched, together
from ppl_vae.cli.processor import Effort
from ppl_vae.cli.signals import Signals
from ppl_vae.cli.telling import not_drawn, note, tell_taken
from ppl_vae.configuration import config, tables
from ppl_vae.runs.reading import read_state
from ppl_vae.training import Progress, Run
from ppl_vae.vae import VAE

Prepared = tuple[VAE, Any, dict[str, Any], dict[str, Any] | None, Any]  # of `_prepare`, for `_train`
LINES = 20  # progress lines of a whole run, where there is no terminal for a bar


def run(argv: Sequence[str]) -> int:
    """Train as a command line says, and return the exit code; denormal numbers count as zero meanwhile."""
    with flushed_denormals(), launched() as team:  # before anything is computed
        prepared = together(team, lambda: _prepare(argv))
        return 0 if prepared is None else _train(*prepared, team)


def _prepare(argv: Sequence[str]) -> Prepared | None:
    """Return what a command line asks to be trained, where to, and how; None where it only prints."""
    with bad_input():
        settings = config.parse(argv)
        tell_taken(settings.taken)
        if settings.print_only:
            print(settings.to_yaml(), end="")
            return None
        out = Path("runs") / settings.name if settings.out is None else Path(settings.out)
        resume = None if settings.resume is None else read_state(Path(settings.resume))
        restarted = _last_run(out, numbered=settings.out is None) if is_restarted() else None
        if restarted is not None and (restarted / "checkpoint.pt").is_file():
            resume = read_state(restarted)
        dataset = settings.build_dataset()
        if isinstance(dataset, data.Table):
            note(tables.told(dataset))
        vae = settings.build_vae(dataset)
        arguments = settings.build_fit_arguments_for(dataset)
        folder = runs.RunFolder(
            restarted or out,
            settings.to_yaml(),
            checkpoint_every=settings.checkpoint_every,
            numbered=settings.out is None and restarted is None,
            again=restarted is not None,
        )
        settings.remember()
    return vae, dataset, arguments, resume, folder


def _last_run(out: Path, numbered: bool) -> Path | None:
    """Return the folder in which a command that is started again has been training, if it had begun.

    An older run of this name is none: it is neither continued nor replaced.
    """
    last, number = out, 2
    while numbered and (later := out.with_name(f"{out.name}-{number}")).exists():
        last, number = later, number + 1
    begun = (last / "run.json").is_file() and runs.read_facts(last).get("launch") == launch()
    return last if begun else None


def _train(vae: VAE, dataset: Any, arguments: dict[str, Any], resume: Any, folder: Any, team: Team) -> int:
    """Train, print the results, and return the exit code."""
    if team.size > 1:  # which agree on a free name
        folder.path = team.gather(runs.next_free(folder.path) if folder.numbered else folder.path, "the folder")[0]
        folder.numbered = False
    display: Any = _Bar() if sys.stderr.isatty() else _Lines(arguments["epochs"])
    effort = Effort()
    with Signals(team.is_first) as stop, warnings.catch_warnings(), _one_report():
        warnings.showwarning = lambda message, *_, **__: note(message) if team.is_first else None
        try:
            trained = training.fit(vae, dataset, callbacks=[folder, display], stop=stop, resume=resume, **arguments)
        except training.RankLostError as error:
            if error.good_state and not team.is_first and folder.path.is_dir():  # the first one may be gone
                with suppress(OSError):  # the reason may be that nothing can be written
                    checkpoints.save(error.good_state, folder.path / "checkpoint.pt")
            if error.rank != 0:  # the first says its own
                complain(error)
            if team.is_first and (folder.path / "checkpoint.pt").is_file():
                print(f"continue with: ppl-vae train --resume {folder.path}", file=sys.stderr)
            return 1
        except training.DivergedError as error:
            if team.is_first:  # all say the same
                print(f"last good state: {folder.path / 'last_good.pt'}", file=sys.stderr)
                complain(error)
            return 1
        except (*BAD_INPUT, MemoryError, RuntimeError) as error:
            fault = isinstance(error, OSError | training.CoupledError) or is_too_large(error)
            if not team.is_first and isinstance(error, BAD_INPUT):  # which the first one says, if only that it failed
                raise SystemExit(2) from error
            if not display.started and (fault or isinstance(error, BAD_INPUT)):
                raise BadInput from in_words(error)
            if not fault:
                raise
            complain(in_words(error))
            if (folder.path / "checkpoint.pt").is_file():
                print(f"continue with: ppl-vae train --resume {folder.path}", file=sys.stderr)
            return 1
    if resume is not None and trained.stopped != "interrupted" and len(trained.history) == len(resume["history"]):
        note("no step was taken: the run that --resume continues was over; give more --epochs")
    shortage = effort.shortage() if trained.device == "cpu" else None
    print(_report(trained, folder, shortage))
    return stop.exit_code if trained.stopped == "interrupted" else 0


@contextmanager
def _one_report() -> Iterator[None]:
    """Leave an OSError of TensorBoard's thread to the main thread, which notices it, and say it once."""
    before = threading.excepthook
    threading.excepthook = lambda found: None if isinstance(found.exc_value, OSError) else before(found)
    try:
        yield
    finally:
        threading.excepthook = before


def _report(run: Run, folder: Any, shortage: str | None) -> str:
    """Return the results of a run, one per line, and what slowed it."""
    final, lines = run.final, []
    for name, figure in (("validation", "validation_elbo"), ("training data", "elbo")):
        if figure in final:
            caveat = f" ({run.caveat})" if run.caveat else ""
            lines.append(f"ELBO on {name}: {final[figure]:.2f} nats per datum{caveat}")
            break
    if "reconstruction_error" in final:
        lines.append(f"reconstruction error: {final['reconstruction_error']:.3f} (mean L2 norm)")
    if "classification_error" in final:
        lines.append(f"classification error on validation: {final['classification_error']:.2%}")
    lines.append(f"{run.stopped} after {len(run.history)} epochs, {run.seconds / 60:.1f} minutes on {run.device}")
    lines.append(f"run: {folder.path}")
    lines += [f"picture: {path}" for path in folder.pictures]
    assert isinstance(run.program, VAE)
    lines += not_drawn(("latent_grid", "latent_scatter"), folder.pictures, run.program, "its data are no images")
    if run.stopped == "interrupted":
        lines.append(f"continue with: ppl-vae train --resume {folder.path}")
    if shortage is not None:
        lines.append(shortage)
    return "\n".join(lines)


class _Display:
    """A callback of `fit` that records whether training has begun: an error before that is in the user's input."""

    started = False

    def on_start(self, run: Run) -> None:
        self.started = True
        if run.caveat:
            note(run.caveat)


class _Bar(_Display):
    """A progress bar, for a terminal."""

    def on_start(self, run: Run) -> None:
        from tqdm import tqdm

        super().on_start(run)
        self.bar = tqdm(total=1.0, bar_format="{desc} |{bar}| {percentage:3.0f}%{postfix}", leave=False)

    def on_progress(self, progress: Progress) -> None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        self.bar.set_description_str(f"epoch {progress.epoch}/{progress.epochs}", refresh=False)
        self.bar.set_postfix_str(
            f"elbo {progress.elbo:.2f}, {progress.rate:,.0f} data/s, {minutes}:{seconds:02d} left", refresh=False
        )
        self.bar.n = (progress.epoch - 1 + progress.step / progress.steps) / progress.epochs
        self.bar.refresh()

    def on_end(self, run: Run) -> None:
        self.bar.close()

    def on_error(self, run: Run, error: BaseException) -> None:
        if self.started:
            self.bar.close()


class _Lines(_Display):
    """A line every few epochs, for a log."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.every = max(1, epochs // LINES)

    def on_epoch(self, run: Run, record: dict[str, float]) -> None:
        epoch = int(record["epoch"])
        if epoch % self.every and epoch not in (1, self.epochs):
            return
        figures = [
            ("loss", "loss", ".2f"),
            ("elbo on validation", "validation_elbo", ".2f"),
            ("reconstruction error", "reconstruction_error", ".3f"),
            ("classification error", "classification_error", ".2%"),
            ("seconds", "seconds", ".1f"),
        ]
        shown = [f"{label} {record[key]:{form}}" for label, key, form in figures if key in record]
        print(f"epoch {epoch}/{self.epochs}: {', '.join(shown)}", file=sys.stderr, flush=True)
