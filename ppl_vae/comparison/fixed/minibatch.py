"""The gradient noise of the choice of data, separate from the estimator's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_vae._measured import Measured
from ppl_vae.comparison.fixed.figures import Resamples
from ppl_vae.comparison.fixed.steps import Stepper
from ppl_vae.comparison.statistics.measured import measured
from ppl_vae.objectives import sample_log_weights
from ppl_vae.objectives.losses import Program

_MOST_DATA = 16
_CHUNK = 2**15


def minibatch_variance(
    stepper: Stepper, tensors: Sequence[Tensor], blocks: Mapping[str, Sequence[int]], *, replicates: int, seed: int
) -> dict[str, Measured]:
    r"""Return :math:`\mathrm{tr} \, \mathrm{Cov}_x(\mathbb E[g|x]) / B`: the variance that the choice of data adds.

    The mean gradient of a datum is estimated on batches of B copies of it: they use the graph of the batch and give B
    draws at a time. The trace is half of the mean squared distance between the mean gradients of two data. Products of
    two independent halves remove the noise of each mean. Intervals are bootstrapped over data: for 8 data they are
    wide, and for 4 and fewer they say nothing. The figure is wrong where an objective mixes the data of a batch. At
    most the first 16 data are used.

    Args:
        stepper: The estimator.
        tensors: The batch.
        blocks: The indices of each block's parameters.
        replicates: The number of draws for each datum; at least two batches of copies are taken.
        seed: For the draws.

    Returns:
        The figure of each block; empty for a batch of one.
    """
    size = len(tensors[0])
    num_data = min(size, _MOST_DATA)
    if num_data < 2:
        return {}
    calls = max(1, math.ceil(replicates / size / 2))  # in each half
    seeds = torch.randint(2**32, (num_data, 2, calls), generator=torch.Generator().manual_seed(seed)).tolist()
    sums: dict[int, Tensor] = {}  # of each half of a datum's draws, (data, 2, numel)
    for i in range(num_data):
        copies = copies_of(tensors, i)
        for half, call in itertools.product(range(2), range(calls)):
            torch.manual_seed(seeds[i][half][call])
            for place, gradient in enumerate(stepper(*copies).gradients):
                if gradient is not None:
                    if place not in sums:
                        sums[place] = gradient.new_zeros(num_data, 2, gradient.numel())
                    sums[place][i, half].add_(gradient.detach().reshape(-1))
    resamples = Resamples.of(torch.ones(num_data, dtype=torch.float64), seed)
    found = {}
    for block, places in blocks.items():
        gram = torch.zeros(2 * num_data, 2 * num_data, dtype=torch.float64)
        for total in (sums[place] for place in places if place in sums):
            for piece in total.flatten(0, 1).split(_CHUNK, 1):
                wide = piece.double()
                gram += (wide @ wide.T).cpu()
        gram = gram.view(num_data, 2, num_data, 2) / calls**2
        own = gram.diagonal(dim1=0, dim2=2)[0, 1]  # (data,): |E[g|x_i]|^2 from its two halves
        cross = gram.mean((1, 3))
        trace = resamples.products(0.5 * (own[:, None] + own) - cross).clamp(min=0)
        found[block] = measured(trace / size, num_data, (0.0, math.inf))
    return found


def copies_of(tensors: Sequence[Tensor], i: int) -> list[Tensor]:
    """Return a batch of copies of datum i; an argument that has no row for each datum stays as it is."""
    size = len(tensors[0])
    return [t[i : i + 1].repeat(size, *(1,) * (t.dim() - 1)) if t.dim() and len(t) == size else t for t in tensors]


@torch.no_grad()
def stands_alone(program: Program, tensors: Sequence[Tensor], seed: int) -> bool:
    """Return whether a datum has the same log-weights among its copies, from the same noise.

    It has others where an argument as long as the batch holds no rows: the scales of as many features. True for a
    program whose log-weights are not per datum.
    """
    found: list[Tensor] = []
    for batch in (tensors, copies_of(tensors, 0)):
        torch.manual_seed(seed)
        try:
            found.append(sample_log_weights(*program, *batch).log_w[:, 0])
        except Exception:  # whatever a program raises; its estimators tell of it
            return True
    return torch.allclose(found[0], found[1], rtol=1e-4, equal_nan=True)
