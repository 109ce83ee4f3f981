"""Tables of mixed columns with missing entries, from the arrays to what is filled in."""

from __future__ import annotations

import contextlib
import functools
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from scipy import stats
from stand_in import Asserting
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import VAE, data, evaluation, objectives, posteriors, priors
from ppl_vae.data import Dataset, Split
from ppl_vae.distributions.counts import NegativeBinomial
from ppl_vae.distributions.mixed import MixedColumns
from ppl_vae.likelihoods import Mixed
from ppl_vae.networks import MLP, Binding, TableEncoder
from ppl_vae.objectives.sampling import sample_log_weights
from ppl_vae.svi import SVI

COLUMNS = ["real", "categorical:3", "positive", "count", "binary", "real"]
NAN = torch.nan


def rows(n: int, missing: float = 0.3, seed: int = 0) -> Tensor:
    """A table of COLUMNS that one number lies behind, in units of very different size."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, generator=g)
    noise = torch.randn(n, generator=g)
    x = torch.stack(
        [
            1e4 + 100 * z,
            (z > 0.5).float() + (z > -0.5).float(),
            (3 + z + 0.3 * noise).exp(),
            torch.poisson((2 + 0.5 * z).exp(), generator=g),
            (z > 0).float(),
            -1e-3 * z,
        ],
        1,
    )
    x[torch.rand(x.shape, generator=g) < missing] = NAN
    return x


def dataset(x: Tensor, num_train: int | None = None) -> Dataset:
    num_train = len(x) * 2 // 3 if num_train is None else num_train
    return Dataset("rows", Split((x[:num_train],)), Split((x[:0],)), Split((x[num_train:],)))


def make(x: Tensor, columns: Any = COLUMNS, scale: Any = "column", mask: bool = False, latent_dim: int = 2) -> VAE:
    torch.manual_seed(0)
    return VAE(
        dataset(x),
        prior=priors.StandardNormal(latent_dim),
        likelihood=Mixed(columns, MLP([16], "tanh", init="torch"), scale=scale),
        posterior=posteriors.DiagonalNormal(TableEncoder(columns, MLP([16], "tanh", init="torch"), mask=mask)),
    )


def likelihood(columns: Any = COLUMNS, x: Tensor | None = None, scale: Any = "column") -> Mixed:
    made = Mixed(columns, MLP([5]), scale=scale)
    x = rows(200, 0.0) if x is None else x
    made.bind(Binding(tuple(x.shape[1:]), (2,), train=Split((x,))))
    return made.double()


def part_of(distribution: MixedColumns, column: int) -> tuple[Any, int]:
    """The family that a column belongs to, and its place there."""
    order = list(range(len(COLUMNS))) if distribution.order is None else distribution.order.tolist()
    place = order.index(column)
    for part in distribution.parts:
        if place < part.batch_shape[-1]:
            return part, place
        place -= part.batch_shape[-1]
    raise AssertionError


# The density


@pytest.mark.parametrize("scale", ["column", "network"])
def test_complete_rows_against_scipy(scale):
    made = likelihood(scale=scale)
    x, z = rows(7, 0.0, seed=1).double(), torch.randn(7, 2, dtype=torch.float64)
    p = made(z)
    assert (p.batch_shape, p.event_shape) == ((7,), (6,))
    expected = np.zeros(7)
    for column, kind in enumerate(COLUMNS):
        part, place = part_of(p, column)
        value = x[:, column].numpy()
        get = lambda t, i=place: t[:, i].detach().numpy()  # noqa: E731
        if kind == "real":
            expected += stats.norm.logpdf(value, get(part.loc), get(part.scale))
        elif kind == "positive":
            loc, sd = get(part.base_dist.loc), get(part.base_dist.scale)
            expected += stats.lognorm.logpdf(value, sd, scale=np.exp(loc))
        elif kind == "count":
            mean, r = np.exp(get(part.log_mean)), np.exp(get(part._log_r))
            expected += stats.nbinom.logpmf(value, r, r / (r + mean))
        elif kind == "binary":
            expected += stats.bernoulli.logpmf(value, get(part.probs))
        else:
            expected += np.log(part.probs[torch.arange(7), place, x[:, column].long()].detach().numpy())
    assert p.log_prob(x).detach().numpy() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("column", range(6))
def test_a_missing_entry_is_integrated_out(column):
    p = likelihood()(torch.zeros(1, 2, dtype=torch.float64)).expand((1,))
    x = rows(1, 0.0, seed=3).double()
    part, place = part_of(p, column)
    kind = COLUMNS[column]
    if kind == "real":
        t = torch.linspace(-12, 12, 4001, dtype=torch.float64)
        grid = part.loc[0, place] + part.scale[0, place] * t
        weights = part.scale[0, place] * (t[1] - t[0]) * torch.ones_like(t)
    elif kind == "positive":
        t = torch.linspace(-12, 12, 4001, dtype=torch.float64)
        grid = (part.base_dist.loc[0, place] + part.base_dist.scale[0, place] * t).exp()
        weights = grid * part.base_dist.scale[0, place] * (t[1] - t[0])
    else:
        size = {"count": 4000, "binary": 2, "categorical:3": 3}[kind]
        grid, weights = torch.arange(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)
    filled = x.repeat(len(grid), 1)
    filled[:, column] = grid
    hidden = x.clone()
    hidden[:, column] = NAN
    total = (p.log_prob(filled) + weights.log()).logsumexp(0)
    assert p.log_prob(hidden).item() == pytest.approx(total.item(), rel=1e-10)
    everything = torch.full_like(x, NAN)
    assert p.log_prob(everything).item() == 0


def test_gradients_stay_finite_with_everything_missing():
    made = likelihood().float()
    z = torch.randn(4, 2, requires_grad=True)
    x = rows(4, 0.5)
    x[0] = NAN
    made(z).log_prob(x).sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (z, *made.parameters()))
    assert z.grad[0].abs().sum() == 0


def test_dense_and_masked_and_expanded():
    made = likelihood()
    z, x = torch.randn(3, 1, 2, dtype=torch.float64), rows(4, seed=5).double()
    p = made(z)
    assert p.batch_shape == (3, 1)
    value = p.log_prob(x)
    assert value.shape == (3, 4)
    assert torch.equal(p.expand((3, 4)).log_prob(x), value)
    keep = torch.tensor([True, False, True, False])
    assert torch.equal(p.expand((3, 4)).mask(keep).log_prob(x), torch.where(keep, value, torch.zeros_like(value)))
    assert p.expand((3, 4)).sample((5,)).shape == (5, 3, 4, 6)
    assert not p.sample((100,)).isnan().any()
    with pytest.raises(NotImplementedError, match="codes of a categorical column have no variance"):
        _ = p.variance


def test_a_missing_entry_is_filled_by_row_or_by_column():
    """What fills it lies inside the support, and is never seen."""
    parts = [dist.Normal(torch.zeros(3, 1), 1.0), dist.LogNormal(torch.zeros(3, 1), 1.0)]
    x = torch.tensor([[1.0, NAN]] * 3)
    for fill in (1.0, torch.ones(()), torch.ones(2), torch.ones(1, 2), torch.rand(3, 2) + 1):
        found = MixedColumns(parts, (2,), fill=fill).log_prob(x)
        torch.testing.assert_close(found, parts[0].log_prob(x[:, :1]).sum(-1))


def test_sampling_agrees_with_the_density():
    """Means, and frequencies of codes, of draws."""
    pyro.set_rng_seed(1)
    p = likelihood()(torch.full((1, 2), 0.3, dtype=torch.float64))
    draws = p.sample((40_000,))[:, 0]
    code, rest = draws[:, 1], [0, 2, 3, 4, 5]
    error = draws[:, rest].std(0) / 200
    assert ((draws[:, rest].mean(0) - p.mean[0, rest]).abs() < 5 * error).all()
    part, place = part_of(p, 1)
    share = torch.bincount(code.long(), minlength=3) / len(code)
    probs = part.probs[0, place]
    assert ((share - probs).abs() < 5 * (probs * (1 - probs)).sqrt() / 200).all()
    assert p.mean[0, 1] == probs.argmax()


def test_large_counts_in_float32():
    """Differences of log-gammas would be wrong by nats here."""
    p = MixedColumns([NegativeBinomial(torch.tensor([[14.0, 6.9]]), torch.tensor([[4.6, -6.9]]))], (2,))
    x = torch.tensor([[1e6, 1e7]])
    precise = MixedColumns([NegativeBinomial(*(t.double() for t in (p.parts[0].log_mean, p.parts[0]._log_r)))], (2,))
    assert p.log_prob(x).double().item() == pytest.approx(precise.log_prob(x.double()).item(), abs=1e-2)


def test_units_come_from_the_observed_data():
    x = rows(300)
    made = likelihood(x=x)
    order = list(range(6)) if made.order is None else made.order.tolist()
    for column in (0, 5):
        seen = x[:, column][~x[:, column].isnan()].double()
        place = {0: 0, 5: 1}[column]
        assert order[place] == column
        assert float(made.location[place]) == pytest.approx(float(seen.mean()), rel=1e-6)
        assert float(made.unit[place]) == pytest.approx(float(seen.std(correction=0)), rel=1e-5)
    other = Mixed(COLUMNS, MLP([5]))
    other.bind(Binding((6,), (2,)))
    other.load_state_dict(made.float().state_dict())
    z = torch.randn(3, 2)
    assert torch.equal(other(z).log_prob(x[:3]), made(z).log_prob(x[:3]))


def test_a_far_column_keeps_its_digits():
    """Seconds since 1970, one apart: the sum of squares would have none left."""
    x = 1.6e9 + torch.randn(10_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = Mixed(["real"], nn.Linear(2, 1).double())
    made.bind(Binding((1,), (2,), train=Split((x,))))
    assert float(made.unit) == pytest.approx(float(x.std(correction=0)), rel=1e-6)


def test_a_density_follows_the_unit_of_its_column_through_the_range_of_float32():
    x, z = torch.randn(50, 1), torch.zeros(50, 2)
    made = {unit: Mixed(["real"], nn.Linear(2, 1)) for unit in (1.0, 2.0**-75, 2.0**66)}
    for unit, one in made.items():
        one.bind(Binding((1,), (2,), train=Split((unit * x,))))
        one.load_state_dict({**one.state_dict(), **dict(made[1.0].named_parameters())})
        found = one(z).log_prob(unit * x) + math.log(unit)
        torch.testing.assert_close(found, made[1.0](z).log_prob(x), rtol=0, atol=1e-4)  # the size of the logarithm


def test_codes_alone_have_the_dtype_of_the_model():
    p = likelihood(["categorical:3"], torch.zeros(9, 1))(torch.zeros(4, 2, dtype=torch.float64))
    assert p.sample().dtype == p.mean.dtype == p.log_prob(p.sample()).dtype == torch.float64


@pytest.mark.parametrize(("kind", "per_entry"), [("real", 1), ("binary", 1), ("count", 1), ("categorical:4", 4)])
def test_one_kind_for_data_of_any_shape(kind, per_entry):
    made = Mixed(kind, MLP([5]))
    made.bind(Binding((2, 3, 4), (2,)))
    p = made(torch.randn(5, 7, 2))
    assert (p.batch_shape, p.event_shape) == ((5, 7), (2, 3, 4))
    x = p.sample()
    x[..., 0, :, :] = NAN
    assert p.log_prob(x).shape == (5, 7)
    assert sum(1 for _ in p.parts) == 1
    assert p.moments.shape == (5, 7, 24 * per_entry)


# What is refused


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["real", "bynary"], r"columns\[1\] is 'bynary'; .*did you mean binary"),
        (["categorical"], "expected the number of categories"),
        (["categorical:1"], "two or more"),
        (["real:2"], "expected one of real"),
        ([], "expected a list of kinds"),
        ("reel", "did you mean real"),
    ],
)
def test_bad_columns(columns, message):
    with pytest.raises(ValueError, match=f"likelihood Mixed: .*{message}|likelihood Mixed: {message}"):
        Mixed(columns)
    if columns and not isinstance(columns, str):
        with pytest.raises(ValueError, match=message):
            TableEncoder(columns)


def test_other_columns_than_those_of_the_data():
    with pytest.raises(ValueError, match=r"Mixed has 6 columns and data of shape \(5,\)"):
        Mixed(COLUMNS).bind(Binding((5,), (2,)))
    with pytest.raises(ValueError, match=r"TableEncoder has 6 columns and an input of shape \(5,\)"):
        TableEncoder(COLUMNS)((5,), (2,))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, math.inf, "column 0 is 'real' and holds inf"),
        (1, 3.0, "column 1 is 'categorical:3' and holds 3 .*from 0 to one less"),
        (2, 0.0, "column 2 is 'positive' and holds 0 .*above zero"),
        (3, 1.5, "column 3 is 'count' and holds 1.5 .*whole numbers"),
        (4, 2.0, "column 4 is 'binary' and holds 2 "),
    ],
)
def test_values_outside_a_kind_are_named(column, value, message):
    x = rows(30)
    x[4, column] = value
    with pytest.raises(ValueError, match=message):
        make(x)


def test_support():
    p = likelihood()(torch.zeros(1, 2, dtype=torch.float64))
    x = rows(3, 0.5, seed=2).double()
    assert p.support.check(x).all()
    x[1, 3] = -1
    assert p.support.check(x).tolist() == [True, False, True]
    assert p.support.explain(x) == "-1 in column 3, which takes IntegerGreaterThan(lower_bound=0) or NaN"
    with pytest.raises(ValueError, match="within the support"):
        type(p)(p.parts, p.event_shape, p.order, p.fill, validate_args=True).log_prob(x)


def test_validation_data_outside_are_refused():
    x = rows(60)
    bad = x[40:].clone()
    bad[0, 4] = 0.5
    vae = make(x)
    good = dataset(x)
    assert vae.check_support(good) is None
    with pytest.raises(ValueError, match=r"outside the support of Mixed|column 4"):
        vae.check_support(Dataset("bad", good.train, Split((bad,)), good.test))


# The encoder


def test_encoder_features():
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x[:, :1]

    network = TableEncoder(COLUMNS, lambda i, o: Spy(), mask=True)((8,), (1,))  # a condition of two behind
    x = torch.cat([rows(500), torch.randn(500, 2)], 1)
    network.train()(x)
    (features,) = seen
    assert features.shape == (500, 5 + 3 + 6 + 2)
    assert not features.isnan().any()
    missing = x[:, :6].isnan()
    assert torch.equal(features[:, 8:14], (~missing).float())
    assert torch.equal(features[:, 14:], x[:, 6:])
    for place, column in enumerate([0, 2, 3, 4, 5]):
        own, gone = features[:, place], missing[:, column]
        assert (own[gone] == 0).all()
        assert abs(own[~gone].mean()) < 1e-3  # 1e4 with a scale of 100 in float32
        assert own[~gone].std(correction=0) == pytest.approx(1, rel=1e-4)
    codes = features[:, 5:8]
    assert (codes[missing[:, 1]] == 0).all()
    assert torch.equal(codes[~missing[:, 1]].argmax(-1).float(), x[:, 1][~missing[:, 1]])


def test_encoder_statistics_are_those_of_all_rows_seen():
    network = TableEncoder(["real", "positive"], MLP([3]))((2,), (1,)).double()
    x = torch.cat([torch.randn(90, 1) * 7 + 3, torch.rand(90, 1) + 0.1], 1).double()
    x[torch.rand(90, 2) < 0.4] = NAN
    for batch in x.split(7):
        network(batch)
    t = torch.stack([x[:, 0], x[:, 1].log()], 1)
    mean = t.nanmean(0)
    assert torch.allclose(network.mean, mean, rtol=1e-10)
    assert torch.allclose(network.variance, (t - mean).square().nanmean(0), rtol=1e-10)
    before = network.mean.clone()
    network.eval()(x[:3])
    assert torch.equal(network.mean, before)


def test_encoder_statistics_forget_that_the_first_rows_were_alike():
    x = torch.zeros(300, 3)
    x[130::37, 0] = 1  # a rare count
    x[:, 1] = 0.1  # constant: its mean in float32 is not 0.1
    x[:, 2] = torch.where(torch.arange(300) % 120 == 7, 0.4 + 0.01 * torch.randn(300), NAN)  # one in each batch
    network = TableEncoder(["count", "real", "real"], lambda i, o: nn.Identity())((3,), (3,))
    for batch in x.split(100):
        assert network(batch[:0]).shape == (0, 3)
        network(batch)
    t = torch.cat([x[:, :1].log1p(), x[:, 1:]], 1).double()
    variance = (t - t.nanmean(0)).square().nanmean(0)
    assert torch.allclose(network.variance[[0, 2]].double(), variance[[0, 2]], rtol=1e-4)  # float32
    assert (network(x)[:, 1] == 0).all()


@pytest.mark.parametrize("unit", [1e-9, 1e-15])
def test_encoder_takes_columns_in_any_unit(unit):
    network = TableEncoder(network=lambda i, o: nn.Identity())((1,), (1,))
    assert network((torch.randn(500, 1) + 2) * unit).std(correction=0).item() == pytest.approx(1, rel=1e-4)


# The chain


@pytest.mark.slow
@pytest.mark.parametrize("scale", [pytest.param("column", marks=pytest.mark.slow), "network"])
def test_training_on_incomplete_rows_lowers_the_loss(scale):
    x = rows(600)
    vae = make(x, scale=scale, mask=True)
    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    run = pv.fit(vae, dataset(x), epochs=8, batch_size=50, seed=0, optimizer=adam)
    assert run.why_eager is None
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 1
    assert all(p.isfinite().all() for p in vae.cpu().parameters())
    test = dataset(x).test.x[:4]
    weights = sample_log_weights(vae.model, vae.guide, test, num_particles=4)
    assert weights.log_w.isfinite().all()
    exact = vae.score(test)
    estimate = evaluation.importance(evaluation.VAEDensities(vae), test, num_particles=2000, proposal="defensive")
    sure = estimate.error.isfinite()
    assert ((estimate.log_evidence - exact).abs() <= 5 * estimate.error + 1e-3)[sure].all()
    assert not vae.reconstruct(test).isnan().any()


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize(("scale", "mask"), [("column", False), ("network", True)])
def test_captured_bit_for_bit(scale, mask):
    x, found = rows(90), []
    for level in ("graph", "off"):
        vae = make(x, scale=scale, mask=mask)
        optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
        svi = SVI(vae.model, vae.guide, optimizer, objectives.ELBO(2), compile=level)
        torch.manual_seed(1)
        found.append(([svi.step(x[:32]) for _ in range(4)], [v.clone() for v in vae.state_dict().values()]))
        assert svi.why_eager is None or level == "off"
    (losses, state), (expected_losses, expected) = found
    assert losses == expected_losses
    assert all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))


def linear_table(n: int = 3000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of a factor model in six real columns with 30% missing, their truth, covariance and mean."""
    g = torch.Generator().manual_seed(0)
    loadings = torch.randn(6, 2, generator=g)
    truth = torch.randn(n, 2, generator=g) @ loadings.T + 0.5 * torch.randn(n, 6, generator=g)
    scale, mean = torch.tensor([1.0, 10.0, 0.1, 5.0, 1.0, 2.0]), torch.tensor([0.0, 100.0, 1.0, -5.0, 3.0, 0.0])
    covariance = (loadings @ loadings.T + 0.25 * torch.eye(6)) * scale[:, None] * scale
    truth = truth * scale + mean
    x = torch.where(torch.rand(n, 6, generator=g) < 0.3, NAN, truth)
    return x, truth, covariance, mean


def conditional_means(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """E[x_mis | x_obs] under a normal distribution."""
    filled = x.clone()
    for row in filled:
        gone = row.isnan()
        if gone.any():
            solved = torch.linalg.solve(covariance[~gone][:, ~gone], (row - mean)[~gone])
            row[gone] = mean[gone] + covariance[gone][:, ~gone] @ solved
    return filled


class Wide(nn.Module):
    """A q(z|x) that is wider than any p(z|x), so that weights are even."""

    def forward(self, x: Tensor) -> Any:
        zero = x.new_zeros(len(x), 2)
        return dist.Normal(zero, torch.full_like(zero, 1.2)).to_event(1)


@pytest.mark.parametrize("sampler", ["importance", "metropolis"])
def test_imputation_is_the_conditional_mean_of_a_linear_model(sampler):
    """Under a linear decoder what is filled in has a closed form."""
    x, _, _, _ = linear_table(12)
    torch.manual_seed(0)
    made = Mixed("real", nn.Linear(2, 6))
    vae = VAE(
        dataset(x, 12),
        prior=priors.StandardNormal(2),
        likelihood=made,
        posterior=Wide(),
    ).double()
    weight, bias = [p.detach() for p in made.parameters_of_columns.network.parameters()]
    mean = made.location + made.unit * bias
    loadings = made.unit[:, None] * weight
    noise = made.spread * (nn.functional.softplus(made.raw_scale.detach()) + made.floor)
    expected = conditional_means(x.double(), mean, loadings @ loadings.T + noise.square().diag())
    filled = evaluation.impute(vae, x.double(), sampler=sampler, num_steps=600, num_chains=8)
    gone = x.isnan()
    assert torch.equal(filled.missing, gone)
    assert torch.equal(filled.mean[~gone], x.double()[~gone])
    deviation = ((filled.mean - expected).abs() / filled.error)[gone]
    assert (deviation < 8).all()  # eight chains: Student's t of seven degrees of freedom, at about 20 entries
    assert (filled.error[gone] < 0.1 * made.unit.expand(12, 6)[gone]).all()
    assert (filled.acceptance > 0.05).all()
    assert not filled.draw.isnan().any()


@pytest.mark.ci
def test_trained_imputation_beats_the_mean_and_nears_the_best_there_is():
    x, truth, covariance, mean = linear_table()
    vae = make(x, ["real"] * 6)
    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    pv.fit(vae, dataset(x), epochs=12, batch_size=100, seed=0, optimizer=adam)
    test, known = x[2000:2300], truth[2000:2300]
    kinds = ["real"] * 6
    filled = evaluation.impute(vae, test, sampler="importance", num_steps=100, num_chains=2)
    ours = filled.column_errors(known, kinds).mean()
    best = evaluation.column_errors(conditional_means(test, mean, covariance), known, test.isnan(), kinds).mean()
    means = torch.where(test.isnan(), x[:2000].nanmean(0), test)
    plain = evaluation.column_errors(means, known, test.isnan(), kinds).mean()
    assert best < ours < best + 0.2 * (plain - best)


def test_imputation_of_mixed_columns():
    x = rows(300, 0.3)
    vae = make(x)
    filled = evaluation.impute(vae, x[:10], sampler="importance", num_steps=30, num_chains=3)
    assert torch.equal(filled.mean[:, 1], filled.mean[:, 1].round())
    assert vae.likelihood(torch.zeros(1, 2)).support.check(filled.draw).all()
    assert filled.error.isfinite().all()
    assert (filled.error[~x[:10].isnan()] == 0).all()
    mixed = evaluation.impute(vae, x[:10], num_steps=5, num_chains=2)
    assert vae.likelihood(torch.zeros(1, 2)).support.check(mixed.draw).all()


def test_importance_imputation_says_what_it_needs():
    x = rows(60)
    torch.manual_seed(0)
    plain = VAE(
        dataset(x), prior=priors.StandardNormal(2), likelihood=Mixed(COLUMNS), posterior=posteriors.DiagonalNormal()
    )
    with pytest.raises(ValueError, match=r"encodes rows with NaN.*TableEncoder"):
        evaluation.impute(plain, x[:3], sampler="importance", num_steps=2)
    normal = VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=pv.likelihoods.Normal(),
        posterior=posteriors.DiagonalNormal(),
    )
    with pytest.raises(ValueError, match="integrates missing values out, such as Mixed"):
        evaluation.impute(normal, x[:3], sampler="importance", num_steps=2)


def test_column_errors():
    x = torch.tensor([[1.0, 0.0, 2.0, NAN], [3.0, 1.0, 1.0, 1.0], [5.0, 1.0, 0.0, 2.0]])
    filled = torch.tensor([[1.0, 0.6, 2.0, 0.0], [3.0, 0.7, 2.0, 1.0], [4.0, 1.0, 0.0, 2.0]])
    missing = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]]).bool()
    found = evaluation.column_errors(filled, x, missing, ["real", "binary", "categorical:3", "count"])
    assert found[:3].tolist() == pytest.approx([1 / math.sqrt(8 / 3), 0.5, 0.5])
    assert found[3].isnan()
    with pytest.raises(ValueError, match="2 columns"):
        evaluation.column_errors(filled, x, missing, ["real", "binary"])
    for guess in (0.1, 0.2):  # a column of one value gives no unit
        same, every = torch.full((3, 1), 0.1), torch.ones(3, 1).bool()
        assert evaluation.column_errors(torch.full((3, 1), guess), same, every, ["real"]).isnan()


# The data set


def test_from_table_of_numbers():
    x = rows(100).numpy()
    table = data.from_table(x, {1: "categorical:3", 2: "positive"}, validation=0.2, test=0.2, labels=range(100))
    assert table.columns == ("real", "categorical:3", "positive", "count", "binary", "real")
    parts = (table.train, table.validation, table.test)
    assert [len(part) for part in parts] == [64, 16, 20]
    for part in parts:
        expected = torch.from_numpy(x[part.labels.numpy()])
        assert torch.equal(part.x.isnan(), expected.isnan())
        assert torch.equal(part.x.nan_to_num(), expected.nan_to_num())
    assert table.column_names == ("0", "1", "2", "3", "4", "5")
    assert table.to("cpu").columns == table.columns
    again = data.from_table(torch.from_numpy(x), COLUMNS, validation=0.2, test=0.2, labels=range(100))
    assert again.fingerprint == table.fingerprint
    assert VAE(
        table,
        prior=priors.StandardNormal(1),
        likelihood=Mixed(table.columns),
        posterior=posteriors.DiagonalNormal(TableEncoder(table.columns)),
    ).x_shape == (6,)


def test_from_table_of_words():
    structured = np.array([("a", 1.5, True), ("b", np.nan, False), ("a", -2.0, True)], dtype="U1,f8,?")
    table = data.from_table(structured, validation=0, test=0)
    assert table.columns == ("categorical:2", "real", "binary")
    assert table.categories == (("a", "b"), (), ())
    assert table.train.x[:, 0].tolist() == [0, 1, 0]
    table = data.from_table({"n": [10, 30, None, 20], "w": ["x", None, "", "y"]}, {"n": "categorical"}, test=0)
    assert table.columns == ("categorical:3", "categorical:2")
    assert table.categories == ((10.0, 20.0, 30.0), ("x", "y"))
    table = data.from_table([["a", 1.5], ["b", NAN], [NAN, 2.0]], validation=0, test=0)  # no word is "nan"
    assert (table.columns, table.categories) == (("categorical:2", "real"), (("a", "b"), ()))
    assert table.train.x.isnan().tolist() == [[False, False], [False, True], [True, False]]
    table = data.from_table({"w": np.array(["y\0", "x", "y\0"], object)}, validation=0, test=0)  # numpy drops the NUL
    assert (table.categories, table.train.x.flatten().tolist()) == ((("x", "y"),), [1, 0, 1])
    pandas = pytest.importorskip("pandas", reason="pandas, of the extra tables, is not installed")
    words = pandas.Series(["v", None, "u"], dtype="string")
    assert data.from_table({"w": words}, validation=0, test=0).train.x.nan_to_num(-1).tolist() == [[1], [-1], [0]]


@pytest.mark.parametrize(("unit", "time"), [("D", ""), ("s", "T00:00:00"), ("ns", "T00:00:00.000000000")])
def test_days_are_words_as_numpy_writes_them(unit, time):
    days = np.array(["2020-01-02", "2020-01-01", "NaT"], f"M8[{unit}]")
    table = data.from_table({"day": days}, {"day": "categorical"}, validation=0, test=0)
    assert table.categories == ((f"2020-01-01{time}", f"2020-01-02{time}"),)
    assert table.train.x.nan_to_num(-1).flatten().tolist() == [1, 0, -1]
    again = data.from_table({"day": days}, {"day": table.categories[0]}, validation=0, test=0)
    assert again.train.x.nan_to_num(-1).flatten().tolist() == [1, 0, -1]


def test_numbers_of_columns_are_those_of_the_table():
    """Also where a column becomes labels or ids."""
    columns = {"y": ["u", "v"], "a": [1.0, 2.0], "n": ["p", "q"], "b": [3.0, 4.0]}
    for key in (3, "3", "b"):
        table = data.from_table(columns, {key: "positive"}, labels="y", ids="n", test=0, validation=0)
        assert dict(zip(table.column_names, table.columns, strict=True)) == {"a": "count", "b": "positive"}
    with pytest.raises(ValueError, match="columns names '0', and table has the columns a, b"):
        data.from_table(columns, {0: "real"}, labels="y", ids="n")


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (np.zeros(3), None, r"shape \(3,\)"),
        ({"a": [1, 2], "b": [1]}, None, r"a \(2,\), b \(1,\)"),
        (np.eye(3), ["real"], "for the 3 columns"),
        (np.eye(3), {"x": "real"}, "columns names 'x'"),
        (np.eye(3), {"1": "whole"}, "the kind of column '1' is 'whole'"),
        (-np.eye(3), {"1": "count"}, "column '1' of table is 'count' and holds -1, where whole numbers from 0"),
        ([[np.inf], [1.0]], None, "column '0' .* holds inf"),
        ({"a": ["x", "x"]}, None, "has 1 categories"),
        ({"a": [Decimal(1), Decimal(2)]}, None, "column 'a' of table holds a Decimal"),
        ({"a": np.array(["2020-01-01", "2020-01-02"], "M8[ns]")}, None, "column 'a' of table holds a datetime64"),
        (np.array([[1j], [2j]]), None, "column '0' of table holds a complex"),
        ({"a": ["x", "y"]}, {"a": "real"}, "holds words, where 'real' expects numbers"),
    ],
)
def test_bad_tables(table, columns, message):
    with pytest.raises(ValueError, match=message):
        data.from_table(table, columns, test=0, validation=0)


def test_load_names_from_table(tmp_path):
    np.save(tmp_path / "holes.npy", np.array([[1.0, np.nan], [2.0, 3.0]] * 10))
    with pytest.raises(ValueError, match=r"10 NaN or infinite values.*data\.from_table"):
        data.load(tmp_path / "holes.npy")


def test_an_encoder_without_a_place_for_missing_values_is_named():
    table = data.from_table(np.array([[1.0, np.nan], [2.0, 3.5], [0.5, 1.5]] * 20), columns=["real", "real"])
    sphere = {"prior": priors.HypersphericalUniform(3), "likelihood": Mixed(["real", "real"])}
    fits = VAE(table, **sphere, posterior=posteriors.PowerSpherical(TableEncoder()))
    assert fits.check_support(table) is None
    sphere["likelihood"] = Mixed(["real", "real"])
    with pytest.raises(ValueError, match=r"networks\.TableEncoder, which fills them"):
        VAE(table, **sphere, posterior=posteriors.PowerSpherical(MLP([4]))).check_support(table)


@pytest.mark.parametrize("entry", zoo.POSTERIORS, ids=lambda entry: entry.name)
def test_missing_values_under_a_posterior_that_does_not_take_them(entry: zoo.Posterior) -> None:
    """Its own draws may fail before they can be scored, as a normal whose scale is NaN does.

    On a GPU a draw of classes does not fail, but ends all that the process has there.
    """
    rows = torch.rand(20, 4)
    rows[3, 1] = rows[7, 0] = math.nan
    table = Dataset("table", Split((rows,)), Split((rows[:0],)), Split((rows[:2],)))
    prior = zoo.goes_with(entry, zoo.PRIORS)
    vae = VAE(table, prior=prior.make(2), likelihood=Mixed("real"), posterior=entry.make(MLP([5])))
    message = r"missing values \(NaN\), which the posterior's network does not take"
    with Asserting():
        for refuse in (
            lambda: pv.fit(vae, table, epochs=1, batch_size=5, objective=pyro.infer.Trace_ELBO()),
            lambda: pv.evaluate(vae, rows),
        ):
            with pytest.raises(ValueError, match=message):
                refuse()
        for refuse in (lambda: vae.encode(rows), lambda: vae.reconstruct(rows), lambda: vae.score(rows)):
            with contextlib.suppress(ValueError, RuntimeError):
                refuse()
    filled = VAE(
        table, prior=prior.make(2), likelihood=Mixed("real"), posterior=entry.make(TableEncoder(["real"] * 4, MLP([5])))
    )
    assert filled.check_support(table) is None
