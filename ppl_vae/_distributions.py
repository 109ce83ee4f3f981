"""Functions of any distribution: its family, its base measure, its centre, and a check of prior against posterior."""

from __future__ import annotations

from typing import Any, Literal

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Independent

from ppl_vae._scopes import seeded

_DRAWS = 256  # where there is no closed form


def unwrapped(distribution: Any) -> Any:
    """Return a distribution without its `Independent` wrappers."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def describe(distribution: Any) -> str:
    """Return the name of a distribution's family."""
    return type(unwrapped(distribution)).__name__


def measure(distribution: Any) -> str:
    """Return the set that carries the density of a distribution: points, a sphere, a simplex or a region of space."""
    support = innermost(distribution.support)
    if support.is_discrete:
        return "a discrete set"
    if support is constraints.sphere:
        return "the unit sphere"
    is_simplex = support is constraints.simplex or getattr(support, "is_simplex", False)
    return "the simplex" if is_simplex else "a region of space"


def is_discrete(distribution: Any) -> bool:
    """Return whether a distribution says that its values are points apart."""
    try:
        return bool(innermost(distribution.support).is_discrete)
    except (AttributeError, NotImplementedError):
        return False


def innermost(support: Any) -> Any:
    """Return a constraint without its `independent` wrappers."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def centre(distribution: Any) -> Tensor:
    """Return one representative point of a distribution, of its batch and event shape.

    The point is the mean. On a sphere or a discrete set, where the mean lies outside the support, it is the mode.
    Without a closed form it is the mean of 256 draws, which are the same in every call.
    """
    means_lie_inside = measure(distribution) in ("a region of space", "the simplex")
    return _closed_form(distribution, "mean" if means_lie_inside else "mode")


def expectation(distribution: Any) -> Tensor:
    """Return the mean, without a closed form that of 256 draws, which are the same in every call."""
    return _closed_form(distribution, "mean")


def _closed_form(distribution: Any, name: Literal["mean", "mode"]) -> Tensor:
    """Return the mean or the mode, without a closed form the mean of draws."""
    try:
        return getattr(distribution, name)
    except NotImplementedError:
        with seeded(0):
            return distribution.sample((_DRAWS,)).mean(0)


def check_same_space(p_z: Any, q_z: Any) -> None:
    """Refuse a posterior that puts mass where the prior has none.

    Raises:
        ValueError: If a distribution has no support, if the densities refer to different measures, or if draws of
            q(z|x) lie outside the support of p(z).
    """
    for role, distribution in (("prior", p_z), ("posterior", q_z)):
        if getattr(distribution, "support", None) is None:
            raise ValueError(f"{role} {describe(distribution)} does not say its support; give it a property support")
    if measure(p_z) != measure(q_z):
        raise ValueError(
            f"the prior {describe(p_z)} lives on {measure(p_z)} and the posterior {describe(q_z)} on {measure(q_z)}, "
            "so that their densities cannot be compared; choose a posterior for this prior"
        )
    with seeded(0):
        inside = p_z.support.check(q_z.sample((_DRAWS,)))
    if not inside.all():
        raise ValueError(
            f"the posterior {describe(q_z)} puts mass outside the support of the prior {describe(p_z)}, "
            "where the KL is infinite; choose a posterior for this prior"
        )
