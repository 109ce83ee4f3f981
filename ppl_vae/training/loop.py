"""The loop of one `fit`: epochs of steps, validation, schedules, early stopping, and calls of the callbacks."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae._machine import check_fits
from ppl_vae._scopes import evaluation_mode, seeded, untouched_random_state
from ppl_vae.objectives.impossible import Limits, alarm_of
from ppl_vae.objectives.losses import BatchLoss
from ppl_vae.svi import SVI
from ppl_vae.training.resuming import checked
from ppl_vae.training.run import Callback, Progress, Run
from ppl_vae.training.state import DivergedError, Means, TrainingState, diagnose
from ppl_vae.vae import VAE

CHECK_EVERY = 100  # steps between two checks of the losses: the last good state is never further back
_SMALLER = "batch_size or num_particles"
_CHECK = "ppl_vae.check looks at each density"
MONITOR = "validation_elbo"


@dataclass
class Loop:
    """The loop of one `fit`; its attributes come from the arguments of `fit`."""

    result: Run
    svi: SVI
    modules: list[nn.Module]
    make_scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None
    epochs: int
    batch_size: int
    validate_every: int
    early_stopping: int | None
    callbacks: Sequence[Callback]
    stop: Callable[[], bool] | None
    state: TrainingState = field(init=False)  # made by `prepare`
    started: float = field(init=False, default=0.0)  # the clock's time minus this is the run's time
    limits: Limits = field(init=False, default=Limits())  # of the program, found by `rehearse`
    _wrong: str | None = field(init=False, default=None)  # the impossible figure of the last validation

    def __post_init__(self) -> None:
        self.train = self.result.data.train
        self.steps = math.ceil(len(self.train) / self.batch_size)

    def rehearse(self) -> None:
        """Run everything once under full validation, without moving state, to refuse now what cannot work."""
        with untouched_random_state(), evaluation_mode(*self.modules), self._batch_norm_checked():
            batch = next(self.train.batches(self.batch_size, device=self.result.device))
            particles = getattr(getattr(self.svi.loss, "objective", self.svi.loss), "num_particles", 1)
            what = f"batches of {len(batch[0])} with {particles} particles"
            check_fits(batch[0].numel() * particles, what, _SMALLER, self.result.device)
            if isinstance(vae := self.result.program, VAE):
                self.result.caveat = vae.check_support(self.result.data)
                y = batch[1:2]
                if alarm := alarm_of(vae.q_z(batch[0], *y), vae.p_z(*y)):
                    warnings.warn(alarm, stacklevel=3)
            with pyro.validation_enabled():
                first = self.svi.backward(*batch)
                self.limits = first.limits
                if term := Means.of([first]).impossible(first.limits, len(batch[0])):
                    raise ValueError(f"the first batch has a figure that no model gives: {term}; {_CHECK}")
                if all(parameter.grad is None for parameter in self.svi.parameters.values()):
                    raise ValueError(
                        "the objective depends on no parameter that requires a gradient; register networks with "
                        "pyro.module (or make the program's pieces nn.Modules of a VAE) and unfreeze what should train"
                    )

    def prepare(self, resume: dict[str, Any] | None) -> None:
        """Make optimiser and scheduler, and restore the state of an earlier run if there is one."""
        optimizer = self.svi.prepare()
        if optimizer is None:
            raise ValueError(
                "optimizer is an object of pyro.optim with a schedule, clipping, or settings for each parameter; "
                "expected functools.partial(torch.optim.Adam, lr=1e-3) or the like, with scheduler= and clip_norm="
            )
        try:
            scheduler = None if self.make_scheduler is None else self.make_scheduler(optimizer)
        except TypeError as error:
            raise ValueError(f"the scheduler cannot be made: {error}") from error
        if len(self.result.data.validation) == 0:
            if self.early_stopping is not None:
                raise ValueError("early_stopping looks at validation data, and there are none; set some apart")
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError("the scheduler ReduceLROnPlateau looks at validation data, and there are none")
        terms = torch.full((self.steps, 4), math.nan, device=self.result.device)
        self.state = TrainingState(self.svi, self.modules, scheduler, self.result.seed, terms)
        if resume is not None:
            self.state.restore(checked(resume, self.state, self.result.data.fingerprint))
            self.result.history[:] = self.state.history
        self.state.history = self.result.history
        self.result.state = lambda: {**self.state.capture(), "data": self.result.data.fingerprint}

    def run(self) -> None:
        """Train from the present state to the end, and call the callbacks."""
        self.svi.begin_stretch()
        self.tell("on_start", self.result)
        self.started = time.perf_counter() - self.state.seconds
        for module in self.modules:
            module.train()
        self._stop_early()  # a run that was over is over again
        while self.state.epoch < self.epochs and self.result.stopped is None:
            self._epoch()
        self.result.stopped = self.result.stopped or "finished"
        self.result.why_eager = self.svi.why_eager
        best = self.state.best
        if self.early_stopping is not None and best is not None and self.result.stopped != "interrupted":
            self.state.take_best()
            self.result.best_epoch = best["epoch"]
        for module in self.modules:
            module.eval()
        self.result.seconds = self.state.seconds = time.perf_counter() - self.started
        self.state.keep_random_state()
        self.tell("on_end", self.result)

    def tell(self, event: str, *arguments: Any) -> None:
        """Call every callback; their random draws do not change the run."""
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None:
                self.svi.begin_stretch()  # the callback may change anything
                with untouched_random_state():
                    method(*arguments)

    def _epoch(self) -> None:
        """Take the remaining steps of one epoch."""
        state = self.state
        good = state.capture()
        began, first = time.perf_counter(), state.step
        order = state.order(len(self.train))[first * self.batch_size :]
        for batch in self.train.batches(self.batch_size, order=order, device=self.result.device):
            state.note(self.svi.update(*batch))
            interrupted = self._asked_to_stop()
            if state.step % CHECK_EVERY == 0 or state.step == self.steps or interrupted:
                if not state.is_finite():
                    raise diagnose(state, good, self.train, self.batch_size, self.result.device)
                if found := state.impossible(self.limits, len(self.train), self.batch_size):
                    state.restore(good)
                    raise DivergedError(state.epoch + 1, *found, good, _CHECK)
                if state.step < self.steps:  # at its start the next epoch captures its own
                    good = state.capture()
                self._report(time.perf_counter() - began, state.step - first)
            if interrupted:
                self.result.stopped = "interrupted"
                break
        if state.step < self.steps:
            return
        state.end_epoch()
        record = self._make_record(len(order) / (time.perf_counter() - began))
        if self._wrong is not None:
            state.restore(good)
            raise DivergedError(state.epoch + 1, self.steps, f"on validation data {self._wrong}", good, _CHECK)
        self.result.history.append(record)
        self._schedule(record)
        self._note_best(record)
        self._stop_early()
        state.seconds = record["seconds"]
        self.tell("on_epoch", self.result, record)

    def _asked_to_stop(self) -> bool:
        if self.stop is None:
            return False
        self.svi.begin_stretch()
        return self.stop()

    def _make_record(self, rate: float) -> dict[str, float]:
        assert self.svi.optimizer is not None
        record = {
            "epoch": self.state.epoch,
            "step": self.state.epoch * self.steps,
            "lr": self.svi.optimizer.param_groups[0]["lr"],
            "rate": rate,
            **self.state.means().record(),
        }
        if self.state.epoch % self.validate_every == 0 or self.state.epoch == self.epochs:
            record.update(self._validate())
        record["seconds"] = time.perf_counter() - self.started
        return record

    def _validate(self) -> dict[str, float]:
        """Return the figures of the validation data, with the same noise every time."""
        split, run = self.result.data.validation, self.result
        if len(split) == 0:
            return {}
        results: list[BatchLoss] = []
        errors = 0.0
        with seeded(run.seed), evaluation_mode(*self.modules), torch.no_grad():
            for batch in split.batches(min(1000, len(split)), device=run.device):
                results.append(self.svi.evaluate(*batch))
                self._wrong = self._wrong or Means.of(results[-1:]).impossible(results[-1].limits, len(batch[0]))
                if isinstance(run.program, VAE):
                    difference = (batch[0] - run.program.reconstruct(*batch)).flatten(1).nan_to_num()  # NaN: missing
                    errors += float(difference.norm(dim=1).sum())
        record = Means.of(results).record("validation_")
        if isinstance(run.program, VAE):
            record["reconstruction_error"] = errors / len(split)
        return record

    def _schedule(self, record: dict[str, float]) -> None:
        scheduler = self.state.scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            if self._monitored(record) is not None:
                scheduler.step(-self._monitored(record))  # type: ignore[operator]
        elif scheduler is not None:
            scheduler.step()

    def _note_best(self, record: dict[str, float]) -> None:
        """Keep the parameters of an epoch that is the best so far, for early stopping."""
        score = self._monitored(record)
        if self.early_stopping is None or score is None:
            return
        score = -math.inf if math.isnan(score) else score
        if self.state.best is None or score > self.state.best["score"]:
            self.state.best = {**self.state.capture_parameters(), "epoch": int(record["epoch"]), "score": score}

    def _stop_early(self) -> None:
        """End the run if early stopping has waited long enough, a function of the history alone."""
        best = self.state.best
        if self.early_stopping is None or best is None:
            return
        later = [r for r in self.result.history if r["epoch"] > best["epoch"] and self._monitored(r) is not None]
        if len(later) >= self.early_stopping:
            self.result.stopped = "early stopping"

    @staticmethod
    def _monitored(record: dict[str, float]) -> float | None:
        return record.get(MONITOR, record.get("validation_bound"))

    def _report(self, seconds: float, steps_done: int) -> None:
        rate = steps_done / seconds
        left = (self.epochs - self.state.epoch) * self.steps - self.state.step
        progress = Progress(
            epoch=self.state.epoch + 1,
            epochs=self.epochs,
            step=self.state.step,
            steps=self.steps,
            elbo=self.state.means(last=min(steps_done, CHECK_EVERY)).elbo,
            rate=rate * self.batch_size,
            seconds_left=left / rate,
        )
        self.tell("on_progress", progress)

    @contextmanager
    def _batch_norm_checked(self) -> Iterator[None]:
        """Refuse a batch of one datum where batch normalisation would see only one value for each channel."""
        alone: list[nn.Module] = []

        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = min(self.batch_size, len(self.train))
            if inputs[0].numel() <= rows * inputs[0].shape[1]:
                alone.append(module)

        parts = {part for module in self.modules for part in module.modules() if isinstance(part, _BatchNorm)}
        hooks = [part.register_forward_pre_hook(look) for part in parts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if alone and 1 in (self.batch_size, len(self.train) % self.batch_size):
            raise ValueError(
                f"batch normalisation ({type(alone[0]).__name__}) cannot train on one datum, and {len(self.train)} "
                f"training data in batches of {self.batch_size} leave a last batch of one; choose another batch_size"
            )
