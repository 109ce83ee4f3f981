r"""Per-datum log-weights: what every objective starts from.

For K particles :math:`z_k \sim q(z|x)` and a batch of data,

.. math::
    \log w_k(x) = \log p(x|z_k) + \log p(z_k) - \log q(z_k|x),

kept in its parts, each of shape (K, batch), so that an objective decides itself what is averaged, weighted or detached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_vae._distributions import describe
from ppl_vae._validation import check_positive_int

PARTICLES = "num_particles_vectorized"  # the name of Pyro's own plate over particles, so that its traces read alike


class NotPerDatumError(ValueError):
    """A program whose log-weights do not factorise over data, as a per-datum objective needs."""


@dataclass(frozen=True)
class LogWeights:
    r"""The log-weights of K particles for each datum of a batch, in parts; nats.

    The parts exclude the scale of the data plate (N/B under subsampling) and of `poutine.scale`, which belongs outside
    any logsumexp: it is in `scale`. Masks are inside.

    Attributes:
        log_lik: log p(x|z_k), all observed sites added, (K, batch).
        log_prior: For each latent site log p(z_k), (K, batch).
        log_q: For each latent site (auxiliary ones of the guide too) log q(z_k|x), (K, batch).
        z: The latents themselves, shape (K, batch, *event), or (batch, *event) where K = 1.
        prior: For each latent site the distribution p(z) as the model had it, its mask included.
        posterior: For each latent site the distribution q(z|x) as the guide had it.
        observed: For each observed site the pair of p(x|z) and x.
        scale: The factor of each datum in a sum over data: a number, or a tensor that broadcasts to (batch,).

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> log_weights = sample_log_weights(vae.model, vae.guide, torch.zeros(5, 64), num_particles=3)
        >>> log_weights.z["z"].shape, log_weights.analytic_kl().shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5]))
    """

    log_lik: Tensor
    log_prior: Mapping[str, Tensor]
    log_q: Mapping[str, Tensor]
    z: Mapping[str, Tensor]
    prior: Mapping[str, Any]
    posterior: Mapping[str, Any]
    observed: Mapping[str, tuple[Any, Tensor]]
    scale: float | Tensor = 1.0

    @property
    def num_particles(self) -> int:
        """K."""
        return self.log_lik.shape[0]

    @property
    def log_w(self) -> Tensor:
        """Log p(x, z_k) - log q(z_k|x), (K, batch)."""
        return self.log_lik - self.kl

    @property
    def kl(self) -> Tensor:
        """The sampled KL, log q(z_k|x) - log p(z_k) with all sites added, (K, batch)."""
        kl = torch.zeros_like(self.log_lik)
        for log_q in self.log_q.values():
            kl = kl + log_q
        for log_prior in self.log_prior.values():
            kl = kl - log_prior
        return kl

    def analytic_kl(self) -> Tensor:
        r"""Return :math:`\sum_s \mathrm{KL}(q(z_s|x) \,\|\, p(z_s))` over sites s in closed form, (K, batch).

        Under a site that depends on another latent the KL is conditional on the sampled value of that one.

        Raises:
            NotImplementedError: If there is no closed form for a site; the sampled `kl` always exists.
        """
        kl = torch.zeros_like(self.log_lik)
        for name, q in self.posterior.items():
            if name not in self.prior:
                raise NotImplementedError(f"site {name!r} is in the guide alone: its KL has no closed form; use ELBO")
            try:
                site_kl = torch.distributions.kl_divergence(q, self.prior[name])
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"there is no closed form of the KL at site {name!r} between {describe(q)} and "
                    f"{describe(self.prior[name])}; use the sampled one, objective ELBO"
                ) from error
            kl = kl + _to_particles(site_kl, self.num_particles, _particle_dim(site_kl.shape, self.num_particles))
        return kl

    def require_pathwise(self, objective: str) -> None:
        """Raise if gradients are wanted and a latent is not reparameterised: its score would silently be missing."""
        if not torch.is_grad_enabled():
            return
        for name, q in self.posterior.items():
            if not q.has_rsample:
                raise ValueError(
                    f"objective {objective} needs reparameterised latents, and q at site {name!r} "
                    f"({describe(q)}) is not; use pyro.infer.Trace_ELBO, whose gradient has the score term"
                )


def sample_log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 1,
    max_plate_nesting: int = 1,
    **kwargs: Any,
) -> LogWeights:
    """Run a guide and its model once, all particles side by side, and return the log-weights.

    The observed data and every latent must lie in one plate at dim -1; further plates (at -2 and beyond) are summed
    over. Networks see particles as one more leading dimension, which `ppl_vae`'s own pieces flatten.

    Args:
        model: p(x, z), a Pyro program.
        guide: q(z|x), a Pyro program of the same arguments.
        *args: The arguments of both.
        num_particles: K.
        max_plate_nesting: How many plates are nested in the program; 1 for data alone.
        **kwargs: The keyword arguments of both.

    Raises:
        NotPerDatumError: If the log-weights do not factorise over the data.
        ValueError: If `num_particles` is not a positive integer.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> sample_log_weights(vae.model, vae.guide, torch.zeros(5, 64), num_particles=3).log_w.shape
        torch.Size([3, 5])
    """
    if check_positive_int(num_particles, "num_particles") > 1:
        plate = pyro.plate(PARTICLES, num_particles, dim=-1 - max_plate_nesting)
        model, guide = plate(model), plate(guide)
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return from_traces(model_trace, guide_trace)


def from_traces(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> LogWeights:
    """Return the log-weights of a guide's trace and its model's, replayed against it."""
    model_sites = _sample_sites(model_trace)
    guide_sites = _sample_sites(guide_trace)
    observed = {name: site for name, site in model_sites.items() if site["is_observed"]}
    latent = {name: site for name, site in model_sites.items() if not site["is_observed"]}
    _check_sites(latent, guide_sites, observed)
    plate = next(frame for site in observed.values() for frame in _frames(site) if frame.dim == -1)
    particles = next((f for s in guide_sites.values() for f in _frames(s) if f.name == PARTICLES), None)
    num_particles, particle_dim = (1, None) if particles is None else (particles.size, particles.dim)

    def per_datum(site: Any) -> Tensor:
        if not any(frame.dim == -1 and frame.name == plate.name for frame in _frames(site)):
            raise NotPerDatumError(
                f"site {site['name']!r} lies outside the plate {plate.name!r} of the data (dim -1), so its "
                "log-weight does not belong to one datum; use one of Pyro's objectives, or move it inside"
            )
        log_p = site.get("unscaled_log_prob")
        if log_p is None:
            log_p = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        return _to_particles(scale_and_mask(log_p, mask=site["mask"]), num_particles, particle_dim, plate.size)

    log_lik = torch.stack([per_datum(site) for site in observed.values()]).sum(0)
    return LogWeights(
        log_lik=log_lik,
        log_prior={name: per_datum(site) for name, site in latent.items()},
        log_q={name: per_datum(site) for name, site in guide_sites.items()},
        z={name: site["value"] for name, site in guide_sites.items()},
        prior={name: _masked(site) for name, site in latent.items()},
        posterior={name: _masked(site) for name, site in guide_sites.items()},
        observed={name: (_masked(site), site["value"]) for name, site in observed.items()},
        scale=_common_scale([*guide_sites.values(), *model_sites.values()]),
    )


def _sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    return {name: site for name, site in prune_subsample_sites(trace).nodes.items() if site["type"] == "sample"}


def _frames(site: Any) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _masked(site: Any) -> Any:
    return site["fn"] if site["mask"] is None else site["fn"].mask(site["mask"])


def _check_sites(latent: dict, guide_sites: dict, observed: dict) -> None:
    if not any(frame.dim == -1 for site in observed.values() for frame in _frames(site)):
        raise NotPerDatumError(
            "the model observes nothing inside a plate at dim -1; write "
            "`with pyro.plate('data', len(x), dim=-1): pyro.sample('x', ..., obs=x)`"
        )
    for name, site in {**latent, **guide_sites}.items():
        if site["infer"].get("_enumerate_dim") is not None:
            raise NotPerDatumError(f"site {name!r} is enumerated: it has no one value to weigh")
    for name in latent.keys() - guide_sites.keys():
        raise NotPerDatumError(f"the model samples {name!r} and the guide does not; give the guide a site {name!r}")
    for name, site in guide_sites.items():
        if site["is_observed"]:
            raise NotPerDatumError(
                f"the guide observes {name!r} (obs=... or pyro.factor), which is no part of a density q(z|x); "
                "move it into the model, or use one of Pyro's objectives"
            )
        if name not in latent and not site["infer"].get("is_auxiliary"):
            raise NotPerDatumError(
                f"the guide samples {name!r} and the model does not; "
                "give the model such a site, or mark it infer={'is_auxiliary': True}"
            )


def _common_scale(sites: list[Any]) -> float | Tensor:
    first_name, first = sites[0]["name"], sites[0]["scale"]
    for name, scale in [(site["name"], site["scale"]) for site in sites[1:]]:
        same = scale is first or (
            torch.equal(torch.as_tensor(scale), torch.as_tensor(first))
            if isinstance(scale, Tensor) or isinstance(first, Tensor)
            else scale == first
        )
        if not same:
            raise NotPerDatumError(
                f"sites {first_name!r} and {name!r} have the scales {first} and {scale}: a scale on one side alone is "
                "no bound; scale the whole program, or weigh the KL in the objective"
            )
    return first


def _to_particles(log_p: Tensor, num_particles: int, particle_dim: int | None, size: int | None = None) -> Tensor:
    """Sum all dimensions but the particles' and the data's (-1), and return (K, batch)."""
    keep = {-1, particle_dim}
    dims = [d for d in range(-log_p.dim(), 0) if d not in keep]
    if dims:
        log_p = log_p.sum(dims)
    return log_p.expand(num_particles, log_p.shape[-1] if size is None else size)


def _particle_dim(batch_shape: torch.Size, num_particles: int) -> int | None:
    return -len(batch_shape) if num_particles > 1 and len(batch_shape) > 1 else None
