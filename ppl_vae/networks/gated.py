r"""Multi-layer perceptrons with gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ppl_vae.networks.binding import Shape
from ppl_vae.networks.layers import Init, check_options, check_sizes, dropouts, linear


@dataclass(frozen=True)
class GatedMLP:
    r"""A factory of multi-layer perceptrons whose units are products of a linear map and a gate.

    .. math::
        h_0 = \mathrm{flatten}(x), \qquad h_l = (A_l h_{l-1} + b_l) \odot \sigma(C_l h_{l-1} + d_l), \qquad
        y = W h_L + w.

    The linear half passes gradients where a rectifier or a sigmoid would stop them. The VampPrior paper uses these
    hidden layers (there 300 and 300). They take twice the parameters and the time of an `MLP` of the same widths. They
    are not bounded: each layer grows like its input where the gates are open, and products of layers grow like a
    polynomial, so inputs far outside the training data give extreme parameters. With `dropout` each pass draws new
    masks while training: an objective that runs the posterior twice a step sees two different posteriors.

    Args:
        hidden: Widths of the hidden layers; empty for a linear network.
        init: ``"he_normal"``: weights *and* biases from :math:`\mathcal N(0, 2 / \text{fan-in})`, as in `MLP`;
            ``"torch"``: PyTorch's default for `torch.nn.Linear`.
        dropout: Probability with which a hidden unit is set to zero while training.

    Raises:
        ValueError: For widths that are not a list, a width below one, an unknown initialisation, or a `dropout` outside
            [0, 1).

    Reference:
        Language Modeling with Gated Convolutional Networks (Dauphin et al., 2017), https://arxiv.org/abs/1612.08083;
        VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120

    Example:
        >>> import torch
        >>> network = GatedMLP([300, 300])((1, 28, 28), (80,))
        >>> network(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 80])
    """

    hidden: Sequence[int] = (300, 300)
    init: Init = "he_normal"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self.hidden, "GatedMLP: hidden", "widths such as [300, 300]")
        check_options("GatedMLP", "none", self.init, self.dropout, False, False)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return the network for these sizes, freshly initialised from torch's global generator."""
        layers: list[nn.Module] = [nn.Flatten()] if len(in_shape) != 1 else []
        width = math.prod(in_shape)
        for hidden in self.hidden:
            # A above C in one matrix: one product in place of two
            layers += [linear(width, 2 * hidden, self.init), nn.GLU(dim=1), *dropouts(self.dropout)]
            width = hidden
        layers.append(linear(width, math.prod(out_shape), self.init))
        if len(out_shape) != 1:
            layers.append(nn.Unflatten(1, out_shape))
        return nn.Sequential(*layers)
