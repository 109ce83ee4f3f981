r"""The Bernoulli likelihood."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork


class Bernoulli(nn.Module):
    r"""Independent Bernoulli pixels, from logits.

    .. math::
        \log p(x|z) = \sum_i x_i \ell_i(z) - \log(1 + e^{\ell_i(z)}), \qquad x_i \in \{0, 1\},

    the negative cross-entropy. Computed from the logits :math:`\ell`, it is exact where the article's
    ``log(sigmoid + 1e-8)`` saturates (at logit 17 in float32). It is wrong for grey pixels: for :math:`0 < x_i < 1` the
    same formula is not a density, since it has no normaliser. Grey data are therefore refused unless `allow_grey` is
    set, and then every figure made from them carries a caveat.

    Args:
        network: Maps z to one logit per pixel; ``MLP()`` by default.
        allow_grey: Accept x in [0, 1], as the article does.
        start_from_data: Start the mean at that of the training data, kept 0.001 away from 0 and 1.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> likelihood = Bernoulli(nn.Linear(2, 64))
        >>> likelihood(torch.zeros(5, 2)).event_shape
        torch.Size([64])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        allow_grey: bool = False,
        start_from_data: bool = False,
    ) -> None:
        super().__init__()
        self.logits = ParameterNetwork(MLP() if network is None else network, "likelihood Bernoulli")
        self.allow_grey = allow_grey
        self.start_from_data = start_from_data

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.logits.build(binding.latent_shape, binding.x_shape, binding.y_shape)
        if self.start_from_data:
            mean = binding.data_mean("likelihood Bernoulli").clamp(1e-3, 1 - 1e-3)
            self.logits.start_at(mean, link=torch.logit)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        (logits,) = self.logits(z, y)
        pixels = dist.Bernoulli(logits=logits, validate_args=False if self.allow_grey else None)
        return pixels.to_event(logits.dim() - z.dim() + 1)
