r"""The base class of likelihoods with a location and a scale."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._numbers import inverse_softplus
from ppl_vae._validation import check_choice, check_positive
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork

Learn = Literal["fixed", "global", "pixel", "datum"]


class LocationScale(nn.Module):
    r"""A location from a network, and a scale that is fixed, learned (one, or one per pixel) or computed from z.

    A learned scale is :math:`s = \text{floor} + \log(1 + e^r)`, where r is a parameter, or the network's second output
    plus a constant. It starts at `scale` (with ``learn="datum"``: where the network gives 0).

    Args:
        network: Maps z to one value per dimension of x, with ``learn="datum"`` to two; ``MLP()`` by default.
        scale: The scale; the initial value if it is learned.
        learn: Where the scale comes from.
        floor: The smallest learned scale.
        start_from_data: Start the location at the mean of the training data.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        scale: float = 1.0,
        learn: Learn = "fixed",
        floor: float = 1e-3,
        start_from_data: bool = False,
    ) -> None:
        super().__init__()
        self.owner = f"likelihood {type(self).__name__}"
        self.scale = check_positive(scale, f"{self.owner}: scale")
        check_choice(learn, get_args(Learn), f"{self.owner}: learn")
        self.learn = learn
        self.floor = check_positive(floor, f"{self.owner}: floor")
        if learn != "fixed" and self.scale <= self.floor:
            raise ValueError(
                f"{self.owner}: scale is {scale!r}, which is not above the floor {floor!r} of a learned scale; start "
                "above it, or lower the floor"
            )
        self.start_from_data = start_from_data
        count = 2 if learn == "datum" else 1
        self.mean = ParameterNetwork(MLP() if network is None else network, self.owner, count=count)
        self._start = 0.0 if learn == "fixed" else inverse_softplus(self.scale - self.floor)
        self.raw_scale: nn.Parameter | None = None
        if learn == "global":
            self.raw_scale = nn.Parameter(torch.tensor(self._start))

    def bind(self, binding: Binding) -> None:
        """Size the network and the scale."""
        self.mean.build(binding.latent_shape, binding.x_shape, binding.y_shape)
        if self.learn == "pixel" and self.raw_scale is None:
            like = next(self.mean.parameters(), torch.empty(0))
            start = torch.full(binding.x_shape, self._start, dtype=like.dtype, device=like.device)
            self.raw_scale = nn.Parameter(start)
        if self.start_from_data:
            self.mean.start_at(binding.data_mean(self.owner), *[None] * (self.mean.count - 1))

    def location_and_scale(self, z: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
        """Return location and scale, both ``(*z.shape[:-1], *x_shape)``, and the number of dimensions of x.

        Raises:
            RuntimeError: If the likelihood has no sizes yet.
        """
        location, *raw = self.mean(z, y)
        if self.learn == "fixed":
            scale = torch.full_like(location, self.scale)
        elif self.learn == "datum":
            scale = softplus(raw[0] + self._start) + self.floor
        elif self.raw_scale is None:
            raise RuntimeError(f"{self.owner} has no sizes yet: put it into a VAE")
        else:
            scale = (softplus(self.raw_scale) + self.floor).expand_as(location)
        return location, scale, location.dim() - z.dim() + 1
