r"""A joint distribution of two blocks, one given the other."""

from __future__ import annotations

from typing import Any

from ppl_vae.distributions.chain import Chain


class TwoBlocks(Chain):
    r"""A `Chain` of two blocks :math:`z = (z_1, z_2)`: the root with its own distribution, the other given the root.

    Args:
        root: The distribution of the block that is drawn first, event (d_root,).
        given: Maps the root, (*batch, d_root), to the distribution of the other block, event (d_other,).
        other_dim: d_other.
        root_first: True if the root is the first block of z, False if it is the last.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> root = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> joint = TwoBlocks(root, lambda z: dist.Normal(2 * z, 1.0).to_event(1), 1, root_first=False)
        >>> joint.log_prob(torch.tensor([2.0, 1.0]))  # (z1, z2): log N(1; 0, 1) + log N(2; 2, 1)
        tensor(-2.3379)
    """

    def __init__(self, root: Any, given: Any, other_dim: int, *, root_first: bool, validate_args: Any = None) -> None:
        super().__init__(root, [given], [other_dim], top_down=not root_first, validate_args=validate_args)
