r"""Distributions of counts, from the logarithms of their parameters."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from ppl_vae.distributions._expanding import Expanding
from ppl_vae.distributions._saddle import HALF_LOG_2PI, log_ratio, stirling_remainder

_LOG_DISPERSIONS = 60.0  # beyond e^60 the distribution is Poisson to the last digit
_LARGEST_MEAN = 1e9  # of a draw by PyTorch, whose draws pass through integers: 64 bits on a CPU, 32 on a GPU


def _poisson(mean: Tensor) -> Tensor:
    """Return Poisson counts; where the mean is large, the deviation of a smaller one in units of its root."""
    small = mean.clamp(max=_LARGEST_MEAN)
    counts = torch.poisson(small)
    large = mean + (counts - small) * (mean / small).clamp(max=torch.finfo(mean.dtype).max).sqrt()
    return torch.where(mean > small, large.round(), counts)


class _Counts(Expanding):
    """The base class of the distributions in this file: parameters that broadcast, counts as support."""

    support: ClassVar[Any] = constraints.nonnegative_integer
    arg_constraints: ClassVar[dict[str, Any]]

    def __init__(self, *parameters: Tensor, validate_args: bool | None = None) -> None:
        for name, parameter in zip(self.arg_constraints, broadcast_all(*parameters), strict=True):
            setattr(self, name, parameter)
        super().__init__(getattr(self, next(iter(self.arg_constraints))).shape, validate_args=validate_args)


class Poisson(_Counts):
    r"""The Poisson distribution, from the logarithm of its rate.

    .. math::
        \log P(k) = -\tfrac12 \log(2 \pi k) - \delta(k) - (\mu - k - k \log\tfrac{\mu}{k}), \qquad
        \log P(0) = -\mu,

    where :math:`\delta` is the remainder of Stirling's formula. This equals :math:`k \log\mu - \mu - \log k!`, of which
    float32 loses a nat at a count of a million. ``exp(log_rate)`` overflows float32 above 88.

    Args:
        log_rate: :math:`\log \mu`, the logarithm of the mean.

    Example:
        >>> Poisson(torch.tensor(0.0)).log_prob(torch.tensor([0.0, 1.0, 2.0])).exp()
        tensor([0.3679, 0.3679, 0.1839])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_rate": constraints.real}
    log_rate: Tensor

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(log_rate, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean, equal to the rate."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        """The variance, equal to the rate."""
        return self.mean

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return counts."""
        return _poisson(self.mean.expand(self.shape(sample_shape)))

    def _log_prob(self, k: Tensor) -> Tensor:
        mean = self.mean
        count = k.clamp(min=1)
        deviance = mean - count - count * log_ratio((mean - count) / count, self.log_rate - count.log())
        at_count = -HALF_LOG_2PI - 0.5 * count.log() - stirling_remainder(count) - deviance
        return torch.where(k < 1, -mean, at_count)


class NegativeBinomial(_Counts):
    r"""The negative binomial distribution, from the logarithms of its mean and of its dispersion.

    .. math::
        P(k) = \frac{\Gamma(k + r)}{\Gamma(r) \, k!} \Big(\frac{r}{r + \mu}\Big)^r \Big(\frac{\mu}{r + \mu}\Big)^k,
        \qquad \mathrm{Var}[k] = \mu + \mu^2 / r,

    the distribution of a Poisson variable whose rate is gamma distributed with shape r. It becomes Poisson smoothly as
    r grows. A `log_dispersion` beyond +-60 counts as +-60. ``exp(log_mean)`` overflows float32 above 88.

    Args:
        log_mean: :math:`\log \mu`.
        log_dispersion: :math:`\log r`.

    Example:
        >>> geometric = NegativeBinomial(torch.tensor(0.0), torch.tensor(0.0))
        >>> geometric.log_prob(torch.tensor([0.0, 1.0, 2.0])).exp()
        tensor([0.5000, 0.2500, 0.1250])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_mean": constraints.real, "log_dispersion": constraints.real}
    log_mean: Tensor
    log_dispersion: Tensor

    def __init__(self, log_mean: Tensor, log_dispersion: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(log_mean, log_dispersion, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """The variance: the mean plus its square over the dispersion."""
        return self.mean + (2 * self.log_mean - self._log_r).exp()

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return Poisson counts at gamma-distributed rates."""
        r = self._log_r.exp().expand(self.shape(sample_shape))
        return _poisson(torch._standard_gamma(r) * (self.log_mean - self._log_r).exp())

    @property
    def _log_r(self) -> Tensor:
        return self.log_dispersion.clamp(-_LOG_DISPERSIONS, _LOG_DISPERSIONS)

    def _log_prob(self, k: Tensor) -> Tensor:
        # As in `Poisson`: at mu = k the mass is 1 / sqrt(2 pi k (k + r) / r) up to Stirling remainders. Elsewhere its
        # logarithm is lower by the deviance (k + r) log((mu + r) / (k + r)) - k log(mu / k). For small r these two
        # terms cancel. The terms of r log((mu + r) / (k + r)) + k log(k (mu + r) / (mu (k + r))), the same sum, do not.
        log_r, mean = self._log_r, self.mean
        r = log_r.exp()
        count = k.clamp(min=1)
        total = count + r
        log_total = torch.logaddexp(self.log_mean, log_r) - total.log()
        change = (mean - count) / total
        scaled = (mean - count) / (1 + count * (-log_r).exp())  # r * change, whose slope for large r leaves float32
        share = log_total + count.log() - self.log_mean
        # below a log mean of -60 `log_ratio` takes `share`, which needs no exponential
        moved = -scaled * (-self.log_mean.clamp(min=-_LOG_DISPERSIONS)).exp()
        near = change.clamp(-1e-3, 1e-3)
        series = scaled * (1 - near * (1 / 2 - near * (1 / 3 - near * (1 / 4 - near / 5))))
        deviance = torch.where(near == change, series, r * log_ratio(change, log_total))
        deviance = deviance + count * log_ratio(moved, share)
        at_count = 0.5 * (log_r - total.log() - count.log()) - HALF_LOG_2PI - deviance
        at_count = at_count + stirling_remainder(total) - stirling_remainder(r) - stirling_remainder(count)
        return torch.where(k < 1, r * logsigmoid(log_r - self.log_mean), at_count)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""A `NegativeBinomial` variable that is set to zero with probability :math:`\pi`.

    .. math::
        P(0) = \pi + (1 - \pi) \, \mathrm{NB}(0), \qquad P(k) = (1 - \pi) \, \mathrm{NB}(k), \quad k > 0.

    Args:
        log_mean: :math:`\log \mu` of the negative binomial, not of the mixture.
        log_dispersion: :math:`\log r`.
        gate_logits: The logit of :math:`\pi`.

    Example:
        >>> counts = ZeroInflatedNegativeBinomial(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0))
        >>> counts.log_prob(torch.tensor([0.0, 1.0, 2.0])).exp()
        tensor([0.7500, 0.1250, 0.0625])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        **NegativeBinomial.arg_constraints,
        "gate_logits": constraints.real,
    }
    gate_logits: Tensor

    def __init__(
        self, log_mean: Tensor, log_dispersion: Tensor, gate_logits: Tensor, validate_args: bool | None = None
    ) -> None:
        _Counts.__init__(self, log_mean, log_dispersion, gate_logits, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean, zeros of either kind included."""
        return (self.log_mean + logsigmoid(-self.gate_logits)).exp()

    @property
    def variance(self) -> Tensor:
        """The variance, zeros of either kind included."""
        log_kept, log_gate = logsigmoid(-self.gate_logits), logsigmoid(self.gate_logits)
        log_square = torch.logaddexp(2 * self.log_mean - self._log_r, 2 * self.log_mean + log_gate)
        return (self.log_mean + log_kept).exp() + (log_square + log_kept).exp()

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return counts, some of them set to zero."""
        counts = self._inner.sample(sample_shape)
        return torch.where(torch.rand_like(counts) < torch.sigmoid(self.gate_logits), 0.0, counts)

    @property
    def _inner(self) -> NegativeBinomial:
        return NegativeBinomial(self.log_mean, self.log_dispersion, validate_args=False)

    def _log_prob(self, k: Tensor) -> Tensor:
        inner = self._inner._log_prob(k) + logsigmoid(-self.gate_logits)
        return torch.where(k < 1, torch.logaddexp(logsigmoid(self.gate_logits), inner), inner)
