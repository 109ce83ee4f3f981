r"""Hamiltonian transitions along a path from p(z) or q(z|x) to p(x, z), for many data and chains at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae._scopes import untouched_random_state
from ppl_vae.evidence.densities import Densities, check_region, log_density

_JITTER = 0.5  # steps of 0.5 to 1.5 times the given size: no orbit is periodic, and narrow modes accept some steps


@dataclass(frozen=True)
class Path:
    r"""The densities :math:`f_\beta = f_0^{1-\beta} f_1^\beta` from :math:`f_0`, p(z) or q(z|x), to p(x, z).

    Attributes:
        densities: The model.
        x: The data, (n, *x_shape).
        posterior: q(z|x) if the path starts there, None if it starts at p(z).
        scale: The standard deviations of the starting distribution, (n, d): the unit of step sizes.
    """

    densities: Densities
    x: Tensor
    posterior: Any
    scale: Tensor

    @classmethod
    def of(cls, densities: Densities, x: Tensor, start: str) -> Path:
        """Return the path from the ``"prior"`` or ``"posterior"``, after one check of the data's support."""
        with torch.no_grad():
            with untouched_random_state():
                q = densities.posterior(x)
                check_region(q, "annealed importance sampling")
                densities.log_likelihood(x, q.sample((1,)))
            with pyro.validation_enabled(False):
                path = cls(densities, x, densities.posterior(x) if start == "posterior" else None, torch.empty(0))
                return cls(densities, x, path.posterior, path.sample(256).std(0))

    def sample(self, num_chains: int) -> Tensor:
        """Draw the starting points of the chains, (C, n, d)."""
        if self.posterior is None:
            return self.densities.prior_sample(self.x, num_chains)
        return self.posterior.sample(torch.Size([num_chains]))

    def terms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\log f_0` and :math:`\log f_1 - \log f_0` at z (C, n, d), as (C, n) each."""
        log_prior, log_lik = self.densities.log_prior(self.x, z), self.densities.log_likelihood(self.x, z)
        if self.posterior is None:
            return log_prior, log_lik
        log_q = log_density(self.posterior, z)
        return log_q, log_prior + log_lik - log_q

    def gradient(self, z: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return :math:`\log f_\beta`, its gradient and :math:`\log f_1 - \log f_0` at z; the logs are float64."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            base, slope = self.terms(z)
            value = base.double() + beta * slope.double()
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient, slope.detach().double()


def transition(path: Path, z: Tensor, beta: float, step: Tensor, num_leapfrog: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Take one Hamiltonian step with a Metropolis test; it is reversible and leaves :math:`f_\beta` invariant.

    Both hold only if `step` does not depend on the present or past states of the chain.

    Args:
        path: The path.
        z: The states of the chains, (C, n, d).
        beta: The position on the path, in [0, 1].
        step: Step sizes, (n,), in units of ``path.scale``; each transition takes 0.5 to 1.5 times this size.
        num_leapfrog: Leapfrog steps.

    Returns:
        The next states of the chains, (C, n, d); :math:`\log f_1 - \log f_0` there, (C, n), float64; and the
        probability of acceptance, (C, n).

    Reference:
        MCMC Using Hamiltonian Dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901
    """
    jitter = 1 + _JITTER * (2 * torch.rand(z.shape[:2], dtype=z.dtype, device=z.device) - 1)
    epsilon = (jitter * step.to(z.dtype)).unsqueeze(-1) * path.scale  # (C, n, d)
    momentum = torch.randn_like(z)
    value, gradient, slope = path.gradient(z, beta)
    energy = 0.5 * momentum.double().square().sum(-1) - value
    z_next, slope_next = z, slope
    for _ in range(num_leapfrog):
        momentum = momentum + 0.5 * epsilon * gradient
        z_next = z_next + epsilon * momentum
        value, gradient, slope_next = path.gradient(z_next, beta)
        momentum = momentum + 0.5 * epsilon * gradient
    log_ratio = energy - (0.5 * momentum.double().square().sum(-1) - value)
    log_ratio = log_ratio.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # a step that diverged
    accepted = torch.rand_like(log_ratio).log() < log_ratio
    return (
        torch.where(accepted.unsqueeze(-1), z_next, z),
        torch.where(accepted, slope_next, slope),
        log_ratio.clamp_max(0).exp(),
    )
