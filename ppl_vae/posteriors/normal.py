r"""Normal posteriors."""

from __future__ import annotations

import math
from typing import Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._numbers import bounded
from ppl_vae._validation import check_choice, check_positive, check_positive_int
from ppl_vae.distributions.full_normal import FullNormal
from ppl_vae.distributions.low_rank_normal import LowRankNormal as LowRankNormalDistribution
from ppl_vae.distributions.normal import Normal
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork

_LARGEST = 40.0  # |log standard deviation|: the variance and its reciprocal are finite in float32
# share kept of the entries below the diagonal of a new Cholesky factor: with 1 its condition number is 1e7 to 1e10 at
# d = 50 to 100
_START = 0.1

Scale = Literal["std", "log_var", "softplus"]


class DiagonalNormal(nn.Module):
    r"""A normal posterior with diagonal covariance.

    .. math::
        q(z|x) = \mathcal N(z; \mu(x), \mathrm{diag}\,\sigma(x)^2).

    It cannot follow correlations or several modes of p(z|x). On a 2-D latent that alone can cost nats, and importance
    sampling from q(z|x) then underestimates log p(x). The network's second output r gives the standard deviation by

    - ``"std"``: :math:`\sigma = |r| + \text{floor}`, the article's. The article leaves the sign in
      :math:`z = \mu + r\epsilon`, which samples the same distribution. But :math:`\mathcal N(\mu, r)` is undefined for
      r < 0, so sampling and density here both use the absolute value.
    - ``"log_var"``: :math:`\sigma = e^{r/2}`, an alternative in a comment of the article. The comment has
      ``mean + exp(log_var) * 0.5 * eps`` where ``exp(0.5 * log_var)`` is meant. An r beyond +-80 counts as +-80.
    - ``"softplus"``: :math:`\sigma = \log(1 + e^r) + \text{floor}`, without kink or overflow.

    Args:
        network: Maps x to the mean and to r, two values per latent dimension; ``MLP()`` by default.
        scale: How r gives the standard deviation.
        floor: The smallest standard deviation under ``"std"`` and ``"softplus"``; ``"log_var"`` needs none.

    Raises:
        ValueError: For an unknown `scale`, or a `floor` that is not above zero.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> posterior = DiagonalNormal(nn.Linear(64, 4), scale="log_var")
        >>> posterior(torch.zeros(5, 64)).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        scale: Scale = "softplus",
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice(scale, get_args(Scale), "posterior DiagonalNormal: scale")
        self.scale = scale
        self.floor = check_positive(floor, "posterior DiagonalNormal: floor")
        self.mean_and_scale = ParameterNetwork(
            MLP() if network is None else network, "posterior DiagonalNormal", count=2
        )

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.mean_and_scale.build(binding.x_shape, binding.latent_shape, binding.y_shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        mean, raw = self.mean_and_scale(x, y)
        if self.scale == "std":
            std = raw.abs() + self.floor
        elif self.scale == "log_var":
            std = bounded(0.5 * raw, _LARGEST).exp()
        else:
            std = softplus(raw) + self.floor
        return Normal(mean, std).to_event(1)


class FullCovarianceNormal(nn.Module):
    r"""A normal posterior with full covariance, given by its Cholesky factor.

    .. math::
        q(z|x) = \mathcal N(z; \mu(x), L(x) L(x)^\top), \qquad
        L_{ii} = \log(1 + e^{r_i}) + \text{floor}, \quad L_{ij} = \ell_{ij} / \sqrt d \ (i > j).

    It still has one mode: it follows correlations, not several explanations of one datum. The network has
    :math:`d (d + 3) / 2` outputs (860 for d = 40), and a draw and a density cost :math:`O(d^2)` for each datum; with a
    hundred dimensions and more `LowRankNormal` is cheaper. A triangular L is ill-conditioned in many dimensions: its
    condition number grows exponentially with d. A network that its factory makes therefore starts near a diagonal L:
    its outputs :math:`\ell` are a tenth of what they would be. A draw is scored from its own noise and is right
    whatever L is; any other z is scored in float64 (see `distributions.full_normal`). The factor :math:`1 / \sqrt d`
    does not change the family: it keeps the variances of z in bounds in any dimension.

    Args:
        network: Maps x to :math:`\mu`, r and :math:`\ell` row by row, together d (d + 3) / 2 values; ``MLP()`` by
            default.
        floor: The smallest diagonal entry of L.

    Raises:
        ValueError: If `floor` is not above zero, or the network does not have d (d + 3) / 2 outputs.

    Reference:
        An Introduction to Variational Autoencoders (Kingma & Welling, 2019), section 2.5.1,
        https://arxiv.org/abs/1906.02691

    Example:
        >>> posterior = FullCovarianceNormal(nn.Linear(64, 5))
        >>> posterior(torch.zeros(3, 64)).covariance_matrix.shape
        torch.Size([3, 2, 2])
    """

    def __init__(self, network: NetworkFactory | nn.Module | None = None, floor: float = 1e-5) -> None:
        super().__init__()
        self.floor = check_positive(floor, "posterior FullCovarianceNormal: floor")
        self.mean_and_factor = ParameterNetwork(MLP() if network is None else network, "posterior FullCovarianceNormal")

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        (d,) = binding.latent_shape
        self.mean_and_factor.build(binding.x_shape, (d * (d + 3) // 2,), binding.y_shape)
        self.mean_and_factor.start_small(2 * d, _START)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        (outputs,) = self.mean_and_factor(x, y)
        count = outputs.shape[-1]
        d = (math.isqrt(9 + 8 * count) - 3) // 2
        if d * (d + 3) != 2 * count:
            raise ValueError(
                f"posterior FullCovarianceNormal: its network has {count} outputs; expected d (d + 3) / 2 for a latent "
                "of d dimensions, such as 5 for d = 2"
            )
        mean, raw, below = outputs.split([d, d, count - 2 * d], dim=-1)
        zero = outputs.new_zeros(*outputs.shape[:-1], 1)
        entries = torch.cat([softplus(raw) + self.floor, below / math.sqrt(d), zero], -1)
        place = torch.full((d, d), entries.shape[-1] - 1, device=outputs.device)  # of the zero, for above the diagonal
        place.fill_diagonal_(0)
        place += torch.arange(d, device=outputs.device).diag()
        row, column = torch.tril_indices(d, d, offset=-1, device=outputs.device)
        place[row, column] = torch.arange(d, entries.shape[-1] - 1, device=outputs.device)
        factor = entries.index_select(-1, place.flatten()).unflatten(-1, (d, d))
        return FullNormal(mean, scale_tril=factor)


class LowRankNormal(nn.Module):
    r"""A normal posterior with covariance of low rank plus a diagonal.

    .. math::
        q(z|x) = \mathcal N(z; \mu(x), W(x) W(x)^\top + \mathrm{diag}\,s(x)^2), \qquad
        W_{ik} = w_{ik} / \sqrt r, \quad s = \log(1 + e^\rho) + \text{floor}.

    It follows the r strongest correlations with d (r + 2) outputs, where `FullCovarianceNormal` needs d (d + 3) / 2.
    Each density costs a QR factorisation of a (d + r, r) matrix. With r near d it has more parameters than
    `FullCovarianceNormal` and no advantage. In twenty dimensions `FullCovarianceNormal` is also faster; in a hundred it
    is five times slower. The covariance determines W only up to a rotation.

    Args:
        network: Maps x to :math:`\mu`, :math:`\rho` and W row by row, together d (r + 2) values; ``MLP()`` by default.
        rank: The rank r.
        floor: The smallest s.

    Raises:
        ValueError: If `rank` is not a positive integer, `floor` is not above zero, or the network does not have
            d (r + 2) outputs.

    Reference:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende, Mohamed & Wierstra,
        2014), section 4.3 for rank one, https://arxiv.org/abs/1401.4082

    Example:
        >>> posterior = LowRankNormal(nn.Linear(64, 12), rank=1)
        >>> posterior(torch.zeros(3, 64)).covariance_matrix.shape
        torch.Size([3, 4, 4])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        rank: int = 2,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        self.rank = check_positive_int(rank, "posterior LowRankNormal: rank")
        self.floor = check_positive(floor, "posterior LowRankNormal: floor")
        self.mean_and_factor = ParameterNetwork(MLP() if network is None else network, "posterior LowRankNormal")

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        (d,) = binding.latent_shape
        self.mean_and_factor.build(binding.x_shape, (d * (self.rank + 2),), binding.y_shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        (outputs,) = self.mean_and_factor(x, y)
        d, rest = divmod(outputs.shape[-1], self.rank + 2)
        if rest:
            raise ValueError(
                f"posterior LowRankNormal: its network has {outputs.shape[-1]} outputs; expected d (rank + 2), a "
                f"multiple of {self.rank + 2}"
            )
        mean, raw, factor = outputs.split([d, d, d * self.rank], dim=-1)
        factor = factor.unflatten(-1, (d, self.rank)) / math.sqrt(self.rank)
        return LowRankNormalDistribution(mean, factor, softplus(raw) + self.floor)
