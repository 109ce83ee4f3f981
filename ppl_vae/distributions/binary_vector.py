r"""Vectors of independent bits whose states can be listed, also with straight-through draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.kl import register_kl
from torch.distributions.utils import logits_to_probs
from torch.nn.functional import softplus

from ppl_vae._numbers import expected, finite, impossible
from ppl_vae.distributions._expanding import Expanding
from ppl_vae.distributions.relaxed import Bits, logistic_noise

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_STATES = 2**20  # the most that a distribution lists: 20 bits, 84 MB in float32


class Listed(Expanding):
    """Independent discrete variables whose joint states can be listed, with straight-through draws at a temperature.

    A subclass defines `probs`, and what follows below.
    """

    logits: Tensor
    temperature: Tensor | None
    needs_temperature = False
    _sizes: tuple[int, int]  # the number of variables, and that of the values of each
    _noisy: Callable[[Any], Tensor]  # logits with noise, of a sample shape
    _relaxed: Callable[[Tensor], Tensor]  # the relaxed state of noisy logits over the temperature
    _nearest: Callable[[Tensor], Tensor]  # the state that has the largest logits
    _states: Callable[[Tensor], Tensor]  # the states of the values' numbers, (n, variables)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry the straight-through gradient."""
        return self.temperature is not None

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether there are few enough states to list."""
        variables, values = self._sizes
        return values**variables <= MAX_STATES

    @property
    def mode(self) -> Tensor:
        """The most probable state."""
        return self._nearest(self.logits)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw states."""
        with torch.no_grad():
            return self._nearest(self._noisy(sample_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw states that carry the gradient of relaxed ones.

        Raises:
            NotImplementedError: If there is no temperature.
        """
        if self.temperature is None:
            name = type(self).__name__
            raise NotImplementedError(f"{name} without a temperature has no reparameterised draws; use sample")
        noisy = self._noisy(sample_shape)
        relaxed = self._relaxed(noisy / self.temperature)
        return self._nearest(noisy) + (relaxed - relaxed.detach())  # the bracket is 0 exactly

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all n states in the order of numbers, (n, *batch, d), or (n, 1, ..., d) if `expand` is False.

        Raises:
            ValueError: If there are more than `MAX_STATES` states.
        """
        v, c = self._sizes
        if not self.has_enumerate_support:
            raise ValueError(
                f"{type(self).__name__} of {v} variables with {c} values has {c}^{v} states, expected at most "
                f"{MAX_STATES} to list; sum over samples instead (importance sampling, or an objective such as "
                "Trace_ELBO)"
            )
        powers = c ** torch.arange(v - 1, -1, -1, device=self.logits.device)
        values = torch.arange(c**v, device=self.logits.device)[:, None] // powers % c
        states = self._states(values).to(self.logits).reshape(-1, *(1,) * len(self.batch_shape), *self.event_shape)
        return states.expand(-1, *self.batch_shape, -1) if expand else states


class BinaryVector(Listed, Bits):
    r"""d independent bits as one event.

    .. math::
        p(z) = \prod_i \sigma(\ell_i)^{z_i} (1 - \sigma(\ell_i))^{1 - z_i}, \qquad z \in \{0, 1\}^d.

    This is the distribution of Pyro's ``Bernoulli(logits).to_event(1)``. In addition, `enumerate_support` lists all
    :math:`2^d` states (up to 20 bits), which Pyro's class refuses.

    With a `temperature` T the draws are straight-through: they are exact bits and carry the gradient of the relaxed
    draw :math:`\sigma((\ell + \epsilon) / T)`, where :math:`\epsilon` is logistic. **That gradient is biased** for any
    T. The smaller T, the noisier it is.

    Args:
        logits: :math:`\ell`, (*batch, d).
        temperature: T, a tensor that broadcasts to `logits`; None for draws without a gradient.

    Reference:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Example:
        >>> BinaryVector(torch.zeros(2)).enumerate_support()
        tensor([[0., 0.],
                [0., 1.],
                [1., 0.],
                [1., 1.]])
    """

    support = constraints.independent(constraints.boolean, 1)

    @property
    def probs(self) -> Tensor:
        """The probability of each bit."""
        return logits_to_probs(self.logits, is_binary=True)

    @property
    def mean(self) -> Tensor:
        """The probability of each bit, which is not a state."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """The variance of each bit."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    def _log_prob(self, value: Tensor) -> Tensor:
        logits = finite(self.logits)
        return impossible(value * logits - softplus(logits)).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Return the entropy, in nats."""
        logits = finite(self.logits)
        return (torch.sigmoid(logits) * softplus(-logits) + torch.sigmoid(-logits) * softplus(logits)).sum(-1)

    @property
    def _sizes(self) -> tuple[int, int]:  # type: ignore[override]
        return self.event_shape[0], 2

    def _noisy(self, sample_shape: Any) -> Tensor:
        logits = self.logits.expand(self._extended_shape(sample_shape))
        return logits + logistic_noise(logits)

    def _relaxed(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()

    def _nearest(self, scores: Tensor) -> Tensor:
        return (scores > 0).to(scores)

    def _states(self, values: Tensor) -> Tensor:
        return values


@register_kl(BinaryVector, BinaryVector)
def _kl_binary_vectors(q: BinaryVector, p: BinaryVector) -> Tensor:
    q_logits, p_logits = finite(q.logits), finite(p.logits)
    # each term is small where the divergence of its bit is; q - p + softplus(p) - softplus(q) loses all digits at
    # large logits
    one = expected(torch.sigmoid(q_logits), softplus(-q_logits) - softplus(-p_logits))
    zero = expected(torch.sigmoid(-q_logits), softplus(q_logits) - softplus(p_logits))
    return -(one + zero).sum(-1)
