"""The evaluation of a race, the same for every run: log p(x) and the ELBO of the same data, with the same noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from ppl_vae._distributions import measure
from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae._validation import check_choice
from ppl_vae.evidence.importance import importance
from ppl_vae.evidence.log_evidence import Method, log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives.losses import Program
from ppl_vae.vae import VAE

MakeEvidence = Callable[..., Evidence]

_ELBO_PARTICLES = 100  # draws for the ELBO, unless log p(x) itself is estimated from q(z|x)
_MOST_CONDITIONS = 100  # exact methods treat each condition separately


class Look(NamedTuple):
    """One evaluation of a program, in nats, means over data.

    Attributes:
        log_evidence: log p(x), or its estimate.
        error: The mean error bound of an exact log p(x); for an estimate the standard error of the mean, given data and
            program.
        elbo: The ELBO, K = 1.
    """

    log_evidence: float
    error: float
    elbo: float


class Evaluator:
    """An evaluator that finds log p(x) of the same data in the same way each time.

    Args:
        columns: The data, each (n, ...).
        evidence: ``"auto"`` (exact where that takes reasonable time, else importance sampling from q(z|x)), a method of
            `evaluation.log_evidence`, or a function ``evidence(program, *columns)`` -> `Evidence`.
        num_particles: K of importance sampling.
        seed: The seed of the noise.
    """

    def __init__(
        self, columns: tuple[Tensor, ...], evidence: Method | MakeEvidence, num_particles: int, seed: int = 0
    ) -> None:
        if not callable(evidence):
            check_choice(evidence, get_args(Method), "race: evidence")
        self.columns, self.evidence, self.num_particles, self.seed = columns, evidence, num_particles, seed

    def choose(self, program: VAE | Program) -> Method | MakeEvidence:
        """Return the method for a program; ``"auto"`` is resolved by a trial on the first datum."""
        if self.evidence != "auto":
            return self.evidence
        conditions = len(self.columns[1].unique(dim=0)) if len(self.columns) > 1 else 1
        if not isinstance(program, VAE) or conditions > _MOST_CONDITIONS:
            return "posterior"
        x, *y = (column[:1] for column in self.columns)
        with torch.no_grad(), evaluation_mode(program):
            space = measure(program.p_z(*y))
        # three dimensions take seconds per datum to integrate: too slow for repeated evaluation
        exact: Method = "closed form" if space == "a region of space" and program.latent_shape[0] > 2 else "exact"
        try:
            log_evidence(program, x, *y, method=exact, seed=self.seed)
        except ValueError:
            return "posterior"
        return exact

    def __call__(self, program: VAE | Program, method: Method | MakeEvidence) -> tuple[Look, Evidence]:
        """Evaluate a program.

        Raises:
            ValueError: If log p(x) of a datum is not finite, or the method does not apply.
        """
        with torch.no_grad(), untouched_random_state():
            torch.manual_seed(self.seed)
            found = self._evidence(program, method)
            elbo: Any = found.details.get("elbo") if method == "posterior" else None
            if elbo is None:
                elbo = self._importance(program, _ELBO_PARTICLES).details["elbo"]
        values, n = found.log_evidence, len(found)
        if not values.isfinite().all():
            raise ValueError(f"log p(x) is not finite for {int((~values.isfinite()).sum())} of {n} data")
        errors: Any = found.details.get("standard_error", found.error)
        error = errors.mean() if found.kind == "exact" else errors.square().sum().sqrt() / n
        return Look(found.mean, float(error), float(elbo.mean())), found

    def _evidence(self, program: VAE | Program, method: Method | MakeEvidence) -> Evidence:
        if callable(method):
            return method(program, *self.columns)
        if method == "posterior":
            return self._importance(program, self.num_particles)
        return log_evidence(program, *self.columns, method=method, num_particles=(self.num_particles,), seed=self.seed)

    def _importance(self, program: VAE | Program, num_particles: int) -> Evidence:
        """Estimate log p(x) by samples of q(z|x); a conditional VAE runs as a program, which takes any condition."""
        if isinstance(program, VAE) and len(self.columns) > 1:
            program = (program.model, program.guide)
        return importance(program, *self.columns, num_particles=num_particles, proposal="posterior", seed=self.seed)


def in_words(method: Method | MakeEvidence, found: Evidence, num_particles: int) -> str:
    """Return the name of the method: ``"quadrature"``, ``"importance sampling from q(z|x), K = 1000"``."""
    if method == "posterior":
        return f"importance sampling from q(z|x), K = {num_particles}"
    if found.method == "importance" and not callable(method):
        return f"importance sampling from the defensive proposal, K = {num_particles}"
    return found.method
