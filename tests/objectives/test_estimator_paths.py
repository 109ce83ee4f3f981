"""Which paths a gradient takes: through z, through an encoder in the prior, through z1 in q(z2|z1), and no others.

The references score q with a frozen copy of the whole program at the attached z: they share nothing with the estimators
but the draws.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from linear_gaussian import LinearGaussian
from pyro import poutine
from replicates import (
    assert_same,
    assert_within_errors,
    block,
    distance,
    flat,
    gradient_at,
    gradient_of,
    mean_gradient,
    part_of,
)
from torch import Tensor, nn

from ppl_vae import SVI, VAE, likelihoods, networks, posteriors, priors
from ppl_vae.objectives import (
    ELBO,
    IWAE,
    IWAESTL,
    MIWAE,
    PIWAE,
    REINFORCE,
    RWS,
    STL,
    TVO,
    VIMCO,
    DReG,
    EnumeratedELBO,
    Renyi,
    RWSDReG,
    as_loss,
    sample_log_weights,
)
from ppl_vae.objectives.losses import evaluate_objective

NETWORK = next(n for n in zoo.NETWORKS if n.name == "MLP-torch")
PATHWISE = [STL(3), DReG(3), IWAESTL(3), RWSDReG(3), DReG(1)]
every_pathwise = pytest.mark.parametrize("objective", PATHWISE, ids=repr)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def triple(objective: Any, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of grad log p at fixed z, and of the path, as the papers have them, (K, batch)."""
    weights, k = log_w.detach().softmax(0), len(log_w)
    if isinstance(objective, STL):
        return torch.full_like(weights, 1 / k), torch.full_like(weights, 1 / k)
    path = {DReG: weights**2, IWAESTL: weights, RWSDReG: weights - weights**2}[type(objective)]
    return weights, path


def reference(vae: VAE, objective: Any, x: Tensor, seed: int = 11) -> dict[str, Tensor]:
    """What the gradient must be: log p by its parameters at fixed z, and the path alone through frozen ones."""
    torch.manual_seed(seed)
    k = objective.num_particles
    z = sample_log_weights(vae.model, vae.guide, x, num_particles=k).z["z"].reshape(k, len(x), -1)
    frozen = copy.deepcopy(vae).requires_grad_(False)

    def log_p(program: VAE, z: Tensor) -> Tensor:
        return program.p_x(z).log_prob(x) + program.p_z().log_prob(z)

    log_w = log_p(frozen, z) - frozen.q_z(x).log_prob(z)
    model, path = triple(objective, log_w)
    return gradient_of((model * log_p(vae, z.detach()) + path * log_w).sum(), vae)


def rescoring() -> list[zoo.Posterior]:
    return [q for q in zoo.POSTERIORS if q.reparameterised and q.rescores]


@every_pathwise
@pytest.mark.parametrize("posterior", rescoring(), ids=zoo.names)
def test_each_posterior_against_a_frozen_copy(posterior: zoo.Posterior, objective: Any) -> None:
    program = zoo.Program(zoo.goes_with(posterior, zoo.PRIORS), zoo.LIKELIHOODS[0], posterior, NETWORK)
    vae = program.vae((4,), max(2, program.min_latent))
    x = program.likelihood.draw(3, 4)
    expected = reference(vae, objective, x)
    # an inverse of a flow may be iterated, and a draw near the edge of its support has lost digits
    rtol = 1e-10 if posterior.space == "real" else 1e-8
    assert_same(gradient_at((vae.model, vae.guide), vae, objective, x), expected, rtol)
    if objective.num_particles > 1:
        assert flat(expected)[block(vae, "posterior")].abs().max() > 1e-6


@every_pathwise
@pytest.mark.parametrize("prior", [p for p in zoo.PRIORS if p.space == "real"], ids=zoo.names)
def test_each_prior_against_a_frozen_copy(prior: zoo.Prior, objective: Any) -> None:
    vae = zoo.Program(prior, zoo.LIKELIHOODS[0], zoo.POSTERIORS[0], NETWORK).vae((4,), max(2, prior.min_latent))
    x = zoo.BINARY.draw(3, 4)
    assert_same(gradient_at((vae.model, vae.guide), vae, objective, x), reference(vae, objective, x))


# An encoder in the prior


def vamp() -> tuple[VAE, Tensor]:
    torch.manual_seed(2)
    mlp = networks.MLP([7], activation="tanh", init="torch")
    vae = VAE(
        (4,),
        prior=priors.VampPrior(2, 3),
        likelihood=likelihoods.Bernoulli(mlp),
        posterior=posteriors.DiagonalNormal(mlp),
    )
    return vae, (torch.rand(3, 4) > 0.5).double()


@every_pathwise
def test_the_encoder_in_a_vamp_prior_keeps_its_gradient(objective: Any) -> None:
    """And an implementation that takes the encoder's gradient away wherever it is used has another one."""
    vae, x = vamp()
    found = gradient_at((vae.model, vae.guide), vae, objective, x)
    assert_same(found, reference(vae, objective, x))
    torch.manual_seed(11)
    k = objective.num_particles
    z = sample_log_weights(vae.model, vae.guide, x, num_particles=k).z["z"].reshape(k, 3, 2)
    frozen = copy.deepcopy(vae).requires_grad_(False)
    log_w = frozen.p_x(z).log_prob(x) + frozen.p_z().log_prob(z) - frozen.q_z(x).log_prob(z)
    model, path = triple(objective, log_w)
    naive_log_p = vae.p_x(z.detach()).log_prob(x) + frozen.p_z().log_prob(z.detach())
    naive = gradient_of((model * naive_log_p + path * log_w).sum(), vae)
    encoder = [name for name in found if name.startswith("posterior")]
    assert max(float((naive[name] - found[name]).abs().max()) for name in encoder) > 1e-3


@pytest.mark.parametrize(
    ("objective", "same"), [(STL(2), ELBO(2)), (DReG(3), IWAE(3)), (VIMCO(3), IWAE(3)), (REINFORCE(2), ELBO(2))]
)
def test_unbiased_with_a_vamp_prior(objective: Any, same: Any) -> None:
    vae, x = vamp()
    program = (vae.model, vae.guide)
    found, expected = (mean_gradient(program, vae, o, x, 100, seed=i) for i, o in enumerate((objective, same)))
    assert_within_errors(found, expected)


# A chain of latents


class Chain(nn.Module):
    """z2 -> z1 -> x with a guide z1 -> z2, linear, tanh between; an auxiliary site in the guide if asked."""

    def __init__(self, auxiliary: bool = False, nested: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.prior = nn.Linear(2, 2)
        self.decoder = nn.Linear(2, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(2, 4)
        self.auxiliary = auxiliary
        self.nested = nested

    def p1(self, z2: Tensor) -> Any:
        return dist.Normal(self.prior(z2).tanh(), 0.8).to_event(1)

    def p_x(self, z1: Tensor) -> Any:
        return dist.Bernoulli(logits=self.decoder(z1)).to_event(1)

    def q1(self, x: Tensor) -> Any:
        loc, log_scale = self.first(x).chunk(2, -1)
        return dist.Normal(loc, (0.3 * log_scale).exp()).to_event(1)

    def q2(self, z1: Tensor) -> Any:
        loc, log_scale = self.second(z1.tanh()).chunk(2, -1)
        return dist.Normal(loc, (0.3 * log_scale - 0.5).exp()).to_event(1)

    def model(self, x: Tensor) -> None:
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = z2 if self.auxiliary else pyro.sample("z1", self.p1(z2))
            pyro.sample("x", self.p_x(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.q1(x), infer={"is_auxiliary": self.auxiliary})
            pyro.sample("z2", self.q2(z1))

    def log_p(self, x: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
        log_p = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z2)
        if self.auxiliary:
            return log_p + self.p_x(z2).log_prob(x)
        return log_p + self.p1(z2).log_prob(z1) + self.p_x(z1).log_prob(x)

    def log_q(self, x: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
        return self.q1(x).log_prob(z1) + self.q2(z1).log_prob(z2)

    def draw(self, x: Tensor, k: int, seed: int = 11) -> tuple[Tensor, Tensor]:
        """The draws of a seed, made again by hand."""
        torch.manual_seed(seed)
        shape = (k,) if k > 1 else ()
        z1 = self.q1(x).expand((*shape, len(x))).rsample()
        return z1, self.q2(z1).rsample()


BITS = torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.float64)


@every_pathwise
@pytest.mark.parametrize("auxiliary", [False, True], ids=["latent", "auxiliary"])
def test_a_chain_keeps_the_path_through_its_first_latent(objective: Any, auxiliary: bool) -> None:
    """And detaching the arguments of q(z2|z1), which loses that path, gives another gradient."""
    chain, x, k = Chain(auxiliary), BITS, objective.num_particles
    z1, z2 = (z.reshape(k, 3, 2) for z in chain.draw(x, k))
    frozen = copy.deepcopy(chain).requires_grad_(False)
    log_w = frozen.log_p(x, z1, z2) - frozen.log_q(x, z1, z2)
    model, path = triple(objective, log_w)
    expected = gradient_of((model * chain.log_p(x, z1.detach(), z2.detach()) + path * log_w).sum(), chain)
    found = gradient_at((chain.model, chain.guide), chain, objective, x)
    assert_same(found, expected)
    z1, z2 = (z.reshape(k, 3, 2) for z in chain.draw(x, k))
    detached = frozen.q1(x).log_prob(z1) + frozen.q2(z1.detach()).log_prob(z2)
    naive = gradient_of((path * (frozen.log_p(x, z1, z2) - detached)).sum(), chain)
    if k > 1 or not isinstance(objective, RWSDReG):
        assert float((naive["first.weight"] - found["first.weight"]).abs().max()) > 1e-3


@pytest.mark.thinned(3)
@pytest.mark.thinned(2)
@pytest.mark.parametrize("auxiliary", [False, True], ids=["latent", "auxiliary"])
@pytest.mark.parametrize(
    ("objective", "same"),
    [
        (STL(2), ELBO(2)),
        (DReG(3), IWAE(3)),
        (VIMCO(3), IWAE(3)),
        (REINFORCE(2, "leave_one_out"), ELBO(2)),
        (RWSDReG(3), RWS(3)),
    ],
)
def test_unbiased_with_a_chain(objective: Any, same: Any, auxiliary: bool) -> None:
    chain = Chain(auxiliary)
    program = (chain.model, chain.guide)
    found, expected = (mean_gradient(program, chain, o, BITS, 200, seed=i) for i, o in enumerate((objective, same)))
    assert_within_errors(found, expected)


# Flows


def flow(posterior: Any) -> tuple[VAE, Tensor]:
    torch.manual_seed(2)
    mlp = networks.MLP([7], activation="tanh", init="torch")
    vae = VAE((4,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(mlp), posterior=posterior(mlp))
    with torch.no_grad():  # away from the identity that flows start at
        for parameter in vae.posterior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vae, BITS


FLOWS = {
    "IAF": lambda n: posteriors.InverseAutoregressiveFlow(n, 3, 2, [5]),
    "coupling": lambda n: posteriors.CouplingFlow(n, 3, 2, [5]),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("objective", "same"), [(STL(2), ELBO(2)), (DReG(3), IWAE(3)), (VIMCO(3), IWAE(3))])
@pytest.mark.parametrize("name", FLOWS)
def test_unbiased_with_a_flow(name: str, objective: Any, same: Any) -> None:
    vae, x = flow(FLOWS[name])
    program = (vae.model, vae.guide)
    found, expected = (mean_gradient(program, vae, o, x, 200, 30, seed=i) for i, o in enumerate((objective, same)))
    assert_within_errors(found, expected)


def planar(n: Any) -> Any:
    return posteriors.PlanarFlow(n, 3, 2)


@pytest.mark.parametrize("objective", PATHWISE, ids=repr)
def test_a_planar_flow_is_refused_in_one_line(objective: Any) -> None:
    vae, x = flow(planar)
    message = (
        r"^the objective drops the score of q, and so scores a given z, which the posterior cannot [^\n]*CouplingFlow$"
    )
    with pytest.raises(ValueError, match=message):
        as_loss(objective)((vae.model, vae.guide), x)
    with torch.no_grad():  # its value needs no score
        assert as_loss(objective)((vae.model, vae.guide), x).loss.isfinite()


@pytest.mark.parametrize("objective", [REINFORCE(2, "leave_one_out"), VIMCO(3), RWS(3)], ids=repr)
def test_a_planar_flow_has_no_score_at_a_draw_without_a_path(objective: Any) -> None:
    vae, x = flow(planar)
    surrogate = as_loss(objective)((vae.model, vae.guide), x).surrogate
    assert surrogate is not None
    with pytest.raises(NotImplementedError, match=r"^this flow has no inverse, [^\n]*draw by rsample, or use a flow"):
        surrogate.backward()


# Plates, masks, scales


class Pixels(nn.Module):
    """A latent and a pixel for each place of a plate within the data's, or the same as events."""

    def __init__(self, as_event: bool) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.slope = nn.Parameter(torch.tensor([0.4, 0.1, -0.3]))
        self.scale = nn.Parameter(torch.tensor([0.7, 0.9, 0.5]))
        self.weight = nn.Parameter(torch.tensor([1.0, -0.5, 0.8]))
        self.as_event = as_event

    def _places(self) -> Any:
        return poutine.scale(scale=1.0) if self.as_event else pyro.plate("places", 3, dim=-2)

    def _lay(self, values: Tensor) -> Tensor:
        return values if self.as_event else values[:, None]

    def _of(self, distribution: Any) -> Any:
        return distribution.to_event(1) if self.as_event else distribution

    def model(self, x: Tensor) -> None:
        pyro.module("pixels", self)
        with pyro.plate("data", len(x), dim=-1), self._places():
            zero = torch.zeros(3) if self.as_event else torch.zeros(())
            z = pyro.sample("z", self._of(dist.Normal(zero, 1.0)))
            seen = x if self.as_event else x.T
            pyro.sample("x", self._of(dist.Normal(self._lay(self.weight) * z.tanh(), 0.6)), obs=seen)

    def guide(self, x: Tensor) -> None:
        pyro.module("pixels", self)
        with pyro.plate("data", len(x), dim=-1), self._places():
            seen = x if self.as_event else x.T
            loc = self._lay(self.loc) + self._lay(self.slope) * seen
            pyro.sample("z", self._of(dist.Normal(loc, self._lay(self.scale))))


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("kind", [ELBO, STL, IWAE, DReG, IWAESTL, RWSDReG, REINFORCE, RWS])
def test_a_nested_plate_is_an_event(kind: Any, k: int) -> None:
    """The same gradient, with a z of shape (K, 3, batch) in the place of (K, batch, 3)."""
    k = max(k, 2) if kind in (RWS, RWSDReG) else k  # of one particle these are refused
    x, objective = torch.randn(5, 3), kind(k)
    latents = getattr(objective, "latents", "pathwise")
    nested, event = Pixels(as_event=False), Pixels(as_event=True)
    torch.manual_seed(3)
    noise = torch.randn(k, 5, 3) if k > 1 else torch.randn(5, 3)
    found = []
    for pixels, eps in ((nested, noise.mT), (event, noise)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.distributions.normal._standard_normal", lambda shape, eps=eps, **_: eps.reshape(shape))
            patch.setattr("torch.normal", lambda loc, scale, eps=eps: loc + scale * eps)
            weights = sample_log_weights(
                pixels.model, pixels.guide, x, num_particles=k, max_plate_nesting=2, latents=latents
            )
        estimate = evaluate_objective(objective, weights)
        found.append((estimate.value, gradient_of(estimate.surrogate.sum(), pixels)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    assert_same(found[0][1], found[1][1])
    assert found[0][1]["weight"].abs().max() > 1e-3


SCALED = [
    ELBO(3),
    STL(3),
    IWAE(3),
    DReG(3),
    IWAESTL(3),
    Renyi(3, 0.5),
    MIWAE(4, 2),
    PIWAE(4, 2),
    REINFORCE(3, "leave_one_out"),
    VIMCO(3),
    RWS(3),
    RWSDReG(3),
    TVO(3),
]
every_scaled = pytest.mark.parametrize("objective", SCALED, ids=repr)


@every_scaled
def test_a_subsampled_plate_weighs_sums_and_not_log_weights(objective: Any) -> None:
    """N/B is outside of every logarithm: value and gradient of each datum are those without it."""
    chain, x = Chain(), BITS

    def subsampled(part: str) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with poutine.block(hide=["data"]), pyro.plate("data", 300, subsample=torch.arange(3), dim=-1):
                pyro.module("chain", chain)
                if part == "guide":
                    z1 = pyro.sample("z1", chain.q1(x))
                    pyro.sample("z2", chain.q2(z1))
                else:
                    z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                    pyro.sample("x", chain.p_x(pyro.sample("z1", chain.p1(z2))), obs=x)

        return run

    program = (subsampled("model"), subsampled("guide"))
    torch.manual_seed(11)
    scaled = as_loss(objective)(program, x)
    torch.manual_seed(11)
    plain = as_loss(objective)((chain.model, chain.guide), x)
    assert (scaled.weight, plain.weight) == (300.0, 3.0)
    torch.testing.assert_close(scaled.loss, 100 * plain.loss, rtol=1e-12, atol=0.0)
    expected = {name: 100 * g for name, g in gradient_of(plain.surrogate, chain).items()}
    assert_same(gradient_of(scaled.surrogate, chain), expected)


@every_scaled
def test_a_masked_datum_has_no_gradient(objective: Any) -> None:
    """Those of the others are what they are without it, at the same draws."""
    chain, keep = Chain(), torch.tensor([True, False, True])
    masked = tuple(poutine.mask(part, mask=keep) for part in (chain.model, chain.guide))
    torch.manual_seed(11)
    weights = sample_log_weights(
        *masked, BITS, num_particles=objective.num_particles, latents=getattr(objective, "latents", "pathwise")
    )
    found = evaluate_objective(objective, weights)
    gradient = gradient_of(found.surrogate.sum(), chain)
    torch.manual_seed(11)
    weights = sample_log_weights(
        chain.model,
        chain.guide,
        BITS,
        num_particles=objective.num_particles,
        latents=getattr(objective, "latents", "pathwise"),
    )
    plain = evaluate_objective(objective, weights)
    torch.testing.assert_close(found.value[keep], plain.value[keep], rtol=1e-12, atol=1e-12)
    assert found.value[1].abs() < 1e-12  # a weight of one
    assert_same(gradient, gradient_of(plain.surrogate[keep].sum(), chain))


# At the true posterior


def test_without_the_score_the_gradient_at_the_true_posterior_has_no_noise() -> None:
    """The encoder's of STL, DReG and IWAE-STL is zero draw by draw; that of ELBO and IWAE is zero on average alone."""
    exact = LinearGaussian.random(x_dim=5, latent_dim=2)
    exact.weight = torch.linalg.qr(exact.weight)[0] * torch.tensor([1.5, 0.6])  # W'W is diagonal
    exact.take_true_posterior()
    vae, x = exact.vae(), exact.sample(4)
    encoder = block(vae, "posterior")
    for objective in (STL(1), STL(3), DReG(3), IWAESTL(3), RWSDReG(3)):
        gradient = flat(gradient_at((vae.model, vae.guide), vae, objective, x))
        assert gradient[encoder].abs().max() < 1e-10
        assert gradient[~encoder].abs().max() > 0.1
    for objective in (ELBO(3), IWAE(3)):
        assert flat(gradient_at((vae.model, vae.guide), vae, objective, x))[encoder].abs().max() > 0.1
        found = part_of(mean_gradient((vae.model, vae.guide), vae, objective, x, 500), encoder)
        assert_within_errors(found, torch.zeros_like(found.mean))


# Used twice


@pytest.mark.parametrize("first", [DReG(3), RWSDReG(3), PIWAE(4, 2)], ids=repr)
@pytest.mark.parametrize("second", [ELBO(3), DReG(3), IWAE(3)], ids=repr)
def test_log_weights_whose_path_is_weighted_are_not_used_again(first: Any, second: Any) -> None:
    vae, x = vamp()
    weights = sample_log_weights(vae.model, vae.guide, x, num_particles=first.num_particles)
    assert not weights.spent
    evaluate_objective(first, weights)
    assert weights.spent
    with pytest.raises(ValueError, match=r"^[^\n]*sample new ones for each objective$"):
        evaluate_objective(second, weights)
    with torch.no_grad():
        assert evaluate_objective(second, weights).value.isfinite().all()


def test_log_weights_without_a_path_are_refused_where_it_is_weighed() -> None:
    vae, x = vamp()
    weights = replace(sample_log_weights(vae.model, vae.guide, x, num_particles=3), path=None)
    assert ELBO(3)(weights).surrogate.requires_grad
    with pytest.raises(ValueError, match="have no path to weigh: sample them with sample_log_weights"):
        DReG(3)(weights)


# Networks that learn or draw while they run


class Normalised(Chain):
    """The chain with batch normalisation and dropout in the guide; one in the model if asked."""

    def __init__(self, dropout: float = 0.0, momentum: float | None = 0.1, in_model: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=momentum)
        self.decoder_norm = nn.BatchNorm1d(4, momentum=momentum) if in_model else nn.Identity()
        self.drop = nn.Dropout(dropout)

    def q1(self, x: Tensor) -> Any:
        loc, log_scale = self.drop(self.norm(self.first(x))).chunk(2, -1)
        return dist.Normal(loc, (0.3 * log_scale).exp()).to_event(1)

    def p_x(self, z1: Tensor) -> Any:
        logits = self.decoder_norm(self.decoder(z1).reshape(-1, 4)).reshape(*z1.shape[:-1], 4)
        return dist.Bernoulli(logits=logits).to_event(1)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_scoring_a_guide_again_moves_no_running_statistics(momentum: float | None) -> None:
    """Nor do dreams: as many batches, and the same statistics, as under the ELBO at the same draws."""
    states = []
    for objective in (ELBO(3), STL(3), DReG(3), RWS(3, "both")):
        chain = Normalised(momentum=momentum, in_model=True)
        for seed in range(3):
            gradient_at((chain.model, chain.guide), chain, objective, BITS, seed)
        states.append({n: b.clone() for n, b in chain.named_buffers()})
        assert chain.norm.track_running_stats
    assert states[0]["norm.num_batches_tracked"] == states[0]["decoder_norm.num_batches_tracked"] == 3
    assert states[0]["norm.running_mean"].abs().max() > 0
    for state in states[1:]:
        for name, value in state.items():
            assert torch.equal(value, states[0][name]), name


def test_listing_states_moves_no_running_statistics() -> None:
    torch.manual_seed(2)
    vae = VAE(
        (4,),
        prior=priors.BernoulliVector(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([5])),
        posterior=posteriors.BernoulliVector(networks.MLP([5], batch_norm=True)),
    )
    gradient_at((vae.model, vae.guide), vae, EnumeratedELBO(), BITS)
    (norm,) = (m for m in vae.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.num_batches_tracked == 1


def test_a_module_that_fails_keeps_its_way_of_learning() -> None:
    chain = Normalised()
    weights = sample_log_weights(chain.model, chain.guide, BITS, num_particles=2)
    chain.drop = nn.Linear(3, 3)  # of another width
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        STL(2)(weights)
    assert chain.norm.track_running_stats


@pytest.mark.parametrize("objective", [STL(3), DReG(3), RWS(3, "both")], ids=repr)
def test_a_guide_that_is_scored_again_is_captured_bit_for_bit(objective: Any) -> None:
    ends = []
    for level in ("off", "graph"):
        pyro.clear_param_store()  # which knows modules by their names
        chain = Normalised(in_model=True)
        torch.manual_seed(0)
        optimizer = functools.partial(torch.optim.Adam, lr=1e-2)
        svi = SVI(chain.model, chain.guide, optimizer, objective, compile=level)
        losses = [svi.step(BITS) for _ in range(4)]
        assert level == "off" or svi.why_eager is None
        ends.append([torch.tensor(losses), *(v.clone() for v in chain.state_dict().values())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@every_pathwise
def test_a_guide_with_batch_normalisation_is_scored_as_it_drew(objective: Any) -> None:
    chain, x, k = Normalised(), BITS, objective.num_particles
    found = gradient_at((chain.model, chain.guide), chain, objective, x)
    z1, z2 = (z.reshape(k, 3, 2) for z in chain.draw(x, k))
    frozen = copy.deepcopy(chain).requires_grad_(False)
    log_w = frozen.log_p(x, z1, z2) - frozen.log_q(x, z1, z2)
    model, path = triple(objective, log_w)
    # the frozen copy normalises by the batch, through which no parameter of the guide's acts twice
    expected = gradient_of((model * chain.log_p(x, z1.detach(), z2.detach()) + path * log_w).sum(), chain)
    assert_same(found, expected)


@every_pathwise
def test_a_guide_with_dropout_runs(objective: Any) -> None:
    chain = Normalised(dropout=0.3)
    gradient = gradient_at((chain.model, chain.guide), chain, objective, BITS)
    assert all(g.isfinite().all() for g in gradient.values())


@pytest.mark.parametrize("objective", [STL(3), DReG(3)], ids=repr)
def test_one_site_with_dropout_is_scored_by_the_distribution_that_drew(objective: Any) -> None:
    """No second mask: the gradient is that of the same network with the mask that was drawn."""
    torch.manual_seed(2)
    mlp = functools.partial(networks.MLP, [7], activation="tanh", init="torch")
    vae = VAE(
        (4,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(mlp()),
        posterior=posteriors.DiagonalNormal(mlp(dropout=0.5)),
    )
    calls: list[Any] = []
    vae.posterior.register_forward_hook(lambda *_: calls.append(None))
    gradient_at((vae.model, vae.guide), vae, objective, BITS)
    assert len(calls) == 1


def test_dreams_reach_the_guide_through_the_arguments() -> None:
    """Sleep: data and labels that the model does not draw stay, what it draws is given to the guide."""
    chain = Chain()
    torch.manual_seed(11)
    weights = sample_log_weights(chain.model, chain.guide, BITS, num_particles=2, latents="detached")
    assert weights.again is not None
    torch.manual_seed(5)
    dream = weights.again.dream()
    torch.manual_seed(5)
    with torch.no_grad():
        z2 = torch.randn(3, 2)
        z1 = chain.p1(z2).sample()
        x = chain.p_x(z1).sample()
    torch.testing.assert_close(dream, chain.log_q(x, z1, z2), rtol=1e-12, atol=1e-12)

    def renamed(x: Tensor) -> None:
        chain.model(x + 0.0)

    with pytest.raises(ValueError, match=r"none of the program's arguments is what that site observes; pass it on"):
        as_loss(RWS(2, "sleep"))((renamed, chain.guide), BITS)


def test_the_bias_of_a_dropped_score_is_seen_with_a_flow() -> None:
    """What the tests of unbiasedness above would see: IWAE-STL is off by the wake phase."""
    vae, x = flow(FLOWS["coupling"])
    program = (vae.model, vae.guide)
    found, other = (mean_gradient(program, vae, o, x, 200, 30, seed=i) for i, o in enumerate((IWAESTL(3), IWAE(3))))
    assert distance(found, other) > 5
