"""The examples run, and show what their headers promise."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from short_runs import without_pictures

from ppl_vae import cli, data, load_run
from ppl_vae.objectives import sample_log_weights

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.ci
def test_three_elbos(capsys):
    results = load("three_elbos").main(epochs=3, replicates=50)
    sampled, analytic, closed, article = results.values()
    assert abs(sampled[0] - analytic[0]) < 5 * (sampled[1] ** 2 + analytic[1] ** 2) ** 0.5
    assert closed == pytest.approx(analytic, rel=1e-5)  # the same noise; float32
    assert article[0] == pytest.approx(closed[0], rel=1e-4)
    assert 0 < sampled[1] < 0.1
    assert "Trace_ELBO (sampled KL)" in capsys.readouterr().out


@pytest.mark.ci
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


@pytest.mark.ci
def test_missed_modes(capsys):
    found = load("missed_modes").main(size=6, epochs=5, temperatures=20)
    exact = found.pop("exact")
    assert len(found) == 3
    for name, evidence in found.items():
        error = (evidence.log_evidence - exact.log_evidence).abs()
        assert (error <= 5 * evidence.error + exact.error).all(), name  # an unreliable estimate has an infinite error
    assert "by quadrature, errors below" in capsys.readouterr().out


@pytest.mark.ci
def test_table_imputation(capsys):
    found = load("table_imputation").main(seeds=1, epochs=100)
    vae, plain = found["VAE"].mean(0), found["mean or most frequent"].mean(0)
    assert (vae < plain).all()
    assert "5 nearest neighbours" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_incomplete_tables(capsys, epochs):
    found = load("incomplete_tables").main(seeds=1, epochs=epochs, tables=["wine"], missing=["by value"])
    mean, _, _, miwae, high, _ = found["wine", "by value"][0]
    assert "not-MIWAE, agnostic" in capsys.readouterr().out
    if epochs == 60:
        assert high[0] < 0.9 * miwae[0]
        assert high[1] > miwae[1]
        assert miwae[0] < mean[0]


@pytest.mark.ci
def test_density_table(capsys):
    found = load("density_table").main(folds=2, epochs=100, rows=40, only="moons")
    assert set(found) == {"PCA", "KernelDensity", "GaussianMixture", "VAEDensity"}
    assert all(-8 < mean < -1 for ((mean, _),) in (model.values() for model in found.values()))
    assert "held-out log p(x), nats" in capsys.readouterr().out


@pytest.mark.slow
def test_ladder(capsys, monkeypatch):
    digits = data.load("digits")
    few = dataclasses.replace(digits, train=digits.train.head(400), test=digits.test.head(12))
    monkeypatch.setattr(data, "load", lambda name: few)
    found = load("ladder").main(epochs=3, seeds=1, directions=("top-down",))
    *bounds, exact = found["top-down"]
    for bound in bounds:
        assert bound.mean() <= exact + 5 * bound.std() / len(bound) ** 0.5
    assert found["top-down", "warm-up"].shape == (7,)
    assert "KL of levels 1, 2, 3" in capsys.readouterr().out


def test_iwae_two_layer(tmp_path):
    words = ["--config", str(EXAMPLES / "iwae_two_layer.yaml"), "--data", "digits", "--data.validation", "100"]
    with without_pictures():
        assert cli.main(["train", *words, "--epochs", "1", "--compile", "off", "--out", str(tmp_path / "run")]) == 0
    vae = load_run(tmp_path / "run")
    shapes = [tuple(p.shape) for p in vae.posterior.parameters() if p.dim() == 2]
    assert shapes == [(200, 64), (200, 200), (200, 200), (100, 100), (100, 100), (100, 100)]
    assert (vae.prior.dims, vae.likelihood.logits.in_shape) == ((100, 50), (100,))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Lightning's advice on workers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_module(tmp_path, precision):
    pytest.importorskip("lightning", reason="lightning is not installed (the extra test has it)")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    module, digits = load("lightning_module").main(3, precision, default_root_dir=tmp_path, **quiet)
    logged = float(module.trainer.callback_metrics["validation_elbo"])
    x = digits.validation.x
    weights = sample_log_weights(module.vae.model, module.vae.guide, x, num_particles=50)
    elbo = float(weights.log_w.mean())
    assert elbo > -40  # 44 before training
    assert logged == pytest.approx(elbo, abs=1.0)  # one draw a datum, 162 data; bfloat16
    assert list(tmp_path.rglob("*.ckpt"))  # loggers and checkpoints are Lightning's


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    tested |= {path.stem.removeprefix("test_") for path in Path(__file__).parent.rglob("test_*.py")}  # in its own file
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("library", ["condition", "latent"])
def test_single_cell_counts(capsys, library):
    found = load("single_cell_counts").main(cells=1200, epochs=40, library=library)
    assert found["types"] > 0.9
    assert found["denoised"] < 0.5 * found["raw"]
    assert found["log_r"] > 0.8
    assert found["bound"] < 0
    given = " given l" if library == "condition" else ""
    assert f"log p(x{given}) of held-out cells" in capsys.readouterr().out


@pytest.mark.slow
def test_semi_supervised(capsys):
    figures, tables = load("semi_supervised").main(((1, 1.0),), epochs=2, early=1, size=4, replicates=20)
    assert figures["unlabelled_gap"].low > 0  # log p(x) is exact here
    blocks = tables[1]
    exact = blocks.pop("EnumeratedELBO")["classifier"].variance.value
    assert all(found["classifier"].variance.value > exact for found in blocks.values())
    assert "log p(x) - U(x)" in capsys.readouterr().out


def test_search_optuna(capsys):
    pytest.importorskip("optuna", reason="optuna is not installed; pip install optuna")
    study = load("search_optuna").main(trials=2, epochs=1)
    assert len(study.trials) == 2
    assert "best of 2 trials (0 pruned): validation ELBO" in capsys.readouterr().out
