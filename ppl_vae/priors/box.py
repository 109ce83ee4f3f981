r"""The uniform prior on a box."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae._validation import check_positive_int
from ppl_vae.distributions.box import BoxUniform, check_box


class Uniform(nn.Module):
    r"""The uniform prior on a box, for the posterior `posteriors.SquashedNormal` of the same box.

    .. math::
        p(z) = (h - l)^{-d}, \qquad z \in [l, h]^d.

    A posterior with mass outside the box has infinite KL and is refused; this excludes the normal posteriors. The KL
    of a squashed normal to this prior has no closed form, so ``MeanFieldELBO`` refuses it. Latents tend to pile up at
    the walls, since the prior penalises no position inside the box.

    Args:
        latent_dim: The dimension d of z.
        low: The lower end l of each dimension.
        high: The upper end h.

    Raises:
        ValueError: If `latent_dim` is not a positive integer, or the ends are not finite numbers with l < h.

    Example:
        >>> Uniform(2)().log_prob(torch.zeros(2))
        tensor(-1.3863)
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, latent_dim: int = 2, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = check_positive_int(latent_dim, "prior Uniform: latent_dim")
        low, high = check_box(low, high, "prior Uniform")
        self.register_buffer("low", torch.full((latent_dim,), low), persistent=False)
        self.register_buffer("high", torch.full((latent_dim,), high), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return BoxUniform(self.low, self.high).to_event(1)
