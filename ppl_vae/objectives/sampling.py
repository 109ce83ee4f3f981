r"""The log-weights of a program, from one run of the guide and the model with all particles in parallel.

The attribute ``latents`` of an objective states how the latents are drawn:

- ``"pathwise"``: as the guide draws them, with their gradient.
- ``"detached"``: the same draws without a gradient, for estimators that use the score of q.
- ``"scored"``: those that are reparameterised with their gradient, the others without, for the score of q.
- ``"enumerated"``: all states of the latents that list them, as the particles, and a draw of all others for each.
- a Pyro handler that draws in place of the guide (`objectives.relaxed` and `objectives.logits` have one each).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_vae._distributions import describe, is_discrete, unwrapped
from ppl_vae._validation import check_choice, check_positive_int
from ppl_vae.distributions.partly_known import PartlyKnown
from ppl_vae.objectives.log_weights import LogWeights, Path
from ppl_vae.objectives.traces import PARTICLES, from_traces, sample_sites, sum_per_datum

MOST_STATES = 2**16  # joint states to enumerate

Latents = Literal["pathwise", "detached", "scored", "enumerated"] | AbstractContextManager[Any]
Function = Callable[..., Any]


def sample_log_weights(
    model: Function,
    guide: Function,
    *args: Any,
    num_particles: int = 1,
    max_plate_nesting: int = 1,
    latents: Latents = "pathwise",
    **kwargs: Any,
) -> LogWeights:
    """Run a guide and its model once, all particles in parallel, and return the log-weights.

    The observed data and every latent must lie in one plate at dim -1. The log-weights sum over further plates (dim -2
    and beyond). Networks see the particles as an additional leading dimension, which the pieces of `ppl_vae` flatten.

    Args:
        model: p(x, z), a Pyro program.
        guide: q(z|x), a Pyro program with the same arguments.
        *args: The arguments of both.
        num_particles: K; ``latents="enumerated"`` replaces it by the number of states.
        max_plate_nesting: The number of nested plates in the program; 1 for the data plate alone.
        latents: How latents are drawn; the documentation of this module lists the choices.
        **kwargs: The keyword arguments of both.

    Raises:
        NotPerDatumError: If the log-weights do not factorise over the data.
        ValueError: If `num_particles` is not a positive integer, if `latents` is another word, or if the latents cannot
            be enumerated as asked.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> sample_log_weights(vae.model, vae.guide, torch.zeros(5, 64), num_particles=3).log_w.shape
        torch.Size([3, 5])
    """
    check_positive_int(num_particles, "num_particles")
    drawn: AbstractContextManager[Any] = nullcontext()
    states: dict[str, Tensor] = {}
    if latents == "enumerated":
        states = _all_states(guide, args, kwargs, max_plate_nesting)
        num_particles, drawn = len(next(iter(states.values()))), _Given(states)
    elif latents in ("detached", "scored"):
        drawn = _Detached(paths=latents == "scored")
    elif isinstance(latents, str):
        check_choice(latents, ("pathwise", "detached", "scored", "enumerated"), "latents")
    else:
        drawn = latents
    program = (model, guide)
    if num_particles > 1:
        plate = pyro.plate(PARTICLES, num_particles, dim=-1 - max_plate_nesting)
        model, guide = plate(model), plate(guide)
    with drawn:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    seen = _seen(guide_trace)
    replayed = poutine.replay(model, trace=_with_values(guide_trace, seen) if seen else guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    weights = from_traces(model_trace, guide_trace)
    again = _Again(program, (model, guide), args, kwargs, guide_trace, weights)
    return replace(
        weights,
        path=Path(seen) if seen else None,
        again=again,
        enumerated=tuple(states),
        detached=latents == "detached",
        drawing=None if isinstance(latents, str) else latents,
    )


@dataclass(frozen=True)
class _Again:
    """The program of some log-weights, kept for another run."""

    program: tuple[Function, Function]
    in_plate: tuple[Function, Function]  # the same, inside the plate of particles
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    guide_trace: poutine.Trace
    weights: LogWeights

    def score(self) -> Tensor:
        fixed = {name: z.detach() for name, z in self.weights.z.items()}
        sites = sample_sites(self._run(self.in_plate[1], fixed))
        return self._sum({name: site for name, site in sites.items() if name in fixed})

    def log_p(self, z: Mapping[str, Tensor]) -> Tensor:
        with pyro.validation_enabled(False):  # a relaxed z is outside of the support
            return self._sum(sample_sites(self._run(self.in_plate[0], z)))

    def at(self, z: Mapping[str, Tensor]) -> LogWeights:
        guide_trace, model_trace = (self._run(part, z) for part in self.in_plate[::-1])
        return from_traces(model_trace, guide_trace)

    def dream(self) -> Tensor:
        model, guide = self.program
        with torch.no_grad(), _batch_norm_learns_nothing():
            dreamt = poutine.trace(poutine.uncondition(model)).get_trace(*self.args, **self.kwargs)
        args, latent = list(self.args), {}
        for name, site in sample_sites(dreamt).items():
            if not site["infer"].get("was_observed"):
                latent[name] = site["value"]
                continue
            places = [i for i, arg in enumerate(args) if arg is site["infer"]["obs"]]
            if not places:
                raise ValueError(
                    f"the sleep phase draws data at site {name!r} and gives them to the guide, and none of the "
                    "program's arguments is what that site observes; pass it on as it is (obs=x), or use guide='wake'"
                )
            args[places[0]] = site["value"]
        with _Given(latent), _batch_norm_learns_nothing():
            trace = poutine.trace(guide).get_trace(*args, **self.kwargs)
        sites = {name: _of_a_dream(site) for name, site in sample_sites(trace).items() if name in latent}
        return self._sum(sites)[0]

    def _run(self, part: Function, z: Mapping[str, Tensor]) -> poutine.Trace:
        """Return the trace of the model or the guide at given latents."""
        replayed = poutine.replay(part, trace=_with_values(self.guide_trace, z))
        with _batch_norm_learns_nothing():
            return poutine.trace(replayed).get_trace(*self.args, **self.kwargs)

    def _sum(self, sites: Mapping[str, Any]) -> Tensor:
        return sum_per_datum(sites, self.weights.log_lik.shape[1])


def _of_a_dream(site: dict[str, Any]) -> dict[str, Any]:
    """Return a site of a guide whose data the model drew: of their labels none is known."""
    q = unwrapped(site["fn"])
    return {**site, "fn": q.unlabelled} if isinstance(q, PartlyKnown) else site


class _Detached(Messenger):
    """A handler that draws latents without a gradient. It must lie outside the handler that records the trace.

    Args:
        paths: Whether to leave continuous latents that are reparameterised to the guide.
    """

    def __init__(self, paths: bool = False) -> None:
        super().__init__()
        self.paths = paths

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):  # a plate's choice of data, which may be given
            return
        if self.paths and msg["fn"].has_rsample and not is_discrete(msg["fn"]):
            return
        if not (msg["done"] or msg["is_observed"]):
            with torch.no_grad():
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
            msg["done"] = True


class _Given(Messenger):
    """A handler that sets the values of latent sites; names that the program does not have are ignored."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


@contextmanager
def _batch_norm_learns_nothing() -> Iterator[None]:
    """Let batch normalisation in training mode normalise by the batch and not update its running statistics."""
    silenced = []

    def silence(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            module.track_running_stats = False
            silenced.append(module)

    hook = register_module_forward_pre_hook(silence)
    try:
        yield
    finally:
        hook.remove()
        for module in silenced:
            module.track_running_stats = True


def _all_states(guide: Function, args: Any, kwargs: Any, max_plate_nesting: int) -> dict[str, Tensor]:
    """Return all joint states of the latents of a guide that list them, (states, batch, *event) for each site."""
    with _Detached(), _batch_norm_learns_nothing():
        sites = sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
    supports = {}
    listed = {name for name, site in sites.items() if getattr(site["fn"], "has_enumerate_support", False)}
    for name, site in sites.items():
        fn = site["fn"]
        if listed and name not in listed and fn.has_rsample:
            continue  # drawn given the states
        if name not in listed:
            raise ValueError(
                f"latents are to be enumerated, and q at site {name!r} ({describe(fn)}) lists no states; use a "
                "discrete posterior of few states such as posteriors.BernoulliVector, or REINFORCE"
            )
        if len(fn.batch_shape) != 1:
            raise ValueError(
                f"latents are to be enumerated, and site {name!r} lies in more than the plate of the data (batch shape "
                f"{tuple(fn.batch_shape)}); make its variables one event, or use REINFORCE"
            )
        supports[name] = fn.enumerate_support(expand=False).squeeze(1)  # (states, *event)
    count = math.prod(map(len, supports.values())) if supports else 0
    if not 1 < count <= MOST_STATES:
        raise ValueError(f"latents are to be enumerated, and have {count} states; expected 2 to {MOST_STATES:,}")
    states, repeat = {}, count
    for name, support in supports.items():
        event, plates = support.shape[1:], (1,) * (max_plate_nesting - 1)
        repeat //= len(support)  # the joint states in a row that share a state of this site
        joint = support.repeat_interleave(repeat, 0).expand(count // (repeat * len(support)), -1, *event)
        batch = sites[name]["fn"].batch_shape
        states[name] = joint.reshape(count, *plates, 1, *event).expand(count, *plates, *batch, *event)
    return states


def _seen(guide_trace: poutine.Trace) -> dict[str, Tensor]:
    """Return views of the latents for the model to see, at which a `Path` can weigh the gradient on its way back."""
    values = {name: site["value"] for name, site in sample_sites(guide_trace).items()}
    if not any(v.requires_grad for v in values.values()):
        return {}
    return {name: v.view_as(v) for name, v in values.items()}


def _with_values(trace: poutine.Trace, values: Mapping[str, Tensor]) -> poutine.Trace:
    trace = trace.copy()
    for name, value in values.items():
        trace.nodes[name] = {**trace.nodes[name], "value": value}
    return trace
