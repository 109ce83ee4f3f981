"""Log-weights from the traces of a guide and its model, with a check that their densities factorise over data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_vae._distributions import describe, innermost, unwrapped
from ppl_vae._numbers import finite
from ppl_vae.objectives.log_weights import LogWeights, to_particles

if TYPE_CHECKING:
    from jaxtyping import Float

PARTICLES = "num_particles_vectorized"  # as Pyro names its plate over particles, so that its traces work too


class NotPerDatumError(ValueError):
    """A program whose log-weights do not factorise over data, which a per-datum objective needs."""


def sum_per_datum(sites: Mapping[str, Any], size: int) -> Float[Tensor, "K batch"]:
    """Return the sum of the log-densities at some sites."""
    particles = _particles(sites)
    return torch.stack([to_particles(_log_prob(site), *particles, size) for site in sites.values()]).sum(0)


def _particles(sites: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return the number of particles and their dimension, None for a single particle without a plate."""
    found = (frame for site in sites.values() for frame in _frames(site) if frame.name == PARTICLES)
    return next(((frame.size, frame.dim) for frame in found), (1, None))


def _log_prob(site: Any) -> Tensor:
    """Return the log-density at a site, masked but not scaled."""
    log_p = site.get("unscaled_log_prob")
    if log_p is None:
        log_p = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    if site["value"].requires_grad and (between := _between_states(site["fn"], site["value"])) is not None:
        log_p = log_p + between
    return scale_and_mask(log_p, mask=site["mask"])


def _between_states(fn: Any, z: Tensor) -> Tensor | None:
    """Return what the density of a one-hot z lacks between states, zero at a state; None if it lacks nothing.

    Pyro's `OneHotCategorical` scores the state that is nearest to z, so that its density has no slope in z; that of
    bits and of `OneHotVector` is linear in z.
    """
    if isinstance(fn, dist.MaskedDistribution):
        between = _between_states(fn.base_dist, z)
        return None if between is None else scale_and_mask(between, mask=fn._mask)
    base = unwrapped(fn)
    if not isinstance(base, dist.OneHotCategorical):
        if innermost(base.support) is constraints.one_hot:
            raise TypeError(
                f"{describe(base)} scores the one-hot state that is nearest to z, so that it has no slope between "
                "states, and the objective follows one; use distributions.OneHotVector, or REINFORCE or VIMCO"
            )
        return None
    nearest = z.detach().argmax(-1, keepdim=True) == torch.arange(z.shape[-1], device=z.device)
    return sum_rightmost((z - nearest.to(z)) * finite(base.logits.detach()), fn.event_dim)


def from_traces(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> LogWeights:
    """Return the log-weights from the trace of a guide and the trace of the model replayed against it."""
    model_sites = sample_sites(model_trace)
    guide_sites = sample_sites(guide_trace)
    observed = {name: site for name, site in model_sites.items() if site["is_observed"]}
    latent = {name: site for name, site in model_sites.items() if not site["is_observed"]}
    _check_sites(latent, guide_sites, observed)
    plate = next(frame for site in observed.values() for frame in _frames(site) if frame.dim == -1)
    particles = _particles(guide_sites)

    def per_datum(site: Any) -> Tensor:
        if not any(frame.dim == -1 and frame.name == plate.name for frame in _frames(site)):
            raise NotPerDatumError(
                f"site {site['name']!r} lies outside the plate {plate.name!r} of the data (dim -1), so its "
                "log-weight does not belong to one datum; use one of Pyro's objectives, or move it inside"
            )
        return to_particles(_log_prob(site), *particles, plate.size)

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


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Return the sample sites of a trace, without those of subsampling plates and of `pyro.deterministic`."""
    return {
        name: site
        for name, site in prune_subsample_sites(trace).nodes.items()
        if site["type"] == "sample" and not (site["infer"] or {}).get("_deterministic")
    }


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
    first = sites[0]["scale"]
    for site in sites[1:]:
        if site["scale"] is not first and not _equal(site["scale"], first):
            raise NotPerDatumError(
                f"sites {sites[0]['name']!r} and {site['name']!r} have the scales {_show(first)} and "
                f"{_show(site['scale'])}: a scale on one side alone is no bound; scale the whole program, or weigh the "
                "KL in the objective"
            )
    return first


def _show(scale: Any) -> str:
    return f"a tensor of shape {tuple(scale.shape)}" if isinstance(scale, Tensor) else str(scale)


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return a == b
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if (a.dtype, a.device) != (b.dtype, b.device):
        return False
    try:
        return torch.equal(a, b)
    except RuntimeError:  # during graph capture tensors cannot be compared; the eager step before it has done so
        return True
