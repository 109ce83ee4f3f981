r"""The joint between a network and a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from ppl_vae._recorded import Recorded
from ppl_vae._scopes import evaluation_mode, seeded, untouched_random_state
from ppl_vae._words import first_line
from ppl_vae.networks.binding import Shape
from ppl_vae.networks.mlp import MLP


class NetworkFactory(Protocol):
    """A callable that makes a network once the sizes are known."""

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return a module that maps ``(n, *in_shape)`` to ``(n, *out_shape)``."""
        ...


class ParameterNetwork(Recorded):
    r"""The parameters of a distribution over ``event_shape``, computed by a network.

    It maps ``(*batch, *in_shape)`` to `count` tensors of shape ``(*batch, *event_shape)``. The network's output has
    shape ``(count * event_shape[0], *event_shape[1:])``: twice the channels for a mean and a scale per pixel. All batch
    dimensions are flattened into one around the network, so no network ever sees the particle dimension.

    A condition y is joined to the input. It comes behind the flattened input or, for a factory with ``spatial = True``
    and images, behind the channels as constant planes.

    Args:
        network: A `NetworkFactory`, which `build` calls once the sizes are known, or a ready-made ``nn.Module``; None
            for ``MLP()``. A factory is called once: to share weights between two pieces, hand both the same module.
        owner: The piece that it belongs to, for error messages, e.g. ``"likelihood Bernoulli"``.
        count: The number of parameters per dimension of the event.

    Raises:
        TypeError: If `network` is neither of these.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> parameters = ParameterNetwork(MLP([16]), "likelihood Mine", count=2)
        >>> parameters.build((2,), (1, 8, 8))
        >>> [p.shape for p in parameters(torch.zeros(5, 3, 2))]  # 5 particles of 3 data
        [torch.Size([5, 3, 1, 8, 8]), torch.Size([5, 3, 1, 8, 8])]
    """

    def __init__(self, network: NetworkFactory | nn.Module | None, owner: str, count: int = 1) -> None:
        super().__init__()
        network = MLP() if network is None else network
        if isinstance(network, type) or not callable(network):
            raise TypeError(
                f"{owner}: network is {network!r}; expected an nn.Module or a factory "
                "(in_shape, out_shape) -> nn.Module such as networks.MLP([300, 150])"
            )
        self.owner = owner
        self.count = count
        self.in_shape: Shape | None = None
        self.event_shape: Shape | None = None
        self.y_shape: Shape | None = None
        self.spatial = bool(getattr(network, "spatial", False))
        self._factory = None if isinstance(network, nn.Module) else network
        self.network = network if isinstance(network, nn.Module) else None

    def build(self, in_shape: Shape, event_shape: Shape, y_shape: Shape | None = None) -> None:
        """Make the network for these sizes, or check that a ready-made one fits them.

        Args:
            in_shape: Shape of one input: x_shape or latent_shape.
            event_shape: Shape of one parameter.
            y_shape: Shape of the condition, ``(k,)``, if there is one.

        Raises:
            ValueError: If it was built before (a ready-made network: for other sizes), or its input or output does not
                fit.
        """
        sizes = (in_shape, event_shape, y_shape)
        if self.in_shape is not None:
            if (self.in_shape, self.event_shape, self.y_shape) == sizes and self._factory is None:
                return
            raise ValueError(
                f"{self.owner} already belongs to a VAE (its network maps {self.in_shape} to {self.event_shape}): "
                "make a new piece for each VAE, or hand both the same nn.Module to share its weights"
            )
        joined = in_shape if y_shape is None else self._joined_shape(in_shape, y_shape)
        out_shape = (self.count * event_shape[0], *event_shape[1:])
        network = self.network if self._factory is None else self._factory(joined, out_shape)
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"{self.owner}: the network factory {self._factory!r} returned {type(network).__name__}; "
                "expected an nn.Module"
            )
        _check_fit(network, joined, out_shape, self.owner)
        self.network = network
        self.in_shape, self.event_shape, self.y_shape = sizes

    @torch.no_grad()
    def start_at(self, *values: Tensor | None, link: Callable[[Tensor], Tensor] | None = None) -> None:
        r"""Set the bias of the network's last layer, so that the parameters start around these values.

        The last layer keeps its weights, so these values come out where its input is zero. A convolution has one bias
        per channel, which gets the mean over places. This mean is taken before `link`, since the mean of logits over
        dark margins and bright middles is far below the logit of the mean.

        Args:
            *values: For each of the `count` parameters a tensor of ``event_shape`` (or one that broadcasts to it), or
                None to leave it.
            link: Maps the values to parameters, e.g. ``torch.logit`` for probabilities; None if they are parameters.

        Raises:
            RuntimeError: If the network has no sizes yet.
            ValueError: If the last layer that has parameters has no bias for every output value or channel, or if a
                change of that bias does not reach the output as it is (an activation or another layer comes behind).
        """
        if self.network is None or self.in_shape is None or self.event_shape is None:
            raise RuntimeError(f"{self.owner} has no sizes yet: put it into a VAE")
        last = _last_layer(self.network)
        bias = getattr(last, "bias", None)
        channels, places = self.event_shape[0], math.prod(self.event_shape[1:])
        per_value = bias is not None and bias.numel() == self.count * channels * places
        if bias is None or not (per_value or bias.numel() == self.count * channels):
            raise ValueError(
                f"{self.owner}: the last layer of its network has no bias for each output to start from the data; end "
                "the network in a linear layer or a convolution with bias, or leave the start as it is"
            )
        self._check_bias_is_added(bias, type(last).__name__)
        parts = bias.view(self.count, channels, -1)
        for part, value in zip(parts, values, strict=True):
            if value is not None:
                value = value.expand(self.event_shape).reshape(channels, -1)
                value = value if per_value else value.mean(-1, keepdim=True)
                part.copy_(value if link is None else link(value))

    def _check_bias_is_added(self, bias: Tensor, layer: str) -> None:
        """Refuse a bias that does not reach the outputs as it is, moved up or down beyond all outputs, which differ.

        Modules are listed in the order in which they were made: the last one need not be the one that runs last.
        """
        before, outputs = bias.clone(), self._probe()
        move = torch.linspace(1, 2, bias.numel()).to(bias) * (1 + 2 * outputs.abs().max())
        each = bias.numel() == outputs[0].numel()  # else one for a channel
        of_outputs = move.view(outputs.shape[1:] if each else (-1, *[1] * (outputs.dim() - 2)))
        tolerance = 1e-4 * move[-1].item()
        added = True
        for sign in (-1, 1):
            bias.copy_(before + sign * move)
            added = added and torch.allclose(self._probe(), outputs + sign * of_outputs, rtol=1e-4, atol=tolerance)
        bias.copy_(before)
        if not added:
            raise ValueError(
                f"{self.owner}: the bias of {layer}, the last layer made for its network, is not added to the outputs, "
                "so that they cannot start from the data; end the network in that layer, without activation, and make "
                "it last, or leave the start as it is"
            )

    @torch.no_grad()
    def start_small(self, first: int, share: float) -> None:
        """Multiply the initial outputs from number `first` on by `share`.

        Only a network that its factory has just made and that ends in a linear layer changes; any other stays as it is.

        Args:
            first: The number of the first of these outputs, of a flat event.
            share: The factor of the last layer's weights and biases for these outputs.
        """
        last = _last_layer(cast(nn.Module, self.network))
        if self._factory is None or not isinstance(last, nn.Linear):
            return
        before = self._probe()
        rows = [parameter[first:] for parameter in last.parameters(recurse=False)]
        for row in rows:
            row.mul_(share)
        expected = torch.cat([before[:, :first], share * before[:, first:]], -1)
        if not torch.allclose(self._probe(), expected, rtol=1e-4, atol=1e-4 * before.abs().max().item()):
            for row in rows:
                row.div_(share)

    def forward(self, inputs: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the `count` parameters, each of shape ``(*batch, *event_shape)``.

        Args:
            inputs: ``(*batch, *in_shape)``.
            y: The condition, ``(*batch, k)`` or what broadcasts to it, if the network was built with one.

        Raises:
            RuntimeError: If the network has no sizes yet.
            ValueError: If `inputs` do not end in ``in_shape``, or `y` not in ``y_shape``. Flattened or transposed data
                with the same number of values would otherwise pass through an `MLP`, and be broadcast against x in
                silence.
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
        if y is not None or self.y_shape is not None:
            inputs = self._join(inputs, y, batch_shape)
        outputs = self.network(inputs.reshape(-1, *inputs.shape[len(batch_shape) :]))
        outputs = outputs.reshape(*batch_shape, *outputs.shape[1:])
        if outputs.dtype in (torch.bfloat16, torch.float16):  # under autocast; densities keep 24 bits
            outputs = outputs.to(inputs.dtype)
        if self.count == 1:
            return (outputs,)
        return outputs.chunk(self.count, dim=len(batch_shape))

    def _probe(self) -> Tensor:
        """Return the network's outputs at two fixed inputs, (2, *out_shape)."""
        network, in_shape = cast(nn.Module, self.network), cast(Shape, self.in_shape)
        like = next(network.parameters())
        shape = in_shape if self.y_shape is None else self._joined_shape(in_shape, self.y_shape)
        with seeded(0), evaluation_mode(network):
            return network(torch.randn(2, *shape).to(like))

    def _joined_shape(self, in_shape: Shape, y_shape: Shape) -> Shape:
        (k,) = y_shape
        if self.spatial and len(in_shape) == 3:
            return (in_shape[0] + k, *in_shape[1:])
        return (math.prod(in_shape) + k,)

    def _join(self, inputs: Tensor, y: Tensor | None, batch_shape: Shape) -> Tensor:
        if y is None or self.y_shape is None or y.shape[-1:] != self.y_shape:
            given = "no y" if y is None else f"y of shape {tuple(y.shape)}"
            expected = "none" if self.y_shape is None else f"{self.y_shape} as its last dimension"
            raise ValueError(f"{self.owner} was given {given}; expected {expected}")
        y = y.to(inputs.dtype).expand(*batch_shape, *self.y_shape)
        if self.spatial and len(cast(Shape, self.in_shape)) == 3:
            planes = y[..., None, None].expand(*y.shape, *inputs.shape[-2:])
            return torch.cat([inputs, planes], -3)
        return torch.cat([inputs.flatten(len(batch_shape)), y], -1)


class _NetworkPiece(Recorded):
    """The base class of the package's pieces with one `ParameterNetwork`, under any name.

    Attributes:
        owner: The piece, for error messages, ``"likelihood Bernoulli"``.
    """

    _role: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.owner = f"{self._role} {type(self).__name__}"

    @property
    def _network(self) -> ParameterNetwork:
        return next(child for child in self.children() if isinstance(child, ParameterNetwork))


def _last_layer(network: nn.Module) -> nn.Module | None:
    """Return the module that was made last of those with parameters of their own."""
    owners = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    return owners[-1] if owners else None


def _check_fit(network: nn.Module, in_shape: Shape, out_shape: Shape, owner: str) -> None:
    """Check the network's shapes on two zero inputs, without changing its statistics or the random state."""
    first = next(network.parameters(), torch.empty(0))
    zeros = torch.zeros(2, *in_shape, device=first.device, dtype=first.dtype)
    try:
        with torch.no_grad(), untouched_random_state(), evaluation_mode(network):
            outputs = network(zeros)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = first_line(error)
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
