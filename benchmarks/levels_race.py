"""How often what a race says of the best is false: the intervals and claims of `beside_the_best`, simulated.

    OMP_NUM_THREADS=1 python benchmarks/levels_race.py    # writes benchmarks/results/levels_race.md

Races of 2 to 12 contenders over 3 to 10 seeds are drawn with known true means. Beside the package's own function stand
the rule before it (paired t intervals against the contender with the highest mean, Bonferroni over the others) and
Hsu's constrained intervals, where "ends at 0" is read as "is behind the best".
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ppl_vae._machine import processor
from ppl_vae.comparison.statistics.seeds import beside_the_best

Array = NDArray[np.float64]

CONTENDERS = (2, 3, 4, 6, 8, 12)
SEEDS = (3, 5, 10)
ALPHA = 0.05
_CHUNK = 1000

TRUTHS: dict[str, Callable[[int], Array]] = {
    "all equal": np.zeros,
    "one best by 1": lambda k: -1.0 * (np.arange(k) > 0),
    "one best by 10": lambda k: -10.0 * (np.arange(k) > 0),
    "two best by 3": lambda k: -3.0 * (np.arange(k) > 1),
    "half best by 3": lambda k: -3.0 * (np.arange(k) >= (k + 1) // 2),
    "staircase of 1": lambda k: -1.0 * np.arange(k),
}

Noise = Callable[[np.random.Generator, tuple[int, int, int]], Array]


def _correlated(rng: np.random.Generator, shape: tuple[int, int, int], spreads: tuple[float, float]) -> Array:
    """Seeds that move all by 10, each by a little more or less, and spreads of their own from the first to the last."""
    repeats, k, n = shape
    common = (10 + np.linspace(-1, 1, k)[:, None]) * rng.standard_normal((repeats, 1, n))
    return common + np.geomspace(*spreads, k)[:, None] * rng.standard_normal(shape)


def _lognormal(
    rng: np.random.Generator, shape: tuple[int, int, int], spreads: tuple[float, float] = (1.0, 1.0)
) -> Array:
    """Of the standard deviation of the first spread for the first contender, of the second for the others; mean 0."""
    scale = np.where(np.arange(shape[1]) == 0, *spreads)[:, None]
    return scale * (rng.lognormal(0, 1, shape) - np.e**0.5) / (np.e**2 - np.e) ** 0.5


def _failing(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    values = rng.standard_normal(shape)
    lost = rng.random(shape) < 0.15
    lost[:, 0, 0] &= ~lost.all((1, 2))  # somebody has a value
    return np.where(lost, np.nan, values)


NORMAL: dict[str, Noise] = {
    "independent": lambda rng, shape: rng.standard_normal(shape),
    "correlated, the first the steadiest": lambda rng, shape: _correlated(rng, shape, (0.1, 3.0)),
    "correlated, the first the roughest": lambda rng, shape: _correlated(rng, shape, (3.0, 0.1)),
    "15% of the runs failed": _failing,
}
OTHERS: dict[str, Noise] = {
    "Student's t, 3 degrees": lambda rng, shape: rng.standard_t(3, shape) / 3**0.5,
    "lognormal": lambda rng, shape: _lognormal(rng, shape),
    "lognormal, the first ten times rougher": lambda rng, shape: _lognormal(rng, shape, (1.0, 0.1)),
    "the same, tails below": lambda rng, shape: -_lognormal(rng, shape, (1.0, 0.1)),
}


class Rates(NamedTuple):
    """Shares of races with all intervals right, a false "behind", a false "best"; of those behind, how many found."""

    covered: float
    behind: float
    best: float
    found: float


class Cell(NamedTuple):
    """One setting, and the rates of each rule."""

    truth: str
    noise: str
    contenders: int
    seeds: int
    before: Rates
    hsu: Rates
    after: Rates


def cell(truth: str, noise: str, draw: Noise, k: int, n: int, repeats: int, rng: np.random.Generator) -> Cell:
    """Draw races and count."""
    theta = TRUTHS[truth](k)
    parts = []
    for start in range(0, repeats, _CHUNK):
        values = theta[:, None] + draw(rng, (min(_CHUNK, repeats - start), k, n))
        parts.append([rule(theta, values) for rule in (_before, _hsu, _after)])
    rates = [Rates(*(_mean(np.concatenate(x)) for x in zip(*rule, strict=True))) for rule in zip(*parts, strict=True)]
    return Cell(truth, noise, k, n, *rates)


def _mean(numbers: Array) -> float:
    some = numbers[~np.isnan(numbers)]
    return float(some.mean()) if len(some) else float("nan")


def _full(values: Array) -> NDArray[np.bool_]:
    """Those with the most seeds, (repeats, k)."""
    seeds = (~np.isnan(values)).sum(-1)
    return seeds == seeds.max(-1, keepdims=True)


def _score(
    theta: Array,
    values: Array,
    covered: NDArray[np.bool_],
    behind: NDArray[np.bool_],
    best: NDArray[np.bool_],
    against: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """What `Rates` averages, by race: of the claims `behind` (the best, or `against`) and `best`, both (repeats, k)."""
    top = np.where(_full(values), theta, -np.inf).max(-1, keepdims=True)
    truly = np.broadcast_to(theta, behind.shape) < top
    false_behind = (behind & (theta >= (top if against is None else against))).any(-1)
    with np.errstate(invalid="ignore"):
        found = (behind & truly).sum(-1) / np.where(truly.any(-1), truly.sum(-1), np.nan)
    return covered.astype(float), false_behind.astype(float), (best & truly).any(-1).astype(float), found


def _after(theta: Array, values: Array) -> tuple[Array, ...]:
    said = beside_the_best(values)
    others = np.where(_full(values)[:, None, :] & ~np.eye(len(theta), dtype=bool), theta, -np.inf).max(-1)
    with np.errstate(invalid="ignore"):
        truth = theta - others
    right = (said.low <= truth) & (truth <= said.high)
    alone = said.may_be_best & (said.may_be_best.sum(-1, keepdims=True) == 1)
    return _score(theta, values, right.all(-1), said.high < 0, alone)


def _before(theta: Array, values: Array) -> tuple[Array, ...]:
    means = np.where(_full(values), np.nansum(values, -1), -np.inf)
    chosen = means.argmax(-1)[:, None]
    mean, half = _paired(values - np.take_along_axis(values, chosen[..., None], 1), values, sides=2)
    truth = theta - theta[chosen]
    itself = np.arange(len(theta)) == chosen
    right = (np.abs(mean - truth) <= half) | itself | np.isnan(mean)
    behind = (mean + half < 0) & ~itself
    best = itself & (behind | itself).all(-1, keepdims=True)
    return _score(theta, values, right.all(-1), behind, best, theta[chosen])


def _hsu(theta: Array, values: Array) -> tuple[Array, ...]:
    full = _full(values)
    rivals = full[:, None, :] & ~np.eye(len(theta), dtype=bool)
    mean, half = _paired(values[:, :, None] - values[:, None], values[:, :, None], sides=1)
    mean = np.where(np.isnan(mean), 0.0, mean)
    upper = np.min(mean + half, -1, where=rivals, initial=np.inf)
    may = full & (upper >= 0)
    behind = upper < 0
    alone = may & (may.sum(-1, keepdims=True) == 1)
    lower = np.minimum(np.min(mean - half, -1, where=rivals & may[:, None], initial=np.inf), 0.0)
    with np.errstate(invalid="ignore"):
        truth = theta - np.where(rivals, theta, -np.inf).max(-1)
    right = (np.where(full, lower, -np.inf) <= truth) & (truth <= np.where(full, np.maximum(upper, 0.0), np.inf))
    return _score(theta, values, right.all(-1), behind, alone)


def _paired(differences: Array, values: Array, *, sides: int) -> tuple[Array, Array]:
    """Means and half-widths of differences (repeats, ..., seeds), Bonferroni over all contenders but one."""
    some = (~np.isnan(values)).any(-1).reshape(len(values), -1).sum(-1)
    n = (~np.isnan(differences)).sum(-1)
    mean = np.where(n > 0, np.nansum(differences, -1) / np.maximum(n, 1), np.nan)
    squares = np.nansum((differences - mean[..., None]) ** 2, -1)
    m = np.maximum(some - 1, 1).reshape(-1, *[1] * (n.ndim - 1))
    table = stats.t.ppf(1 - ALPHA / (sides * np.arange(1, m.max() + 1)[:, None]), np.arange(1, max(2, n.max())))
    quantile = table[m - 1, np.maximum(n, 2) - 2]
    return mean, np.where(n > 1, quantile * np.sqrt(squares / (np.maximum(n, 2) * np.maximum(n - 1, 1))), np.inf)


def report(cells: list[Cell], repeats: int, seconds: float) -> str:
    """The tables."""
    normal = [c for c in cells if c.noise in NORMAL]
    worst = min(normal, key=lambda c: c.after.covered)
    error = 100 * (ALPHA * (1 - ALPHA) / repeats) ** 0.5
    text = f"""# What a race says of the best, and how often it is false

`OMP_NUM_THREADS=1 python benchmarks/levels_race.py`, {repeats:,} races for each of {len(cells)} settings,
{seconds / 60:.1f} minutes on one thread ({processor()}; NumPy {np.__version__}, {date.today().isoformat()}).
In per cent; the aim is at most 5, whose standard error is {error:.2f} (the worst of many settings lies three or four of
them above what is true of it).

- **missed**: races in which not all intervals hold the truth. Before: the true difference to the contender with the
  highest mean, which is what was said; Hsu, after: the true difference to the best of the others.
- **"behind"**: races in which a contender is said to be behind and is not. Before: behind the one with the highest
  mean; Hsu, after: behind the best. Hsu's intervals end at 0 for such a contender, which says that it is not the only
  best; read as behind, that is false where several are equally good.
- **"best"**: races in which a contender is said to have the highest log p(x) and has not.
- **found**: of the contenders that are behind the best, how many are said to be, the mean over settings.

The unit is a contender's standard deviation over seeds. Correlated: seeds move all by 10, each by up to a tenth more or
less, and their own spreads are 0.1 to 3.

Most missed with normal noise, after: {100 * (1 - worst.after.covered):.2f} ({worst.truth}, {worst.noise},
{worst.contenders} contenders, {worst.seeds} seeds).

## By contenders and seeds, the worst over truths, normal noise
"""
    lines = text.splitlines() + [""]
    sizes = itertools.product(CONTENDERS, SEEDS)
    groups = [(f"{k} | {n}", [c for c in normal if (c.contenders, c.seeds) == (k, n)]) for k, n in sizes]
    lines += _table("contenders | seeds", groups)
    for title, noises in (("normal noise", NORMAL), ("other noise, of which nothing is promised", OTHERS)):
        lines += ["", f"## By truth, the worst over contenders and seeds, {title}", ""]
        pairs = itertools.product(TRUTHS, noises)
        groups = [(f"{t} | {name}", [c for c in cells if (c.truth, c.noise) == (t, name)]) for t, name in pairs]
        lines += _table("truth | noise", groups)
    return "\n".join(lines) + "\n"


def _table(first: str, groups: list[tuple[str, list[Cell]]]) -> list[str]:
    rules = ("before", "Hsu", "after")
    figures = [f"{figure}, {rule}" for figure in ("missed", '"behind"', '"best"', "found") for rule in rules]
    lines = [f"| {first} | {' | '.join(figures)} |", "|" + "---|" * (2 + len(figures))]
    for name, cells in groups:
        rates = [[c.before for c in cells], [c.hsu for c in cells], [c.after for c in cells]]
        row = [1 - min(r.covered for r in some) for some in rates]
        row += [max(r.behind for r in some) for some in rates]
        row += [max(r.best for r in some) for some in rates]
        found = [_mean(np.array([r.found for r in some])) for some in rates]
        shown = [f"{100 * x:.1f}" for x in row] + ["" if np.isnan(x) else f"{100 * x:.0f}" for x in found]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "levels_race.md")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rng = np.random.default_rng(0)
    cells = [
        cell(truth, name, draw, k, n, arguments.repeats, rng)
        for truth in TRUTHS
        for name, draw in (NORMAL | OTHERS).items()
        for k in CONTENDERS
        for n in SEEDS
    ]
    arguments.out.write_text(report(cells, arguments.repeats, time.perf_counter() - began))
    print(arguments.out)


if __name__ == "__main__":
    main()
