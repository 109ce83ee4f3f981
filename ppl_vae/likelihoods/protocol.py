r"""The protocol of likelihoods, and the base class of those of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pyro.distributions as dist
from torch import Tensor

from ppl_vae.networks import Binding
from ppl_vae.networks.parameters import _NetworkPiece


class Likelihood(Protocol):
    """A callable that returns p(x|z)."""

    def __call__(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), with ``batch_shape == z.shape[:-1]`` and the event shape of one datum."""
        ...


class _Pixels(_NetworkPiece):
    """Independent entries of x, called pixels, whose parameters a network computes from z.

    Args:
        start_from_data: Start the network's outputs from the training data.
    """

    _role = "likelihood"
    _pixels: Callable[..., Any]  # the distribution of the entries, from the network's outputs

    def __init__(self, start_from_data: bool) -> None:
        super().__init__()
        self.start_from_data = start_from_data

    def bind(self, binding: Binding) -> None:
        """Size the network, and start from the data if asked to."""
        self._network.build(binding.latent_shape, binding.x_shape, binding.y_shape)
        if self.start_from_data:
            self._start(binding)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        outputs = self._network(z, y)
        return self._pixels(*outputs).to_event(outputs[0].dim() - z.dim() + 1)

    def _start(self, binding: Binding) -> None:
        """Start the first output where its link gives the mean of the training data, and leave the others."""
        others = [None] * (self._network.count - 1)
        self._network.start_at(binding.data_mean(self.owner), *others, link=self._link)

    def _link(self, mean: Tensor) -> Tensor:
        """Return the output that stands for this mean."""
        return mean
