r"""The posterior on a box."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae._validation import check_positive
from ppl_vae.distributions.box import SquashedNormal as SquashedNormalDistribution
from ppl_vae.distributions.box import check_box
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork

_FURTHEST = 7.0  # largest |mean| before squashing: within 0.1% of the box's width of its end
_WIDEST = 2.0  # largest standard deviation before squashing; from about 1.7 on the density is bimodal


class SquashedNormal(nn.Module):
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
        super().__init__()
        low, high = check_box(low, high, "posterior SquashedNormal")
        self.floor = check_positive(floor, "posterior SquashedNormal: floor")
        self.register_buffer("low", torch.tensor(low), persistent=False)
        self.register_buffer("high", torch.tensor(high), persistent=False)
        self.mean_and_scale = ParameterNetwork(
            MLP() if network is None else network, "posterior SquashedNormal", count=2
        )

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        self.mean_and_scale.build(binding.x_shape, binding.latent_shape, binding.y_shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        mean, raw = self.mean_and_scale(x, y)
        mean = _FURTHEST * (mean / _FURTHEST).tanh()
        scale = _WIDEST * raw.sigmoid() + self.floor
        return SquashedNormalDistribution(mean, scale, self.low, self.high).to_event(1)
