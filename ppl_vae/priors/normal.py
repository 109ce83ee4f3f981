r"""Normal priors."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

from ppl_vae._numbers import inverse_softplus
from ppl_vae._validation import check_positive_int

_FLOOR = 1e-5  # the smallest learned standard deviation


class StandardNormal(nn.Module):
    r"""The standard normal prior.

    .. math::
        p(z) = \mathcal N(z; 0, I) = (2\pi)^{-d/2} \exp(-\tfrac12 \lVert z \rVert^2).

    Its weakness is the mismatch with the aggregate posterior :math:`\frac1N \sum_n q(z|x_n)`: a region of prior mass
    that no datum maps to decodes to something unlike the data.

    Args:
        latent_dim: The dimension d of z.

    Raises:
        ValueError: If `latent_dim` is not a positive integer.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent_dim: int = 2) -> None:
        super().__init__()
        self.latent_dim = check_positive_int(latent_dim, "prior StandardNormal: latent_dim")
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class DiagonalNormal(nn.Module):
    r"""A normal prior with learned mean and scale.

    .. math::
        p(z) = \prod_i \mathcal N(z_i; \mu_i, \sigma_i^2), \qquad \sigma_i = \log(1 + e^{s_i}) + 10^{-5}.

    This prior is redundant where the likelihood's network starts with a linear layer and the posterior's ends in one,
    as in an `MLP`. Both can absorb :math:`z \mapsto \mu + \sigma z`, so the best bound is that of `StandardNormal`, and
    only the path of training changes. The bound changes where a piece cannot absorb the map: a scale bounded below
    (``floor``), a network without a linear layer at z, weight decay. Along the redundant directions the scale of z is
    free to drift. The prior starts as the standard normal. The KL has a closed form for normal posteriors.

    Args:
        latent_dim: The dimension d of z.

    Raises:
        ValueError: If `latent_dim` is not a positive integer.

    Example:
        >>> DiagonalNormal(2)().mean.tolist()
        [0.0, 0.0]
    """

    def __init__(self, latent_dim: int = 2) -> None:
        super().__init__()
        self.latent_dim = check_positive_int(latent_dim, "prior DiagonalNormal: latent_dim")
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        # softplus of it is 1 - _FLOOR: the scale starts at 1
        self.raw_scale = nn.Parameter(torch.full((latent_dim,), inverse_softplus(1 - _FLOOR)))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return dist.Normal(self.loc, softplus(self.raw_scale) + _FLOOR).to_event(1)
