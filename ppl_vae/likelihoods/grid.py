r"""Likelihoods of pixels on a grid: a discretized logistic, a mixture of them, and free probabilities."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._numbers import inverse_softplus
from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.distributions import discretized_logistic as distributions
from ppl_vae.distributions.grid import GridCategorical, check_bins
from ppl_vae.likelihoods.location_scale import Learn, LocationScale
from ppl_vae.likelihoods.protocol import _Pixels
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork

_ROWS = 10_000  # the most training data whose histograms give the start of `Categorical`


class DiscretizedLogistic(LocationScale):
    r"""Independent pixels on a grid, each the nearest level of a logistic variable.

    .. math::
        P\Big(x_i = \frac{k}{n - 1} \,\Big|\, z\Big) =
        \sigma\Big(\frac{e_{k+1} - \mu_i(z)}{s_i}\Big) - \sigma\Big(\frac{e_k - \mu_i(z)}{s_i}\Big),
        \qquad e_k = \frac{k - \frac12}{n - 1}, \quad e_0 = -\infty, \quad e_n = \infty.

    It is a probability of the pixels as they are stored, so bits per dimension follow without a Jacobian. The mass over
    the levels is 1 for every mean and scale, even for a mean beyond either edge. There is one hump per pixel: where a
    pixel is either black or white (edges of strokes), it spends mass on the greys between, and
    `DiscretizedLogisticMixture` fits better. With ``learn="pixel"`` a pixel that never changes pulls its own scale to
    the floor, where a test datum with another value costs :math:`|x - \mu| / s` nats: one global scale is safer on
    little data.

    Args:
        network: Maps z to the mean per pixel, with ``learn="datum"`` to a scale as well; ``MLP()`` by default.
        bins: The number n of levels; the data are k/(n-1), 256 for 8-bit pixels.
        scale: The scale s of the logistic, in units of x; the initial value if it is learned.
        learn: ``"fixed"``: the scale stays; ``"global"``: one is learned for all pixels; ``"pixel"``: one is learned
            per pixel; ``"datum"``: the network computes it from z.
        floor: The smallest learned scale, in units of x. 2e-4 is a twentieth of an 8-bit level; there the level around
            the mean lacks 1e-4 of the mass. A smaller floor gains less, and lets one wrong pixel cost more.
        start_from_data: Start the mean at that of the training data.

    Raises:
        ValueError: If an argument is out of range, or there are no training data to start from.

    Reference:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        https://arxiv.org/abs/1606.04934

    Example:
        >>> likelihood = DiscretizedLogistic(nn.Linear(2, 64))
        >>> pixels = likelihood(torch.zeros(5, 2))
        >>> pixels.batch_shape, pixels.support.base_constraint
        (torch.Size([5]), Grid(k / 255, k = 0..255))
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        bins: int = 256,
        scale: float = 0.1,
        learn: Learn = "global",
        floor: float = 2e-4,
        start_from_data: bool = False,
    ) -> None:
        super().__init__(network, scale, learn, floor, start_from_data)
        self.bins = check_bins(bins, self.owner)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        mean, *raw = self.mean(z, y)
        scale = self._scale(mean, *raw)
        if self.learn != "datum":  # the same for all data: its logarithm is taken once
            scale = scale[tuple(slice(1) for _ in z.shape[:-1])]
        return distributions.DiscretizedLogistic(mean, scale.log(), self.bins).to_event(mean.dim() - z.dim() + 1)


class DiscretizedLogisticMixture(_Pixels):
    r"""Independent pixels on a grid, each from a mixture of discretized logistics.

    .. math::
        P(x_i | z) = \sum_{m=1}^M \pi_{im}(z) \, \mathrm{DL}(x_i; \mu_{im}(z), s_{im}(z)),

    where DL is the density of `DiscretizedLogistic`: the total mass over the levels is 1 for all parameters. Three
    values per component and pixel mean 3M times the outputs, and M times the time. Pixels are independent given z, and
    so are channels: PixelCNN++ puts the dependence of one channel on the others into its means; here it is left out.

    Args:
        network: Maps z to 3M values per pixel: the logits of the weights, the means (relative to M points spread over
            a unit), the scales; ``MLP()`` by default.
        num_components: The number M of components.
        bins: The number n of levels; the data are k/(n-1), 256 for 8-bit pixels.
        scale: The initial scale of all components, in units of x.
        floor: The smallest scale, in units of x; see `DiscretizedLogistic`.
        start_from_data: Start the mean of the equally weighted components at that of the training data.

    Raises:
        ValueError: If an argument is out of range, or there are no training data to start from.

    Reference:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications
        (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Example:
        >>> likelihood = DiscretizedLogisticMixture(nn.Linear(2, 64 * 6), num_components=2)
        >>> likelihood(torch.zeros(5, 2)).event_shape
        torch.Size([64])
    """

    spread: Tensor

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        num_components: int = 5,
        bins: int = 256,
        scale: float = 0.1,
        floor: float = 2e-4,
        start_from_data: bool = False,
    ) -> None:
        super().__init__(start_from_data)
        name = self.owner
        self.num_components = check_positive_int(num_components, f"{name}: num_components")
        self.bins = check_bins(bins, name)
        self.floor = check_positive(floor, f"{name}: floor")
        if check_positive(scale, f"{name}: scale") <= floor:
            raise ValueError(f"{name}: scale is {scale!r}, not above the floor {floor!r}; raise it, or lower the floor")
        self.start = inverse_softplus(scale - floor)
        self.mixture = ParameterNetwork(network, name, count=3 * num_components)
        spread = (torch.arange(num_components) + 0.5) / num_components - 0.5  # or all would start the same
        self.register_buffer("spread", spread, persistent=False)

    def _start(self, binding: Binding) -> None:
        m, mean = self.num_components, binding.data_mean(self.owner)
        self.mixture.start_at(*[torch.zeros(())] * m, *[mean] * m, *[None] * m)

    def _pixels(self, *raw: Tensor) -> Any:
        m = self.num_components
        logits, means, scales = (torch.stack(raw[i : i + m], -1) for i in (0, m, 2 * m))  # (*batch, *x_shape, M)
        log_scales = (softplus(scales + self.start) + self.floor).log()
        return distributions.DiscretizedLogisticMixture(logits, means + self.spread, log_scales, self.bins)


class Categorical(_Pixels):
    r"""Independent pixels on a grid, each with a free probability for every level.

    .. math::
        P\Big(x_i = \frac{k}{n - 1} \,\Big|\, z\Big) = \frac{e^{\ell_{ik}(z)}}{\sum_j e^{\ell_{ij}(z)}}.

    It can take any form, but knows nothing of the order of the levels: what it learns about level 100 says nothing
    about level 101. With 256 levels it therefore needs many data, where `DiscretizedLogisticMixture` needs fewer. It
    is also large: K particles of a batch of B data with D pixels take K B D n logits, several times over while
    training (784 pixels, 256 levels, a batch of 100: 80 MB a copy). The last layer of the network has D n outputs.

    Args:
        network: Maps z to n logits per pixel; ``MLP()`` by default.
        bins: The number n of levels; the data are k/(n-1), 256 for 8-bit pixels.
        start_from_data: Start the probabilities at the histograms of the pixels in up to 10000 training data, with one
            extra count spread evenly.

    Raises:
        ValueError: For fewer than two bins, or without training data to start from.

    Reference:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), https://arxiv.org/abs/1601.06759

    Example:
        >>> likelihood = Categorical(nn.Linear(2, 64 * 17), bins=17)
        >>> likelihood(torch.zeros(5, 2)).event_shape
        torch.Size([64])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        bins: int = 256,
        start_from_data: bool = False,
    ) -> None:
        super().__init__(start_from_data)
        self.bins = check_bins(bins, self.owner)
        self.logits = ParameterNetwork(network, self.owner, count=bins)

    def _pixels(self, *logits: Tensor) -> Any:
        return GridCategorical(torch.stack(logits, -1))  # (*batch, *x_shape, n)

    def _start(self, binding: Binding) -> None:
        """Start at the histograms of the pixels."""
        x = binding.rows(min(_ROWS, len(binding.train or ()) or _ROWS), self.owner)
        level = (x * (self.bins - 1)).round()
        counts = [(level == k).sum(0) for k in range(self.bins)]
        self.logits.start_at(*[(count + 1 / self.bins) / (len(x) + 1) for count in counts], link=torch.log)
