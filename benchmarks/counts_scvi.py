"""SCVI of scvi-tools on the data of `counts.py`, in its own environment: train, score the test cells, write both."""

from __future__ import annotations

import json
import sys
import time
import warnings

import anndata
import numpy as np
import scvi
import torch

warnings.simplefilter("ignore")


def main(data: str, out: str) -> None:
    """Read arrays and settings from `data`, and write what was found to `out`."""
    given = np.load(data)
    setting = json.loads(str(given["setting"]))
    torch.set_num_threads(1)
    scvi.settings.seed, scvi.settings.verbosity = setting["seed"], 40
    cells = {}
    for part in ("train", "test"):
        cells[part] = anndata.AnnData(given[f"x_{part}"].astype(np.float32))
        cells[part].obs["batch"] = [str(b) for b in given[f"batch_{part}"]]
    scvi.model.SCVI.setup_anndata(cells["train"], batch_key="batch")
    model = scvi.model.SCVI(
        cells["train"],
        n_hidden=setting["hidden"],
        n_latent=setting["latent"],
        n_layers=1,
        dropout_rate=0.0,
        dispersion="gene",
        gene_likelihood="nb",
        use_batch_norm="both" if setting["batch_norm"] else "none",
    )
    plan = {
        "lr": setting["lr"],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "n_epochs_kl_warmup": None,
        "n_steps_kl_warmup": None,
    }
    quiet = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
    began = time.process_time()
    model.train(setting["epochs"], train_size=1.0, batch_size=setting["batch_size"], plan_kwargs=plan, **quiet)
    seconds = time.process_time() - began
    found = model.get_marginal_ll(
        cells["test"], n_mc_samples=setting["particles"], return_mean=False, n_mc_samples_per_pass=50
    )
    weights = {f"weights/{name}": value.numpy() for name, value in model.module.state_dict().items()}
    elbo = float(model.get_elbo(cells["test"]))
    np.savez(out, log_p=np.asarray(found), elbo=elbo, seconds=seconds, **weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
