r"""Records of thousands of gradients of a million entries each: sums, norms, projections, some entries.

A record reads every gradient a few times and drops it. What it keeps is enough for inner products of mean gradients
without the noise of the mean (`moments`), for the signal-to-noise of single parameters (`signal_to_noise`) and for a
test of zero bias (`zero_bias`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_GROUPS = 20  # of replicates: the units of the bootstrap
NUM_COORDINATES = 2000  # entries per block that are kept from every replicate
NUM_PROJECTIONS = 16

_CHUNK = 2**14  # columns of sums that are converted to float64 at once


@dataclass(frozen=True)
class Layout:
    """The blocks, groups, kept entries and projections of gradients, common to all compared estimators.

    Attributes:
        leaves: The parameters.
        blocks: The block's name -> the indices of its parameters in `leaves`.
        replicates: R.
        bounds: The first replicate of each group, and R.
        coordinates: For each leaf the indices of the entries that are kept, (n,), int64.
        signs: For each leaf as a matrix (a, b), random signs (16, a) and (16, b).
    """

    leaves: Sequence[Tensor]
    blocks: Mapping[str, tuple[int, ...]]
    replicates: int
    bounds: tuple[int, ...]
    coordinates: tuple[Tensor, ...]
    signs: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(
        cls,
        leaves: Sequence[Tensor],
        blocks: Mapping[str, Sequence[int]],
        replicates: int,
        seed: int,
        *,
        num_groups: int = NUM_GROUPS,
    ) -> Layout:
        """Choose the entries that are kept and the projections.

        Args:
            leaves: The parameters.
            blocks: The block's name -> the indices of its parameters.
            replicates: R, at least two.
            seed: For both choices.
            num_groups: The number of groups of replicates for the bootstrap; a record keeps one sum of gradients for
                each.
        """
        generator = torch.Generator().manual_seed(seed)
        num_groups = min(num_groups, replicates)
        bounds = tuple(replicates * g // num_groups for g in range(num_groups + 1))
        coordinates = [torch.empty(0, dtype=torch.int64)] * len(leaves)
        for places in blocks.values():
            sizes = [leaves[i].numel() for i in places]
            chosen = torch.randperm(sum(sizes), generator=generator)[:NUM_COORDINATES].sort().values
            start = 0
            for i, size in zip(places, sizes, strict=True):
                coordinates[i] = chosen[(chosen >= start) & (chosen < start + size)] - start
                start += size
        signs = []
        for leaf in leaves:
            a, b = _matrix(leaf).shape
            both = torch.randint(2, (NUM_PROJECTIONS, a + b), generator=generator).to(leaf) * 2 - 1
            signs.append((both[:, :a].contiguous(), both[:, a:].contiguous()))
        on_device = [c.to(leaf.device) for c, leaf in zip(coordinates, leaves, strict=True)]
        return cls(
            leaves, {name: tuple(p) for name, p in blocks.items()}, replicates, bounds, tuple(on_device), tuple(signs)
        )

    @property
    def sizes(self) -> Tensor:
        """The number of replicates in each group, (G,), float64."""
        return torch.tensor(self.bounds, dtype=torch.float64).diff()

    @property
    def tolerance(self) -> float:
        """The largest relative difference of gradients that counts as rounding.

        It allows for weights that come from log-densities of hundreds of nats.
        """
        return 1e-10 if self.leaves[0].dtype is torch.float64 else 1e-4


class Record:
    """The record of the R gradients of one estimator.

    Args:
        layout: The layout of all compared estimators.
        shared: The index of a parameter -> another estimator's record, if both estimators have the same gradient by
            that parameter in every replicate. This record then uses the data of the other one.

    Attributes:
        values: The estimate of each replicate, the mean per datum, (R,), float64.
        constant: Whether all gradients are known to be the same.
    """

    def __init__(self, layout: Layout, shared: Mapping[int, Record] | None = None) -> None:
        self.layout = layout
        self._shared = dict(shared or {})
        r, leaves = layout.replicates, layout.leaves
        self.values = torch.zeros(r, dtype=torch.float64)
        self.constant = False
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._projected: list[Tensor] = []
        self._kept: list[Tensor] = []
        for i, leaf in enumerate(leaf.detach() for leaf in leaves):
            if (other := self._shared.get(i)) is not None:
                self._sums.append(other._sums[i])
                self._squares.append(other._squares[i])
                self._projected.append(other._projected[i])
                self._kept.append(other._kept[i])
                continue
            self._sums.append(leaf.new_zeros(len(layout.bounds) - 1, leaf.numel()))
            self._squares.append(leaf.new_zeros(r))
            self._projected.append(leaf.new_zeros(r, NUM_PROJECTIONS))
            self._kept.append(leaf.new_zeros(r, len(layout.coordinates[i])))
        self._group = [g for g, (a, b) in enumerate(itertools.pairwise(layout.bounds)) for _ in range(a, b)]

    @torch.no_grad()
    def add(self, replicate: int, value: Tensor | float, gradients: Sequence[Tensor | None]) -> None:
        """Add the value and the gradient of one replicate; a missing gradient counts as zero."""
        self.values[replicate] = float(value)
        group = self._group[replicate]
        for i, gradient in enumerate(gradients):
            if gradient is None or i in self._shared:
                continue
            flat = gradient.reshape(-1)
            self._sums[i][group].add_(flat)
            torch.dot(flat, flat, out=self._squares[i][replicate])
            rows, columns = self.layout.signs[i]
            torch.sum((rows @ _matrix(gradient)).mul_(columns), 1, out=self._projected[i][replicate])
            torch.index_select(flat, 0, self.layout.coordinates[i], out=self._kept[i][replicate])

    @torch.no_grad()
    def fill(self, start: int) -> None:
        """Copy the first replicate to all replicates from `start` on, for an estimator that draws nothing."""
        self.constant = True
        self.values[start:] = self.values[0]
        first = [sums[0] / start for sums in self._sums]
        for one, sums in zip(first, self._sums, strict=True):
            sums.copy_(one * self.layout.sizes.to(sums)[:, None])
        for kept in (self._squares, self._projected, self._kept):
            for rows in kept:
                rows[start:] = rows[0]

    def is_finite(self, start: int, stop: int) -> bool:
        """Return whether values and gradients of these replicates are finite."""
        squares = torch.stack([s[start:stop].sum() for s in self._squares]).sum()
        return bool(self.values[start:stop].isfinite().all() and squares.isfinite())

    def same(self, replicates: int) -> bool:
        """Return whether the first replicates are all equal, to the last bit."""
        rows = [*self._projected, *self._kept, *(s[:, None] for s in self._squares), self.values[:, None]]
        return all(bool((r[:replicates] == r[:1]).all()) for r in rows)

    def squares(self, block: str) -> Tensor:
        """Return the squared norm of each replicate's gradient, (R,), float64."""
        return torch.stack([self._squares[i].double() for i in self.layout.blocks[block]]).sum(0).cpu()

    def projected(self, block: str) -> Tensor:
        """Return random projections of each replicate's gradient, (R, 16), float64."""
        return torch.stack([self._projected[i].double() for i in self.layout.blocks[block]]).sum(0).cpu()

    def kept(self, block: str) -> Tensor:
        """Return the kept entries of each replicate's gradient, (R, n), float64, with those of dead parameters."""
        return torch.cat([self._kept[i] for i in self.layout.blocks[block]], 1).double().cpu()

    def num_dead(self, block: str) -> int:
        """Return how many parameters have a gradient of exactly zero in every replicate."""
        return sum(int((self._sums[i] == 0).all(0).sum()) for i in self.layout.blocks[block])

    def chunks(self, block: str) -> Iterator[Tensor]:
        """Yield the sum of each group's gradients, (G, some), float64, piece by piece."""
        for i in self.layout.blocks[block]:
            for piece in self._sums[i].split(_CHUNK, 1):
                yield piece.double()


def new_records(layout: Layout, gradients: Mapping[int, Sequence[Tensor | None]]) -> dict[int, Record]:
    """Return an empty record for each estimator; a gradient tensor that several estimators share is kept once.

    Args:
        layout: The layout of all estimators.
        gradients: The gradients of one replicate.
    """
    records: dict[int, Record] = {}
    owners: dict[tuple[int, int], Record] = {}
    for key, several in gradients.items():
        places = [(i, id(gradient)) for i, gradient in enumerate(several) if gradient is not None]
        records[key] = record = Record(layout, {place[0]: owners[place] for place in places if place in owners})
        for place in places:
            owners.setdefault(place, record)
    return records


def _matrix(tensor: Tensor) -> Tensor:
    """Return a tensor as a matrix, (out, everything else)."""
    return tensor.reshape(len(tensor), -1) if tensor.dim() > 1 else tensor.reshape(1, -1)
