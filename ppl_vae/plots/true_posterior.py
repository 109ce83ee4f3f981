"""The true posterior of a model with a 2-D latent, and its approximation q(z|x)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ppl_vae.plots.arguments import ArrayLike, check_captions, number, to_vector
from ppl_vae.plots.figure import (
    TALLEST,
    WIDTH,
    Picture,
    colour_bar,
    fitted,
    join,
    key,
    put_foot,
    write_labels,
    write_legend,
)
from ppl_vae.plots.mosaics import CELLS, GREY, to_tiles
from ppl_vae.plots.posterior_grids import MASSES, held_by_q, levels_of, to_normals, to_views
from ppl_vae.plots.style import HALO, SMALL_SIZE, TEXT_SIZE, VERMILION, styled

if TYPE_CHECKING:
    from jaxtyping import Shaped

MOST_DATA = 6
DEPTHS = (0, 1, 3, 10, 30, 100, 300)  # edges of the colours, nats below the peak: a mode is 0.05 wide, the plane 8
STYLES: dict[int, Any] = {1: "-", 2: (0, (3.5, 1.8))}
P_COLOUR, Q_COLOUR, BOTH_COLOUR = "#08306B", VERMILION, "#333333"
BLUES = ListedColormap(["#2F7FBE", "#6BA9D6", "#9DC6E5", "#BDD7EC", "#D5E4F1", "#E8EFF6"]).with_extremes(over="#FFFFFF")
BANDS = BoundaryNorm(DEPTHS, BLUES.N)


@styled
def true_posteriors(
    images: ArrayLike,
    log_posterior: ArrayLike,
    extents: ArrayLike,
    q_mean: Shaped[ArrayLike, "n 2"],
    q_covariance: Shaped[ArrayLike, "n 2 2"],
    captions: Sequence[str] | None = None,
    *,
    log_evidence: Shaped[ArrayLike, " n"] | None = None,
    elbo: Shaped[ArrayLike, " n"] | None = None,
    caveat: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    r"""Draw the true posterior of each datum, whole and in close-up, under the ellipses of its q(z|x).

    Each datum has a row. Lines of one style bound the same mass, 39% or 86%. For q(z|x), taken as a normal, they are
    the ellipses of 1 and 2 standard deviations; for p(z|x), the smallest regions that hold as much. Where q is the true
    posterior, both sets of lines coincide. A mode that q misses has blue lines and no orange ones.

    The colours are log densities. Their steps widen away from the peak, so that a distant mode is visible however
    little mass it holds; the lines show where the mass is. **Wrong** where a grid is coarser than the posterior. A note
    at the foot says so if no view of a datum has masses that add up to one within 5%.

    Args:
        images: The data, images of shape (n, C, H, W) with C = 1 or 3, or (n, H, W); at most 6.
        log_posterior: log p(z|x), normalised, on square grids: (n, S, S) or, for up to three views of each datum,
            (n, V, S, S). The first index of a grid is that of z1, as in `log_posterior_grid`; -inf is no mass.
        extents: First and last nodes of the grids, (left, right, bottom, top) = (lowest z1, highest z1, lowest z2,
            highest z2): (n, 4) or (n, V, 4). The first view is the widest and shows the others as boxes;
            `posterior_close_ups` chooses those. Where extents are NaN, the datum has no such view.
        q_mean: Means of q(z|x).
        q_covariance: Covariances of q(z|x).
        captions: A few words about each datum.
        log_evidence: log p(x), nats, written over each row.
        elbo: The ELBO, nats, written there too; with both given, so is their difference, KL(q(z|x) || p(z|x)).
        caveat: Written at the foot.
        value_range: Values of the images drawn black and white, as in :func:`image_grid`.

    Returns:
        A figure whose axes are, for each datum, the image and its views, and then the colour bar. A line over each row
        also says how much of p(z|x) lies within q's 2-sigma ellipse: 86% where they agree.

    Raises:
        ValueError: If the shapes do not fit, a log density is NaN, or a covariance is not positive definite.

    Example:
        >>> import torch
        >>> z = torch.linspace(-4, 4, 81)
        >>> log_p = -0.5 * (z[:, None] ** 2 + z**2) - 1.8379  # N(0, I)
        >>> figure = true_posteriors(torch.rand(1, 8, 8), log_p[None], [[-4, 4, -4, 4]], torch.zeros(1, 2),
        ...                          torch.eye(2)[None], log_evidence=[-20.0], elbo=[-20.5])
        >>> figure.texts[0].get_text()
        'log p(x) = −20.00, ELBO = −20.50, gap = 0.50 nats; 86% of p(z|x) within 2σ of q'
    """
    tiles, note = to_tiles(images, "images", value_range)
    n = len(tiles)
    if n > MOST_DATA:
        raise ValueError(f"true_posteriors: got {n} images; expected at most {MOST_DATA}: draw several figures")
    grids, boxes = to_views(log_posterior, extents, n, "true_posteriors")
    mean, covariance = to_normals(q_mean, q_covariance, n, "true_posteriors")
    check_captions(captions, "true_posteriors: captions", n)
    evidence = [None] * n if log_evidence is None else to_vector(log_evidence, "true_posteriors: log_evidence", n)
    bound = [None] * n if elbo is None else to_vector(elbo, "true_posteriors: elbo", n)

    held = [held_by_q(*datum) for datum in zip(grids, boxes, mean, covariance, strict=True)]
    lines = [_sentence(*datum) for datum in zip(captions or [""] * n, evidence, bound, held, strict=True)]
    levels, totals = zip(*(levels_of(*datum) for datum in zip(grids, boxes, strict=True)), strict=True)
    rough = [f"{total:.2g} (datum {i + 1})" for i, total in enumerate(totals) if abs(total - 1) > 0.05]
    care = f"Read with care: the grids' masses add up to {', '.join(rough)}, not to 1." if rough else None
    figure, rows, bar_axes = _frame(lines, np.isfinite(boxes[..., 0]), caveat, note, care)
    for i, (image_axes, views) in enumerate(rows):
        image_axes.imshow(tiles[i], **GREY)
        peak = max(grids[i, v].max() for v in views)
        for v, axes in views.items():
            _draw_density(axes, peak - grids[i, v], boxes[i, v])
            axes.plot(*mean[i], "+", color=Q_COLOUR, markersize=5, scalex=False, scaley=False)
            if v > 0 or len(views) == 1:
                _draw_lines(axes, grids[i, v], boxes[i, v], levels[i], mean[i], covariance[i])
            if v > 0:
                colour = BOTH_COLOUR if len(views) == 2 else (P_COLOUR, Q_COLOUR)[v - 1]
                axes.spines[:].set_color(colour)
                _draw_box(views[0], boxes[i, v], boxes[i, 0], colour)
    words = r"$\log p(z\,|\,x)$, nats below its peak"
    bar = colour_bar(figure, ScalarMappable(BANDS, BLUES), words, length=2, cax=bar_axes, extend="max")
    bar.ax.invert_yaxis()  # the peak on top
    return figure


def _sentence(caption: str, evidence: float | None, bound: float | None, held: float) -> str:
    gap = None if evidence is None or bound is None else evidence - bound
    figures = {"log p(x)": evidence, "ELBO": bound, "gap": gap}
    words = ", ".join(f"{name} = {number(value, 2)}" for name, value in figures.items() if value is not None)
    start = (f"{caption}: " if caption else "") + (f"{words} nats; " if words else "")
    return f"{start}{100 * held:.0f}% of p(z|x) within 2σ of q"


def _frame(
    lines: list[str], shown: np.ndarray, *notes: str | None
) -> tuple[Figure, list[tuple[Axes, dict[int, Axes]]], Axes]:
    """Return the figure with its words, the axes of each image and of the views `shown`, (n, V), and of the bar."""
    n, num_views = len(lines), int(shown.any(0).sum())
    edge, left_of_view, below_view, right = 0.06, 0.44, 0.22, 0.85  # inches
    above, z_label = 0.46, 0.16
    words = edge + z_label + right + num_views * left_of_view
    size = max((WIDTH - words) / (1 + num_views), (WIDTH - words - 1.5) / num_views)
    texts = [fitted(line, 6.2, TEXT_SIZE) for line in lines]
    foot, foot_height = fitted(join(*notes), 6.5, SMALL_SIZE)
    room = TALLEST - above - sum(taken + 0.05 for _, taken in texts) - n * below_view - z_label - foot_height - edge
    size = min(size, room / n, 3.5)
    image_size = min(size, 1.5)
    width = max(words + image_size + num_views * size, 6.6)
    height = TALLEST - room + n * size
    figure = Picture(figsize=(width, height))

    def place(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, y / height, w / width, h / height))

    rows = []
    y = height - above
    for i, (line, taken) in enumerate(texts):
        figure.text(edge / width, (y - 0.04) / height, line, fontsize=TEXT_SIZE, va="top")
        y -= taken + 0.05 + size  # above the labels of ticks
        image_axes = place(edge, y + size - image_size, image_size, image_size)
        image_axes.set_axis_off()
        views: dict[int, Axes] = {}
        for v in np.flatnonzero(shown[i]):
            axes = place(edge + image_size + z_label + v * size + (v + 1) * left_of_view, y, size, size)
            write_labels(axes, x="$z_1$" if i == n - 1 else "", y="$z_2$" if v == 0 else "", labelpad=1)
            axes.locator_params(nbins=3 if size > 1.1 else 2, steps=[1, 2, 4, 5, 10])
            views[int(v)] = axes
        rows.append((image_axes, views))
        y -= below_view
    bar_height = min(height - above - y - 0.1, 3.6)
    bar_axes = place(width - right + 0.14, (y + height - above - bar_height) / 2, 0.1, bar_height)
    handles = []
    for q, colour, what in (("p", P_COLOUR, "the densest"), ("q", Q_COLOUR, r"${}\sigma$,")):
        for sigma, mass in MASSES.items():
            label = rf"${q}(z\,|\,x)$: {what.format(sigma)} {100 * mass:.0f}%"
            handles.append(key(label, color=colour, linestyle=STYLES[sigma], linewidth=1.3))
    write_legend(figure, handles, 2, loc="upper center", borderaxespad=0.2)
    put_foot(figure, foot)
    return figure, rows, bar_axes


def _draw_density(axes: Axes, depth: np.ndarray, box: np.ndarray) -> None:
    left, right, bottom, top = box
    x, y = ((high - low) / (2 * len(depth) - 2) for low, high in box.reshape(2, 2))  # half a cell
    around = (left - x, right + x, bottom - y, top + y)
    axes.imshow(np.minimum(depth, 1e4).T, extent=around, cmap=BLUES, norm=BANDS, **CELLS)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.tick_params(pad=2)
    axes.ticklabel_format(useOffset=False)


def _draw_box(axes: Axes, box: np.ndarray, whole: np.ndarray, colour: str) -> None:
    """Mark where a close-up lies in the whole view, by a box at least a twentieth of the view wide."""
    sides, most = box.reshape(2, 2), np.diff(whole.reshape(2, 2)).ravel()
    size = np.maximum(np.diff(sides).ravel(), most / 20)
    corner = sides.mean(1) - size / 2
    axes.add_patch(Rectangle((corner[0], corner[1]), size[0], size[1], fill=False, ec=colour, lw=1.1, zorder=3))


def _draw_lines(
    axes: Axes, grid: np.ndarray, box: np.ndarray, levels: dict[int, float], mean: np.ndarray, covariance: np.ndarray
) -> None:
    first, second = (np.linspace(low, high, len(grid)) for low, high in box.reshape(2, 2))
    for sigma, level in levels.items():
        if grid.min() < level < grid.max():
            floor = np.maximum(grid, level - 50.0)  # a contour cannot lie between -inf and a number
            lines = axes.contour(first, second, floor.T, [level], colors=P_COLOUR, linestyles=[STYLES[sigma]])
            lines.set(linewidth=1.2, path_effects=HALO)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)])  # (2, 200)
    for sigma in MASSES:
        x, y = mean[:, None] + sigma * circle
        axes.plot(x, y, color=Q_COLOUR, ls=STYLES[sigma], lw=1.2, path_effects=HALO, scalex=False, scaley=False)
