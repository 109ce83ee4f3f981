"""How a graph is made: the step runs once under watch, then it is traced."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.capture.comparing import Outcome
from ppl_vae.capture.eager import Step, own, placed
from ppl_vae.capture.entered import Entered
from ppl_vae.capture.guards import Guards
from ppl_vae.capture.reach import MOST, Reach
from ppl_vae.capture.state import PythonRandom, Snapshot, Written, storages, untouched
from ppl_vae.capture.tracing import CaptureError, NotNowError, explained, traceable_pyro

# the program's own counters are advanced by these numbers, to see whether the program computes with them
_AHEAD = (1, 2, 3, 4, 7, 50, 997, 100_003, 10_000_019)

_READS_NUMBERS = "it reads numbers out of a tensor (.numpy(), .tolist()); compute with tensors"


class Watched(NamedTuple):
    """What a watched run has shown.

    Attributes:
        guards: What the step depends on.
        written: The tensors that it writes, each of which covers a whole storage.
        outcome: The step, and what it left behind.
    """

    guards: Guards
    written: list[Tensor]
    outcome: Outcome


def watched(
    step: Callable[[], Step],
    leaves: Sequence[Tensor],
    tensors: Sequence[Tensor],
    roots: Sequence[object],
    parameters: Mapping[str, Tensor] | None,
) -> Watched:
    """Run a step eagerly, find what it depends on and writes to, and put everything back.

    Args:
        step: Runs it.
        leaves: The parameters.
        tensors: Its tensor arguments.
        roots: What the guards start from.
        parameters: The parameters by their names in Pyro's store.

    Raises:
        CaptureError: If it does what no graph can.
    """
    within_reach = Guards(*roots, parameters=parameters)
    known = {id(leaf) for leaf in leaves}  # before a trial run: what a hook does cannot be undone
    trained = [m for m in within_reach.reach.modules if any(id(p) in known for p in m.parameters())]
    _refuse_hooks({id(part) for module in trained for part in module.modules()}, within_reach)
    buffers = [(buffer, buffer._version) for buffer in within_reach.buffers()]
    before, python = Snapshot(), PythonRandom(within_reach.reach.generators)
    reached = {id(t): t for t in (*leaves, *within_reach.reach.tensors.values())}.values()
    data = [(t, t.detach()) for t in reached if t.layout is torch.strided]
    entered, written = Entered(), Written()
    try:
        with pyro.validation_enabled(False), entered, written:
            result = step()
        changed = written.tensors()
        outcome = Outcome(placed(result, tensors), Snapshot(changed))
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
    guards = Guards(*roots, entered=entered, parameters=parameters)
    _refuse(guards)
    guards.guard_numbers(read + [t for t in written.numbers if written.is_old(t)])
    return Watched(guards, changed, outcome)


def trace(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    guards: Guards,
    written: Sequence[Tensor],
    *,
    watch: bool,
) -> fx.GraphModule:
    """Trace a step. If the program changes Python values, trace again, to see whether it computes with them.

    Args:
        function: The step as a function of tensors.
        inputs: These tensors.
        guards: What the step depends on; values that the program changes are forgotten there.
        written: What it writes to.
        watch: Look again for functions that read numbers out of the inputs.

    Raises:
        CaptureError: If the step cannot be traced, or depends on a value that it changes.
    """

    def once() -> fx.GraphModule:
        clones = own(inputs)
        numbers = clones[len(clones) - len(guards.lifted()) :]
        entered = Entered(watch=watch)
        with explained(), untouched(written), traceable_pyro(), guards.replaced(numbers), entered:
            graph = make_fx(function)(*clones)
        if storages(entered.read) & storages(clones):
            raise CaptureError(_READS_NUMBERS)
        return graph

    try:
        graph = once()
        changes = list(guards.changes())
        if changes:
            guards.forget(changes)
            for ahead in (0, *_AHEAD):  # a schedule may begin later
                guards.advance(changes, ahead)
                if not _same_graph(graph, once()) or guards.changed() is not None:
                    raise CaptureError(
                        f"the program changes a Python value while it runs, and computes with it: {changes[0]}"
                    )
                if not guards.can_advance(changes):
                    break
    finally:
        guards.put_back()
    return graph


def held_by(graph: fx.GraphModule) -> list[Any]:
    """Return what a graph reads from attributes of its module."""
    return [operator.attrgetter(str(node.target))(graph) for node in graph.graph.nodes if node.op == "get_attr"]


def _same_graph(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Whether two traces hold the same operations on the same tensors and numbers."""
    return a.code == b.code and all(
        x is y or (isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y))
        for x, y in zip(held_by(a), held_by(b), strict=True)
    )


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
