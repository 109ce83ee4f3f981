"""The checks that `VAE` makes of its pieces and its data at construction."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae._distributions import innermost
from ppl_vae.networks import Binding, Shape

if TYPE_CHECKING:
    from ppl_vae.data import Dataset


def x_shape_of(data: Dataset | Shape) -> Shape:
    shape = data if isinstance(data, (tuple, list)) else getattr(data, "x_shape", ())
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        given = shape if shape else type(data).__name__
        raise ValueError(
            f"VAE: the shape of one datum is {given}; expected positive sizes such as (1, 28, 28), or a Dataset"
        )
    return tuple(shape)


def y_shape_of(data: Dataset | Shape) -> Shape | None:
    columns = () if isinstance(data, (tuple, list)) else data.train.columns
    if len(columns) < 2:
        return None
    shape = tuple(columns[1].shape[1:])
    if len(columns) > 2 or len(shape) != 1:
        raise ValueError(
            f"VAE: the data set has {len(columns)} columns, the second of rows of shape {shape}; expected the data, "
            "and one column of conditions of shape (n, k), such as one-hot labels"
        )
    return shape


def mean_of(data: Dataset | Shape) -> Tensor | None:
    """Return the mean over training data in memory, on the CPU, without missing values."""
    x = None if isinstance(data, (tuple, list)) else data.train.x
    if not isinstance(x, Tensor) or not len(x):
        return None
    return (x if x.is_floating_point() else x.float()).nanmean(0).cpu()


def takes_y(piece: object) -> bool:
    """Whether a piece takes a condition: whether its signature has a parameter y."""
    function = piece.forward if isinstance(piece, nn.Module) else piece
    try:
        return "y" in inspect.signature(cast(Callable[..., Any], function)).parameters
    except (TypeError, ValueError):  # it has no readable signature
        return False


def bind_piece(piece: object, binding: Binding) -> None:
    bind = getattr(piece, "bind", None)
    if bind is not None:
        bind(binding)


def outside_support(likelihood: object, support: object, x: Tensor) -> str:
    name = getattr(likelihood, "__name__", type(likelihood).__name__)
    if hasattr(support, "explain"):  # names the column of a table
        return f"the data hold {support.explain(x)}, outside the support of {name}"
    if x.isnan().any():
        return (
            f"the data hold missing values (NaN), outside the support of {name}; likelihoods.Mixed takes them, with a "
            "posterior whose network is a networks.TableEncoder"
        )
    where = f"outside the support of {name} ({innermost(support)})"
    message = f"the data hold values from {x.min():.4g} to {x.max():.4g}, {where}"
    if hasattr(likelihood, "allow_grey"):
        message += (
            "; binarise them (binarize='threshold', 'dynamic' or 'fixed'), or accept grey values in [0, 1], "
            "which are no likelihood, with allow_grey=True"
        )
    if getattr(support, "is_discrete", False) and not hasattr(likelihood, "allow_grey"):
        fix = "give it as many levels as the data have (bins), or whole numbers where it is one of counts"
        return f"{message}; {fix}, or choose a likelihood for such data"
    return message + "; or choose a likelihood for such data, for instance Normal"


def check_distribution(role: str, result: Any, batch_shape: Shape, event_shape: Shape | None) -> None:
    if not isinstance(result, dist.Distribution):
        what = f"{type(result).__module__}.{type(result).__qualname__}"
        raise TypeError(f"{role} returned {what}; expected a distribution of Pyro, torch or zuko (return one)")
    result = cast(Any, result)
    for name, shape in (("batch_shape", batch_shape), ("event_shape", event_shape)):
        given = tuple(getattr(result, name))
        if shape is not None and given != shape:
            raise ValueError(
                f"{role} returned a distribution of {name} {given}; expected {shape}: the dimensions of one datum or "
                "latent vector belong to the event, .to_event(n), all others to the batch"
            )
    try:
        result.expand((2, *result.batch_shape))
    except NotImplementedError as error:
        raise TypeError(
            f"{role} returned {type(result).__qualname__}, which does not expand to more data ({error}); give its "
            "class a method expand(batch_shape, _instance=None)"
        ) from error


class GivenPiece(nn.Module):
    """A piece of a conditional model at one fixed condition, as a piece of an unconditional model."""

    y: Tensor

    def __init__(self, piece: Any, y: Tensor, event_dim: int) -> None:
        super().__init__()
        self.piece = piece
        self.event_dim = event_dim  # of the input of the piece
        self.register_buffer("y", y, persistent=False)
        if hasattr(piece, "allow_grey"):
            self.allow_grey = piece.allow_grey

    def forward(self, *inputs: Tensor) -> Any:
        """Return the piece's distribution."""
        batch_shape = inputs[0].shape[: inputs[0].dim() - self.event_dim] if inputs else ()
        return self.piece(*inputs, self.y.expand(*batch_shape, *self.y.shape))
