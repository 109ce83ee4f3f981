"""The result of every way to log p(x): the figures per datum, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    r"""The log evidence of n data, :math:`\log p(x) = \log \int p(x|z) p(z) \, dz`, in nats, with its error.

    What `error` means depends on `method`: a number that holds whatever the noise only where the answer is exact. A
    standard error says nothing about modes that no sample has met: read `details` (``"pareto_k"``) beside it.

    Attributes:
        log_evidence: log p(x) or its estimate, (n,), float64.
        error: (n,), float64, nats: for quadrature, enumeration and closed form a bound on the absolute error; for Monte
            Carlo the standard error of `log_evidence`.
        method: ``"quadrature"``, ``"enumeration"``, ``"closed form"``, ``"importance"`` or ``"ais"``.
        kind: ``"exact"`` (up to `error`); ``"lower"`` or ``"upper"``: a stochastic bound, whose expectation lies on
            that side of log p(x).
        details: What the method has to say besides, as tensors of shape (n,) or as numbers for all data.

    Example:
        >>> evidence = Evidence(torch.tensor([-2.0, -4.0]).double(), torch.tensor([1e-5, 1e-4]).double(), "quadrature")
        >>> len(evidence), evidence.mean
        (2, -3.0)
    """

    log_evidence: Tensor
    error: Tensor
    method: str
    kind: str = "exact"
    details: Mapping[str, Tensor | float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.log_evidence)

    @property
    def mean(self) -> float:
        """The mean over data, nats per datum."""
        return self.log_evidence.mean().item()

    @staticmethod
    def joined(parts: list[Evidence], largest: Collection[str] = (), same: Collection[str] = ()) -> Evidence:
        """Put the evidence of several blocks of data together.

        Args:
            parts: One a block, of one method.
            largest: The numbers in `details` of which the largest counts.
            same: Those that are the same for every block. All others are counts, and add up.
        """
        first = parts[0]
        details: dict[str, Tensor | float] = {}
        for name, value in first.details.items():
            values: list[Any] = [part.details[name] for part in parts]
            if isinstance(value, Tensor):
                details[name] = torch.cat(values)
            else:
                details[name] = value if name in same else max(values) if name in largest else sum(values)
        log_evidence, error = (torch.cat([getattr(part, name) for part in parts]) for name in ("log_evidence", "error"))
        return Evidence(log_evidence, error, first.method, first.kind, details)
