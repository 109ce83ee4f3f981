"""The graphs of one program: which one a step uses, when a new one is made, and when one is compared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence

from ppl_vae.capture.guards import Change
from ppl_vae.capture.signature import Signature, can_watch
from ppl_vae.capture.step import CapturedStep
from ppl_vae.capture.tracing import CaptureError, NotNowError

logger = logging.getLogger(__name__)

REPAY = 100  # uses of a further graph before it is compiled: that of the last batch of an epoch seldom repays it
_MOST = 8  # graphs of one program
_MOST_MISSES = 8  # steps in a row that no graph fits, before a warning says why
_MOST_SIGHTS = 256  # sets of shapes and values that are remembered after they were met once
# uses of a graph between two comparisons with the program. A comparison costs about three captured steps on a CPU and
# twelve on a GPU: some 2% of the time (benchmarks/guards.py)
_INTERVAL = {"cpu": 100, "cuda": 1000}
_EARLY = 10  # uses of a graph before the first of these comparisons

# captures the step with the numbers among its arguments that become inputs, by their places, with the Python values
# that do, by their labels, and compiled or not. None where a parameter has appeared: it joins in an eager step
Capture = Callable[[set[int], set[str], bool], CapturedStep | None]


class Graphs:
    """The captured steps of one program, by the shapes and values that they are made for.

    Args:
        warn: Called with a warning, and with its kind where the message differs each time; it says each once.

    Attributes:
        made: How many were made; there are no more than eight.
        why: Why the last step that was asked for runs eagerly, where that is worth saying; else None.
    """

    def __init__(self, warn: Callable[..., None]) -> None:
        self._warn = warn
        self.made = 0
        self.why: str | None = None
        self._by_key: dict[Hashable, list[CapturedStep]] = {}
        self._refused: dict[Hashable, str] = {}  # for each key that is not captured any more, the reason
        self._misses = 0
        self._sights: dict[Hashable, tuple[float, ...]] = {}
        self._fixed: set[Hashable] = set()  # numbers that the program does not accept as tensors
        self._stretch: set[int] | None = None  # the graphs whose guards were checked since `begin_stretch`

    def __iter__(self) -> Iterator[CapturedStep]:
        return (graph for graphs in self._by_key.values() for graph in graphs)

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def of(self, key: Hashable) -> list[CapturedStep]:
        """Return the graphs for these shapes and plain values."""
        return self._by_key.get(key, [])

    def begin_stretch(self) -> None:
        """Check the guards of each graph once, and capture new shapes at once, from here to the next call."""
        self._stretch = set()

    def find(
        self, key: Hashable, given: Signature, capture: Capture, *, has_stepped: bool, full: bool
    ) -> CapturedStep | None:
        """Return the graph for a step, made if need be; None where it runs eagerly, as most do when first met.

        Raises:
            CaptureError: If the step cannot be captured.
        """
        self.why = self._refused.get(key)
        if self.why is not None:
            return None
        graph = next((g for g in self.of(key) if self.fits(g, given.numbers)), None)
        if graph is None:
            graph = self._make(key, given, capture, has_stepped, full and not len(self))
        elif full and not graph.full and graph.uses >= REPAY and self.made < _MOST:
            graph = self._compiled(key, graph, given, capture)
        if graph is not None:
            self._misses = 0
        return graph

    def fits(self, graph: CapturedStep, numbers: tuple[float, ...]) -> bool:
        """Whether a graph is made for these numbers and the program as it is."""
        if self._stretch is not None and id(graph) in self._stretch:
            return graph.takes(numbers)
        if not graph.fits(numbers):
            return False
        if self._stretch is not None:
            self._stretch.add(id(graph))
        return True

    def drop(self, key: Hashable, graph: CapturedStep) -> bool:
        """Drop a graph that does not compute what the program computes; return whether another can be made."""
        self._by_key[key].remove(graph)
        return self.made < _MOST

    def refuse(self, key: Hashable, graph: CapturedStep, why: str) -> None:
        """Drop a graph, and make no other for these shapes."""
        self._by_key[key].remove(graph)
        self._refused[key] = why

    def clear(self) -> None:
        """Drop all graphs."""
        self._by_key.clear()

    def _compiled(self, key: Hashable, graph: CapturedStep, given: Signature, capture: Capture) -> CapturedStep:
        """Replace a graph by one that is compiled, where Inductor can, or keep it."""
        graph.full = True  # whatever comes of it: it is tried once
        try:
            new = self._make(key, given, capture, True, True, like=[graph])
        except CaptureError as error:
            self._refused.pop(key, None)
            self._warn(f"steps of a further shape of data are not compiled: {error}")
            return graph
        if new is None:
            return graph
        self._by_key[key].remove(graph)
        return new

    def _make(
        self,
        key: Hashable,
        given: Signature,
        capture: Capture,
        has_stepped: bool,
        full: bool,
        like: Sequence[CapturedStep] | None = None,
    ) -> CapturedStep | None:
        """Capture the step where it is met again; note it where it is new.

        What becomes an input follows from what has changed since the graphs of `like`, by default all of this key.
        """
        graphs = self.of(key) if like is None else like
        changes = list(graphs[-1].guards.changes()) if graphs else []
        lift = self._numbers_to_lift(key, graphs, given.numbers)
        labels = set(graphs[-1].guards.lifted_labels) - self._fixed if graphs else set()
        floats = {c.label for c in changes if graphs[-1].guards.can_lift(c)} - self._fixed
        rest = [c for c in changes if c.label not in floats]
        values = tuple(None if i in lift else n for i, n in enumerate(given.numbers))
        sight = key, values, frozenset(change.token for change in (rest or changes))
        known = key in self._sights or bool(graphs)
        at_once = (not known and self._stretch is not None) or (known and bool((lift or floats) and not rest))
        met = sight in self._sights
        if len(self._sights) < _MOST_SIGHTS or key in self._sights:
            self._sights[sight] = self._sights[key] = given.numbers
        if not has_stepped or not can_watch():
            return None
        if self.made >= _MOST or not (at_once or met):
            self._miss(changes, known, no_more=at_once or met)
            return None
        self.made += 1
        try:
            graph = capture(lift, labels if rest else labels | floats, full)
        except NotNowError:
            self.made -= 1  # another attempt costs little
            raise
        except (CaptureError, OverflowError, ValueError) as error:
            if not (lift or labels or floats):
                if isinstance(error, CaptureError):
                    self._refused[key] = str(error)
                raise
            self._fixed |= {(key, i) for i in lift} | labels | floats
            logger.debug("the program takes no tensor in the place of a number", exc_info=True)
            self._miss(changes, known)
            return None
        if graph is not None:
            self._by_key.setdefault(key, []).append(graph)
        return graph

    def _numbers_to_lift(self, key: Hashable, graphs: Sequence[CapturedStep], numbers: tuple[float, ...]) -> set[int]:
        """Return the places of the number arguments that have changed: they become inputs of the graph."""
        known = [graph.constants for graph in graphs] + [self._sights.get(key, numbers)]
        changed = {i for constants in known for i, c in enumerate(constants) if c != numbers[i]}
        return {i for i in changed if (key, i) not in self._fixed}

    def _miss(self, changes: list[Change], known: bool, no_more: bool = False) -> None:
        """Count a step that no graph fits, and warn where there are many in a row or no more graphs are made."""
        self._misses += 1
        what = str(changes[0]) if changes else "numbers change" if known else "shapes are new"
        if no_more:
            self.why = f"{_MOST} graphs are made, and none fits: {what}"
        elif self._misses >= _MOST_MISSES:
            self.why = f"no graph fits from step to step: {what}"
        if self.why is not None:
            self._warn(
                f"steps run as they are written: {self.why}; make what changes a tensor, and pad data to a few shapes",
                "miss",
            )


def is_due(graph: CapturedStep, given: Signature) -> bool:
    """Whether to compare a graph with the program at this use."""
    return graph.is_other(given.tensors, given.numbers) or graph.unchecked >= interval(graph)


def interval(graph: CapturedStep) -> int:
    """Return how many uses of a graph there are from one comparison to the next."""
    device = graph.leaves[0].device.type if graph.leaves else "cpu"
    return _INTERVAL.get(device, 100) if graph.checks > 1 else _EARLY
