r"""Tables and counts as the input of networks: standardised, one-hot, without NaN; on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_vae._columns import split_kinds
from ppl_vae._validation import check_positive_int
from ppl_vae.networks.binding import Shape
from ppl_vae.networks.mlp import MLP
from ppl_vae.networks.parameters import NetworkFactory

_MEMORY = 2.0**20  # values after which old ones count less: in float32 a count stops growing by ones at 2^24


@dataclass(frozen=True)
class TableEncoder:
    r"""A factory of networks that take rows of a table, with NaN where an entry is missing.

    For a column of numbers the inner network sees

    .. math::
        \frac{t(x_j) - m_j}{s_j}, \qquad t(x) = x,\ \log x \text{ (positive) or } \log(1 + x) \text{ (count)},

    and for a category a one-hot code. Where an entry is missing it sees zero, which for a number is its mean. With
    `mask` it also sees, for each column, a 1 where it is observed. MIWAE uses this zero imputation too. The bound is
    right whatever is imputed, since q may be any function of :math:`x_\text{obs}`. The encoder is poor if what is
    missing says much about z and `mask` is off. With `mask`, an encoder that was trained on incomplete rows has hardly
    seen a complete one.

    :math:`m_j, s_j` are the mean and standard deviation of all observed entries that the network saw in training mode.
    As in batch normalisation they are learned from the data, but they are cumulative, and training and evaluation use
    the same ones. After the first epoch they hardly move. In a network that was never trained they are 0 and 1, and
    where a column is constant so far :math:`s_j` counts as 1.

    Args:
        columns: The kind of each column, as `likelihoods.Mixed` takes them; None: every input is ``"real"``. A
            condition that is joined behind the columns passes through as it is (with None it is standardised too).
        network: Factory of the inner network; ``MLP()`` by default.
        mask: Whether the inner network also sees which entries are observed.

    Raises:
        ValueError: For an unknown kind; when called, for an input with fewer values than columns.

    Reference:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei & Frellsen, 2019),
        https://arxiv.org/abs/1812.02633

    Example:
        >>> network = TableEncoder(["real", "categorical:3"], MLP([8]))((2,), (4,))
        >>> network(torch.tensor([[120.0, 2.0], [torch.nan, torch.nan]])).shape
        torch.Size([2, 4])
    """

    columns: Sequence[str] | None = None
    network: NetworkFactory | None = None
    mask: bool = False

    def __post_init__(self) -> None:
        if self.columns is not None:
            split_kinds(self.columns, "TableEncoder: columns")

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return the network for these sizes."""
        size = math.prod(in_shape)
        if self.columns is not None and (len(in_shape) != 1 or len(self.columns) > size):
            raise ValueError(
                f"TableEncoder has {len(self.columns)} columns and an input of shape {in_shape}; expected rows of at "
                "least so many values"
            )
        kinds = [("real", 0)] * size if self.columns is None else split_kinds(self.columns, "TableEncoder: columns")
        inner = MLP() if self.network is None else self.network
        width = sum(categories or 1 for _, categories in kinds) + size - len(kinds) + len(kinds) * self.mask
        return _Table(kinds, self.mask, inner((width,), out_shape))


class _Table(nn.Module):
    count: Tensor
    mean: Tensor
    variance: Tensor
    numbers: Tensor
    logs: Tensor
    shifts: Tensor

    def __init__(self, kinds: list[tuple[str, int]], mask: bool, network: nn.Module) -> None:
        super().__init__()
        numbers = [j for j, (_, categories) in enumerate(kinds) if not categories]
        self.codes = [(j, categories) for j, (_, categories) in enumerate(kinds) if categories]
        self.size, self.mask, self.network = len(kinds), mask, network
        names = [kinds[j][0] for j in numbers]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int64), persistent=False)
        self.register_buffer("logs", torch.tensor([n in ("positive", "count") for n in names]), persistent=False)
        self.register_buffer("shifts", torch.tensor([float(n == "count") for n in names]), persistent=False)
        self.register_buffer("count", torch.zeros(len(numbers)))
        self.register_buffer("mean", torch.zeros(len(numbers)))
        self.register_buffer("variance", torch.ones(len(numbers)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)  # (n, columns and condition)
        row, condition = x[:, : self.size], x[:, self.size :]
        seen = ~row.isnan()
        t = row.index_select(-1, self.numbers)
        missing = t.isnan()
        # missing entries, and the zeros that check a network before there are data, are kept out of the logarithm
        inside = torch.where(missing | (self.logs & (t + self.shifts <= 0)), torch.ones_like(t), t)
        t = torch.where(self.logs, (torch.where(self.logs, inside, torch.ones_like(t)) + self.shifts).log(), inside)
        if self.training and len(t):
            self._learn(t.detach(), missing)
        standard = (t - self.mean) * torch.where(self.variance > 0, self.variance, 1.0).rsqrt()
        features = [torch.where(missing, torch.zeros_like(t), standard)]
        for j, categories in self.codes:  # NaN equals no code
            features.append((row[:, j, None] == torch.arange(categories, device=x.device)).to(t))
        if self.mask:
            features.append(seen.to(t))
        return self.network(torch.cat([*features, condition], -1))

    @torch.no_grad()
    def _learn(self, t: Tensor, missing: Tensor) -> None:
        """Update the running mean and variance with the observed entries of these rows."""
        n = (~missing).sum(0).to(t)
        some = n.clamp(min=1)
        # about an observed entry the rows of a constant column are 0, and so is their variance, without rounding
        pivot = t.gather(0, missing.int().argmin(0, keepdim=True))
        t = torch.where(missing, torch.zeros_like(t), t - pivot)
        mean = t.sum(0) / some
        variance = torch.where(missing, torch.zeros_like(t), t - mean).square().sum(0) / some
        share = n / (self.count + n).clamp(min=1)  # of these rows among all that count
        gap = pivot[0] + mean - self.mean
        updated = (1 - share) * (self.variance + share * gap.square()) + share * variance
        fresh = torch.where(self.count == 0, variance, updated)  # the first rows replace the initial variance
        self.variance.copy_(torch.where(n > 0, fresh, self.variance))
        self.mean.add_(share * gap)
        self.count.copy_((self.count + n).clamp(max=_MEMORY))


@dataclass(frozen=True)
class Log1p:
    r"""A factory of networks that see :math:`\mathrm{sign}(x) \log(1 + |x|)` of their input, for encoders of counts.

    Counts of thousands make the first layer's outputs, and so the first steps, thousands of times larger than those of
    ones. `TableEncoder` with columns of kind ``"count"`` standardises as well, which makes a gene that is seen in few
    data large there. A condition behind the counts is transformed alike, which keeps what it says.

    Args:
        network: Factory of the inner network; ``MLP()`` by default.
        counts: How many inputs, from the first, the inner network sees; None for all. The number of features leaves out
            the condition, for a q(z|x) that does not depend on it.

    Raises:
        ValueError: If `counts` is no positive integer.

    Reference:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
        https://www.nature.com/articles/s41592-018-0229-2

    Example:
        >>> network = Log1p(MLP([8]), counts=3)((5,), (4,))
        >>> network(torch.tensor([[0.0, 7.0, 2000.0, 1.0, 0.0]])).shape
        torch.Size([1, 4])
    """

    network: NetworkFactory | None = None
    counts: int | None = None

    def __post_init__(self) -> None:
        if self.counts is not None:
            check_positive_int(self.counts, "Log1p: counts")

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return the network for these sizes."""
        inner = MLP() if self.network is None else self.network
        return _Log1p(inner(in_shape if self.counts is None else (self.counts,), out_shape), self.counts)


class _Log1p(nn.Module):
    def __init__(self, network: nn.Module, counts: int | None) -> None:
        super().__init__()
        self.network, self.counts = network, counts

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.counts is None else x.flatten(1)[:, : self.counts]
        return self.network(x.sign() * x.abs().log1p())
