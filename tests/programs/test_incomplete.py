"""MIWAE and not-MIWAE, against closed forms, quadrature and known mechanisms."""

from __future__ import annotations

import copy
import functools
import math
import re
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import VAE, evaluation, evidence, objectives, posteriors, priors
from ppl_vae.data import Dataset, Split
from ppl_vae.evaluation import impute
from ppl_vae.likelihoods import Mixed
from ppl_vae.networks import MLP, TableEncoder
from ppl_vae.objectives.sampling import sample_log_weights
from ppl_vae.programs import NotMIWAE, SelfMasking
from ppl_vae.svi import SVI

NAN = torch.nan


def dataset(x: Tensor) -> Dataset:
    return Dataset("rows", Split((x,)), Split((x[:0],)), Split((x[:0],)))


class Exact(nn.Module):
    """p(z|x_obs) of a linear model with complete or incomplete rows, widened by a factor and moved."""

    def __init__(self, wider: float = 1.0, off: float = 0.0) -> None:
        super().__init__()
        self.wider, self.off, self.model = wider, off, None

    def forward(self, x: Tensor) -> dist.MultivariateNormal:
        if self.model is None:  # when the VAE is put together
            return dist.MultivariateNormal(x.new_zeros(len(x), 2), torch.eye(2).to(x))
        weight, bias, scale = self.model
        seen = ~x.isnan()
        precision = (seen / scale.square())[:, None, :] * weight.T @ weight + torch.eye(2).to(x)
        residual = torch.where(seen, (x - bias) / scale.square(), 0.0) @ weight
        covariance = torch.linalg.inv(precision)
        mean = (covariance @ residual[..., None])[..., 0]
        return dist.MultivariateNormal(mean + self.off, covariance * self.wider)


def linear(posterior: nn.Module, x: Tensor) -> tuple[VAE, tuple[Tensor, Tensor, Tensor]]:
    """A linear-Gaussian VAE of two latents, and its loadings (D, 2), means (D,) and scales (D,)."""
    torch.manual_seed(0)
    likelihood = Mixed("real", nn.Linear(2, x.shape[1]))
    vae = VAE(dataset(x), prior=priors.StandardNormal(2), likelihood=likelihood, posterior=posterior).double()
    weight, bias = [p.detach() for p in likelihood.parameters_of_columns.network.parameters()]
    raw = likelihood.raw_scale.detach()
    scale = likelihood.spread * (nn.functional.softplus(raw) + likelihood.floor)
    model = (likelihood.unit[:, None] * weight, likelihood.location + likelihood.unit * bias, scale)
    if isinstance(posterior, Exact):
        posterior.model = model
    return vae, model


def incomplete(n: int, columns: int = 5, share: float = 0.4) -> Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=g, dtype=torch.float64) @ torch.randn(2, columns, generator=g, dtype=torch.float64)
    x = x + 0.5 * torch.randn(n, columns, generator=g, dtype=torch.float64)
    return torch.where(torch.rand(n, columns, generator=g) < share, NAN, x)


def marginal(model: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    """Log p(x_obs) in closed form, row by row."""
    weight, mean, scale = model
    covariance = weight @ weight.T + scale.square().diag()
    found = []
    for row in x:
        seen = ~row.isnan()
        p = torch.distributions.MultivariateNormal(mean[seen], covariance[seen][:, seen]) if seen.any() else None
        found.append(row.new_zeros(()) if p is None else p.log_prob(row[seen]))
    return torch.stack(found)


# MIWAE


def test_iwae_on_incomplete_rows_is_the_bound_of_miwae():
    x = incomplete(60)
    vae, (weight, bias, scale) = linear(Exact(wider=1.5, off=0.2), x)
    with torch.no_grad():
        weights = sample_log_weights(vae.model, vae.guide, x, num_particles=7)
        bound = objectives.IWAE(7)(weights).value
        z = weights.z["z"]
        scores = dist.Normal(z @ weight.T + bias, scale).log_prob(x.nan_to_num(0.0))
        log_lik = torch.where(x.isnan(), 0.0, scores).sum(-1)
        log_w = log_lik + dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - vae.q_z(x).log_prob(z)
    torch.testing.assert_close(bound, log_w.logsumexp(0) - math.log(7), rtol=1e-10, atol=1e-12)


def test_the_bound_lies_below_the_marginal_of_observed_entries_and_is_tight_at_its_posterior():
    x = incomplete(200)
    vae, model = linear(Exact(), x)
    exact = marginal(model, x)  # the same parameters below
    with torch.no_grad():
        tight = objectives.IWAE(3)(sample_log_weights(vae.model, vae.guide, x, num_particles=3)).value
    torch.testing.assert_close(tight, exact, rtol=1e-9, atol=1e-9)
    vae, model = linear(Exact(wider=2.0, off=0.3), x)
    gaps = []
    for k in (1, 20):
        with torch.no_grad():
            found = sample_log_weights(vae.model, vae.guide, x.repeat(10, 1), num_particles=k)
            gaps.append(exact.repeat(10) - objectives.IWAE(k)(found).value)
    error = [gap.std() / len(gap) ** 0.5 for gap in gaps]
    assert gaps[0].mean() > 5 * error[0]
    assert -5 * error[1] < gaps[1].mean() < 0.3 * gaps[0].mean()


# Draws and intervals, where p(x_mis | x_obs) is known


def conditional(model: tuple[Tensor, Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of the one missing entry of each row."""
    weight, mean, scale = model
    covariance = weight @ weight.T + scale.square().diag()
    found = []
    for row in x:
        seen = ~row.isnan()
        gain = covariance[~seen][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
        variance = covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]
        found.append(torch.stack([(mean[~seen] + gain @ (row - mean)[seen])[0], variance[0, 0].sqrt()]))
    return torch.stack(found).unbind(1)


def rows_with_one_missing(n: int, posterior: nn.Module) -> tuple[VAE, tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """A linear VAE, rows that it has drawn, and the same with one entry missing each."""
    vae, model = linear(posterior, incomplete(300, share=0.1))
    g = torch.Generator().manual_seed(1)
    normal = functools.partial(torch.randn, generator=g, dtype=torch.float64)
    x = normal(n, 2) @ model[0].T + model[1] + model[2] * normal(n, 5)
    gone = torch.arange(5) == torch.randint(5, (n, 1), generator=g)
    return vae, model, x, torch.where(gone, NAN, x)


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("sampler", ["importance", "metropolis"])
def test_draws_follow_the_conditional_of_a_linear_model(sampler):
    vae, model, _, holes = rows_with_one_missing(6, Complete())
    many = 1000
    start = torch.where(holes.isnan(), 0.0, holes)
    found = impute(
        vae, start, holes.isnan(), num_draws=many, num_steps=600, num_chains=many // 5, sampler=sampler, seed=2
    )
    mean, sd = conditional(model, holes)
    draws = found.draws[:, holes.isnan()]
    assert draws.shape == (many, 6)
    chains = draws.reshape(5, many // 5, 6).mean(0)  # those of one chain depend on each other; chains do not
    error = chains.std(0) / len(chains) ** 0.5
    assert ((draws.mean(0) - mean) / error).abs().max() < 5
    squares = (draws - mean).square().reshape(5, many // 5, 6).mean(0)
    assert ((squares.mean(0) - sd.square()) / (squares.std(0) / len(chains) ** 0.5)).abs().max() < 5
    for level in (0.1, 0.5, 0.9):
        below = (draws < mean + sd * dist.Normal(0.0, 1.0).icdf(torch.tensor(level))).double()
        below = below.reshape(5, many // 5, 6).mean(0)
        assert ((below.mean(0) - level) / (below.std(0) / len(chains) ** 0.5)).abs().max() < 5
    assert torch.equal(found.draw, found.draws[0])
    assert torch.equal(found.draws[:, ~holes.isnan()], holes[~holes.isnan()].expand(many, -1))


class Complete(Exact):
    """One q(z|x) for complete and incomplete rows alike, wider than the true one, as chains and weights both need."""

    def __init__(self) -> None:
        super().__init__(wider=1.7, off=0.1)


@functools.cache
def imputed(sampler):
    """Rows, the same with holes, and nineteen draws of what is missing."""
    vae, _, x, holes = rows_with_one_missing(800, Complete())
    start = holes.nan_to_num(0.0)
    return x, holes, impute(vae, start, holes.isnan(), num_draws=19, num_steps=100, num_chains=19, sampler=sampler)


@pytest.mark.ci
@pytest.mark.thinned(4)
@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("sampler", ["importance", "metropolis"])
def test_intervals_of_the_true_model_cover_as_they_say(level, sampler):
    x, holes, found = imputed(sampler)
    low, high = found.interval(level)
    covered = ((low <= x) & (x <= high))[holes.isnan()].double().mean()
    assert abs(covered - level) < 4 * (level * (1 - level) / len(x)) ** 0.5
    assert torch.equal(low[~holes.isnan()], x[~holes.isnan()])
    assert torch.equal(high[~holes.isnan()], x[~holes.isnan()])


def test_the_ends_of_an_interval_are_order_statistics():
    draws = torch.randperm(19, generator=torch.Generator().manual_seed(0)).double().reshape(19, 1, 1) + 1
    found = evaluation.Imputation(draws[0], draws, draws[0], draws[0] > 0, draws[0, 0])
    assert [end.item() for end in found.interval(0.9)] == [1, 19]
    assert [end.item() for end in found.interval(0.5)] == [5, 15]
    low, high = found.interval(0.85)
    assert (low.item(), high.item()) == pytest.approx((1.5, 18.5))
    with pytest.raises(ValueError, match=r"19 draws are too few at level 0.95; give impute num_draws=39"):
        found.interval(0.95)
    for level in (0, 1, "0.9", NAN):
        with pytest.raises(ValueError, match="expected a number between 0 and 1"):
            found.interval(level)


def test_codes_have_no_interval_and_draws_are_counted():
    x = torch.stack([torch.randn(50), torch.randint(3, (50,)).float()], 1)
    x[::3, 0], x[1::3, 1] = NAN, NAN
    columns = ["real", "categorical:3"]
    torch.manual_seed(0)
    encoder = posteriors.DiagonalNormal(TableEncoder(columns, MLP([8])))
    vae = VAE(dataset(x), prior=priors.StandardNormal(1), likelihood=Mixed(columns), posterior=encoder)
    found = impute(vae, x, num_draws=7, num_steps=4, num_chains=2, sampler="importance")
    assert found.draws.shape == (7, 50, 2)
    low, high = found.interval(0.5)
    assert low[:, 1].isnan().all()
    assert (low[:, 0] <= high[:, 0]).all()
    assert found.is_code.tolist() == [False, True]
    assert set(found.draws[:, 1::3, 1].unique().tolist()) <= {0.0, 1.0, 2.0}
    with pytest.raises(ValueError, match="num_draws is 9; expected at most 8"):
        impute(vae, x, num_draws=9, num_steps=4, num_chains=2)


# not-MIWAE, where log p(x_obs, s) is known


WEIGHT, BIAS, SCALE = torch.tensor([1.0, -0.8, 0.9]).double(), torch.tensor([0.2, 0.0, -0.3]).double(), 0.6
W, C = torch.tensor([2.0, 1.5]).double(), torch.tensor([0.5, -0.4]).double()  # of the first two columns


class Latent(nn.Module):
    """A q(z|x_obs) of one latent that is wider than the true posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> dist.Normal:
        seen = ~x.isnan()
        precision = 1 + (seen * WEIGHT.to(x).square()).sum(-1, keepdim=True) / SCALE**2
        residual = torch.where(seen, x - BIAS.to(x), 0.0) * WEIGHT.to(x) / SCALE**2
        mean = residual.sum(-1, keepdim=True) / precision
        return dist.Normal(mean + self.shift, 1.5 * precision.rsqrt()).to_event(1)


def known(dtype: torch.dtype = torch.float64) -> NotMIWAE:
    """The program of known parameters: three normal columns of one latent, of which two mask themselves."""
    torch.manual_seed(0)
    data = torch.randn(40, 3)
    data[::4, 0], data[1::4, 1] = NAN, NAN
    decoder = nn.Linear(1, 3)
    likelihood = Mixed(["real"] * 3, decoder)
    vae = VAE(dataset(data), prior=priors.StandardNormal(1), likelihood=likelihood, posterior=Latent())
    program = NotMIWAE(vae, dataset(data), SelfMasking("high")).to(dtype)
    with torch.no_grad():  # units of one, so that the parameters are those above
        for name, value in (("location", 0.0), ("unit", 1.0), ("spread", 1.0)):
            getattr(likelihood, name).fill_(value)
        likelihood.raw_scale.fill_(math.log(math.expm1(SCALE - likelihood.floor)))
        decoder.weight.copy_(WEIGHT[:, None])
        decoder.bias.copy_(BIAS)
        program.mean.zero_()
        program.scale.fill_(1.0)
        mask = program.mechanism.network
        mask.raw[:2] = torch.log(torch.expm1(W))
        mask.bias[:2] = C
    return program


Z = torch.linspace(-8, 8, 401, dtype=torch.float64)
X = torch.linspace(-12, 12, 1201, dtype=torch.float64)


def joint(row: Tensor, w: Tensor = W, c: Tensor = C) -> tuple[Tensor, list[Tensor]]:
    """Log p(x_obs, s, z) on the grid of z, and p(x_j | z) p(s_j | x_j), (z, x), of each missing column."""
    log_p, inside = dist.Normal(0.0, 1.0).log_prob(Z), []
    for j, x in enumerate(row):
        p = dist.Normal(WEIGHT[j] * Z + BIAS[j], SCALE)
        if not x.isnan():
            log_p = log_p + p.log_prob(x)
            if j < 2:
                log_p = log_p + nn.functional.logsigmoid(c[j] - w[j] * x)
            continue
        density = dist.Normal((WEIGHT[j] * Z + BIAS[j])[:, None], SCALE).log_prob(X).exp()
        density = density * torch.sigmoid(w[j] * X - c[j]) if j < 2 else density
        log_p = log_p + torch.trapezoid(density, X).log()
        inside.append(density)
    return log_p, inside


ROWS = torch.tensor([[0.3, -0.5, 0.1], [NAN, 0.4, -1.0], [NAN, NAN, 0.7], [-0.2, NAN, 0.9], [NAN, NAN, NAN]]).double()


def exact(rows: Tensor, w: Tensor = W, c: Tensor = C) -> Tensor:
    return torch.stack([torch.trapezoid(joint(row, w, c)[0].exp(), Z).log() for row in rows])


def test_the_log_weights_are_the_papers():
    program = known()
    with torch.no_grad():
        found = sample_log_weights(program.model, program.guide, ROWS, num_particles=4)
        z, noise = found.z["z"], found.z["noise"]
        mean = z * WEIGHT + BIAS
        filled = torch.where(ROWS.isnan(), mean + SCALE * noise, ROWS)
        log_p = torch.where(ROWS.isnan(), 0.0, dist.Normal(mean, SCALE).log_prob(ROWS.nan_to_num(0.0))).sum(-1)
        logits = C - W * filled[..., :2]
        log_s = dist.Bernoulli(logits=logits).log_prob((~ROWS[:, :2].isnan()).double().expand_as(logits)).sum(-1)
        log_z = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - program.vae.q_z(ROWS).log_prob(z)
    assert not torch.equal(noise[0], noise[1])
    torch.testing.assert_close(found.log_w, log_p + log_s + log_z, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.log_prior["noise"], found.log_q["noise"])  # x_mis cancels exactly


@pytest.mark.parametrize("by", ["importance", "log_evidence"])
def test_importance_sampling_finds_the_joint_of_row_and_mask(by):
    program = known()
    pair = (program.model, program.guide)
    if by == "importance":
        found = evidence.importance(pair, ROWS, num_particles=20_000)
    else:
        found = evidence.log_evidence(pair, ROWS, method="posterior", num_particles=(20_000,))
    assert found.error.isfinite().all()
    assert ((found.log_evidence - exact(ROWS)).abs() < 5 * found.error).all()
    alone = evidence.log_evidence(program.vae, ROWS).log_evidence  # without p(s|x): another number
    assert ((found.log_evidence - alone).abs() > 10 * found.error)[:4].all()


def test_the_bound_rises_to_the_joint_of_row_and_mask():
    program, rows = known(), ROWS[:4].repeat(500, 1)
    gaps = []
    for k in (1, 30):
        with torch.no_grad():
            found = sample_log_weights(program.model, program.guide, rows, num_particles=k)
            value = objectives.IWAE(k)(found).value
        gaps.append(exact(ROWS[:4]).repeat(500) - value)
    error = [gap.std() / len(gap) ** 0.5 for gap in gaps]
    assert gaps[0].mean() > 5 * error[0]
    assert -5 * error[1] < gaps[1].mean() < 0.2 * gaps[0].mean()


def test_the_gradient_is_that_of_the_exact_joint():
    """At K = 2,000 the bias is far below the noise: the gradient of w and c against that of the quadrature."""
    program = known()
    rows, reps = ROWS[:4], 40
    mask = program.mechanism.network
    grads = []
    torch.manual_seed(0)
    for _ in range(reps):
        program.zero_grad()
        weights = sample_log_weights(program.model, program.guide, rows, num_particles=2000)
        objectives.IWAE(2000)(weights).surrogate.sum().backward()
        grads.append(torch.cat([mask.raw.grad[:2], mask.bias.grad[:2]]))
    assert (mask.raw.grad[2], mask.bias.grad[2]) == (0, 0)  # a column that is never missing has no mechanism
    grads = torch.stack(grads)
    w, c = W.clone().requires_grad_(), C.clone().requires_grad_()
    dw, dc = torch.autograd.grad(exact(rows, w, c).sum(), (w, c))
    expected = torch.cat([dw * torch.sigmoid(mask.raw[:2].detach()), dc])
    assert ((grads.mean(0) - expected) / (grads.std(0) / reps**0.5)).abs().max() < 5


def test_dreg_has_the_gradient_of_iwae():
    program = known()
    means = []
    for objective in (objectives.IWAE(3), objectives.DReG(3)):
        torch.manual_seed(1)
        grads = []
        for _ in range(30):
            program.zero_grad()
            weights = sample_log_weights(program.model, program.guide, ROWS.repeat(100, 1), num_particles=3)
            objective(weights).surrogate.mean().backward()
            grads.append(torch.cat([p.grad.flatten() for p in program.parameters() if p.grad is not None]))
        means.append(torch.stack(grads))
    error = sum(g.var(0) / len(g) for g in means).sqrt()
    moved = error > 0
    assert moved.sum() > 10
    assert ((means[0].mean(0) - means[1].mean(0)).abs() <= 5 * error).all()


def test_samples_follow_the_mechanism():
    program = known()
    with torch.no_grad():
        torch.manual_seed(0)
        x = program.model(size=20_000)
    assert not x[:, 2].isnan().any()
    sd = (WEIGHT.square() + SCALE**2).sqrt()
    for j in range(2):
        density = dist.Normal(BIAS[j], sd[j]).log_prob(X).exp()
        observed = torch.sigmoid(C[j] - W[j] * X)
        share = torch.trapezoid(density * observed, X)
        seen = x[~x[:, j].isnan(), j]
        assert abs(len(seen) / len(x) - share) < 5 * (share * (1 - share) / len(x)) ** 0.5
        mean = torch.trapezoid(density * observed * X, X) / share
        assert abs(seen.mean() - mean) < 5 * seen.std() / len(seen) ** 0.5


@pytest.mark.slow
def test_imputation_weighs_by_the_mechanism():
    """Mean and quantiles of p(x_mis | x_obs, s), against quadrature."""
    program = known()
    row = torch.tensor([[NAN, 0.4, -1.0]]).double()
    log_p, (inside,) = joint(row[0])
    p_z = (log_p - log_p.max()).exp()
    density = torch.trapezoid(p_z[:, None] * inside / torch.trapezoid(inside, X)[:, None], Z, dim=0)
    density = density / torch.trapezoid(density, X)
    mean = torch.trapezoid(density * X, X)
    sd = torch.trapezoid(density * (X - mean).square(), X).sqrt()
    found = impute(program, row, sampler="importance", num_draws=2000, num_steps=1500, num_chains=400)
    assert abs(found.mean[0, 0] - mean) < 5 * found.error[0, 0]
    draws = found.draws[:, 0, 0]
    below = torch.cumulative_trapezoid(density, X)
    for level in (0.1, 0.5, 0.9):
        place = X[1:][below > level][0]
        chains = (draws < place).double().reshape(5, 400).mean(0)
        share = torch.trapezoid(density[place >= X], X[place >= X])
        assert abs(chains.mean() - share) < 5 * chains.std() / 400**0.5
    blind = impute(program.vae, row, sampler="importance", num_steps=1500, num_chains=400)
    assert mean - blind.mean[0, 0] > 0.3 * sd  # what a model without the mask would fill in
    assert found.error[0, 0] < 0.02 * sd


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_the_true_mechanism_cover_as_they_say(level):
    program = known()
    torch.manual_seed(3)
    n = 800
    with torch.no_grad():
        trace = poutine.trace(program.model).get_trace(size=n)
        x = trace.nodes["_RETURN"]["value"]
        complete = program.vae.p_x(trace.nodes["z"]["value"]).rows_of(trace.nodes["noise"]["value"])
    assert torch.equal(x[~x.isnan()], complete[~x.isnan()])
    found = impute(program, x, sampler="importance", num_draws=19, num_steps=200, num_chains=19)
    low, high = found.interval(level)
    for j in range(2):
        gone = x[:, j].isnan()
        covered = ((low <= complete) & (complete <= high))[gone, j].double().mean()
        assert abs(covered - level) < 4 * (level * (1 - level) / gone.sum()) ** 0.5


# Training


def trained(program: VAE | NotMIWAE, x: Tensor, epochs: int, seed: int = 0) -> VAE | NotMIWAE:
    adam = functools.partial(torch.optim.Adam, lr=3e-2)
    objective = objectives.IWAE(20)
    pv.fit(program, dataset(x), objective=objective, optimizer=adam, epochs=epochs, batch_size=500, seed=seed)
    return program


def linear_of(x: Tensor, seed: int) -> VAE:
    torch.manual_seed(seed)
    encoder = posteriors.DiagonalNormal(TableEncoder(None, MLP([32], "tanh", init="torch"), mask=True))
    return VAE(dataset(x), prior=priors.StandardNormal(1), likelihood=Mixed("real", MLP([])), posterior=encoder)


@pytest.mark.slow
def test_the_mechanism_is_recovered_and_imputation_is_less_biased():
    """Rows that the known program has drawn: w and b within their errors over seeds, and the bias of what is filled."""
    found, biases = [], {"MIWAE": [], "not-MIWAE": []}
    for seed in range(3):
        true = known(torch.float32)
        torch.manual_seed(seed)
        with torch.no_grad():
            trace = poutine.trace(true.model).get_trace(size=5000)
            x = trace.nodes["_RETURN"]["value"]
            complete = true.vae.p_x(trace.nodes["z"]["value"]).rows_of(trace.nodes["noise"]["value"])
        gone = x.isnan()
        blind = trained(linear_of(x, seed), x, 30, seed)
        program = trained(NotMIWAE(linear_of(x, seed), dataset(x), SelfMasking("high")), x, 60, seed)
        mask = program.mechanism.network
        with torch.no_grad():
            w = (mask.weight / program.scale)[:2]
            b = (program.mean + program.scale * mask.threshold)[:2]
        found.append(torch.cat([w, b]))
        for name, model in (("MIWAE", blind), ("not-MIWAE", program)):
            filled = impute(model, x, sampler="importance", num_steps=200, num_chains=2).mean
            biases[name].append(torch.stack([(filled - complete)[gone[:, j], j].mean() for j in range(2)]).detach())
    found = torch.stack(found).double().cpu()
    truth = torch.cat([W, C / W])
    error = found.std(0) / len(found) ** 0.5
    # 0.05: what K = 20 and 600 steps leave of the way
    assert ((found.mean(0) - truth).abs() < 4 * error + 0.05).all()
    miwae, ours = (torch.stack(biases[name]).mean(0) for name in ("MIWAE", "not-MIWAE"))
    assert (miwae < -0.3).all()
    assert (ours.abs() < 0.3 * miwae.abs()).all()


@pytest.mark.ci
@pytest.mark.parametrize("compile", ["graph", pytest.param("full", marks=pytest.mark.slow)])
def test_a_step_is_captured(compile):
    states = []
    for level in ("off", compile):
        program = known(torch.float32)
        adam = functools.partial(torch.optim.Adam, lr=1e-2)
        svi = SVI(program.model, program.guide, adam, objectives.IWAE(5), compile=level)
        torch.manual_seed(0)
        for _ in range(4):
            svi.step(ROWS.float())
        assert svi.why_eager is None or level == "off"
        states.append([p.detach().clone() for p in program.parameters()])
    for a, b in zip(*states, strict=True):
        if compile == "graph":
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not torch.equal(states[0][-1], list(known(torch.float32).parameters())[-1])


def test_pyros_own_svi_trains_the_mechanism():
    pyro.clear_param_store()
    program = known(torch.float32)
    before = program.mechanism.network.bias.detach().clone()
    svi = pyro.infer.SVI(
        program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO(max_plate_nesting=1)
    )
    svi.step(ROWS.float())
    moved = program.mechanism.network.bias.detach() != before
    assert moved.tolist() == [True, True, False]


@pytest.mark.slow
def test_mechanisms_of_the_whole_row():
    data = torch.randn(60, 3).exp()
    data[::3, 0] = NAN
    columns = ["positive", "real", "real"]
    for network, missing in ((MLP([]), None), (MLP([8]), None), (None, "low"), (None, "either")):
        torch.manual_seed(0)
        encoder = posteriors.DiagonalNormal(TableEncoder(columns, MLP([8])))
        vae = VAE(dataset(data), prior=priors.StandardNormal(1), likelihood=Mixed(columns), posterior=encoder)
        program = NotMIWAE(vae, dataset(data), network or SelfMasking(missing))
        seen = data[~data[:, 0].isnan(), 0].log()
        torch.testing.assert_close(program.mean, torch.stack([seen.mean(), data[:, 1].mean(), data[:, 2].mean()]))
        torch.testing.assert_close(program.scale[0], seen.std(correction=0))
        assert program.columns.tolist() == [0]
        t = (torch.cat([data[1:3, :1].log(), data[1:3, 1:]], 1) - program.mean) / program.scale
        (expected,) = program.mechanism(t)
        torch.testing.assert_close(program.p_s(data[1:3]).base_dist.logits, expected[:, :1])
        run = pv.fit(program, dataset(data), objective=objectives.IWAE(4), epochs=2, batch_size=30, seed=0)
        assert math.isfinite(run.history[-1]["bound"])
        if missing == "low":
            assert (program.mechanism.network.weight < 0).all()
        again = copy.deepcopy(program.cpu())
        again.load_state_dict(program.state_dict())
        torch.manual_seed(1)
        values = sample_log_weights(program.model, program.guide, data, num_particles=2).log_w
        torch.manual_seed(1)
        assert torch.equal(values, sample_log_weights(again.model, again.guide, data, num_particles=2).log_w)
        assert again.name != program.name


def test_an_entry_of_a_column_that_is_never_missing_counts_as_missing_at_random():
    program = known()
    row = torch.tensor([[-0.2, 0.4, NAN]]).double()
    found = evidence.importance((program.model, program.guide), row, num_particles=20_000)
    assert abs(found.log_evidence[0] - exact(row)[0]) < 5 * found.error[0]


# Refusals


def refused(columns=("real", "real"), **kwargs):
    x = torch.rand(30, 2).round()
    x[::2, 0] = NAN
    pieces = {
        "prior": priors.StandardNormal(1),
        "likelihood": Mixed(list(columns)),
        "posterior": posteriors.DiagonalNormal(TableEncoder(list(columns))),
    }
    return VAE(dataset(x), **pieces | kwargs), dataset(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NotMIWAE(*refused(("real", "binary")), SelfMasking()), ValueError, "a Bernoulli has no repar"),
        (lambda: NotMIWAE(*refused(("real", "count")), SelfMasking()), ValueError, "expected 'real' and 'positive'"),
        (lambda: NotMIWAE(*refused(posterior=posteriors.DiagonalNormal()), SelfMasking()), ValueError, "TableEncoder"),
        (
            lambda: NotMIWAE(refused(likelihood=pv.likelihoods.Normal())[0], refused()[1], SelfMasking()),
            ValueError,
            "does not integrate NaN out; expected likelihoods.Mixed",
        ),
        (lambda: NotMIWAE(refused()[0], dataset(torch.rand(9, 2)), SelfMasking()), ValueError, "no entry of the train"),
        (
            lambda: NotMIWAE(refused()[0], dataset(torch.rand(9, 3)), SelfMasking()),
            ValueError,
            r"data set of shape \(2,\)",
        ),
        (lambda: NotMIWAE(refused()[0], torch.rand(9, 2), SelfMasking()), ValueError, "data is a Tensor of"),
        (lambda: NotMIWAE(object(), refused()[1], SelfMasking()), TypeError, "vae is a object; expected a VAE"),
        (lambda: NotMIWAE(*refused(), nn.Linear(2, 3)), ValueError, "NotMIWAE: mechanism: its network maps"),
        (lambda: NotMIWAE(*refused(), SelfMasking), TypeError, "network is <class"),
        (lambda: SelfMasking("hihg"), ValueError, "did you mean high"),
    ],
)
def test_what_it_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_entries_that_are_there_are_not_imputed_by_the_mechanism():
    x = torch.tensor([[0.3, 0.4, -1.0]]).double()
    with pytest.raises(ValueError, match="missing hides entries that are no NaN"):
        impute(known(), x, torch.tensor([True, False, False]), sampler="importance", num_steps=5)


def test_a_conditional_vae_is_refused():
    encoder = posteriors.DiagonalNormal()
    vae = VAE((2,), prior=priors.StandardNormal(1), likelihood=Mixed("real"), posterior=encoder, y_shape=(3,))
    with pytest.raises(ValueError, match=r"conditional; expected one without, such as vae.given"):
        NotMIWAE(vae, refused()[1], SelfMasking())


ONE_SENTENCE = {
    "evaluate": lambda p, x: pv.evaluate(p, x),
    "score": lambda p, x: p.score(x),
    "encode": lambda p, x: p.encode(x),
    "reconstruct": lambda p, x: p.reconstruct(x),
    "export": lambda p, x: p.export("decoder.pt2"),
    "save": lambda p, x: p.save("vae.pt"),
    "interpolate": lambda p, x: pv.interpolate(p, x[0], x[1]),
    "densities": lambda p, x: evidence.VAEDensities(p),
    "importance": lambda p, x: evidence.importance(p, x),
}


@pytest.mark.parametrize("name", ONE_SENTENCE)
def test_what_needs_a_vae_refuses_it(name):
    with pytest.raises((AttributeError, TypeError), match=r"leave p\(s\|x\) out; give program.vae, the model"):
        ONE_SENTENCE[name](known(), ROWS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x: evidence.log_evidence(p, x), "method='posterior', takes any number of sites"),
        (lambda p, x: pv.race(lambda seed: p, x, split="train", objectives="ELBO", epochs=1), "returned a NotMIWAE;"),
        (lambda p, x: evidence.quadrature(p, x), "needs the densities of a VAE"),
        (lambda p, x: impute(p, x), "would leave p\\(s\\|x\\) of NotMIWAE out; expected 'importance'"),
        (lambda p, x: impute(p, x, sampler="pseudo-gibbs"), "expected 'importance'"),
    ],
)
def test_methods_that_would_leave_the_mask_out_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(known(), ROWS)


@pytest.mark.ci
def test_check_and_compare_take_it_as_the_pair():
    program = known(torch.float32)
    rows = ROWS[:4].float().repeat(4, 1)
    report = pv.check(program, rows, objective=objectives.IWAE(5))
    assert not report.wrong
    found = pv.compare(program, rows, objectives=["ELBO", "IWAE"], particles=[3], replicates=40, log_evidence=None)
    assert all(row.kind == "lower" for row in found.rows)


def test_a_race_of_the_pair_is_judged_by_row_and_mask():
    def make(seed: int) -> tuple[Any, Any]:
        program = known(torch.float32)
        return program.model, program.guide

    rows = ROWS[:4].float().repeat(4, 1)
    still = functools.partial(torch.optim.Adam, lr=1e-9)
    found = pv.race(make, rows, split="train", objectives="ELBO", epochs=1, seeds=[0], batch_size=16, optimizer=still)
    point = found.runs[0].points[-1]
    assert abs(point.log_evidence - exact(ROWS[:4]).mean()) < 5 * point.log_evidence_error + 0.02  # K = 1,000: its bias


# The page


@pytest.mark.ci
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "missing-data.md").read_text()
    scope: dict[str, object] = {}
    for cell in re.findall(r"```\{code-cell\} ipython3\n(.*?)```", page, re.DOTALL):
        exec(cell, scope)
