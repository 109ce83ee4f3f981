r"""Posteriors on the unit sphere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.distributions import axial
from ppl_vae.networks import NetworkFactory, ParameterNetwork
from ppl_vae.posteriors.protocol import _Amortised

_LEAST = 1.0  # smallest concentration: with less, q(z|x) hardly differs from the prior


class _Sphere(_Amortised):
    """A density around a direction of the sphere, from that direction and a concentration."""

    _family: Callable[..., Any]  # of direction and concentration

    def __init__(self, network: NetworkFactory | nn.Module | None = None) -> None:
        super().__init__()
        self.direction_and_concentration = ParameterNetwork(network, self.owner)

    def _width(self, latent_dim: int) -> int:
        if latent_dim < 2:
            raise ValueError(f"{self.owner}: the latent has {latent_dim} dimension; a sphere needs at least 2")
        return latent_dim + 1

    def _distribution(self, values: Tensor) -> Any:
        raw, concentration = values[..., :-1], softplus(values[..., -1]) + _LEAST
        length = raw.square().sum(-1, keepdim=True)
        usable = length > torch.finfo(raw.dtype).tiny
        first_axis = torch.cat([torch.ones_like(raw[..., :1]), torch.zeros_like(raw[..., 1:])], -1)
        # an output of 0 has no direction: take the first axis, without a gradient
        direction = torch.where(usable, raw, first_axis)
        return self._family(direction / torch.where(usable, length, 1.0).sqrt(), concentration)


class PowerSpherical(_Sphere):
    r"""A power spherical posterior, for `priors.HypersphericalUniform`.

    .. math::
        q(z|x) \propto (1 + \mu(x)' z)^{\kappa(x)}, \qquad \lVert z \rVert = 1,

    where :math:`\mu` is the network's first d outputs, normalised, and :math:`\kappa = 1 + \log(1 + e^r)` with r its
    last output. One concentration serves all directions: q(z|x) cannot stretch along one of them as a diagonal normal
    can. In many dimensions its concentration must grow like d before q(z|x) is informative; start with a small learning
    rate there. The KL to the uniform prior has a closed form (objective `MeanFieldELBO`). Draws are exact and
    reparameterised.

    Args:
        network: Maps x to d + 1 values for d latent dimensions; ``MLP()`` by default.

    Reference:
        The Power Spherical Distribution (De Cao & Aziz, 2020), https://arxiv.org/abs/2006.04437

    Example:
        >>> posterior = PowerSpherical(nn.Linear(64, 4))
        >>> posterior(torch.zeros(5, 64)).event_shape
        torch.Size([3])
    """

    _family = axial.PowerSpherical


class VonMisesFisher(_Sphere):
    r"""A von Mises-Fisher posterior, for `priors.HypersphericalUniform`.

    .. math::
        q(z|x) \propto \exp(\kappa(x)\, \mu(x)' z), \qquad \lVert z \rVert = 1,

    where :math:`\mu` is the network's first d outputs, normalised, and :math:`\kappa = 1 + \log(1 + e^r)` with r its
    last output. A draw costs several times that of `PowerSpherical`, which does about as well; choose this posterior
    to compare with the literature. As in `PowerSpherical`, one concentration serves all directions. The KL to the
    uniform prior has a closed form (objective `MeanFieldELBO`). The gradient of a draw is exact.

    Args:
        network: Maps x to d + 1 values for d latent dimensions; ``MLP()`` by default.

    Reference:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), https://arxiv.org/abs/1804.00891

    Example:
        >>> posterior = VonMisesFisher(nn.Linear(64, 4))
        >>> posterior(torch.zeros(5, 64)).event_shape
        torch.Size([3])
    """

    _family = axial.VonMisesFisher
