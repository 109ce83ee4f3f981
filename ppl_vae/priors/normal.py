r"""Normal priors."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae._validation import check_positive_int


class StandardNormal(nn.Module):
    r"""The standard normal prior.

    .. math::
        p(z) = \mathcal N(z; 0, I) = (2\pi)^{-d/2} \exp(-\tfrac12 \lVert z \rVert^2).

    Its weakness is the mismatch with the aggregate posterior :math:`\frac1N \sum_n q(z|x_n)`: regions of prior mass
    that no datum maps to decode to nothing seen.

    Args:
        latent_dim: The dimension d of z.

    Raises:
        ValueError: If `latent_dim` is not a positive integer.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent_dim: int = 2) -> None:
        super().__init__()
        self.latent_dim = check_positive_int(latent_dim, "prior StandardNormal: latent_dim")
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)
