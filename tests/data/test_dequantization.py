"""Dequantised pixels: exact levels, reproducible noise, refusals; and bits per dimension of them."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from archives import arrays_of

import ppl_vae as pv
from ppl_vae import data, likelihoods, posteriors, priors
from ppl_vae.configuration.config import parse
from ppl_vae.data.binarization import dequantize
from ppl_vae.evaluation.bits import bits_per_dim

PIXELS = torch.arange(256, dtype=torch.uint8).repeat(40, 1).view(160, 1, 8, 8)


def levels(x):
    return x.double().mul(256).floor()


def batch(split, size=None):
    return next(split.batches(size or len(split)))[0]


# The values


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24, 0.5], ids=["least", "greatest", "middle"])
def test_every_level_stays_in_the_interior_of_its_own_interval(extreme):
    k = torch.arange(256)
    x = dequantize(k.float() / 255, torch.full((256,), extreme))
    assert x.dtype == torch.float32
    u = x.double() * 256 - k
    assert (u > 0).all()
    assert (u < 1).all()
    assert (u == u[0]).all(), "k + u is exact: no level gets other noise than another"
    assert (u - extreme).abs().max() <= 2**-15


def test_noise_is_uniform():
    n = 400_000
    u = (dequantize(torch.full((n,), 200 / 255)).double() * 256 - 200).sort().values
    distance = (u - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max()
    assert distance * math.sqrt(n) < 1.95  # Kolmogorov: exceeded once in a thousand


def test_training_batches_are_fresh_and_the_other_parts_fixed():
    found = data.from_tensors(PIXELS, dequantize=True, validation=0.2, test=0.2)
    assert (found.train.dynamic, found.validation.dynamic, found.test.dynamic) == (True, False, False)
    assert [part.bins for part in (found.train, found.validation, found.test)] == [256] * 3
    first, second = batch(found.train), batch(found.train)
    assert (first != second).float().mean() > 0.999
    assert torch.equal(levels(first), levels(second))
    assert torch.equal(batch(found.test), batch(found.test))
    again = data.from_tensors(PIXELS, dequantize=True, validation=0.2, test=0.2)
    for part in ("validation", "test"):
        assert torch.equal(getattr(found, part).x, getattr(again, part).x)
    torch.manual_seed(3)
    x = batch(found.train, 10)
    torch.manual_seed(3)
    assert torch.equal(x, batch(found.train, 10)), "fresh noise is torch's global generator's, which a run restores"


def test_the_levels_are_those_of_the_source():
    found = data.from_tensors(PIXELS, dequantize=True, validation=0.2, test=0.2)
    plain = data.from_tensors(PIXELS, validation=0.2, test=0.2)
    for part in ("train", "validation", "test"):
        assert torch.equal(levels(batch(getattr(found, part))), (getattr(plain, part).x.double() * 255).round())


def test_uint8_and_floats_on_the_grid_are_the_same_data():
    from_bytes = data.from_tensors(PIXELS, dequantize=True)
    from_floats = data.from_tensors(PIXELS.float() / 255, dequantize=True)
    assert from_bytes.fingerprint == from_floats.fingerprint


def test_a_file_on_disk_gives_the_same_as_in_memory(tmp_path):
    np.save(tmp_path / "pixels.npy", PIXELS.numpy())
    options = {"dequantize": True, "validation": 0.2, "test": 0.2}
    mapped = data.load(tmp_path / "pixels.npy", max_in_memory_gib=0.0, **options)
    inside = data.load(tmp_path / "pixels.npy", **options)
    assert not isinstance(mapped.test.x, torch.Tensor)
    assert torch.equal(batch(mapped.test), batch(inside.test))
    assert torch.equal(levels(batch(mapped.train)), levels(batch(inside.train)))
    order = torch.tensor([5, 0, 7])
    assert torch.equal(next(mapped.test.batches(3, order=order))[0], batch(inside.test)[order])
    assert mapped.fingerprint != data.load(tmp_path / "pixels.npy", max_in_memory_gib=0.0).fingerprint


def test_a_test_set_of_its_own_has_noise_of_its_own(tmp_path):
    np.savez(tmp_path / "two.npz", x=PIXELS.numpy(), x_test=PIXELS.numpy())
    found = data.load(tmp_path / "two.npz", dequantize=True, validation=0)
    fixed = data.from_tensors(PIXELS, dequantize=True, validation=0, test=159)
    assert torch.equal(levels(found.test.x), PIXELS.double())
    assert not torch.equal(found.test.x[:10], fixed.test.x[:10])


def test_heads_and_still_splits_are_one_draw():
    train = data.from_tensors(PIXELS, dequantize=True).train
    state = torch.get_rng_state()
    still = train.still()
    assert torch.equal(train.head(7).x, batch(still)[:7])
    assert torch.equal(batch(still), batch(still))
    assert torch.equal(state, torch.get_rng_state())
    assert (still.dynamic, still.bins, train.head(7).bins) == (False, 256, 256)
    assert still.still() is still
    assert train.to("cpu").bins == 256


def test_still_splits_of_dynamic_binarisation():
    train = data.load("digits", binarize="dynamic").train
    assert torch.equal(batch(train.still())[:7], train.head(7).x)
    assert set(batch(train.still()).unique().tolist()) == {0.0, 1.0}


def test_the_data_set_says_so():
    found, plain = data.from_tensors(PIXELS, dequantize=True), data.from_tensors(PIXELS)
    assert "dequantize=True" in repr(found)
    assert "dequantize" not in repr(plain)
    assert "dequantized, dynamic" in repr(found.train)
    assert found.fingerprint != plain.fingerprint
    assert found.fingerprint != data.from_tensors(PIXELS, dequantize=True, seed=1).fingerprint
    assert (found.bins, plain.bins, found.binarize) == (256, None, "none")


# Refusals


@pytest.mark.parametrize("binarize", ["threshold", "dynamic", "fixed"])
def test_pixels_cannot_be_both(binarize):
    with pytest.raises(ValueError, match=f"dequantize=True and binarize='{binarize}'"):
        data.from_tensors(PIXELS, dequantize=True, binarize=binarize)


@pytest.mark.parametrize(
    "x",
    [PIXELS.float() / 256, PIXELS.float(), torch.rand(160, 4), PIXELS.float() / 255 - 1 / 255],
    ids=["other levels", "not scaled", "continuous", "below 0"],
)
def test_what_is_not_8_bit_is_refused(x):
    with pytest.raises(ValueError, match=r"needs 8-bit pixels, uint8 or k / 255, and row \d+ of tensors"):
        data.from_tensors(x, dequantize=True)


def test_digits_are_refused():
    with pytest.raises(ValueError, match=r"8-bit pixels.* of digits"):
        data.load("digits", dequantize=True)


def test_dequantize_is_true_or_false():
    with pytest.raises(ValueError, match=r"dequantize='yes'.*True or False"):
        data.from_tensors(PIXELS, dequantize="yes")  # type: ignore[arg-type]


# The command line


def test_the_option_of_the_command_line(tmp_path):
    config = tmp_path / "old.yaml"
    config.write_text("data: {name: mnist, binarize: none}\n")
    assert parse(["--config", str(config)]).values["data"]["dequantize"] is False
    assert parse(["--data", "mnist", "--data.dequantize", "true"]).values["data"]["dequantize"] is True
    np.save(tmp_path / "pixels.npy", PIXELS.numpy())
    made = parse(["--data", str(tmp_path / "pixels.npy"), "--data.dequantize", "true"])
    assert made.build_dataset().bins == 256
    assert "dequantize: true" in made.to_yaml()


# Bits


def steps(probs):
    """log p(x) of a density on [0, 1] that is constant on each of 256 intervals."""
    return lambda x: (probs[levels(x).long()] * 256).log().flatten(1).sum(1)


def test_a_density_constant_on_each_level_has_the_bits_of_the_levels():
    torch.set_default_dtype(torch.float64)
    probs = torch.randn(256).softmax(0)
    found = data.from_tensors(PIXELS, dequantize=True, validation=0, test=0.5)
    x = found.test.x
    k = levels(x).long()
    discrete = -probs[k].log2().flatten(1).mean(1)
    anything = dist.Normal(torch.zeros(1, 8, 8), 1.0).to_event(3)  # for its support
    bits = bits_per_dim(steps(probs)(x), x, anything, bins=found.test.bins)
    torch.testing.assert_close(bits, discrete, rtol=1e-10, atol=0)
    # the same figure from a likelihood of the levels, without any correction
    categorical = dist.Categorical(probs.expand(1, 8, 8, 256)).to_event(3)
    levels_bits = bits_per_dim(categorical.log_prob(k), k, categorical)
    torch.testing.assert_close(levels_bits, discrete, rtol=1e-10, atol=0)
    uniform = torch.full((256,), 1 / 256)
    torch.testing.assert_close(bits_per_dim(steps(uniform)(x), x, anything, bins=256), torch.full((80,), 8.0))


def test_bits_of_a_likelihood_of_levels_in_the_unit_interval_take_no_jacobian():
    pixel = likelihoods.DiscretizedLogistic(torch.nn.Linear(2, 64)).eval()(torch.zeros(1, 2))
    x = torch.randint(256, (1, 64)) / 255
    log_prob = pixel.log_prob(x)
    torch.testing.assert_close(bits_per_dim(log_prob, x, pixel), -log_prob.double() / (64 * math.log(2)))
    with pytest.raises(ValueError, match="leave it out"):
        bits_per_dim(log_prob, x, pixel, bins=256)


def test_dequantised_bits_bound_those_of_the_levels_from_above():
    """Jensen: E_u[log p(k + u)] <= log of the integral over the level, which is the probability of the level."""
    torch.set_default_dtype(torch.float64)
    mean, scale = 0.42, 0.004  # about a level wide
    density = dist.Normal(torch.tensor([mean]), scale).to_event(1)
    k = torch.arange(100, 116)
    edges = torch.stack([k, k + 1]) / 256
    low, high = torch.special.log_ndtr((edges - mean) / scale)
    probability = high + torch.log(-torch.expm1(low - high))
    u = (torch.arange(2000) + 0.5) / 2000
    x = ((k[:, None] + u) / 256).reshape(-1, 1)
    bits = bits_per_dim(density.log_prob(x), x, density, bins=256).reshape(16, 2000).mean(1)
    exact = -probability / math.log(2)
    assert (bits > exact).all()
    assert (bits - exact).max() > 0.01
    # on average over levels the excess is KL(uniform || density within the level)
    within = (density.log_prob(x).reshape(16, 2000) - math.log(256) - probability[:, None]).mean(1)
    torch.testing.assert_close(bits - exact, -within / math.log(2), rtol=1e-10, atol=1e-10)


# Real data


@pytest.mark.data
def test_frey_faces(real_data):
    path = real_data / "freyfaces" / "freyfaces.npz"
    if not path.is_file():
        pytest.skip("no Frey faces")
    plain = data.load(path, test=200, validation=200)
    assert (plain.name, plain.x_shape, len(plain.train)) == ("freyfaces", (1, 28, 20), 1565)
    raw = arrays_of(path)["images"]
    assert plain.train.x.max() == raw.max() / np.float32(255)
    k = plain.test.x * 255
    assert (k - k.round()).abs().max() < 1e-4
    found = data.load(path, test=200, validation=200, dequantize=True)
    assert torch.equal(levels(found.test.x), k.round().double())
    vae = pv.VAE(
        found,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(torch.nn.Sequential(torch.nn.Linear(2, 560), torch.nn.Unflatten(1, (1, 28, 20)))),
        posterior=posteriors.DiagonalNormal(),
    )
    assert vae.check_support(found) is None
    z = torch.zeros(200, 2)
    bits = bits_per_dim(vae.p_x(z).log_prob(found.test.x), found.test.x, vae.p_x(z), bins=found.bins)
    assert (bits > 8).all(), "a standard normal on [0, 1] is worse than the uniform density"
