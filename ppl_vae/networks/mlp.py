r"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ppl_vae.networks.binding import Shape
from ppl_vae.networks.layers import (
    Activation,
    Init,
    activations,
    check_options,
    check_sizes,
    dropouts,
    linear,
    normalisation,
)


@dataclass(frozen=True)
class MLP:
    r"""A factory of multi-layer perceptrons, with the options of the article's program.

    .. math::
        h_0 = \mathrm{flatten}(x), \qquad h_l = a(\mathrm{N}(W_l h_{l-1} + b_l)), \qquad
        y = W_{L+1} h_L + b_{L+1}.

    N is the normalisation, if any, and the last layer is linear. Deep stacks of sigmoids are slow to start: gradients
    vanish under ``he_normal``, which is derived for rectifiers. Batch normalisation makes data of one batch depend on
    each other while training, and needs batches of at least two. With dropout, p(x|z) and q(z|x) are random functions
    while training, and the bound is that of networks with units missing. Each pass draws new masks: an objective that
    runs the posterior twice a step sees two different posteriors.

    Args:
        hidden: Widths of the hidden layers; empty for a linear network.
        activation: ``a`` is ``"softplus"`` (the article's), ``"relu"``, ``"leaky_relu"`` (slope 0.01 below zero),
            ``"elu"``, ``"gelu"``, ``"silu"``, ``"sigmoid"``, ``"tanh"`` or ``"none"``.
        batch_norm: Normalise each hidden layer before its activation; the running statistics have decay 0.9, and
            :math:`\epsilon = 10^{-3}` (the article's values).
        init: ``"he_normal"``: weights *and* biases from :math:`\mathcal N(0, 2 / \text{fan-in})`, as in the article;
            ``"torch"``: PyTorch's default for `torch.nn.Linear`.
        dropout: Probability with which a hidden unit is set to zero, after its activation, while training.
        layer_norm: Normalise each hidden layer before its activation over its own units, within each datum.

    Raises:
        ValueError: For widths that are not a list, a width below one, an unknown activation or initialisation, a
            `dropout` outside [0, 1), or two normalisations at once.

    Reference:
        Delving Deep into Rectifiers (He et al., 2015), https://arxiv.org/abs/1502.01852; Dropout (Srivastava et al.,
        2014), https://jmlr.org/papers/v15/srivastava14a.html; Layer Normalization (Ba, Kiros & Hinton, 2016),
        https://arxiv.org/abs/1607.06450

    Example:
        >>> import torch
        >>> network = MLP([300, 150])((1, 28, 28), (4,))
        >>> network(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 4])
    """

    hidden: Sequence[int] = (200, 200)
    activation: Activation = "softplus"
    batch_norm: bool = False
    init: Init = "he_normal"
    dropout: float = 0.0
    layer_norm: bool = False

    def __post_init__(self) -> None:
        check_sizes(self.hidden, "MLP: hidden", "widths such as [300, 150]")
        check_options("MLP", self.activation, self.init, self.dropout, self.batch_norm, self.layer_norm)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return the network for these sizes, freshly initialised from torch's global generator."""
        layers: list[nn.Module] = [nn.Flatten()] if len(in_shape) != 1 else []
        width = math.prod(in_shape)
        for hidden in self.hidden:
            layers += [linear(width, hidden, self.init), *normalisation(hidden, self.batch_norm, self.layer_norm)]
            layers += [*activations(self.activation), *dropouts(self.dropout)]
            width = hidden
        layers.append(linear(width, math.prod(out_shape), self.init))
        if len(out_shape) != 1:
            layers.append(nn.Unflatten(1, out_shape))
        return nn.Sequential(*layers)
