"""Stochastic variational inference: optimisation steps of a Pyro program, with one optimiser over all parameters.

`pyro.optim` makes an optimiser for every tensor. `pyro.infer.SVI` validates at every step and waits for the loss. Both
cost more than the effect handlers. Here `SVI` collects the parameters from the program as it runs, and one torch
optimiser (fused, where possible) updates them in one pass.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree

from ppl_vae._optimizers import OptimizerFactory, TorchOptimizer, as_optimizer
from ppl_vae._validation import check_choice, check_positive
from ppl_vae.capture import (
    CapturedStep,
    CaptureError,
    NotNowError,
    OutgrownError,
    Step,
    environment,
    signature,
    unusual,
)
from ppl_vae.capture.graphs import Graphs, interval, is_due
from ppl_vae.capture.parameters import ParameterCollector, leaves_noted
from ppl_vae.capture.signature import Signature
from ppl_vae.capture.whole import Feed, take_fed, take_whole
from ppl_vae.objectives.losses import BatchLoss, as_loss

__all__ = ["ALONE", "SVI", "Compile", "OptimizerFactory"]

Compile = Literal["off", "graph", "full"]

logger = logging.getLogger(__name__)

ALONE = threading.RLock()  # Pyro's handlers and its store are global to the process: one program runs at a time

_AGAIN = 100  # eager steps after a temporary obstacle (a hook, for example), before the next attempt to capture
_AS_WRITTEN = "training eagerly, since the step cannot be captured: "
_LEAST = 4  # steps that are worth a stretch without Python


class SVI:
    r"""Pyro's SVI with one torch optimiser, which maximises an objective over the parameters of a model and a guide.

    **A captured step computes what the program computes, or a warning reports the difference.** The first step runs
    eagerly, through Pyro, under whatever validation Pyro has switched on. Later steps run as captured graphs without
    any Pyro code (`ppl_vae.capture`): each set of shapes that is met twice gets a graph. A graph is used only while
    everything that the program was seen to depend on is unchanged: `requires_grad` and hooks, modes and parts of
    modules, globals, attributes, closures and defaults of every function that ran, torch's switches. `SVI` compares the
    graph with the program before its first use, on the first other data, after 10 uses and then every 100 (on a GPU
    1,000). If they differ, it logs the difference, takes this step eagerly, and captures the program anew. A number
    that changes between two steps becomes an input of the graph where the program allows it. A tensor stands for it
    there, which overflows and rounds where Python's does not: the graph is compared again where the number leaves twice
    the range seen so far and, on a CPU, where the loss is first not finite.

    A step that cannot be captured runs eagerly. One warning of the logger ``ppl_vae.svi`` says why and what to do;
    `why_eager` and ``repr(svi)`` say it too. The reasons are a branch on a value and ``.item()``, a call of
    ``.backward()``, hooks, draws from Python's or NumPy's random numbers, computation with a Python value that the
    program changes itself, and more than eight graphs. Side effects of the program (printing, counting) happen only in
    eager steps. One warning names a value that the program only counts.

    Training is slow where shapes or whole numbers differ at nearly every step: pad to a few shapes, pass tensors.

    `step` has Pyro's meaning: it takes the gradient and the value of the *sum* over data. It returns a float, for which
    it waits. It adds to gradients that you have put into ``.grad`` of parameters of earlier steps, and leaves none
    there, except where it raises, and where it does not meet the parameter: these wait for the next step. Those of new
    parameters are dropped, since another SVI may have left them. `update` follows the gradient of the *mean* per datum,
    so that the learning rate does not depend on the size of the batch. It returns tensors without waiting, drops
    gradients that are already in ``.grad``, and leaves its own there, to which no `step` adds.

    Parameters are found when the program first runs: those of modules registered with `pyro.module` or in a
    `PyroModule`, and those of `pyro.param`, in their unconstrained form. A parameter that first appears in a later step
    joins in that step, in the first group of the optimiser. One that `optim` leaves out, or that you take out of the
    optimiser's groups, keeps its value. Other tensors that require a gradient (an argument, or a tensor that the
    program holds) have it added to their ``.grad``, as in Pyro.

    Steps of different threads wait for each other, since Pyro's handlers are global.

    Args:
        model: p(x, z), a Pyro program.
        guide: q(z|x), a Pyro program of the same arguments.
        optim: A function that makes the optimiser from the parameters, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``; a torch optimiser class that has a fused form gets it. Or
            an object of `pyro.optim`, whose state and settings are used and changed as in Pyro.
        loss: An objective of `ppl_vae.objectives`, a Pyro ELBO object (whose attributes are read at every step), a
            function of log-weights, or a function ``loss(model, guide, *args, **kwargs)``.
        clip_norm: Scale gradients down to this global L2 norm where they exceed it (the gradient of the mean per datum
            under `update`, of the sum under `step`).
        compile: ``"graph"`` captures steps. ``"full"`` also compiles the graph by Inductor, which needs a C++ compiler,
            takes 15 seconds to a minute, and changes roundings; a further shape of data, or a program that has changed,
            is compiled after 100 steps. Where Inductor fails, one warning says so, and the graph runs as it is.
            ``"off"`` does neither.

    Attributes:
        optimizer: The torch optimiser, from the first step on. None while a `pyro.optim` object takes the steps itself
            (an object with a schedule, clipping, or other settings for each parameter).
        why_eager: Why the last step ran eagerly, or None.
        exchange: Called in every step, before the optimiser, with the parameters, whose gradients are in ``.grad``, and
            the loss; returns the loss. `fit` lets the processes of a run exchange both there. None by default.
        draws: The context in which the program runs. `fit` puts the mode there in which NaN stops no draw.

    Raises:
        TypeError: If `optim` or `loss` is of no kind named above.
        ValueError: If `clip_norm` is not a finite number above 0.

    Example:
        >>> import functools
        >>> from ppl_vae import VAE, likelihoods, objectives, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-3), objectives.ELBO())
        >>> losses = [svi.step(torch.ones(8, 64)) for _ in range(50)]
        >>> losses[-1] < losses[0]
        True
        >>> svi
        SVI(captured in 1 graph)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: OptimizerFactory | PyroOptim,
        loss: object,
        *,
        clip_norm: float | None = None,
        compile: Compile = "graph",
    ) -> None:
        check_choice(compile, get_args(Compile), "SVI: compile")
        if clip_norm is not None:
            check_positive(clip_norm, "SVI: clip_norm")
        self.model = model
        self.guide = guide
        self.loss = as_loss(loss)
        self.clip_norm = clip_norm
        self.compile = compile
        self.why_eager: str | None = "compile is 'off'" if compile == "off" else None
        self.exchange: Callable[[dict[str, Tensor], BatchLoss], BatchLoss] | None = None
        self.draws: AbstractContextManager[Any] = nullcontext()
        self._optimizer = as_optimizer(optim)
        self._parameters = ParameterCollector()
        self._followed: set[int] = set()  # the parameters that have had a gradient
        self._stepped = False
        self._moved = False  # whether the graph of the present step has moved the parameters
        self._last: tuple[CapturedStep, Any, Signature] | None = None  # the last update, where its graph has done so
        self._met: Set[int] = frozenset()  # the parameters that the present step has met
        self._left: list[tuple[Tensor, int]] = []  # the gradients that an `update` left in `.grad`, and their versions
        self._wait = 0  # eager steps before the next attempt to capture
        self._warn = _Warnings()
        self._graphs = Graphs(self._warn)

    def __repr__(self) -> str:
        """Say whether steps are captured, or why not."""
        count = len(self._graphs)
        graphs = f"captured in {count} graph{'s' * (count > 1)}" if count else ""
        if self.why_eager is not None:
            return f"SVI({graphs + '; ' if graphs else ''}the last step ran as written: {self.why_eager})"
        return f"SVI({graphs or 'not captured yet'})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes that a copy gets: no graphs, since these hold this program's tensors."""
        return vars(self) | {"_graphs": Graphs(self._warn), "_followed": set(), "_left": [], "_last": None}

    @property
    def optimizer(self) -> Optimizer | None:
        """The torch optimiser."""
        return self._optimizer.optimizer

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The unconstrained parameters found so far, by Pyro's name."""
        return self._parameters.leaves

    @property
    def left_out(self) -> list[Tensor]:
        """The parameters that the optimiser could have and has not, which keep their values."""
        return self._optimizer.left_out()

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one step on the sum over data, and return Pyro's loss, minus the objective summed over data."""
        return self._take(False, args, kwargs).loss.item()

    def update(self, *args: Any, **kwargs: Any) -> BatchLoss:
        """Take one step on the mean per datum, and return its loss and terms without waiting for them."""
        return self._take(True, args, kwargs)

    def follow(self, feed: Feed, most: int) -> int:
        """Take up to `most` steps on the next batches of a feed without Python in between; return how many were taken.

        They go on where the last `update` took a batch of the same shapes, as one CUDA graph. There are none where that
        is impossible, or where a comparison with the program is due.
        """
        if self._last is None:
            return 0
        graph, key, given = self._last
        update = self._update_alone()
        if update is None or unusual(given.tensors) is not None or key != self._key(True, given):
            return 0
        known = graph in self._graphs.of(key) and feed.fits(given.tensors)
        if not known or not self._graphs.fits(graph, given.numbers) or graph.overlaps(given.tensors):
            return 0
        count = min(most, interval(graph) - graph.unchecked - 1)
        if count < _LEAST or is_due(graph, given):
            return 0
        try:
            inputs = graph.inputs(given.tensors, given.numbers)[len(given.tensors) :]
        except CaptureError:  # the next `update` says it
            return 0
        with ALONE:
            step = take_fed(graph, update, self.clip_norm, inputs, feed, count)
        if step is None:
            return 0
        graph.uses += count
        graph.unchecked += count
        self._leave(step, graph, given)
        self._left = [(p.grad, p.grad._version) for p in self.parameters.values() if p.grad is not None]
        return count

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> BatchLoss:
        """Evaluate the objective without a gradient. Modules keep their mode, so put batch norm into ``.eval()``."""
        with ALONE, self.draws:
            return self.loss((self.model, self.guide), *args, **kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """Return Pyro's loss, minus the objective summed over data, without a gradient."""
        return self.evaluate(*args, **kwargs).loss.item()

    def backward(self, *args: Any, mean: bool = False, **kwargs: Any) -> BatchLoss:
        """Evaluate the objective and leave the gradient of its sum over data, or of its mean, in ``.grad``.

        A `step` that follows adds to these gradients.
        """
        _forget_casts()
        self._clear()
        self._left = []
        self._met = self._parameters.touched
        self._parameters.touched.clear()
        noted: AbstractContextManager[dict[Tensor, Tensor | None]] = leaves_noted() if mean else nullcontext({})
        with self._parameters, self.draws, noted as before:
            result = self.loss((self.model, self.guide), *args, **kwargs)
        if mean:  # what the loss has set itself belongs to the sum
            for leaf, gradient in (dict.fromkeys(self.parameters.values()) | before).items():
                if leaf.grad is not None:
                    added = (leaf.grad if gradient is None else leaf.grad - gradient) / result.weight
                    leaf.grad = added if gradient is None else gradient + added
        has_gradients = any(p.grad is not None for p in self.parameters.values())
        if result.surrogate is None or (has_gradients and not result.surrogate.requires_grad):
            self._fill(self._met)
            return self._exchanged(result)
        if result.surrogate.requires_grad:
            (result.surrogate / result.weight if mean else result.surrogate).backward()
            self._fill(self._met)
        else:
            self._warn(
                "the loss depends on no parameter that requires a gradient, so that nothing trains; register networks "
                "with pyro.module (or make the program's pieces nn.Modules of a VAE) and unfreeze what should train"
            )
        return self._exchanged(result._replace(surrogate=result.surrogate.detach()))

    def _exchanged(self, result: BatchLoss) -> BatchLoss:
        return result if self.exchange is None else self.exchange(self.parameters, result)

    def _clear(self, but: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None
        for parameter, gradient in but:
            parameter.grad = gradient

    def _fill(self, touched: Set[int]) -> None:
        """Give a zero gradient to each parameter that has none now, had one before, and was met by the step.

        Pyro does so too, and an optimiser with momentum goes on moving such a parameter.
        """
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                self._followed.add(id(parameter))
            elif id(parameter) in self._followed and id(parameter) in touched:
                parameter.grad = torch.zeros_like(parameter)

    def apply(self) -> None:
        """Let the optimiser follow the gradients in ``.grad``, clipped to `clip_norm` if it is set."""
        if not self.parameters:
            return
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm)
        self._optimizer.step(list(self.parameters.values()))

    def prepare(self) -> Optimizer | None:
        """Make the optimiser for the parameters found so far, or add the parameters that have appeared since.

        Raises:
            ValueError: If the program has registered no parameter.
        """
        if not self.parameters:
            raise ValueError("the program registered no parameter; call pyro.module or pyro.param in model or guide")
        self._stepped = self._parameters.settled = True
        return self._optimizer.follow(list(self.parameters.values()))

    def forget(self, parameters: Sequence[Tensor]) -> None:
        """Forget parameters, here and in Pyro's store, as before the step in which they first appeared."""
        if not parameters:
            return
        store, forgotten = pyro.get_param_store(), set(map(id, parameters))
        for name in [name for name, p in self.parameters.items() if id(p) in forgotten]:
            del self.parameters[name]
            if name in store:
                del store[name]
        self._followed -= forgotten
        self._graphs.clear()
        self._optimizer.forget(parameters)

    def begin_stretch(self) -> None:
        """Promise that nothing changes the program between two steps, from here to the next call of this method.

        In this stretch the guards of a graph are checked once, and new shapes are captured when they are first met.
        `fit` begins a new stretch whenever it calls a callback or `stop`, and with each batch that it does not gather
        from tensors: a loader or items may run code of the user's.
        """
        self._graphs.begin_stretch()

    # a step --------------------------------------------------------------------------------------------------------

    def _take(self, mean: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BatchLoss:
        """Take a step by its graph where there is one, else eagerly."""
        with ALONE:
            _forget_casts()
            result, self._moved, self._last = None, False, None
            given = [] if mean else self._given_gradients()
            try:
                if self.compile != "off":
                    try:
                        result = self._by_graph(mean, args, kwargs, alone=not given)
                    except CaptureError as error:
                        self._wait = _AGAIN if isinstance(error, NotNowError) else 0
                        self.why_eager = str(error)
                        self._warn(_AS_WRITTEN + self.why_eager, self.why_eager)
                if result is None:
                    result = self.backward(*args, mean=mean, **kwargs)
                unmet = self._add(given)
                if not self._moved:
                    self.apply()
            except BaseException:
                self._clear(but=given)
                raise
            if not mean:
                self._clear(but=unmet)
            gradients = [p.grad for p in self.parameters.values()] if mean else []
            self._left = [(g, g._version) for g in gradients if g is not None]
            self._stepped = self._parameters.settled = True
            return result

    def _given_gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters with a gradient that the user has put into ``.grad``, to which a step adds, as in Pyro.

        It does not add to what an `update` left there.
        """
        left = {id(gradient): version for gradient, version in self._left}
        held = [(p, p.grad) for p in self.parameters.values() if p.grad is not None]
        return [(p, gradient) for p, gradient in held if left.get(id(gradient)) != gradient._version]

    def _add(self, given: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Add the user's gradients to those of the step; return those of parameters that it has not met."""
        unmet = []
        for parameter, gradient in given:
            if parameter.grad is None and id(parameter) not in self._met:
                unmet.append((parameter, gradient))
            else:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                self._followed.add(id(parameter))
        return unmet

    def _by_graph(self, mean: bool, args: tuple[Any, ...], kwargs: dict[str, Any], alone: bool) -> BatchLoss | None:
        """Evaluate the objective by its graph, captured if need be, and leave the gradients in ``.grad``.

        Return None where this step must run eagerly. Move the parameters in the same CUDA graph where that is possible
        and the gradients are `alone`: nothing is added to them.
        """
        if self._wait:
            self._wait -= 1
            return None
        given = signature(args, kwargs)
        self.why_eager = unusual(given.tensors)
        if self.why_eager is not None:
            return None
        key = self._key(mean, given)
        capture, full = functools.partial(self._capture, mean, given), self.compile == "full"
        graph = self._graphs.find(key, given, capture, has_stepped=self._stepped, full=full)
        if graph is None:
            self.why_eager = self._graphs.why
            return None
        if graph.overlaps(given.tensors):
            self.why_eager = "an argument or a held tensor shares memory with what the program writes to"
            return None
        graph.uses += 1
        graph.unchecked += 1
        due = is_due(graph, given)
        if alone and not due and graph.why_not_whole is None and (update := self._update_alone()) is not None:
            inputs = graph.inputs(given.tensors, given.numbers)
            whole = take_whole(graph, update, self.clip_norm, inputs)
            if whole is not None:
                self._moved = True
                self._last = (graph, key, given) if mean else None
                self._leave(whole, graph, given)
                return whole.loss
            if graph.moved():  # a recording that failed has left torch another generator
                return None
        try:
            step, difference = (graph.checked if due else graph.run)(given.tensors, given.numbers)
        except OutgrownError as error:
            self._graphs.refuse(key, graph, str(error))
            raise
        if difference is not None:
            self.why_eager = f"after {graph.uses} steps {difference}: the program depends on what no guard sees"
            anew = self._graphs.drop(key, graph)
            again = "it is captured anew" if anew else "it runs as it is written from here"
            logger.warning("%s; this step was taken as the program is written, and %s", self.why_eager, again)
        self._leave(step, graph, given)
        return self._exchanged(step.loss)

    def _key(self, mean: bool, given: Signature) -> Any:
        return mean, self.compile, id(self.model), id(self.guide), id(self.loss), environment(), given.key

    def _update_alone(self) -> TorchOptimizer | None:
        """Return the optimiser, if nothing else stands between the gradients and the next step."""
        own = getattr(self.apply, "__func__", None) is SVI.apply  # a subclass may have another
        if self.exchange is None and own and isinstance(self._optimizer, TorchOptimizer):
            return self._optimizer
        return None

    def _leave(self, step: Step, graph: CapturedStep, given: Signature) -> None:
        """Put the gradients into ``.grad`` of the parameters and of the other tensors that require one."""
        if len(graph.leaves) != len(self.parameters):
            self._clear()
        for parameter, gradient in zip(graph.leaves, step.gradients, strict=True):
            parameter.grad = gradient
        if graph.is_partial or len(self._followed) < len(graph.leaves):
            self._fill(graph.touched)
        self._met = graph.touched
        for other, gradient in step.others:
            tensor = given.tensors[other] if isinstance(other, int) else other
            tensor.grad = gradient.clone() if tensor.grad is None else tensor.grad + gradient

    def _capture(
        self, mean: bool, given: Signature, lift: set[int], labels: set[str], full: bool
    ) -> CapturedStep | None:
        loss, program, rebuild, draws = self.loss, (self.model, self.guide), given.rebuild, self.draws

        def run(*inputs: Any) -> BatchLoss:
            args, kwargs = rebuild(*inputs)
            given_to_it = _pytree.tree_leaves((args, kwargs))
            with self._parameters, draws:
                result = loss(program, *args, **kwargs)
            left = _pytree.tree_leaves((args, kwargs))
            if len(left) != len(given_to_it) or any(a is not b for a, b in zip(left, given_to_it, strict=True)):
                raise CaptureError("the program writes into one of its arguments; let it write into a copy")
            return result

        known = dict(self.parameters)
        self._parameters.touched.clear()
        try:
            graph = CapturedStep(
                run,
                list(known.values()),
                given.tensors,
                roots=(*program, loss),
                parameters=known,
                mean=mean,
                full=full,
                numbers=given.numbers,
                lift=lift,
                lift_values=labels,
            )
            if len(self.parameters) != len(known):  # a parameter has appeared: it joins in an eager step
                return None
            graph.touched = frozenset(self._parameters.touched)
        finally:
            self._parameters.leaves = known
        if graph.why_not_compiled is not None:
            self._warn(
                f"the captured step runs without Inductor, as at compile='graph': {graph.why_not_compiled}",
                "not compiled",
            )
        if graph.guards.forgotten:
            self._warn(
                f"the program changes {graph.guards.forgotten[0]} while it runs, which captured steps do not; "
                "compile='off' runs it as written",
                "forgotten",
            )
        return graph


class _Warnings:
    """Logs one warning of each kind."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, message: str, kind: str | None = None) -> None:
        if (kind or message) not in self._given:
            self._given.add(kind or message)
            logger.warning("%s", message)


def _forget_casts() -> None:
    """Drop autocast's copies of the weights, which it keeps to its end: from before a step, or without a gradient."""
    torch.clear_autocast_cache()
