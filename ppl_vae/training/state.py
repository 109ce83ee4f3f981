"""The state of a training run: its figures, its capture and its restoration."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ppl_vae._tensors import copied
from ppl_vae.objectives.impossible import Limits, impossible
from ppl_vae.objectives.losses import BatchLoss
from ppl_vae.svi import SVI

_SLOWER = "lower the learning rate, or clip the gradient (clip_norm)"


class DivergedError(RuntimeError):
    """A loss or a gradient that is not finite, or a figure that no model gives (a bound above 0 for discrete data).

    The program has been put back to its last good state.

    Attributes:
        epoch: The epoch of the step, from 1.
        step: The step within the epoch, from 1.
        term: The first term that went bad, in words.
        good_state: The last good state, as `ppl_vae.checkpoints.save` writes it.
    """

    def __init__(self, epoch: int, step: int, term: str, good_state: dict[str, Any], fix: str = _SLOWER) -> None:
        super().__init__(
            f"training diverged at step {step} of epoch {epoch}: {term}; the parameters are back at step "
            f"{good_state['step']} of epoch {good_state['epoch'] + 1}: {fix}"
        )
        self.epoch = epoch
        self.step = step
        self.term = term
        self.good_state = good_state


class Means(NamedTuple):
    """Means per datum, in nats.

    Attributes:
        loss: The mean of minus the objective's value.
        log_likelihood: The mean of log p(x|z); None where the program gives no terms of an ELBO.
        kl: The mean of the KL; None where the program gives no terms of an ELBO.
    """

    loss: float
    log_likelihood: float | None = None
    kl: float | None = None

    @classmethod
    def of(cls, results: Sequence[BatchLoss]) -> Means:
        """Return the means over some batches."""
        weight = sum(float(r.weight) for r in results)
        loss = sum(float(r.loss) for r in results) / weight
        terms = [(r.log_likelihood, r.kl) for r in results if r.log_likelihood is not None and r.kl is not None]
        if len(terms) < len(results):
            return cls(loss)
        return cls(loss, *(sum(map(float, term)) / weight for term in zip(*terms, strict=True)))

    @property
    def elbo(self) -> float:
        """The ELBO, or minus the loss where the terms of the ELBO are not known."""
        known = self.log_likelihood is not None and self.kl is not None
        return self.log_likelihood - self.kl if known else -self.loss  # type: ignore[operator]

    def record(self, prefix: str = "") -> dict[str, float]:
        """Return the figures by name, as the history keeps them."""
        figures = {"loss": self.loss, "bound": -self.loss}
        if self.log_likelihood is not None and self.kl is not None:
            figures |= {"elbo": self.elbo, "log_likelihood": self.log_likelihood, "kl": self.kl}
        return {prefix + name: value for name, value in figures.items()}

    def impossible(self, limits: Limits, size: int) -> str | None:
        """Say which figure no model gives for a batch of `size` data; return None if all are possible."""
        return impossible(limits, size, log_likelihood=self.log_likelihood, kl=self.kl, bound=-self.loss)


@dataclass(eq=False, repr=False)
class TrainingState:
    """Everything that a run changes: parameters, buffers, optimiser, scheduler, random state, place in the epoch.

    Attributes:
        epoch: Number of completed epochs.
        step: Number of steps taken in the current epoch.
        terms: For each step of this epoch, the sums of loss, log-likelihood and KL, and the weight to divide by;
            shape (steps, 4), on the device, so that no step waits.
        batch_size: Data per step, of all processes together.
        history: The records of the completed epochs.
        best: Parameters and buffers of the best validated epoch, if early stopping is on.
    """

    svi: SVI
    modules: list[nn.Module]
    scheduler: LRScheduler | None
    seed: int
    terms: Tensor
    batch_size: int
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    _has_terms: bool = True
    _last: dict[str, Any] | None = None  # where the program has its best parameters: those to go on from
    _random_state: dict[str, Any] | None = None

    def order(self, size: int) -> Tensor:
        """Return the order of the data in the current epoch, a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(size, generator=generator)

    def note(self, result: BatchLoss) -> None:
        """Count a step and store its terms."""
        if self.step == len(self.terms):  # of a loader, whose length nothing tells
            self.terms = torch.cat([self.terms, torch.full_like(self.terms, math.nan)])
        row = self.terms[self.step]
        row[0] = result.loss
        if result.kl is not None and result.log_likelihood is not None:
            row[1] = result.log_likelihood
            row[2] = result.kl
        row[3] = result.weight
        self._has_terms = result.kl is not None
        self.step += 1

    def is_finite(self) -> bool:
        """Whether every loss of this epoch so far, its terms and the parameters are finite. Waits for the device."""
        return bool(self._columns()[: self.step].isfinite().all()) and self.parameters_are_finite()

    def impossible(self, limits: Limits, sizes: Sequence[int], first: int) -> tuple[int, str] | None:
        """Return the first step (from 1) of this epoch with a figure that no model gives, and the figure, or None.

        Args:
            limits: The terms of the program whose sign is known.
            sizes: The number of data of each step of the epoch so far.
            first: The step (from 0) to begin at.
        """
        rows = self.terms[first : self.step].cpu().double()
        means = rows[:, :3] / rows[:, 3:]
        if len(means) and not means.isnan().any():
            (loss, _, kl), log_likelihood = means.amin(0).tolist(), float(means[:, 1].max())
            if Means(loss, log_likelihood, kl).impossible(limits, max(sizes)) is None:  # none is worse
                return None
        for step, row in enumerate(means.tolist(), first):
            term = Means(*row).impossible(limits, sizes[step])
            if term is not None:
                return step + 1, term
        return None

    @torch.no_grad()
    def parameters_are_finite(self) -> bool:
        """Whether the parameters are finite. The last step may have broken them, and no loss shows it yet."""
        return bool(torch.stack(torch._foreach_norm(list(self.svi.parameters.values()))).isfinite().all())

    def means(self, last: int | None = None) -> Means:
        """Return the means per datum over the steps of this epoch, or over the last `last` of them."""
        done = self.step or len(self.terms)
        rows = self.terms[max(0, done - last) if last else 0 : done].cpu().double().sum(0)  # mps has no float64
        loss, log_likelihood, kl = (rows[:3] / rows[3]).tolist()
        return Means(loss, log_likelihood, kl) if self._has_terms else Means(loss)

    def bad_term(self, step: int) -> str:
        """Say what is not finite at a step (from 0) of this epoch."""
        loss, log_lik, kl, _ = self.terms[step].tolist()
        names = {"log p(x|z)": log_lik, "KL(q(z|x) || p(z))": kl} if self._has_terms else {}
        bad = [f"{name} is {value}" for name, value in names.items() if not math.isfinite(value)]
        return " and ".join(bad) if bad else f"the loss is {loss}"

    def _columns(self) -> Tensor:
        return self.terms if self._has_terms else self.terms[:, [0, 3]]

    # the state as tensors, numbers and text, and back ------------------------------------------------------------

    def capture(self) -> dict[str, Any]:
        """Return a copy of the state, suitable for `ppl_vae.checkpoints.save`."""
        return {
            **self.capture_parameters(),
            "optimizer": copied(optimizer_of(self.svi).state_dict()),
            "scheduler": None if self.scheduler is None else copy.deepcopy(self.scheduler.state_dict()),
            **(self._random_state or _random_state()),
            "epoch": self.epoch,
            "step": self.step,
            "steps": len(self.terms),
            "batch_size": self.batch_size,
            "terms": self.terms[: self.step].clone(),
            "seed": self.seed,
            "seconds": self.seconds,
            "history": list(self.history),  # records do not change, and to copy them each time is slow
            "best": self.best,
            "last": self._last,
        }

    def keep_random_state(self) -> None:
        """Use the present random state in later captures: the run is over, and the caller's random state returns."""
        self._random_state = _random_state()

    def capture_parameters(self) -> dict[str, Any]:
        """Return a copy of the parameters and buffers alone."""
        owned = {id(p) for module in self.modules for p in module.parameters()}
        others = {k: v for k, v in self.svi.parameters.items() if id(v) not in owned}
        return copied({"modules": [dict(m.state_dict()) for m in self.modules], "parameters": others})

    def take_best(self) -> None:
        """Give the program the parameters of the best epoch, and keep its own in the state to go on from."""
        assert self.best is not None
        self._last = self.capture_parameters()
        self.restore_parameters(self.best)

    @torch.no_grad()
    def restore_parameters(self, state: dict[str, Any]) -> None:
        """Put parameters and buffers back."""
        for module, module_state in zip(self.modules, state["modules"], strict=True):
            module.load_state_dict(module_state)
        for name, value in state["parameters"].items():
            self.svi.parameters[name].copy_(value)

    def restore(self, state: dict[str, Any]) -> None:
        """Put everything back, so that training goes on as if it had not stopped."""
        optimizer = optimizer_of(self.svi)
        groups = zip(optimizer.param_groups, state["optimizer"]["param_groups"], strict=True)
        known = {id(p) for own, group in groups for p in own["params"][: len(group["params"])]}
        known |= set(map(id, self.svi.left_out))
        self.svi.forget([p for p in self.svi.parameters.values() if id(p) not in known])  # they have appeared since
        self.restore_parameters(state["last"] or state)
        optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
        torch.set_rng_state(state["rng"].cpu())
        if torch.cuda.is_available():
            for index, rng in enumerate(state["cuda_rng"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(rng.cpu(), index)
        if torch.backends.mps.is_available():
            for rng in state["mps_rng"]:
                torch.mps.set_rng_state(rng.cpu())
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.terms[: self.step] = state["terms"].to(self.terms)
        self.seed = state["seed"]
        self.history = copy.deepcopy(state["history"])
        self.best = state["best"]
        self._last = None


def optimizer_of(svi: SVI) -> Optimizer:
    """Return the optimiser over all parameters.

    Raises:
        ValueError: If there is none, since a `pyro.optim` object takes the steps itself.
    """
    if svi.optimizer is None:
        raise ValueError(
            "optimizer is an object of pyro.optim with a schedule, clipping, or settings for each parameter; "
            "expected functools.partial(torch.optim.Adam, lr=1e-3) or the like, with scheduler= and clip_norm="
        )
    return svi.optimizer


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []
    return {"rng": torch.get_rng_state(), "cuda_rng": cuda, "mps_rng": mps}
