"""Binarisation of grey values in [0, 1] and dequantisation of 8-bit pixels, row by row, in any order of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Binarize = Literal["none", "threshold", "dynamic", "fixed"]

BLOCK = 2**18  # draws made in one go: as many as stay in the processor's cache
# the constants of SplitMix64
STEP, MIX_1, MIX_2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
BINS = 256  # levels of an 8-bit pixel
FINE = 2**15  # values of the noise u: k + u is exact in float32 for every k, and strictly between k and k + 1


@dataclass(frozen=True)
class Binarization:
    """A binarisation that gives a row the same result each time: by a threshold, or by one draw fixed by `key`."""

    mode: Literal["threshold", "fixed"]
    threshold: float
    key: int

    def __call__(self, x: Float[Tensor, " n *shape"], rows: Int[Tensor, " n"]) -> Float[Tensor, " n *shape"]:
        """Return the rows `x` as 0. and 1.; `x` holds the rows of the source with the numbers `rows`."""
        if self.mode == "threshold":
            return (x > self.threshold).to(torch.float32)
        return with_noise(x, rows, self.key, lambda part, noise: noise < part)


@dataclass(frozen=True)
class Dequantization:
    r"""A dequantisation that gives a row k / 255 the same result each time: (k + u) / 256, with u fixed by `key`."""

    key: int

    def __call__(self, x: Float[Tensor, " n *shape"], rows: Int[Tensor, " n"]) -> Float[Tensor, " n *shape"]:
        """Return `x` as (k + u) / 256; `x` holds the rows of the source with the numbers `rows`."""
        return with_noise(x, rows, self.key, dequantize)


Rule = Binarization | Dequantization


def noise_key(seed: int, part: int) -> int:
    """Return a 64-bit key from a seed and the number of the source's part (0: train, 1: test, 2: pictures, 3: held)."""
    key = np.array([(seed * 4 + part) % 2**64], dtype=np.uint64)
    for _ in range(2):
        key = _mixed(key + STEP)
    return int(key[0])


def with_noise(
    x: Float[Tensor, " n *shape"], rows: Int[Tensor, " n"], key: int, rule: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, " n *shape"]:
    """Return `rule` of the rows `x` and of their own draws from U[0, 1), float32, made a block at a time."""
    drawn = torch.empty_like(x, dtype=torch.float32)
    size = x[0].numel() if len(x) else 1
    step = max(1, BLOCK // size)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        noise = torch.from_numpy(uniforms(rows[part].cpu().numpy(), size, key)).to(x.device)  # (step, size)
        drawn[part] = rule(x[part], noise.view(x[part].shape))
    return drawn


def uniforms(rows: Int[np.ndarray, " rows"], size: int, key: int) -> Float[np.ndarray, "rows size"]:
    """Return float32 draws from U[0, 1), each a function of key, row and place alone.

    The generator is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014,
    https://doi.org/10.1145/2660193.2660195) at position row * size + place. It draws any row without the rows
    before it, which a `torch.Generator` cannot do.
    """
    place = np.arange(1, size + 1, dtype=np.uint64)
    state = _mixed((rows.astype(np.uint64)[:, None] * np.uint64(size) + place) * STEP + np.uint64(key))
    return (state >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * MIX_1
    state = (state ^ (state >> np.uint64(27))) * MIX_2
    return state ^ (state >> np.uint64(31))


def dequantize(x: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"] | None = None) -> Float[Tensor, "*shape"]:
    """Return 8-bit pixels k / 255 as (k + u) / 256, float32.

    `noise` in [0, 1) is rounded to the middle of one of 2**15 steps. A finer u would be rounded in k + u, at the upper
    end to the next level or to 1. With these steps each value lies strictly inside the interval of its own level. No
    value lies at 0 or 1, where a density such as the Beta has none.

    Args:
        x: pixels k / 255.
        noise: draws from U[0, 1); None for fresh draws from torch's global generator.
    """
    noise = torch.rand_like(x) if noise is None else noise
    u = (noise.mul(FINE).floor() + 0.5) / FINE
    return (x.mul(BINS - 1).round() + u) / BINS


def check_levels(what: str, start: int, x: Tensor) -> None:
    """Refuse floats that are not 8-bit pixels k / 255.

    Args:
        what: The name of the data in the error.
        start: The number of the first row.
        x: A block of rows.

    Raises:
        ValueError: If a value is not k / 255; the message names the first such row.
    """
    rows = x.flatten(1)
    level = rows * (BINS - 1)
    wrong = ~(((level - level.round()).abs() < 1e-3) & (level > -0.5) & (level < BINS - 0.5)).all(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"dequantize=True needs 8-bit pixels, uint8 or k / 255, and row {start + row} of {what} holds values "
            f"from {float(rows[row].min()):g} to {float(rows[row].max()):g} that are none: save pixels as uint8, "
            "or leave continuous data as they are"
        )
