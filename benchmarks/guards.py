"""What a captured step costs beside its graph: Python, its guards, and being held against the program.

    python benchmarks/guards.py [--device cuda]

Microseconds on the networks of `beside.py`, one thread, and their shares of a step.
"""

from __future__ import annotations

import argparse
import functools
import timeit
from typing import Any

import pyro
import torch
from beside import NETWORKS, program

import ppl_vae as pv


def measure(hidden: list[int], batch: int, device: str) -> dict[str, float]:
    """Microseconds of a graph, a look at the guards, a check against the program, and all Python of `update`."""
    vae = program(hidden, device)
    svi = pv.SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-3), pv.objectives.ELBO())
    x = (torch.rand(batch, 784) > 0.5).float().to(device)
    for _ in range(30):
        svi.update(x)
    (graph,) = svi._graphs

    def time(function: Any, number: int) -> float:
        def run() -> None:
            function()
            if device != "cpu":
                torch.cuda.synchronize()

        return 1e6 * min(timeit.repeat(run, number=number, repeat=5)) / number

    found = {
        "step": time(lambda: graph(*graph.inputs([x])), 50),
        "guards": time(graph.guards.hold, 2000),
        "check": time(lambda: graph.checked([x], ()), 20),
    }
    outputs = graph._graph(*graph.inputs([x]))
    graph._graph, svi.apply = (lambda *_: outputs), (lambda: None)  # type: ignore[method-assign]
    graph.unchecked = -(10**9)
    return found | {"python": time(lambda: svi.update(x), 2000)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    every = 100 if device == "cpu" else 1000
    print(f"| network | graph, us | Python, us | its guards, us | of a step | check, us | of {every} steps |")
    print("|---|---|---|---|---|---|---|")
    for name, (hidden, batch) in NETWORKS.items():
        found = measure(hidden, batch, device)
        step, guards, check, python = found["step"], found["guards"], found["check"], found["python"]
        extra = (check - step) / (every * step)
        print(
            f"| {name} | {step:.0f} | {python:.1f} | {guards:.1f} | {guards / step:.1%} | {check:.0f} | {extra:.1%} |"
        )


if __name__ == "__main__":
    main()
