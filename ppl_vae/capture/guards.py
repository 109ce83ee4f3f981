"""The Python values that a captured graph depends on, and the check that they are unchanged."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
from torch import Tensor

from ppl_vae.capture.entered import Entered
from ppl_vae.capture.kept import Kept, of_tensors
from ppl_vae.capture.places import MISSING, Source
from ppl_vae.capture.reach import Reach, buffers_of
from ppl_vae.capture.values import alike, key_of, number_of, same, show, stands_for


@dataclass(frozen=True)
class Change:
    """One value that has changed.

    Attributes:
        label: The holder of the value, in words.
        before: The old value.
        now: The new value.
        place: The index of the source in the guards (negative for hooks and tensors) and the place in it (-1 where a
            container grew or shrank); None for any other value.
    """

    label: str
    before: Any
    now: Any
    place: tuple[int, Any] | None = None

    def __str__(self) -> str:
        if self.before is MISSING or isinstance(self.before, tuple):
            return self.label
        return f"{self.label} (was {show(self.before)}, is {show(self.now)})"

    @property
    def token(self) -> Any:
        """The label and the new value as a key: a plain value itself, a tensor's shape and type, else the object."""
        return self.label, key_of(self.now)


class Guards:
    """The Python values that some functions depend on, with a check that they are unchanged.

    Guards cover everything within reach: globals, closures, defaults, attributes of objects, of classes and modules,
    items of containers, the content of arrays. They compare plain numbers and text by value, and everything else by
    identity. Of tensors they check shape, strides, dtype and device, whether they require a gradient, and whether
    they have hooks. No code of the program runs: no property is evaluated. A check costs a few calls into C. Guards do
    not see what a program takes from elsewhere (a file, a clock, an iterator's place). Of a container or array of more
    than 1,024 elements they see only a sample.

    Args:
        *roots: Functions, modules and objects to start from.
        entered: The functions that a run entered. Guards then cover only what these functions name; without it, they
            cover everything within reach.
        parameters: Parameters in Pyro's store, which must stay the same tensors.

    Attributes:
        reach: Everything that was met.
        forgotten: The values that are no longer guarded, in words.
        lifted_labels: The labels of the numbers that are inputs of the graph.

    Example:
        >>> import types
        >>> settings = types.SimpleNamespace(beta=1.0)
        >>> guards = Guards(settings)
        >>> guards.changed() is None
        True
        >>> settings.beta = 2.0
        >>> guards.changed()
        'SimpleNamespace.beta (was 1.0, is 2.0)'
    """

    def __init__(
        self, *roots: object, entered: Entered | None = None, parameters: Mapping[str, Tensor] | None = None
    ) -> None:
        self._given = roots, entered, parameters
        self._meet()
        self.forgotten: list[str] = []
        self._numbers: list[tuple[Tensor, float | int | bool]] = []  # numbers that the program read out of tensors
        self._ignored: set[tuple[int, Any]] = set()  # places that the program changes itself
        self._lifted: dict[tuple[int, int], Any] = {}  # places, with the values that the graph was made for
        self.lifted_labels: set[str] = set()
        self._keep()
        self._first = self._kept
        self._contents = [None if s.keep is None else s.keep(s.home) for s in self.reach.sources]

    def _meet(self) -> None:
        """Find everything within reach."""
        roots, entered, parameters = self._given
        self.reach = Reach(entered)
        self.reach.visit(*roots)
        if entered is not None:
            self.reach.visit_entered()
            if self.reach.read_later:  # names that stand in no code: visit again, with these
                entered.also |= self.reach.read_later
                self.reach = Reach(entered).visit(*roots).visit_entered()
            entered.let_go()
        self.reach.let_go()
        if parameters:
            names = tuple(parameters) if len(parameters) > 1 else 2 * tuple(parameters)
            store = pyro.get_param_store()._params
            labels = tuple(f"parameter {name!r} in Pyro's store" for name in names)
            self.reach.sources.append(Source("", operator.itemgetter(*names), store, labels))
            self.reach.tensors |= {id(leaf): leaf for leaf in parameters.values()}

    # comparing them with the present values --------------------------------------------------------------------

    def hold(self) -> bool:
        """Whether every value is unchanged."""
        return self._untouched() or not self.changes()

    def changed(self) -> str | None:
        """Describe the first changed value, by its old and new value; return None while all are unchanged."""
        changes = self.changes()
        return str(changes[0]) if changes else None

    def changes(self) -> list[Change]:
        """Return each value that has changed. A new object that equals the old one counts as unchanged."""
        try:
            found = list(self._changes())
        except Exception as error:  # an object's own code may refuse a comparison
            return [Change(f"what cannot be looked at ({error})", MISSING, MISSING)]
        changes = [c for c in found if c.before is MISSING or not alike(c.before, c.now)]
        if found and not changes and not self._move():
            return found
        if not changes:
            self._keep()  # the values are equal but new objects, and the quick check compares identities
        return changes

    def _move(self) -> bool:
        """Guard the new containers, of the same content, from here on; return whether they have the same places."""
        before, lengths = self.reach, list(map(len, self._kept.values))
        labels = [(source.label, source.names) for source in before.sources]
        self._meet()
        now = [(source.label, source.names) for source in self.reach.sources]
        if now == labels and [len(source.values()) for source in self.reach.sources] == lengths:
            return True
        self.reach = before
        return False

    def _keep(self) -> None:
        """Note the present values."""
        moving = {place[0] for place in (*self._ignored, *self._lifted)}
        self._kept = Kept(self.reach, moving)
        self._slow = [i for i in range(len(self.reach.sources)) if i in moving]

    def _untouched(self) -> bool:
        """Whether every place holds the very same objects; quick, and stricter than necessary."""
        try:
            return (
                self._kept.is_untouched()
                and all(number_of(tensor) == number for tensor, number in self._numbers)
                and not any(True for i in self._slow for _ in self._changes_of(i))
            )
        except Exception:  # a key or an attribute is gone
            return False

    def _changes_of(self, i: int) -> Iterator[Change]:
        source, kept = self.reach.sources[i], self._kept.values[i]
        now = source.values()
        if source.keep is not None and not _same_content(source, now, kept):
            if (i, -1) not in self._ignored:
                yield _grown(source, now, kept, i)
            return
        names = source.names or ("",) * len(kept)
        for j, (a, b, name) in enumerate(zip(now, kept, names, strict=False)):
            if same(a, b) or (i, j) in self._ignored or self._takes((i, j), a):
                continue
            yield Change(source.label + name, b, a, (i, j))
        if len(now) != len(kept) and (i, -1) not in self._ignored:
            yield Change(source.label, MISSING, MISSING, (i, -1))

    def _changes(self) -> Iterator[Change]:
        kept = self._kept
        for i in range(len(self.reach.sources)):
            yield from self._changes_of(i)
        for value, kind in self.reach.kinds:
            if type(value) is not kind:
                yield Change(f"the class of a {kind.__name__}", kind, type(value))
        for i, home, known in kept.namespaces:
            for name in self._added(self.reach.sources[i], known):
                if (i, name) not in self._ignored:
                    yield Change(f"{self.reach.sources[i].label}{name}", MISSING, home[name], (i, name))
        for n, (label, content, _) in enumerate(self.reach.hooks):
            if content:
                yield Change(f"the hooks of a {label}", 0, len(content), (-1, n))
        for n, (tensor, flags) in enumerate(zip(kept.tensors, kept.flags, strict=True)):
            now = of_tensors(tensor)
            if now[0] != flags[0]:
                yield Change(f"requires_grad of a tensor of shape {tuple(tensor.shape)}", flags[0], now[0], (-2, n))
            if now[1:4] != flags[1:4]:
                yield Change("the shape, dtype or device of a tensor", str(flags[1:4]), str(now[1:4]), (-2, n))
            if now[4:] != flags[4:]:
                yield Change(f"the hooks of a tensor of shape {tuple(tensor.shape)}", MISSING, MISSING, (-2, n))
        for n, (tensor, strides) in enumerate(zip(kept.strided, kept.strides, strict=True)):
            if (now := tensor.stride()) != strides:
                yield Change("the strides of a tensor", str(strides), str(now), (-3, n))
        for tensor, number in self._numbers:
            if (value := number_of(tensor)) != number:
                yield Change(f"a number read out of a tensor of shape {tuple(tensor.shape)}", (number,), (value,))

    def _added(self, source: Source, known: frozenset[str]) -> list[str]:
        """Return the names that were added to a namespace and that the functions that ran could read."""
        added = source.home.keys() - known
        watched = self.reach.names if source.watch is None else source.watch
        return list(added if watched is None else added & watched)

    def buffers(self) -> list[Tensor]:
        """Return the buffers of the modules reached."""
        return buffers_of(self.reach.modules)

    # what the program changes itself -----------------------------------------------------------------------------

    def forget(self, changes: Collection[Change]) -> None:
        """Stop guarding these changed values, and note them in `forgotten`."""
        self._ignored |= {change.place for change in changes if change.place is not None}
        quiet = {i for i, source in enumerate(self.reach.sources) if source.quiet}
        self.forgotten += [str(c) for c in changes if c.place is None or c.place[0] not in quiet]

    def can_advance(self, changes: Collection[Change]) -> bool:
        """Whether there is a counter among these values, which the program changes itself."""
        return any(self._counter(change) for change in changes)

    def advance(self, changes: Collection[Change], by: int) -> None:
        """Advance the counters among these values, which the program changes itself."""
        for change in changes:
            if by and self._counter(change):
                assert change.place is not None
                i, j = change.place
                self._write(i, j, self.reach.sources[i].values()[j] + by)

    def _counter(self, change: Change) -> bool:
        return self._can_write(change) and type(change.now) in (int, float)

    def _can_write(self, change: Change) -> bool:
        """Whether a changed value can be written back."""
        i, j = change.place or (-1, -1)
        return i >= 0 and type(j) is int and j >= 0 and self.reach.sources[i].write is not None

    def _write(self, i: int, j: int, value: Any) -> None:
        source = self.reach.sources[i]
        assert source.write is not None
        source.write(source.home, j, value)

    def put_back(self, homes: Set[int] | None = None) -> None:
        """Write back what has changed, to undo what a trial run of the program did to Python values.

        Args:
            homes: The identities of the objects that the run may have changed; None for all.
        """
        for i, (source, kept) in enumerate(zip(self.reach.sources, self._first.values, strict=True)):
            if homes is not None and source.identity not in homes:
                continue
            now = source.values()
            if source.keep is not None:
                items = source.write is not None and any(a is not b for a, b in zip(now, kept, strict=False))
                if (items or not _same_content(source, now, kept)) and source.put_back is not None:
                    source.put_back(source.home, self._contents[i])
            elif source.write is not None:
                for j, (a, b) in enumerate(zip(now, kept, strict=True)):
                    if a is not b and b is not MISSING:
                        source.write(source.home, j, b)
        for i, home, known in self._first.namespaces:
            source = self.reach.sources[i]
            if homes is not None and source.identity not in homes:
                continue
            for name in self._added(source, known):
                if source.owner is None:
                    del home[name]
                else:
                    type.__delattr__(source.owner, name)

    # numbers that become inputs of the graph ----------------------------------------------------------------------

    def can_lift(self, change: Change) -> bool:
        """Whether a tensor can stand for the changed value: a number, or a tensor replaced by one of its kind."""
        numbers = type(change.before) is int and type(change.now) is float
        return self._can_write(change) and (numbers or stands_for(change.before, change.now))

    def _takes(self, place: tuple[int, int], value: Any) -> bool:
        """Whether a value at this place is an input that the graph takes."""
        return place in self._lifted and stands_for(self._lifted[place], value)

    def lift(self, labels: Collection[str]) -> None:
        """Let the numbers of these labels change: they become inputs of the graph."""
        for i, source in enumerate(self.reach.sources):
            if source.write is not None:
                for j, value in enumerate(self._kept.values[i]):
                    if type(value) in (float, int, Tensor) and source.label + source.names[j] in labels:
                        self._lifted[i, j] = value
                        self.lifted_labels.add(source.label + source.names[j])
        self._keep()

    def lifted(self) -> list[float | Tensor]:
        """Return the present values of the numbers and tensors that are inputs."""
        sources = self.reach.sources
        return [tuple(sources[i].read(sources[i].home))[j] for i, j in self._lifted]

    @contextmanager
    def replaced(self, tensors: Collection[Tensor]) -> Iterator[None]:
        """Put tensors in the places of the numbers that are inputs."""
        before = self.lifted()
        try:
            self._write_lifted(tensors)
            yield
        finally:
            self._write_lifted(before)

    def _write_lifted(self, values: Collection[Any]) -> None:
        for (i, j), value in zip(self._lifted, values, strict=True):
            self._write(i, j, value)

    def guard_numbers(self, tensors: Collection[Tensor]) -> None:
        """Guard the numbers that the program has read out of these tensors, which no graph computes."""
        self._numbers += [(tensor, number_of(tensor)) for tensor in {id(t): t for t in tensors}.values()]


def _same_content(source: Source, now: tuple[Any, ...], kept: tuple[Any, ...]) -> bool:
    if isinstance(source.home, set):
        return set(map(key_of, now)) == set(map(key_of, kept))
    return len(now) == len(kept) and (source.write is not None or all(map(same, now, kept)))


def _grown(source: Source, now: tuple[Any, ...], kept: tuple[Any, ...], place: int) -> Change:
    label = source.label.removeprefix("the keys of ").removeprefix("the content of ")
    if len(now) != len(kept):
        return Change(f"the length of {label}", len(kept), len(now), (place, -1))
    return Change(source.label, kept if isinstance(kept[-1], bytes) else MISSING, now, (place, -1))
