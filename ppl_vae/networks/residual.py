r"""Residual convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ppl_vae._validation import check_positive_int
from ppl_vae.networks.layers import Size, _ImageNetwork, dropouts


class _Block(nn.Module):
    """The sum skip(x) + branch(x)."""

    def __init__(self, skip: list[nn.Module], branch: list[nn.Module]) -> None:
        super().__init__()
        self.skip = nn.Sequential(*skip)
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.branch(x)


@dataclass(frozen=True)
class ResidualConvolutional(_ImageNetwork):
    r"""A factory of residual convolutional encoders and decoders, which size themselves to the images.

    Where `Convolutional` has one convolution per halving, this network has `blocks` pre-activation residual blocks

    .. math::
        h_{l+1} = S h_l + W'_l * a(\mathrm{N}(W_l * a(\mathrm{N}(h_l)))),

    N is the normalisation, if any. S is the identity where neither the size nor the channels change. Where the size
    changes, S takes the mean over two by two places (encoder; at an odd edge over what there is) or repeats values
    (decoder). Where the channels change, S has a convolution of kernel 1. An encoder starts with a convolution at full
    size; a decoder ends in one, without activation. Sizes, images and labels are as in `Convolutional`, and the network
    shares its failures.

    It is slow: it takes several times the time of `Convolutional`, most of it at full height and width. It is of no use
    for shallow networks, which train as well without residual blocks. Under ``"he_normal"`` the variance of the last
    kernel of each block starts divided by the number of blocks. Without this the sum of L branches would grow with L;
    with it, the sum grows by e at most.

    Args:
        channels: Channels after each halving, from the image inwards (also for a decoder).
        hidden: Widths of the linear layers, from the image inwards; empty for none.
        kernel: Height and width of the kernels, odd, at least 3.
        activation: As in `MLP`.
        batch_norm: Normalise by the batch (over places too) before each activation, with the constants of `MLP`.
        layer_norm: Normalise within each datum (over channels and places) before each activation.
        dropout: Probability with which a channel within a block, or a unit of a linear layer, is set to zero while
            training.
        init: As in `Convolutional`; ``"torch"``: PyTorch's default throughout.
        blocks: Residual blocks per halving.

    Raises:
        ValueError: For options out of range, two normalisations at once; and, once the sizes are known, if neither
            input nor output is an image.

    Reference:
        Identity Mappings in Deep Residual Networks (He et al., 2016), https://arxiv.org/abs/1603.05027; Bag of Tricks
        for Image Classification with Convolutional Neural Networks (He et al., 2019, on pooling in the skip),
        https://arxiv.org/abs/1812.01187

    Example:
        >>> import torch
        >>> factory = ResidualConvolutional([8, 16], blocks=1)
        >>> factory((1, 28, 28), (4,))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 4])
        >>> factory((2,), (3, 9, 14))(torch.zeros(5, 2)).shape
        torch.Size([5, 3, 9, 14])
    """

    blocks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int(self.blocks, f"{self._name}: blocks")

    def _encoder(self, in_channels: int, sizes: list[Size]) -> list[nn.Module]:
        width = self.channels[0]
        layers: list[nn.Module] = [self._convolution(in_channels, width, sizes[0])]
        for before, after, channels in zip(sizes, sizes[1:], self.channels, strict=False):
            layers.append(self._block(width, channels, before, after))
            layers += [self._block(channels, channels, after, after) for _ in range(self.blocks - 1)]
            width = channels
        return [*layers, *self._activated(width), *dropouts(self.dropout, images=True)]

    def _decoder(self, out_channels: int, sizes: list[Size]) -> list[nn.Module]:
        width = self.channels[-1]
        layers: list[nn.Module] = []
        for i in reversed(range(len(self.channels))):
            layers += [self._block(width, width, sizes[i + 1], sizes[i + 1]) for _ in range(self.blocks - 1)]
            narrower = self.channels[max(i - 1, 0)]
            layers.append(self._block(width, narrower, sizes[i + 1], sizes[i]))
            width = narrower
        return [*layers, *self._activated(width), self._convolution(width, out_channels, sizes[0], bias=True)]

    def _block(self, fan_in: int, fan_out: int, before: Size, after: Size) -> nn.Module:
        """Return a block that halves, doubles or keeps the size."""
        shrinks, grows = after < before, after > before
        skip: list[nn.Module] = []
        if shrinks:
            skip.append(nn.AvgPool2d((min(before[0], 2), min(before[1], 2)), ceil_mode=True))
        if fan_in != fan_out:  # before the repetition, after the mean: either way on the smaller image
            skip.append(self._convolution(fan_in, fan_out, (1, 1), gain=1.0))
        resize: list[nn.Module] = [nn.Upsample(after)] if grows else []
        first, second = (before, after) if shrinks else (after, after)
        branch = [*self._activated(fan_in), *resize]
        branch += [self._convolution(fan_in, fan_out, first, stride=2 if shrinks else 1), *self._activated(fan_out)]
        branch += dropouts(self.dropout, images=True)
        branch.append(self._convolution(fan_out, fan_out, second, gain=2 / (self.blocks * len(self.channels))))
        return _Block([*skip, *resize], branch)
