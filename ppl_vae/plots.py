"""Every picture of the library, from plain tensors, arrays and lists (never from a model).

Each function returns a `matplotlib.figure.Figure` made without pyplot: nothing is shown, no backend is
chosen, no setting of matplotlib is changed, and no figure outlives the last reference to it. Show it in a
notebook by naming it, or write it with :func:`save`.

A ``caveat`` is a sentence written small at the foot of the picture, for what the reader must know and cannot
see, such as that grey values under a Bernoulli are no likelihood.

Example:
    >>> import torch
    >>> figure = image_grid(torch.rand(16, 1, 28, 28), title="noise")
    >>> figure.axes[0].get_title()
    'noise'
"""

from __future__ import annotations

import math
import os
import textwrap
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

__all__ = [
    "grid_points",
    "image_grid",
    "latent_grid",
    "latent_scatter",
    "reconstructions",
    "samples",
    "save",
    "training_curves",
]

ArrayLike: TypeAlias = "Tensor | np.ndarray | Sequence[Any]"

DPI = 200  # of `save`; image pixels are made a whole number of these where they fit
WIDTH, TALLEST = 7.0, 9.0  # inches: at 100 pixels an inch, a README's 700 pixels
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 10.0, 8.5, 7.5  # points
NOTE_COLOUR = "#555555"

# Okabe & Ito (2008), told apart with any colour vision
TRAIN, VALIDATION, OBJECTIVE = "#0072B2", "#D55E00", "#009E73"
CLASS_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442"),
    *("#999999", "#882255"),  # two more, the last from Paul Tol's muted scheme
)
MOST_CLASSES = 50


def save(figure: Figure, path: str | os.PathLike[str], dpi: float = DPI) -> Path:
    """A figure written to a PNG file, whole or not at all.

    The picture is written to a temporary file beside ``path`` which then takes its place, so a reader never
    sees half a file, and a failure leaves an older picture as it was.

    Args:
        figure: Any figure.
        path: File to write, ending in ``.png``; its folder exists.
        dpi: Pixels per inch. The default draws images of few pixels sharp.

    Returns:
        The path.

    Raises:
        ValueError: If ``path`` does not end in ``.png``, or ``dpi`` is not positive.
        FileNotFoundError: If the folder does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(samples(torch.rand(4, 8, 8)), Path(folder) / "samples.png").name
        'samples.png'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"save: path is {str(path)!r}; expected a name ending in .png (figure.savefig writes others)")
    if not 0 < dpi < math.inf:
        raise ValueError(f"save: dpi is {dpi}; expected a positive number")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: the folder {str(path.parent)!r} does not exist; create it first")
    # not tempfile: its files are readable by their owner alone, and os.replace would keep that
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def image_grid(
    images: ArrayLike,
    *,
    columns: int | None = None,
    title: str | None = None,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Images side by side in one mosaic, row by row.

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
        ValueError: If ``images`` are no images, hold values that are not finite, or the range is empty.

    Example:
        >>> mosaic = image_grid(torch.rand(6, 3, 8, 8), columns=3).axes[0].images[0]
        >>> mosaic.get_array().shape                                    # 2 rows of 3, a pixel apart
        (17, 26, 3)
    """
    tiles, note = _tiles(images, "images", value_range)
    columns = _near_square(len(tiles)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"image_grid: columns is {columns}; expected at least 1")
    columns = min(columns, len(tiles))
    figure, _ = _image_figure(_mosaic(tiles, columns, _gap(tiles)), columns, title, _join(caveat, note))
    return figure


def samples(
    images: ArrayLike,
    *,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """Images drawn from the model: z from the prior, decoded.

    Args:
        images: Images of shape (n, C, H, W) with C = 1 or 3, or (n, H, W).
        caveat: Written at the foot; say there if these are means of p(x|z) and not draws.
        value_range: Values drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure with one axes that holds one image.

    Raises:
        ValueError: As :func:`image_grid`.

    Example:
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
    """Inputs over what the model makes of them: pairs of rows, the input above and the output below.

    Up to ten pairs stand in one pair of rows; more are broken into several.

    Args:
        inputs: Images of shape (n, C, H, W) with C = 1 or 3, or (n, H, W).
        outputs: Their reconstructions, of the same number and size.
        title: Written above.
        caveat: Written at the foot.
        value_range: Values drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure with one axes that holds one image; the labels of its y axis name the rows.

    Raises:
        ValueError: As :func:`image_grid`, or if inputs and outputs do not pair up.

    Example:
        >>> figure = reconstructions(torch.rand(5, 8, 8), torch.rand(5, 8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['input', 'output']
    """
    above, note_above = _tiles(inputs, "inputs", value_range)
    below, note_below = _tiles(outputs, "outputs", value_range)
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
        pair = [_mosaic(tiles[start : start + columns], columns, gap) for tiles in (above, below)]
        if blocks:
            blocks.append(_blank(between, pair[0]))
            row += between
        blocks += [pair[0], _blank(gap, pair[0]), pair[1]]
        middle = row + (tile_height - 1) / 2
        ticks += [middle, middle + tile_height + gap]
        row += 2 * tile_height + gap
    mosaic = np.concatenate(blocks)  # (height, width) or (height, width, 3)

    figure, axes = _image_figure(mosaic, columns, title, _join(caveat, note_above, note_below), left=0.55)
    row_points = 72 * figure.get_figheight() * axes.get_position().height * tile_height / len(mosaic)
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(ticks, ["input", "output"] * (len(ticks) // 2), fontsize=min(TEXT_SIZE, 0.8 * row_points))
    axes.tick_params(length=0)
    return figure


def latent_grid(
    images: ArrayLike,
    *,
    low: float = -2.0,
    high: float = 1.8,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """The latent plane, decoded: one picture without gaps of images decoded on a square grid of z.

    As on the article's canvas, the first index of the grid is the row and is the first coordinate of z: going
    down the picture raises z1, going right raises z2. Image (i, j) is decoded at
    ``grid_points()[i, j]``, and its centre lies at that z on the axes.

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
    array = _to_array(images, "images")
    if array.ndim == 5 or (array.ndim == 4 and array.shape[0] == array.shape[1]):
        if array.shape[0] != array.shape[1]:
            raise ValueError(
                f"latent_grid: images form a grid of {array.shape[0]} x {array.shape[1]}; expected a square"
            )
        array = array.reshape(-1, *array.shape[2:])
    tiles, note = _tiles(array, "images", value_range)
    n = math.isqrt(len(tiles))
    if n * n != len(tiles):
        raise ValueError(f"latent_grid: got {len(tiles)} images; expected a square number, one for each z of a grid")

    figure, axes = _image_figure(
        _mosaic(tiles, n, gap=0), n, "Decoded latent plane", _join(caveat, note), left=0.55, bottom=0.38
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
    """A square grid of two-dimensional z: with the defaults the article's, {-2.0, -1.8, ..., 1.8} squared.

    Coordinates are low + index * step in decimal arithmetic, each rounded once: adding up 0.2 would drift,
    and whether 2.0 itself belongs would depend on rounding.

    Args:
        low: First coordinate.
        high: End of the coordinates, not itself one (as in `range`).
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
    """Posterior means in a two-dimensional latent plane, coloured by class.

    The picture spans 99% of the points in each direction, with a margin; what lies beyond is not drawn, and a
    note at the foot says how many points that is. It shows means alone: how wide each q(z|x) is, and whether
    together they fill the prior, it does not show.

    Args:
        means: Posterior means, of shape (n, 2).
        labels: Integer classes, of shape (n,), at most 50 of them; a legend for up to ten, a colour bar
            beyond.
        caveat: Written at the foot.

    Returns:
        A figure whose first axes hold one scatter. Points are drawn in shuffled order, so that no class lies
        on top of another.

    Raises:
        ValueError: If ``means`` are not finite points of a plane, or ``labels`` no classes of theirs.

    Example:
        >>> figure = latent_scatter(torch.randn(100, 2), torch.arange(100) % 3)
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['0', '1', '2']
    """
    points = _to_array(means, "means")
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
    # a collapsed coordinate is given half of the other one's length, lest the picture be a sliver
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
    _tidy(axes)
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
        every = math.ceil(len(classes) / (6 * height))  # as many tick labels as find room
        beside_axes = axes.inset_axes((1.02, 0.0, 0.03, 1.0))
        bar = figure.colorbar(drawn, cax=beside_axes, ticks=range(0, len(classes), every))
        bar.ax.set_yticklabels([str(c) for c in classes[::every]])
        bar.ax.tick_params(labelsize=SMALL_SIZE, length=0)
        bar.ax.minorticks_off()
        bar.set_label("class", fontsize=TEXT_SIZE)
        if bar.solids is not None:
            bar.solids.set_alpha(1.0)
    _write_foot(figure, layout, _join(caveat, note))
    return figure


def training_curves(history: Sequence[Mapping[str, Any]], *, caveat: str | None = None) -> Figure:
    r"""The course of a training: the ELBO, its two terms, and the reconstruction error, epoch by epoch.

    Panels that the history has nothing for are left out. The first epochs are cut off where they would
    flatten the rest (a tenth of the epochs, if without them the curves span less than a third). A value that
    is missing or None was not measured, and the line runs on; one that is NaN or infinite breaks the line,
    and the panel says how many there are.

    Args:
        history: One mapping an epoch. Keys that are drawn: ``epoch``; ``elbo``, ``log_likelihood``, ``kl``
            (on the training data) and the same with ``validation_`` before them, in nats per datum;
            ``bound``, the objective's own value, where it is another number than ``elbo``;
            ``reconstruction_error``, the mean L2 norm on the validation data; and, for want of an ELBO,
            ``train_loss``. Others are ignored.
        caveat: Written at the foot.

    Returns:
        A figure of up to four axes: :math:`\mathcal{L}`, :math:`\mathbb{E}_q[\log p(x|z)]`,
        :math:`\operatorname{KL}`, and the reconstruction error.

    Raises:
        ValueError: If the history holds nothing to draw, or a value that is no number.

    Example:
        >>> figure = training_curves([{"epoch": 1, "elbo": -180.0}, {"epoch": 2, "elbo": -160.0, "kl": 6.0}])
        >>> [axes.get_title() for axes in figure.axes]
        ['ELBO', 'KL$(q(z\\,|\\,x)\\,\\|\\,p(z))$']
    """
    history = list(history)
    panels = [(panel, _curves(history, panel)) for panel in PANELS]
    panels = [(panel, curves) for panel, curves in panels if curves]
    if any(panel.title == "ELBO" for panel, _ in panels):
        panels = [(panel, curves) for panel, curves in panels if panel.title != "Training loss"]
    if not panels:
        known = ", ".join(series.key for panel in PANELS for series in panel.series)
        raise ValueError(
            "training_curves: history holds nothing to draw; expected one mapping an epoch, with some of the "
            f"keys {known}"
        )

    columns = {1: 1, 2: 2, 3: 3, 4: 2}[len(panels)]
    rows = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.04, wspace=0.02, hspace=0.06)
    width, panel_height = {1: (4.5, 3.0), 2: (WIDTH, 2.6), 3: (WIDTH, 2.3)}[columns]
    figure = Figure(figsize=(width, panel_height * rows + 0.25), layout=layout)
    entries: dict[str, Line2D] = {}
    for number, (panel, curves) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_panel(axes, panel, curves, bottom=number + columns >= len(panels))
        for curve in curves:
            _, label, colour, style = curve.series
            entries.setdefault(label, Line2D([], [], color=colour, linestyle=style, label=label))
    figure.legend(
        handles=list(entries.values()),
        loc="outside upper center",
        ncols=len(entries),
        frameon=False,
        fontsize=TEXT_SIZE,
        borderaxespad=0.0,
    )
    figure.align_ylabels()
    _write_foot(figure, layout, caveat)
    return figure


# Images


def _to_array(values: ArrayLike, name: str) -> np.ndarray:
    """Tensors, arrays and lists of them as one array of numbers."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    if not isinstance(values, np.ndarray):
        try:
            values = np.asarray([_to_array(v, name) if isinstance(v, Tensor) else v for v in values])
        except (TypeError, ValueError):  # no sequence, or a ragged one
            raise ValueError(f"{name} are no array; expected a tensor, an array, or a list of one shape") from None
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} hold {values.dtype}; expected numbers")
    return values


def _tiles(images: ArrayLike, name: str, value_range: tuple[float, float] | None) -> tuple[np.ndarray, str | None]:
    """Images as (n, H, W) or (n, H, W, 3) with values in [0, 1], and a note if some had to be cut to it."""
    array = _to_array(images, name)
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
    if (low, high) != (0.0, 1.0):  # else every value stays as it is, to the last bit
        array = (array - low) / (high - low)
    beyond = float(((array < -1e-6) | (array > 1 + 1e-6)).mean())
    note = f"{100 * beyond:.2g}% of the values of {name} lie outside [{low:g}, {high:g}] and are cut to it."
    return array.clip(0, 1), note if beyond else None


def _near_square(count: int) -> int:
    """Columns that make about as many rows, with full rows if a number up to twice that does."""
    least = math.ceil(math.sqrt(count))
    return next((c for c in range(least, 2 * least) if count % c == 0), least)


def _gap(tiles: np.ndarray) -> int:
    return max(1, tiles.shape[1] // 28)


def _blank(height: int, like: np.ndarray) -> np.ndarray:
    return np.ones((height, *like.shape[1:]), like.dtype)


def _mosaic(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Tiles row by row, the pixels between them and in place of missing ones white."""
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


def _image_figure(
    mosaic: np.ndarray,
    columns: int,
    title: str | None,
    foot: str | None,
    left: float = 0.0,
    bottom: float = 0.0,
) -> tuple[Figure, Axes]:
    """A figure that fits one image, with ``left`` and ``bottom`` inches beside it for labels."""
    edge = 0.06
    height, width = mosaic.shape[:2]
    wanted = min(max(1.1 * columns, 2.4), WIDTH - left - 2 * edge)
    scale = min(wanted / width, TALLEST / height)  # inches per image pixel
    if scale * DPI >= 2:
        scale = math.floor(scale * DPI) / DPI  # a whole number of dots: sharp, and no pixel wider than another
    width, height = width * scale, height * scale

    figure_width = max(width + left, 2.4) + 2 * edge
    title = _wrap(title, figure_width, TITLE_SIZE)
    foot = _wrap(foot, figure_width, SMALL_SIZE)
    above = _lines_height(title, TITLE_SIZE) + edge
    below = _lines_height(foot, SMALL_SIZE) + bottom + edge
    figure_height = below + height + above
    figure = Figure(figsize=(figure_width, figure_height))
    x = edge + left + (figure_width - 2 * edge - left - width) / 2
    axes = figure.add_axes((x / figure_width, below / figure_height, width / figure_width, height / figure_height))
    axes.imshow(mosaic, cmap="gray", vmin=0.0, vmax=1.0, interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=TITLE_SIZE, pad=4)
    if foot:
        figure.text(0.5, 0.04 / figure_height, foot, ha="center", va="bottom", **_note_style())
    return figure, axes


# Text


def _note_style() -> dict[str, Any]:
    return {"fontsize": SMALL_SIZE, "color": NOTE_COLOUR, "fontstyle": "italic"}


def _wrap(text: str | None, width: float, size: float) -> str | None:
    """Text broken into lines that fit ``width`` inches: a letter is 0.56 of its size wide on average."""
    return "\n".join(textwrap.wrap(text, max(10, int(width * 72 / (0.56 * size))))) if text else None


def _lines_height(text: str | None, size: float) -> float:
    """Inches that lines of text take, with the space between them and the picture."""
    return (text.count("\n") + 1) * 1.25 * size / 72 + 0.06 if text else 0.0


def _join(*sentences: str | None) -> str | None:
    """One foot of the sentences there are."""
    given = [s.strip() if s.strip().endswith((".", "!", "?")) else f"{s.strip()}." for s in sentences[1:] if s]
    first = sentences[0]
    if not first or not given:
        return first or " ".join(given) or None
    return " ".join([first if first.endswith((".", "!", "?")) else f"{first}.", *given])


def _write_foot(figure: Figure, layout: ConstrainedLayoutEngine, foot: str | None) -> None:
    """Write at the foot of a figure in constrained layout, and keep the panels off it."""
    width, height = figure.get_size_inches()
    foot = _wrap(foot, width, SMALL_SIZE)
    if foot:
        taken = _lines_height(foot, SMALL_SIZE)
        figure.set_size_inches(width, height + taken)
        share = taken / (height + taken)
        layout.set(rect=(0, share, 1, 1 - share))
        figure.text(0.5, 0.04 / (height + taken), foot, ha="center", va="bottom", **_note_style())


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL_SIZE, length=2.5)


# The latent plane


def _classes(labels: ArrayLike | None, count: int) -> tuple[list[int], np.ndarray]:
    """The classes in order, and for each point the place of its class among them."""
    if labels is None:
        return [0], np.zeros(count, int)
    array = _to_array(labels, "labels")
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
    """A colour for each class: a digit keeps its own, whichever other digits are there."""
    count = len(classes)
    if count > len(CLASS_COLOURS):
        colours: list[Any] = list(matplotlib.colormaps["viridis"](np.linspace(0, 1, count)))
    elif classes[0] >= 0 and classes[-1] < len(CLASS_COLOURS):
        colours = [CLASS_COLOURS[c] for c in classes]
    else:
        colours = list(CLASS_COLOURS[:count])
    return ListedColormap(colours), BoundaryNorm(np.arange(count + 1) - 0.5, count)


def _robust_range(values: np.ndarray) -> tuple[float, float]:
    """From the 0.5% to the 99.5% quantile, or to the ends where they are near, with a margin."""
    low, high = (float(q) for q in np.quantile(values, [0.005, 0.995]))
    margin = 0.12 * (high - low)
    return max(low - margin, values.min() - margin / 3), min(high + margin, values.max() + margin / 3)


def _widen(low: float, high: float, length: float) -> tuple[float, float]:
    """An interval of at least this length about the same middle."""
    more = max(length - (high - low), 0.0) / 2
    return low - more, high + more


# The course of a training


class _Series(NamedTuple):
    """One line of a panel."""

    key: str
    label: str
    colour: str
    style: Literal["-", "--"] = "-"


class _Panel(NamedTuple):
    """What one axes of :func:`training_curves` shows."""

    title: str
    unit: str
    series: tuple[_Series, ...]


class _Curve(NamedTuple):
    """A line's points, NaN where the value was not finite."""

    series: _Series
    epochs: np.ndarray
    values: np.ndarray


NATS = "nats per datum"
PANELS = (
    _Panel(
        "ELBO",
        NATS,
        (
            _Series("elbo", "training", TRAIN),
            _Series("validation_elbo", "validation", VALIDATION),
            _Series("bound", "the objective's own bound, training", OBJECTIVE, "--"),
        ),
    ),
    _Panel(
        r"$\mathbb{E}_q[\log p(x\,|\,z)]$",
        NATS,
        (
            _Series("log_likelihood", "training", TRAIN),
            _Series("validation_log_likelihood", "validation", VALIDATION),
        ),
    ),
    _Panel(
        r"KL$(q(z\,|\,x)\,\|\,p(z))$",
        NATS,
        (_Series("kl", "training", TRAIN), _Series("validation_kl", "validation", VALIDATION)),
    ),
    _Panel(
        "Reconstruction error (validation)",
        "mean L2 norm",
        (_Series("reconstruction_error", "validation", VALIDATION),),
    ),
    _Panel("Training loss", "loss", (_Series("train_loss", "training", TRAIN),)),
)


def _curves(history: Sequence[Mapping[str, Any]], panel: _Panel) -> list[_Curve]:
    """The lines of a panel that the history has values for."""
    curves = {}
    for series in panel.series:
        points = []
        for number, record in enumerate(history, start=1):
            if not isinstance(record, Mapping):
                kind = type(record).__name__
                raise ValueError(f"training_curves: history holds a {kind}; expected one mapping an epoch")
            value, epoch = record.get(series.key), record.get("epoch")
            if value is not None:
                at = float(number) if epoch is None else _number(epoch, "epoch", number)
                points.append((at, _number(value, series.key, number)))
        if points:
            epochs, values = np.array(points, dtype=float).T
            curves[series.key] = _Curve(series, epochs, np.where(np.isfinite(values), values, np.nan))
    if "bound" in curves and "elbo" in curves and _same(curves["bound"], curves["elbo"]):
        del curves["bound"]
    return list(curves.values())


def _number(value: Any, key: str, record: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or (key == "epoch" and not math.isfinite(number)):
        raise ValueError(
            f"training_curves: {key} in record {record} of history is {value!r}; expected a number or None"
        )
    return number


def _same(one: _Curve, other: _Curve) -> bool:
    """Whether two lines are one, where both are finite."""
    if one.values.shape != other.values.shape:
        return False
    both = np.isfinite(one.values) & np.isfinite(other.values)
    return np.allclose(one.values[both], other.values[both], rtol=1e-6)


def _draw_panel(axes: Axes, panel: _Panel, curves: list[_Curve], bottom: bool) -> None:
    for curve in curves:
        axes.plot(
            curve.epochs,
            curve.values,
            color=curve.series.colour,
            linestyle=curve.series.style,
            linewidth=1.4,
            marker="o",
            markersize=3,
            markevery=_lonely(curve.values),
            label=curve.series.label,
        )
    broken = sum(int(np.isnan(curve.values).sum()) for curve in curves)
    if broken:
        axes.text(0.98, 0.04, f"{broken} not finite", transform=axes.transAxes, ha="right", **_note_style())
    low, high = _curve_limits([curve.values for curve in curves])
    axes.set_ylim(low, high)
    first, last = (f(f(curve.epochs) for curve in curves) for f in (min, max))
    margin = 0.02 * (last - first) if last > first else 0.5
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_title(panel.title, fontsize=TITLE_SIZE - 1, pad=4)
    axes.set_ylabel(panel.unit, fontsize=TEXT_SIZE)
    if bottom:
        axes.set_xlabel("epoch", fontsize=TEXT_SIZE)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    _tidy(axes)


def _lonely(values: np.ndarray) -> list[int]:
    """Points that get a marker: all of a short curve, and of a long one those without a neighbour."""
    if len(values) <= 20:
        return list(range(len(values)))
    finite = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    return [int(i) for i in np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:])]


def _curve_limits(curves: list[np.ndarray]) -> tuple[float, float]:
    """Limits that hold every value, or all but the first tenth where that one would flatten the rest."""
    everything = np.concatenate(curves)
    first = [math.ceil(0.1 * len(values)) if len(values) >= 5 else 0 for values in curves]
    later = np.concatenate([values[skip:] for values, skip in zip(curves, first, strict=True)])
    everything, later = everything[np.isfinite(everything)], later[np.isfinite(later)]
    if not len(everything):
        return 0.0, 1.0
    low, high = everything.min(), everything.max()
    if len(later) and high - low > 3 * (later.max() - later.min()) > 0:
        low, high = later.min(), later.max()
    margin = 0.06 * (high - low) or max(0.01 * abs(low), 1e-3)
    return float(low - margin), float(high + margin)
