"""The decoded latent plane: images decoded on a grid of z."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ppl_vae.plots.arguments import ArrayLike, to_array
from ppl_vae.plots.mosaics import image_figure, to_mosaic, to_tiles
from ppl_vae.plots.style import styled

if TYPE_CHECKING:
    from jaxtyping import Float

SMALL = 16  # rows of an image: fewer, and its edges are lost among its neighbours


@styled
def latent_grid(
    images: ArrayLike,
    *,
    points: Float[ArrayLike, "n n 2"] | None = None,
    low: float = -2.0,
    high: float | None = None,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Draw the decoded latent plane: images decoded on a square grid of z, with z1 to the right and z2 upwards.

    The axes are those of `latent_scatter`: one picture lies over the other. (The article's canvas has z1 downwards and
    z2 to the right.) Image (i, j) is decoded at ``grid_points()[i, j]``, and its centre lies at that z on the axes.
    Images of fewer than 16 rows stand a pixel apart.

    Without `points` and `high` the grid is taken for ``grid_points(low, step=(2 - low) / n)``; **wrong** for a step
    that does not divide 2 - low. A note at the foot says so unless the grid has the article's size.

    Args:
        images: Decoded images, of shape (n, n, C, H, W), (n, n, H, W), or flattened to n*n images.
        points: The z of each image, as `grid_points` gives them; they take the place of `low` and `high`.
        low: First coordinate of the grid, in both directions.
        high: Last coordinate of the grid (included: 1.8, where ``grid_points(high=2.0)`` stops).
        caveat: Written at the foot.
        value_range: Values drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure with one axes that holds one image, its axes in units of z.

    Raises:
        ValueError: As :func:`image_grid`, or if the images do not fill a square, ``low`` is not below ``high``, or
            the points are not a grid of one spacing with a point for each image.

    Example:
        >>> figure = latent_grid(torch.rand(400, 1, 28, 28), points=grid_points())
        >>> figure.axes[0].get_xlabel(), [f"{end:.2f}" for end in figure.axes[0].get_xlim()]
        ('$z_1$', ['-2.10', '1.90'])
    """
    array = to_array(images, "images")
    if array.ndim == 5 or (array.ndim == 4 and array.shape[0] == array.shape[1]):
        if array.shape[0] != array.shape[1]:
            given = f"{array.shape[0]} x {array.shape[1]}"
            raise ValueError(f"latent_grid: images form a grid of {given}; expected a square")
        array = array.reshape(-1, *array.shape[2:])
    tiles, note = to_tiles(array, "images", value_range)
    n = math.isqrt(len(tiles))
    if n * n != len(tiles):
        raise ValueError(f"latent_grid: got {len(tiles)} images; expected a square number, one for each z of a grid")
    guess = None  # of the axes
    if points is not None:
        low, high = _ends(to_array(points, "latent_grid: points"), n)
    elif high is None:
        high = 2.0 - (2.0 - low) / n
        words = f"The axes are those of grid_points(step={(2.0 - low) / n:g}); give points if the step is another."
        guess = None if (n, low) == (20, -2.0) else words
    if not -math.inf < low < math.inf or not (low < high < math.inf or (low == high and n == 1)):
        raise ValueError(f"latent_grid: low is {low} and high is {high}; expected finite numbers, low below high")

    # from z1 down and z2 across, to z2 up and z1 across
    upright = tiles.reshape(n, n, *tiles.shape[1:]).swapaxes(0, 1)[::-1].reshape(tiles.shape)
    gap = int(tiles.shape[1] < SMALL)
    figure, axes = image_figure(
        to_mosaic(upright, n, gap), n, "Decoded latent plane", caveat, note, guess, left=0.55, bottom=0.38
    )
    half = (high - low) / (2 * n - 2) if n > 1 else 0.5  # of a tile: z lies at its centre
    x, y = (gap / (size + gap) * half for size in tiles.shape[2:0:-1])  # of a gap, at the edge of which there is none
    limits = low - half, high + half
    axes.images[0].set_extent((limits[0] + x, limits[1] - x, limits[0] + y, limits[1] - y))
    axes.set(xlim=limits, ylim=limits)
    axes.set_xlabel("$z_1$", labelpad=2)
    axes.set_ylabel("$z_2$", labelpad=2)
    for axis in (axes.xaxis, axes.yaxis):  # not locator_params, which would move the limits
        axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    return figure


def grid_points(low: float = -2.0, high: float = 2.0, step: float = 0.2) -> Float[Tensor, "n n 2"]:
    """Return a square grid of two-dimensional z; the default is the article's, {-2.0, -1.8, ..., 1.8} squared.

    Coordinates are low + index * step in decimal arithmetic, each rounded once. Adding up 0.2 would drift, and
    rounding would decide whether 2.0 itself belongs.

    Args:
        low: First coordinate.
        high: End of the coordinates, which is excluded (as in `range`).
        step: Distance between neighbours.

    Returns:
        Points, in the default dtype; ``[i, j]`` is (low + i * step, low + j * step).

    Raises:
        ValueError: If ``low`` is not below ``high``, or ``step`` is not positive.

    Example:
        >>> points = grid_points()
        >>> points.shape
        torch.Size([20, 20, 2])
        >>> points[0, 19]
        tensor([-2.0000,  1.8000])
    """
    if not (-math.inf < low < high < math.inf and 0 < step < math.inf):
        raise ValueError(
            f"grid_points: low, high, step are {low}, {high}, {step}; expected low below high and a positive step"
        )
    first, last, distance = (Decimal(str(float(value))) for value in (low, high, step))
    count = math.ceil((last - first) / distance)
    coordinates = torch.tensor([float(first + index * distance) for index in range(count)])  # (n,)
    return torch.stack(torch.meshgrid(coordinates, coordinates, indexing="ij"), dim=-1)  # (n, n, 2)


def _ends(points: np.ndarray, n: int) -> tuple[float, float]:
    """Return the first and the last coordinate of a square grid of z with one spacing."""
    low, high = np.resize(points, 2 * n * n)[[0, -1]].tolist()
    grid = np.stack(np.meshgrid(*2 * [np.linspace(low, high, n)], indexing="ij"), -1)  # (n, n, 2)
    if points.size != grid.size or not np.allclose(points.ravel(), grid.ravel(), atol=1e-4 * abs(high - low)):
        raise ValueError(
            f"latent_grid: points have shape {points.shape} or no even spacing; expected the z of {n} x {n} images as "
            "grid_points gives them, the first index that of z1"
        )
    return low, high
