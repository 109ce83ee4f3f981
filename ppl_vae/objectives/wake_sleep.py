r"""Reweighted wake-sleep: the model follows the importance-weighted bound, and q approaches the true posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from ppl_vae._validation import check_choice
from ppl_vae.objectives.estimate import Estimate, Following, ManyParticles, owner
from ppl_vae.objectives.importance import log_mean_w
from ppl_vae.objectives.log_weights import LogWeights

Phase = Literal["wake", "sleep", "both"]


@dataclass(frozen=True)
class RWS(ManyParticles):
    r"""Reweighted wake-sleep: one objective for the model, another for q.

    .. math::
        \nabla_\theta: \ \sum_k \tilde w_k \nabla_\theta \log p(x, z_k), \qquad
        \nabla_\phi: \ \sum_k \tilde w_k \nabla_\phi \log q(z_k|x) \ \text{(wake)}, \quad
        \mathbb E_{p(x', z')} \nabla_\phi \log q(z'|x') \ \text{(sleep)}.

    Each datum has its own weights; Pyro's `ReweightedWakeSleep` gives the whole batch one set of weights. The model's
    gradient is IWAE's. The gradient of q is that of minus KL(p(z|x) || q(z|x)). The wake phase takes it on the data,
    **up to a bias of order 1/K**; the sleep phase takes it without bias, but on data that the model draws. So the
    objective maximises no single function; its value is `IWAE`'s. It works for latents of any kind and needs no
    baseline, and noise does not drown q's gradient as K grows. With one particle the wake phase would pull q towards
    its own draws, so it is refused.

    Args:
        num_particles: K.
        guide: The phase that trains q: ``"wake"``, ``"sleep"``, or ``"both"``, half of each.

    Raises:
        ValueError: If the phase is unknown, if the wake phase has one particle, or if in the sleep phase an observed
            value is none of the program's arguments.

    Reference:
        Reweighted Wake-Sleep (Bornschein & Bengio, 2014), https://arxiv.org/abs/1406.2751; Revisiting Reweighted
        Wake-Sleep (Le et al., 2018), https://arxiv.org/abs/1805.10469

    Example:
        >>> RWS(8, guide="both")
        RWS(num_particles=8, guide='both')
    """

    guide: Phase = "wake"
    latents: ClassVar[str] = "detached"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.guide, get_args(Phase), f"{owner(self)}: guide")
        if self.num_particles == 1 and self.guide != "sleep":
            raise ValueError(
                f"{owner(self)}: num_particles is 1, whose one weight says nothing of where q should go; expected at "
                "least 2, or guide='sleep'"
            )

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_detached(self)
        weights = log_weights.normalized
        share = {"wake": 1.0, "sleep": 0.0, "both": 0.5}[self.guide]
        surrogate = log_weights.surrogate(weights, score=share * weights)
        if self.guide != "wake" and torch.is_grad_enabled():
            if log_weights.again is None:
                raise ValueError(f"{owner(self)}: the sleep phase runs the program, and was given log-weights alone")
            surrogate = surrogate + (1 - share) * log_weights.again.dream()
        return Estimate(log_mean_w(log_weights).detach(), surrogate, "lower")


@dataclass(frozen=True)
class RWSDReG(Following, ManyParticles):
    r"""Reweighted wake-sleep with a doubly reparameterised wake phase for q.

    .. math::
        \nabla_\phi: \ \sum_k (\tilde w_k - \tilde w_k^2)\, \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k,

    which has the same expectation as the wake phase of `RWS`, :math:`\sum_k \tilde w_k \nabla_\phi \log q(z_k|x)`,
    including the bias of order 1/K, and less variance. The latents must be reparameterised.

    Args:
        num_particles: K.

    Raises:
        ValueError: If a latent is not reparameterised, or q does not score a given z.

    Reference:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019), section 5,
        https://arxiv.org/abs/1810.04152

    Example:
        >>> RWSDReG(8).reference
        RWS(num_particles=8, guide='wake')
    """

    _follows = RWS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_particles == 1:
            raise ValueError(
                f"{owner(self)}: num_particles is 1, for which q's gradient is zero; expected at least 2, or use STL"
            )

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_weights.require_pathwise(self)
        weights = log_weights.normalized
        surrogate = log_weights.surrogate(weights, path=1 - weights, score=0.0)
        return Estimate(log_mean_w(log_weights).detach(), surrogate, "lower")
