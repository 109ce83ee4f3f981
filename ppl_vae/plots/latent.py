"""The posterior means of data in a latent plane, coloured by their class or by a number of each datum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Circle

from ppl_vae.plots.arguments import ArrayLike, finite, shortened, to_array, to_ends, to_points, to_vector
from ppl_vae.plots.figure import CENTRED, PAPER, WIDTH, colour_bar, key, new_figure, tidy, write_foot, write_legend
from ppl_vae.plots.style import COLOURS, HALO, SMALL_SIZE, TEXT_SIZE, styled

if TYPE_CHECKING:
    from jaxtyping import Shaped

    from ppl_vae.data import Split

CLASS_COLOURS = (*COLOURS, "#999999", "#332288")  # two more, the last from Paul Tol's muted scheme
LONGEST = 24  # letters of a name
FEW = 10  # points of a class; a name would hide too many of fewer
CLASS_MARKS = "osD^vPX*<>"
LABEL = "class (data label)"
MOST_CLASSES = 50
MORE = ": a latent of more dimensions needs a projection or a choice of two first"
BESIDE = (1.02, 0.0, 0.03, 1.0)  # the place of a colour bar, in units of the plane


@styled
def latent_scatter(
    means: Shaped[ArrayLike, "n 2"],
    labels: Shaped[ArrayLike, " n"] | None = None,
    *,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    caveat: str | None = None,
) -> Figure:
    """Plot posterior means in a two-dimensional latent plane, z1 to the right and z2 upwards, coloured by class.

    The picture spans 99% of the points in each direction, with a margin. Points beyond are not drawn, and a
    note at the foot counts them. The picture shows means alone. It does not show how wide each q(z|x) is, nor
    whether together they fill the prior.

    Args:
        means: Posterior means.
        labels: Integer classes, at most 50 of them; up to ten get a legend, with a name at the median of a class of
            ten points or more; more get a colour bar.
        class_names: Names of the classes, by class or in order from 0.
        limits: The ends of both axes, such as those of a `latent_grid`, over which the picture then lies.
        caveat: Written at the foot.

    Returns:
        A figure whose first axes hold one scatter. Points are drawn in shuffled order, so that no class lies
        on top of another.

    Raises:
        ValueError: If ``means`` are not finite points of a plane, ``labels`` are not one class a point, or
            ``limits`` are not two finite numbers, the lower first.

    Example:
        >>> import torch
        >>> figure = latent_scatter(torch.randn(100, 2), torch.arange(100) % 3)
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['0', '1', '2']
    """
    points = to_points(means, "latent_scatter: means", 2, MORE)
    if not np.isfinite(points).all():
        raise ValueError("latent_scatter: means hold NaN or infinity; has the training diverged?")
    given = np.zeros(len(points), int) if labels is None else to_labels(labels, "latent_scatter: labels", len(points))
    classes, index = np.unique(given, return_inverse=True)

    names = [name_of_class(int(c), class_names, "latent_scatter") for c in classes]
    widest = max(map(len, (*names, LABEL.split(" ", 1)[1]))) * 0.56 * TEXT_SIZE / 72  # inches
    beside = 0.6 if labels is None else 0.95 + widest  # for the labels of the y axis, and the legend
    beside += 0.3 * (len(classes) > len(CLASS_COLOURS))  # or the colour bar, whose label stands beside the names
    figure, axes, note = _plane(points, beside, tallest=6.0, above=0.55, limits=limits)
    order = np.random.default_rng(0).permutation(len(points))
    cmap, norm = _class_colours(classes)
    alpha = 0.75 if len(points) <= 2000 else 0.6
    drawn = _dots(axes, points[order], c=index[order], cmap=cmap, norm=norm, alpha=alpha)
    if labels is not None and len(classes) <= len(CLASS_COLOURS):
        marks = [MarkerStyle(CLASS_MARKS[place]) for place in _places(classes)]
        shapes = [mark.get_path().transformed(mark.get_transform()) for mark in marks]
        drawn.set_paths([shapes[i] for i in index[order]])
        dots: dict[str, Any] = {"linestyle": "", "markersize": 5}
        handles = [key(name, color=cmap(norm(i)), marker=marks[i], **dots) for i, name in enumerate(names)]
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        write_legend(axes, handles, 1, title=LABEL.replace(" ", "\n", 1), handletextpad=0.2, **place)
        for i in np.flatnonzero(np.bincount(index) >= FEW):  # names, where they hide few points
            x, y = np.median(points[index == i], axis=0)
            words = axes.text(x, y, names[i], weight="bold", clip_on=True, path_effects=HALO, **CENTRED)
            words.set_in_layout(False)
    elif labels is not None:
        every = math.ceil(len(classes) / (6 * (figure.get_figheight() - 0.55)))  # as many tick labels as fit
        bar = colour_bar(
            figure, drawn, LABEL, length=0, cax=axes.inset_axes(BESIDE), ticks=range(0, len(classes), every)
        )
        bar.ax.set_yticklabels(names[::every])
        bar.ax.minorticks_off()
        if bar.solids is not None:
            bar.solids.set_alpha(1.0)
    return write_foot(figure, caveat, note)


@styled
def latent_map(
    means: Shaped[ArrayLike, "n 2"],
    values: Shaped[ArrayLike, " n"],
    *,
    label: str = "gap, nats",
    prior_circles: bool = False,
    caveat: str | None = None,
) -> Figure:
    """Plot posterior means in a two-dimensional latent plane, coloured by a number of each datum, such as its gap.

    The colours span the 2% to the 98% quantile. Their scale is logarithmic where all values are positive and the two
    quantiles are more than a factor of 30 apart. The arrows of the colour bar stand for values beyond. Points of larger
    values are drawn over those of smaller values, so dense regions look worse than they are. The picture spans 99% of
    the points in each direction.

    Args:
        means: Posterior means. Data with a mean or value that is not finite are left out and counted.
        values: The number of each datum.
        label: The name of the values, with their unit.
        prior_circles: Whether to draw the circles of 1, 2 and 3 sigma of a prior N(0, I).
        caveat: Written at the foot.

    Returns:
        A figure of one axes that holds one scatter, with the colour bar as a child.

    Raises:
        ValueError: If the shapes do not fit, or nothing is finite.

    Example:
        >>> import torch
        >>> latent_map(torch.randn(100, 2), torch.rand(100)).axes[0].child_axes[0].get_ylabel()
        'gap, nats'
    """
    points = to_points(means, "latent_map: means", 2, MORE)
    numbers = to_vector(values, "latent_map: values", len(points))
    missing, (points, numbers) = finite("latent_map", "mean or value is", points, numbers)

    low, high = (float(q) for q in np.quantile(numbers, [0.02, 0.98]))
    log = bool(numbers.min() > 0 and high > 30 * low)
    figure, axes, hidden = _plane(points, beside=1.75, tallest=5.5, above=0.6)
    if prior_circles:
        draw_sigmas(axes, "#999999", zorder=0)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for sigma in (1, 2, 3):
            if left < 0 < right and bottom < sigma < top:
                words = {"fontsize": SMALL_SIZE, "color": "#555555"}
                axes.text(0, sigma, rf"${sigma}\sigma$", bbox=PAPER | {"pad": 0.6}, **CENTRED | words)
    order = np.argsort(numbers, kind="stable")
    colours = {"cmap": "viridis_r", "norm": "log" if log else "linear", "vmin": low}
    drawn = _dots(axes, points[order], c=numbers[order], vmax=high if high > low else low + 1.0, **colours)
    extend = ("neither", "min", "max", "both")[int(numbers.min() < low) + 2 * int(numbers.max() > high)]
    colour_bar(figure, drawn, label, cax=axes.inset_axes(BESIDE), extend=extend)
    circles = "Dashed: 1, 2 and 3σ of the prior N(0, I)." if prior_circles else None
    return write_foot(figure, caveat, circles, missing, hidden)


def plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper ends, (2,) each, of a plane that spans 99% of the points with a margin."""
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    margin = 0.12 * (high - low)
    return np.maximum(low - margin, points.min(0) - margin / 3), np.minimum(high + margin, points.max(0) + margin / 3)


def _plane(
    points: np.ndarray, beside: float, tallest: float, above: float, limits: tuple[float, float] | None = None
) -> tuple[Figure, Axes, str | None]:
    """Return a figure with axes that span 99% of the points with a margin, and a note that counts the points beyond.

    Args:
        points: Posterior means, (n, 2).
        beside: Inches for what stands at the sides of the plane.
        tallest: The most inches that the plane takes upwards.
        above: Inches for what stands above and below the plane.
        limits: The ends of both axes instead.
    """
    low, high = plane(points)
    # a collapsed coordinate gets half the length of the other, so that the picture is not a sliver
    more = np.maximum(((high - low).max() or 2.0) / 2 - (high - low), 0.0) / 2
    (left, bottom), (right, top) = low - more, high + more
    if limits is not None:
        left, right = bottom, top = to_ends(limits, "latent_scatter: limits")
        if not -math.inf < left < right < math.inf:
            raise ValueError(f"latent_scatter: limits are {limits}; expected two finite numbers, the lower first")
    outside = int((~((points >= (left, bottom)) & (points <= (right, top))).all(1)).sum())
    unit = min((WIDTH - beside) / (right - left), tallest / (top - bottom))  # inches
    figure = new_figure(unit * (right - left) + beside, unit * (top - bottom) + above, h_pad=0.05)
    axes = figure.add_subplot(aspect="equal", xlim=(left, right), ylim=(bottom, top))
    tidy(axes, x="posterior mean of $z_1$", y="posterior mean of $z_2$")
    return figure, axes, f"Outside the picture: {outside} of {len(points)} points." if outside else None


def _dots(axes: Axes, points: np.ndarray, **look: Any) -> PathCollection:
    size = float(np.clip(2e4 / len(points), 3, 20))
    return axes.scatter(points[:, 0], points[:, 1], s=size, linewidths=0, rasterized=True, **look)


def draw_sigmas(axes: Axes, colour: str, **more: Any) -> None:
    """Draw the circles of 1, 2 and 3 sigma of N(0, I)."""
    for sigma in (1, 2, 3):
        axes.add_patch(Circle((0, 0), sigma, fill=False, ec=colour, lw=0.8, ls="--", **more))


def to_labels(labels: ArrayLike, name: str, count: int) -> np.ndarray:
    """Return integer labels of at most 50 classes, (n,)."""
    array = to_array(labels, name)
    if array.shape != (count,):
        raise ValueError(f"{name} have shape {array.shape}; expected ({count},): one class a datum")
    if not (np.isfinite(array) & (array == np.round(array))).all():
        raise ValueError(f"{name} hold fractions, NaN or infinities; expected integers")
    several = len(np.unique(array))
    if several > MOST_CLASSES:
        raise ValueError(f"{name} hold {several} classes; expected at most {MOST_CLASSES}: more cannot be told apart")
    return array.astype(int)


def name_of_class(value: int, names: Mapping[int, str] | Sequence[str] | None, function: str) -> str:
    """Return the name of a class, cut where it is long, which is its number where there are no names."""
    known = dict(enumerate(names)) if isinstance(names, Sequence) else names
    if known is not None and value not in known:
        raise ValueError(f"{function}: class_names have no name for class {value}")
    return shortened(str(value if known is None else known[value]), LONGEST)


def names_of(split: Split) -> dict[int, str] | None:
    """Return the name of each label, which is its number where it has no other; None where no label has a name."""
    if split.labels is None or not split.label_names:
        return None
    words = (word.replace("$", r"\$") for word in split.label_names)  # no mathematics
    return {int(c): str(int(c)) for c in split.labels.unique()} | dict(enumerate(words))


def _places(classes: np.ndarray) -> list[int]:
    """Return the places of few classes among colours and marks; a digit keeps its own, whichever others are present."""
    digits = classes[0] >= 0 and classes[-1] < len(CLASS_COLOURS)
    return classes.tolist() if digits else list(range(len(classes)))


def _class_colours(classes: np.ndarray) -> tuple[ListedColormap, BoundaryNorm]:
    """Return a colour for each class."""
    count = len(classes)
    if count > len(CLASS_COLOURS):
        colours: list[Any] = list(matplotlib.colormaps["viridis"](np.linspace(0, 1, count)))
    else:
        colours = [CLASS_COLOURS[place] for place in _places(classes)]
    return ListedColormap(colours), BoundaryNorm(np.arange(count + 1) - 0.5, count)
