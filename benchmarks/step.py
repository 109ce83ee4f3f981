"""What one training step costs, everything included, beside the same step in Pyro and by hand in PyTorch.

    python benchmarks/step.py                          # the article's networks, batch 128: about 4 minutes on two cores
    python benchmarks/step.py --hidden 50              # a small network, where overhead rules
    python benchmarks/step.py --json results.json

Each contender runs in a process of its own and is warmed up; then rounds go over all of them in turn, so that whatever
else the machine does meets all alike, while one computes at a time. Printed are the medians over rounds of the median
step of a round, and the ratios to hand-written compiled PyTorch with their quartiles over rounds (each round's step
beside the reference of the same round). A step gathers its batch from one tensor by random indices, runs forward and
backward and updates the parameters; data are random bits of MNIST's shape, since values do not change the cost.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REFERENCE = "hand-written, compiled"
ROWS, PIXELS = 20_000, 784


def main() -> None:
    """Run the benchmark, or be one of its workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--hidden", type=int, nargs="+", default=[500, 300, 150], help="of the encoder; reversed in the decoder"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40, help="in a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    results = race(arguments)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def race(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start every contender, and let them take rounds in turn."""
    options = ["--hidden", *map(str, arguments.hidden)]
    options += ["--batch_size", str(arguments.batch_size), "--steps", str(arguments.steps)]
    workers = {}
    for name in CONTENDERS:
        command = [sys.executable, __file__, "--worker", name, *options]
        workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started = json.loads(_line(workers[name]))
        print(f"{name}: ready after {started['ready']:.1f} s", file=sys.stderr)
    rounds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(arguments.rounds):
        for name, worker in workers.items():
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            rounds[name].append(json.loads(_line(worker)))
    for worker in workers.values():
        worker.communicate("")
    return {"machine": machine(), "options": vars(arguments) | {"json": None}, "milliseconds": rounds}


def table(results: dict[str, Any]) -> str:
    """The results as a table in Markdown."""
    rounds = results["milliseconds"]
    lines = [
        f"{results['machine']}; hidden {results['options']['hidden']}, batch {results['options']['batch_size']}",
        "",
    ]
    lines += ["| contender | ms per step | ratio to the reference (quartiles) |", "|---|---|---|"]
    for name, times in rounds.items():
        ratios = [a / b for a, b in zip(times, rounds[REFERENCE], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(f"| {name} | {statistics.median(times):.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def machine() -> str:
    """Name the processor, its threads in use and torch."""
    import torch

    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    return f"{torch.get_num_threads()} threads of {cpu}, torch {torch.__version__.split('+')[0]}"


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"{worker.args} ended before its time")
    return line


# in a worker ---------------------------------------------------------------------------------------------------------


def work(arguments: argparse.Namespace) -> None:
    """Be one contender: get ready, then take a round for every line on standard input."""
    import torch

    began = time.perf_counter()
    torch.manual_seed(0)
    data = (torch.rand(ROWS, PIXELS) > 0.5).float()
    step = CONTENDERS[arguments.worker](data, arguments.hidden, arguments.batch_size)
    for _ in range(20):
        step()
    print(json.dumps({"ready": time.perf_counter() - began}), flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(arguments.steps):
            before = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - before))
        print(json.dumps(statistics.median(times)), flush=True)


def _vae(hidden: list[int]) -> Any:
    import ppl_vae as pv

    return pv.VAE(
        (PIXELS,),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP(hidden[::-1])),
        posterior=pv.posteriors.DiagonalNormal(pv.networks.MLP(hidden)),
    )


def ours(compile: str) -> Callable[..., Callable[[], None]]:
    """`ppl_vae.SVI` as `fit` uses it."""

    def make(data: Any, hidden: list[int], batch_size: int) -> Callable[[], None]:
        import pyro
        import torch

        import ppl_vae as pv

        vae = _vae(hidden)
        adam = functools.partial(torch.optim.Adam, lr=1e-3)
        svi = pv.SVI(vae.model, vae.guide, adam, pv.objectives.ELBO(), compile=compile)
        svi.step(data[:batch_size])
        pyro.enable_validation(False)  # as in `fit`, after the first batch
        step = lambda: svi.update(data.index_select(0, torch.randint(ROWS, (batch_size,))))  # noqa: E731
        step()
        assert compile == "off" or svi.why_eager is None, svi.why_eager
        return step

    return make


def pyro_svi(data: Any, hidden: list[int], batch_size: int) -> Callable[[], None]:
    """Pyro's SVI and optimiser as a user writes them, data as one tensor."""
    import pyro
    import torch

    vae = _vae(hidden)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    return lambda: svi.step(data.index_select(0, torch.randint(ROWS, (batch_size,))))


def pyro_example(data: Any, hidden: list[int], batch_size: int) -> Callable[[], None]:
    """The same as in Pyro's VAE example: a DataLoader over a set of 8-bit pictures, each made a tensor on its way."""
    import pyro
    import torch
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    pixels = (255 * data).to(torch.uint8).reshape(-1, 28, 28).numpy()

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, i: int) -> Any:
            return to_tensor(Image.fromarray(pixels[i]))

    vae = _vae(hidden)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    loader = torch.utils.data.DataLoader(Pictures(), batch_size=batch_size, shuffle=True, drop_last=True)
    batches = (x for _ in iter(int, 1) for x in loader)
    return lambda: svi.step(next(batches).reshape(batch_size, PIXELS))


def by_hand(compile: bool) -> Callable[..., Callable[[], None]]:
    """The same model without Pyro: fused Adam, the KL sampled, `torch.compile` over the loss if asked for."""

    def make(data: Any, hidden: list[int], batch_size: int) -> Callable[[], None]:
        import math

        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, softplus

        import ppl_vae as pv

        encoder = pv.networks.MLP(hidden)((PIXELS,), (4,))
        decoder = pv.networks.MLP(hidden[::-1])((2,), (PIXELS,))
        parameters = [*encoder.parameters(), *decoder.parameters()]
        adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)

        def loss(x: Any) -> Any:
            mean, raw = encoder(x).chunk(2, -1)
            std = softplus(raw) + 1e-5
            noise = torch.randn_like(mean)
            z = mean + std * noise
            log_q = (-0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
            log_p = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
            cross_entropy = binary_cross_entropy_with_logits(decoder(z), x, reduction="none").sum(-1)
            return (cross_entropy + log_q - log_p).mean()

        evaluate = torch.compile(loss) if compile else loss

        def step() -> None:
            adam.zero_grad(set_to_none=True)
            evaluate(data.index_select(0, torch.randint(ROWS, (batch_size,)))).backward()
            adam.step()

        return step

    return make


def floor(data: Any, hidden: list[int], batch_size: int) -> Callable[[], None]:
    """The matrix products of forward and backward, and one pass of Adam over the parameters: nothing else."""
    import torch

    widths = [PIXELS, *hidden, 4], [2, *hidden[::-1], PIXELS]
    layers = [(a, b) for sizes in widths for a, b in itertools.pairwise(sizes)]
    weights = [torch.nn.Parameter(torch.randn(b, a)) for a, b in layers]
    inputs = [torch.randn(batch_size, a) for a, _ in layers]
    outputs = [torch.randn(batch_size, b) for _, b in layers]
    adam = torch.optim.Adam(weights, lr=1e-3, fused=True)

    @torch.no_grad()
    def step() -> None:
        for weight, x, g in zip(weights, inputs, outputs, strict=True):
            x @ weight.T  # forward
            weight.grad = g.T @ x  # by the weight
            g @ weight  # by the input
        adam.step()

    return step


CONTENDERS: dict[str, Callable[..., Callable[[], None]]] = {
    REFERENCE: by_hand(compile=True),
    "hand-written, eager": by_hand(compile=False),
    'ppl_vae, compile="full"': ours("full"),
    'ppl_vae, compile="graph"': ours("graph"),
    'ppl_vae, compile="off"': ours("off"),
    "Pyro's SVI, data as one tensor": pyro_svi,
    "Pyro's example, DataLoader": pyro_example,
    "floor: matrix products and Adam": floor,
}

if __name__ == "__main__":
    main()
