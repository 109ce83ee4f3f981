r"""An objective minus a penalty, such as a KL weight or free bits, which stays outside every logarithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from ppl_vae.objectives.estimate import Estimate, evaluate_objective
from ppl_vae.objectives.log_weights import LogWeights

if TYPE_CHECKING:
    from jaxtyping import Float


class Penalty(NamedTuple):
    """The penalty that a regularizer subtracts from an objective; nats per datum.

    Attributes:
        value: The penalty. It is reported, never differentiated.
        surrogate: The function to differentiate for the gradient of the penalty. Its value means nothing by itself.
        nonnegative: Whether the penalty is never below zero in expectation. A lower bound then stays a lower bound.
    """

    value: Float[Tensor, " batch"]
    surrogate: Float[Tensor, " batch"]
    nonnegative: bool


class Regularizer(Protocol):
    """The interface of a regularizer for `Regularized`: a callable, which need not inherit from any class.

    An attribute ``couples_batch`` that is true says that the penalty of a datum depends on the others of its batch:
    processes that share a batch cannot compute it.
    """

    def __call__(self, log_weights: LogWeights) -> Penalty | None:
        """Return the penalty of each datum, or None if there is no penalty."""
        ...


class Regularized:
    r"""An objective minus a penalty.

    .. math::
        \mathcal L(x) - \mathrm{penalty}(x).

    With a KL weight every objective becomes :math:`\mathcal L_K - (\beta - 1)\, \mathrm{KL}(q(z|x) \,\|\, p(z))`, so
    the weight never enters a logarithm of weights. The reported ELBO excludes the penalty; the reported bound includes
    it. The bound is a lower bound only if the objective is one and the penalty is never negative.

    Args:
        objective: An objective of this package, or a function of log-weights.
        regularizer: The penalty; see `ppl_vae.regularizers`.

    Raises:
        TypeError: If the objective is one of Pyro's, which cannot take a penalty, or if a class is given for an object.
        ValueError: If the objective is an upper bound.

    Example:
        >>> from ppl_vae import objectives, regularizers
        >>> objectives.Regularized(objectives.IWAE(8), regularizers.KLWeight(beta=4.0)).num_particles
        8
    """

    def __init__(self, objective: Any, regularizer: Regularizer) -> None:
        if isinstance(objective, PyroELBO):
            raise TypeError(
                f"a regularizer was given beside {type(objective).__name__}, one of Pyro's, which take none; "
                "use objectives.ELBO or another of this package's"
            )
        for role, given, example in (
            ("objective", objective, "objectives.IWAE(8)"),
            ("regularizer", regularizer, "regularizers.KLWeight(4.0)"),
        ):
            if isinstance(given, type) or not callable(given):
                raise TypeError(f"{role} is {given!r}; expected an object such as {example}")
        self.objective = objective
        self.regularizer = regularizer

    def __repr__(self) -> str:
        return f"Regularized({self.objective!r}, {self.regularizer!r})"

    @property
    def couples_batch(self) -> bool:
        """Whether the penalty of a datum depends on the others of its batch."""
        return any(getattr(part, "couples_batch", False) for part in (self.objective, self.regularizer))

    @property
    def num_particles(self) -> int:
        """The number of particles K of the objective."""
        return int(getattr(self.objective, "num_particles", 1))

    @property
    def max_plate_nesting(self) -> int:
        """The ``max_plate_nesting`` of the objective."""
        return int(getattr(self.objective, "max_plate_nesting", 1))

    @property
    def latents(self) -> Any:
        """How the objective draws latents."""
        return getattr(self.objective, "latents", "pathwise")

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        estimate = evaluate_objective(self.objective, log_weights)
        if estimate.kind == "upper":
            raise ValueError(
                f"a regularizer was given beside {self.objective!r}, an upper bound; expected an objective that is "
                "maximised, such as ELBO or IWAE"
            )
        penalty = self.regularizer(log_weights)
        if penalty is None:
            return estimate
        still_lower = estimate.kind == "lower" and penalty.nonnegative
        surrogate = estimate.surrogate - penalty.surrogate if torch.is_grad_enabled() else estimate.surrogate
        return estimate._replace(
            value=estimate.value - penalty.value,
            surrogate=surrogate,
            kind="lower" if still_lower else "neither",
        )
