"""Short runs, and what is left of one: everything that must not depend on how often it was killed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes
import torch

from ppl_vae.training import checkpoints

NOT_OF_THE_RUN = ("seconds", "rate")  # of a record: how long it took
SMALL = ["--likelihood.network.hidden", "[8]", "--posterior.network.hidden", "[8]", "--checkpoint_every", "0.05"]
EAGER = ["--compile", "off"]
STEPS = ["--batch_size", "32"]  # 40 steps an epoch
VARIANTS: dict[str, list[str]] = {
    "graph": ["--compile", "graph", "--epochs", "12"],
    "early stopping": [
        *EAGER, "--epochs", "60", "--early_stopping", "2", "--optimizer.lr", "0.05",
    ],
    "dynamic": [*EAGER, "--epochs", "12", "--data.binarize", "dynamic", *STEPS],
    "scheduler": [
        *EAGER, "--epochs", "12", "--scheduler", "StepLR", "--scheduler.step_size", "3",
        "--posterior.network.batch_norm", "true",
    ],
}  # fmt: skip


def train(variant: str) -> list[str]:
    """The command line of a variant, on the CPU, where a resumed run is promised to be the same to the last bit."""
    return ["train", *VARIANTS[variant], *SMALL, "--device", "cpu"]


def newest(folder: Path) -> Path | None:
    """The run in a working directory that was begun last and has a checkpoint, or None."""
    found = [path for path in (folder / "runs").glob("*") if (path / "checkpoint.pt").is_file()]
    return max(found, key=_number, default=None)


def finish(argv: list[str], folder: Path, every: str = "0.05", pictures: bool = True, most: int = 5) -> Path:
    """Resume the newest run of a working directory, or start it anew, until one ends; return its folder."""
    for _ in range(most):
        last = newest(folder)
        if last is not None and is_over(last, pictures):
            return last
        again = ["train", "--resume", f"runs/{last.name}", "--checkpoint_every", every] if last else argv
        ended = processes.run(again, folder, before(pictures))
        assert ended.code == 0, ended.err
        assert last is None or leftovers(last) == [], "a run that is resumed from keeps files of a killed process"
    raise AssertionError(f"no run ended in {most} processes")


def is_over(folder: Path, pictures: bool = False) -> bool:
    """Whether a run has done all it does: its result is there and, if it draws pictures, the last of them."""
    if not (folder / "result.json").is_file() or (pictures and not (folder / "latent_scatter.png").is_file()):
        return False
    return json.loads((folder / "result.json").read_text())["stopped"] != "interrupted"


def before(pictures: bool) -> list[processes.WithoutPictures]:
    """What is done to a process first, so that it draws pictures or does not."""
    return [] if pictures else [processes.WithoutPictures()]


def leftovers(folder: Path) -> list[str]:
    """Temporary files in a folder."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.suffix == ".tmp"]


def record(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves, without the times."""
    state = checkpoints.load(folder)
    state["history"] = [_timeless(entry) for entry in state["history"]]
    state.pop("seconds")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "state": state,
        "result": _timeless(json.loads((folder / "result.json").read_text())),
        "metrics": [_timeless(json.loads(line)) for line in lines],
        "config": (folder / "config.yaml").read_text(),
        "files": sorted(p.name for p in folder.iterdir() if not p.name.startswith(("events.out", ".lock"))),
    }


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The places at which two trees of tensors, numbers and texts are not the same bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{where}.{key}" for key in one.keys() ^ other.keys()]
        return missing + [
            d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f"{where}.{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f"{where}: {len(one)} entries and {len(other)}"]
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}[{i}]")]
    return [] if type(one) is type(other) and (one == other or one != one) else [where]


def lost_epochs(folder: Path) -> int:
    """How many epochs a run has recorded that its checkpoint does not have."""
    text = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").is_file() else ""
    return text.count("\n") - checkpoints.load(folder)["epoch"]


def copy(folder: Path, to: Path) -> Path:
    """Copy a working directory."""
    return Path(shutil.copytree(folder, to))


def exit_codes(number: int) -> Sequence[int]:
    """The exit codes of a run that a signal ended: after its step, at once before training, or by the signal itself."""
    return (128 + number, -number) if number != signal.SIGINT else (130,)


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in NOT_OF_THE_RUN}


def _number(folder: Path) -> int:
    tail = folder.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 1
