r"""The binomial distribution over the levels of a pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_vae.distributions._saddle import HALF_LOG_2PI, stirling_remainder
from ppl_vae.distributions.grid import Grid


class GridBinomial(TorchDistribution):
    r"""The share of successes in n trials: a binomial count over n, from its logit.

    .. math::
        \log P(x = \tfrac kn) = \log \binom nk + k \log\sigma(\ell) + (n - k) \log\sigma(-\ell),

    computed around the logit that fits k best: from a variance, Stirling remainders and n times the relative entropy
    of k/n to :math:`\sigma(\ell)`. Float32 then keeps its digits where the binomial coefficient is large.

    Args:
        logits: :math:`\ell`.
        total: The number n of trials.

    Example:
        >>> share = GridBinomial(torch.tensor(0.0), total=2)
        >>> share.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp(), share.mean
        (tensor([0.2500, 0.5000, 0.2500]), tensor(0.5000))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}

    def __init__(self, logits: Tensor, total: int = 255, validate_args: bool | None = None) -> None:
        self.logits = logits
        self.total = total
        super().__init__(logits.shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The grid of total + 1 levels."""
        return Grid(self.total + 1)

    @property
    def mean(self) -> Tensor:
        """The probability of a success."""
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        """The variance of the share."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits) / self.total

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each value."""
        if self._validate_args:
            self._validate_sample(value)
        n, k = self.total, (value * self.total).round()
        log_p, log_q = logsigmoid(self.logits), logsigmoid(-self.logits)
        if n == 1:
            return torch.where(k < 1, log_q, log_p)
        inner = k.clamp(1, n - 1)
        share, rest = inner / n, (n - inner) / n
        change = self.logits - (inner.log() - (n - inner).log())
        near = change.clamp(-0.5, 0.5)
        entropy = torch.where(
            change.abs() < 0.5,
            torch.log1p(share * torch.expm1(near)) - share * near,
            share * (share.log() - log_p) + rest * (rest.log() - log_q),
        )
        remainder = stirling_remainder(torch.as_tensor(float(n)).to(k)) - stirling_remainder(inner)
        remainder = remainder - stirling_remainder(n - inner)
        at_level = -HALF_LOG_2PI - 0.5 * (n * share * rest).log() + remainder - n * entropy
        return torch.where(k < 1, n * log_q, torch.where(k > n - 1, n * log_p, at_level))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws."""
        success = torch.sigmoid(self.logits).expand(self.shape(sample_shape))
        return torch.binomial(torch.full_like(success, self.total), success) / self.total
