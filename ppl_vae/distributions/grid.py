r"""Distributions over the levels of a pixel: binomial, categorical, and the base class of those with known tails."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from ppl_vae._validation import check_positive_int
from ppl_vae.distributions._expanding import Expanding
from ppl_vae.distributions._saddle import HALF_LOG_2PI, stirling_remainder

_ELEMENTS = 2**24  # in one chunk of a sum over the levels, 64 MiB in float32


def check_bins(bins: int, name: str) -> int:
    """Return `bins` if it is an integer of at least two."""
    if check_positive_int(bins, f"{name}: bins") < 2:
        raise ValueError(f"{name}: bins is {bins}; expected at least 2 levels, such as 256 for 8-bit pixels")
    return bins


class Grid(constraints.Constraint):
    r"""The values :math:`k / (\text{bins} - 1)`, :math:`k = 0 \dots \text{bins} - 1`, in [0, 1].

    A value counts as on the grid within a thousandth of a level, or within the rounding of its float type where that
    is coarser (more than 2000 levels in float32). A continuous value passes by chance one time in 500 per pixel.

    Args:
        bins: How many levels.

    Example:
        >>> Grid(256).check(torch.tensor([0.0, 17 / 255, 0.5, 1.0, 256 / 255]))
        tensor([ True,  True, False,  True, False])
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, bins: int) -> None:
        self.bins = bins
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return for each value whether it lies on the grid."""
        level = value * (self.bins - 1)
        off = max(1e-3, 4 * (self.bins - 1) * torch.finfo(level.dtype).eps)
        nearest = level.round()
        return ((level - nearest).abs() <= off) & (nearest >= 0) & (nearest <= self.bins - 1)

    def __repr__(self) -> str:
        return f"Grid(k / {self.bins - 1}, k = 0..{self.bins - 1})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and other.bins == self.bins

    def __hash__(self) -> int:
        return hash((Grid, self.bins))


class _OnGrid(Expanding):
    """A distribution over the `bins` levels of a pixel."""

    bins: int

    @property
    def support(self) -> Any:
        """The grid of levels."""
        return Grid(self.bins)

    def level(self, value: Tensor) -> Tensor:
        """Return the level of each value, as a float."""
        return (value * (self.bins - 1)).round()


class GridBinomial(_OnGrid):
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
        self.total, self.bins = total, total + 1
        super().__init__(logits.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The probability of a success."""
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        """The variance of the share."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits) / self.total

    def _log_prob(self, value: Tensor) -> Tensor:
        n, k = self.total, self.level(value)
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


class GridCategorical(_OnGrid):
    r"""A distribution over the levels :math:`k / (n - 1)` of a pixel, with a logit for each level.

    .. math::
        \log P(x = \tfrac{k}{n - 1}) = \ell_k - \log \sum_j e^{\ell_j}.

    Args:
        logits: One per level, (..., n).

    Example:
        >>> pixel = GridCategorical(torch.tensor([1.0, 2.0, 1.0]).log())
        >>> pixel.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp(), pixel.mean
        (tensor([0.2500, 0.5000, 0.2500]), tensor(0.5000))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        self.bins = logits.shape[-1]
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.logits.softmax(-1) @ self._levels / (self.bins - 1)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        distance = self._levels / (self.bins - 1) - self.mean.unsqueeze(-1)
        return (self.logits.softmax(-1) * distance.square()).sum(-1)

    def _log_prob(self, value: Tensor) -> Tensor:
        level = self.level(value).long().clamp(0, self.bins - 1).unsqueeze(-1)
        logits = log_softmax(self.logits, -1)
        shape = torch.broadcast_shapes(level.shape[:-1], logits.shape[:-1])
        return logits.expand(*shape, -1).gather(-1, level.expand(*shape, 1)).squeeze(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws."""
        level = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        return level.to(self.logits.dtype) / (self.bins - 1)

    @property
    def _levels(self) -> Tensor:
        return torch.arange(self.bins, device=self.logits.device, dtype=self.logits.dtype)


class GridDistribution(_OnGrid):
    r"""A distribution of :math:`x = k / (\text{bins} - 1)` whose level k has tail probabilities in closed form.

    Mean and variance are sums over the levels,

    .. math::
        \mathbb E[k - c] = \sum_{j > c} P(k \ge j) - \sum_{j \le c} P(k < j), \qquad
        \mathbb E[(k - c)^2] = \sum_{j > c} (2 (j - c) - 1) P(k \ge j) + \sum_{j \le c} (2 (c - j) + 1) P(k < j),

    over j = 1..bins-1. They are exact for any level c; a c near the mean keeps the digits of small variances. They take
    bins - 1 evaluations of the tails, which is slow for whole data sets. The evaluations come in chunks, so that the
    memory stays bounded without gradients.

    A subclass sets ``bins`` and defines `tails` and `middle`.
    """

    def tails(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return P(k < level) and P(k >= level), for levels of shape (levels, 1, ..., 1) in front of the batch."""
        raise NotImplementedError

    def middle(self) -> Tensor:
        """Return a point near the mean, in levels, of batch shape."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """The mean of the discrete variable, not of the continuous variable that was discretized."""
        centre, first, _ = self._moments(second=False)
        return (centre + first) / (self.bins - 1)

    @property
    def variance(self) -> Tensor:
        """The variance of the discrete variable."""
        _, first, second = self._moments(second=True)
        return (second - first.square()) / (self.bins - 1) ** 2

    def _moments(self, second: bool) -> tuple[Tensor, Tensor, Tensor]:
        centre = self.middle().detach().round().clamp(0, self.bins - 1)
        levels = torch.arange(1, self.bins, device=centre.device, dtype=centre.dtype)
        first, squares = torch.zeros_like(centre), torch.zeros_like(centre)
        for chunk in levels.split(max(1, _ELEMENTS // max(1, centre.numel()))):
            level = chunk.reshape(-1, *[1] * centre.dim())
            below, above = self.tails(level)
            distance = level - centre
            right = distance > 0
            first = first + torch.where(right, above, -below).sum(0)
            if second:
                squares = squares + torch.where(right, (2 * distance - 1) * above, (1 - 2 * distance) * below).sum(0)
        return centre, first, squares
