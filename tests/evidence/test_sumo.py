"""SUMO against its exact expectation: a sum over all that the roulette can do, and log p(x) in closed form."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian

from ppl_vae import VAE
from ppl_vae.evidence import log_evidence, sumo
from ppl_vae.evidence.sumo import roulette, survival
from ppl_vae.objectives import sample_log_weights

DOUBLE = torch.float64


@pytest.mark.parametrize("alpha", [None, 3])
@pytest.mark.parametrize("minimum", [1, 4])
def test_the_sum_telescopes_for_every_set_of_weights(minimum: int, alpha: int | None) -> None:
    """Over all 𝒦, weighed with their probabilities, S is the bound of m + N particles: to rounding, per sample."""
    largest = 6
    reach = survival(largest, alpha)
    if alpha is not None:
        assert reach.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 0.9 / 3, 0.81 / 3, 0.729 / 3], rel=1e-14)
    stops = reach - torch.cat([reach[1:], torch.zeros(1, dtype=DOUBLE)])
    assert stops.sum() == pytest.approx(1.0, rel=1e-14)
    log_w = 3 * torch.randn(minimum + largest, 50, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(50, dtype=DOUBLE)
    for k in range(1, largest + 1):
        sizes = torch.full((1, 50), minimum + k)
        total += stops[k - 1] * roulette(log_w, sizes, minimum, reach)[0]
    expected = log_w.logsumexp(0) - math.log(minimum + largest)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)


def test_each_repetition_takes_its_own_weights_and_is_the_formula() -> None:
    sizes = torch.tensor([[3, 5], [4, 3], [5, 4]])
    log_w = torch.randn(12, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    reach = survival(3)
    found = roulette(log_w, sizes, 2, reach)
    for i in range(2):
        start = 0
        for r in range(3):
            own = log_w[start : start + int(sizes[r, i]), i].tolist()
            start += len(own)
            bounds = [math.log(sum(map(math.exp, own[:k])) / k) for k in range(1, len(own) + 1)]
            expected = bounds[1] + sum((bounds[j] - bounds[j - 1]) * (j - 1) for j in range(2, len(own)))
            assert float(found[r, i]) == pytest.approx(expected, rel=1e-12)


def linear(std: float = 1.0) -> tuple[LinearGaussian, VAE, torch.Tensor]:
    """A posterior wider than the true one, so that the weights are bounded."""
    model = LinearGaussian.random().take_true_posterior()
    model.std = std * model.std
    return model, model.vae(), model.sample(2)


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("alpha", [None, 80])
def test_the_mean_is_log_p(alpha: int | None) -> None:
    """Within 5 standard errors from 20,000 repetitions; the truncation's bias is known and far below them."""
    model, vae, x = linear(2.0)
    found = sumo(vae, x, repetitions=20_000, minimum=1, alpha=alpha)
    with torch.no_grad():
        log_w = sample_log_weights(vae.model, vae.guide, x, num_particles=20_000).log_w
        relative = (log_w - model.log_evidence(x)).exp()
    bias = relative.var(0) / (2 * (1005 if alpha is None else 100))
    error = found.details["standard_error"]
    assert (bias < error / (5 if alpha is None else 1)).all()
    assert ((found.log_evidence - model.log_evidence(x)).abs() < 5 * error).all()
    start = relative.var(0) / 4  # less than the gap of the ELBO, which a single repetition starts from
    assert (start > 5 * error).all(), "the test could not tell SUMO from the bound that it starts from"
    if alpha is None:
        assert torch.equal(found.error, error)
        mean = 1 + sum(1 / k for k in range(1, 1001))
        assert ((found.details["particles"] - mean).abs() < 5 * math.sqrt(2 * 1000 / 20_000)).all()
    assert found.kind == "lower"


def test_heavy_tails_are_told() -> None:
    """A posterior narrower than the true one: weights without a variance."""
    _, vae, x = linear(0.5)
    found = sumo(vae, x, repetitions=2000)
    assert found.error.isinf().all()
    assert found.details["num_unreliable"] == 2
    assert (found.details["pareto_k"] > 0.7).all()
    assert found.details["standard_error"].isfinite().all()


def test_it_is_found_by_name_and_for_a_pair() -> None:
    model, vae, x = linear(1.5)
    by_name = log_evidence(vae, x, method="sumo", num_particles=(1200, 6000), seed=3)
    assert by_name.method == "sumo"
    assert torch.equal(by_name.log_evidence, sumo(vae, x, repetitions=500, seed=3).log_evidence)
    pair = log_evidence((vae.model, vae.guide), x, method="sumo", num_particles=6000)
    assert ((pair.log_evidence - model.log_evidence(x)).abs() < 5 * pair.details["standard_error"]).all()
    state = torch.random.get_rng_state()
    assert torch.equal(sumo(vae, x, seed=3, repetitions=20).error, torch.full((2,), math.inf, dtype=DOUBLE))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetitions": 1}, "repetitions is 1; expected at least 2"),
        ({"largest": 0}, "sumo: largest"),
        ({"alpha": 0}, "sumo: alpha"),
        ({"minimum": -1}, "sumo: minimum"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    _, vae, x = linear()
    with pytest.raises(ValueError, match=message):
        sumo(vae, x, **options)


def test_weights_of_zero_are_refused() -> None:
    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(-1.0, 1.0, validate_args=False).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"draws of weight zero, .* use importance"):
        sumo((model, guide), torch.zeros(2, 1))
