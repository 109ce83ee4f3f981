"""What the README shows, runs."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from ppl_vae import cli
from ppl_vae.configuration import config

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("ppl-vae train") and "--help" not in line]


def test_the_ten_lines_run(capsys):
    (program,) = [block for block in blocks("python") if "pv.fit" in block]
    exec(program.replace("epochs=50", "epochs=2"), {})
    elbo, shapes = capsys.readouterr().out.split(" ", 1)
    assert -60 < float(elbo) < -15
    assert shapes.strip() == "torch.Size([16, 1, 8, 8]) torch.Size([180, 2])"


def test_the_users_own_prior_runs(tmp_path, monkeypatch):
    (piece,) = [block for block in blocks("python") if "LearnedLaplace(torch" in block]
    (tmp_path / "laplace.py").write_text(piece)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = config.parse(["--prior", "laplace.LearnedLaplace", "--prior.latent_dim", "3", "--epochs", "1"])
    vae = chosen.build_vae(chosen.build_dataset())
    assert type(vae.prior).__name__ == "LearnedLaplace"
    assert vae.latent_shape == (3,)
    assert vae.prior.log_scale.shape == (3,)


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command, tmp_path, monkeypatch):
    (piece,) = [block for block in blocks("python") if "LearnedLaplace(torch" in block]
    (tmp_path / "laplace.py").write_text(piece)
    (tmp_path / "table.csv").write_text("width,species\n" + "".join(f"{i / 7},{'ab'[i % 2]}\n" for i in range(40)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main([*shlex.split(command)[1:], "--print_config"]) == 0


def test_the_readme_is_read_in_one_sitting():
    assert len(README.split()) <= 900


@pytest.mark.ci
def test_the_users_own_estimator_takes_part(tmp_path, monkeypatch):
    (estimator,) = [block for block in blocks("python") if "def my_bound" in block]
    (tmp_path / "mymodule.py").write_text(estimator)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--objectives", "[IWAE, mymodule.my_bound]", "--particles", "4", "--replicates", "40", "--out", "found"]
    assert cli.main(["compare", *words]) == 0
    rows = csv.DictReader((tmp_path / "found" / "comparison.csv").read_text().splitlines())
    values = {row["name"]: float(row["value"]) for row in rows}
    assert list(values) == ["IWAE", "my_bound"]
    assert values["IWAE"] == pytest.approx(values["my_bound"], rel=1e-6)  # the same draws, the same sum
