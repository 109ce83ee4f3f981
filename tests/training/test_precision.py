"""Training steps in lower precision: what is rounded, what is not, and what is refused."""

from __future__ import annotations

import pytest
import torch
from short_runs import small_vae
from torch import nn
from zoo import POSTERIORS

import ppl_vae as pv
from ppl_vae import likelihoods, priors
from ppl_vae.networks import MLP

DIGITS = pv.data.load("digits", binarize="threshold")
X = DIGITS.test.x[:50]


class Watched(nn.Module):
    """A decoder that notes the mode that it runs in, the dtype of its product, and torch's precision."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 64)
        self.seen: set[tuple[bool, torch.dtype, str]] = set()

    def forward(self, z):
        product = self.linear(z)
        self.seen.add((self.training, product.dtype, torch.get_float32_matmul_precision()))
        return product.unflatten(-1, (1, 8, 8))


def vae(network: object = None) -> pv.VAE:
    return small_vae(DIGITS, 64, likelihood=lambda mlp: likelihoods.Bernoulli(network or mlp))


def test_steps_round_and_validation_does_not():
    network = Watched()
    pv.fit(vae(network), DIGITS, epochs=1, seed=0, compile="off", precision="bf16", matmul_precision="high")
    training = {seen for seen in network.seen if seen[0]}
    assert training == {(True, torch.bfloat16, "high")}
    assert (False, torch.float32, "highest") in network.seen  # validation; the rehearsal is in bf16, as the steps are
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"matmul_precision": "medium"}])
def test_captured_steps_round_as_written_ones(options):
    """The captured step is the program under the same casts; both learn what full precision learns."""
    runs = {level: pv.fit(vae(), DIGITS, epochs=4, seed=0, compile=level, **options) for level in ("off", "graph")}
    full = pv.fit(vae(), DIGITS, epochs=4, seed=0, compile="graph")
    assert runs["graph"].why_eager is None
    elbos = {level: [record["validation_elbo"] for record in run.history] for level, run in runs.items()}
    on_cpu = pv.training.resolve_device("auto").type == "cpu"  # where both compute the same bits
    assert elbos["graph"] == pytest.approx(elbos["off"], rel=1e-6 if on_cpu else 1e-3)
    exact = [record["validation_elbo"] for record in full.history]
    assert elbos["graph"] == pytest.approx(exact, rel=0.01)  # bfloat16 has 8 bits, in each of 48 steps
    if "precision" in options:
        assert elbos["graph"] != exact


def test_what_was_set_before_comes_back_after_a_failure():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ZeroDivisionError):
            pv.fit(vae(), DIGITS, seed=0, matmul_precision="medium", stop=lambda: 1 / 0)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    "entry", [e for e in POSTERIORS if e.space == "real" and e.min_latent <= 2], ids=lambda e: e.name
)
def test_a_step_of_each_posterior_is_near_that_of_full_precision(entry):
    """The bound of the first batch, at the same noise, within the rounding of 8 bits."""
    torch.manual_seed(0)
    program = pv.VAE(
        DIGITS,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(MLP([16])),
        posterior=entry.make(MLP([16])),
    )
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            weights = pv.objectives.sample_log_weights(program.model, program.guide, X, num_particles=3)
        assert weights.log_w.dtype == torch.float32
        found.append(weights.log_w.mean(0))
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.0)


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("level", ["off", "graph"])
def test_one_autocast_around_many_steps_sees_the_weights_of_each(level):
    """Autocast keeps its copies of the weights until it ends, through the optimiser's steps."""
    options = {"epochs": 6, "seed": 0, "device": "cpu"}
    full = pv.fit(vae(MLP([256, 256])), DIGITS, compile="off", **options)
    with torch.autocast("cpu", torch.bfloat16):
        run = pv.fit(vae(MLP([256, 256])), DIGITS, compile=level, **options)
    assert run.why_eager == (None if level == "graph" else "compile is 'off'")
    assert run.final["validation_elbo"] == pytest.approx(full.final["validation_elbo"], rel=0.02)


@pytest.mark.ci
def test_figures_take_no_part_in_autocast():
    program = vae()
    pv.fit(program, DIGITS, epochs=1, seed=0)
    exact, device = program.score(X), next(program.parameters()).device.type
    with torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(program.score(X), exact, rtol=1e-6, atol=0)  # bfloat16 has 8 bits
        assert torch.is_autocast_enabled(device)


def test_refusals():
    with pytest.raises(ValueError, match=r"parameters in float32, and these are torch\.float64"):
        pv.fit(vae().double(), DIGITS, epochs=1, precision="bf16")
    with pytest.raises(ValueError, match="precision"):
        pv.fit(vae(), DIGITS, epochs=1, precision="fp8")
    with pytest.raises(ValueError, match="matmul_precision"):
        pv.fit(vae(), DIGITS, epochs=1, matmul_precision="tf32")
