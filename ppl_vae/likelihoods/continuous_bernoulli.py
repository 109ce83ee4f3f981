r"""The continuous Bernoulli likelihood."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.distributions import continuous_bernoulli
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork


class ContinuousBernoulli(nn.Module):
    r"""Independent continuous Bernoulli pixels: the cross-entropy of grey values, with the normaliser it lacks.

    .. math::
        \log p(x|z) = \sum_i x_i \ell_i(z) - \log\frac{e^{\ell_i(z)} - 1}{\ell_i(z)}, \qquad x_i \in [0, 1].

    It is a density for grey values in [0, 1], including 0 and 1; `Bernoulli` with ``allow_grey`` is not. It has one
    parameter per pixel: a pixel can be sure of a value near 0 or near 1, but never of a grey (the density is monotone,
    and at its flattest around a mean of 1/2). For 8-bit pixels without dequantisation it is no code length, and it is
    unbounded: pixels that are always 0 drive :math:`\ell` to :math:`-\infty` and the log-density up with
    :math:`\log|\ell|`, slowly. Pictures show the mean, which is not :math:`\lambda = \sigma(\ell)` but closer to 1/2.

    Args:
        network: Maps z to one logit :math:`\ell` per pixel; ``MLP()`` by default.
        start_from_data: Start the mean at that of the training data, kept 0.001 away from 0 and 1.

    Reference:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem & Cunningham,
        2019), https://arxiv.org/abs/1907.06845

    Example:
        >>> import torch
        >>> likelihood = ContinuousBernoulli(nn.Linear(2, 64))
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.rand(5, 64)).shape
        torch.Size([5])
    """

    def __init__(self, network: NetworkFactory | nn.Module | None = None, start_from_data: bool = False) -> None:
        super().__init__()
        self.logits = ParameterNetwork(MLP() if network is None else network, "likelihood ContinuousBernoulli")
        self.start_from_data = start_from_data

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.logits.build(binding.latent_shape, binding.x_shape, binding.y_shape)
        if self.start_from_data:
            mean = binding.data_mean("likelihood ContinuousBernoulli").clamp(1e-3, 1 - 1e-3)
            self.logits.start_at(mean, link=continuous_bernoulli.logit_of_mean)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        (logits,) = self.logits(z, y)
        return continuous_bernoulli.ContinuousBernoulli(logits).to_event(logits.dim() - z.dim() + 1)
