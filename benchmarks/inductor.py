"""Ways to run the compiled step on a CPU, each beside the same model by hand under `torch.compile`.

    python benchmarks/inductor.py --json benchmarks/results        # about 6 minutes on two quiet cores

| way | what it is |
|---|---|
| by hand, compiled | the reference: `torch.compile` over the loss, one fused Adam |
| as `SVI` takes it | `compile="full"` in a stretch of `fit`: Inductor's code without Dynamo, one fused Adam |
| ... through Dynamo | the same, its code called by `torch.compile` |
| Adam in the graph | one compiled graph for gradients and update, called without Dynamo |
| ... over flat parameters | its update on one vector of all parameters |
| ... by cpp_wrapper | its calls from C++ |
| ... four steps a call | four batches in one graph |

All ways take their turn in each round, in one process; a ratio is that of two ways in the same round. Denormals are
taken for zero, as in `ppl-vae train`.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import torch
from beside import program
from contenders._torch import mlp
from contenders.by_hand import negative_elbo
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import ppl_vae as pv
from ppl_vae._machine import processor
from ppl_vae.capture import compiled, step

NETWORKS = {
    "784-50-2, batch 128": ([50], 128),
    "784-500-300-150-2, batch 128": ([500, 300, 150], 128),
    "784-500-300-150-2, batch 16": ([500, 300, 150], 16),
    "784-2 with six layers of 300, batch 128": ([300] * 6, 128),
}
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


def traced(hidden: list[int], x: Tensor, through_dynamo: bool = False) -> tuple[pv.SVI, Any, list[Tensor]]:
    """Return an SVI at the level `full` after its capture, the graph that is compiled, and its parameters."""
    graphs = []

    def kept(graph: Any, on_cpu: bool) -> Callable[..., Any]:
        graphs.append(graph)
        return compiled.compiled(graph, on_cpu and not through_dynamo)

    with mock.patch.object(step, "compiled", kept):
        vae = program(hidden, "cpu")
        svi = pv.SVI(vae.model, vae.guide, ADAM, pv.objectives.ELBO(), compile="full")
        for _ in range(3):
            svi.update(x)
    assert svi.why_eager is None, svi.why_eager
    (captured,) = svi._graphs
    svi.begin_stretch()
    return svi, graphs[-1], captured.leaves


def adam(values: list[Tensor], gradients: list[Tensor], state: list[tuple[Tensor, Tensor]], count: Tensor) -> None:
    """Take one step of Adam (Kingma and Ba 2015), written out, with torch's constants."""
    count.add_(1)
    first, second = 1 - 0.9**count, 1 - 0.999**count
    for value, gradient, (mean, square) in zip(values, gradients, state, strict=True):
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        value.sub_(1e-3 / first * mean / (square.sqrt() / second.sqrt() + 1e-8))


def whole(hidden: list[int], x: Tensor, flat: bool, batches: int) -> Any:
    """Return the graph of gradients and update for so many batches."""
    _, graph, leaves = traced(hidden, x)
    if flat:
        vector = torch.cat([leaf.detach().flatten() for leaf in leaves])
        for leaf, part in zip(leaves, vector.split([leaf.numel() for leaf in leaves]), strict=True):
            leaf.data = part.view(leaf.shape)
        values = [vector]
    else:
        values = [leaf.detach() for leaf in leaves]
    state, count = [(torch.zeros_like(v), torch.zeros_like(v)) for v in values], torch.zeros(())

    def take(*data: Tensor) -> tuple[Tensor, ...]:
        terms: tuple[Tensor, ...] = ()
        for batch in data:
            outputs = graph(batch)
            gradients, terms = outputs[: len(leaves)], outputs[len(leaves) :]
            gradients = [torch.cat([g.flatten() for g in gradients])] if flat else gradients
            adam(values, gradients, state, count)
        return terms

    with torch.no_grad():
        return make_fx(take)(*[x] * batches)


def inductor(graph: Any, inputs: list[Tensor], **options: Any) -> Callable[..., Any]:
    """Compile a graph by Inductor, called without Dynamo."""
    with torch.no_grad():
        return torch._inductor.compile(graph, inputs, options={"fallback_random": True} | options)


def ways(hidden: list[int], batch: int) -> dict[str, tuple[int, Callable[[], None]]]:
    """The steps that a call takes, and the call, by the name of the way."""
    x = (torch.rand(20 * batch, 784) > 0.5).float().split(batch)
    turn = itertools.cycle(x)
    encoder, decoder = mlp([784, *hidden, 4], "cpu"), mlp([2, *hidden[::-1], 784], "cpu")
    by_hand = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    loss = torch.compile(lambda data: negative_elbo(encoder, decoder, data, 1), dynamic=False)

    def reference() -> None:
        by_hand.zero_grad(set_to_none=True)
        loss(next(turn)).backward()
        by_hand.step()

    svi, through_dynamo = (traced(hidden, x[0], way)[0] for way in (False, True))
    in_graph = inductor(whole(hidden, x[0], False, 1), [x[0]])
    flat = inductor(whole(hidden, x[0], True, 1), [x[0]])
    wrapped = inductor(whole(hidden, x[0], False, 1), [x[0]], cpp_wrapper=True)
    four = inductor(whole(hidden, x[0], False, 4), list(x[:4]))

    def calls(code: Callable[..., Any], count: int = 1) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                code(*itertools.islice(turn, count))

        return call

    return {
        "by hand, compiled": (1, reference),
        "as SVI takes it": (1, lambda: svi.update(next(turn)) and None),
        "... through Dynamo": (1, lambda: through_dynamo.update(next(turn)) and None),
        "Adam in the graph": (1, calls(in_graph)),
        "... over flat parameters": (1, calls(flat)),
        "... by cpp_wrapper": (1, calls(wrapped)),
        "... four steps a call": (4, calls(four, 4)),
    }


def measure(hidden: list[int], batch: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds a step, by way and round."""
    torch.manual_seed(0)
    found = ways(hidden, batch)
    taken: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(-1, rounds):  # the first round warms up
        for name, (steps, call) in found.items():
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                call()
                count += steps
            if turn >= 0:
                taken[name].append(1000 * (time.perf_counter() - began) / count)
    return taken


def main() -> None:
    """Print a table for each network, and write the figures of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a way in a round")
    parser.add_argument("--json", type=Path, help="a folder for inductor.json")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    pyro.enable_validation(False)
    results = {}
    for name, (hidden, batch) in NETWORKS.items():
        taken = results[name] = measure(hidden, batch, args.rounds, args.seconds)
        print(f"\n{name}, {torch.get_num_threads()} threads\n\n| way | ms a step | ratio (quartiles) |\n|---|---|---|")
        for way, values in taken.items():
            ratios = [a / b for a, b in zip(values, taken["by hand, compiled"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
            print(f"| {way} | {statistics.median(values):.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True)
    if args.json:
        report = {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "date": f"{datetime.date.today()}",
            "ms_per_step": results,
        }
        (args.json / "inductor.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
