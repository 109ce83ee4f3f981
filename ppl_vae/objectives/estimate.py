r"""The contract of an objective: from log-weights to an estimate.

An *objective* is a callable ``objective(log_weights) -> Estimate``. A function that returns a tensor of shape (batch,)
is an objective too: that tensor is both differentiated and reported. Optional attributes, with their defaults:
``num_particles`` (1), ``max_plate_nesting`` (1), and ``latents``, which states how latents are drawn ("pathwise"; see
`objectives.sampling`). For comparisons an objective may have a ``reference``: the objective whose gradient it claims to
have in expectation. An objective need not inherit from any class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ppl_vae._validation import check_positive_int
from ppl_vae.objectives.log_weights import LogWeights, owner

if TYPE_CHECKING:
    from jaxtyping import Float

Kind = Literal["lower", "upper", "neither"]


class Estimate(NamedTuple):
    """The result of an objective for a batch; nats per datum.

    Attributes:
        value: The estimate. It is reported, never differentiated.
        surrogate: The function that is differentiated and maximised. Its value means nothing by itself.
        kind: ``"lower"`` if the expectation of `value` is a lower bound of log p(x), ``"upper"`` if `value` estimates
            an upper bound, else ``"neither"``. An estimate of an upper bound with an average inside a logarithm is too
            low for the bound.
        kl: The KL at K = 1 and beta = 1, if the objective knows it better than by sampling.
        log_likelihood: The expectation of log p(x|z) under q, if the objective knows it better than by sampling.

    Example:
        >>> import math
        >>> def iwae(log_weights):
        ...     bound = log_weights.log_w.logsumexp(0) - math.log(log_weights.num_particles)
        ...     return Estimate(bound.detach(), bound, "lower")
    """

    value: Float[Tensor, " batch"]
    surrogate: Float[Tensor, " batch"]
    kind: Kind
    kl: Float[Tensor, " batch"] | None = None
    log_likelihood: Float[Tensor, " batch"] | None = None


class Objective(Protocol):
    """The interface of an objective for training, evaluation and comparison."""

    def __call__(self, log_weights: LogWeights) -> Estimate | Float[Tensor, " batch"]:
        """Return the estimate for each datum."""
        ...


@dataclass(frozen=True)  # without fields: help reads the options of classes whose bases are all dataclasses
class Following:
    """An objective that claims to have the gradient of another class of as many particles, in expectation."""

    _follows: ClassVar[type[ManyParticles]]

    @property
    def reference(self: Any) -> Any:
        """The objective whose gradient this one claims to have in expectation."""
        return self._follows(self.num_particles)


@dataclass(frozen=True)
class ManyParticles:
    """The base of the objectives of this package: a checked number of particles."""

    num_particles: int = 8

    def __post_init__(self) -> None:
        check_positive_int(self.num_particles, f"{owner(self)}: num_particles")

    def _require_several(self, fix: str) -> None:
        """Refuse one particle, where each is compared with the others."""
        if self.num_particles == 1:
            raise ValueError(
                f"{owner(self)}: num_particles is 1, and each particle is compared with the others; expected at least "
                f"2, or use {fix}"
            )


def sampling_of(objective: object) -> dict[str, Any]:
    """Return the options of `sample_log_weights` that an objective states, or their defaults."""
    defaults = {"num_particles": 1, "max_plate_nesting": 1, "latents": "pathwise"}
    return {name: getattr(objective, name, default) for name, default in defaults.items()}


def evaluate_objective(objective: Objective, log_weights: LogWeights) -> Estimate:
    """Apply an objective to log-weights, and check that it returns one value per datum."""
    if log_weights.spent and torch.is_grad_enabled():
        raise ValueError(
            f"objective {objective!r} was given log-weights whose path another objective has weighted, so that its "
            "gradient would be wrong; sample new ones for each objective"
        )
    result = objective(log_weights)
    if isinstance(result, Tensor):
        if sampling_of(objective)["latents"] == "pathwise":  # the tensor is itself differentiated
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
