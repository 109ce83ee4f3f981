"""The latents of an evaluated model: where in the plane the model fails, and whether q(z) fills the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from ppl_vae.plots.arguments import finite, number, to_points, to_vector
from ppl_vae.plots.figure import SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, WIDTH, ArrayLike, join, tidy, write_foot
from ppl_vae.plots.latent import _robust_range, _widen

PRIOR, AGGREGATE = "#333333", "#0072B2"
MOST_DIMENSIONS = 24


def latent_map(
    means: ArrayLike,
    values: ArrayLike,
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
        means: Posterior means, (n, 2). Data with a mean or value that is not finite are left out and counted.
        values: The number of each datum, (n,).
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
    points = to_points(means, "latent_map: means", 2)
    numbers = to_vector(values, "latent_map: values", len(points))
    keep, missing = finite("latent_map", "mean or value is", points, numbers)
    points, numbers = points[keep], numbers[keep]

    limits = [_robust_range(points[:, axis]) for axis in (0, 1)]
    widest = max(high - low for low, high in limits) or 2.0
    (left, right), (bottom, top) = (_widen(low, high, widest / 2) for low, high in limits)
    inside = (points >= (left, bottom)).all(1) & (points <= (right, top)).all(1)
    hidden = f"Outside the picture: {int((~inside).sum())} of {len(points)} points." if not inside.all() else None

    low, high = (float(q) for q in np.quantile(numbers, [0.02, 0.98]))
    log = bool(numbers.min() > 0 and high > 30 * low)
    unit = min((WIDTH - 1.75) / (right - left), 5.5 / (top - bottom))  # inches
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05)
    figure = Figure(figsize=(unit * (right - left) + 1.75, unit * (top - bottom) + 0.6), layout=layout)
    axes = figure.add_subplot(aspect="equal", xlim=(left, right), ylim=(bottom, top))
    if prior_circles:
        for sigma in (1, 2, 3):
            axes.add_patch(Circle((0, 0), sigma, fill=False, ec="#999999", lw=0.8, ls="--", zorder=0))
            if left < 0 < right and bottom < sigma < top:
                paper = {"facecolor": "#FFFFFF", "edgecolor": "none", "pad": 0.6}
                text = rf"${sigma}\sigma$"
                axes.text(0, sigma, text, fontsize=SMALL_SIZE, color="#555555", ha="center", va="center", bbox=paper)
    order = np.argsort(numbers, kind="stable")
    drawn = axes.scatter(
        points[order, 0],
        points[order, 1],
        c=numbers[order],
        cmap="viridis_r",
        norm="log" if log else "linear",
        vmin=low,
        vmax=high if high > low else low + 1.0,
        s=float(np.clip(2e4 / len(points), 3, 20)),
        linewidths=0,
        rasterized=True,
    )
    below, above = numbers.min() < low, numbers.max() > high
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
    bar = figure.colorbar(drawn, cax=axes.inset_axes((1.02, 0.0, 0.03, 1.0)), extend=extend)
    bar.set_label(label, fontsize=TEXT_SIZE)
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2.5)
    axes.set_xlabel("posterior mean of $z_1$", fontsize=TEXT_SIZE)
    axes.set_ylabel("posterior mean of $z_2$", fontsize=TEXT_SIZE)
    tidy(axes)
    write_foot(figure, layout, join(caveat, missing, hidden))
    return figure


def aggregate_posterior(
    samples: ArrayLike,
    prior_samples: ArrayLike | None = None,
    *,
    kl: ArrayLike | None = None,
    dimensions: Sequence[int] | None = None,
    caveat: str | None = None,
) -> Figure:
    r"""Plot the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z|x_n)` beside the prior, dimension by dimension.

    For two dimensions, maps of both densities in the plane stand above the marginals, with one scale of colours. Where
    the prior has mass and q(z) has none, samples of the model come from latents that no datum has taught the decoder.
    **Marginals that agree do not make joint distributions agree**: above two dimensions the picture can show that q(z)
    misses the prior, not that it fits.

    Args:
        samples: Draws from q(z), each from the q(z|x) of a random datum, (S, d). Draws that are not finite are left out
            and counted. Some 10,000 make a smooth picture.
        prior_samples: Draws from p(z), (P, d); without them the prior is N(0, I).
        kl: The KL of each dimension, (d,), nats per datum, written over each. Above two dimensions, those with the most
            KL come first.
        dimensions: The dimensions to draw, counted from 0; by default the first 24.
        caveat: Written at the foot.

    Returns:
        A figure. For d = 2 it has the maps of q(z) and p(z) and their colour bar. Then follows one axes for each
        dimension.

    Raises:
        ValueError: If the shapes do not fit, or nothing is finite.

    Example:
        >>> import torch
        >>> figure = aggregate_posterior(torch.randn(500, 3), kl=[0.1, 2.0, 0.5])
        >>> [axes.get_title() for axes in figure.axes]
        ['$z_{2}$, KL 2.00', '$z_{3}$, KL 0.50', '$z_{1}$, KL 0.10']
    """
    z = to_points(samples, "aggregate_posterior: samples")
    dim = z.shape[1]
    keep, missing = finite("aggregate_posterior", "latent is", z)
    z = z[keep]
    prior, missing_prior = None, None
    if prior_samples is not None:
        prior = to_points(prior_samples, "aggregate_posterior: prior_samples", dim)
        keep, missing_prior = finite("aggregate_posterior", "prior draw is", prior)
        prior = prior[keep]
    rates = None if kl is None else to_vector(kl, "aggregate_posterior: kl", dim)
    chosen = _dimensions(dimensions, rates, dim)
    left_out = f"{dim - len(chosen)} of {dim} dimensions are not shown." if len(chosen) < dim else None

    columns = 2 if dim == 2 else min(len(chosen), 4 if len(chosen) <= 12 else 6)
    rows, maps = math.ceil(len(chosen) / columns), dim == 2 and len(chosen) == 2
    panel_width = WIDTH / columns if columns > 2 or maps else 5.0 / columns
    heights = ([3.1] if maps else []) + [min(max(0.62 * panel_width, 1.25), 1.7)] * rows
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(panel_width * columns, sum(heights) + 0.6), layout=layout)
    gridspec = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    ranges = {u: _range(z[:, u], None if prior is None else prior[:, u]) for u in chosen}
    if maps:
        first, second = (figure.add_subplot(gridspec[0, i]) for i in (0, 1))
        low, high = (end(ranges[u][i] for u in chosen) for i, end in enumerate((min, max)))
        _draw_maps(figure, [first, second], z, prior, (low, high), chosen)
    for i, u in enumerate(chosen):
        axes = figure.add_subplot(gridspec[int(maps) + i // columns, i % columns])
        _draw_marginal(axes, z[:, u], None if prior is None else prior[:, u], *ranges[u])
        title = rf"$z_{{{u + 1}}}$" + ("" if rates is None else f", KL {number(rates[u], 2)}")
        axes.set_title(title, fontsize=TEXT_SIZE, pad=3)
    name = r"prior $\mathcal{N}(0, 1)$" if prior is None else "prior $p(z)$, draws"
    handles = [
        Line2D(
            [],
            [],
            marker="s",
            linestyle="",
            markersize=7,
            color=AGGREGATE,
            alpha=0.5,
            label="aggregate posterior $q(z)$",
        ),
        Line2D([], [], color=PRIOR, linewidth=1.3, label=name),
    ]
    if maps and prior is None:
        label = r"1, 2, 3$\sigma$ of the prior"
        handles.append(Line2D([], [], color=PRIOR, linewidth=0.8, linestyle="--", label=label))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=TEXT_SIZE, borderaxespad=0.0
    )
    write_foot(figure, layout, join(caveat, left_out, missing, missing_prior))
    return figure


def _dimensions(given: Sequence[int] | None, rates: np.ndarray | None, dim: int) -> list[int]:
    if given is None:
        order = np.arange(dim) if rates is None or dim == 2 else np.argsort(-rates, kind="stable")  # NaN last
        return [int(u) for u in order[:MOST_DIMENSIONS]]
    chosen = [int(u) for u in given]
    if not 0 < len(chosen) <= MOST_DIMENSIONS or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(dim)):
        raise ValueError(
            f"aggregate_posterior: dimensions are {list(given)}; expected 1 to {MOST_DIMENSIONS} different ones from 0 "
            f"to {dim - 1}"
        )
    return chosen


def _range(values: np.ndarray, prior: np.ndarray | None) -> tuple[float, float]:
    """Return a range that holds all but 0.2% of both distributions, -3.2 to 3.2 of N(0, 1), with a margin."""
    ends = [np.quantile(values, [0.001, 0.999])]
    ends.append(np.array([-3.2, 3.2]) if prior is None else np.quantile(prior, [0.001, 0.999]))
    low, high = float(min(e[0] for e in ends)), float(max(e[1] for e in ends))
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _draw_marginal(axes: Axes, values: np.ndarray, prior: np.ndarray | None, low: float, high: float) -> None:
    edges = np.linspace(low, high, int(np.clip(len(values) ** (1 / 3) * 2.5, 12, 80)) + 1)
    width = edges[1] - edges[0]
    heights = np.histogram(values, edges)[0] / (len(values) * width)  # of all draws, including those beyond the edges
    axes.stairs(heights, edges, fill=True, color=AGGREGATE, alpha=0.45, linewidth=0)
    if prior is None:
        z = np.linspace(low, high, 300)
        curve = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        axes.plot(z, curve, color=PRIOR, linewidth=1.3)
    else:
        curve = np.histogram(prior, edges)[0] / (len(prior) * width)
        axes.stairs(curve, edges, color=PRIOR, linewidth=1.3, baseline=None)
    top = max(float(curve.max()), min(float(heights.max()), 8 * float(curve.max())))  # a spike would flatten the prior
    axes.set_ylim(0, 1.08 * top)
    axes.set_xlim(low, high)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    tidy(axes)
    axes.spines["left"].set_visible(False)


def _draw_maps(
    figure: Figure,
    pair: list[Axes],
    z: np.ndarray,
    prior: np.ndarray | None,
    ends: tuple[float, float],
    chosen: list[int],
) -> None:
    """Draw the densities of q(z) and of the prior in the plane, with one scale of colours."""
    size = int(np.clip(0.8 * min(len(z), len(z) if prior is None else len(prior)) ** 0.5, 20, 120))
    edges = np.linspace(*ends, size + 1)
    area = (edges[1] - edges[0]) ** 2
    densities = [np.histogram2d(z[:, chosen[0]], z[:, chosen[1]], [edges, edges])[0] / (len(z) * area)]
    if prior is None:
        middles = (edges[1:] + edges[:-1]) / 2
        densities.append(np.exp(-0.5 * (middles[:, None] ** 2 + middles**2)) / (2 * math.pi))
    else:
        densities.append(
            np.histogram2d(prior[:, chosen[0]], prior[:, chosen[1]], [edges, edges])[0] / (len(prior) * area)
        )
    highest = max(float(np.quantile(densities[0][densities[0] > 0], 0.99)), float(densities[1].max()))
    names = ("aggregate posterior $q(z)$", "prior $p(z)$")
    for axes, density, name in zip(pair, densities, names, strict=True):
        image = axes.imshow(
            density.T,
            extent=(*ends, *ends),
            origin="lower",
            cmap="Blues",
            vmin=0.0,
            vmax=highest,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(name, fontsize=TITLE_SIZE - 1, pad=4)
        axes.set_xlabel(rf"$z_{{{chosen[0] + 1}}}$", fontsize=TEXT_SIZE, labelpad=1)
        axes.tick_params(labelsize=SMALL_SIZE, length=2.5)
        axes.set_box_aspect(1)
        if prior is None:
            for sigma in (1, 2, 3):
                axes.add_patch(Circle((0, 0), sigma, fill=False, ec=PRIOR, lw=0.8, ls="--"))
    pair[0].set_ylabel(rf"$z_{{{chosen[1] + 1}}}$", fontsize=TEXT_SIZE, labelpad=1)
    extend = "max" if densities[0].max() > highest else "neither"
    bar = figure.colorbar(image, ax=pair, extend=extend, fraction=0.045, pad=0.02, aspect=25)
    bar.set_label("density", fontsize=TEXT_SIZE)
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2.5)
