r"""Normal posteriors."""

from __future__ import annotations

from typing import Literal, get_args

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._validation import check_choice, check_positive
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork

Scale = Literal["std", "log_var", "softplus"]


class DiagonalNormal(nn.Module):
    r"""A normal posterior with diagonal covariance.

    .. math::
        q(z|x) = \mathcal N(z; \mu(x), \mathrm{diag}\,\sigma(x)^2).

    It cannot follow correlations or several modes of p(z|x): on a 2-D latent that alone can cost nats, and importance
    sampling from it then underestimates log p(x). The standard deviation is made from the network's second output r by

    - ``"std"``: :math:`\sigma = |r| + \text{floor}`, the article's. The article leaves the sign in
      :math:`z = \mu + r\epsilon`, which samples the same distribution, but :math:`\mathcal N(\mu, r)` is undefined
      for r < 0; the absolute value is used in sampling and density alike.
    - ``"log_var"``: :math:`\sigma = e^{r/2}`, the article's commented alternative, whose comment has
      ``mean + exp(log_var) * 0.5 * eps`` where ``exp(0.5 * log_var)`` is meant. Overflows in float32 for r > 177.
    - ``"softplus"``: :math:`\sigma = \log(1 + e^r) + \text{floor}`: neither kink nor overflow.

    Args:
        network: Maps x to the mean and to r, two values per latent dimension; ``MLP()`` by default.
        scale: How the standard deviation is made.
        floor: The smallest standard deviation under ``"std"`` and ``"softplus"``; ``"log_var"`` needs none.

    Raises:
        ValueError: For an unknown `scale`, or a `floor` that is not above zero.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
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
        super().__init__()
        check_choice(scale, get_args(Scale), "posterior DiagonalNormal: scale")
        self.scale = scale
        self.floor = check_positive(floor, "posterior DiagonalNormal: floor")
        self.mean_and_scale = ParameterNetwork(
            MLP() if network is None else network, "posterior DiagonalNormal", count=2
        )

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.mean_and_scale.build(binding.x_shape, binding.latent_shape, binding.y_shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        mean, raw = self.mean_and_scale(x, y)
        if self.scale == "std":
            std = raw.abs() + self.floor
        elif self.scale == "log_var":
            std = (0.5 * raw).exp()
        else:
            std = softplus(raw) + self.floor
        return dist.Normal(mean, std).to_event(1)
