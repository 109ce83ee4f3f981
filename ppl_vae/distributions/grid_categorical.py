r"""The categorical distribution over the levels of a pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import log_softmax

from ppl_vae.distributions.grid import Grid


class GridCategorical(TorchDistribution):
    r"""A distribution over the levels :math:`k / (n - 1)` of a pixel, with a logit for each level.

    .. math::
        \log P(x = \tfrac{k}{n - 1}) = \ell_k - \log \sum_j e^{\ell_j}.

    Args:
        logits: One per level, (..., n).

    Example:
        >>> pixel = GridCategorical(torch.tensor([1.0, 2.0, 1.0]).log())
        >>> pixel.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp(), pixel.mean
        (tensor([0.2500, 0.5000, 0.2500]), tensor(0.5000))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        self.bins = logits.shape[-1]
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The grid of levels."""
        return Grid(self.bins)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.logits.softmax(-1) @ self._levels / (self.bins - 1)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        distance = self._levels / (self.bins - 1) - self.mean.unsqueeze(-1)
        return (self.logits.softmax(-1) * distance.square()).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each value."""
        if self._validate_args:
            self._validate_sample(value)
        level = (value * (self.bins - 1)).round().long().clamp(0, self.bins - 1).unsqueeze(-1)
        logits = log_softmax(self.logits, -1)
        shape = torch.broadcast_shapes(level.shape[:-1], logits.shape[:-1])
        return logits.expand(*shape, -1).gather(-1, level.expand(*shape, 1)).squeeze(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws."""
        level = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        return level.to(self.logits.dtype) / (self.bins - 1)

    @property
    def _levels(self) -> Tensor:
        return torch.arange(self.bins, device=self.logits.device, dtype=self.logits.dtype)
