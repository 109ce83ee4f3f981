r"""Dequantisation of 8-bit pixels by uniform noise, row by row, independent of the order of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.data.arrays import blocks
from ppl_vae.data.binarization import with_noise
from ppl_vae.data.rows import Rows

BINS = 256  # levels of an 8-bit pixel
FINE = 2**15  # values of the noise u: k + u is exact in float32 for every k, and strictly between k and k + 1


@dataclass(frozen=True)
class Dequantization:
    r"""A dequantisation that gives a row k / 255 the same result each time: (k + u) / 256, with u fixed by `key`."""

    key: int

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return `x` as (k + u) / 256; `x`, (n, ...), holds the rows of the source with the numbers `rows`."""
        return with_noise(x, rows, self.key, dequantize)


def dequantize(x: Tensor, noise: Tensor | None = None) -> Tensor:
    """Return 8-bit pixels k / 255 as (k + u) / 256, float32.

    `noise` in [0, 1) is rounded to the middle of one of 2**15 steps. A finer u would be rounded in k + u, at the upper
    end to the next level or to 1. With these steps each value lies strictly inside the interval of its own level. No
    value lies at 0 or 1, where a density such as the Beta has none.

    Args:
        x: pixels k / 255.
        noise: draws from U[0, 1) of the shape of x; None for fresh draws from torch's global generator.
    """
    noise = torch.rand_like(x) if noise is None else noise
    u = (noise.mul(FINE).floor() + 0.5) / FINE
    return (x.mul(BINS - 1).round() + u) / BINS


def check_levels(x: Rows, what: str) -> None:
    """Refuse floats that are not 8-bit pixels k / 255; `what` names them.

    Raises:
        ValueError: If a value is not k / 255; the message names the first such row.
    """
    for start, x_block in blocks(x):
        rows = x_block.flatten(1)
        level = rows * (BINS - 1)
        wrong = ~(((level - level.round()).abs() < 1e-3) & (level > -0.5) & (level < BINS - 0.5)).all(1)  # NaN is wrong
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"dequantize=True needs 8-bit pixels, uint8 or k / 255, and row {start + row} of {what} holds values "
                f"from {float(rows[row].min()):g} to {float(rows[row].max()):g} that are none: save pixels as uint8, "
                "or leave continuous data as they are"
            )
