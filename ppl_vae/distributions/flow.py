r"""The distribution of a variable that is a normal one sent through a normalising flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_vae.distributions._last_draw import LastDraw

Bijection = Callable[[Tensor], tuple[Tensor, Tensor]]


class Flow(dist.TorchDistribution):
    r"""The density of :math:`z = f(e)`, e drawn from a base distribution and f a bijection of :math:`\mathbb R^d`.

    .. math::
        \log p(z) = \log p_0(e) - \log \lvert \det \partial f / \partial e \rvert, \qquad e = f^{-1}(z).

    The last draw is scored from the e that it was made of, without an inverse, which for some flows costs d passes and
    for others does not exist. In that score z is no variable of its own: its gradient by the parameters is the one
    along the path, and by z it has none; score ``z.clone()`` for that. A draw made without gradients (`sample`) that is
    scored with them goes through the inverse, since its score by the path would lack them; where there is no inverse,
    such a score has its value, and raises when it is differentiated. Nothing else is remembered, in contrast to Pyro's
    transforms, whose cache outlives an update of the parameters, and keeps its graph.

    There is no closed form of mean, variance or entropy.

    Args:
        base: The distribution of e, event shape (d,).
        generate: f: (*batch, d) to z and the log-determinant, (*batch,).
        normalise: The inverse of f: z to e and the log-determinant *of the inverse*; None where there is none.
        validate_args: Whether to check values against the support; None for Pyro's setting.

    Raises:
        NotImplementedError: If there is no inverse, and a value is scored that is not the last draw.

    Example:
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> double = Flow(base, lambda e: (2 * e, e.new_tensor(4.0).log()), lambda z: (z / 2, -z.new_tensor(4.0).log()))
        >>> double.log_prob(torch.zeros(2))
        tensor(-3.2242)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        base: Any,
        generate: Bijection,
        normalise: Bijection | None,
        validate_args: bool | None = None,
    ) -> None:
        self.base = base
        self.generate = generate
        self.normalise = normalise
        self._last: LastDraw | None = None  # with its e and its log-density
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flow:
        """Return the same distribution with more of a batch; its draws are its own."""
        base = self.base.expand(torch.Size(batch_shape))
        return type(self)(base, self.generate, self.normalise, validate_args=self.__dict__.get("_validate_args"))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z, (*sample_shape, *batch_shape, d)."""
        e = self.base.rsample(torch.Size(sample_shape))
        z, log_det = self.generate(e)
        self._last = LastDraw(z, e, self.base.log_prob(e) - log_det)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, (*batch,)."""
        if self._validate_args:
            self._validate_sample(value)
        last = self._last if self._last is not None and self._last.is_same(value) else None
        if last is not None and (not torch.is_grad_enabled() or (value is last.z and last.parts[1].requires_grad)):
            return last.parts[1]
        if self.normalise is not None:
            batch_shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
            e, log_det = self.normalise(value.expand(*batch_shape, *self.event_shape))
            return self.base.log_prob(e) + log_det
        if last is None or value is not last.z:
            raise NotImplementedError(
                "this flow has no inverse, so that it scores only the z that it drew last; draw and score with one and "
                "the same distribution, or use a flow that scores any z, such as posteriors.CouplingFlow"
            )
        e, _ = last.parts
        _, log_det = self.generate(e)
        return _NoGradient.apply(self.base.log_prob(e) - log_det)


class _NoGradient(torch.autograd.Function):
    """The identity, for a value whose gradient is not that of its graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        raise NotImplementedError(
            "this flow has no inverse, so that the gradient of its density at a z drawn by sample is not known; draw "
            "by rsample, or use a flow that scores any z, such as posteriors.CouplingFlow"
        )
