r"""The distribution of a row of a table: columns of different kinds, with missing entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_vae.distributions._expanding import Expanding

if TYPE_CHECKING:
    from jaxtyping import Float


class MixedColumns(Expanding):
    r"""Independent columns of different families, any of which may be missing.

    .. math::
        \log p(x_\text{obs}) = \sum_{j : x_j \text{ observed}} \log p_j(x_j).

    An entry that is NaN is missing and adds nothing to the sum. This is the exact marginal over the entry, since the
    columns are independent. The entry is filled before it is scored, so that neither the value nor a gradient is NaN.
    The value is a density over the observed entries alone: rows with different entries missing cannot be compared.
    Draws are complete.

    Args:
        parts: Distributions of batch shape ``(*batch, k_i)`` and event shape (), one for each family. The k_i add up
            to the number of columns. The mean of a `Categorical` is its most likely code.
        event_shape: Shape of one row; its entries, flattened, are the columns.
        order: The column of each entry of the parts, one part after the other: a permutation, int64; None if the
            entries are in the order of the columns.
        fill: The values that fill missing entries: one inside the support for each entry of the parts, or one number
            for all.

    Reference:
        Handling Incomplete Heterogeneous Data using VAEs (Nazabal, Olmos, Ghahramani & Valera, 2020),
        https://arxiv.org/abs/1807.03653

    Example:
        >>> import pyro.distributions as dist
        >>> parts = [dist.Normal(torch.zeros(2), 1.0), dist.Bernoulli(logits=torch.zeros(1))]
        >>> row = MixedColumns(parts, (3,), order=torch.tensor([0, 2, 1]))
        >>> row.log_prob(torch.tensor([torch.nan, 1.0, 0.0]))  # log 1/2, and the density of 0 in the last column
        tensor(-1.6121)
    """

    takes_missing = True  # tells `impute` that values are independent and NaN is integrated out

    def __init__(
        self,
        parts: Sequence[Any],
        event_shape: Sequence[int],
        order: Tensor | None = None,
        fill: Tensor | float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        self.parts = list(parts)
        self.order = order
        self.fill = fill
        self._sizes = [part.batch_shape[-1] for part in self.parts]
        batch_shape = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in self.parts))
        super().__init__(batch_shape, torch.Size(event_shape), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """NaN, or the support of each column's own family."""
        return _MixedSupport(self)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixedColumns:
        """Return the same columns with another batch shape."""
        parts = [part.expand((*batch_shape, k)) for part, k in zip(self.parts, self._sizes, strict=True)]
        return MixedColumns(parts, self.event_shape, self.order, self.fill, validate_args=self._validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the observed entries, of batch shape."""
        total: Any = 0.0
        given = torch.as_tensor(self.fill).to(value)
        fills = given.expand(*given.shape[:-1], sum(self._sizes)).split(self._sizes, -1)
        for part, x, fill in zip(self.parts, self._split(value), fills, strict=True):
            missing = x.isnan()
            log_p = part.log_prob(torch.where(missing, fill, x))
            total = total + torch.where(missing, torch.zeros_like(log_p), log_p).sum(-1)
        return total

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Return complete rows, of shape ``(*sample_shape, *batch, *event_shape)``."""
        with torch.no_grad():
            return self._join([part.sample(sample_shape) for part in self.parts])

    def rows_of(self, noise: Tensor) -> Tensor:
        """Return complete rows made of standard normal noise, with their gradient.

        A normal column is ``loc + scale * noise``, a log-normal one its exponential.

        Args:
            noise: Draws of N(0, 1), ``(*batch, *event_shape)``.

        Raises:
            ValueError: If a column is of another family, whose draws have no such gradient.
        """
        values = []
        for part, e in zip(self.parts, self._split(noise), strict=True):
            if not isinstance(part, torch.distributions.Normal | torch.distributions.LogNormal):
                kind = type(part).__name__
                raise ValueError(f"MixedColumns: a {kind} has no reparameterised draws; expected 'real' and 'positive'")
            own: Any = part.loc + part.scale * e
            values.append(own.exp() if isinstance(part, torch.distributions.LogNormal) else own)
        return self._join(values)

    @property
    def is_code(self) -> Tensor:
        """Whether each column holds categorical codes, which have no order, ``event_shape``."""
        device = None if self.order is None else self.order.device
        sized = zip(self.parts, self._sizes, strict=True)
        return self._placed([torch.full((k,), _is_categorical(part), device=device) for part, k in sized])

    @property
    def mean(self) -> Tensor:
        """The mean of each column, or the most likely code of a categorical column."""
        return self._join([part.mode if _is_categorical(part) else part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        """The variance of each column; the codes of a categorical column have none."""
        if any(_is_categorical(part) for part in self.parts):
            raise NotImplementedError("MixedColumns: the codes of a categorical column have no variance")
        return self._join([part.variance for part in self.parts])

    @property
    def moments(self) -> Float[Tensor, "*batch m"]:
        """The moments that may be averaged over z: means, and probabilities of categorical columns."""
        found = [part.probs.flatten(-2) if _is_categorical(part) else part.mean for part in self.parts]
        return torch.cat([m.expand(*self.batch_shape, m.shape[-1]) for m in found], -1)

    def point(self, moments: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row for averaged `moments`, ``(*batch, *event_shape)``, and its error.

        Means stay as they are. A categorical column gives its most likely code, with the error of that code's
        probability.
        """
        sized = list(zip(self.parts, self._sizes, strict=True))
        sizes = [part.probs[..., 0, :].shape[-1] * k if _is_categorical(part) else k for part, k in sized]
        values, errors = [], []
        for (part, k), m, e in zip(sized, moments.split(sizes, -1), error.split(sizes, -1), strict=True):
            if _is_categorical(part):
                m, e = m.unflatten(-1, (k, -1)), e.unflatten(-1, (k, -1))
                code = m.argmax(-1)
                e = (e * one_hot(code, m.shape[-1])).sum(-1)
                m = code.to(moments)
            values.append(m)
            errors.append(e)
        return self._placed(values), self._placed(errors)

    def _split(self, value: Tensor) -> tuple[Tensor, ...]:
        """Return the entries of each part, (..., k)."""
        flat = value.flatten(value.dim() - len(self.event_shape)) if len(self.event_shape) != 1 else value
        return (flat if self.order is None else flat.index_select(-1, self.order)).split(self._sizes, -1)

    def _join(self, values: list[Tensor]) -> Tensor:
        # codes alone are integers
        dtype = next((v.dtype for v in values if v.is_floating_point()), None) or self.parts[0].probs.dtype
        lead = torch.broadcast_shapes(*(v.shape[:-1] for v in values))
        return self._placed([v.to(dtype).expand(*lead, v.shape[-1]) for v in values])

    def _placed(self, values: list[Tensor]) -> Tensor:
        flat = torch.cat(values, -1)
        if self.order is not None:
            flat = flat.index_select(-1, self.order.argsort())
        return flat.reshape(*flat.shape[:-1], *self.event_shape)


class _MixedSupport(constraints.Constraint):
    """NaN, or the support of each column's own family."""

    is_discrete = False

    def __init__(self, distribution: MixedColumns) -> None:
        self._distribution = distribution
        self.event_dim = len(distribution.event_shape)
        super().__init__()

    def __repr__(self) -> str:
        kinds = {str(part.support): None for part in self._distribution.parts}
        return f"columns of {', '.join(kinds)}, or NaN where missing"

    def entries(self, value: Tensor) -> Tensor:
        """Return for each entry whether it lies inside, in the shape of `value`."""
        d = self._distribution
        inside = [x.isnan() | part.support.check(x) for part, x in zip(d.parts, d._split(value), strict=True)]
        return d._placed(inside)

    def check(self, value: Tensor) -> Tensor:
        inside = self.entries(value)
        return inside.flatten(inside.dim() - self.event_dim).all(-1)

    def explain(self, value: Tensor) -> str:
        """Describe the first value outside and its column, for messages."""
        d = self._distribution
        outside = ~self.entries(value)
        first = outside.nonzero()[0].tolist()
        place = first[-self.event_dim :]
        column = place[0] if self.event_dim == 1 else tuple(place)
        index = torch.arange(d.event_shape.numel()).reshape(d.event_shape)[tuple(place)]
        owners = torch.arange(len(d.parts)).repeat_interleave(torch.tensor(d._sizes))
        if d.order is not None:
            owners = owners[d.order.argsort().cpu()]
        part = d.parts[int(owners[index])]
        return f"{float(value[tuple(first)]):.6g} in column {column}, which takes {part.support} or NaN"


def _is_categorical(part: Any) -> bool:
    return isinstance(part, torch.distributions.Categorical)
