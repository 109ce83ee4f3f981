r"""The objective's contract: from log-weights to an estimate.

An *objective* is a callable ``objective(log_weights) -> Estimate``; a function that returns a tensor of shape (batch,)
is one as well (differentiated and reported as it is). Optional attributes: ``num_particles`` (1), ``max_plate_nesting``
(1), ``latents`` (how they are drawn, "pathwise"; see `objectives.sampling`), and for comparisons ``reference``, the
objective whose gradient it claims to have in expectation. Nothing is inherited.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ppl_vae.objectives.log_weights import LogWeights

Kind = Literal["lower", "upper", "neither"]


class Estimate(NamedTuple):
    """What an objective says of a batch; nats per datum.

    Attributes:
        value: The estimate itself, (batch,). Reported, never differentiated.
        surrogate: What is differentiated and maximised, (batch,). Its value means nothing by itself.
        kind: Whether `value` is in expectation a lower bound of log p(x), or else estimates an upper bound (which an
            average inside a logarithm is too low for), or neither.
        kl: The KL at K = 1 and beta = 1 if the objective knows it better than by sampling, (batch,).
        log_likelihood: The expected log p(x|z) under q likewise, (batch,).

    Example:
        >>> import math
        >>> def iwae(log_weights):
        ...     bound = log_weights.log_w.logsumexp(0) - math.log(log_weights.num_particles)
        ...     return Estimate(bound.detach(), bound, "lower")
    """

    value: Tensor
    surrogate: Tensor
    kind: Kind
    kl: Tensor | None = None
    log_likelihood: Tensor | None = None


class Objective(Protocol):
    """What training, evaluation and comparison need of an objective."""

    def __call__(self, log_weights: LogWeights) -> Estimate | Tensor:
        """Return the estimate for each datum, an `Estimate` or a tensor of shape (batch,)."""
        ...


def owner(objective: object) -> str:
    """Return what an objective is called in messages."""
    return f"objective {type(objective).__name__}"


def evaluate_objective(objective: Objective, log_weights: LogWeights) -> Estimate:
    """Apply an objective to log-weights, and check that it speaks per datum."""
    if log_weights.spent and torch.is_grad_enabled():
        raise ValueError(
            f"objective {objective!r} was given log-weights whose path another objective has weighted, so that its "
            "gradient would be wrong; sample new ones for each objective"
        )
    result = objective(log_weights)
    if isinstance(result, Tensor):
        if getattr(objective, "latents", "pathwise") == "pathwise":  # what is differentiated as it is needs a path
            log_weights.require_pathwise(getattr(objective, "__name__", type(objective).__name__))
        result = Estimate(result.detach(), result, "neither")
    batch = log_weights.log_lik.shape[1:]
    for name in ("value", "surrogate"):
        shape = getattr(getattr(result, name, None), "shape", None)
        if shape != batch:
            raise ValueError(
                f"objective {objective!r} returned a {name} of shape {shape and tuple(shape)}; "
                f"expected one value per datum, {tuple(batch)}: average over particles (dim 0), not over data"
            )
    return result
