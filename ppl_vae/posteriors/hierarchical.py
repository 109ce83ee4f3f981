r"""The two-level posterior."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._recorded import Recorded
from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.distributions.two_level import TwoBlocks, bottom_dim
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork


class TwoLevel(Recorded):
    r"""A posterior of two levels, bottom-up, for `priors.TwoLevel`.

    .. math::
        q(z|x) = q(z_1|x)\, q(z_2|z_1), \qquad q(z_1|x) = \mathcal N(\mu_1(x), \mathrm{diag}\,\sigma_1(x)^2), \quad
        q(z_2|z_1) = \mathcal N(\mu_2(z_1), \mathrm{diag}\,\sigma_2(z_1)^2).

    :math:`z_2` sees the data only through a draw of :math:`z_1`. This is right for the model, where :math:`z_2` given
    :math:`z_1` does not depend on x. Yet it trains slowly: the top level learns from a noisy input, and often stays
    unused. A given z is scored by :math:`q(z_2|z_1)` at its own :math:`z_1`. The mean has no closed form, so pictures
    of it use the mean of draws.

    Args:
        top_dim: The dimension of :math:`z_2`, as in the prior.
        network: Maps x to the mean and a raw scale of :math:`z_1`; ``MLP()`` by default.
        top_network: Maps :math:`z_1` (and y, in a conditional model) to those of :math:`z_2`; ``MLP()`` by default.
        floor: The smallest standard deviation.

    Raises:
        ValueError: If an argument is out of range, or, when a VAE is made, `top_dim` leaves no dimension to z1.

    Reference:
        Importance Weighted Autoencoders (Burda et al., 2015), https://arxiv.org/abs/1509.00519; Ladder Variational
        Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282

    Example:
        >>> import torch
        >>> posterior = TwoLevel(2, network=nn.Linear(64, 6), top_network=nn.Linear(3, 4))
        >>> posterior(torch.zeros(5, 64)).event_shape
        torch.Size([5])
    """

    def __init__(
        self,
        top_dim: int,
        network: NetworkFactory | nn.Module | None = None,
        top_network: NetworkFactory | nn.Module | None = None,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        self.top_dim = check_positive_int(top_dim, "posterior TwoLevel: top_dim")
        self.floor = check_positive(floor, "posterior TwoLevel: floor")
        self.mean_and_scale = ParameterNetwork(network, "posterior TwoLevel", count=2)
        self.top_mean_and_scale = ParameterNetwork(top_network, "posterior TwoLevel, q(z2|z1)", count=2)

    def bind(self, binding: Binding) -> None:
        """Size the networks."""
        bottom = (bottom_dim(binding.latent_shape[0], self.top_dim, "posterior TwoLevel"),)
        self.mean_and_scale.build(binding.x_shape, bottom, binding.y_shape)
        self.top_mean_and_scale.build(bottom, (self.top_dim,), binding.y_shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""

        def top(z: Tensor) -> dist.Distribution:
            mean, raw = self.top_mean_and_scale(z, y)
            return dist.Normal(mean, softplus(raw) + self.floor).to_event(1)

        mean, raw = self.mean_and_scale(x, y)
        bottom = dist.Normal(mean, softplus(raw) + self.floor).to_event(1)
        return TwoBlocks(bottom, top, self.top_dim, root_first=True)
