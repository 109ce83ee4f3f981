r"""Discrete posteriors and their relaxations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae._validation import check_positive
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector, check_blocks
from ppl_vae.distributions.relaxed import RelaxedBits, RelaxedOneHotVector
from ppl_vae.networks import NetworkFactory, ParameterNetwork
from ppl_vae.posteriors.protocol import _Amortised


class _Logits(_Amortised):
    """Discrete variables, or their relaxations, from one logit for each entry of z."""

    temperature: Tensor

    def __init__(self, network: NetworkFactory | nn.Module | None = None) -> None:
        super().__init__()
        self.logits = ParameterNetwork(network, self.owner)


class _Blocks(_Logits):
    """Categorical variables, or their relaxations, of `num_classes` classes each."""

    def __init__(self, network: NetworkFactory | nn.Module | None = None, num_classes: int | None = None) -> None:
        super().__init__(network)
        self.num_classes = num_classes

    def _width(self, latent_dim: int) -> int:
        check_blocks(latent_dim, self.num_classes, self.owner)
        return latent_dim

    def _blocks(self, logits: Tensor) -> Tensor:
        blocks = check_blocks(logits.shape[-1], self.num_classes, self.owner)
        return logits.unflatten(-1, (blocks, -1))


class BernoulliVector(_Logits):
    r"""Independent bits given x, for `priors.BernoulliVector`.

    .. math::
        q(z|x) = \prod_i \sigma(\ell_i(x))^{z_i} (1 - \sigma(\ell_i(x)))^{1 - z_i}.

    Draws are not reparameterised, so `objectives.ELBO` refuses this posterior.
    ``pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)`` sums over the 2^d states and is exact in value and gradient (up
    to about 10 bits). ``pyro.infer.TraceGraph_ELBO`` and ``Trace_ELBO`` take score-function gradients: these are
    unbiased, but so noisy that they need small learning rates. `RelaxedBernoulliVector` with
    ``straight_through=True`` is the cheap, biased way.

    Args:
        network: Maps x to one logit per bit; ``MLP()`` by default.

    Reference:
        Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014),
        https://arxiv.org/abs/1402.0030

    Example:
        >>> BernoulliVector(nn.Linear(64, 3))(torch.zeros(5, 64)).enumerate_support(expand=False).shape
        torch.Size([8, 1, 3])
    """

    def _distribution(self, logits: Tensor) -> Any:
        return BinaryVector(logits)


class OneHotCategorical(_Blocks):
    r"""Independent categorical variables given x, as one-hot blocks, for `priors.OneHotCategorical`.

    .. math::
        q(z|x) = \prod_{v=1}^V \prod_{c=1}^C \pi_{vc}(x)^{z_{vc}}, \qquad \pi_v = \mathrm{softmax}(\ell_v(x)).

    Draws are not reparameterised: `BernoulliVector` says how to train.

    Args:
        network: Maps x to one logit per class; ``MLP()`` by default.
        num_classes: The prior's number C of classes; None for one variable of as many classes as z has dimensions.

    Raises:
        ValueError: When a VAE is made, if `num_classes` does not divide the dimension of z.

    Reference:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Example:
        >>> OneHotCategorical(nn.Linear(64, 6), num_classes=3)(torch.zeros(5, 64)).event_shape
        torch.Size([6])
    """

    def _distribution(self, logits: Tensor) -> Any:
        return OneHotVector(self._blocks(logits))


class RelaxedBernoulliVector(_Logits):
    r"""Relaxed bits given x, or bits with straight-through gradients.

    .. math::
        z_i = \sigma\big((\ell_i(x) + \epsilon_i) / T\big), \qquad \epsilon_i \text{ logistic}.

    - ``straight_through=False``: q(z|x) is the binary Concrete density, for `priors.RelaxedBernoulliVector`. The bound
      is valid for the relaxed model; decoding true bits is another model.
    - ``straight_through=True``: q(z|x) is a distribution over bits and scored as one, for `priors.BernoulliVector`. The
      value of the ELBO is unbiased; **its gradient is biased**, whatever T is.

    Args:
        network: Maps x to one logit per bit; ``MLP()`` by default.
        temperature: The temperature T; 2/3 is the paper's. It is a buffer: ``posterior.temperature.fill_`` changes it
            during training, eager or captured.
        straight_through: Whether draws are bits.

    Raises:
        ValueError: If the temperature is not above zero.

    Reference:
        The Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712; straight-through:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Example:
        >>> RelaxedBernoulliVector(nn.Linear(64, 3), straight_through=True)(torch.zeros(5, 64)).has_rsample
        True
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        temperature: float = 2 / 3,
        straight_through: bool = False,
    ) -> None:
        super().__init__(network)
        temperature = check_positive(temperature, f"{self.owner}: temperature")
        self.register_buffer("temperature", torch.tensor(temperature))
        self.straight_through = straight_through

    def _distribution(self, logits: Tensor) -> Any:
        return (BinaryVector if self.straight_through else RelaxedBits)(logits, self.temperature)


class GumbelSoftmax(_Blocks):
    r"""Relaxed categorical variables given x, or one-hot ones with straight-through gradients.

    .. math::
        z_v = \mathrm{softmax}\big((\ell_v(x) + \epsilon_v) / T\big), \qquad \epsilon_v \text{ Gumbel}.

    - ``straight_through=False``: q(z|x) is the Concrete density, for `priors.RelaxedOneHotCategorical`. The bound is
      valid for the relaxed model. (The original paper scores relaxed draws by a categorical KL, which gives no bound.)
    - ``straight_through=True``: q(z|x) is a distribution over one-hot vectors, for `priors.OneHotCategorical`. The
      value of the ELBO is unbiased; **its gradient is biased**, whatever T is.

    Args:
        network: Maps x to one logit per class; ``MLP()`` by default.
        temperature: The temperature T. It is a buffer: ``posterior.temperature.fill_`` changes it during training,
            eager or captured.
        num_classes: The prior's number C of classes; None for one variable of as many classes as z has dimensions.
        straight_through: Whether draws are one-hot vectors.

    Raises:
        ValueError: If the temperature is not above zero.

    Reference:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144; its
        density: The Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712

    Example:
        >>> GumbelSoftmax(nn.Linear(64, 6), num_classes=3)(torch.zeros(5, 64)).event_shape
        torch.Size([6])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        temperature: float = 2 / 3,
        num_classes: int | None = None,
        straight_through: bool = False,
    ) -> None:
        super().__init__(network, num_classes)
        temperature = check_positive(temperature, f"{self.owner}: temperature")
        self.register_buffer("temperature", torch.tensor(temperature))
        self.straight_through = straight_through

    def _distribution(self, logits: Tensor) -> Any:
        kind = OneHotVector if self.straight_through else RelaxedOneHotVector
        return kind(self._blocks(logits), self.temperature)
