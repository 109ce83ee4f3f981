r"""IWAE's bound with doubly reparameterised gradients of q and of normal priors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from ppl_vae._distributions import describe, unwrapped
from ppl_vae.distributions.chain import Chain
from ppl_vae.objectives.estimate import Estimate, owner
from ppl_vae.objectives.importance import DReG
from ppl_vae.objectives.log_weights import LogWeights

_ALIKE = 1e-2  # nats: what rounding changes in most densities of a batch


@dataclass(frozen=True)
class GDReG(DReG):
    r"""IWAE's bound with the doubly reparameterised gradient of q and of normal priors (generalised DReG).

    For a latent z with the prior p(z) = N(mu, sigma^2), of parameters theta, which may depend on other latents,

    .. math::
        \nabla_\theta \mathcal L_K = \mathbb E\Big[\sum_k \Big(
        \tilde w_k\, \frac{\partial (\log p(x, z_k) - \log p(z_k))}{\partial z_k}
        - \tilde w_k^2\, \frac{\partial \log w_k}{\partial z_k}\Big)\,
        \nabla_\theta (\mu + \sigma \tilde\epsilon_k)\Big], \qquad \tilde\epsilon_k = \frac{z_k - \mu}{\sigma}
        \ \text{held fixed}.

    This is in place of :math:`\sum_k \tilde w_k \nabla_\theta \log p(z_k)`, the prior's gradient in `DReG`. For q the
    gradient is DReG's, for the likelihood IWAE's. It follows from :math:`\mathbb E_q[g\, \nabla_\theta \log p(z)] =
    \mathbb E_q[(g' + g\, (\log q - \log p(z))')\, \nabla_\theta z(\tilde\epsilon)]`, with the derivatives by z at fixed
    values of the other latents. It is **unbiased** for the gradient of `IWAE` in all parameters.

    **It need not have less variance.** At the true posterior the second term is zero and the first is not: its noise is
    that of the likelihood's slope, in place of that of the prior's score. It pays where the posterior is near the
    prior, as at unused levels of a hierarchy; where the likelihood is flat the prior's gradient has no noise at all. It
    loses where the likelihood is sharp: at the true posterior of a linear-Gaussian model the noise of the prior's
    gradient is less than a fifth of that of `DReG` at a likelihood of scale 10, and more than five times it at 0.1. It
    runs q and p once more, so it costs up to twice `DReG`.

    Args:
        num_particles: K.

    Raises:
        ValueError: If a prior is not a diagonal normal, nor a `priors.Ladder` of such, if a latent is not
            reparameterised, if q does not score a given z, or if q has dropout (looked at under Pyro's validation).

    Reference:
        Generalized Doubly Reparameterized Gradient Estimators (Bauer & Mnih, 2021), https://arxiv.org/abs/2101.11046

    Example:
        >>> GDReG(8).reference
        IWAE(num_particles=8)
    """

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        estimate = super().__call__(log_weights)
        if not torch.is_grad_enabled():
            return estimate
        if log_weights.again is None:
            raise ValueError(f"{owner(self)}: the program runs once more, and was given log-weights alone")
        z = {name: value.detach().requires_grad_() for name, value in log_weights.z.items()}
        fixed = log_weights.again.at(z)
        if is_validation_enabled():  # as on a first batch: reading values makes the CPU wait for the GPU
            change = (fixed.joint_log_q - log_weights.joint_log_q).detach().abs().median()
            if change > _ALIKE:
                raise ValueError(
                    f"{owner(self)} runs q again at the same z, and log q changes by {change:.2g}; expected a q that "
                    "is not random itself: use it without dropout, or DReG"
                )
        weights = fixed.normalized
        total = (weights * fixed.log_p - weights.square() * fixed.log_w).sum()
        slopes = dict(zip(z, torch.autograd.grad(total, list(z.values()), retain_graph=True), strict=True))
        terms = [self._of_site(fixed, name, weights, slopes[name]) for name in fixed.prior]
        return estimate._replace(surrogate=estimate.surrogate + torch.stack(terms).sum(0))

    def _of_site(self, fixed: LogWeights, name: str, weights: Tensor, slopes: Tensor) -> Tensor:
        """Return what turns the score of a prior into its reparameterised gradient, of expectation zero, (batch,)."""
        prior, z = fixed.prior[name], fixed.z[name]
        weights = fixed._like_latent(weights, name)
        terms = []
        for part, normal, slope in self._levels(name, prior, z, slopes):
            part = part.detach()
            noise = ((part - normal.loc) / normal.scale).detach()
            slope = slope + weights * noise / normal.scale.detach()  # without the score of this prior
            terms.append(slope * (normal.loc + normal.scale * noise) - weights * normal.log_prob(part))
        term = torch.cat(terms, -1) if len(terms) > 1 else terms[0]
        term = term.sum(tuple(range(-prior.event_dim, 0))) if prior.event_dim else term
        if (mask := getattr(prior, "_mask", True)) is not True:
            term = torch.where(torch.as_tensor(mask, device=term.device), term, 0.0)
        return fixed.per_particle(term).sum(0)

    def _levels(self, name: str, prior: Any, z: Tensor, slopes: Tensor) -> list[tuple[Tensor, Any, Tensor]]:
        """Return the parts of z with the normal of each, given the others, and its slopes."""
        base = unwrapped(prior.base_dist if hasattr(prior, "_mask") else prior)
        parts: tuple[Tensor, ...] = (z,)
        blocks, split = (base,), (slopes,)
        if isinstance(base, Chain):
            (parts, blocks), split = base.blocks(z), slopes.split(base.dims, -1)
        normals = [unwrapped(block) for block in blocks]
        for normal in normals:
            if not isinstance(normal, dist.Normal):
                raise ValueError(
                    f"{owner(self)} reparameterises the prior, and that at site {name!r} is {describe(normal)}; "
                    "expected a diagonal normal, or a Ladder of normals; use DReG"
                )
        return list(zip(parts, normals, split, strict=True))
