"""Distributions of torch, of zuko and of a user's own class as pieces: the same numbers, and what Pyro asks of them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae.distributions.foreign import as_pyro
from ppl_vae.evidence import log_evidence
from ppl_vae.objectives.sampling import sample_log_weights

TORCH = [
    lambda: torch.distributions.Normal(torch.randn(3, 2), torch.rand(3, 2) + 0.1),
    lambda: torch.distributions.Independent(torch.distributions.Laplace(torch.randn(3, 2), torch.ones(3, 2)), 1),
    lambda: torch.distributions.MultivariateNormal(torch.randn(3, 2), torch.eye(2)),
    lambda: torch.distributions.Uniform(torch.zeros(3, 2), torch.ones(3, 2)),  # Pyro's has attributes of its own
    lambda: torch.distributions.Poisson(torch.rand(3, 2) + 1),
    lambda: torch.distributions.LogNormal(torch.randn(3, 2), torch.ones(3, 2)),
    lambda: torch.distributions.Bernoulli(torch.rand(3, 2)),
    lambda: torch.distributions.OneHotCategorical(torch.rand(3, 2) + 0.1),
    lambda: torch.distributions.Kumaraswamy(torch.rand(3, 2) + 1, torch.rand(3, 2) + 1),
    lambda: torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3, 4)), torch.distributions.Normal(torch.randn(3, 4), 1.0)
    ),
]


class Mine(torch.distributions.Distribution):
    """A user's own: a logistic."""

    arg_constraints: ClassVar = {"loc": constraints.real}
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mine:
        return type(self)(self.loc.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        u = torch.rand(*sample_shape, *self.loc.shape)
        return self.loc + u.log() - (-u).log1p()

    def log_prob(self, value: Tensor) -> Tensor:
        x = value - self.loc
        return -x - 2 * nn.functional.softplus(-x)


@pytest.fixture(scope="module")
def zuko() -> Any:
    pytest.importorskip("zuko", reason="zuko is not installed (the extra test has it)")
    return zoo.zuko()


@pytest.mark.parametrize("make", [*TORCH, lambda: Mine(torch.randn(3, 2))])
def test_a_torch_distribution_keeps_its_numbers(make) -> None:
    given = make()
    before = dict(vars(given)), type(given)
    own = as_pyro(given)
    assert (dict(vars(given)), type(given)) == before
    assert isinstance(own, dist.Distribution)
    assert isinstance(own, type(given))
    assert as_pyro(own) is own
    assert own.has_rsample == given.has_rsample
    assert (own.batch_shape, own.event_shape) == (given.batch_shape, given.event_shape)
    assert own.support.event_dim == len(own.event_shape)
    x = given.sample()
    assert torch.equal(own.log_prob(x), given.log_prob(x))
    wide = own.expand((4, *own.batch_shape))
    assert isinstance(wide, dist.Distribution)
    draws = wide.sample((2,))
    assert draws.shape == (2, 4, *given.batch_shape, *given.event_shape)
    assert torch.equal(wide.log_prob(draws), given.log_prob(draws))
    event = own.to_event(len(own.batch_shape))
    torch.testing.assert_close(event.log_prob(x), given.log_prob(x).sum(), rtol=1e-5, atol=1e-5)
    assert event.mask(False).log_prob(x) == 0
    pyro.sample("x", event)


def test_a_closed_kl_is_found() -> None:
    q, p = (torch.distributions.Independent(torch.distributions.Normal(torch.randn(3), 1.0), 1) for _ in range(2))
    assert kl_divergence(as_pyro(q), as_pyro(p)) == kl_divergence(q, p)


@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE", "GF", "BPF", "SOSPF", "NAF"])
def test_a_zuko_flow_keeps_its_numbers(zuko, name) -> None:
    flow = getattr(zuko.flows, name)(2, 3, transforms=2)
    given = flow(torch.randn(5, 3))
    own = as_pyro(given)
    assert (own.batch_shape, own.event_shape, own.has_rsample) == ((5,), (2,), True)
    assert own.support is constraints.real_vector or own.support.event_dim == 1
    torch.manual_seed(1)
    z = own.rsample()
    torch.manual_seed(1)
    assert torch.equal(z, given.rsample())
    assert torch.equal(own.log_prob(z), given.log_prob(z))
    assert own.expand((4, 5)).rsample((2,)).shape == (2, 4, 5, 2)
    one = torch.zeros(2)
    torch.testing.assert_close(own.log_prob(one), given.log_prob(one.expand(5, 2)))  # one value for all of the batch


def test_the_support_of_a_flow_is_what_its_base_allows(zuko) -> None:
    circular = as_pyro(zuko.flows.NCSF(2, transforms=1)())  # on a box, outside of which its density goes on
    assert circular.support is None
    mixture = as_pyro(zuko.mixtures.GMM(2, components=3)())
    assert not mixture.has_rsample
    assert mixture.support.event_dim == 1
    truncated = as_pyro(
        zuko.distributions.Truncated(torch.distributions.Normal(0.0, 1.0), torch.tensor(0.0), torch.tensor(1.0))
    )
    assert truncated.support is None  # it does not say, and its base would allow too much


def test_a_prior_flow_of_unknown_support_is_refused(zuko) -> None:
    with pytest.raises(ValueError, match="prior NormalizingFlow does not say its support"):
        pv.VAE(
            (4,),
            prior=zuko.flows.NCSF(2, transforms=1),
            likelihood=pv.likelihoods.Normal(),
            posterior=pv.posteriors.DiagonalNormal(),
        )


@pytest.mark.ci
def test_zuko_in_every_place_trains_and_has_an_exact_evidence(zuko) -> None:
    """A table's flows without a wrapper: prior() and posterior(x), likelihood(z) conditional."""
    torch.manual_seed(0)
    x = torch.randn(200, 1) @ torch.ones(1, 3) + 0.3 * torch.randn(200, 3)
    small = {"transforms": 1, "hidden_features": [16], "passes": 2}
    vae = pv.VAE(
        (3,),
        prior=zuko.flows.MAF(1, transforms=1, hidden_features=[16]),
        likelihood=zuko.flows.MAF(3, 1, **small),
        posterior=zuko.flows.MAF(1, 3, **small),
    )
    run = pv.fit(vae, x, epochs=40, batch_size=100, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), seed=0)
    assert run.why_eager is None
    assert run.history[-1]["elbo"] > run.history[0]["elbo"] + 1
    found = log_evidence(vae.cpu(), x[:20], tolerance=1e-5)
    assert found.method == "quadrature"
    grid = torch.linspace(-12, 12, 4001)[:, None]
    with torch.no_grad():
        log_joint = vae.p_z().log_prob(grid)[:, None] + vae.p_x(grid[:, None]).log_prob(x[:20])
    expected = log_joint.double().logsumexp(0) + math.log(24 / 4000)
    torch.testing.assert_close(found.log_evidence, expected, rtol=0, atol=1e-3)  # the grid's float32 sums
    assert vae.reconstruct(x[:5]).shape == (5, 3)  # a flow has no mean in closed form: of draws
    assert torch.equal(vae.reconstruct(x[:5]), vae.reconstruct(x[:5]))
    assert vae.sample(4, mean=False).shape == (4, 3)


class Conditional(nn.Module):
    """The few lines in which a conditional flow becomes a piece of a conditional model."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, y: Tensor) -> Any:
        return self.flow(y)


def test_a_conditional_flow_as_a_prior_given_the_label(zuko) -> None:
    vae = pv.VAE(
        (3,),
        prior=Conditional(zuko.flows.NSF(1, 4, transforms=1, hidden_features=[8])),
        likelihood=pv.likelihoods.Normal(),
        posterior=pv.posteriors.DiagonalNormal(),
        y_shape=(4,),
    )
    y = torch.tensor([0, 3])
    assert vae.p_z(y).batch_shape == (2,)
    assert vae.given(3).p_z().batch_shape == ()
    assert torch.isfinite(vae.score(torch.zeros(2, 3), y)).all()


def test_a_users_own_distribution_trains() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 4)

        def forward(self, z: Tensor) -> Any:
            return torch.distributions.Independent(Mine(self.net(z)), 1)

    vae = pv.VAE(
        (4,), prior=pv.priors.StandardNormal(2), likelihood=Decoder(), posterior=pv.posteriors.DiagonalNormal()
    )
    run = pv.fit(vae, 3 + torch.randn(64, 4), epochs=3, batch_size=32, seed=0)
    assert run.why_eager is None
    assert vae.check_support(run.data) is None
    assert vae.decode(torch.zeros(1, 2)).shape == (1, 4)  # `Mine` has no mean


class Bits(nn.Module):
    """Bits of torch's own, as a prior or around the outputs of a layer."""

    def __init__(self, inputs: int = 0) -> None:
        super().__init__()
        self.logits = nn.Linear(inputs, 2) if inputs else nn.Parameter(torch.tensor([0.3, -1.0]))

    def forward(self, *x):
        logits = self.logits(*x) if x else self.logits
        return torch.distributions.Independent(torch.distributions.Bernoulli(logits=logits), 1)


def test_bits_of_torch_are_prior_and_posterior():
    """Torch's KL of Bernoullis masks by the prior's shape, which the first look of `fit` gives the rows of a plate."""
    vae = pv.VAE((3,), prior=Bits(), likelihood=pv.likelihoods.Normal(pv.networks.MLP([4])), posterior=Bits(3))
    x = torch.randn(5, 3)
    run = pv.fit(vae, x, epochs=1, batch_size=5, objective=pv.objectives.REINFORCE(2), compile="off", device="cpu")
    assert math.isfinite(run.final["elbo"])
    found = sample_log_weights(vae.model, vae.guide, x, num_particles=2, latents="detached")
    q, p = torch.sigmoid(vae.posterior.logits(x)), torch.sigmoid(vae.prior.logits)
    kl = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum(-1)
    torch.testing.assert_close(found.analytic_kl(), kl.expand(2, 5), rtol=1e-5, atol=1e-6)  # of float32
