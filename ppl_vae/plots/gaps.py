"""The gap between log p(x) and the ELBO, class by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.figure import Figure

from ppl_vae._validation import check_choice
from ppl_vae.plots.arguments import ArrayLike, IntervalLike, finite, number, to_ends, to_vector
from ppl_vae.plots.figure import PAPER, key, new_figure, tidy, write_foot, write_legend
from ppl_vae.plots.latent import LABEL, name_of_class, to_labels
from ppl_vae.plots.style import BLUE, ORANGE, SMALL_SIZE, TEXT_SIZE, styled

if TYPE_CHECKING:
    from jaxtyping import Shaped

APPROXIMATION, AMORTISATION = BLUE, ORANGE  # dark and light in grey


@styled
def gaps_by_class(
    approximation_gap: Shaped[ArrayLike, " n"],
    amortisation_gap: Shaped[ArrayLike, " n"],
    labels: Shaped[ArrayLike, " n"] | None = None,
    *,
    intervals: Mapping[int, IntervalLike] | None = None,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    order: Literal["gap", "class"] = "gap",
    caveat: str | None = None,
) -> Figure:
    r"""Plot the mean gap of each class in its two parts, the class with the largest gap on top.

    .. math::
        \log p(x) - \mathcal L(q) = \big(\log p(x) - \mathcal L(q^*)\big) + \big(\mathcal L(q^*) - \mathcal L(q)\big).

    The mean of a part may be negative, by Monte Carlo error or where the evidence is a lower bound. Such a part is
    drawn to the left of zero. The dot is at the sum. The bars are means: a class may owe its bar to a few data with
    gaps of hundreds of nats.

    Args:
        approximation_gap: Nats per datum. Data with a part that is not finite are left out and counted.
        amortisation_gap: Nats per datum.
        labels: Integer classes, at most 50; without them there is one bar.
        intervals: By class, the interval of its mean sum: a pair (low, high) or an object with these attributes.
        class_names: Names of the classes, by class or in order from 0.
        order: ``"gap"``, or ``"class"`` for the classes in their own order, to compare two models side by side.
        caveat: Written at the foot.

    Returns:
        A figure of one axes with a horizontal bar of two parts for each class, and a line at the mean over all data.

    Raises:
        ValueError: If the shapes do not fit, no gap is finite, or there are more than 50 classes.

    Reference:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018),
        https://arxiv.org/abs/1801.03558

    Example:
        >>> figure = gaps_by_class([1.0, 2.0, 0.5], [0.5, 3.0, 0.0], [0, 1, 1], intervals={1: (0.5, 5.0)})
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['1', '0']
    """
    check_choice(order, ("gap", "class"), "gaps_by_class: order")
    first = to_vector(approximation_gap, "gaps_by_class: approximation_gap")
    second = to_vector(amortisation_gap, "gaps_by_class: amortisation_gap", len(first))
    if labels is None:
        labels, class_names = np.zeros(len(first)), {0: "all data"}
    given = to_labels(labels, "gaps_by_class: labels", len(first))
    missing, (first, second, given) = finite("gaps_by_class", "gap is", first, second, given)
    parts = np.stack([first, second])  # (2, n)
    classes, index, counts = np.unique(given, return_inverse=True, return_counts=True)
    means = np.stack([parts[:, index == i].mean(1) for i in range(len(classes))], 1)  # (2, classes)
    names = [name_of_class(int(c), class_names, "gaps_by_class") for c in classes]
    ranks = np.argsort(-means.sum(0), kind="stable") if order == "gap" else np.arange(len(names))
    height = min(0.27 if len(names) <= 20 else 0.17, 8.0 / len(names))
    figure = new_figure(5.6, height * len(names) + 1.1)
    axes = figure.add_subplot()
    low = high = 0.0
    for place, c in enumerate(ranks):
        total = float(means[:, c].sum())
        edges = {True: 0.0, False: 0.0}  # the ends of the bars right and left of zero
        for value, colour in zip(means[:, c], (APPROXIMATION, AMORTISATION), strict=True):
            axes.barh(place, value, left=edges[value >= 0], height=0.72, color=colour, linewidth=0)
            edges[value >= 0] += value
        ends = (total, total)
        if intervals is not None and classes[c] in intervals:
            ends = to_ends(intervals[classes[c]], f"gaps_by_class: the interval of class {classes[c]}")
            axes.hlines(place, *ends, color="#000000", linewidth=1.0)
        axes.plot(total, place, "o", color="#000000", markersize=3)
        left, right = (end if math.isfinite(end) else total for end in ends)
        right = max(edges[True], right)
        low, high = min(low, edges[False], left), max(high, right)
        words = f"{number(total, 2 if abs(total) < 10 else 1)}  (n = {counts[c]})"
        paper = PAPER | {"pad": 0.5}
        axes.annotate(
            words, (right, place), (5, 0), textcoords="offset points", va="center", fontsize=SMALL_SIZE, bbox=paper
        )
    square = {"marker": "s", "linestyle": "", "markersize": 6}
    handles = [
        key("approximation gap", color=APPROXIMATION, **square),
        key("amortisation gap", color=AMORTISATION, **square),
    ]
    if intervals:
        handles.append(key("sum, its interval", marker="o", markersize=3, color="#000000", linewidth=1.0))
    if len(names) > 1:
        mean = float(parts.sum(0).mean())
        dashed: dict[str, Any] = {"color": "#555555", "linestyle": "--", "linewidth": 1.0}
        axes.axvline(mean, zorder=0, **dashed)
        handles.append(key(f"all classes: {number(mean, 2)}", **dashed))
    length = high - low or 1.0
    axes.set_xlim(low - (0.03 * length if low < 0 else 0.0), high + 0.24 * length)
    if low < 0:
        axes.axvline(0.0, color="#000000", linewidth=0.8)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.set_yticks(range(len(names)), [names[c] for c in ranks])
    axes.locator_params(axis="x", nbins=7, steps=[1, 2, 5, 10])
    tidy(axes, x="mean gap, nats per datum", y="" if class_names else LABEL)
    axes.tick_params(axis="y", length=0, labelsize=TEXT_SIZE if len(names) <= 20 else SMALL_SIZE)
    write_legend(figure, handles, 2)
    return write_foot(figure, caveat, missing)
