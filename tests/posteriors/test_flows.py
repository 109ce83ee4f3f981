"""Normalising flows: as priors, as posteriors, and the distribution that both return."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import zoo
from torch import Tensor

from ppl_vae import SVI, VAE, data, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.networks import Binding

PRIORS = {
    "maf": lambda d: priors.MaskedAutoregressiveFlow(d, num_transforms=3, hidden=[20, 20]),
    "coupling": lambda d: priors.CouplingFlow(d, num_transforms=4, hidden=[20]),
    "spline": lambda d: priors.SplineFlow(d, num_transforms=2, hidden=[20], num_bins=5),
}
POSTERIORS = {
    "iaf": lambda network: posteriors.InverseAutoregressiveFlow(network, 5, num_transforms=3, hidden=[20, 20]),
    "planar": lambda network: posteriors.PlanarFlow(network, 5, num_transforms=3),
    "affine-coupling": lambda network: posteriors.CouplingFlow(network, 5, num_transforms=4, hidden=[20]),
    "spline-coupling": lambda network: posteriors.SplineFlow(network, 5, num_transforms=2, hidden=[20], num_bins=5),
}
INVERTIBLE = {name: make for name, make in POSTERIORS.items() if name != "planar"}
LEAST = {"coupling": 2, "affine-coupling": 2, "spline-coupling": 2}  # the smallest latent dimension, where it is not 1
N = 4  # data

each_prior = pytest.mark.parametrize("prior", PRIORS)
each_posterior = pytest.mark.parametrize("posterior", POSTERIORS)
each_invertible = pytest.mark.parametrize("posterior", INVERTIBLE)


@torch.no_grad()
def stir(module: torch.nn.Module, scale: float = 0.2) -> Any:
    """Move all parameters, so that a flow is no longer near the identity."""
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return module


def make_prior(name: str, d: int, dtype: torch.dtype = torch.float64, scale: float = 0.2) -> Any:
    return stir(PRIORS[name](d), scale).to(dtype)


def make_posterior(name: str, d: int, dtype: torch.dtype = torch.float64, scale: float = 0.2) -> Any:
    posterior = POSTERIORS[name](networks.MLP([8], init="torch"))
    posterior.bind(Binding(x_shape=(3,), latent_shape=(d,)))
    return stir(posterior, scale).to(dtype)


def make_vae(prior: str | None, posterior: str | None, d: int = 3) -> VAE:
    mlp = networks.MLP([12], init="torch")
    return VAE(
        (1, 8, 8),
        prior=priors.StandardNormal(d) if prior is None else PRIORS[prior](d),
        likelihood=likelihoods.Bernoulli(mlp),
        posterior=posteriors.DiagonalNormal(mlp) if posterior is None else POSTERIORS[posterior](mlp),
    )


PAIRS = [(name, None) for name in PRIORS] + [(None, name) for name in POSTERIORS]
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return data.load("digits", binarize="threshold").train.x[:16]


def distributions(d: int, dtype: torch.dtype = torch.float64, scale: float = 0.2) -> dict[str, Any]:
    """Every flow once, those of posteriors for one datum."""
    x = torch.randn(1, 3, dtype=dtype)
    found = {name: make_prior(name, d, dtype, scale)().expand((1,)) for name in PRIORS if d >= LEAST.get(name, 1)}
    found |= {name: make_posterior(name, d, dtype, scale)(x) for name in POSTERIORS if d >= LEAST.get(name, 1)}
    return found


# The density


@pytest.mark.parametrize("d", [1, 2, 5])
def test_log_determinant_is_that_of_the_jacobian(d: int) -> None:
    for name, flow in distributions(d).items():
        e = flow.base.sample()  # (1, d)
        z, log_det = flow.generate(e)
        jacobian = torch.autograd.functional.jacobian(lambda e: flow.generate(e[None])[0][0], e[0])  # noqa: B023
        torch.testing.assert_close(log_det[0], jacobian.slogdet()[1], rtol=1e-10, atol=1e-10, msg=name)
        if flow.normalise is not None:
            jacobian = torch.autograd.functional.jacobian(lambda z: flow.normalise(z[None])[0][0], z[0])  # noqa: B023
            back, inverse = flow.normalise(z)
            torch.testing.assert_close(back, e, rtol=1e-8, atol=1e-8, msg=name)
            torch.testing.assert_close(inverse[0], jacobian.slogdet()[1], rtol=1e-8, atol=1e-8, msg=name)


def grid(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Points of the whole space and their weights, closest where the samples are: (n, d) and (n,)."""
    t = torch.linspace(-4.5, 4.5, 6001 if samples.shape[1] == 1 else 501, dtype=torch.float64)
    low, centre, high = samples.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    points = [c + w * t.sinh() for c, w in zip(centre, high - low, strict=True)]
    weights = [w * t.cosh() * (t[1] - t[0]) for w in high - low]
    d = len(points)
    return torch.cartesian_prod(*points).reshape(-1, d), torch.cartesian_prod(*weights).reshape(-1, d).prod(1)


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("d", [1, 2])
def test_density_is_normalised_and_samples_follow_it(d: int) -> None:
    for name, flow in distributions(d, scale=0.08).items():  # splines that are steep take a finer grid
        with torch.no_grad():
            samples = flow.sample((20_000,))[:, 0]  # (n, d)
            if flow.normalise is None:
                continue
            z, weight = grid(samples)
            mass = weight * flow.log_prob(z[:, None])[:, 0].exp()
        assert abs(mass.sum() - 1) < 1e-4, name
        for power in (1, 2):
            centre = 0.0 if power == 1 else (mass[:, None] * z).sum(0)
            drawn, expected = (samples - centre) ** power, (mass[:, None] * (z - centre) ** power).sum(0)
            error = (drawn.mean(0) - expected).abs() / zoo.standard_error(drawn)
            assert error.max() < 5, f"{name}: moment {power} is {error.max():.1f} standard errors off"
        if d == 2:  # and how the two hang together
            product, expected = samples.prod(1), (mass * z.prod(1)).sum()
            assert (product.mean() - expected).abs() < 5 * zoo.standard_error(product), name


def test_a_draw_is_scored_as_any_other_value() -> None:
    for name, flow in distributions(5).items():
        for q in (flow, flow.expand((7, 1)), flow.expand((2, 7, 1))):
            z = q.rsample((3,))
            assert z.shape == (3, *q.batch_shape, 5)
            assert q.log_prob(z).shape == z.shape[:-1]
            if flow.normalise is not None:
                torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-8, atol=1e-8, msg=name)


def test_float32_agrees_in_both_directions() -> None:
    for name, flow in distributions(5, torch.float32).items():
        if flow.normalise is not None:
            z = flow.rsample((50,))
            torch.testing.assert_close(flow.log_prob(z), flow.log_prob(z.clone()), rtol=1e-4, atol=1e-4, msg=name)
            e, _ = flow.normalise(z)
            torch.testing.assert_close(flow.generate(e)[0], z, rtol=1e-4, atol=1e-4, msg=name)


def test_far_values_have_finite_density_and_gradient() -> None:
    for d in (1, 2, 6):
        for name, flow in distributions(d, torch.float32).items():
            if flow.normalise is None:
                continue
            z = torch.cat([50 * torch.eye(d), -50 * torch.eye(d), torch.full((1, d), 50.0), torch.zeros(1, d)])
            z = z[:, None].requires_grad_()
            log_prob = flow.log_prob(z)
            assert log_prob.isfinite().all(), name
            log_prob.sum().backward()
            assert z.grad is not None, name
            assert z.grad.isfinite().all(), name


@each_prior
def test_gradients_of_a_prior_are_finite_far_away(prior: str) -> None:
    piece = make_prior(prior, 6, torch.float32)
    piece().log_prob(torch.linspace(-50, 50, 60).reshape(10, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in piece.parameters())


def test_there_is_no_closed_form() -> None:
    for flow in distributions(2).values():
        assert flow.has_rsample
        assert flow.support is dist.constraints.real_vector
        for name in ("mean", "variance"):
            with pytest.raises(NotImplementedError):
                getattr(flow, name)


def test_a_mask_leaves_the_draw_known() -> None:
    for flow in distributions(3).values():
        masked = flow.mask(torch.tensor([False]))
        assert torch.equal(masked.log_prob(masked.rsample((2,))), torch.zeros(2, 1, dtype=torch.float64))


# What is remembered


@each_invertible
def test_nothing_is_remembered_from_one_call_to_the_next(posterior: str) -> None:
    """Pyro's own cache would give the density before the update."""
    piece, x = make_posterior(posterior, 3), torch.randn(N, 3, dtype=torch.float64)
    q = piece(x)
    z = q.rsample().detach()
    before = piece(x).log_prob(z)
    assert torch.equal(piece(x).log_prob(z), before)
    stir(piece, 0.05)
    assert not torch.allclose(piece(x).log_prob(z), before)


@each_prior
def test_a_prior_sees_its_parameters_as_they_are(prior: str) -> None:
    piece, z = make_prior(prior, 3), torch.randn(N, 3, dtype=torch.float64)
    p = piece()
    before = p.log_prob(z)
    before.sum().backward()
    p.log_prob(z).sum().backward()  # a second time, through a graph of its own
    stir(piece, 0.05)
    assert not torch.allclose(p.log_prob(z), before)


@each_invertible
def test_a_draw_without_gradients_is_scored_with_them(posterior: str) -> None:
    piece, x = make_posterior(posterior, 3), torch.randn(N, 3, dtype=torch.float64)
    q = piece(x)
    z = q.sample()
    with torch.no_grad():
        remembered = q.log_prob(z)
    scored = q.log_prob(z)
    assert scored.requires_grad
    torch.testing.assert_close(scored.detach(), remembered, rtol=1e-8, atol=1e-8)


@pytest.mark.thinned(3)
@each_pair
def test_the_graph_is_freed_with_the_distribution(pair: tuple[str | None, str | None]) -> None:
    """Without waiting for the garbage collector: a step's memory must not pile up."""
    vae = make_vae(*pair)
    gc.collect()
    gc.disable()
    try:
        q = vae.posterior(torch.zeros(2, 1, 8, 8))
        z = q.rsample()
        score = q.log_prob(z) + vae.prior().log_prob(z)
        remains = [weakref.ref(z), weakref.ref(q), weakref.ref(score)]
        del q, z, score
        assert [r() for r in remains] == [None, None, None]
    finally:
        gc.enable()


@each_pair
def test_copies_pickles_and_states_hold_the_same_flow(pair: tuple[str | None, str | None], digits: Tensor) -> None:
    def score(vae: VAE) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            q = vae.posterior(digits)
            z = q.sample()
            return vae.prior().log_prob(z) + q.log_prob(z)

    vae = make_vae(*pair)
    assert torch.equal(score(pickle.loads(pickle.dumps(vae))), score(vae))
    SVI(vae.model, vae.guide, torch.optim.Adam, objectives.ELBO()).step(digits)
    stir(vae, 0.05)
    expected = score(vae)
    assert torch.equal(score(copy.deepcopy(vae)), expected)
    other = make_vae(*pair)
    assert not torch.equal(score(other), expected)
    other.load_state_dict(vae.state_dict())
    assert torch.equal(score(other), expected)


def test_a_planar_flow_scores_its_own_draw_alone() -> None:
    piece, x = make_posterior("planar", 3), torch.randn(N, 3, dtype=torch.float64)
    q = piece(x)
    first, last = q.rsample(), q.rsample()
    assert q.log_prob(last).requires_grad
    for foreign in (first, last.clone(), torch.zeros_like(last)):
        with pytest.raises(
            NotImplementedError, match=r"no inverse, so that it scores only the z that it drew last; dra"
        ):
            q.log_prob(foreign)
    z = q.sample()
    with torch.no_grad():
        value = q.log_prob(z)
    scored = q.log_prob(z)
    assert torch.equal(scored, value)
    with pytest.raises(NotImplementedError, match=r"the gradient of its density at a z drawn by sample is not known"):
        scored.sum().backward()


def test_density_of_a_planar_flow_by_its_numerical_inverse() -> None:
    """In one dimension the density is the derivative of the normal's cdf at the inverse, found by bisection."""
    q = make_posterior("planar", 1)(torch.zeros(1, 3, dtype=torch.float64))
    e = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    with torch.no_grad():
        e = q.base.base_dist.loc[0] + q.base.base_dist.scale[0] * e
        z, _ = q.generate(e[:, None, None])
        z = z[:, 0, 0]
        assert (z.diff() > 0).all()
        cdf = torch.distributions.Normal(0.0, 1.0).cdf((e - q.base.base_dist.loc[0]) / q.base.base_dist.scale[0])
        drawn = q.sample((50,))
        density = q.log_prob(drawn).exp()[:, 0]
    place = torch.searchsorted(z, drawn[:, 0, 0])
    expected = (cdf[place] - cdf[place - 1]) / (z[place] - z[place - 1])
    torch.testing.assert_close(density, expected, rtol=1e-3, atol=1e-6)


# Training


def check_captured(pair: tuple[str | None, str | None], objective: Any, digits: Tensor) -> None:
    def steps(level: Any) -> tuple[SVI, list[float], list[Tensor]]:
        torch.manual_seed(0)
        vae = make_vae(*pair)
        optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
        svi = SVI(vae.model, vae.guide, optimizer, objective, compile=level)
        torch.manual_seed(1)
        return svi, [svi.step(digits) for _ in range(4)], list(vae.state_dict().values())

    svi, losses, state = steps("graph")
    _, expected_losses, expected_state = steps("off")
    assert svi.why_eager is None
    assert losses == expected_losses
    assert all(map(torch.equal, state, expected_state))


@pytest.mark.thinned(3)
@each_pair
@pytest.mark.parametrize("num_particles", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_step_is_captured_bit_for_bit(
    pair: tuple[str | None, str | None], num_particles: int, digits: Tensor
) -> None:
    check_captured(pair, objectives.ELBO(num_particles), digits)


@pytest.mark.ci
def test_an_objective_that_differentiates_a_spline_is_captured(digits: Tensor) -> None:
    """Pyro's splines pick entries by masks, and their backward pass does so inside of the objective."""
    check_captured((None, "spline-coupling"), objectives.GDReG(2), digits)


@pytest.mark.parametrize("name", [*PRIORS, *POSTERIORS])
def test_a_flow_starts_near_the_normal(name: str) -> None:
    d = 4
    if name in PRIORS:
        flow: Any = PRIORS[name](d)()
    else:
        piece = POSTERIORS[name](networks.MLP([8], init="torch"))
        piece.bind(Binding(x_shape=(3,), latent_shape=(d,)))
        flow = piece(torch.zeros(3))
    with torch.no_grad():
        z = flow.sample((4000,))
        standard = (z - z.mean(0)) / z.std(0)
        log_normal = torch.distributions.Normal(z.mean(0), z.std(0)).log_prob(z).sum(-1)
        flow = flow.expand((4000,))
        z = flow.sample()
        kl = (flow.log_prob(z) - torch.distributions.Normal(z.mean(0), z.std(0)).log_prob(z).sum(-1)).mean()
    assert standard.abs().max() < 6
    assert abs(kl) < 0.05, f"{float(kl)} nats from a diagonal normal"
    assert log_normal.isfinite().all()


# Arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.MaskedAutoregressiveFlow(0), r"prior MaskedAutoregressiveFlow: latent_dim is 0"),
        (lambda: priors.MaskedAutoregressiveFlow(2, num_transforms=0), r"num_transforms is 0; expected a positive"),
        (lambda: priors.MaskedAutoregressiveFlow(8, hidden=[4]), r"hidden\[0\] is 4; expected at least the 8 dim"),
        (lambda: priors.MaskedAutoregressiveFlow(2, hidden=[]), r"hidden is \[\]; expected a list of at least one"),
        (lambda: priors.MaskedAutoregressiveFlow(2, hidden=[8, 0]), r"hidden\[1\] is 0; expected a positive"),
        (lambda: posteriors.InverseAutoregressiveFlow(context_dim=0), r"InverseAutoregressiveFlow: context_dim is 0"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_masked_network_narrower_than_z_is_refused_when_z_is_known() -> None:
    posterior = posteriors.InverseAutoregressiveFlow(hidden=[4])
    with pytest.raises(
        ValueError, match=r"posterior InverseAutoregressiveFlow: hidden\[0\] is 4; expected at least th"
    ):
        posterior.bind(Binding(x_shape=(3,), latent_shape=(8,)))


@each_posterior
def test_a_posterior_without_sizes_says_so(posterior: str) -> None:
    with pytest.raises(RuntimeError, match=r"posterior \w+ has no sizes yet: put it into a VAE"):
        POSTERIORS[posterior](torch.nn.Linear(3, 9))(torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match=r"put it into a VAE$"):  # a ready-made network would not do
        POSTERIORS[posterior](None)(torch.zeros(2, 3))


@each_posterior
def test_a_condition_reaches_the_flow(posterior: str) -> None:
    piece = POSTERIORS[posterior](networks.MLP([8]))
    piece.bind(Binding(x_shape=(3,), latent_shape=(2,), y_shape=(2,)))
    x = torch.zeros(1, 3)
    drawn = []
    for y in torch.eye(2):
        torch.manual_seed(0)
        drawn.append(piece(x, y[None]).rsample())
    assert not torch.equal(*drawn)
