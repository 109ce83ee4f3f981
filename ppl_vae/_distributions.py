"""What is asked of distributions of any kind: what lies inside, where it lives, which point stands for it."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Independent

from ppl_vae._scopes import untouched_random_state

_DRAWS = 256  # for what has no closed form


def unwrapped(distribution: Any) -> Any:
    """Return a distribution without its `Independent` wrappers."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def describe(distribution: Any) -> str:
    """Return the name of a distribution's family."""
    return type(unwrapped(distribution)).__name__


def measure(distribution: Any) -> str:
    """Return with respect to what a distribution has its density: points, a sphere, a simplex or the whole space."""
    support = innermost(distribution.support)
    if support.is_discrete:
        return "a discrete set"
    if support is constraints.sphere:
        return "the unit sphere"
    is_simplex = support is constraints.simplex or getattr(support, "is_simplex", False)
    return "the simplex" if is_simplex else "a region of space"


def innermost(support: Any) -> Any:
    """Return a constraint without its `independent` wrappers."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def centre(distribution: Any) -> Tensor:
    """Return one point of the support that stands for a distribution, of its batch and event shape.

    The mean; on a sphere or a discrete set, where the mean is no point of it, the mode. Where there is no closed form
    the mean of 256 draws, always the same ones.
    """
    try:
        flat = measure(distribution) in ("a region of space", "the simplex")  # where a mean of points is a point
        return distribution.mean if flat else distribution.mode
    except NotImplementedError:
        with untouched_random_state():
            torch.manual_seed(0)
            return distribution.sample((_DRAWS,)).mean(0)


def check_same_space(p_z: Any, q_z: Any) -> None:
    """Refuse a posterior that puts mass where the prior has none.

    Raises:
        ValueError: If the two have their densities with respect to different measures, or draws of q(z|x) lie outside
            the support of p(z).
    """
    for role, distribution in (("prior", p_z), ("posterior", q_z)):
        if getattr(distribution, "support", None) is None:
            raise ValueError(f"{role} {describe(distribution)} does not say its support; give it a property support")
    if measure(p_z) != measure(q_z):
        raise ValueError(
            f"the prior {describe(p_z)} lives on {measure(p_z)} and the posterior {describe(q_z)} on {measure(q_z)}, "
            "so that their densities cannot be compared; choose a posterior for this prior"
        )
    with untouched_random_state():
        torch.manual_seed(0)
        inside = p_z.support.check(q_z.sample((_DRAWS,)))
    if not inside.all():
        raise ValueError(
            f"the posterior {describe(q_z)} puts mass outside the support of the prior {describe(p_z)}, "
            "where the KL is infinite; choose a posterior for this prior"
        )
