r"""Questions about any Pyro program: each site of its model and guide, then the two together."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae.checking import places, programs
from ppl_vae.checking.asking import Findings, Unanswered, Wrong
from ppl_vae.checking.pieces import FEW, ROUNDING, close
from ppl_vae.checking.questions import Asked, ask_about_data, ask_about_edges, ask_of_density
from ppl_vae.objectives.losses import Program
from ppl_vae.objectives.traces import PARTICLES, sample_sites


def check_pair(
    findings: Findings, program: Program, args: tuple[Tensor, ...], objective: Any, modules: list[nn.Module]
) -> None:
    """Ask about every site of a model and a guide, which hold these modules, and about the two together."""
    model, guide = program
    few = tuple(a[:FEW] for a in args)
    traces: list[Any] = []

    def run() -> None:
        try:
            with torch.no_grad():
                guide_trace = poutine.trace(guide).get_trace(*few)
                traces.extend((poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*few), guide_trace))
        except ValueError as error:
            if "subsample_size does not match" not in str(error):
                raise
            raise Unanswered(
                f"a plate draws its own subsample, and the check gives the program {FEW} data at a time; check the "
                "program without subsample_size"
            ) from error

    findings.ask("program", "runs", run)
    if not traces:
        return
    model_trace, guide_trace = traces
    posteriors = []
    asked_of: dict[str, Asked] = {}
    for function, trace, symbol in ((model, model_trace, "p"), (guide, guide_trace, "q")):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or name == PARTICLES or type(site["fn"]).__name__ == "_Subsample":
                continue
            part, fn = f"{symbol}({name})", site["fn"]
            if not any(f.vectorized and f.dim == -1 and f.size == len(few[0]) for f in site["cond_indep_stack"]):
                findings.wrong(
                    part,
                    "shapes",
                    f"site {name!r} lies in no plate of the data ({len(few[0])} of them, dim -1)",
                    "write it inside `with pyro.plate('data', len(x), dim=-1):`",
                    places.of_call(function),
                )
                continue
            findings.ok(part, "shapes", f"batch {tuple(fn.batch_shape)}, event {tuple(fn.event_shape)}")
            asked = asked_of[part] = Asked(part, part, function, fn)
            if site["is_observed"]:
                ask_about_data(findings, asked, site["value"])
            elif symbol == "q":
                posteriors.append(fn)
                if (prior := model_trace.nodes.get(name)) is not None:
                    asked.ask(findings, "space", lambda: _space(prior["fn"].support, site["value"]))  # noqa: B023
            ask_of_density(findings, asked)
    parts = {f.part for f in findings.found if f.status == "wrong"}
    if parts:
        for name in ("gradients", "bound"):
            findings.skipped("program", name, f"mend {', '.join(sorted(parts))} first")
        return
    findings.ask("program", "uses z", lambda: _uses_latents(model, modules, _latents(*traces), few))
    _ask_of_functions(findings, program, few, asked_of, *traces)
    programs.ask_about_program(findings, program, objective, posteriors, args)


def _ask_of_functions(
    findings: Findings,
    program: Program,
    few: tuple[Tensor, ...],
    asked_of: dict[str, Asked],
    model_trace: poutine.Trace,
    guide_trace: poutine.Trace,
) -> None:
    """Ask what shows where model and guide are called with other latents or data: what a piece of a VAE is asked."""
    model, guide = program
    latents = _latents(model_trace, guide_trace)
    real = [z for z in latents.values() if z.is_floating_point()]
    for name, site in sample_sites(model_trace).items():
        if (asked := asked_of.get(f"p({name})")) is None or not site["is_observed"]:
            continue
        if len(latents) != 1 or not real:
            findings.skipped(asked.part, "finite", "the latents are not one site of real numbers, to be stretched")
            continue

        def p_x(z: Tensor, name: str = name) -> Any:
            return _sites(model, dict.fromkeys(latents, z), few)[name]["fn"]

        ask_about_edges(findings, asked, p_x, real[0], site["value"])
    for part, asked in asked_of.items():
        function = model if part.startswith("p") else guide
        asked.ask(findings, "batches", partial(_batches, function, part[2:-1], latents, few))
    findings.skipped("program", "float64", "a model and a guide cannot be copied to try it")


def _latents(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> dict[str, Tensor]:
    return {name: s["value"] for name, s in sample_sites(guide_trace).items() if name in model_trace.nodes}


def _sites(function: Any, latents: dict[str, Tensor], args: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return the sites of a function, called with these latents."""
    return sample_sites(poutine.trace(poutine.condition(function, data=latents)).get_trace(*args))


def _uses_latents(model: Any, modules: list[nn.Module], latents: dict[str, Tensor], args: tuple[Tensor, ...]) -> str:
    """Check that each latent has a say in another site of the model, or another latent in its own."""
    if not latents or not all(z.is_floating_point() for z in latents.values()):
        raise Unanswered("there are latents without a derivative, whole numbers, or none at all")
    leaves = {name: z.detach().clone().requires_grad_() for name, z in latents.items()}
    linked: set[str] = set()
    with programs.moved_parameters(modules):  # a layer that starts at zero hides z
        for name, site in _sites(model, leaves, args).items():
            log_p = site["fn"].log_prob(site["value"]).sum()
            others = {other: z for other, z in leaves.items() if other != name}
            if log_p.requires_grad and others:
                slopes = torch.autograd.grad(log_p, [*others.values()], allow_unused=True, retain_graph=True)
                # where there are several latents, one that says "absent" may silence another at these few data
                reach = {
                    o: g is not None and (g.any() or len(latents) > 1) for o, g in zip(others, slopes, strict=True)
                }
                linked |= {o for o in reach if reach[o]} | ({name} if any(reach.values()) else set())
    if alone := [name for name in leaves if name not in linked]:
        raise Wrong(
            f"log p of what the model observes has no derivative with respect to {' and '.join(map(repr, alone))}, so "
            "that its posterior learns nothing from the data",
            "compute the parameters of the likelihood from the latent without .detach(), .data, torch.no_grad or a "
            "rounding",
            places.of_cut(model),
        )
    return "log p(x|z) has a derivative with respect to each latent"


@torch.no_grad()
def _batches(function: Any, name: str, latents: dict[str, Tensor], args: tuple[Tensor, ...]) -> str:
    """Check that a site scores each datum in the same way without the last datum of the batch."""
    size = len(args[0])
    if size < 2:
        raise Unanswered("there is one datum")
    whole, repeated = (_sites(function, latents, args) for _ in range(2))
    events = {n: whole[n]["fn"].event_dim if n in whole else 0 for n in latents}
    fewer = {n: z.narrow(z.dim() - 1 - events[n], 0, size - 1) for n, z in latents.items() if n in whole}
    part = _sites(function, fewer, tuple(a[: size - 1] for a in args))
    together, again, alone = (sites[name]["fn"].log_prob(sites[name]["value"]) for sites in (whole, repeated, part))
    if not torch.equal(together, again):
        raise Unanswered("the program is random, or changes, at given latents")
    if close(together[..., : size - 1], alone, ROUNDING):
        return "log p of a datum is the same with and without another in its batch"
    raise Wrong(
        f"log p of a datum at site {name!r} depends on the others in its batch: {together.flatten()[0]:.6g} among "
        f"{size}, {alone.flatten()[0]:.6g} among {size - 1}",
        "compute the parameters of each datum from that datum alone",
    )


def _space(support: Any, value: Tensor) -> str:
    if support.check(value).all():
        return "its draws lie in the support of the prior"
    raise Wrong(f"its draws lie outside of the support of the prior, {support}")
