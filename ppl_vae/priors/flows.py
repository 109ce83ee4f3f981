r"""Normalising flows as priors."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist

from ppl_vae._flows import (
    AffineAutoregressive,
    Chain,
    Coupling,
    SplineAutoregressive,
    check_bins,
    check_coupling,
    check_layers,
    check_masked,
)
from ppl_vae.distributions.flow import Flow
from ppl_vae.priors.protocol import _LocationScale


class _FlowPrior(_LocationScale):
    """A flow prior: the inverse of `layers` maps standard normal noise to z; `layers` map z back, to score it."""

    layers: Chain

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        base = dist.Normal(self.loc, self.scale).to_event(1)
        return Flow(base, generate=self.layers.inverse, normalise=self.layers)


class MaskedAutoregressiveFlow(_FlowPrior):
    r"""A masked autoregressive flow (MAF) as a prior: quick to score, slow to draw from.

    .. math::
        p(z) = \prod_i \mathcal N\bigl(e_i; 0, 1\bigr)\, s_i(z_{<i}), \qquad
        e_i = s_i(z_{<i})\, z_i + m_i(z_{<i}), \qquad \log s_i = 3 \tanh(r_i / 3),

    for one layer. The next layer takes e for its z, in the reverse order of dimensions. Training and evaluation need
    the density, which takes one pass; *a draw takes d sequential passes*, each through the whole network. Each
    conditional of a single layer is normal, so one layer cannot have two modes in its first dimension. A few layers
    can, but a thin thread of mass joins separate modes. In one dimension the flow is a normal with learned mean and
    scale. Scales are softly bounded as in RealNVP, to a factor of :math:`e^{\pm 3}` a layer.

    A new flow is near N(0, I).

    Args:
        latent_dim: The dimension d of z.
        num_transforms: The number of layers.
        hidden: Widths of each layer's masked network (ELU), each at least `latent_dim`.

    Raises:
        ValueError: For a size that is not a positive integer, or a width below `latent_dim`.

    Reference:
        Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou & Murray, 2017),
        https://arxiv.org/abs/1705.07057

    Example:
        >>> import torch
        >>> prior = MaskedAutoregressiveFlow(2, num_transforms=2, hidden=[16])
        >>> prior().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, latent_dim: int = 2, num_transforms: int = 4, hidden: Sequence[int] = (128,)) -> None:
        super().__init__(latent_dim)
        widths = check_layers(num_transforms, hidden, self.owner)
        check_masked(latent_dim, widths, self.owner)
        layers = [AffineAutoregressive(latent_dim, widths, bool(i % 2), gated=False) for i in range(num_transforms)]
        self.layers = Chain(layers)


class CouplingFlow(_FlowPrior):
    r"""A flow of affine coupling layers (RealNVP) as a prior: quick to score and to draw from.

    .. math::
        p(z) = \mathcal N(e; 0, I) \prod_{i > d/2} s_i(z_{\le d/2}), \qquad e_{\le d/2} = z_{\le d/2}, \qquad
        e_{> d/2} = s(z_{\le d/2}) \odot z_{> d/2} + m(z_{\le d/2}), \qquad \log s = 3 \tanh(r / 3),

    for one layer, after a permutation of the dimensions. Every second permutation is the reversal, so that each pair
    of layers maps every dimension. The other permutations are random; they are drawn when the prior is made and kept
    in its state. A layer bends only half of z: the flow takes about twice the layers of `MaskedAutoregressiveFlow` for
    the same density, and a single layer leaves half of z normal. As in every affine flow, a thin thread of mass joins
    separate modes. The soft bound of the scale is the paper's, with a fixed factor of 3.

    A new flow is near N(0, I).

    Args:
        latent_dim: The dimension d of z, at least 2.
        num_transforms: The number of layers.
        hidden: Widths of each layer's network (ELU).

    Raises:
        ValueError: For a size that is not a positive integer, or one dimension.

    Reference:
        Density Estimation Using Real NVP (Dinh, Sohl-Dickstein & Bengio, 2016), https://arxiv.org/abs/1605.08803

    Example:
        >>> import torch
        >>> prior = CouplingFlow(4, num_transforms=2, hidden=[16])
        >>> prior().sample((5,)).shape
        torch.Size([5, 4])
    """

    def __init__(self, latent_dim: int = 2, num_transforms: int = 8, hidden: Sequence[int] = (128,)) -> None:
        super().__init__(latent_dim)
        check_coupling(latent_dim, self.owner)
        widths = check_layers(num_transforms, hidden, self.owner)
        self.layers = Chain([Coupling(latent_dim, widths, bool(i % 2)) for i in range(num_transforms)])


class SplineFlow(_FlowPrior):
    r"""A flow of autoregressive splines as a prior: the most flexible flow, quick to score, slow to draw from.

    .. math::
        p(z) = \prod_i \mathcal N\bigl(e_i; 0, 1\bigr)\, \rho_i'(z_i), \qquad
        e_i = \rho_i(z_i) = \rho\bigl(z_i; \theta_i(z_{<i})\bigr),

    for one layer. :math:`\rho` is a monotone spline of linear rational pieces on [-5, 5], and the identity outside. The
    next layer takes e for its z, in the reverse order of dimensions. A single layer can have many modes in each
    dimension. The density takes one pass, several times the work of `MaskedAutoregressiveFlow`; *a draw takes d
    sequential passes*. *Outside the box a dimension keeps the standard normal density*: the flow can neither widen nor
    shift what lies further out. The density is continuous within the box, with kinks at the knots. At the edge of the
    box it has a step of a thousandth (Pyro's boundary derivative is 0.999), so quadrature converges slowly.

    A new flow is near N(0, I).

    Args:
        latent_dim: The dimension d of z.
        num_transforms: The number of layers.
        hidden: Widths of each layer's masked network (ELU), each at least `latent_dim`.
        num_bins: The number of pieces of each spline, 2 to 500.

    Raises:
        ValueError: For a size that is not a positive integer, or a width below `latent_dim`.

    Reference:
        Neural Spline Flows (Durkan, Bekasov, Murray & Papamakarios, 2019), https://arxiv.org/abs/1906.04032, with the
        pieces of Invertible Generative Modeling using Linear Rational Splines (Dolatabadi, Erfani & Leckie, 2020),
        https://arxiv.org/abs/2001.05168, whose inverse is exact

    Example:
        >>> import torch
        >>> prior = SplineFlow(2, num_transforms=2, hidden=[16], num_bins=4)
        >>> prior().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self, latent_dim: int = 2, num_transforms: int = 2, hidden: Sequence[int] = (128,), num_bins: int = 8
    ) -> None:
        super().__init__(latent_dim)
        widths = check_layers(num_transforms, hidden, self.owner)
        check_masked(latent_dim, widths, self.owner)
        bins = check_bins(num_bins, self.owner)
        layers = [SplineAutoregressive(latent_dim, widths, bool(i % 2), bins) for i in range(num_transforms)]
        self.layers = Chain(layers)
