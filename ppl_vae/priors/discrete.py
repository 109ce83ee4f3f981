r"""Discrete priors and their relaxations."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae._validation import check_positive
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector, check_blocks
from ppl_vae.distributions.relaxed import RelaxedBits, RelaxedOneHotVector
from ppl_vae.priors.protocol import _Prior


class _Bits(_Prior):
    """A prior over d bits, with a logit for each."""

    logits: Tensor

    def __init__(self, latent_dim: int = 8, probability: float = 0.5, learned: bool = False) -> None:
        super().__init__(latent_dim)
        if not 0 < check_positive(probability, f"{self.owner}: probability") < 1:
            raise ValueError(f"{self.owner}: probability is {probability!r}; expected a number between 0 and 1")
        logit = math.log(probability) - math.log1p(-probability)
        self._hold(learned, logits=torch.full((latent_dim,), logit))


class _Classes(_Prior):
    """A prior over categorical variables, with a logit for each class."""

    logits: Tensor

    def __init__(self, latent_dim: int = 10, num_classes: int | None = None, learned: bool = False) -> None:
        super().__init__(latent_dim)
        num_variables = check_blocks(latent_dim, num_classes, self.owner)
        self._hold(learned, logits=torch.zeros(num_variables, latent_dim // num_variables))


class BernoulliVector(_Bits):
    r"""Independent bits.

    .. math::
        p(z) = \prod_i \pi_i^{z_i} (1 - \pi_i)^{1 - z_i}, \qquad z \in \{0, 1\}^d.

    Bits have no reparameterised draws, so `objectives.ELBO` refuses them. There are four ways to train:

    - ``pyro.infer.TraceEnum_ELBO``: exact, but it decodes every one of the 2^d states (up to about 10 bits);
    - ``pyro.infer.TraceGraph_ELBO``: unbiased, noisy;
    - a straight-through posterior (`RelaxedBernoulliVector` of ``posteriors``): biased;
    - a relaxed prior with a relaxed posterior.

    Up to 16 bits log p(x) is exact, by a sum over the states (`evaluation.log_evidence`).

    Args:
        latent_dim: The number of bits d.
        probability: The probability of a one; the initial value if `learned`.
        learned: Whether each bit's probability is learned.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014),
        https://arxiv.org/abs/1402.0030

    Example:
        >>> BernoulliVector(3)().enumerate_support().shape
        torch.Size([8, 3])
    """

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return BinaryVector(self.logits)


class OneHotCategorical(_Classes):
    r"""Independent categorical variables, as one vector of one-hot blocks.

    .. math::
        p(z) = \prod_{v=1}^V \prod_{c=1}^C \pi_{vc}^{z_{vc}}.

    A single variable (the default) makes the VAE a mixture model of `latent_dim` components with a neural density
    each. Draws are not reparameterised: `BernoulliVector` says how to train. log p(x) is exact for at most 65,536
    joint states :math:`C^V`.

    Args:
        latent_dim: The length of z: V variables times C classes.
        num_classes: The number C of classes; None for one variable of `latent_dim` classes.
        learned: Whether the probabilities are learned, from a uniform start; if not, they stay uniform.

    Raises:
        ValueError: If `num_classes` does not divide `latent_dim`.

    Reference:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Example:
        >>> OneHotCategorical(6, num_classes=3)().enumerate_support().shape  # two variables
        torch.Size([9, 6])
    """

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return OneHotVector(self.logits)


class RelaxedBernoulliVector(_Bits):
    r"""Independent relaxed bits in (0, 1): the binary Concrete distribution, truncated at logits of 12.

    .. math::
        z_i = \sigma\big((\ell_i + \epsilon_i) / T\big), \qquad \epsilon_i \text{ logistic}.

    With the relaxed posterior it gives a proper bound, **on log p(x) of the relaxed model**. Decoding true bits is
    another model, whose evidence must be measured separately. A lower T brings the two models closer together and
    makes the gradient noisier. See `distributions.relaxed` for the truncation, without which float32 gives nan.

    Args:
        latent_dim: The number of bits d.
        temperature: The temperature T; the paper's choice is 1/2 here with 2/3 in the posterior. It is a buffer:
            ``prior.temperature.fill_`` changes it during training, eager or captured.
        probability: The probability of a bit above 1/2; the initial value if `learned`.
        learned: Whether each bit's probability is learned.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        The Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712

    Example:
        >>> z = RelaxedBernoulliVector(3)().sample((5,))
        >>> z.shape, ((z > 0) & (z < 1)).all()
        (torch.Size([5, 3]), tensor(True))
    """

    temperature: Tensor

    def __init__(
        self, latent_dim: int = 8, temperature: float = 0.5, probability: float = 0.5, learned: bool = False
    ) -> None:
        super().__init__(latent_dim, probability, learned)
        temperature = check_positive(temperature, f"{self.owner}: temperature")
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return RelaxedBits(self.logits, self.temperature)


class RelaxedOneHotCategorical(_Classes):
    r"""Independent relaxed categorical variables on the simplex: the Concrete distribution.

    .. math::
        z_v = \mathrm{softmax}\big((\ell_v + \epsilon_v) / T\big), \qquad \epsilon_v \text{ Gumbel}.

    With the posterior `GumbelSoftmax` it gives a proper bound, on log p(x) of the relaxed model (see
    `RelaxedBernoulliVector`). If one-hot vectors are decoded afterwards, measure that model separately.

    Args:
        latent_dim: The length of z: V variables times C classes.
        temperature: The temperature T; at most 1 / (C - 1) keeps the density from having a mode inside the simplex. It
            is a buffer.
        num_classes: The number C of classes; None for one variable of `latent_dim` classes.
        learned: Whether the probabilities are learned, from a uniform start; if not, they stay uniform.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        The Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712

    Example:
        >>> RelaxedOneHotCategorical(6, num_classes=3)().sample().shape  # two variables
        torch.Size([6])
    """

    temperature: Tensor

    def __init__(
        self,
        latent_dim: int = 10,
        temperature: float = 0.5,
        num_classes: int | None = None,
        learned: bool = False,
    ) -> None:
        super().__init__(latent_dim, num_classes, learned)
        temperature = check_positive(temperature, f"{self.owner}: temperature")
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return RelaxedOneHotVector(self.logits, self.temperature)
