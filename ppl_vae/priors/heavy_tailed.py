r"""Priors with heavier tails than the normal."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.distributions.student_t import StudentT as StudentTDistribution


class Laplace(nn.Module):
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

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent_dim: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = check_positive_int(latent_dim, "prior Laplace: latent_dim")
        scale = check_positive(scale, "prior Laplace: scale")
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.full((latent_dim,), scale), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return dist.Laplace(self.loc, self.scale).to_event(1)


class StudentT(nn.Module):
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

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent_dim: int = 2, df: float = 5.0, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = check_positive_int(latent_dim, "prior StudentT: latent_dim")
        self.df = check_positive(df, "prior StudentT: df")
        scale = check_positive(scale, "prior StudentT: scale")
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.full((latent_dim,), scale), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        return StudentTDistribution(self.df, self.loc, self.scale).to_event(1)
