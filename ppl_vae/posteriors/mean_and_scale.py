r"""Posteriors with independent dimensions, each from a mean and a scale: normal, Laplace, and normal squashed."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._numbers import bounded
from ppl_vae._validation import check_choice
from ppl_vae.distributions.box import SquashedNormal as SquashedNormalDistribution
from ppl_vae.distributions.box import check_box
from ppl_vae.distributions.normal import Normal
from ppl_vae.networks import NetworkFactory
from ppl_vae.posteriors.protocol import _MeanAndScale

_LARGEST = 40.0  # |log standard deviation|: the variance and its reciprocal are finite in float32
_FURTHEST = 7.0  # largest |mean| before squashing: within 0.1% of the box's width of its end
_WIDEST = 2.0  # largest standard deviation before squashing; from about 1.7 on the density is bimodal

Scale = Literal["std", "log_var", "softplus"]


class DiagonalNormal(_MeanAndScale):
    r"""A normal posterior with diagonal covariance.

    .. math::
        q(z|x) = \mathcal N(z; \mu(x), \mathrm{diag}\,\sigma(x)^2).

    It cannot follow correlations or several modes of p(z|x). On a 2-D latent that alone can cost nats, and importance
    sampling from q(z|x) then underestimates log p(x). The network's second output r gives the standard deviation by

    - ``"std"``: :math:`\sigma = |r| + \text{floor}`, the article's. The article leaves the sign in
      :math:`z = \mu + r\epsilon`, which samples the same distribution. But :math:`\mathcal N(\mu, r)` is undefined for
      r < 0, so sampling and density here both use the absolute value.
    - ``"log_var"``: :math:`\sigma = e^{r/2}`, an alternative in a comment of the article. The comment has
      ``mean + exp(log_var) * 0.5 * eps`` where ``exp(0.5 * log_var)`` is meant. An r beyond +-80 counts as +-80.
    - ``"softplus"``: :math:`\sigma = \log(1 + e^r) + \text{floor}`, without kink or overflow.

    Args:
        network: Maps x to the mean and to r, two values per latent dimension; ``MLP()`` by default.
        scale: How r gives the standard deviation.
        floor: The smallest standard deviation under ``"std"`` and ``"softplus"``; ``"log_var"`` needs none.

    Raises:
        ValueError: For an unknown `scale`, or a `floor` that is not above zero.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> posterior = DiagonalNormal(nn.Linear(64, 4), scale="log_var")
        >>> posterior(torch.zeros(5, 64)).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        scale: Scale = "softplus",
        floor: float = 1e-5,
    ) -> None:
        super().__init__(network, floor)
        check_choice(scale, get_args(Scale), f"{self.owner}: scale")
        self.scale = scale

    def _distribution(self, mean: Tensor, raw: Tensor) -> Any:
        if self.scale == "std":
            std = raw.abs() + self.floor
        elif self.scale == "log_var":
            std = bounded(0.5 * raw, _LARGEST).exp()
        else:
            std = softplus(raw) + self.floor
        return Normal(mean, std).to_event(1)


class Laplace(_MeanAndScale):
    r"""A Laplace posterior with independent dimensions.

    .. math::
        q(z|x) = \prod_i \frac{1}{2 b_i(x)} e^{-|z_i - \mu_i(x)| / b_i(x)}, \qquad
        b_i = \log(1 + e^{r_i}) + \text{floor}.

    The shape is wrong for most data: where data are many or noise is small, a true posterior is nearly normal and has
    no kink at the mean. The heavier tails of q(z|x) make it the safer proposal for importance sampling.
    The KL has a closed form for the priors ``Laplace``, ``StandardNormal`` and ``DiagonalNormal``.

    Args:
        network: Maps x to the mean and to r, two values per latent dimension; ``MLP()`` by default.
        floor: The smallest b.

    Raises:
        ValueError: If `floor` is not above zero.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 2.4, https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> Laplace(nn.Linear(64, 4))(torch.zeros(5, 64)).event_shape
        torch.Size([2])
    """

    def _distribution(self, mean: Tensor, raw: Tensor) -> Any:
        return dist.Laplace(mean, softplus(raw) + self.floor).to_event(1)


class SquashedNormal(_MeanAndScale):
    r"""A normal posterior squashed into a box, for the prior `priors.Uniform` of the same box.

    .. math::
        z = l + (h - l)\, \sigma(t), \qquad t \sim \mathcal N(\mu(x), \mathrm{diag}\, s(x)^2), \qquad
        \mu = 7 \tanh(m / 7), \quad s = 2\, \sigma(r) + \text{floor}.

    The density includes the Jacobian of the squashing. Mean and scale are bounded because float32 has no digits for a
    z nearer to an end of the box: with :math:`|\mu| \le 7` and s up to 2, a draw four standard deviations out keeps t
    to 0.2 or better. If the true posterior leans on a wall (a mode at the end of the box), q(z|x) follows it only to
    within 0.1% of the width.

    Args:
        network: Maps x to m and r, two values per latent dimension; ``MLP()`` by default.
        low: The lower end l of each dimension.
        high: The upper end h. Boxes around 0 keep most digits.
        floor: The smallest s.

    Raises:
        ValueError: If the ends are not finite numbers with l < h, or `floor` is not above zero.

    Example:
        >>> posterior = SquashedNormal(nn.Linear(64, 4))
        >>> posterior(torch.zeros(5, 64)).sample().abs().max() < 1
        tensor(True)
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        low: float = -1.0,
        high: float = 1.0,
        floor: float = 1e-5,
    ) -> None:
        super().__init__(network, floor)
        low, high = check_box(low, high, self.owner)
        self.register_buffer("low", torch.tensor(low), persistent=False)
        self.register_buffer("high", torch.tensor(high), persistent=False)

    def _distribution(self, mean: Tensor, raw: Tensor) -> Any:
        mean = _FURTHEST * (mean / _FURTHEST).tanh()
        scale = _WIDEST * raw.sigmoid() + self.floor
        return SquashedNormalDistribution(mean, scale, self.low, self.high).to_event(1)
