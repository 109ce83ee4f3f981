r"""Priors with independent dimensions: normal ones, and ones with heavier tails."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

from ppl_vae._numbers import inverse_softplus
from ppl_vae._validation import check_positive
from ppl_vae.distributions.student_t import StudentT as StudentTDistribution
from ppl_vae.priors.protocol import _LocationScale, _Prior

_FLOOR = 1e-5  # the smallest learned standard deviation


class StandardNormal(_LocationScale):
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

    def __init__(self, latent_dim: int = 2) -> None:
        super().__init__(latent_dim)

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class DiagonalNormal(_Prior):
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
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        # softplus of it is 1 - _FLOOR: the scale starts at 1
        self.raw_scale = nn.Parameter(torch.full((latent_dim,), inverse_softplus(1 - _FLOOR)))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return dist.Normal(self.loc, softplus(self.raw_scale) + _FLOOR).to_event(1)


class Laplace(_LocationScale):
    r"""Independent Laplace latents.

    .. math::
        p(z) = \prod_i \frac{1}{2b} e^{-|z_i| / b}.

    The density is not invariant to rotation: its axes mean something, and it prefers solutions that lie along them. It
    is still no sparse prior, since draws of q(z|x) are never 0. The density has a kink at 0. The KL has a closed
    form for the posteriors ``DiagonalNormal`` and ``Laplace``.

    Args:
        latent_dim: The dimension d of z.
        scale: The scale b; the variance is :math:`2 b^2`, that of the standard normal for :math:`b = \sqrt{1/2}`.

    Raises:
        ValueError: If `latent_dim` is not a positive integer, or `scale` is not a finite number above zero.

    Reference:
        Variational Sparse Coding (Tonolini et al., 2020), https://proceedings.mlr.press/v115/tonolini20a.html, for
        what sparsity takes

    Example:
        >>> Laplace(2)().log_prob(torch.zeros(2))
        tensor(-1.3863)
    """

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return dist.Laplace(self.loc, self.scale).to_event(1)


class StudentT(_LocationScale):
    r"""Independent Student-t latents.

    .. math::
        p(z) = \prod_i \frac{\Gamma(\frac{\nu + 1}2)}{\Gamma(\frac\nu2) \sqrt{\nu \pi}\, s}
        \Bigl( 1 + \frac{z_i^2}{\nu s^2} \Bigr)^{-(\nu + 1) / 2}.

    A latent far from 0 costs the logarithm of its distance, not the square. Outliers are therefore not pulled in, and
    nothing keeps an unused dimension from drifting. For :math:`\nu \le 1` draws have no mean, and the network decodes
    very large inputs. The KL has no closed form, so ``MeanFieldELBO`` refuses this prior.

    Args:
        latent_dim: The dimension d of z.
        df: The degrees of freedom :math:`\nu`: 1 gives the Cauchy distribution; the variance is infinite up to 2.
        scale: The scale s; the variance is :math:`s^2 \nu / (\nu - 2)` for :math:`\nu > 2`.

    Raises:
        ValueError: If `latent_dim` is not a positive integer, or `df` or `scale` is not a finite number above zero.

    Reference:
        Student-t Variational Autoencoder for Robust Density Estimation (Takahashi et al., 2018),
        https://www.ijcai.org/proceedings/2018/374, for its use as a likelihood

    Example:
        >>> StudentT(2, df=1.0)().log_prob(torch.zeros(2))
        tensor(-2.2895)
    """

    def __init__(self, latent_dim: int = 2, df: float = 5.0, scale: float = 1.0) -> None:
        super().__init__(latent_dim, scale)
        self.df = check_positive(df, f"{self.owner}: df")

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return StudentTDistribution(self.df, self.loc, self.scale).to_event(1)
