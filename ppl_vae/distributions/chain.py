r"""A joint distribution of several blocks, each given the block drawn before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae._distributions import describe, unwrapped
from ppl_vae.distributions._expanding import Expanding
from ppl_vae.distributions._last_draw import LastDraw, recall


class Chain(Expanding):
    r"""L real blocks :math:`z = (z_1, \dots, z_L)`, drawn from the last to the first or from the first to the last.

    .. math::
        p(z) = p(z_L) \prod_{l<L} p(z_l|z_{l+1}) \quad\text{(top-down)} \qquad\text{or}\qquad
        p(z) = p(z_1) \prod_{l<L} p(z_{l+1}|z_l) \quad\text{(bottom-up)}.

    The conditionals run once for a draw; its own score and its KL take them from there. Any other z, including
    ``z.clone()``, runs them again. In the score of its own draw z is not an independent variable: there is no gradient
    by z. A draw made without gradients (`sample`) but scored with them runs the conditionals again, and **a conditional
    that is random itself (dropout) is then another one**. Mean, variance and entropy have no closed form.

    Args:
        root: The distribution of the block that is drawn first, event (d,).
        given: For each further block, in the order of drawing, a function that maps the block before, (*batch, d), to
            the block's distribution.
        dims: The dimensions of these further blocks.
        top_down: True if the root is the last block of z, False if it is the first.

    Example:
        >>> import pyro.distributions as dist
        >>> root = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> chain = Chain(root, [lambda z: dist.Normal(2 * z, 1.0).to_event(1)] * 2, [1, 1], top_down=True)
        >>> chain.log_prob(torch.tensor([4.0, 2.0, 1.0]))  # log N(1; 0, 1) + log N(2; 2, 1) + log N(4; 4, 1)
        tensor(-3.2568)
    """

    support = constraints.real_vector
    has_rsample = True
    _last: LastDraw | None = None  # with its blocks and their distributions

    def __init__(
        self,
        root: Any,
        given: Sequence[Callable[[Tensor], Any]],
        dims: Sequence[int],
        *,
        top_down: bool,
        validate_args: bool | None = None,
    ) -> None:
        self.root = root
        self.given = tuple(given)
        self.top_down = top_down
        self.dims = self._upwards([*root.event_shape, *dims])
        super().__init__(root.batch_shape, torch.Size((sum(self.dims),)), validate_args=validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw the root, then each block given the one before; gradients also pass through these."""
        drawn, blocks = [self.root.rsample(torch.Size(sample_shape))], [self.root]
        for given in self.given:
            blocks.append(given(drawn[-1]))
            drawn.append(blocks[-1].rsample())
        z = torch.cat(self._upwards(drawn), -1)
        self._last = LastDraw(z, self._upwards(drawn), self._upwards(blocks))
        return z

    def blocks(self, value: Tensor) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """Return the blocks of z, from the first up, and the distribution of each given the one drawn before it."""
        last = recall(self._last, value)
        if last is not None and value is last.z and (last.is_on_path(value) or not torch.is_grad_enabled()):
            return last.parts
        parts = value.split(self.dims, -1)
        before = self._upwards(parts)[:-1]
        blocks = [self.root, *(given(z) for given, z in zip(self.given, before, strict=True))]
        return parts, self._upwards(blocks)

    def kl_given(self, p: Any, value: Tensor, *, closed: bool = False) -> Tensor:
        r"""Return an unbiased estimate of :math:`\mathrm{KL}(q \,\|\, p)` from a draw, split over dimensions.

        **Of the draw, not exact**: a term is the KL in closed form given the block that was drawn before. With q and p
        in one order all terms are such: :math:`\mathrm{KL}(q(z_l|z_{l+1}) \,\|\, p(z_l|z_{l+1}))`, none below zero.
        With q in the other order this holds for the last block that q draws; the others have the entropy of q
        in closed form and :math:`\log p(z_l|z_{l+1})` at the draw. They are shares of the KL, which may be negative,
        also in expectation.

        Args:
            p: A chain of the same dimensions.
            value: A draw from this chain, (*batch, sum of dims).
            closed: Refuse a p in the other order.

        Returns:
            (*batch, sum of dims), nats, differentiable by the draw as well.

        Raises:
            NotImplementedError: If `p` is no such chain, or the dimensions of a block depend on each other.
        """
        if not isinstance(p, Chain) or p.dims != self.dims or (closed and p.top_down != self.top_down):
            raise NotImplementedError(f"KL of a chain of dimensions {self.dims} and {describe(p)}, in this order")
        parts, ours = self.blocks(value)
        terms, last = [], 0 if self.top_down else len(self.dims) - 1
        for level, (z, q_l, p_l) in enumerate(zip(parts, ours, p.blocks(value)[1], strict=True)):
            q_u, p_u = unwrapped(q_l), unwrapped(p_l)
            if q_u.event_shape or p_u.event_shape:
                raise NotImplementedError(f"KL of {describe(q_l)} and {describe(p_l)} does not split over dimensions")
            exact = self.top_down == p.top_down or level == last
            terms.append((kl_divergence(q_u, p_u) if exact else -q_u.entropy() - p_u.log_prob(z)).expand(z.shape))
        return torch.cat(terms, -1)

    def per_level(self, terms: Tensor) -> Tensor:
        """Return the sum over the dimensions of each block, (*batch, L)."""
        return torch.stack([term.sum(-1) for term in terms.split(self.dims, -1)], -1)

    def _log_prob(self, value: Tensor) -> Tensor:
        return sum(block.log_prob(z) for z, block in zip(*self.blocks(value), strict=True))  # type: ignore[return-value]

    def _upwards(self, in_order: Sequence[Any]) -> tuple[Any, ...]:
        """Turn what is in the order of drawing into that from z_1 up, and the other way round."""
        return tuple(in_order[::-1] if self.top_down else in_order)
