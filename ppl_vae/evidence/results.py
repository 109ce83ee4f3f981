"""The result of every method for log p(x): the figures per datum, and their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ppl_vae.evidence.rows import Rows

if TYPE_CHECKING:
    from jaxtyping import Float

# how numbers of several blocks become one, where they are no counts
_JOINS: dict[str, Callable[[Any], Any]] = {"rounding": max, "num_states": max, "prior_mass": itemgetter(0)}


@dataclass(frozen=True)
class Evidence(Rows):
    r"""The log evidence of n data, :math:`\log p(x) = \log \int p(x|z) p(z) \, dz`, in nats, with its error.

    The meaning of `error` depends on `method`. It is free of sampling noise only where the answer is exact. A standard
    error says nothing about modes that no sample has reached: read `details` (``"pareto_k"``) beside it.

    Attributes:
        log_evidence: log p(x) or its estimate, float64.
        error: Its error, float64, nats: for quadrature, enumeration and closed form a bound on the absolute error; for
            Monte Carlo the standard error of `log_evidence`.
        method: ``"quadrature"``, ``"enumeration"``, ``"closed form"``, ``"importance"``, ``"sumo"``, ``"ais"`` or
            ``"dais"``.
        kind: ``"exact"`` (up to `error`); ``"lower"`` or ``"upper"``: a stochastic bound, whose expectation lies on
            that side of log p(x).
        details: Further results of the method, as tensors of shape (n,) or as numbers for all data.

    Example:
        >>> evidence = Evidence(torch.tensor([-2.0, -4.0]).double(), torch.tensor([1e-5, 1e-4]).double(), "quadrature")
        >>> len(evidence), evidence.mean
        (2, -3.0)
    """

    log_evidence: Float[Tensor, " n"]
    error: Float[Tensor, " n"]
    method: str
    kind: str = "exact"
    details: Mapping[str, Tensor | float] = field(default_factory=dict)

    def require_of(self, x: Tensor, asker: str) -> None:
        """Refuse other data than these, as far as their number tells."""
        if len(self) != len(x):
            raise ValueError(
                f"{asker} was given the evidence of {len(self)} data and {len(x)} data; expected those of the same data"
            )

    @property
    def mean(self) -> float:
        """The mean over data, nats per datum."""
        return self.log_evidence.mean().item()

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Concatenate the evidence of several blocks of data, all by the same method; counts in `details` add up."""
        details: dict[str, Tensor | float] = {}
        for name, value in parts[0].details.items():
            values: list[Any] = [part.details[name] for part in parts]
            join = torch.cat if isinstance(value, Tensor) else _JOINS.get(name, sum)
            details[name] = join(values)
        return replace(super().joined(parts), details=details)
