r"""Eight-bit pixels made continuous by uniform noise, the same for a row whatever the order of the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.data.arrays import BLOCK as CHECKED
from ppl_vae.data.binarization import BLOCK, uniforms
from ppl_vae.data.rows import Rows

BINS = 256  # levels of an 8-bit pixel
FINE = 2**15  # values of the noise: k + u is then exact in float32 for every k, and strictly between k and k + 1


@dataclass(frozen=True)
class Dequantization:
    r"""A rule for rows of 8-bit pixels k / 255 whose outcome never changes: (k + u) / 256, u fixed by `key`."""

    key: int

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """The rows `x` of shape (n, ...), which are the rows numbered `rows` of their source, as (k + u) / 256."""
        drawn = torch.empty_like(x, dtype=torch.float32)
        size = x[0].numel() if len(x) else 1
        step = max(1, BLOCK // size)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            noise = torch.from_numpy(uniforms(rows[part].cpu().numpy(), size, self.key)).to(x.device)  # (step, size)
            drawn[part] = dequantize(x[part], noise.view(x[part].shape))
        return drawn


def dequantize(x: Tensor, noise: Tensor | None = None) -> Tensor:
    """8-bit pixels k / 255 as (k + u) / 256, float32.

    `noise` in [0, 1) is rounded to the middle of one of 2**15 steps. Any finer u would be rounded with k + u, and to
    the next level or to 1 at the upper end: so each value lies strictly inside its own level's interval, and none at 0
    or 1, where a density such as the Beta has none.

    Args:
        x: pixels k / 255.
        noise: draws from U[0, 1) of the shape of x; None for fresh ones from torch's global generator.
    """
    noise = torch.rand_like(x) if noise is None else noise
    u = (noise.mul(FINE).floor() + 0.5) / FINE
    return (x.mul(BINS - 1).round() + u) / BINS


def check_levels(x: Rows, what: str) -> None:
    """Refuse floats that are no 8-bit pixels k / 255; `what` names them.

    Raises:
        ValueError: Naming the first row with another value.
    """
    step = max(1, CHECKED // math.prod(x.shape[1:]))
    for start in range(0, len(x), step):
        rows = x[torch.arange(start, min(start + step, len(x)))].flatten(1)
        level = rows * (BINS - 1)
        wrong = ~(((level - level.round()).abs() < 1e-3) & (level > -0.5) & (level < BINS - 0.5)).all(1)  # NaN: wrong
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"dequantize=True needs 8-bit pixels, uint8 or k / 255, and row {start + row} of {what} holds values "
                f"from {float(rows[row].min()):g} to {float(rows[row].max()):g} that are none: save pixels as uint8, "
                "or leave continuous data as they are"
            )
