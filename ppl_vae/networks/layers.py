r"""Parts of the networks: activations, initial weights, normalisation, and the base class of image networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, get_args

from torch import nn

from ppl_vae._validation import check_choice, check_positive_int, is_real
from ppl_vae.networks.binding import Shape

Activation = Literal["softplus", "relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "none"]
Init = Literal["he_normal", "torch"]
Size = tuple[int, int]  # height and width
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
_MOMENTUM, _EPS = 0.1, 1e-3  # of batch normalisation: the article's


def check_sizes(values: object, name: str, example: str) -> None:
    """Raise if `values` is not a list of positive integers."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{name} is {values!r}; expected a list of {example}")
    for i, value in enumerate(values):
        check_positive_int(value, f"{name}[{i}]")


def check_options(owner: str, activation: str, init: str, dropout: float, batch_norm: bool, layer_norm: bool) -> None:
    """Raise if an option that the networks share is unknown or out of range, or if two exclude each other."""
    check_choice(activation, get_args(Activation), f"{owner}: activation")
    check_choice(init, get_args(Init), f"{owner}: init")
    if not is_real(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"{owner}: dropout is {dropout!r}; expected a probability from 0 up to, not including, 1")
    if batch_norm and layer_norm:
        raise ValueError(f"{owner}: batch_norm and layer_norm are both set; expected one normalisation, so drop one")


def initialise(layer: Layer, init: Init, gain: float = 2.0) -> Layer:
    """Draw weights and biases from N(0, gain / fan-in) under ``"he_normal"``; leave PyTorch's own under ``"torch"``."""
    if init == "he_normal":
        std = math.sqrt(gain / layer.weight[0].numel())
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.normal_(layer.bias, std=std)
    return layer


def linear(fan_in: int, fan_out: int, init: Init, bias: bool = True) -> nn.Linear:
    """Return an initialised linear layer."""
    return initialise(nn.Linear(fan_in, fan_out, bias=bias), init)


def activations(name: Activation) -> list[nn.Module]:
    """Return the activation, or nothing for ``"none"``."""
    return [] if name == "none" else [_ACTIVATIONS[name]()]


def normalisation(width: int, batch_norm: bool, layer_norm: bool, images: bool = False) -> list[nn.Module]:
    """Return the normalisation of a vector or, for images, of `width` channels; nothing if neither is set."""
    if batch_norm:
        return [(nn.BatchNorm2d if images else nn.BatchNorm1d)(width, momentum=_MOMENTUM, eps=_EPS)]
    if layer_norm:  # of an image: over channels and places, as one group
        return [nn.GroupNorm(1, width) if images else nn.LayerNorm(width)]
    return []


def dropouts(rate: float, images: bool = False) -> list[nn.Module]:
    """Return dropout of single units or, for images, of whole channels; nothing at rate 0."""
    return [] if rate == 0 else [nn.Dropout2d(rate) if images else nn.Dropout(rate)]


def perceptron(
    in_shape: Shape, out_shape: Shape, hidden: Sequence[int], init: Init, layer: Callable[[int, int], list[nn.Module]]
) -> list[nn.Module]:
    """Return ``layer(width, units)`` for each hidden width, and a linear layer; inputs and outputs have any shape."""
    layers: list[nn.Module] = [nn.Flatten()] if len(in_shape) != 1 else []
    width = math.prod(in_shape)
    for units in hidden:
        layers += layer(width, units)
        width = units
    layers.append(linear(width, math.prod(out_shape), init))
    return layers if len(out_shape) == 1 else [*layers, nn.Unflatten(1, out_shape)]


@dataclass(frozen=True)
class _ImageNetwork:
    """The base class of convolutional networks: convolutions at each end that is an image, linear layers between.

    A stage halves the image, rounding up. A decoder goes back through the same sizes, and so restores height and width
    exactly.
    """

    channels: Sequence[int] = (32, 64)
    hidden: Sequence[int] = (256,)
    kernel: int = 3
    activation: Activation = "relu"
    batch_norm: bool = False
    layer_norm: bool = False
    dropout: float = 0.0
    init: Init = "he_normal"

    spatial: ClassVar[bool] = True  # `ParameterNetwork` then joins labels as planes

    def __post_init__(self) -> None:
        check_sizes(self.channels, f"{self._name}: channels", "numbers of channels such as [32, 64]")
        check_sizes(self.hidden, f"{self._name}: hidden", "widths such as [256]")
        if not self.channels:
            raise ValueError(f"{self._name}: channels is empty; expected one entry for each halving, or use MLP")
        check_positive_int(self.kernel, f"{self._name}: kernel")
        if self.kernel < 3 or self.kernel % 2 == 0:  # an even one has no centre; 1 at stride 2 skips pixels
            raise ValueError(f"{self._name}: kernel is {self.kernel}; expected an odd number of at least 3")
        check_options(self._name, self.activation, self.init, self.dropout, self.batch_norm, self.layer_norm)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return the network for these sizes, freshly initialised from torch's global generator.

        Raises:
            ValueError: If neither is an image.
        """
        if len(in_shape) != 3 and len(out_shape) != 3:
            raise ValueError(
                f"{self._name}: neither its input {in_shape} nor its output {out_shape} is an image (channels, height, "
                "width); use MLP, or give pictures without channels the shape (1, height, width)"
            )
        layers: list[nn.Module] = []
        hidden = list(self.hidden)
        if len(in_shape) == 3:
            sizes = self._sizes(in_shape)
            layers += [*self._encoder(in_shape[0], sizes), nn.Flatten()]
            in_shape = (self.channels[-1] * math.prod(sizes[-1]),)
        else:
            hidden.reverse()
        if len(out_shape) != 3:
            return nn.Sequential(*layers, *perceptron(in_shape, out_shape, hidden, self.init, self._layer))
        sizes = self._sizes(out_shape)
        layers += perceptron(in_shape, (self.channels[-1], *sizes[-1]), hidden, self.init, self._layer)
        return nn.Sequential(*layers, *self._decoder(out_shape[0], sizes))

    def _layer(self, width: int, units: int) -> list[nn.Module]:
        layer = linear(width, units, self.init, not self.batch_norm)
        return [layer, *self._activated(units, images=False), *dropouts(self.dropout)]

    def _encoder(self, in_channels: int, sizes: list[Size]) -> list[nn.Module]:
        """Return the layers from an image of ``sizes[0]`` to ``channels[-1]`` maps of ``sizes[-1]``."""
        raise NotImplementedError

    def _decoder(self, out_channels: int, sizes: list[Size]) -> list[nn.Module]:
        """Return the layers from ``channels[-1]`` maps of ``sizes[-1]``, not activated, to an image of ``sizes[0]``."""
        raise NotImplementedError

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _sizes(self, shape: Shape) -> list[Size]:
        """Return height and width before and after each stage; a 1 stays 1."""
        sizes = [(shape[1], shape[2])]
        for _ in self.channels:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        return sizes

    def _convolution(
        self, fan_in: int, fan_out: int, size: Size, stride: int = 1, bias: bool = False, gain: float = 2.0
    ) -> nn.Conv2d:
        """Return a padded convolution for an image of this size.

        Unless `bias` is set it has no bias before batch normalisation, which would cancel it. Along a dimension of size
        1 the kernel is 1: the rest of it would only ever meet the padding.
        """
        kernel = (1 if size[0] == 1 else self.kernel, 1 if size[1] == 1 else self.kernel)
        padding = (kernel[0] // 2, kernel[1] // 2)
        layer = nn.Conv2d(fan_in, fan_out, kernel, stride, padding, bias=bias or not self.batch_norm)
        return initialise(layer, self.init, gain)

    def _activated(self, width: int, images: bool = True) -> list[nn.Module]:
        """Return normalisation and activation."""
        return [*normalisation(width, self.batch_norm, self.layer_norm, images), *activations(self.activation)]
