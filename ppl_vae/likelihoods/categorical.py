r"""The categorical likelihood of pixels on a grid."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions.grid import check_bins
from ppl_vae.distributions.grid_categorical import GridCategorical
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork

_ROWS = 10_000  # the most training data whose histograms give the start


class Categorical(nn.Module):
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
        super().__init__()
        self.bins = check_bins(bins, "likelihood Categorical")
        self.start_from_data = start_from_data
        self.logits = ParameterNetwork(MLP() if network is None else network, "likelihood Categorical", count=bins)

    def bind(self, binding: Binding) -> None:
        """Size the network, and start from the data if asked to."""
        self.logits.build(binding.latent_shape, binding.x_shape, binding.y_shape)
        if self.start_from_data:
            self.logits.start_at(*self._histograms(binding), link=torch.log)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        logits = torch.stack(self.logits(z, y), -1)  # (*batch, *x_shape, n)
        return GridCategorical(logits).to_event(logits.dim() - z.dim())

    def _histograms(self, binding: Binding) -> list[Tensor]:
        x = binding.rows(min(_ROWS, len(binding.train or ()) or _ROWS), "likelihood Categorical")
        level = (x * (self.bins - 1)).round()
        counts = [(level == k).sum(0) for k in range(self.bins)]
        return [(count + 1 / self.bins) / (len(x) + 1) for count in counts]
