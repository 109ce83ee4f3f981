r"""The two-level prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._validation import check_positive
from ppl_vae.distributions.two_level import TwoBlocks, bottom_dim
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork
from ppl_vae.priors.protocol import _Prior


class TwoLevel(_Prior):
    r"""A prior of two levels, :math:`z = (z_1, z_2)`; the likelihood reads only the first.

    .. math::
        p(z) = p(z_2)\, p(z_1|z_2), \qquad p(z_2) = \mathcal N(0, I), \quad
        p(z_1|z_2) = \mathcal N(z_1; \mu(z_2), \mathrm{diag}\,\sigma(z_2)^2).

    The density of :math:`z_1` is a learned infinite mixture. Training easily ignores the top level: it finds
    :math:`q(z_2|x) = p(z_2)` and the plain VAE in :math:`z_1`. Warming up the KL, more particles, or batch
    normalisation help (see the papers). This prior goes with `posteriors.TwoLevel` and with any other posterior on R^d.

    Args:
        latent_dim: The dimension of z: both levels together.
        top_dim: The dimension of :math:`z_2`.
        network: Maps :math:`z_2` to the mean and a raw scale of :math:`z_1`; ``MLP()`` by default.
        floor: The smallest standard deviation of :math:`p(z_1|z_2)`.

    Raises:
        ValueError: If `top_dim` does not leave at least one dimension to :math:`z_1`.

    Reference:
        Importance Weighted Autoencoders (Burda et al., 2015), https://arxiv.org/abs/1509.00519; Ladder Variational
        Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282

    Example:
        >>> from ppl_vae import VAE, likelihoods, networks, posteriors
        >>> vae = VAE(
        ...     (64,),
        ...     prior=TwoLevel(latent_dim=5, top_dim=2, network=networks.MLP([16])),
        ...     likelihood=likelihoods.Bernoulli(networks.MLP([16])),  # reads z1 alone
        ...     posterior=posteriors.TwoLevel(top_dim=2, network=networks.MLP([16]), top_network=networks.MLP([16])),
        ... )
        >>> vae.likelihood.logits.in_shape
        (3,)
    """

    top_loc: Tensor
    top_scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        top_dim: int,
        network: NetworkFactory | nn.Module | None = None,
        floor: float = 1e-5,
    ) -> None:
        super().__init__(latent_dim)
        self.visible_dim = bottom_dim(latent_dim, top_dim, self.owner)
        self.floor = check_positive(floor, f"{self.owner}: floor")
        self.mean_and_scale = ParameterNetwork(network, self.owner, count=2)
        self._hold(top_loc=torch.zeros(top_dim), top_scale=torch.ones(top_dim))

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.mean_and_scale.build(tuple(self.top_loc.shape), (self.visible_dim,))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        top = dist.Normal(self.top_loc, self.top_scale).to_event(1)
        return TwoBlocks(top, self._bottom, self.visible_dim, root_first=False)

    def _bottom(self, top: Tensor) -> dist.Distribution:
        mean, raw = self.mean_and_scale(top)
        return dist.Normal(mean, softplus(raw) + self.floor).to_event(1)
