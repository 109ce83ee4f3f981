r"""Posteriors of normals beyond the diagonal: full covariance, low rank plus diagonal, and mixtures."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.distributions.full_normal import FullNormal
from ppl_vae.distributions.low_rank_normal import LowRankNormal as LowRankNormalDistribution
from ppl_vae.distributions.normal_mixture import NormalMixture
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork
from ppl_vae.posteriors.protocol import _Amortised

# share kept of the entries below the diagonal of a new Cholesky factor: with 1 its condition number is 1e7 to 1e10 at
# d = 50 to 100
_START = 0.1


class _FlatOutputs(_Amortised):
    """A posterior whose network gives all parameters as one vector, of `_width` values."""

    def _latent_dim(self, outputs: Tensor, formula: str) -> int:
        """Return the dimension d of z, from the number of outputs, which is `formula`."""
        width = outputs.shape[-1]
        d = 1 + bisect_left(range(1, width + 1), width, key=self._width)
        if self._width(d) != width:
            raise ValueError(
                f"{self.owner}: its network has {width} outputs; expected {formula} for a latent of d dimensions, such "
                f"as {self._width(2)} for d = 2"
            )
        return d


class FullCovarianceNormal(_FlatOutputs):
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
        self.floor = check_positive(floor, f"{self.owner}: floor")
        self.mean_and_factor = ParameterNetwork(network, self.owner)

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        super().bind(binding)
        self.mean_and_factor.start_small(2 * binding.latent_shape[0], _START)

    def _width(self, latent_dim: int) -> int:
        return latent_dim * (latent_dim + 3) // 2

    def _distribution(self, outputs: Tensor) -> Any:
        d = self._latent_dim(outputs, "d (d + 3) / 2")
        mean, raw, below = outputs.split([d, d, d * (d - 1) // 2], dim=-1)
        zero = outputs.new_zeros(*outputs.shape[:-1], 1)
        entries = torch.cat([softplus(raw) + self.floor, below / math.sqrt(d), zero], -1)
        place = torch.full((d, d), entries.shape[-1] - 1, device=outputs.device)  # of the zero, for above the diagonal
        place.fill_diagonal_(0)
        place += torch.arange(d, device=outputs.device).diag()
        row, column = torch.tril_indices(d, d, offset=-1, device=outputs.device)
        place[row, column] = torch.arange(d, entries.shape[-1] - 1, device=outputs.device)
        factor = entries.index_select(-1, place.flatten()).unflatten(-1, (d, d))
        return FullNormal(mean, scale_tril=factor)


class LowRankNormal(_FlatOutputs):
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
        self.rank = check_positive_int(rank, f"{self.owner}: rank")
        self.floor = check_positive(floor, f"{self.owner}: floor")
        self.mean_and_factor = ParameterNetwork(network, self.owner)

    def _width(self, latent_dim: int) -> int:
        return latent_dim * (self.rank + 2)

    def _distribution(self, outputs: Tensor) -> Any:
        d = self._latent_dim(outputs, f"d ({self.rank} + 2)")
        mean, raw, factor = outputs.split([d, d, d * self.rank], dim=-1)
        factor = factor.unflatten(-1, (d, self.rank)) / math.sqrt(self.rank)
        return LowRankNormalDistribution(mean, factor, softplus(raw) + self.floor)


class MixtureOfNormals(_FlatOutputs):
    r"""A reparameterised mixture of diagonal normals.

    .. math::
        q(z|x) = \sum_{c=1}^C \pi_c(x)\, \mathcal N(z; \mu_c(x), \mathrm{diag}\,\sigma_c(x)^2).

    The reparameterised gradient is unbiased for weights, means and scales. Where components are many standard
    deviations apart, rare draws between them carry the gradient of the weights, and training practically never sees
    it: such components keep the weights they have. The ELBO seeks modes, so under it components also tend to collapse
    onto one another; `objectives` with several particles inside the logarithm reward their spread. A draw costs
    :math:`O(C^2 d)`. The KL has no closed form, so ``MeanFieldELBO`` refuses this posterior.

    Args:
        network: Maps x to C logits, then C d means, then C d values r with
            :math:`\sigma = \log(1 + e^r) + \text{floor}`: together C (2 d + 1) values; ``MLP()`` by default.
        num_components: The number C of components.
        floor: The smallest standard deviation.

    Raises:
        ValueError: If `num_components` is not a positive integer, `floor` is not above zero, or the network does not
            have C (2 d + 1) outputs.

    Reference:
        Pathwise Derivatives Beyond the Reparameterization Trick (Jankowiak & Obermeyer,
        2018), https://arxiv.org/abs/1806.01851, for the gradient, and Implicit Reparameterization Gradients (Figurnov
        et al., 2018), https://arxiv.org/abs/1805.08498, for another

    Example:
        >>> import torch
        >>> posterior = MixtureOfNormals(nn.Linear(64, 3 * 5), num_components=3)
        >>> posterior(torch.zeros(4, 64)).rsample().shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        num_components: int = 3,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        self.num_components = check_positive_int(num_components, f"{self.owner}: num_components")
        self.floor = check_positive(floor, f"{self.owner}: floor")
        self.components = ParameterNetwork(network, self.owner)

    def _width(self, latent_dim: int) -> int:
        return self.num_components * (2 * latent_dim + 1)

    def _distribution(self, outputs: Tensor) -> Any:
        count = self.num_components
        d = self._latent_dim(outputs, f"{count} (2 d + 1)")
        logits, mean, raw = outputs.split([count, count * d, count * d], dim=-1)
        mean, raw = mean.unflatten(-1, (count, d)), raw.unflatten(-1, (count, d))
        return NormalMixture(logits, mean, softplus(raw) + self.floor)
