r"""A normal with low-rank covariance, in stable arithmetic, and KL divergences that PyTorch lacks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, register_kl

from ppl_vae._numbers import wide
from ppl_vae.distributions._expanding import Expanding
from ppl_vae.distributions._last_draw import LastDraw, recall

if TYPE_CHECKING:
    from jaxtyping import Float


class LowRankNormal(Expanding):
    r"""A normal with covariance :math:`W W^\top + \mathrm{diag}(s^2)`, W of shape (d, r).

    .. math::
        (z - \mu)^\top \Sigma^{-1} (z - \mu)
        = \min_a \lVert (z - \mu - W a) / s \rVert^2 + \lVert a \rVert^2, \qquad
        \log|\Sigma| = \sum_i \log s_i^2 + 2 \sum_k \log |R_{kk}|,

    where R is the triangular factor of :math:`(W / s; I)`, (d + r, r). In place of this sum of squares PyTorch's class
    takes the difference of two large numbers. It also takes a Cholesky factor of :math:`R^\top R`, which has twice the
    digits. With s of 1e-4 beside a W of 1 its density is wrong by nats in float32, or its matrix is not positive
    definite.

    A draw :math:`z = \mu + W l + s f` loses the digits of f where W is much larger than s. The last draw is scored from
    l and f themselves,

    .. math::
        \min_a \lVert (z - \mu - W a) / s \rVert^2 + \lVert a \rVert^2
        = \min_b \lVert f - W b / s \rVert^2 + \lVert l + b \rVert^2,

    and any other z from its own value, both in float64. ``z.detach()`` counts as the draw. ``z.clone()`` and a z that
    was changed in place do not.

    This is slow on a GPU for many data of high rank: batched QR runs one matrix after the other.

    Args:
        loc: The mean, (*batch, d).
        factor: W, (*batch, d, r).
        scale: s, (*batch, d).
        validate_args: As in `torch.distributions`.

    Example:
        >>> LowRankNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2)).variance
        tensor([2., 2.])
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "factor": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True
    _last: LastDraw | None = None
    broadcasts = True

    def __init__(self, loc: Tensor, factor: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.factor, self.scale = loc, factor, scale
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], factor.shape[:-2], scale.shape[:-1])
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch d"]:
        """The mean."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def mode(self) -> Tensor:
        """The mode, which is the mean."""
        return self.mean

    @property
    def variance(self) -> Float[Tensor, "*batch d"]:
        """The variance of each dimension."""
        variance = self.factor.square().sum(-1) + self.scale.square()
        return variance.expand(self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch d d"]:
        """The covariance."""
        covariance = self.factor @ self.factor.mT + self.scale.square().diag_embed()
        return covariance.expand(self.batch_shape + self.event_shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*sample_and_batch d"]:
        """Return draws that carry the gradient."""
        shape = self._extended_shape(sample_shape)
        low = torch.randn(*shape[:-1], self.factor.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        full = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        z = self.loc + (self.factor @ low.unsqueeze(-1)).squeeze(-1) + self.scale * full
        self._last = LastDraw(z, low, full, parameters=(self.loc, self.factor, self.scale))
        return z

    def _log_prob(self, value: Tensor) -> Tensor:
        loc, factor, scale, z = (wide(t) for t in (self.loc, self.factor, self.scale, value))
        last = recall(self._last, value)
        whitened = factor / scale.unsqueeze(-1)
        triangle = self._triangle(whitened)
        if last is None:  # any l gives the same density: this one leaves the digits to the residual
            with torch.no_grad():
                low = self._solve(triangle, whitened, (z - loc) / scale, 0.0)
            residual = (z - loc - (factor @ low.unsqueeze(-1)).squeeze(-1)) / scale
        else:
            low, residual = (wide(part) for part in last.parts)
            if not last.is_on_path(value):  # z is fixed or independent; on the path l and f are constant
                turned = ((factor - factor.detach()) @ low.unsqueeze(-1)).squeeze(-1)
                moved = (z - z.detach()) - (loc - loc.detach()) - turned - (scale - scale.detach()) * residual
                residual = residual + moved / scale  # 0, with all derivatives of (z - mu - W l) / s
        b = self._solve(triangle, whitened, residual, low)
        left, a = residual - (whitened @ b.unsqueeze(-1)).squeeze(-1), low + b
        squares = left.square().sum(-1) + a.square().sum(-1)
        log_det = self._log_det(scale, triangle)
        constant = self.event_shape[0] * math.log(2 * math.pi)
        log_prob = (-0.5 * (squares + constant + log_det)).to(value.dtype)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def log_det(self) -> Float[Tensor, "*batch"]:
        """Return the log-determinant of the covariance."""
        scale = wide(self.scale)
        log_det = self._log_det(scale, self._triangle(wide(self.factor) / scale.unsqueeze(-1)))
        return log_det.to(self.loc.dtype).expand(self.batch_shape)

    @staticmethod
    def _solve(triangle: Tensor, whitened: Tensor, residual: Tensor, low: Tensor | float) -> Tensor:
        """Return the b of the least sum of squares, R'R b = (W / s)' f - l."""
        right = ((whitened.mT @ residual.unsqueeze(-1)).squeeze(-1) - low).unsqueeze(-1).contiguous()
        b = torch.linalg.solve_triangular(triangle.mT, right, upper=False)
        return torch.linalg.solve_triangular(triangle, b, upper=True).squeeze(-1)

    @staticmethod
    def _log_det(scale: Tensor, triangle: Tensor) -> Tensor:
        return 2 * (scale.log().sum(-1) + triangle.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1))

    def _triangle(self, whitened: Tensor) -> Tensor:
        rank = whitened.shape[-1]
        eye = torch.eye(rank, dtype=whitened.dtype, device=whitened.device).expand(*whitened.shape[:-2], rank, rank)
        return torch.linalg.qr(torch.cat([whitened, eye], -2)).R


@register_kl(MultivariateNormal, Independent)
def _kl_full_diagonal(p: MultivariateNormal, q: Independent) -> Tensor:
    log_det = 2 * p.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _kl_to_diagonal(p, q, log_det)


@register_kl(LowRankNormal, Independent)
def _kl_low_rank_diagonal(p: LowRankNormal, q: Independent) -> Tensor:
    return _kl_to_diagonal(p, q, p.log_det())


def _kl_to_diagonal(p: Any, q: Independent, log_det: Tensor) -> Tensor:
    """Return KL(p || q) of a normal p with log-determinant `log_det` to a diagonal normal q."""
    base = q.base_dist
    if not isinstance(base, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    squares = ((p.mean - base.loc).square() + p.variance) / base.scale.square()
    return 0.5 * (squares.sum(-1) - p.event_shape[0] - log_det) + base.scale.log().sum(-1)
