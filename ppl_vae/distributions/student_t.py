r"""Student's t distribution."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from scipy.special import digamma
from torch import Tensor

from ppl_vae.distributions._expanding import Scored


class StudentT(Scored, dist.StudentT):
    r"""Student's t with a fixed number of degrees of freedom, exact in float32.

    .. math::
        \log p(z) = \log \frac{\Gamma(\frac{\nu + 1}2)}{\Gamma(\frac\nu2) \sqrt{\pi\nu}\, s}
        - \frac{\nu + 1}2 \log\Bigl(1 + \frac{(z - \mu)^2}{\nu s^2}\Bigr).

    PyTorch's density and entropy take the difference of two large lgammas in the parameters' own type, which loses a
    nat at a million degrees of freedom. PyTorch also squares distances above 1e19 to infinity. Here the normaliser is a
    Python number, so that the degrees of freedom cannot be learned.

    Args:
        df: The degrees of freedom.
        loc: The location.
        scale: The scale s.

    Example:
        >>> StudentT(1.0, torch.zeros(()), torch.ones(())).log_prob(torch.tensor(1e30)).isfinite()
        tensor(True)
    """

    def __init__(self, df: float, loc: Tensor, scale: Tensor) -> None:
        self.degrees = df
        super().__init__(torch.full_like(loc, df), loc, scale)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StudentT:
        """Return the distribution with another batch shape."""
        return StudentT(self.degrees, self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def _log_prob(self, value: Tensor) -> Tensor:
        distance, scale = (value - self.loc).abs(), self.scale * math.sqrt(self.degrees)
        far = distance > scale  # each branch gets values in its own range: a nan would spoil the other's gradient
        near = torch.where(far, 0.0, distance / torch.where(far, 1.0, scale))
        log_t = torch.where(far, distance, 1.0).log() - torch.where(far, scale, 1.0).log()  # the ratio may overflow
        log_tail = torch.where(far, 2 * log_t + (-2 * log_t).exp().log1p(), near.square().log1p())
        return _log_normaliser(self.degrees) - self.scale.log() - (self.degrees + 1) / 2 * log_tail

    def entropy(self) -> Tensor:
        """Return the differential entropy, in nats."""
        half = self.degrees / 2
        if half < 1000:
            slope = float(digamma(half + 0.5) - digamma(half))
        else:  # the series of the difference, whose next term is below 1e-20
            slope = 1 / (2 * half) + 1 / (8 * half**2) - 1 / (64 * half**4)
        return self.scale.log() + (half + 0.5) * slope - _log_normaliser(self.degrees)


def _log_normaliser(df: float) -> float:
    """Return the log-density at the location, for scale 1."""
    a = df / 2
    if a < 1000:
        ratio = math.lgamma(a + 0.5) - math.lgamma(a)
    else:  # Stirling's series, whose next term is below 1e-17
        ratio = 0.5 * math.log(a) - 1 / (8 * a) + 1 / (192 * a**3) - 1 / (640 * a**5)
    return ratio - 0.5 * math.log(math.pi * df)
