"""The program against exact answers: linear-Gaussian, quadrature in two dimensions, scikit-learn's PCA."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from ppl_vae import VAE, closed_form, data, fit, likelihoods, networks, posteriors, priors
from ppl_vae.objectives import ELBO, ArticleELBO, MeanFieldELBO, as_loss, sample_log_weights

OBJECTIVES = {
    "sampled": ELBO(num_particles=500),
    "analytic": MeanFieldELBO(num_particles=500),
    "article": ArticleELBO(num_particles=500, eps=0.0, normalize=True),
}


def mean_and_error(replicates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over dim 0 and its standard error."""
    return replicates.mean(0), replicates.std(0) / math.sqrt(len(replicates))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_elbo_of_the_linear_gaussian_model_is_the_exact_one(name):
    exact = LinearGaussian.random()
    x = exact.sample(6)
    vae = exact.vae()
    replicates = torch.stack(
        [OBJECTIVES[name](sample_log_weights(vae.model, vae.guide, x, num_particles=500)).value for _ in range(40)]
    )
    mean, error = mean_and_error(replicates)
    assert (error > 0).all()
    assert ((mean - exact.elbo(x)).abs() < 5 * error).all()
    assert (exact.elbo(x) < exact.log_evidence(x)).all()


@pytest.mark.parametrize(
    "objective", [*OBJECTIVES.values(), Trace_ELBO(200, vectorize_particles=True, max_plate_nesting=1)]
)
def test_gradient_of_the_linear_gaussian_elbo_is_the_exact_one(objective):
    exact = LinearGaussian.random()
    x = exact.sample(6)
    vae, loss = exact.vae(), as_loss(objective)
    names = ("weight", "bias", "encoder_weight", "encoder_bias")
    for name in names:
        getattr(exact, name).requires_grad_()
    exact.elbo(x).sum().backward()
    replicates: dict[str, list[Tensor]] = {name: [] for name in names}
    for _ in range(40):
        vae.zero_grad()
        loss((vae.model, vae.guide), x).surrogate.backward()
        for name, gradient in exact.parameters_of(vae).items():
            replicates[name].append(-gradient.clone())
    for name in names:
        mean, error = mean_and_error(torch.stack(replicates[name]))
        assert ((mean - getattr(exact, name).grad).abs() < 5 * error).all(), name


def test_at_the_true_posterior_every_weight_is_the_evidence():
    exact = LinearGaussian.random(x_dim=5, latent_dim=2)
    exact.weight = torch.linalg.qr(exact.weight)[0] * torch.tensor([1.5, 0.6], dtype=torch.float64)  # W'W is diagonal
    exact.take_true_posterior()
    x = exact.sample(4)
    vae = exact.vae()
    log_w = sample_log_weights(vae.model, vae.guide, x, num_particles=7).log_w
    torch.testing.assert_close(log_w, exact.log_evidence(x).expand(7, 4), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(exact.elbo(x), exact.log_evidence(x), rtol=1e-10, atol=1e-10)


@pytest.mark.ci
def test_evidence_is_elbo_plus_kl_to_the_true_posterior():
    """Evidence and KL(q || p(z|x)) by quadrature on a grid; the ELBO off it: analytic KL, Gauss-Hermite under q."""
    torch.manual_seed(3)
    x = (torch.rand(8, 16) > 0.5).double()
    vae = VAE(
        (16,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([32], activation="tanh")),
        posterior=posteriors.DiagonalNormal(networks.MLP([32], activation="tanh"), scale="softplus"),
    )
    fit(vae, x.float(), epochs=60, batch_size=8, seed=0)
    vae.cpu().double()
    with torch.no_grad():
        q = vae.posterior(x)

        def log_joint(z: Tensor) -> Tensor:  # z of shape (n, 2) or (n, 8, 2) -> (n, 8)
            z = z.unsqueeze(1).expand(-1, 8, 2) if z.dim() == 2 else z
            return vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z)

        axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
        assert (q.base_dist.scale > 2 * (axis[1] - axis[0])).all()  # the grid resolves q
        z = torch.cartesian_prod(axis, axis)
        log_cell = 2 * (axis[1] - axis[0]).log()
        log_p = torch.cat([log_joint(part) for part in z.split(20_000)])  # (n, 8)
        log_evidence = torch.logsumexp(log_p + log_cell, 0)
        log_q = q.log_prob(z.unsqueeze(1))
        gap = ((log_q + log_cell).exp() * (log_q - log_p + log_evidence)).sum(0)

        def elbo_with(num_nodes: int) -> Tensor:
            nodes, node_weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(num_nodes))
            standard = torch.cartesian_prod(nodes, nodes)
            weights = torch.cartesian_prod(node_weights, node_weights).prod(1) / (2 * math.pi)
            z_q = q.base_dist.loc + q.base_dist.scale * standard.unsqueeze(1)  # (nodes^2, 8, 2)
            log_lik = (weights[:, None] * vae.likelihood(z_q).log_prob(x)).sum(0)
            return log_lik - closed_form.kl_std(q.base_dist.loc, q.base_dist.scale)

        elbo = elbo_with(100)
        error = (elbo - elbo_with(70)).abs().max()  # tanh has poles near the real axis: convergence is geometric
    assert (gap > 1e-3).all()  # q is not the true posterior, so the identity is not trivial
    assert error < 1e-6
    # 1e-6 for the ELBO, and as much for the grid, whose spacing is below half a standard deviation of everything
    torch.testing.assert_close(log_evidence, elbo + gap, rtol=0, atol=2e-6)
    objective = ELBO(num_particles=200)
    replicates = torch.stack(
        [objective(sample_log_weights(vae.model, vae.guide, x, num_particles=200)).value for _ in range(50)]
    )
    mean, error = mean_and_error(replicates)
    assert ((mean - elbo).abs() < 5 * error).all()


@pytest.mark.ci
def test_linear_vae_reaches_the_likelihood_of_probabilistic_pca():
    """At scale sqrt(noise_variance_), the best ELBO of a linear VAE is PCA's log-likelihood (Lucas et al., 2019)."""
    from sklearn.decomposition import PCA

    digits = data.load("digits", binarize="none", validation=0, test=1)
    x = digits.train.x.flatten(1)
    pca = PCA(n_components=2).fit(x.numpy())
    target = pca.score(x.numpy())
    linear = networks.MLP([], init="torch")
    torch.manual_seed(0)
    vae = VAE(
        (64,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(linear, scale=math.sqrt(pca.noise_variance_)),
        posterior=posteriors.DiagonalNormal(linear, scale="log_var"),
    )
    adam = functools.partial(torch.optim.Adam, lr=0.03)
    decay = functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: min(1.0, 2 - epoch / 50))
    fit(vae, x, objective=MeanFieldELBO(), epochs=100, optimizer=adam, scheduler=decay, seed=0)
    vae.cpu()
    decoder, encoder = vae.likelihood.mean.network[0], vae.posterior.mean_and_scale.network[0]
    assert isinstance(decoder, nn.Linear)
    with torch.no_grad():
        q = vae.posterior(x).base_dist
        w, scale = decoder.weight, vae.likelihood.scale
        squares = (x - decoder(q.loc)).square().sum(1) + (q.scale.square() @ w.square().T).sum(1)
        log_lik = -0.5 * squares / scale**2 - 32 * math.log(2 * math.pi * scale**2)  # exact: no noise left
        elbo = (log_lik - closed_form.kl_std(q.loc, q.scale)).mean().item()
    assert encoder.weight.shape == (4, 64)
    assert elbo < target
    assert target - elbo < 0.1
