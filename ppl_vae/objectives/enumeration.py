r"""The ELBO as a sum over all states of discrete latents: no sampling, no noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppl_vae.objectives.estimate import Estimate, owner
from ppl_vae.objectives.log_weights import LogWeights


@dataclass(frozen=True)
class EnumeratedELBO:
    r"""The exact ELBO of discrete latents with few states.

    .. math::
        \mathcal L(x) = \sum_z q(z|x)\, (\log p(x, z) - \log q(z|x)).

    Value and gradient have no noise. **The cost is one decoder pass for every state**, 2^d for d bits, so it suits
    small latents only: as a reference for the estimators, and to train small models. Several sites are enumerated
    jointly, up to 65,536 states in all.

    Raises:
        ValueError: If a latent lists no states, or there are too many.

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
        log_q = log_weights.joint_log_q
        probs = log_q.exp()
        value = (probs * (log_weights.log_p - log_q)).sum(0)
        kl = (probs * log_weights.kl).sum(0)
        return Estimate(value.detach(), value, "lower", kl.detach(), (probs * log_weights.log_lik).sum(0).detach())
