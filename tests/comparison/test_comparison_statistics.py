"""What is kept of gradients, against the same figures from all gradients at once; coverage of the intervals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppl_vae.comparison.fixed.figures import Resamples, moments
from ppl_vae.comparison.fixed.records import Layout, Record, new_records
from ppl_vae.comparison.fixed.signal_to_noise import signal_to_noise
from ppl_vae.comparison.statistics.measured import measured
from ppl_vae.comparison.statistics.zero_bias import zero_bias_p

SHAPES = ((4, 3), (5,), (2, 2, 3))
BLOCKS = {"first": (0, 2), "second": (1,)}
REPLICATES = 90  # which 20 groups do not divide


def draw(generator: torch.Generator, n: int = REPLICATES) -> list[Tensor]:
    return [torch.randn(n, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def layout_of(dtype: torch.dtype = torch.float64, replicates: int = REPLICATES) -> Layout:
    return Layout.of([torch.zeros(shape, dtype=dtype) for shape in SHAPES], BLOCKS, replicates, seed=0)


def recorded(layout: Layout, gradients: list[Tensor]) -> Record:
    record = Record(layout)
    for r in range(layout.replicates):
        record.add(r, float(r), [g[r].to(layout.leaves[0].dtype) for g in gradients])
    return record


def flat(gradients: list[Tensor], block: str) -> Tensor:
    return torch.cat([gradients[i].flatten(1) for i in BLOCKS[block]], 1)


@pytest.fixture
def noise() -> torch.Generator:
    return torch.Generator().manual_seed(7)


class TestRecord:
    def test_moments_are_those_of_all_gradients_at_once(self, noise):
        means = [torch.randn(shape, generator=noise, dtype=torch.float64) for shape in SHAPES]
        layout = layout_of()
        ours = [g + m for g, m in zip(draw(noise), means, strict=True)]
        theirs = [g + 0.1 * n for g, n in zip(ours, draw(noise), strict=True)]
        record, reference = recorded(layout, ours), recorded(layout, theirs)
        for block in BLOCKS:
            found = moments(record, reference, block, Resamples.of(layout.sizes, 0))
            g, h = flat(ours, block), flat(theirs, block)
            group = torch.bucketize(torch.arange(REPLICATES), torch.tensor(layout.bounds[1:]), right=True)
            apart = (group[:, None] != group).double()  # the oracle: over all pairs of replicates of different groups

            def product(a: Tensor, b: Tensor, apart: Tensor = apart) -> float:
                return float(((a @ b.T) * apart).sum() / apart.sum())

            assert float(found.norm_squared[0]) == pytest.approx(product(g, g), rel=1e-10)
            variance = float(g.square().sum(1).mean()) - product(g, g)
            assert float(found.variance[0]) == pytest.approx(variance, rel=1e-10)
            assert float(found.bias_squared[0]) == pytest.approx(product(g - h, g - h), rel=1e-10, abs=1e-12)
            cosine = product(g, h) / math.sqrt(product(g, g) * product(h, h))
            assert float(found.cosine[0]) == pytest.approx(min(cosine, 1.0), rel=1e-10)

    def test_kept_and_projected_are_linear_in_the_gradient(self, noise):
        layout, gradients = layout_of(), draw(noise)
        record, doubled = recorded(layout, gradients), recorded(layout, [2 * g for g in gradients])
        assert torch.allclose(2 * record.projected("first"), doubled.projected("first"), rtol=1e-12)
        assert record.kept("first").shape == (REPLICATES, 24)  # small blocks are kept whole
        assert torch.equal(record.kept("first"), flat(gradients, "first"))
        squares = flat(gradients, "first").square().sum(1)
        assert torch.allclose(record.squares("first"), squares, rtol=1e-12)

    def test_projections_keep_squared_lengths_in_expectation(self):
        g = torch.Generator().manual_seed(0)
        shape = (30, 40)
        one = torch.randn(shape, generator=g, dtype=torch.float64)
        seen = []
        for seed in range(200):
            layout = Layout.of([torch.zeros(shape, dtype=torch.float64)], {"all": (0,)}, 2, seed)
            record = Record(layout)
            record.add(0, 0.0, [one])
            seen.append(record.projected("all")[0].square().mean())
        ratio = torch.stack(seen) / one.square().sum()
        assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(len(seen))

    def test_a_gradient_that_is_not_there_is_zero(self):
        layout = layout_of()
        record = Record(layout)
        for r in range(REPLICATES):
            record.add(r, 0.0, [None, torch.ones(5, dtype=torch.float64), None])
        found = moments(record, None, "first", Resamples.of(layout.sizes, 0))
        assert float(found.norm_squared[0]) == float(found.variance[0]) == 0
        assert record.num_dead("first") == 24
        assert record.num_dead("second") == 0

    def test_gradients_that_are_one_tensor_are_kept_once(self, noise):
        layout, gradients = layout_of(), draw(noise)
        other = draw(noise)
        records = None
        for r in range(REPLICATES):
            mine, same = [g[r] for g in gradients], other[1][r]
            steps = {0: mine, 1: [mine[0], same, mine[2]]}
            records = records or new_records(layout, steps)
            for key, step in steps.items():
                records[key].add(r, 0.0, step)
        assert torch.equal(records[0].squares("first"), records[1].squares("first"))
        alone = recorded(layout, [gradients[0], other[1], gradients[2]])
        for block in BLOCKS:
            found = [moments(r, None, block, Resamples.of(layout.sizes, 0)) for r in (records[1], alone)]
            assert torch.equal(found[0].norm_squared, found[1].norm_squared)
            assert torch.equal(found[0].variance, found[1].variance)

    def test_what_draws_nothing_has_no_variance(self, noise):
        layout = layout_of()
        one = [g[0] for g in draw(noise)]
        record = Record(layout)
        stop = layout.bounds[1]
        for r in range(stop):
            record.add(r, -3.0, one)
        assert record.same(stop)
        record.fill(stop)
        found = moments(record, record, "first", Resamples.of(layout.sizes, 0))
        norm = sum(float(one[i].square().sum()) for i in BLOCKS["first"])
        assert float(found.norm_squared[0]) == pytest.approx(norm, rel=1e-12)
        assert found.variance.eq(0).all()
        assert found.is_reference
        assert record.values.eq(-3.0).all()

    def test_float32_gives_the_same_to_rounding(self, noise):
        gradients = [g + 1 for g in draw(noise)]
        coarse, fine = (recorded(layout_of(dtype), gradients) for dtype in (torch.float32, torch.float64))
        for block in BLOCKS:
            a, b = (moments(r, None, block, Resamples.of(r.layout.sizes, 0)) for r in (coarse, fine))
            assert torch.allclose(a.norm_squared, b.norm_squared, rtol=1e-5)  # float32 holds 6e-8 of each gradient
            assert torch.allclose(a.variance, b.variance, rtol=1e-5)


class TestIntervals:
    """Coverage over many synthetic experiments: a 95% interval may miss in 5% of them, and 5 s.e. of that."""

    EXPERIMENTS = 200

    def most_misses(self) -> float:
        n = self.EXPERIMENTS
        return n * 0.05 + 5 * math.sqrt(n * 0.05 * 0.95)

    def experiments(self, mean: float, bias: float, dim: int = 30):
        """Records of normal gradients and of a reference that shares most of their noise."""
        g = torch.Generator().manual_seed(3)
        layout = Layout.of([torch.zeros(dim, dtype=torch.float64)], {"all": (0,)}, 100, seed=0)
        scale = torch.linspace(0.2, 2.0, dim, dtype=torch.float64)
        resamples = Resamples.of(layout.sizes, 0)
        direction = torch.ones(dim, dtype=torch.float64)
        direction[::2] = -1  # the biases of the entries cancel in their sum
        for _ in range(self.EXPERIMENTS):
            noise = scale * torch.randn(100, dim, generator=g, dtype=torch.float64)
            ours = mean + noise
            theirs = ours + 0.3 * torch.randn(100, dim, generator=g, dtype=torch.float64) - bias * direction
            first, second = Record(layout), Record(layout)
            for r in range(100):
                first.add(r, 0.0, [ours[r]])
                second.add(r, 0.0, [theirs[r]])
            yield first, second, moments(first, second, "all", resamples), float(scale.square().sum())

    @pytest.mark.slow
    def test_norm_and_variance_are_covered(self):
        missed = {"norm": 0, "variance": 0}
        for _, _, found, trace in self.experiments(mean=0.5, bias=0.0):
            norm, variance = measured(found.norm_squared, 20), measured(found.variance, 20)
            missed["norm"] += not norm.low <= 30 * 0.5**2 <= norm.high
            missed["variance"] += not variance.low <= trace <= variance.high
        assert all(count <= self.most_misses() for count in missed.values()), missed

    @pytest.mark.slow
    def test_without_bias_the_interval_holds_zero_and_the_p_value_is_uniform(self):
        missed, p_values = 0, []
        for first, second, found, _ in self.experiments(mean=0.5, bias=0.0):
            assert found.bias_squared is not None
            missed += measured(found.bias_squared, 20).low > 0
            p_values.append(zero_bias_p(first.projected("all"), second.projected("all"), 1e-10))
        assert missed <= self.most_misses()
        below = sum(p < 0.05 for p in p_values)
        assert below <= self.most_misses()
        assert abs(torch.tensor(p_values).mean() - 0.5) < 5 / math.sqrt(12 * self.EXPERIMENTS)

    @pytest.mark.slow
    def test_a_bias_that_cancels_in_the_sum_is_found(self):
        values = []
        for first, second, found, _ in self.experiments(mean=0.5, bias=0.2):
            assert found.bias_squared is not None
            values.append(float(found.bias_squared[0]))
            assert measured(found.bias_squared, 20).low > 0
            assert zero_bias_p(first.projected("all"), second.projected("all"), 1e-10) < 1e-6
        estimates = torch.tensor(values)
        error = float(estimates.std()) / math.sqrt(len(values))
        assert abs(float(estimates.mean()) - 30 * 0.2**2) < 5 * error

    def test_the_same_group_twice_is_not_two_groups(self):
        resamples = Resamples.of(torch.ones(20, dtype=torch.float64), 0)
        noise_alone = torch.eye(20, dtype=torch.float64)  # the Gram matrix of independent noise in high dimension
        assert resamples.products(noise_alone).abs().max() == 0


class TestSignalToNoise:
    def test_no_signal_is_near_zero_and_not_at_the_floor(self, noise):
        replicates = 400
        found = signal_to_noise(
            torch.randn(replicates, 500, generator=noise, dtype=torch.float64), rounding=1e-13, seed=0
        )
        naive = math.sqrt(2 / (math.pi * replicates))
        assert found.floor == pytest.approx(naive)
        assert found.median.value < 0.3 * naive
        assert found.median.low == 0

    @pytest.mark.thinned(3)
    @pytest.mark.parametrize("signal", [0.1, 0.5, 3.0])
    def test_a_signal_is_covered(self, signal):
        g = torch.Generator().manual_seed(11)
        missed, experiments = 0, 40
        values = []
        for seed in range(experiments):
            shared = torch.randn(400, 1, generator=g, dtype=torch.float64)
            kept = signal + (shared + torch.randn(400, 50, generator=g, dtype=torch.float64)) / math.sqrt(2)
            found = signal_to_noise(kept, rounding=1e-13, seed=seed)
            missed += not found.median.low <= signal <= found.median.high
            values.append(found.median.value)
        assert missed <= experiments * 0.05 + 5 * math.sqrt(experiments * 0.05 * 0.95)
        error = torch.tensor(values).std().item() / math.sqrt(experiments)
        assert abs(torch.tensor(values).mean().item() - signal) < 5 * error + 0.01 * signal  # a ratio's own bias, 1 / R

    def test_dead_parameters_are_left_out(self, noise):
        kept = 1 + torch.randn(200, 10, generator=noise, dtype=torch.float64)
        with_dead = torch.cat([kept, torch.zeros(200, 30, dtype=torch.float64)], 1)
        a, b = (signal_to_noise(k, rounding=1e-13, seed=0) for k in (kept, with_dead))
        assert a.median == b.median
        assert a.quartiles == b.quartiles
        assert math.isnan(signal_to_noise(torch.zeros(200, 3).double(), rounding=1e-13, seed=0).median.value)

    def test_what_never_varies_is_infinite(self):
        kept = torch.full((50, 3), 2.0, dtype=torch.float64)
        assert signal_to_noise(kept, rounding=1e-13, seed=0).median.value == math.inf

    def test_ratios_of_estimators_are_paired(self, noise):
        kept = 1 + torch.randn(300, 40, generator=noise, dtype=torch.float64)
        a = signal_to_noise(kept, rounding=1e-13, seed=0)
        b = signal_to_noise(3 * kept, rounding=1e-13, seed=0)
        assert torch.allclose(a.resampled, b.resampled, rtol=1e-6)


class TestZeroBias:
    def test_what_is_the_same_to_rounding_is_no_bias(self, noise):
        g = torch.randn(50, 4, generator=noise, dtype=torch.float64)
        assert zero_bias_p(g, g + 1e-13, 1e-10) == 1.0

    def test_a_bias_without_noise_is_certain(self, noise):
        g = torch.randn(50, 4, generator=noise, dtype=torch.float64)
        assert zero_bias_p(g + 0.1, g, 1e-10) == 0.0

    def test_projections_that_depend_on_each_other_count_once(self, noise):
        """Of a block of two parameters there are but two independent projections."""
        two = torch.randn(100, 2, generator=noise, dtype=torch.float64)
        many = two @ torch.randn(2, 16, generator=noise, dtype=torch.float64)
        p_two = zero_bias_p(two, torch.zeros_like(two), 1e-10)
        assert zero_bias_p(many, torch.zeros_like(many), 1e-10) == pytest.approx(p_two, rel=1e-6)


def test_an_interval_of_few_units_is_wider_than_percentiles():
    draws = torch.randn(5001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few, many = measured(draws, 5), measured(draws, 10**6)
    assert few.low < many.low < many.high < few.high
    assert many.low == pytest.approx(float(draws[1:].quantile(0.025)), abs=0.02)
    assert measured(torch.full((100,), math.inf), 20) == (math.inf, math.inf, math.inf)


def test_a_resample_without_a_figure_may_be_anywhere():
    """A bootstrap of two units has no pair in half of its resamples, and one and the same in the others."""
    draws = torch.tensor([3.0, *[3.0] * 500, *[math.nan] * 500])
    assert measured(draws, 2, (0.0, math.inf)) == (3.0, 0.0, math.inf)
    assert measured(draws, 2) == (3.0, -math.inf, math.inf)
    rare = torch.cat([torch.linspace(1, 2, 1000), torch.tensor([math.nan])])
    assert measured(rare, 10**6, (0.0, math.inf)) == pytest.approx(measured(rare[:-1], 10**6), abs=2e-3)
