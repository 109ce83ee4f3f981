r"""Questions about any Pyro program: each site of its model and guide, then the two together."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.checking import places, programs
from ppl_vae.checking.asking import Findings, Wrong
from ppl_vae.checking.pieces import FEW
from ppl_vae.checking.questions import Asked, ask_about_data, ask_of_density
from ppl_vae.objectives.losses import Program
from ppl_vae.objectives.traces import PARTICLES


def check_pair(findings: Findings, program: Program, args: tuple[Tensor, ...], objective: Any) -> None:
    """Ask about every site of a model and a guide, and about the two together."""
    model, guide = program
    few = tuple(a[:FEW] for a in args)
    traces: list[Any] = []

    def run() -> None:
        with torch.no_grad():
            guide_trace = poutine.trace(guide).get_trace(*few)
            traces.extend((poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*few), guide_trace))

    findings.ask("program", "runs", run)
    if not traces:
        return
    model_trace, guide_trace = traces
    posteriors = []
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
            asked = Asked(part, part, function, fn)
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
    programs.ask_about_program(findings, program, objective, posteriors, args)


def _space(support: Any, value: Tensor) -> str:
    if support.check(value).all():
        return "its draws lie in the support of the prior"
    raise Wrong(f"its draws lie outside of the support of the prior, {support}")
