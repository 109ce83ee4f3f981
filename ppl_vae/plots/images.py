"""Images side by side: mosaics, samples, reconstructions and interpolations."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ppl_vae.plots.arguments import ArrayLike, to_array
from ppl_vae.plots.decoded_plane import grid_points as grid_points  # from where these two have moved
from ppl_vae.plots.decoded_plane import latent_grid as latent_grid
from ppl_vae.plots.figure import WIDTH, fitted
from ppl_vae.plots.mosaics import apart, gap_of, image_figure, near_square, to_mosaic, to_tiles
from ppl_vae.plots.style import SMALL_SIZE, TEXT_SIZE, styled


@styled
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
    columns = near_square(len(tiles)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"image_grid: columns is {columns}; expected at least 1")
    columns = min(columns, len(tiles))
    return image_figure(to_mosaic(tiles, columns, gap_of(tiles)), columns, title, caveat, note)[0]


def samples(
    images: ArrayLike,
    *,
    mean: bool | None = None,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Draw a mosaic of samples from the model: images decoded from z of the prior.

    Means of p(x|z) look smoother than data, and are no draws from the model.

    Args:
        images: Images of shape (n, C, H, W) with C = 1 or 3, or (n, H, W).
        mean: Whether these are means of p(x|z) or draws from it, for the title; None leaves it open.
        caveat: Written at the foot.
        value_range: Values drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure with one axes that holds one image.

    Raises:
        ValueError: As :func:`image_grid`.

    Example:
        >>> import torch
        >>> samples(torch.rand(9, 8, 8), mean=True).axes[0].get_title()
        'Samples from the prior: means of p(x|z)'
    """
    which = {None: "", True: ": means of p(x|z)", False: ": draws of p(x|z)"}[mean]
    return image_grid(images, title=f"Samples from the prior{which}", caveat=caveat, value_range=value_range)


@styled
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
        given = f"inputs are {_describe(above)} and outputs {_describe(below)}"
        raise ValueError(f"reconstructions: {given}; expected as many of one size")
    count, tile_height = above.shape[:2]
    columns = count if count <= 10 else near_square(2 * count)
    gap = gap_of(above)
    between = max(3 * gap, tile_height // 3)
    pairs = [
        apart([to_mosaic(tiles[start : start + columns], columns, gap) for tiles in (above, below)], gap, axis=0)
        for start in range(0, count, columns)
    ]
    mosaic = apart(pairs, between, axis=0)  # (height, width) or (height, width, 3)
    tops = [i * (len(pairs[0]) + between) + row * (tile_height + gap) for i in range(len(pairs)) for row in (0, 1)]

    figure, axes = image_figure(mosaic, columns, title, caveat, note_above, note_below, left=0.55)
    row_points = 72 * figure.get_figheight() * axes.get_position().height * tile_height / len(mosaic)
    axes.set_xticks([])
    middles = [top + (tile_height - 1) / 2 for top in tops]
    axes.set_yticks(middles, ["input", "output"] * len(pairs), fontsize=min(TEXT_SIZE, 0.8 * row_points))
    return figure


@styled
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
    if (first is None) != (last is None):
        raise ValueError("interpolations: only one of first and last was given; expected both or neither")
    gap, width, columns = gap_of(tiles), tiles.shape[2], array.shape[1]
    path = to_mosaic(tiles, columns, gap)
    if first is None or last is None:
        return image_figure(path, columns, title, caveat, note)[0]
    notes, columns_of_data = [note], []
    for name, ends in (("first", first), ("last", last)):
        column, note = to_tiles(ends, name, value_range)
        if column.shape != (len(array), *tiles.shape[1:]):
            raise ValueError(
                f"interpolations: {name} are {_describe(column)}; expected one for each of {len(array)} paths, of the "
                f"size of {_describe(tiles)}"
            )
        notes.append(note)
        columns_of_data.append(to_mosaic(column, 1, gap))
    mosaic = apart([columns_of_data[0], path, columns_of_data[1]], max(3 * gap, width // 3), axis=1)
    _, bottom = fitted("input", WIDTH, SMALL_SIZE)
    figure, axes = image_figure(mosaic, columns + 3, title, caveat, *notes, bottom=bottom)
    axes.set_yticks([])
    middle = (width - 1) / 2
    axes.set_xticks([middle, mosaic.shape[1] - 1 - middle], ["input", "input"], fontsize=SMALL_SIZE)
    axes.tick_params(pad=2)
    return figure


def _describe(tiles: np.ndarray) -> str:
    channels = "colour" if tiles.ndim == 4 else "grey"
    return f"{len(tiles)} {channels} images of {tiles.shape[1]} x {tiles.shape[2]}"
