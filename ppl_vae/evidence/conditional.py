"""The evaluation of a conditional model under one condition at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ppl_vae._scopes import evaluation_mode
from ppl_vae.evidence.densities import Model
from ppl_vae.evidence.results import Evidence

if TYPE_CHECKING:
    from jaxtyping import Float

MOST = 1000  # conditions that are evaluated one after another
MANY = 50  # of a method that scores row by row, which above takes all data together

Found = TypeVar("Found")


class ConditionalDensities:
    """The densities of a conditional model, each datum under its own condition, for methods that score row by row.

    A datum is x and its condition side by side, (size,), see `joined`. Where most data have a condition of their own,
    as with a library size, this takes a fraction of the time that one condition after another takes.
    """

    def __init__(self, vae: Model) -> None:
        self.vae: Any = vae
        self.modules = [cast(nn.Module, vae)]
        (self.latent_dim,) = vae.latent_shape

    def joined(self, x: Tensor, y: Tensor) -> Float[Tensor, " n size"]:
        """Return data for these densities."""
        _check_as_many(x, y)
        y = y if y.is_floating_point() or y.dim() > 1 else self.vae._one_hot(y)
        return torch.cat([x.flatten(1), y.to(x)], 1)

    def prior_sample(self, x: Float[Tensor, " n size"], size: int) -> Float[Tensor, "size n d"]:
        """Draw `size` latents from p(z|y) for every datum."""
        with evaluation_mode(self.vae):
            return self.vae.p_z(self._parts(x)[1]).expand((size, len(x))).sample()

    def log_prior(self, x: Float[Tensor, " n size"], z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """Return log p(z_k|y)."""
        with evaluation_mode(self.vae):
            return self.vae.p_z(self._parts(x)[1]).log_prob(z)

    def log_likelihood(self, x: Float[Tensor, " n size"], z: Float[Tensor, "K n d"]) -> Float[Tensor, "K n"]:
        """Return log p(x|z_k, y)."""
        x, y = self._parts(x)
        with evaluation_mode(self.vae):
            return self.vae.p_x(z, y.expand(len(z), *y.shape)).log_prob(x)

    def posterior(self, x: Float[Tensor, " n size"]) -> Any:
        """Return q(z|x, y)."""
        with evaluation_mode(self.vae):
            return self.vae.q_z(*self._parts(x))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x.split([x.shape[1] - self.vae.y_shape[0], self.vae.y_shape[0]], 1)
        return x.reshape(-1, *self.vae.x_shape), y


def _check_as_many(x: Tensor, y: Tensor) -> None:
    if len(y) != len(x):
        raise ValueError(f"{len(x)} data were given with {len(y)} conditions; expected one for each datum")


def many_conditions(y: Tensor, most: int = MANY) -> bool:
    """Whether there are more conditions than should be evaluated one after another."""
    return len(y) > most and len(y.unique(dim=0)) > most


def found_by_condition(
    vae: Model, x: Tensor, y: Tensor, find: Callable[[Model, Tensor], Found]
) -> tuple[list[Found], Tensor]:
    """Return the results of `find` for each condition, and the place of each datum in their concatenation.

    Args:
        vae: A conditional model.
        x: The data, (n, *x_shape).
        y: Their conditions, (n, k), or labels (n,).
        find: A function of the model given one condition, and of the data of this condition.

    Raises:
        ValueError: If the numbers of conditions and data differ, or more than a thousand conditions are different.
    """
    _check_as_many(x, y)
    values, member = y.unique(dim=0, return_inverse=True)
    if len(values) > MOST:
        raise ValueError(
            f"the data have {len(values)} different conditions; expected at most {MOST}, as each is evaluated by "
            "itself: take fewer data, or weigh the program, importance((vae.model, vae.guide), x, y, "
            "proposal='posterior')"
        )
    rows = [(member == i).nonzero()[:, 0] for i in range(len(values))]
    parts = [find(given(vae, value), x[index]) for value, index in zip(values, rows, strict=True)]
    return parts, torch.cat(rows).argsort()


def given(vae: Model, value: Tensor) -> Model:
    """Return the model of one condition, (k,), or label, ()."""
    return vae.given(value if value.dim() else int(value))


def evidence_by_condition(vae: Model, x: Tensor, y: Tensor, find: Callable[[Model, Tensor], Evidence]) -> Evidence:
    """Return the evidence that `find` computes for the data of each condition, in the order of the data."""
    parts, place = found_by_condition(vae, x, y, find)
    whole = Evidence.joined(parts, largest=["rounding", "num_states"], same=["prior_mass"])
    details = {n: v[place] if isinstance(v, Tensor) and v.dim() else v for n, v in whole.details.items()}
    return replace(whole, log_evidence=whole.log_evidence[place], error=whole.error[place], details=details)
