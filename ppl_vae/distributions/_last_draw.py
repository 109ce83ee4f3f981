"""The last draw of a distribution, with the noise that rounding removes from the draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LastDraw:
    """The last draw of a distribution, with the noise or other parts that it was made of.

    A float draw :math:`z = f(e)` keeps few digits of e where f is ill-conditioned. The density at the rounded z is
    then not the density of the exact draw: it is wrong by any number of nats. A distribution that remembers e scores
    its own draw from e.

    Args:
        z: The draw.
        *parts: What the draw was made of, such as its noise e or the distributions of its blocks.
        parameters: The parameters of f. Where an optimiser changes one in place, e no longer belongs to z.
    """

    def __init__(self, z: Tensor, *parts: Any, parameters: Sequence[Tensor] = ()) -> None:
        self.z = z
        self.parts = parts
        self._versions = [(tensor, _version(tensor)) for tensor in (z, *parameters)]

    def is_same(self, value: Tensor) -> bool:
        """Return whether `value` is the draw, or shares its memory (``z.detach()``), and nothing has changed since.

        A change through ``.data`` is not seen.
        """
        if value is not self.z and not _shares_memory(value, self.z):
            return False
        return all(_is_at(tensor, version) for tensor, version in self._versions)

    def is_on_path(self, value: Tensor) -> bool:
        """Return whether `value` is the draw with its gradient, so that the noise is constant along its path.

        A draw made without a gradient, and given one by ``requires_grad_()``, is an independent variable.
        """
        return value is self.z and value.grad_fn is not None


def recall(last: LastDraw | None, value: Tensor) -> LastDraw | None:
    """Return the last draw if `value` is that draw. Read the attribute once: another thread may draw meanwhile."""
    return last if last is not None and last.is_same(value) else None


def _version(tensor: Tensor) -> int | Tensor:
    """Return what a later change is seen by: the count of changes, or a copy where torch keeps no count."""
    return tensor.clone() if tensor.is_inference() else tensor._version


def _is_at(tensor: Tensor, version: int | Tensor) -> bool:
    return torch.equal(tensor, version) if isinstance(version, Tensor) else tensor._version == version


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    try:
        same = a.untyped_storage()._cdata == b.untyped_storage()._cdata and a.stride() == b.stride()
        return bool(same and a.storage_offset() == b.storage_offset())
    except (NotImplementedError, RuntimeError):  # a tensor inside vmap has no memory to compare
        return False
