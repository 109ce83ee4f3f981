r"""The continuous Bernoulli distribution, exact at every logit."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_vae.distributions._expanding import Expanding

# B_2k / (2k)! for k = 1..10, of the Bernoulli numbers B: the mean is 1/2 + sum_k of these times logit^(2k - 1)
_SERIES = (
    1 / 12,
    -1 / 720,
    1 / 30240,
    -1 / 1209600,
    1 / 47900160,
    -691 / 1307674368000,
    1 / 74724249600,
    -3617 / 10670622842880000,
    43867 / 5109094217170944000,
    -174611 / 802857662698291200000,
)
# |logit| below which the series is used: ten terms leave errors of 1e-17 in the normaliser and 2e-15 in the variance
_SMALL = 1.0
# |logit| below which the quantile's series is used: eight terms leave an error of 1e-16, and the gradient of the
# quotient that is used elsewhere keeps 1/30 of its precision there
_NARROW = 0.03


class ContinuousBernoulli(Expanding):
    r"""The continuous Bernoulli distribution on [0, 1], from logits.

    .. math::
        \log p(x) = \ell x - A(\ell), \qquad A(\ell) = \log \frac{e^\ell - 1}{\ell}
        = \frac \ell 2 + \log \frac{\sinh(\ell / 2)}{\ell / 2}.

    This is an exponential family whose natural parameter is the logit :math:`\ell = \log \frac{\lambda}{1 - \lambda}`.
    Its mean :math:`A'(\ell) = (1 - e^{-\ell})^{-1} - \ell^{-1}` is not :math:`\lambda`: it lies between
    :math:`\lambda` and 1/2. At :math:`\lambda` = 0.9 it is 0.67.

    `torch.distributions.ContinuousBernoulli` clamps :math:`\lambda` to the precision of its type. Its density therefore
    stops growing at a logit of 16 (float32) or 36 (float64), and data at 0 and 1, such as the background of pictures,
    pull the logit there. Its variance around :math:`\lambda = 1/2` is wrong by a factor of three in float32. This class
    computes everything from the logit, and by a series around 0.

    Args:
        logits: :math:`\ell`, any shape.

    Reference:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem & Cunningham,
        2019), https://arxiv.org/abs/1907.06845

    Example:
        >>> pixel = ContinuousBernoulli(torch.tensor([0.0, 100.0]))
        >>> pixel.log_prob(torch.tensor(1.0)), pixel.mean
        (tensor([0.0000, 4.6052]), tensor([0.5000, 0.9900]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean of x, which is not the probability parameter."""
        small, logits, size = self._parts()
        series = 0.5 + logits * _polynomial(logits.square(), _SERIES)
        distance = 1 / size + torch.exp(-size) / torch.expm1(-size)  # from the edge where the mode is
        return torch.where(small, series, torch.where(self.logits > 0, 1 - distance, distance))

    @property
    def variance(self) -> Tensor:
        """The variance of x."""
        small, logits, size = self._parts()
        series = _polynomial(logits.square(), [(2 * k + 1) * c for k, c in enumerate(_SERIES)])
        decay = torch.exp(-size)
        return torch.where(small, series, 1 / size.square() - decay / torch.expm1(-size).square())

    def _log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) per element."""
        small, logits, size = self._parts()
        middle = logits * (value - 0.5) - _excess(logits)
        # from the distance to the edge where the mode is: l x - A(l) is a difference of two numbers of the size of l
        distance = torch.where(self.logits > 0, 1 - value, value)
        return torch.where(small, middle, size.log() - torch.log(-torch.expm1(-size)) - size * distance)

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(x <= value)."""
        if self._validate_args:
            self._validate_sample(value)
        small, logits, size = self._parts()
        near = value * (logits * (value - 1) / 2 + _excess(logits * value) - _excess(logits)).exp()
        positive = self.logits > 0
        below = torch.expm1(-size * torch.where(positive, 1 - value, value)) / torch.expm1(-size)
        return torch.where(small, near, torch.where(positive, 1 - below, below))

    def icdf(self, value: Tensor) -> Tensor:
        r"""Return the quantile of `value` in [0, 1], differentiable in the logit.

        The quantile of uniform noise u is a draw,

        .. math::
            F^{-1}(u) = \frac{\log(1 + u (e^\ell - 1))}{\ell} = \sum_{n \ge 1} \kappa_n(u) \frac{\ell^{n - 1}}{n!},

        where :math:`\kappa_n` are the cumulants of a Bernoulli variable of mean u.
        """
        small, logits, size = self._parts(_NARROW)
        positive = self.logits > 0
        noise = torch.where(positive, 1 - value, value)
        distance = -torch.log1p(noise * torch.expm1(-size)) / size
        large = torch.where(positive, 1 - distance, distance)
        return torch.where(small, _small_quantile(logits, value), large).clamp(0, 1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws by inversion, differentiable in the logits."""
        shape = self._extended_shape(sample_shape)
        noise = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        tiny = torch.finfo(noise.dtype).eps / 2  # a noise of exactly 0 has an infinite derivative at large logits
        return self.icdf(noise.clamp(tiny, 1 - tiny))

    def entropy(self) -> Tensor:
        """Return the differential entropy, in nats; it is at most 0, the entropy of the uniform distribution."""
        # The log-density is linear in x, so that the entropy is minus its value at the mean. It is computed from the
        # mean's distance to the edge, of which the mean itself loses the digits.
        small, logits, size = self._parts()
        square = logits.square()
        series = _polynomial(square, [(1 - 1 / (2 * k + 2)) * c for k, c in enumerate(_SERIES)])
        decay = torch.exp(-size)
        large = 1 + size * decay / torch.expm1(-size) - size.log() + torch.log(-torch.expm1(-size))
        return torch.where(small, -square * series, large)

    def _parts(self, limit: float = _SMALL) -> tuple[Tensor, Tensor, Tensor]:
        """Return where a series holds, the logit there (else 0) and its size elsewhere (else 2, never 0)."""
        small = self.logits.abs() < limit
        logits = torch.where(small, self.logits, torch.zeros_like(self.logits))
        return small, logits, torch.where(small, torch.full_like(self.logits, 2.0), self.logits.abs())


def logit_of_mean(mean: Tensor) -> Tensor:
    """Return the logit at which the mean is `mean`, in (0, 1), by bisection; not differentiable."""
    mean = mean.double()
    upper = 2 / torch.minimum(mean, 1 - mean)  # the mean at a logit of -l is below 1/l
    lower, upper = -upper, upper.clone()
    for _ in range(200):
        middle = (lower + upper) / 2
        below = ContinuousBernoulli(middle, validate_args=False).mean < mean
        lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
    return (lower + upper) / 2


def _excess(logits: Tensor) -> Tensor:
    """Return A(l) - l/2 for small l."""
    square = logits.square()
    return square * _polynomial(square, [c / (2 * k + 2) for k, c in enumerate(_SERIES)])


def _polynomial(x: Tensor, coefficients: Any) -> Tensor:
    """Return the sum of coefficients[k] x^k, by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _small_quantile(logits: Tensor, u: Tensor) -> Tensor:
    v, w = u * (1 - u), 1 - 2 * u
    cumulants = [
        u,
        v,
        v * w,
        v * (1 - 6 * v),
        v * w * (1 - 12 * v),
        v * (1 - 30 * v + 120 * v**2),
        v * w * (1 - 60 * v + 360 * v**2),
        v * (1 - 126 * v + 1680 * v**2 - 5040 * v**3),
    ]
    total, factorial = torch.zeros_like(u * logits), 1
    for n, cumulant in enumerate(cumulants, 1):
        factorial *= n
        total = total + cumulant * logits ** (n - 1) / factorial
    return total
