"""Names in files: this package's, torch's and Pyro's are built, and all others only if the user trusts them."""

from __future__ import annotations

import shutil
import sys

import pytest

from ppl_vae import cli, load_run
from ppl_vae.configuration import foreign
from ppl_vae.configuration.config import Config, parse

MODULE = """
import pathlib

from ppl_vae.priors import StandardNormal

pathlib.Path("imported").touch()


class Mine(StandardNormal):
    pass
"""
SMALL = ["--compile", "off", "--epochs", "1", "--likelihood.network.hidden", "[4]", "--posterior.network.hidden", "[4]"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's that leaves a trace when it is imported, and a memory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "users_priors.py").write_text(MODULE)
    sys.modules.pop("users_priors", None)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "shutil.rmtree",
        "builtins.exec",
        "torch.hub.load",
        "torch.load",
        "torch.utils.cpp_extension.load",
        "pyro.clear_param_store",
        "ppl_vae.runs.folder.draw",
        "ppl_vae.cli.main",
        "ppl_vae.priors.independent.os.system",
        "ppl_vae.configuration.foreign.Path",
        "torch.optim.optimizer.warnings.warn",
        "torch.nn.modules.module.functools.partial",
        "pyro.infer.importance.pyro.clear_param_store",
        "ppl_vae.priors",
        "ppl_vae.priors.NoSuchPrior",
        " os.system ",
    ],
)
def test_a_foreign_name_is_found_wherever_it_stands(name):
    for tree in (name, {"class": name}, {"x": [1, {"y": name}]}, {name: 1}):
        assert foreign.names(tree) == [name.strip()]


@pytest.mark.parametrize(
    "name",
    [
        "ppl_vae.priors.StandardNormal",
        "ppl_vae.objectives.pathwise.ELBO",
        "torch.nn.functional.relu",
        "torch.nn.functional.gelu",
        "torch.nn.ReLU",
        "torch.optim.Adam",
        "torch.optim.lr_scheduler.StepLR",
        "pyro.infer.Trace_ELBO",
        "StandardNormal",
        "some text, without one",
        "[300, 150]",
        "{}",
        "cuda:0",
        "1.5",
        "1e-3",
    ],
)
def test_names_of_the_families_and_plain_words_are_none(name):
    assert foreign.names({"class": name}) == []


@pytest.mark.parametrize(
    "text",
    [
        "prior: {class: users_priors.Mine, latent_dim: 2}",
        "prior: users_priors.Mine",
        "scheduler: {class: LambdaLR, lr_lambda: users_priors.Mine}",
        "likelihood: {class: Bernoulli, network: {class: users_priors.Mine}}",
        "optimizer: {class: Adam, betas: {class_path: users_priors.Mine}}",
        'optimizer: {class: Adam, lr: "{class_path: users_priors.Mine}"}',  # jsonargparse reads texts as YAML
        'scheduler: {class: LambdaLR, lr_lambda: "[users_priors.Mine]"}',
        "scheduler: {class: LambdaLR, lr_lambda: '{class_path: \"users_priors\\u002eMine\"}'}",
        'device: "{class_path: users_priors.Mine}"',
        "device: {class_path: users_priors.Mine}",
        'data: {name: digits, seed: "{class_path: users_priors.Mine}"}',
    ],
)
def test_no_command_imports_what_a_file_names(text, mine, capsys):
    (mine / "file.yaml").write_text(text)
    for argv in (["train", "--config", "file.yaml"], ["train", "--config", "file.yaml", "--print_config"]):
        assert cli.main(argv) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "users_priors.Mine; if you trust it, give --trust" in error
    with pytest.raises(ValueError, match="the configuration names code from outside"):
        Config.from_yaml(text)
    assert not (mine / "imported").exists()
    assert not (mine / "runs").exists()


@pytest.mark.parametrize("text", ["{class_path: a, class_path: b}", "!!python/name:os.system x", "[", "a: b: c"])
def test_a_text_of_which_no_yaml_can_be_made_is_foreign(text):
    assert foreign.names({"x": text}) == [text]


def test_names_of_data_are_files(mine):
    assert Config.from_yaml("data: {name: my.data.npy, root: some.folder}").values["data"]["name"] == "my.data.npy"


@pytest.mark.ci
def test_a_run_of_ones_own_is_known_and_a_foreign_one_is_not(mine, monkeypatch, capsys):
    assert cli.main(["train", "--prior", "users_priors.Mine", *SMALL, "--out", "run"]) == 0
    assert load_run("run").latent_shape == (2,)
    assert cli.main(["sample", "run", "--size", "2", "--out", "a.npz"]) == 0
    assert cli.main(["train", "--resume", "run", "--epochs", "2"]) == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(mine / "another user"))
    capsys.readouterr()
    sys.modules.pop("users_priors")
    (mine / "imported").unlink()
    for argv in (["sample", "run"], ["encode", "run"], ["evaluate", "run"], ["check", "run"], ["compare", "run"]):
        assert cli.main(argv) == 2, argv
        assert "run/config.yaml names code from outside" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run"]) == 2
    with pytest.raises(ValueError, match="names code from outside"):
        load_run("run")
    assert cli.main(["show", "run"]) == 0
    assert not (mine / "imported").exists()
    assert load_run("run", trust=True).latent_shape == (2,)
    assert load_run("run").latent_shape == (2,)  # and the answer is remembered


@pytest.mark.ci
def test_a_copy_beside_another_module_of_that_name_is_not_known(mine, monkeypatch, capsys):
    assert cli.main(["train", "--prior", "users_priors.Mine", *SMALL, "--out", "run"]) == 0
    elsewhere = mine / "elsewhere"
    shutil.copytree(mine / "run", elsewhere / "run")
    (elsewhere / "users_priors.py").write_text(MODULE)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", [str(elsewhere), *(path for path in sys.path if path != str(mine))])
    sys.modules.pop("users_priors")
    capsys.readouterr()
    assert cli.main(["sample", "run"]) == 2
    assert "run/config.yaml names code from outside" in capsys.readouterr().err
    assert not (elsewhere / "imported").exists()


@pytest.mark.ci
def test_the_option_trusts(mine):
    (mine / "file.yaml").write_text("prior: {class: users_priors.Mine, latent_dim: 2}")
    assert cli.main(["train", "--trust", "--config", "file.yaml", *SMALL, "--out", "run"]) == 0
    assert (mine / "imported").exists()


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 2), ("", 2)])
def test_on_a_terminal_the_user_is_asked(said, code, mine, monkeypatch, capsys):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(said))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    (mine / "file.yaml").write_text("prior: {class: users_priors.Mine, latent_dim: 2}")
    assert cli.main(["train", "--config", "file.yaml", "--print_config"]) == code
    assert "Do you trust it? [y/N]" in capsys.readouterr().err


def test_printing_builds_nothing(monkeypatch, mine):
    monkeypatch.setattr(Config, "build", lambda *_: pytest.fail("built"))
    parse(["--print_config"])


@pytest.mark.ci
def test_a_home_that_cannot_be_written_to_is_no_error(mine, monkeypatch):
    (mine / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(mine / "file"))
    assert cli.main(["train", "--prior", "users_priors.Mine", *SMALL, "--out", "run"]) == 0
