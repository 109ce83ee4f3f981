"""Continuous priors: densities, the mixture's start, and the VampPrior as the average of its posteriors."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from ppl_vae import SVI, VAE, data, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.distributions.box import BoxUniform
from ppl_vae.distributions.normal_mixture import NormalMixture


def vamp_vae(
    posterior: Any = None, dataset: Any = (4,), hidden: Any = None, y_shape: Any = None, **arguments: Any
) -> VAE:
    return VAE(
        dataset,
        prior=priors.VampPrior(2, **{"num_components": 7, **arguments}),
        likelihood=likelihoods.Bernoulli(hidden or networks.MLP([6])),
        posterior=posterior or posteriors.DiagonalNormal(hidden or networks.MLP([6])),
        y_shape=y_shape,
    )


# Densities with parameters of their own


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (lambda: priors.Laplace(3, scale=0.7), scipy.stats.laplace(scale=0.7)),
        (lambda: priors.StudentT(3, df=2.5, scale=0.7), scipy.stats.t(2.5, scale=0.7)),
        (lambda: priors.StudentT(3, df=1e7), scipy.stats.norm()),
        (lambda: priors.Uniform(3, -2.0, 5.0), scipy.stats.uniform(-2, 7)),
        (lambda: priors.DiagonalNormal(3), scipy.stats.norm()),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_densities_are_scipys(prior: Callable[[], nn.Module], expected: Any, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    made = prior()
    assert made.latent_dim == 3
    z = torch.tensor([[-1.5, 0.0, 1.0], [2.0, -0.3, 4.0]])
    log_p = made().log_prob(z)
    exact = torch.tensor(expected.logpdf(z.double().numpy()).sum(-1))
    limit = 1e-5 if expected.dist.name == "norm" and isinstance(made, priors.StudentT) else 0  # z^4 / df of a limit
    rtol = 1e-6 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(log_p.double(), exact, rtol=max(rtol, limit), atol=0.0)


def test_student_t_far_out_in_float32() -> None:
    prior = priors.StudentT(2, df=3.0)
    z = torch.tensor([[0.0, 1e30], [1e-30, 1e4], [0.0, 0.0]], requires_grad=True)
    log_p = prior().log_prob(z)
    exact = scipy.stats.t(3).logpdf(z.detach().double().numpy()).sum(-1)
    torch.testing.assert_close(log_p.double(), torch.tensor(exact), rtol=1e-6, atol=0.0)
    log_p.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_the_uniform_box_includes_its_ends() -> None:
    box = BoxUniform(torch.tensor(1.0), torch.tensor(2.0))
    assert box.log_prob(torch.tensor([1.0, 2.0])).tolist() == [0.0, 0.0]
    assert dist.Uniform(1.0, 2.0).log_prob(torch.tensor(2.0)) == -math.inf, "why there is one of our own"
    unchecked = BoxUniform(torch.tensor(1.0), torch.tensor(2.0), validate_args=False)
    assert unchecked.log_prob(torch.tensor([0.9, 2.1])).tolist() == [-math.inf, -math.inf]
    assert box.expand((3,)).log_prob(torch.tensor(2.0)).shape == (3,)


@pytest.mark.parametrize("latent_dim", [1, 2, 40])
def test_the_mixture_starts_about_as_the_standard_normal(latent_dim: int) -> None:
    prior = priors.MixtureOfNormals(latent_dim, num_components=1000)
    p_z = prior()
    scale = math.sqrt(latent_dim / (latent_dim + 2))
    torch.testing.assert_close(p_z.scale, torch.full_like(p_z.scale, scale), rtol=1e-5, atol=0.0)
    # of 1000 random means: their own spread
    assert (p_z.mean.abs() < 5 / math.sqrt(1000)).all()
    assert ((p_z.variance - 1).abs() < 5 * math.sqrt(2 / 1000)).all()
    distance = (p_z.loc[::2] - p_z.loc[1::2]).square().sum(-1).mean().sqrt() / scale
    assert 1.8 < distance < 2.2


def test_a_learned_prior_takes_the_shape_of_its_latents() -> None:
    """Two far clusters of fixed latents: maximum likelihood finds their means, scales and weights."""
    prior = priors.MixtureOfNormals(1, num_components=2)
    z = torch.cat([0.2 * torch.randn(300, 1) - 2, 0.5 * torch.randn(100, 1) + 2])
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        loss = -prior().log_prob(z).mean()
        loss.backward()
        optimizer.step()
    p_z = prior()
    order = p_z.loc[:, 0].argsort()
    assert p_z.loc[order, 0].tolist() == pytest.approx([-2, 2], abs=0.2)
    assert p_z.scale[order, 0].tolist() == pytest.approx([0.2, 0.5], abs=0.1)
    assert p_z.logits.exp()[order].tolist() == pytest.approx([0.75, 0.25], abs=0.01)


# VampPrior


@pytest.mark.parametrize("learn_weights", [False, True])
@pytest.mark.parametrize(
    "make",
    [posteriors.DiagonalNormal, posteriors.FullCovarianceNormal, posteriors.Laplace, posteriors.MixtureOfNormals],
)
def test_vamp_is_the_average_of_its_posteriors(make: Callable[..., Any], learn_weights: bool) -> None:
    torch.set_default_dtype(torch.float64)
    vae = vamp_vae(make(networks.MLP([6])), learn_weights=learn_weights)
    if learn_weights:
        with torch.no_grad():
            vae.prior.logits.normal_()
    z = 2 * torch.randn(3, 5, 2)
    inputs = vae.prior.pseudo_inputs()
    weights = vae.prior.logits.softmax(-1) if learn_weights else torch.full((7,), 1 / 7)
    each = [w * vae.posterior(u[None]).log_prob(z).exp() for w, u in zip(weights, inputs, strict=True)]
    torch.testing.assert_close(vae.p_z().log_prob(z), sum(each).log(), rtol=1e-10, atol=1e-10)


def test_vamp_samples_are_those_of_its_posteriors() -> None:
    vae = vamp_vae(posteriors.DiagonalNormal(networks.MLP([6])), learn_weights=True)
    with torch.no_grad():
        vae.prior.logits.normal_()
        vae.prior.raw_inputs.mul_(3)
        p_z, q = vae.p_z(), vae.q_z(vae.prior.pseudo_inputs())
        weights = vae.prior.logits.softmax(-1)[:, None]
        z = p_z.sample((20_000,))
    mean = (weights * q.mean).sum(0)
    variance = (weights * (q.variance + q.mean.square())).sum(0) - mean.square()
    assert ((z.mean(0) - mean).abs() < 5 * z.std(0) / math.sqrt(len(z))).all()
    squares = (z - mean).square()
    assert ((squares.mean(0) - variance).abs() < 5 * squares.std(0) / math.sqrt(len(z))).all()


def test_vamp_adds_its_pseudo_inputs_alone_to_the_parameters() -> None:
    vae = vamp_vae()
    names = [name for name, _ in vae.named_parameters(remove_duplicate=False)]
    assert [name for name in names if name.startswith("prior")] == ["prior.raw_inputs"]
    assert len({id(p) for p in vae.parameters()}) == len(names)
    assert [name for name in vae.state_dict() if name.startswith("prior")] == ["prior.raw_inputs"]


def test_gradients_of_the_vamp_prior_reach_encoder_and_pseudo_inputs() -> None:
    vae = vamp_vae()
    vae.p_z().log_prob(torch.randn(5, 2)).sum().backward()
    for parameter in (vae.prior.raw_inputs, *vae.posterior.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() > 0
    assert all(p.grad is None for p in vae.likelihood.parameters())


def pickled(vae: VAE) -> VAE:
    return pickle.loads(pickle.dumps(vae))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_s_vamp_prior_follows_the_copy_s_posterior(duplicate: Callable[[VAE], VAE]) -> None:
    vae = vamp_vae()
    other = duplicate(vae)
    z = torch.randn(5, 2)
    before = vae.p_z().log_prob(z)
    assert torch.equal(other.p_z().log_prob(z), before)
    with torch.no_grad():
        for parameter in other.posterior.parameters():
            parameter.add_(0.1)
    assert not torch.equal(other.p_z().log_prob(z), before)
    assert torch.equal(vae.p_z().log_prob(z), before)
    fresh = vamp_vae()
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh.p_z().log_prob(z), other.p_z().log_prob(z))


def test_vamp_moves_to_float64_and_back_from_a_file() -> None:
    vae = vamp_vae(learn_weights=True).double()
    assert vae.p_z().sample().dtype == torch.float64
    file = io.BytesIO()
    torch.save(vae.state_dict(), file)
    file.seek(0)
    other = vamp_vae(learn_weights=True).double()
    other.load_state_dict(torch.load(file, weights_only=True))
    z = torch.randn(5, 2).double()
    assert torch.equal(other.p_z().log_prob(z), vae.p_z().log_prob(z))


def test_pseudo_inputs_leave_batch_statistics_alone() -> None:
    vae = vamp_vae(hidden=networks.MLP([6], batch_norm=True))
    statistics = {n: b.clone() for n, b in vae.posterior.named_buffers()}
    assert statistics
    assert vae.posterior.training
    for _ in range(3):
        vae.p_z()
    assert vae.posterior.training
    assert all(torch.equal(b, statistics[n]) for n, b in vae.posterior.named_buffers())
    x = torch.randint(2, (8, 4)).float()
    svi = SVI(vae.model, vae.guide, torch.optim.Adam, objectives.ELBO())
    svi.step(x)
    counts = [b for n, b in vae.posterior.named_buffers() if n.endswith("num_batches_tracked")]
    assert [int(count) for count in counts] == [1], "the data are seen once a step, the pseudo-inputs never"


def test_dropout_is_off_in_the_prior() -> None:
    encoder = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 4))
    vae = vamp_vae(posteriors.DiagonalNormal(encoder))
    z = torch.randn(5, 2)
    assert torch.equal(vae.p_z().log_prob(z), vae.p_z().log_prob(z))
    x = torch.randn(5, 4)
    assert not torch.equal(vae.q_z(x).mean, vae.q_z(x).mean), "and on in the posterior"


def test_training_moves_the_pseudo_inputs_and_keeps_them_in_their_bounds() -> None:
    vae = vamp_vae(low=0.0, high=1.0)
    before = vae.prior.pseudo_inputs().detach().clone()
    x = torch.randint(2, (32, 4)).float()
    svi = SVI(vae.model, vae.guide, lambda parameters: torch.optim.Adam(parameters, lr=0.3), objectives.ELBO())
    for _ in range(20):
        svi.step(x)
    after = vae.prior.pseudo_inputs().detach()
    assert ((after - before).abs() > 0.01).any(-1).all()
    assert ((after >= 0) & (after <= 1)).all()


def test_pseudo_inputs_start_from_data() -> None:
    digits = data.load("digits", binarize="threshold")
    rows = {tuple(row.flatten().tolist()) for row in digits.train.x}
    free = vamp_vae(dataset=digits, start="data").prior.pseudo_inputs().detach()
    assert all(tuple(u.flatten().tolist()) in rows for u in free)
    bounded = vamp_vae(dataset=digits, start="data", low=0.0, high=1.0).prior.pseudo_inputs().detach()
    assert all(tuple(u.round().flatten().tolist()) in rows for u in bounded)
    torch.testing.assert_close((bounded - bounded.round()).abs(), torch.full_like(bounded, 0.01))


def test_a_conditional_posterior_gets_learned_pseudo_labels() -> None:
    vae = vamp_vae(y_shape=(3,))
    assert vae.prior.raw_labels.shape == (7, 3)
    vae.prior().log_prob(torch.randn(5, 2)).sum().backward()
    assert vae.prior.raw_labels.grad.count_nonzero() > 0
    x, y = torch.randint(2, (5, 4)).float(), torch.tensor([0, 1, 2, 0, 1])
    assert vae.q_z(x, y).batch_shape == (5,)
    labels = vae.prior.raw_labels.softmax(-1)
    z = torch.randn(6, 2)
    each = [vae.q_z(u[None], label[None]).log_prob(z).exp() for u, label in zip(vae.prior.pseudo_inputs(), labels)]  # noqa: B905
    torch.testing.assert_close(vae.prior().log_prob(z), (sum(each) / 7).log(), rtol=1e-5, atol=1e-5)


class Unscored(dist.Normal):
    """A density that knows only what it drew, as that of a planar flow does."""

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError("no inverse")


class Foreign(nn.Module):
    """A posterior of the user's own, which takes no part in binding."""

    def __init__(self, family: Any = dist.Normal, event: int = 1) -> None:
        super().__init__()
        self.net, self.family, self.event = nn.Linear(4, 2), family, event

    def forward(self, x: Tensor) -> Any:
        return self.family(self.net(x), 1.0).to_event(self.event)


def test_a_foreign_posterior_serves_the_vamp_prior() -> None:
    vae = vamp_vae(Foreign())
    assert isinstance(vae.p_z(), NormalMixture)
    z = torch.randn(3, 2)
    expected = vae.posterior(vae.prior.pseudo_inputs()).log_prob(z[:, None]).logsumexp(-1) - math.log(7)
    torch.testing.assert_close(vae.p_z().log_prob(z), expected, rtol=1e-6, atol=1e-6)


def test_vamp_refuses_what_it_cannot_work_with() -> None:
    with pytest.raises(ValueError, match="posterior Unscored cannot be evaluated at a z that it did not draw"):
        vamp_vae(Foreign(Unscored))
    with pytest.raises(ValueError, match=r"posterior Normal has batch and event shapes \(\(7, 2\), \(\)\)"):
        vamp_vae(Foreign(event=0))
    with pytest.raises(ValueError, match="prior VampPrior starts from the training data, and the VAE was made from"):
        vamp_vae(start="data")
    prior = priors.VampPrior(2)
    with pytest.raises(RuntimeError, match="VampPrior has no pseudo-inputs yet: put it into a VAE"):
        prior()
    used = vamp_vae().prior
    with pytest.raises(ValueError, match="already belongs to a VAE"):
        VAE((4,), prior=used, likelihood=likelihoods.Bernoulli(), posterior=posteriors.DiagonalNormal())


def test_vamp_at_500_components_is_exact_in_float32() -> None:
    """Squares are expanded for speed: nothing is lost by it."""
    torch.set_default_dtype(torch.float64)
    loc, scale = 3 * torch.randn(500, 40), 0.01 + torch.rand(500, 40)
    z = loc[:50] + scale[:50] * torch.randn(50, 40)
    loc, scale, z = loc.float(), scale.float(), z.float()
    single = NormalMixture(torch.zeros(500).float(), loc, scale).log_prob(z)
    wide = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(500)), dist.Normal(loc.double(), scale.double()).to_event(1)
    ).log_prob(z.double())
    torch.testing.assert_close(single.double(), wide, rtol=3e-7, atol=1e-6)


# Arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.DiagonalNormal(0), "DiagonalNormal: latent_dim is 0"),
        (lambda: priors.Laplace(2, scale=0.0), "Laplace: scale is 0.0"),
        (lambda: priors.StudentT(2, df=-1.0), "StudentT: df is -1.0"),
        (lambda: priors.StudentT(2, scale=math.inf), "StudentT: scale is inf"),
        (lambda: priors.Uniform(2, 1.0, -1.0), "Uniform: low is 1.0 and high is -1.0; expected two finite numbers"),
        (lambda: priors.MixtureOfNormals(2, 0), "MixtureOfNormals: num_components is 0"),
        (lambda: priors.MixtureOfNormals(2, floor=0.5), "MixtureOfNormals: floor is 0.5; expected less than 0.5"),
        (lambda: priors.VampPrior(2, -3), "VampPrior: num_components is -3"),
        (lambda: priors.VampPrior(2, start="dada"), r"VampPrior: start is 'dada'.*did you mean data"),
        (lambda: priors.VampPrior(2, low=0.0), "VampPrior: low is 0.0 and high is None; expected both bounds"),
        (lambda: priors.VampPrior(2, low=1.0, high=0.0), "VampPrior: low is 1.0 and high is 0.0; expected two finite"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_pyros_own_engine_trains_the_vamp_prior() -> None:
    vae = vamp_vae()
    before = vae.prior.pseudo_inputs().detach().clone()
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    svi.step(torch.randint(2, (8, 4)).float())
    assert (vae.prior.pseudo_inputs() != before).any()


@pytest.mark.parametrize("bound", [True, False])
def test_a_pickle_that_holds_the_posterior_bare_is_read(bound):
    """As VAEs that were pickled whole by earlier versions do."""
    vae = vamp_vae()
    state = vae.prior.__dict__ | {"_posterior": vae.posterior if bound else None}
    again = priors.VampPrior.__new__(priors.VampPrior)
    again.__setstate__(state)
    assert again._posterior == ((vae.posterior,) if bound else ())
    if bound:
        z = torch.randn(3, 2)
        assert torch.equal(again().log_prob(z), vae.prior().log_prob(z))
