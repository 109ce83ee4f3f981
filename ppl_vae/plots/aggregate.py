"""The aggregate posterior q(z) of a data set: whether it fills the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vae.plots.arguments import ArrayLike, finite, number, to_points, to_vector
from ppl_vae.plots.figure import WIDTH, colour_bar, key, new_figure, tidy, write_foot, write_labels, write_legend
from ppl_vae.plots.latent import draw_sigmas
from ppl_vae.plots.mosaics import CELLS
from ppl_vae.plots.style import BLUE, styled

if TYPE_CHECKING:
    from jaxtyping import Shaped

PRIOR, AGGREGATE = "#333333", BLUE
MOST_DIMENSIONS = 24


@styled
def aggregate_posterior(
    samples: Shaped[ArrayLike, "S d"],
    prior_samples: Shaped[ArrayLike, "P d"] | None = None,
    *,
    kl: Shaped[ArrayLike, " d"] | None = None,
    dimensions: Sequence[int] | None = None,
    caveat: str | None = None,
) -> Figure:
    r"""Plot the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z|x_n)` beside the prior, dimension by dimension.

    For two dimensions, maps of both densities in the plane stand above the marginals, with one scale of colours. Where
    the prior has mass and q(z) has none, samples of the model come from latents that no datum has taught the decoder.
    **Marginals that agree do not make joint distributions agree**: above two dimensions the picture can show that q(z)
    misses the prior, not that it fits.

    Args:
        samples: Draws from q(z), each from the q(z|x) of a random datum. Draws that are not finite are left out
            and counted. Some 10,000 make a smooth picture.
        prior_samples: Draws from p(z); without them the prior is N(0, I).
        kl: The KL of each dimension, nats per datum, written over each. Above two dimensions, those with the most
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
    missing, (z,) = finite("aggregate_posterior", "latent is", z)
    prior, missing_prior = None, None
    if prior_samples is not None:
        prior = to_points(prior_samples, "aggregate_posterior: prior_samples", dim)
        missing_prior, (prior,) = finite("aggregate_posterior", "prior draw is", prior)
    rates = None if kl is None else to_vector(kl, "aggregate_posterior: kl", dim)
    chosen = _dimensions(dimensions, rates, dim)
    left_out = f"{dim - len(chosen)} of {dim} dimensions are not shown." if len(chosen) < dim else None

    columns = 2 if dim == 2 else min(len(chosen), 4 if len(chosen) <= 12 else 6)
    rows, maps = math.ceil(len(chosen) / columns), dim == 2 and len(chosen) == 2
    panel_width = WIDTH / columns if columns > 2 or maps else 5.0 / columns
    heights = ([3.1] if maps else []) + [min(max(0.62 * panel_width, 1.25), 1.7)] * rows
    figure = new_figure(panel_width * columns, sum(heights) + 0.6, w_pad=0.04)
    gridspec = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    draws = {u: (z[:, u], None if prior is None else prior[:, u]) for u in chosen}
    ranges = {u: _range(*draws[u]) for u in chosen}
    if maps:
        pair = [figure.add_subplot(gridspec[0, i]) for i in (0, 1)]
        ends = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
        _draw_maps(figure, pair, z, prior, ends, chosen)
    for i, u in enumerate(chosen):
        axes = figure.add_subplot(gridspec[int(maps) + i // columns, i % columns])
        _draw_marginal(axes, *draws[u], *ranges[u])
        title = rf"$z_{{{u + 1}}}$" + ("" if rates is None else f", KL {number(rates[u], 2)}")
        axes.set_title(title, pad=3)
    name = r"prior $\mathcal{N}(0, 1)$" if prior is None else "prior $p(z)$, draws"
    square = {"marker": "s", "linestyle": "", "markersize": 7, "alpha": 0.5}
    handles = [key("aggregate posterior $q(z)$", color=AGGREGATE, **square), key(name, color=PRIOR, linewidth=1.3)]
    if maps and prior is None:
        handles.append(key(r"1, 2, 3$\sigma$ of the prior", color=PRIOR, linewidth=0.8, linestyle="--"))
    write_legend(figure, handles, 3)
    return write_foot(figure, caveat, left_out, missing, missing_prior)


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
    shares = [0.001, 0.999]
    ends = np.array([np.quantile(values, shares), [-3.2, 3.2] if prior is None else np.quantile(prior, shares)])
    low, high = float(ends.min()), float(ends.max())
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
    axes.set(xlim=(low, high), ylim=(0, 1.08 * top), yticks=[])
    axes.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
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

    def density(draws: np.ndarray) -> np.ndarray:
        counts = np.histogram2d(draws[:, chosen[0]], draws[:, chosen[1]], [edges, edges])[0]
        return counts / (len(draws) * (edges[1] - edges[0]) ** 2)

    middles = (edges[1:] + edges[:-1]) / 2
    normal = np.exp(-0.5 * (middles[:, None] ** 2 + middles**2)) / (2 * math.pi)
    of_q, of_p = density(z), normal if prior is None else density(prior)
    highest = max(float(np.quantile(of_q[of_q > 0], 0.99)), float(of_p.max()))
    look = {"extent": (*ends, *ends), "cmap": "Blues", "vmin": 0.0, "vmax": highest, **CELLS}
    for axes, shown, name in zip(pair, (of_q, of_p), ("aggregate posterior $q(z)$", "prior $p(z)$"), strict=True):
        image = axes.imshow(shown.T, **look)
        y = rf"$z_{{{chosen[1] + 1}}}$" if axes is pair[0] else ""
        write_labels(axes, title=name, x=rf"$z_{{{chosen[0] + 1}}}$", y=y, pad=4, labelpad=1)
        axes.set_box_aspect(1)
        if prior is None:
            draw_sigmas(axes, PRIOR)
    extend = "max" if of_q.max() > highest else "neither"
    colour_bar(figure, image, "density", ax=pair, extend=extend, fraction=0.045, pad=0.02, aspect=25)
