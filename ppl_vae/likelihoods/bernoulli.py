r"""Likelihoods of pixels from one logit each: Bernoulli, binomial and continuous Bernoulli."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae._validation import check_positive_int
from ppl_vae.distributions import continuous_bernoulli
from ppl_vae.distributions.grid import GridBinomial
from ppl_vae.likelihoods.protocol import _Pixels
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork

_MARGIN = 1e-3  # distance of an initial mean from 0 and 1, whose logits are infinite


class _Logits(_Pixels):
    """Pixels in [0, 1] from one logit each."""

    def __init__(self, network: NetworkFactory | nn.Module | None = None, start_from_data: bool = False) -> None:
        super().__init__(start_from_data)
        self.logits = ParameterNetwork(network, self.owner)

    def _start(self, binding: Binding) -> None:
        mean = binding.data_mean(self.owner).clamp(_MARGIN, 1 - _MARGIN)
        self.logits.start_at(mean, link=self._link)

    def _link(self, mean: Tensor) -> Tensor:
        return mean.logit()


class Bernoulli(_Logits):
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
        super().__init__(network, start_from_data)
        self.allow_grey = allow_grey

    def _pixels(self, logits: Tensor) -> Any:
        return dist.Bernoulli(logits=logits, validate_args=False if self.allow_grey else None)


class ContinuousBernoulli(_Logits):
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

    def _pixels(self, logits: Tensor) -> Any:
        return continuous_bernoulli.ContinuousBernoulli(logits)

    def _link(self, mean: Tensor) -> Tensor:
        return continuous_bernoulli.logit_of_mean(mean)


class Binomial(_Logits):
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
        super().__init__(network, start_from_data)
        self.total = check_positive_int(total, f"{self.owner}: total")

    def _pixels(self, logits: Tensor) -> Any:
        return GridBinomial(logits, self.total)
