"""The pictures of a comparison and of a race: what is drawn where, from hand-made results."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from ppl_vae import plots
from ppl_vae.comparison import Block, Comparison, KnownEvidence, Measured, Row
from ppl_vae.comparison.races.outcome import Race
from ppl_vae.comparison.races.runs import Point, RaceRun
from ppl_vae.plots.estimators import COLOURS, log_ticks, styles_of

FLOOR = 0.025
MANY = [f"Estimator{i}" for i in range(12)]


def measured(value, spread=0.1):
    return Measured(value, value * (1 - spread), value * (1 + spread))


def block(snr=0.5, variance=4.0, bias=None, p=None, cost=0.3, norm=1.0, data=None):
    return Block(
        size=100,
        dead=0,
        norm=measured(norm),
        variance=measured(variance),
        snr=measured(snr),
        snr_quartiles=(0.4 * snr, 2.5 * snr),
        snr_floor=FLOOR,
        bias=bias,
        bias_p=p,
        minibatch_variance=None if data is None else measured(data),
        seconds_to_tenth=measured(cost),
    )


def comparison(rows, evidence=None, device="cpu"):
    machine = {"device": device, "threads": 1}
    return Comparison(tuple(rows), (), evidence, 1000, 0, (8, 64), machine, 1.0)


def grid(names, particles=(1, 8, 64), blocks=("encoder", "decoder")):
    """The signal-to-noise of every block goes as K to the power of a half, or of minus a half for the encoder."""
    power = {"encoder": -0.5}
    rows = []
    for k, name in itertools.product(particles, names):
        found = {b: block(snr=0.8 * k ** power.get(b, 0.5), data=50.0) for b in blocks}
        rows.append(Row(name, k, "lower", value=-100.0, value_se=0.1, seconds=measured(0.001 * k), blocks=found))
    return comparison(rows)


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def foot(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def legend(figure):
    """The entries; which column they stand in is of no matter."""
    return {text.get_text() for text in figure.legends[0].get_texts() if text.get_text().strip()}


def lines_of(axes, colour):
    return [line for line in axes.lines if line.get_color() == colour]


# The look of an estimator


def test_a_look_is_by_place_and_the_same_for_all_pictures():
    styles = styles_of(MANY)
    looks = {(s.colour, s.marker) for s in styles.values()}
    assert len(looks) == 12
    assert len({s.colour for s in list(styles.values())[: len(COLOURS)]}) == len(COLOURS)
    assert styles_of(MANY[:3])["Estimator2"] == styles["Estimator2"]
    failed = [Row("ELBO", 8, failed="no"), *grid(["IWAE"], particles=(8,)).rows]
    figure = plots.signal_to_noise(comparison(failed))
    assert lines_of(figure.axes[0], COLOURS[1])  # the place after the one that failed
    assert not lines_of(figure.axes[0], COLOURS[0])


def test_long_names_are_cut_and_said():
    style = styles_of(["a" * 60])["a" * 60]
    assert len(style.label) == 30
    assert style.label.endswith("…")


@pytest.mark.parametrize(("low", "high"), [(1e-9, 1e4), (0.3, 7.0), (2.0, 3.0)])
def test_logarithmic_axes_have_some_labels_and_not_many(low, high):
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 5
    assert all(low <= t <= high for t in ticks)


# Bias and variance


@pytest.mark.parametrize(
    ("bias", "p", "found"),
    [
        (Measured(0.5, 0.4, 0.6), 1e-9, True),
        (Measured(0.5, 0.4, 0.6), 0.2, False),
        (Measured(0.1, 0.0, 0.3), 0.4, False),
        (Measured(0.1, 0.0, 0.3), 1e-5, True),  # signs cancel in no projection
        (Measured(0.0, 0.0, 0.3), 1e-5, False),  # of no size that could be drawn
        (None, None, False),
    ],
)
def test_a_bias_is_one_if_a_test_finds_it(bias, p, found):
    assert block(bias=bias, p=p).is_biased() is found


def test_the_plane_tells_bias_from_none_seen_and_from_no_reference():
    rows = [
        Row("biased", 8, blocks={"encoder": block(variance=4.0, bias=Measured(0.5, 0.4, 0.6), p=1e-9, data=9.0)}),
        Row("unbiased", 8, blocks={"encoder": block(variance=2.0, bias=Measured(0.0, 0.0, 0.2), p=0.6, data=9.0)}),
        Row("alone", 8, blocks={"encoder": block(variance=1.0)}),
    ]
    figure = plots.bias_variance(comparison(rows), caveat="grey values")
    assert titles(figure) == ["encoder, K = 8"]
    (axes,) = figure.axes
    marks = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    by_colour = {line.get_color(): line for line in marks}
    biased, unbiased, alone = (by_colour[colour] for colour in COLOURS[:3])
    assert np.allclose([biased.get_xdata()[0], biased.get_ydata()[0]], [0.25, 4.0])
    assert unbiased.get_markerfacecolor() == "#FFFFFF"
    assert unbiased.get_ydata()[0] == 2.0
    assert (alone.get_marker(), alone.get_fillstyle()) == ("D", "left")
    assert unbiased.get_xdata()[0] == alone.get_xdata()[0]  # in the strip a place sideways is no value
    strip_ends = axes.patches[0].get_extents().transformed(axes.transData.inverted()).x1
    assert unbiased.get_xdata()[0] < strip_ends < biased.get_xdata()[0]
    upper_end = max(line.get_xdata()[-1] for line in lines_of(axes, COLOURS[1]))
    assert math.isclose(upper_end, 0.04)  # what may have escaped
    assert any(np.allclose(line.get_ydata(), 9.0) and line.get_linestyle() == ":" for line in axes.lines)
    assert foot(figure).startswith("grey values. Hollow: no bias found")
    assert "left half filled: no reference" in foot(figure)


def test_the_plane_has_a_panel_for_each_k_and_block():
    figure = plots.bias_variance(grid(MANY, blocks=("encoder", "decoder", "prior")))
    assert titles(figure) == [f"{b}, K = {k}" for k in (1, 8, 64) for b in ("encoder", "decoder", "prior")]
    assert legend(figure) == {*MANY}


def test_marks_at_one_place_stand_around_each_other_and_not_side_by_side():
    names = ["ELBO", "IWAE", "DReG"]
    for draw in (plots.bias_variance, plots.signal_to_noise):
        figure = draw(grid(names, particles=(8, 64)))
        for axes in figure.axes:
            marks = [line for line in axes.lines if line.get_marker() in "osD"]
            assert len(marks) == len(names) * (1 if draw is plots.bias_variance else 2)
            places = {(line.get_xdata()[0], line.get_ydata()[0]): [] for line in marks}
            for line in marks:
                places[line.get_xdata()[0], line.get_ydata()[0]].append((line.get_markersize(), -line.get_zorder()))
            for sizes in places.values():
                assert len(sizes) == len({size for size, _ in sizes}) == len(names)
                assert sizes == sorted(sizes)  # the larger ones lie below
            if draw is plots.signal_to_noise:
                assert {x for x, _ in places} == {8, 64}
        assert "around others: the same place" in foot(figure)


def test_what_has_no_noise_or_no_gradient_is_said_and_not_lost():
    rows = [
        Row("EnumeratedELBO", 1, blocks={"encoder": block(snr=math.inf, variance=0.0, cost=0.0)}),
        Row("CUBO", 1, blocks={"encoder": block(snr=0.0, variance=0.0, norm=0.0, cost=math.inf)}),
        Row("ELBO", 1, blocks={"encoder": block()}),
    ]
    figure = plots.bias_variance(comparison(rows))
    assert "No noise at all, drawn at the lower edge: EnumeratedELBO's encoder." in foot(figure)
    assert "No gradient: CUBO's encoder." in foot(figure)
    assert not [line for line in lines_of(figure.axes[0], COLOURS[1]) if line.get_marker() != "None"]
    figure = plots.signal_to_noise(comparison(rows))
    assert "No noise at all: EnumeratedELBO's encoder." in foot(figure)
    assert "No gradient: CUBO's encoder." in foot(figure)


# Signal-to-noise


def test_the_exponents_stand_under_their_panel():
    figure = plots.signal_to_noise(grid(["IWAE"]))
    assert titles(figure) == ["encoder", "decoder"]
    words = [axes.get_legend().get_texts()[0].get_text() for axes in figure.axes]
    assert words[0].startswith("IWAE  −0.50 [")
    assert words[1].startswith("IWAE  0.50 [")
    for axes, power in zip(figure.axes, (-0.5, 0.5), strict=True):
        assert axes.get_xscale() == axes.get_yscale() == "log"
        fitted = next(line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.1)
        x, y = np.log(fitted.get_xdata()), np.log(fitted.get_ydata())
        assert math.isclose((y[1] - y[0]) / (x[1] - x[0]), power, rel_tol=1e-6)


def test_what_is_in_the_noise_is_hollow_and_out_of_the_fit():
    rows = [*grid(["IWAE"]).rows, Row("IWAE", 512, blocks={"encoder": block(snr=0.5 * FLOOR)})]
    figure = plots.signal_to_noise(comparison(rows))
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in marks] == [1, 8, 64, 512]
    assert [line.get_markerfacecolor() == "#FFFFFF" for line in marks] == [False, False, False, True]
    assert "Fitted without the points in the noise: IWAE's encoder." in foot(figure)
    assert figure.axes[0].get_ylim()[0] <= 0.5 * FLOOR


def test_one_k_has_no_exponent_and_many_estimators_no_quartiles():
    figure = plots.signal_to_noise(grid(MANY, particles=(8,)))
    assert figure.axes[0].get_legend() is None
    assert "quartiles" not in foot(figure)
    assert "quartiles" in foot(plots.signal_to_noise(grid(MANY[:3], particles=(8,))))


# Cost and values


def test_every_k_has_a_mark_of_its_own():
    keys = plots.cost_of_precision(grid(["IWAE"], particles=(1, 2, 4, 8, 16, 32))).legends[0].legend_handles
    assert len({handle.get_marker() for handle in keys}) == 6


def test_costs_are_marks_at_their_seconds_and_endless_ones_arrows():
    rows = [
        Row("IWAE", 8, seconds=measured(0.002), blocks={"encoder": block(cost=0.3)}),
        Row("IWAE", 64, seconds=measured(0.01), blocks={"encoder": block(cost=math.inf)}),
    ]
    figure = plots.cost_of_precision(comparison(rows))
    assert titles(figure) == ["one step", "encoder to 10%"]
    step, encoder = figure.axes
    places = sorted(line.get_xdata()[0] for line in step.lines if line.get_marker() in "osD^v")
    assert np.allclose(places, [2.0, 10.0])  # milliseconds
    assert [line.get_xdata()[0] for line in encoder.lines if line.get_marker() in "osD^v"] == [0.3]
    assert sum(line.get_marker() == ">" for line in encoder.lines) == 1
    assert "(IWAE's encoder at K = 64)" in foot(figure)
    assert "time on cpu, 1 thread." in foot(figure)
    assert legend(figure) == {"K = 8", "K = 64"}


@pytest.mark.parametrize(("exact", "dash"), [(True, "-"), (False, "--")])
def test_values_stand_beside_log_evidence(exact, dash):
    rows = grid(["ELBO", "IWAE"]).rows
    figure = plots.estimator_values(comparison(rows, KnownEvidence(-99.0, "quadrature", 0.01, exact)))
    (axes,) = figure.axes
    (line,) = [line for line in axes.lines if np.allclose(line.get_xdata(), -99.0)]
    assert line.get_linestyle() == dash
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ELBO", "IWAE"]
    assert sum(line.get_marker() in "osD^v" for line in axes.lines) == 6
    assert ("exact" in foot(figure)) == exact


def test_nothing_to_show_is_refused():
    failed = comparison([Row("mine", 8, failed="ValueError: no")])
    for draw in (plots.bias_variance, plots.signal_to_noise, plots.cost_of_precision, plots.estimator_values):
        with pytest.raises(ValueError, match="all 1 failed"):
            draw(failed)


# The race


def race_run(name, seed, height, seconds, stopped="finished", steps=400, looks=5):
    points = tuple(
        Point(i, 100 * i, seconds * i, height - 50.0 * 0.1**i + seed, 0.0, height - 3.0) for i in range(looks)
    )
    reason = "diverged" if stopped == "failed" else None
    return RaceRun(name, 8, seed, points, "quadrature", "exact", stopped, reason, steps)


def race(runs, target=None):
    return Race(tuple(runs), (), target, {}, {}, 100.0)


def test_the_race_draws_means_bands_target_and_crosses():
    runs = [race_run(name, s, h, t) for name, h, t in (("ELBO", -95, 1.0), ("IWAE", -90, 2.0)) for s in (0, 1, 2)]
    runs += [race_run("mine", s, -99, 1.0, "failed", 230, looks=3) for s in (0, 1)]
    runs += [RaceRun("lost", 8, 0, (), "", "lower", "failed", "ValueError: no")]
    figure = plots.training_race(race(runs, target=-91.0), caveat="grey values")
    steps, seconds = figure.axes
    assert (steps.get_xlabel(), seconds.get_xlabel()) == ("steps", "seconds of training")
    for axes, end in ((steps, 400.0), (seconds, 8.0)):
        assert any(np.allclose(line.get_ydata(), -91.0) for line in axes.lines)
        mean = next(line for line in lines_of(axes, COLOURS[1]) if line.get_linewidth() == 1.6)
        assert mean.get_xdata()[-1] == pytest.approx(end)
        assert mean.get_ydata()[-1] == pytest.approx(-90 - 50 * 0.1**4 + 1)
        assert len(axes.collections) == 2
        crosses = [line for line in axes.lines if line.get_marker() == "x"]
        assert {line.get_color() for line in crosses} == {COLOURS[2]}
        assert [line.get_xdata()[0] for line in crosses] == [230 if axes is steps else 2.0] * 2
    assert legend(figure) == {
        *("ELBO", "IWAE", "mine (failed: 2 of 2)", "lost (failed: 1 of 1)"),
        *("failed here", "target, −91"),
    }
    assert "Failed at the start, without a point: lost." in foot(figure)
    assert foot(figure).startswith("grey values.")
    assert steps.get_ylim()[0] > -130  # the start is cut off
    for axes in figure.axes:  # the bands lie below all curves, and are faint
        curves = [line.get_zorder() for line in axes.lines if line.get_linewidth() == 1.6]
        assert all(band.get_zorder() < min(curves) and band.get_alpha() <= 0.05 for band in axes.collections)
    split = replace(race(runs), settings={"split": "validation", "evaluation_size": 1200})
    assert "Evaluated on 1,200 validation data." in foot(plots.training_race(split))


def test_one_seed_and_many_contenders_have_no_bands():
    one = plots.training_race(race([race_run("ELBO", 0, -95, 1.0)]))
    assert not one.axes[0].collections
    assert "One seed" in foot(one)
    many = plots.training_race(race([race_run(name, s, -95, 1.0) for name in MANY for s in (0, 1)]))
    assert not many.axes[0].collections
    assert legend(many) == {*MANY}
    with pytest.raises(ValueError, match="none of 1 runs"):
        plots.training_race(race([RaceRun("lost", 8, 0, (), "", "lower", "failed", "no")]))


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("names", [MANY, MANY[:3]])
def test_every_picture_can_be_written(names, tmp_path):
    found = grid(names, blocks=("encoder", "decoder", "prior"))
    runs = race([race_run(name, s, -95, 1.0) for name in names for s in (0, 1)], target=-96.0)
    figures = [
        *(draw(found) for draw in (plots.bias_variance, plots.signal_to_noise, plots.cost_of_precision)),
        plots.estimator_values(found),
        plots.training_race(runs),
    ]
    for i, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{i}.png", dpi=50).stat().st_size > 3000
