"""The result of every way to log p(x): the figures per datum, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    def joined(parts: list[Evidence]) -> Evidence:
        """Put the evidence of several blocks of data together; of the numbers in `details`, those that all share."""
        first = parts[0]
        details: dict[str, Tensor | float] = {}
        for name in first.details:
            values = [part.details[name] for part in parts]
            if all(isinstance(value, Tensor) for value in values):
                details[name] = torch.cat([torch.as_tensor(value) for value in values])
            elif all(value == values[0] for value in values):
                details[name] = values[0]
        log_evidence = torch.cat([part.log_evidence for part in parts])
        error = torch.cat([part.error for part in parts])
        return Evidence(log_evidence, error, first.method, first.kind, details)
