r"""Neural networks for the pieces, and the joint between a network and a distribution.

A *network* is either a factory ``(in_shape, out_shape) -> nn.Module``, so that its sizes follow from the data, or a
ready-made ``nn.Module`` of the right sizes. Every network sees only ``(n, *in_shape)``: `ParameterNetwork` flattens
extra leading dimensions (particles) around it, and also joins labels to its input. A factory with an attribute
``spatial = True`` gets images as images, with labels as constant planes beside their channels; any other network gets
labels behind the flattened input.
"""

from ppl_vae.networks.binding import Binding, Shape
from ppl_vae.networks.convolutional import Convolutional
from ppl_vae.networks.mlp import MLP, GatedMLP
from ppl_vae.networks.parameters import NetworkFactory, ParameterNetwork
from ppl_vae.networks.residual import ResidualConvolutional
from ppl_vae.networks.tables import Log1p, TableEncoder

__all__ = [
    "MLP",
    "Binding",
    "Convolutional",
    "GatedMLP",
    "Log1p",
    "NetworkFactory",
    "ParameterNetwork",
    "ResidualConvolutional",
    "Shape",
    "TableEncoder",
]
