"""The processes of one training under `torch.distributed`: what each computes, and what they exchange.

Every rank holds the whole program and takes a share of each batch. After the backward pass of a step one all-reduce
sums the gradients, the loss and its terms, and the moving averages of the program. Then every rank takes the same step
of the optimiser. In a process alone nothing of this happens.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ppl_vae._noise import RowNoise
from ppl_vae._team import Team
from ppl_vae._words import first_line, one_line
from ppl_vae.objectives.losses import BatchLoss, Loss, Program

T = TypeVar("T")


class RankLostError(RuntimeError):
    """An exchange between the processes of a run that failed, usually since one of them has ended.

    Attributes:
        good_state: The last good state of the run, as `ppl_vae.checkpoints.save` writes it, the same on every rank;
            empty before the first step.
        rank: The process that has failed, where its error is known.
    """

    def __init__(self, error: RuntimeError) -> None:
        reason = first_line(error)
        super().__init__(
            f"the processes of the run cannot exchange their gradients any more, since one of them has ended or cannot "
            f"be reached ({reason}): resume the run from its checkpoint"
        )
        self.good_state: dict[str, Any] = {}
        self.rank: int | None = None


class PartLoss(NamedTuple):
    """A loss on some rows of a batch, with the noise of these rows; without `rows` the loss as it is.

    `whole` ranges over the whole batch. It is empty where every row is to have the same noise.
    """

    loss: Loss
    particles: int

    @property
    def objective(self) -> object:
        """The objective of the loss."""
        return getattr(self.loss, "objective", self.loss)

    def __call__(
        self, program: Program, *args: Any, rows: range | None = None, whole: range | None = None, **kwargs: Any
    ) -> BatchLoss:
        """Evaluate the loss."""
        if rows is None or whole is None:
            return self.loss(program, *args, **kwargs)
        with RowNoise(rows, len(whole) or None, self.particles):
            return self.loss(program, *args, **kwargs)


@dataclass
class Ranks:
    """This process among those of a run.

    Attributes:
        team: Its place among them.
        own_noise: Whether it draws noise of its own, where noise cannot be split by rows.
        averaged: The tensors of the program that a step moves towards the mean of a batch.
        stopping: Whether this rank asks to end the run after the next step.
        stopped: Whether a rank has asked for it with the last step.
        counted: Whether this rank's rows of the present batch count: a batch may have fewer rows than there are ranks.
        device: Where the run's figures are exchanged.
    """

    team: Team
    own_noise: bool = False
    averaged: Sequence[Tensor] = ()
    stopping: bool = False
    counted: bool = True
    device: str = "cpu"
    stopped: bool = False
    _names: tuple[str, ...] | None = None  # of the parameters, in every exchange

    def arguments(self, total: int) -> dict[str, range]:
        """Return the arguments that tell a `PartLoss` its rows of a batch of `total`."""
        if self.team.size == 1:
            return {}
        self.counted = bool(self.team.rows(total))
        return {} if self.own_noise else {"rows": self.team.taken(total), "whole": range(total)}

    def noise(self, total: int) -> AbstractContextManager[Any]:
        """Return a context in which what is drawn for this rank's rows of a batch is drawn for the whole batch."""
        if self.team.size == 1 or self.own_noise:
            return nullcontext()
        return RowNoise(self.team.taken(total), total)

    def seed_of(self, seed: int, *place: int) -> int:
        """Return the seed of this rank's own noise at a place of the run; the run's seed where noise is shared."""
        if not self.own_noise:
            return seed
        words = " ".join(map(str, (seed, *place, self.team.rank)))
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7])

    def begin_step(self, seed: int, *place: int) -> None:
        """Seed a step's own noise, which then depends on the place in the run alone, so that nothing need be saved."""
        if self.own_noise:
            torch.manual_seed(self.seed_of(seed, *place))

    # exchanges; each takes place on all ranks, in the same order ---------------------------------------------------

    def exchange(self, parameters: Mapping[str, Tensor], result: BatchLoss) -> BatchLoss:
        """Replace the gradients of this rank's mean by those of the whole batch's; return the whole batch's loss.

        Raises:
            ValueError: If a parameter has appeared since the first exchange.
            RankLostError: If the exchange fails.
        """
        if self._names is None:
            self._names = tuple(parameters)
        if self._names != tuple(parameters):
            new = [name for name in parameters if name not in self._names]
            raise ValueError(
                f"the parameter {new[0]!r} appears after the first batch, which the processes of one run cannot join "
                "in: register every parameter in each run of model and guide"
            )
        leaves = list(parameters.values())
        dtype = functools.reduce(torch.promote_types, (leaf.dtype for leaf in leaves), torch.float32)
        terms = (result.weight, result.loss, result.log_likelihood, result.kl, float(self.stopping))
        with torch.no_grad():
            sums = torch.stack([_number(term, leaves[0], dtype) for term in terms])
            has = sums.new_tensor([leaf.grad is not None for leaf in leaves])
            means = [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves] + list(self.averaged)
            flat = torch.cat([m.detach().to(dtype).reshape(-1) for m in means]) * sums[0]
            flat = torch.cat([flat, sums, has])
            if not self.counted:  # a row of another rank was computed, and no number of it counts
                flat = torch.zeros_like(flat)
            with _lost():
                dist.all_reduce(flat)
            total, sums, has = flat.split([len(flat) - len(sums) - len(has), len(sums), len(has)])
            stops, *found = torch.cat([sums[-1:], has]).tolist()
            pieces = (total / sums[0]).split([m.numel() for m in means])
            for leaf, piece, somewhere in zip(leaves, pieces, found, strict=False):
                leaf.grad = piece.view_as(leaf).to(leaf.dtype) if somewhere else None
            for tensor, piece in zip(self.averaged, pieces[len(leaves) :], strict=True):
                tensor.copy_(piece.view_as(tensor))
        self.stopped = stops > 0
        return _replaced(result, sums)

    def summed(self, numbers: Tensor) -> Tensor:
        """Return the sum over ranks; the tensor itself alone."""
        if self.team.size > 1:
            with _lost():
                dist.all_reduce(numbers)
        return numbers

    def gathered(self, result: BatchLoss) -> BatchLoss:
        """Return the loss of the whole batch from that of this rank's share."""
        if self.team.size == 1:
            return result
        terms = (result.weight, result.loss, result.log_likelihood, result.kl)
        sums = torch.stack([_number(term, result.loss, result.loss.dtype) for term in terms])
        return _replaced(result, self.summed(sums if self.counted else torch.zeros_like(sums)))

    def together(self, act: Callable[[], T]) -> T:
        """Act on every rank; an error on one of them ends all.

        Raises:
            Exception: The error of this rank.
            RankLostError: If another rank failed, and this one did not.
        """
        if self.team.size == 1:
            return act()
        error: Exception | None = None
        try:
            result = act()
        except RankLostError:
            raise
        except Exception as found:
            error = found
        if self.summed(torch.tensor(float(error is not None), device=self.device)):
            text = None if error is None else one_line(f"{type(error).__name__}: {error}")
            with _lost():
                said = self.team.gather(text, "errors")
            rank, text = next((rank, text) for rank, text in enumerate(said) if text is not None)
            if error is not None:
                raise error
            lost = RankLostError(RuntimeError(f"process {rank} failed, {text}"))
            lost.rank = rank
            raise lost
        return result

    def agree(self, value: T) -> T:
        """Return the value of rank 0."""
        with _lost():
            return self.team.gather(value, "what they agree on")[0]

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the tensors of rank 0."""
        with torch.no_grad(), _lost():
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)

    def random_digest(self) -> float:
        """Return a digest of torch's random states that a run uses: of the CPU and of its device."""
        return float(zlib.crc32(b"".join(state.numpy().tobytes() for state in self._random_states())))

    def share_random_state(self) -> None:
        """Take the random states of the first process, on the CPU and on this process's device."""
        first, *of_device = self.agree([state.clone() for state in self._random_states()])
        torch.set_rng_state(first)
        for state in of_device:
            torch.cuda.set_rng_state(state, self.device)

    def _random_states(self) -> list[Tensor]:
        on_gpu = self.device.startswith("cuda")
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if on_gpu else [])]

    def differ(self, *numbers: Tensor | float, within: float = 0.0) -> list[bool]:
        """Return for each number whether it differs between ranks, by more than a share of its size."""
        mine = torch.tensor([float(n) for n in numbers], dtype=torch.float64, device=self.device)
        both = torch.cat([mine, -mine])
        with _lost():
            dist.all_reduce(both, dist.ReduceOp.MAX)
        most, least = both.chunk(2)
        return (~(most + least <= within * most.abs())).tolist()


@contextmanager
def _lost() -> Iterator[None]:
    """Name the error of an exchange."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(error) from error


def _number(value: Tensor | float | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(0.0 if value is None else value, dtype=dtype, device=like.device).detach()


def _replaced(result: BatchLoss, sums: Tensor) -> BatchLoss:
    """Return a loss with the sums of its weight and terms over the ranks."""
    weight, loss, log_lik, kl = sums[:4]
    known = result.kl is not None and result.log_likelihood is not None
    return result._replace(
        weight=weight, loss=loss, log_likelihood=log_lik if known else None, kl=kl if known else None
    )
