"""The semi-supervised VAE at several choices of labels, beside classifiers of the labels alone.

    python benchmarks/few_labels.py --seeds 4                                # scikit-learn's digits: one minute a seed
    python benchmarks/few_labels.py --mnist FOLDER --run runs/NAME           # MNIST: of labels alone, and of a run

Prints the tables of docs/semi-supervised.md. The run of MNIST is the one whose command stands there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from ppl_vae import data, load_run
from ppl_vae.data.conditions import with_few_labels

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import semi_supervised


def labels_alone(split: Any, x: Tensor, truth: Tensor, hidden: int) -> list[float]:
    """The errors of a logistic regression and of a network that see the labelled data alone."""
    rows, y = split.columns[:2]
    known = (y.sum(1) > 0).nonzero()[:, 0]
    seen, label = rows[known].flatten(1), y[known].argmax(1)
    models = (LogisticRegression(max_iter=1000), MLPClassifier((hidden,), max_iter=500, random_state=0))
    return [1 - float(m.fit(seen, label).score(x.flatten(1), truth)) for m in models]


def digits(seeds: int) -> None:
    """One line for each choice of 100 labels."""
    whole = data.load("digits", conditional=True)
    held = (whole.validation, whole.test)
    x, y = (torch.cat([part.columns[i] for part in held]) for i in (0, 1))
    print("| labels of seed | logistic regression, labels alone | network, labels alone | M2, w = 0.1 | M2, w = 1 |")
    print("|---|---|---|---|---|")
    rows = []
    for seed in range(seeds):
        few, began = with_few_labels(whole, 100, seed=seed), time.process_time()
        found = labels_alone(few.train, x, y.argmax(1), 128)
        for weight in (0.1, 1.0):
            vae = semi_supervised.train(few, 10, weight, 100, seed=seed)
            found.append(float(vae.mistakes(x, y).double().mean()))
        rows.append(found)
        print(line(seed, found), flush=True)
        print(f"seed {seed}: {time.process_time() - began:.0f} CPU seconds", file=sys.stderr)
    print(line("mean", [sum(column) / seeds for column in zip(*rows, strict=True)]))


def line(name: object, errors: list[float]) -> str:
    """A row of the table."""
    return f"| {name} | " + " | ".join(f"{100 * e:.1f}%" for e in errors) + " |"


def mnist(folder: Path, run: Path | None) -> None:
    """The errors on the test digits."""
    found = data.load("MNIST", root=folder, binarize="dynamic", validation=10_000, labels=100)
    x, y = found.test.columns[:2]
    logistic, network = labels_alone(found.train, x, y.argmax(1), 500)
    print(f"labels alone: logistic regression {100 * logistic:.1f}%, network {100 * network:.1f}%")
    if run is not None:
        vae: Any = load_run(run)
        print(f"{run}: {100 * float(vae.mistakes(x, y).double().mean()):.1f}%")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--mnist", type=Path, help="the folder that holds MNIST; then digits are left out")
    parser.add_argument("--run", type=Path, help="a run folder of MNIST with few labels")
    given = parser.parse_args()
    if given.mnist is None:
        digits(given.seeds)
    else:
        mnist(given.mnist, given.run)


if __name__ == "__main__":
    main()
