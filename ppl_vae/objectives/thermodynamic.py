r"""The thermodynamic variational objective: a lower bound of log p(x) as an integral along a path from q to p."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae._validation import check_positive_int, is_real
from ppl_vae.objectives.estimate import Estimate, ManyParticles, owner
from ppl_vae.objectives.log_weights import LogWeights


@dataclass(frozen=True)
class TVO(ManyParticles):
    r"""The thermodynamic variational objective: a left Riemann sum of the thermodynamic integral.

    .. math::
        \log p(x) = \int_0^1 \mathbb E_{\pi_\beta}[\log w]\, d\beta \ \ge\
        \sum_{s=0}^{S-1} (\beta_{s+1} - \beta_s)\, \mathbb E_{\pi_{\beta_s}}[\log w], \qquad
        \pi_\beta \propto q(z|x)^{1-\beta} p(x, z)^\beta,

    where K draws of q with the normalised weights :math:`w^\beta` estimate the expectations. The first beta is 0; the
    others are log-spaced from `first` to 1. The integrand rises with beta, so the sum is a lower bound. With K draws
    its value is at most IWAE's, for every S. With one partition its value is the ELBO's. The default gradient is the
    paper's, which uses the covariance of the integrand f = log w and log pi under :math:`\pi_\beta`,

    .. math::
        \nabla \mathbb E_{\pi_\beta}[f] = \mathbb E_{\pi_\beta}[\nabla f]
        + \mathrm{Cov}_{\pi_\beta}[\nabla \log \tilde\pi_\beta, f],

    which needs no reparameterisation. It is **biased by order 1/K**, since the normalised weights and the covariance of
    K draws are. With ``pathwise`` the gradient is that of the value itself, through reparameterised latents, and it is
    unbiased for the K-draw bound.

    Args:
        num_particles: K.
        partitions: S.
        first: The first beta above 0.
        pathwise: Whether to differentiate through the draws.

    Raises:
        ValueError: If `first` is not in (0, 1), or if `pathwise` is set and a latent is not
            reparameterised.

    Reference:
        The Thermodynamic Variational Objective (Masrani et al., 2019), https://arxiv.org/abs/1907.00031

    Example:
        >>> [round(beta, 3) for beta in TVO(8, partitions=3).betas]
        [0.0, 0.1, 0.316, 1.0]
    """

    partitions: int = 5
    first: float = 0.1
    pathwise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_particles == 1 and not self.pathwise:
            raise ValueError(
                f"{owner(self)}: num_particles is 1, which has no covariance; expected at least 2, or pathwise=True"
            )
        check_positive_int(self.partitions, f"{owner(self)}: partitions")
        if not is_real(self.first) or not 0 < self.first < 1:
            raise ValueError(f"{owner(self)}: first is {self.first!r}; expected a beta between 0 and 1, such as 0.1")

    @property
    def latents(self) -> str:
        """How latents are drawn."""
        return "pathwise" if self.pathwise else "detached"

    @property
    def betas(self) -> list[float]:
        """The ends of the partitions, from 0 to 1."""
        steps = self.partitions - 1
        return [0.0, *(math.exp(math.log(self.first) * (1 - s / steps)) for s in range(steps)), 1.0]

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        if self.pathwise:
            log_weights.require_pathwise(self)
            value = self._terms(log_weights.log_w)[0]
            return Estimate(value.detach(), value, "lower")
        log_weights.require_detached(self)
        value, model, score = self._terms(log_weights.log_w.detach())
        return Estimate(value, log_weights.surrogate(model, score=score), "lower")

    def _terms(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum, (batch,), and the weights of the gradients of log p(x, z_k) and log q(z_k|x), (K, batch)."""
        betas = self.betas
        value = torch.zeros_like(log_w[0])
        model, score = torch.zeros_like(log_w), torch.zeros_like(log_w)
        for beta, end in itertools.pairwise(betas):
            weights = torch.full_like(log_w, 1 / len(log_w)) if beta == 0 else (beta * log_w).softmax(0)
            mean = torch.where(weights > 0, weights * log_w, 0.0).sum(0)
            value = value + (end - beta) * mean
            centred = torch.where(weights > 0, log_w - mean, 0.0)
            model = model + (end - beta) * weights * (1 + beta * centred)
            score = score + (end - beta) * weights * ((1 - beta) * centred - 1)
        return value, model, score
