"""The eager step: the loss of a program run through Pyro, and the gradient for every tensor that requires one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae._tensors import leaves_of
from ppl_vae.capture.tracing import CaptureError, backward_noted
from ppl_vae.objectives.losses import BatchLoss

Other = tuple[Tensor | int, Tensor]


class Step(NamedTuple):
    """The results of a step.

    Attributes:
        loss: The loss and its terms.
        gradients: The gradient of each parameter; None where the loss does not depend on it, or it is frozen.
        others: For every other tensor that requires a gradient, the tensor itself or its place among the inputs, and
            its gradient.
    """

    loss: BatchLoss
    gradients: list[Tensor | None]
    others: list[Other] = []  # noqa: RUF012  (never changed)


class Form(NamedTuple):
    """What the outputs of a graph stand for: the gradients, and the terms of the loss that are tensors.

    Attributes:
        has_gradient: Whether each parameter gets a gradient.
        others: The other tensors that get one, as in `Step`.
        loss: The loss, with None in the place of the terms.
        terms: The names of the terms.
    """

    has_gradient: list[bool]
    others: list[Tensor | int]
    loss: BatchLoss
    terms: list[str]

    @classmethod
    def of(cls, step: Step) -> Form:
        """Return the form of a step."""
        terms = [name for name, term in step.loss._asdict().items() if isinstance(term, Tensor)]
        without: dict[str, Any] = dict.fromkeys(terms)
        gradients, others = [g is not None for g in step.gradients], [other for other, _ in step.others]
        return cls(gradients, others, step.loss._replace(**without), terms)

    def flat(self, step: Step) -> tuple[Tensor, ...]:
        """Return the gradients and terms of a step of this form, one after the other."""
        gradients = (gradient for gradient in step.gradients if gradient is not None)
        return *gradients, *(g for _, g in step.others), *(getattr(step.loss, name) for name in self.terms)

    def step(self, flat: Sequence[Tensor]) -> Step:
        """Return the step of these gradients and terms."""
        outputs = iter(flat)
        gradients = [next(outputs) if has else None for has in self.has_gradient]
        others = [(other, next(outputs)) for other in self.others]
        terms: dict[str, Any] = {name: next(outputs) for name in self.terms}
        return Step(self.loss._replace(**terms), gradients, others)


def eager_step(run: Callable[..., BatchLoss], leaves: list[Tensor], inputs: Sequence[Any], mean: bool) -> Step:
    """Run a step eagerly, through Pyro, and return its gradients instead of leaving them in ``.grad``."""
    with torch.enable_grad():
        with backward_noted(eager_step.__code__) as noted:
            loss = run(*inputs)
        if loss.surrogate is not None:
            if noted:
                raise CaptureError("the loss sets gradients and returns a value to differentiate; let it do one")
            target = loss.surrogate
        elif noted:
            target = torch.stack([t.reshape(()) for t in noted]).sum() if len(noted) > 1 else noted[0]
        else:
            raise CaptureError("the objective sets gradients by itself")
        target = target / loss.weight if mean else target
        loss = loss._replace(surrogate=loss.loss if loss.surrogate is None else loss.surrogate)
        if not target.requires_grad:
            return Step(loss, [None] * len(leaves))
        known = {id(leaf) for leaf in leaves}
        others = [leaf for leaf in leaves_of(target) if id(leaf) not in known]
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        found = torch.autograd.grad(target, [*trained, *others], allow_unused=True)
    gradients = dict(zip(map(id, trained), found, strict=False))
    rest = zip(others, found[len(trained) :], strict=True)
    return Step(loss, [gradients.get(id(leaf)) for leaf in leaves], [(t, g) for t, g in rest if g is not None])


def placed(step: Step, inputs: Sequence[Tensor]) -> Step:
    """Return the step with the inputs among its `others` replaced by their places."""
    places = {id(t): i for i, t in reversed(list(enumerate(inputs)))}
    others: list[Other] = [(places.get(id(other), other), gradient) for other, gradient in step.others]
    return step._replace(others=others)


def own(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a new tensor for each, and the same one for the same tensor, so that no closure holds it.

    It is a copy, or a view of the same data where a copy has other strides.
    """
    copies: dict[int, Tensor] = {}
    for tensor in tensors:
        if id(tensor) not in copies:
            copy, data = tensor.detach().clone(), tensor.detach()
            copy = copy if copy.stride() == data.stride() else data
            copies[id(tensor)] = copy.requires_grad_(tensor.requires_grad)
    return [copies[id(tensor)] for tensor in tensors]
