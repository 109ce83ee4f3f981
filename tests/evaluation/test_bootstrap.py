"""Bootstrap intervals: coverage, pairing, format."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_vae.evaluation import bootstrap
from ppl_vae.evaluation.bootstrap import Interval, difference, interval


def skewed(n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return -torch.empty(n, dtype=torch.float64).exponential_(1.0, generator=g)


def test_mean_agrees_with_scipy_bca():
    values = skewed(60)
    ours = interval(values, num_resamples=20_000)
    theirs = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=20_000, method="BCa", random_state=np.random.default_rng(0)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean().item(), rel=1e-12)
    # ends are quantiles of 20,000 resamples: 2% of the width is about five of their standard errors
    assert ours.low == pytest.approx(theirs.low, abs=0.02 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.02 * width)


def test_other_statistics_agree_with_scipy_percentile():
    values = skewed(61)
    ours = interval(values, statistic=lambda v: v.median(-1).values, num_resamples=10_000)
    theirs = stats.bootstrap(
        (values.numpy(),), np.median, n_resamples=10_000, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    spacing = 0.05  # the median of resamples lies on the data: neighbouring values
    assert ours.value == values.median().item()
    assert abs(ours.low - theirs.low) < spacing
    assert abs(ours.high - theirs.high) < spacing


def test_coverage_of_a_skewed_mean():
    """400 intervals of exponential data; 95% nominal, BCa at n = 50 covers about 93%."""
    held = [
        found.low <= -1.0 <= found.high
        for found in (interval(skewed(50, seed), num_resamples=400, seed=seed) for seed in range(400))
    ]
    share = sum(held) / len(held)
    assert abs(share - 0.93) < 5 * math.sqrt(0.93 * 0.07 / 400)


def test_blocks_of_resamples_do_not_change_the_result(monkeypatch):
    values = skewed(50)
    one = interval(values)
    monkeypatch.setattr(bootstrap, "BLOCK", 50 * 7)
    many = interval(values)
    assert (one.low, one.high) == pytest.approx((many.low, many.high), rel=1e-12)


def test_names_are_resampled_together_and_the_random_state_stays():
    values = skewed(50)
    before = torch.random.get_rng_state()
    found = interval({"a": values, "b": 2 * values + 1})
    assert torch.equal(before, torch.random.get_rng_state())
    assert found["b"].low == pytest.approx(2 * found["a"].low + 1, rel=1e-12)
    # up to the order in which a matrix and a row are summed
    assert dataclasses.astuple(found["a"]) == pytest.approx(dataclasses.astuple(interval(values)), rel=1e-12)


def test_paired_difference_is_narrow_where_the_data_are_hard_for_both():
    first = 100 * skewed(200)
    second = first + 0.1 + 0.05 * skewed(200, seed=1)
    paired = difference(second, first)
    assert paired.low < (second - first).mean() < paired.high
    assert paired.high - paired.low < 0.05
    assert interval(first).high - interval(first).low > 10


def test_format():
    assert str(Interval(-136.8234, -137.91, -135.74)) == "-136.82 [-137.9, -135.7]"
    assert str(Interval(0.98012, 0.9771, 0.9832)) == "0.98012 [0.9771, 0.9832]"
    assert str(Interval(12345.6, 12300.1, 12399.9)) == "12345.6 [12300, 12400]"
    assert str(Interval(2.0, 2.0, 2.0)) == "2 [2, 2]"
    assert f"{Interval(0.25, 0.2, 0.3):.1f}" == "0.2 [0.2, 0.3]"


def test_level_widens():
    values = skewed(100)
    narrow, wide = interval(values, level=0.5), interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.zeros(1), {}, "n >= 2"),
        (torch.zeros(3, 2), {}, "shape"),
        (torch.tensor([0.0, math.nan]), {}, "not finite"),
        (torch.zeros(3), {"level": 95}, "level is 95"),
        ({}, {}, "no values"),
        ({"a": torch.zeros(3), "b": torch.zeros(4)}, {}, "'b'"),
    ],
)
def test_errors(values, options, message):
    with pytest.raises(ValueError, match=message):
        interval(values, **options)


def test_difference_needs_the_same_data():
    with pytest.raises(ValueError, match="same data"):
        difference(torch.zeros(3), torch.zeros(4))
