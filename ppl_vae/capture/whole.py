"""A captured step and the optimiser's update after it as one CUDA graph: training without Python between kernels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vae._words import first_line
from ppl_vae.capture.comparing import Outcome
from ppl_vae.capture.eager import Step
from ppl_vae.capture.replay import CudaReplay
from ppl_vae.capture.state import Snapshot, untouched
from ppl_vae.capture.step import CapturedStep
from ppl_vae.capture.tracing import CaptureError, NotNowError
from ppl_vae.objectives.losses import BatchLoss

logger = logging.getLogger(__name__)

_USES = 3  # of a graph, before the update joins it: a step that is taken once or twice does not repay the recording
_LEAST = 100  # uses that a recording should have before a setting of the optimiser changes
_MOST_SHORT = 5  # recordings with fewer uses, before the update stays outside


class Update(Protocol):
    """An optimiser as a recording sees it."""

    def why_outside(self, parameters: Sequence[Tensor]) -> str | None:
        """Say why no CUDA graph can hold this update; None where one can."""

    def held(self) -> tuple[Any, list[Tensor]]:
        """Return the settings that a recording freezes, and the tensors whose addresses it holds."""

    def mappings(self) -> list[tuple[Any, Any]]:
        """Return the mappings of its state and settings, each with a copy."""

    def step(self, parameters: Sequence[Tensor]) -> None:
        """Take a step."""


class Feed(Protocol):
    """The batches of an epoch and the figures of its steps in memory of the GPU, which steps draw and note themselves.

    Attributes:
        state: The tensors that `draw` and `note` read and write.
        written: Those of them that they write.
    """

    state: list[Tensor]
    written: list[Tensor]

    def fits(self, batch: Sequence[Tensor]) -> bool:
        """Whether `draw` gives tensors of these shapes."""

    def place(self) -> None:
        """Put the place of the next step into the memory that `draw` and `note` read."""

    def draw(self) -> Sequence[Tensor]:
        """Return the batch of the present step."""

    def note(self, loss: BatchLoss) -> None:
        """Store the figures of the present step, and go on to the next."""


class WholeStep:
    """A captured step, the clipping of its gradients and the optimiser's update as one CUDA graph.

    The recording is made for the optimiser's present settings and state: ask `holds` before a call. A learning rate is
    a tensor that it reads (`Update.held`), so that a schedule needs no other recording. The recording of the step alone
    stays for comparisons with the program, so that a step takes the memory of two; with a feed, of three.

    Args:
        graph: The captured step, whose `why_not_whole` is None.
        update: The optimiser, which has taken a step before.
        clip_norm: See `ppl_vae.SVI`.
        inputs: Inputs to record it with; what they change is put back. Beside a feed, those after its batch.
        feed: Draws the batch and notes the figures in the same graph, which then needs nothing of Python's; None where
            the caller does both.

    Raises:
        CaptureError: If the update cannot be recorded, or the recording does not compute what it computes eagerly.
    """

    def __init__(
        self,
        graph: CapturedStep,
        update: Update,
        clip_norm: float | None,
        inputs: Sequence[Tensor],
        feed: Feed | None = None,
    ) -> None:
        self._graph, self._update, self._clip_norm, self.feed = graph, update, clip_norm, feed
        self._settings, self._state = update.held()
        self.uses = 0
        gradients, state = [leaf.grad for leaf in graph.leaves], update.mappings()
        try:
            with untouched(self._written()):
                fed = [] if feed is None else feed.state
                self._replay = CudaReplay(self._taken, inputs, [*graph.on_gpu, *self._state, *fed])
            if not self.holds(clip_norm):
                raise NotNowError("the optimiser makes state or settings of its own in this step")
            difference = self._difference(inputs)
        except CaptureError:
            raise
        except RuntimeError as error:
            raise CaptureError(first_line(error)) from error
        finally:
            for leaf, gradient in zip(graph.leaves, gradients, strict=True):
                leaf.grad = gradient
            for own, before in state:
                own.clear()
                own.update(before)
        if difference is not None:
            raise CaptureError(difference)

    def holds(self, clip_norm: float | None) -> bool:
        """Whether the clipping, the optimiser's settings and its state are those of the recording."""
        settings, state = self._update.held()
        same = len(state) == len(self._state) and all(a is b for a, b in zip(state, self._state, strict=True))
        return same and settings == self._settings and clip_norm == self._clip_norm and not self._replay.moved()

    def __call__(self, *inputs: Tensor) -> Step:
        """Take the step and move the parameters. The gradients lie in memory that the next call overwrites."""
        self.uses += 1
        step = self._graph.form.step(self._replay(*inputs))
        terms: dict[str, Any] = {name: t for name, t in step.loss._asdict().items() if isinstance(t, Tensor)}
        own = list(map(torch.empty_like, terms.values()))
        torch._foreach_copy_(own, list(terms.values()))  # one kernel
        terms = dict(zip(terms, own, strict=True))
        return step._replace(loss=step.loss._replace(**terms))

    def repeated(self, count: int, *inputs: Tensor) -> Step:
        """Take steps on the feed's next batches. Gradients and loss are the last step's, as after a call."""
        for i in range(count - 1):
            self._replay(*(inputs if i == 0 else ()))
        self.uses += count - 1
        return self(*(inputs if count == 1 else ()))

    def _taken(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        step = self._moved(self._launched(*inputs))
        if self.feed is not None:
            self.feed.note(step.loss)
        return self._graph.form.flat(step)

    def _launched(self, *inputs: Tensor) -> Step:
        batch = () if self.feed is None else self.feed.draw()
        return self._graph.launched(*batch, *inputs)

    def _moved(self, step: Step) -> Step:
        """Move the parameters along the gradients of a step, which are clipped in place."""
        for leaf, gradient in zip(self._graph.leaves, step.gradients, strict=True):
            leaf.grad = gradient
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._graph.leaves, self._clip_norm)
        self._update.step(self._graph.leaves)
        return step

    def _written(self) -> list[Tensor]:
        return [*self._graph.written, *self._graph.leaves, *self._state, *(self.feed.written if self.feed else ())]

    def _difference(self, inputs: Sequence[Tensor]) -> str | None:
        """Say where the recording differs from a step and an update that are taken one after the other.

        The gradients may differ by roundings. Along the same gradients the update has the same bits.
        """
        before = Snapshot(self._written())
        try:
            ours, after = Outcome(self(*inputs), Snapshot(self._graph.written)), self._copies()
            gradients = [g.clone() for g in ours.step.gradients if g is not None]
            ours = ours._replace(step=ours.step._replace(gradients=list(gradients)))
            before.put_back()
            theirs = Outcome(self._moved(self._launched(*inputs)), Snapshot(self._graph.written))
            before.put_back()
            if difference := self._graph.difference(ours, theirs, lambda: self._launched(*inputs)):
                return difference
            before.put_back()
            for leaf, gradient in zip(self._graph.leaves, gradients, strict=True):
                leaf.grad = gradient
            self._update.step(self._graph.leaves)
            same = all(torch.equal(a, b) for a, b in zip(after, self._copies(), strict=True))
            return None if same else "the recorded update moves the parameters otherwise than the optimiser does"
        finally:
            before.put_back()
            self.uses = 0

    def _copies(self) -> list[Tensor]:
        return [t.detach().clone() for t in (*self._graph.leaves, *self._state)]


def take_whole(graph: CapturedStep, update: Update, clip_norm: float | None, inputs: Sequence[Tensor]) -> Step | None:
    """Take a step with its update, or return None where the two must be taken one after the other.

    The recording is made where a graph is used again and again, and stays in it (`CapturedStep.whole`) until the
    optimiser changes. The arguments are those of `WholeStep`.
    """
    if graph.why_apart is not None or graph.uses < _USES:
        return None
    if graph.whole is None or not graph.whole.holds(clip_norm):
        _record(graph, update, clip_norm, inputs)
    return None if graph.whole is None else graph.whole(*inputs)


def _record(graph: CapturedStep, update: Update, clip_norm: float | None, inputs: Sequence[Tensor]) -> None:
    old, graph.whole, graph.fed = graph.whole, None, None
    graph.short += old is not None and old.uses < _LEAST
    graph.why_apart = update.why_outside(graph.leaves)
    if graph.why_apart is None and graph.short >= _MOST_SHORT:
        graph.why_apart = "its settings change after a few steps"
    if graph.why_apart is None:
        try:
            graph.whole = WholeStep(graph, update, clip_norm, inputs)
        except NotNowError:
            graph.short += 1
        except CaptureError as error:
            graph.why_apart = str(error)
    if graph.why_apart is not None:
        logger.info("the optimiser's update runs outside of the CUDA graph of the step: %s", graph.why_apart)


def take_fed(
    graph: CapturedStep, update: Update, clip_norm: float | None, inputs: Sequence[Tensor], feed: Feed, count: int
) -> Step | None:
    """Take steps on the next batches of a feed, or return None where they must be taken one by one.

    The recording is made once the step is a whole one, and stays in it (`CapturedStep.fed`). `inputs` are those after
    the batch; the other arguments are those of `WholeStep`.
    """
    if graph.whole is None or graph.why_unfed is not None or not graph.whole.holds(clip_norm):
        return None
    feed.place()
    if graph.fed is None or graph.fed.feed is not feed or not graph.fed.holds(clip_norm):
        graph.fed = None
        try:
            graph.fed = WholeStep(graph, update, clip_norm, inputs, feed)
        except NotNowError:
            return None
        except CaptureError as error:
            graph.why_unfed = str(error)
            logger.info("batches are drawn outside of the CUDA graph of the step: %s", error)
            return None
    step = graph.fed.repeated(count, *inputs)
    graph.whole.uses += count  # what its recording is worth
    return step
