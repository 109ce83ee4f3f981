"""Binarisation of grey values in [0, 1], row by row, independent of the order of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Binarize = Literal["none", "threshold", "dynamic", "fixed"]

BLOCK = 2**18  # draws made in one go: as many as stay in the processor's cache
# the constants of SplitMix64
STEP, MIX_1, MIX_2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Binarization:
    """A binarisation that gives a row the same result each time: by a threshold, or by one draw fixed by `key`."""

    mode: Literal["threshold", "fixed"]
    threshold: float
    key: int

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the rows `x` as 0. and 1.; `x`, (n, ...), holds the rows of the source with the numbers `rows`."""
        if self.mode == "threshold":
            return (x > self.threshold).to(torch.float32)
        return with_noise(x, rows, self.key, lambda part, noise: noise < part)


def noise_key(seed: int, part: int) -> int:
    """Return a 64-bit key from a seed and the number of the source's part (0: train, 1: test, 2: pictures)."""
    key = np.array([(seed * 4 + part) % 2**64], dtype=np.uint64)
    for _ in range(2):
        key = _mixed(key + STEP)
    return int(key[0])


def with_noise(x: Tensor, rows: Tensor, key: int, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return `rule` of the rows `x` and of their own draws from U[0, 1), float32, made a block at a time."""
    drawn = torch.empty_like(x, dtype=torch.float32)
    size = x[0].numel() if len(x) else 1
    step = max(1, BLOCK // size)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        noise = torch.from_numpy(uniforms(rows[part].cpu().numpy(), size, key)).to(x.device)  # (step, size)
        drawn[part] = rule(x[part], noise.view(x[part].shape))
    return drawn


def uniforms(rows: np.ndarray, size: int, key: int) -> np.ndarray:
    """Return float32 draws from U[0, 1) of shape (len(rows), size), each a function of key, row and place alone.

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
