"""Blocks of data and particles whose decoded data fit in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

MAX_BYTES = 2**27  # of decoded data at once; larger blocks run no faster


def capacity(x: Tensor, max_bytes: int) -> int:
    """Return how many data can be decoded at once within `max_bytes`; about four tensors of their size are alive."""
    return max(1, max_bytes // (4 * x.element_size() * max(x[0].numel(), 256)))


def row_blocks(x: Tensor, max_bytes: int, num_particles: int = 1) -> Iterator[slice]:
    """Return slices of at most 1000 data that fit with `num_particles` each."""
    return _slices(len(x), min(1000, capacity(x, max_bytes) // num_particles))


def particle_blocks(num_particles: int, x: Tensor, max_bytes: int) -> Iterator[slice]:
    """Return slices of the particles that fit together for all of `x`."""
    return _slices(num_particles, capacity(x, max_bytes) // len(x))


def _slices(size: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
