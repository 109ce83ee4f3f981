"""Training on data that do not fit into memory: peak memory, and the rate beside the same rows in memory.

    python benchmarks/big_data.py --json benchmarks/results                # 10 GB, and 20,000 images; half an hour
    python benchmarks/big_data.py --gigabytes 0.2 --images 2000            # a trial

Each kind of source has a process of its own. It trains a small model on a few rows in memory, and notes its resident
memory: that is the model's. It then opens the source and trains an epoch, while a thread looks at the memory ten times
a second. For the rate, steps on the source and on rows like them in memory take turns in one process, 30 at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

import ppl_vae as pv
from ppl_vae import data, likelihoods, networks, posteriors, priors
from ppl_vae._machine import processor

BATCH, WIDTH, TURNS, STEPS = 256, 784, 10, 30
KINDS = ("file", "made as they come", "images", "items", "items, 2 workers")


def made(first: int, rows: int) -> np.ndarray:
    """Rows that look a little like digits, float32 in [0, 1]: a pattern of four strokes, moved from row to row."""
    place = np.arange(WIDTH)[None] + 37 * np.arange(first, first + rows)[:, None]
    return np.clip(np.sin(place / 9.0) * np.cos(place / 31.0), 0, 1).astype(np.float32)


class Pictures(Dataset):
    """The images of a folder, decoded when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(Image.open(self.paths[row]))[None].copy())


class Made(IterableDataset):
    """Batches that are made as they come, and kept nowhere."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[torch.Tensor]:
        for first in range(0, self.rows, BATCH):
            yield torch.from_numpy(made(first, BATCH))


def write(folder: Path, kind: str, gigabytes: float, images: int) -> None:
    """Write what a kind of source reads."""
    if kind == "file":
        rows = int(gigabytes * 1e9 / 4 / WIDTH)
        array = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.float32, shape=(rows, WIDTH))
        for first in range(0, rows, 4096):
            array[first : first + 4096] = made(first, min(4096, rows - first))
        array.flush()
    elif "made" not in kind:
        for first, x in enumerate((made(0, images) * 255).astype(np.uint8)):
            Image.fromarray(x.reshape(28, 28)).save(folder / f"{first:06d}.png")


def opened(folder: Path, kind: str, gigabytes: float) -> data.Split:
    """Open a source, without holding it."""
    if kind == "file":
        return data.load(folder / "rows.npy", validation=0, test=0, max_in_memory_gib=0).train
    if kind == "images":
        return data.load(folder, validation=0, test=0, max_in_memory_gib=0).train
    if kind.startswith("items"):
        return data.as_split(Pictures(folder), workers=2 if "workers" in kind else None)
    rows = int(gigabytes * 1e9 / 4 / WIDTH)
    return data.as_split(DataLoader(Made(rows), batch_size=None, num_workers=1))


def resident() -> dict[str, float]:
    """The resident memory of this process in GB: its own, pages of files, and both."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, files = (1024e-9 * int(lines[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return {"own": own, "files": files, "both": own + files}


class Watch(threading.Thread):
    """The peak of the resident memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = resident(), threading.Event()

    def run(self) -> None:
        """Look ten times a second."""
        while not self.over.wait(0.1):
            self.peak = {name: max(value, self.peak[name]) for name, value in resident().items()}


def measure(folder: Path, kind: str, gigabytes: float) -> dict[str, Any]:
    """Train an epoch on a source, then take turns with rows in memory."""
    torch.set_num_threads(1)
    shape = (WIDTH,) if kind in ("file", "made as they come") else (1, 28, 28)
    few = torch.from_numpy(made(0, 20 * BATCH)).reshape(-1, *shape)
    torch.manual_seed(0)
    vae = pv.VAE(
        shape,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.ContinuousBernoulli(networks.MLP([50])),
        posterior=posteriors.DiagonalNormal(networks.MLP([50])),
    )
    options: dict[str, Any] = {"batch_size": BATCH, "epochs": 1, "compile": "graph", "seed": 0, "device": "cpu"}
    pv.fit(vae, few, **options)
    model = resident()
    watch, began = Watch(), time.perf_counter()
    watch.start()
    split = opened(folder, kind, gigabytes)
    seconds = {"open": time.perf_counter() - began}
    run = pv.fit(vae, split, **options)
    watch.over.set()
    seconds["epoch"] = run.seconds
    svi, ratios, rates = pv.SVI(vae.model, vae.guide, torch.optim.Adam, pv.objectives.ELBO(), compile="graph"), [], []
    held = [data.Split((few,)), split]

    def batches(place: int) -> Iterator[tuple[torch.Tensor, ...]]:
        while True:
            rows = None if "made" in kind and place else torch.randperm(len(held[place]))
            whole = (batch for batch in held[place].batches(BATCH, order=rows) if len(batch[0]) == BATCH)
            yield from whole

    running = [batches(0), batches(1)]
    for turn in range(TURNS + 1):
        taken = []
        for source in running:
            for step in range(STEPS + 16):  # the first ones have waited since the turn before
                if step == 16:
                    began = time.perf_counter()
                svi.update(*next(source))
            taken.append((time.perf_counter() - began) / STEPS)
        if turn:
            ratios.append(taken[0] / taken[1])
            rates.append(BATCH / taken[1])
    return {
        "kind": kind,
        "rows": int(run.history[0]["step"]) * BATCH,
        "model_gb": model,
        "peak_gb": watch.peak,
        "seconds": seconds,
        "rate": run.history[0]["rate"],
        "rate_in_turn": statistics.median(rates),
        "beside_memory": statistics.quantiles(ratios, n=4),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Print a line for each kind, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--folder", help="where the files are made; they are deleted at the end")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of its own, what lies there
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.measure, given.only[0], given.gigabytes)))
        return
    found = []
    for kind in given.only:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            write(Path(folder), kind, given.gigabytes, given.images)
            command = [sys.executable, __file__, "--only", kind, "--measure", folder]
            command += ["--gigabytes", str(given.gigabytes)]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found.append(result)
        low, middle, high = result["beside_memory"]
        print(
            f"{kind:20s} {result['rows']:9,d} rows, opened in {result['seconds']['open']:5.1f} s, "
            f"{result['rate']:8,.0f} data/s in the epoch; {middle:.2f} ({low:.2f} to {high:.2f}) of that in memory; "
            f"resident {result['peak_gb']['both']:.2f} GB at the peak, {result['model_gb']['both']:.2f} with the model",
            flush=True,
        )
        if given.json is not None:
            about = {"gigabytes": given.gigabytes, "images": given.images, "batch": BATCH, "processor": processor()}
            about |= {"cores": os.cpu_count(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
            (given.json / "big_data.json").write_text(json.dumps({**about, "kinds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
