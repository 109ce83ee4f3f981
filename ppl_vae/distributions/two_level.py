r"""A joint distribution of two blocks, one given the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_vae._validation import check_positive_int
from ppl_vae.distributions._expanding import Expanding


class TwoBlocks(Expanding):
    r"""Two real blocks :math:`z = (z_1, z_2)`: the root with its own distribution, the other block given the root.

    .. math::
        p(z) = p(z_2)\, p(z_1|z_2) \quad\text{(root last)} \qquad\text{or}\qquad
        p(z) = p(z_1)\, p(z_2|z_1) \quad\text{(root first)}.

    The network of the conditional runs once for a draw and once more for its density. The mean has no closed form,
    since that network is nonlinear.

    Args:
        root: The distribution of the block that is drawn first, event (d_root,).
        given: Maps the root, (*batch, d_root), to the distribution of the other block, event (d_other,).
        other_dim: d_other.
        root_first: True if the root is the first block of z, False if it is the last.

    Example:
        >>> import pyro.distributions as dist
        >>> root = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> joint = TwoBlocks(root, lambda z: dist.Normal(2 * z, 1.0).to_event(1), 1, root_first=False)
        >>> joint.log_prob(torch.tensor([2.0, 1.0]))  # (z1, z2): log N(1; 0, 1) + log N(2; 2, 1)
        tensor(-2.3379)
    """

    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        root: Any,
        given: Callable[[Tensor], Any],
        other_dim: int,
        *,
        root_first: bool,
        validate_args: bool | None = None,
    ) -> None:
        self.root = root
        self.given = given
        self.root_first = root_first
        (self._root_dim,) = root.event_shape
        event_shape = torch.Size((self._root_dim + other_dim,))
        super().__init__(root.batch_shape, event_shape, validate_args=validate_args)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draw the root, then the other block given it; gradients also pass through the root."""
        root = self.root.rsample(torch.Size(sample_shape))
        other = self.given(root).rsample()
        return torch.cat([root, other] if self.root_first else [other, root], -1)

    def _log_prob(self, value: Tensor) -> Tensor:
        other_dim = self.event_shape[0] - self._root_dim
        if self.root_first:
            root, other = value.split([self._root_dim, other_dim], -1)
        else:
            other, root = value.split([other_dim, self._root_dim], -1)
        return self.root.log_prob(root) + self.given(root).log_prob(other)


def bottom_dim(latent_dim: int, top_dim: int, name: str) -> int:
    """Return the number of latent dimensions that `top_dim` leaves to the first level."""
    if check_positive_int(top_dim, f"{name}: top_dim") >= latent_dim:
        raise ValueError(
            f"{name}: top_dim is {top_dim} of a latent of {latent_dim} dimensions; expected less, so that the "
            "likelihood has something to read"
        )
    return latent_dim - top_dim
