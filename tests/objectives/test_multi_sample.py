"""Estimators of importance-weighted bounds, against sums over tuples and Gauss-Hermite quadrature over their noise.

The expectation over the noise of K reparameterised particles is an integral over the noise: with one or two latents
and few particles it is a sum over nodes, to 1e-8 and beyond, and unbiased means equal.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from replicates import assert_same, assert_within_errors, block, flat, gradient_at, gradient_of, mean_gradient, part_of
from test_estimators_discrete import VAES, X, exact_bound, over_tuples
from torch import Tensor, nn

from ppl_vae import SVI, VAE, likelihoods, posteriors, priors
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    IWAE,
    OVIS,
    OVISMC,
    RWS,
    STL,
    VIMCO,
    DReG,
    GDReG,
    GumbelRaoELBO,
    LogWeights,
    ReinMaxELBO,
    Renyi,
    RenyiDReG,
    StraightThroughELBO,
    VIMCOStar,
    as_loss,
    sample_log_weights,
)
from ppl_vae.objectives.ovis import log_others

DOUBLE = torch.float64


def close(found: Tensor, expected: Tensor, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)


# Score functions, exactly


@pytest.mark.parametrize("name", ["two bits", "one-hot"])
@pytest.mark.parametrize(
    ("objective", "k"),
    [
        (VIMCOStar(2), 2),
        (VIMCOStar(3), 3),
        (OVIS(3, gamma=0.0), 3),
        (OVISMC(3, auxiliary=1), 2),
        (OVISMC(4, auxiliary=2), 2),
        (OVISMC(4, auxiliary=1), 3),
    ],
    ids=repr,
)
def test_they_are_unbiased_for_the_importance_weighted_bound(name: str, objective: Any, k: int) -> None:
    vae = VAES[name]()
    for i in (0, 5):
        x = X[i : i + 1]
        expected = exact_bound(vae, x, k)
        value, gradient = over_tuples(vae, objective, x, objective.num_particles)
        close(value, expected.detach())
        close(gradient, flat(gradient_of(expected, vae)))


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_the_bias_of_ovis_is_gamma_times_the_wake_phase(gamma: float) -> None:
    vae, x = VAES["two bits"](), X[3:4]
    encoder = block(vae, "posterior")
    (_, found), (_, wake) = (over_tuples(vae, objective, x, 3) for objective in (OVIS(3, gamma), RWS(3)))
    exact = flat(gradient_of(exact_bound(vae, x, 3), vae))
    close(found - exact, torch.where(encoder, gamma * wake, 0.0))
    assert wake[encoder].norm() > 1e-3


def test_ovis_is_vimco_star_and_a_share_of_the_wake_phase_per_sample() -> None:
    vae = VAES["bits"]()
    at = functools.partial(gradient_at, (vae.model, vae.guide), vae, x=X)
    star, half, whole = (at(objective=o) for o in (VIMCOStar(5), OVIS(5, 0.5), OVIS(5)))
    assert_same(at(objective=OVIS(5, 0.0)), star)
    assert_same(half, {n: (star[n] + whole[n]) / 2 for n in star})
    torch.manual_seed(11)
    weights = sample_log_weights(vae.model, vae.guide, X, num_particles=5, latents="detached")
    score = (weights.normalized + math.log(4 / 5)) * weights.joint_log_q
    added = gradient_of(score.sum(), vae)
    assert_same({n: whole[n] - star[n] for n in star}, added)


def weights_of_score(objective: Any, log_w: Tensor) -> Tensor:
    """The weights of grad log q, read off the gradient of the surrogate by log q."""
    log_q = torch.zeros_like(log_w, requires_grad=True)
    weights = LogWeights(log_w.clone(), log_q={"z": log_q}, z={"z": torch.zeros(())})
    return torch.autograd.grad(objective(weights).surrogate.sum(), log_q)[0]


def test_the_weights_of_the_score_are_the_formulas() -> None:
    """With a baseline that leaves k out, from plain sums."""
    log_w = 2 * torch.randn(6, 40, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    w, star = log_w.exp(), weights_of_score(VIMCOStar(6), log_w)
    bound, own = (w.sum(0) / 6).log(), w / w.sum(0)
    close(star, bound - ((w.sum(0) - w) / 6).log() - own)
    close(star, -(own + (1 - own).log()))
    gamma = 0.4
    control = ((w.sum(0) - w) / 5).log() - gamma * own + (1 - gamma) * math.log(1 - 1 / 6)
    close(weights_of_score(OVIS(6, gamma), log_w), bound - own - control)
    kept = weights_of_score(OVISMC(6, 2), log_w)
    for k, j in itertools.product(range(4), range(40)):
        signals = []
        for s in (None, 4, 5):
            mine = [float(w[i, j]) for i in range(4)]
            mine[k] = float(w[k if s is None else s, j])
            signals.append(math.log(sum(mine) / 4) - mine[k] / sum(mine))
        assert float(kept[k, j]) == pytest.approx(signals[0] - sum(signals[1:]) / 2, rel=1e-10, abs=1e-13)
    assert (kept[4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_keep_their_digits_at_both_ends(dtype: torch.dtype) -> None:
    """One weight is all but e^-50 of the rest, or all are alike: against 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    for values in (
        [0.0, -50.0, -51.0],
        [0.0, -0.6, -0.7],
        [0.0] * 1000,
        [0.0] * 110,
        [-400.0, 3.0, 2.9],
        [5.0, 0.1, 0.0],
    ):
        log_w = torch.tensor(values, dtype=dtype)[:, None]
        exact_w = [mpmath.e ** mpmath.mpf(float(v)) for v in log_w[:, 0]]
        total = sum(exact_w)
        expected = [-mpmath.log((total - v) / total) - v / total for v in exact_w]
        found = weights_of_score(VIMCOStar(len(values)), log_w)[:, 0]
        tolerance = 100 * torch.finfo(dtype).eps
        for a, b in zip(found.tolist(), expected, strict=True):
            assert a == pytest.approx(float(b), rel=max(tolerance, 1e-4 if dtype == torch.float32 else 1e-10))
        others = log_others(log_w)[:, 0]
        for a, v in zip(others.tolist(), exact_w, strict=True):
            assert a == pytest.approx(float(mpmath.log((total - v) / total)), rel=tolerance, abs=tolerance)


@pytest.mark.slow
def test_vimco_star_has_the_signal_that_vimco_loses() -> None:
    """At many particles, for the encoder: the ratio of variances grows with K."""
    vae = VAES["bits"]()
    program, encoder = (vae.model, vae.guide), block(vae, "posterior")
    ratios = []
    for k in (4, 64):
        errors = [
            mean_gradient(program, vae, o, X, 50, 40).error[encoder].square().sum() for o in (VIMCO(k), VIMCOStar(k))
        ]
        ratios.append(float(errors[0] / errors[1]))
    assert ratios[1] > 3 * ratios[0]


@pytest.mark.ci
def test_they_take_latents_of_any_kind() -> None:
    """Normal ones too, against the pathwise gradient."""
    vae = one_dimensional()
    x = torch.tensor([[0.4, -1.0]], dtype=DOUBLE)
    expected = over_noise(vae, IWAE(2), x, 1)
    program = (vae.model, vae.guide)
    for objective in (VIMCOStar(2), OVIS(2, 0.0), OVISMC(4, 2)):
        assert_within_errors(mean_gradient(program, vae, objective, x, 4000, 40), expected)


# Pathwise, by quadrature over the noise


NODES = {1: 100, 2: 100, 4: 22}  # of the dimensions in all


def nodes(dims: int) -> tuple[Tensor, Tensor]:
    """Points (n, dims) and weights of the standard normal."""
    points, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(NODES[dims]))
    grid = torch.cartesian_prod(*[points] * dims).reshape(-1, dims)
    return grid, torch.cartesian_prod(*[weights / weights.sum()] * dims).reshape(-1, dims).prod(-1)


def over_noise(program: Any, objective: Any, x: Tensor, sites: int) -> Tensor:
    """The expected gradient for one datum, over the noise of K particles at one-dimensional normal sites."""
    k = objective.num_particles
    points, weights = nodes(k * sites)
    draws: Iterator[Tensor] = iter(points.reshape(len(points), sites, k).permute(1, 2, 0)[..., None])  # (K, n, 1) each

    def noise(shape: Any, *args: Any, **kwargs: Any) -> Tensor:
        return next(draws).reshape(shape)

    with mock.patch("torch.distributions.normal._standard_normal", noise), mock.patch("torch.randn", noise):
        found = sample_log_weights(program.model, program.guide, x.expand(len(points), -1), num_particles=k)
    assert next(draws, None) is None, "all noise is used"
    return flat(gradient_of((weights * objective(found).surrogate).sum(), program))


def one_dimensional(**pieces: Any) -> VAE:
    torch.manual_seed(1)
    linear = functools.partial(MLP, [], init="torch")
    given = {
        "prior": priors.DiagonalNormal(1),
        "likelihood": likelihoods.Normal(linear(), scale=0.8),
        "posterior": posteriors.DiagonalNormal(linear()),
    }
    vae = VAE((2,), **{**given, **pieces}).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if isinstance(vae.posterior, posteriors.DiagonalNormal):
            vae.posterior.mean_and_scale.network[0].bias[1] -= 1.0  # a narrow q has smooth weights, for the quadrature
    return vae


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("k", [1, 2])
def test_the_renyi_bound_doubly_reparameterised_is_unbiased(k: int, alpha: float) -> None:
    vae, x = one_dimensional(), torch.tensor([[0.4, -1.0]], dtype=DOUBLE)
    expected = over_noise(vae, Renyi(k, alpha), x, 1)
    close(over_noise(vae, RenyiDReG(k, alpha), x, 1), expected, rtol=1e-7)  # of the quadrature
    assert (expected.abs() > 1e-3).all()


@pytest.mark.parametrize(
    ("one", "other"), [(RenyiDReG(6, 0.0), DReG(6)), (RenyiDReG(6, 1.0), STL(6)), (RenyiDReG(1, 0.4), STL(1))], ids=repr
)
def test_the_renyi_bound_at_its_ends(one: Any, other: Any) -> None:
    vae, x = one_dimensional(), torch.randn(5, 2, dtype=DOUBLE)
    program = (vae.model, vae.guide)
    assert_same(gradient_at(program, vae, one, x), gradient_at(program, vae, other, x))


def test_the_path_of_the_renyi_bound_by_hand() -> None:
    k, alpha = 4, 0.3
    vae, x = one_dimensional(), torch.randn(3, 2, dtype=DOUBLE)
    torch.manual_seed(0)
    weights = sample_log_weights(vae.model, vae.guide, x, num_particles=k)
    v = ((1 - alpha) * weights.log_w.detach()).softmax(0)
    q, z = vae.q_z(x), weights.z["z"].detach().requires_grad_()
    log_w = (vae.p_x(z).log_prob(x) + vae.p_z().log_prob(z) - q.log_prob(z)) * (alpha * v + (1 - alpha) * v**2)
    (slope,) = torch.autograd.grad(log_w.sum(), z)
    expected = gradient_of((slope * weights.z["z"]).sum(), vae)
    found = gradient_at((vae.model, vae.guide), vae, RenyiDReG(k, alpha), x, seed=0)
    encoder = [n for n in found if n.startswith("posterior")]
    assert_same({n: found[n] for n in encoder}, {n: expected[n] for n in encoder})


class Hierarchy(nn.Module):
    """p(z2) p(z1|z2) p(x|z1), the first two normals with parameters, and a guide in either order."""

    def __init__(self, bottom_up: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.bottom_up = bottom_up
        self.top = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.down, self.decoder = nn.Linear(1, 2), nn.Linear(1, 2)
        self.first, self.second = nn.Linear(2, 2), nn.Linear(3, 2)
        self.double()

    @staticmethod
    def normal(values: Tensor, scale: float = 1.0) -> Any:
        mean, raw = values.chunk(2, -1)
        return dist.Normal(mean, scale * raw.mul(0.3).exp()).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.normal(self.top))
            z1 = pyro.sample("z1", self.normal(self.down(z2)))
            pyro.sample("x", dist.Normal(self.decoder(z1.tanh()), 1.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        names = ("z1", "z2") if self.bottom_up else ("z2", "z1")
        with pyro.plate("data", len(x)):
            one = pyro.sample(names[0], self.normal(self.first(x), 0.4))
            both = torch.cat([x.expand(*one.shape[:-1], 2), one], -1)
            pyro.sample(names[1], self.normal(self.second(both), 0.4))


def ladder(direction: str) -> VAE:
    linear = functools.partial(MLP, [], init="torch")
    vae = one_dimensional(
        prior=priors.Ladder([1, 1], linear()),
        likelihood=likelihoods.Normal(linear(), scale=1.5),
        posterior=posteriors.Ladder(linear(), linear(), direction=direction),
    )
    with torch.no_grad():  # smooth weights, for the quadrature; what q reads has 64 features
        for name, parameter in vae.named_parameters():
            parameter.mul_(0.1 if name.startswith("posterior") else 0.5)
            if name.startswith("posterior.level") and name.endswith("bias"):
                parameter[1] -= 1.0
    return vae


CASES: dict[str, tuple[Callable[[], Any], int]] = {
    "learned normal": (one_dimensional, 1),
    "two sites, bottom-up": (lambda: Hierarchy(True), 2),
    "two sites, top-down": (lambda: Hierarchy(False), 2),
    "ladder": (lambda: ladder("top-down"), 2),
    "ladder, bottom-up": (lambda: ladder("bottom-up"), 2),
    "ladder, precision-weighted": (lambda: ladder("precision-weighted"), 2),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    ("name", "k"),
    [  # two particles of a program of many networks take seconds: two sites stand for all
        pytest.param(name, k, marks=[pytest.mark.slow] * (k == 2 and not name.startswith("two sites")))
        for name in CASES
        for k in (1, 2)
    ],
)
def test_gdreg_is_unbiased_in_all_parameters(name: str, k: int) -> None:
    make, sites = CASES[name]
    program, x = make(), torch.tensor([[0.4, -1.0]], dtype=DOUBLE)
    expected = over_noise(program, IWAE(k), x, sites)
    found = over_noise(program, GDReG(k), x, sites)
    p = ~torch.stack([block(program, part) for part in ("posterior", "first", "second")]).any(0)
    close(found[p], expected[p], rtol=1e-5 if k * sites == 4 else 1e-8)  # of the quadrature, at few nodes a dimension
    close(found, over_noise(program, DReG(k), x, sites), rtol=1e-5 if k * sites == 4 else 1e-8)
    close(found, expected, rtol=1e-3 if k * sites == 4 else 1e-8)
    assert (expected[p] != 0).any()


def noise_of(program: Any, objective: Any, x: Tensor, part: str) -> tuple[Tensor, Tensor]:
    """The standard deviation of the gradients by some parameters over 60 seeds, and their mean."""
    found = torch.stack(
        [flat(gradient_at((program.model, program.guide), program, objective, x, s)) for s in range(60)]
    )
    where = block(program, part)
    return found.std(0)[where], found.mean(0)[where]


def test_where_the_likelihood_is_flat_the_prior_has_no_noise() -> None:
    """An unused latent, q the prior: the score of the prior has noise, and its reparameterised gradient is zero."""
    vae, x = one_dimensional(), torch.randn(3, 2, dtype=DOUBLE)
    with torch.no_grad():
        vae.likelihood.mean.network[0].weight.zero_()
        network = vae.posterior.mean_and_scale.network[0]
        network.weight.zero_()
        network.bias.copy_(torch.stack([vae.prior.loc[0], vae.p_z().base_dist.scale[0].sub(1e-5).expm1().log()]))
    torch.testing.assert_close(vae.q_z(x).base_dist.scale[0], vae.p_z().base_dist.scale, rtol=1e-12, atol=0.0)
    plain, _ = noise_of(vae, DReG(4), x, "prior")
    ours, mean = noise_of(vae, GDReG(4), x, "prior")
    assert (plain > 0.1).all()
    assert (ours < 1e-10).all()
    assert (mean.abs() < 1e-10).all()


@pytest.mark.slow
def test_at_the_true_posterior_the_prior_keeps_its_noise() -> None:
    """It is that of the likelihood's slope: less than the score's where the likelihood is broad, else more."""
    ratios = []
    for scale in (10.0, 0.1):
        vae, x = one_dimensional(likelihood=likelihoods.Normal(MLP([]), scale=scale)), torch.randn(3, 2, dtype=DOUBLE)
        with torch.no_grad():
            w, b = vae.likelihood.mean.network[0].weight, vae.likelihood.mean.network[0].bias
            p = vae.p_z().base_dist
            precision = p.scale**-2 + (w**2).sum() / scale**2
            network = vae.posterior.mean_and_scale.network[0]
            network.weight[0] = w[:, 0] / scale**2 / precision
            network.weight[1] = 0.0
            network.bias[0] = ((p.loc / p.scale**2 - (w[:, 0] * b).sum() / scale**2) / precision)[0]
            network.bias[1] = (precision**-0.5 - 1e-5).expm1().log()[0]
        encoder, _ = noise_of(vae, GDReG(4), x, "posterior")
        assert (encoder < 1e-10).all(), "q is the true posterior"
        (plain, _), (ours, _) = (noise_of(vae, o, x, "prior") for o in (DReG(4), GDReG(4)))
        ratios.append(float(ours.norm() / plain.norm()))
    assert ratios[0] < 0.2
    assert ratios[1] > 5


def test_a_prior_without_parameters_leaves_dreg() -> None:
    vae, x = one_dimensional(prior=priors.StandardNormal(1)), torch.randn(3, 2, dtype=DOUBLE)
    program = (vae.model, vae.guide)
    assert_same(gradient_at(program, vae, GDReG(5), x), gradient_at(program, vae, DReG(5), x))


def test_a_mask_and_a_scale_reach_the_priors_gradient() -> None:
    vae, x = one_dimensional(), torch.randn(4, 2, dtype=DOUBLE)
    keep = torch.tensor([True, False, True, False])
    hidden = tuple(pyro.poutine.mask(part, mask=keep) for part in (vae.model, vae.guide))
    torch.manual_seed(0)
    noise = torch.randn(3, 4, 1, dtype=DOUBLE)

    def at(program: Any, data: Tensor, rows: Tensor) -> dict[str, Tensor]:
        with mock.patch("torch.randn", return_value=noise[:, rows]):
            return gradient_of(-as_loss(GDReG(3))(program, data).surrogate, vae)

    assert_same(at(hidden, x, torch.ones(4, dtype=torch.bool)), at((vae.model, vae.guide), x[keep], keep))
    scaled = tuple(pyro.poutine.scale(part, scale=2.5) for part in (vae.model, vae.guide))
    whole, all_rows = at((vae.model, vae.guide), x, keep | ~keep), keep | ~keep
    assert_same(at(scaled, x, all_rows), {n: 2.5 * g for n, g in whole.items()})


@pytest.mark.parametrize("prior", [priors.Laplace(1), priors.MixtureOfNormals(1), priors.VampPrior(1, 3)])
def test_priors_that_are_no_normals_are_refused(prior: Any) -> None:
    vae = one_dimensional(prior=prior)
    with pytest.raises(ValueError, match=r"GDReG reparameterises the prior, and that at site 'z' is .*; use DReG"):
        as_loss(GDReG(3))((vae.model, vae.guide), torch.randn(2, 2, dtype=DOUBLE))


@pytest.mark.ci
def test_dropout_in_q_is_refused_and_in_p_leaves_it_unbiased() -> None:
    x = torch.tensor([[0.4, -1.0]], dtype=DOUBLE)
    wide = functools.partial(MLP, [30], "tanh", dropout=0.3, init="torch")
    random_q = one_dimensional(posterior=posteriors.DiagonalNormal(wide(), scale="std"))
    with pytest.raises(ValueError, match=r"GDReG runs q again at the same z, and log q changes by .*dropout, or DReG"):
        as_loss(GDReG(3))((random_q.model, random_q.guide), x)
    random_p = one_dimensional(likelihood=likelihoods.Normal(wide(), scale=0.8))
    program, prior = (random_p.model, random_p.guide), block(random_p, "prior")
    found, plain = (mean_gradient(program, random_p, o, x, 2000, 40) for o in (GDReG(3), DReG(3)))
    assert_within_errors(part_of(found, prior), part_of(plain, prior))
    assert (plain.mean[prior].abs() > 10 * plain.error[prior]).all()


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("objective", "name"),
    [
        *((o, "two bits") for o in (VIMCOStar(3), OVIS(3), OVISMC(5, 2), StraightThroughELBO(3))),
        (ReinMaxELBO(3), "one-hot"),
        (GumbelRaoELBO(3), "two bits"),
        (GDReG(3), "ladder"),
        (RenyiDReG(3), "learned normal"),
        (GDReG(3), "two sites, bottom-up"),
        *(
            pytest.param(objective, kind, marks=pytest.mark.slow)
            for objective, kind in [
                (ReinMaxELBO(3), "two bits"),
                (GumbelRaoELBO(3), "one-hot"),
                *((o, "ladder") for o in (GDReG(1), RenyiDReG(3))),
                *((o, "learned normal") for o in (GDReG(3), GDReG(1))),
            ]
        ),
    ],
    ids=repr,
)
def test_a_captured_step_is_the_step(objective: Any, name: str) -> None:
    """To the last bit, of another batch size too."""

    def steps(level: Any) -> list[Tensor]:
        pyro.clear_param_store()
        program = (VAES[name] if name in VAES else CASES[name][0])()
        batches = (
            [X, X, X, X[:5], X[:5], X] if name in VAES else [0.3 * torch.randn(b, 2).double() for b in (4, 4, 4, 3)]
        )
        torch.manual_seed(0)
        svi = SVI(program.model, program.guide, functools.partial(torch.optim.Adam, lr=1e-2), objective, compile=level)
        losses = [torch.tensor(svi.step(x)) for x in batches]
        assert svi.why_eager is None or level == "off"
        return [*losses, *(p.detach().clone() for p in program.parameters())]

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    eager = steps("off")
    torch.random.set_rng_state(state)
    for a, b in zip(steps("graph"), eager, strict=True):
        assert torch.equal(a, b)


def test_log_weights_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="GDReG: the program runs once more, and was given log-weights alone"):
        GDReG(2)(LogWeights.of(torch.randn(2, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OVIS(8, gamma=1.5), r"OVIS: gamma is 1.5; expected a number from 0 .unbiased. to 1"),
        (lambda: OVIS(1), "OVIS: num_particles is 1"),
        (lambda: VIMCOStar(1), "VIMCOStar: num_particles is 1"),
        (lambda: OVISMC(3, auxiliary=2), "3 particles, 2 of them auxiliary, leave 1 for the bound"),
        (lambda: OVISMC(3, auxiliary=0), "OVISMC: auxiliary"),
        (lambda: RenyiDReG(3, alpha=math.nan), "RenyiDReG: alpha is nan"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
