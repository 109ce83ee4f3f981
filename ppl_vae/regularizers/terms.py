r"""The KL for the draws of an objective, with the gradient that suits the way they are drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae._distributions import describe, unwrapped
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.normal import Normal
from ppl_vae.objectives.baselines import leave_one_out
from ppl_vae.objectives.log_weights import LogWeights, particle_dim, to_particles


class Term(NamedTuple):
    """A term per datum, (batch,), or per latent dimension, (batch, d): its value, and a surrogate for its gradient."""

    value: Tensor
    surrogate: Tensor


def differentiable(value: Tensor) -> Term:
    """Return the term of a value that is its own surrogate."""
    return Term(value.detach(), value)


def kl(log_weights: LogWeights) -> Term:
    r"""Return :math:`\mathrm{KL}(q(z|x) \,\|\, p(z))` of each datum.

    A single latent site has the KL in closed form where one exists. Otherwise the KL depends on the latents. Enumerated
    latents give a sum over their states, exact where all are enumerated. Latents with a gradient give a sampled KL with
    the pathwise gradient. Latents without a gradient give a sampled KL with the score-function gradient, in which each
    particle subtracts the mean of the others.
    """
    if len(log_weights.posterior) == 1:
        try:
            return differentiable(log_weights.analytic_kl().mean(0))
        except NotImplementedError:
            pass
    if log_weights.enumerated:
        return differentiable(log_weights.expectation(log_weights.kl))
    if any(z.requires_grad for z in log_weights.z.values()):
        return differentiable((log_weights.joint_log_q - log_prior(log_weights)).mean(0))
    signal = log_weights.kl.detach()
    value = signal.mean(0)
    if log_weights.num_particles > 1:
        signal = signal - leave_one_out(signal)
    log_p = torch.stack(list(log_weights.log_prior.values())).sum(0)
    return Term(value, (signal * log_weights.joint_log_q - log_p).mean(0))


def log_prior(log_weights: LogWeights) -> Tensor:
    """Return log p(z_k), summed over sites, (K, batch), with the gradient of z unchanged by path weights.

    Raises:
        ValueError: If an objective weighs the path through z and there are several latent sites.
    """
    if not log_weights.spent:
        return torch.stack(list(log_weights.log_prior.values())).sum(0)
    if len(log_weights.prior) != 1:
        raise ValueError(
            "a regularizer with a sampled KL beside an objective that weighs the path through z (DReG, PIWAE, RWSDReG) "
            "takes one latent site; the program has several: use IWAE or STL with it"
        )
    ((name, p),) = log_weights.prior.items()
    log_p = p.log_prob(log_weights.z[name])
    return to_particles(log_p, log_weights.num_particles, particle_dim(log_p.shape, log_weights.num_particles))


def kl_per_dimension(log_weights: LogWeights, owner: str) -> Term:
    """Return the KL of each latent dimension, (batch, d), in closed form.

    Raises:
        ValueError: If q and p do not factorise over dimensions, or have no closed form.
    """
    q, p = factors(log_weights, owner)
    kl = torch.distributions.kl_divergence(q, p)
    if kl.dim() > 2:  # equal for all particles, unless a distribution depends on another latent
        kl = kl.flatten(0, -3).mean(0)
    return differentiable(kl.expand(log_weights.log_lik.shape[1], -1))


def one_site(log_weights: LogWeights, owner: str) -> tuple[str, Tensor]:
    """Return the name and the draws of the one latent site.

    Raises:
        ValueError: If there are several sites, or the draws carry no gradient while gradients are recorded.
    """
    if len(log_weights.z) != 1:
        raise ValueError(f"{owner} takes one latent site, and the program has {list(log_weights.z)}")
    ((name, z),) = log_weights.z.items()
    if torch.is_grad_enabled() and not z.requires_grad:
        raise ValueError(f"{owner} needs latents that carry a gradient; use ELBO, STL or IWAE, reparameterised")
    return name, z


def factors(log_weights: LogWeights, owner: str) -> tuple[Any, Any]:
    """Return q(z|x) and p(z) of the one latent site as batches of distributions of one dimension each."""
    if len(log_weights.posterior) != 1:
        raise ValueError(f"{owner} takes one latent site, and the program has {list(log_weights.posterior)}")
    ((name, q),) = log_weights.posterior.items()
    found = []
    for role, distribution in (("posterior", q), ("prior", log_weights.prior[name])):
        base = unwrapped(distribution)
        if isinstance(base, BinaryVector):
            base = dist.Bernoulli(logits=base.logits)
        if type(base) not in (dist.Normal, Normal, dist.Bernoulli, dist.Laplace):
            raise ValueError(
                f"{owner} looks at each latent dimension by itself, and the {role} {describe(distribution)} does not "
                "factorise over dimensions in closed form; use a diagonal normal"
            )
        found.append(base)
    return found[0], found[1]
