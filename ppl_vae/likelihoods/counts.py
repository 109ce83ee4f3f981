r"""Likelihoods of counts: Poisson, negative binomial and zero-inflated negative binomial."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._home import at_home
from ppl_vae._numbers import inverse_softplus
from ppl_vae._scopes import evaluation_mode
from ppl_vae._validation import check_choice, check_positive
from ppl_vae.data.rows import stream
from ppl_vae.data.sparse import row_totals
from ppl_vae.distributions import counts
from ppl_vae.likelihoods.protocol import _Pixels
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork

Link = Literal["exp", "softplus"]
Dispersion = Literal["global", "feature", "datum", "condition"]
Library = Literal["condition", "latent"]

_TAIL = -20.0  # below it log softplus(r) is r to within e^r / 2
_HIGHEST = 60.0  # the largest log mean: further out exp would leave float32, and its gradient would be NaN
_RAREST = 1e-4  # initial mean of a feature that is zero in all the training data
_GATE = -3.0  # logit of the initial share of inflated zeros, 5%
_NARROWEST = 1e-2  # standard deviation of a log library size


class _Counts(_Pixels):
    """Counts whose mean a link, or with a library size the softmax over features, gives from the first output."""

    _counts: Callable[..., Any]  # the distribution, from the log mean, the condition and the network's other outputs
    log_size_mean: Tensor  # of the log library size under each label, (k, 1), or of all data, (1,)
    log_size_scale: Tensor

    def __init__(self, link: Link, start_from_data: bool, library: Library | None) -> None:
        super().__init__(start_from_data)
        check_choice(link, get_args(Link), f"{self.owner}: link")
        check_choice(library or "latent", get_args(Library), f"{self.owner}: library")
        self.link, self.library = link, library

    def bind(self, binding: Binding) -> None:
        """Size the network for what it sees, start from the data if asked to, and find the prior of a latent size."""
        (d,), y = binding.latent_shape, _conditions(binding, self.owner)
        k = y.shape[1]
        if self.library == "latent":
            self._find_sizes(binding, y)
            d -= 1
        elif self.library == "condition":
            if not k or (y[:, 0].any() and ((y[:, 0] == 0) | (y[:, 0] == 1)).all()):
                raise ValueError(
                    f"{self.owner}: library='condition' reads the log library size from the first entry of the "
                    "condition, and it is not there; put it there by data.with_library_size, or --data.library true"
                )
            k -= 1
        super().bind(replace(binding, latent_shape=(d,), y_shape=(k,) if k else None))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        log_size, y, raw, *others = self._outputs(z, y)
        dim = raw.dim() - z.dim() + 1
        log_mean = self._log_mean(raw)
        if log_size is not None:
            log_mean = (log_size[(..., *[None] * (dim - 1))] + _log_shares(raw, dim)).clamp(max=_HIGHEST)
        return self._counts(log_mean, y, *others).to_event(dim)

    @at_home("z", "y", rows=True)
    @torch.no_grad()
    def proportions(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        r"""Return the share :math:`\rho_i(z, y)` of each feature in the mean, in evaluation mode.

        With a library size this is what z says of a datum whatever its total: denoised expression, comparable between
        data. Under another condition than the datum's own it is what the datum would be there.

        Args:
            z: The latents, as the VAE draws them, (\*batch, latent).
            y: The conditions of a conditional model, (n, k), as the VAE takes them.

        Returns:
            The shares, ``(*batch, *x_shape)``.
        """
        with evaluation_mode(self):
            _, _, raw, *_ = self._outputs(z, y)
            return _log_shares(raw if self.library else self._log_mean(raw), raw.dim() - z.dim() + 1).exp()

    def _outputs(self, z: Tensor, y: Tensor | None) -> tuple[Any, ...]:
        """Return the log library size, (*batch, 1) or None, the condition without it, and the network's outputs."""
        log_size = None
        if self.library == "latent":
            mean, scale = (t if y is None else y @ t for t in (self.log_size_mean, self.log_size_scale))
            z, log_size = z[..., :-1], mean + scale * z[..., -1:]
        elif self.library == "condition":
            if y is None:
                raise ValueError(f"{self.owner} was given no y; expected the log library size as its first entry")
            log_size, y = y[..., :1], y[..., 1:] if y.shape[-1] > 1 else None
        return log_size, y, *self._network(z, y)

    def _find_sizes(self, binding: Binding, y: Tensor) -> None:
        """Find the mean and the standard deviation of the log totals of the training data, under each label."""
        total = row_totals(binding.data(self.owner).x)
        empty = (~(total > 0)).nonzero()[:, 0]
        if 0 < len(empty) < len(total):  # all are empty where zeros stand for data, as in loading
            raise ValueError(
                f"{self.owner}: row {int(empty[0])} of the training data has no counts ({len(empty)} rows), and so no "
                "library size; leave such rows out"
            )
        labels = _one_hot(y, self.owner).double() if binding.y_shape else torch.ones(len(total), 1).double()
        labels[:, labels.sum(0) < 2] = 1  # of a label with one row or none the mean and scale of all
        value, size = total.clamp(min=1).log(), labels.sum(0)
        mean = value @ labels / size
        scale = (((value[:, None] - mean).square() * labels).sum(0) / size).sqrt().clamp(min=_NARROWEST)
        for name, moment in (("log_size_mean", mean), ("log_size_scale", scale)):
            like = next(self.parameters(), torch.empty(0))
            self.register_buffer(name, moment.to(like).reshape(-1, 1) if binding.y_shape else moment.to(like))

    def _log_mean(self, raw: Tensor) -> Tensor:
        """Return the logarithm of the mean that the link gives for a network's output, without underflow."""
        if self.link == "exp":
            return raw.clamp(max=_HIGHEST)
        return torch.where(raw < _TAIL, raw, softplus(raw.clamp(min=_TAIL)).log())

    def _link(self, mean: Tensor) -> Tensor:
        mean = mean.clamp(min=_RAREST)
        return mean.log() if self.link == "exp" or self.library else inverse_softplus(mean)


def _log_shares(raw: Tensor, dim: int) -> Tensor:
    """Return the log softmax over the last `dim` dimensions together."""
    return raw.flatten(-dim).log_softmax(-1).view_as(raw)


def _conditions(binding: Binding, owner: str) -> Tensor:
    """Return the conditions of the training data, (n, k), on the CPU; zeros without data."""
    if binding.train is None or binding.y_shape is None:
        return torch.zeros(1, *binding.y_shape or (0,))
    return next(stream(binding.train.columns[1], [torch.arange(len(binding.data(owner)))])).cpu()


def _one_hot(y: Tensor, owner: str) -> Tensor:
    """Return conditions that are one-hot, or zeros that stand for data, as where a VAE is loaded; refuse others."""
    if not y.shape[1] or (y.any() and (((y != 0) & (y != 1)).any() or (y.sum(1) != 1).any())):
        raise ValueError(
            f"{owner} has values for each label, and the data have no one-hot labels as conditions; load them with "
            "conditional=True"
        )
    return y


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
        library: Where the library size comes from, see `NegativeBinomial`.

    Raises:
        ValueError: For an unknown `link` or `library`, or without training data to start from.

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
        library: Library | None = None,
    ) -> None:
        super().__init__(link, start_from_data, library)
        self.mean = ParameterNetwork(network, self.owner)

    def _counts(self, log_mean: Tensor, y: Tensor | None) -> Any:
        return counts.Poisson(log_mean)


class NegativeBinomial(_Counts):
    r"""Independent negative binomial counts, by mean and dispersion.

    .. math::
        P(x_i = k | z) = \frac{\Gamma(k + r_i)}{\Gamma(r_i) \, k!} \Big(\frac{r_i}{r_i + \mu_i(z)}\Big)^{r_i}
        \Big(\frac{\mu_i(z)}{r_i + \mu_i(z)}\Big)^k, \qquad \mathrm{Var}[x_i | z] = \mu_i + \mu_i^2 / r_i.

    For large r it becomes Poisson, and the computation stays exact on the way there. Where a feature is nearly always
    zero, mean and dispersion can stand in for each other, so r of such a feature means little. With a dispersion per
    datum the noise can take over what z should explain.

    With a library size l the network gives proportions, :math:`\mu_i = l\, \rho_i(z)` with
    :math:`\rho = \mathrm{softmax}(f(z))`, so that z need not say how much was counted in all:

    - ``library="condition"``: the first entry of the condition y is :math:`\log l`, put there by
      `data.with_library_size`, and the network sees the rest. An l that is the total of x makes p(x|z, l) condition on
      a function of x: what is computed is log p(x|l), which is no log p(x) and compares only with other log p(x|l) of
      the same l. A y whose first entry is something else gives wrong means without a word.
    - ``library="latent"``: the last dimension of z is the standard score of :math:`\log l = m + s z_d`, and the network
      sees the others. m and s are the mean and the standard deviation of the log totals of the training data (under
      each label, where the data have one-hot conditions). With a standard normal prior this is
      :math:`l \sim \mathrm{LogNormal}(m, s^2)`, and log p(x) is one. Any posterior on R^d fits, and starts at the
      prior's scale.

    Args:
        network: Maps z to one value per feature, and with ``dispersion="datum"`` to a second, :math:`\log r` relative
            to `start`; ``MLP()`` by default.
        dispersion: What has its own learned r: ``"global"``: all features together; ``"feature"``: each feature, the
            same for all data; ``"condition"``: each feature under each label, of one-hot conditions; ``"datum"``: each
            feature, as a function of z.
        start: The initial dispersion r.
        link: How the network gives the mean: ``"softplus"``, which grows no faster than its argument, or ``"exp"``.
            With a library size it is the softmax, whatever this says.
        start_from_data: Start the means at those of the training data, at least 1e-4. With a library size these are
            the features' shares of all counts.
        library: Where the library size comes from: ``"condition"``, ``"latent"``, or None for means without one.

    Raises:
        ValueError: For an unknown `dispersion`, `link` or `library`, a `start` that is not above zero, without training
            data to start from or to take m and s from, for conditions that are not one-hot where a label is needed, or
            for training data with a row of zeros under a latent library size.

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
        library: Library | None = None,
    ) -> None:
        super().__init__(link, start_from_data, library)
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
        shape = binding.x_shape
        if self.dispersion == "condition":
            y = _conditions(binding, self.owner)
            shape = (_one_hot(y[:, self.library == "condition" :], self.owner).shape[1], *shape)
        if self.dispersion in ("feature", "condition") and self.raw_dispersion is None:
            like = next(self.parameters(), torch.empty(0))
            self.raw_dispersion = nn.Parameter(like.new_full(shape, self.start))

    def _counts(self, log_mean: Tensor, y: Tensor | None, *others: Tensor) -> Any:
        return counts.NegativeBinomial(log_mean, self._log_dispersion(y, *others))

    def _log_dispersion(self, y: Tensor | None, *others: Tensor) -> Tensor:
        if self.dispersion == "datum":
            return self.start + others[0]
        if self.raw_dispersion is None:
            raise RuntimeError(f"{self.owner} has no sizes yet: put it into a VAE")
        if self.dispersion == "condition":
            return torch.tensordot(y, self.raw_dispersion, 1)
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
        dispersion: What has its own learned r: ``"global"``, ``"feature"``, ``"condition"`` or ``"datum"``.
        start: The initial dispersion r.
        link: How the network gives the mean: ``"softplus"``, which grows no faster than its argument, or ``"exp"``.
        start_from_data: Start the means, with zeros of both kinds, at those of the training data, at least 1e-4.
        library: Where the library size comes from, see `NegativeBinomial`; it is the sum of :math:`\mu`, before zeros
            are inflated.

    Raises:
        ValueError: As in `NegativeBinomial`.

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

    def _counts(self, log_mean: Tensor, y: Tensor | None, *others: Tensor) -> Any:
        return counts.ZeroInflatedNegativeBinomial(log_mean, self._log_dispersion(y, *others), _GATE + others[-1])
