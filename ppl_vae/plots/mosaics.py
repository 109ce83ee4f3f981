"""Mosaics: images made ready to be drawn, side by side in one array, and the figure around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vae.plots.arguments import ArrayLike, to_array
from ppl_vae.plots.figure import DPI, TALLEST, WIDTH, Picture, fitted, join, put_foot
from ppl_vae.plots.style import SMALL_SIZE, TITLE_SIZE

GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0, "interpolation": "antialiased"}
CELLS: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}  # of a grid, for imshow


def to_tiles(images: ArrayLike, name: str, value_range: tuple[float, float] | None) -> tuple[np.ndarray, str | None]:
    """Return images as (n, H, W) or (n, H, W, 3) with values in [0, 1], and a note if values were clipped to it."""
    array = to_array(images, name)
    shape = tuple(array.shape)
    if array.ndim not in (3, 4) or 0 in shape or (array.ndim == 4 and shape[1] not in (1, 3)):
        fix = ""
        if array.ndim == 4 and shape[-1] in (1, 3):
            fix = "; the channels come second: permute(0, 3, 1, 2)"
        elif array.ndim == 2 and math.isqrt(shape[1]) ** 2 == shape[1]:
            fix = "; make vectors images first: reshape(-1, 1, {0}, {0})".format(math.isqrt(shape[1]))
        raise ValueError(f"{name} have shape {shape}; expected (n, C, H, W) with C = 1 or 3, or (n, H, W){fix}")
    if array.ndim == 4:
        array = array[:, 0] if shape[1] == 1 else array.transpose(0, 2, 3, 1)

    low, high = value_range or ((0.0, 255.0) if array.dtype == np.uint8 else (0.0, 1.0))
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"value_range is ({low}, {high}); expected two finite numbers, the lower first")
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity; fill missing values before drawing")
    if (low, high) != (0.0, 1.0):  # otherwise every value stays as it is, to the last bit
        array = (array - low) / (high - low)
    beyond = float(((array < -1e-6) | (array > 1 + 1e-6)).mean())
    note = f"{100 * beyond:.2g}% of the values of {name} lie outside [{low:g}, {high:g}] and are cut to it."
    return array.clip(0, 1), note if beyond else None


def near_square(count: int) -> int:
    """Return a number of columns near that of rows, or up to twice as many columns if they make full rows."""
    least = math.ceil(math.sqrt(count))
    return next((c for c in range(least, 2 * least) if count % c == 0), least)


def gap_of(tiles: np.ndarray) -> int:
    """Return the pixels between tiles."""
    return max(1, tiles.shape[1] // 28)


def to_mosaic(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Return the tiles row by row, with white pixels between them and in place of missing tiles."""
    count, height, width = tiles.shape[:3]
    rows = math.ceil(count / columns)
    mosaic = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:]), tiles.dtype)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = tile
    return mosaic


def apart(blocks: Sequence[np.ndarray], space: int, axis: int) -> np.ndarray:
    """Return the blocks one after the other along an axis, with so many white pixels between them."""
    shape = list(blocks[0].shape)
    shape[axis] = space
    white = np.ones(shape, blocks[0].dtype)
    return np.concatenate([part for block in blocks for part in (white, block)][1:], axis)


def image_figure(
    mosaic: np.ndarray, columns: int, title: str | None, *notes: str | None, left: float = 0.0, bottom: float = 0.0
) -> tuple[Figure, Axes]:
    """Return a figure that fits one image and its notes, with ``left`` and ``bottom`` inches beside it for labels."""
    edge = 0.06
    height, width = mosaic.shape[:2]
    wanted = min(max(1.1 * columns, 2.4), WIDTH - left - 2 * edge)
    scale = min(wanted / width, TALLEST / height)  # inches per image pixel
    if scale * DPI >= 2:
        scale = math.floor(scale * DPI) / DPI  # a whole number of dots: sharp, and no pixel wider than another
    width, height = width * scale, height * scale

    figure_width = max(width + left, 2.4) + 2 * edge
    title, above = fitted(title, figure_width, TITLE_SIZE)
    foot, foot_height = fitted(join(*notes), figure_width, SMALL_SIZE)
    below = foot_height + bottom + edge
    figure_height = below + height + (above + edge)
    figure = Picture(figsize=(figure_width, figure_height))
    x = edge + left + (figure_width - 2 * edge - left - width) / 2
    axes = figure.add_axes((x / figure_width, below / figure_height, width / figure_width, height / figure_height))
    axes.imshow(mosaic, aspect="auto", **GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if not (left or bottom):
        axes.set_axis_off()
    axes.set_title(title, fontsize=TITLE_SIZE, pad=4)
    put_foot(figure, foot)
    return figure, axes
