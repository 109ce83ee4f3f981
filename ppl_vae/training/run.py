"""A training run as callbacks see it: the run, its progress, and the methods of a callback."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ppl_vae._shown import Shown
from ppl_vae.data import Dataset
from ppl_vae.objectives.losses import Program
from ppl_vae.svi import Compile
from ppl_vae.vae import VAE

Stopped = Literal["finished", "early stopping", "interrupted"]


@dataclass
class Run(Shown):
    """A training run: the program, the data, and the history of figures, in nats per datum.

    Attributes:
        program: The VAE, or the ``(model, guide)`` pair.
        data: The data set, on the run's device.
        history: One record per epoch. It has ``epoch``, ``step``, ``seconds`` (since the start), ``rate`` (data per
            second) and ``lr``. Over the training data, while training, it has ``loss``, ``bound`` (the objective's own
            value), ``elbo`` (K = 1, beta = 1), ``log_likelihood`` and ``kl``. Over the validation data it has the same
            figures with the prefix ``validation_``, and ``reconstruction_error``, the mean L2 norm of x minus its
            reconstruction.
        seed: Seed of the noise and of the order of the data.
        device: Where it ran.
        compile: How a step ran, see `SVI`.
        why_eager: Why steps ran eagerly after all, or None.
        caveat: The caveat that every figure made from this run must state, or None.
        stopped: Why it ended.
        processes: How many processes shared the batches.
        seconds: Wall time, validation included.
        best_epoch: The epoch whose parameters the program has, if early stopping chose one.
        state: Returns the state that `ppl_vae.checkpoints.save` writes and ``fit(resume=...)`` takes.
    """

    program: VAE | Program
    data: Dataset
    seed: int
    device: str
    compile: Compile = "graph"
    why_eager: str | None = None
    caveat: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: Stopped | None = None
    processes: int = 1
    seconds: float = 0.0
    best_epoch: int | None = None
    state: Callable[[], dict[str, Any]] = dict

    def __repr__(self) -> str:
        program = repr(self.program) if isinstance(self.program, VAE) else "a (model, guide) pair"
        shown = {"validation ELBO": "validation_elbo", "ELBO": "elbo", "bound": "bound"}
        figure = next(
            (f"{label} {self.final[key]:.2f}" for label, key in shown.items() if key in self.final), "no epoch"
        )
        state = self.stopped or "not ended"
        return (
            f"Run({program}; {len(self.history)} epochs in {self.seconds:.1f} s on {self.device}, seed {self.seed}, "
            f"{state}; {figure})"
        )

    @property
    def final(self) -> dict[str, float]:
        """The record of the last epoch, or of the best epoch if early stopping chose one; empty before the first."""
        if self.best_epoch is not None:
            return next(record for record in self.history if record["epoch"] == self.best_epoch)
        return self.history[-1] if self.history else {}

    def report(self, path: str | Path, evaluation: Any = None) -> Path:
        """Write one HTML file on the run, with a live latent space, and return its path; `ppl_vae.report` says what.

        **Slow** for a latent of one or two dimensions: the true posteriors of 50 data take seconds to a minute.

        Args:
            path: The file, ``"report.html"``; one that is there is replaced.
            evaluation: What `evaluate` returned for the program, to be shown as well.

        Raises:
            TypeError: If `evaluation` is no evaluation.
            OSError: If the file cannot be written.

        Example:
            >>> import tempfile, torch
            >>> import ppl_vae as pv
            >>> vae = pv.VAE((4,), prior=pv.priors.StandardNormal(3), likelihood=pv.likelihoods.Normal(),
            ...              posterior=pv.posteriors.DiagonalNormal())
            >>> run = pv.fit(vae, torch.randn(64, 4), epochs=1, batch_size=64, device="cpu")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     run.report(f"{folder}/report.html").name
            'report.html'
        """
        return importlib.import_module("ppl_vae.report").write_report(path, self, evaluation)  # which stands above


@dataclass(frozen=True)
class Progress:
    """The progress of training: `elbo` in nats per datum over the last steps, `rate` in data per second.

    Of a loader without a length `steps` is 0, and `seconds_left` NaN, until the end of an epoch.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    elbo: float
    rate: float
    seconds_left: float


class Callback:
    """The protocol of an observer of a training run; here each method does nothing.

    Any object with some of these methods will do; it inherits nothing. What a method draws at random does not change
    the run, and what it raises ends it. ``run.program`` is the program as it is trained, in training mode.

    Example:
        >>> class Table:
        ...     def on_start(self, run):
        ...         self.rows = []
        ...
        ...     def on_epoch(self, run, record):
        ...         self.rows.append((record["epoch"], record["elbo"] > -1000))
        >>> import ppl_vae as pv
        >>> import torch
        >>> vae = pv.VAE((4,), prior=pv.priors.StandardNormal(2), likelihood=pv.likelihoods.Normal(),
        ...              posterior=pv.posteriors.DiagonalNormal())
        >>> table = Table()
        >>> run = pv.fit(vae, torch.randn(64, 4), epochs=2, batch_size=64, callbacks=[table], device="cpu")
        >>> table.rows
        [(1, True), (2, True)]
    """

    def on_start(self, run: Run) -> None:
        """Act before the first step, when program, data and arguments have passed every check."""

    def on_progress(self, progress: Progress) -> None:
        """Act every hundred steps and at the end of every epoch."""

    def on_epoch(self, run: Run, record: dict[str, float]) -> None:
        """Act after every epoch, with its record, which is in ``run.history`` too."""

    def on_end(self, run: Run) -> None:
        """Act after the last step, also of an interrupted run, but not after an error."""

    def on_error(self, run: Run, error: BaseException) -> None:
        """Act after an error that ends the run; `fit` then raises this error."""
