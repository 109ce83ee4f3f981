r"""The KL for the draws of an objective, with the gradient that suits the way they are drawn."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae._distributions import describe, unwrapped
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.normal import Normal
from ppl_vae.objectives.baselines import leave_one_out
from ppl_vae.objectives.log_weights import LogWeights


class Term(NamedTuple):
    """A term per datum, (batch,), or per latent dimension, (batch, d): its value, and a surrogate for its gradient."""

    value: Tensor
    surrogate: Tensor


def differentiable(value: Tensor) -> Term:
    """Return the term of a value that is its own surrogate."""
    return Term(value.detach(), value)


def kl(log_weights: LogWeights) -> Term:
    r"""Return :math:`\mathrm{KL}(q(z|x) \,\|\, p(z))` of each datum.

    A single latent site has the KL in closed form where one exists; that of a ladder also depends on the draw.
    Otherwise the KL is sampled. See `expected` for what depends on draws.
    """
    if len(log_weights.posterior) == 1:
        with suppress(NotImplementedError):
            analytic, (q,) = log_weights.analytic_kl(), log_weights.posterior.values()
            return expected(analytic, log_weights) if hasattr(q, "kl_given") else differentiable(analytic.mean(0))
    scored = () if log_weights.enumerated else log_weights.scored
    terms = [q.detach() if name in scored else q for name, q in log_weights.log_q.items()]  # E of a score is zero
    return expected(torch.stack(terms).sum(0) - log_prior(log_weights), log_weights)


def kl_per_level(log_weights: LogWeights, owner: str) -> Term:
    """Return the KL of each level, (batch, L): of a ladder, from z_1 up, or of each latent site, in the guide's order.

    The KL of a level is given the levels drawn before it, in closed form where there is one. See `Chain.kl_given` for
    what it is bottom-up.

    Raises:
        NotImplementedError: If the prior has not the levels of the posterior.
        ValueError: If the one latent has no levels, or an objective weighs the path through several sites.
    """
    sites, prior = log_weights.posterior, log_weights.prior
    if len(sites) == 1:
        ((name, q),) = sites.items()
        if not hasattr(q, "kl_given"):
            raise ValueError(
                f"{owner} looks at each level, and the posterior {describe(q)} has none; use posteriors.Ladder with "
                "priors.Ladder, or a latent site for each level"
            )
        levels = q.per_level(q.kl_given(prior[name], log_weights.z[name])).unbind(-1)
        return expected(torch.stack([log_weights.per_particle(level) for level in levels], -1), log_weights)
    if sites.keys() != prior.keys():
        raise ValueError(f"{owner}: the latent sites are {list(sites)} in the guide and {list(prior)} in the model")
    log_prior(log_weights)  # refuses several sites whose path is weighed
    terms = []
    for name, q in sites.items():
        of_site = log_weights.log_q[name] - log_weights.log_prior[name]
        with suppress(NotImplementedError):
            of_site = replace(log_weights, posterior={name: q}, prior={name: prior[name]}).analytic_kl()
        terms.append(of_site)
    return expected(torch.stack(terms, -1), log_weights)


def expected(values: Tensor, log_weights: LogWeights) -> Term:
    """Return the expectation over q of a function of the draws, given as (K, batch) or (K, batch, L).

    Enumerated latents give an exact sum. Latents with a gradient give the mean with the pathwise gradient. Latents
    without one add the score-function gradient, in which each particle subtracts the mean of the others that are
    independent of it.
    """
    if log_weights.enumerated:
        return differentiable(log_weights.expectation(values))
    scored = [log_q for log_q in log_weights.scored.values() if log_q.requires_grad]
    if not scored:
        return differentiable(values.mean(0))
    log_q = torch.stack(scored).sum(0).reshape(*log_weights.log_lik.shape, *(1,) * (values.dim() - 2))
    signal = values.detach()
    value = signal.mean(0)
    antithetic = getattr(log_weights.drawing, "antithetic", False)
    groups = signal.chunk(2) if antithetic else (signal,)  # of independent draws: a partner depends on its draw
    if len(groups[0]) > 1:
        signal = torch.cat([group - leave_one_out(group) for group in groups])
    return Term(value, (signal * log_q + values).mean(0))


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
    return log_weights.per_particle(p.log_prob(log_weights.z[name]))


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
    if torch.is_grad_enabled() and not log_weights.attached:
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
