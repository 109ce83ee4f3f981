r"""The uniform prior on the sphere."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae._validation import check_positive_int
from ppl_vae.distributions.sphere_uniform import SphereUniform


class HypersphericalUniform(nn.Module):
    r"""The uniform prior on the unit sphere :math:`S^{d-1} \subset \mathbb R^d`.

    .. math::
        p(z) = \Gamma(d/2) / (2 \pi^{d/2}), \qquad \lVert z \rVert = 1.

    It pulls the posterior towards no point, so data on a closed manifold need not crowd around an origin. In many
    dimensions (the paper saw it from about 20 on) the sphere's area vanishes and a posterior must be very concentrated
    to be informative; there the normal prior does better. This prior goes with `posteriors.PowerSpherical` and
    `posteriors.VonMisesFisher`: no posterior on R^d has a density with respect to the sphere's area. Quadrature over
    R^d does not apply to it.

    Args:
        latent_dim: The dimension d of the space around the sphere; at least 2 (the circle).

    Raises:
        ValueError: If `latent_dim` is not an integer of at least 2.

    Reference:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), https://arxiv.org/abs/1804.00891

    Example:
        >>> HypersphericalUniform(2)().log_prob(torch.tensor([0.6, 0.8]))  # minus the log length of the circle
        tensor(-1.8379)
    """

    like: torch.Tensor

    def __init__(self, latent_dim: int = 3) -> None:
        super().__init__()
        name = "prior HypersphericalUniform: latent_dim"
        self.latent_dim = check_positive_int(latent_dim, name)
        if latent_dim < 2:
            raise ValueError(f"{name} is {latent_dim}; expected at least 2, where the sphere is the circle")
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return SphereUniform(self.latent_dim, self.like)
