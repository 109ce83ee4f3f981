"""Stochastic variational inference: one step of optimisation of a Pyro program, with one optimiser over all parameters.

`pyro.optim` makes an optimiser for every tensor, `pyro.infer.SVI` validates at every step and waits for the loss; both
cost more than the effect handlers. Here the parameters are collected from the program as it runs, and one torch
optimiser (fused, where it can be) updates them in one pass.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast, get_args

import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae._validation import check_choice
from ppl_vae.capture import CapturedStep, CaptureError, Guards, signature
from ppl_vae.objectives.losses import BatchLoss, as_loss

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]
Compile = Literal["off", "graph", "full"]

logger = logging.getLogger(__name__)

_MOST_GRAPHS = 8  # for one shape: a program that needs more has a Python value that changes all the time
_CHECKED_AT = frozenset(10**n for n in range(2, 9))  # steps at which a graph is held against the eager program again


class SVI:
    r"""Pyro's SVI with one torch optimiser: maximises an objective over the parameters of a model and a guide.

    The first step runs as it is written, under whatever validation Pyro has switched on. From the second on a step of
    the same shapes runs as one captured graph without any Pyro code (`ppl_vae.capture`), which is made again when a
    Python value within its reach has changed, and held against the program as it is written before its first use and
    after 100, 1,000, ... uses. A step inside an effect handler of the caller's own runs as it is written. A program
    that cannot be captured (a branch on a value, ``.item()``) goes on as it is written, and one warning of the logger
    ``ppl_vae.svi`` says why. Wrong for a program whose side effects matter at every step: they happen in the first
    steps only (a warning names a Python value that the program changes itself, and one that it computes with is not
    captured); and a Python value that you change at every step costs a new graph each time, up to eight: make it a
    tensor.

    `step` has Pyro's meaning, gradient and value of the *sum* over data, and returns a float, for which it waits.
    `update` follows the gradient of the *mean* per datum, so that the learning rate does not depend on the size of the
    batch, and returns tensors without waiting.

    Parameters are found when the program first runs: those of modules registered with `pyro.module` or in a
    `PyroModule`, and those of `pyro.param`, in their unconstrained form. A parameter that first appears in a later step
    joins then.

    Args:
        model: p(x, z), a Pyro program.
        guide: q(z|x), a Pyro program of the same arguments.
        optim: Makes the optimiser from the parameters, e.g. ``functools.partial(torch.optim.Adam, lr=1e-3)``, or one of
            `pyro.optim`, whose class and arguments are taken. A torch optimiser class that has a fused form gets it.
        loss: An objective of `ppl_vae.objectives`, a Pyro ELBO object, or a function of log-weights.
        clip_norm: Scale gradients down to this global L2 norm where they exceed it (that of the mean per datum under
            `update`, of the sum under `step`).
        compile: ``"graph"`` captures; ``"full"`` also compiles the graph by Inductor, which takes a C++ compiler and 15
            seconds to a minute, and changes roundings; ``"off"`` does neither.

    Attributes:
        optimizer: The torch optimiser, from the first step on.
        why_eager: Why steps run as they are written, or None while they are captured.

    Raises:
        TypeError: If `optim` or `loss` is of another kind.
        ValueError: If the program has no parameter to train.

    Example:
        >>> from ppl_vae import VAE, likelihoods, objectives, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-3), objectives.ELBO())
        >>> losses = [svi.step(torch.ones(8, 64)) for _ in range(50)]
        >>> losses[-1] < losses[0]
        True
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
        self.model = model
        self.guide = guide
        self.loss = as_loss(loss)
        self.clip_norm = clip_norm
        self.compile = compile
        self.optimizer: Optimizer | None = None
        self.why_eager: str | None = "compile is 'off'" if compile == "off" else None
        self._factory = _as_factory(optim)
        self._parameters = _ParameterCollector()
        self._graphs: dict[Any, list[CapturedStep]] = {}
        self._warned = False

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The unconstrained parameters by Pyro's name, as found so far."""
        return self._parameters.leaves

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one step on the sum over data, and return Pyro's loss, minus the objective summed over data."""
        return self._take(False, args, kwargs).loss.item()

    def update(self, *args: Any, **kwargs: Any) -> BatchLoss:
        """Take one step on the mean per datum, and return what was seen, without waiting for it."""
        return self._take(True, args, kwargs)

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> BatchLoss:
        """Evaluate the objective without a gradient; modules keep their mode, so put batch norm into ``.eval()``."""
        return self.loss((self.model, self.guide), *args, **kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """Return Pyro's loss, minus the objective summed over data, without a gradient."""
        return self.evaluate(*args, **kwargs).loss.item()

    def backward(self, *args: Any, mean: bool = False, **kwargs: Any) -> BatchLoss:
        """Evaluate the objective and leave its gradients in ``.grad``: of the sum over data, or of the mean."""
        for parameter in self.parameters.values():
            parameter.grad = None
        with self._parameters:
            result = self.loss((self.model, self.guide), *args, **kwargs)
        if result.surrogate is None:
            if mean:
                gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
                torch._foreach_div_(gradients, result.weight)
            return result
        if not result.surrogate.requires_grad:
            raise ValueError(
                "the objective depends on no parameter that requires a gradient; register networks with pyro.module "
                "(or make the program's pieces nn.Modules of a VAE) and unfreeze what should train"
            )
        (result.surrogate / result.weight if mean else result.surrogate).backward()
        return result._replace(surrogate=result.surrogate.detach())

    def _take(self, mean: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BatchLoss:
        """Take a step: the first as it is written, the next ones from its graph where there is one."""
        result = None
        # handlers around this call (a scale, a mask) change what the program is: such a step runs as it is written
        if self.why_eager is None and self.optimizer is not None and not _PYRO_STACK:
            try:
                result = self._captured(mean, args, kwargs)
            except CaptureError as error:
                self._go_eager(str(error))
        if result is None:
            result = self.backward(*args, mean=mean, **kwargs)
        self.apply()
        return result

    def _captured(self, mean: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BatchLoss:
        """Evaluate the objective by its graph, captured if need be, and leave the gradients in ``.grad``."""
        key, tensors, rebuild = signature(args, kwargs)
        graphs = self._graphs.setdefault((mean, torch.get_default_dtype(), key), [])
        graph = next((g for g in graphs if g.guards.changed() is None), None)
        if graph is None:
            if len(graphs) >= _MOST_GRAPHS:
                raise CaptureError(
                    f"a Python value changes from step to step: {graphs[-1].guards.changed()}; make it a tensor"
                )
            graph = self._capture(mean, tensors, rebuild)
            graphs.append(graph)
        graph.uses += 1
        if graph.uses in _CHECKED_AT and (difference := graph.difference(tensors)) is not None:
            raise CaptureError(f"after {graph.uses} steps {difference}: the program depends on what no guard sees")
        try:
            step = graph(*tensors)
        except RuntimeError as error:  # if it is no fault of the graph's, the program as it is written has it too
            raise CaptureError(f"the graph failed: {error}") from error
        for parameter, gradient in zip(self.parameters.values(), step.gradients, strict=True):
            parameter.grad = gradient
        return step.loss

    def _capture(self, mean: bool, tensors: list[Tensor], rebuild: Callable[..., Any]) -> CapturedStep:
        def run(*tensors: Tensor) -> BatchLoss:
            args, kwargs = rebuild(*tensors)
            with self._parameters:
                return self.loss((self.model, self.guide), *args, **kwargs)

        guards = Guards(self.model, self.guide, self.loss, parameters=self.parameters)
        leaves = list(self.parameters.values())
        graph = CapturedStep(run, leaves, tensors, guards, mean, full=self.compile == "full")
        if len(self.parameters) != len(leaves):
            raise CaptureError("the program has another parameter than in its first step")
        if guards.forgotten and not self._warned:
            self._warned = True
            logger.warning(
                "the program changes %s while it runs, which captured steps do not; compile='off' runs it as written",
                guards.forgotten[0],
            )
        return graph

    def _go_eager(self, why: str) -> None:
        self.why_eager = why
        self._graphs.clear()
        logger.warning("training eagerly, since the step cannot be captured: %s", why)

    def apply(self) -> None:
        """Let the optimiser follow the gradients in ``.grad``, clipped if asked for."""
        self.prepare()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm)
        assert self.optimizer is not None
        self.optimizer.step()

    def prepare(self) -> Optimizer:
        """Make the optimiser for the parameters found so far, or add to it what has appeared since."""
        if not self.parameters:
            raise ValueError("the program registered no parameter; call pyro.module or pyro.param in model or guide")
        new = self._parameters.take_new()
        if self.optimizer is None:
            self.optimizer = _fused(self._factory, new)
        elif new:
            self.optimizer.add_param_group({"params": new})
        return self.optimizer


class _ParameterCollector(Messenger):
    """Notes the unconstrained leaf of every parameter that a program touches."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: dict[str, Tensor] = {}
        self._taken: set[str] = set()

    def take_new(self) -> list[Tensor]:
        """Return the leaves not taken before; from now on they must stay the same tensors."""
        new = self.leaves.keys() - self._taken
        self._taken |= new
        return [leaf for name, leaf in self.leaves.items() if name in new]

    def _pyro_post_param(self, msg: Any) -> None:
        name, leaf = msg["name"], msg["value"].unconstrained()
        if name not in self._taken:  # an autoguide replaces its leaves while it sets itself up: the last one counts
            # a PyroModule inside a module registers its parameters a second time, under names of its own
            if not any(other is leaf for known, other in self.leaves.items() if known != name):
                self.leaves[name] = leaf
        elif self.leaves[name] is not leaf:
            raise RuntimeError(
                f"parameter {name!r} is another tensor than in the steps before: the parameter store was cleared or "
                "overwritten while training; make a new SVI"
            )


def _as_factory(optim: object) -> OptimizerFactory:
    """Return the function from parameters to an optimiser that was given, or that a `pyro.optim` object stands for."""
    if isinstance(optim, PyroOptim):
        if isinstance(optim, PyroLRScheduler) or not isinstance(optim.pt_optim_args, dict) or optim.pt_clip_args:
            raise TypeError(
                "SVI: optim is of pyro.optim with a schedule, with clipping, or with arguments for each parameter; "
                "expected functools.partial(torch.optim.Adam, lr=1e-3) or the like, with clip_norm=... to clip"
            )
        return functools.partial(cast(Any, optim.pt_optim_constructor), **optim.pt_optim_args)
    if isinstance(optim, Optimizer) or not callable(optim):
        raise TypeError(
            f"SVI: optim is a {type(optim).__name__}; expected a function from parameters to a torch optimiser, "
            "such as functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    return optim


def _fused(factory: OptimizerFactory, parameters: list[Tensor]) -> Optimizer:
    """Make the optimiser, in its fused form where the class has one and the device takes it."""
    optimizer_class = factory.func if isinstance(factory, functools.partial) else factory
    given = factory.keywords if isinstance(factory, functools.partial) else {}
    chosen = {"fused", "foreach", "differentiable"} & given.keys()
    if isinstance(optimizer_class, type) and not chosen and "fused" in inspect.signature(optimizer_class).parameters:
        try:
            return factory(parameters, fused=True)  # type: ignore[call-arg]
        except (RuntimeError, NotImplementedError):
            pass  # this device has no fused kernel
    return factory(parameters)
