"""The linear-Gaussian VAE (probabilistic PCA), for which everything is known in closed form.

p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), q(z|x) = N(A x + c, diag(std)^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_vae import VAE, likelihoods, posteriors, priors


@dataclass
class LinearGaussian:
    """The model with its exact answers; all tensors float64."""

    weight: Tensor  # (D, d)
    bias: Tensor  # (D,)
    scale: float
    encoder_weight: Tensor  # (d, D)
    encoder_bias: Tensor  # (d,)
    std: Tensor  # (d,)

    @classmethod
    def random(cls, x_dim: int = 5, latent_dim: int = 2, scale: float = 0.7, seed: int = 0) -> LinearGaussian:
        """A model with a posterior that is near the true one but not it."""
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        model = cls(draw(x_dim, latent_dim), draw(x_dim), scale, None, None, None)
        mean_map, covariance = model.posterior_map()
        model.encoder_weight = mean_map + 0.1 * draw(latent_dim, x_dim)
        model.encoder_bias = -mean_map @ model.bias + 0.1 * draw(latent_dim)
        model.std = 1.2 * covariance.diagonal().sqrt()
        return model

    def posterior_map(self) -> tuple[Tensor, Tensor]:
        """M and S of the true posterior N(M (x - b), S)."""
        d = self.weight.shape[1]
        precision = torch.eye(d, dtype=torch.float64) + self.weight.T @ self.weight / self.scale**2
        covariance = torch.linalg.inv(precision)
        return covariance @ self.weight.T / self.scale**2, covariance

    def take_true_posterior(self) -> LinearGaussian:
        """Give q the true posterior's mean and marginal standard deviations (it *is* it where W'W is diagonal)."""
        mean_map, covariance = self.posterior_map()
        self.encoder_weight, self.encoder_bias = mean_map, -mean_map @ self.bias
        self.std = covariance.diagonal().sqrt()
        return self

    def log_evidence(self, x: Tensor) -> Tensor:
        """The exact log p(x), (batch,)."""
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.bias), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x)

    def elbo(self, x: Tensor) -> Tensor:
        """The exact ELBO, (batch,)."""
        mean = x @ self.encoder_weight.T + self.encoder_bias
        squares = (x - mean @ self.weight.T - self.bias).square().sum(-1)
        spread = (self.weight.square() * self.std.square()).sum()
        log_lik = -0.5 * (squares + spread) / self.scale**2
        log_lik = log_lik - 0.5 * len(self.bias) * math.log(2 * math.pi * self.scale**2)
        kl = 0.5 * (mean.square() + self.std.square() - 1 - 2 * self.std.log()).sum(-1)
        return log_lik - kl

    def sample(self, n: int, seed: int = 1) -> Tensor:
        """Data from the model, (n, D)."""
        g = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.weight.shape[1], generator=g, dtype=torch.float64)
        noise = torch.randn(n, len(self.bias), generator=g, dtype=torch.float64)
        return z @ self.weight.T + self.bias + self.scale * noise

    def vae(self) -> VAE:
        """The same model as a VAE of this package, in float64."""
        x_dim, latent_dim = self.weight.shape
        decoder, encoder = nn.Linear(latent_dim, x_dim).double(), nn.Linear(x_dim, 2 * latent_dim).double()
        with torch.no_grad():
            decoder.weight.copy_(self.weight)
            decoder.bias.copy_(self.bias)
            encoder.weight.copy_(torch.cat([self.encoder_weight, torch.zeros_like(self.encoder_weight)]))
            encoder.bias.copy_(torch.cat([self.encoder_bias, 2 * self.std.log()]))
        vae = VAE(
            (x_dim,),
            prior=priors.StandardNormal(latent_dim).double(),
            likelihood=likelihoods.Normal(decoder, scale=self.scale),
            posterior=posteriors.DiagonalNormal(encoder, scale="log_var"),
        )
        return vae

    def parameters_of(self, vae: VAE) -> dict[str, Tensor]:
        """The VAE's gradients under this model's names, for a comparison with autograd through `elbo`."""
        decoder, encoder = vae.likelihood.mean.network, vae.posterior.mean_and_scale.network
        d = self.weight.shape[1]
        return {
            "weight": decoder.weight.grad,
            "bias": decoder.bias.grad,
            "encoder_weight": encoder.weight.grad[:d],
            "encoder_bias": encoder.bias.grad[:d],
        }
