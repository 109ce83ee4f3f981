"""The checks that `VAE` makes of its pieces at construction."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae._tensors import leaves_of
from ppl_vae.distributions.foreign import as_pyro
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


def check_callable(role: str, piece: object) -> None:
    if isinstance(piece, type) or not callable(piece):
        raise TypeError(
            f"{role} is {piece!r}; expected an object or a function that returns a distribution, such as "
            "priors.StandardNormal(latent_dim=2)"
        )


def bind_piece(piece: object, binding: Binding) -> None:
    bind = getattr(piece, "bind", None)
    if bind is not None:
        bind(binding)


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


def event_shape_of(p_z: Any) -> Shape:
    shape = tuple(p_z.event_shape)
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(
            f"prior returned a distribution of event_shape {shape}; expected (latent,), a vector of at "
            "least one dimension, for instance Normal(loc, scale).to_event(1)"
        )
    return shape


def tried(vae: nn.Module, role: str, *arguments: Tensor, event_shape: Shape | None = None) -> Any:
    """Call the piece of a role once, in evaluation mode and without changing the random state, and check its result."""
    before = list(vae.parameters())
    with untouched_random_state(), evaluation_mode(vae), torch.enable_grad():
        with poutine.trace(param_only=True) as tracer:
            try:
                result = as_pyro(getattr(vae, role)(*arguments))
            except Exception as error:
                shapes = ", ".join(str(tuple(a.shape)) for a in arguments) or "no argument"
                raise ValueError(f"{role} failed when called with {shapes}: {error}") from error
        check_distribution(role, result, tuple(len(a) for a in arguments[:1]), event_shape)
        known = {id(p) for p in vae.parameters()}
        if known != {id(p) for p in before}:
            raise ValueError(
                f"{role} has taken over parameters of another module from Pyro's store (PyroModules without a name "
                "share theirs): give it a name of its own, as in super().__init__('my_prior')"
            )
        known |= {id(cast(Any, site["value"]).unconstrained()) for site in tracer.trace.nodes.values()}
        if any(id(leaf) not in known for leaf in leaves_of(result.log_prob(result.sample()))):
            raise ValueError(
                f"{role} depends on a parameter that the VAE cannot see, so that nothing would train it: make it "
                "an nn.Module that owns its networks and parameters, or declare it with pyro.param"
            )
    return result


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
