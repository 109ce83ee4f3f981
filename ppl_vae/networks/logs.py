r"""Counts as the input of networks, on a logarithmic scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from ppl_vae.networks.binding import Shape
from ppl_vae.networks.mlp import MLP
from ppl_vae.networks.parameters import NetworkFactory


@dataclass(frozen=True)
class Log1p:
    r"""A factory of networks that see :math:`\mathrm{sign}(x) \log(1 + |x|)` of their input, for encoders of counts.

    Counts of thousands make the first layer's outputs, and so the first steps, thousands of times larger than those of
    ones. `TableEncoder` with columns of kind ``"count"`` standardises as well, which makes a gene that is seen in few
    data large there. A condition behind the counts is transformed alike, which keeps what it says.

    Args:
        network: Factory of the inner network; ``MLP()`` by default.
        counts: How many inputs, from the first, the inner network sees; None for all. The number of features leaves out
            the condition, for a q(z|x) that does not depend on it.

    Raises:
        ValueError: When called, for an input with fewer values than `counts`.

    Reference:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
        https://www.nature.com/articles/s41592-018-0229-2

    Example:
        >>> import torch
        >>> Log1p(MLP([8]), counts=3)((5,), (4,))(torch.tensor([[0.0, 7.0, 2000.0, 1.0, 0.0]])).shape
        torch.Size([1, 4])
    """

    network: NetworkFactory | None = None
    counts: int | None = None

    @property
    def spatial(self) -> bool:
        """Whether the inner network takes images as images."""
        return bool(getattr(self.network, "spatial", False)) and self.counts is None

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return the network for these sizes."""
        if self.counts is not None and not 0 < self.counts <= math.prod(in_shape):
            raise ValueError(f"Log1p: counts is {self.counts} of an input of shape {in_shape}; expected 1 to its size")
        inner = MLP() if self.network is None else self.network
        return _Log1p(inner(in_shape if self.counts is None else (self.counts,), out_shape), self.counts)


class _Log1p(nn.Module):
    def __init__(self, network: nn.Module, counts: int | None) -> None:
        super().__init__()
        self.network, self.counts = network, counts

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.counts is None else x.flatten(1)[:, : self.counts]
        return self.network(x.sign() * x.abs().log1p())
