r"""The uniform distribution on the unit sphere, and the area of the sphere."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import normalize

from ppl_vae.distributions._expanding import Expanding


def log_area(dim: int) -> float:
    r"""Return the log area of the unit sphere in `dim` dimensions, :math:`2 \pi^{d/2} / \Gamma(d/2)`.

    Example:
        >>> math.isclose(log_area(2), math.log(2 * math.pi))  # the circle's length
        True
    """
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


class SphereUniform(Expanding):
    r"""The uniform distribution on :math:`S^{d-1} \subset \mathbb R^d`.

    .. math::
        p(z) = \Gamma(d/2) / (2 \pi^{d/2}), \qquad \lVert z \rVert = 1,

    a density with respect to the sphere's area, not to volume: it cannot be compared with one on R^d.

    Args:
        dim: d, at least 2.
        like: A tensor whose type and device the draws take.

    Example:
        >>> SphereUniform(3, torch.zeros(())).sample((5,)).norm(dim=-1).allclose(torch.ones(5))
        True
    """

    support = constraints.sphere
    has_rsample = True

    def __init__(self, dim: int, like: Tensor, validate_args: bool | None = None) -> None:
        self._like = like.detach()
        super().__init__(torch.Size(()), torch.Size((dim,)), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean, 0, which is not on the sphere."""
        return self._like.new_zeros(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, 1/d."""
        return self._like.new_full(self._extended_shape(), 1 / self.event_shape[0])

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw a normalised normal vector."""
        shape = self._extended_shape(sample_shape)
        return normalize(torch.randn(shape, dtype=self._like.dtype, device=self._like.device), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the log area, the same for all points."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        # 0 * value keeps the type, and a graph that can be differentiated
        return (0 * value[..., 0]).expand(shape) - log_area(self.event_shape[0])

    def entropy(self) -> Tensor:
        """Return the log area."""
        return self._like.new_full(self.batch_shape, log_area(self.event_shape[0]))
