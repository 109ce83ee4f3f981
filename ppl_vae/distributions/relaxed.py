r"""Relaxed bits and relaxed one-hot vectors: the Concrete distributions and their noise."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_vae._numbers import finite
from ppl_vae.distributions._expanding import Expanding

LARGEST_LOGIT = 12.0  # the largest logit of a relaxed bit: z = 1 - 6e-6, where float32 keeps 1 - z to 1 %
_FLAT = 40.0  # logits are clamped this far beyond the limits: the logistic tail is exponential there to e^-40
_SMALLEST_LOG = -85.0  # the smallest logarithm of an entry of a relaxed one-hot vector
_CENSORED = math.exp(_SMALLEST_LOG) * (1 + 1e-4)  # an entry up to this is censored; rounding is well below 1e-4
_EDGE = 1 / (1 + math.exp(LARGEST_LOGIT))


def gumbel_noise(like: Tensor) -> Tensor:
    """Return standard Gumbel noise of the shape, type and device of `like`."""
    noise = torch.empty_like(like).exponential_()
    return -torch.log(noise.clamp(min=torch.finfo(noise.dtype).tiny))


def logistic_noise(like: Tensor) -> Tensor:
    """Return standard logistic noise of the shape, type and device of `like`: the difference of two Gumbels."""
    return gumbel_noise(like) - gumbel_noise(like)


def _temperature(distribution: Any, temperature: Tensor | None) -> Tensor | None:
    if temperature is None and distribution.needs_temperature:
        raise TypeError(f"{type(distribution).__name__} needs a temperature, a tensor above zero")
    return temperature


class Bits(Expanding):
    """d independent bits, or relaxed bits, as one event, from logits (*batch, d)."""

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012 - the base class declares a mutable mapping
    temperature: Any  # a tensor, or None
    needs_temperature: ClassVar[bool] = True

    def __init__(self, logits: Tensor, temperature: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.logits = logits
        self.temperature = _temperature(self, temperature)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)


class Blocks(Expanding):
    """V categorical variables of C classes, or relaxed ones, as one vector of V blocks, from logits (*batch, V, C)."""

    arg_constraints = {  # noqa: RUF012 - the base class declares a mutable mapping
        "logits": constraints.independent(constraints.real, 2)
    }
    temperature: Any  # a tensor, or None
    needs_temperature: ClassVar[bool] = True
    block: ClassVar[constraints.Constraint]  # the support of one block

    def __init__(self, logits: Tensor, temperature: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.num_variables, self.num_classes = logits.shape[-2:]
        self.logits = finite(logits).log_softmax(-1)
        self.temperature = _temperature(self, temperature)
        event_shape = torch.Size((self.num_variables * self.num_classes,))
        validate_args = validate_args if logits.numel() else False  # torch fails to check a batch of none
        super().__init__(logits.shape[:-2], event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Blocks in the support of one block."""
        return _InBlocks(self.block, self.num_classes)

    def _noisy(self, sample_shape: Any) -> Tensor:
        """Return logits with Gumbel noise."""
        shape = torch.Size(sample_shape) + self.logits.shape
        return self.logits + gumbel_noise(self.logits.expand(shape))


class _InBlocks(constraints.Constraint):
    """Vectors made of blocks of equal size, each one-hot or each on the simplex."""

    event_dim = 1

    def __init__(self, block: constraints.Constraint, num_classes: int) -> None:
        self.block, self.num_classes = block, num_classes
        self.is_discrete = block.is_discrete
        self.is_simplex = block is constraints.simplex  # densities are with respect to C - 1 entries of a block

    def check(self, value: Tensor) -> Tensor:
        if value.shape[-1] % self.num_classes:
            return torch.zeros(value.shape[:-1], dtype=torch.bool, device=value.device)
        return self.block.check(value.unflatten(-1, (-1, self.num_classes))).all(-1)

    def __repr__(self) -> str:
        return f"{'simplex' if self.is_simplex else 'one-hot'} blocks of {self.num_classes}"


class RelaxedBits(Bits):
    r"""d independent relaxed bits: the binary Concrete distribution, truncated to logits of z in [-12, 12].

    .. math::
        z_i = \sigma(u_i),\quad u_i = (\ell_i + \epsilon_i) / T,\quad \epsilon_i \text{ logistic, given } |u_i| \le 12,
        \qquad
        q(z_i) = \frac{1}{Z_i}\,
        \frac{T\, e^{\ell_i - T u_i}}{(1 + e^{\ell_i - T u_i})^2}\,\frac{1}{z_i (1 - z_i)},

    where :math:`Z_i` is the logistic's mass on :math:`|u_i| \le 12`. Floats near 1 cannot hold the untruncated
    distribution (Pyro's and PyTorch's). Draws round to 1, where its density is nan, or they are clamped and scored
    where they were not drawn. The latter makes a "bound" that is wrong by nats (at T = 0.1 and :math:`\ell` = 10 by 9
    nats for each bit).

    This class has the density of its own draws, at any :math:`\ell` and T. It differs from the untruncated distribution
    by the mass beyond logit 12 (for :math:`\ell` = 0: 5e-6 at T = 1, 5e-3 at 0.5, 0.46 at 0.1). Values there decode as
    0 and 1 do. The support is [6e-6, 1 - 6e-6]; a value outside is scored as the nearest one inside.

    Args:
        logits: :math:`\ell`, (*batch, d).
        temperature: T above zero, a tensor that broadcasts to `logits`.

    Reference:
        The Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712

    Example:
        >>> q = RelaxedBits(torch.tensor([40.0, -40.0]), torch.tensor(0.5))
        >>> q.log_prob(q.rsample((100,))).isfinite().all()  # where PyTorch's RelaxedBernoulli gives nan
        tensor(True)
    """

    support = constraints.independent(constraints.interval(_EDGE, 1 - _EDGE), 1)
    has_rsample = True

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw by inverting the distribution function of the truncated logistic, in logarithms throughout."""
        shape = self._extended_shape(sample_shape)
        logits, low, high, log_mass = self._limits()
        # a uniform variable and its complement, both to full relative precision
        noise = logistic_noise(logits.expand(shape))
        log_below = torch.logaddexp(logsigmoid(low), logsigmoid(noise) + log_mass)
        log_above = torch.logaddexp(logsigmoid(-high), logsigmoid(-noise) + log_mass)
        u = (logits + log_below - log_above) / self.temperature
        return torch.sigmoid(u).clamp(_EDGE, 1 - _EDGE)  # only rounding lies beyond

    def _log_prob(self, value: Tensor) -> Tensor:
        value = value.clamp(_EDGE, 1 - _EDGE)
        log_z, log_rest = value.log(), torch.log1p(-value)
        logits, _, _, log_mass = self._limits()
        noise = self.temperature * (log_z - log_rest) - logits
        log_density = logsigmoid(noise) + logsigmoid(-noise) + torch.log(self.temperature) - log_z - log_rest
        return (log_density - log_mass).sum(-1)

    def _limits(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the logits, the noise at the smallest and the largest u, and the log mass between."""
        # From `largest` on the density is that of an exponential variable, whatever the logit. A larger logit would
        # lose the digits of u.
        largest = self.temperature * LARGEST_LOGIT + _FLAT
        logits = torch.minimum(torch.maximum(self.logits, -largest), largest)
        low = -self.temperature * LARGEST_LOGIT - logits
        high = self.temperature * LARGEST_LOGIT - logits
        gap = torch.log(-torch.expm1(-2 * self.temperature * LARGEST_LOGIT))
        return logits, low, high, logsigmoid(high) + logsigmoid(-low) + gap


class RelaxedOneHotVector(Blocks):
    r"""V independent relaxed categorical variables of C classes, as one vector of V points of the simplex.

    .. math::
        z = \mathrm{softmax}((\ell + \epsilon) / T),\ \epsilon \text{ Gumbel}, \qquad
        q(z) = (C - 1)!\, T^{C - 1}
        \frac{\prod_c e^{\ell_c} z_c^{-T - 1}}{\left(\sum_c e^{\ell_c} z_c^{-T}\right)^C},

    a density with respect to the first C - 1 coordinates (Lebesgue measure on the simplex up to a constant, the same
    for prior and posterior). Floats hold no entry below e^-85: **such an entry is censored**. It is drawn as e^-85,
    which says only that the entry is e^-85 or less. Let U be the other entries and
    :math:`s_c = \ell_c - T \log \max(z_c, e^{-85})`. Then

    .. math::
        \log q(z) = \sum_{c \in U} (s_c - \log z_c) - |U| \log \sum_c e^{s_c} + \log (|U| - 1)! + (|U| - 1) \log T,

    the integral of the density above over the censored entries. Censoring is the same function of z under p and q, and
    a decoder does not see it: a bound remains a bound at any T and any logits. A score at the censored value, as if it
    had been drawn, gave an ELBO of +65,028 at T = 0.02.

    The pathwise gradient is that of each case, censored or not, by itself. It leaves out how draws pass from one case
    to the other: **it is biased where many entries are censored**. Of two equal classes, 1 entry in 5,000 is censored
    at T = 0.1, 1 in 70 at 0.05, 1 in 6 at 0.02.

    Args:
        logits: :math:`\ell`, (*batch, V, C), up to a constant for each variable.
        temperature: T above zero, a tensor of shape ().

    Reference:
        The Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712

    Example:
        >>> q = RelaxedOneHotVector(torch.zeros(1, 2), torch.tensor(1.0))
        >>> q.log_prob(torch.tensor([0.3, 0.7]))  # two classes at T = 1: uniform
        tensor(0.)
    """

    block = constraints.simplex
    has_rsample = True

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw V softmaxes of noisy logits."""
        noisy = self._noisy(sample_shape) / self.temperature
        return noisy.log_softmax(-1).clamp(min=_SMALLEST_LOG).exp().flatten(-2)

    def _log_prob(self, value: Tensor) -> Tensor:
        blocks = value.unflatten(-1, (self.num_variables, self.num_classes))
        seen = blocks > _CENSORED
        log_z = blocks.clamp(min=_CENSORED).log()
        log_z = torch.where(seen, log_z, _SMALLEST_LOG)
        count, score = seen.sum(-1).to(log_z.dtype), self.logits - self.temperature * log_z
        log_density = torch.where(seen, score - log_z, 0.0).sum(-1) - count * score.logsumexp(-1)
        constant = torch.lgamma(count) + (count - 1) * torch.log(self.temperature)
        return (log_density + constant).sum(-1)
