"""Claims of bias: their level where rare ties of weights carry the mean, their power, and what is said without one."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

import ppl_vae
from ppl_vae import VAE, likelihoods, networks, plots, posteriors, priors
from ppl_vae._measured import Measured, t_quantile
from ppl_vae.comparison.fixed.comparison import Comparison
from ppl_vae.comparison.fixed.results import KnownEvidence, Row
from ppl_vae.comparison.statistics.zero_bias import effective_number, zero_bias_p
from ppl_vae.data import Split
from ppl_vae.objectives import LogWeights

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "levels.py"


@pytest.fixture(scope="module")
def levels():
    spec = importlib.util.spec_from_file_location("levels", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.POOL = {4: 10_000, 8: 10_000}
    return module


@pytest.fixture(scope="module")
def pools(levels):
    """By name: sharp likelihoods of an untrained model, mild ones, and a fitted model."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    fitted, own = levels.fitted()
    return {
        "sharp": levels.pool_of(levels.untrained(0.2), 3 * x, 8),
        "less sharp": levels.pool_of(levels.untrained(0.6), x, 4),
        "mild": levels.pool_of(levels.untrained(4.0), x, 8),
        "fitted": levels.pool_of(fitted, own, 4),
    }


@pytest.fixture(scope="module")
def sharp():
    """A comparison of an untrained model with a sharp likelihood, on the first data of a split."""
    torch.manual_seed(0)
    vae = VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(networks.MLP([16]), scale=0.2),
        posterior=posteriors.DiagonalNormal(networks.MLP([16])),
    )
    split = Split((3 * torch.randn(20, 6),))
    chosen = ["DReG", "PIWAE(groups=4)", {"too high": too_high}, "IWAE", "MeanFieldELBO"]
    return ppl_vae.compare(vae, split, objectives=chosen, particles=8, replicates=100, minibatch=False)


def too_high(log_weights: LogWeights) -> Tensor:
    """No bound of anything."""
    return log_weights.log_w.logsumexp(0) + 1e6


def noise(replicates: int, seed: int = 0) -> Tensor:
    return torch.randn(replicates, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestRule:
    def test_few_ties_leave_no_direction(self):
        d = 0.01 * noise(100) + 0.005
        large = noise(100, 1)  # of both gradients
        assert zero_bias_p(large + d, large, 1e-10) < 1e-6
        assert zero_bias_p(large + d, large, 1e-10, ties=8.0) is not None
        assert zero_bias_p(large + d, large, 1e-10, ties=7.9) is None

    def test_a_bias_that_no_rare_event_explains_is_claimed_without_ties(self):
        large = noise(100, 1)
        p = zero_bias_p(large + 2 + 0.01 * noise(100), large, 1e-10, ties=0.0)
        assert p < 1e-6
        largest = float(((large + 2).abs().amax(0) + large.abs().amax(0)).min())
        # p = 16 exp(-R bias / largest) for a bias of 2; its noise, 0.01 / sqrt(R), is far below 1%
        assert -math.log(p / 16) == pytest.approx(100 * 2 / largest, rel=0.01)

    def test_one_replicate_that_outweighs_all_leaves_no_claim(self):
        d = noise(100)
        d[17] = 50.0
        assert zero_bias_p(d, torch.zeros_like(d), 1e-10) is None

    def test_degrees_of_freedom_are_those_of_the_kurtosis(self):
        d = noise(100)[:, :1]
        d[17] = 6.0
        centred = d - d.mean(0)
        kurtosis = float(centred.pow(4).mean() / centred.square().mean() ** 2)
        assert kurtosis > 4  # below 3 the replicates alone would decide
        t_squared = 100 * float(d.mean() ** 2 / d.var())
        freedom = min(100, 200 / (kurtosis - 1))
        assert zero_bias_p(d, torch.zeros_like(d), 1e-10) == pytest.approx(stats.f.sf(t_squared, 1, freedom - 1))

    def test_an_effective_number_of_what_underflows(self):
        assert effective_number(torch.tensor([1e-300, 1e-300, 0.0], dtype=torch.float64)) == 2.0
        assert effective_number(torch.zeros(5)) == 0.0

    def test_students_quantile(self):
        assert t_quantile(20) == pytest.approx(2.0930, abs=1e-4)
        assert t_quantile(10**6) == pytest.approx(1.95997, abs=1e-4)


class TestLevel:
    @pytest.mark.thinned(4)
    @pytest.mark.parametrize("name", ["sharp", "less sharp", "mild", "fitted"])
    @pytest.mark.parametrize("replicates", [40, 100, 1000])
    def test_it_is_kept(self, levels, pools, name, replicates):
        repeats = 400 if replicates < 1000 else 200
        found = levels.count(name, pools[name], "DReG", replicates, repeats, torch.Generator().manual_seed(1), True)
        for hits, level in zip(found.below, levels.LEVELS, strict=True):
            assert stats.binom.sf(hits - 1, found.repeats, level) > 1e-3
            assert stats.binom.sf(hits - 1, found.given, level) > 1e-3
        if "sharp" in name and replicates < 1000:
            assert found.before > 0.5  # what sixteen directions make of it
            assert found.given < 0.01 * repeats
        if name in ("fitted", "mild") and replicates > 40:
            assert found.given > 0.9 * repeats

    @pytest.mark.parametrize("name", ["sharp", "less sharp", "mild", "fitted"])
    @pytest.mark.parametrize("replicates", [100, 1000])
    def test_and_what_is_biased_is_found(self, levels, pools, name, replicates):
        found = levels.count(name, pools[name], "PIWAE", replicates, 40, torch.Generator().manual_seed(1))
        assert found.below[1] >= 36


class TestWords:
    @pytest.mark.slow
    def test_no_claim_has_its_reason_everywhere(self, sharp):
        block = sharp.row("DReG", 8).blocks["encoder"]
        why = "its paired differences are too heavy-tailed for 100 replicates"
        assert block.bias_p is None
        assert block.bias_unclear == why
        said = f"No claim of bias for DReG at K = 8: {why}"
        assert f"{said}, on the first 8 of 20 data." in sharp.sentences()
        assert not any("No bias" in s and "DReG" in s for s in sharp.sentences())
        table = " ".join(sharp.table().split())
        assert "unclear" in table
        assert said in table
        content = json.loads(json.dumps(sharp.to_dict()))
        (row,) = [row for row in content["rows"] if row["name"] == "DReG"]
        assert row["blocks"]["encoder"]["bias_p"] is None
        assert row["blocks"]["encoder"]["bias_unclear"] == why
        assert why in sharp.to_csv()
        figure = plots.bias_variance(sharp)
        foot = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
        assert "tailed for a claim of bias" in foot

    @pytest.mark.ci
    def test_what_is_no_mean_of_weights_is_claimed_as_ever(self, sharp):
        assert sharp.row("PIWAE(groups=4)", 8).blocks["encoder"].bias_p < 0.01
        assert sharp.row("DReG", 8).blocks["decoder"].bias_p == 1.0  # IWAE's own
        assert sharp.row("MeanFieldELBO", 8).blocks["encoder"].bias_p is not None  # an average: ties are no matter

    def test_what_lies_above_log_p_is_named(self, sharp):
        (sentence,) = [s for s in sharp.sentences() if "no lower bound" in s]
        assert sentence.startswith("too high at K = 8 lies ")
        assert "nats above log p(x) = " in sentence
        assert sentence.endswith("so it is no lower bound, on the first 8 of 20 data.")

    @pytest.mark.parametrize(
        ("nats", "error", "exact", "end"),
        [
            (1.0 / 800, 0.0, True, None),  # 800 weights: by Markov, chance is above this in e^-1 of cases
            (20.0 / 800, 0.0, True, "no lower bound."),
            (20.0 / 800, 0.1, True, None),
            (1.0, 0.1, False, "no lower bound, or that estimate is too low."),
        ],
    )
    def test_chance_names_nobody(self, nats, error, exact, end):
        row = Row("IWAE", 8, "lower", value=-10.0, value_se=0.0, bias=Measured(nats, nats, nats))
        known = KnownEvidence(-10.0 - nats, "given", error, exact)
        named = [s for s in Comparison((row,), (), known, 100, 0, (8, 6), {}, 1.0).sentences() if "no lower" in s]
        assert [s.endswith(end) for s in named] == ([] if end is None else [True])
