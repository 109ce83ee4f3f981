"""Stochastic variational inference: one step of optimisation of a Pyro program, with one optimiser over all parameters.

`pyro.optim` makes an optimiser for every tensor, `pyro.infer.SVI` validates at every step and waits for the loss; both
cost more than the effect handlers. Here the parameters are collected from the program as it runs, and one torch
optimiser (fused, where it can be) updates them in one pass.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae.objectives.losses import BatchLoss, as_loss

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]


class SVI:
    r"""Pyro's SVI with one torch optimiser: maximises an objective over the parameters of a model and a guide.

    `step` has Pyro's meaning, gradient and value of the *sum* over data, and returns a float, for which it waits.
    `update` follows the gradient of the *mean* per datum, so that the learning rate does not depend on the size of the
    batch, and returns tensors without waiting.

    Parameters are found when the program first runs: those of modules registered with `pyro.module` or in a
    `PyroModule`, and those of `pyro.param`, in their unconstrained form. A parameter that first appears in a later step
    joins then.

    Args:
        model: p(x, z), a Pyro program.
        guide: q(z|x), a Pyro program of the same arguments.
        optim: Makes the optimiser from the parameters, e.g. ``functools.partial(torch.optim.Adam, lr=1e-3)``. A torch
            optimiser class (or a partial of one) that has a fused form gets it.
        loss: An objective of `ppl_vae.objectives`, a Pyro ELBO object, or a function of log-weights.
        clip_norm: Scale gradients down to this global L2 norm where they exceed it (that of the mean per datum under
            `update`, of the sum under `step`).

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
        optim: OptimizerFactory,
        loss: object,
        *,
        clip_norm: float | None = None,
    ) -> None:
        if isinstance(optim, Optimizer) or not callable(optim):
            raise TypeError(
                f"SVI: optim is a {type(optim).__name__}; expected a function from parameters to a torch optimiser, "
                "such as functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        self.model = model
        self.guide = guide
        self.loss = as_loss(loss)
        self.clip_norm = clip_norm
        self.optimizer: Optimizer | None = None
        self._factory = optim
        self._parameters = _ParameterCollector()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The unconstrained parameters by Pyro's name, as found so far."""
        return self._parameters.leaves

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one step on the sum over data, and return Pyro's loss, minus the objective summed over data."""
        result = self.backward(*args, **kwargs)
        self.apply()
        return result.loss.item()

    def update(self, *args: Any, **kwargs: Any) -> BatchLoss:
        """Take one step on the mean per datum, and return what was seen, without waiting for it."""
        result = self.backward(*args, mean=True, **kwargs)
        self.apply()
        return result

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
            self.leaves[name] = leaf
        elif self.leaves[name] is not leaf:
            raise RuntimeError(
                f"parameter {name!r} is another tensor than in the steps before: the parameter store was cleared or "
                "overwritten while training; make a new SVI"
            )


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
