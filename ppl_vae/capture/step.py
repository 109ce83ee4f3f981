"""One step as a graph: traced, compared with the eager step, run, and compared again."""

from __future__ import annotations

import functools
import logging
import operator
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.capture.comparing import Comparison, Outcome
from ppl_vae.capture.compiled import compiled
from ppl_vae.capture.eager import Step, eager_step, own, placed
from ppl_vae.capture.entered import Entered
from ppl_vae.capture.guards import Guards
from ppl_vae.capture.reach import MOST, Reach
from ppl_vae.capture.replay import CudaReplay, is_on_gpu
from ppl_vae.capture.simplify import apart, simplify
from ppl_vae.capture.state import PythonRandom, Snapshot, Written, sharing, storages, untouched, whole
from ppl_vae.capture.tracing import CaptureError, NotNowError, OutgrownError, explained, traceable_pyro
from ppl_vae.objectives.impossible import Limits
from ppl_vae.objectives.losses import BatchLoss

logger = logging.getLogger(__name__)

# the program's own counters are advanced by these numbers, to see whether the program computes with them
_AHEAD = (1, 2, 3, 4, 7, 50, 997, 100_003, 10_000_019)

_READS_NUMBERS = "it reads numbers out of a tensor (.numpy(), .tolist()); compute with tensors"

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
        full: Whether the graph is compiled, or was to be and cannot.
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
        self.written: list[Tensor] = []
        self.touched: frozenset[int] = frozenset()
        with explained():
            self._watch(tensors, numbers, roots, parameters)
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
        graph = self._trace_twice(inputs)
        if full:
            self._take(compiled(graph, on_cpu), graph, inputs)
        else:
            try:
                short = simplify(graph, *map(apart, inputs))
                self._take(short, short, inputs)
            except Exception as error:  # an operation that gives no shapes (a user's own kernel), or a wrong rule
                logger.debug("the captured graph is used as it was traced: %s", error)
                self._take(graph, graph, inputs)
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
        if self.is_partial or self._others:
            return "a parameter gets no gradient, or another tensor gets one"
        return "an operation of the step may raise an error" if self._may_fail else None

    @property
    def is_partial(self) -> bool:
        """Whether some parameter gets no gradient."""
        return not all(self._has_gradient)

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
        step = self.form(flat)
        for i in self._borrowed:
            step.gradients[i] = torch.empty_like(self.leaves[i]).copy_(step.gradients[i])  # type: ignore[arg-type]
        return step

    def form(self, flat: Sequence[Tensor]) -> Step:
        """Return the step of these gradients and terms, in the order of `flat`."""
        outputs = iter(flat)
        gradients = [next(outputs) if has else None for has in self._has_gradient]
        others = [(other, next(outputs)) for other in self._others]
        terms: dict[str, Any] = {name: next(outputs) for name in self._computed}
        return Step(self._loss._replace(**terms), gradients, others)

    def flat(self, step: Step) -> tuple[Tensor, ...]:
        """Return the gradients and terms of a step, as the graph gives them."""
        return (
            *(g for g in step.gradients if g is not None),
            *(g for _, g in step.others),
            *(getattr(step.loss, name) for name in self._computed),
        )

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
            return self._as_written(before, tensors, numbers), f"the graph fails ({str(error).strip().splitlines()[0]})"

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

    def _watch(
        self,
        tensors: list[Tensor],
        numbers: Sequence[float],
        roots: Sequence[object],
        parameters: Mapping[str, Tensor] | None,
    ) -> None:
        """Run the step eagerly, find what it depends on and writes to, and put everything back."""
        within_reach = Guards(*roots, parameters=parameters)
        known = {id(leaf) for leaf in self.leaves}  # before a trial run: what a hook does cannot be undone
        trained = [m for m in within_reach.reach.modules if any(id(p) in known for p in m.parameters())]
        _refuse_hooks({id(part) for module in trained for part in module.modules()}, within_reach)
        buffers = [(buffer, buffer._version) for buffer in within_reach.buffers()]
        before, python = Snapshot(), PythonRandom(within_reach.reach.generators)
        reached = {id(t): t for t in (*self.leaves, *within_reach.reach.tensors.values())}.values()
        data = [(t, t.detach()) for t in reached if t.layout is torch.strided]
        entered, written = Entered(), Written()
        try:
            with pyro.validation_enabled(False), entered, written:
                step = eager_step(self._run, self.leaves, [*tensors, *numbers], self._mean)
            self.written = written.tensors()
            self._expected = Outcome(placed(step, tensors), Snapshot(self.written))
            self._example = functools.partial(self._taken_aside, tensors, numbers)
            unseen = any(b._version != version and not written.touches([b]) for b, version in buffers)
            replaced = before.replaced()
        finally:
            read = list(entered.read)
            before.put_back()
            written.put_back()
            given = [(t, old) for t, old in data if t.data_ptr() != old.data_ptr()]
            for t, old in given:
                t.data = old
            moved = python.put_back()
            met = Reach(entered).visit(*roots).visit_entered()
            within_reach.put_back({source.identity for source in met.sources})
        if moved is not None:
            raise CaptureError(
                f"the program draws from {moved}, which a graph cannot; draw with torch, or give the draws as arguments"
            )
        if replaced is not None:
            raise CaptureError(f"the program replaces parameter {replaced!r} in Pyro's store while it runs")
        if given:
            raise CaptureError("the program gives a tensor other memory (.data = ...); write into it, as by copy_()")
        if written.touches(tensors):
            raise CaptureError("the program writes into one of its arguments; let it write into a clone")
        if unseen:
            raise CaptureError("the program writes into a buffer by an operation that does not say so")
        if storages(read) & storages(tensors) or not all(map(written.is_old, read)):
            raise CaptureError(_READS_NUMBERS)
        self.guards = Guards(*roots, entered=entered, parameters=parameters)
        _refuse(self.guards)
        read += [t for t in written.numbers if written.is_old(t)]
        self.guards.guard_numbers(read)

    def _trace_twice(self, inputs: list[Tensor]) -> fx.GraphModule:
        """Trace the graph. If the program changes Python values, trace again, to see whether it computes with them."""
        try:
            graph = self._trace(inputs)
            changes = list(self.guards.changes())
            if changes:
                self.guards.forget(changes)
                for ahead in (0, *_AHEAD):  # a schedule may begin later
                    self.guards.advance(changes, ahead)
                    again = self._trace(inputs)
                    if not _same_graph(graph, again) or self.guards.changed() is not None:
                        raise CaptureError(
                            f"the program changes a Python value while it runs, and computes with it: {changes[0]}"
                        )
                    if not self.guards.can_advance(changes):
                        break
        finally:
            self.guards.put_back()
        return graph

    def _trace(self, inputs: list[Tensor]) -> fx.GraphModule:
        clones = own(inputs)
        numbers = clones[len(clones) - len(self.guards.lifted()) :]
        # the watched run had Python numbers where some of these tensors are; else watching again costs time alone
        entered = Entered(watch=len(clones) > self._count)
        with explained(), untouched(self.written), traceable_pyro(), self.guards.replaced(numbers), entered:
            graph = make_fx(self._joint)(*clones)
        if storages(entered.read) & storages(clones):
            raise CaptureError(_READS_NUMBERS)
        return graph

    def _joint(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the step as a function of tensors, to be traced."""
        lifted = iter(tensors[self._count :])
        numbers = [next(lifted) if constant is None else constant for constant in self.constants]
        step = placed(eager_step(self._run, self.leaves, [*tensors[: self._count], *numbers], self._mean), tensors)
        self._has_gradient = [gradient is not None for gradient in step.gradients]
        self._others = [other for other, _ in step.others]
        assert step.loss.surrogate is not None
        loss = step.loss._replace(surrogate=step.loss.surrogate.detach(), limits=Limits())
        terms: dict[str, Any] = {name: term for name, term in loss._asdict().items() if isinstance(term, Tensor)}
        self._computed: dict[str, Any] = dict.fromkeys(terms)
        self._loss = loss._replace(**self._computed)
        return *(g for g in step.gradients if g is not None), *(g for _, g in step.others), *terms.values()

    def _take(self, graph: Graph, module: fx.GraphModule, inputs: list[Tensor]) -> None:
        """Use this graph, if it computes what the program computes."""
        self._kernels = graph
        held = {id(t): t for t in _held(module) if isinstance(t, Tensor)}
        self.state = [*self.leaves, *self.guards.buffers(), *held.values()]
        self._may_fail = any(map(_checks, module.graph.nodes))
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
                return
            logger.debug("held against the program: %s", difference)
        raise CaptureError(f"{difference}: it depends on what a graph cannot follow")

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
        first = sum(self._has_gradient)

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


def _refuse(guards: Guards) -> None:
    if guards.reach.is_full:
        raise NotNowError(f"what it reads holds more than {MOST:,} Python values, too many to look at in every step")
    if guards.reach.opaque:
        raise NotNowError(guards.reach.opaque[0])
    _refuse_hooks({id(module) for module in guards.reach.modules}, guards)
    if any(t._backward_hooks or t._post_accumulate_grad_hooks for t in guards.reach.tensors.values() if t.is_leaf):
        raise NotNowError("a parameter has a hook, whose Python code runs at every step; remove the hook to capture")


def _refuse_hooks(modules: Set[int], guards: Guards) -> None:
    """Refuse hooks of these modules, and hooks for all modules."""
    for name, hooks, owner in guards.reach.hooks:
        if hooks and (owner is None or id(owner) in modules):
            raise NotNowError(f"a {name} has a hook, whose Python code runs at every step; remove the hook to capture")


def _checks(node: fx.Node) -> bool:
    """Whether an operation may raise on the values of its arguments."""
    schema = getattr(node.target, "_schema", None)
    if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
        return True
    return schema is not None and (not schema.returns or "linalg" in schema.name or "cholesky" in schema.name)


def _held(graph: fx.GraphModule) -> list[Any]:
    """Return what a graph reads from attributes of its module."""
    return [operator.attrgetter(str(node.target))(graph) for node in graph.graph.nodes if node.op == "get_attr"]


def _same_graph(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Whether two traces hold the same operations on the same tensors and numbers."""
    return a.code == b.code and all(
        x is y or (isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y))
        for x, y in zip(_held(a), _held(b), strict=True)
    )
