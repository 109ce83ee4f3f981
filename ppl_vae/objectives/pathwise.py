r"""ELBOs with pathwise gradients: with a sampled KL, a closed-form KL, and the article's own loss.

All but `ArticleELBO` estimate
:math:`\mathcal L(x) = \mathbb E_{q(z|x)}[\log p(x|z)] - \mathrm{KL}(q(z|x) \,\|\, p(z))`, which is at most log p(x).
`ELBO`, `STL` and `MeanFieldELBO` let gradients flow through z = g(x, noise), so they refuse latents that are not
reparameterised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from ppl_vae import closed_form
from ppl_vae._distributions import unwrapped
from ppl_vae._validation import is_real
from ppl_vae.objectives.estimate import Estimate, Following, ManyParticles, owner
from ppl_vae.objectives.log_weights import LogWeights


@dataclass(frozen=True)
class ELBO(ManyParticles):
    r"""The evidence lower bound with a sampled KL: Pyro's `Trace_ELBO`, per datum.

    .. math::
        \hat{\mathcal L}(x) = \frac1K \sum_k \log p(x, z_k) - \log q(z_k|x), \qquad z_k \sim q(z|x).

    It is unbiased for the ELBO, which lies KL(q(z|x) || p(z|x)) below log p(x) for every K: more particles reduce the
    variance, not the gap. The gradient still has variance where q is the true posterior, because it keeps the score of
    q. The cost is one decoder pass per particle.

    Args:
        num_particles: K.

    Raises:
        ValueError: If a latent is not reparameterised.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> from ppl_vae.objectives import LogWeights
        >>> log_weights = LogWeights.of(torch.full((3, 2), -1.0))
        >>> ELBO(num_particles=3)(log_weights).value
        tensor([-1., -1.])
    """

    num_particles: int = 1

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate of the ELBO of each datum."""
        log_weights.require_pathwise(self)
        elbo = log_weights.log_w.mean(0)
        return Estimate(elbo.detach(), elbo, "lower")


@dataclass(frozen=True)
class STL(Following, ManyParticles):
    r"""The ELBO without the score of q in its gradient: sticking the landing.

    .. math::
        \nabla_\phi \mathcal L = \mathbb E\Big[\frac1K \sum_k
        \frac{\partial (\log p(x, z_k) - \log q(z_k|x))}{\partial z_k} \nabla_\phi z_k\Big].

    The value and the model's gradient are those of `ELBO`. The omitted term, :math:`\nabla_\phi \log q(z|x)` at fixed
    z, has expectation zero, so the gradient stays **unbiased**. Its variance is zero where q is the true posterior, and
    can be *above* that of `ELBO` where q is far from the posterior. An encoder inside the prior (VampPrior) keeps its
    gradient through log p(z), and q(z2|z1) keeps its gradient through z1. It costs as much as `ELBO` and scores q
    twice. It refuses a q that cannot score an arbitrary z (a planar flow).

    Args:
        num_particles: K.

    Raises:
        ValueError: If a latent is not reparameterised, or q does not score a given z.

    Reference:
        Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference (Roeder et al.,
        2017), https://arxiv.org/abs/1703.09194

    Example:
        >>> STL(4).reference
        ELBO(num_particles=4)
    """

    num_particles: int = 1
    _follows = ELBO

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate of the ELBO of each datum."""
        log_weights.require_pathwise(self)
        mean = torch.full_like(log_weights.log_lik, 1 / log_weights.num_particles)
        return Estimate(log_weights.log_w.detach().mean(0), log_weights.surrogate(mean, score=0.0), "lower")


@dataclass(frozen=True)
class MeanFieldELBO(Following, ManyParticles):
    r"""The evidence lower bound with the KL in closed form: Pyro's `TraceMeanField_ELBO`, per datum.

    .. math::
        \hat{\mathcal L}(x) = \frac1K \sum_k \log p(x|z_k) - \mathrm{KL}(q(z|x) \,\|\, p(z)).

    It is unbiased for the ELBO. Its variance is usually, but not always, below that of `ELBO`: with a sampled KL, the
    noise of the two terms can cancel. It needs a closed-form KL at every latent site; a mixture or a flow has none.
    Pyro's `TraceMeanField_ELBO` then silently samples the KL, whereas this objective refuses. With several dependent
    sites, and with the levels of a top-down `posteriors.Ladder`, each KL is conditional on the sampled parents.

    Args:
        num_particles: K.

    Raises:
        NotImplementedError: If there is no closed form at a site.
        ValueError: If a latent is not reparameterised.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 3, https://arxiv.org/abs/1312.6114

    Example:
        >>> from ppl_vae import VAE, likelihoods, objectives, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> log_weights = objectives.sample_log_weights(vae.model, vae.guide, torch.zeros(5, 64))
        >>> MeanFieldELBO()(log_weights).value.shape
        torch.Size([5])
    """

    num_particles: int = 1
    _follows = ELBO

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate of the ELBO of each datum."""
        log_weights.require_pathwise(self)
        kl = log_weights.analytic_kl().mean(0)
        elbo = log_weights.log_lik.mean(0) - kl
        return Estimate(elbo.detach(), elbo, "lower", kl.detach())


@dataclass(frozen=True)
class ArticleELBO(Following, ManyParticles):
    r"""The article's own loss, from the formulas of `closed_form`.

    .. math::
        \hat{\mathcal L}(x) = -\mathrm{CE}_\epsilon(x, \hat x) - \tfrac12 \sum_j (\mu_j^2 + \sigma_j^2
        - \log(\epsilon + \sigma_j^2) - 1)

    for a Bernoulli likelihood. A Normal likelihood has :math:`\lVert x - \hat x \rVert^2` in place of the
    cross-entropy. With ``eps=0`` (and, for the Normal, ``normalize=True``) value and gradient are those of
    `MeanFieldELBO`. In the article's form it is *no bound*: :math:`\epsilon` caps the loss of a pixel at 18.42 nats and
    stops its gradient where the sigmoid saturates, and the squared error lacks the Normal's factor and constant. With
    ``eps=0`` a wrong pixel costs infinity where the sigmoid saturates (logit 17 in float32, 37 in float64): train with
    `ELBO` or `MeanFieldELBO`, which work from logits. The program must have a single latent site, with a diagonal
    normal posterior and a standard normal prior.

    Args:
        num_particles: K.
        eps: The constant in the article's logarithms.
        normalize: Whether to restore the Normal's factor :math:`1/(2\sigma^2)` and its constant.

    Raises:
        ValueError: If the program has another form, or `eps` is negative.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix B, https://arxiv.org/abs/1312.6114

    Example:
        >>> from ppl_vae import VAE, likelihoods, objectives, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> log_weights = objectives.sample_log_weights(vae.model, vae.guide, torch.zeros(5, 64))
        >>> ArticleELBO()(log_weights).kind, ArticleELBO(eps=0.0)(log_weights).kind
        ('neither', 'lower')
    """

    num_particles: int = 1
    eps: float = 1e-8
    normalize: bool = False
    _follows = ELBO  # with eps=0 and a normalised likelihood

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.eps) or not 0 <= self.eps < 1:
            raise ValueError(f"{owner(self)}: eps is {self.eps!r}; expected a number in [0, 1), the article's 1e-8")

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the article's value for each datum."""
        q, p_x, x = self._parts(log_weights)
        base = unwrapped(q)
        kl = closed_form.kl_std(base.loc, base.scale, eps=self.eps, event_dim=q.event_dim)
        exact = self.eps == 0
        base, event_dim = unwrapped(p_x), p_x.event_dim
        if isinstance(base, dist.Bernoulli):
            log_lik = -closed_form.cross_entropy(x, base.probs, eps=self.eps, event_dim=event_dim)
        elif self.normalize:
            log_lik = closed_form.normal_log_likelihood(
                x, base.loc, base.scale, event_dim=event_dim, check_scale=is_validation_enabled()
            )
        else:
            log_lik = -closed_form.squared_error(x, base.loc, event_dim=event_dim)
            exact = False
        shape = log_weights.log_lik.shape
        kl = kl.expand(shape).mean(0)
        value = log_lik.expand(shape).mean(0) - kl
        return Estimate(value.detach(), value, "lower" if exact else "neither", kl.detach())

    def _parts(self, log_weights: LogWeights) -> tuple[Any, Any, Tensor]:
        """Return the posterior, the likelihood and x."""
        if len(log_weights.posterior) != 1 or len(log_weights.observed) != 1:
            raise ValueError(
                f"{owner(self)} needs one latent and one observed site; the program has "
                f"{list(log_weights.posterior)} and {list(log_weights.observed)}; use MeanFieldELBO"
            )
        (name,) = log_weights.posterior
        ((likelihood, x),) = log_weights.observed.values()
        q, p_z, p_x = (unwrapped(d) for d in (log_weights.posterior[name], log_weights.prior[name], likelihood))
        if not isinstance(q, dist.Normal) or not isinstance(p_z, dist.Normal):
            raise ValueError(
                f"{owner(self)} needs a diagonal normal posterior and a standard normal prior; it was given "
                f"{type(q).__name__} and {type(p_z).__name__}; use ELBO"
            )
        # only under validation, as on the first batch of training: reading the values makes the CPU wait for the GPU
        if is_validation_enabled() and not (torch.all(p_z.loc == 0) and torch.all(p_z.scale == 1)):
            raise ValueError(f"{owner(self)} needs a standard normal prior, N(0, I); use MeanFieldELBO")
        if not isinstance(p_x, (dist.Bernoulli, dist.Normal)):
            raise ValueError(
                f"{owner(self)} knows Bernoulli and Normal likelihoods, not {type(p_x).__name__}; use ELBO"
            )
        return log_weights.posterior[name], likelihood, x
