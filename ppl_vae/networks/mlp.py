r"""Multi-layer perceptrons, plain and with gates."""

from __future__ import annotations

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
    perceptron,
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
        return nn.Sequential(*perceptron(in_shape, out_shape, self.hidden, self.init, self._layer))

    def _layer(self, width: int, units: int) -> list[nn.Module]:
        layers = [linear(width, units, self.init), *normalisation(units, self.batch_norm, self.layer_norm)]
        return [*layers, *activations(self.activation), *dropouts(self.dropout)]


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
        return nn.Sequential(*perceptron(in_shape, out_shape, self.hidden, self.init, self._layer))

    def _layer(self, width: int, units: int) -> list[nn.Module]:
        # A above C in one matrix: one product in place of two
        return [linear(width, 2 * units, self.init), nn.GLU(dim=1), *dropouts(self.dropout)]
