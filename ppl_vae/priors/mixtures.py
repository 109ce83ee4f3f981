r"""Mixture priors with parameters of their own."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

from ppl_vae._numbers import inverse_softplus
from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.distributions.normal_mixture import NormalMixture
from ppl_vae.priors.protocol import _Prior


class MixtureOfNormals(_Prior):
    r"""A mixture of diagonal normals with learned weights, means and scales.

    .. math::
        p(z) = \sum_{c=1}^C \pi_c\, \mathcal N(z; \mu_c, \mathrm{diag}\,\sigma_c^2), \qquad
        \sigma_c = \log(1 + e^{s_c}) + \text{floor}.

    Components can stay idle: one that is far from the aggregate posterior gets no gradient and stays there, while a
    few others carry everything. The starting point counters this; `VampPrior` avoids it by the encoder. The KL has no
    closed form, so objectives that need one, such as ``MeanFieldELBO``, refuse this prior.

    At the start the variance is about 1 in every dimension, as for the standard normal. The means lie about two
    standard deviations of a component apart in any number of dimensions:
    :math:`\sigma^2 = d / (d + 2)` and :math:`\mu_c \sim \mathcal N(0, 1 - \sigma^2)`.

    Args:
        latent_dim: The dimension d of z.
        num_components: The number C of components.
        floor: The smallest standard deviation. Without it a component can collapse onto a point, where the density,
            and with it the bound, has no maximum.

    Raises:
        ValueError: If `latent_dim` or `num_components` is not a positive integer, or `floor` is not in (0, 0.5).

    Reference:
        Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders (Dilokthanakul et al., 2016),
        https://arxiv.org/abs/1611.02648; as a baseline in VAE with a VampPrior (Tomczak & Welling, 2018),
        https://arxiv.org/abs/1705.07120

    Example:
        >>> prior = MixtureOfNormals(2, num_components=5)
        >>> prior().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(self, latent_dim: int = 2, num_components: int = 10, floor: float = 1e-3) -> None:
        super().__init__(latent_dim)
        self.num_components = check_positive_int(num_components, f"{self.owner}: num_components")
        self.floor = check_positive(floor, f"{self.owner}: floor")
        if floor >= 0.5:
            raise ValueError(f"{self.owner}: floor is {floor}; expected less than 0.5, such as 1e-3")
        std = math.sqrt(latent_dim / (latent_dim + 2))
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(math.sqrt(1 - std**2) * torch.randn(num_components, latent_dim))
        raw = inverse_softplus(std - floor)
        self.raw_scale = nn.Parameter(torch.full((num_components, latent_dim), raw))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return NormalMixture(self.logits, self.loc, softplus(self.raw_scale) + self.floor)
