r"""The ELBO as a sum over all states of discrete latents, without their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppl_vae.objectives.estimate import Estimate, owner
from ppl_vae.objectives.log_weights import LogWeights


@dataclass(frozen=True)
class EnumeratedELBO:
    r"""The ELBO with a sum over the states y of discrete latents, and one draw of all others given each state.

    .. math::
        \mathcal L(x) = \sum_y q(y|x)\, (\log p(x, y, z_y) - \log q(y|x) - \log q(z_y|x, y)), \qquad
        z_y \sim q(z|x, y).

    Where all latents are discrete there is no z: value and gradient are exact. Otherwise the only noise is that of z,
    whose gradient is pathwise; z needs a reparameterised posterior. A state of probability zero counts exactly
    nothing. **The cost is one decoder pass for every state**, 2^d for d bits, so it suits few states only: labels,
    small models, and a reference for the estimators. Several sites are enumerated jointly, up to 65,536 states in all.

    Raises:
        ValueError: If no latent lists its states, there are too many, or another latent is not reparameterised.

    Example:
        >>> import torch
        >>> from ppl_vae import VAE, likelihoods, objectives, posteriors, priors
        >>> vae = VAE((64,), prior=priors.BernoulliVector(3), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.BernoulliVector())
        >>> log_weights = objectives.sample_log_weights(vae.model, vae.guide, torch.zeros(5, 64), latents="enumerated")
        >>> log_weights.num_particles, objectives.EnumeratedELBO()(log_weights).value.shape
        (8, torch.Size([5]))
    """

    latents: ClassVar[str] = "enumerated"

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the ELBO of each datum."""
        if not log_weights.enumerated:
            raise ValueError(
                f"{owner(self)} sums over all states, and was given log-weights of draws; sample them with "
                "latents='enumerated'"
            )
        value = log_weights.expectation(log_weights.log_p - log_weights.joint_log_q)
        kl, log_lik = (log_weights.expectation(term).detach() for term in (log_weights.kl, log_weights.log_lik))
        return Estimate(value.detach(), value, "lower", kl, log_lik)
