r"""Priors of several levels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae._validation import check_choice, check_positive
from ppl_vae.distributions.chain import Chain
from ppl_vae.networks import Binding, NetworkFactory
from ppl_vae.networks.levels import _Levels, check_dims, two_dims
from ppl_vae.priors.protocol import _Prior

Visible = Literal["first", "all"]


class Ladder(_Levels, _Prior):
    r"""A prior of L levels, :math:`z = (z_1, \dots, z_L)`, each given the one above; the likelihood reads the first.

    .. math::
        p(z) = p(z_L) \prod_{l<L} p(z_l|z_{l+1}), \qquad p(z_L) = \mathcal N(0, I), \quad
        p(z_l|z_{l+1}) = \mathcal N(z_l; \mu_l(z_{l+1}), \mathrm{diag}\,\sigma_l(z_{l+1})^2).

    **Training easily ignores the upper levels**: it finds :math:`q(z_l|x) = p(z_l|z_{l+1})` there, and a VAE of fewer
    levels below. `evaluation.latent_use` says which levels are active. A KL that is warmed up level by level
    (`regularizers.KLWeight`) or free bits for each level (`regularizers.FreeBits`) help in part; `examples/ladder.py`
    measures both. This prior goes with `posteriors.Ladder` and with any other posterior on R^d.

    Args:
        dims: The dimensions of :math:`z_1, \dots, z_L`, from the level that the likelihood reads up.
        network: Maps :math:`z_{l+1}` to the mean and a raw scale of :math:`z_l`: a factory, which makes one for each l
            (``MLP()`` by default), or a list of L - 1 networks, that of :math:`z_1` first.
        visible: What the likelihood reads: ``"first"`` for :math:`z_1`, ``"all"`` for all levels.
        floor: The smallest standard deviation of :math:`p(z_l|z_{l+1})`.

    Raises:
        ValueError: If there are fewer than two levels, or not as many networks as conditionals.

    Reference:
        Ladder Variational Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282

    Example:
        >>> from ppl_vae import VAE, likelihoods, networks, posteriors
        >>> vae = VAE(
        ...     (64,),
        ...     prior=Ladder([4, 2, 1], networks.MLP([16])),
        ...     likelihood=likelihoods.Bernoulli(networks.MLP([16])),  # reads z1 alone
        ...     posterior=posteriors.Ladder(networks.MLP([16]), networks.MLP([16])),  # of the same levels
        ... )
        >>> vae.likelihood.logits.in_shape, vae.latent_shape
        ((4,), (7,))
    """

    top_loc: Tensor
    top_scale: Tensor

    def __init__(
        self,
        dims: Sequence[int],
        network: NetworkFactory | Sequence[NetworkFactory | nn.Module] | nn.Module | None = None,
        visible: Visible = "first",
        floor: float = 1e-5,
    ) -> None:
        dims = check_dims(dims, f"prior {type(self).__name__}: dims")
        super().__init__(sum(dims))
        self.dims = dims
        check_choice(visible, get_args(Visible), f"{self.owner}: visible")
        self.visible_dim = dims[0] if visible == "first" else None
        self.floor = check_positive(floor, f"{self.owner}: floor")
        self.add_networks(network, range(len(dims) - 1))
        self._hold(top_loc=torch.zeros(dims[-1]), top_scale=torch.ones(dims[-1]))

    def bind(self, binding: Binding) -> None:
        """Size the networks."""
        for level, (dim, above) in enumerate(zip(self.dims, self.dims[1:], strict=False)):
            self.network_of(level).build((above,), (dim,))

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (sum of dims,)."""
        top = dist.Normal(self.top_loc, self.top_scale).to_event(1)
        lower = range(len(self.dims) - 1)[::-1]
        return Chain(top, [partial(self.normal, i) for i in lower], [self.dims[i] for i in lower], top_down=True)


class TwoLevel(Ladder):
    r"""A prior of two levels, :math:`z = (z_1, z_2)`; the likelihood reads only the first.

    .. math::
        p(z) = p(z_2)\, p(z_1|z_2), \qquad p(z_2) = \mathcal N(0, I), \quad
        p(z_1|z_2) = \mathcal N(z_1; \mu(z_2), \mathrm{diag}\,\sigma(z_2)^2).

    It is the `Ladder` of two levels, sized by the whole latent. The density of :math:`z_1` is a learned infinite
    mixture. Training easily ignores the top level: it finds
    :math:`q(z_2|x) = p(z_2)` and the plain VAE in :math:`z_1`. Warming up the KL, more particles, or batch
    normalisation help (see the papers). This prior goes with `posteriors.TwoLevel` and with any other posterior on R^d.

    Args:
        latent_dim: The dimension of z: both levels together.
        top_dim: The dimension of :math:`z_2`.
        network: Maps :math:`z_2` to the mean and a raw scale of :math:`z_1`; ``MLP()`` by default.
        floor: The smallest standard deviation of :math:`p(z_1|z_2)`.

    Raises:
        ValueError: If `top_dim` does not leave at least one dimension to :math:`z_1`.

    Reference:
        Importance Weighted Autoencoders (Burda et al., 2015), https://arxiv.org/abs/1509.00519; Ladder Variational
        Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282

    Example:
        >>> from ppl_vae import VAE, likelihoods, networks, posteriors
        >>> vae = VAE(
        ...     (64,),
        ...     prior=TwoLevel(latent_dim=5, top_dim=2, network=networks.MLP([16])),
        ...     likelihood=likelihoods.Bernoulli(networks.MLP([16])),  # reads z1 alone
        ...     posterior=posteriors.TwoLevel(top_dim=2, network=networks.MLP([16]), top_network=networks.MLP([16])),
        ... )
        >>> vae.likelihood.logits.in_shape
        (3,)
    """

    def __init__(
        self,
        latent_dim: int,
        top_dim: int,
        network: NetworkFactory | nn.Module | None = None,
        floor: float = 1e-5,
    ) -> None:
        super().__init__(two_dims(latent_dim, top_dim, "prior TwoLevel"), network, floor=floor)

    def name_of(self, level: int) -> str:
        """Return the name of the network, which saved files have."""
        return "mean_and_scale"
