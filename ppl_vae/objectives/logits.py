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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae._distributions import describe
from ppl_vae._numbers import bounded
from ppl_vae.distributions.binary_vector import BinaryVector
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.objectives.estimate import Estimate
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.states import States, noise_of, states_of

if TYPE_CHECKING:
    from jaxtyping import Float


_CERTAIN = 1e3  # probabilities are 0 or 1 there in every type; an infinite logit over a temperature has no derivative


class Drawing(Messenger):
    """A handler that draws a discrete latent in place of the guide; it lies outside the trace's handler.

    Args:
        objective: The name of the objective, for messages.
        antithetic: Whether the second half of the particles is drawn from the noise of the first with the sign changed.
            Then the latent must be bits.
        leaf: Whether the draws record the gradient that comes back to them from the model.

    Attributes:
        noise: For each site the noise of the draws, in the form of the logits of its states.
    """

    def __init__(self, objective: str, *, antithetic: bool = False, leaf: bool = False) -> None:
        super().__init__()
        self.objective, self.antithetic, self.leaf = objective, antithetic, leaf
        self.noise: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        states = states_of(msg["fn"])
        if states is None or (self.antithetic and not isinstance(states, BinaryVector)):
            raise _refusal(self.objective, msg["name"], describe(msg["fn"]), only_bits=self.antithetic)
        noise = noise_of(states)
        if self.antithetic:
            half = noise[: len(noise) // 2]
            noise = torch.cat([half, -half])
        z = states._nearest(states.logits.detach() + noise)
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
        states: The variables of q(z|x), batch shape (K, batch).
        z: The draws, (K, batch, n).
        mask: Which data count, (K, batch); None for all.
    """

    log_weights: LogWeights
    name: str
    states: States
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
        states = states_of(inner)
        if states is None or (only_bits and not isinstance(states, BinaryVector)):
            raise _refusal(who, name, describe(inner), only_bits)
        shape, z = log_weights.log_lik.shape, log_weights.z[name]
        if q.batch_shape.numel() != shape.numel():
            raise TypeError(
                f"objective {who} needs a latent in the plate of the data alone, and q at site {name!r} has the batch "
                f"shape {tuple(q.batch_shape)}; make its variables one event, or use REINFORCE"
            )
        classes = states.logits.shape[-1:] if isinstance(states, OneHotVector) else ()
        states = type(states)(bounded(states.logits, _CERTAIN).reshape(*shape, -1, *classes))
        mask = None if inner is q else torch.as_tensor(q._mask, device=z.device).expand(q.batch_shape).reshape(shape)
        return cls(log_weights, name, states, z.reshape(*shape, -1), mask)

    @property
    def logits(self) -> Float[Tensor, "K batch n"]:
        """The logits, one for each entry of z."""
        return self.states.logits.flatten(2)

    @property
    def score(self) -> Tensor:
        """The gradient of log q(z_k|x) at the logits."""
        return self.z.detach() - self.states.mean.detach()

    def slope(self) -> Tensor:
        r"""Return :math:`\nabla_z \log w` at the draws, (K, batch, n).

        Raises:
            ValueError: If the draws carry no gradient.
        """
        z = self.log_weights.z[self.name]
        if not z.requires_grad:
            raise ValueError(
                "these draws carry no gradient, and the objective follows it; sample the log-weights with its latents"
            )
        (slope,) = torch.autograd.grad(self.log_weights.log_p.sum(), z, retain_graph=True)
        return slope.reshape(self.z.shape) - self.logits.detach()

    def kept(self, gradient: Tensor) -> Tensor:
        """Return a gradient without that of data that do not count."""
        return gradient if self.mask is None else torch.where(self.mask.unsqueeze(-1), gradient, 0.0)

    def log_p(self, z: Tensor) -> Float[Tensor, "K batch"]:
        """Return log p(x, z) at other z, which need not be states."""
        assert self.log_weights.again is not None
        return self.log_weights.again.log_p({self.name: z.reshape(self.log_weights.z[self.name].shape)})

    def estimate(self, value: Float[Tensor, " batch"], model: Float[Tensor, "K batch"], gradient: Tensor) -> Estimate:
        """Return the estimate of a lower bound with a gradient at the logits.

        Args:
            value: The value, per datum.
            model: The weights a of log p(x, z_k).
            gradient: g for each particle, (K, batch, n); their sum over particles counts.
        """
        if not torch.is_grad_enabled():
            return Estimate(value.detach(), torch.zeros_like(value), "lower")
        surrogate = (model.detach() * self.log_weights.log_p).sum(0)
        at_logits = (self.kept(gradient.detach()) * self.logits).sum((0, 2))
        return Estimate(value.detach(), surrogate + at_logits, "lower")
