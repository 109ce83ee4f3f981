r"""Likelihoods p(x|z): callables ``likelihood(z)`` that return a Pyro distribution over one datum.

``likelihood(z)`` has batch shape ``z.shape[:-1]`` and the event shape of one datum. Each class says how many parameters
it needs per dimension of x and takes a network, or a factory of networks, that computes them from z.
"""

from __future__ import annotations

from typing import Protocol

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae._validation import check_positive
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork


class Likelihood(Protocol):
    """What a VAE needs of p(x|z)."""

    def __call__(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), with ``batch_shape == z.shape[:-1]`` and the event shape of one datum."""
        ...


class Bernoulli(nn.Module):
    r"""Independent Bernoulli pixels, from logits.

    .. math::
        \log p(x|z) = \sum_i x_i \ell_i(z) - \log(1 + e^{\ell_i(z)}), \qquad x_i \in \{0, 1\},

    the negative cross-entropy, computed from the logits :math:`\ell` and so exact where the article's
    ``log(sigmoid + 1e-8)`` saturates (at logit 17 in float32). Wrong for grey pixels: for :math:`0 < x_i < 1` the same
    formula is no density (it has no normaliser), so grey data are refused unless `allow_grey` is set, and then every
    figure made from them carries a caveat.

    Args:
        network: Maps z to one logit per pixel; ``MLP()`` by default.
        allow_grey: Accept x in [0, 1], as the article does.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> likelihood = Bernoulli(nn.Linear(2, 64))
        >>> likelihood(torch.zeros(5, 2)).event_shape
        torch.Size([64])
    """

    def __init__(self, network: NetworkFactory | nn.Module | None = None, allow_grey: bool = False) -> None:
        super().__init__()
        self.logits = ParameterNetwork(MLP() if network is None else network, "likelihood Bernoulli")
        self.allow_grey = allow_grey

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.logits.build(binding.latent_shape, binding.x_shape)

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        (logits,) = self.logits(z)
        pixels = dist.Bernoulli(logits=logits, validate_args=False if self.allow_grey else None)
        return pixels.to_event(logits.dim() - z.dim() + 1)


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
        self.mean.build(binding.latent_shape, binding.x_shape)

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        (mean,) = self.mean(z)
        return dist.Normal(mean, self.scale).to_event(mean.dim() - z.dim() + 1)
