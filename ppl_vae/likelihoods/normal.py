r"""Normal likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae._validation import check_positive
from ppl_vae.distributions._expanding import Scored
from ppl_vae.likelihoods.location_scale import LocationScale
from ppl_vae.likelihoods.protocol import _Pixels
from ppl_vae.networks import NetworkFactory, ParameterNetwork


class Normal(LocationScale):
    r"""Independent normal pixels, normaliser kept.

    .. math::
        \log p(x|z) = -\sum_i \frac{(x_i - \mu_i(z))^2}{2\sigma_i^2} - \frac12 \log(2\pi\sigma_i^2).

    The article's squared error is the first term with :math:`2\sigma^2 = 1` and without the constant. The scale sets
    the weight of the reconstruction against the KL. Values are therefore comparable only between models of the same
    scale or with the normaliser kept, as here. The density is wrong for data on a grid (8-bit pixels): without
    dequantisation a small scale can drive it to infinity, and a learned scale goes there. Where pixels never change
    (dark borders), the scales of ``learn="pixel"`` and ``"datum"`` fall to `floor`, and the value reflects little else.
    The floor keeps the value finite; it does not make it meaningful.

    The scale ``"fixed"`` is a choice of the weight of the KL; ``"global"`` finds that weight; ``"pixel"`` knows which
    pixels vary, whatever z is. ``"datum"`` computes the scale from z and is hard to train: an error is divided by the
    variance that it has itself enlarged, so training gives up ill-fitted pixels (Seitzer et al., 2022), while the
    scales of well-fitted ones collapse onto the floor.

    Args:
        network: Maps z to one mean per dimension of x, with ``learn="datum"`` to a scale as well; ``MLP()`` by default.
        scale: The standard deviation :math:`\sigma`, in units of x; :math:`\sqrt{1/2}` makes the first term the
            article's squared error. If it is learned, this is the initial value.
        learn: ``"fixed"``: the scale stays; ``"global"``: one is learned for all pixels; ``"pixel"``: one is learned
            per pixel; ``"datum"``: the network computes it from z.
        floor: The smallest learned standard deviation, in units of x. That of one 8-bit level spread evenly is
            1/256/sqrt(12) = 0.0011.
        start_from_data: Start the mean at that of the training data.

    Raises:
        ValueError: If `scale` or `floor` is not a finite number above zero, a learned `scale` does not start above the
            floor, or `learn` is unknown.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114;
        On the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic Neural Networks (Seitzer et al.,
        2022), https://arxiv.org/abs/2203.09168

    Example:
        >>> import torch
        >>> likelihood = Normal(nn.Linear(2, 64), scale=0.5)
        >>> likelihood(torch.zeros(5, 2)).batch_shape
        torch.Size([5])
    """

    def _density(self, mean: Tensor, scale: Tensor) -> Any:
        return dist.Normal(mean, scale)


class OptimalSigmaNormal(_Pixels):
    r"""Normal pixels with the one variance that fits the training data best: the sigma-VAE.

    .. math::
        \log p(x|z) = -\frac{1}{2\sigma^2} \lVert x - \mu(z) \rVert^2 - \frac D2 \log(2\pi\sigma^2), \qquad
        \sigma^2 = \frac1{ND} \sum_n \lVert x_n - \mu(z_n) \rVert^2,

    the variance that ``Normal(learn="global")`` reaches by gradient steps. Here the weight of the reconstruction is
    right from the first step on, and grows as the reconstruction improves. The density is wrong for data on a grid, as
    `Normal` says, and for data whose pixels differ much in their noise.

    **While training** :math:`\sigma^2` is the mean squared error of the batch that is scored (over particles too), as
    in the paper, but it is held constant in the gradient. The gradient of the ELBO is the same, since its derivative in
    :math:`\sigma` is zero there; the gradient of a multi-sample bound is one for a true density.

    A normal whose variance is fitted to the data that it scores is not a density of these data. The excess is about
    half a nat a *batch* (one parameter). With a variance for each datum it would be one per datum, and unbounded.
    Therefore, **in evaluation mode**, :math:`\sigma^2` is a fixed number: the running mean of the batches' values, as
    in batch normalisation. All data that are scored count: weights and masks that are put on single data from outside
    do not reach the variance.

    Args:
        network: Maps z to one mean per dimension of x; ``MLP()`` by default.
        scale: The standard deviation in evaluation mode before the first batch, in units of x.
        momentum: The weight of a new batch in the running mean, once there have been 1/momentum batches.
        floor: The smallest standard deviation, in units of x.
        start_from_data: Start the mean at that of the training data.

    Raises:
        ValueError: If `scale` or `floor` is not a finite number above zero, or `momentum` is not in (0, 1].

    Reference:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin, Daniilidis & Levine, 2021),
        https://arxiv.org/abs/2006.13202

    Example:
        >>> likelihood = OptimalSigmaNormal(nn.Linear(2, 64))
        >>> x = torch.full((5, 64), 0.5)
        >>> _ = likelihood(torch.zeros(5, 2)).log_prob(x)  # a training step
        >>> error = (x - likelihood.eval()(torch.zeros(5, 2)).mean).square().mean()
        >>> bool(torch.isclose(likelihood.variance, error))
        True
    """

    variance: Tensor
    num_batches: Tensor

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        scale: float = 1.0,
        momentum: float = 0.1,
        floor: float = 1e-3,
        start_from_data: bool = False,
    ) -> None:
        super().__init__(start_from_data)
        name = self.owner
        scale = check_positive(scale, f"{name}: scale")
        self.momentum = check_positive(momentum, f"{name}: momentum")
        if momentum > 1:
            raise ValueError(f"{name}: momentum is {momentum!r}; expected a weight above 0, up to 1")
        self.floor = check_positive(floor, f"{name}: floor")
        self.mean = ParameterNetwork(network, name)
        self.register_buffer("variance", torch.tensor(scale**2))
        self.register_buffer("num_batches", torch.tensor(0))

    def _pixels(self, mean: Tensor) -> Any:
        """Return the pixels; while training their variance comes from the x that they score."""
        scale = self.variance.clamp(min=self.floor**2).sqrt().expand_as(mean)
        return _FittedNormal(mean, scale, self._fit) if self.training else dist.Normal(mean, scale)

    @torch.no_grad()
    def _fit(self, errors: Tensor) -> Tensor:
        """Return the scale of these errors, and update the running mean."""
        variance = errors.square().mean()
        seen = variance.isfinite()  # not of no rows, and not of a step that is lost
        self.num_batches.add_(seen)
        weight = (1 / self.num_batches).clamp(min=self.momentum).to(self.variance.dtype)  # a plain mean at first
        running = self.variance.lerp(variance.to(self.variance.dtype), weight)
        self.variance.copy_(torch.where(seen, running, self.variance))
        return variance.clamp(min=self.floor**2).sqrt()


class _FittedNormal(Scored, dist.Normal):
    """A normal distribution whose `log_prob` fits its scale to all errors of the value that it scores."""

    def __init__(self, loc: Tensor, scale: Tensor, fit: Callable[[Tensor], Tensor]) -> None:
        self.fit = fit
        super().__init__(loc, scale)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _FittedNormal:
        return _FittedNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.fit)

    def _log_prob(self, value: Tensor) -> Tensor:
        scale = self.fit(value - self.loc)
        fitted = dist.Normal(self.loc, scale.expand_as(self.loc), validate_args=False)
        return cast(Tensor, fitted.log_prob(value))
