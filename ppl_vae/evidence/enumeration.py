r"""Exact log p(x) of a discrete latent: a sum over its states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae._distributions import unwrapped
from ppl_vae._home import at_home
from ppl_vae._validation import check_positive_int, check_rows
from ppl_vae.evidence.densities import Model, VAEDensities, pair_scores, rounding
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives.sampling import MOST_STATES

if TYPE_CHECKING:
    from jaxtyping import Float


@at_home("x", float64=True)
@torch.no_grad()
def enumerate_evidence(
    program: Model | VAEDensities,
    x: Float[Tensor, " n *x_shape"],
    *,
    max_states: int = MOST_STATES,
    max_bytes: int = 2**30,
) -> Evidence:
    r"""Return the exact log evidence of each datum under a discrete latent, by a sum over all states.

    .. math::
        \log p(x) = \log \sum_z p(z) p(x|z).

    **Slow**: d binary latents have :math:`2^d` states, and each is decoded once. The prior must enumerate its support
    (`OneHotCategorical`), or have independent dimensions that do. Pyro refuses to enumerate the latter, such as
    ``Bernoulli(...).to_event(1)``; this function enumerates the product of the supports.

    Args:
        program: The model.
        x: Data.
        max_states: The most states to sum over.
        max_bytes: About how much memory to use beyond the data and the model.

    Returns:
        Evidence of kind ``"exact"``, method ``"enumeration"``. `error` is the rounding error of the model's precision:
        twice the largest difference from float64 over 16 data, each at its best state. ``details["num_states"]`` is a
        number.

    Raises:
        ValueError: If the prior is not discrete, or has more states than `max_states`, or if data lie outside the
            support of p(x|z).

    Example:
        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from ppl_vae import VAE
        >>> states = lambda: dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)
        >>> pixels = lambda z: dist.Bernoulli(logits=3 * z - 1).to_event(1)
        >>> encoder = nn.Linear(2, 2)
        >>> class Posterior(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.logits = nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return dist.Bernoulli(logits=self.logits(x)).to_event(1)
        >>> vae = VAE((2,), prior=states, likelihood=pixels, posterior=Posterior())
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> round(enumerate_evidence(vae, x).log_evidence.exp().sum().item(), 5)  # all that x can be
        1.0
    """
    check_rows([x], "enumerate_evidence")
    densities = VAEDensities(program) if isinstance(program, Model) else program
    prior = densities.prior()
    z = states_of(prior, check_positive_int(max_states, "max_states"))
    z = z if z.is_floating_point() else z.to(x.dtype)
    log_prior = prior.log_prob(z).double()
    log_p = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    best, best_state = log_p.clone(), torch.zeros(len(x), dtype=torch.long, device=x.device)
    for rows, states, log_lik in pair_scores(densities, x, z, max_bytes):
        joint = log_lik + log_prior[states]
        log_p[rows] = torch.logaddexp(log_p[rows], joint.logsumexp(-1))
        top, index = joint.max(-1)
        better = top > best[rows]
        best[rows] = torch.where(better, top, best[rows])
        best_state[rows] = torch.where(better, states[index], best_state[rows])
    some = torch.linspace(0, len(x) - 1, min(16, len(x)), device=x.device).round().long()

    def at_best(model: VAEDensities, dtype: torch.dtype) -> Tensor:
        state = z[best_state[some]].to(dtype)
        data = x[some] if dtype == z.dtype else x[some].to(dtype)  # as log p(x) itself scores them
        log_lik = model.likelihood_at(state)(data).diagonal().double()
        return log_lik + model.prior().log_prob(state).double()

    error = torch.full_like(log_p, rounding(densities, z.dtype, at_best))
    return Evidence(log_p, error, "enumeration", "exact", {"num_states": float(len(z))})


def states_of(prior: Any, max_states: int = MOST_STATES) -> Tensor:
    """Return all states of a discrete prior, (num_states, d).

    Raises:
        ValueError: If the support cannot be enumerated, or has more than `max_states` states.
    """
    base = unwrapped(prior)
    try:
        values = base.enumerate_support() if base.has_enumerate_support else None
    except NotImplementedError:  # dimensions of different supports
        values = None
    if values is None:
        raise ValueError(
            f"enumerate_evidence was given a prior {type(base).__name__}, whose support cannot be listed; use "
            "quadrature for a continuous latent of up to 3 dimensions, else importance sampling"
        )
    whole = bool(base.event_shape)  # each value is a state of the whole vector
    num_states = len(values) if whole else len(values) ** values.shape[-1]
    if num_states > max_states:
        raise ValueError(
            f"enumerate_evidence was given a prior of {num_states} states; expected at most max_states={max_states}: "
            "raise it, or use importance sampling"
        )
    return values if whole else torch.cartesian_prod(*values.T).reshape(num_states, -1)
