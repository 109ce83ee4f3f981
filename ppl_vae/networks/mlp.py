r"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from ppl_vae._validation import check_choice, check_positive_int
from ppl_vae.networks.binding import Shape

Activation = Literal["softplus", "relu", "sigmoid", "tanh", "none"]
Init = Literal["he_normal", "torch"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


@dataclass(frozen=True)
class MLP:
    r"""A factory of multi-layer perceptrons, with the options of the article's program.

    .. math::
        h_0 = \mathrm{flatten}(x), \qquad h_l = a(\mathrm{BN}(W_l h_{l-1} + b_l)), \qquad
        y = W_{L+1} h_L + b_{L+1}.

    The last layer is linear. Slow to start with sigmoids in deep stacks (gradients vanish under ``he_normal``, which is
    derived for rectifiers); batch normalisation makes data of one batch depend on each other while training, and
    needs batches of at least two.

    Args:
        hidden: Widths of the hidden layers; empty for a linear network.
        activation: ``a``: ``"softplus"`` (the article's), ``"relu"``, ``"sigmoid"``, ``"tanh"`` or ``"none"``.
        batch_norm: Normalise each hidden layer before its activation, running statistics with decay 0.9 and
            :math:`\epsilon = 10^{-3}` (the article's).
        init: ``"he_normal"``: weights *and* biases from :math:`\mathcal N(0, 2 / \text{fan-in})`, as in the article;
            ``"torch"``: PyTorch's default for `torch.nn.Linear`.

    Raises:
        ValueError: For widths that are no list, a width below one, or an unknown activation or initialisation.

    Reference:
        Delving Deep into Rectifiers (He et al., 2015), https://arxiv.org/abs/1502.01852

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

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, Sequence):
            raise ValueError(f"MLP: hidden is {self.hidden!r}; expected a list of widths such as [300, 150]")
        for i, width in enumerate(self.hidden):
            check_positive_int(width, f"MLP: hidden[{i}]")
        check_choice(self.activation, get_args(Activation), "MLP: activation")
        check_choice(self.init, get_args(Init), "MLP: init")

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return the network for these sizes, freshly initialised from torch's global generator."""
        layers: list[nn.Module] = [nn.Flatten()] if len(in_shape) != 1 else []
        width = math.prod(in_shape)
        for hidden in self.hidden:
            layers.append(self._linear(width, hidden))
            if self.batch_norm:
                layers.append(nn.BatchNorm1d(hidden, momentum=0.1, eps=1e-3))
            if self.activation != "none":
                layers.append(_ACTIVATIONS[self.activation]())
            width = hidden
        layers.append(self._linear(width, math.prod(out_shape)))
        if len(out_shape) != 1:
            layers.append(nn.Unflatten(1, out_shape))
        return nn.Sequential(*layers)

    def _linear(self, fan_in: int, fan_out: int) -> nn.Linear:
        layer = nn.Linear(fan_in, fan_out)
        if self.init == "he_normal":
            nn.init.normal_(layer.weight, std=math.sqrt(2.0 / fan_in))
            nn.init.normal_(layer.bias, std=math.sqrt(2.0 / fan_in))
        return layer
