"""Log p(x) by the best method that a model allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from torch import Tensor

from ppl_vae._distributions import measure
from ppl_vae._home import at_home
from ppl_vae._team import ALONE, Team
from ppl_vae._validation import check_choice, check_rows
from ppl_vae.evidence.annealing import annealed
from ppl_vae.evidence.conditional import MANY, MOST, evidence_by_condition, many_conditions
from ppl_vae.evidence.densities import Model, VAEDensities, densities_of
from ppl_vae.evidence.enumeration import enumerate_evidence, states_of
from ppl_vae.evidence.importance import importance, particle_counts
from ppl_vae.evidence.linear_gaussian import closed_form_evidence
from ppl_vae.evidence.quadrature import quadrature
from ppl_vae.evidence.results import Evidence
from ppl_vae.evidence.sumo import sumo
from ppl_vae.objectives.losses import Program

if TYPE_CHECKING:
    from jaxtyping import Float

Method = Literal["auto", "exact", "closed form", "enumeration", "quadrature", "importance", "posterior", "sumo", "ais"]

ROWS = 256  # data between two seeds of methods that draw
Find = Callable[[Tensor, int], Evidence]

_COST = 12  # particles of a repetition of `sumo`, on average


@at_home("x", "y", float64=True)
def log_evidence(
    program: Model | Program,
    x: Float[Tensor, " n *x_shape"],
    y: Tensor | None = None,
    *,
    method: Method = "auto",
    num_particles: int | tuple[int, ...] = (100, 1000, 5000),
    tolerance: float = 1e-3,
    seed: int = 0,
    team: Team = ALONE,
) -> Evidence:
    r"""Return log p(x) of each datum, exact where possible.

    ``"auto"`` takes the first of these methods that applies:

    - the closed form of a linear-Gaussian model;
    - a sum over the states of a discrete latent (up to 65,536);
    - quadrature for a `VAE` with a latent of up to three dimensions;
    - importance sampling from the defensive proposal, or from q(z|x) where a `VAE`'s latent is discrete or lies on a
      sphere or simplex. This is a lower bound in expectation. Its error is infinite for data whose estimate it finds
      unreliable.

    ``"exact"`` takes one of the first three, or raises an error. A model that scores more than x has a method
    ``evidence(x, y, **options)`` of its own, which is called in their place (`programs.SemiSupervisedVAE`).

    Args:
        program: The `VAE`, or a ``(model, guide)`` pair with one latent site (importance sampling and AIS only), or
            with any number of them (``"posterior"`` only).
        x: The data.
        y: The conditions of a conditional model, (n, k), or labels (n,). The result is then log p(x|y), computed for
            the data of each condition separately. With more than 50 conditions, as library sizes are, ``"auto"``
            samples from q(z|x, y), all data together, unless quadrature of up to a thousand conditions applies.
        method: ``"auto"``, ``"exact"``, or the name of one method: ``"closed form"``, ``"enumeration"``,
            ``"quadrature"``, ``"importance"`` (defensive proposal), ``"posterior"`` (importance sampling from q(z|x),
            the field's usual estimate, which misses what q misses), ``"sumo"`` (Russian roulette over the number of
            draws from q(z|x); little bias, much noise), ``"ais"`` (annealed importance sampling; slow).
        num_particles: K of importance sampling. Several values give estimates side by side. `sumo` makes as many
            repetitions as cost the largest K on average.
        tolerance: The error that quadrature aims at, nats per datum.
        seed: The seed of all draws; the global random state is left alone. Methods that draw begin anew, from the next
            seed, with every 256 data.
        team: The processes that share the data; each gets the evidence of all. Their figures are those of one process.

    Raises:
        ValueError: If the method does not apply to the model, or the data do not fit it.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(1), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> log_evidence(vae, vae.sample(3, mean=False)).method
        'quadrature'
    """
    check_choice(method, get_args(Method), "log_evidence: method")
    options: dict[str, Any] = {"method": method, "num_particles": num_particles, "tolerance": tolerance, "seed": seed}
    if (own := getattr(program, "evidence", None)) is not None:
        return own(x, y, **options)
    check_rows([x], "log_evidence")
    if isinstance(program, Model) and (program.y_shape is not None or y is not None):
        if y is None or program.y_shape is None:
            raise ValueError(
                "log_evidence: a conditional VAE takes data and conditions, (x, y), any other takes x alone"
            )
        vae: Any = program
        most = MOST if method == "auto" and vae.latent_shape[0] <= 3 else MANY  # quadrature under each condition
        if method in ("auto", "posterior") and len(y) == len(x) and many_conditions(y, most):
            return importance((vae.model, vae.guide), x, y, num_particles=num_particles, seed=seed)
        return evidence_by_condition(program, x, y, partial(log_evidence, team=team, **options))
    find, draws = _finder(program, x, method, num_particles, tolerance)
    size = ROWS if draws else max(1, math.ceil(len(x) / team.size))
    starts = range(0, max(1, len(x)), size)
    parts = team.share([partial(find, x[i : i + size], seed + i * draws) for i in starts], "the evidence")
    return parts[0] if len(parts) == 1 else Evidence.joined(parts)


def _finder(
    program: Model | Program, x: Tensor, method: str, num_particles: int | tuple[int, ...], tolerance: float
) -> tuple[Find, bool]:
    """Return the function of data and a seed that finds their evidence, and whether it draws at random."""
    exact = ("auto", "exact", "closed form", "enumeration", "quadrature")
    if isinstance(program, Model) and method in exact:
        densities = VAEDensities(program)
        space = measure(prior := densities.prior())
        if method in ("auto", "exact", "closed form") and closed_form_evidence(program, x[:1]) is not None:
            return lambda x, _: cast(Evidence, closed_form_evidence(program, x)), False
        if method == "enumeration" or (space == "a discrete set" and method in ("auto", "exact")):
            try:
                states_of(prior)
                return lambda x, _: enumerate_evidence(densities, x), False
            except ValueError:
                if method != "auto":
                    raise
        few = densities.latent_dim <= 3 and space == "a region of space"
        if method == "quadrature" or (few and method in ("auto", "exact")):
            return lambda x, seed: quadrature(densities, x, tolerance=tolerance, seed=seed), False
        if method == "auto" and space != "a region of space":
            method = "posterior"  # the defensive proposal is made of normals
    if method in exact and method != "auto":
        what = f"a VAE with {densities.latent_dim} latents" if isinstance(program, Model) else "a (model, guide) pair"
        raise ValueError(f"log_evidence: method {method!r} does not apply to {what}; use 'importance' or 'ais'")
    if method == "ais":
        return lambda x, seed: annealed(densities_of(program, x), x, seed=seed), True
    proposal = "posterior" if method in ("posterior", "sumo") else "defensive"
    whole = proposal == "posterior" and not isinstance(program, Model)  # of a pair with any number of latent sites
    source: Any = tuple(program) if whole else densities_of(program, x)  # type: ignore[arg-type]
    if method == "sumo":
        repetitions = max(2, particle_counts(num_particles)[-1] // _COST)
        return lambda x, seed: sumo(source, x, repetitions=repetitions, seed=seed), True
    return lambda x, seed: importance(source, x, num_particles=num_particles, proposal=proposal, seed=seed), True
