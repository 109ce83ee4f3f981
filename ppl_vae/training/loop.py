"""The loop of one `fit`: epochs of steps, validation, schedules, early stopping, and calls of the callbacks."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae._scopes import evaluation_mode, seeded, untouched_random_state
from ppl_vae.capture.replay import is_on_gpu
from ppl_vae.data import Dataset, Split
from ppl_vae.data.streams import ItemSplit, Stream
from ppl_vae.objectives.impossible import Limits
from ppl_vae.objectives.losses import BatchLoss
from ppl_vae.programs import SemiSupervisedVAE
from ppl_vae.svi import SVI
from ppl_vae.training.diagnosing import diagnose
from ppl_vae.training.feeding import EpochFeed
from ppl_vae.training.parts import CoupledError
from ppl_vae.training.ranks import RankLostError, Ranks
from ppl_vae.training.rehearsal import CHECK, rehearse
from ppl_vae.training.resuming import checked
from ppl_vae.training.run import Callback, Progress, Run
from ppl_vae.training.sharing import MOST_REHEARSED, Sharing
from ppl_vae.training.state import DivergedError, Means, TrainingState, optimizer_of
from ppl_vae.vae import VAE

CHECK_EVERY = 100  # steps between two checks of the losses: the last good state is never further back


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
    rounded: Callable[[], AbstractContextManager[None]]  # the precision of a step
    ranks: Ranks  # this process among those of the run
    state: TrainingState = field(init=False)  # made by `prepare`
    started: float = field(init=False, default=0.0)  # the clock's time minus this is the run's time
    limits: Limits = field(init=False, default=Limits())  # of the program, found by `rehearse`
    _sizes: list[int] = field(init=False, default_factory=list)  # of the batches of this epoch
    _wrong: str | None = field(init=False, default=None)  # the impossible figure of the last validation
    sharing: Sharing | None = field(init=False, default=None)  # among several processes, made by `prepare`
    feed: EpochFeed | None = field(init=False, default=None)  # of data that lie on a GPU, made by `prepare`
    _good: dict[str, Any] = field(init=False, default_factory=dict)  # the last good state

    def __post_init__(self) -> None:
        self.train = self.result.data.train
        self.streamed = isinstance(self.train, Stream)  # an epoch is as long as its loader, which is read to know
        self.unseen = self.streamed or isinstance(self.train, ItemSplit)  # data that only a batch shows
        self.steps = 0 if self.streamed else math.ceil(len(self.train) / self.batch_size)

    def rehearse(self) -> None:
        """Run everything once under full validation, without moving state, to refuse now what cannot work."""
        share = math.ceil(self.batch_size / self.ranks.team.size)
        size = max(share, min(self.batch_size, MOST_REHEARSED))
        with self.rounded():
            rehearsed = functools.partial(rehearse, self.result, self.svi, self.modules, size)
            self.limits = self.ranks.together(rehearsed)

    def prepare(self, resume: dict[str, Any] | None) -> None:
        """Make optimiser and scheduler, and restore the state of an earlier run if there is one."""
        self.svi.prepare()
        optimizer = optimizer_of(self.svi)
        try:
            scheduler = None if self.make_scheduler is None else self.make_scheduler(optimizer)
        except TypeError as error:
            raise ValueError(f"the scheduler cannot be made: {error}") from error
        if len(self.result.data.validation) == 0:
            if self.early_stopping is not None:
                raise ValueError("early_stopping looks at validation data, and there are none; set some apart")
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError("the scheduler ReduceLROnPlateau looks at validation data, and there are none")
        kinds = {p.dtype for p in self.svi.parameters.values()}
        dtype = torch.float64 if torch.float64 in kinds else torch.float32  # of figures: as exact as the program
        terms = torch.full((self.steps or CHECK_EVERY, 4), math.nan, device=self.result.device, dtype=dtype)
        self.state = TrainingState(self.svi, self.modules, scheduler, self.result.seed, terms, self.batch_size)
        if resume is not None:
            if self.streamed and resume.get("step"):
                warnings.warn(
                    f"the run stopped after {resume['step']} steps of epoch {resume['epoch'] + 1}, and a loader can "
                    "only be entered at its start: this epoch begins again, with the parameters as they are",
                    stacklevel=3,
                )
                resume = {**resume, "step": 0, "terms": resume["terms"][:0]}
            self.state.restore(checked(resume, self.state, self.result.data.fingerprint))
            self.result.history[:] = self.state.history
        self.state.history = self.result.history
        if self.ranks.team.size > 1:
            self.sharing = Sharing(self.svi, self.modules, self.train, self.state, self.ranks, self.batch_size)
            self.sharing.begin(
                (self.epochs, self.batch_size, self.validate_every, self.early_stopping, self.svi.clip_norm)
            )
        alone = type(self.train) is Split and self.ranks.team.size == 1  # a subclass may have batches of its own
        columns = self.train.columns if alone else ()
        if columns and all(isinstance(column, torch.Tensor) and is_on_gpu(column) for column in columns):
            self.feed = EpochFeed(self.train, self.batch_size, self.state.terms)
        self.result.state = lambda: {**self.state.capture(), "data": self.result.data.fingerprint}

    def run(self) -> None:
        """Train from the present state to the end, and call the callbacks."""
        try:
            self._run()
        except RankLostError as error:
            error.good_state = self._good and {**self._good, "data": self.result.data.fingerprint}
            raise

    def _run(self) -> None:
        self.svi.begin_stretch()
        self.tell("on_start", self.result)
        self.started = time.perf_counter() - self.state.seconds
        for module in self.modules:
            module.train()
        self._stop_early()  # a run that was over is over again
        while self.state.epoch < self.epochs and self.result.stopped is None:
            self._epoch()
        if self.sharing is not None and self.state.history and not self.state.step:
            try:
                self.sharing.look_again()
            except CoupledError as error:
                warnings.warn(str(error), stacklevel=4)
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
        """Call every callback, of several processes on the first; their random draws do not change the run."""

        def call() -> None:
            for callback in self.callbacks if self.ranks.team.is_first else ():
                method = getattr(callback, event, None)
                if method is not None:
                    self.svi.begin_stretch()  # the callback may change anything
                    with untouched_random_state():
                        method(*arguments)

        if event == "on_error":  # others may be gone
            call()
        else:
            self.ranks.together(call)

    def _epoch(self) -> None:
        """Take the remaining steps of one epoch."""
        state = self.state
        if self.streamed:
            self.steps = 0
        self._good = state.capture()
        if self.sharing is not None and state.epoch & (state.epoch - 1) == 0 < state.epoch and not state.step:
            self.sharing.look_again()
        began, first, interrupted = time.perf_counter(), state.step, False
        self._sizes = [self.batch_size] * first
        still = not self.unseen and all(isinstance(column, torch.Tensor) for column in self.train.columns)
        if self.feed is not None:
            self.feed.begin(state.order(len(self.train)))
        batches = self._batches()
        while True:
            if not self._follow():
                batch = next(batches, None)
                if batch is None:
                    break
                if not still:  # what reads the data may have changed anything
                    self.svi.begin_stretch()
                size = self._size_of(batch)
                with self.rounded():
                    result = self.svi.update(*batch, **self.ranks.arguments(size))
                state.note(result)
                self._sizes.append(size)
            interrupted = self._asked_to_stop()
            if state.step % CHECK_EVERY == 0 or state.step == self.steps or interrupted:
                self._look_back(time.perf_counter() - began, state.step - first)
            if interrupted:
                self.result.stopped = "interrupted"
                break
        if self.streamed and not interrupted:
            self._end_stream(time.perf_counter() - began)
        if state.step != self.steps:
            return
        rows = sum(self._sizes[first:])
        state.epoch, state.step = state.epoch + 1, 0
        record = self._make_record(rows / (time.perf_counter() - began))
        if self._wrong is not None:
            state.restore(self._good)
            raise DivergedError(state.epoch + 1, self.steps, f"on validation data {self._wrong}", self._good, CHECK)
        self.result.history.append(record)
        self._schedule(record)
        self._note_best(record)
        self._stop_early()
        state.seconds = record["seconds"]
        self.tell("on_epoch", self.result, record)

    def _follow(self) -> int:
        """Take the steps up to the next look back, as far as the GPU can without Python; return how many were taken."""
        state, feed = self.state, self.feed
        if feed is None:
            return 0
        most = min(CHECK_EVERY - state.step % CHECK_EVERY, feed.whole - state.step)
        feed.go_on_at(state.step)
        try:
            with self.rounded():
                taken = self.svi.follow(feed, most)
            state.step += taken
        except BaseException:  # as Ctrl-C: the state that is kept must say how many steps were taken
            state.step = feed.reached()
            raise
        self._sizes += [self.batch_size] * taken
        return taken

    def _batches(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the remaining batches of the epoch; look at those that nobody has seen."""
        state, vae = self.state, self.result.program
        if self.feed is not None:
            while state.step < self.steps:
                yield self.feed.batch(state.step)
            return
        order = None if self.streamed else state.order(len(self.train))[state.step * self.batch_size :]
        self.ranks.begin_step(state.seed, state.epoch, state.step)
        for batch in self.train.batches(self.batch_size, order=order, device=self.result.device, team=self.ranks.team):
            if self.unseen and state.epoch == 0 and isinstance(vae, VAE):
                vae.check_support(Dataset.of("a batch", Split(batch)))
            yield batch
            self.ranks.begin_step(state.seed, state.epoch, state.step)

    def _size_of(self, batch: tuple[torch.Tensor, ...]) -> int:
        """Return the number of rows of the whole batch, of which this process has a share."""
        if self.ranks.team.size == 1:
            return len(batch[0])
        return min(self.batch_size, len(self.train) - self.state.step * self.batch_size)

    def _look_back(self, seconds: float, steps_done: int) -> None:
        """Find what went wrong since the last look, keep the state if nothing did, and report the progress."""
        state, good = self.state, self._good
        # The copy is made before anything waits for a GPU. At the end of an epoch the next one captures its own.
        present = None if state.step == self.steps else state.capture()
        if not state.is_finite():
            train = None if self.streamed else self.train
            with self.rounded():
                raise diagnose(state, good, train, self.result.device, self.ranks)
        if found := state.impossible(self.limits, self._sizes, good["step"]):
            state.restore(good)
            raise DivergedError(state.epoch + 1, *found, good, CHECK)
        if self.sharing is not None:
            self.sharing.keep_together()
            present = None if present is None else state.capture()  # a random state that drifted is another now
        self._good = present or good
        self._report(seconds, steps_done)

    def _end_stream(self, seconds: float) -> None:
        """Learn the number of steps from a pass over a loader that has come to its end."""
        state = self.state
        self.steps = state.step
        if not state.step:
            raise ValueError(
                f"the loader gave no batch in epoch {state.epoch + 1}: it can be read once; give one whose __iter__ "
                "starts afresh, or epochs=1"
            )
        state.terms = state.terms[: state.step]
        self._look_back(seconds, state.step)

    def _asked_to_stop(self) -> bool:
        """Whether the run ends after this step; of several processes each may ask, with its next step."""
        asked = False
        if self.stop is not None:
            self.svi.begin_stretch()
            asked = self.stop()
        if self.ranks.team.size == 1:
            return asked
        self.ranks.stopping = asked
        return self.ranks.stopped

    def _make_record(self, rate: float) -> dict[str, float]:
        record = {
            "epoch": self.state.epoch,
            "step": self.steps + (self.result.history[-1]["step"] if self.result.history else 0),
            "lr": optimizer_of(self.svi).param_groups[0]["lr"],
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
        sums = torch.zeros(3, dtype=torch.float64)  # of errors of reconstruction and of classification, and their data
        size, ranks = min(1000, len(split)), self.ranks
        with seeded(ranks.seed_of(run.seed)), evaluation_mode(*self.modules), torch.no_grad(), self.svi.draws:
            for number, batch in enumerate(split.batches(size, device=run.device, team=ranks.team)):
                total = min(size, len(split) - number * size)
                results.append(ranks.gathered(self.svi.evaluate(*batch, **ranks.arguments(total))))
                self._wrong = self._wrong or Means.of(results[-1:]).impossible(results[-1].limits, total)
                if isinstance(run.program, VAE):
                    with ranks.noise(total):
                        mean = run.program.reconstruct(*batch)
                    difference = (batch[0] - mean).flatten(1).nan_to_num()  # NaN: missing
                    sums[0] += float(difference.norm(dim=1).sum()) * ranks.counted
                if isinstance(run.program, SemiSupervisedVAE):
                    mistakes = run.program.mistakes(*batch).double()
                    sums[1:] += torch.tensor([float(mistakes.sum()), len(mistakes)]) * ranks.counted
        record = Means.of(results).record("validation_")
        errors, mistaken, labelled = ranks.summed(sums.to(ranks.device)).tolist()
        if isinstance(run.program, VAE):
            record["reconstruction_error"] = errors / len(split)
        if labelled:
            record["classification_error"] = mistaken / labelled
        return record

    def _schedule(self, record: dict[str, float]) -> None:
        scheduler, score = self.state.scheduler, self._monitored(record)
        if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        elif scheduler is not None and score is not None:
            scheduler.step(-score)

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
        return record.get("validation_elbo", record.get("validation_bound"))

    def _report(self, seconds: float, steps_done: int) -> None:
        rate = steps_done / seconds
        steps = self.steps or self.train.num_batches(self.batch_size)  # None: nothing tells
        left = math.nan if steps is None else max(0, (self.epochs - self.state.epoch) * steps - self.state.step)
        progress = Progress(
            epoch=self.state.epoch + 1,
            epochs=self.epochs,
            step=self.state.step,
            steps=steps or 0,
            elbo=self.state.means(last=min(steps_done, CHECK_EVERY)).elbo,
            rate=sum(self._sizes[-steps_done:]) / seconds,
            seconds_left=left / rate,
        )
        self.tell("on_progress", progress)
