r"""A normal distribution that scores its own draws from their noise, and a KL to one without cancellation."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.kl import register_kl

from ppl_vae.distributions._expanding import Scored
from ppl_vae.distributions._last_draw import LastDraw, recall


class Normal(Scored, dist.Normal):
    r"""A normal distribution that scores its last draw from the noise of that draw.

    .. math::
        \log p(z) = -\tfrac12 \epsilon^2 - \log \sigma - \tfrac12 \log 2\pi, \qquad z = \mu + \sigma \epsilon.

    Rounding limits how near to :math:`\mu` a float z can lie. Where :math:`\sigma` is below :math:`10^{-7} |\mu|` in
    float32, :math:`(z - \mu) / \sigma` is therefore not the noise that was drawn. Its log-density is too low, or half a
    nat too high for each dimension. Any other z, including ``z.clone()``, is scored at its own value. ``z.detach()``
    counts as the draw. The gradient of the draw's own score is the pathwise one: z is not an independent variable
    there. PyTorch's class squares the scale, which leaves the range of float32 below 1e-19; this class does not.

    Example:
        >>> q = Normal(torch.tensor([1.0]), torch.tensor([1e-12]))
        >>> q.log_prob(q.rsample((1000,))).std() > 0.5  # of half a chi squared; at the rounded z all would be the same
        tensor(True)
    """

    _last: LastDraw | None = None

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Return draws without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Return draws that carry the gradient."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        z = self.loc + noise * self.scale
        self._last = LastDraw(z, noise, parameters=(self.loc, self.scale))
        return z

    def _log_prob(self, value: Tensor) -> Tensor:
        loc, scale = self.loc, self.scale
        last = recall(self._last, value)
        if last is None:
            noise = (value - loc) / scale
        else:
            (noise,) = last.parts
            free = torch.is_grad_enabled() and any(t.requires_grad for t in (value, loc, scale))
            if free and not last.is_on_path(value):
                moved = (value - value.detach()) - (loc - loc.detach()) - noise * (scale - scale.detach())
                noise = noise + moved / scale  # 0, with the derivatives of (z - mu) / sigma
        return -0.5 * noise.square() - scale.log() - 0.5 * math.log(2 * math.pi)


@register_kl(dist.Laplace, dist.Normal)
def _kl_laplace_normal(q: Any, p: Any) -> Tensor:
    """Return KL(q || p), where PyTorch takes (m - n)^2 as m^2 / 2 - m n + n^2 / 2 and loses it far from 0."""
    ratio = q.scale / p.scale
    return ratio.square() - ratio.log() + 0.5 * ((q.loc - p.loc) / p.scale).square() + 0.5 * math.log(math.pi / 2) - 1
