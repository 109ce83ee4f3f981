"""Held-out log p(x|l) of counts beside scvi-tools' SCVI: the same networks, epochs, batches, learning rate and K.

    python benchmarks/peers.py install scvi                         # once
    python benchmarks/counts.py --json benchmarks/results/counts.json
    python benchmarks/counts.py --pbmc PATH                         # also the 700 cells that scanpy ships, see below

Data: cells of a known model (5 factors through a linear softmax, two batches, an r per gene, log-normal sizes),
and with ``--pbmc`` the file 10x_pbmc68k_reduced.h5ad inside scanpy (``scanpy/datasets``; it comes with scvi-tools): 700
cells by 765 genes. Its ``.raw`` holds log(1 + 10,000 x / total) and its ``.obs`` the totals, so that the counts come
back as whole numbers.

Both have an encoder and a decoder of one layer of 128 rectifiers, 10 latents, a negative binomial with an r per gene,
the observed library size, Adam (1e-3, no weight decay), no dropout and no KL warm-up. SCVI starts log r at draws of
N(0, 1), ours at 0; a row each has ours started as SCVI. Batch normalisation has momentum 0.01 there and 0.1 here. Each
one scores its own test cells by K draws from its own q(z|x), SCVI by its `get_marginal_ll`. In the row "SCVI's weights
in our pieces" ours scores SCVI's model (without normalisation), which holds the two measures against each other. "The
model that drew them" has the true decoder and r, and a trained q(z|x); its library size is the observed total, as for
all others. Times are those of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae._machine import processor

HERE = Path(__file__).resolve().parent
HIDDEN, LATENT, FACTORS = 128, 10, 5
CELLS: dict[str, Any] = {"conditional": True, "library": True, "validation": 0, "test": 0.2}
SETTING = {"hidden": HIDDEN, "latent": LATENT, "lr": 1e-3, "batch_size": 128, "particles": 200}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pbmc", metavar="PATH")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100, help="for the simulated cells; twice as many for the real")
    parser.add_argument("--python", default=peers.python("scvi"), help="the interpreter of scvi-tools' environment")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = {"simulated": simulated} | (
        {} if options.pbmc is None else {"pbmc68k_reduced": lambda _: pbmc(options.pbmc)}
    )
    rows: list[dict[str, Any]] = []
    for name, make in sets.items():
        for seed in range(options.seeds):
            cells, truth = make(seed)
            epochs = options.epochs if truth else 2 * options.epochs
            for row in compared(cells, truth, seed, epochs, options.python):
                rows.append({"data": name, "seed": seed, **row})
                print(rows[-1], flush=True)
    print(table(rows))
    if options.json:
        facts: dict[str, Any] = {
            "processor": processor(),
            "torch": torch.__version__,
            "epochs": options.epochs,
            **SETTING,
        }
        Path(options.json).write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


def simulated(seed: int, genes: int = 200, size: int = 2500) -> tuple[pv.data.Dataset, dict[str, np.ndarray]]:
    """Cells of a known model, a fifth of them for the test."""
    rng = np.random.default_rng(seed)
    weight = np.concatenate([rng.normal(0, 0.5, (FACTORS, genes)), rng.normal(0, 0.3, (2, genes))])
    bias, log_r = rng.normal(0, 1.0, genes), rng.normal(1.0, 0.7, genes)
    batch = np.arange(size) % 2
    logits = np.concatenate([rng.normal(size=(size, FACTORS)), np.eye(2)[batch]], 1) @ weight + bias
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mean = rng.lognormal(np.log(1500), 0.4, (size, 1)) * share
    counts = rng.poisson(rng.gamma(np.exp(log_r), mean / np.exp(log_r)))
    cells = pv.data.from_cells(counts, labels=batch, **CELLS, seed=seed)
    return cells, {"weight": weight.T, "bias": bias, "log_r": log_r}


def pbmc(path: str) -> tuple[pv.data.Dataset, None]:
    """The counts behind scanpy's 700 cells: what log-normalising to 10,000 a cell was undone from."""
    import anndata

    with warnings.catch_warnings(action="ignore"):  # of the file's age
        cells = anndata.read_h5ad(path)
    values = np.expm1(cells.raw.X.toarray()) * cells.obs["n_counts"].to_numpy()[:, None] / 1e4
    unit = np.array([row[row > 0].min() for row in values])[:, None]  # 1 up to rounding, unless a cell has no single
    counts = np.rint(values)
    print(f"counts: {np.abs(values - counts).max():.3f} from whole numbers at most, smallest {unit.min():.3f}")
    return pv.data.from_cells(counts, labels=np.zeros(len(counts), int), **CELLS), None


def compared(
    cells: pv.data.Dataset, truth: dict[str, np.ndarray] | None, seed: int, epochs: int, python: str | None
) -> list[dict[str, Any]]:
    """Train and score every contender."""
    (x, y), batches = cells.test.columns, cells.train.columns[1].shape[1] - 1
    rows = []
    for batch_norm in (False, True):
        kind = "batch normalisation" if batch_norm else "no normalisation"
        vae = ours(cells, seed, batch_norm)
        rows.append({"contender": f"ppl_vae, {kind}", **trained(vae, cells, seed, epochs)})
        same = ours(cells, seed, batch_norm)
        with torch.no_grad():
            same.likelihood.raw_dispersion.normal_()
        rows.append({"contender": f"ppl_vae, {kind}, r started as SCVI's", **trained(same, cells, seed, epochs)})
        if python is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            setting = json.dumps(SETTING | {"seed": seed, "epochs": epochs, "batch_norm": batch_norm})
            arrays = {f"x_{p}": getattr(cells, p).x.numpy() for p in ("train", "test")}
            arrays |= {f"batch_{p}": getattr(cells, p).columns[1][:, 1:].argmax(1).numpy() for p in ("train", "test")}
            np.savez(f"{folder}/data.npz", setting=setting, **arrays)
            command = [python, str(HERE / "counts_scvi.py"), f"{folder}/data.npz", f"{folder}/out.npz"]
            subprocess.run(command, check=True, capture_output=True)
            found = dict(np.load(f"{folder}/out.npz"))
        rows.append(
            {"contender": f"SCVI, {kind}", **figures(torch.from_numpy(found["log_p"]))}
            | {"elbo": float(found["elbo"]), "seconds_an_epoch": float(found["seconds"]) / epochs}
        )
        if not batch_norm:
            take_weights(vae, found, batches)
            rows.append({"contender": "SCVI's weights in our pieces", **scored(vae, x, y)})
    if truth is not None:
        torch.manual_seed(seed)  # of its q(z|x)
        rows.append({"contender": "the model that drew them", **trained(known(cells, truth), cells, seed, 2 * epochs)})
    return rows


def ours(cells: pv.data.Dataset, seed: int, batch_norm: bool) -> pv.VAE:
    """SCVI's model of our pieces."""
    torch.manual_seed(seed)
    network = pv.networks.MLP([HIDDEN], "relu", batch_norm=batch_norm, init="torch")
    return pv.VAE(
        cells,
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.likelihoods.NegativeBinomial(network, library="condition"),
        posterior=pv.posteriors.DiagonalNormal(pv.networks.Log1p(network, counts=cells.x_shape[0]), scale="log_var"),
    )


def known(cells: pv.data.Dataset, truth: dict[str, np.ndarray]) -> pv.VAE:
    """The decoder and the dispersions that the cells were drawn from, with a q(z|x) to train."""
    decoder = nn.Linear(*reversed(truth["weight"].shape)).requires_grad_(False)
    decoder.weight.copy_(torch.from_numpy(truth["weight"]))
    decoder.bias.copy_(torch.from_numpy(truth["bias"]))
    likelihood = pv.likelihoods.NegativeBinomial(decoder, library="condition")
    encoder = pv.networks.Log1p(pv.networks.MLP([HIDDEN], "relu", init="torch"))
    posterior = pv.posteriors.DiagonalNormal(encoder, scale="log_var")
    vae = pv.VAE(cells, prior=pv.priors.StandardNormal(FACTORS), likelihood=likelihood, posterior=posterior)
    likelihood.raw_dispersion.requires_grad_(False).copy_(torch.from_numpy(truth["log_r"]))
    return vae


@torch.no_grad()
def take_weights(vae: pv.VAE, found: dict[str, np.ndarray], batches: int) -> None:
    """Put the weights of an SCVI without normalisation into our VAE."""
    w = {name.removeprefix("weights/"): torch.from_numpy(value) for name, value in found.items() if "/" in name}
    encoder = vae.posterior.mean_and_scale.network.network
    first = "z_encoder.encoder.fc_layers.Layer 0.0"
    heads = ("z_encoder.mean_encoder", "z_encoder.var_encoder")
    copied(encoder[-1], *(torch.cat([w[f"{head}.{kind}"] for head in heads]) for kind in ("weight", "bias")))
    copied(next(m for m in encoder if isinstance(m, nn.Linear)), w[f"{first}.weight"], w[f"{first}.bias"])
    decoder = [m for m in vae.likelihood.parameters_of_z.network if isinstance(m, nn.Linear)]
    first = "decoder.px_decoder.fc_layers.Layer 0.0"
    weight = w[f"{first}.weight"]
    if weight.shape[1] == LATENT:  # of one batch SCVI has no column
        weight = torch.cat([weight, torch.zeros(HIDDEN, batches)], 1)
    copied(decoder[0], weight, w[f"{first}.bias"])
    copied(decoder[-1], w["decoder.px_scale_decoder.0.weight"], w["decoder.px_scale_decoder.0.bias"])
    vae.likelihood.raw_dispersion.copy_(w["px_r"])


def copied(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Set a layer."""
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def trained(vae: pv.VAE, cells: pv.data.Dataset, seed: int, epochs: int) -> dict[str, float]:
    """Train and score."""
    began = time.process_time()
    run = pv.fit(vae, cells, epochs=epochs, batch_size=SETTING["batch_size"], seed=seed, compile="graph")
    seconds = time.process_time() - began
    assert run.why_eager is None
    return scored(vae, *cells.test.columns) | {"seconds_an_epoch": seconds / epochs}


def scored(vae: pv.VAE, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the figures of the test cells, by draws from the VAE's own q(z|x)."""
    found = pv.evidence.log_evidence(vae, x, y, method="posterior", num_particles=(SETTING["particles"],))
    return figures(found.log_evidence) | {"elbo": float(found.details["elbo"].mean())}


def figures(log_p: Tensor) -> dict[str, float]:
    """Return the mean over cells and its standard error."""
    return {"log_p": float(log_p.mean()), "error": float(log_p.std() / len(log_p) ** 0.5)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over seeds as Markdown, with the standard error over seeds of the difference to the first row."""
    lines = ["| data | contender | log p(x given l), nats | above ppl_vae, no normalisation | ELBO | s an epoch |"]
    lines.append("|---|---|---|---|---|---|")
    for data, name in dict.fromkeys((row["data"], row["contender"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["contender"]) == (data, name)]
        base = [row for row in rows if (row["data"], row["contender"]) == (data, "ppl_vae, no normalisation")]
        above = np.array([a["log_p"] - b["log_p"] for a, b in zip(mine, base, strict=True)])
        error = above.std(ddof=1) / len(above) ** 0.5 if len(above) > 1 else float("nan")
        seconds = np.mean([row.get("seconds_an_epoch", np.nan) for row in mine])
        mean = {key: np.mean([row[key] for row in mine]) for key in ("log_p", "elbo")}
        lines.append(
            f"| {data} | {name} | {mean['log_p']:.2f} | {above.mean():+.2f} +- {error:.2f} | {mean['elbo']:.2f} | "
            f"{'' if np.isnan(seconds) else f'{seconds:.3f}'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
