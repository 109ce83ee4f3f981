"""Latents of three levels: densities, the KL between levels, estimators that drop scores, Pyro programs of three sites.

The oracles are products by hand, a frozen copy of the program at the draws of a seed, and a linear-Gaussian model whose
p(x) and posterior are known.
"""

from __future__ import annotations

import copy
import functools
import io
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from replicates import assert_same, assert_within_errors, flat, gradient_at, gradient_of, mean_gradient, measured
from short_runs import without_pictures
from torch import Tensor, nn

from ppl_vae import SVI, VAE, cli, evaluate, likelihoods, load_run, posteriors, priors
from ppl_vae.distributions.chain import Chain
from ppl_vae.evaluation import aggregate_posterior, elbo, latent_use
from ppl_vae.evidence import quadrature
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    ELBO,
    IWAE,
    IWAESTL,
    PIWAE,
    REINFORCE,
    STL,
    DReG,
    MeanFieldELBO,
    Regularized,
    sample_log_weights,
)
from ppl_vae.regularizers import FreeBits, KLWeight
from ppl_vae.regularizers.terms import kl, kl_per_level

DIMS = (3, 2, 1)
DIRECTIONS = ["top-down", "precision-weighted", "bottom-up"]
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
X = torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def small(width: int) -> MLP:
    return MLP([width], activation="tanh", init="torch")


def ladder(direction: str = "top-down", **options: Any) -> VAE:
    torch.manual_seed(3)
    return VAE(
        (4,),
        prior=priors.Ladder(DIMS, small(5)),
        likelihood=likelihoods.Bernoulli(small(5)),
        posterior=posteriors.Ladder(small(6), small(5), direction=direction, features=5),
        **options,
    )


def by_hand(vae: VAE, x: Tensor, z: Tensor) -> tuple[list[Any], list[Any]]:
    """The normals of z1, z2, z3 in p and in q, each at the level that is drawn before it."""

    def normal(parameters: tuple[Tensor, ...]) -> dist.Normal:
        mean, raw = parameters
        return dist.Normal(mean, nn.functional.softplus(raw) + 1e-5)

    q, z1, z2, z3 = vae.posterior, *z.split(DIMS, -1)
    p = [normal(vae.prior.level_1(z2)), normal(vae.prior.level_2(z3)), dist.Normal(torch.zeros(1), torch.ones(1))]
    if q.direction == "bottom-up":
        return p, [normal(q.level_1(x)), normal(q.level_2(z1)), normal(q.level_3(z2))]
    (h,) = q.encoder(x)
    top = normal(q.level_3(h))
    if q.direction == "top-down":
        h = h.expand(*z.shape[:-1], -1)
        return p, [normal(q.level_1(h, z2)), normal(q.level_2(h, z3)), top]
    merged = []
    for own, of_prior in zip((normal(q.level_1(h)), normal(q.level_2(h))), p[:2], strict=True):
        a, b = own.scale**-2, of_prior.scale**-2
        merged.append(dist.Normal((a * own.loc + b * of_prior.loc) / (a + b), (a + b) ** -0.5))
    return p, [*merged, top]


def total(normals: list[Any], z: Tensor) -> Tensor:
    return sum(n.log_prob(part).sum(-1) for n, part in zip(normals, z.split(DIMS, -1), strict=True))


# Densities


@every_direction
def test_the_joint_density_is_the_product(direction: str) -> None:
    vae, z = ladder(direction), torch.randn(7, 3, 6)
    p, q = by_hand(vae, X, z)
    torch.testing.assert_close(vae.p_z().log_prob(z), total(p, z), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(vae.q_z(X).log_prob(z), total(q, z), rtol=1e-10, atol=0.0)
    own = vae.q_z(X)
    drawn = own.expand((7, 3)).rsample((2,))
    assert drawn.shape == (2, 7, 3, 6)
    draw = own.rsample()  # its own score comes from the blocks of the draw
    torch.testing.assert_close(own.log_prob(draw), own.log_prob(draw.detach().clone()), rtol=1e-10, atol=0.0)
    assert vae.likelihood.logits.in_shape == (3,)
    reads_all = VAE(
        (4,),
        prior=priors.Ladder(DIMS, visible="all"),
        likelihood=likelihoods.Bernoulli(),
        posterior=posteriors.Ladder(),
    )
    assert reads_all.likelihood.logits.in_shape == (6,)


@every_direction
def test_a_draw_follows_the_density(direction: str) -> None:
    """E_q[p / q] = 1 for a normal p, and the moments of q by weights of draws from elsewhere."""
    q = ladder(direction).q_z(X[:1])
    wide = dist.Normal(torch.zeros(6), 2.5).to_event(1)
    torch.manual_seed(0)
    z, draws = wide.sample((200_000,)), q.sample((200_000,))[:, 0]
    weights = (q.log_prob(z[:, None])[:, 0] - wide.log_prob(z)).exp()
    assert_within_errors(measured(list(weights[:, None].reshape(100, -1).mean(1, keepdim=True))), torch.ones(1))
    for statistic in (lambda v: v, lambda v: v[:, :1] * v, lambda v: v[:, 3:4] * v):
        weighed = (weights[:, None] * statistic(z)).reshape(100, 2000, -1).mean(1)
        plain = statistic(draws).reshape(100, 2000, -1).mean(1)
        assert_within_errors(measured(list(plain)), measured(list(weighed)))


def test_a_conditional_with_dropout_is_one_for_a_draw_and_its_score() -> None:
    """Two masks would make log q another density's, whose ELBO is too high."""
    noisy = MLP([64], init="torch", dropout=0.5)
    vae = VAE(
        (4,),
        prior=priors.Ladder(DIMS),
        likelihood=likelihoods.Bernoulli(),
        posterior=posteriors.Ladder(small(6), noisy),
    )
    q = vae.q_z(X)
    z = q.rsample()
    parts, blocks = q.blocks(z)
    noise = torch.cat([(part - block.mean) / block.stddev for part, block in zip(parts, blocks, strict=True)], -1)
    torch.testing.assert_close(
        q.log_prob(z),
        dist.Normal(0.0, 1.0).log_prob(noise).sum(-1) - torch.cat([b.stddev for b in blocks], -1).log().sum(-1),
        rtol=1e-10,
        atol=0.0,
    )
    assert not torch.equal(q.log_prob(z), q.log_prob(z.clone()))  # another z runs the networks again


# The KL between levels


@every_direction
def test_the_kl_of_each_level_by_hand(direction: str) -> None:
    vae = ladder(direction)
    torch.manual_seed(5)
    weights = sample_log_weights(vae.model, vae.guide, X, num_particles=4)
    z = weights.z["z"]
    p, q = by_hand(vae, X, z)
    expected = []
    for level, (q_l, p_l, z_l) in enumerate(zip(q, p, z.split(DIMS, -1), strict=True)):
        if direction != "bottom-up" or level == 2:
            ratio = q_l.scale / p_l.scale
            term = -ratio.log() + 0.5 * (ratio**2 + ((q_l.loc - p_l.loc) / p_l.scale) ** 2 - 1)
        else:
            term = -0.5 * (1 + math.log(2 * math.pi)) - q_l.scale.log() - p_l.log_prob(z_l)
        expected.append(term.expand(z_l.shape).sum(-1))
    if direction == "bottom-up":  # a mean of it may be below zero by chance, and nobody could tell that from a fault
        with pytest.raises(NotImplementedError, match="no closed form"):
            weights.analytic_kl()
        torch.testing.assert_close(kl(weights).value, weights.kl.mean(0).detach(), rtol=1e-10, atol=1e-12)
    else:
        torch.testing.assert_close(weights.analytic_kl(), sum(expected), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(kl(weights).value, sum(expected).mean(0).detach(), rtol=1e-10, atol=1e-12)
    found = kl_per_level(weights, "test")
    torch.testing.assert_close(found.value, torch.stack(expected, -1).mean(0).detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.ci
@pytest.mark.thinned(3)
@every_direction
def test_the_mean_field_elbo_is_unbiased_in_value_and_gradient(direction: str) -> None:
    vae = ladder(direction)
    program = (vae.model, vae.guide)
    torch.manual_seed(0)
    difference = []
    for _ in range(100):
        weights = sample_log_weights(vae.model, vae.guide, X, num_particles=200)
        analytic = weights.posterior["z"].kl_given(weights.prior["z"], weights.z["z"]).sum(-1)
        difference.append((analytic - weights.kl).mean(0).detach())
    assert_within_errors(measured(difference), torch.zeros(3))
    if direction == "bottom-up":
        return
    found, expected = (mean_gradient(program, vae, o, X, 100, seed=i) for i, o in enumerate((MeanFieldELBO(), ELBO())))
    assert_within_errors(found, expected)


def test_no_stochastic_kl_passes_for_an_exact_one() -> None:
    vae = ladder()
    q, p = vae.q_z(X), vae.p_z()
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(q, p.expand((3,)))
    normal = VAE(
        (4,),
        prior=priors.StandardNormal(6),
        likelihood=likelihoods.Bernoulli(),
        posterior=posteriors.Ladder(dims=DIMS),
    )
    with pytest.raises(NotImplementedError, match="no closed form of the KL at site 'z' between Chain and Normal"):
        MeanFieldELBO()(sample_log_weights(normal.model, normal.guide, X))
    full = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    chain = Chain(full, [lambda z: dist.Normal(z, 1.0).to_event(1)], [2], top_down=True)
    with pytest.raises(NotImplementedError, match="does not split over dimensions"):
        chain.kl_given(chain, chain.sample())


# Estimators that drop scores


@every_direction
def test_scores_are_dropped_at_every_level(direction: str) -> None:
    """Against log q of all levels by hand, with the draws held fixed."""
    vae, k = ladder(direction), 4
    frozen = copy.deepcopy(vae).requires_grad_(False)

    def log_p(program: VAE, z: Tensor) -> Tensor:
        return program.p_x(z).log_prob(X) + total(by_hand(program, X, z)[0], z)

    def log_q(program: VAE, z: Tensor) -> Tensor:
        return total(by_hand(program, X, z)[1], z)

    def draw() -> tuple[Tensor, Tensor]:
        torch.manual_seed(11)
        z = sample_log_weights(vae.model, vae.guide, X, num_particles=k).z["z"]
        return z, log_p(frozen, z) - log_q(frozen, z)

    _, log_w = draw()
    w, even = log_w.detach().softmax(0), torch.full((k, 3), 1 / k)
    grouped = log_w.detach().reshape(2, 2, 3).softmax(1).reshape(k, 3) / 2
    rows = {  # model, path, score
        ELBO(k): (even, even, -even),
        STL(k): (even, even, 0 * even),
        IWAE(k): (w, w, -w),
        IWAESTL(k): (w, w, 0 * w),
        DReG(k): (w, w**2, 0 * w),
        PIWAE(k, groups=2): (w, grouped, -grouped),
    }
    gradients = {}
    for objective, (model, path, score) in rows.items():
        z, log_w = draw()
        whole = model * log_p(vae, z.detach()) + path * log_w + score * log_q(vae, z.detach())
        expected = gradient_of(whole.sum(), vae)
        gradients[type(objective)] = gradient_at((vae.model, vae.guide), vae, objective, X)
        assert_same(gradients[type(objective)], expected)
    score = gradient_of((even * log_q(vae, z.detach())).sum(), vae)
    assert_same(gradients[STL], {name: gradients[ELBO][name] + score[name] for name in score})
    assert flat(score).abs().max() > 1e-3


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("direction", "objective", "same"),
    [  # each direction and each estimator once, and before a release each with each
        pytest.param(direction, *pair, marks=[pytest.mark.slow] * (i != j))
        for i, direction in enumerate(DIRECTIONS)
        for j, pair in enumerate([(STL(2), ELBO(2)), (DReG(3), IWAE(3)), (REINFORCE(2, "leave_one_out"), ELBO(2))])
    ],
)
def test_unbiased(direction: str, objective: Any, same: Any) -> None:
    vae = ladder(direction)
    program = (vae.model, vae.guide)
    found, expected = (mean_gradient(program, vae, o, X, 100, seed=i) for i, o in enumerate((objective, same)))
    assert_within_errors(found, expected)


# A linear-Gaussian model


class Affine(nn.Module):
    """A linear mean, and the raw scale that softplus turns into `std`; without `std` the mean alone."""

    def __init__(self, weight: Tensor, bias: Tensor, std: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.raw = None if std is None else nn.Parameter(torch.log(torch.expm1(std - 1e-5)))

    def forward(self, x: Tensor) -> Tensor:
        mean = x @ self.weight.T + self.bias
        return mean if self.raw is None else torch.cat([mean, self.raw.expand_as(mean)], -1)


class Joint:
    """z3 ~ N(0, 1), z_l ~ N(a z_{l+1} + b, s^2), x ~ N(w z1 + c, t^2 I), as one normal of (z1, z2, z3, x)."""

    slopes, shifts, stds = (0.8, -0.6), (0.3, 0.1), (0.6, 0.9)  # of z1 and z2
    w, c, t = torch.tensor([[1.2], [-0.7], [0.4]]).double(), torch.tensor([0.1, 0.0, -0.2]).double(), 0.5

    def __init__(self) -> None:
        maps = torch.eye(6)  # of the noises of z1, z2, z3, x to these
        mean = torch.zeros(6)
        for level in (1, 0):
            maps[level] = self.slopes[level] * maps[level + 1] + self.stds[level] * torch.eye(6)[level]
            mean[level] = self.slopes[level] * mean[level + 1] + self.shifts[level]
        maps[3:] = self.w * maps[0] + self.t * torch.eye(6)[3:]
        mean[3:] = self.w[:, 0] * mean[0] + self.c
        self.mean, self.covariance = mean, maps @ maps.T
        self.evidence = dist.MultivariateNormal(mean[3:], self.covariance[3:, 3:])

    def given(self, level: int, known: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, bias and standard deviation of p(z_level | the known entries)."""
        s = self.covariance
        weight = torch.linalg.solve(s[known][:, known], s[known, level]).unsqueeze(0)
        variance = s[level, level] - weight[0] @ s[known, level]
        return weight, self.mean[[level]] - weight @ self.mean[known], variance.sqrt().reshape(1)

    def network(self, level: int, known: list[int]) -> Affine:
        return Affine(*self.given(level, known))

    def message(self, level: int) -> Affine:
        """The mean and scale of the normal in z_level that p(x|z_level) is."""
        weight, bias, std = self.given(level, [3, 4, 5, level + 1])
        own = std**-2 - self.stds[level] ** -2  # what x adds to the precision of p(z_l|z_{l+1})
        return Affine(
            weight[:, :3] * std**-2 / own,
            (bias * std**-2 - self.shifts[level] * self.stds[level] ** -2) / own,
            own**-0.5,
        )

    def vae(self, direction: str) -> VAE:
        x = [3, 4, 5]
        same = Affine(torch.eye(3), torch.zeros(3))
        if direction == "top-down":
            levels = [self.network(0, [*x, 1]), self.network(1, [*x, 2]), self.network(2, x)]
            q = posteriors.Ladder(same, levels, direction=direction, features=3)
        elif direction == "precision-weighted":
            levels = [self.message(0), self.message(1), self.network(2, x)]
            q = posteriors.Ladder(same, levels, direction=direction, features=3)
        else:
            q = posteriors.Ladder(self.network(0, x), [self.network(1, [0]), self.network(2, [1])], direction=direction)
        lower = [
            Affine(torch.tensor([[a]]), torch.tensor([b]), torch.tensor([s]))
            for a, b, s in zip(self.slopes, self.shifts, self.stds, strict=True)
        ]
        likelihood = likelihoods.Normal(Affine(self.w.clone(), self.c.clone()), scale=self.t)
        return VAE((3,), prior=priors.Ladder([1, 1, 1], lower), likelihood=likelihood, posterior=q)


@every_direction
def test_the_bound_is_tight_and_the_gradient_of_stl_zero_at_the_true_posterior(direction: str) -> None:
    joint = Joint()
    vae = joint.vae(direction)
    torch.manual_seed(1)
    x = joint.evidence.sample((5,))
    log_p = joint.evidence.log_prob(x)
    weights = sample_log_weights(vae.model, vae.guide, x, num_particles=20)
    torch.testing.assert_close(weights.log_w, log_p.expand(20, 5), rtol=1e-9, atol=1e-9)
    of_q = flat(
        {name: g for name, g in gradient_at((vae.model, vae.guide), vae, STL(3), x).items() if "posterior" in name}
    )
    of_elbo = flat(
        {name: g for name, g in gradient_at((vae.model, vae.guide), vae, ELBO(3), x).items() if "posterior" in name}
    )
    assert of_q.abs().max() < 1e-8
    assert of_elbo.abs().max() > 1e-2
    with torch.no_grad():
        for name, parameter in vae.posterior.named_parameters():
            if name.endswith("raw"):
                parameter.add_(0.3)
        bound = sample_log_weights(vae.model, vae.guide, x, num_particles=4000)
    elbo_ = bound.log_w
    assert (elbo_.mean(0) + 5 * elbo_.std(0) / math.sqrt(4000) < log_p).all()
    analytic = bound.log_lik - bound.posterior["z"].kl_given(bound.prior["z"], bound.z["z"]).sum(-1)
    both = (analytic - elbo_).mean(0), (analytic - elbo_).std(0) / math.sqrt(4000)
    assert (both[0].abs() < 5 * both[1]).all()
    ratio = (elbo_ - log_p).exp()  # of mean 1
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(4000)).all()


# Three sites of a Pyro program


class ThreeSites(nn.Module):
    """The ladder of a VAE as a model and guide with a site for each level."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def _levels(self, blocks: Any) -> Tensor:
        """Sample the levels in the order in which a chain draws them."""
        z: dict[int, Tensor] = {}
        order = [2, 1, 0] if blocks.top_down else [0, 1, 2]
        for level, before in zip(order, [None, *order], strict=False):
            q = blocks.root if before is None else blocks.given[len(z) - 1](z[before])
            z[level] = pyro.sample(f"z{level + 1}", q)
        return z[0]

    def model(self, x: Tensor) -> None:
        pyro.module("three", self)
        with pyro.plate("data", len(x)):
            z1 = self._levels(self.vae.p_z())
            pyro.sample("x", self.vae.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("three", self)
        with pyro.plate("data", len(x)):
            self._levels(self.vae.q_z(x))


@every_direction
@pytest.mark.parametrize("k", [1, 3])
def test_three_sites_are_the_same_program(direction: str, k: int) -> None:
    vae = ladder(direction)
    sites = ThreeSites(vae)
    found = []
    for program in (vae, sites):
        torch.manual_seed(7)
        found.append(sample_log_weights(program.model, program.guide, X, num_particles=k))
    one, three = found
    for name in ("log_w", "log_lik", "kl"):
        torch.testing.assert_close(getattr(one, name), getattr(three, name), rtol=1e-10, atol=1e-12)
    if direction != "bottom-up":  # bottom-up no site has a closed form but the last
        torch.testing.assert_close(one.analytic_kl(), three.analytic_kl(), rtol=1e-10, atol=1e-12)
        by_site = kl_per_level(three, "test").value.flip(-1)  # the guide draws z3 first
        torch.testing.assert_close(kl_per_level(one, "test").value, by_site, rtol=1e-10, atol=1e-12)
    objectives = [ELBO(k), STL(k), IWAE(k), DReG(k)] + ([MeanFieldELBO(k)] if direction != "bottom-up" else [])
    for objective in objectives:
        one_site = gradient_at((vae.model, vae.guide), vae, objective, X)
        assert_same(gradient_at((sites.model, sites.guide), vae, objective, X), one_site)


# Remedies, level by level


def penalty(regularizer: Any, objective: Any, vae: VAE, seed: int = 2) -> tuple[Tensor, Tensor]:
    """The value of a penalty, summed, and its gradient: those of the whole less those of the objective."""
    torch.manual_seed(seed)
    weights = sample_log_weights(
        vae.model,
        vae.guide,
        X,
        num_particles=objective.num_particles,
        latents=getattr(objective, "latents", "pathwise"),
    )
    value = regularizer(weights).value.sum()
    program = (vae.model, vae.guide)
    whole = gradient_at(program, vae, Regularized(objective, regularizer), X, seed)
    alone = gradient_at(program, vae, objective, X, seed)
    return value, flat({name: alone[name] - whole[name] for name in alone})


@every_direction
@pytest.mark.parametrize("objective", [ELBO(3), STL(3), DReG(3), PIWAE(4, 2)], ids=repr)
def test_penalties_by_level_by_hand(direction: str, objective: Any) -> None:
    vae = ladder(direction)

    def levels() -> Tensor:  # (batch, 3)
        torch.manual_seed(2)
        weights = sample_log_weights(vae.model, vae.guide, X, num_particles=objective.num_particles)
        q, p, z = weights.posterior["z"], weights.prior["z"], weights.z["z"]
        return torch.stack([part.sum(-1) for part in q.kl_given(p, z).split(DIMS, -1)], -1).mean(0)

    beta, nats = torch.tensor([0.2, 1.0, 3.0]), 1.01 * float(levels().detach().abs().mean(0).median())  # at no kink
    cases = [
        (KLWeight(beta.tolist()), lambda kl: ((beta - 1) * kl).sum()),
        (FreeBits(nats, over="level"), lambda kl: len(X) * (nats - kl.mean(0)).clamp_min(0).sum()),
        (FreeBits(nats, over="level", average="datum"), lambda kl: (nats - kl).clamp_min(0).sum()),
        *([] if direction == "bottom-up" else [(KLWeight(3.0), lambda kl: 2 * kl.sum())]),
    ]
    for regularizer, by_levels in cases:
        expected = by_levels(levels())
        value, gradient = penalty(regularizer, objective, vae)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
        by_hand_ = flat(gradient_of(expected, vae))
        torch.testing.assert_close(gradient, by_hand_, rtol=1e-8, atol=1e-8 * float(by_hand_.abs().max()))


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    "regularizer", [KLWeight(3.0), KLWeight([0.2, 1.0, 3.0]), FreeBits(50.0, over="level")], ids=str
)
@pytest.mark.parametrize("make", [ladder, lambda: ThreeSites(ladder())], ids=["ladder", "three sites"])
def test_a_penalty_beside_the_score_function_is_that_of_the_path(make: Any, regularizer: Any) -> None:
    """The KL of a level depends on the draw of the level above: without a path its score must not be missing."""
    program = make()
    found = [
        mean_gradient(
            (program.model, program.guide), program, Regularized(objective, copy.deepcopy(regularizer)), X, 100, seed=i
        )
        for i, objective in enumerate((REINFORCE(2, "leave_one_out"), ELBO(2)))
    ]
    assert_within_errors(*found)


def test_a_warm_up_of_each_level() -> None:
    vae = ladder()
    regularizer = KLWeight(schedule="linear", steps=[1, 2, 4])
    weights = sample_log_weights(vae.model, vae.guide, X)
    levels = kl_per_level(weights, "test").value
    for step in range(5):
        beta = torch.tensor([min(1.0, step / n) for n in (1, 2, 4)])
        torch.testing.assert_close(regularizer(weights).value, ((beta - 1) * levels).sum(-1), rtol=1e-10, atol=1e-12)
    again = KLWeight(schedule="linear", steps=[1, 2, 4])
    again.load_state_dict(regularizer.state_dict())  # a resumed run goes on
    assert torch.equal(again(weights).value, torch.zeros(3))
    even = KLWeight(schedule="linear", steps=3)
    assert list(even.state_dict()) == ["weight.step"]  # as in saved runs


# Programs as they are used


@pytest.mark.ci
@pytest.mark.thinned(3)
@every_direction
@pytest.mark.parametrize("level", ["graph", pytest.param("full", marks=pytest.mark.slow)])
def test_captured_is_eager(direction: str, level: str) -> None:
    def steps(compile_: Any) -> tuple[list[float], Tensor, str | None]:
        pyro.clear_param_store()
        vae = ladder(direction)
        elbo = ELBO(2) if direction == "bottom-up" else MeanFieldELBO(2)
        objective = Regularized(elbo, KLWeight(schedule="linear", steps=[2, 3, 4]))
        optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
        svi = SVI(vae.model, vae.guide, optimizer, objective, compile=compile_)
        torch.manual_seed(1)
        return [svi.step(X) for _ in range(4)], flat(dict(vae.named_parameters())).detach(), svi.why_eager

    losses, parameters, why = steps(level)
    expected_losses, expected, _ = steps("off")
    assert why is None
    if level == "graph":
        assert losses == expected_losses
        assert torch.equal(parameters, expected)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(parameters, expected, rtol=1e-8, atol=1e-10)  # Adam divides by small roots


@every_direction
def test_in_a_conditional_model(direction: str) -> None:
    vae = ladder(direction, y_shape=(2,))
    y = torch.eye(2)[[0, 1, 0]]
    assert sample_log_weights(vae.model, vae.guide, X, y, num_particles=3).log_w.shape == (3, 3)
    z = torch.randn(3, 6)
    assert not torch.equal(vae.q_z(X, y).log_prob(z), vae.q_z(X, 1 - y).log_prob(z))
    assert torch.equal(vae.given(y[0]).q_z(X[:1]).log_prob(z[:1]), vae.q_z(X[:1], y[:1]).log_prob(z[:1]))
    pairs = torch.stack([vae.q_z(X, y).log_prob(one.expand(3, 6)) for one in z])
    torch.testing.assert_close(vae.q_z(X, y).log_prob(z[:, None]), pairs, rtol=1e-10, atol=0.0)


def test_a_copy_of_a_precision_weighted_posterior_is_made_of_its_own_prior() -> None:
    vae = ladder("precision-weighted")
    assert sum(p.numel() for p in vae.parameters()) == len(flat(dict(vae.named_parameters())))
    other = copy.deepcopy(vae)
    assert other.posterior._prior[0] is other.prior
    z, before = torch.randn(3, 6), vae.q_z(X).log_prob(torch.zeros(3, 6))
    with torch.no_grad():
        for parameter in other.prior.parameters():
            parameter.add_(1.0)
    assert torch.equal(vae.q_z(X).log_prob(torch.zeros(3, 6)), before)
    assert not torch.equal(other.q_z(X).log_prob(z), vae.q_z(X).log_prob(z))
    file = io.BytesIO()
    torch.save(vae, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.posterior._prior[0] is loaded.prior


def test_two_levels_have_the_names_of_saved_files() -> None:
    vae = VAE(
        (4,),
        prior=priors.TwoLevel(5, 2, small(3)),
        likelihood=likelihoods.Bernoulli(small(3)),
        posterior=posteriors.TwoLevel(2, small(3), small(3)),
    )
    parts = [name.split(".network")[0] for name in vae.state_dict()]
    assert list(dict.fromkeys(parts)) == [
        "prior.mean_and_scale",
        "likelihood.logits",
        "posterior.mean_and_scale",
        "posterior.top_mean_and_scale",
    ]


def test_refusals() -> None:
    def vae(prior: Any = None, again: Any = None, **options: Any) -> VAE:
        return VAE(
            (4,),
            prior=prior or priors.Ladder(DIMS),
            likelihood=likelihoods.Bernoulli(),
            posterior=again or posteriors.Ladder(**options),
        )

    shared = posteriors.Ladder(direction="precision-weighted")
    vae(again=shared)
    cases = [
        (lambda: priors.Ladder([3]), "dims is \\[3\\]; expected those of two levels or more"),
        (lambda: priors.Ladder([3, 0]), "expected a positive integer"),
        (lambda: priors.Ladder(DIMS, [small(2)]), "was given 1 networks for 2 levels; expected a list"),
        (lambda: priors.Ladder(DIMS, nn.Linear(2, 2)), "was given 1 networks for 2 levels"),
        (lambda: priors.Ladder(DIMS, visible="top"), "visible is 'top'; expected one of first, all"),
        (lambda: posteriors.Ladder(direction="down"), "direction is 'down'; expected one of"),
        (
            lambda: vae(dims=[3, 2]),
            r"dims is \(3, 2\), and the prior has levels of \(3, 2, 1\); use a priors.Ladder of these",
        ),
        (lambda: vae(priors.StandardNormal(6)), "dims is None, and the prior has 6 dimensions and no levels"),
        (lambda: vae(priors.StandardNormal(5), dims=DIMS), "the prior has 5 dimensions and no levels"),
        (
            lambda: vae(priors.StandardNormal(6), dims=DIMS, direction="precision-weighted"),
            "made of the conditionals of one prior, and was given StandardNormal",
        ),
        (lambda: vae(network=small(3), again=shared), "a new posterior for each VAE"),
        (lambda: KLWeight([1.0, 2.0], "linear", steps=[3]), "expected lists of one length"),
        (lambda: KLWeight([]), "expected lists of one length"),
        (lambda: KLWeight(steps=[300, 600]), "the schedule is constant; expected 'linear'"),
        (lambda: KLWeight([1.0, -2.0]), "beta is -2.0"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    weights = sample_log_weights(vae().model, vae().guide, X)
    with pytest.raises(ValueError, match="lists of 2, and the latent has 3 levels"):
        KLWeight([1.0, 2.0])(weights)
    plain = VAE(
        (4,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(), posterior=posteriors.DiagonalNormal()
    )
    weights = sample_log_weights(plain.model, plain.guide, X)
    for regularizer in (FreeBits(over="level"), KLWeight([1.0, 2.0])):
        with pytest.raises(ValueError, match="looks at each level, and the posterior Normal has none"):
            regularizer(weights)
    sites = ThreeSites(vae())
    weights = sample_log_weights(sites.model, sites.guide, X, num_particles=2)
    with pytest.raises(ValueError, match="takes one latent site"):
        Regularized(DReG(2), FreeBits(over="level"))(weights)


# What is active


@every_direction
def test_the_use_of_each_level(direction: str) -> None:
    """The KL of all dimensions is the rate; each level's is that of its own draws; a level that q leaves is named."""
    vae = ladder(direction)
    torch.manual_seed(0)
    x = torch.randint(2, (60, 4)).double()
    use = latent_use(VAEDensities(vae), x, num_samples=400)
    assert use.dims == DIMS
    torch.manual_seed(1)
    weights = sample_log_weights(vae.model, vae.guide, x, num_particles=400)
    batches = kl_per_level(weights, "test").value.mean(0)
    spread = weights.kl.mean(1)
    level_kl = [level["kl"] for level in use.levels]
    assert abs(sum(level_kl) - spread.mean()) < 5 * spread.std() / 20 * 2**0.5
    for level in range(3):
        assert abs(level_kl[level] - batches[level]) < 0.05 * (1 + abs(float(batches[level])))
    assert sum(level["active"] for level in use.levels) == use.num_active
    mean, variance = weights.z["z"].mean(0), weights.z["z"].var(0)
    noisy = mean.var(0) - variance.mean(0) / 400
    torch.testing.assert_close(use.mean_variance, noisy.detach(), rtol=0.0, atol=0.02)
    assert sum(elbo(VAEDensities(vae), x).rate) / 60 == pytest.approx(sum(level_kl), abs=0.05)


@pytest.mark.slow
def test_a_level_that_is_unused_is_named() -> None:
    vae = ladder("top-down")
    with torch.no_grad():
        last = [p for name, p in vae.posterior.named_parameters() if "level_3" in name][-2:]
        last[0].zero_()
        last[1].copy_(torch.tensor([0.0, math.log(math.expm1(1 - 1e-5))]))  # N(0, 1), the prior
    x = torch.randint(2, (60, 4)).double()
    found = evaluate(vae, x, gap_size=0, imputation_size=0, num_particles=(10,))
    assert found.use is not None
    assert found.use.levels[2]["kl"] == pytest.approx(0.0, abs=1e-8)
    assert found.use.levels[2]["active"] == 0
    assert any(alarm.startswith("level 3 of 3 is unused") for alarm in found.use.alarms)
    assert "level 3, of 1 dimensions" in found.table()
    assert [level["dim"] for level in found.to_dict()["levels"]] == [3, 2, 1]


@pytest.mark.ci
@pytest.mark.thinned(3)
@every_direction
def test_bounds_below_the_exact_evidence_of_two_levels(direction: str) -> None:
    torch.manual_seed(3)
    vae = VAE(
        (4,),
        prior=priors.Ladder([1, 1], small(5)),
        likelihood=likelihoods.Bernoulli(small(5)),
        posterior=posteriors.Ladder(small(6), small(5), direction=direction),
    )
    exact = quadrature(VAEDensities(vae), X)
    with torch.no_grad():
        log_w = sample_log_weights(vae.model, vae.guide, X, num_particles=20_000).log_w
    assert (log_w.mean(0) + 5 * log_w.std(0) / math.sqrt(20_000) < exact.log_evidence).all()
    ratio = (log_w - exact.log_evidence).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(20_000) + exact.error).all()


@pytest.mark.ci
def test_from_the_command_line(tmp_path: Any) -> None:
    torch.set_default_dtype(torch.float32)
    words = "--prior Ladder --prior.dims [4,2,1] --posterior Ladder --posterior.direction precision-weighted"
    words += (
        " --objective MeanFieldELBO --regularizer KLWeight --regularizer.schedule linear --regularizer.steps [9,9,30]"
    )
    with without_pictures():
        assert cli.main(["train", *words.split(), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    loaded = load_run(tmp_path / "run")
    assert loaded.prior.dims == (4, 2, 1)
    assert latent_use(VAEDensities(loaded), torch.rand(20, 1, 8, 8).round(), num_samples=5).dims == (4, 2, 1)


def test_the_aggregate_posterior_of_float32_levels() -> None:
    """Its draws are given to networks, which take no other dtype than their own."""
    vae = ladder().float()
    x = torch.randint(2, (40, 4)).float()
    found = aggregate_posterior(VAEDensities(vae), x, num_draws=400)
    draws = vae.p_z().sample((4000,))
    assert ((found.prior_mean - draws.mean(0)).abs() < 5 * draws.std(0) * (1 / 400 + 1 / 4000) ** 0.5).all()
