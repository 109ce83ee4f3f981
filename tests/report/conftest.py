"""Runs to report on, and a browser to open the reports in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from reported import CONVOLUTIONAL, HOSTILE, RACE, SHORT, SMALL, main
from short_runs import without_pictures


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder of short runs: a plane with an evaluation, other latents, conditions, a table with hostile names."""
    folder = tmp_path_factory.mktemp("reported")
    rng = np.random.default_rng(0)
    lines = [f'width,"{HOSTILE.replace(chr(34), chr(34) * 2)}",colour,species']
    lines += [
        f'{rng.normal():.3f},{rng.normal():.3f},{["red", "<i>blue</i>"][i % 2]},"{["a", "</script>"][i % 2]}"'
        for i in range(200)
    ]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    with without_pictures():
        main("train", *SMALL, "--out", str(folder / "plane"))
        main("train", *SMALL, "--prior.latent_dim", "1", "--out", str(folder / "line"))
        main("train", *SMALL, "--prior.latent_dim", "20", "--out", str(folder / "many"))
        main("train", *SMALL, "--data.conditional", "true", "--out", str(folder / "labels"))
        main("train", *SHORT, *CONVOLUTIONAL, "--out", str(folder / "convolutional"))
        table = ["--data", str(folder / "table.csv"), "--data.labels", "species"]
        main("train", *SHORT, *table, "--out", str(folder / "table"))
    main("evaluate", str(folder / "plane"), "--size", "12", "--gaps", "4", "--importance", "0", "--imputation", "0")
    main("compare", str(folder / "plane"), "--objectives", "[ELBO, IWAE]", "--particles", "4", "--replicates", "40")
    main("compare", "--train", "true", *SMALL, *RACE, "--out", str(folder / "race"))
    return folder


@pytest.fixture(scope="session")
def browser():
    """A Chromium of this machine, headless."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra: pip install 'ppl-vae[browser]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
