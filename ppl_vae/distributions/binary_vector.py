r"""Vectors of independent bits whose states can be listed, also with straight-through draws."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.kl import register_kl
from torch.distributions.utils import logits_to_probs
from torch.nn.functional import softplus

from ppl_vae._numbers import expected, finite, impossible
from ppl_vae.distributions._expanding import Expanding
from ppl_vae.distributions.relaxed import logistic_noise

MAX_STATES = 2**20  # the most that a distribution lists: 20 bits, 84 MB in float32


class BinaryVector(Expanding):
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

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012 - the base class declares a mutable mapping
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits: Tensor, temperature: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.logits = logits
        self.temperature = temperature
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry the straight-through gradient."""
        return self.temperature is not None

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether there are few enough states to list."""
        return 2 ** self.event_shape[0] <= MAX_STATES

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

    @property
    def mode(self) -> Tensor:
        """The most probable state."""
        return (self.logits > 0).to(self.logits)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw bits."""
        with torch.no_grad():
            logits = self.logits.expand(self._extended_shape(sample_shape))
            return (logits + logistic_noise(logits) > 0).to(logits)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw bits that carry the gradient of relaxed bits.

        Raises:
            NotImplementedError: If there is no temperature.
        """
        if self.temperature is None:
            raise NotImplementedError("BinaryVector without a temperature has no reparameterised draws; use sample")
        logits = self.logits.expand(self._extended_shape(sample_shape))
        noisy = logits + logistic_noise(logits)
        relaxed = torch.sigmoid(noisy / self.temperature)
        return (noisy > 0).to(logits) + (relaxed - relaxed.detach())  # the bracket is 0 exactly

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, of the batch's shape, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        logits = finite(self.logits)
        return impossible(value * logits - softplus(logits)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy, (*batch,), in nats."""
        logits = finite(self.logits)
        return (torch.sigmoid(logits) * softplus(-logits) + torch.sigmoid(-logits) * softplus(logits)).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all states in the order of binary numbers.

        Their shape is (2^d, *batch, d), or (2^d, 1, ..., d) if `expand` is False.

        Raises:
            ValueError: If there are more than `MAX_STATES` states.
        """
        d = self.event_shape[0]
        if not self.has_enumerate_support:
            raise ValueError(
                f"BinaryVector of {d} bits has 2^{d} states, expected at most {MAX_STATES} to list; "
                "sum over samples instead (importance sampling, or an objective such as Trace_ELBO)"
            )
        bits = torch.arange(d - 1, -1, -1, device=self.logits.device)
        states = (torch.arange(2**d, device=self.logits.device)[:, None] >> bits & 1).to(self.logits)
        states = states.reshape(-1, *(1,) * len(self.batch_shape), d)
        return states.expand(-1, *self.batch_shape, -1) if expand else states


@register_kl(BinaryVector, BinaryVector)
def _kl_binary_vectors(q: BinaryVector, p: BinaryVector) -> Tensor:
    q_logits, p_logits = finite(q.logits), finite(p.logits)
    # each term is small where the divergence of its bit is; q - p + softplus(p) - softplus(q) loses all digits at
    # large logits
    one = expected(torch.sigmoid(q_logits), softplus(-q_logits) - softplus(-p_logits))
    zero = expected(torch.sigmoid(-q_logits), softplus(q_logits) - softplus(p_logits))
    return -(one + zero).sum(-1)
