"""What a distribution knows of its last draw, and what the draw itself has lost by rounding."""

from __future__ import annotations

from torch import Tensor


class LastDraw:
    """The last draw of a distribution, and the noise or whatever else it was made of.

    A draw :math:`z = f(e)` in floats keeps few digits of e where f is ill-conditioned. The density at the rounded z is
    then not the density of what was drawn: it is wrong by any number of nats. A distribution that remembers e scores
    its own draw from e.

    Args:
        z: The draw.
        *parts: What it was made of.
    """

    def __init__(self, z: Tensor, *parts: Tensor) -> None:
        self.z = z
        self.parts = parts
        self._version = _version(z)

    def is_same(self, value: Tensor) -> bool:
        """Whether `value` is the draw, or shares its memory (``z.detach()``), unchanged since."""
        return (value is self.z or _shares_memory(value, self.z)) and _version(self.z) == self._version


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    try:
        same = a.untyped_storage()._cdata == b.untyped_storage()._cdata and a.stride() == b.stride()
        return bool(same and a.storage_offset() == b.storage_offset())
    except (NotImplementedError, RuntimeError):  # inside of vmap there is no memory to look at
        return False
