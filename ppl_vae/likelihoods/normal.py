r"""The normal likelihood."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae._validation import check_positive
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork


class Normal(nn.Module):
    r"""Independent normal pixels with one fixed scale, normaliser kept.

    .. math::
        \log p(x|z) = -\frac{1}{2\sigma^2} \lVert x - \mu(z) \rVert^2 - \frac D2 \log(2\pi\sigma^2).

    The article's squared error is the first term with :math:`2\sigma^2 = 1` and without the constant; the scale sets
    the weight of the reconstruction against the KL, so a value is comparable only between models of the same
    scale or with the normaliser kept, as here. Wrong for data on a grid (8-bit pixels): without dequantisation the
    density can be driven to infinity by a small scale.

    Args:
        network: Maps z to one mean per dimension of x; ``MLP()`` by default.
        scale: The standard deviation :math:`\sigma`, in units of x; :math:`\sqrt{1/2}` makes the first term the
            article's squared error.

    Raises:
        ValueError: If `scale` is not a finite number above zero.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> likelihood = Normal(nn.Linear(2, 64), scale=0.5)
        >>> likelihood(torch.zeros(5, 2)).batch_shape
        torch.Size([5])
    """

    def __init__(self, network: NetworkFactory | nn.Module | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = check_positive(scale, "likelihood Normal: scale")
        self.mean = ParameterNetwork(MLP() if network is None else network, "likelihood Normal")

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.mean.build(binding.latent_shape, binding.x_shape, binding.y_shape)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        (mean,) = self.mean(z, y)
        return dist.Normal(mean, self.scale).to_event(mean.dim() - z.dim() + 1)
