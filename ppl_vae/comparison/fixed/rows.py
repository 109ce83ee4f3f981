"""The rows of a comparison at fixed parameters: all estimators at one K, replicate by replicate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

from ppl_vae.comparison.contenders import Contender, contenders
from ppl_vae.comparison.fixed.batch import Batch
from ppl_vae.comparison.fixed.blocks import Parameters
from ppl_vae.comparison.fixed.figures import Figures, Weights, block_of, value_of, weights_of
from ppl_vae.comparison.fixed.joint import JointStep
from ppl_vae.comparison.fixed.minibatch import minibatch_variance
from ppl_vae.comparison.fixed.moments import Resamples
from ppl_vae.comparison.fixed.records import NUM_GROUPS, Layout, Record, new_records
from ppl_vae.comparison.fixed.results import Block, KnownEvidence, Row
from ppl_vae.comparison.fixed.steps import Stepper, time_steps
from ppl_vae.comparison.statistics.measured import Measured
from ppl_vae.objectives import ELBO, STL, ArticleELBO, MeanFieldELBO
from ppl_vae.objectives.losses import Program

LEAST_REPLICATES = 20

_MOST_BYTES = 2**31  # for the sums of gradients
_LEAST_GROUPS = 6
_AVERAGES = (ELBO, STL, ArticleELBO, MeanFieldELBO, Trace_ELBO, TraceGraph_ELBO)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recorded:
    """The record of an estimator's replicates, or the reason of its failure."""

    record: Record | None = None
    failed: str | None = None


@dataclass(frozen=True, eq=False)
class Taking:
    """An estimator of a comparison, with its reference and its costs.

    Attributes:
        key: The key of the contender.
        stepper: Its step.
        anchor: The step of its reference, shared with the contender that is the reference, if any; None without a
            reference.
        seconds: The times of single steps, (rounds,).
        memory: Bytes of one step.
    """

    key: int
    stepper: Stepper
    anchor: Stepper | None
    seconds: Tensor
    memory: int


@dataclass(frozen=True)
class Rows:
    """The settings of a comparison, from which `of` makes the rows of one K.

    Attributes:
        program: Model and guide.
        batch: Their arguments.
        parameters: The parameters of the gradient.
        replicates: R.
        seed: For all noise.
        minibatch: Whether to measure the noise of the choice of data.
        reference: The reference of every gradient: ``"own"``, an objective in any form, or None.
        evidence: The mean of log p(x), if it is known.
        progress: Called with short messages about the work in progress.
        notes: A list to which `of` appends what a reader must know.
    """

    program: Program
    batch: Batch
    parameters: Parameters
    replicates: int
    seed: int
    minibatch: bool
    reference: object | None
    evidence: KnownEvidence | None
    progress: Progress
    notes: list[str]

    def of(self, chosen: Mapping[int, Contender]) -> dict[int, Row]:
        """Return the rows of all contenders of one K, under the same keys."""
        rows: dict[int, Row] = {}
        steppers: dict[int, Stepper] = {}
        for key, contender in chosen.items():
            self.progress(f"{contender.name}, K = {contender.num_particles}: the graph")
            made = self._stepper(contender)
            if isinstance(made, Stepper):
                steppers[key] = made
            else:
                rows[key] = Row(contender.name, contender.num_particles, failed=made)
        if not steppers:
            return rows
        k = next(iter(steppers.values())).contender.num_particles
        taking = self._taking(steppers, k)
        weighted = any(_is_weighted(one.anchor) for one in taking)
        draws = self.replicates if weighted else max(LEAST_REPLICATES, self.replicates // 10)
        self.progress(f"K = {k}: weights")
        weights = weights_of(self.program, self.batch.tensors, k, draws, self.seed)
        for lot in self._lots(taking):
            anchors = [one.anchor for one in lot if one.anchor is not None]
            records = self._records(list(dict.fromkeys([*(one.stepper for one in lot), *anchors])), k)
            for one in lot:
                rows[one.key] = self._row(one, records, weights)
        return rows

    def _taking(self, steppers: Mapping[int, Stepper], k: int) -> list[Taking]:
        """Time all estimators, and find for each the step of its reference."""
        self.progress(f"K = {k}: time and memory")
        seconds = time_steps(steppers, self.batch.tensors)
        memory = {key: stepper.bytes(*self.batch.tensors) for key, stepper in steppers.items()}
        known, taking = list(steppers.values()), []
        for key, stepper in steppers.items():
            anchor = self._anchor(stepper, known)
            if anchor is not None and anchor not in known:
                known.append(anchor)
            taking.append(Taking(key, stepper, anchor, seconds[key], memory[key]))
        return taking

    def _lots(self, taking: list[Taking]) -> list[list[Taking]]:
        """Split the estimators into lots that run together: one lot, or one per reference if memory is short."""
        if (len(taking) + len({id(one.anchor) for one in taking})) * self._bytes * NUM_GROUPS <= _MOST_BYTES:
            return [taking]
        lots: dict[int, list[Taking]] = {}
        for one in taking:
            lots.setdefault(id(one.anchor or one.stepper), []).append(one)
        return list(lots.values())

    @property
    def _bytes(self) -> int:
        """The size of one gradient."""
        return sum(leaf.numel() * leaf.element_size() for leaf in self.parameters.leaves.values())

    def _stepper(self, contender: Contender) -> Stepper | str:
        """Return the contender's step, or the error that prevents it."""
        try:
            torch.manual_seed(self.seed)
            return Stepper(contender, self.program, self.parameters, self.batch.tensors)
        except Exception as error:  # a user's objective may raise anything; the other contenders go on
            return _said(error)

    def _anchor(self, stepper: Stepper, known: list[Stepper]) -> Stepper | None:
        """Return the step of an estimator's reference: a known one if there is one, else a new one."""
        wanted = self._reference_of(stepper.contender)
        if wanted is None:
            return None
        found = next((s for s in known if _same(s.contender, wanted)), None) or self._stepper(wanted)
        if isinstance(found, str):
            self.notes.append(f"the bias of {stepper.contender.name} is not told: {wanted.name}: {found}")
            return None
        return found

    def _reference_of(self, contender: Contender) -> Contender | None:
        wanted = self.reference
        if isinstance(wanted, str) and wanted == "own":
            wanted = getattr(contender.objective, "reference", None)
        if wanted is None:
            return None
        return contenders([wanted], contender.num_particles)[0]

    def _records(self, members: list[Stepper], k: int) -> dict[Stepper, Recorded]:
        """Run all replicates of some estimators in lockstep; return a record of each, or its error."""
        leaves = list(self.parameters.leaves.values())
        groups = max(_LEAST_GROUPS, min(NUM_GROUPS, _MOST_BYTES // (len(members) * self._bytes)))
        layout = Layout.of(leaves, self.parameters.blocks, self.replicates, self.seed, num_groups=groups)
        together = JointStep(dict(enumerate(members)), self.batch.tensors)
        for stepper in members:
            stepper.reset()
        records: dict[int, Record] = {}
        failed: dict[int, str] = {}  # they stay in the joint step, since others may share their gradients
        seeds = torch.randint(2**32, (self.replicates,), generator=torch.Generator().manual_seed(self.seed)).tolist()
        for start, stop in itertools.pairwise(layout.bounds):
            self.progress(f"K = {k}: replicate {start} of {self.replicates}")
            for r in range(start, stop):
                steps = together(seeds[r], *self.batch.tensors)
                failed |= {key: _said(error) for key, error in steps.items() if isinstance(error, Exception)}
                seen = {key: step for key, step in steps.items() if not isinstance(step, Exception)}
                if r == 0:
                    records = new_records(layout, {key: step.gradients for key, step in seen.items()})
                for key, step in seen.items():
                    records[key].add(r, *step)
            for key, record in records.items():
                if key not in failed and not record.is_finite(start, stop):
                    failed[key] = f"a value or a gradient is not finite in replicates {start} to {stop - 1}"
                elif start == 0 and key in together.alone and record.same(stop):
                    record.fill(stop)
            together.alone = [key for key in together.alone if key not in failed and not records[key].constant]
        return {
            stepper: Recorded(failed=failed[key]) if key in failed else Recorded(records[key])
            for key, stepper in enumerate(members)
        }

    def _row(self, one: Taking, records: Mapping[Stepper, Recorded], weights: Weights | None) -> Row:
        stepper, anchor, contender = one.stepper, one.anchor, one.stepper.contender
        name, k = contender.name, contender.num_particles
        record, failed = records[stepper].record, records[stepper].failed
        if record is None:
            return Row(name, k, kind=stepper.kind, why_eager=stepper.why_eager, failed=failed)
        reference = None
        if anchor is not None and anchor is not stepper:
            reference = records[anchor].record
            if reference is None:
                self.notes.append(f"the reference {anchor.contender.name} failed at K = {k}: {records[anchor].failed}")
        self.progress(f"K = {k}: the figures of {name}")
        resamples = Resamples.of(record.layout.sizes, self.seed)
        of_data: dict[str, Measured] = {}
        if self.minibatch:
            per_datum = max(LEAST_REPLICATES, self.replicates // 20)
            of_data = minibatch_variance(
                stepper, self.batch.tensors, self.parameters.blocks, replicates=per_datum, seed=self.seed
            )
        ties = weights.ties if weights is not None and _is_weighted(anchor) else math.inf
        figures = Figures(record, reference, resamples, one.seconds, self.seed, ties)
        found: dict[str, Block] = {b: block_of(figures, b, of_data.get(b)) for b in self.parameters.blocks}
        value, error, bias = value_of(record, self.evidence)
        return Row(
            name,
            k,
            kind=stepper.kind,
            reference=None if reference is None or anchor is None else anchor.contender.name,
            value=value,
            value_se=error,
            bias=bias,
            ess=None if weights is None else weights.ess,
            seconds=figures.median_seconds(),
            bytes=one.memory,
            why_eager=stepper.why_eager,
            blocks=found,
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _is_weighted(anchor: Stepper | None) -> bool:
    """Return whether a reference weights its particles; plain averages over particles do not."""
    if anchor is None or anchor.contender.num_particles == 1:
        return False
    return not isinstance(anchor.contender.objective, _AVERAGES)


def _same(first: Contender, second: Contender) -> bool:
    """Return whether two contenders are the same estimator, whatever their names."""
    if first.num_particles != second.num_particles or type(first.objective) is not type(second.objective):
        return False
    return first.objective is second.objective or bool(first.objective == second.objective)
