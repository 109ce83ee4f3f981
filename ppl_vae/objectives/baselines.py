r"""Baselines, which a score-function estimator subtracts from its learning signal to reduce its variance.

A baseline b that does not depend on z leaves the estimator unbiased, because the score has expectation zero.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.objectives.log_weights import LogWeights

if TYPE_CHECKING:
    from jaxtyping import Float

_counter = itertools.count()
_names: weakref.WeakKeyDictionary[LearnedBaseline, str] = weakref.WeakKeyDictionary()


class MovingAverage(nn.Module):
    r"""The exponential moving average of the signal over batches: one number for all data, zero at the first step.

    Args:
        decay: The share of the average that each step keeps; the average covers about 1 / (1 - decay) steps.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, signal: Float[Tensor, "K batch"]) -> Float[Tensor, ""]:
        """Return the average of the earlier signals, then add this one to it."""
        baseline = (self.total / self.weight.clamp_min(1e-12)).to(signal)
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.total.mul_(self.decay).add_((1 - self.decay) * signal.mean().to(self.total))
                self.weight.mul_(self.decay).add_(1 - self.decay)
        return baseline


class LearnedBaseline(nn.Module):
    r"""A network b(x) that predicts the signal of a datum, fitted by least squares during training.

    The first batch gives the sizes of the network, which has two hidden layers with ReLU. Its parameters join those of
    the program under their own name, and the same optimiser updates them. The output is scaled by the standard
    deviation of the first batch of signals and starts near their mean.

    Args:
        hidden: The width of the hidden layers.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        self.hidden = hidden
        self.network: nn.Module | None = None
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @property
    def name(self) -> str:
        """The name under which Pyro keeps the parameters: unique in the process; a copy has its own name."""
        if self not in _names:
            _names[self] = f"baseline_{next(_counter)}"
        return _names[self]

    def forward(self, log_weights: LogWeights, signal: Float[Tensor, "K batch"]) -> Float[Tensor, " batch"]:
        """Return b(x), differentiable with respect to the parameters of the network only."""
        x = torch.cat([x.detach().reshape(len(signal[0]), -1) for _, x in log_weights.observed.values()], 1)
        x = x.nan_to_num()  # NaN marks a missing value
        if self.network is None:
            self._make(x, signal)
        assert self.network is not None
        pyro.module(self.name, self.network)
        return self.offset + self.scale * self.network(x.to(self.offset)).squeeze(-1)

    def _make(self, x: Tensor, signal: Tensor) -> None:
        widths = (x.shape[1], self.hidden, self.hidden)
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.network = nn.Sequential(*layers, nn.Linear(self.hidden, 1))
        self.to(signal)
        with torch.no_grad():
            self.offset.copy_(signal.mean())
            self.scale.copy_(signal.std().clamp_min(1.0) if signal.numel() > 1 else self.scale)


def leave_one_out(signal: Float[Tensor, "K batch"]) -> Float[Tensor, "K batch"]:
    """Return for each particle the mean signal of the other particles."""
    return (signal.sum(0) - signal) / (len(signal) - 1)
