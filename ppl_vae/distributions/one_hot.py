r"""One or several categorical variables as one-hot vectors whose joint states can be listed."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.kl import register_kl
from torch.nn.functional import one_hot

from ppl_vae._numbers import expected, finite, impossible
from ppl_vae._validation import check_positive_int
from ppl_vae.distributions._expanding import Expanding
from ppl_vae.distributions.binary_vector import MAX_STATES
from ppl_vae.distributions.relaxed import gumbel_noise


class _OneHotBlocks(constraints.Constraint):
    """Vectors made of one-hot blocks of equal size."""

    is_discrete = True
    event_dim = 1

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def check(self, value: Tensor) -> Tensor:
        if value.shape[-1] % self.num_classes:
            return torch.zeros(value.shape[:-1], dtype=torch.bool, device=value.device)
        blocks = value.unflatten(-1, (-1, self.num_classes))
        return (((blocks == 0) | (blocks == 1)).all(-1) & (blocks.sum(-1) == 1)).all(-1)

    def __repr__(self) -> str:
        return f"one-hot blocks of {self.num_classes}"


class OneHotVector(Expanding):
    r"""V independent categorical variables of C classes, as one vector of V one-hot blocks.

    .. math::
        p(z) = \prod_{v=1}^V \prod_{c=1}^C \pi_{vc}^{z_{vc}}.

    The event is flat, (V * C,), like the latent of a VAE. `enumerate_support` lists all :math:`C^V` joint states if
    there are at most 2^20, which Pyro's ``OneHotCategorical(...).to_event(1)`` does not do.

    With a `temperature` T the draws are straight-through: they are exact one-hot draws and carry the gradient of the
    relaxed draw :math:`\mathrm{softmax}((\ell + \epsilon) / T)`, where :math:`\epsilon` is Gumbel. **That gradient is
    biased** for any T.

    Args:
        logits: :math:`\ell`, (*batch, V, C), up to a constant for each variable.
        temperature: T, a tensor that broadcasts to `logits`; None for draws without a gradient.

    Reference:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Example:
        >>> OneHotVector(torch.zeros(2, 2)).enumerate_support()
        tensor([[1., 0., 1., 0.],
                [1., 0., 0., 1.],
                [0., 1., 1., 0.],
                [0., 1., 0., 1.]])
    """

    arg_constraints = {  # noqa: RUF012 - the base class declares a mutable mapping
        "logits": constraints.independent(constraints.real, 2)
    }

    def __init__(self, logits: Tensor, temperature: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.num_variables, self.num_classes = logits.shape[-2:]
        self.logits = finite(logits).log_softmax(-1)
        self.temperature = temperature
        event_shape = torch.Size((self.num_variables * self.num_classes,))
        super().__init__(logits.shape[:-2], event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """One-hot blocks."""
        return _OneHotBlocks(self.num_classes)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry the straight-through gradient."""
        return self.temperature is not None

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether there are few enough joint states to list."""
        return self.num_classes**self.num_variables <= MAX_STATES

    @property
    def probs(self) -> Tensor:
        """The probabilities, (*batch, V, C)."""
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        """The probabilities, (*batch, V * C), which are not a state."""
        return self.probs.flatten(-2)

    @property
    def variance(self) -> Tensor:
        """The variance of each entry."""
        return self.mean * (1 - self.mean)

    @property
    def mode(self) -> Tensor:
        """The most probable state."""
        return self._state(self.logits)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw one-hot blocks."""
        with torch.no_grad():
            return self._state(self._noisy(sample_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw one-hot blocks that carry the gradient of relaxed blocks.

        Raises:
            NotImplementedError: If there is no temperature.
        """
        if self.temperature is None:
            raise NotImplementedError("OneHotVector without a temperature has no reparameterised draws; use sample")
        noisy = self._noisy(sample_shape)
        relaxed = (noisy / self.temperature).softmax(-1).flatten(-2)
        return self._state(noisy) + (relaxed - relaxed.detach())  # the bracket is 0 exactly

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, of the batch's shape, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return impossible(value * self.logits.flatten(-2)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy, (*batch,), in nats."""
        return -(self.probs * self.logits).sum((-1, -2))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all joint states, (C^V, *batch, V * C), or (C^V, 1, ..., V * C) if `expand` is False.

        Raises:
            ValueError: If there are more than 2^20 states.
        """
        v, c = self.num_variables, self.num_classes
        if not self.has_enumerate_support:
            raise ValueError(
                f"OneHotVector of {v} variables with {c} classes has {c}^{v} states, expected at most {MAX_STATES} to "
                "list; sum over samples instead (importance sampling, or an objective such as Trace_ELBO)"
            )
        powers = c ** torch.arange(v - 1, -1, -1, device=self.logits.device)
        index = torch.arange(c**v, device=self.logits.device)[:, None] // powers % c
        states = one_hot(index, c).to(self.logits).reshape(-1, *(1,) * len(self.batch_shape), v * c)
        return states.expand(-1, *self.batch_shape, -1) if expand else states

    def _noisy(self, sample_shape: Any) -> Tensor:
        shape = torch.Size(sample_shape) + self.logits.shape
        return self.logits + gumbel_noise(self.logits.expand(shape))

    def _state(self, scores: Tensor) -> Tensor:
        classes = torch.arange(self.num_classes, device=scores.device)
        return (scores.argmax(-1, keepdim=True) == classes).to(scores).flatten(-2)


@register_kl(OneHotVector, OneHotVector)
def _kl_one_hot_vectors(q: OneHotVector, p: OneHotVector) -> Tensor:
    return -expected(q.probs, p.logits - q.logits).sum((-1, -2))


def check_blocks(latent_dim: int, num_classes: int | None, name: str) -> int:
    """Return the number of variables, `latent_dim` divided by `num_classes`."""
    classes = latent_dim if num_classes is None else check_positive_int(num_classes, f"{name}: num_classes")
    if classes < 2 or latent_dim % classes:
        raise ValueError(
            f"{name}: {classes} classes do not divide a latent of {latent_dim} dimensions into blocks of at least 2; "
            "choose latent_dim a multiple of num_classes"
        )
    return latent_dim // classes
