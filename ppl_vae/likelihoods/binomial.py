r"""The binomial likelihood of pixels on a grid."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae._validation import check_positive_int
from ppl_vae.distributions.grid_binomial import GridBinomial
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork

_MARGIN = 1e-3  # distance of an initial probability from 0 and 1, whose logits are infinite


class Binomial(nn.Module):
    r"""Independent pixels, each the share of successes in n trials.

    .. math::
        P\Big(x_i = \frac kn \,\Big|\, z\Big) = \binom nk p_i(z)^k (1 - p_i(z))^{n - k}, \qquad
        p_i = \sigma(\ell_i(z)).

    The mean fixes the variance, p(1 - p)/n: with n = 255 the standard deviation is at most 8 levels, and data that
    vary more are punished hard. It is a good model of grey pixels only if these really are counts.
    `DiscretizedLogistic` learns its width. Unlike the cross-entropy of grey values, it is a density: its logarithm is n
    times the negative cross-entropy, plus the logarithm of the binomial coefficient.

    Args:
        network: Maps z to one logit per pixel; ``MLP()`` by default.
        total: The number n of trials; the data are k/n, 255 for 8-bit pixels.
        start_from_data: Start the probabilities at the means of the training data, kept 1e-3 away from 0 and 1.

    Raises:
        ValueError: If `total` is not a positive integer, or there are no training data to start from.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114, whose Bernoulli
        decoder this is for n trials instead of one

    Example:
        >>> import torch
        >>> likelihood = Binomial(nn.Linear(2, 64))
        >>> likelihood(torch.zeros(5, 2)).event_shape
        torch.Size([64])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        total: int = 255,
        start_from_data: bool = False,
    ) -> None:
        super().__init__()
        self.total = check_positive_int(total, "likelihood Binomial: total")
        self.start_from_data = start_from_data
        self.logits = ParameterNetwork(MLP() if network is None else network, "likelihood Binomial")

    def bind(self, binding: Binding) -> None:
        """Size the network, and start from the data if asked to."""
        self.logits.build(binding.latent_shape, binding.x_shape, binding.y_shape)
        if self.start_from_data:
            mean = binding.data_mean("likelihood Binomial").clamp(_MARGIN, 1 - _MARGIN)
            self.logits.start_at(mean, link=torch.logit)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        (logits,) = self.logits(z, y)
        return GridBinomial(logits, self.total).to_event(logits.dim() - z.dim() + 1)
