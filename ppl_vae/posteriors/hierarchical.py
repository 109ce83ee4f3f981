r"""Posteriors of several levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae._recorded import Recorded
from ppl_vae._validation import check_choice, check_positive, check_positive_int
from ppl_vae.distributions.chain import Chain
from ppl_vae.distributions.normal import Normal
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork
from ppl_vae.networks.levels import _Levels, check_dims, two_dims

Direction = Literal["top-down", "bottom-up", "precision-weighted"]


class Ladder(_Levels, Recorded):
    r"""A posterior of L levels, :math:`z = (z_1, \dots, z_L)`, each a diagonal normal given the level before.

    ========================  ==================================================================================
    direction                 q(z|x), with features h(x) of one network
    ========================  ==================================================================================
    ``"top-down"``            :math:`q(z_L|h) \prod_{l<L} q(z_l|z_{l+1}, h)`, as the model draws
    ``"precision-weighted"``  the same, with :math:`q(z_l|z_{l+1}, h) \propto \mathcal N(z_l; m_l(h), s_l(h)^2)\,
                              p(z_l|z_{l+1})`: the prior's own conditional, moved by what the data say of the level
    ``"bottom-up"``           :math:`q(z_1|x) \prod_{l<L} q(z_{l+1}|z_l)`
    ========================  ==================================================================================

    Bottom-up, the top sees the data only through a draw of what lies below. This is right for the model, where
    :math:`z_{l+1}` given :math:`z_l` does not depend on x, yet it trains slowly and the upper levels often stay unused.
    Top-down, the KL between q and p is in closed form at each level (`MeanFieldELBO`). The precision-weighted
    posterior starts from the prior at every level, and shares its networks: an objective that trains q alone (`EUBO`,
    `CUBO`) or q by another aim than p (`RWS`) then **also moves the prior** towards that aim. The papers' features are
    one for each level, h_1 to h_L; here one network makes h, and the network of a level may be as deep as it takes. The
    mean has no closed form, so pictures of it use the mean of draws.

    Args:
        network: Maps x (and y, in a conditional model) to h, or bottom-up to the mean and a raw scale of
            :math:`z_1`; ``MLP()`` by default.
        level_network: Maps what a level is given (h and :math:`z_{l+1}`; h; :math:`z_l` and y) to mean and raw scale: a
            factory, which makes one for each, or a list, that of the lowest level first (L of them, bottom-up L - 1).
        dims: The dimensions of :math:`z_1, \dots, z_L`; None for those of the prior, a `priors.Ladder`.
        direction: The table above.
        features: The dimension of h; bottom-up there is none.
        floor: The smallest standard deviation; precision-weighted that of :math:`s_l`.

    Raises:
        ValueError: If an argument is out of range; when a VAE is made, if `dims` are not those of the latent, if there
            are none, or if a precision-weighted posterior meets a prior without levels.

    Reference:
        Ladder Variational Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282; Importance Weighted
        Autoencoders (Burda et al., 2015), https://arxiv.org/abs/1509.00519, for bottom-up

    Example:
        >>> from ppl_vae import VAE, likelihoods, priors
        >>> vae = VAE((64,), prior=priors.Ladder([4, 2, 1]), likelihood=likelihoods.Bernoulli(),
        ...           posterior=Ladder(direction="precision-weighted"))
        >>> vae.posterior(torch.zeros(5, 64)).rsample().shape
        torch.Size([5, 7])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        level_network: NetworkFactory | Sequence[NetworkFactory | nn.Module] | nn.Module | None = None,
        dims: Sequence[int] | None = None,
        direction: Direction = "top-down",
        features: int = 64,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        self.owner = f"posterior {type(self).__name__}"
        check_choice(direction, get_args(Direction), f"{self.owner}: direction")
        self.direction: Direction = direction
        self.features = check_positive_int(features, f"{self.owner}: features")
        self.floor = check_positive(floor, f"{self.owner}: floor")
        self.dims = None if dims is None else check_dims(dims, f"{self.owner}: dims")
        self._level_network = (level_network,)  # in a tuple: a module is held under the name of its level
        self._prior: tuple[Any, ...] = ()  # in a tuple: as a submodule its parameters would count twice
        if direction == "bottom-up":
            self.add_networks(network, [0])
        else:
            self.encoder = ParameterNetwork(network, self.owner)

    def bind(self, binding: Binding) -> None:
        """Size the networks, and keep a reference to the prior if q(z|x) is made of it."""
        of_prior = getattr(binding.prior, "dims", None)
        dims = self.dims or of_prior
        if dims is None or sum(dims) != binding.latent_shape[0] or of_prior not in (None, dims):
            found = f"levels of {of_prior}" if of_prior else f"{binding.latent_shape[0]} dimensions and no levels"
            raise ValueError(f"{self.owner}: dims is {dims}, and the prior has {found}; use a priors.Ladder of these")
        if self.direction == "precision-weighted":
            if not isinstance(binding.prior, _Levels) or self._prior not in ((), (binding.prior,)):
                raise ValueError(
                    f"{self.owner} is made of the conditionals of one prior, and was given {binding.prior}; expected a "
                    "priors.Ladder, and a new posterior for each VAE, or direction='top-down'"
                )
            self._prior = (binding.prior,)
        self.dims = dims
        upwards = self.direction == "bottom-up"
        if not hasattr(self, self.name_of(1)):
            self.add_networks(*self._level_network, range(int(upwards), len(dims)))
        if not upwards:
            self.encoder.build(binding.x_shape, (self.features,), binding.y_shape)
        for level, dim in enumerate(dims):
            reads = (dims[level - 1 : level] or binding.x_shape) if upwards else (self.features,)
            above = dims[level + 1 : level + 2] or None if self.direction == "top-down" else None
            self.network_of(level).build(reads, (dim,), binding.y_shape if upwards else above)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (sum of dims,)."""
        if self.dims is None:
            raise RuntimeError(f"{self.owner} has no sizes yet: put it into a VAE")
        levels = range(len(self.dims))
        if self.direction == "bottom-up":
            return self._bottom_up(x, y, self.dims[1:])
        (features,) = self.encoder(x, y)
        lower = levels[-2::-1]
        given = [partial(self._downwards, level, features) for level in lower]
        return Chain(self.normal(levels[-1], features), given, [self.dims[i] for i in lower], top_down=True)

    def _bottom_up(self, x: Tensor, y: Tensor | None, dims: Sequence[int]) -> dist.Distribution:
        given = [partial(self._upwards, level, y) for level in range(1, len(dims) + 1)]
        return Chain(self.normal(0, x, y), given, dims, top_down=False)

    def _upwards(self, level: int, y: Tensor | None, below: Tensor) -> dist.Distribution:
        return self.normal(level, *((below, None) if y is None else _joinable(below, y)))

    def _downwards(self, level: int, features: Tensor, above: Tensor) -> dist.Distribution:
        features, _ = _joinable(features, above)
        if self.direction == "top-down":
            return self.normal(level, features, above)
        own, p = self.normal(level, features).base_dist, self._prior[0].normal(level, above).base_dist
        precisions = own.scale**-2, p.scale**-2
        variance = 1 / sum(precisions)
        mean = variance * (own.loc * precisions[0] + p.loc * precisions[1])
        return Normal(mean, variance.sqrt()).to_event(1)


def _joinable(*rows: Tensor) -> list[Tensor]:
    """Return vectors repeated over the batch dimensions of each other."""
    batch = torch.broadcast_shapes(*(t.shape[:-1] for t in rows))
    return [t.expand(*batch, -1) for t in rows]


class TwoLevel(Ladder):
    r"""A posterior of two levels, bottom-up, for `priors.TwoLevel`.

    .. math::
        q(z|x) = q(z_1|x)\, q(z_2|z_1), \qquad q(z_1|x) = \mathcal N(\mu_1(x), \mathrm{diag}\,\sigma_1(x)^2), \quad
        q(z_2|z_1) = \mathcal N(\mu_2(z_1), \mathrm{diag}\,\sigma_2(z_1)^2).

    It is the bottom-up `Ladder` of two levels, which says what that means. A given z is scored by :math:`q(z_2|z_1)` at
    its own :math:`z_1`.

    Args:
        top_dim: The dimension of :math:`z_2`, as in the prior.
        network: Maps x to the mean and a raw scale of :math:`z_1`; ``MLP()`` by default.
        top_network: Maps :math:`z_1` (and y, in a conditional model) to those of :math:`z_2`; ``MLP()`` by default.
        floor: The smallest standard deviation.

    Raises:
        ValueError: If an argument is out of range, or, when a VAE is made, `top_dim` leaves no dimension to z1.

    Reference:
        Importance Weighted Autoencoders (Burda et al., 2015), https://arxiv.org/abs/1509.00519; Ladder Variational
        Autoencoders (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282

    Example:
        >>> import torch
        >>> posterior = TwoLevel(2, network=nn.Linear(64, 6), top_network=nn.Linear(3, 4))
        >>> posterior(torch.zeros(5, 64)).event_shape
        torch.Size([5])
    """

    def __init__(
        self,
        top_dim: int,
        network: NetworkFactory | nn.Module | None = None,
        top_network: NetworkFactory | nn.Module | None = None,
        floor: float = 1e-5,
    ) -> None:
        super().__init__(network, direction="bottom-up", floor=floor)
        self.top_dim = check_positive_int(top_dim, f"{self.owner}: top_dim")
        self.add_networks(top_network, [1])

    def bind(self, binding: Binding) -> None:
        """Size the networks."""
        self.dims = two_dims(binding.latent_shape[0], self.top_dim, self.owner)
        super().bind(replace(binding, prior=None))  # its levels are its own, whatever those of the prior

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        return self._bottom_up(x, y, [self.top_dim])

    def name_of(self, level: int) -> str:
        """Return the name of a level's network, which saved files have."""
        return "top_mean_and_scale" if level else "mean_and_scale"
