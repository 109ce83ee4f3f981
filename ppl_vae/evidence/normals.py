r"""Normal posteriors as means and scales per datum, which can be moved and refined; scores under many normals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.evidence.rows import Rows


@dataclass(frozen=True)
class Normals(Rows):
    r"""One normal posterior for each of n data, :math:`z = \mu + S\epsilon` with standard normal :math:`\epsilon`.

    Attributes:
        loc: The means, (n, d).
        scale: Standard deviations (n, d), or lower triangular factors of the covariances (n, d, d).

    Example:
        >>> q = Normals(torch.zeros(3, 2), torch.full((3, 2), 2.0))
        >>> q.at(torch.ones(5, 1, 2)).shape, q.diagonal, round(q.entropy()[0].item(), 4)
        (torch.Size([5, 3, 2]), True, 4.2242)
    """

    loc: Tensor
    scale: Tensor

    @classmethod
    def of(cls, distribution: Any) -> Normals | None:
        """Return the normals of a diagonal Normal or a MultivariateNormal; None for any other distribution."""
        base, wrapped = distribution, 0
        while isinstance(base, dist.Independent):
            base, wrapped = base.base_dist, wrapped + base.reinterpreted_batch_ndims
        if isinstance(base, torch.distributions.Normal) and wrapped == 1 and base.loc.dim() == 2:
            return cls(base.loc.detach(), base.scale.expand(base.loc.shape).detach())
        if isinstance(base, torch.distributions.MultivariateNormal) and wrapped == 0 and base.loc.dim() == 2:
            size = (*base.loc.shape, base.loc.shape[-1])
            return cls(base.loc.detach(), base.scale_tril.expand(size).detach())
        return None

    @property
    def latent_dim(self) -> int:
        """The dimension d."""
        return self.loc.shape[-1]

    @property
    def diagonal(self) -> bool:
        """Whether the dimensions are independent."""
        return self.scale.dim() == 2

    @property
    def std(self) -> Tensor:
        """The standard deviation of each dimension, (n, d)."""
        return self.scale if self.diagonal else self.scale.square().sum(-1).sqrt()

    def at(self, noise: Tensor) -> Tensor:
        """Return z, (K, n, d), for noise of shape (K, n, d) or (K, 1, d)."""
        if self.diagonal:
            return self.loc + self.scale * noise
        return self.loc + (self.scale @ noise.expand(len(noise), *self.loc.shape).unsqueeze(-1)).squeeze(-1)

    def log_prob_at(self, noise: Tensor) -> Tensor:
        """Return log q at ``at(noise)`` for noise (K, n, d), as (K, n), float64.

        It is computed from the noise, because rounding removes digits of z where scales are narrow.
        """
        squares = noise.double().square().sum(-1)
        return -0.5 * (squares + self.latent_dim * math.log(2 * math.pi)) - self.log_det()

    def whitened(self, z: Tensor) -> Tensor:
        """Return the noise that `at` maps to z, (K, n, d)."""
        if self.diagonal:
            return (z - self.loc) / self.scale
        return torch.linalg.solve_triangular(self.scale, (z - self.loc).unsqueeze(-1), upper=False).squeeze(-1)

    def log_det(self) -> Tensor:
        """Return log |S|, (n,), in float64."""
        diagonal = self.scale if self.diagonal else self.scale.diagonal(dim1=-2, dim2=-1)
        return diagonal.double().log().sum(-1)

    def entropy(self) -> Tensor:
        """Return -E_q[log q(z)], (n,), in float64, nats."""
        return self.log_det() + 0.5 * self.latent_dim * (1 + math.log(2 * math.pi))

    def kl(self, other: Normals) -> Tensor:
        """Return KL(self || other), (n,), in float64, nats."""
        full = not (self.diagonal and other.diagonal)
        pair = []
        for normals in (self, other):
            loc, scale = normals.loc.double(), normals.scale.double()
            pair.append(Normals(loc, torch.diag_embed(scale) if full and normals.diagonal else scale).distribution())
        return torch.distributions.kl_divergence(*pair)

    def distribution(self) -> Any:
        """Return the normals as a Pyro distribution, batch shape (n,), event shape (d,)."""
        if self.diagonal:
            return dist.Normal(self.loc, self.scale).to_event(1)
        return dist.MultivariateNormal(self.loc, scale_tril=self.scale)

    def put(self, rows: Tensor, other: Normals) -> Normals:
        """Return the normals with those of `rows` replaced by `other`."""
        return Normals(self.loc.index_copy(0, rows, other.loc), self.scale.index_copy(0, rows, other.scale))


def tensor_nodes(num_nodes: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes (K, dim) and weights (K,) of a Gauss-Hermite rule for N(0, I), `num_nodes` per dimension."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    grid = torch.cartesian_prod(*[torch.from_numpy(nodes)] * dim).reshape(-1, dim)
    weight = torch.cartesian_prod(*[torch.from_numpy(weights / weights.sum())] * dim).reshape(-1, dim).prod(-1)
    heavy = weight > 1e-13  # no log-density is steep enough for lighter nodes to count
    return grid[heavy].to(like), weight[heavy].to(like.device)


def normal_scores(mean: Tensor, precision: Tensor, log_det: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function from points (n, d) to their log-densities under G diagonal normals, (n, G), float64.

    Args:
        mean: The means, (G, d), float64.
        precision: The reciprocals of the variances, (G, d).
        log_det: The logs of the products of the standard deviations, (G,).
    """
    centre = mean.mean(0)  # centred values have smaller squares, which cancel less
    mean = mean - centre
    linear = (mean * precision).T
    constant = -0.5 * (mean.square() * precision).sum(-1) - log_det - 0.5 * mean.shape[1] * math.log(2 * math.pi)

    def score(points: Tensor) -> Tensor:
        points = points.double() - centre
        return points @ linear - 0.5 * points.square() @ precision.T + constant

    return score
