"""``ppl-vae evaluate``: the table, the files and the pictures of an evaluation, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from archives import arrays_of
from short_runs import without_pictures

from ppl_vae import cli, data
from ppl_vae.cli.evaluate import _fingerprint
from ppl_vae.evaluation import Interval
from ppl_vae.evaluation import pictures as drawing

SHORT = ["--epochs", "3", "--likelihood.network.hidden", "[8]", "--posterior.network.hidden", "[8]", "--compile", "off"]
FEW = ["--size", "20", "--gaps", "6", "--importance", "6", "--imputation", "5"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with two runs on digits, in two and in four dimensions."""
    folder = tmp_path_factory.mktemp("evaluated")
    with without_pictures():
        assert cli.main(["train", *SHORT, "--out", str(folder / "plane")]) == 0
        assert cli.main(["train", *SHORT, "--prior.latent_dim", "4", "--out", str(folder / "four")]) == 0
    return folder


@pytest.fixture(autouse=True)
def runs(trained, tmp_path, monkeypatch, capsys):
    for run in ("plane", "four"):
        shutil.copytree(trained / run, tmp_path / run)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return tmp_path


@pytest.mark.ci
def test_the_table_the_files_and_the_pictures(runs, capsys):
    assert cli.main(["evaluate", "plane", *FEW]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # progress is for terminals
    lines = captured.out.splitlines()
    assert lines[0] == "plane: digits, test"
    assert lines[1].startswith("20 data, log p(x) by quadrature (exact)")
    content = json.loads((runs / "plane" / "evaluation" / "evaluation.json").read_text())
    figures = content["figures"]
    assert figures["log_evidence"]["low"] < figures["log_evidence"]["value"] < figures["log_evidence"]["high"]
    assert 0 < figures["knn_accuracy"]["value"] < 1
    arrays = arrays_of(runs / "plane" / "evaluation" / "per_datum.npz")
    assert arrays["log_evidence"].mean() == pytest.approx(figures["log_evidence"]["value"])
    assert np.isfinite(arrays["approximation_gap"]).sum() == 6
    pictures = {line.removeprefix("picture: plane/evaluation/") for line in lines if line.startswith("picture: ")}
    names = ["evidence", "gaps", "particles", "rate_distortion", "aggregate_posterior", "latent_map", "true_posteriors"]
    assert pictures == {f"{name}.png" for name in names}
    assert sorted(names) == sorted(drawing._ALL)  # what a later evaluation takes away
    for name in pictures:
        assert (runs / "plane" / "evaluation" / name).stat().st_size > 5000


@pytest.mark.ci
def test_show_has_the_figures_of_an_evaluation(runs, capsys):
    def evaluated(run, *more):
        few = ["--size", "6", "--gaps", "0", "--importance", "0", "--imputation", "0", *more]
        assert cli.main(["evaluate", run, *few]) == 0
        assert capsys.readouterr().out.startswith(f"{run}: digits, test\n")
        return json.loads((runs / "plane" / "evaluation" / "evaluation.json").read_text())

    content = evaluated("plane")
    assert cli.main(["show", "plane", "four"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("log evidence ") and "error" not in line)
    assert str(Interval(**content["figures"]["log_evidence"])) in line

    other = evaluated("plane/checkpoint.pt", "--data.threshold", "0.9")  # in the same place, and says so
    assert (content["checkpoint"], other["checkpoint"]) == (None, "checkpoint.pt")
    assert other["fingerprint"] != content["fingerprint"]
    x = data.load("digits").test.x
    assert content["fingerprint"] == _fingerprint((x,), 6) == _fingerprint((x[:6].clone(),), 6)


@pytest.mark.slow
def test_more_than_three_latents_are_estimated_and_drawn_without_the_plane(runs, capsys):
    assert cli.main(["evaluate", "four", "--size", "6", "--gaps", "3", "--imputation", "3", "--out", "elsewhere"]) == 0
    out = capsys.readouterr().out
    assert "by importance (a stochastic lower bound)" in out
    assert "not drawn: latent_map, true_posteriors: a plane shows a latent of 2 numbers" in out
    assert not (runs / "four" / "evaluation").exists()
    content = json.loads((runs / "elsewhere" / "evaluation.json").read_text())
    assert content["kind"] == "lower"
    assert (runs / "elsewhere" / "particles.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate nowhere", "nowhere"),
        ("evaluate", "no run"),
        ("evaluate plane --evidence quadratur", "evidence"),
        ("evaluate four --evidence quadrature --size 5", "at most 3"),
        ("evaluate plane --size 0", "size"),
        ("evaluate plane --size 1", "at least 2"),
        ("evaluate plane --gaps -1", "--gaps is -1"),
        ("evaluate plane --seed -1", "--seed"),
        ("evaluate plane --out nowhere/deep", "--out"),
        ("evaluate plane --split testing", "split"),
    ],
)
def test_what_cannot_be_is_one_line(words, said, capsys, runs):
    assert cli.main(words.split()) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("ppl-vae: error: ")
    assert said in line
    assert captured.out == ""
    assert not (runs / "plane" / "evaluation").exists()


def test_help_explains_every_option(capsys):
    assert cli.main(["evaluate", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("evidence", "split", "size", "gaps", "importance", "imputation", "bins", "seed", "out", "data"):
        assert f"--{option}" in out
