"""Images side by side: mosaics, samples, reconstructions, interpolations."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vae.plots.figure import (
    DPI,
    SMALL_SIZE,
    TALLEST,
    TEXT_SIZE,
    TITLE_SIZE,
    WIDTH,
    ArrayLike,
    join,
    lines_height,
    note_style,
    to_array,
    wrap,
)


def image_grid(
    images: ArrayLike,
    *,
    columns: int | None = None,
    title: str | None = None,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Draw images side by side in one mosaic, row by row.

    Values outside the range are drawn at its ends, and a note at the foot says how many there are. Three
    dimensions always mean grey images: give a single colour image as ``image[None]``.

    Args:
        images: Images of shape (n, C, H, W) with C = 1 or 3, or (n, H, W).
        columns: Images in a row; by default about as many as rows.
        title: Written above the mosaic.
        caveat: Written at the foot.
        value_range: Values drawn black and white; by default 0 and 1 (0 and 255 for ``uint8``).

    Returns:
        A figure with one axes that holds one image.

    Raises:
        ValueError: If ``images`` are not images, hold values that are not finite, or the range is empty.

    Example:
        >>> import torch
        >>> mosaic = image_grid(torch.rand(6, 3, 8, 8), columns=3).axes[0].images[0]
        >>> mosaic.get_array().shape                                    # 2 rows of 3, a pixel apart
        (17, 26, 3)
    """
    tiles, note = to_tiles(images, "images", value_range)
    columns = _near_square(len(tiles)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"image_grid: columns is {columns}; expected at least 1")
    columns = min(columns, len(tiles))
    figure, _ = image_figure(to_mosaic(tiles, columns, _gap(tiles)), columns, title, join(caveat, note))
    return figure


def samples(
    images: ArrayLike,
    *,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Draw a mosaic of samples from the model: images decoded from z of the prior.

    Args:
        images: Images of shape (n, C, H, W) with C = 1 or 3, or (n, H, W).
        caveat: Written at the foot; say there if these are means of p(x|z) and not draws.
        value_range: Values drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure with one axes that holds one image.

    Raises:
        ValueError: As :func:`image_grid`.

    Example:
        >>> import torch
        >>> samples(torch.rand(9, 8, 8)).axes[0].get_title()
        'Samples from the prior'
    """
    return image_grid(images, title="Samples from the prior", caveat=caveat, value_range=value_range)


def reconstructions(
    inputs: ArrayLike,
    outputs: ArrayLike,
    *,
    title: str | None = "Reconstructions",
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Draw pairs of rows, the inputs above and their reconstructions below.

    Up to ten images stand in one pair of rows; more are broken into several pairs.

    Args:
        inputs: Images of shape (n, C, H, W) with C = 1 or 3, or (n, H, W).
        outputs: Their reconstructions, of the same number and size.
        title: Written above the images.
        caveat: Written at the foot.
        value_range: Values drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure with one axes that holds one image; the labels of its y axis name the rows.

    Raises:
        ValueError: As :func:`image_grid`, or if inputs and outputs do not pair up.

    Example:
        >>> import torch
        >>> figure = reconstructions(torch.rand(5, 8, 8), torch.rand(5, 8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['input', 'output']
    """
    above, note_above = to_tiles(inputs, "inputs", value_range)
    below, note_below = to_tiles(outputs, "outputs", value_range)
    if above.shape != below.shape:
        raise ValueError(
            f"reconstructions: inputs are {_describe(above)} and outputs {_describe(below)}; expected as "
            "many of one size"
        )
    count, tile_height = above.shape[:2]
    columns = count if count <= 10 else _near_square(2 * count)
    gap = _gap(above)
    between = max(3 * gap, tile_height // 3)

    blocks: list[np.ndarray] = []
    ticks: list[float] = []
    row = 0
    for start in range(0, count, columns):
        pair = [to_mosaic(tiles[start : start + columns], columns, gap) for tiles in (above, below)]
        if blocks:
            blocks.append(_blank(between, pair[0]))
            row += between
        blocks += [pair[0], _blank(gap, pair[0]), pair[1]]
        middle = row + (tile_height - 1) / 2
        ticks += [middle, middle + tile_height + gap]
        row += 2 * tile_height + gap
    mosaic = np.concatenate(blocks)  # (height, width) or (height, width, 3)

    figure, axes = image_figure(mosaic, columns, title, join(caveat, note_above, note_below), left=0.55)
    row_points = 72 * figure.get_figheight() * axes.get_position().height * tile_height / len(mosaic)
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(ticks, ["input", "output"] * (len(ticks) // 2), fontsize=min(TEXT_SIZE, 0.8 * row_points))
    axes.tick_params(length=0)
    return figure


def interpolations(
    paths: ArrayLike,
    first: ArrayLike | None = None,
    last: ArrayLike | None = None,
    *,
    title: str | None = "Interpolations",
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Draw decoded images along paths between data, a row for each path, with the data at its ends.

    Args:
        paths: Decoded images, of shape (paths, steps, C, H, W) with C = 1 or 3, or (paths, steps, H, W).
        first: The data where the paths begin, (paths, C, H, W) or (paths, H, W), drawn apart on the left.
        last: The data where the paths end, drawn apart on the right; give both or neither.
        title: Written above the images.
        caveat: Written at the foot.
        value_range: Values drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure with one axes that holds one image; the labels of its x axis name the columns of data.

    Raises:
        ValueError: As :func:`image_grid`, or if paths and data do not match.

    Example:
        >>> import torch
        >>> figure = interpolations(torch.rand(3, 6, 1, 8, 8), torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['input', 'input']
    """
    array = to_array(paths, "paths")
    if array.ndim not in (4, 5):
        raise ValueError(f"paths have shape {array.shape}; expected (paths, steps, C, H, W) or (paths, steps, H, W)")
    tiles, note = to_tiles(array.reshape(-1, *array.shape[2:]), "paths", value_range)
    gap, notes, blocks = _gap(tiles), [note], [to_mosaic(tiles, array.shape[1], _gap(tiles))]
    if (first is None) != (last is None):
        raise ValueError("interpolations: only one of first and last was given; expected both or neither")
    for name, ends in (("first", first), ("last", last)):
        if ends is None:
            continue
        column, note = to_tiles(ends, name, value_range)
        if column.shape != (len(array), *tiles.shape[1:]):
            raise ValueError(
                f"interpolations: {name} are {_describe(column)}; expected one for each of {len(array)} paths, of the "
                f"size of {_describe(tiles)}"
            )
        notes.append(note)
        blocks.insert(0 if name == "first" else len(blocks), to_mosaic(column, 1, gap))

    width = tiles.shape[2]
    between = max(3 * gap, width // 3) if len(blocks) > 1 else 0
    space = np.ones((len(blocks[0]), between, *blocks[0].shape[2:]), blocks[0].dtype)
    mosaic = np.concatenate([part for block in blocks for part in (space, block)][1:], axis=1)
    columns = array.shape[1] + (3 if len(blocks) > 1 else 0)
    bottom = lines_height("input", SMALL_SIZE) if len(blocks) > 1 else 0.0
    figure, axes = image_figure(mosaic, columns, title, join(caveat, *notes), bottom=bottom)
    if len(blocks) > 1:
        axes.set_axis_on()
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        middle = (width - 1) / 2
        axes.set_xticks([middle, mosaic.shape[1] - 1 - middle], ["input", "input"], fontsize=SMALL_SIZE)
        axes.tick_params(length=0, pad=2)
    return figure


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


def _near_square(count: int) -> int:
    """Return a number of columns near that of rows, or up to twice as many columns if they make full rows."""
    least = math.ceil(math.sqrt(count))
    return next((c for c in range(least, 2 * least) if count % c == 0), least)


def _gap(tiles: np.ndarray) -> int:
    return max(1, tiles.shape[1] // 28)


def _blank(height: int, like: np.ndarray) -> np.ndarray:
    return np.ones((height, *like.shape[1:]), like.dtype)


def to_mosaic(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Return the tiles row by row, with white pixels between them and in place of missing tiles."""
    count, height, width = tiles.shape[:3]
    rows = math.ceil(count / columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:])
    mosaic = np.ones(shape, tiles.dtype)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = tile
    return mosaic


def _describe(tiles: np.ndarray) -> str:
    channels = "colour" if tiles.ndim == 4 else "grey"
    return f"{len(tiles)} {channels} images of {tiles.shape[1]} x {tiles.shape[2]}"


def image_figure(
    mosaic: np.ndarray,
    columns: int,
    title: str | None,
    foot: str | None,
    left: float = 0.0,
    bottom: float = 0.0,
) -> tuple[Figure, Axes]:
    """Return a figure that fits one image, with ``left`` and ``bottom`` inches beside it for labels."""
    edge = 0.06
    height, width = mosaic.shape[:2]
    wanted = min(max(1.1 * columns, 2.4), WIDTH - left - 2 * edge)
    scale = min(wanted / width, TALLEST / height)  # inches per image pixel
    if scale * DPI >= 2:
        scale = math.floor(scale * DPI) / DPI  # a whole number of dots: sharp, and no pixel wider than another
    width, height = width * scale, height * scale

    figure_width = max(width + left, 2.4) + 2 * edge
    title = wrap(title, figure_width, TITLE_SIZE)
    foot = wrap(foot, figure_width, SMALL_SIZE)
    above = lines_height(title, TITLE_SIZE) + edge
    below = lines_height(foot, SMALL_SIZE) + bottom + edge
    figure_height = below + height + above
    figure = Figure(figsize=(figure_width, figure_height))
    x = edge + left + (figure_width - 2 * edge - left - width) / 2
    axes = figure.add_axes((x / figure_width, below / figure_height, width / figure_width, height / figure_height))
    axes.imshow(mosaic, cmap="gray", vmin=0.0, vmax=1.0, interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=TITLE_SIZE, pad=4)
    if foot:
        figure.text(0.5, 0.04 / figure_height, foot, ha="center", va="bottom", **note_style())
    return figure, axes
