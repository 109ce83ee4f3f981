r"""Uniform priors: on a box and on the sphere."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.distributions.box import BoxUniform, check_box
from ppl_vae.distributions.sphere import SphereUniform
from ppl_vae.priors.protocol import _Prior


class Uniform(_Prior):
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

    low: Tensor
    high: Tensor

    def __init__(self, latent_dim: int = 2, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(latent_dim)
        low, high = check_box(low, high, self.owner)
        self._hold(low=torch.full((latent_dim,), low), high=torch.full((latent_dim,), high))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return BoxUniform(self.low, self.high).to_event(1)


class HypersphericalUniform(_Prior):
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

    like: Tensor

    def __init__(self, latent_dim: int = 3) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2:
            raise ValueError(
                f"{self.owner}: latent_dim is {latent_dim}; expected at least 2, where the sphere is the circle"
            )
        self._hold(like=torch.zeros(()))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return SphereUniform(self.latent_dim, self.like)
