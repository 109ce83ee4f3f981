"""The rows of a comparison at fixed parameters: all estimators at one K, replicate by replicate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

from ppl_vae.comparison.contenders import Contender, contenders
from ppl_vae.comparison.fixed.blocks import Parameters
from ppl_vae.comparison.fixed.figures import Figures, Resamples, Weights, value_of, weights_of
from ppl_vae.comparison.fixed.minibatch import minibatch_variance
from ppl_vae.comparison.fixed.records import NUM_GROUPS, Layout, Record
from ppl_vae.comparison.fixed.replicates import LEAST_REPLICATES, Elsewhere, Replicates, said, stepper_of
from ppl_vae.comparison.fixed.results import KnownEvidence, Row
from ppl_vae.comparison.fixed.steps import Stepper, time_steps
from ppl_vae.comparison.statistics.measured import measured
from ppl_vae.objectives import ELBO, STL, ArticleELBO, MeanFieldELBO
from ppl_vae.objectives.losses import Program

_MOST_BYTES = 2**31  # for the sums of gradients
_LEAST_GROUPS = 6
_AVERAGES = (ELBO, STL, ArticleELBO, MeanFieldELBO, Trace_ELBO, TraceGraph_ELBO)

Progress = Callable[[str], None]
_Records = dict[Stepper, Record | str]


@dataclass(frozen=True)
class Rows:
    """The settings of a comparison, from which `of` makes the rows of one K.

    Attributes:
        program: Model and guide.
        tensors: Their arguments.
        parameters: The parameters of the gradient.
        replicates: R.
        seed: For all noise.
        minibatch: Whether to measure the noise of the choice of data.
        reference: The reference of every gradient: ``"own"``, an objective in any form, or None.
        evidence: The mean of log p(x), if it is known.
        progress: Called with short messages about the work in progress.
        notes: A list to which `of` appends what a reader must know.
        elsewhere: What other processes need to take replicates, or None for this one alone.
    """

    program: Program
    tensors: tuple[Tensor, ...]
    parameters: Parameters
    replicates: int
    seed: int
    minibatch: bool
    reference: object | None
    evidence: KnownEvidence | None
    progress: Progress
    notes: list[str]
    elsewhere: Elsewhere | None = None

    def of(self, chosen: Sequence[Contender]) -> list[Row]:
        """Return the rows of contenders of one K, in their order."""
        k, made = chosen[0].num_particles, []
        for contender in chosen:
            self.progress(f"{contender.name}, K = {k}: the graph")
            made.append(self._stepper_of(contender))
        rows = self._rows([stepper for stepper in made if isinstance(stepper, Stepper)], k)
        return [
            Row(contender.name, k, failed=one) if isinstance(one, str) else rows[one]
            for contender, one in zip(chosen, made, strict=True)
        ]

    def _rows(self, steppers: list[Stepper], k: int) -> dict[Stepper, Row]:
        if not steppers:
            return {}
        self.progress(f"K = {k}: time and memory")
        seconds, raised = time_steps(steppers, self.tensors)
        rows = {stepper: _failed(stepper, said(error)) for stepper, error in raised.items()}
        steppers, known = list(seconds), list(seconds)
        anchors = {stepper: self._anchor(stepper.contender, known) for stepper in steppers}
        weighted = any(map(_is_weighted, anchors.values()))
        draws = self.replicates if weighted else max(LEAST_REPLICATES, self.replicates // 10)
        self.progress(f"K = {k}: weights")
        weights = weights_of(self.program, self.tensors, k, draws, self.seed)
        for lot in self._lots(anchors):
            members = dict.fromkeys([*lot, *(anchor for s in lot if (anchor := anchors[s]) is not None)])
            records = self._records(list(members), k)
            for stepper in lot:
                rows[stepper] = self._row(stepper, anchors[stepper], records, seconds[stepper], weights)
        return rows

    def _lots(self, anchors: Mapping[Stepper, Stepper | None]) -> list[list[Stepper]]:
        """Split the estimators into lots that run together: one lot, or one per reference if memory is short."""
        if (len(anchors) + len(set(anchors.values()))) * self._bytes * NUM_GROUPS <= _MOST_BYTES:
            return [list(anchors)]
        lots: dict[Stepper, list[Stepper]] = {}
        for stepper, anchor in anchors.items():
            lots.setdefault(anchor or stepper, []).append(stepper)
        return list(lots.values())

    @property
    def _bytes(self) -> int:
        """The size of one gradient."""
        return sum(leaf.numel() * leaf.element_size() for leaf in self.parameters.leaves.values())

    def _stepper_of(self, contender: Contender) -> Stepper | str:
        return stepper_of(contender, self.program, self.parameters, self.tensors, self.seed)

    def _anchor(self, contender: Contender, known: list[Stepper]) -> Stepper | None:
        """Return the step of an estimator's reference: a known one, else a new one, which is known from then on."""
        own = isinstance(self.reference, str) and self.reference == "own"
        reference = getattr(contender.objective, "reference", None) if own else self.reference
        if reference is None:
            return None
        wanted = contenders([reference], contender.num_particles)[0]
        found = next((s for s in known if _same(s.contender, wanted)), None) or self._stepper_of(wanted)
        if isinstance(found, str):
            self.notes.append(f"the bias of {contender.name} is not told: {wanted.name}: {found}")
            return None
        known.append(found)
        return found

    def _records(self, members: list[Stepper], k: int) -> _Records:
        """Run all replicates of some estimators in lockstep; return a record of each, or its error."""
        leaves = list(self.parameters.leaves.values())
        groups = max(_LEAST_GROUPS, min(NUM_GROUPS, _MOST_BYTES // (len(members) * self._bytes)))
        layout = Layout.of(leaves, self.parameters.blocks, self.replicates, self.seed, num_groups=groups)
        run = Replicates(members, layout, self.tensors, self.seed)
        several = list(itertools.pairwise(layout.bounds))
        here = sum(stop <= run.told for _, stop in several) if self.elsewhere else len(several)
        for start, stop in several[:here]:
            self.progress(f"K = {k}: replicate {start} of {self.replicates}")
            run.take(start, stop)
        if self.elsewhere and several[here:]:
            self.progress(
                f"K = {k}: replicates {several[here][0]} to {self.replicates} in {self.elsewhere.count} processes"
            )
            self.elsewhere.take(run, several[here:])
        return {**run.records, **{stepper: reason for stepper, (_, reason) in run.failed.items()}}

    def _row(
        self, stepper: Stepper, anchor: Stepper | None, records: _Records, seconds: Tensor, weights: Weights | None
    ) -> Row:
        name, k = stepper.contender.name, stepper.contender.num_particles
        record = records[stepper]
        if isinstance(record, str):
            return _failed(stepper, record)
        reference = None
        if anchor is not None and anchor is not stepper:
            theirs = records[anchor]
            if isinstance(theirs, Record):
                reference = theirs
            else:
                self.notes.append(f"the reference {anchor.contender.name} failed at K = {k}: {theirs}")
        self.progress(f"K = {k}: the figures of {name}")
        blocks, of_data = self.parameters.blocks, {}
        try:
            kept = stepper.bytes(*self.tensors)
        except Exception as raised:  # it may raise in some of its steps only
            return _failed(stepper, said(raised))
        if self.minibatch:
            per_datum = max(LEAST_REPLICATES, self.replicates // 20)
            try:
                of_data = minibatch_variance(stepper, self.tensors, blocks, replicates=per_datum, seed=self.seed)
            except Exception as refused:  # an objective need not take a batch of copies
                self.notes.append(f"what the choice of data adds is not told of {name}: {said(refused)}")
        ties = weights.ties if weights is not None and _is_weighted(anchor) else math.inf
        resamples = Resamples.of(record.layout.sizes, self.seed)
        figures = Figures(record, reference, resamples, seconds, self.seed, ties)
        value, value_se, bias = value_of(record, self.evidence)
        return Row(
            name,
            k,
            kind=stepper.kind,
            reference=None if reference is None or anchor is None else anchor.contender.name,
            value=value,
            value_se=value_se,
            bias=bias,
            ess=None if weights is None else weights.ess,
            seconds=measured(figures.seconds_resampled, len(seconds)),
            bytes=kept,
            why_eager=stepper.why_eager,
            blocks={name: figures.block(name, of_data.get(name)) for name in blocks},
        )


def _failed(stepper: Stepper, reason: str) -> Row:
    name, k = stepper.contender.name, stepper.contender.num_particles
    return Row(name, k, kind=stepper.kind, why_eager=stepper.why_eager, failed=reason)


def _is_weighted(anchor: Stepper | None) -> bool:
    """Return whether a reference weights its particles; plain averages over particles do not."""
    if anchor is None or anchor.contender.num_particles == 1:
        return False
    return not isinstance(anchor.contender.objective, _AVERAGES)


def _same(first: Contender, second: Contender) -> bool:
    """Return whether two contenders are the same estimator, whatever their names."""
    if first.num_particles != second.num_particles or type(first.objective) is not type(second.objective):
        return False
    if first.objective is second.objective:
        return True
    try:
        return bool(first.objective == second.objective)
    except Exception:  # their attributes may have no truth of being equal, as tensors
        return False
