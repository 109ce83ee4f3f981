r"""The ELBO of discrete latents with gradients through relaxed draws: straight-through Gumbel-softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae._distributions import describe, is_discrete, unwrapped
from ppl_vae._validation import check_positive
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.objectives.enumeration import EnumeratedELBO
from ppl_vae.objectives.estimate import Estimate, ManyParticles, owner
from ppl_vae.objectives.log_weights import LogWeights


@dataclass(frozen=True)
class GumbelSoftmaxELBO(ManyParticles):
    r"""The ELBO of bits and one-hot vectors, with gradients through relaxed draws of temperature T.

    .. math::
        \tilde z = \mathrm{softmax}((\log \pi + g) / T), \quad g \text{ Gumbel}, \qquad
        z = \mathrm{onehot}(\arg\max(\log \pi + g)),

    and for bits :math:`\sigma((\ell + \epsilon) / T)` with logistic noise. The guide and the model stay discrete; the
    objective makes the draws in place of the guide.

    p and q see exact draws of the discrete z, so the **value** is an unbiased estimate of the ELBO. The **gradient**
    passes straight through to the relaxed draw and is **biased** for every T: a small T has less bias and more noise.
    Other latents, which must be reparameterised, keep their own draws and their path.
    For a bound over latents that are themselves relaxed, use a relaxed prior and posterior
    (`posteriors.GumbelSoftmax`).

    Args:
        num_particles: K.
        temperature: T.

    Raises:
        ValueError: If the temperature is not positive.
        TypeError: If a latent is neither bits nor one-hot nor reparameterised, or none is bits or one-hot.

    Reference:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144; The
        Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712

    Example:
        >>> GumbelSoftmaxELBO(4, temperature=0.5)
        GumbelSoftmaxELBO(num_particles=4, temperature=0.5)
    """

    num_particles: int = 1
    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.temperature, f"{owner(self)}: temperature")

    @property
    def reference(self) -> EnumeratedELBO:
        """The objective whose gradient this one estimates with bias."""
        return EnumeratedELBO()

    @property
    def latents(self) -> Messenger:
        """The handler that draws in place of the guide."""
        return _Relaxed(self.temperature)

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        if log_weights.posterior and not any(map(is_discrete, log_weights.posterior.values())):
            raise _refusal(*next(iter(log_weights.posterior.items())))
        value = log_weights.log_w.mean(0)
        return Estimate(value.detach(), value, "lower")


class _Relaxed(Messenger):
    """A handler that draws discrete latents with the gradient of relaxed ones; it lies outside the trace's handler."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        if _can_relax(msg["fn"]):
            msg["value"], msg["done"] = self._draw(unwrapped(msg["fn"])), True
        elif not msg["fn"].has_rsample:
            raise _refusal(msg["name"], msg["fn"])

    def _draw(self, base: Any) -> Tensor:
        if isinstance(base, (BinaryVector, dist.Bernoulli)):
            return BinaryVector(base.logits, base.logits.new_tensor(self.temperature)).rsample()
        logits = base.logits if isinstance(base, OneHotVector) else base.logits.unsqueeze(-2)
        return OneHotVector(logits, logits.new_tensor(self.temperature)).rsample()


def _can_relax(fn: Any) -> bool:
    return isinstance(unwrapped(fn), (BinaryVector, OneHotVector, dist.Bernoulli, dist.OneHotCategorical))


def _refusal(name: str, fn: Any) -> TypeError:  # not a ValueError: Pyro would append the shapes of all sites to it
    return TypeError(
        f"objective GumbelSoftmaxELBO relaxes bits and one-hot vectors, and q at site {name!r} is {describe(fn)}; "
        "use REINFORCE or VIMCO"
    )
