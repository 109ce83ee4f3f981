r"""The distribution of a base variable, such as a normal one, sent through a normalising flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_vae.distributions._expanding import Expanding
from ppl_vae.distributions._last_draw import LastDraw, recall

Bijection = Callable[[Tensor], tuple[Tensor, Tensor]]


class Flow(Expanding):
    r"""The distribution of :math:`z = f(e)`, for e from a base distribution and a bijection f of :math:`\mathbb R^d`.

    .. math::
        \log p(z) = \log p_0(e) - \log \lvert \det \partial f / \partial e \rvert, \qquad e = f^{-1}(z).

    The last draw is scored from its own e, without the inverse of f. The inverse costs d passes for some flows and does
    not exist for others. In this score z is not an independent variable: the gradient by the parameters is the pathwise
    one, and there is no gradient by z. Score ``z.clone()`` to get that gradient.

    A draw made without gradients (`sample`) but scored with them goes through the inverse, since its pathwise score
    would lack the gradients. Where there is no inverse, such a score has the right value and raises an error when it is
    differentiated. The distribution remembers nothing else. In contrast, the cache of Pyro's transforms keeps the graph
    of every draw.

    **Wrong** where one `Flow` is kept while an optimiser changes f: its last draw has the density of the old f. The
    pieces make a new `Flow` at every call.

    Mean, variance and entropy have no closed form.

    Args:
        base: The distribution of e, event shape (d,).
        generate: f, which maps e, (*batch, d), to z and the log-determinant, (*batch,).
        normalise: The inverse of f, which maps z to e and the log-determinant *of the inverse*; None if there is none.
        validate_args: Whether to check values against the support; None for Pyro's setting.

    Raises:
        NotImplementedError: If a value other than the last draw is scored and there is no inverse.

    Example:
        >>> import pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> double = Flow(base, lambda e: (2 * e, e.new_tensor(4.0).log()), lambda z: (z / 2, -z.new_tensor(4.0).log()))
        >>> double.log_prob(torch.zeros(2))
        tensor(-3.2242)
    """

    support = constraints.real_vector
    has_rsample = True
    _last: LastDraw | None = None  # with its e and its log-density

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
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z, (*sample_shape, *batch_shape, d)."""
        e = self.base.rsample(torch.Size(sample_shape))
        z, log_det = self.generate(e)
        self._last = LastDraw(z, e, self.base.log_prob(e) - log_det)
        return z

    def _log_prob(self, value: Tensor) -> Tensor:
        last = recall(self._last, value)
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
    """The identity, for a value whose graph has the wrong gradient: differentiating it raises an error."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        raise NotImplementedError(
            "this flow has no inverse, so that the gradient of its density at a z drawn by sample is not known; draw "
            "by rsample, or use a flow that scores any z, such as posteriors.CouplingFlow"
        )
