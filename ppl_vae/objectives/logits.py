r"""The second form of an estimator: its gradient at the logits of a discrete latent, one number for each logit.

`LogWeights.surrogate` weighs the score of each particle as a whole. Estimators that couple particles, or that follow
relaxed draws, weigh each variable of a particle by a number of its own. They state :math:`g`, the gradient of the bound
at the logits :math:`\ell` of :math:`q(z|x)`, and `Site.estimate` makes the surrogate

.. math::
    \sum_k a_k \log p(x, z_k) + \sum_i g_i\, \ell_i, \qquad g \text{ detached}.

Bits have one logit each. A one-hot variable has one for each class, and :math:`\ell` is normalised there. The program
must have one latent site, made of independent bits or one-hot variables: then :math:`\nabla_\ell \log q(z|x) = z - \mu`
with the probabilities :math:`\mu`, and :math:`\nabla_z \log q(z|x) = \ell`. An objective states a `Drawing` as its
``latents``: a handler that draws in place of the guide and keeps the noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.nn.functional import softplus

from ppl_vae._distributions import describe, unwrapped
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.distributions.relaxed import gumbel_noise, logistic_noise
from ppl_vae.objectives.estimate import Estimate, Kind
from ppl_vae.objectives.log_weights import LogWeights

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Factors:
    r"""Independent bits or one-hot variables, by their logits.

    All methods take and return z in the form of the logits, (..., d) for bits and (..., V, C) for one-hot variables.

    Attributes:
        logits: :math:`\ell`, normalised for one-hot variables.
        bits: Whether the variables are bits.
    """

    logits: Tensor
    bits: bool = True

    @classmethod
    def of(cls, distribution: Any) -> Factors | None:
        """Return the factors of a distribution; None for another one."""
        base = unwrapped(distribution)
        if isinstance(base, (BinaryVector, dist.Bernoulli)):
            return cls(base.logits)
        if isinstance(base, (OneHotVector, dist.OneHotCategorical)):
            return cls(base.logits, bits=False)
        return None

    def detached(self) -> Factors:
        """Return the same factors, whose logits carry no gradient."""
        return replace(self, logits=self.logits.detach())

    @property
    def probs(self) -> Tensor:
        r"""The mean of z, :math:`\mu`."""
        return self.logits.sigmoid() if self.bits else self.logits.softmax(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z), and its multilinear extension between states, for each variable."""
        if self.bits:
            return z * self.logits - softplus(self.logits)
        return (z * self.logits).sum(-1)

    def covariance(self, v: Tensor) -> Tensor:
        """Return the covariance of z, times v."""
        p = self.probs
        return p * (1 - p) * v if self.bits else p * (v - (p * v).sum(-1, keepdim=True))

    def noise(self) -> Tensor:
        """Return noise which makes a draw of the logits: logistic for bits, Gumbel for one-hot variables."""
        return (logistic_noise if self.bits else gumbel_noise)(self.logits.detach())

    def conditional(self, z: Tensor) -> Tensor:
        r"""Return fresh noisy logits under the condition that they make the draw z; differentiable in the logits.

        With exponential :math:`E`, and i the class of z, the largest of the noisy logits is :math:`-\log E_i`, and the
        others are :math:`-\log(E_j / \pi_j + E_i)`. A bit is the difference of two classes.
        """
        noise = -gumbel_noise(self.logits.detach())  # log E
        if self.bits:
            sign = 2 * z - 1
            other = -gumbel_noise(self.logits.detach())
            return sign * softplus(other - noise + softplus(sign * self.logits))
        own = (noise * z).sum(-1, keepdim=True)
        others = torch.logaddexp(noise - self.logits, own)
        return -torch.where(z > 0, own, others)

    def state(self, noisy: Tensor) -> Tensor:
        """Return the draw that noisy logits make."""
        if self.bits:
            return (noisy > 0).to(noisy)
        classes = torch.arange(noisy.shape[-1], device=noisy.device)
        return (noisy.argmax(-1, keepdim=True) == classes).to(noisy)

    def relaxed(self, noisy: Tensor, temperature: Tensor | float) -> Tensor:
        """Return the relaxed draw that noisy logits make."""
        scores = noisy / temperature
        return scores.sigmoid() if self.bits else scores.softmax(-1)


class Drawing(Messenger):
    """A handler that draws a discrete latent in place of the guide; it lies outside the trace's handler.

    Args:
        objective: The name of the objective, for messages.
        antithetic: Whether the second half of the particles is drawn from the noise of the first with the sign changed.
            Then the latent must be bits.
        leaf: Whether the draws record the gradient that comes back to them from the model.

    Attributes:
        noise: For each site the noise of the draws, in the form of the logits.
    """

    def __init__(self, objective: str, *, antithetic: bool = False, leaf: bool = False) -> None:
        super().__init__()
        self.objective, self.antithetic, self.leaf = objective, antithetic, leaf
        self.noise: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        factors = Factors.of(msg["fn"])
        if factors is None or (self.antithetic and not factors.bits):
            raise _refusal(self.objective, msg["name"], describe(msg["fn"]), only_bits=self.antithetic)
        noise = factors.noise()
        if self.antithetic:
            half = noise[: len(noise) // 2]
            noise = torch.cat([half, -half])
        z = factors.state(factors.logits.detach() + noise)
        z = z.reshape(*msg["fn"].batch_shape, *msg["fn"].event_shape)
        self.noise[msg["name"]] = noise
        msg["value"], msg["done"] = z.requires_grad_() if self.leaf and torch.is_grad_enabled() else z, True


def _refusal(objective: str, name: str, found: str, only_bits: bool) -> TypeError:
    # not a ValueError: Pyro would append the shapes of all sites to it
    wanted = "bits" if only_bits else "independent bits or one-hot variables"
    return TypeError(
        f"objective {objective} needs {wanted}, and q at site {name!r} is {found}; use REINFORCE or VIMCO, or for a "
        "reparameterised latent ELBO"
    )


@dataclass(frozen=True)
class Site:
    """The one discrete latent of some log-weights, for estimators of the second form.

    Attributes:
        log_weights: The log-weights.
        name: The name of the site.
        factors: The factors of q(z|x), with logits (K, batch, d), or (K, batch, V, C) for one-hot variables.
        z: The draws, in the form of the logits.
        mask: Which data count, (K, batch); None for all.
    """

    log_weights: LogWeights
    name: str
    factors: Factors
    z: Tensor
    mask: Tensor | None = None

    @classmethod
    def of(cls, log_weights: LogWeights, objective: object, *, only_bits: bool = False) -> Site:
        """Return the site.

        Raises:
            TypeError: If there is another number of latents, or the latent is none of the right kind, or it lies in
                more than the plate of the data.
            ValueError: If the log-weights are of all states.
        """
        who = type(objective).__name__
        log_weights.require_draws(objective)
        if len(log_weights.posterior) != 1:
            raise TypeError(
                f"objective {who} needs a program with one latent site, of independent variables; this one has "
                f"{list(log_weights.posterior)}; use REINFORCE or VIMCO"
            )
        ((name, q),) = log_weights.posterior.items()
        inner = q.base_dist if isinstance(q, dist.MaskedDistribution) else q
        factors = Factors.of(inner)
        if factors is None or (only_bits and not factors.bits):
            raise _refusal(who, name, describe(inner), only_bits)
        shape, z = log_weights.log_lik.shape, log_weights.z[name]
        if len(q.batch_shape) > 1 + (shape[0] > 1):
            raise TypeError(
                f"objective {who} needs a latent in the plate of the data alone, and q at site {name!r} has the batch "
                f"shape {tuple(q.batch_shape)}; make its variables one event, or use REINFORCE"
            )
        event = factors.logits.shape[len(q.batch_shape) :]
        logits = factors.logits.expand(*q.batch_shape, *event).reshape(*shape, *event)
        mask = None if inner is q else torch.as_tensor(q._mask, device=z.device).expand(q.batch_shape).reshape(shape)
        return cls(log_weights, name, replace(factors, logits=logits), z.reshape(logits.shape), mask)

    @property
    def score(self) -> Tensor:
        """The gradient of log q(z_k|x) at the logits."""
        return self.z.detach() - self.factors.detached().probs

    def slope(self) -> Tensor:
        r"""Return :math:`\nabla_z \log w` at the draws, in the form of the logits.

        Raises:
            ValueError: If the draws carry no gradient.
        """
        z = self.log_weights.z[self.name]
        if not z.requires_grad:
            raise ValueError(
                "these draws carry no gradient, and the objective follows it; sample the log-weights with its latents"
            )
        (slope,) = torch.autograd.grad(self.log_weights.log_p.sum(), z, retain_graph=True)
        return slope.reshape(self.z.shape) - self.factors.logits.detach()

    def spread(self, values: Float[Tensor, "K batch"]) -> Tensor:
        """Return one number for each particle and datum in a shape that broadcasts to the logits."""
        return values.reshape(*values.shape, *(1,) * (self.z.dim() - 2))

    def kept(self, gradient: Tensor) -> Tensor:
        """Return a gradient in the form of the logits without that of data that do not count."""
        return gradient if self.mask is None else torch.where(self.spread(self.mask), gradient, 0.0)

    def log_p(self, z: Tensor) -> Float[Tensor, "K batch"]:
        """Return log p(x, z) at other z, which need not be states."""
        assert self.log_weights.again is not None
        return self.log_weights.again.log_p({self.name: z.reshape(self.log_weights.z[self.name].shape)})

    def estimate(
        self, value: Float[Tensor, " batch"], model: Float[Tensor, "K batch"], gradient: Tensor, kind: Kind = "lower"
    ) -> Estimate:
        """Return the estimate with a gradient at the logits.

        Args:
            value: The value, per datum.
            model: The weights a of log p(x, z_k).
            gradient: g for each particle, in the form of the logits; their sum over particles counts.
            kind: The kind of the value.
        """
        if not torch.is_grad_enabled():
            return Estimate(value.detach(), torch.zeros_like(value), kind)
        surrogate = (model.detach() * self.log_weights.log_p).sum(0)
        at_logits = total(self.kept(gradient.detach()) * self.factors.logits).sum(0)
        return Estimate(value.detach(), surrogate + at_logits, kind)


def total(values: Float[Tensor, "K batch *variables"]) -> Float[Tensor, "K batch"]:
    """Return the sum over all variables of a datum."""
    return values.reshape(*values.shape[:2], -1).sum(2)
