r"""Normalising flows as posteriors, with a context from the encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._flows import (
    AffineAutoregressive,
    Chain,
    Coupling,
    Planar,
    check_bins,
    check_coupling,
    check_layers,
    check_masked,
)
from ppl_vae._validation import check_positive_int
from ppl_vae.distributions.flow import Flow
from ppl_vae.distributions.normal import Normal
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork
from ppl_vae.posteriors.protocol import _Amortised

_FLOOR = 1e-5  # the smallest standard deviation of the diagonal normal, as in DiagonalNormal


class _FlowPosterior(_Amortised):
    """An encoder to mean, raw scale and context, and a chain of layers that `bind` makes for the dimension of z.

    The layers map a normal variable with the encoder's mean and scale.
    """

    _invertible = True
    _layer: Callable[[int, int], nn.Module]  # the layer of a number, from the dimension of z and the number

    def __init__(self, network: NetworkFactory | nn.Module | None, context_dim: int, num_transforms: int) -> None:
        super().__init__()
        self.context_dim = check_positive_int(context_dim, f"{self.owner}: context_dim")
        self.num_transforms = num_transforms
        self.encoder = ParameterNetwork(network, self.owner)
        self.layers = Chain()

    def bind(self, binding: Binding) -> None:
        """Size the networks."""
        (dim,) = binding.latent_shape
        made = [] if len(self.layers) else [self._layer(dim, i) for i in range(self.num_transforms)]
        super().bind(binding)
        like = next(self.encoder.parameters(), None)
        self.layers.extend(made if like is None else [layer.to(like) for layer in made])

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        if not len(self.layers):  # said before the encoder says that a ready-made network would do
            raise RuntimeError(f"{self.owner} has no sizes yet: put it into a VAE")
        return super().forward(x, y)

    def _width(self, latent_dim: int) -> int:
        return 2 * latent_dim + self.context_dim

    def _distribution(self, parameters: Tensor) -> Any:
        mean, std, context = self._encode(parameters)
        normalise = functools.partial(self.layers.inverse, context=context) if self._invertible else None
        return Flow(Normal(mean, std).to_event(1), functools.partial(self.layers, context=context), normalise)

    def _encode(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation, (*batch, d), and the context, (*batch, context_dim)."""
        dim = (parameters.shape[-1] - self.context_dim) // 2
        mean, raw, context = parameters.split([dim, dim, self.context_dim], -1)
        return mean, softplus(raw) + _FLOOR, context


class _StandardFlowPosterior(_FlowPosterior):
    """Coupling layers of a standard normal variable; the encoder's mean and scale are applied last."""

    hidden: list[int]
    num_bins: int | None = None  # of splines; None for affine layers

    def _layer(self, dim: int, i: int) -> nn.Module:
        check_coupling(dim, self.owner)
        return Coupling(dim, self.hidden, bool(i % 2), num_bins=self.num_bins, context_dim=self.context_dim)

    def _distribution(self, parameters: Tensor) -> Any:
        mean, std, context = self._encode(parameters)
        log_scale = std.log().sum(-1)

        def generate(e: Tensor) -> tuple[Tensor, Tensor]:
            bent, log_det = self.layers(e, context)
            return mean + std * bent, log_det + log_scale

        def normalise(z: Tensor) -> tuple[Tensor, Tensor]:
            e, log_det = self.layers.inverse((z - mean) / std, context)
            return e, log_det - log_scale

        return Flow(Normal(torch.zeros_like(mean), torch.ones_like(std)).to_event(1), generate, normalise)


class InverseAutoregressiveFlow(_FlowPosterior):
    r"""An inverse autoregressive flow (IAF): quick to draw from and to score its draws, slow to score other z.

    .. math::
        z^0 \sim \mathcal N(\mu(x), \mathrm{diag}\,\sigma(x)^2), \qquad
        z^t_i = g_i z^{t-1}_i + (1 - g_i)\, m_i, \qquad
        g_i = \mathrm{sigmoid}(2 + 3 \tanh(r_i / 3)), \qquad (m_i, r_i) = \mathrm{MADE}^t_i(z^{t-1}_{<i}, h(x)),

    with the order of dimensions reversed from layer to layer. One encoder gives mean, scale and context h(x). A draw
    and its density take one pass; *the density of any other z takes d sequential passes*. Training by the ELBO or an
    importance-weighted bound is therefore quick. Whatever scores z again is slow: sticking the landing, mixtures of
    posteriors, a grid. Gates contract: where the true posterior is wider than :math:`\sigma(x)`, :math:`\sigma(x)`
    must grow. The soft bound of r is not the paper's: without it a gate can close so far that the inverse overflows.

    A new flow is near a diagonal normal: each layer multiplies z by about sigmoid(2) = 0.88, the paper's start.

    Args:
        network: Maps x to mean, raw scale (softplus) and context, ``2 d + context_dim`` values; ``MLP()`` by default.
        context_dim: Width of the context h(x).
        num_transforms: The number of layers.
        hidden: Widths of each layer's masked network (ELU), each at least d.

    Raises:
        ValueError: For a size that is not a positive integer, or, in a VAE, a width below d.

    Reference:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        https://arxiv.org/abs/1606.04934

    Example:
        >>> from ppl_vae.networks import MLP
        >>> posterior = InverseAutoregressiveFlow(MLP([32]), context_dim=8, num_transforms=2, hidden=[16])
        >>> posterior.bind(Binding(x_shape=(64,), latent_shape=(2,)))
        >>> q = posterior(torch.zeros(5, 64))
        >>> q.log_prob(q.rsample()).shape
        torch.Size([5])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        context_dim: int = 32,
        num_transforms: int = 4,
        hidden: Sequence[int] = (128,),
    ) -> None:
        super().__init__(network, context_dim, num_transforms)
        self.hidden = check_layers(num_transforms, hidden, self.owner)

    def _layer(self, dim: int, i: int) -> nn.Module:
        check_masked(dim, self.hidden, self.owner)
        return AffineAutoregressive(dim, self.hidden, bool(i % 2), gated=True, context_dim=self.context_dim)


class PlanarFlow(_FlowPosterior):
    r"""A planar flow: cheap, weak in many dimensions, and *unable to score a z that it did not draw*.

    .. math::
        z^0 \sim \mathcal N(\mu(x), \mathrm{diag}\,\sigma(x)^2), \qquad
        z^t = z^{t-1} + \hat u_t \tanh(w_t^\top z^{t-1} + b_t), \qquad
        \hat u = u + \bigl(\log(1 + e^{w^\top u}) - 1 - w^\top u\bigr)\, w / \lVert w \rVert^2,

    where u, w and b are linear in the encoder's context h(x), so that the flow is amortised. Each layer bends space
    along one direction: a latent of d dimensions takes of the order of d layers. The inverse has no closed form, so
    the density is known only for the distribution's own last draw. The flow trains with the ELBO and
    importance-weighted bounds. It cannot be used where q scores other values: mixtures of posteriors, grids, sticking
    the landing, the wake phase. It becomes singular where w is zero.

    A new flow is near a diagonal normal (:math:`\hat u` near 0).

    Args:
        network: Maps x to mean, raw scale (softplus) and context, ``2 d + context_dim`` values; ``MLP()`` by default.
        context_dim: Width of the context h(x).
        num_transforms: The number of layers.

    Raises:
        ValueError: For a size that is not a positive integer.

    Reference:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), https://arxiv.org/abs/1505.05770

    Example:
        >>> from ppl_vae.networks import MLP
        >>> posterior = PlanarFlow(MLP([32]), context_dim=8)
        >>> posterior.bind(Binding(x_shape=(64,), latent_shape=(2,)))
        >>> q = posterior(torch.zeros(5, 64))
        >>> q.log_prob(q.rsample()).shape
        torch.Size([5])
    """

    _invertible = False

    def __init__(
        self, network: NetworkFactory | nn.Module | None = None, context_dim: int = 32, num_transforms: int = 8
    ) -> None:
        super().__init__(network, context_dim, num_transforms)
        check_positive_int(num_transforms, f"{self.owner}: num_transforms")

    def _layer(self, dim: int, i: int) -> nn.Module:
        return Planar(dim, self.context_dim)


class CouplingFlow(_StandardFlowPosterior):
    r"""A flow of affine coupling layers with context: quick to draw from and to score any z.

    .. math::
        z = \mu(x) + \sigma(x) \odot f_{h(x)}(e), \qquad e \sim \mathcal N(0, I),

    where f is a chain of layers. Each layer permutes the dimensions, keeps the first half and maps the other half by
    :math:`s \odot e_{> d/2} + m`. A network of the first half and the context h(x) gives :math:`(m, \log s)`, with
    :math:`\log s = 3 \tanh(r / 3)`. Every second permutation is the reversal. The others are random; they are drawn
    when the VAE is made and kept in the state. A layer bends only half of z: the flow needs more layers than
    `InverseAutoregressiveFlow` for the same density, and a single layer leaves half of z normal.

    A new flow is near a diagonal normal.

    Args:
        network: Maps x to mean, raw scale (softplus) and context, ``2 d + context_dim`` values; ``MLP()`` by default.
        context_dim: Width of the context h(x).
        num_transforms: The number of layers.
        hidden: Widths of each layer's network (ELU).

    Raises:
        ValueError: For a size that is not a positive integer, or, in a VAE, one latent dimension.

    Reference:
        Density Estimation Using Real NVP (Dinh, Sohl-Dickstein & Bengio, 2016), https://arxiv.org/abs/1605.08803

    Example:
        >>> from ppl_vae.networks import MLP
        >>> posterior = CouplingFlow(MLP([32]), context_dim=8, num_transforms=2, hidden=[16])
        >>> posterior.bind(Binding(x_shape=(64,), latent_shape=(2,)))
        >>> posterior(torch.zeros(5, 64)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        context_dim: int = 32,
        num_transforms: int = 8,
        hidden: Sequence[int] = (128,),
    ) -> None:
        super().__init__(network, context_dim, num_transforms)
        self.hidden = check_layers(num_transforms, hidden, self.owner)


class SplineFlow(_StandardFlowPosterior):
    r"""A flow of spline coupling layers with context: several modes, quick to draw from and to score any z.

    .. math::
        z = \mu(x) + \sigma(x) \odot f_{h(x)}(e), \qquad e \sim \mathcal N(0, I),

    where f is a chain of layers as in `CouplingFlow`, with a spline in place of each affine map: monotone, of linear
    rational pieces on [-5, 5], and the identity outside. The splines bend the diagonal normal within five standard
    deviations; further out it keeps its normal tail. Each layer takes several times the work of one of `CouplingFlow`.
    The density has kinks at the knots.

    A new flow is near a diagonal normal.

    Args:
        network: Maps x to mean, raw scale (softplus) and context, ``2 d + context_dim`` values; ``MLP()`` by default.
        context_dim: Width of the context h(x).
        num_transforms: The number of layers.
        hidden: Widths of each layer's network (ELU).
        num_bins: The number of pieces of each spline, 2 to 500.

    Raises:
        ValueError: For a size that is not a positive integer, or, in a VAE, one latent dimension.

    Reference:
        Neural Spline Flows (Durkan, Bekasov, Murray & Papamakarios, 2019), https://arxiv.org/abs/1906.04032, with the
        pieces of Invertible Generative Modeling using Linear Rational Splines (Dolatabadi, Erfani & Leckie, 2020),
        https://arxiv.org/abs/2001.05168, whose inverse is exact

    Example:
        >>> from ppl_vae.networks import MLP
        >>> posterior = SplineFlow(MLP([32]), context_dim=8, num_transforms=2, hidden=[16])
        >>> posterior.bind(Binding(x_shape=(64,), latent_shape=(2,)))
        >>> posterior(torch.zeros(5, 64)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        context_dim: int = 32,
        num_transforms: int = 4,
        hidden: Sequence[int] = (128,),
        num_bins: int = 8,
    ) -> None:
        super().__init__(network, context_dim, num_transforms)
        self.hidden = check_layers(num_transforms, hidden, self.owner)
        self.num_bins = check_bins(num_bins, self.owner)
