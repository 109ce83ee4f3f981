"""The estimators of a comparison: objectives by name, import path, class or instance, each at every K."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ppl_vae._validation import check_positive_int
from ppl_vae._words import one_line
from ppl_vae.comparison.entries import Entry, entry_of
from ppl_vae.comparison.entries import FunctionOfLogWeights as FunctionOfLogWeights  # from where these two have moved
from ppl_vae.comparison.entries import split_at_commas as split_at_commas
from ppl_vae.comparison.words import at_k
from ppl_vae.objectives.losses import as_loss


@dataclass(frozen=True)
class Contender:
    """One estimator in a comparison.

    Attributes:
        name: The name, without K: ``"MIWAE(groups=4)"``.
        num_particles: K; 1 for an objective that takes no particles.
        objective: Any objective that `objectives.as_loss` accepts.
    """

    name: str
    num_particles: int
    objective: Any

    @property
    def key(self) -> tuple[str, int]:
        """Name and K, which identify a contender."""
        return self.name, self.num_particles


class Undefined(NamedTuple):
    """An estimator that does not exist at a K, and the reason that its constructor gives."""

    name: str
    num_particles: int
    reason: str


@dataclass(frozen=True)
class Contenders(Sequence[Contender]):
    """The estimators of a comparison, as a sequence, and the estimators that are left out.

    Attributes:
        items: The estimators that exist, in the order of the objectives, each at its K in turn.
        undefined: The estimators whose constructor refuses a K.
    """

    items: tuple[Contender, ...]
    undefined: tuple[Undefined, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


def contenders(objectives: object, particles: int | Iterable[int] = (1, 8, 64)) -> Contenders:
    """Return every objective at every K.

    An objective is

    - a string: a short name (``"IWAE"``) or an import path of your own class or function (``"mymodule.my_bound"``),
      with optional arguments as YAML: ``"MIWAE(groups=4)"``;
    - a class or another function of ``num_particles``: ``IWAE``, ``functools.partial(MIWAE, groups=4)``;
    - an object, ``IWAE(num_particles=5)``, which keeps its own K and appears once; so does what is given its K in a
      string or a ``partial``;
    - a function of log-weights;
    - one of Pyro's ELBO classes, with vectorised particles for K > 1 unless ``vectorize_particles`` is given;
    - a mapping from names of your choice to any of these.

    An objective that takes no particles (a sum over all latents) appears once. If a constructor refuses a K by a
    `ValueError`, that K is left out and noted in `undefined`.

    Args:
        objectives: One, or several in a list.
        particles: One K or several.

    Raises:
        TypeError: If an entry is none of these kinds.
        ValueError: If a name or an argument is unknown, two contenders have the same name and K, or none is left.

    Example:
        >>> [(c.name, c.num_particles) for c in contenders(["ELBO", "ArticleELBO(eps=0.0)"], [1, 8])]
        [('ELBO', 1), ('ELBO', 8), ('ArticleELBO(eps=0.0)', 1), ('ArticleELBO(eps=0.0)', 8)]
    """
    several = tuple(particles) if isinstance(particles, Iterable) else (particles,)
    if not several:
        raise ValueError("particles is empty; expected at least one positive integer, such as (1, 8, 64)")
    several = tuple(dict.fromkeys(check_positive_int(k, "particles") for k in several))
    found: dict[tuple[str, int], Contender] = {}
    undefined: list[Undefined] = []
    for entry in _entries(objectives):
        for k in several[:1] if entry.once else several:
            try:
                objective = entry.make(k)
            except (ValueError, AssertionError) as error:  # Pyro refuses by assertions
                if entry.once:
                    raise
                undefined.append(Undefined(entry.name, k, one_line(error)))
                continue
            as_loss(objective)  # raises for an objective without a value or a gradient
            contender = Contender(entry.name, getattr(objective, "num_particles", 1), objective)
            if contender.key in found:
                raise ValueError(
                    f"objectives has two called {contender.name!r} at K = {contender.num_particles}; give one another "
                    "name by a mapping, {'my name': objective}"
                )
            found[contender.key] = contender
    if not found:
        why = f": {at_k(undefined[0])}: {undefined[0].reason}" if undefined else ""
        raise ValueError(f"objectives leave nothing to compare{why}")
    return Contenders(tuple(found.values()), tuple(undefined))


def _entries(objectives: object) -> Iterator[Entry]:
    if isinstance(objectives, Mapping):
        for name, entry in objectives.items():
            yield entry_of(entry)._replace(name=str(name))
    elif isinstance(objectives, (list, tuple)):
        for entry in objectives:
            yield from _entries(entry)
    else:
        yield entry_of(objectives)
