r"""The Laplace posterior."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._validation import check_positive
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork


class Laplace(nn.Module):
    r"""A Laplace posterior with independent dimensions.

    .. math::
        q(z|x) = \prod_i \frac{1}{2 b_i(x)} e^{-|z_i - \mu_i(x)| / b_i(x)}, \qquad
        b_i = \log(1 + e^{r_i}) + \text{floor}.

    The shape is wrong for most data: where data are many or noise is small, a true posterior is nearly normal and has
    no kink at the mean. The heavier tails of q(z|x) make it the safer proposal for importance sampling.
    The KL has a closed form for the priors ``Laplace``, ``StandardNormal`` and ``DiagonalNormal``.

    Args:
        network: Maps x to the mean and to r, two values per latent dimension; ``MLP()`` by default.
        floor: The smallest b.

    Raises:
        ValueError: If `floor` is not above zero.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 2.4, https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> Laplace(nn.Linear(64, 4))(torch.zeros(5, 64)).event_shape
        torch.Size([2])
    """

    def __init__(self, network: NetworkFactory | nn.Module | None = None, floor: float = 1e-5) -> None:
        super().__init__()
        self.floor = check_positive(floor, "posterior Laplace: floor")
        self.mean_and_scale = ParameterNetwork(MLP() if network is None else network, "posterior Laplace", count=2)

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.mean_and_scale.build(binding.x_shape, binding.latent_shape, binding.y_shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        mean, raw = self.mean_and_scale(x, y)
        return dist.Laplace(mean, softplus(raw) + self.floor).to_event(1)
