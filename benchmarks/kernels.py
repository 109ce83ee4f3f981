"""Where the time of a training step goes on a GPU: kernels, launches, Python.

    python benchmarks/kernels.py                          # the article's networks and a smaller one, float32 and TF32
    python benchmarks/kernels.py --precision high --networks article

For each way to take a step it prints the microseconds of Python alone and of the whole step (medians of rounds), and
what its kernels take: by hand as one CUDA graph, `ppl_vae.SVI.update` at both levels, the recording of its whole step
without any Python, and epochs of `ppl_vae.fit`.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import torch
from contenders import by_hand, ours
from contenders._torch import batches
from contenders.setting import Setting
from torch.profiler import ProfilerActivity, profile

import ppl_vae as pv
from ppl_vae.training.run import Callback

STEPS, ROUNDS, SHOWN, EPOCHS = 300, 5, 12, 6
NETWORKS: dict[str, dict[str, Any]] = {"article": {}, "small": {"hidden": (200, 200), "latent": 50, "batch_size": 100}}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precision", nargs="+", choices=["highest", "high"], default=["highest", "high"])
    parser.add_argument("--device", default="cuda", help="default: cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    print(f"{torch.cuda.get_device_name() if arguments.device == 'cuda' else 'CPU'}, torch {torch.__version__}")
    for precision in arguments.precision:
        torch.set_float32_matmul_precision(precision)
        for name in arguments.networks:
            print(f"\n## {name}, {precision}\n", flush=True)
            look(Setting(device=arguments.device, rows=60_000, matmul_precision=precision, **NETWORKS[name]))


def look(setting: Setting) -> None:
    """Print what there is to know in one setting."""
    on_gpu = setting.device == "cuda"
    for kind in ("eager", "compiled") if on_gpu else ():
        say(f"by hand, one CUDA graph, {kind}", by_hand.whole_step(setting, compile=kind == "compiled"), kernels=True)
    draw = batches(setting)
    for level in ("graph", "full"):
        vae = ours.program(setting)
        adam = functools.partial(torch.optim.Adam, lr=1e-3)
        svi = pv.SVI(vae.model, vae.guide, adam, pv.objectives.ELBO(), compile=level)
        svi.update(draw())
        pyro.enable_validation(False)
        for _ in range(40):
            svi.update(draw())
        say(f"SVI.update, {level}; eager because: {svi.why_eager}", times(lambda svi=svi: svi.update(draw())))
        whole = next((g.whole for g in svi._graphs if g.whole is not None), None)
        if whole is not None:
            x = draw()
            say("  its CUDA graph alone", times(lambda whole=whole, x=x: whole._replay(x)), kernels=True)
    epochs = _Epochs()
    data = torch.from_numpy(setting.pixels()).to(setting.device)
    objective, steps = pv.objectives.ELBO(), -(-len(data) // setting.batch_size)
    pv.fit(
        ours.program(setting),
        data,
        objective=objective,
        epochs=EPOCHS if on_gpu else 2,
        batch_size=setting.batch_size,
        seed=0,
        device=setting.device,
        compile="full",
        callbacks=[epochs],
    )
    each = [f"{1e6 * (b - a) / steps:.0f}" for a, b in zip(epochs.ends, epochs.ends[1:], strict=False)]
    print(
        f"fit, full: first epoch {epochs.ends[0] - epochs.began:.1f} s, then us a step: {', '.join(each)}", flush=True
    )


class _Epochs(Callback):
    """Notes when epochs end."""

    def __init__(self) -> None:
        self.began, self.ends = time.perf_counter(), list[float]()

    def on_epoch(self, run: Any, record: dict[str, float]) -> None:
        self.ends.append(time.perf_counter())


def times(step: Callable[[], object]) -> Callable[[int], object]:
    """Return what takes so many steps, and waits for none."""
    return lambda count: [step() for _ in range(count)]


def say(name: str, run: Callable[[int], object], kernels: bool = False) -> None:
    """Print what a step takes."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    python, whole = [], []
    for _ in range(ROUNDS):
        wait()
        began = time.perf_counter()
        run(STEPS)
        python.append(1e6 * (time.perf_counter() - began) / STEPS)
        wait()
        whole.append(1e6 * (time.perf_counter() - began) / STEPS)
    print(f"{name}: Python {statistics.median(python):.0f} us, in all {statistics.median(whole):.0f} us", flush=True)
    if not kernels or not torch.cuda.is_available():
        return
    count = 20
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run(count)
        wait()
    rows = [(e.self_device_time_total / count, e.count / count, e.key) for e in found.key_averages()]
    rows = sorted((row for row in rows if row[0] > 0), reverse=True)
    print(f"    {sum(n for _, n, _ in rows):.0f} kernels, {sum(us for us, _, _ in rows):.0f} us")
    for us, n, key in rows[:SHOWN]:
        print(f"    {us:6.1f} us in {n:4.1f}: {key[:100]}")


if __name__ == "__main__":
    main()
