r"""Convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ppl_vae.networks.layers import Size, _ImageNetwork, dropouts


@dataclass(frozen=True)
class Convolutional(_ImageNetwork):
    r"""A factory of convolutional encoders and decoders, which size themselves to the images.

    From an image (channels, height, width) to a vector the network is an encoder: one convolution of stride 2 for each
    entry of `channels`, then the linear layers `hidden`, then a linear output. From a vector to an image it is a
    decoder, with the same sizes in reverse:

    .. math::
        \text{encoder: } (H, W) \to (\lceil H/2 \rceil, \lceil W/2 \rceil) \to \dots \to \text{hidden} \to n, \qquad
        \text{decoder: } n \to \text{hidden} \to \dots \to (\lceil H/2 \rceil, \lceil W/2 \rceil) \to (H, W).

    Any height and width will do, also odd ones. A height or width that is down to 1 stays 1, with kernels of size 1
    along it (pictures of height 1 get convolutions along the width). From image to image the network is an encoder and
    then a decoder. The decoder repeats each value over two by two places (cut off at an odd edge) and convolves; its
    last layer has no activation. A transposed convolution costs a third to a half as much, but leaves checkerboards,
    since its kernel covers neighbouring pixels unevenly (Odena et al., 2016).

    The network is wrong for pictures whose pixels are in random order, and weak where the place matters more than the
    pattern: kernels are the same everywhere, and only the padding and the linear layers know the place. The last bias
    is one number per channel, so ``start_from_data`` starts at the mean over pixels, not at the mean picture. The
    network is slow: with the defaults a training step at 28 x 28 takes some 25 times that of ``MLP([200, 200])`` on one
    CPU core. Batch normalisation makes data of one batch depend on each other while training; `layer_norm` (over
    channels and places) does not. Dropout draws new masks in each pass while training: an objective that runs the
    posterior twice a step sees two different posteriors.

    Args:
        channels: Channels after each halving, from the image inwards (also for a decoder).
        hidden: Widths of the linear layers, from the image inwards; empty for none.
        kernel: Height and width of the kernels, odd, at least 3.
        activation: As in `MLP`.
        batch_norm: Normalise each layer but the last by the batch (over places too), with the constants of `MLP`.
        layer_norm: Normalise each layer but the last within each datum.
        dropout: Probability with which a whole channel, or a unit of a linear layer, is set to zero while training.
        init: As in `MLP`, with fan-in = channels times kernel squared.

    Raises:
        ValueError: For options out of range, two normalisations at once; and, once the sizes are known, if neither
            input nor output is an image.

    Reference:
        Deconvolution and Checkerboard Artifacts (Odena, Dumoulin & Olah, 2016),
        https://distill.pub/2016/deconv-checkerboard; Efficient Object Localization Using Convolutional Networks
        (Tompson et al., 2015, on dropping whole channels), https://arxiv.org/abs/1411.4280

    Example:
        >>> import torch
        >>> factory = Convolutional([8, 16])
        >>> factory((1, 28, 28), (4,))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 4])
        >>> factory((2,), (3, 9, 14))(torch.zeros(5, 2)).shape
        torch.Size([5, 3, 9, 14])
    """

    def _encoder(self, in_channels: int, sizes: list[Size]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for size, channels in zip(sizes, self.channels, strict=False):  # the size before each stage
            layers += [self._convolution(in_channels, channels, size, stride=2), *self._rest(channels)]
            in_channels = channels
        return layers

    def _decoder(self, out_channels: int, sizes: list[Size]) -> list[nn.Module]:
        layers = self._rest(self.channels[-1])
        for i in reversed(range(1, len(self.channels))):
            fan_in, fan_out = self.channels[i], self.channels[i - 1]
            layers += [nn.Upsample(sizes[i]), self._convolution(fan_in, fan_out, sizes[i]), *self._rest(fan_out)]
        last = self._convolution(self.channels[0], out_channels, sizes[0], bias=True)
        return [*layers, nn.Upsample(sizes[0]), last]

    def _rest(self, channels: int) -> list[nn.Module]:
        """Return the modules that follow the linear part of a layer."""
        return [*self._activated(channels), *dropouts(self.dropout, images=True)]
