"""The loss that SVI minimises, one number per batch, made from an objective of any kind.

`as_loss` adapts four kinds of objective to one form: an objective of this package, a function of log-weights, a Pyro
ELBO object, and a function in Pyro's form ``loss(model, guide, *args)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from unittest import mock

import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceTailAdaptive_ELBO,
    config_enumerate,
)
from torch import Tensor
from torch.utils import _pytree

from ppl_vae.objectives.estimate import Kind, Objective, evaluate_objective, sampling_of
from ppl_vae.objectives.impossible import Limits, limits_of
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.regularized import Regularized
from ppl_vae.objectives.sampling import sample_log_weights
from ppl_vae.objectives.traces import NotPerDatumError, from_traces

Program = tuple[Callable[..., Any], Callable[..., Any]]


class BatchLoss(NamedTuple):
    """The result of an objective on one batch: sums over the data, each datum weighted by its scale; nats.

    Attributes:
        loss: Minus the value of the objective, detached: the number that `pyro.infer.SVI.step` returns.
        surrogate: The function to differentiate; None where the gradients are already in ``.grad``.
        weight: The sum of the scales; divide by it for a mean per datum.
        log_likelihood: The sum of log p(x|z), averaged over particles; None where the program is not per datum.
        kl: The sum of the KL at beta = 1, so that ``log_likelihood - kl`` is the ELBO; None where the program is not
            per datum.
        limits: The terms whose sign is known. A captured step has no limits; those of the eager step, which runs
            without a graph, apply.
    """

    loss: Tensor
    surrogate: Tensor | None
    weight: float | Tensor
    log_likelihood: Tensor | None
    kl: Tensor | None
    limits: Limits = Limits()


class Loss(Protocol):
    """The interface of a loss for SVI."""

    def __call__(self, program: Program, *args: Any, **kwargs: Any) -> BatchLoss:
        """Evaluate the objective for a ``(model, guide)`` pair on the arguments of both."""
        ...


def as_loss(objective: object) -> Loss:
    """Return the loss of an objective.

    The objective is one of this package, a function of log-weights, a Pyro ELBO object, or a function in Pyro's form
    ``loss(model, guide, *args)``.

    Raises:
        TypeError: If the objective is none of these, or has no single value to minimise.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> loss = as_loss(Trace_ELBO())((vae.model, vae.guide), torch.zeros(5, 64))
        >>> loss.weight, torch.allclose(-loss.loss, loss.log_likelihood - loss.kl)
        (5.0, True)
    """
    if isinstance(objective, (ReweightedWakeSleep, TraceTailAdaptive_ELBO)):
        raise TypeError(
            f"objective {type(objective).__name__} has two values or none, where one to follow was expected; "
            "use objectives.RWS (its weights are each datum's own) or ELBO, or pyro.infer.SVI"
        )
    if isinstance(objective, PyroELBO):
        return _PyroLoss(objective)
    if isinstance(objective, type) or not callable(objective):
        hint = f"; did you mean {objective.__name__}()?" if isinstance(objective, type) else ""
        raise TypeError(
            f"objective is {objective!r}; expected an object such as objectives.ELBO(), one of Pyro's such as "
            f"pyro.infer.Trace_ELBO(), a function of log-weights, or of (model, guide, *args){hint}"
        )
    return _FunctionLoss(objective) if _takes_programs(objective) else _PerDatumLoss(objective)


def _takes_programs(function: Callable[..., Any]) -> bool:
    """Whether a function has Pyro's form of a loss, ``loss(model, guide, *args)``, and does not take log-weights."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a C function has no signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in positional if p.default is p.empty]) >= 2 or (not positional and len(parameters) > 0)


@dataclass(frozen=True)
class _FunctionLoss:
    """A loss in Pyro's form: ``function(model, guide, *args, **kwargs)`` returns a sum over data, to be minimised.

    Examples are ``pyro.infer.EnergyDistance()`` and ``Trace_ELBO().differentiable_loss``. The terms of the ELBO are
    unknown.
    """

    function: Callable[..., Any]

    def __call__(self, program: Program, *args: Any, **kwargs: Any) -> BatchLoss:
        """Evaluate the function."""
        surrogate = self.function(*program, *args, **kwargs)
        if not isinstance(surrogate, (Tensor, float, int)):
            raise TypeError(
                f"the loss {getattr(self.function, '__name__', self.function)!r} returned a "
                f"{type(surrogate).__name__}; expected one number, which is minimised"
            )
        surrogate = _as_tensor(surrogate)
        return BatchLoss(surrogate.detach(), surrogate, _size_of(args, kwargs), None, None)


def _as_tensor(loss: Tensor | float) -> Tensor:
    return loss if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64)


def _size_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return the number of data in a batch, where no plate gives it: the rows of the first tensor that has rows."""
    tensors = (leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())
    return float(next(map(len, tensors), 1))


@dataclass(frozen=True)
class _PerDatumLoss:
    objective: Objective

    def __call__(self, program: Program, *args: Any, **kwargs: Any) -> BatchLoss:
        options = sampling_of(self.objective)
        log_weights = sample_log_weights(*program, *args, **options, **kwargs)  # type: ignore[misc]
        estimate = evaluate_objective(self.objective, log_weights)
        kl = log_weights.expectation(log_weights.kl).detach() if estimate.kl is None else estimate.kl
        log_lik = estimate.log_likelihood
        log_lik = log_weights.expectation(log_weights.log_lik).detach() if log_lik is None else log_lik
        scale = log_weights.scale
        drawn = isinstance(options["latents"], str)
        lower = estimate.kind == "lower" and not isinstance(self.objective, Regularized)
        return BatchLoss(
            loss=-(scale * estimate.value).sum(),
            surrogate=-(scale * estimate.surrogate).sum(),
            weight=_weight(log_weights),
            log_likelihood=(scale * log_lik).sum(),
            kl=(scale * kl).sum(),
            limits=limits_of(log_weights, drawn=drawn, lower=lower),
        )


def kind_of(elbo: PyroELBO) -> Kind:
    """Return which kind of bound the value of a Pyro ELBO object is in expectation."""
    if isinstance(elbo, RenyiELBO):
        return "lower" if elbo.alpha >= 0 else "neither"
    return "lower" if isinstance(elbo, (Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO)) else "neither"


@dataclass(frozen=True)
class _PyroLoss:
    """A Pyro ELBO object that runs its own code; the terms of the ELBO come from the traces that it makes."""

    objective: Any  # the caller's object, not a copy: it may change between steps

    def __call__(self, program: Program, *args: Any, **kwargs: Any) -> BatchLoss:
        if isinstance(self.objective, TraceEnum_ELBO) and hasattr(getattr(program[1], "__self__", None), "q_z"):
            program = (program[0], config_enumerate(program[1]))  # a VAE's guide marks no site for enumeration
        surrogate = None
        with self._recorded() as traces:
            if not torch.is_grad_enabled():
                loss = self.objective.loss(*program, *args, **kwargs)
            elif self._is_differentiable():
                surrogate = _as_tensor(self.objective.differentiable_loss(*program, *args, **kwargs))
                loss = surrogate.detach()
            else:
                loss = self.objective.loss_and_grads(*program, *args, **kwargs)
        return BatchLoss(_as_tensor(loss), surrogate, *self._terms(traces, args, kwargs))

    def _is_differentiable(self) -> bool:
        """Whether to call `differentiable_loss`; if the user overrides `loss_and_grads`, that one is called instead."""
        own = getattr(type(self.objective), "loss_and_grads", None)
        return hasattr(self.objective, "differentiable_loss") and str(getattr(own, "__module__", "")).startswith(
            "pyro."
        )

    @contextmanager
    def _recorded(self) -> Iterator[list[tuple[poutine.Trace, poutine.Trace]]]:
        """Record the traces that the object makes in this context."""
        get_traces, traces = self.objective._get_traces, []

        def record(*args: Any) -> Iterator[tuple[poutine.Trace, poutine.Trace]]:
            for pair in get_traces(*args):
                traces.append(pair)
                yield pair

        with mock.patch.object(self.objective, "_get_traces", record):
            yield traces

    @torch.no_grad()
    def _terms(
        self, traces: list[tuple[poutine.Trace, poutine.Trace]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float | Tensor, Tensor | None, Tensor | None, Limits]:
        try:
            particles = [from_traces(*pair) for pair in traces]
        except NotPerDatumError:  # Pyro's objectives accept this program, per-datum ones do not
            particles = []
        if not particles:
            return _size_of(args, kwargs), None, None, Limits()
        log_lik = torch.stack([(w.scale * w.log_lik.mean(0)).sum() for w in particles]).mean()
        kl = torch.stack([(w.scale * w.kl.mean(0)).sum() for w in particles]).mean()
        return _weight(particles[0]), log_lik, kl, limits_of(particles[0], lower=kind_of(self.objective) == "lower")


def _weight(log_weights: LogWeights) -> float | Tensor:
    size = log_weights.log_lik.shape[1]
    if isinstance(log_weights.scale, Tensor):
        return log_weights.scale.expand(size).sum()
    return log_weights.scale * size
