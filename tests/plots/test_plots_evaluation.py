"""What the pictures of an evaluation hold: numbers, words, limits, and what is left out."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from ppl_vae import plots
from ppl_vae.plots import evaluation, gaps, true_posterior

LONG = (
    "A caveat of some length, that has to be broken into lines, since no picture of these is as wide as this sentence."
)


def words(figure: Figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


def xy(path: Any) -> np.ndarray:
    """The points of a path, or of a line, (n, 2)."""
    return np.asarray(path.vertices if hasattr(path, "vertices") else path.get_xydata())


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def log_normal(
    mean: tuple[float, float], covariance: Any, extent: tuple[float, ...] = (-4.0, 4.0, -4.0, 4.0), size: int = 201
) -> Tensor:
    """A normal's log density on a grid whose first index is z1."""
    first, second = (torch.linspace(extent[i], extent[i + 1], size, dtype=torch.float64) for i in (0, 2))
    z = torch.stack(torch.meshgrid(first, second, indexing="ij"), -1)
    q = torch.distributions.MultivariateNormal(torch.tensor(mean).double(), torch.as_tensor(covariance).double())
    return q.log_prob(z)


TILTED = [[0.3, 0.2], [0.2, 0.4]]


def two_data(**more: Any) -> Figure:
    """One whose q is right, with one close-up, and one whose q is elsewhere, with two."""
    extent = (-4.0, 4.0, -4.0, 4.0)
    whole = torch.stack([log_normal((0.5, -1.0), TILTED), log_normal((2.0, 2.0), 0.2**2 * np.eye(2))])
    q = torch.tensor([[0.5, -1.0], [-2.0, 1.0]]), torch.stack([torch.tensor(TILTED), 0.1**2 * torch.eye(2)])
    boxes = plots.posterior_close_ups(whole, extent, *q)
    views = [whole]
    for v in range(2):
        true = [((0.5, -1.0), TILTED), ((2.0, 2.0), 0.2**2 * np.eye(2))]
        views.append(
            torch.stack([log_normal(*true[i], extent if np.isnan(b).any() else b) for i, b in enumerate(boxes[:, v])])
        )
    extents = np.concatenate([np.tile(extent, (2, 1, 1)), boxes], axis=1)
    images = torch.rand(2, 1, 8, 8)
    return plots.true_posteriors(images, torch.stack(views, 1), extents, *q, ["a 3", "an 8"], **more)


def every_figure(caveat: str | None) -> dict[str, Figure]:
    torch.manual_seed(0)
    z, images = torch.randn(300, 2), torch.rand(10, 1, 8, 8)
    log_p, gap = -100 - 20 * torch.rand(300), 5 * torch.rand(300)
    names = [f"a class of a long name {i}" for i in range(20)]
    one = log_normal((0.0, 0.0), np.eye(2))[None]
    q_one = torch.zeros(1, 2), torch.eye(2)[None]
    paths = {f"model {i}": torch.rand(30, 2) * 5 + torch.tensor([8.0, 100.0]) for i in range(3)}
    return {
        "true_posteriors": two_data(log_evidence=[-150.0, -170.0], elbo=[-151.0, -390.0], caveat=caveat),
        "one": plots.true_posteriors(images[:1], one, [[-4, 4, -4, 4]], *q_one, caveat=caveat),
        "six": plots.true_posteriors(
            images[:6],
            one.expand(6, -1, -1),
            [[-4, 4, -4, 4]] * 6,
            torch.zeros(6, 2),
            torch.eye(2).expand(6, 2, 2),
            ["a datum whose caption is long enough for a second line"] * 6,
            log_evidence=[-100.0] * 6,
            elbo=[-100.0] * 6,
            caveat=caveat,
        ),
        "gaps": plots.gaps_by_class(gap, gap, torch.arange(300) % 10, intervals={3: (4.0, 6.0)}, caveat=caveat),
        "one bar": plots.gaps_by_class(gap, gap, caveat=caveat),
        "twenty": plots.gaps_by_class(gap, gap, torch.arange(300) % 20, class_names=names, caveat=caveat),
        "fifty": plots.gaps_by_class(gap, gap, torch.arange(300) % 50, caveat=caveat),
        "histogram": plots.evidence_histogram(
            log_p, images, log_p[:10], elbo=log_p - gap, worst_captions=["a 3"] * 10, caveat=caveat
        ),
        "plain": plots.evidence_histogram(log_p, caveat=caveat),
        "three worst": plots.evidence_histogram(log_p, images[:3], log_p[:3], caveat=caveat),
        "rate_distortion": plots.rate_distortion({"a": [8.0, 110.0]}, caveat=caveat),
        "paths": plots.rate_distortion(paths, log_evidence={"model 1": -100.0}, caveat=caveat),
        "latent_map": plots.latent_map(z, gap, prior_circles=True, caveat=caveat),
        "particles": plots.evidence_by_particles(
            [10, 100, 1000],
            {"posterior": [-120.0, -110.0, -108.0], "defensive": [-105.0, -104.0, -104.0]},
            {"posterior": [(-121, -119), (-111, -109), (-109, -107)]},
            exact=-104.0,
            exact_interval=(-105, -103),
            elbo=-130.0,
            elbo_interval=(-131, -129),
            caveat=caveat,
        ),
        "aggregate": plots.aggregate_posterior(z, caveat=caveat),
        "aggregate 2": plots.aggregate_posterior(z, z * 2, kl=[1.0, 2.0], caveat=caveat),
        "aggregate 1": plots.aggregate_posterior(z[:, :1], caveat=caveat),
        "aggregate 30": plots.aggregate_posterior(torch.randn(300, 30), kl=torch.rand(30), caveat=caveat),
    }


# Every picture


@pytest.mark.ci
def test_every_picture_carries_its_caveat() -> None:
    for name, figure in every_figure("Known only to the reader.").items():
        assert "Known only to the reader." in words(figure), name
        width, height = figure.get_size_inches()
        assert width <= 7.05, name
        assert height <= 10.0, name


@pytest.mark.ci
@pytest.mark.parametrize("caveat", [pytest.param(None, marks=pytest.mark.slow), LONG])  # the caveat is one word more
def test_no_words_overlap_nor_leave_the_picture(caveat: str | None) -> None:
    for name, figure in every_figure(caveat).items():
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        texts = [*figure.texts, *(text for box in figure.legends for text in box.get_texts())]
        for axes in figure.axes:
            labels = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            if axes.axison:
                ticks = [(t, axes.xaxis) for t in axes.get_xticklabels()] + [
                    (t, axes.yaxis) for t in axes.get_yticklabels()
                ]
                labels += [t for t, axis in ticks if _within(t, axis)]
            for child in axes.child_axes:
                labels += [child.yaxis.label, *(t for t in child.get_yticklabels() if _within(t, child.yaxis))]
            if (inner := axes.get_legend()) is not None:
                labels += inner.get_texts()
            texts += [t for t in labels if axes.axison or t is axes.title]
        texts = [text for text in texts if text.get_text() and text.get_visible() and text.get_rotation() != -45]
        boxes = [text.get_window_extent() for text in texts]
        for text, box in zip(texts, boxes, strict=True):
            assert -1 <= box.x0 <= box.x1 <= width + 1, (name, text)
            assert -1 <= box.y0 <= box.y1 <= height + 1, (name, text)
        for i, box in enumerate(boxes):
            for j in range(i):
                near = box.padded(-0.5).overlaps(boxes[j])
                assert not near, (name, texts[i].get_text(), texts[j].get_text())


def _within(label: Any, axis: Any) -> bool:
    """Whether a tick lies in its axis: matplotlib keeps labels for those beyond the limits."""
    low, high = sorted(axis.get_view_interval())
    return low <= label.get_position()[axis.axis_name == "y"] <= high


@pytest.mark.slow
def test_nothing_global_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it is now an error
    before = {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    figures = {
        name: figure for name, figure in every_figure(None).items() if name in ("true_posteriors", "gaps", "paths")
    }
    torch.manual_seed(0)
    torch.set_rng_state(state[0])
    for name, figure in figures.items():
        plots.save(figure, tmp_path / f"{name}.png", dpi=50)
    assert {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams} == before
    assert (np.random.get_state()[1] == state[1]).all()  # type: ignore[index]


# The true posterior


def views_of(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.lines]


def test_posteriors_have_an_image_and_their_views_for_each_datum() -> None:
    figure = two_data(log_evidence=[-150.0, -170.0], elbo=[-151.0, -390.0])
    assert len(views_of(figure)) == 5  # plane and one close-up, plane and two
    assert len(figure.axes) == 2 + 5 + 1
    assert figure.axes[-1].get_ylabel() == r"$\log p(z\,|\,x)$, nats below its peak"
    assert figure.axes[-1].get_ylim() == (300, 0)  # the peak on top
    sentences = [text.get_text() for text in figure.texts]
    assert sentences[0] == "a 3: log p(x) = −150.00, ELBO = −151.00, gap = 1.00 nats; 86% of p(z|x) within 2σ of q"
    assert sentences[1].replace("\n", " ") == (
        "an 8: log p(x) = −170.00, ELBO = −390.00, gap = 220.00 nats; 0% of p(z|x) within 2σ of q"
    )
    assert len(sentences) == 2  # nothing to be careful about
    assert "q" in legend(figure)[2]


def test_the_first_index_of_a_grid_is_z1_to_the_right() -> None:
    plane = views_of(two_data())[0]
    (image,) = plane.images
    depth = np.asarray(image.get_array())  # (z2, z1), from the bottom
    assert image.origin == "lower"
    row, column = np.unravel_index(depth.argmin(), depth.shape)
    assert (-4 + 0.04 * column, -4 + 0.04 * row) == (pytest.approx(0.5, abs=0.021), pytest.approx(-1.0, abs=0.021))
    left, right, *_ = image.get_extent()
    assert (left, right) == (pytest.approx(-4.02), pytest.approx(4.02))  # a node is the middle of its cell
    assert plane.get_xlim() == (-4, 4)
    assert (plane.get_xlabel(), plane.get_ylabel()) == ("", "$z_2$")


def test_lines_of_p_and_q_lie_on_each_other_where_q_is_right() -> None:
    close_up = views_of(two_data())[1]
    contours = [c for c in close_up.collections if isinstance(c, QuadContourSet)]
    ellipses = [line for line in close_up.lines if len(xy(line)) > 2]
    assert len(contours) == len(ellipses) == 2
    precision = np.linalg.inv(np.array(TILTED))
    for sigma, contour, ellipse in zip((1, 2), contours, ellipses, strict=True):
        ring = xy(ellipse) - [0.5, -1.0]
        np.testing.assert_allclose(np.sqrt(np.einsum("ni,ij,nj->n", ring, precision, ring)), sigma, rtol=1e-5)
        (path,) = contour.get_paths()
        line = xy(path) - [0.5, -1.0]
        np.testing.assert_allclose(np.sqrt(np.einsum("ni,ij,nj->n", line, precision, line)), sigma, rtol=0.02)


def test_close_ups_are_boxes_in_the_first_view() -> None:
    figure = two_data()
    first, one, second, of_p, of_q = views_of(figure)
    for plane, close_ups in ((first, [one]), (second, [of_p, of_q])):
        boxes = [patch for patch in plane.patches if isinstance(patch, Rectangle)]
        for box, axes in zip(boxes, close_ups, strict=True):
            assert (box.get_x(), box.get_x() + box.get_width()) == pytest.approx(axes.get_xlim())
            assert (box.get_y(), box.get_y() + box.get_height()) == pytest.approx(axes.get_ylim())
            assert to_hex(box.get_edgecolor()) == to_hex(axes.spines["left"].get_edgecolor())
    assert to_hex(of_p.spines["top"].get_edgecolor()) == true_posterior.P_COLOUR.lower()
    assert to_hex(of_q.spines["top"].get_edgecolor()) == true_posterior.Q_COLOUR.lower()


@pytest.mark.ci
def test_a_close_up_too_small_to_see_has_a_box_that_is_not() -> None:
    grids = torch.stack([log_normal((0.0, 0.0), 0.04**2 * np.eye(2), size=801)])
    box = np.array([-0.1, 0.1, -0.1, 0.1])
    both = torch.stack([grids[0], log_normal((0.0, 0.0), 0.04**2 * np.eye(2), tuple(box), 801)])[None]
    extents = np.array([[[-4.0, 4.0, -4.0, 4.0], box]])
    figure = plots.true_posteriors(torch.rand(1, 8, 8), both, extents, torch.zeros(1, 2), 0.04**2 * torch.eye(2)[None])
    (patch,) = views_of(figure)[0].patches
    assert isinstance(patch, Rectangle)
    assert (patch.get_width(), patch.get_height()) == pytest.approx((0.4, 0.4))


@pytest.mark.parametrize(("sigma", "share"), [(0.5, 39), (1.0, 86), (2.0, 100), (0.01, 0)])
def test_the_share_that_q_holds_is_that_of_its_ellipse(sigma: float, share: int) -> None:
    figure = plots.true_posteriors(
        torch.rand(1, 8, 8),
        log_normal((0.0, 0.0), np.eye(2), (-6, 6, -6, 6), 601)[None],
        [[-6, 6, -6, 6]],
        torch.zeros(1, 2),
        sigma**2 * torch.eye(2)[None],
    )
    assert figure.texts[0].get_text() == f"{share}% of p(z|x) within 2σ of q"


def test_a_grid_that_misses_mass_or_is_too_coarse_says_so() -> None:
    for grid, total in (
        (log_normal((0.0, 0.0), np.eye(2), (0.0, 4.0, -4.0, 4.0)), "0.5"),  # half of it
        (
            log_normal((0.0, 0.0), 0.01**2 * np.eye(2), size=201),
            "2.5",
        ),  # one node of a cell of 0.04 in a density of 1592
    ):
        extents = [[0.0, 4.0, -4.0, 4.0]] if total == "0.5" else [[-4.0, 4.0, -4.0, 4.0]]
        figure = plots.true_posteriors(torch.rand(1, 8, 8), grid[None], extents, torch.zeros(1, 2), torch.eye(2)[None])
        assert f"Read with care: the grids' masses add up to {total}" in words(figure)


def test_no_mass_is_no_obstacle() -> None:
    grid = log_normal((0.0, 0.0), np.eye(2)) + math.log(2)
    grid[:100] = -math.inf  # a prior that stops at zero
    figure = plots.true_posteriors(
        torch.rand(1, 8, 8), grid[None], [[-4, 4, -4, 4]], torch.zeros(1, 2), torch.eye(2)[None]
    )
    figure.draw_without_rendering()
    assert "Read with care" not in words(figure)


def test_close_ups_hold_p_and_q() -> None:
    whole = torch.stack([log_normal((1.0, -1.0), 0.1**2 * np.eye(2), size=801)] * 3)
    mean = torch.tensor([[1.0, -1.0], [1.5, -1.0], [-3.0, 3.0]])
    boxes = plots.posterior_close_ups(whole, [-4, 4, -4, 4], mean, (0.1**2 * torch.eye(2)).expand(3, 2, 2))
    assert boxes.shape == (3, 2, 4)
    assert np.isnan(boxes[:2, 1]).all()
    radius = 0.1 * math.sqrt(-2 * math.log(1e-3))  # of the disc with 99.9%
    np.testing.assert_allclose(
        boxes[0, 0], np.array([1, 1, -1, -1]) + 1.1 * radius * np.array([-1, 1, -1, 1]), atol=0.02
    )
    assert boxes[1, 0][0] < 1 - radius < 1.5 + 0.3 < boxes[1, 0][1]
    np.testing.assert_allclose(boxes[2, 1], np.array([-3, -3, 3, 3]) + 0.33 * np.array([-1, 1, -1, 1]), atol=1e-6)
    np.testing.assert_allclose(boxes[2, 0], boxes[0, 0])
    np.testing.assert_allclose(np.diff(boxes[..., :2]), np.diff(boxes[..., 2:]))  # squares


def test_close_ups_take_the_heaviest_mode_not_the_highest() -> None:
    narrow, wide = (
        log_normal((2.0, 2.0), 0.05**2 * np.eye(2), size=801),
        log_normal((-2.0, -2.0), 0.3**2 * np.eye(2), size=801),
    )
    mixture = torch.logaddexp(narrow + math.log(0.2), wide + math.log(0.8))
    assert mixture.argmax() == narrow.argmax()
    q = torch.tensor([[2.0, 2.0]]), 0.05**2 * torch.eye(2)[None]
    of_p, of_q = plots.posterior_close_ups(mixture[None] + 7.0, [-4, 4, -4, 4], *q)[0]  # normalised or not
    assert of_p[0] < -2 < of_p[1] < 0
    assert 0 < of_q[0] < 2 < of_q[1]


def test_posteriors_say_what_is_wrong() -> None:
    grid, extents = log_normal((0.0, 0.0), np.eye(2), size=21), [[-4, 4, -4, 4]]
    q, image = (torch.zeros(1, 2), torch.eye(2)[None]), torch.rand(1, 8, 8)
    draw = plots.true_posteriors
    with pytest.raises(ValueError, match=r"log_posterior has shape \(1, 1, 21, 20\); expected \(1, S, S\)"):
        draw(image, grid[None, :, 1:], extents, *q)
    with pytest.raises(ValueError, match="log_posterior has shape"):
        draw(image, grid[None].repeat(2, 1, 1), extents, *q)
    with pytest.raises(ValueError, match=r"extents have shape \(1, 1, 3\); expected \(1, 1, 4\)"):
        draw(image, grid[None], [[-4, 4, -4]], *q)
    for bad in ([[4, -4, -4, 4]], [[-4, math.inf, -4, 4]], [[math.nan] * 4]):
        with pytest.raises(ValueError, match="extents are not finite with left below right"):
            draw(image, grid[None], bad, *q)
    with pytest.raises(ValueError, match="log_posterior holds NaN or infinity"):
        draw(image, grid[None] * math.nan, extents, *q)
    with pytest.raises(ValueError, match="log_posterior is -inf on all"):
        draw(image, torch.full_like(grid, -math.inf)[None], extents, *q)
    with pytest.raises(ValueError, match="q_covariance is not positive definite"):
        draw(image, grid[None], extents, q[0], -q[1])
    with pytest.raises(ValueError, match="q_mean or q_covariance holds NaN"):
        draw(image, grid[None], extents, q[0] / 0, q[1])
    with pytest.raises(ValueError, match=r"q_covariance \(1, 2\); expected \(1, 2\) and \(1, 2, 2\)"):
        draw(image, grid[None], extents, q[0], torch.ones(1, 2))
    with pytest.raises(ValueError, match="captions are"):
        draw(image, grid[None], extents, *q, captions="a 3")
    with pytest.raises(ValueError, match="got 7 images; expected at most 6"):
        draw(torch.rand(7, 8, 8), grid[None], extents, *q)
    with pytest.raises(ValueError, match="mass is 1"):
        plots.posterior_close_ups(grid[None], extents, *q, mass=1)


# The gap per class


def bar_parts(axes: Axes) -> list[list[tuple[float, float]]]:
    """(left, width) of both parts of each bar, from the top."""
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    bars.sort(key=lambda bar: bar.get_y())
    return [[(b.get_x(), b.get_width()) for b in bars[i : i + 2]] for i in range(0, len(bars), 2)]


def test_bars_are_the_means_of_each_class_largest_first() -> None:
    approximation, amortisation = torch.tensor([1.0, 3.0, 0.5, 0.5]), torch.tensor([1.0, 2.0, 9.0, 7.0])
    axes = plots.gaps_by_class(approximation, amortisation, [4, 4, 7, 7]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["7", "4"]
    assert bar_parts(axes) == [[(0.0, 0.5), (0.5, 8.0)], [(0.0, 2.0), (2.0, 1.5)]]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert [text.get_text() for text in axes.texts] == ["8.50  (n = 2)", "3.50  (n = 2)"]
    assert axes.get_xlabel() == "mean gap, nats per datum"
    assert axes.get_ylabel() == "class (data label)"
    (mean,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert np.asarray(mean.get_xdata()).tolist() == [6.0, 6.0]
    assert legend(axes.get_figure()) == ["approximation gap", "amortisation gap", "all classes: 6.00"]  # type: ignore[arg-type]


def test_bars_in_the_classes_own_order_and_with_names() -> None:
    arguments = torch.ones(4), torch.arange(4.0), [0, 0, 1, 1]
    axes = plots.gaps_by_class(*arguments, order="class", class_names=["shirt", "boot"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shirt", "boot"]
    assert axes.get_ylabel() == ""
    with pytest.raises(ValueError, match="class_names have no name for class 1"):
        plots.gaps_by_class(*arguments, class_names={0: "shirt"})


def test_without_labels_there_is_one_bar_and_no_line() -> None:
    figure = plots.gaps_by_class([1.0, 3.0], [2.0, 2.0])
    axes = figure.axes[0]
    assert bar_parts(axes) == [[(0.0, 2.0), (2.0, 2.0)]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all data"]
    assert legend(figure) == ["approximation gap", "amortisation gap"]


def test_a_negative_part_lies_left_of_zero() -> None:
    axes = plots.gaps_by_class([-1.0], [3.0]).axes[0]
    assert bar_parts(axes) == [[(0.0, -1.0), (0.0, 3.0)]]
    assert axes.get_xlim()[0] < -1
    (dot,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert np.asarray(dot.get_xdata()).tolist() == [2.0]


def test_bars_carry_intervals_that_fit() -> None:
    figure = plots.gaps_by_class([1.0, 1.0], [1.0, 2.0], [0, 1], intervals={1: SimpleNamespace(low=2.0, high=40.0)})
    axes = figure.axes[0]
    (interval,) = axes.collections
    assert [xy(path).tolist() for path in interval.get_paths()] == [[[2.0, 0.0], [40.0, 0.0]]]
    assert axes.get_xlim()[1] > 40
    assert "sum, its interval" in legend(figure)
    with pytest.raises(ValueError, match=r"the interval of class 1 is 3\.0; expected a pair"):
        plots.gaps_by_class([1.0], [1.0], [1], intervals={1: 3.0})
    with pytest.raises(ValueError, match="expected its lower end first"):
        plots.gaps_by_class([1.0], [1.0], [1], intervals={1: (3.0, 2.0)})


def test_gaps_that_are_not_finite_are_left_out_and_counted() -> None:
    figure = plots.gaps_by_class([1.0, math.nan, 3.0], [2.0, 2.0, math.inf], [0, 0, 1])
    assert bar_parts(figure.axes[0]) == [[(0.0, 1.0), (1.0, 2.0)]]
    assert "Left out: 2 of 3 data, whose gap is not finite." in words(figure)
    with pytest.raises(ValueError, match="gap is not finite for any of 1 data"):
        plots.gaps_by_class([math.nan], [1.0])


def test_gaps_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"amortisation_gap have shape \(3,\); expected \(2,\)"):
        plots.gaps_by_class(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"approximation_gap have shape \(0,\); expected \(n,\)"):
        plots.gaps_by_class(torch.ones(0), torch.ones(0))
    with pytest.raises(ValueError, match="labels hold fractions"):
        plots.gaps_by_class(torch.ones(2), torch.ones(2), [0.5, 1.0])
    with pytest.raises(ValueError, match=r"labels have shape \(1,\); expected \(2,\)"):
        plots.gaps_by_class(torch.ones(2), torch.ones(2), [1])
    with pytest.raises(ValueError, match="labels hold 60 classes; expected at most 50"):
        plots.gaps_by_class(torch.ones(60), torch.ones(60), torch.arange(60))
    with pytest.raises(ValueError, match="order is 'name'; expected one of gap, class"):
        plots.gaps_by_class([1.0], [1.0], order="name")  # type: ignore[arg-type]
    assert gaps.APPROXIMATION != gaps.AMORTISATION


# The histogram


def filled(axes: Axes) -> dict[str, list[tuple[float, float, float]]]:
    """(left, right, height) of the bars of each colour."""
    bars: dict[str, list[tuple[float, float, float]]] = {}
    for patch in axes.patches:
        if isinstance(patch, Rectangle):
            colour = to_hex(patch.get_facecolor())
            bars.setdefault(colour, []).append((patch.get_x(), patch.get_x() + patch.get_width(), patch.get_height()))
    return bars


def test_histograms_share_bins_and_count_everything_shown() -> None:
    log_p = -100 + 10 * torch.randn(500)
    elbo = log_p - 5
    axes = plots.evidence_histogram(log_p, elbo=elbo).axes[0]
    bars = filled(axes)
    blue, orange = bars[evaluation.EVIDENCE.lower()], bars[evaluation.ELBO.lower()]
    assert [bar[:2] for bar in blue] == [bar[:2] for bar in orange]
    low = blue[0][0]
    assert sum(bar[2] for bar in blue) == (log_p >= low).sum()
    assert sum(bar[2] for bar in orange) == (elbo >= low).sum()
    beyond = [int((one < low).sum()) for one in (log_p, elbo)]
    (note,) = axes.texts
    assert f"← {beyond[1]} below (ELBO)" in note.get_text()
    assert beyond[1] > 0
    means = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert means == [f"$\\log p(x)$, mean −{-log_p.mean():.2f}", f"ELBO, mean −{-elbo.mean():.2f}"]
    assert axes.get_ylabel() == "data"


def test_the_worst_are_shown_with_their_values_and_marked() -> None:
    log_p = -100 + 10 * torch.randn(500)
    order = log_p.argsort()[:3]
    images = torch.rand(3, 1, 8, 8)
    figure = plots.evidence_histogram(log_p, images, log_p[order], worst_captions=["a 1", "a 2", "a 3"])
    axes, *worst = figure.axes
    assert [w.get_xlabel() for w in worst] == [f"−{-v:.1f}\na {i + 1}" for i, v in enumerate(log_p[order].tolist())]
    for image, w in zip(images, worst, strict=True):
        assert np.array_equal(np.asarray(w.images[0].get_array()), image[0].numpy())
    (marks,) = axes.collections
    np.testing.assert_allclose([xy(path)[0, 0] for path in marks.get_paths()], log_p[order].numpy(), rtol=1e-6)
    assert not axes.texts  # stretched, so that the marks are in the picture, and nothing lies below


def test_the_foot_names_the_marks_that_are_drawn() -> None:
    log_p = torch.cat([-400 - torch.arange(3.0), -100 - 15 * torch.rand(1000)])
    worst = log_p[torch.tensor([2, 1, 0])]
    assert "short lines" not in words(plots.evidence_histogram(log_p, torch.rand(3, 8, 8), worst))
    worst[2] = log_p[3:].min()
    assert "of which 1 the short lines" in words(plots.evidence_histogram(log_p, torch.rand(3, 8, 8), worst))


def test_a_histogram_of_which_most_are_equal_has_bars() -> None:
    bars = filled(plots.evidence_histogram(torch.cat([torch.full((800,), -10.0), -10 - 40 * torch.rand(200)])).axes[0])
    assert len(bars[evaluation.EVIDENCE.lower()]) > 8


def test_histograms_of_few_equal_or_missing_values() -> None:
    for values in ([-100.0], [-100.0] * 50, [-100.0, -90.0]):
        low, high = plots.evidence_histogram(values).axes[0].get_xlim()
        assert low < min(values) <= max(values) < high
    figure = plots.evidence_histogram([-100.0, math.nan, -math.inf, -90.0], elbo=[-101.0, -99.0, -99.0, -91.0])
    assert "Left out: 2 of 4 data" in words(figure)
    assert sum(bar[2] for bar in filled(figure.axes[0])[evaluation.ELBO.lower()]) >= 1
    with pytest.raises(ValueError, match="not finite for any of 2 data"):
        plots.evidence_histogram([math.nan, math.nan])


def test_outliers_do_not_squash_the_histogram() -> None:
    log_p = -100 + torch.randn(60_000)
    log_p[0] = -1e6
    low, high = plots.evidence_histogram(log_p).axes[0].get_xlim()
    assert -105 < low < high < -90


def test_histograms_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"elbo have shape \(2,\); expected \(3,\)"):
        plots.evidence_histogram(torch.ones(3), elbo=torch.ones(2))
    with pytest.raises(ValueError, match="one of worst_images and worst_values"):
        plots.evidence_histogram(torch.ones(3), torch.rand(1, 8, 8))
    with pytest.raises(ValueError, match="21 worst images; expected at most 20"):
        plots.evidence_histogram(torch.ones(3), torch.rand(21, 8, 8), torch.ones(21))
    with pytest.raises(ValueError, match="expected 1 strings"):
        plots.evidence_histogram(torch.ones(3), torch.rand(1, 8, 8), torch.ones(1), worst_captions=["a", "b"])


# The estimates against K


def test_curves_rise_over_a_log_axis_to_the_exact_value() -> None:
    figure = plots.evidence_by_particles(
        [1000, 10], [-105.0, -110.0], [(-106.0, -104.0), (-112.0, -108.0)], exact=-100.0, elbo=-120.0
    )
    axes = figure.axes[0]
    curve, elbo, exact = axes.lines
    assert np.asarray(curve.get_xdata()).tolist() == [10, 1000]  # in order
    assert np.asarray(curve.get_ydata()).tolist() == [-110, -105]
    (bars,) = axes.collections
    assert [xy(path).tolist() for path in bars.get_paths()] == [
        [[10, -112], [10, -108]],
        [[1000, -106], [1000, -104]],
    ]
    assert (np.asarray(elbo.get_xdata()).tolist(), np.asarray(elbo.get_ydata()).tolist()) == ([1.0], [-120.0])
    assert np.asarray(exact.get_ydata()).tolist() == [-100.0, -100.0]
    assert legend(figure) == ["importance sampling", "ELBO, at $K=1$", "exact, by quadrature: −100.00"]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "1,000"]
    assert axes.get_ylabel() == "mean $\\log p(x)$, nats per datum"


def test_several_curves_stand_side_by_side() -> None:
    figure = plots.evidence_by_particles([10, 100], {"q": [-3.0, -2.0], "defensive": [-1.0, math.nan]})
    first, second = figure.axes[0].lines
    x_first, x_second = np.asarray(first.get_xdata()), np.asarray(second.get_xdata())
    assert (x_first < x_second).all()
    np.testing.assert_allclose(x_first, [10, 100], rtol=0.05)
    assert first.get_color() != second.get_color()
    assert "1 means are not finite" in words(figure)


def test_particles_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="num_particles are"):
        plots.evidence_by_particles([0, 10], [1.0, 2.0])
    with pytest.raises(ValueError, match="num_particles are"):
        plots.evidence_by_particles([10, 10], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"means of q have shape \(1,\); expected \(2,\)"):
        plots.evidence_by_particles([1, 10], {"q": [1.0]})
    with pytest.raises(ValueError, match="intervals of q are 1; expected 2"):
        plots.evidence_by_particles([1, 10], {"q": [1.0, 2.0]}, {"q": [(0.0, 1.0)]})
    with pytest.raises(ValueError, match=r"intervals of \['p'\]"):
        plots.evidence_by_particles([1, 10], {"q": [1.0, 2.0]}, {"p": [(0.0, 1.0)] * 2})
    with pytest.raises(ValueError, match="no mean of q is finite"):
        plots.evidence_by_particles([1], {"q": [math.nan]})


# Rate and distortion


def test_a_model_is_a_point_and_its_evidence_lies_on_its_line() -> None:
    figure = plots.rate_distortion(
        {"VAE": torch.tensor([8.0, 125.0])},
        intervals={"VAE": ((7.0, 9.0), (124.0, 126.0))},
        log_evidence={"VAE": -120.0},
    )
    axes = figure.axes[0]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    (truth, point) = [(np.asarray(p.get_xdata())[0], np.asarray(p.get_ydata())[0]) for p in points]
    assert point == (125.0, 8.0)
    assert truth == (112.0, 8.0)
    assert truth[0] + truth[1] == 120.0
    assert [xy(c.get_paths()[0]).tolist() for c in axes.collections] == [
        [[125, 7], [125, 9]],
        [[124, 8], [126, 8]],
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distortion $D$, nats per datum", "rate $R$, nats per datum")
    assert legend(figure)[0] == "VAE, ELBO −133.00, log p(x) −120.00"
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < high
    assert axes.get_xlim()[0] < 112
    assert axes.get_xlim()[1] > 126


def test_lines_of_equal_elbo_are_where_they_say() -> None:
    axes = plots.rate_distortion({"a": [5.0, 100.0], "b": [9.0, 130.0]}).axes[0]
    lines = [line for line in axes.lines if isinstance(line, AxLine)]
    totals = {round(sum(line.get_xy1() or ())) for line in lines}
    assert all(line.get_slope() == -1 for line in lines)
    assert len(totals) >= 4
    assert axes.texts
    for text in axes.texts:
        x, y = text.get_position()
        assert x + y == pytest.approx(-float(text.get_text().replace("−", "-")))
        assert round(x + y) in totals
        assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < y < axes.get_ylim()[1]


def test_numbers_of_close_lines_have_the_digits_of_their_step() -> None:
    axes = plots.rate_distortion({"one": [7.80, 124.90], "two": [7.86, 124.88]}).axes[0]
    assert len(axes.texts) >= 3
    for text in axes.texts:
        x, y = text.get_position()
        assert x + y == pytest.approx(-float(text.get_text().replace("−", "-")), abs=1e-9)


def test_a_path_ends_in_its_point_and_starts_outside() -> None:
    epochs = torch.arange(1, 101)
    path = torch.stack([8 - 6 / epochs, 110 + 400 / epochs**2], -1)
    path[50] = math.nan
    figure = plots.rate_distortion({"VAE": path})
    axes = figure.axes[0]
    line = next(line for line in axes.lines if line.get_marker() == ".")
    assert len(np.asarray(line.get_xdata())) == 100
    end = next(line for line in axes.lines if line.get_marker() == "o")
    assert np.asarray(end.get_ydata())[0] == pytest.approx(8 - 0.06)
    outside = int((np.asarray(line.get_xdata()) > axes.get_xlim()[1]).sum())
    assert 0 < outside <= 10
    assert f"The first {outside} points of the paths are outside the picture." in words(figure)
    assert "1 points are not finite." in words(figure)


def test_twenty_models_differ() -> None:
    figure = plots.rate_distortion({f"model {i}": [float(i), 100.0 + i % 7] for i in range(20)})
    looks = {
        (line.get_color(), line.get_marker()) for line in figure.axes[0].lines if str(line.get_marker()) in "osD^v"
    }
    assert len(looks) == 20


def test_rate_distortion_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="points are list"):
        plots.rate_distortion([[1.0, 2.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="points are dict; expected a mapping of 1 to 20"):
        plots.rate_distortion({})
    with pytest.raises(ValueError, match=r"points of a have shape \(1, 3\)"):
        plots.rate_distortion({"a": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="no point of a is finite"):
        plots.rate_distortion({"a": [1.0, math.nan]})
    with pytest.raises(ValueError, match=r"there is no point for \['b'\]"):
        plots.rate_distortion({"a": [1.0, 2.0]}, log_evidence={"b": -3.0})
    with pytest.raises(ValueError, match="log_evidence of a is nan"):
        plots.rate_distortion({"a": [1.0, 2.0]}, log_evidence={"a": math.nan})
    with pytest.raises(ValueError, match="expected one for the rate, one for the distortion"):
        plots.rate_distortion({"a": [1.0, 2.0]}, intervals={"a": ((1.0, 2.0),)})  # type: ignore[dict-item]


# The latent map


def test_map_colours_every_point_by_its_value() -> None:
    means, values = torch.randn(400, 2), torch.rand(400) * 3 - 1
    figure = plots.latent_map(means, values, label="gap in nats")
    (axes,) = figure.axes
    (bar,) = axes.child_axes
    (dots,) = axes.collections
    offsets, colours = np.asarray(dots.get_offsets()), np.asarray(dots.get_array())
    drawn = {tuple(point): value for point, value in zip(offsets, colours, strict=True)}
    for point, value in zip(means.double().tolist(), values.double().tolist(), strict=True):
        assert drawn[tuple(point)] == value
    assert (np.diff(colours) >= 0).all()  # the largest on top
    assert dots.get_clim() == pytest.approx(np.quantile(values.double(), [0.02, 0.98]))
    assert dots.colorbar.extend == "both"  # type: ignore[union-attr]
    assert bar.get_ylabel() == "gap in nats"
    assert bar.get_yscale() == "linear"
    assert dots.get_rasterized()
    assert axes.get_aspect() == 1.0


def test_map_of_a_skewed_gap_has_a_log_scale() -> None:
    figure = plots.latent_map(torch.randn(500, 2), (2 * torch.randn(500)).exp())
    assert figure.axes[0].child_axes[0].get_yscale() == "log"
    figure.draw_without_rendering()


def test_map_leaves_out_and_counts() -> None:
    means, values = torch.randn(1000, 2), torch.ones(1000)
    means[0], values[1] = math.nan, math.nan
    means[2] = 900.0
    figure = plots.latent_map(means, values, prior_circles=True)
    assert "Left out: 2 of 1000 data" in words(figure)
    assert "of 998 points" in words(figure)
    axes = figure.axes[0]
    assert axes.get_xlim()[1] < 6
    assert [patch.get_radius() for patch in axes.patches if isinstance(patch, Circle)] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"means have shape \(5, 3\); expected \(n, 2\)"):
        plots.latent_map(torch.ones(5, 3), torch.ones(5))
    with pytest.raises(ValueError, match=r"values have shape \(4,\); expected \(5,\)"):
        plots.latent_map(torch.ones(5, 2), torch.ones(4))


# The aggregate posterior


def test_marginals_are_densities_beside_the_priors() -> None:
    z = torch.randn(5000, 3) * torch.tensor([1.0, 0.5, 1.0])
    figure = plots.aggregate_posterior(z)
    assert [axes.get_title() for axes in figure.axes] == ["$z_{1}$", "$z_{2}$", "$z_{3}$"]
    assert legend(figure)[1] == r"prior $\mathcal{N}(0, 1)$"
    for axes in figure.axes:
        (steps,) = axes.patches
        heights, edges, _ = steps.get_data()  # type: ignore[attr-defined]
        assert (heights * np.diff(edges)).sum() == pytest.approx(1.0, abs=0.003)
        (curve,) = axes.lines
        x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
        np.testing.assert_allclose(y, np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi), rtol=1e-10)
        assert axes.get_ylim()[1] > max(heights.max(), y.max())
    assert figure.axes[1].get_ylim()[1] > figure.axes[0].get_ylim()[1]  # the narrow one is higher


def test_a_plane_has_maps_of_one_scale() -> None:
    z, prior = torch.randn(2000, 2), torch.randn(3000, 2) * 2
    for given in (None, prior):
        first, second, bar, *marginals = plots.aggregate_posterior(z, given).axes
        assert [axes.get_title() for axes in (first, second)] == ["aggregate posterior $q(z)$", "prior $p(z)$"]
        (of_q,), (of_p,) = first.images, second.images
        assert of_q.get_clim() == of_p.get_clim()
        assert of_q.get_extent() == of_p.get_extent()
        left, right, *_ = of_q.get_extent()
        for image in (of_q, of_p):
            density = np.asarray(image.get_array())
            cell = ((right - left) / len(density)) ** 2
            assert density.sum() * cell == pytest.approx(1.0, abs=0.01)
        assert bar.get_ylabel() == "density"
        assert len(marginals) == 2


def test_the_first_coordinate_of_a_map_lies_to_the_right() -> None:
    z = torch.randn(2000, 2) * 0.1 + torch.tensor([2.0, -1.0])
    (image,) = plots.aggregate_posterior(z).axes[0].images
    density, (left, right, *_) = np.asarray(image.get_array()), image.get_extent()
    middles = left + (right - left) * (np.arange(len(density)) + 0.5) / len(density)
    assert density.sum(0) @ middles / density.sum() == pytest.approx(2.0, abs=0.05)
    assert density.sum(1) @ middles / density.sum() == pytest.approx(-1.0, abs=0.05)


def test_dimensions_are_chosen_by_kl_or_by_hand() -> None:
    z = torch.randn(200, 40)
    figure = plots.aggregate_posterior(z, kl=torch.arange(40.0))
    assert len(figure.axes) == 24
    assert figure.axes[0].get_title() == "$z_{40}$, KL 39.00"
    assert "16 of 40 dimensions are not shown." in words(figure)
    figure = plots.aggregate_posterior(z, dimensions=[3, 1])
    assert [axes.get_title() for axes in figure.axes] == ["$z_{4}$", "$z_{2}$"]
    for bad in ([], [40], [1, 1], list(range(25))):
        with pytest.raises(ValueError, match="dimensions are"):
            plots.aggregate_posterior(z, dimensions=bad)


def test_a_spike_does_not_hide_the_prior() -> None:
    z = torch.cat([torch.randn(1000, 1) * 1e-4, torch.randn(10, 1)])
    axes = plots.aggregate_posterior(z).axes[0]
    assert axes.get_ylim()[1] < 9 * 0.4
    axes = plots.aggregate_posterior(torch.zeros(50, 1)).axes[0]
    assert axes.get_xlim()[0] < -3 < 3 < axes.get_xlim()[1]


def test_aggregates_leave_out_and_say_what_is_wrong() -> None:
    z = torch.randn(100, 3)
    z[0, 0] = math.nan
    assert "Left out: 1 of 100 data, whose latent is not finite." in words(plots.aggregate_posterior(z))
    with pytest.raises(ValueError, match=r"prior_samples have shape \(9, 2\); expected \(n, 3\)"):
        plots.aggregate_posterior(z, torch.ones(9, 2))
    with pytest.raises(ValueError, match=r"kl have shape \(2,\); expected \(3,\)"):
        plots.aggregate_posterior(z, kl=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"samples have shape \(5,\); expected \(n, d\)"):
        plots.aggregate_posterior(torch.ones(5))


# One convention for the latent plane


def place_of_the_extreme(axes: Axes, extreme: Any) -> tuple[float, float]:
    """The place on the axes of the pixel with the extreme value."""
    (image,) = axes.images
    pixels = np.asarray(image.get_array())
    row, column = np.unravel_index(extreme(pixels), pixels.shape)
    left, right, bottom, top = image.get_extent()
    assert image.origin == "lower"
    return (
        left + (column + 0.5) * (right - left) / pixels.shape[1],
        bottom + (row + 0.5) * (top - bottom) / pixels.shape[0],
    )


def test_every_map_of_the_plane_has_z1_to_the_right_and_z2_upwards() -> None:
    z1, z2 = 2.0, -1.0
    spike = torch.tensor([z1, z2]) + 0.05 * torch.randn(2000, 2)
    aggregate = plots.aggregate_posterior(torch.cat([spike, 3 * torch.randn(200, 2)])).axes[0]
    assert place_of_the_extreme(aggregate, np.argmax) == pytest.approx((z1, z2), abs=0.3)
    nodes = torch.linspace(-4, 4, 81)
    log_p = -0.5 * ((nodes[:, None] - z1) ** 2 + (nodes - z2) ** 2)  # the first index is that of z1
    whole = torch.tensor([[-4.0, 4.0, -4.0, 4.0]])
    figure = plots.true_posteriors(
        torch.rand(1, 8, 8), log_p[None], whole, torch.tensor([[z1, z2]]), torch.eye(2)[None]
    )
    posterior = figure.axes[1]
    assert place_of_the_extreme(posterior, np.argmin) == pytest.approx((z1, z2), abs=0.06)  # nats below the peak
    points = plots.latent_map(spike, torch.rand(2000)).axes[0]
    assert np.asarray(points.collections[0].get_offsets()).mean(0) == pytest.approx((z1, z2), abs=0.02)
    for axes, named in ((aggregate, "$z_{}$"), (posterior, "$z_{}$"), (points, "posterior mean of $z_{}$")):
        labels = [
            axes.get_xlabel().replace("{", "").replace("}", ""),
            axes.get_ylabel().replace("{", "").replace("}", ""),
        ]
        assert labels == [named.format(1), named.format(2)]
        assert axes.get_xlim()[0] < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < axes.get_ylim()[1]
