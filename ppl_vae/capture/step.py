"""One step as a graph: traced, compared with the eager step, run, and compared again."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, fx

from ppl_vae._words import first_line
from ppl_vae.capture.comparing import Comparison, Outcome
from ppl_vae.capture.compiled import compiled
from ppl_vae.capture.eager import Form, Step, eager_step, placed
from ppl_vae.capture.making import held_by, trace, watched
from ppl_vae.capture.replay import CudaReplay, is_on_gpu
from ppl_vae.capture.simplify import apart, simplify
from ppl_vae.capture.state import Snapshot, sharing, storages, untouched, whole
from ppl_vae.capture.tracing import CaptureError, OutgrownError, explained
from ppl_vae.objectives.impossible import Limits
from ppl_vae.objectives.losses import BatchLoss

logger = logging.getLogger(__name__)

Graph = Callable[..., tuple[Tensor, ...]]


class CapturedStep:
    """One step as a graph, for one set of shapes and Python values.

    Besides its inputs, the graph reads and writes only the tensors in `state` (parameters, buffers, tensors that the
    program holds) and torch's generator. The tensors that it writes are in `written`.

    The program first runs once eagerly, through Pyro, and is watched to find what it depends on and writes to. Then it
    is traced, and the graph is compared with the first run. These runs leave nothing behind: tensors, random states,
    Pyro's store and Python values within reach are put back.

    Args:
        run: Runs the step eagerly on tensors and numbers, and returns the loss.
        leaves: The parameters to differentiate by.
        tensors: The tensor arguments.
        roots: Model, guide and loss, for the guards.
        parameters: The parameters by their names in Pyro's store.
        mean: Differentiate the mean per datum instead of the sum.
        full: Compile the graph with Inductor.
        numbers: The numbers among the arguments.
        lift: The places in `numbers` of the numbers that become inputs of the graph.
        lift_values: The labels of Python values that become inputs too.

    Attributes:
        leaves: The parameters.
        full: Whether the graph is compiled, or was to be and cannot: `why_not_compiled` then says why.
        guards: The Python values that the graph depends on.
        constants: The numbers among the arguments that the graph is made for; None for numbers that are inputs.
        state: See above.
        written: See above; each tensor covers a whole storage.
        uses: How often the graph was used; `unchecked` counts the uses since the last comparison with the program, and
            `checks` counts these comparisons.
        whole: The step with the optimiser's update, a `WholeStep`; None where there is none.
        why_apart: Why none is made any more, or None; `short` counts those that were used too little.
        fed: The same with batches drawn in it, or None; `why_unfed` says why none is made any more.
        touched: The identities of the parameters that the step meets, whether or not the loss depends on them.

    Raises:
        CaptureError: If the step cannot be captured, or the graph does not compute what the program computes.
    """

    def __init__(
        self,
        run: Callable[..., BatchLoss],
        leaves: list[Tensor],
        tensors: list[Tensor],
        *,
        roots: Sequence[object],
        parameters: Mapping[str, Tensor] | None = None,
        mean: bool,
        full: bool,
        numbers: Sequence[float] = (),
        lift: Collection[int] = (),
        lift_values: Collection[str] = (),
    ) -> None:
        self._run, self.leaves, self._mean, self.full = run, list(leaves), mean, full
        self._autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        self.constants = tuple(None if i in lift else n for i, n in enumerate(numbers))
        self.uses = self.unchecked = self.checks = 0
        self.whole: Any = None
        self.why_apart: str | None = None
        self.fed: Any = None
        self.why_unfed: str | None = None
        self.short = 0
        self.touched: frozenset[int] = frozenset()
        with explained():
            step = functools.partial(eager_step, run, self.leaves, [*tensors, *numbers], mean)
            self.guards, self.written, self._expected = watched(step, self.leaves, tensors, roots, parameters)
        self._example = functools.partial(self._taken_aside, tensors, numbers)
        self._comparison = Comparison(
            self._expected.step, self.leaves, tuple(parameters or ()), full=full, autocast=bool(self._autocast)
        )
        if lift_values:
            self.guards.lift(lift_values)
        floats = [leaf.dtype for leaf in self.leaves if leaf.dtype.is_floating_point]
        self._float = max([torch.get_default_dtype(), *floats], key=lambda dtype: torch.finfo(dtype).bits)
        self._count = len(tensors)
        lifted = self._lifted(numbers)
        self._dtypes = [torch.int64 if type(value) is int else self._float for value in lifted]
        self._sizes = [(size, size) for size in _sizes(lifted)]
        inputs = self.inputs(tensors, numbers)
        on_cpu = all(t.device.type == "cpu" for t in (*inputs, *self.leaves))
        self._may_overflow = on_cpu and bool(self._sizes)
        # the watched run had Python numbers where some of the inputs are tensors; else watching again costs time alone
        watch = len(inputs) > self._count
        graph = trace(self._joint, inputs, self.guards, self.written, watch=watch)
        self.why_not_compiled: str | None = None
        if full:
            try:
                self.why_not_compiled = self._take(compiled(graph, on_cpu), graph, inputs)
            except CaptureError as error:
                self.why_not_compiled = str(error)
        if not full or self.why_not_compiled is not None:
            self._take_plain(graph, inputs)
        del self._expected, self._example
        self._strided = [t for t in {id(t): t for t in self.state}.values() if t.layout is torch.strided]
        self._addresses, self._sharing = list(map(Tensor.data_ptr, self._strided)), sharing(self._strided)
        self._kept = [t for t in self._strided if storages([t]) <= storages(self.written)]
        self._unmoved = [t for t in self.written if storages([t]).isdisjoint(storages(self._kept))]
        self._checked_on = [_data(value) for value in (*tensors, *numbers, *self.guards.lifted())]
        self._same_so_far = set(range(len(self._checked_on)))

    # running it ----------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Tensor) -> Step:
        """Run the graph on its `inputs`."""
        with self._as_recorded():
            return self.unpack(self._graph(*inputs))

    def launched(self, *inputs: Tensor) -> Step:
        """Run the graph kernel by kernel, also where `graph` is a CUDA graph."""
        with self._as_recorded():
            return self.unpack(self._kernels(*inputs))

    @contextmanager
    def _as_recorded(self) -> Iterator[None]:
        """Compute as the graph says: the casts and the gradients are in it already."""
        with torch.no_grad(), ExitStack() as stack:
            for kind in self._autocast:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    @property
    def kernels(self) -> Graph:
        """The function that runs, or that a CUDA graph has recorded: an `fx.GraphModule` unless it is compiled."""
        return self._kernels

    @property
    def why_not_whole(self) -> str | None:
        """Why the optimiser's update cannot be part of the same CUDA graph; None where it can (`WholeStep`)."""
        if self._replay is None:
            return "the step is no CUDA graph"
        if self.is_partial or self.form.others:
            return "a parameter gets no gradient, or another tensor gets one"
        return "an operation of the step may raise an error" if self._may_fail else None

    @property
    def is_partial(self) -> bool:
        """Whether some parameter gets no gradient."""
        return not all(self.form.has_gradient)

    def inputs(self, tensors: Sequence[Tensor], numbers: Sequence[float] = ()) -> list[Tensor]:
        """Return the inputs of the graph: the tensors, and the numbers that are inputs, as tensors."""
        return [*tensors, *map(self._as_tensor, self._lifted(numbers), self._dtypes)]

    def _lifted(self, numbers: Sequence[float]) -> list[float | Tensor]:
        """Return the present values of what is an input besides the tensor arguments."""
        lifted = (n for n, constant in zip(numbers, self.constants, strict=True) if constant is None)
        return [*lifted, *self.guards.lifted()]

    def _as_tensor(self, value: float | Tensor, dtype: torch.dtype) -> Tensor:
        """Return a number as a tensor on the device of the parameters; a tensor unchanged."""
        if isinstance(value, Tensor):
            return value
        try:
            return torch.full((), value, dtype=dtype, device=self.leaves[0].device if self.leaves else "cpu")
        except (RuntimeError, OverflowError) as error:
            raise CaptureError("a number among the arguments is too large for a tensor") from error

    def fits(self, numbers: Sequence[float]) -> bool:
        """Whether the graph is made for these numbers, and for the present Python values."""
        return self.takes(numbers) and not self.moved() and self.guards.hold()

    def takes(self, numbers: Sequence[float]) -> bool:
        """Whether the graph is made for these numbers."""
        return all(c is None or repr(c) == repr(n) for c, n in zip(self.constants, numbers, strict=True))

    def moved(self) -> bool:
        """Whether a tensor has moved since a CUDA graph recorded its address, or shares memory with other tensors now.

        A tensor that has only been given other memory (``.data = ...``) is read and written there.
        """
        if list(map(Tensor.data_ptr, self._strided)) != self._addresses:
            if sharing(self._strided) != self._sharing:
                return True
            self._addresses = list(map(Tensor.data_ptr, self._strided))
            kept = {t.untyped_storage()._cdata: t for t in self._kept}
            self.written = [*self._unmoved, *map(whole, kept.values())]
        return self._replay is not None and self._replay.moved()

    def overlaps(self, tensors: Sequence[Tensor]) -> bool:
        """Whether an input shares memory with what the step writes to."""
        if not self.written:
            return False
        held = [value for value in self.guards.lifted() if isinstance(value, Tensor)]
        return not storages(self.written).isdisjoint(storages([*tensors, *held]))

    def unpack(self, flat: Sequence[Tensor]) -> Step:
        """Return the step that the graph's outputs stand for."""
        step = self.form.step(flat)
        for i in self._borrowed:
            step.gradients[i] = torch.empty_like(self.leaves[i]).copy_(step.gradients[i])  # type: ignore[arg-type]
        return step

    def run(self, tensors: list[Tensor], numbers: Sequence[float]) -> tuple[Step, str | None]:
        """Take the step by the graph. Where the graph fails, take it eagerly, and say so."""
        if not self._may_fail and not self._may_overflow:
            return self(*self.inputs(tensors, numbers)), None
        before = Snapshot(self.written)
        step, failed = self._tried(before, tensors, numbers)
        if failed is None and self._may_overflow and not step.loss.loss.isfinite().all():
            self._may_overflow = False
            before.put_back()
            return self.checked(tensors, numbers)
        return step, failed

    def _tried(self, before: Snapshot, tensors: list[Tensor], numbers: Sequence[float]) -> tuple[Step, str | None]:
        try:
            return self(*self.inputs(tensors, numbers)), None
        except RuntimeError as error:  # if the graph is not at fault, the program raises too
            before.put_back()
            return self._as_written(before, tensors, numbers), f"the graph fails ({first_line(error)})"

    def _taken_aside(self, tensors: list[Tensor], numbers: Sequence[float]) -> Step:
        """Take the step as it is written, and put back what it changes."""
        before = Snapshot(self.written)
        try:
            return self._as_written(before, tensors, numbers)
        finally:
            before.put_back()

    def _as_written(self, before: Snapshot, tensors: list[Tensor], numbers: Sequence[float]) -> Step:
        try:
            with pyro.validation_enabled(False):
                return placed(eager_step(self._run, self.leaves, [*tensors, *numbers], self._mean), tensors)
        except CaptureError as error:
            before.put_back()
            raise OutgrownError(str(error)) from error

    # comparing it with the program -----------------------------------------------------------------------------------

    def is_other(self, tensors: Sequence[Tensor], numbers: Sequence[float]) -> bool:
        """Whether an input is other than in all checks.

        It differs for the first time, so that a frozen value would show now. Or it is a number whose size leaves twice
        the range of those: a tensor in its place may overflow, or have lost its digits.
        """
        if self._sizes:
            sizes = _sizes(self._lifted(numbers))
            if not all(low <= 2 * n and n <= 2 * high for n, (low, high) in zip(sizes, self._sizes, strict=True)):
                self.checks = 0  # compare it again soon
                return True
        return bool(self._same_so_far) and bool(self._other(tensors, numbers))

    def _other(self, tensors: Sequence[Tensor], numbers: Sequence[float]) -> set[int]:
        """Return the places of the inputs that differ, for the first time, from their value in all checks."""
        now = [_data(value) for value in (*tensors, *numbers, *self.guards.lifted())]
        # a tensor has one weak reference, and `==` would compare what it refers to
        pairs = list(zip(now, self._checked_on, strict=True))
        return {
            i for i in self._same_so_far if pairs[i][0][0] is not pairs[i][1][0] or pairs[i][0][1] != pairs[i][1][1]
        }

    def checked(self, tensors: list[Tensor], numbers: Sequence[float]) -> tuple[Step, str | None]:
        """Take the step by graph and program on the same noise; return one of the two, and how they differ if they do.

        Where they agree, the step is the graph's, and the state is as the graph left it. Otherwise the step and the
        state are the program's.
        """
        self.unchecked = 0
        self.checks += 1
        before = Snapshot(self.written)
        step, failed = self._tried(before, tensors, numbers)
        if failed is not None:
            return step, failed
        ours = Outcome(step, Snapshot(self.written))
        before.put_back()
        theirs = Outcome(self._as_written(before, tensors, numbers), Snapshot(self.written))

        def program() -> Step:
            before.put_back()
            return self._as_written(before, tensors, numbers)

        if difference := self.difference(ours, theirs, program):
            theirs.after.put_back()
            return theirs.step, difference
        ours.after.put_back()
        self._same_so_far -= self._other(tensors, numbers)
        sizes = _sizes(self._lifted(numbers))
        self._sizes = [(min(a, n), max(b, n)) for n, (a, b) in zip(sizes, self._sizes, strict=True)]
        return ours.step, None

    def difference(self, ours: Outcome, theirs: Outcome, program: Callable[[], Step]) -> str | None:
        """Say where two steps differ by more than roundings; `program` takes the second again."""

        def rounded(way: int) -> Step:
            with self._comparison.off_by_a_rounding(way):
                return program()

        return self._comparison.difference(ours, theirs, rounded)

    # making it -----------------------------------------------------------------------------------------------------

    def _joint(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the step as a function of tensors, to be traced."""
        lifted = iter(tensors[self._count :])
        numbers = [next(lifted) if constant is None else constant for constant in self.constants]
        step = placed(eager_step(self._run, self.leaves, [*tensors[: self._count], *numbers], self._mean), tensors)
        assert step.loss.surrogate is not None
        loss = step.loss._replace(surrogate=step.loss.surrogate.detach(), limits=Limits())
        step = step._replace(loss=loss)
        self.form = Form.of(step)
        return self.form.flat(step)

    def _take_plain(self, graph: fx.GraphModule, inputs: list[Tensor]) -> None:
        """Use the graph without a compiler, simplified if possible."""
        try:
            short = simplify(graph, *map(apart, inputs))
            difference = self._take(short, short, inputs)
        except Exception as error:  # an operation that gives no shapes: a user's own kernel
            difference = str(error)
        if difference is not None:
            logger.debug("the captured graph is used as it was traced: %s", difference)
            difference = self._take(graph, graph, inputs)
        if difference is not None:
            raise CaptureError(f"{difference}: it depends on what a graph cannot follow")

    def _take(self, graph: Graph, module: fx.GraphModule, inputs: list[Tensor]) -> str | None:
        """Use this graph; say how it differs from what the program computes, or return None."""
        self._kernels = graph
        held = {id(t): t for t in held_by(module) if isinstance(t, Tensor)}
        self.state = [*self.leaves, *self.guards.buffers(), *held.values()]
        self._may_fail = any(map(_checks, module.graph.nodes))
        difference = None
        for run in self._ways(graph, inputs):
            with explained():  # a missing compiler shows in the first run
                self._graph: Graph = run
                self._borrowed: list[int] = []
                with untouched(self.written):
                    self._borrowed = self._find_borrowed(self(*inputs), inputs)
                with untouched(self.written):
                    ours = Outcome(self(*inputs), Snapshot(self.written))
                difference = self.difference(ours, self._expected, self._example)
            if difference is None:
                break
            logger.debug("held against the program: %s", difference)
        return difference

    def _ways(self, graph: Graph, inputs: list[Tensor]) -> Iterator[Graph]:
        """Yield the ways to run the graph: on a GPU as one CUDA graph where possible, then kernel by kernel."""
        self._replay: CudaReplay | None = None
        if all(map(is_on_gpu, [*inputs, *self.leaves])):
            with explained():
                replayed = self._replayed(graph, inputs)
            if replayed is not None:
                yield replayed
                self._replay = None
        yield graph

    def _replayed(self, graph: Graph, inputs: list[Tensor]) -> Graph | None:
        """Return the graph as one CUDA graph, or None where that is impossible."""
        on_cpu = [t for t in self.state if not is_on_gpu(t)]
        if any(t.numel() > 1 for t in on_cpu) or storages(on_cpu) & storages(self.written):
            return None  # no CUDA graph repeats what the CPU does
        try:
            with untouched(self.written), self._as_recorded():
                replay = CudaReplay(graph, inputs, self.on_gpu)
        except RuntimeError as error:
            logger.debug("the captured graph is launched kernel by kernel: %s", error)
            return None
        self.guards.guard_numbers([t for t in on_cpu if t.numel()])  # the recording has their present values
        self._replay = replay
        # the optimiser uses the gradients before the next call, but the caller may keep the other outputs for longer
        first = sum(self.form.has_gradient)

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            outputs = replay(*tensors)
            return *outputs[:first], *(seen.clone() for seen in outputs[first:])

        return run

    @property
    def on_gpu(self) -> list[Tensor]:
        """The tensors of `state` on a GPU."""
        return list(filter(is_on_gpu, self.state))

    def _find_borrowed(self, step: Step, inputs: list[Tensor]) -> list[int]:
        """Find gradients that share memory or are not laid out as their parameter; optimisers expect neither."""
        places = [None if g is None else g.untyped_storage().data_ptr() for g in step.gradients]
        others = {t.untyped_storage().data_ptr() for t in [*inputs, *self.state] if t.layout is torch.strided}
        return [
            i
            for i, (g, leaf) in enumerate(zip(step.gradients, self.leaves, strict=True))
            if g is not None and (g.stride() != leaf.stride() or places.count(places[i]) > 1 or places[i] in others)
        ]


def _data(value: Tensor | float) -> tuple[Any, float]:
    """Identify the data of an argument, without keeping it alive."""
    return (weakref.ref(value), value._version) if isinstance(value, Tensor) else (None, value)


def _sizes(values: Sequence[float | Tensor]) -> list[float]:
    """Return the sizes of the numbers among some values."""
    return [abs(value) for value in values if not isinstance(value, Tensor)]


def _checks(node: fx.Node) -> bool:
    """Whether an operation may raise on the values of its arguments."""
    schema = getattr(node.target, "_schema", None)
    if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
        return True
    return schema is not None and (not schema.returns or "linalg" in schema.name or "cholesky" in schema.name)
