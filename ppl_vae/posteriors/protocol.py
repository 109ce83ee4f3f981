r"""The protocol of posteriors, and the base classes of those of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae._validation import check_positive
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork
from ppl_vae.networks.parameters import _NetworkPiece


class Posterior(Protocol):
    """A callable that returns q(z|x)."""

    def __call__(self, x: Tensor) -> dist.Distribution:
        """Return q(z|x), with ``batch_shape == (batch,)`` and ``event_shape == (latent,)``."""
        ...


class _Amortised(_NetworkPiece):
    """A posterior whose parameters a network computes from x."""

    _role = "posterior"
    _distribution: Callable[..., Any]  # q(z|x), from the network's outputs

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self._network.build(binding.x_shape, (self._width(*binding.latent_shape),), binding.y_shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        return self._distribution(*self._network(x, y))

    def _width(self, latent_dim: int) -> int:
        """Return the number of values in each of the network's outputs."""
        return latent_dim


class _MeanAndScale(_Amortised):
    """Independent dimensions, each from a mean and a raw scale."""

    def __init__(self, network: NetworkFactory | nn.Module | None = None, floor: float = 1e-5) -> None:
        super().__init__()
        self.floor = check_positive(floor, f"{self.owner}: floor")
        self.mean_and_scale = ParameterNetwork(network, self.owner, count=2)
