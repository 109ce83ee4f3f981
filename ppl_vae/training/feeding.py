"""The batches of an epoch in memory of a GPU, where steps draw them and note their figures without Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vae.data import Split
from ppl_vae.objectives.losses import BatchLoss


class EpochFeed:
    """Draws the batches of an epoch by tensors alone, of which a CUDA graph can be made (`capture.whole.Feed`).

    Args:
        split: The data; its columns are tensors on one device.
        batch_size: Rows in a batch.
        terms: Where the figures of a step stand, one row a step (`TrainingState.terms`).

    Attributes:
        whole: The number of batches in an epoch, without one that is smaller.
    """

    def __init__(self, split: Split, batch_size: int, terms: Tensor) -> None:
        self._split, self._size, self._terms = split, batch_size, terms
        self._order = torch.zeros(len(split), dtype=torch.int64, device=terms.device)
        self.whole = len(split) // batch_size
        self._by_batch = self._order[: self.whole * batch_size].view(self.whole, batch_size)
        self._at, self._placed = 0, False  # the step to go on at, and whether the memory has it
        self._step = torch.zeros(1, dtype=torch.int64, device=terms.device)
        self._numbers: dict[float | None, Tensor] = {}
        columns = [column for column in split.columns if isinstance(column, Tensor)]
        self.state = [*columns, self._order, self._step, terms]
        self.written = [self._step, terms]

    def begin(self, order: Tensor) -> None:
        """Begin an epoch with its order of the rows."""
        self._order.copy_(order)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the batch of a step (from 0)."""
        return self._split.gathered(self._order[step * self._size : (step + 1) * self._size])

    def fits(self, batch: Sequence[Tensor]) -> bool:
        """Whether `draw` gives tensors of these shapes."""
        return [t.shape for t in batch] == [(self._size, *column.shape[1:]) for column in self._split.columns]

    def go_on_at(self, step: int) -> None:
        """Say at which step (from 0) the next stretch begins."""
        self._at, self._placed = step, False

    def place(self) -> None:
        """Let `draw` and `note` go on there."""
        self._step.fill_(self._at)
        self._placed = True

    def reached(self) -> int:
        """Return the step that the stretch has come to; waits for the GPU."""
        return int(self._step) if self._placed else self._at

    def draw(self) -> tuple[Tensor, ...]:
        """Return the batch of the present step, one of the first `whole`."""
        return self._split.gathered(self._by_batch.index_select(0, self._step)[0])

    def note(self, loss: BatchLoss) -> None:
        """Store the figures of the present step as `TrainingState.note` does, and go on to the next."""
        known = loss.kl is not None and loss.log_likelihood is not None
        figures = [loss.loss, loss.log_likelihood, loss.kl, loss.weight] if known else [loss.loss, loss.weight]
        row = torch.stack([f.to(self._terms) if isinstance(f, Tensor) else self._number(f) for f in figures])
        self._terms[:, :: 1 if known else 3].index_copy_(0, self._step, row[None])
        self._step += 1

    def _number(self, value: float | None) -> Tensor:
        """Return a number as a tensor, made once: a CUDA graph would fill another at each step."""
        if value not in self._numbers:
            self._numbers[value] = self._terms.new_full((), float("nan") if value is None else value)
        return self._numbers[value]
