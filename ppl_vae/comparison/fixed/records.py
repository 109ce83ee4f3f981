r"""Records of thousands of gradients of a million entries each: sums, norms, projections, some entries.

A record reads every gradient a few times and drops it. What it keeps is enough for inner products of mean gradients
without the noise of the mean (`figures`), for the signal-to-noise of single parameters (`signal_to_noise`) and for a
test of zero bias (`zero_bias`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float64

NUM_GROUPS = 20  # of replicates: the units of the bootstrap
NUM_COORDINATES = 2000  # entries per block that are kept from every replicate
NUM_PROJECTIONS = 16

_Key = TypeVar("_Key")
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
    blocks: Mapping[str, Sequence[int]]
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
        coordinates = [torch.empty(0, dtype=torch.int64, device=leaf.device) for leaf in leaves]
        for places in blocks.values():
            sizes = [leaves[i].numel() for i in places]
            chosen = torch.randperm(sum(sizes), generator=generator)[:NUM_COORDINATES].sort().values
            start = 0
            for i, size in zip(places, sizes, strict=True):
                coordinates[i] = (chosen[(chosen >= start) & (chosen < start + size)] - start).to(leaves[i].device)
                start += size
        signs = []
        for leaf in leaves:
            a, b = _matrix(leaf).shape
            both = torch.randint(2, (NUM_PROJECTIONS, a + b), generator=generator).to(leaf) * 2 - 1
            signs.append((both[:, :a].contiguous(), both[:, a:].contiguous()))
        return cls(leaves, blocks, replicates, bounds, tuple(coordinates), tuple(signs))

    @property
    def sizes(self) -> Float64[Tensor, " G"]:
        """The number of replicates in each group."""
        return torch.tensor(self.bounds, dtype=torch.float64).diff()

    @property
    def tolerance(self) -> float:
        """The largest relative difference of gradients that counts as rounding.

        It allows for weights that come from log-densities of hundreds of nats.
        """
        return 1e-10 if self.leaves[0].dtype is torch.float64 else 1e-4


class _OfLeaf(NamedTuple):
    """What a record keeps of the gradients by one leaf."""

    sums: Tensor  # of each group, (G, numel)
    squares: Tensor  # (R,)
    projected: Tensor  # (R, 16)
    kept: Tensor  # (R, n)


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
        self.values = torch.zeros(layout.replicates, dtype=torch.float64)
        self.constant = False
        self._of: list[_OfLeaf] = []
        for i, leaf in enumerate(leaf.detach() for leaf in layout.leaves):
            if i in self._shared:
                self._of.append(self._shared[i]._of[i])
                continue
            kept = [
                leaf.new_zeros(layout.replicates, *n) for n in ((), (NUM_PROJECTIONS,), layout.coordinates[i].shape)
            ]
            self._of.append(_OfLeaf(leaf.new_zeros(len(layout.bounds) - 1, leaf.numel()), *kept))
        self._group = [g for g, (a, b) in enumerate(itertools.pairwise(layout.bounds)) for _ in range(a, b)]

    @torch.no_grad()
    def add(self, replicate: int, value: Tensor | float, gradients: Sequence[Tensor | None]) -> None:
        """Add the value and the gradient of one replicate; a missing gradient counts as zero."""
        self.values[replicate] = float(value)
        for i, gradient in enumerate(gradients):
            if gradient is None or i in self._shared:
                continue
            flat, of, (rows, columns) = gradient.reshape(-1), self._of[i], self.layout.signs[i]
            of.sums[self._group[replicate]].add_(flat)
            torch.dot(flat, flat, out=of.squares[replicate])
            torch.sum((rows @ _matrix(gradient)).mul_(columns), 1, out=of.projected[replicate])
            torch.index_select(flat, 0, self.layout.coordinates[i], out=of.kept[replicate])

    @torch.no_grad()
    def fill(self, start: int) -> None:
        """Copy the first replicate to all replicates from `start` on, for an estimator that draws nothing."""
        self.constant = True
        self.values[start:] = self.values[0]
        first = [of.sums[0] / (self.layout.bounds[1] - self.layout.bounds[0]) for of in self._of]
        for one, of in zip(first, self._of, strict=True):
            of.sums.copy_(one * self.layout.sizes.to(of.sums)[:, None])
            for rows in (of.squares, of.projected, of.kept):
                rows[start:] = rows[0]

    def cut(self, start: int, stop: int) -> tuple[Tensor, dict[int, list[Tensor]]]:
        """Return what is kept of these replicates, which are whole groups; `enter` takes it."""
        groups = slice(self._group[start], self._group[stop - 1] + 1)
        rows = slice(start, stop)
        own = {i: of for i, of in enumerate(self._of) if i not in self._shared}
        parts = {i: [of.sums[groups], *(whole[rows] for whole in of[1:])] for i, of in own.items()}
        return self.values[rows].clone(), {i: [part.clone() for part in some] for i, some in parts.items()}

    def enter(self, content: tuple[Tensor, Mapping[int, Sequence[Tensor]]], start: int, stop: int) -> None:
        """Enter what another record of the same estimator kept of these replicates."""
        values, leaves = content
        if leaves.keys() != {i for i in range(len(self._of)) if i not in self._shared}:
            raise RuntimeError("compare: the step was captured otherwise in another process; give jobs=1")
        self.values[start:stop] = values
        for i, (sums, *rows) in leaves.items():
            self._of[i].sums[self._group[start] : self._group[stop - 1] + 1] = sums
            for whole, part in zip(self._of[i][1:], rows, strict=True):
                whole[start:stop] = part

    def is_finite(self, start: int, stop: int) -> bool:
        """Return whether values and gradients of these replicates are finite."""
        squares = torch.stack([of.squares[start:stop].sum() for of in self._of]).sum()
        return bool(self.values[start:stop].isfinite().all() and squares.isfinite())

    def same(self, replicates: int) -> bool:
        """Return whether the first replicates are all equal, to the last bit."""
        rows = [self.values, *(row for of in self._of for row in (of.squares, of.projected, of.kept))]
        return all(bool((r[:replicates] == r[:1]).all()) for r in rows)

    def squares(self, block: str) -> Float64[Tensor, " R"]:
        """Return the squared norm of each replicate's gradient."""
        return torch.stack([of.squares.double() for of in self._in(block)]).sum(0).cpu()

    def projected(self, block: str) -> Float64[Tensor, "R 16"]:
        """Return random projections of each replicate's gradient."""
        return torch.stack([of.projected.double() for of in self._in(block)]).sum(0).cpu()

    def kept(self, block: str) -> Float64[Tensor, "R n"]:
        """Return the kept entries of each replicate's gradient, with those of dead parameters."""
        return torch.cat([of.kept for of in self._in(block)], 1).double().cpu()

    def num_dead(self, block: str) -> int:
        """Return how many parameters have a gradient of exactly zero in every replicate."""
        return sum(int((of.sums == 0).all(0).sum()) for of in self._in(block))

    def chunks(self, block: str) -> Iterator[Float64[Tensor, "G some"]]:
        """Yield the sum of each group's gradients, piece by piece."""
        for of in self._in(block):
            for piece in of.sums.split(_CHUNK, 1):
                yield piece.double()

    def _in(self, block: str) -> list[_OfLeaf]:
        return [self._of[i] for i in self.layout.blocks[block]]


def new_records(layout: Layout, gradients: Mapping[_Key, Sequence[Tensor | None]]) -> dict[_Key, Record]:
    """Return an empty record for each estimator; a gradient tensor that several estimators share is kept once.

    Args:
        layout: The layout of all estimators.
        gradients: The gradients of one replicate.
    """
    records: dict[_Key, Record] = {}
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
