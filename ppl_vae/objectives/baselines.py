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
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def name_of(module: nn.Module) -> str:
    """Return the name under which Pyro keeps a module's parameters: unique in the process; a copy has its own name."""
    if module not in _names:
        _names[module] = f"baseline_{next(_counter)}"
    return _names[module]


def enter(module: nn.Module, like: Tensor) -> None:
    """Let a module of an objective take part in the program: move it to where a tensor is, and name it for Pyro."""
    if any((t.device, t.dtype) != (like.device, like.dtype) for t in (*module.parameters(), *module.buffers())):
        module.to(like)
    pyro.module(name_of(module), module)


def two_layers(inputs: int, hidden: int) -> nn.Sequential:
    """Return a network with two hidden layers with ReLU and one output."""
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 1))


def observed_rows(log_weights: LogWeights) -> Float[Tensor, "batch columns"]:
    """Return all that is observed of each datum as a row; a missing value is 0."""
    batch = log_weights.log_lik.shape[1]
    rows = [x.detach().movedim(-1 - p.event_dim, 0) for p, x in log_weights.observed.values()]  # plates inside follow
    return torch.cat([x.reshape(batch, -1) for x in rows], 1).nan_to_num()


class MovingAverage(nn.Module):
    r"""The exponential moving average of a signal over batches: one number for all data, zero at the first step.

    A batch whose signal is not finite does not count: its step is lost, and those after it are not.

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

    def forward(self, signal: Tensor) -> Float[Tensor, ""]:
        """Return the average of the earlier signals, then add this one to it."""
        baseline = (self.total / self.weight.clamp_min(1e-12)).to(signal)
        if torch.is_grad_enabled():
            with torch.no_grad():
                mean = signal.mean().to(self.total)
                for average, new in ((self.total, mean), (self.weight, 1.0)):
                    moved = average * self.decay + (1 - self.decay) * new
                    average.copy_(torch.where(mean.isfinite(), moved, average))
        return baseline


class Coefficient(nn.Module):
    r"""The best coefficient of a control variate, from the gradients of earlier batches: zero at the first step.

    The variance of :math:`g_0 + \alpha g_1` with :math:`\mathbb E[g_1] = 0` is least at
    :math:`\alpha = -\mathbb E[g_0 \cdot g_1] / \mathbb E[g_1 \cdot g_1]`. Both are moving averages over batches that
    exclude the present one, so the estimator stays unbiased.
    """

    def __init__(self) -> None:
        super().__init__()
        self.product, self.square = MovingAverage(), MovingAverage()

    def forward(self, g0: Tensor, g1: Tensor) -> Float[Tensor, ""]:
        """Return the coefficient, then learn from both gradients."""
        square = self.square(g1.square())
        product = self.product(g0 * g1)
        return torch.where(square > 0, -product / square.clamp_min(torch.finfo(square.dtype).tiny), 0.0)


class LearnedBaseline(nn.Module):
    r"""A network b(x) that predicts the signal of a datum, fitted by least squares during training.

    The first batch gives the sizes of the network, which has two hidden layers of 100 units with ReLU. Its parameters
    join those of the program under their own name, and the same optimiser updates them. The output is scaled by the
    standard deviation of the first batch of signals and starts near their mean.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Module | None = None
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, log_weights: LogWeights, signal: Float[Tensor, "K batch"]) -> Float[Tensor, " batch"]:
        """Return b(x), differentiable with respect to the parameters of the network only."""
        x = observed_rows(log_weights)
        if self.network is None:
            self.network = two_layers(x.shape[1], 100)
            self.to(signal)
            with torch.no_grad():
                self.offset.copy_(signal.mean())
                self.scale.copy_(signal.std().clamp_min(1.0) if signal.numel() > 1 else self.scale)
        pyro.module(name_of(self), self.network)
        return self.offset + self.scale * self.network(x.to(self.offset)).squeeze(-1)


def leave_one_out(signal: Float[Tensor, "K batch"]) -> Float[Tensor, "K batch"]:
    """Return for each particle the mean signal of the other particles."""
    return (signal.sum(0) - signal) / (len(signal) - 1)
