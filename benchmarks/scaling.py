r"""Where 8, 64 and 1,024 GPUs and 10^9 images bend: the arithmetic of docs/scale.md.

    python benchmarks/scaling.py count     # half a minute: counts, and a rate of reading, into results/scaling.json
    python benchmarks/scaling.py page      # the tables, into docs/scale.md

A step on one GPU takes t(b) = t0 + 28 P / M + b F / R at a batch of b, and on N GPUs with no overlap

    t(b) + alpha(N) + 2 (N - 1) / N * 4 P / B.

P is the number of parameters and F that of operations for one image, both counted here. 28 bytes a parameter are one
pass of Adam over float32. t0 comes from the step that was measured, where there is one. All constants with their
sources are in this file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyro
import torch
from torch.utils.flop_counter import FlopCounterMode

import ppl_vae as pv
from ppl_vae._machine import processor
from ppl_vae.networks import MLP, ResidualConvolutional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import allreduce  # noqa: E402
import batches  # noqa: E402

RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "scale.md"
IMAGES = 10**9
GPUS = (1, 8, 64, 1024)
NODE = 8  # GPUs that NVLink joins
TARGET = -120.0  # nats, of validation data
ARTICLE_EPOCHS, ARTICLE_ROWS = 200, 55_000

# NCCL, published. Over NVLink, Hopper GPUs reach a bus bandwidth of 370 GB/s, says an author of NCCL
# (https://github.com/NVIDIA/nccl-tests/issues/212; 480 where the switch adds). A 400 Gb/s InfiniBand card gives 46 to
# 48 GB/s (https://github.com/NVIDIA/nccl-tests/issues/290), the eight of a node as much as NVLink. What bus bandwidth
# is, and the factor 2 (N - 1) / N: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md.
BANDWIDTH = 370e9
# The latency is NCCL's own estimate for its tree and the protocol LL128, by which it chooses an algorithm, in seconds:
# https://github.com/NVIDIA/nccl/blob/v2.28.7-1/src/graph/tuning.cc. That of the network card is to be added; we do not.
BASE, NVLINK_HOP, NETWORK_HOP = 14.0e-6, 1.25e-6, 8.5e-6
# An H200, by its maker's data sheet: float32 without tensor cores, dense bfloat16 (1,979 with sparsity), memory.
FLOAT32, BFLOAT16, MEMORY = 67e12, 989e12, 4.8e12
REACHED = 0.4  # the share of these operations that we assume to be reached: an assumption, not a measurement

# Times of all-reduces that others have published, to hold the formula against: GPUs, bytes, seconds, where.
NEBIUS = "16 H100, PyTorch, [Mysore](https://github.com/drmysore/nebius-h100-16gpu-benchmark)"
H20 = "16 H20, nccl-tests, [nccl#1244](https://github.com/NVIDIA/nccl/issues/1244)"
PUBLISHED = (
    (16, 4, 47.5e-6, H20),
    (16, 2**22, 127.6e-6, H20),
    (16, 2**20, 88e-6, NEBIUS),
    (16, 10 * 2**20, 157e-6, NEBIUS),
    (16, 100 * 2**20, 647e-6, NEBIUS),
    (16, 2**30, 4520e-6, NEBIUS),
)


@dataclass(frozen=True)
class Model:
    """A model of the tables: its shape, its batch on each GPU, and its measured step on an H200 if there is one."""

    image: str
    shape: tuple[int, ...]
    latent_dim: int
    encoder: Any
    decoder: Any
    batch: int
    peak: float
    step: float | None = None

    def make(self) -> pv.VAE:
        """The VAE, to be counted."""
        likelihood, posterior = pv.likelihoods.Bernoulli(self.decoder()), pv.posteriors.DiagonalNormal(self.encoder())
        prior = pv.priors.StandardNormal(self.latent_dim)
        return pv.VAE(self.shape, prior=prior, likelihood=likelihood, posterior=posterior)


_RESIDUAL = partial(ResidualConvolutional, [128, 256, 512, 1024], [512], activation="relu", init="torch", blocks=2)
_SOFTPLUS = partial(MLP, [500, 300, 150]), partial(MLP, [150, 300, 500])
_TANH = partial(MLP, [200, 200], "tanh", init="torch")
# Steps: H200, torch 2.11, float32 without TF32, 2026-11-26, `update` at compile="full". The article's is that of
# benchmarks/README.md, the other of an earlier commit on the same card.
MODELS = {
    "article": Model(
        "28 x 28", (28, 28), 2, partial(MLP, [500, 300, 150]), partial(MLP, [150, 300, 500]), 128, FLOAT32, 0.311e-3
    ),
    "784-200-200-50": Model("28 x 28", (28, 28), 50, _TANH, _TANH, 100, FLOAT32, 0.290e-3),
    "residual": Model("64 x 64 x 3", (3, 64, 64), 256, _RESIDUAL, _RESIDUAL, 256, BFLOAT16),
}
STRONG = {"article": 1024, "residual": 8192}  # the whole batch, which stays


def count(model: Model) -> dict[str, int]:
    """Parameters, operations for one image forward and backward (two for each multiply and add), bytes as uint8."""
    vae, rows = model.make(), 2
    x = torch.rand(rows, *model.shape).round()
    loss = pv.objectives.as_loss(pv.objectives.ELBO())
    with pyro.validation_enabled(False), FlopCounterMode(display=False) as counter:
        loss((vae.model, vae.guide), x).surrogate.sum().backward()
    return {
        "parameters": sum(p.numel() for p in vae.parameters()),
        "operations": counter.get_total_flops() // rows,
        "bytes": math.prod(model.shape),
    }


def reading(row_bytes: int, total: int = 2**29, batch: int = 128, seconds: float = 8.0) -> list[int]:
    """Rows a second that one thread takes at random from a memory-mapped uint8 file in the page cache, as floats.

    The lower quartile, the median and the upper quartile.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = total // row_bytes
        file = np.memmap(f"{folder}/rows", np.uint8, "w+", shape=(rows, row_bytes))
        file[:] = 1
        rates = []
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            for _ in range(20):
                torch.from_numpy(file[rng.integers(0, rows, batch)]).float().div_(255)
            rates.append(20 * batch / (time.perf_counter() - start))
    return [round(q) for q in np.quantile(rates, [0.25, 0.5, 0.75])]


def latency(gpus: int) -> float:
    """NCCL's estimate of the latency of a tree over nodes of eight, seconds."""
    nodes = max(1, gpus // NODE)
    return BASE + 2 * ((gpus // nodes - 1) * NVLINK_HOP + math.log2(nodes) * NETWORK_HOP) if gpus > 1 else 0.0


def all_reduce(gpus: int, size: float) -> float:
    """Seconds of an all-reduce of so many bytes."""
    return latency(gpus) + 2 * (gpus - 1) / gpus * size / BANDWIDTH


def step(name: str, counted: dict[str, int], batch: float) -> float:
    """Seconds of a step on one GPU."""
    model = MODELS[name]
    rate = REACHED * model.peak
    variable = counted["operations"] / rate
    if model.step is not None:
        return model.step + (batch - model.batch) * variable
    return floor_of_article() + 28 * counted["parameters"] / MEMORY + batch * variable


def floor_of_article() -> float:
    """The step of the article's networks without its operations: kernels and the rest, which no batch makes shorter."""
    counted = json.loads((RESULTS / "scaling.json").read_text())["models"]["article"]
    return step("article", counted, 0)


def scaled(name: str, counted: dict[str, int], gpus: int, batch: float) -> dict[str, float]:
    """A step on so many GPUs of so many data each: times, efficiency, and what 10^9 images and reading come to."""
    compute = step(name, counted, batch)
    reduce = all_reduce(gpus, 4 * counted["parameters"])
    images = gpus * batch / (compute + reduce)
    return {
        "compute": compute,
        "all_reduce": reduce,
        "efficiency": compute / (compute + reduce),
        "images": images,
        "hours": IMAGES / images / 3600,
        "read": images * counted["bytes"],
    }


def short(number: float) -> str:
    """Three digits, with k, M or G."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(hours: float) -> str:
    """Hours, minutes or seconds."""
    for size, unit in ((1, "h"), (1 / 60, "min")):
        if hours >= size:
            return f"{hours / size:.3g} {unit}"
    return f"{3600 * hours:.2g} s"


def models_table(result: dict[str, Any]) -> str:
    """What was counted."""
    lines = [
        "| model | parameters | gradient | operations an image | bytes an image | step on one H200 |",
        "|---" * 6 + "|",
    ]
    for name, counted in result["models"].items():
        model = MODELS[name]
        took = f"{1e3 * step(name, counted, model.batch):.3g} ms at batch {model.batch}"
        took += ", measured" if model.step else ", computed"
        lines.append(
            f"| {name} | {counted['parameters']:,} | {short(4 * counted['parameters'])}B | "
            f"{short(counted['operations'])} | {counted['bytes']:,} | {took} |"
        )
    return "\n".join(lines)


def published_table(result: dict[str, Any]) -> str:
    """Published all-reduces beside the formula."""
    lines = ["| published | bytes | published, us | formula, us |", "|---" * 4 + "|"]
    for gpus, size, seconds, where in PUBLISHED:
        shown = f"{size / 2**20:,.0f} MiB" if size >= 2**20 else size
        lines.append(f"| {where} | {shown} | {1e6 * seconds:,.0f} | {1e6 * all_reduce(gpus, size):,.0f} |")
    return "\n".join(lines)


def weak_table(result: dict[str, Any]) -> str:
    """The same batch on each GPU."""
    head = "| model | GPUs | whole batch | compute, ms | all-reduce, ms | efficiency | images/s | 10^9 images | reads |"
    lines = [head, "|---" * 9 + "|"]
    for name in STRONG:
        counted, batch = result["models"][name], MODELS[name].batch
        for gpus in GPUS:
            s = scaled(name, counted, gpus, batch)
            lines.append(
                f"| {name} | {gpus:,} | {gpus * batch:,} | {1e3 * s['compute']:.3g} | {1e3 * s['all_reduce']:.3g} | "
                f"{s['efficiency']:.0%} | {short(s['images'])} | {duration(s['hours'])} | {short(s['read'])}B/s |"
            )
    return "\n".join(lines)


def strong_table(result: dict[str, Any]) -> str:
    """The same whole batch, shared out."""
    lines = ["| model, whole batch | GPUs | batch each | compute, ms | all-reduce, ms | faster than one GPU |"]
    lines.append("|---" * 6 + "|")
    for name, whole in STRONG.items():
        counted = result["models"][name]
        for gpus in GPUS[1:]:
            s = scaled(name, counted, gpus, whole / gpus)
            gain = step(name, counted, whole) / (s["compute"] + s["all_reduce"])
            lines.append(
                f"| {name}, {whole:,} | {gpus:,} | {whole // gpus:,} | {1e3 * s['compute']:.3g} | "
                f"{1e3 * s['all_reduce']:.3g} | {gain:.3g} times |"
            )
    return "\n".join(lines)


def gloo_table(result: dict[str, Any]) -> str:
    """The all-reduces under gloo, every second size."""
    found = result["allreduce"]
    worlds = [cell["processes"] for cell in found["cells"]]
    lines = [
        "| floats |" + "".join(f" {w} processes, ms (quartiles) |" for w in worlds),
        "|---" * (1 + len(worlds)) + "|",
    ]
    for rows in list(zip(*(cell["rows"] for cell in found["cells"]), strict=True))[::2]:
        cells = (f"{1e3 * r['median']:.2g} ({1e3 * r['low']:.2g} to {1e3 * r['high']:.2g})" for r in rows)
        lines.append(f"| {rows[0]['floats']:,} | " + " | ".join(cells) + " |")
    fits = (
        f"{1e6 * c['fit']['latency']:.0f} us, {c['fit']['bandwidth'] / 1e9:.2g} GB/s, within {c['fit']['error']:.0%}"
        for c in found["cells"]
    )
    lines.append("| alpha, B | " + " | ".join(fits) + " |")
    size, floats = result["batches"]["setting"]["sizes"][0], result["models"]["784-200-200-50"]["parameters"]
    fits_least = [(w, c["fit_least"]) for w, c in zip(worlds, found["cells"], strict=True)]
    reduce = [f["latency"] + allreduce.transfer(w, floats) / f["bandwidth"] for w, f in fits_least]
    here = 1e3 * step_here(result, size)
    said = f"At their fastest, a step of 784-200-200-50 at batch {size} takes {here:.2g} ms on one thread, "
    each = (f"{1e3 * r:.2g} ms between {w} processes" for w, r in zip(worlds, reduce, strict=True))
    said += "its all-reduce " + " and ".join(each)
    return "\n".join([*lines, "", said + "."])


def step_here(result: dict[str, Any], size: int) -> float:
    """Seconds of a step of `fit` in the fastest epoch of the runs of batches.py."""
    rates = [rate for run in result["batches"]["runs"] if run["size"] == size for rate in run["rate"]]
    return size / max(rates)


def reading_table(result: dict[str, Any]) -> str:
    """What has to be read, and what one thread reads."""
    head = "| image | bytes | 10^9 of them | one thread, images/s (quartiles) | threads for one GPU | for 1,024 GPUs |"
    lines = [head, "|---" * 6 + "|"]
    for name in STRONG:
        counted = result["models"][name]
        low, rate, high = result["rows_per_second"][str(counted["bytes"])]
        needs = [scaled(name, counted, gpus, MODELS[name].batch)["images"] / rate for gpus in (1, 1024)]
        lines.append(
            f"| {MODELS[name].image} | {counted['bytes']:,} | {short(IMAGES * counted['bytes'])}B | "
            f"{short(rate)} ({short(low)} to {short(high)}) | {needs[0]:.2g} | {needs[1]:,.0f} |"
        )
    return "\n".join(lines)


def article_text(result: dict[str, Any]) -> str:
    """The article's run in sentences."""
    counted, batch = result["models"]["article"], MODELS["article"].batch
    one = step("article", counted, batch)
    steps = ARTICLE_EPOCHS * math.ceil(ARTICLE_ROWS / batch)
    shared = scaled("article", counted, 8, batch / 8)
    eight = shared["compute"] + shared["all_reduce"]
    return (
        f"Its {steps:,} steps of {1e3 * one:.3g} ms are {steps * one:.0f} seconds on one GPU. The batch of {batch}, "
        f"shared by 8 GPUs, leaves {batch // 8} each: {1e3 * shared['compute']:.3g} ms to compute and "
        f"{1e3 * shared['all_reduce']:.3f} ms to add {short(4 * counted['parameters'])}B of gradients, "
        f"{1e3 * eight:.3g} ms in all, {eight / one:.2f} times the step of one."
    )


def batches_table(result: dict[str, Any]) -> str:
    """What the batch size does to the bound, and the time to a common one on GPUs."""
    found, name = result["batches"], "784-200-200-50"
    epochs, sizes, counted = found["setting"]["epochs"], found["setting"]["sizes"], result["models"][name]
    head = "| batch | steps |" + "".join(f" {rule} |" for rule in batches.RULES)
    lines = [head + f" epochs (steps) to {TARGET:g} | on one GPU, ms | on batch/{sizes[0]} GPUs, ms |"]
    lines.append("|---" * (5 + len(batches.RULES)) + "|")
    for size in sizes:
        cells = {rule: batches.of(found, size, rule) for rule in batches.RULES}
        per_epoch = cells["constant"][0]["steps_per_epoch"]
        row = f"| {size:,} | {epochs * per_epoch:,} |"
        row += "".join(f" {batches.shown([r['test'] for r in runs], 2)} |" for runs in cells.values())
        means = {rule: mean_or_none([batches.epochs_to(r, TARGET) for r in runs]) for rule, runs in cells.items()}
        taken = {rule: value for rule, value in means.items() if value is not None}
        if taken:
            rule = min(taken, key=taken.__getitem__)
            shared = scaled(name, counted, size // sizes[0], sizes[0])
            times = (step(name, counted, size), shared["compute"] + shared["all_reduce"])
            row += f" {taken[rule]:.1f} ({taken[rule] * per_epoch:,.0f})" + (f", {rule} |" if size > sizes[0] else " |")
            row += "".join(f" {1e3 * taken[rule] * per_epoch * seconds:.0f} |" for seconds in times)
        else:
            row += " not reached | | |"
        lines.append(row)
    return "\n".join(lines)


def mean_or_none(values: list[float | None]) -> float | None:
    """The mean where all have a value."""
    return None if any(v is None for v in values) or not values else mean(v for v in values if v is not None)


TABLES = {
    "models": models_table,
    "published": published_table,
    "weak": weak_table,
    "strong": strong_table,
    "reading": reading_table,
    "gloo": gloo_table,
    "article": article_text,
    "batches": batches_table,
}


def load() -> dict[str, Any]:
    """All results that the page rests on."""
    result = json.loads((RESULTS / "scaling.json").read_text())
    return result | {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("allreduce", "batches")}


def marks(name: str) -> tuple[str, str]:
    """The lines of the page around a table."""
    return f"<!-- {name}: written by benchmarks/scaling.py -->", f"<!-- end of {name} -->"


def inserted(page: str, result: dict[str, Any]) -> str:
    """The page with all tables between their marks."""
    for name, make in TABLES.items():
        begin, end = marks(name)
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page has not both marks once: {begin} and {end}")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{make(result)}\n\n{end}{rest.split(end)[1]}"
    return page


def main(argv: list[str] | None = None) -> None:
    """Count, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("count", "tables", "page"))
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json", help="of count")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args(argv)
    if arguments.command == "count":
        began, load_then = time.perf_counter(), os.getloadavg()[0]
        models = {name: count(model) for name, model in MODELS.items()}
        found = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
            | {"load": round(load_then, 2)},
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "models": models,
            "rows_per_second": {str(size): reading(size) for size in sorted({m["bytes"] for m in models.values()})},
        }
        arguments.out.write_text(json.dumps(found | {"seconds": round(time.perf_counter() - began)}, indent=1) + "\n")
        return
    result = load()
    if arguments.command == "page":
        arguments.page.write_text(inserted(arguments.page.read_text(), result))
        return
    for name, make in TABLES.items():
        print(f"\n{name}\n\n{make(result)}")


if __name__ == "__main__":
    main()
