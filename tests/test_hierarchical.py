"""The two-level prior and posterior, against products by hand and a linear-Gaussian model."""

from __future__ import annotations

import functools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import SVI, VAE, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.distributions.two_level import TwoBlocks
from ppl_vae.networks import MLP
from ppl_vae.objectives import sample_log_weights


@pytest.fixture
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def vae(**pieces: Any) -> VAE:
    given = {
        "prior": priors.TwoLevel(5, 2, MLP([7])),
        "likelihood": likelihoods.Bernoulli(MLP([9])),
        "posterior": posteriors.TwoLevel(2, MLP([9]), MLP([7])),
    }
    return VAE((6,), **{**given, **pieces})


@pytest.mark.usefixtures("float64")
def test_joint_density_is_the_product() -> None:
    program = vae()
    z = torch.randn(4, 3, 5)
    z1, z2 = z[..., :3], z[..., 3:]
    mean, raw = program.prior.mean_and_scale(z2)
    expected = dist.Normal(0.0, 1.0).log_prob(z2).sum(-1)
    expected = expected + dist.Normal(mean, nn.functional.softplus(raw) + 1e-5).log_prob(z1).sum(-1)
    torch.testing.assert_close(program.p_z().log_prob(z), expected, rtol=1e-12, atol=0.0)
    x = torch.randint(2, (3, 6)).double()
    mean, raw = program.posterior.mean_and_scale(x)
    expected = dist.Normal(mean, nn.functional.softplus(raw) + 1e-5).log_prob(z1).sum(-1)
    mean, raw = program.posterior.top_mean_and_scale(z1)
    expected = expected + dist.Normal(mean, nn.functional.softplus(raw) + 1e-5).log_prob(z2).sum(-1)
    torch.testing.assert_close(program.q_z(x).log_prob(z), expected, rtol=1e-12, atol=0.0)
    assert (program.q_z(x).batch_shape, program.q_z(x).event_shape) == ((3,), (5,))
    assert program.likelihood.logits.in_shape == (3,)


@pytest.mark.usefixtures("float64")
def test_total_mass_and_draws() -> None:
    prior = priors.TwoLevel(2, 1, MLP([5]))
    VAE((6,), prior=prior, likelihood=likelihoods.Bernoulli(MLP([9])), posterior=posteriors.DiagonalNormal(MLP([9])))
    p = prior()
    axis = torch.linspace(-12, 12, 601)
    z = torch.cartesian_prod(axis, axis)
    mass = p.log_prob(z).exp() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0), rtol=1e-6, atol=0.0)  # the grid's spacing
    draws = p.sample((40_000,))
    statistics = [lambda z: z[:, 0], lambda z: z[:, 1], lambda z: z[:, 0] * z[:, 1], lambda z: z[:, 0] ** 2]
    for statistic in statistics:
        values = statistic(draws)
        assert (values.mean() - (mass * statistic(z)).sum()).abs() < 5 * values.std() / 200


def test_expand_mask_and_leading_dimensions() -> None:
    program = vae()
    p = program.p_z().expand((4, 3))
    z = p.rsample((2,))
    assert z.shape == (2, 4, 3, 5)
    torch.testing.assert_close(p.log_prob(z.clone()), program.p_z().log_prob(z))  # not from the noise of the draw
    q = program.q_z(torch.zeros(3, 6)).expand((4, 3))
    assert q.rsample((2,)).shape == (2, 4, 3, 5)
    assert p.mask(torch.zeros(3, dtype=torch.bool)).log_prob(z).count_nonzero() == 0
    root = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(ValueError, match="within the support"):
        TwoBlocks(root, lambda z: root, 2, root_first=True, validate_args=True).log_prob(torch.full((4,), math.nan))


@pytest.mark.usefixtures("float64")
def test_the_path_through_the_first_level_survives() -> None:
    """Rescoring a z: the derivative by z1 has a share from q(z2|z1), and the draw of z2 one from q(z1|x)."""
    program = vae()
    q = program.q_z(torch.zeros(1, 6))
    z = torch.randn(1, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum(), z, retain_graph=True)
    z1, z2 = z[..., :3], z[..., 3:].detach()
    mean, raw = program.posterior.top_mean_and_scale(z1)
    top = dist.Normal(mean, nn.functional.softplus(raw) + 1e-5).log_prob(z2).sum()
    bottom = q.root.log_prob(z1).sum()
    (share,) = torch.autograd.grad(top, z, retain_graph=True)
    assert share[..., :3].abs().min() > 0
    torch.testing.assert_close(gradient[..., :3], (torch.autograd.grad(bottom, z)[0] + share)[..., :3])
    first = list(program.posterior.mean_and_scale.parameters())[-1]
    (by_first,) = torch.autograd.grad(q.rsample()[..., 3:].sum(), first)
    assert by_first.count_nonzero() > 0
    x = torch.randint(2, (4, 6)).double()
    objective = objectives.ELBO(3)(sample_log_weights(program.model, program.guide, x, num_particles=3))
    objective.surrogate.sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() > 0 for p in program.parameters())


class Affine(nn.Module):
    """A mean that is linear, and the raw scale that softplus turns into `std`."""

    def __init__(self, weight: Tensor, bias: Tensor, std: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.raw = nn.Parameter(torch.log(torch.expm1(std - 1e-5)))

    def forward(self, x: Tensor) -> Tensor:
        mean = x @ self.weight.T + self.bias
        return torch.cat([mean, self.raw.expand_as(mean)], -1)


class Mean(Affine):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@pytest.mark.usefixtures("float64")
def test_linear_gaussian_bound_is_tight_at_the_true_posterior() -> None:
    """z2 ~ N(0, 1), z1|z2 ~ N(a z2 + b, s^2), x|z1 ~ N(w z1 + c, t^2): p(z1|x) and p(z2|z1) are normal."""
    a, b, s, t = 0.8, 0.3, 0.6, 0.5
    w, c = torch.tensor([[1.2], [-0.7], [0.4]]), torch.tensor([0.1, 0.0, -0.2])
    v = a * a + s * s  # of z1
    precision = 1 / v + (w.T @ w).item() / t**2
    gain = w.T / t**2 / precision
    bottom = Affine(gain, b / v / precision - gain @ c, torch.tensor([precision**-0.5]))
    top = Affine(torch.tensor([[a / v]]), torch.tensor([-a * b / v]), torch.tensor([s / math.sqrt(v)]))
    program = VAE(
        (3,),
        prior=priors.TwoLevel(2, 1, Affine(torch.tensor([[a]]), torch.tensor([b]), torch.tensor([s]))),
        likelihood=likelihoods.Normal(Mean(w, c, torch.ones(3)), scale=t),
        posterior=posteriors.TwoLevel(1, bottom, top),
    )
    x = torch.randn(5, 3)
    covariance = v * w @ w.T + t**2 * torch.eye(3)
    log_p = dist.MultivariateNormal(w[:, 0] * b + c, covariance).log_prob(x)
    log_w = sample_log_weights(program.model, program.guide, x, num_particles=20).log_w
    torch.testing.assert_close(log_w, log_p.expand(20, 5), rtol=1e-9, atol=1e-9)  # the weights are constant
    with torch.no_grad():
        top.weight.mul_(0.5)
        bottom.raw.add_(0.3)
    elbo = sample_log_weights(program.model, program.guide, x, num_particles=4000).log_w
    assert (elbo.mean(0) + 5 * elbo.std(0) / math.sqrt(4000) < log_p).all()
    torch.testing.assert_close(elbo.logsumexp(0) - math.log(4000), log_p, rtol=0.0, atol=0.1)


def test_goes_with_other_real_pieces() -> None:
    x = torch.randint(2, (3, 6)).float()
    for pieces in ({"posterior": posteriors.DiagonalNormal(MLP([9]))}, {"prior": priors.StandardNormal(5)}):
        program = vae(**pieces)
        assert program.encode(x).shape == (3, 5)
        assert program.reconstruct(x).shape == program.sample(3).shape == (3, 6)
    assert vae().encode(x).shape == (3, 5)


def test_refusals() -> None:
    for prior in (lambda: priors.TwoLevel(2, 2), lambda: vae(posterior=posteriors.TwoLevel(5, MLP([9])))):
        with pytest.raises(ValueError, match=r"top_dim is . of a latent of . dimensions"):
            prior()


def test_captured_bit_for_bit() -> None:
    def steps(level: str) -> tuple[list[float], list[Tensor], str | None]:
        torch.manual_seed(0)
        pyro.clear_param_store()
        program = vae()
        optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
        svi = SVI(program.model, program.guide, optimizer, objectives.ELBO(2), compile=level)
        torch.manual_seed(1)
        x = torch.randint(2, (8, 6)).float()
        return [svi.step(x) for _ in range(4)], [p.detach().clone() for p in program.parameters()], svi.why_eager

    losses, parameters, why = steps("graph")
    expected_losses, expected, _ = steps("off")
    assert why is None
    assert losses == expected_losses
    assert all(torch.equal(p, other) for p, other in zip(parameters, expected, strict=True))


def test_in_a_conditional_model() -> None:
    program = VAE(
        (6,),
        prior=priors.TwoLevel(3, 1, MLP([7])),
        likelihood=likelihoods.Bernoulli(networks.MLP([9])),
        posterior=posteriors.TwoLevel(1, MLP([9]), MLP([7])),
        y_shape=(2,),
    )
    x, y = torch.zeros(4, 6), torch.eye(2)[[0, 1, 0, 1]]
    weights = sample_log_weights(program.model, program.guide, x, y, num_particles=3)
    assert weights.log_w.shape == (3, 4)
