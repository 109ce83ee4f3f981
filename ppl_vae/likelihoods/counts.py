r"""Likelihoods of counts: Poisson, negative binomial and zero-inflated negative binomial."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._validation import check_choice, check_positive
from ppl_vae.distributions import counts
from ppl_vae.likelihoods.protocol import _Pixels
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork

Link = Literal["exp", "softplus"]
Dispersion = Literal["global", "feature", "datum"]

_TAIL = -20.0  # below it log softplus(r) is r to within e^r / 2
_HIGHEST = 60.0  # the largest log mean: further out exp would leave float32, and its gradient would be NaN
_RAREST = 1e-4  # initial mean of a feature that is zero in all the training data
_GATE = -3.0  # logit of the initial share of inflated zeros, 5%


class _Counts(_Pixels):
    """Counts whose mean a link gives from the network's first output."""

    def __init__(self, link: Link, start_from_data: bool) -> None:
        super().__init__(start_from_data)
        check_choice(link, get_args(Link), f"{self.owner}: link")
        self.link = link

    def _log_mean(self, raw: Tensor) -> Tensor:
        """Return the logarithm of the mean that the link gives for a network's output, without underflow."""
        if self.link == "exp":
            return raw.clamp(max=_HIGHEST)
        return torch.where(raw < _TAIL, raw, softplus(raw.clamp(min=_TAIL)).log())

    def _link(self, mean: Tensor) -> Tensor:
        mean = mean.clamp(min=_RAREST)
        return mean.log() if self.link == "exp" else mean + torch.log(-torch.expm1(-mean))


class Poisson(_Counts):
    r"""Independent Poisson counts.

    .. math::
        P(x_i = k | z) = \mu_i(z)^k e^{-\mu_i(z)} / k!, \qquad k = 0, 1, 2, \dots

    The variance equals the mean, but counts of most kinds vary more. A Poisson then takes noise for structure, and
    `NegativeBinomial` fits better. With ``link="exp"`` an initial network with large outputs gives astronomical means
    and losses, and Adam does not come back from them (log means above 60 are held at 60, with gradient zero). This link
    needs small initial outputs, as of ``MLP(init="torch")``.

    Args:
        network: Maps z to one value per feature; ``MLP()`` by default.
        link: How the network gives the mean: ``"softplus"``, which grows no faster than its argument, or ``"exp"``.
        start_from_data: Start the means at those of the training data, at least 1e-4.

    Raises:
        ValueError: For an unknown `link`, or without training data to start from.

    Reference:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
        https://www.nature.com/articles/s41592-018-0229-2

    Example:
        >>> likelihood = Poisson(nn.Linear(2, 64))
        >>> likelihood(torch.zeros(5, 2)).event_shape
        torch.Size([64])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        link: Link = "softplus",
        start_from_data: bool = False,
    ) -> None:
        super().__init__(link, start_from_data)
        self.mean = ParameterNetwork(network, self.owner)

    def _pixels(self, raw: Tensor) -> Any:
        return counts.Poisson(self._log_mean(raw))


class NegativeBinomial(_Counts):
    r"""Independent negative binomial counts, by mean and dispersion.

    .. math::
        P(x_i = k | z) = \frac{\Gamma(k + r_i)}{\Gamma(r_i) \, k!} \Big(\frac{r_i}{r_i + \mu_i(z)}\Big)^{r_i}
        \Big(\frac{\mu_i(z)}{r_i + \mu_i(z)}\Big)^k, \qquad \mathrm{Var}[x_i | z] = \mu_i + \mu_i^2 / r_i.

    For large r it becomes Poisson, and the computation stays exact on the way there. Where a feature is nearly always
    zero, mean and dispersion can stand in for each other, so r of such a feature means little. With a dispersion per
    datum the noise can take over what z should explain.

    Args:
        network: Maps z to one value per feature, and with ``dispersion="datum"`` to a second, :math:`\log r` relative
            to `start`; ``MLP()`` by default.
        dispersion: What has its own learned r: ``"global"``: all features together; ``"feature"``: each feature, the
            same for all data; ``"datum"``: each feature, as a function of z.
        start: The initial dispersion r.
        link: How the network gives the mean: ``"softplus"``, which grows no faster than its argument, or ``"exp"``.
        start_from_data: Start the means at those of the training data, at least 1e-4.

    Raises:
        ValueError: For an unknown `dispersion` or `link`, a `start` that is not above zero, or without training data
            to start from.

    Reference:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
        https://www.nature.com/articles/s41592-018-0229-2

    Example:
        >>> likelihood = NegativeBinomial(nn.Linear(2, 64), dispersion="global")
        >>> likelihood(torch.zeros(5, 2)).event_shape
        torch.Size([64])
    """

    _extra = 0  # parameters per feature, besides mean and dispersion
    raw_dispersion: nn.Parameter | None

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        dispersion: Dispersion = "feature",
        start: float = 1.0,
        link: Link = "softplus",
        start_from_data: bool = False,
    ) -> None:
        super().__init__(link, start_from_data)
        check_choice(dispersion, get_args(Dispersion), f"{self.owner}: dispersion")
        self.dispersion = dispersion
        self.start = math.log(check_positive(start, f"{self.owner}: start"))
        count = 1 + (dispersion == "datum") + self._extra
        self.parameters_of_z = ParameterNetwork(network, self.owner, count)
        one = nn.Parameter(torch.tensor(self.start)) if dispersion == "global" else None
        self.register_parameter("raw_dispersion", one)

    def bind(self, binding: Binding) -> None:
        """Size the network and the dispersions, and start from the data if asked to."""
        super().bind(binding)
        if self.dispersion == "feature" and self.raw_dispersion is None:
            like = next(self.parameters(), torch.empty(0))
            self.raw_dispersion = nn.Parameter(like.new_full(binding.x_shape, self.start))

    def _pixels(self, raw: Tensor, *others: Tensor) -> Any:
        return counts.NegativeBinomial(self._log_mean(raw), self._log_dispersion(*others))

    def _log_dispersion(self, *others: Tensor) -> Tensor:
        if self.dispersion == "datum":
            return self.start + others[0]
        if self.raw_dispersion is None:
            raise RuntimeError(f"{self.owner} has no sizes yet: put it into a VAE")
        return self.raw_dispersion


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Independent negative binomial counts, each set to zero with its own probability.

    .. math::
        P(x_i = 0 | z) = \pi_i(z) + (1 - \pi_i(z)) \, \mathrm{NB}(0; \mu_i(z), r_i), \qquad
        P(x_i = k | z) = (1 - \pi_i(z)) \, \mathrm{NB}(k; \mu_i(z), r_i), \quad k > 0.

    Zeros have two explanations. The data tell them apart only where the mean is well above zero; elsewhere
    :math:`\pi` and :math:`\mu` are not identified. Use this likelihood where it fits held-out data better than
    `NegativeBinomial` does.

    Args:
        network: Maps z to the values of `NegativeBinomial` and, last, to the logit of :math:`\pi` per feature,
            relative to a start at 5%; ``MLP()`` by default.
        dispersion: What has its own learned r: ``"global"``, ``"feature"`` or ``"datum"``.
        start: The initial dispersion r.
        link: How the network gives the mean: ``"softplus"``, which grows no faster than its argument, or ``"exp"``.
        start_from_data: Start the means, with zeros of both kinds, at those of the training data, at least 1e-4.

    Raises:
        ValueError: For an unknown `dispersion` or `link`, a `start` that is not above zero, or without training data
            to start from.

    Reference:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
        https://www.nature.com/articles/s41592-018-0229-2

    Example:
        >>> likelihood = ZeroInflatedNegativeBinomial(nn.Linear(2, 64 * 3), dispersion="datum")
        >>> likelihood(torch.zeros(5, 2)).event_shape
        torch.Size([64])
    """

    _extra = 1

    def _start(self, binding: Binding) -> None:
        mean = binding.data_mean(self.owner) * (1 + math.exp(_GATE))  # of the counts that are not set to zero
        others = [None] * (self._network.count - 2)
        self._network.start_at(mean, *others, None, link=self._link)
        self._network.start_at(None, *others, torch.zeros(()))

    def _pixels(self, raw: Tensor, *others: Tensor) -> Any:
        log_dispersion = self._log_dispersion(*others)
        return counts.ZeroInflatedNegativeBinomial(self._log_mean(raw), log_dispersion, _GATE + others[-1])
