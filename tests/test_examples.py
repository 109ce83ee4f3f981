"""The examples run, and show what their headers promise."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from short_runs import without_pictures

from ppl_vae import cli

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_three_elbos(capsys):
    results = load("three_elbos").main(epochs=3, replicates=50)
    sampled, analytic, closed, article = results.values()
    assert abs(sampled[0] - analytic[0]) < 5 * (sampled[1] ** 2 + analytic[1] ** 2) ** 0.5
    assert closed == pytest.approx(analytic, rel=1e-5)  # the same noise; float32
    assert article[0] == pytest.approx(closed[0], rel=1e-4)
    assert 0 < sampled[1] < 0.1
    assert "Trace_ELBO (sampled KL)" in capsys.readouterr().out


def test_log_likelihoods(tmp_path, capsys):
    folder = tmp_path / "vamp"
    prior = ("--prior", "VampPrior", "--prior.latent_dim", "2", "--prior.num_components", "7", "--prior.start", "data")
    with without_pictures():
        assert cli.main(["train", *prior, "--epochs", "1", "--out", str(folder)]) == 0
    found = load("log_likelihoods").main([str(folder), "--particles", "50", "--size", "60"])["vamp"]
    assert found["num_data"] == 60
    assert found["log_likelihood"][1] < found["log_likelihood"][0] < found["log_likelihood"][2]
    assert found["elbo"][0] < found["log_likelihood"][0]
    assert json.loads((folder / "log_likelihood.json").read_text()) == found
    assert "vamp" in capsys.readouterr().out


def test_missed_modes(capsys):
    found = load("missed_modes").main(size=6, epochs=5, temperatures=20)
    exact = found.pop("exact")
    assert len(found) == 3
    for name, evidence in found.items():
        error = (evidence.log_evidence - exact.log_evidence).abs()
        assert (error <= 5 * evidence.error + exact.error).all(), name  # an unreliable estimate has an infinite error
    assert "by quadrature, errors below" in capsys.readouterr().out


def test_table_imputation(capsys):
    found = load("table_imputation").main(seeds=1, epochs=100)
    vae, plain = found["VAE"].mean(0), found["mean or most frequent"].mean(0)
    assert (vae < plain).all()
    assert "5 nearest neighbours" in capsys.readouterr().out


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    tested |= {path.stem.removeprefix("test_") for path in Path(__file__).parent.rglob("test_*.py")}  # in its own file
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
