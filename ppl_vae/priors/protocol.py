"""The protocol of priors, and the base classes of those of this package."""

from __future__ import annotations

from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae._recorded import Recorded
from ppl_vae._validation import check_positive, check_positive_int


class Prior(Protocol):
    """A callable that returns p(z); a prior with a method ``bind`` also has an attribute ``latent_dim``."""

    def __call__(self) -> dist.Distribution:
        """Return p(z), with ``batch_shape == ()`` and ``event_shape == (latent,)``."""
        ...


class _Prior(Recorded):
    """A prior with a dimension, and tensors that are learned or fixed.

    Attributes:
        owner: The piece, for error messages, ``"prior StandardNormal"``.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.owner = f"prior {type(self).__name__}"
        self.latent_dim = check_positive_int(latent_dim, f"{self.owner}: latent_dim")

    def _hold(self, learned: bool = False, **tensors: Tensor) -> None:
        """Register tensors: learned ones as parameters; fixed ones as buffers, which checkpoints leave out."""
        for name, tensor in tensors.items():
            if learned:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor, persistent=False)


class _LocationScale(_Prior):
    """A prior with location 0 and the same fixed scale in each dimension."""

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int = 2, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        scale = check_positive(scale, f"{self.owner}: scale")
        self._hold(loc=torch.zeros(latent_dim), scale=torch.full((latent_dim,), scale))
