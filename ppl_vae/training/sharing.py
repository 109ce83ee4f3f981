"""What the processes of one training do together beside its steps: they agree, look whether they can share, compare."""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import nn

from ppl_vae._scopes import kept_modes, seeded
from ppl_vae.capture import buffers_of
from ppl_vae.data import Split
from ppl_vae.svi import SVI
from ppl_vae.training.parts import CoupledError, Parts, share_out, tells_rows
from ppl_vae.training.ranks import PartLoss, Ranks
from ppl_vae.training.state import TrainingState

MOST_REHEARSED = 1000  # rows beyond a process's share: its memory need not hold a whole batch


@dataclass
class Sharing:
    """The sharing of one training among processes.

    Attributes:
        compared: The epoch after which the processes were last compared.
    """

    svi: SVI
    modules: list[nn.Module]
    train: Split
    state: TrainingState
    ranks: Ranks
    batch_size: int
    compared: int = 0

    def begin(self, given: tuple[Any, ...]) -> None:
        """Give all processes the state of the first, look how they can share batches, and exchange from now on.

        Args:
            given: The arguments of `fit` that are to be the same on all.

        Raises:
            ValueError: If the processes have other parameters, other arguments or another state to go on from.
            CoupledError: If they cannot share batches.
        """
        self._check_alike(given)
        held = [p for module in self.modules for p in module.parameters()]  # Pyro's store lacks those that are frozen
        whole = {id(t): t for t in (*self.svi.parameters.values(), *held, *buffers_of(self.modules))}
        self.ranks.spread(list(whole.values()))
        self.ranks.share_random_state()
        self._look_first()
        self.svi.exchange = self.ranks.exchange

    def _check_alike(self, given: tuple[Any, ...]) -> None:
        shapes = [(name, tuple(p.shape), p.dtype) for name, p in self.svi.parameters.items()]
        texts = (shapes, given, (self.state.epoch, self.state.step))
        what = ("parameters of other names or shapes", "other arguments of fit", "other states to resume from")
        found = self.ranks.differ(*(zlib.crc32(repr(text).encode()) for text in texts))
        if any(found):
            raise ValueError(
                f"the processes of the run have {what[found.index(True)]}; expected the same call of fit on each, with "
                "the same program, arguments and resume"
            )

    def _look_first(self) -> None:
        """Look how the processes can share batches, from the state in which the run begins."""
        objective = getattr(self.svi.loss, "objective", self.svi.loss)
        particles = getattr(objective, "num_particles", 1) if getattr(objective, "vectorize_particles", True) else 1
        self.svi.loss = PartLoss(self.svi.loss, particles)
        parts = self._share_out(max(2, min(self.batch_size, MOST_REHEARSED)))
        self.compared = self.state.epoch
        self.ranks.own_noise, self.ranks.averaged = self.ranks.agree(parts.own_noise), parts.averaged
        if self.ranks.own_noise:
            warnings.warn(
                "the noise of this program cannot be split by data, so that each process draws noise of its own: "
                "the run is another one with another number of processes",
                stacklevel=5,
            )

    def look_again(self) -> None:
        """Look again, since what couples data may begin late.

        Raises:
            CoupledError: If something couples them; the parameters stay as they are.
        """
        least = math.ceil(self.batch_size / self.ranks.team.size) + 1
        size = next(n for n in itertools.count(least) if tells_rows(n, self.svi.loss.particles))  # type: ignore[attr-defined]
        try:
            self._share_out(size)
        except CoupledError as error:
            raise CoupledError(
                f"after epoch {self.state.epoch} {error}; from epoch {self.compared + 1} on the run may differ from "
                "that of one process"
            ) from error
        self.compared = self.state.epoch

    def _share_out(self, size: int) -> Parts:
        """Look whether processes can share batches, and compute the same, on so many rows of this epoch.

        The run's state stays as it is. The step runs in the precision of its parameters: a rounded sum over a batch is
        not the sum over its parts.
        """
        exchange, self.svi.exchange = self.svi.exchange, None
        order = self.state.order(len(self.train))[:size]
        try:
            with seeded(self.state.seed), pyro.validation_enabled(False), kept_modes(*self.modules):
                for module in self.modules:
                    module.train()
                batch = next(self.train.batches(len(order), order=order, device=self.ranks.device))
                batch = tuple(column.clone() for column in batch)
                self.ranks.spread(batch)  # where the data draw some themselves
                parts = self.ranks.together(lambda: share_out(self.svi, self.modules, batch))
        finally:
            self.svi.exchange = exchange
        if any(self.ranks.differ(*parts.terms, within=1e-5)):  # which machines of several kinds keep to
            raise CoupledError(
                "the processes compute different losses of the same data: give each the same program and objective, "
                "and change them on all (callbacks run on the first one only; a regularizer's schedule runs on each)"
            )
        return parts

    def keep_together(self) -> None:
        """Compare the processes: they have the same parameters, and the same random state where they share noise.

        Raises:
            RuntimeError: If their parameters differ.
        """
        norms = torch.stack(torch._foreach_norm([p.detach() for p in self.svi.parameters.values()]))
        parted, drifted = self.ranks.differ(norms.double().sum(), self.ranks.random_digest())
        if parted:
            raise RuntimeError(
                f"the processes' parameters have parted by step {self.state.step} of epoch {self.state.epoch + 1}: "
                "something changes the program, the optimiser or the data on one of them alone (callbacks run on the "
                "first one only)"
            )
        if drifted and not self.ranks.own_noise:
            self.ranks.share_random_state()
            warnings.warn(
                "the processes drew different numbers of random values, as where the data draw some themselves: the "
                "run does not repeat what one process computes",
                stacklevel=2,
            )
