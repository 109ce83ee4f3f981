"""Arrays and tensors of numbers, checked and laid out as data: channels first, float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae._tensors import as_numbers
from ppl_vae.data.rows import Rows, stream

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped

CHANNELS = (1, 3)  # grey, colour
BLOCK = 2**22  # values checked in one go, so that a check never doubles the memory


def is_image(shape: Sequence[int]) -> bool:
    """Whether a datum of this shape can be drawn as a picture: (1 or 3, height, width), or (height, width)."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in CHANNELS)


def numeric(value: Any, what: str) -> np.ndarray:
    """Return an array of real numbers in the machine's byte order; `what` names it in the error."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{what} is not an array ({error}): give rows of equal length") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"{what} has dtype {array.dtype}, where real numbers were expected: save it as float32 or uint8"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def single(array: np.ndarray) -> np.ndarray:
    """Return the array with floats as float32, in memory that torch takes: writable, without negative strides."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an overflow becomes inf, which `value_range` reports
            array = array.astype(np.float32)
    return array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C")


def data_tensor(value: Any, what: str) -> Shaped[Tensor, "n d"] | Shaped[Tensor, "n C H W"]:
    """Return rows of data: channels first, with a channel where there was none.

    uint8 stays uint8 until `to_float`, all else becomes float32, in which whole numbers must be exact.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            raise ValueError(
                f"{what} is a {value.dtype} tensor of layout {value.layout}, where a dense one of real "
                "numbers was expected: convert it to float32"
            )
        x = value.detach()
    else:
        x = torch.from_numpy(single(numeric(value, what)))
    x = x if x.dtype == torch.uint8 else as_numbers(x, torch.float32, what)
    if not 2 <= x.ndim <= 4:
        fix = "; reshape scalars to (n, 1)" if x.ndim == 1 else ""
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}, where (n, d), (n, H, W) or (n, C, H, W) was expected{fix}"
        )
    if x.numel() == 0:
        raise ValueError(f"{what} is empty, of shape {tuple(x.shape)}: at least one row of data was expected")
    if x.ndim == 3:
        return x.unsqueeze(1)
    if x.ndim == 4 and x.dtype == torch.uint8 and x.shape[1] not in CHANNELS and x.shape[3] in CHANNELS:
        return x.movedim(3, 1)
    return x


def to_float(x: Tensor) -> Tensor:
    """Return the same rows as contiguous float32, with uint8 scaled to [0, 1]."""
    if x.dtype == torch.uint8:
        return x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return x.contiguous()


def blocks(rows: Rows) -> Iterator[tuple[int, Tensor]]:
    """Yield the rows a block at a time, each with the number of its first row."""
    parts = torch.arange(rows.shape[0]).split(max(1, BLOCK // math.prod(rows.shape[1:])))
    for part, x in zip(parts, stream(rows, parts), strict=True):
        yield int(part[0]), x


def label_tensor(value: Any, rows: int, what: str) -> Int[Tensor, " rows"]:
    """Return labels as int64."""
    array = one_a_row(numeric(value.detach().cpu() if isinstance(value, Tensor) else value, what), rows, what)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise ValueError(
            f"{what} holds fractions, where integers were expected: pass real-valued targets as a second "
            "column of from_tensors"
        )
    if array.size and not -(2**63) <= int(array.min()) <= int(array.max()) < 2**63:
        raise ValueError(
            f"{what} holds numbers such as {array[np.abs(array).argmax()]:g}, beyond 64 bits: number them anew"
        )
    return torch.from_numpy(array.astype(np.int64))


def one_a_row(array: np.ndarray, rows: int, what: str) -> np.ndarray:
    """Return one label a row, (rows,), none of which may be missing (None or NaN)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{what} has shape {array.shape}, where one word a row, or one integer, was expected: (n,)")
    if len(array) != rows:
        raise ValueError(f"{what} has {len(array)} rows and the data {rows}: they must be as many")
    if array.dtype.kind not in "iub" and (missing := sum(map(is_missing, array))):
        raise ValueError(f"{what} is missing in {missing} rows: drop these rows, or name no labels")
    return array


def is_missing(entry: Any) -> bool:
    """Whether an entry of a table is None or NaN."""
    return entry is None or entry != entry
