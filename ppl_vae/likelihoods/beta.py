r"""The beta likelihood."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._numbers import inverse_softplus
from ppl_vae._validation import check_choice, check_positive
from ppl_vae.distributions._expanding import Scored
from ppl_vae.likelihoods.protocol import _Pixels
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork

Parameters = Literal["mean_precision", "concentrations"]


class Beta(_Pixels):
    r"""Independent beta pixels on the open interval (0, 1).

    .. math::
        \log p(x|z) = \sum_i (\alpha_i - 1) \log x_i + (\beta_i - 1) \log(1 - x_i) - \log B(\alpha_i, \beta_i).

    It has two parameters per pixel, so a pixel can be sure of a grey; in `ContinuousBernoulli` it never is. **At 0 and
    1 the density is infinite or zero**, so data there are refused. Dequantise 8-bit pixels: their values then lie
    strictly inside. (Clamping them to [1e-6, 1 - 1e-6] also trains, but then the value depends on where they are
    clamped: each pixel at the edge gains :math:`(1 - \alpha) \log 10` for each further digit.) Near the edges gradients
    are large: an initial `precision` far above that of the data makes the first steps jump. On a grid of values,
    without dequantisation, the density is unbounded, as `Normal` says; `floor` and `ceiling` keep it finite, not
    meaningful.

    - ``"mean_precision"``: :math:`\alpha = m\nu, \beta = (1 - m)\nu` with :math:`m = \sigma(r_1)` and :math:`\nu` a
      softplus of :math:`r_2`; the mean can be learned before the spread.
    - ``"concentrations"``: a softplus each; the mean moves with either.

    Each concentration c is kept between `floor` and `ceiling`: :math:`\text{floor} + c / (1 + c / \text{ceiling})`. The
    density is computed in float64 whatever the type of the data. This costs a little, and not every device has float64.

    Args:
        network: Maps z to two values per pixel; ``MLP()`` by default.
        parameters: What the two values stand for.
        precision: The precision :math:`\nu = \alpha + \beta` where the network gives 0. At a mean of 1/2 the standard
            deviation is :math:`\frac12 (1 + \nu)^{-1/2}`, and the density is uniform for 2.
        floor: The smallest concentration.
        ceiling: The largest concentration; at 10^5 and a mean of 1/2 the standard deviation is 0.001, a quarter of an
            8-bit level.
        start_from_data: Start the mean at that of the training data, kept 0.001 away from 0 and 1.

    Raises:
        ValueError: If `precision`, `floor` or `ceiling` is not a finite number above zero, half the precision does not
            lie between `floor` and `ceiling`, or `parameters` is unknown.

    Reference:
        Beta Regression for Modelling Rates and Proportions (Ferrari & Cribari-Neto, 2004),
        https://doi.org/10.1080/0266476042000214501

    Example:
        >>> likelihood = Beta(nn.Linear(2, 128))  # two values for each of 64 pixels
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.full((5, 64), 0.5)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        parameters: Parameters = "mean_precision",
        precision: float = 2.0,
        floor: float = 1e-3,
        ceiling: float = 1e5,
        start_from_data: bool = False,
    ) -> None:
        super().__init__(start_from_data)
        check_choice(parameters, get_args(Parameters), f"{self.owner}: parameters")
        self.parameters_are = parameters
        self.precision = check_positive(precision, f"{self.owner}: precision")
        self.floor = check_positive(floor, f"{self.owner}: floor")
        self.ceiling = check_positive(ceiling, f"{self.owner}: ceiling")
        if not self.floor < self.precision / 2 < self.ceiling:
            raise ValueError(
                f"{self.owner}: precision is {precision!r}, whose half is not between floor {floor!r} and ceiling "
                f"{ceiling!r} of a concentration; choose one that is"
            )
        self.raw = ParameterNetwork(network, self.owner, count=2)

    def _pixels(self, first: Tensor, second: Tensor) -> Any:
        if self.parameters_are == "concentrations":
            shift = self._shift(1)
            found = softplus(first + shift), softplus(second + shift)
        else:
            spread = softplus(second + self._shift(2))
            found = torch.sigmoid(first) * spread, torch.sigmoid(-first) * spread  # 1 - sigmoid would round to 0
        alpha, beta = (self.floor + one / (1 + one / self.ceiling) for one in found)
        return _OpenBeta(alpha, beta)

    def _unlimited(self, concentration: Any) -> Any:
        """Return a concentration as it is before floor and ceiling."""
        above = concentration - self.floor
        return above / (1 - above / self.ceiling)

    def _shift(self, parts: int) -> float:
        """Return the shift of the network's output with which an output of 0 gives the initial precision."""
        return inverse_softplus(parts * self._unlimited(self.precision / 2))

    def _start(self, binding: Binding) -> None:
        """Start the two outputs where they give the data's mean at the initial precision."""
        mean, limits = binding.data_mean(self.owner).clamp(1e-3, 1 - 1e-3), (2 * self.floor, self.ceiling / 2)
        alpha, beta = (self._unlimited((part * self.precision).clamp(*limits)) for part in (mean, 1 - mean))
        if self.parameters_are == "mean_precision":
            outputs = alpha.log() - beta.log(), inverse_softplus(alpha + beta) - self._shift(2)
        else:
            outputs = inverse_softplus(alpha) - self._shift(1), inverse_softplus(beta) - self._shift(1)
        self.raw.start_at(*outputs)


class _OpenUnitInterval(constraints.Constraint):
    """The open interval (0, 1)."""

    is_interval = True

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "the open interval (0, 1), which holds neither 0 nor 1: dequantise 8-bit pixels with dequantize=True"


class _OpenBeta(Scored, dist.Beta):
    """The beta distribution on the open interval; its `log_prob` is computed in float64, whatever its type.

    The terms are of the size of the concentrations and cancel: at 10^5 float32 leaves an error of a tenth of a nat.
    """

    support = _OpenUnitInterval()  # type: ignore[assignment] # torch's is closed

    def expand(self, batch_shape: Any, _instance: Any = None) -> _OpenBeta:
        return _OpenBeta(self.concentration1.expand(batch_shape), self.concentration0.expand(batch_shape))

    def _log_prob(self, value: Tensor) -> Tensor:
        a, b, x = self.concentration1.double(), self.concentration0.double(), value.double()
        normaliser = a.lgamma() + b.lgamma() - (a + b).lgamma()
        return ((a - 1) * x.log() + (b - 1) * torch.log1p(-x) - normaliser).to(value.dtype)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        x = super().rsample(sample_shape)
        limits = torch.finfo(x.dtype)
        return x.clamp(limits.tiny, 1 - limits.eps / 2)  # draws of small concentrations round to 0 and 1
