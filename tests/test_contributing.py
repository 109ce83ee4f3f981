"""The skeletons of CONTRIBUTING.md are right as they stand, and the files that it names are there."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ppl_vae as pv
from ppl_vae import likelihoods, networks, posteriors, priors

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def skeletons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "skeletons.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "skeletons", raising=False)
    return importlib.import_module("skeletons")


def test_the_piece_is_a_density_and_trains(skeletons: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    pieces = {
        "prior": priors.StandardNormal(2),
        "likelihood": skeletons.MyNormal(networks.MLP([8])),
        "posterior": posteriors.DiagonalNormal(networks.MLP([8])),
    }
    report = pv.check(data=x, **pieces)
    assert report, str(report)


@pytest.mark.ci
def test_the_estimator_has_the_gradient_that_it_claims(skeletons: Any) -> None:
    torch.manual_seed(0)
    vae = pv.VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(networks.MLP([8]), scale=2.0),
        posterior=posteriors.DiagonalNormal(networks.MLP([8])),
    )
    objectives = ["IWAE", {"mine": skeletons.MyDReG}]
    found = pv.compare(vae, torch.randn(8, 6), objectives=objectives, particles=4, replicates=200, minibatch=False)
    block = found.row("mine", 4).blocks["encoder"]
    assert found.row("mine", 4).reference == "IWAE"
    assert block.bias_p is not None
    assert block.bias_p > 1e-3


def test_the_files_that_it_names_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py)\b", TEXT)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).is_file() or (ROOT / "ppl_vae" / name).is_file(), name
