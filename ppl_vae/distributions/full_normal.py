r"""A normal with any covariance, which scores its own draws from their noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae._numbers import wide
from ppl_vae.distributions._expanding import Scored
from ppl_vae.distributions._last_draw import LastDraw, recall

if TYPE_CHECKING:
    from jaxtyping import Float


class FullNormal(Scored, dist.MultivariateNormal):
    r"""A normal with covariance :math:`L L^\top`, whose density is right also where L is ill-conditioned.

    .. math::
        \log p(z) = -\tfrac12 \lVert e \rVert^2 - \sum_i \log L_{ii} - \tfrac d2 \log 2\pi, \qquad z = \mu + L e.

    The condition number of a triangular L from a network grows exponentially with d (1e8 to 1e15 at 50 to 100
    dimensions). A solve for e from the rounded z then misses the e that was drawn: with PyTorch's class
    :math:`-\log p` of a draw was 1e28. This class scores the last draw from its own noise, and its gradients use that
    noise as well. It scores any other z by a solve in float64, which is right for the given z. ``z.detach()`` counts as
    the draw. ``z.clone()``, rows of z and a z that was changed in place do not.

    The gradient of the draw's own score is the pathwise one: z is not an independent variable there.

    Args:
        loc: The mean, (*batch, d).
        scale_tril: L, (*batch, d, d), with a positive diagonal; by name, as in `torch.distributions`.

    Example:
        >>> q = FullNormal(torch.zeros(2), scale_tril=torch.tensor([[1.0, 0.0], [1e9, 1.0]]))
        >>> bool(-30 < q.log_prob(q.rsample()) < -1.83)  # log N(e; 0, I), as the determinant is 1
        True
    """

    _last: LastDraw | None = None

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*sample_and_batch d"]:
        """Return draws that carry the gradient."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        z = self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        self._last = LastDraw(z, noise, parameters=(self.loc, self._unbroadcasted_scale_tril))
        return z

    def _log_prob(self, value: Tensor) -> Tensor:
        factor = self._unbroadcasted_scale_tril
        last = recall(self._last, value)
        if last is not None:
            (noise,) = last.parts
            if not last.is_on_path(value):
                noise = noise + self._moved(value, noise)
        else:
            noise = _solved(wide(factor), wide(value) - wide(self.loc))
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        squares = noise.square().sum(-1).to(value.dtype)
        return -0.5 * (squares + self.event_shape[0] * math.log(2 * math.pi)) - log_det

    def _moved(self, value: Tensor, noise: Tensor) -> Tensor:
        r"""Return 0 with the derivatives of e by z and the parameters, :math:`L^{-1} (z - \mu - (L - L_0) e)`."""
        loc, factor = self.loc, self._unbroadcasted_scale_tril
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in (value, loc, factor)):
            return torch.zeros_like(noise)
        turned = ((factor - factor.detach()) @ noise.unsqueeze(-1)).squeeze(-1)
        return _solved(factor, (value - value.detach()) - (loc - loc.detach()) - turned)


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    """Return L^-1 r for L, (*b, d, d), and r, (..., *b, d), without repeating L over the leading dimensions."""
    lead = right.dim() - factor.dim() + 1
    columns = right.reshape(-1, *right.shape[lead:]).movedim(0, -1)  # (*b, d, n)
    solved = torch.linalg.solve_triangular(factor, columns, upper=False)
    return solved.movedim(-1, 0).reshape(right.shape)
