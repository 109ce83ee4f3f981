r"""Per-datum log-weights, the input of every objective.

For K particles :math:`z_k \sim q(z|x)` and a batch of data, the log-weights are

.. math::
    \log w_k(x) = \log p(x|z_k) + \log p(z_k) - \log q(z_k|x),

and `LogWeights` keeps the three terms separate, each of shape (K, batch): the objective decides what to average, weigh
or detach.

Three weights for each particle define the gradient of a sampled estimator, and `LogWeights.surrogate` builds it:

.. math::
    \sum_k a_k \nabla \log p(x, z_k)\big|_{z_k}
    + b_k \frac{\partial \log w_k}{\partial z_k} \nabla z_k
    + d_k \nabla \log q(z_k|x)\big|_{z_k},

with :math:`\tilde w_k` the normalised weights, f = log w, and v the normalised :math:`w^{1 - a}` at the order a of
`Renyi`; c is the gamma of `OVIS`:

=========================  =====================  ============================  ====================================
estimator                  model a                path b                        score d
=========================  =====================  ============================  ====================================
ELBO                       1/K                    1/K                           -1/K
STL                        1/K                    1/K                           0
IWAE                       w~                     w~                            -w~
IWAE-STL                   w~                     w~                            0
DReG                       w~                     w~^2                          0
GDReG                      w~; prior: see there   w~^2                          0
Renyi                      v                      v                             -v
RenyiDReG                  v                      a v + (1 - a) v^2             0
PIWAE                      w~                     w~ in groups                  -(w~ in groups)
REINFORCE                  1/K                    0                             (f - baseline) / K
VIMCO                      w~                     0                             L - L without k - w~
VIMCO-star                 w~                     0                             -log(1 - w~) - w~
OVIS                       w~                     0                             VIMCO-star's + c (w~ + log(1 - 1/K))
OVIS-MC                    w~                     0                             L - w~ - (the same at other draws)
RWS (wake)                 w~                     0                             w~
RWS-DReG                   w~                     w~ - w~^2                     0
EUBO, CUBO                 0                      0                             w~; (n - 1) / n times w~ of w^n
=========================  =====================  ============================  ====================================

Estimators that weigh each variable of a particle by a number of its own have the second form, `objectives.logits`.

The path weight multiplies the gradient that comes back from the model to z. It leaves a dependence on z through the
arguments of a guide's distribution, as in q(z2|z1), in place. To drop or reweigh the score, `surrogate` scores q again
at the same z. Neither step touches an encoder inside the prior (VampPrior): its gradient is part of grad log p.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae._distributions import describe

if TYPE_CHECKING:
    from jaxtyping import Float


class Again(Protocol):
    """A program that can run again at the z of an earlier pass; see `ppl_vae.objectives.sampling`."""

    def score(self) -> Float[Tensor, "K batch"]:
        """Return log q(z_k|x) at fixed z_k, summed over sites."""
        ...

    def at(self, z: Mapping[str, Tensor]) -> LogWeights:
        """Return the log-weights at given latents, one tensor for each latent site of the guide."""
        ...

    def dream(self) -> Float[Tensor, " batch"]:
        """Return log q(z|x) of data and latents that the model draws."""
        ...

    def log_p(self, z: Mapping[str, Tensor]) -> Float[Tensor, "K batch"]:
        """Return log p(x, z_k) at other latents, which need not lie in the support."""
        ...


@dataclass(eq=False)
class Path:
    """The path of the gradient from the model back to the guide's z, which one objective may weigh.

    Attributes:
        seen: For each latent site, the z that the model sees: the numbers of the guide's z in a separate tensor. This
            separates the gradient that comes from the model from the one that comes from the guide.
        spent: Whether an objective has weighed the path.
    """

    seen: Mapping[str, Tensor]
    spent: bool = False

    def weigh(self, weights: Mapping[str, Tensor]) -> None:
        """Multiply the gradient at each site by weights that broadcast to z.

        Raises:
            ValueError: If an objective has already weighed the path.
        """
        if self.spent:
            raise ValueError(
                "the path of these log-weights is weighted already, by another objective; sample new ones for this one"
            )
        self.spent = True
        for name, z in self.seen.items():
            if z.requires_grad:
                z.register_hook(functools.partial(torch.mul, weights[name]))


@dataclass(frozen=True)
class LogWeights:
    r"""The log-weights of K particles for each datum of a batch, in separate terms; nats.

    The terms exclude the scale of the data plate (N/B under subsampling) and of `poutine.scale`. A scale belongs
    outside every logsumexp, so `scale` holds it. The terms include masks.

    Attributes:
        log_lik: log p(x|z_k), summed over observed sites.
        log_prior: For each latent site log p(z_k).
        log_q: For each latent site of the guide, auxiliary sites included, log q(z_k|x).
        z: The latents, shape (K, batch, *event), or (batch, *event) where K = 1.
        prior: For each latent site the model's distribution p(z), its mask included.
        posterior: For each latent site the guide's distribution q(z|x), its mask included.
        observed: For each observed site the pair of p(x|z) and x.
        scale: The factor of each datum in a sum over data: a number, or a tensor that broadcasts to (batch,).
        path: The path of the gradient from the model back to z; None where latents carry no gradient.
        again: Runs the program again at these z; None for log-weights that `sample_log_weights` did not make.
        enumerated: The sites of which the particles are all joint states instead of draws; empty for draws. A state
            then has the weight q(state|x) in an expectation, not 1/K. All other sites are drawn given the state.
        detached: Whether the latents were deliberately drawn without a gradient, for the score function.
        drawing: The handler that drew in place of the guide, with the noise that it keeps; None where the guide drew.

    Example:
        >>> from ppl_vae import VAE, likelihoods, objectives, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> log_weights = objectives.sample_log_weights(vae.model, vae.guide, torch.zeros(5, 64), num_particles=3)
        >>> log_weights.z["z"].shape, log_weights.analytic_kl().shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5]))
    """

    log_lik: Float[Tensor, "K batch"]
    log_prior: Mapping[str, Float[Tensor, "K batch"]] = field(default_factory=dict)
    log_q: Mapping[str, Float[Tensor, "K batch"]] = field(default_factory=dict)
    z: Mapping[str, Tensor] = field(default_factory=dict)
    prior: Mapping[str, Any] = field(default_factory=dict)
    posterior: Mapping[str, Any] = field(default_factory=dict)
    observed: Mapping[str, tuple[Any, Tensor]] = field(default_factory=dict)
    scale: float | Tensor = 1.0
    path: Path | None = None
    again: Again | None = None
    enumerated: tuple[str, ...] = ()
    detached: bool = False
    drawing: Any = None

    @classmethod
    def of(cls, log_w: Float[Tensor, "K batch"]) -> LogWeights:
        """Return log-weights that hold only their values, for functions that need no more.

        Example:
            >>> LogWeights.of(torch.zeros(2, 3)).effective_sample_size
            tensor([2., 2., 2.])
        """
        return cls(log_w)

    @property
    def spent(self) -> bool:
        """Whether an objective has weighed the path."""
        return self.path is not None and self.path.spent

    @property
    def attached(self) -> bool:
        """Whether a latent carries the gradient of q, and not only that of the model as those of `DoubleCV` do."""
        return any(z.requires_grad for z in self.z.values()) and not getattr(self.drawing, "leaf", False)

    @property
    def scored(self) -> dict[str, Float[Tensor, "K batch"]]:
        """Log q(z_k|x) of each site whose draws carry no gradient of q, so that an estimator needs its score."""
        leaf = getattr(self.drawing, "leaf", False)
        return {name: log_q for name, log_q in self.log_q.items() if leaf or not self.z[name].requires_grad}

    @property
    def num_particles(self) -> int:
        """The number of particles K."""
        return self.log_lik.shape[0]

    @property
    def log_w(self) -> Float[Tensor, "K batch"]:
        """Log p(x, z_k) - log q(z_k|x)."""
        return self.log_lik - self.kl

    @property
    def kl(self) -> Float[Tensor, "K batch"]:
        """The sampled KL, log q(z_k|x) - log p(z_k), summed over sites."""
        kl = sum(self.log_q.values(), torch.zeros_like(self.log_lik))
        for log_prior in self.log_prior.values():
            kl = kl - log_prior
        return kl

    @property
    def log_p(self) -> Float[Tensor, "K batch"]:
        """Log p(x, z_k), summed over sites."""
        return sum(self.log_prior.values(), self.log_lik)

    @property
    def normalized(self) -> Float[Tensor, "K batch"]:
        r"""The normalised weights :math:`w_k / \sum_j w_j`, detached.

        For enumerated states the weights are without q(state|x). They are p(state|x), exact where no site is drawn.
        A state that masks leave out of p and q has the weight q(state|x).
        """
        drawn = [log_q for name, log_q in self.log_q.items() if name not in self.enumerated]
        log_w = self.log_p - sum(drawn, torch.zeros_like(self.log_lik))
        for name in self.enumerated:
            log_q, counted = self._state_log_q(name), self.log_q[name]
            log_w = log_w + torch.where(log_q == counted, 0.0, log_q - counted)
        return log_w.detach().softmax(0)

    @property
    def effective_sample_size(self) -> Float[Tensor, " batch"]:
        r"""The reciprocal of the sum of squared normalised weights, between 1 and K."""
        return self.normalized.square().sum(0).reciprocal()

    def surrogate(
        self,
        model: Float[Tensor, "K batch"] | None,
        path: Float[Tensor, "K batch"] | None = None,
        score: Float[Tensor, "K batch"] | float | None = None,
    ) -> Float[Tensor, " batch"]:
        r"""Return a tensor whose gradient has the given weights; its value means nothing.

        One backward pass suffices for all weights: a hook multiplies the gradient by the path weights on its way
        through z. After that, no other objective may differentiate the same log-weights.

        If `score` is given and z carries a gradient, q is scored once more at the same z: by its distribution where
        there is one site, otherwise by running the guide again. The second run leaves the statistics of batch
        normalisation alone, but draws a new dropout mask.

        Args:
            model: :math:`a_k`, detached; None for zero: the model is then not differentiated at all.
            path: :math:`b_k / a_k`, detached; None for one. It has no effect where z carries no gradient.
            score: :math:`d_k`, detached, or a number. None for the gradient of log w itself:
                :math:`-b_k`, or :math:`-a_k` where z carries no gradient.

        Raises:
            ValueError: If q cannot score a z other than its own last draw, or if an objective has weighed the path.

        Example:
            >>> from ppl_vae import VAE, likelihoods, objectives, posteriors, priors
            >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
            ...           posterior=posteriors.DiagonalNormal())
            >>> w = objectives.sample_log_weights(vae.model, vae.guide, torch.zeros(5, 64), num_particles=3)
            >>> w.surrogate(w.normalized, path=w.normalized, score=0.0).shape  # DReG
            torch.Size([5])
        """
        zero = torch.zeros_like(self.log_lik[0])
        if not torch.is_grad_enabled():
            return zero
        total = zero if model is None else (model * self.log_p).sum(0)
        log_q = self.joint_log_q
        if not self.attached:
            weights = score if score is not None else (0.0 if model is None else -model)
            return total + (weights * log_q).sum(0)
        weights = torch.zeros_like(self.log_lik) if model is None else model
        if path is not None:
            self._weigh_path(path)
            weights = weights * path
        if model is not None:
            total = total - (weights * log_q).sum(0)
        if score is not None:  # log_q contributes the score with the weight -b: make it d
            total = total + ((weights + score) * self._fixed_log_q()).sum(0)
        return total

    @property
    def joint_log_q(self) -> Float[Tensor, "K batch"]:
        """Log q(z_k|x), summed over sites."""
        return torch.stack(list(self.log_q.values())).sum(0) if self.log_q else torch.zeros_like(self.log_lik)

    def expectation(self, values: Float[Tensor, "K batch *more"]) -> Float[Tensor, " batch *more"]:
        """Return the mean of values over draws, or over enumerated states, of which q weighs each.

        A state of probability zero counts exactly nothing in value and gradient, whatever its value. A mask takes log q
        out of the log-weights, and not the weight of the state.
        """
        if not self.enumerated:
            return values.mean(0)
        log_q = torch.stack([self._state_log_q(name) for name in self.enumerated]).sum(0)
        log_q = log_q.reshape(*log_q.shape, *(1,) * (values.dim() - 2))
        return (log_q.exp() * torch.where(log_q > -torch.inf, values, 0.0)).sum(0)

    def per_particle(self, values: Float[Tensor, "*plates batch"]) -> Float[Tensor, "K batch"]:
        """Return the sum of values, of the batch shape of a site, over all but particles and data."""
        k, size = self.log_lik.shape
        return to_particles(values, k, -values.dim() if k > 1 and values.dim() > 1 else None, size)

    def _state_log_q(self, name: str) -> Tensor:
        """Return log q(state|x) of a site whose particles are all its states, (K, batch), without the site's mask."""
        q = self.posterior.get(name)
        if not isinstance(q, dist.MaskedDistribution):
            return self.log_q[name]
        while isinstance(q, dist.MaskedDistribution):
            q = q.base_dist
        return self.per_particle(q.log_prob(self.z[name]))

    def _fixed_log_q(self) -> Tensor:
        """Return log q(z_k|x) at fixed z_k, (K, batch), whose gradient is the score alone."""
        try:
            if len(self.posterior) != 1:
                if self.again is None:
                    raise NotImplementedError("these log-weights were not sampled from a program")
                return self.again.score()
            ((name, q),) = self.posterior.items()
            return self.per_particle(q.log_prob(self.z[name].detach()))
        except NotImplementedError as error:
            raise ValueError(
                f"the objective drops the score of q, and so scores a given z, which the posterior cannot ({error}); "
                "use ELBO, IWAE, or a posterior that scores any z, such as posteriors.CouplingFlow"
            ) from error

    def _weigh_path(self, path: Tensor) -> None:
        """Multiply the gradient that comes back from the model to z_k by `path`."""
        if self.path is None:
            raise ValueError("these log-weights have no path to weigh: sample them with sample_log_weights")
        self.path.weigh({name: self._like_latent(path, name) for name in self.path.seen})

    def _like_latent(self, weights: Tensor, name: str) -> Tensor:
        """Reshape weights (K, batch) so that they broadcast to z at a site."""
        z, event_dim = self.z[name], self.posterior[name].event_dim
        if self.num_particles == 1:
            return weights[0].reshape(-1, *(1,) * event_dim)
        inner = z.dim() - event_dim - 2  # plates inside the data plate
        return weights.reshape(weights.shape[0], *(1,) * inner, weights.shape[1], *(1,) * event_dim)

    def analytic_kl(self) -> Float[Tensor, "K batch"]:
        r"""Return :math:`\sum_s \mathrm{KL}(q(z_s|x) \,\|\, p(z_s))` over sites s in closed form.

        If a site depends on another latent, its KL is conditional on the sampled value of that latent. So is the KL of
        a `Chain` from one in the same order, level by level (`Chain.kl_given`): **both are unbiased, not exact**.

        Raises:
            NotImplementedError: If there is no closed form for a site; the sampled `kl` always exists.
        """
        kl = torch.zeros_like(self.log_lik)
        for name, q in self.posterior.items():
            if name not in self.prior:
                raise NotImplementedError(f"site {name!r} is in the guide alone: its KL has no closed form; use ELBO")
            try:
                if hasattr(q, "kl_given"):
                    site_kl = q.kl_given(self.prior[name], self.z[name], closed=True).sum(-1)
                else:
                    site_kl = torch.distributions.kl_divergence(q, self.prior[name])
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"there is no closed form of the KL at site {name!r} between {describe(q)} and "
                    f"{describe(self.prior[name])}; use the sampled one, objective ELBO"
                ) from error
            kl = kl + self.per_particle(site_kl)
        return kl

    def require_detached(self, objective: object) -> None:
        """Raise if gradients are recorded and a latent carries one: the path gradient would add to the score.

        Args:
            objective: The objective, or its name, for the message.
        """
        for name in self.require_draws(objective):
            if self.z[name].requires_grad:
                raise ValueError(
                    f"{owner(objective)} takes the score of q, and z at site {name!r} carries a gradient; "
                    "sample the log-weights with latents='detached'"
                )

    def require_draws(self, objective: object) -> list[str]:
        """Raise if the particles are all states.

        Args:
            objective: The objective, or its name, for the message.

        Returns:
            The sites whose gradient an objective may look at: all, or none where no gradient is recorded.
        """
        if self.enumerated:
            raise ValueError(
                f"{owner(objective)} averages over draws of q, and was given log-weights of all states; use "
                "EnumeratedELBO, or sample them without latents='enumerated'"
            )
        return list(self.z) if torch.is_grad_enabled() else []

    def require_pathwise(self, objective: object) -> None:
        """Raise if gradients are recorded and a latent carries none: the score term would silently be missing.

        Args:
            objective: The objective, or its name, for the message.
        """
        for name in self.require_draws(objective):
            q = self.posterior.get(name)  # none in log-weights that were made by hand
            if q is None or (self.z[name].requires_grad and not getattr(self.drawing, "leaf", False)):
                continue
            if not q.has_rsample:
                raise ValueError(
                    f"{owner(objective)} needs reparameterised latents, and q at site {name!r} "
                    f"({describe(q)}) is not; use REINFORCE or VIMCO, whose gradients have the score term, or for few "
                    "states EnumeratedELBO"
                )
            if self.detached and self.log_q[name].requires_grad:
                raise ValueError(
                    f"{owner(objective)} follows the path through z, and z at site {name!r} was drawn "
                    "without a gradient; sample the log-weights with latents='pathwise'"
                )


def owner(objective: object) -> str:
    """Return the name of an objective for messages, from the objective or its name."""
    return f"objective {objective if isinstance(objective, str) else type(objective).__name__}"


def to_particles(log_p: Tensor, num_particles: int, particle_dim: int | None, size: int) -> Tensor:
    """Sum over all dimensions except those of the particles and the data (-1), and return (K, batch)."""
    keep = {-1, particle_dim}
    dims = [d for d in range(-log_p.dim(), 0) if d not in keep]
    if dims:
        log_p = log_p.sum(dims)
    return log_p.expand(num_particles, size)
