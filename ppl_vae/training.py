"""Training: epochs of SVI steps over a data set, with validation, schedules, early stopping and a way back from NaN.

`fit` works for a `VAE` and for any ``(model, guide)`` pair of Pyro programs. It prints nothing and writes nothing: a
`Callback` sees every epoch (`ppl_vae.runs.RunFolder` is the one that writes a run's folder).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae._validation import check_choice, check_positive, check_positive_int
from ppl_vae.data import Dataset, Split
from ppl_vae.objectives import ELBO
from ppl_vae.svi import SVI, OptimizerFactory
from ppl_vae.training_state import DivergedError, TrainingState, diagnose
from ppl_vae.vae import VAE, evaluation_mode

__all__ = ["Callback", "DivergedError", "Progress", "Run", "fit", "resolve_device"]

Stopped = Literal["finished", "early stopping", "interrupted"]
Program = tuple[Callable[..., Any], Callable[..., Any]]

CHECK_EVERY = 100  # steps between two looks at the losses: the way back to a good state is never longer
MONITOR = "validation_elbo"


@dataclass
class Run:
    """A training run: what was trained, on what, and what was seen. Nats per datum.

    Attributes:
        program: The VAE, or the ``(model, guide)`` pair.
        data: The data set, on the run's device.
        history: One record an epoch: ``epoch``, ``step``, ``seconds`` (since the start), ``rate`` (data per second),
            ``lr``; of the training data while training ``loss``, ``bound`` (the objective's own value), ``elbo``
            (K = 1, beta = 1), ``log_likelihood``, ``kl``; the same of the validation data with the prefix ``validation_``, and
            ``reconstruction_error``, the mean L2 norm of x minus its reconstruction over the validation data.
        seed: Seed of the noise and of the order of the data.
        device: Where it ran.
        caveat: What every figure made from this run must say, or None.
        stopped: Why it ended.
        seconds: Wall time, validation included.
        best_epoch: The epoch whose parameters the program has, where early stopping chose one.
        state: The state that `ppl_vae.checkpoints.save` writes and ``fit(resume=...)`` takes.
    """

    program: VAE | Program
    data: Dataset
    seed: int
    device: str
    caveat: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: Stopped | None = None
    seconds: float = 0.0
    best_epoch: int | None = None
    state: Callable[[], dict[str, Any]] = dict

    @property
    def final(self) -> dict[str, float]:
        """The record of the last epoch (of the chosen one, under early stopping); empty before the first."""
        if self.best_epoch is not None:
            return next(record for record in self.history if record["epoch"] == self.best_epoch)
        return self.history[-1] if self.history else {}


@dataclass(frozen=True)
class Progress:
    """Where training stands: `elbo` in nats per datum over the last steps, `rate` in data per second."""

    epoch: int
    epochs: int
    step: int
    steps: int
    elbo: float
    rate: float
    seconds_left: float


class Callback:
    """What watches a training run. Any object with some of these methods will do; here each does nothing."""

    def on_start(self, run: Run) -> None:
        """Before the first step, when program, data and arguments have passed every check."""

    def on_progress(self, progress: Progress) -> None:
        """Every hundred steps and at the end of every epoch."""

    def on_epoch(self, run: Run, record: dict[str, float]) -> None:
        """After every epoch, with its record, which is in ``run.history`` too."""

    def on_end(self, run: Run) -> None:
        """After the last step, also of an interrupted run; not after an error."""

    def on_error(self, run: Run, error: BaseException) -> None:
        """After an error that ends the run, which is then raised."""


def fit(
    program: VAE | Program,
    data: Dataset | Tensor | tuple[Tensor, ...],
    *,
    objective: object | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    epochs: int = 50,
    batch_size: int = 128,
    clip_norm: float | None = None,
    validate_every: int = 1,
    early_stopping: int | None = None,
    seed: int | None = None,
    device: str | torch.device = "auto",
    compile: str = "auto",
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] | None = None,
    resume: dict[str, Any] | None = None,
) -> Run:
    r"""Train a VAE, or any Pyro model and guide, by SVI.

    Maximises the mean of the objective per datum. Before the first step the program is run once on the first batch
    under Pyro's full validation (shapes, supports) without moving any state; afterwards nothing is validated, so a
    program whose supports depend on the data may go wrong silently later: values are then usually NaN, which are
    found within a hundred steps and reported (`DivergedError`), with the program put back to its last good state.

    The same seed gives the same parameters, bit by bit, on the CPU with the same number of threads. The global random
    state is left as it was.

    Args:
        program: The `VAE`, or a pair of functions ``(model, guide)`` that take the columns of the data. Of a pair, a
            function that is an ``nn.Module`` (or a method of one) is moved to the device and put into training and
            evaluation mode; others are as the caller left them.
        data: A `Dataset`, a tensor of data, or a tuple of tensors with a common first dimension (all passed on).
        objective: `objectives.ELBO` by default; another of ours, a Pyro ELBO object, or a function of log-weights.
        optimizer: From parameters to a torch optimiser; ``functools.partial(torch.optim.Adam, lr=1e-3)`` by default.
        scheduler: From the optimiser to a torch learning-rate scheduler, stepped once an epoch (a `ReduceLROnPlateau`
            sees minus the validation ELBO).
        epochs: Passes over the training data.
        batch_size: Data per step; the last batch of an epoch may be smaller.
        clip_norm: Largest L2 norm of the gradient (of the mean per datum); None does not clip.
        validate_every: Epochs between validations; the last epoch is always validated.
        early_stopping: End after so many validations without a better validation ELBO, and take the best parameters;
            None never does.
        seed: Of the noise and the order of the data; None draws one from torch's global generator.
        device: ``"auto"`` (cuda, else mps, else cpu) or a torch device.
        compile: ``"off"``, or ``"auto"``, which this version resolves to ``"off"``.
        callbacks: What watches.
        stop: Asked after every step; True ends the run there, as an interrupted one.
        resume: The state of an earlier run (`checkpoints.load`), continued where it stood, bit by bit on the CPU.

    Returns:
        The `Run`, with the trained program and its history.

    Raises:
        ValueError: If an argument is out of range, or the program does not fit the data or the objective.
        DivergedError: If a value or a gradient is not finite.

    Example:
        >>> import ppl_vae as pv
        >>> digits = pv.data.load("digits")
        >>> vae = pv.VAE(digits, prior=pv.priors.StandardNormal(2), likelihood=pv.likelihoods.Bernoulli(),
        ...              posterior=pv.posteriors.DiagonalNormal())
        >>> run = fit(vae, digits, epochs=3, seed=0)
        >>> run.history[-1]["validation_elbo"] > run.history[0]["validation_elbo"]
        True
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("validate_every", validate_every)):
        check_positive_int(value, name)
    if early_stopping is not None:
        check_positive_int(early_stopping, "early_stopping")
    if clip_norm is not None:
        check_positive(clip_norm, "clip_norm")
    check_choice(compile, ("auto", "off"), "compile")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed is {seed!r}; expected an integer from 0 to 2**63 - 1")
    if not isinstance(data, Dataset):
        columns = data if isinstance(data, tuple) else (data,)
        nothing = Split(tuple(column[:0] for column in columns))
        data = Dataset("tensors", train=Split(columns), validation=nothing, test=nothing)
    if batch_size > len(data.train):
        raise ValueError(f"batch_size is {batch_size}, larger than the {len(data.train)} training data")
    device = resolve_device(device)
    model, guide = (program.model, program.guide) if isinstance(program, VAE) else program
    modules = _modules_of(program, model, guide)
    for module in modules:
        module.to(device)
    svi = SVI(
        model,
        guide,
        optimizer or functools.partial(torch.optim.Adam, lr=1e-3),
        objective or ELBO(),
        clip_norm=clip_norm,
    )
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    run = Run(program, data.to(device), seed, str(device))
    loop = _Loop(run, svi, modules, scheduler, epochs, batch_size, validate_every, early_stopping, callbacks, stop)
    with _forked_random_state():
        torch.manual_seed(seed)
        loop.rehearse()
        loop.prepare(resume)
        with pyro.validation_enabled(False):
            try:
                loop.run()
            except BaseException as error:
                loop.tell("on_error", run, error)
                raise
    return run


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device; ``"auto"`` is cuda, else mps, else cpu, as available."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used ({reason}); expected auto, cpu, cuda or mps") from error
    return resolved


def _forked_random_state() -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


def _modules_of(program: object, *functions: Callable[..., Any]) -> list[nn.Module]:
    owners = [program, *functions, *(getattr(function, "__self__", None) for function in functions)]
    return list({id(owner): owner for owner in owners if isinstance(owner, nn.Module)}.values())


class _Loop:
    """The loop of one `fit`: everything that changes while it runs."""

    def __init__(
        self,
        run: Run,
        svi: SVI,
        modules: list[nn.Module],
        scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None,
        epochs: int,
        batch_size: int,
        validate_every: int,
        early_stopping: int | None,
        callbacks: Sequence[Callback],
        stop: Callable[[], bool] | None,
    ) -> None:
        self.record = run
        self.svi = svi
        self.modules = modules
        self.make_scheduler = scheduler
        self.epochs = epochs
        self.batch_size = batch_size
        self.validate_every = validate_every
        self.early_stopping = early_stopping
        self.callbacks = callbacks
        self.stop = stop or (lambda: False)
        self.train = run.data.train
        self.steps = math.ceil(len(self.train) / batch_size)

    def rehearse(self) -> None:
        """Run everything once under full validation, moving no state, so that what cannot work is refused now."""
        self._check_batch_norm()
        with _forked_random_state(), evaluation_mode(*self.modules):
            if isinstance(self.record.program, VAE):
                self.record.caveat = self.record.program.check_support(self.record.data)
            with pyro.validation_enabled():
                self.svi.backward(*next(self.train.batches(self.batch_size, device=self.record.device)))

    def prepare(self, resume: dict[str, Any] | None) -> None:
        """Make optimiser and scheduler, and take up the state of an earlier run."""
        optimizer = self.svi.prepare()
        try:
            scheduler = None if self.make_scheduler is None else self.make_scheduler(optimizer)
        except TypeError as error:
            raise ValueError(f"the scheduler cannot be made: {error}") from error
        terms = torch.full((self.steps, 4), math.nan, device=self.record.device)
        self.state = TrainingState(self.svi, self.modules, scheduler, self.record.seed, terms)
        if resume is not None:
            self.state.restore(resume)
            self.record.history[:] = self.state.history
        self.state.history = self.record.history
        self.record.state = self.state.capture

    def run(self) -> None:
        self.tell("on_start", self.record)
        self.started = time.perf_counter() - self.state.seconds
        for module in self.modules:
            module.train()
        while self.state.epoch < self.epochs and self.record.stopped is None:
            self._epoch()
        self.record.stopped = self.record.stopped or "finished"
        if self.state.best is not None and self.record.stopped != "interrupted":  # which goes on from where it is
            self.state.restore_parameters(self.state.best)
        for module in self.modules:
            module.eval()
        self.record.seconds = self.state.seconds = time.perf_counter() - self.started
        self.state.keep_random_state()
        self.tell("on_end", self.record)

    def tell(self, event: str, *arguments: Any) -> None:
        """Call every callback; what they draw does not change the run."""
        with _forked_random_state():
            for callback in self.callbacks:
                method = getattr(callback, event, None)
                if method is not None:
                    method(*arguments)

    def _epoch(self) -> None:
        """Take the steps of one epoch, from where the state stands."""
        state = self.state
        good = state.capture()
        began, first = time.perf_counter(), state.step
        order = state.order(len(self.train))[first * self.batch_size :]
        for batch in self.train.batches(self.batch_size, order=order, device=self.record.device):
            state.note(self.svi.update(*batch))
            interrupted = self.stop()
            if state.step % CHECK_EVERY == 0 or state.step == self.steps or interrupted:
                if not state.is_finite():
                    raise diagnose(state, good, self.train, self.batch_size, self.record.device)
                if state.step < self.steps:  # the next epoch takes its own
                    good = state.capture()
                self._report(time.perf_counter() - began, state.step - first)
            if interrupted:
                self.record.stopped = "interrupted"
                break
        if state.step < self.steps:
            return
        state.end_epoch()
        record = self._make_record(len(order) / (time.perf_counter() - began))
        self.record.history.append(record)
        self._schedule(record)
        self._stop_early(record)
        state.seconds = record["seconds"]
        self.tell("on_epoch", self.record, record)

    def _make_record(self, rate: float) -> dict[str, float]:
        assert self.svi.optimizer is not None
        loss, log_lik, kl = self.state.means()
        record = {
            "epoch": self.state.epoch,
            "step": self.state.epoch * self.steps,
            "lr": self.svi.optimizer.param_groups[0]["lr"],
            "rate": rate,
            **_figures(loss, log_lik, kl),
        }
        if self.state.epoch % self.validate_every == 0 or self.state.epoch == self.epochs:
            record.update(self._validate())
        record["seconds"] = time.perf_counter() - self.started
        return record

    def _validate(self) -> dict[str, float]:
        """Figures of the validation data, at the same noise every time."""
        split, run = self.record.data.validation, self.record
        if len(split) == 0:
            return {}
        sums, errors = torch.zeros(4, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        with (
            _forked_random_state(),
            evaluation_mode(*self.modules),
            torch.no_grad(),
        ):
            torch.manual_seed(run.seed)
            for batch in split.batches(min(1000, len(split)), device=run.device):
                result = self.svi.evaluate(*batch)
                nan = torch.tensor(math.nan)
                terms = (result.loss, result.weight, result.log_likelihood, result.kl)
                sums += torch.stack([torch.as_tensor(nan if t is None else t).cpu().double() for t in terms])
                if isinstance(run.program, VAE):
                    difference = (batch[0] - run.program.reconstruct(batch[0])).flatten(1)
                    errors += difference.norm(dim=1).sum().cpu()
        loss, weight, log_lik, kl = sums.tolist()
        record = {f"validation_{k}": v for k, v in _figures(loss / weight, log_lik / weight, kl / weight).items()}
        if isinstance(run.program, VAE):
            record["reconstruction_error"] = errors.item() / len(split)
        return record

    def _schedule(self, record: dict[str, float]) -> None:
        scheduler = self.state.scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            if self._monitored(record) is not None:
                scheduler.step(-self._monitored(record))  # type: ignore[operator]
        elif scheduler is not None:
            scheduler.step()

    def _stop_early(self, record: dict[str, float]) -> None:
        score = self._monitored(record)
        if self.early_stopping is None or score is None:
            return
        scores = [(self._monitored(r), r["epoch"]) for r in self.record.history]
        validated = [(score, epoch) for score, epoch in scores if score is not None]
        _, best_epoch = max(validated, key=lambda pair: (-math.inf if math.isnan(pair[0]) else pair[0], -pair[1]))
        if best_epoch == record["epoch"]:
            self.state.best = self.state.capture_parameters()
        self.record.best_epoch = int(best_epoch)
        if sum(epoch > best_epoch for _, epoch in validated) >= self.early_stopping:
            self.record.stopped = "early stopping"

    @staticmethod
    def _monitored(record: dict[str, float]) -> float | None:
        return record.get(MONITOR, record.get("validation_bound"))

    def _report(self, seconds: float, steps_done: int) -> None:
        loss, log_lik, kl = self.state.means(last=min(steps_done, CHECK_EVERY))
        rate = steps_done / seconds
        left = (self.epochs - self.state.epoch) * self.steps - self.state.step
        elbo = -loss if math.isnan(kl) else log_lik - kl
        progress = Progress(
            epoch=self.state.epoch + 1,
            epochs=self.epochs,
            step=self.state.step,
            steps=self.steps,
            elbo=elbo,
            rate=rate * self.batch_size,
            seconds_left=left / rate,
        )
        self.tell("on_progress", progress)

    def _check_batch_norm(self) -> None:
        normalised = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if len(self.train) % self.batch_size == 1 and any(
            isinstance(part, normalised) for module in self.modules for part in module.modules()
        ):
            raise ValueError(
                f"batch normalisation cannot train on one datum, and {len(self.train)} training data in batches of "
                f"{self.batch_size} leave a last batch of one; choose another batch_size"
            )


def _figures(loss: float, log_lik: float, kl: float) -> dict[str, float]:
    figures = {"loss": loss, "bound": -loss}
    if not math.isnan(kl):
        figures |= {"elbo": log_lik - kl, "log_likelihood": log_lik, "kl": kl}
    return figures
