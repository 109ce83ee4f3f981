r"""Annealed bounds as objectives: a differentiable path of Hamiltonian transitions from q(z|x) towards p(z|x).

All of them extend the latents by the states of a path, so that :math:`\mathbb E\, w = p(x)` and the log of an average
of weights is a lower bound of log p(x). No transition is rejected: a rejection has no gradient. The price is that a
path of long steps is a bad one, which the bound tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from ppl_vae._distributions import describe, innermost
from ppl_vae._validation import check_positive, check_positive_int, is_real
from ppl_vae.objectives.baselines import enter
from ppl_vae.objectives.estimate import Estimate, owner
from ppl_vae.objectives.log_weights import LogWeights

if TYPE_CHECKING:
    from jaxtyping import Float


class DAIS:
    r"""The bound of annealed importance sampling with Hamiltonian transitions that are not corrected (DAIS, UHA).

    A path starts at :math:`z_0 \sim q(z|x)` with a momentum :math:`v_0 \sim N(0, I)`. Each of T transitions takes
    leapfrog steps of the size :math:`\epsilon` under :math:`f_\beta(z) = q(z|x)^{1 - \beta} p(x, z)^\beta` and then
    refreshes the momentum,

    .. math::
        v_t = \gamma\, \hat v_t + \sqrt{1 - \gamma^2}\, \xi_t, \qquad \xi_t \sim N(0, I),

    where :math:`\hat v_t` is the momentum after the steps. Leapfrog steps preserve volume, so the weight is

    .. math::
        \log w = \log p(x, z_T) - \log q(z_0|x) + \sum_{t=1}^T \log N(\hat v_t; 0, I) - \log N(v_{t-1}; 0, I), \qquad
        \hat{\mathcal L} = \log \frac1K \sum_k w_k.

    It is a **lower bound in expectation for every step size and schedule**, and nears log p(x) as T grows and the steps
    shrink. A short path of long steps can be looser than the ELBO. With ``leapfrogs=1`` it is DAIS; with more it is
    UHA. A path of no effect (steps of size 0) is `IWAE`. The gradient is that of the value, through the draws and the
    whole path; it includes the second derivative of the decoder. The step size, :math:`\gamma` and the increments of
    :math:`\beta` are trained with the program, unless ``adapt=False``.

    **It is slow**: ``transitions * leapfrogs`` gradients of the decoder, and about three times that with the backward
    pass, whose memory grows likewise. The latent must be one site with real, unconstrained values. An object of this
    class holds its parameters: use one object per training run.

    Args:
        num_particles: K, the number of paths.
        transitions: T.
        leapfrogs: The leapfrog steps of a transition.
        step_size: The first :math:`\epsilon`, in units of z. Steps well above the smallest scale of q(z|x) and p(z)
            diverge: the bound is then far too low, and its gradient may overflow.
        refresh: The first :math:`\gamma`, below 1; with 0 every transition has a fresh momentum, in training too.
        adapt: Whether step size, refreshment and schedule are trained.

    Raises:
        ValueError: If an argument is out of range, or a latent is not reparameterised.
        TypeError: If the program has several latents, or one that is constrained.

    Reference:
        Differentiable Annealed Importance Sampling and the Perils of Gradient Noise (Zhang et al., 2021),
        https://arxiv.org/abs/2107.10211; MCMC Variational Inference via Uncorrected Hamiltonian Annealing (Geffner &
        Domke, 2021), https://arxiv.org/abs/2107.04150

    Example:
        >>> DAIS(transitions=4, leapfrogs=2)
        DAIS(num_particles=1, transitions=4, leapfrogs=2, step_size=0.1, refresh=0.5)
    """

    def __init__(
        self,
        num_particles: int = 1,
        transitions: int = 8,
        leapfrogs: int = 1,
        step_size: float = 0.1,
        refresh: float = 0.5,
        adapt: bool = True,
    ) -> None:
        self.num_particles = check_positive_int(num_particles, f"{owner(self)}: num_particles")
        self.transitions = check_positive_int(transitions, f"{owner(self)}: transitions")
        self.leapfrogs = check_positive_int(leapfrogs, f"{owner(self)}: leapfrogs")
        self.step_size = check_positive(step_size, f"{owner(self)}: step_size")
        if not is_real(refresh) or not 0 <= refresh < 1:
            raise ValueError(
                f"{owner(self)}: refresh is {refresh!r}; expected the share of the momentum that is kept, "
                "from 0 to below 1"
            )
        self.refresh = refresh
        self.adapt = adapt
        self.path = _Schedule(transitions, step_size, refresh, adapt)

    def __repr__(self) -> str:
        fixed = "" if self.adapt else ", adapt=False"
        return (
            f"DAIS(num_particles={self.num_particles}, transitions={self.transitions}, leapfrogs={self.leapfrogs}, "
            f"step_size={self.step_size}, refresh={self.refresh}{fixed})"
        )

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        log_w = self.log_weights(log_weights)
        bound = log_w.logsumexp(0) - math.log(len(log_w))
        return Estimate(bound.detach(), bound, "lower")

    def log_weights(self, start: LogWeights) -> Float[Tensor, "K batch"]:
        """Return the log-weights of paths that start at sampled latents, nats."""
        start.require_pathwise(self)
        site = _Site(start, self)
        enter(self.path, site.z)
        step, keep, betas = self.path()
        z, v = site.z, momentum(site.z)
        log_w = -site.log_q(z)
        for beta in betas:
            log_w = log_w + 0.5 * site.total(v.square())
            for _ in range(self.leapfrogs):
                z = z + 0.5 * step * v
                v = v + step * site.slope(z, beta)
                z = z + 0.5 * step * v
            log_w = log_w - 0.5 * site.total(v.square())
            v = keep * v + (1 - keep.square()).sqrt() * momentum(v)
        return log_w + site.log_p(z)


def momentum(like: Tensor) -> Tensor:
    """Return standard normal momenta of the shape, type and device of `like`."""
    return torch.randn_like(like)


class _Schedule(nn.Module):
    """The step size, the refreshment and the schedule of a path.

    Args:
        transitions: T.
        step_size: The first step size.
        refresh: The first share of the momentum that is kept.
        adapt: Whether they are parameters.
    """

    log_step: Tensor
    logit: Tensor
    increments: Tensor

    def __init__(self, transitions: int, step_size: float, refresh: float, adapt: bool) -> None:
        super().__init__()
        self.fresh = refresh == 0
        log_step = torch.tensor(math.log(step_size), dtype=torch.float64)
        logit = torch.tensor(0.0 if self.fresh else math.log(refresh / (1 - refresh)), dtype=torch.float64)
        increments = torch.zeros(transitions, dtype=torch.float64)
        for name, value, trained in (
            ("log_step", log_step, adapt),
            ("logit", logit, adapt and not self.fresh),
            ("increments", increments, adapt),
        ):
            if trained:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """Return the step size, the share of the momentum that is kept, and the betas from the first to 1."""
        keep = torch.zeros_like(self.logit) if self.fresh else self.logit.sigmoid()
        return self.log_step.exp(), keep, self.increments.softmax(0).cumsum(0).unbind()


class _Site:
    """The one latent of some log-weights, with the densities at other values of it."""

    def __init__(self, start: LogWeights, objective: object) -> None:
        if len(start.posterior) != 1 or start.again is None:
            raise TypeError(
                f"{owner(objective)} moves one latent site of a program that was sampled; this one has "
                f"{list(start.posterior)}; use IWAE or DReG"
            )
        ((self.name, self.q),) = start.posterior.items()
        for what, fn in (("q", self.q), ("p", start.prior.get(self.name))):
            if fn is not None and innermost(fn.support) is not constraints.real:
                raise TypeError(
                    f"{owner(objective)} moves a latent along gradients, which needs real, unconstrained values, and "
                    f"{what} at site {self.name!r} is {describe(fn)}; use IWAE or DReG"
                )
        self.again, self.per_particle = start.again, start.per_particle
        z = start.z[self.name]
        self.z = z if z.requires_grad else z.detach().requires_grad_()

    def total(self, values: Tensor) -> Float[Tensor, "K batch"]:
        """Return the sum of values in the form of z over all but particles and data."""
        return self.per_particle(values.flatten(-self.q.event_dim).sum(-1) if self.q.event_dim else values)

    def log_q(self, z: Tensor) -> Float[Tensor, "K batch"]:
        """Return log q(z|x)."""
        return self.per_particle(self.q.log_prob(z))

    def log_p(self, z: Tensor) -> Float[Tensor, "K batch"]:
        """Return log p(x, z)."""
        return self.again.log_p({self.name: z})

    def slope(self, z: Tensor, beta: Tensor) -> Tensor:
        """Return the gradient of (1 - beta) log q(z|x) + beta log p(x, z)."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            log_f = (1 - beta) * self.log_q(z) + beta * self.log_p(z)
            (slope,) = torch.autograd.grad(log_f.sum(), z, create_graph=graph)
        return slope
