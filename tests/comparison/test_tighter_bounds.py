"""The example of tighter bounds shows what its header promises, with fewer particles and replicates."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch

PATH = Path(__file__).resolve().parents[2] / "examples" / "tighter_bounds.py"
PARTICLES = (1, 4, 12, 36)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("tighter_bounds", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in (100, 500)])
def found(example, tmp_path_factory, request):
    picture, printed = tmp_path_factory.mktemp("picture") / "tighter_bounds.png", io.StringIO()
    with contextlib.redirect_stdout(printed):
        rows, gaps, still = example.main(str(picture), replicates=request.param, particles=PARTICLES, draws=100)
    assert all(row.failed is None for row in rows)
    powers = example.powers(example.pooled(rows))
    seen = {"rows": rows, "gaps": gaps, "still": still, "powers": powers}
    return SimpleNamespace(**seen, picture=picture, text=printed.getvalue(), many=request.param == 500)


def blocks(found, name, block):
    """Under each K above one the figures of a block's gradient."""
    return {r.num_particles: r.blocks[block] for r in found.rows if r.name == name and r.num_particles > 1}


def test_the_encoder_of_iwae_drowns_in_noise_and_its_decoder_rises_out_of_it(found):
    # the law is one of large K, and 500 replicates leave the encoder's power a standard error of about 0.04, 100 of 0.1
    encoder, decoder = found.powers["IWAE", "encoder"], found.powers["IWAE", "decoder"]
    assert encoder.value == pytest.approx(-0.5, abs=0.15 if found.many else 0.3)
    assert encoder.high < (-0.2 if found.many else 0.0)
    assert not encoder.left_out
    assert decoder.value == pytest.approx(0.5, abs=0.1)
    assert decoder.low > 0.3


def test_the_gradients_without_the_score_rise_with_k(found):
    assert found.powers["DReG", "encoder"].low > 0.1  # on its way to a half: 0.3 over these K, 0.4 over larger ones
    assert found.powers["IWAESTL", "encoder"].low > 0.3
    for name in ("ELBO", "STL"):  # averages of K independent gradients: exactly a half
        slope = found.powers[name, "encoder"]
        half_width = (slope.high - slope.low) / 2
        assert slope.value == pytest.approx(0.5, abs=5 / 1.96 * half_width)
        assert half_width < 0.1


def test_they_are_above_those_with_it_at_every_k(example, found):
    snr = {(row.name, row.num_particles): row.blocks["encoder"].snr for row in example.pooled(found.rows)}
    for k in PARTICLES:
        assert snr["STL", k].low > snr["ELBO", k].high
        assert snr["DReG", k].low > snr["IWAE", k].high


def test_dreg_is_unbiased_and_iwaestl_is_not(found):
    for k, block in blocks(found, "DReG", "encoder").items():
        assert block.bias_p > 0.001, k
        assert blocks(found, "IWAESTL", "encoder")[k].bias_p < (1e-12 if found.many else 1e-6)
        assert block.bias.high < blocks(found, "IWAESTL", "encoder")[k].bias.low / 3  # that would have been seen
    for name in ("DReG", "IWAESTL"):  # of the decoder all three have the same gradient
        assert all(block.bias.high == 0.0 for block in blocks(found, name, "decoder").values())


def test_the_bound_rises_and_its_gap_falls_as_one_over_k(example, found):
    for before, after in pairwise(found.gaps):
        assert before.value - after.value > 5 * math.hypot(before.error, after.error)
    model = example.Gaussian.make()
    first, last = found.gaps[0], found.gaps[-1]
    assert first.value == pytest.approx(model.gap(), abs=5 * first.error)
    assert last.num_particles * last.value == pytest.approx(model.limit(), abs=5 * last.num_particles * last.error)
    assert last.error < 0.03 * last.value


def test_the_limit_is_the_variance_of_the_weights(example):
    model = example.Gaussian.make()
    torch.manual_seed(0)
    q = model.vae.posterior(model.x)
    z = q.sample((2_000,))
    log_w = model.vae.prior().log_prob(z) + model.vae.likelihood(z).log_prob(model.x) - q.log_prob(z)
    squares = ((log_w - model.log_p).exp() - 1).square().mean(1).detach() / 2  # one for each draw, (draws,)
    error = float(squares.std()) / math.sqrt(len(squares))
    assert float(squares.mean()) == pytest.approx(model.limit(), abs=5 * error)
    assert error < 0.05 * model.limit()


def test_at_the_true_posterior_only_the_score_is_noise(found):
    for name in ("STL", "DReG", "IWAESTL"):
        assert found.still[name] < 1e-20, name  # of ELBO's variance: rounding squared
    assert found.still["ELBO"] == 1.0
    assert found.still["IWAE"] == pytest.approx(1.0, rel=1e-10)  # all weights are one another's equals


def test_what_it_says_and_draws(found):
    for sentence in (
        "IWAE's encoder gradient falls as K^-0.",
        "DReG's encoder gradient grows as K^+0.",
        "IWAE's decoder gradient grows as K^+0.",
        "L_K rises at every step of K",
        "no noise in the encoder gradients of STL, DReG, IWAESTL",
        "DReG's encoder gradient shows no bias against IWAE's",
        "IWAESTL's encoder gradient is biased against IWAE's, p < 1e-12",
    ):
        assert sentence in found.text
    assert found.picture.stat().st_size < 200_000
    height, width = matplotlib.image.imread(found.picture).shape[:2]
    assert width > 2 * height
