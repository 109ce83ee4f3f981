r"""Adaptive quadrature over pairs of a datum and a cell of latent space, which are halved until nothing changes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae._distributions import unwrapped
from ppl_vae.evidence.densities import Score, VAEDensities, check_region, rounding
from ppl_vae.evidence.grids import Cells, Region, support
from ppl_vae.evidence.interpolation import CellRule, LogSums, Measured, cheapest
from ppl_vae.evidence.results import Evidence
from ppl_vae.evidence.rows import Rows

_NODES = {1: 10, 2: 8, 3: 6}  # of the log-likelihood on a cell, along each axis
_FINE = {1: 20, 2: 12, 3: 9}  # of the quadrature
_SIDE = {1: 0.25, 2: 0.5, 3: 1.0}  # of the first cells, in scales of the prior
_CERTAIN = 25.0  # a cell that holds at most so many nats below log p(x) is dropped without halving


class Sizes(NamedTuple):
    """How much is computed in one call.

    While halving, neighbouring cells are decoded together, and scored for every datum that needs any of them. More of
    them cost fewer calls and more scores that no datum needs: `latents` and `scores` are the most of a group, unless
    one cell alone has more.

    Attributes:
        latents: Latents decoded at once.
        scores: Pairs of a latent and a datum scored at once.
        nodes: Quadrature nodes in use at once, over all pairs: they fit a processor's cache.
    """

    latents: int
    scores: int
    nodes: int


_SIZES = {"cpu": Sizes(2**12, 2**18, 2**20), "cuda": Sizes(2**14, 2**23, 2**24)}


@dataclass
class Pairs(Rows):
    """Pairs of a datum and a cell: indices of both, the log of the integral over the cell, and its most; each (P,)."""

    row: Tensor
    cell: Tensor
    log_mass: Tensor
    reach: Tensor  # the log mass and its doubt


class Integral:
    """The state of `quadrature` for some data: the finished integrals, their cost and their errors."""

    def __init__(self, densities: VAEDensities, x: Tensor, tolerance: float, max_latents: int, max_bytes: int) -> None:
        self.densities, self.x = densities, x
        self.log_tolerance = math.log(tolerance)
        self.max_latents, self.max_bytes = max_latents, max_bytes
        self._sizes = _SIZES.get(x.device.type, _SIZES["cuda"])
        d, n, device = densities.latent_dim, len(x), x.device
        prior = densities.prior()
        if support(prior).is_discrete:
            raise ValueError(
                "quadrature was given a discrete prior; use enumerate_evidence, which sums over its support"
            )
        check_region(prior, "quadrature")
        z = prior.sample((1,))
        self.dtype = z.dtype
        self.rule = _rule(d, z)
        self.region = Region(prior, _SIDE[d], self.rule.fine, self.rule.log_weights)
        likelihood = unwrapped(densities.likelihood(z))
        self._values = 1 if type(likelihood) in (dist.Bernoulli, dist.Normal) else 8 * x[0].numel()  # held per score
        self.num_latents = self.num_scores = 0
        self.finished = LogSums(n, device, width=1 + d + d * d)  # with the sums of z and z z'
        self.change, self.dropped = LogSums(n, device), LogSums(n, device)
        self.best_mass = torch.full((n,), -math.inf, dtype=torch.float64, device=device)
        self.best_cell = torch.zeros(n, 2, d, dtype=torch.float64, device=device)  # centre and half
        self._look_at_q()
        self._coarse()
        self._refine()

    def evidence(self) -> Evidence:
        """Return the evidence, with every source of error in its details."""
        log_p = self.finished.log()
        parts = {
            "change_on_halving": (self.change.log() - log_p).exp(),
            "dropped": (self.dropped.log() - log_p).exp(),
            "mass_beyond": (self.log_beyond - log_p).exp(),
        }
        share = torch.stack(list(parts.values())).sum(0).nan_to_num(math.inf)
        numbers = {
            "rounding": rounding(self.densities, self.dtype, self._on_best_cells),
            "num_latents": float(self.num_latents),
            "num_scores": float(self.num_scores),
            "prior_mass": self.region.prior_mass,
        }
        error = -torch.log1p(-share.clamp(max=1.0)) + numbers["rounding"]
        if abs(self.region.prior_mass - 1) > 1e-2:
            error = torch.full_like(error, math.inf)
        return Evidence(log_p, error, "quadrature", "exact", {**parts, **numbers})

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean, (n, d), and covariance, (n, d, d), of the true posterior p(z|x)."""
        d = self.rule.dim
        ratios = self.finished.ratios()
        mean = ratios[:, :d]
        return mean, ratios[:, d:].unflatten(-1, (d, d)) - mean[:, :, None] * mean[:, None, :]

    def _look_at_q(self) -> None:
        """Score each datum at the mean of its q(z|x), where the interpolants are later compared with the truth."""
        rows = max(1, self.max_bytes // 8 // (64 * self.x[0].numel()))
        means, scores = [], []
        for x in self.x.split(rows):
            q = self.densities.posterior(x)
            try:
                z = q.mean
            except NotImplementedError:
                z = q.sample()
            means.append(z.double())
            scores.append(_checked(self.densities.log_likelihood(x, z[None].to(self.dtype))[0]).double())
        self.q_mean, self.f_at_q = torch.cat(means), torch.cat(scores)
        self.q_mean[self.f_at_q.isneginf()] = math.nan  # no mass to miss there, and no finite value to compare with
        self.num_latents += len(self.x)

    def _coarse(self) -> None:
        """Scan the inner cells, then shells until nothing beyond them matters; keep the pairs that may matter."""
        n = len(self.x)
        self._lower = LogSums(n, self.x.device)  # a low estimate of p(x): the masses less their doubts
        self.cells = self.region.inner
        self.pairs, best = self._scan(self.cells, 0)
        last, taken = best, 0
        for shell in self.region.shells:
            reach = (best if taken <= 3 else last) + self.region.log_beyond[taken]
            if (reach - self._lower.log() < self.log_tolerance - math.log(50)).all():
                break
            more, last = self._scan(shell, len(self.cells))
            best, taken = torch.maximum(best, last), taken + 1
            self.cells = Cells.joined([self.cells, shell])
            self.pairs = Pairs.joined([self.pairs, more])
        self.log_beyond = (best if taken <= 3 else last) + self.region.log_beyond[taken]

    def _scan(self, cells: Cells, offset: int) -> tuple[Pairs, Tensor]:
        """Return the pairs of these cells with any datum that may matter, and each datum's largest f."""
        n, p = len(self.x), len(self.rule.nodes)
        best = torch.full((n,), -math.inf, dtype=torch.float64, device=self.x.device)
        width = max(1, 2304 // p)
        kept = []
        for index in torch.arange(len(cells), device=self.x.device).split(width):
            block = cells[index]
            score, log_prior = self._decode(block), self.region.log_prior(block).to(self.dtype)
            for rows in torch.arange(n, device=self.x.device).split(self._rows(len(index), used=len(index))):
                k = len(rows)
                row, cell = rows.repeat_interleave(len(index)), index.repeat(k)
                measured = self.rule.measure(self._score(score, rows).reshape(k, len(index), p), log_prior)
                best[rows] = torch.maximum(best[rows], measured.top.reshape(k, -1).amax(-1))
                doubt = self._doubt(measured, row, block[cell - index[0]])
                self._lower.add(row, measured.log_mass - doubt)
                pairs = Pairs(row, cell + offset, measured.log_mass, measured.log_mass + doubt)
                kept.append(self._kept(pairs))
        return self._kept(Pairs.joined(kept)), best  # again, as the low estimate of p(x) has risen

    def _kept(self, pairs: Pairs) -> Pairs:
        """Return the pairs that may matter beside the low estimate of p(x), and drop the others."""
        keep = pairs.reach > self._lower.log()[pairs.row] - _CERTAIN
        self.dropped.add(pairs.row[~keep], pairs.reach[~keep])
        return pairs[keep]

    def _refine(self) -> None:
        """Halve the cells of all pairs until no datum's integral changes."""
        c, depth = 2**self.rule.dim, 0
        while len(self.pairs):
            depth += 1
            pairs, children, masses, doubts, edges, moments = self._halve()
            row = pairs.row
            change = torch.logaddexp(_log_difference(masses.logsumexp(-1), pairs.log_mass), edges)
            lower = LogSums(len(self.x), self.x.device)
            lower.add(row, (masses - doubts).logsumexp(-1))
            log_budget = torch.logaddexp(lower.log(), self.finished.log()) + self.log_tolerance
            reach = masses + doubts
            sure = ((doubts < 1) | (reach < (log_budget - math.log(200))[row, None])).all(-1)
            accept = sure & cheapest(row, change, _half_of_rest(log_budget + math.log(0.7), self.change))
            if depth >= 30 or self.num_latents >= self.max_latents:
                accept[:] = True
                change = torch.logaddexp(change, reach.where(~sure[:, None], -torch.inf).logsumexp(-1))
            which = pairs.cell[:, None] * c + torch.arange(c, device=row.device)
            self.change.add(row[accept], change[accept])
            found = children[which[accept].flatten()], masses[accept].flatten(), moments[accept].flatten(0, 1)
            self._finish(row[accept].repeat_interleave(c), *found)
            rest = Pairs(row[~accept].repeat_interleave(c), *(t[~accept].flatten() for t in (which, masses, reach)))
            moments = moments[~accept].flatten(0, 1)
            drop = cheapest(rest.row, rest.reach, _half_of_rest(log_budget + math.log(0.1), self.dropped))
            self.dropped.add(rest.row[drop], rest.reach[drop])
            self._finish(rest.row[drop], children[rest.cell[drop]], rest.log_mass[drop], moments[drop])
            self.cells, self.pairs = children, rest[~drop]

    def _halve(self) -> tuple[Pairs, Cells, Tensor, Tensor, Tensor, Tensor]:
        """Integrate every pair over the 2^d children of its cell.

        Returns:
            The pairs, ordered by cell; the children of each cell; the log mass of each pair and child, (P, 2^d), and
            its doubt; the log of the error at edges, (P,); the moments, (P, 2^d, d + d * d).
        """
        d, p, c = self.rule.dim, len(self.rule.nodes), 2**self.rule.dim
        used, cell = self.pairs.cell.unique(return_inverse=True)
        order = cell.argsort(stable=True)
        pairs = replace(self.pairs, cell=cell)[order]
        children = self.cells[used].halved()
        ends = [0, *torch.bincount(pairs.cell, minlength=len(used)).cumsum(0).tolist()]
        masses = torch.empty(len(order), c, dtype=torch.float64, device=order.device)
        doubts, edges = torch.empty_like(masses), masses.new_empty(len(order))
        moments = masses.new_empty(len(order), c, d + d * d)
        for first, last in self._groups(ends):
            block = children[slice(first * c, last * c)]
            score, log_prior = self._decode(block), self.region.log_prior(block).to(self.dtype)
            here = torch.arange(ends[first], ends[last], device=order.device)
            for some in here.split(self._rows(c * (last - first), used=c)):
                rows, row = pairs.row[some].unique(return_inverse=True)
                cell = pairs.cell[some] - first
                f = self._score(score, rows).reshape(len(rows), last - first, c, p)[row, cell]
                measured = self.rule.measure(f, log_prior.reshape(last - first, c, -1)[cell])
                child = (cell[:, None] * c + torch.arange(c, device=cell.device)).flatten()
                doubt = self._doubt(measured, pairs.row[some].repeat_interleave(c), block[child])
                masses[some], doubts[some] = measured.log_mass.reshape(-1, c), doubt.reshape(-1, c)
                edges[some] = measured.log_edge.reshape(-1, c).logsumexp(-1)
                moments[some] = measured.moments.reshape(-1, c, d + d * d)
        return pairs, children, masses, doubts, edges, moments

    def _groups(self, ends: list[int]) -> Iterator[tuple[int, int]]:
        """Yield the ends of groups of cells; the pairs of cell i begin at ``ends[i]``."""
        per_cell, first = len(self.rule.nodes) * 2**self.rule.dim, 0
        values = 4 * self.x[0].numel() + self._values  # held per latent, decoded and scored
        most = min(self._sizes.latents, self.max_bytes // 8 // (values * self.dtype.itemsize))
        for last in range(1, len(ends) - 1):
            latents = (last + 1 - first) * per_cell
            if latents > most or latents * (ends[last + 1] - ends[first]) > self._sizes.scores:
                yield first, last
                first = last
        yield first, len(ends) - 1

    def _doubt(self, measured: Measured, row: Tensor, cells: Cells) -> Tensor:
        """Return the doubt of each pair: at least the interpolant's error at q's mean, if that lies in the cell."""
        inside = cells.holds(self.q_mean[row]).nonzero()[:, 0]
        if not len(inside):
            return measured.doubt
        u = (self.q_mean[row[inside]] - cells.centre[inside]) / cells.half[inside]
        wrong = (self.rule.interpolate(measured, u, inside) - self.f_at_q[row[inside]]).abs()
        return measured.doubt.index_put((inside,), torch.maximum(measured.doubt[inside], wrong))

    def _finish(self, row: Tensor, cells: Cells, log_mass: Tensor, moments: Tensor) -> None:
        """Add pairs to the result, with the moments of z = centre + half * u."""
        d = self.rule.dim
        shift = cells.half * moments[:, :d]
        mean = cells.centre + shift
        spread = moments[:, d:].unflatten(-1, (d, d)) * cells.half[:, :, None] * cells.half[:, None, :]
        spread = spread - shift[:, :, None] * shift[:, None, :]
        squares = spread + mean[:, :, None] * mean[:, None, :]
        self.finished.add(row, log_mass, torch.cat([torch.ones_like(mean[:, :1]), mean, squares.flatten(1)], -1))
        self.best_mass.scatter_reduce_(0, row, log_mass, "amax")
        best = log_mass == self.best_mass[row]
        self.best_cell[row[best]] = torch.stack([cells.centre[best], cells.half[best]], 1)

    def _decode(self, cells: Cells) -> Score:
        z = cells.nodes(self.rule.nodes).flatten(0, 1).to(self.dtype)
        self.num_latents += len(z)
        return self.densities.likelihood_at(z)

    def _score(self, score: Score, rows: Tensor) -> Tensor:
        f = _checked(score(self.x[rows]))
        self.num_scores += f.numel()
        return f

    def _rows(self, num_cells: int, used: int) -> int:
        """Return how many data to score at once on `num_cells` cells, where each is integrated over `used` of them."""
        values = used * len(self.rule.fine) * 6 + num_cells * len(self.rule.nodes) * (4 + self._values)
        cached = self._sizes.nodes // (used * len(self.rule.fine))
        return max(1, min(cached, self.max_bytes // 8 // (values * self.dtype.itemsize)))

    def _on_best_cells(self, densities: VAEDensities, dtype: torch.dtype) -> Tensor:
        """Return the log mass of the best cell of 32 data, computed in `dtype`."""
        rows = torch.linspace(0, len(self.x) - 1, min(32, len(self.x)), device=self.x.device).round().long()
        rule = _rule(self.rule.dim, torch.zeros(1, dtype=dtype, device=self.x.device))
        cells = Cells(self.best_cell[rows, 0], self.best_cell[rows, 1])
        score = densities.likelihood_at(cells.nodes(rule.nodes).to(dtype).flatten(0, 1))
        f = score(self.x[rows].to(dtype)).reshape(len(rows), len(rows), -1).diagonal().T
        log_prior = densities.prior().log_prob(cells.nodes(rule.fine).to(dtype)) + rule.log_weights
        return rule.measure(f, log_prior.to(dtype)).log_mass


def _rule(dim: int, like: Tensor) -> CellRule:
    return CellRule(dim, _NODES[dim], _FINE[dim], like)


def _half_of_rest(log_budget: Tensor, spent: LogSums) -> Tensor:
    share = (spent.log() - log_budget).exp().clamp(max=1.0)
    return log_budget + torch.log1p(-share) - math.log(2)


def _log_difference(a: Tensor, b: Tensor) -> Tensor:
    """Return log |e^a - e^b|."""
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    return (high + torch.log(-torch.expm1(low - high))).nan_to_num(-1e300, neginf=-1e300)


def _checked(f: Tensor) -> Tensor:
    if f.isnan().any():
        raise ValueError(
            "the likelihood is NaN at some latents; expected a log-density or minus infinity: look for overflow in "
            "the decoder and for NaN in the data"
        )
    return f
