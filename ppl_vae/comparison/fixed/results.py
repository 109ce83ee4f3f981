"""The values that a comparison at fixed parameters finds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ppl_vae._measured import Measured
from ppl_vae._shown import Shown
from ppl_vae.comparison.contenders import Undefined

LEVEL = 0.01  # of all tests of bias together, and of all tests for values above log p(x) together


@dataclass(frozen=True)
class Block:
    r"""The gradient of the mean per datum with respect to the parameters of one block (``"encoder"``).

    Attributes:
        size: The number of parameters.
        dead: How many of them have a gradient of exactly zero in every replicate (the weights of pixels that are black
            in all data). They enter only the sums of squares below, and add nothing to them.
        norm: :math:`\lVert \mathbb E g \rVert`, without the noise of the mean over replicates.
        variance: :math:`\mathrm{tr} \, \mathrm{Cov}(g)`, of one step's gradient over the estimator's own noise.
        snr: Signal-to-noise :math:`|\mathbb E g_i| / \mathrm{sd}(g_i)`, the median over parameters i, without the noise
            of the mean.
        snr_quartiles: Its quartiles over parameters.
        snr_floor: The signal-to-noise that a parameter without any signal would show if the noise were not removed,
            :math:`\sqrt{2 / (\pi R)}`. Figures near it say little.
        bias: :math:`\lVert \mathbb E (g - g_\mathrm{ref}) \rVert`, from paired replicates, without their noise; None
            where there is no reference.
        bias_p: The p-value of "no bias", from random projections of the paired differences; None where there is no
            reference, and where `bias_unclear` gives a reason.
        bias_unclear: Why neither a bias nor its absence can be claimed; None where one of them can.
        cosine: The cosine between the mean gradient and the reference's.
        is_reference: Whether the gradient equals the reference's in every replicate, up to rounding.
        minibatch_variance: What the choice of data adds to `variance`: :math:`\mathrm{tr} \, \mathrm{Cov}_x(\mathbb
            E[g|x]) / B` for a batch of B.
        seconds_to_tenth: The time of the steps whose average has a standard error of a tenth of the gradient's norm:
            :math:`100 \, \mathrm{tr} \, \mathrm{Cov}(g) / \lVert \mathbb E g \rVert^2` steps, at least one.
        resampled: `snr` and `seconds_to_tenth` of bootstrap resamples, for ratios; all rows share the resamples.
    """

    size: int
    dead: int
    norm: Measured
    variance: Measured
    snr: Measured
    snr_quartiles: tuple[float, float]
    snr_floor: float
    bias: Measured | None = None
    bias_p: float | None = None
    cosine: Measured | None = None
    is_reference: bool = False
    bias_unclear: str | None = None
    minibatch_variance: Measured | None = None
    seconds_to_tenth: Measured | None = None
    resampled: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def above_floor(self) -> bool:
        """Whether the signal-to-noise is certainly above the floor; half of a figure below it is noise."""
        return self.snr.low > self.snr_floor

    def is_biased(self, tests: int = 1) -> bool:
        """Whether a bias was found, at 1% for all tests of a comparison at once, with a size above zero."""
        if self.bias is None or self.bias_p is None:
            return False
        return self.bias.value > 0 and tests * self.bias_p < LEVEL


@dataclass(frozen=True)
class Row:
    """One estimator at one K.

    Attributes:
        name: The estimator's name.
        num_particles: K.
        kind: Whether the value is a ``"lower"`` or ``"upper"`` bound of log p(x) in expectation, or ``"neither"``.
        reference: The name of the estimator whose expected gradient is the reference; None where there is none.
        value: The mean per datum over replicates, nats.
        value_se: Its standard error over replicates.
        bias: `value` minus log p(x), nats, with the interval of both errors; None where log p(x) is not known.
        ess: Effective sample size of the K normalised weights, the mean over data and draws; None for a program whose
            weights are not per datum.
        seconds: The median time of one step, value and gradient.
        bytes: The memory that one step keeps for the backward pass (on a GPU: the most that one step allocates).
        why_eager: Why steps ran eagerly, without a captured graph; None where they were captured.
        blocks: The gradient, block by block.
        failed: Why there are no figures; None where there are.
    """

    name: str
    num_particles: int
    kind: str = "neither"
    reference: str | None = None
    value: float = math.nan
    value_se: float = math.nan
    bias: Measured | None = None
    ess: float | None = None
    seconds: Measured | None = None
    bytes: int | None = None
    why_eager: str | None = None
    blocks: Mapping[str, Block] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True)
class KnownEvidence:
    """The mean of log p(x) over the batch, exact or estimated.

    Attributes:
        value: Nats per datum.
        method: How it was found.
        error: An error bound if `exact`, else a standard error.
        exact: Whether it is exact up to `error`, or an estimate.
    """

    value: float
    method: str
    error: float
    exact: bool


@dataclass(frozen=True)
class Results(Shown):
    """Estimators side by side at fixed parameters.

    Attributes:
        rows: One row per estimator and K, ordered by K, then as requested.
        undefined: The estimators that do not exist at a K, and why.
        evidence: The mean of log p(x); None where it could not be computed (`notes` give the reason).
        replicates: R, the number of gradients behind each figure.
        seed: The seed of all noise. Replicate r of every estimator uses the same seed, made of this one and r.
        data_shape: The shape of the batch.
        machine: Device, torch version, threads, number type.
        seconds: The duration of the whole comparison.
        notes: Sentences with what a reader must know.
        split_size: The number of data in the split whose first data are the batch; None if the batch is all the data.
    """

    rows: tuple[Row, ...]
    undefined: tuple[Undefined, ...]
    evidence: KnownEvidence | None
    replicates: int
    seed: int
    data_shape: tuple[int, ...]
    machine: Mapping[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()
    split_size: int | None = None

    def __repr__(self) -> str:
        names, counts = dict.fromkeys(row.name for row in self.rows), sorted({row.num_particles for row in self.rows})
        return (
            f"{type(self).__name__}({', '.join(names)} at K = {', '.join(map(str, counts))}; "
            f"{self.replicates:,} replicates on {self.data_shape[0]:,} data)"
        )

    @property
    def where(self) -> str:
        """``"on the first 8 of 297 data"``; empty if the batch is all the data."""
        return f"on the first {self.data_shape[0]:,} of {self.split_size:,} data" if self.split_size else ""

    def row(self, name: str, num_particles: int) -> Row:
        """Return one estimator's row.

        Raises:
            KeyError: If the comparison has no such row.
        """
        for row in self.rows:
            if row.name == name and row.num_particles == num_particles:
                return row
        raise KeyError(f"there is no row {name!r} at K = {num_particles}")


def by_block(rows: Iterable[Row]) -> dict[str, list[tuple[Row, Block]]]:
    """Return the rows that have each block, with the block, under its name."""
    found: dict[str, list[tuple[Row, Block]]] = {}
    for row in rows:
        for name, block in row.blocks.items():
            found.setdefault(name, []).append((row, block))
    return found
