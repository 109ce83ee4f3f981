"""What batch size and learning rate do to the bound, on MNIST.

    python benchmarks/batches.py --data FOLDER --out benchmarks/results/batches.json  # MNIST/raw in FOLDER; 45 minutes
    python benchmarks/batches.py --report benchmarks/results/batches.json --picture docs/images/batches.png

One network (784-200-200-50, tanh, pixels above one half as ones), Adam, batches of 128 to 8,192. The learning rate is
1e-3 at 128. Beyond it stays, or grows with the root of the batch size, or with the batch size. All runs see each datum
equally often, so large batches take fewer steps. There is no warm-up and no decay. The file is written after every run,
and the next call leaves out the runs that are in it. `--quick` takes scikit-learn's digits and a tiny network, for a
test of this script.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

import ppl_vae as pv
from ppl_vae._machine import processor
from ppl_vae.networks import MLP
from ppl_vae.plots.style import BLUE, GREEN, TEXT_SIZE, VERMILION, styled
from ppl_vae.training.state import DivergedError

RULES = {"constant": 0.0, "square root": 0.5, "linear": 1.0}  # the power of the batch size in the learning rate
LOOKS = {"constant": (BLUE, "o"), "square root": (GREEN, "s"), "linear": (VERMILION, "^")}
PARTICLES = 5  # of the test figure


@dataclass(frozen=True)
class Setting:
    """What all runs have in common; `base` is the batch size at which the learning rate is `rate`."""

    data: str = "MNIST"
    hidden: tuple[int, ...] = (200, 200)
    latent_dim: int = 50
    sizes: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    rate: float = 1e-3
    epochs: int = 15
    validation: int = 5000

    @property
    def base(self) -> int:
        """The smallest batch."""
        return self.sizes[0]


QUICK = Setting("digits", (8,), 2, (64, 128, 256), 1e-2, 3, 300)


def cases(setting: Setting, seeds: int) -> list[tuple[int, str, int]]:
    """The runs as (batch size, rule, seed), a whole seed before the next; at the base the rules are one."""
    rules = {size: list(RULES) if size > setting.base else ["constant"] for size in setting.sizes}
    return [(size, rule, seed) for seed in range(seeds) for size in setting.sizes for rule in rules[size]]


def elbo(vae: pv.VAE, x: Tensor, num_particles: int = 1) -> float:
    """The mean sampled ELBO, nats per datum, at noise that is the same for every run."""
    training = vae.training
    vae.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
            torch.manual_seed(0)
            blocks = [
                pv.objectives.sample_log_weights(vae.model, vae.guide, block, num_particles=num_particles).log_w
                for block in x.split(1000)
            ]
    finally:
        vae.train(training)
    return float(torch.cat(blocks, -1).double().mean())


class Start:
    """A callback that notes the validation ELBO before the first step."""

    def on_start(self, run: Any) -> None:
        """Look at the program as it starts."""
        self.run, self.value = run, elbo(run.program, run.data.validation.x)


def train(setting: Setting, digits: Any, size: int, rule: str, seed: int) -> dict[str, Any]:
    """One run: its figures after each epoch, and the ELBO of the test data after the last."""
    torch.manual_seed(seed)
    network = functools.partial(MLP, list(setting.hidden), "tanh", init="torch")
    vae = pv.VAE(
        digits,
        prior=pv.priors.StandardNormal(setting.latent_dim),
        likelihood=pv.likelihoods.Bernoulli(network(), start_from_data=True),
        posterior=pv.posteriors.DiagonalNormal(network(), scale="log_var"),
    )
    rate = setting.rate * (size / setting.base) ** RULES[rule]
    start, diverged = Start(), None
    began, cpu = time.perf_counter(), time.process_time()
    try:
        pv.fit(
            vae,
            digits,
            objective=pv.objectives.MeanFieldELBO(),
            optimizer=functools.partial(torch.optim.Adam, lr=rate),
            epochs=setting.epochs,
            batch_size=size,
            seed=seed,
            device="cpu",
            compile="graph",
            callbacks=[start],
        )
    except DivergedError as error:
        diverged = {"epoch": error.epoch, "step": error.step, "term": error.term}
    history = start.run.history
    return {
        "size": size,
        "rule": rule,
        "seed": seed,
        "learning_rate": rate,
        "steps_per_epoch": math.ceil(len(digits.train) / size),
        "validation": [round(v, 4) for v in [start.value, *(r["validation_elbo"] for r in history)]],
        "training": [round(r["elbo"], 4) for r in history],
        "rate": [round(r["rate"], 1) for r in history],
        "test": None if diverged else round(elbo(vae, digits.test.x, PARTICLES), 4),
        "diverged": diverged,
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def epochs_to(run: dict[str, Any], target: float) -> float | None:
    """The epochs until the validation ELBO reaches the target, linear between epochs; None where it does not."""
    values = run["validation"]
    if values[0] >= target:
        return 0.0
    for epoch in range(1, len(values)):
        if values[epoch] >= target:
            below = values[epoch - 1]
            return epoch - 1 + (target - below) / (values[epoch] - below)
    return None


def steps_to(run: dict[str, Any], target: float) -> float | None:
    """The same in steps."""
    found = epochs_to(run, target)
    return None if found is None else found * run["steps_per_epoch"]


def of(result: dict[str, Any], size: int, rule: str) -> list[dict[str, Any]]:
    """The runs of all seeds of one cell."""
    rule = "constant" if size == result["setting"]["sizes"][0] else rule
    return [run for run in result["runs"] if (run["size"], run["rule"]) == (size, rule)]


def shown(values: list[float | None], digits: int) -> str:
    """Their mean and half their range, or the range where one failed; how many there are where some are missing."""
    found = [v for v in values if v is not None]
    if not found:
        return "-"
    digits = 0 if abs(mean(found)) >= 1000 else digits
    text = f"{mean(found):,.{digits}f}"
    text += f" ± {(max(found) - min(found)) / 2:,.{digits}f}" if len(found) > 1 else ""
    if digits == 0 and len(found) > 1 and max(found) - min(found) > abs(mean(found)):
        text = f"{max(found):,.0f} to {min(found):,.0f}"
    return text if len(found) == len(values) else f"{text} ({len(found)} of {len(values)})"


def table(result: dict[str, Any], targets: list[float]) -> str:
    """The test ELBO after equal epochs, and epochs and steps to each target, as Markdown."""
    sizes, epochs = result["setting"]["sizes"], result["setting"]["epochs"]
    lines = ["| batch | steps |" + "".join(f" test ELBO, {rule} |" for rule in RULES), "|---" * (2 + len(RULES)) + "|"]
    for size in sizes:
        cells = [of(result, size, rule) for rule in RULES]
        steps = epochs * cells[0][0]["steps_per_epoch"]
        lines.append(f"| {size:,} | {steps:,} |" + "".join(f" {shown([r['test'] for r in c], 2)} |" for c in cells))
    for target in targets:
        head = "".join(f" epochs, {rule} | steps |" for rule in RULES)
        lines += [
            "",
            f"To a validation ELBO of {target:g}:",
            "",
            f"| batch |{head}",
            "|---" * (1 + 2 * len(RULES)) + "|",
        ]
        for size in sizes:
            row = f"| {size:,} |"
            for rule in RULES:
                runs = of(result, size, rule)
                row += f" {shown([epochs_to(r, target) for r in runs], 1)} |"
                row += f" {shown([steps_to(r, target) for r in runs], 0)} |"
            lines.append(row)
    return "\n".join(lines)


@styled
def picture(result: dict[str, Any], target: float) -> Figure:
    """The test ELBO after equal epochs, and the steps to a common bound, against the batch size."""
    sizes, epochs = result["setting"]["sizes"], result["setting"]["epochs"]
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for rule, (colour, mark) in LOOKS.items():
        cells = {size: of(result, size, rule) for size in sizes}
        tests = {size: [r["test"] for r in runs if r["test"] is not None] for size, runs in cells.items()}
        steps = {size: [s for r in runs if (s := steps_to(r, target)) is not None] for size, runs in cells.items()}
        for axes, found in ((left, tests), (right, steps)):
            kept = {size: values for size, values in found.items() if values}
            line = {"color": colour, "marker": mark, "markersize": 5}
            axes.plot(list(kept), [mean(v) for v in kept.values()], label=rule, **line)
            for size, values in kept.items():
                axes.plot([size] * len(values), values, ".", color=colour, markersize=3)
    first = [s for r in of(result, sizes[0], "constant") if (s := steps_to(r, target)) is not None]
    if first and min(first) > 0:
        perfect = [mean(first) * sizes[0] / size for size in sizes]
        (half,) = right.plot(sizes, perfect, color="0.5", linestyle=":", label="half the steps at twice the batch")
        right.legend(handles=[half])
        right.set_yscale("log", base=2)
        right.yaxis.set_major_formatter("{x:,.0f}")
    steady = [r["test"] for r in result["runs"] if r["rule"] != "linear" and r["test"] is not None]
    best = max(r["test"] for r in result["runs"] if r["test"] is not None)
    if steady:  # a learning rate that is far too large would leave no room for the others
        margin = 0.06 * (best - min(steady)) + 0.5
        left.set_ylim(min(steady) - margin, best + margin)
    left.set_ylabel(f"test ELBO after {epochs} epochs, nats")
    right.set_ylabel(f"steps to a validation ELBO of {target:g}")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xlabel("batch size")
    left.legend(title="learning rate", title_fontsize=TEXT_SIZE)
    return figure


def load(setting: Setting, root: Path | None) -> Any:
    """The data, binarised by a threshold, in memory."""
    place = {} if root is None else {"root": root}
    return pv.data.load(setting.data, binarize="threshold", validation=setting.validation, **place)


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file whole."""
    part = path.with_suffix(".part")
    head = json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=1).removesuffix("\n}")
    runs = ",\n  ".join(json.dumps(run) for run in result["runs"])  # a line each
    part.write_text(f'{head},\n "runs": [\n  {runs}\n ]\n}}\n')
    part.replace(path)


def measure(setting: Setting, seeds: int, root: Path | None, path: Path) -> dict[str, Any]:
    """All runs that the file has not yet; the file is written after each."""
    asked = json.loads(json.dumps(asdict(setting)))
    result: dict[str, Any] = {"setting": asked, "runs": []}
    if path.exists():
        result = json.loads(path.read_text())
        if result["setting"] != asked:
            raise SystemExit(f"{path} is of another setting: {result['setting']}; give another --out")
    known = {(run["size"], run["rule"], run["seed"]) for run in result["runs"]}
    digits = load(setting, root)
    for size, rule, seed in cases(setting, seeds):
        if (size, rule, seed) in known:
            continue
        run = train(setting, digits, size, rule, seed)
        result["runs"].append(run)
        result |= {
            "date": time.strftime("%Y-%m-%d"),
            "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "versions": {"torch": torch.__version__, "pyro": pyro.__version__, "numpy": np.__version__},
            "minutes": round(sum(r["seconds"] for r in result["runs"]) / 60, 1),
            "cpu_minutes": round(sum(r["cpu_seconds"] for r in result["runs"]) / 60, 1),
        }
        write(path, result)
        end = f"diverged: {run['diverged']}" if run["diverged"] else f"{run['validation'][-1]:.2f}, test {run['test']}"
        print(f"{size:5d} {rule:12s} seed {seed}: {end}; {run['seconds']:.0f} s", flush=True)
    return result


def main(argv: list[str] | None = None) -> None:
    """Measure, or print the tables and draw the picture of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with MNIST/raw in it (default: the package's own)")
    parser.add_argument("--out", type=Path, default=Path("batches.json"))
    parser.add_argument("--epochs", type=int, help="of every run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", type=float, nargs="+", default=[-120.0, -105.0], help="bounds to reach")
    parser.add_argument("--report", type=Path, metavar="FILE", help="train nothing: print the tables of this file")
    parser.add_argument("--picture", type=Path, help="where to draw the picture, of the first target")
    parser.add_argument("--quick", action="store_true", help="seconds, on scikit-learn's digits")
    arguments = parser.parse_args(argv)
    if arguments.report:
        result = json.loads(arguments.report.read_text())
    else:
        setting = QUICK if arguments.quick else Setting()
        if arguments.epochs:
            setting = Setting(**{**asdict(setting), "epochs": arguments.epochs})
        result = measure(setting, arguments.seeds, arguments.data, arguments.out)
    print(table(result, arguments.targets))
    if arguments.picture:
        picture(result, arguments.targets[0]).savefig(arguments.picture, dpi=150)


if __name__ == "__main__":
    main()
