r"""Neural networks for the pieces, and the joint between a network and a distribution.

A *network* is either a factory ``(in_shape, out_shape) -> nn.Module``, so that its sizes follow from the data, or a
ready-made ``nn.Module`` of the right sizes. Whatever it is, it only ever sees ``(n, *in_shape)``: extra leading
dimensions (particles) are flattened around it by `ParameterNetwork`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae._validation import check_choice, check_positive_int

Shape = tuple[int, ...]
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
class Binding:
    """What a piece may learn when a VAE is put together, handed to its optional method ``bind(binding)``.

    Attributes:
        x_shape: Shape of one datum.
        latent_shape: Event shape of the prior.
    """

    x_shape: Shape
    latent_shape: Shape


class NetworkFactory(Protocol):
    """Anything that makes a network once the sizes are known."""

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return a module that maps ``(n, *in_shape)`` to ``(n, *out_shape)``."""
        ...


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


class ParameterNetwork(nn.Module):
    r"""The parameters of a distribution over ``event_shape``, computed by a network.

    Maps ``(*batch, *in_shape)`` to `count` tensors of shape ``(*batch, *event_shape)``. The network's output has shape
    ``(count * event_shape[0], *event_shape[1:])``: twice the channels for a mean and a scale per pixel. All batch
    dimensions are flattened into one around the network, so that no network ever sees the particles' dimension.

    Args:
        network: A `NetworkFactory`, built by `build` once the sizes are known, or a ready-made ``nn.Module``. A factory
            is called once: to share weights between two pieces, hand both the same module.
        owner: The piece it belongs to, for messages, e.g. ``"likelihood Bernoulli"``.
        count: Parameters per dimension of the event.

    Raises:
        TypeError: If `network` is neither.

    Example:
        >>> parameters = ParameterNetwork(MLP([16]), "likelihood Mine", count=2)
        >>> parameters.build((2,), (1, 8, 8))
        >>> [p.shape for p in parameters(torch.zeros(5, 3, 2))]  # 5 particles of 3 data
        [torch.Size([5, 3, 1, 8, 8]), torch.Size([5, 3, 1, 8, 8])]
    """

    def __init__(self, network: NetworkFactory | nn.Module, owner: str, count: int = 1) -> None:
        super().__init__()
        if isinstance(network, type) or not callable(network):
            raise TypeError(
                f"{owner}: network is {network!r}; expected an nn.Module or a factory "
                "(in_shape, out_shape) -> nn.Module such as networks.MLP([300, 150])"
            )
        self.owner = owner
        self.count = count
        self.in_shape: Shape | None = None
        self.event_shape: Shape | None = None
        self._factory = None if isinstance(network, nn.Module) else network
        self.network = network if isinstance(network, nn.Module) else None

    def build(self, in_shape: Shape, event_shape: Shape) -> None:
        """Make the network for these sizes, or check that a ready-made one fits them.

        Raises:
            ValueError: If it was built for other sizes before, or its input or output does not fit.
        """
        if self.in_shape is not None:
            if (self.in_shape, self.event_shape) == (in_shape, event_shape) and self._factory is None:
                return
            raise ValueError(
                f"{self.owner} already belongs to a VAE (its network maps {self.in_shape} to {self.event_shape}): "
                "make a new piece for each VAE, or hand both the same nn.Module to share its weights"
            )
        out_shape = (self.count * event_shape[0], *event_shape[1:])
        if self._factory is not None:
            network = self._factory(in_shape, out_shape)
            if not isinstance(network, nn.Module):
                raise TypeError(
                    f"{self.owner}: the network factory {self._factory!r} returned {type(network).__name__}; "
                    "expected an nn.Module"
                )
        else:
            network = cast(nn.Module, self.network)
        _check_fit(network, in_shape, out_shape, self.owner)
        self.network, self.in_shape, self.event_shape = network, in_shape, event_shape

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the `count` parameters, each of shape ``(*batch, *event_shape)``.

        Raises:
            RuntimeError: If it has no sizes yet.
            ValueError: If `inputs` end in another shape than ``in_shape``: flattened or transposed data of the same
                number of values would otherwise pass through an `MLP`, and be broadcast against x in silence.
        """
        if self.network is None:
            raise RuntimeError(
                f"{self.owner} has no sizes yet: put it into a VAE, or give it a ready-made nn.Module as its network"
            )
        in_dim = 1 if self.in_shape is None else len(self.in_shape)
        if self.in_shape is not None and inputs.shape[-in_dim:] != self.in_shape:
            raise ValueError(
                f"{self.owner} was given an input of shape {tuple(inputs.shape)}; expected {self.in_shape} as its last "
                "dimensions, after those of the batch"
            )
        batch_shape = inputs.shape[: inputs.dim() - in_dim]
        if len(batch_shape) == 1:
            outputs = self.network(inputs)
        else:
            outputs = self.network(inputs.reshape(-1, *inputs.shape[len(batch_shape) :]))
            outputs = outputs.reshape(*batch_shape, *outputs.shape[1:])
        if self.count == 1:
            return (outputs,)
        return outputs.chunk(self.count, dim=len(batch_shape))


def _check_fit(network: nn.Module, in_shape: Shape, out_shape: Shape, owner: str) -> None:
    """Run two zeros through the network, without moving its statistics or the random state."""
    first = next(network.parameters(), torch.empty(0))
    zeros = torch.zeros(2, *in_shape, device=first.device, dtype=first.dtype)
    try:
        with torch.no_grad(), untouched_random_state(), evaluation_mode(network):
            outputs = network(zeros)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{owner}: its network does not take an input of shape {in_shape} per datum ({reason}); "
            "expected a network for this input, or a factory such as networks.MLP([300, 150])"
        ) from error
    shape = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else type(outputs).__name__
    if shape != out_shape:
        raise ValueError(
            f"{owner}: its network maps {in_shape} to {shape} per datum; expected {out_shape}, "
            "or a factory such as networks.MLP([300, 150]) that takes its sizes from the data"
        )
