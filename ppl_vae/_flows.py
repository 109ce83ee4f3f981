r"""Layers of normalising flows: Pyro's transforms, each with its own network and without a cache.

A Pyro transform caches its last input and output. Beyond one pass the cache is stale once the parameters are updated,
it cannot be copied or pickled, and it keeps its graph alive. So a layer keeps only the network, and makes a new
transform for every pass.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from pyro.distributions import transforms as T
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.spline import ConditionedSpline
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, ConditionalDenseNN, DenseNN
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from ppl_vae._validation import check_positive_int

if TYPE_CHECKING:
    from jaxtyping import Float

    Vectors = Float[Tensor, "*batch d"]
    LogDet = Float[Tensor, "*batch"]

# RealNVP's soft bound on a log-scale, 3 tanh(r / 3): a factor of at most e^3 per layer, so that 8 layers keep a z of 50
# and its square in the range of float32. IAF's gate has the same bound; its inverse would otherwise overflow far out.
LOG_SCALE_BOUND = 3.0
# IAF's gate sigmoid(r + 2): the bias keeps the gate of a new flow open
GATE_BIAS = 2.0
# half the side of the box in which the spline acts; outside the box it is the identity
BOX = 5.0
# the factor on the last layer's weights: a new flow is near the identity, yet a gradient reaches every parameter
_START = 0.1


class Chain(nn.ModuleList):
    """A sequence of layers, each a bijection of vectors that may depend on a context, with the methods of the chain."""

    def forward(self, x: Vectors, context: Tensor | None = None) -> tuple[Vectors, LogDet]:
        """Map x through all layers, and return the log-determinant."""
        return _through((layer.__call__ for layer in self), x, context)

    def inverse(self, y: Vectors, context: Tensor | None = None) -> tuple[Vectors, LogDet]:
        """Undo `forward`, last layer first, and return the log-determinant of the inverse."""
        return _through((layer.inverse for layer in reversed(self)), y, context)  # type: ignore[union-attr]


class AffineAutoregressive(nn.Module):
    r"""The layer :math:`y_i = s_i(x_{<i}) x_i + m_i(x_{<i})` with one masked network; its inverse takes d passes.

    Args:
        dim: d.
        hidden: Widths of the masked network, each at least d.
        reverse: Whether the order of dimensions is reversed.
        gated: Whether the scale is a gate as in IAF,
            :math:`s = \mathrm{sigmoid}(3 \tanh(r / 3) + 2), y = s x + (1 - s) m`. Otherwise it is that of RealNVP,
            :math:`\log s = 3 \tanh(r / 3)`.
        context_dim: Width of the context; 0 for none.
    """

    def __init__(self, dim: int, hidden: Sequence[int], reverse: bool, gated: bool, context_dim: int = 0) -> None:
        super().__init__()
        self.gated = gated
        self.order = list(range(dim))[:: -1 if reverse else 1]
        self.network = masked_network(dim, hidden, self.order, [1, 1], context_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x, in one pass."""
        return apply(self._transform(context), x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo `forward`, in d passes."""
        return undo(self._transform(context), y)

    def _transform(self, context: Tensor | None) -> Any:
        function: Any = functools.partial(self._shift_and_log_scale, context=context)
        function.permutation = self.order  # a list and not a tensor, so that a graph can also capture the inverse
        return T.AffineAutoregressive(function, log_scale_min_clip=-math.inf, log_scale_max_clip=math.inf)

    def _shift_and_log_scale(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = masked_parameters(self.network, x, context)
        if not self.gated:
            return shift, soft_bound(raw)
        log_scale = logsigmoid(soft_bound(raw) + GATE_BIAS)
        return (1 - log_scale.exp()) * shift, log_scale


class SplineAutoregressive(nn.Module):
    r"""The layer :math:`y_i = \rho(x_i; \theta_i(x_{<i}))` with one masked network; its inverse takes d passes.

    Here :math:`\rho` is a spline in a box.

    Args:
        dim: d.
        hidden: Widths of the masked network, each at least d.
        reverse: Whether the order of dimensions is reversed.
        num_bins: The number of pieces of the spline.
    """

    def __init__(self, dim: int, hidden: Sequence[int], reverse: bool, num_bins: int) -> None:
        super().__init__()
        self.num_bins = num_bins
        order = list(range(dim))[:: -1 if reverse else 1]
        self.network = masked_network(dim, hidden, order, spline_sizes(num_bins), 0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x, in one pass."""
        y, log_det = spline(x, self._spline(x, context))
        return y, log_det.sum(-1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo `forward`, in d passes: pass i makes the i-th dimension correct."""
        x, log_det = y, y
        for _ in range(y.shape[-1]):
            x, log_det = spline(y, self._spline(x, context), inverse=True)
        return x, log_det.sum(-1)

    def _spline(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return spline_parameters(*(p.transpose(-1, -2) for p in masked_parameters(self.network, x, context)))


class Coupling(nn.Module):
    r"""A coupling layer: after a permutation, the first d // 2 dimensions stay and determine the map of the others.

    Every second layer reverses the order of its input, so that the other dimensions change, too. The layers between
    have a random order, drawn at construction and kept in the layer's state.

    Args:
        dim: d, at least 2.
        hidden: Widths of the network.
        reverse: Whether the order is reversed instead of random.
        num_bins: The number of pieces of the spline that maps the other dimensions; None for an affine map with
            :math:`\log s = 3 \tanh(r / 3)` as in RealNVP.
        context_dim: Width of the context; 0 for none.
    """

    order: Tensor

    def __init__(
        self, dim: int, hidden: Sequence[int], reverse: bool, num_bins: int | None = None, context_dim: int = 0
    ) -> None:
        super().__init__()
        self.split = (dim // 2, dim - dim // 2)
        self.num_bins = num_bins
        self.register_buffer("order", torch.arange(dim).flip(0) if reverse else torch.randperm(dim))
        sizes = [size * self.split[1] for size in ([1, 1] if num_bins is None else spline_sizes(num_bins))]
        self.network = (
            ConditionalDenseNN(self.split[0], context_dim, list(hidden), sizes, nn.ELU())
            if context_dim
            else DenseNN(self.split[0], list(hidden), sizes, nn.ELU())
        )
        start_small(self.network.layers[-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x, in one pass."""
        return self._map(x.index_select(-1, self.order), context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo `forward`, in one pass."""
        x, log_det = self._map(y, context, inverse=True)
        return x.index_select(-1, self.order.argsort()), log_det

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        if self.num_bins is None:
            return (undo if inverse else apply)(self._affine(context), x)
        first, second = x.split(self.split, -1)
        outputs = conditioned(self.network, first, context)
        parameters = spline_parameters(*(p.reshape(*p.shape[:-1], self.split[1], -1) for p in outputs))
        second, log_det = spline(second, parameters, inverse)
        return torch.cat([first, second], -1), log_det.sum(-1)

    def _affine(self, context: Tensor | None) -> Any:
        def shift_and_log_scale(x: Tensor) -> tuple[Tensor, Tensor]:
            shift, raw = conditioned(self.network, x, context)
            return shift, soft_bound(raw)

        return T.AffineCoupling(
            self.split[0], shift_and_log_scale, log_scale_min_clip=-math.inf, log_scale_max_clip=math.inf
        )


class Planar(nn.Module):
    r"""The layer :math:`y = x + \hat u \tanh(w^\top x + b)` with u, w and b linear in a context; it has no inverse.

    Args:
        dim: d.
        context_dim: Width of the context.
    """

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.sizes = [1, dim, dim]
        self.network = nn.Linear(context_dim, sum(self.sizes))
        start_small(self.network)
        with torch.no_grad():
            w = nn.functional.normalize(torch.randn(dim), dim=0)
            # Pyro sets w u-hat = softplus(w u) - 1; it and u-hat are zero where w u = log(e - 1)
            self.network.bias[1:].copy_(torch.cat([math.log(math.e - 1) * w, w]))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x."""
        return apply(ConditionedPlanar(self.network(cast(Tensor, context)).split(self.sizes, -1)), x)


def apply(transform: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of a Pyro transform for x, and the log-determinant."""
    y = transform(x)
    return y, transform.log_abs_det_jacobian(x, y)


def undo(transform: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of a Pyro transform for the output y, and the log-determinant of the inverse."""
    x = transform._inv_call(y)  # not `transform.inv(y)`, whose reference cycle keeps the graph alive
    return x, -transform.log_abs_det_jacobian(x, y)


def spline_sizes(num_bins: int) -> list[int]:
    """Return the numbers of widths, heights, inner derivatives and lambdas of a linear rational spline."""
    return [num_bins, num_bins, num_bins - 1, num_bins]


def spline_parameters(widths: Tensor, heights: Tensor, derivatives: Tensor, lambdas: Tensor) -> tuple[Tensor, ...]:
    """Return the parameters of a spline from the outputs of a network; zero outputs give the identity."""
    one = math.log(math.e - 1)  # softplus(one) = 1
    return widths.softmax(-1), heights.softmax(-1), softplus(derivatives + one), lambdas.sigmoid()


def spline(x: Tensor, parameters: tuple[Tensor, ...], inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Map each x by Pyro's linear rational spline, or its inverse, and return the logarithms of the derivatives.

    Outside the box the map is the identity. Pyro also computes the spline there, where it has no meaning; a zero in a
    denominator would make the gradient NaN. So x is clamped to the box first.
    """
    boxed = x.clamp(-BOX, BOX)
    transform = ConditionedSpline(parameters, bound=BOX, order="linear")
    y, log_derivative = (undo if inverse else apply)(transform, boxed)
    outside = x.abs() > BOX
    return y + (x - boxed), torch.where(outside, torch.zeros_like(log_derivative), log_derivative)


def masked_network(
    dim: int, hidden: Sequence[int], order: Sequence[int], param_dims: list[int], context_dim: int
) -> ConditionalAutoRegressiveNN:
    """Return Pyro's masked network, whose output is initially near zero."""
    make: Callable[..., ConditionalAutoRegressiveNN] = (
        functools.partial(ConditionalAutoRegressiveNN, dim, context_dim)
        if context_dim
        else functools.partial(AutoRegressiveNN, dim)
    )
    with warnings.catch_warnings():  # a single dimension: its masks leave only the constants and the context
        warnings.simplefilter("ignore")
        network = make(list(hidden), param_dims=param_dims, permutation=torch.tensor(order), nonlinearity=nn.ELU())
    start_small(network.layers[-1])
    return network


def masked_parameters(network: ConditionalAutoRegressiveNN, x: Tensor, context: Tensor | None) -> Any:
    """Return the output of a masked network for x."""
    x = x.to(cast(nn.Linear, network.layers[0]).weight.dtype)  # Pyro's inverse starts from zeros of the default dtype
    return conditioned(network, x, context)


def conditioned(network: Any, x: Tensor, context: Tensor | None) -> Any:
    """Return the output of one of Pyro's networks for x and, if there is one, the context."""
    return network(x) if context is None else network(x, context=context)


@torch.no_grad()
def start_small(layer: Any) -> None:
    """Scale down the weights of a network's last layer and zero its bias, so that its output is near zero."""
    layer.weight.mul_(_START)
    layer.bias.zero_()


def soft_bound(raw: Tensor) -> Tensor:
    """Return a log-scale between -`LOG_SCALE_BOUND` and `LOG_SCALE_BOUND`."""
    return LOG_SCALE_BOUND * (raw / LOG_SCALE_BOUND).tanh()


def check_layers(num_transforms: object, hidden: object, owner: str) -> list[int]:
    """Return the widths of a flow's networks, or raise if the number of transforms or the widths are invalid."""
    check_positive_int(num_transforms, f"{owner}: num_transforms")
    if not isinstance(hidden, Sequence) or isinstance(hidden, str) or not hidden:
        raise ValueError(f"{owner}: hidden is {hidden!r}; expected a list of at least one width such as [128]")
    return [check_positive_int(width, f"{owner}: hidden[{i}]") for i, width in enumerate(hidden)]


def check_masked(dim: int, hidden: Sequence[int], owner: str) -> None:
    """Raise if a masked network has a layer narrower than z, which not every dimension can pass."""
    for i, width in enumerate(hidden):
        if width < dim:
            raise ValueError(
                f"{owner}: hidden[{i}] is {width}; expected at least the {dim} dimensions of z, each of which needs a "
                "unit of a masked network"
            )


def check_coupling(dim: int, owner: str) -> None:
    """Raise if z cannot be split in two."""
    if dim < 2:
        raise ValueError(
            f"{owner}: latent_dim is {dim}; expected at least 2, since one part of z tells how the other is mapped"
        )


def check_bins(num_bins: object, owner: str) -> int:
    """Return the number of pieces of a spline, or raise if it is invalid."""
    number = check_positive_int(num_bins, f"{owner}: num_bins")
    if not 2 <= number <= 500:  # Pyro makes each at least a thousandth of the box
        raise ValueError(f"{owner}: num_bins is {number}; expected 2 to 500")
    return number


def _through(functions: Iterable[Any], value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    log_dets = []
    for function in functions:
        value, log_det = function(value, context)
        log_dets.append(log_det)
    return value, functools.reduce(torch.add, log_dets)
