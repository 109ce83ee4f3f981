"""A training run as callbacks see it: the run, its progress, and the methods of a callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ppl_vae.data import Dataset
from ppl_vae.objectives.losses import Program
from ppl_vae.svi import Compile
from ppl_vae.vae import VAE

Stopped = Literal["finished", "early stopping", "interrupted"]


@dataclass
class Run:
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
        seconds: Wall time, validation included.
        best_epoch: The epoch whose parameters the program has, if early stopping chose one.
        state: Returns the state that `ppl_vae.training.checkpoints.save` writes and ``fit(resume=...)`` takes.
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
    seconds: float = 0.0
    best_epoch: int | None = None
    state: Callable[[], dict[str, Any]] = dict

    @property
    def final(self) -> dict[str, float]:
        """The record of the last epoch, or of the best epoch if early stopping chose one; empty before the first."""
        if self.best_epoch is not None:
            return next(record for record in self.history if record["epoch"] == self.best_epoch)
        return self.history[-1] if self.history else {}


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
    """An observer of a training run. Any object with some of these methods will do; here each method does nothing.

    Example:
        >>> class Print(Callback):
        ...     def on_epoch(self, run, record):
        ...         print(record["epoch"], round(record["elbo"], 2))
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
