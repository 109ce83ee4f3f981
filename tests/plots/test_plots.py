"""What the pictures hold, not how they look."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from torch import Tensor

from ppl_vae import data, plots
from ppl_vae.plots.figure import about
from ppl_vae.plots.latent import names_of


@pytest.fixture
def grey() -> Tensor:
    return torch.rand(12, 1, 6, 5)


def mosaic(figure: Figure) -> np.ndarray:
    (image,) = figure.axes[0].images
    return np.asarray(image.get_array())


def foot(figure: Figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


def ticks(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def record(epoch: int, **more: Any) -> dict[str, Any]:
    elbo, kl = -130.0 - 300.0 / epoch**2, 6.0 - 1.0 / epoch
    values = {"elbo": elbo, "bound": elbo, "log_likelihood": elbo + kl, "kl": kl}
    validation = {f"validation_{key}": value - 1.0 for key, value in values.items()}
    return {
        "epoch": epoch,
        "seconds": 1.0,
        "reconstruction_error": 5.0,
        **values,
        **validation,
        **more,
    }


def every_figure() -> dict[str, Figure]:
    images = torch.rand(4, 1, 8, 8)
    caveat = "Grey values under a Bernoulli: no likelihood."
    return {
        "image_grid": plots.image_grid(images, caveat=caveat),
        "samples": plots.samples(images, caveat=caveat),
        "reconstructions": plots.reconstructions(images, images, caveat=caveat),
        "interpolations": plots.interpolations(images[:, None].repeat(1, 5, 1, 1, 1), images, images, caveat=caveat),
        "latent_grid": plots.latent_grid(images, caveat=caveat),
        "latent_scatter": plots.latent_scatter(torch.randn(30, 2), torch.arange(30) % 4, caveat=caveat),
        "training_curves": plots.training_curves([record(1), record(2)], caveat=caveat),
    }


# Every picture


def test_every_picture_carries_its_caveat() -> None:
    for name, figure in every_figure().items():
        assert "Grey values under a Bernoulli: no likelihood." in foot(figure), name


def test_no_words_overlap_nor_leave_the_picture() -> None:
    long = "A caveat of some length, that has to be broken into lines, since no picture is as wide as this one."
    figures = every_figure()
    figures["long"] = plots.samples(torch.rand(1, 8, 8), caveat=long)
    figures["bar"] = plots.latent_scatter(torch.randn(60, 2), torch.arange(60) % 30, caveat=long)
    for name, figure in figures.items():
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        boxes = [text.get_window_extent() for text in figure.texts]
        for axes in figure.axes:
            visible = [axes.title, axes.xaxis.label, axes.yaxis.label]
            boxes += [
                text.get_window_extent() for text in visible if text.get_text() and axes.axison | (text is axes.title)
            ]
        for box in boxes:
            assert box.x0 >= -1, name
            assert box.y0 >= -1, name
            assert box.x1 <= width + 1, name
            assert box.y1 <= height + 1, name
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:number]), name


def test_a_setting_of_the_users_own_wins_over_the_style() -> None:
    def size(**own: Any) -> float:
        with matplotlib.rc_context(own):
            return float(plots.training_curves([record(1), record(2)]).axes[0].title.get_size())

    assert size() == 9.0 == plots.style.STYLE["axes.titlesize"]
    assert size(**{"axes.titlesize": 14.0}) == 14.0


def test_the_style_is_for_figures_of_ones_own_too() -> None:
    from matplotlib import style

    with style.context("ppl_vae.plots.style"):
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.style.COLOURS)


def test_every_look_has_a_second_cue_in_grey() -> None:
    """Luma as PIL's L: classes and estimators that are alike in grey differ in their mark, dash or name."""

    def luma(colour: str) -> float:
        return float(np.array(matplotlib.colors.to_rgb(colour)) @ [0.299, 0.587, 0.114])

    styles = list(plots.estimators.styles_of([str(i) for i in range(24)]).values())
    for i, one in enumerate(styles):
        for other in styles[:i]:
            alike = abs(luma(one.colour) - luma(other.colour)) < 0.1
            assert not alike or (one.marker, one.dashes) != (other.marker, other.dashes)
    assert abs(luma(plots.gaps.APPROXIMATION) - luma(plots.gaps.AMORTISATION)) > 0.25  # bars, without a mark


def test_nothing_global_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it is now an error
    before = {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}
    for name, figure in every_figure().items():
        plots.save(figure, tmp_path / f"{name}.png", dpi=50)
    after = {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}
    assert after == before  # the backend is one of them


# save


def test_save_writes_a_png_and_leaves_nothing_else(tmp_path: Path, grey: Tensor) -> None:
    path = tmp_path / "samples.png"
    assert plots.save(plots.samples(grey), str(path)) == path
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    plots.save(plots.samples(1 - grey), path)
    assert path.read_bytes() != first
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]


def test_save_obeys_the_umask(tmp_path: Path, grey: Tensor) -> None:
    (tmp_path / "other").touch()
    path = plots.save(plots.samples(grey), tmp_path / "samples.png")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_save_that_fails_leaves_the_older_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.png"
    path.write_bytes(b"old")

    def broken(self: Figure, file: BinaryIO, **_: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        plots.save(Figure(), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]


def test_save_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name ending in \.png"):
        plots.save(Figure(), tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="dpi is 0"):
        plots.save(Figure(), tmp_path / "a.png", dpi=0)
    with pytest.raises(FileNotFoundError, match="create it first"):
        plots.save(Figure(), tmp_path / "nowhere" / "a.png")


# Mosaics


@pytest.mark.parametrize("columns", [None, 1, 5, 12, 100])
def test_tiles_of_a_grid_are_the_images(grey: Tensor, columns: int | None) -> None:
    pixels = mosaic(plots.image_grid(grey, columns=columns))
    columns = 4 if columns is None else min(columns, 12)
    rows = math.ceil(12 / columns)
    assert pixels.shape == (rows * 7 - 1, columns * 6 - 1)  # a pixel between
    for number, image in enumerate(grey[:, 0]):
        i, j = divmod(number, columns)
        assert np.array_equal(pixels[i * 7 : i * 7 + 6, j * 6 : j * 6 + 5], image.numpy())
    assert (pixels[6::7] == 1).all()
    assert (pixels[:, 5::6] == 1).all()


def test_tiles_of_a_colour_grid_are_the_images() -> None:
    images = torch.rand(6, 3, 4, 4)
    pixels = mosaic(plots.image_grid(images, columns=3))
    assert pixels.shape == (9, 14, 3)
    assert np.array_equal(pixels[5:9, 10:14], images[5].permute(1, 2, 0).numpy())


def test_a_grid_shows_black_as_zero_and_white_as_one() -> None:
    (image,) = plots.image_grid(torch.full((1, 4, 4), 0.5)).axes[0].images
    assert image.get_clim() == (0.0, 1.0)


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (3, 3), (7, 3), (10, 5), (12, 4), (16, 4), (64, 8), (100, 10)]
)
def test_a_grid_is_about_square(count: int, columns: int) -> None:
    assert mosaic(plots.image_grid(torch.rand(count, 4, 4))).shape[1] == columns * 5 - 1


def test_images_come_in_many_forms(grey: Tensor) -> None:
    expected = mosaic(plots.image_grid(grey))
    for images in (grey[:, 0], grey.numpy(), list(grey), grey[:, 0].tolist(), grey.clone().requires_grad_()):
        assert np.array_equal(mosaic(plots.image_grid(images)), expected)
    assert mosaic(plots.image_grid(grey.bfloat16())).dtype == np.float32
    assert mosaic(plots.image_grid(grey.double())).dtype == np.float64
    assert np.array_equal(mosaic(plots.image_grid(grey > 0.5)), mosaic(plots.image_grid((grey > 0.5).float())))


def test_value_range_maps_to_black_and_white() -> None:
    images = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 2, 2)
    figure = plots.image_grid(images, value_range=(-1.0, 1.0))
    assert mosaic(figure).tolist() == [[0.0, 0.5], [1.0, 1.0]]
    assert "25% of the values of images lie outside [-1, 1]" in foot(figure)
    assert "outside" not in foot(plots.image_grid(images, value_range=(-1.0, 3.0)))

    photograph = torch.tensor([0, 51, 255, 255], dtype=torch.uint8).reshape(1, 2, 2)
    np.testing.assert_allclose(mosaic(plots.image_grid(photograph)), [[0.0, 0.2], [1.0, 1.0]], rtol=1e-6)


def test_image_pixels_are_a_whole_number_of_dots() -> None:
    figure = plots.image_grid(torch.rand(100, 28, 28))
    figure.set_dpi(plots.figure.DPI)
    box = figure.axes[0].get_window_extent()
    assert (box.width / 289, box.height / 289) == (pytest.approx(4.0), pytest.approx(4.0))


def test_reconstructions_pair_inputs_and_outputs() -> None:
    inputs, outputs = torch.rand(4, 1, 6, 6), torch.rand(4, 1, 6, 6)
    figure = plots.reconstructions(inputs, outputs, title="A title")
    pixels = mosaic(figure)
    assert pixels.shape == (13, 27)
    for j in range(4):
        assert np.array_equal(pixels[:6, 7 * j : 7 * j + 6], inputs[j, 0].numpy())
        assert np.array_equal(pixels[7:, 7 * j : 7 * j + 6], outputs[j, 0].numpy())
    axes = figure.axes[0]
    assert axes.get_title() == "A title"
    assert ticks(axes) == ["input", "output"]
    assert axes.get_yticks().tolist() == [2.5, 9.5]  # the middles of the rows


def test_many_reconstructions_are_broken_into_blocks() -> None:
    inputs, outputs = torch.rand(24, 3, 6, 6), torch.rand(24, 3, 6, 6)
    figure = plots.reconstructions(inputs, outputs)
    pixels = mosaic(figure)  # 3 blocks of 8 pairs, 3 pixels between
    assert pixels.shape == (3 * 13 + 2 * 3, 8 * 7 - 1, 3)
    assert np.array_equal(pixels[16:22, 0:6], inputs[8].permute(1, 2, 0).numpy())
    assert np.array_equal(pixels[23:29, 0:6], outputs[8].permute(1, 2, 0).numpy())
    assert ticks(figure.axes[0]) == ["input", "output"] * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_interpolations_are_rows_with_the_data_at_both_ends(channels: int) -> None:
    paths, first, last = (torch.rand(*n, channels, 6, 6) for n in ((2, 4), (2,), (2,)))
    figure = plots.interpolations(paths, first, last)
    pixels = mosaic(figure)  # 4 steps of 6 pixels, 3 pixels between the path and its ends
    assert pixels.shape[:2] == (13, 6 + 3 + 27 + 3 + 6)

    def pixels_of(image: Tensor) -> np.ndarray:
        return (image[0] if channels == 1 else image.permute(1, 2, 0)).numpy()

    for i, top in enumerate((0, 7)):
        assert np.array_equal(pixels[top : top + 6, :6], pixels_of(first[i]))
        assert np.array_equal(pixels[top : top + 6, -6:], pixels_of(last[i]))
        for k in range(4):
            assert np.array_equal(pixels[top : top + 6, 9 + 7 * k : 15 + 7 * k], pixels_of(paths[i, k]))
    assert (pixels[:, 6:9] == 1).all()
    assert figure.axes[0].get_xticks().tolist() == [2.5, 41.5]
    alone = mosaic(plots.interpolations(paths))
    assert np.array_equal(alone, pixels[:, 9:-9])


def test_interpolations_need_data_at_both_ends_of_every_path(grey: Tensor) -> None:
    paths = grey.reshape(3, 4, 1, 6, 5)
    with pytest.raises(ValueError, match="only one of first and last"):
        plots.interpolations(paths, grey[:3])
    with pytest.raises(ValueError, match="last are 2 grey images of 6 x 5; expected one for each of 3 paths"):
        plots.interpolations(paths, grey[:3], grey[:2])
    with pytest.raises(ValueError, match="first are 3 grey images of 6 x 4"):
        plots.interpolations(paths, grey[:3, ..., :4], grey[:3, ..., :4])
    with pytest.raises(ValueError, match="paths have shape"):
        plots.interpolations(paths[0, :, 0], grey[:3], grey[:3])


def test_reconstructions_must_pair_up(grey: Tensor) -> None:
    with pytest.raises(ValueError, match="12 grey images of 6 x 5 and outputs 11 grey images of 6 x 5"):
        plots.reconstructions(grey, grey[:11])
    with pytest.raises(ValueError, match="outputs have shape"):
        plots.reconstructions(grey, grey.flatten(1))


def test_samples_are_a_titled_grid(grey: Tensor) -> None:
    figure = plots.samples(grey)
    assert figure.axes[0].get_title() == "Samples from the prior"
    assert np.array_equal(mosaic(figure), mosaic(plots.image_grid(grey)))


def test_samples_say_whether_they_are_means_or_draws(grey: Tensor) -> None:
    titles = [plots.samples(grey, mean=mean).axes[0].get_title() for mean in (True, False)]
    assert titles == ["Samples from the prior: means of p(x|z)", "Samples from the prior: draws of p(x|z)"]


def colour_at(axes: Axes, z: tuple[float, float]) -> np.ndarray:
    """The pixel that a picture draws at a point of its axes."""
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    pixels = np.asarray(image.get_array())
    assert image.origin == "upper"  # the first row of pixels at `top`
    column, row = (z[0] - left) / (right - left), (top - z[1]) / (top - bottom)
    return pixels[int(row * pixels.shape[0]), int(column * pixels.shape[1])]


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize(
    "grid", [{}, {"step": 0.1}, {"step": 0.25}, {"step": 0.3}, {"low": -3.0, "high": 1.0, "step": 0.5}]
)
def test_latent_grid_draws_each_image_at_the_z_that_the_ticks_name(grid: dict[str, float], size: int) -> None:
    """Each image has its z for its grey, so that every tile says what was decoded there."""
    points = plots.grid_points(**grid)
    for axis in (0, 1):
        images = (points[..., axis, None, None, None] / 10 + 0.5).expand(-1, -1, 1, size, size)
        axes = plots.latent_grid(images, points=points).axes[0]
        for z in points.reshape(-1, 2).tolist():
            assert colour_at(axes, (z[0], z[1])) == pytest.approx(z[axis] / 10 + 0.5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_1$", "$z_2$")
    first, last, half = points.min().item(), points.max().item(), (points[1, 0, 0] - points[0, 0, 0]).item() / 2
    for limits in (axes.get_xlim(), axes.get_ylim()):  # z1 grows to the right, and z2 upwards
        assert limits == pytest.approx((first - half, last + half), rel=1e-5)


@pytest.mark.parametrize(("step", "says"), [(0.1, True), (0.25, True), (0.2, False)])
def test_latent_grid_without_points_is_that_of_a_step_that_divides(step: float, says: bool) -> None:
    points = plots.grid_points(step=step)
    images = (points[..., 0, None, None] / 10 + 0.5).expand(-1, -1, 28, 28)
    figure = plots.latent_grid(images)
    for z in points.reshape(-1, 2).tolist():
        assert colour_at(figure.axes[0], (z[0], z[1])) == pytest.approx(z[0] / 10 + 0.5)
    assert (f"The axes are those of grid_points(step={step:g})" in foot(figure)) is says
    assert foot(plots.latent_grid(images, points=points)) == foot(plots.latent_grid(images, high=1.8)) == ""


def test_latent_grid_refuses_points_that_are_not_its_own() -> None:
    images, points = torch.rand(400, 28, 28), plots.grid_points()
    for wrong in (plots.grid_points(step=0.1), points.transpose(0, 1), points**3, points[..., 0], torch.zeros(0)):
        with pytest.raises(ValueError, match=r"latent_grid: points have shape .* expected the z of 20 x 20 images"):
            plots.latent_grid(images, points=wrong)


def test_small_digits_stand_apart_in_the_latent_grid() -> None:
    images = torch.rand(20, 20, 1, 8, 8)
    pixels = mosaic(plots.latent_grid(images))
    assert pixels.shape == (179, 179)
    assert (pixels[8::9] == 1).all()
    assert (pixels[:, 8::9] == 1).all()
    for i, j in ((0, 0), (0, 19), (7, 3), (19, 19)):  # z1 to the right, z2 upwards
        top, left = 9 * (19 - j), 9 * i
        assert np.array_equal(pixels[top : top + 8, left : left + 8], images[i, j, 0].numpy())
    assert mosaic(plots.latent_grid(torch.rand(20, 20, 1, 28, 28))).shape == (560, 560)


def test_the_scatter_lies_over_the_grid() -> None:
    points = plots.grid_points(step=0.25)
    grid = plots.latent_grid(torch.rand(256, 8, 8), points=points).axes[0]
    means = points.reshape(-1, 2)
    scatter = plots.latent_scatter(means, limits=grid.get_xlim()).axes[0]
    assert scatter.get_xlim() == scatter.get_ylim() == grid.get_xlim() == grid.get_ylim()
    drawn = np.asarray(scatter.collections[0].get_offsets())  # (z1, z2), to the right and upwards
    assert {tuple(z) for z in drawn.tolist()} == {tuple(z) for z in means.tolist()}
    assert (scatter.get_xlabel(), scatter.get_ylabel()) == ("posterior mean of $z_1$", "posterior mean of $z_2$")
    assert "Outside the picture: 1 of 2 points." in foot(plots.latent_scatter([[0.0, 0.0], [3.0, 0.0]], limits=(-2, 2)))
    for limits in ((2.0, -2.0), (1.0, 1.0), (0.0, math.inf), (math.nan, 1.0), 3.0):
        with pytest.raises(ValueError, match="latent_scatter: limits"):
            plots.latent_scatter(means, limits=limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(9, 1, 4, 4), (9, 4, 4), (3, 3, 4, 4), (3, 3, 1, 4, 4)])
def test_latent_grid_takes_a_flattened_grid(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    pixels = mosaic(plots.latent_grid(images))
    assert pixels.shape == (14, 14)
    assert np.array_equal(pixels[:4, 5:9], images.reshape(9, 4, 4)[5].numpy())  # (1, 2): the middle of the top


def test_latent_grid_of_one_or_colour() -> None:
    assert mosaic(plots.latent_grid(torch.rand(1, 1, 4, 4))).shape == (4, 4)
    assert mosaic(plots.latent_grid(torch.rand(2, 2, 3, 4, 4))).shape == (9, 9, 3)


def test_latent_grid_has_a_title() -> None:
    assert plots.latent_grid(torch.rand(4, 1, 8, 8), high=2.0).axes[0].get_title() == "Decoded latent plane"


def test_dollars_in_names_of_runs_and_labels_are_letters() -> None:
    split = data.Split((torch.randn(20, 2),), torch.arange(20) % 2, label_names=("cost$_$", "$$"))
    figure = plots.latent_scatter(split.x[:], split.labels, class_names=names_of(split), caveat=about("cost$_$", "$$"))
    figure.draw_without_rendering()  # mathematics would be refused
    assert names_of(replace(split, label_names=("a",))) == {0: "a", 1: "1"}


def test_many_names_leave_room_for_what_they_are() -> None:
    names = [f"a long name, number {i}" for i in range(13)]
    figure = plots.latent_scatter(torch.randn(130, 2), torch.arange(130) % 13, class_names=names)
    figure.draw_without_rendering()
    label = figure.axes[0].child_axes[0].yaxis.label.get_window_extent()
    assert label.x1 <= figure.bbox.width


def test_latent_grid_must_be_square() -> None:
    with pytest.raises(ValueError, match="8 images; expected a square number"):
        plots.latent_grid(torch.rand(8, 1, 4, 4))
    with pytest.raises(ValueError, match="grid of 2 x 3; expected a square"):
        plots.latent_grid(torch.rand(2, 3, 1, 4, 4))
    with pytest.raises(ValueError, match="low is 1 and high is 1"):
        plots.latent_grid(torch.rand(4, 1, 4, 4), low=1, high=1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 784), r"images have shape \(16, 784\).*make vectors images first: reshape\(-1, 1, 28, 28\)"),
        ((16, 50), r"images have shape \(16, 50\); expected \(n, C, H, W\) with C = 1 or 3, or \(n, H, W\)$"),
        ((16, 8, 8, 3), r"the channels come second: permute\(0, 3, 1, 2\)"),
        ((16, 2, 8, 8), "with C = 1 or 3"),
        ((0, 1, 8, 8), "with C = 1 or 3"),
        ((784,), "with C = 1 or 3"),
    ],
)
def test_what_is_no_image_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.image_grid(torch.zeros(shape))


def test_bad_values_are_refused(grey: Tensor) -> None:
    with pytest.raises(ValueError, match="images hold NaN or infinity"):
        plots.image_grid(torch.full((1, 4, 4), math.nan))
    with pytest.raises(ValueError, match="value_range is"):
        plots.image_grid(grey, value_range=(1.0, 1.0))
    with pytest.raises(ValueError, match="columns is 0"):
        plots.image_grid(grey, columns=0)
    with pytest.raises(ValueError, match="images are no array"):
        plots.image_grid([torch.zeros(4, 4), torch.zeros(5, 5)])
    with pytest.raises(ValueError, match="images are no array"):
        plots.image_grid(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected numbers"):
        plots.image_grid(np.array([[["a"]]]))


# Points of the latent plane


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grid_points_are_the_articles(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    points = plots.grid_points()
    tenths = torch.tensor([i / 10 for i in range(-20, 20, 2)])  # each the nearest to its decimal
    assert points.dtype == dtype
    assert torch.equal(points[:, 0, 0], tenths)
    assert torch.equal(points[0, :, 1], tenths)
    assert torch.equal(points, torch.cartesian_prod(tenths, tenths).reshape(20, 20, 2))
    assert (points == 0).all(-1).sum() == 1  # and the origin is on the grid


def test_grid_points_elsewhere() -> None:
    assert plots.grid_points(0, 1, 0.3)[:, 0, 0].tolist() == pytest.approx([0.0, 0.3, 0.6, 0.9])
    assert plots.grid_points(0, 1, 2.0).shape == (1, 1, 2)
    for arguments in ((1, 1, 0.1), (2, 1, 0.1), (0, 1, 0.0), (0, 1, -1.0), (0, math.nan, 0.1)):
        with pytest.raises(ValueError, match="grid_points: low, high, step are"):
            plots.grid_points(*arguments)


def test_scatter_draws_every_point_in_the_colour_of_its_class() -> None:
    means, labels = torch.randn(200, 2), torch.tensor([7, 1, 3, 0]).repeat(50)
    axes = plots.latent_scatter(means, labels).axes[0]
    (dots,) = axes.collections
    offsets, codes = np.asarray(dots.get_offsets()), np.asarray(dots.get_array())
    drawn = {tuple(point): int(code) for point, code in zip(offsets, codes, strict=True)}
    classes = [0, 1, 3, 7]
    assert len(drawn) == 200
    for point, label in zip(means.double().tolist(), labels.tolist(), strict=True):
        assert classes[drawn[tuple(point)]] == label
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "3", "7"]
    handles = [to_hex(handle.get_color()) for handle in legend.get_lines()]
    assert handles == [plots.latent.CLASS_COLOURS[c].lower() for c in classes]  # a digit keeps its colour
    written = {text.get_text(): text.get_position() for text in axes.texts}  # which colour it is, in grey too
    assert list(written) == ["0", "1", "3", "7"]
    assert written["7"] == pytest.approx(np.median(means[labels == 7].double().numpy(), 0))
    assert [to_hex(colour) for colour in np.asarray(dots.cmap(np.arange(4))).tolist()] == handles
    assert [handle.get_marker() for handle in legend.get_lines()] == ["o", "s", "^", "*"]  # and its mark
    marks = [MarkerStyle(mark) for mark in "os^*"]
    for path, code in zip(dots.get_paths(), codes, strict=True):
        shape = marks[int(code)]
        assert np.array_equal(path.vertices, shape.get_path().transformed(shape.get_transform()).vertices)
    assert axes.get_aspect() == 1.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("posterior mean of $z_1$", "posterior mean of $z_2$")


@pytest.mark.parametrize("count", [11, 26, 50])
def test_scatter_of_many_classes_has_a_discrete_colour_bar(count: int) -> None:
    figure = plots.latent_scatter(torch.randn(100, 2), torch.arange(100) % count + 5)
    axes = figure.axes[0]
    assert axes.get_legend() is None
    (bar,) = axes.child_axes
    assert ticks(bar)[:2] in (["5", "6"], ["5", "7"], ["5", "8"])
    assert count == axes.collections[0].cmap.N


def test_scatter_without_labels_or_with_other_labels() -> None:
    axes = plots.latent_scatter(torch.randn(10, 2)).axes[0]
    assert axes.get_legend() is None
    assert not axes.child_axes
    for labels in ([-1.0, 4.0], np.array([True, False]), torch.tensor([-3, 900])):
        legend = plots.latent_scatter([[0.0, 0.0], [1.0, 1.0]], labels).axes[0].get_legend()
        assert legend is not None
        assert len(legend.get_texts()) == 2


def test_classes_have_the_names_that_are_given() -> None:
    names = ["zero", "one", "two"]
    axes = plots.latent_scatter(torch.randn(19, 2), [0] * 9 + [2] * 10, class_names=names).axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["zero", "two"]
    assert legend.get_title().get_text() == "class\n(data label)"
    assert [text.get_text() for text in axes.texts] == ["two"]  # nine points stay uncovered
    long = plots.latent_scatter(torch.randn(9, 2), [0] * 9, class_names=["a" * 80]).axes[0]
    assert long.get_legend().get_texts()[0].get_text() == "a" * 23 + "…"  # type: ignore[union-attr]
    long.figure.draw_without_rendering()
    assert long.get_window_extent().width > 200  # of 700
    with pytest.raises(ValueError, match="latent_scatter: class_names have no name for class 3"):
        plots.latent_scatter(torch.randn(2, 2), [0, 3], class_names=names)


def test_outliers_do_not_squash_the_scatter() -> None:
    means = torch.randn(2000, 2)
    means[0] = torch.tensor([500.0, -900.0])
    figure = plots.latent_scatter(means)
    axes = figure.axes[0]
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert -5 < low < -2
        assert 2 < high < 5
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = means.double().T
    outside = int(((x < left) | (x > right) | (y < bottom) | (y > top)).sum())
    assert outside >= 1
    assert f"Outside the picture: {outside} of 2000 points." in foot(figure)
    assert foot(plots.latent_scatter(torch.rand(2000, 2))) == ""


def test_scatter_of_a_collapsed_coordinate_and_of_one_point() -> None:
    axes = plots.latent_scatter(torch.stack([torch.randn(50), torch.zeros(50)], -1)).axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert (top - bottom) == pytest.approx((right - left) / 2)
    axes = plots.latent_scatter([[3.0, 4.0]], [0]).axes[0]
    assert axes.get_xlim()[0] < 3 < axes.get_xlim()[1]


def test_scatter_says_what_is_wrong() -> None:
    points = torch.zeros(60, 2)
    with pytest.raises(ValueError, match=r"means have shape \(60, 3\); expected \(n, 2\)"):
        plots.latent_scatter(torch.zeros(60, 3))
    with pytest.raises(ValueError, match="means have shape"):
        plots.latent_scatter(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="means hold NaN"):
        plots.latent_scatter(points / 0)
    with pytest.raises(ValueError, match=r"labels have shape \(59,\); expected \(60,\)"):
        plots.latent_scatter(points, torch.zeros(59))
    with pytest.raises(ValueError, match="labels hold fractions"):
        plots.latent_scatter(points, torch.full((60,), 0.5))
    with pytest.raises(ValueError, match="labels hold fractions, NaN or infinities"):
        plots.latent_scatter(points, torch.full((60,), torch.inf))
    with pytest.raises(ValueError, match="labels hold 60 classes"):
        plots.latent_scatter(points, torch.arange(60))


# The course of a training


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in axes.lines
    }


@pytest.mark.parametrize("epochs", [1, 2, 200])
def test_curves_have_four_panels(epochs: int) -> None:
    history = [record(epoch) for epoch in range(1, epochs + 1)]
    figure = plots.training_curves(history)
    elbo, log_likelihood, kl, error = figure.axes
    assert elbo.get_title() == "ELBO"
    assert error.get_title() == "Reconstruction error (validation)"
    assert [axes.get_ylabel() for axes in figure.axes] == ["nats per datum"] * 3 + ["mean L2 norm"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "epoch", "epoch"]
    for axes, key in ((elbo, "elbo"), (log_likelihood, "log_likelihood"), (kl, "kl")):
        xs = list(range(1, epochs + 1))
        assert lines(axes) == {
            "training": (xs, [r[key] for r in history]),
            "validation": (xs, [r[f"validation_{key}"] for r in history]),
        }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "validation"]
    for axes in figure.axes:  # what is one point wide still has a width
        assert axes.get_xlim()[0] < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < axes.get_ylim()[1]


def test_curves_of_one_epoch_are_points_one_can_see() -> None:
    (line,) = plots.training_curves([{"elbo": -100.0}]).axes[0].lines
    assert line.get_marker() == "o"
    assert line.get_markevery() == [0]


def test_curves_limits_are_robust_to_the_first_epochs() -> None:
    history = [{"epoch": e, "elbo": -130.0 - 400.0 * math.exp(-e) - 10.0 / e} for e in range(1, 201)]
    low, high = plots.training_curves(history).axes[0].get_ylim()
    assert -132 < low < -130.4  # epoch 21 on
    assert -130.1 < high < -129.9
    slow = [{"epoch": e, "elbo": -200.0 + e} for e in range(1, 201)]
    assert plots.training_curves(slow).axes[0].get_ylim()[0] < -199  # nothing to gain: nothing is cut


def test_a_value_that_was_not_measured_is_passed_over() -> None:
    history = [record(1), record(2, validation_elbo=None), record(3)]
    del history[1]["validation_kl"]
    elbo, _, kl, _ = plots.training_curves(history).axes
    for axes in (elbo, kl):
        assert lines(axes)["validation"][0] == [1, 3]
        assert lines(axes)["training"][0] == [1, 2, 3]
        assert not axes.texts


def test_a_value_that_is_not_finite_breaks_the_line_and_is_counted() -> None:
    history = [record(epoch) for epoch in range(1, 31)]
    for epoch in (10, 12):
        history[epoch]["elbo"] = math.nan
    history[20]["elbo"] = -math.inf
    axes = plots.training_curves(history).axes[0]
    drawn = np.array(lines(axes)["training"][1])
    assert np.flatnonzero(np.isnan(drawn)).tolist() == [10, 12, 20]
    assert [text.get_text() for text in axes.texts] == ["3 not finite"]
    assert axes.lines[0].get_markevery() == [11]  # alone between two gaps: seen as a point
    assert np.isfinite(axes.get_ylim()).all()
    everywhere = plots.training_curves([{"elbo": math.nan}]).axes[0]
    assert [text.get_text() for text in everywhere.texts] == ["1 not finite"]


def test_the_objectives_bound_is_drawn_where_it_is_another_number() -> None:
    history = [record(epoch) for epoch in range(1, 4)]
    assert "the objective's own bound, training" not in lines(plots.training_curves(history).axes[0])
    history = [record(epoch, bound=-120.0) for epoch in range(1, 4)]
    drawn = lines(plots.training_curves(history).axes[0])
    assert drawn["the objective's own bound, training"] == ([1, 2, 3], [-120.0] * 3)


@pytest.mark.parametrize(
    ("keys", "titles"),
    [
        (["elbo"], ["ELBO"]),
        (["bound"], ["ELBO"]),
        (["elbo", "reconstruction_error"], ["ELBO", "Reconstruction error (validation)"]),
    ],
)
def test_panels_without_values_are_left_out(keys: list[str], titles: list[str]) -> None:
    figure = plots.training_curves([{key: value for key, value in record(1).items() if key in keys}])
    assert [axes.get_title() for axes in figure.axes] == titles
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}


def test_epochs_are_counted_where_they_are_not_given() -> None:
    history = ({"elbo": torch.tensor(-float(i))} for i in range(3))  # a generator of tensors, too
    assert lines(plots.training_curves(history).axes[0])["training"] == ([1, 2, 3], [0, -1, -2])  # type: ignore[arg-type]


def test_curves_say_what_is_wrong() -> None:
    nothing: list[list[dict[str, Any]]] = [[], [{}], [{"epoch": 1, "seconds": 2.0, "elbo": None}]]
    for history in nothing:
        with pytest.raises(ValueError, match=r"history holds nothing to draw.*elbo"):
            plots.training_curves(history)
    with pytest.raises(ValueError, match="elbo in record 1 of history is 'low'; expected a number"):
        plots.training_curves([{"elbo": "low"}])
    with pytest.raises(ValueError, match="epoch in record 1 of history is nan"):
        plots.training_curves([{"elbo": 1.0, "epoch": math.nan}])
    with pytest.raises(ValueError, match="history holds a str"):
        plots.training_curves({"elbo": [1.0]})  # type: ignore[arg-type]
