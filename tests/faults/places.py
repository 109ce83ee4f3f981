"""A working directory with good files of every kind that is read, and with things that are no files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

SHORT = "--epochs 1 --batch_size 8 --compile off"
SMALL = f"{SHORT} --likelihood.network.hidden [4] --posterior.network.hidden [4]".split()
OLD = Path(__file__).parent.parent / "runs" / "old_run"


def train(data: str, *more: str, out: str = "new") -> list[str]:
    """The command line of a small run on a file of grey values."""
    return ["train", "--data", data, "--data.binarize", "threshold", *more, *SMALL, "--out", out]


def make(folder: Path) -> int:
    """Make the files: runs ``run``, ``square``, ``labelled``, ``table`` and ``old_run``, and data."""
    from ppl_vae import cli

    os.chdir(folder)
    numbers = np.random.default_rng(0)
    x = (numbers.random((40, 1, 8, 8)) > 0.5).astype(np.float32)
    np.save("x.npy", x)
    np.savez("x.npz", x=x, y=np.arange(40) % 10)
    np.savez_compressed("packed.npz", x=x, y=np.arange(40) % 10)
    np.save("vectors.npy", x.reshape(40, 64)[:, :7])
    Path("images").mkdir()
    for i, pixels in enumerate(x[:12]):
        Image.fromarray((pixels[0] * 255).astype(np.uint8)).save(f"images/{i}.png")
    raw = Path("root/MNIST/raw")
    raw.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 10)):
        pixels = numbers.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(int(n) for n in numbers.integers(0, 10, count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01" + count.to_bytes(4, "big") + labels)
    with mock.patch("ppl_vae.runs.folder.draw", return_value=[]):
        assert cli.main(train("x.npy", out="run")) == 0
        assert cli.main(train("mnist", "--data.root", "root", out="square")) == 0
        assert cli.main(train("x.npz", "--data.conditional", "true", out="labelled")) == 0
        assert cli.main(train("vectors.npy", out="table")) == 0
    shutil.copytree(OLD, "old_run")
    Path("run/evaluation").mkdir()
    figures = {name: {"value": -20.5, "low": -21.0, "high": -20.0} for name in ("log_px", "elbo", "gap")}
    Path("run/evaluation/evaluation.json").write_text(json.dumps({"figures": figures, "size": 40}, indent=2))
    return 0


def add_what_is_no_file() -> None:
    """Add to this process's working directory what commands are given by mistake."""
    Path("folder").mkdir()
    Path("empty").touch()
    Path("latin.yaml").write_bytes("epochs: 3 # für".encode("latin-1"))
    Path("text.npy").write_text("no array")
    Path("bytes").write_bytes(bytes(range(256)))
    Path("list.yaml").write_text("- 1\n- 2\n")
    Path("unknown.yaml").write_text("epoch: 3\n")
    Path("twice.yaml").write_text("epochs: 3\nepochs: 4\n")
    Path("deep.yaml").write_text("a: " + "[" * 2000 + "]" * 2000)
    Path("bomb.yaml").write_text(
        "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 9))])
    )
    Path("system.yaml").write_text("prior: {class: os.system, command: touch hacked}\n")
    Path("plan.yaml").write_text("seeds: 1\ngrid: {epochs: [1, 2]}\n")
    Path("plan0.yaml").write_text("seeds: 1\ngrid: {epochs: [1, 0]}\n")
    Path("plan1.yaml").write_text("seeds: 0\n")
    Path("plan2.yaml").write_text("grid: {prior: [StandardNormal, os.system]}\n")
    Path("plan3.yaml").write_text("grid: {prior: [StandardNormal, VampPriorr]}\n")
    Path("plan4.yaml").write_text("list: [{seed: 3}]\n")
    Path("huge.yaml").write_text("likelihood: {class: Bernoulli, network: {class: MLP, hidden: [1000000000000]}}\n")
    np.save("empty.npy", np.zeros((0, 8, 8)))
    np.save("nan.npy", np.full((20, 8, 8), np.nan))
    np.save("rank.npy", np.zeros(20))
    np.save("objects.npy", np.array([{}, []], dtype=object))
    np.save("words.npy", np.array(["a", "b"]))
    np.save("large.npy", np.full((20, 8, 8), 7.0))
    np.save("wide.npy", np.zeros((20, 9, 9)))
    np.savez("names.npz", a=np.zeros((4, 8, 8)), b=np.zeros(4))
    Path("locked").write_text("epochs: 3\n")
    os.chmod("locked", 0)
    Path("norun").mkdir()
    Path("norun/run.json").write_text("{}")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe") if hasattr(os, "mkfifo") else None
