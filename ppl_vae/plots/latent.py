"""The latent plane: images decoded from it, and the posterior means of data in it."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ppl_vae.plots.figure import SMALL_SIZE, TEXT_SIZE, WIDTH, ArrayLike, join, tidy, to_array, write_foot
from ppl_vae.plots.images import image_figure, to_mosaic, to_tiles

# the eight colours of Okabe & Ito (2008), distinct with any colour vision
CLASS_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442"),
    *("#999999", "#882255"),  # two more, the last from Paul Tol's muted scheme
)
MOST_CLASSES = 50


def latent_grid(
    images: ArrayLike,
    *,
    low: float = -2.0,
    high: float = 1.8,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Draw the decoded latent plane: images decoded on a square grid of z, without gaps between them.

    As on the article's canvas, the first index of the grid is the row and the first coordinate of z: z1 rises
    downwards, z2 to the right. Image (i, j) is decoded at ``grid_points()[i, j]``, and its centre lies at that
    z on the axes.

    Args:
        images: Decoded images, of shape (n, n, C, H, W), (n, n, H, W), or flattened to n*n images.
        low: First coordinate of the grid, in both directions.
        high: Last coordinate of the grid (included: 1.8, where ``grid_points(high=2.0)`` stops).
        caveat: Written at the foot.
        value_range: Values drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure with one axes that holds one image, its axes in units of z.

    Raises:
        ValueError: As :func:`image_grid`, or if the images do not fill a square, or ``low`` is not below
            ``high``.

    Example:
        >>> figure = latent_grid(torch.rand(20, 20, 1, 28, 28))
        >>> figure.axes[0].images[0].get_array().shape
        (560, 560)
    """
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"latent_grid: low is {low} and high is {high}; expected finite numbers, low below high")
    array = to_array(images, "images")
    if array.ndim == 5 or (array.ndim == 4 and array.shape[0] == array.shape[1]):
        if array.shape[0] != array.shape[1]:
            raise ValueError(
                f"latent_grid: images form a grid of {array.shape[0]} x {array.shape[1]}; expected a square"
            )
        array = array.reshape(-1, *array.shape[2:])
    tiles, note = to_tiles(array, "images", value_range)
    n = math.isqrt(len(tiles))
    if n * n != len(tiles):
        raise ValueError(f"latent_grid: got {len(tiles)} images; expected a square number, one for each z of a grid")

    figure, axes = image_figure(
        to_mosaic(tiles, n, gap=0), n, "Decoded latent plane", join(caveat, note), left=0.55, bottom=0.38
    )
    half = (high - low) / (2 * n - 2) if n > 1 else 0.0  # of a tile: z lies at its centre
    first, last = low - half, high + half
    axes.images[0].set_extent((first, last, last, first))  # rows go down
    axes.set_aspect("auto")
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    axes.set_xlabel("$z_2$", fontsize=TEXT_SIZE, labelpad=2)
    axes.set_ylabel("$z_1$ (downwards)", fontsize=TEXT_SIZE, labelpad=2)
    axes.tick_params(labelsize=SMALL_SIZE, length=2.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return figure


def grid_points(low: float = -2.0, high: float = 2.0, step: float = 0.2) -> Tensor:
    """Return a square grid of two-dimensional z; the default is the article's, {-2.0, -1.8, ..., 1.8} squared.

    Coordinates are low + index * step in decimal arithmetic, each rounded once. Adding up 0.2 would drift, and
    rounding would decide whether 2.0 itself belongs.

    Args:
        low: First coordinate.
        high: End of the coordinates, which is excluded (as in `range`).
        step: Distance between neighbours.

    Returns:
        Points of shape (n, n, 2), in the default dtype; ``[i, j]`` is (low + i * step, low + j * step).

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


def latent_scatter(means: ArrayLike, labels: ArrayLike | None = None, *, caveat: str | None = None) -> Figure:
    """Plot posterior means in a two-dimensional latent plane, coloured by class.

    The picture spans 99% of the points in each direction, with a margin. Points beyond are not drawn, and a
    note at the foot counts them. The picture shows means alone. It does not show how wide each q(z|x) is, nor
    whether together they fill the prior.

    Args:
        means: Posterior means, of shape (n, 2).
        labels: Integer classes, of shape (n,), at most 50 of them; up to ten get a legend, more a colour bar.
        caveat: Written at the foot.

    Returns:
        A figure whose first axes hold one scatter. Points are drawn in shuffled order, so that no class lies
        on top of another.

    Raises:
        ValueError: If ``means`` are not finite points of a plane, or ``labels`` are not one class a point.

    Example:
        >>> figure = latent_scatter(torch.randn(100, 2), torch.arange(100) % 3)
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['0', '1', '2']
    """
    points = to_array(means, "means")
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(
            f"latent_scatter: means have shape {points.shape}; expected (n, 2): a latent of more "
            "dimensions needs a projection or a choice of two first"
        )
    points = points.astype(float)
    if not np.isfinite(points).all():
        raise ValueError("latent_scatter: means hold NaN or infinity; has the training diverged?")
    classes, index = _classes(labels, len(points))

    limits = [_robust_range(points[:, axis]) for axis in (0, 1)]
    widest = max(high - low for low, high in limits) or 2.0
    # a collapsed coordinate gets half the length of the other, so that the picture is not a sliver
    (left, right), (bottom, top) = (_widen(low, high, widest / 2) for low, high in limits)
    inside = (points >= (left, bottom)).all(1) & (points <= (right, top)).all(1)
    missing = int((~inside).sum())
    note = f"Outside the picture: {missing} of {len(points)} points." if missing else None

    beside = 0.6 if labels is None else 1.3  # inches for the labels of the y axis, and the legend
    unit = min((WIDTH - beside) / (right - left), 6.0 / (top - bottom))  # inches
    height = unit * (top - bottom)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05)
    figure = Figure(figsize=(unit * (right - left) + beside, height + 0.55), layout=layout)
    axes = figure.add_subplot(aspect="equal", xlim=(left, right), ylim=(bottom, top))
    order = np.random.default_rng(0).permutation(len(points))
    cmap, norm = _class_colours(classes)
    drawn = axes.scatter(
        points[order, 0],
        points[order, 1],
        c=index[order],
        cmap=cmap,
        norm=norm,
        s=float(np.clip(2e4 / len(points), 3, 20)),
        alpha=0.75 if len(points) <= 2000 else 0.6,
        linewidths=0,
        rasterized=True,
    )
    axes.set_xlabel("posterior mean of $z_1$", fontsize=TEXT_SIZE)
    axes.set_ylabel("posterior mean of $z_2$", fontsize=TEXT_SIZE)
    tidy(axes)
    if labels is not None and len(classes) <= len(CLASS_COLOURS):
        dots = [
            Line2D([], [], linestyle="", marker="o", markersize=5, color=cmap(norm(i)), label=str(c))
            for i, c in enumerate(classes)
        ]
        axes.legend(
            handles=dots,
            title="class",
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            frameon=False,
            fontsize=TEXT_SIZE,
            title_fontsize=TEXT_SIZE,
            handletextpad=0.2,
            borderaxespad=0.0,
        )
    elif labels is not None:
        every = math.ceil(len(classes) / (6 * height))  # as many tick labels as fit
        beside_axes = axes.inset_axes((1.02, 0.0, 0.03, 1.0))
        bar = figure.colorbar(drawn, cax=beside_axes, ticks=range(0, len(classes), every))
        bar.ax.set_yticklabels([str(c) for c in classes[::every]])
        bar.ax.tick_params(labelsize=SMALL_SIZE, length=0)
        bar.ax.minorticks_off()
        bar.set_label("class", fontsize=TEXT_SIZE)
        if bar.solids is not None:
            bar.solids.set_alpha(1.0)
    write_foot(figure, layout, join(caveat, note))
    return figure


def _classes(labels: ArrayLike | None, count: int) -> tuple[list[int], np.ndarray]:
    """Return the classes in order, and for each point the place of its class among them."""
    if labels is None:
        return [0], np.zeros(count, int)
    array = to_array(labels, "labels")
    if array.shape != (count,):
        raise ValueError(f"latent_scatter: labels have shape {array.shape}; expected ({count},): one class a point")
    if not (array == np.round(array)).all():
        raise ValueError("latent_scatter: labels hold fractions or NaN; expected integers")
    classes, index = np.unique(array, return_inverse=True)
    if len(classes) > MOST_CLASSES:
        raise ValueError(
            f"latent_scatter: labels hold {len(classes)} classes; expected at most {MOST_CLASSES}: more "
            "cannot be told apart"
        )
    return [int(c) for c in classes], index


def _class_colours(classes: list[int]) -> tuple[ListedColormap, BoundaryNorm]:
    """Return a colour for each class; a digit keeps its colour, whichever other digits are present."""
    count = len(classes)
    if count > len(CLASS_COLOURS):
        colours: list[Any] = list(matplotlib.colormaps["viridis"](np.linspace(0, 1, count)))
    elif classes[0] >= 0 and classes[-1] < len(CLASS_COLOURS):
        colours = [CLASS_COLOURS[c] for c in classes]
    else:
        colours = list(CLASS_COLOURS[:count])
    return ListedColormap(colours), BoundaryNorm(np.arange(count + 1) - 0.5, count)


def _robust_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range from the 0.5% to the 99.5% quantile, or to the extremes where they are near, with a margin."""
    low, high = (float(q) for q in np.quantile(values, [0.005, 0.995]))
    margin = 0.12 * (high - low)
    return max(low - margin, values.min() - margin / 3), min(high + margin, values.max() + margin / 3)


def _widen(low: float, high: float, length: float) -> tuple[float, float]:
    """Return an interval of at least this length with the same middle."""
    more = max(length - (high - low), 0.0) / 2
    return low - more, high + more
