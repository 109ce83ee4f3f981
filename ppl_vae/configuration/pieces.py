"""The pieces that a configuration may name: classes of this package, of torch.optim and of Pyro, by kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType

import pyro.infer
import torch
from torch import nn
from torch.optim import lr_scheduler

from ppl_vae import data, likelihoods, networks, objectives, posteriors, priors, regularizers, training
from ppl_vae.configuration.kinds import Arguments, Choices, Kind, Target, arguments_of

__all__ = ["CHOICES", "KINDS", "NETWORK", "Arguments", "Kind", "Target", "arguments_of"]


def _classes(module: ModuleType, wanted: Callable[[type], bool]) -> dict[str, Target]:
    """Return the public classes that a module or package defines, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__.startswith(module.__name__)
        and not name.startswith("_")
        and wanted(value)
    }


def _is_piece(cls: type) -> bool:
    """Return whether instances of a class can be called and the class is no protocol."""
    return any("__call__" in vars(parent) for parent in cls.__mro__) and not getattr(cls, "_is_protocol", False)


def _derives(base: type) -> Callable[[type], bool]:
    return lambda cls: issubclass(cls, base) and cls is not base and not cls.__name__.startswith("Jit")


_OPTIMIZERS_REFUSED = {
    "LBFGS": "it needs a closure that evaluates the loss several times a step; use Adam or another first-order method",
    "Muon": "it takes matrices only, and biases are vectors; use Adam",
    "SparseAdam": "it takes sparse gradients only, and these networks have dense ones; use Adam",
}
_SCHEDULERS_REFUSED = dict.fromkeys(
    ("ChainedScheduler", "SequentialLR"),
    "it is made of other schedulers; write a function optimizer -> scheduler of your own and give its import path",
)
_OBJECTIVES_REFUSED = {
    "ReweightedWakeSleep": "it has two losses, the model's and the guide's, and no single value to follow; use RWS",
    "TraceTailAdaptive_ELBO": "it has a gradient and no value to follow; use ELBO",
    "Regularized": "it is made of two parts; give the objective itself and --regularizer",
    "Trace_MMD": "it takes kernels, which a configuration cannot hold; use it in Python: fit(objective=...)",
}
_FAMILIES = (  # in the order in which objectives are listed
    "pathwise",
    "importance",
    "gdreg",
    "combined",
    "annealed",
    "renyi",
    "score_function",
    "antithetic",
    "controls",
    "ovis",
    "wake_sleep",
    "thermodynamic",
    "enumeration",
    "relaxed",
    "upper",
)
_OBJECTIVES = {
    name: cls for family in _FAMILIES for name, cls in _classes(getattr(objectives, family), _is_piece).items()
}


def _kind(name: str, classes: Mapping[str, Target], refused: Mapping[str, str]) -> Kind:
    """Return a kind without the classes that cannot work."""
    return Kind(name, {known: cls for known, cls in classes.items() if known not in refused}, refused)


NETWORK = Kind("network", _classes(networks, lambda cls: _is_piece(cls) and not issubclass(cls, nn.Module)))
KINDS = {
    "prior": Kind("prior", _classes(priors, _is_piece)),
    "likelihood": Kind("likelihood", _classes(likelihoods, _is_piece)),
    "posterior": Kind("posterior", _classes(posteriors, _is_piece)),
    "classifier": NETWORK,
    "objective": _kind("objective", _OBJECTIVES | _classes(pyro.infer, _derives(pyro.infer.ELBO)), _OBJECTIVES_REFUSED),
    "regularizer": Kind(
        "regularizer", _classes(regularizers, lambda cls: _is_piece(cls) and cls is not regularizers.Schedule)
    ),
    "optimizer": _kind("optimizer", _classes(torch.optim, _derives(torch.optim.Optimizer)), _OPTIMIZERS_REFUSED),
    "scheduler": _kind("scheduler", _classes(lr_scheduler, _derives(lr_scheduler.LRScheduler)), _SCHEDULERS_REFUSED),
}
CHOICES = Choices(KINDS, NETWORK, data.load, training.fit)
