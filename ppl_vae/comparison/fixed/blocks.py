"""The parameters of a program, in the blocks that a comparison reports separately: encoder, decoder, prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppl_vae.objectives.losses import Program
from ppl_vae.vae import VAE

NameBlock = Callable[[str], str | None]

_PIECES = (("encoder", "posterior"), ("decoder", "likelihood"), ("prior", "prior"))


@dataclass(frozen=True)
class Parameters:
    """The parameters of a program.

    Attributes:
        leaves: Pyro's name -> the unconstrained leaf, which optimisers change.
        blocks: The block's name -> the indices of its parameters in `leaves`.
    """

    leaves: Mapping[str, Tensor]
    blocks: Mapping[str, tuple[int, ...]]


def find_parameters(
    program: Program, args: tuple[Any, ...], *, vae: VAE | None = None, name_block: NameBlock | None = None
) -> Parameters:
    """Run guide and model once, and return the parameters that they use, in blocks.

    The blocks of a `VAE` are its posterior (``"encoder"``), its likelihood (``"decoder"``) and its prior. An encoder
    that a VampPrior shares belongs to the posterior. In another program, a parameter belongs to the ``"guide"`` if the
    draws or the density of the latents depend on it, to the ``"model"`` if the density of model sites at given latents
    depends on it, and to ``"shared"`` if both do. Parameters of the objective itself (a baseline) belong to no block.

    Args:
        program: Model and guide.
        args: Their arguments.
        vae: The `VAE` that the program comes from, if any.
        name_block: A function that replaces these rules, from a parameter's name to a block, or to None to leave it
            out.

    Raises:
        ValueError: If there is no parameter, or all are left out.
    """
    model, guide = program
    with torch.enable_grad():
        guide_trace = poutine.trace(guide).get_trace(*args)
        fixed = guide_trace.copy()
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and isinstance(site["value"], Tensor):
                fixed.nodes[name] = {**site, "value": site["value"].detach()}
        model_trace = poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*args)
        leaves = _leaves(_parameters_of(guide_trace) | _parameters_of(model_trace))
        if not leaves:
            raise ValueError(
                "the program has no parameter to differentiate by; register networks with pyro.module or use pyro.param"
            )
        names = {} if vae is None else _by_piece(vae, leaves)
        if name_block is not None:
            names = {name: name_block(_readable(name, vae)) for name in leaves}
        elif len(names) < len(leaves):
            names = {**_by_side(leaves, guide_trace, model_trace), **names}
    order = dict.fromkeys([*(b for b, _ in _PIECES), "guide", "model", *names.values()])
    blocks = {b: tuple(i for i, name in enumerate(leaves) if names[name] == b) for b in order if b is not None}
    blocks = {block: places for block, places in blocks.items() if places}
    if not blocks:
        raise ValueError("blocks leaves out every parameter; expected a function from a parameter's name to its block")
    return Parameters(leaves, blocks)


def _parameters_of(trace: poutine.Trace) -> dict[str, Any]:
    """Return the sites of parameters, whose names are apart from those of draws: both may have an ``"x"``."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "param"}


def _leaves(sites: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return each leaf once; a PyroModule inside a module registers its parameters twice."""
    leaves: dict[str, Tensor] = {}
    for name, site in sites.items():
        leaf = site["value"].unconstrained()
        if leaf.requires_grad and not any(leaf is other for other in leaves.values()):
            leaves[name] = leaf
    return leaves


def _by_piece(vae: VAE, leaves: Mapping[str, Tensor]) -> dict[str, str | None]:
    pieces = [(block, getattr(vae, role)) for block, role in reversed(_PIECES)]  # the first owner of a leaf comes last
    owners = {id(p): block for block, piece in pieces if isinstance(piece, nn.Module) for p in piece.parameters()}
    return {name: owners[id(leaf)] for name, leaf in leaves.items() if id(leaf) in owners}


def _by_side(
    leaves: Mapping[str, Tensor], guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> dict[str, str | None]:
    draws, densities = [], []
    for site in _samples(guide_trace):
        draws.append(site["value"])
        densities.append(site["fn"].log_prob(site["value"].detach()))
    of_guide = _reached([*draws, *densities], leaves)
    of_model = _reached([site["fn"].log_prob(site["value"]) for site in _samples(model_trace)], leaves)
    own = _parameters_of(guide_trace)
    sides: dict[str, str | None] = {name: "guide" if name in own else "model" for name in leaves}
    sides |= dict.fromkeys(of_guide, "guide") | dict.fromkeys(of_model, "model")
    return sides | dict.fromkeys(of_guide & of_model, "shared")


def _samples(trace: poutine.Trace) -> list[Any]:
    return [site for site in prune_subsample_sites(trace).nodes.values() if site["type"] == "sample"]


def _reached(outputs: list[Tensor], leaves: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the leaves on which any of the outputs depends."""
    total = [output.sum() for output in outputs if output.requires_grad]
    if not total:
        return set()
    gradients = torch.autograd.grad(torch.stack(total).sum(), list(leaves.values()), allow_unused=True)
    return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None}


def _readable(name: str, vae: VAE | None) -> str:
    """Shorten ``"vae_0$$$likelihood.logits.weight"`` to ``"likelihood.logits.weight"``."""
    prefix, _, rest = name.rpartition("$$$")
    return rest if not prefix or (vae is not None and prefix == vae.name) else f"{prefix}.{rest}"
