"""The command line: from words to a run's folder, exit codes, and one line for what the user got wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import without_pictures

import ppl_vae
from ppl_vae import cli
from ppl_vae.configuration.config import Config

SHORT = ["train", "--epochs", "2", "--likelihood.network.hidden", "[8]", "--posterior.network.hidden", "[8]"]

USERS_MODULE = """
    import signal

    from ppl_vae.likelihoods import Bernoulli


    class Pressing(Bernoulli):
        \"\"\"Presses Ctrl-C `presses` times at the given call, or raises there.\"\"\"

        def __init__(self, at, presses=1, **kwargs):
            super().__init__(**kwargs)
            self.at, self.presses, self.calls = at, presses, 0

        def forward(self, z):
            self.calls += self.training and z.requires_grad
            if self.calls == self.at:
                self.calls += 1
                if self.presses == 0:
                    raise ValueError("a fault of the program")
                for _ in range(self.presses):
                    signal.raise_signal(signal.SIGINT)
            return super().forward(z)
"""


USERS_NETWORK = """
    import pyro.distributions as dist
    import torch
    from torch import nn


    def wrong(in_shape, out_shape):
        return nn.Linear(in_shape[0], 3)


    class StudentT(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("df", 5.0 * torch.ones(2))

        def forward(self):
            return dist.StudentT(self.df, torch.zeros_like(self.df), 1.0).to_event(1)
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "users_module.py").write_text(textwrap.dedent(USERS_MODULE))
    yield
    for name in ("users_module", "users_network"):
        sys.modules.pop(name, None)


def fails(capsys, *argv, code=2):
    """Run a command line that must fail, and return its one line."""
    assert cli.main(list(argv)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("ppl-vae: error: ")
    assert code != 2 or captured.err == line + "\n"
    return line


# Without anything heavy


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_answer_at_once(option):
    code = (
        "import sys; from ppl_vae.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'pyro', 'numpy', 'matplotlib', 'jsonargparse', 'sklearn'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert ("train" if option == "--help" else ppl_vae.__version__) in result.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1  # 0.1 s measured; torch alone would take about 4


def test_no_command_shows_the_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().err


# Help


def test_help_of_train_is_grouped_by_piece_with_the_values_of_the_configuration(capsys):
    assert cli.main(["train", "--config", "article", "--help"]) == 0
    text = capsys.readouterr().out
    for words in ("data:", "likelihood: Bernoulli:", "likelihood.network: MLP:", "optimizer: Adam:", "training:"):
        assert f"\n{words}\n" in text
    assert "--data NAME" in text
    words = " ".join(text.split())
    assert "Widths of the hidden layers; empty for a linear network. (type: Sequence[int], default: [150, 300," in words
    assert "--epochs EPOCHS Passes over the training data. (type: int, default: 200)" in words
    for noise in ("known subclasses", "| Tensor", "--optimizer.params", "--callbacks", "--optimizer.lr.help"):
        assert noise not in text


def test_help_of_one_piece_has_its_docstring_and_its_own_defaults(capsys):
    assert cli.main(["train", "--likelihood.help", "Normal"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Independent normal pixels, normaliser kept" in text
    assert "The standard deviation σ, in units of x" in text
    assert "default: 1.0" in text
    assert "--likelihood.network CLASS" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--likelihood.network.help MLP", ["--likelihood.network.hidden", "Widths of the hidden layers", "(200, 200)"]),
        ("--likelihood.network.help=MLP", ["--likelihood.network.hidden"]),
        ("--optimizer.help SGD", ["momentum", "learning rate"]),
        ("--objective.help", ["ELBO", "RenyiELBO", "import path"]),
        ("--scheduler.help StepLR", ["--scheduler.step_size"]),
        ("--likelihood.help users_module.Pressing", ["--likelihood.at", "--likelihood.presses", "Presses Ctrl-C"]),
    ],
)
def test_help_of_any_choice(argv, words, capsys):
    assert cli.main(["train", *argv.split()]) == 0
    text = capsys.readouterr().out
    for word in words:
        assert word in text


def test_help_of_what_does_not_exist_is_bad_input(capsys):
    assert "did you mean Bernoulli" in fails(capsys, "train", "--likelihood.help", "Bernouli")
    assert "--likelihood.help" in fails(capsys, "train", "--likelyhood.help")


# Runs


@pytest.mark.ci
def test_a_run_leaves_a_folder_and_prints_what_came_out(capsys, tmp_path):
    assert cli.main([*SHORT, "--out", "here/run"]) == 0
    captured = capsys.readouterr()
    folder = tmp_path / "here" / "run"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert f"ELBO on validation: {records[-1]['validation_elbo']:.2f} nats per datum" in captured.out
    assert f"reconstruction error: {records[-1]['reconstruction_error']:.3f}" in captured.out
    assert "run: here/run" in captured.out
    pictures = [line.removeprefix("picture: ") for line in captured.out.splitlines() if line.startswith("picture: ")]
    assert {"here/run/training_curves.png", "here/run/latent_grid.png"} <= set(pictures)
    assert all((tmp_path / picture).is_file() for picture in pictures)
    assert (folder / "checkpoint.pt").is_file()
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "reconstruction error" in lines[-1]

    # a folder with a run is never written to again, and nothing is computed before that is said
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "already holds a run" in fails(capsys, *SHORT, "--out", "here/run")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    # its configuration gives the same model in Python
    config = Config.from_yaml((folder / "config.yaml").read_text())
    assert config.to_yaml() == (folder / "config.yaml").read_text()
    digits = config.build_dataset()
    vae = config.build_vae(digits)
    ppl_vae.fit(vae, digits, **config.build_fit_arguments())
    torch.testing.assert_close(ppl_vae.load_run(folder).state_dict(), vae.cpu().state_dict(), rtol=0, atol=0)

    # and the same run here
    with without_pictures():
        assert cli.main(["train", "--config", "here/run/config.yaml"]) == 0
    again = [json.loads(line) for line in (tmp_path / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()]
    for one, other in zip(records, again, strict=True):
        assert {k: v for k, v in one.items() if k not in ("seconds", "rate")} == {
            k: v for k, v in other.items() if k not in ("seconds", "rate")
        }

    # and it can be continued, in a new folder
    with without_pictures():
        assert cli.main(["train", "--resume", "here/run", "--epochs", "3"]) == 0
        assert "no step was taken" not in capsys.readouterr().err
        assert cli.main(["train", "--resume", "here/run", "--out", "over"]) == 0
    assert "no step was taken: the run that --resume continues was over" in capsys.readouterr().err
    continued = (tmp_path / "runs" / "digits-2" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in continued] == [1, 2, 3]
    assert json.loads(continued[1])["validation_elbo"] == records[-1]["validation_elbo"]
    for option in ("--optimizer.lr", "--seed"):
        assert f"{option} cannot change" in fails(capsys, "train", "--resume", "here/run", option, "1")
    assert "of another run" in fails(capsys, "train", "--resume", "here/run", "--prior.latent_dim", "3")
    assert not (tmp_path / "runs" / "digits-3").exists()


@pytest.mark.ci
def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with without_pictures():
        assert cli.main([*SHORT, "--epochs", "1"]) == 0
    text = capsys.readouterr().err
    assert "epoch 1/1" in text
    assert "data/s" in text
    assert "left" in text
    assert "100%" in text


def test_ctrl_c_ends_after_the_step_with_checkpoint_and_pictures(capfd, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    argv = [
        *SHORT,
        "--likelihood",
        "users_module.Pressing",
        "--likelihood.at",
        "20",
        "--likelihood.network.hidden",
        "[8]",
        "--compile",
        "off",
    ]
    assert cli.main([*argv, "--out", "run"]) == 130
    captured = capfd.readouterr()
    assert "interrupted after 1 epochs" in captured.out
    assert "ppl-vae train --resume run" in captured.out
    assert "a second signal aborts" in captured.err
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    assert (tmp_path / "run" / "latent_grid.png").is_file()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_aborts_at_once(capsys, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    argv = [*SHORT, "--likelihood", "users_module.Pressing", "--likelihood.at", "20", "--likelihood.presses", "2"]
    argv += ["--compile", "off"]
    assert cli.main(argv) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("ppl-vae: aborted\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_goes_away_is_no_fault(capsys, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:  # what is left in it is flushed again where it ends
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["train", "--help"]) == 141
    assert capsys.readouterr().err == ""


def test_a_fault_while_training_keeps_its_traceback(capsys):
    argv = [*SHORT, "--likelihood", "users_module.Pressing", "--likelihood.at", "20", "--likelihood.presses", "0"]
    argv += ["--compile", "off"]
    with pytest.raises(ValueError, match="a fault of the program"):
        cli.main(argv)


def test_a_run_that_diverges_says_so_in_one_line(capsys):
    assert cli.main([*SHORT, "--optimizer", "SGD", "--optimizer.lr", "1e30", "--out", "run"]) == 1
    *_, state, line = capsys.readouterr().err.splitlines()
    assert "diverged" in line
    assert state == "last good state: run/last_good.pt"
    assert Path("run/last_good.pt").is_file()


def test_grey_values_on_request_carry_their_caveat(capsys):
    with without_pictures():
        assert cli.main([*SHORT, "--data.binarize", "none", "--likelihood.allow_grey", "true", "--epochs", "1"]) == 0
    printed = capsys.readouterr()
    assert "nats per datum (grey values under a Bernoulli: the value is not a likelihood)" in printed.out
    assert "note: grey values under a Bernoulli: the value is not a likelihood" in printed.err


# Bad input


def test_print_config_prints_nothing_but_the_configuration(capsys, tmp_path):
    assert cli.main(["train", "--config", "article", "--objective", "RenyiELBO", "--print_config"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (tmp_path / "printed.yaml").write_text(captured.out)
    assert cli.main(["train", "--config", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == captured.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("trian", ["'trian' is no command", "did you mean train"]),
        ("train --epoch 3", ["--epoch is unknown; did you mean --epochs?"]),
        ("train --prior StandardNormale", ["did you mean StandardNormal", "import path"]),
        ("train --config artcle", ["did you mean article"]),
        ("train --config missing.yaml", ["missing.yaml"]),
        ("train --config .", ["--config is '.'", "a file"]),
        ("train --data digit", ["digit", "digits"]),
        ("train --data missing.npy", ["missing.npy"]),
        ("train --data empty.npy", ["empty.npy"]),
        ("train --data nan.npy", ["nan.npy"]),
        ("train --data text.npy", ["text.npy"]),
        ("train --data wrong_rank.npy", ["wrong_rank.npy"]),
        ("train --data.validation 1.5", ["validation", "1.5"]),
        ("train --data.binarize none", ["Bernoulli"]),
        ("train --prior.latent_dim 0", ["latent_dim is 0"]),
        ("train --optimizer.lr -1", ["--optimizer", "-1"]),
        ("train --epochs 0", ["epochs is 0"]),
        ("train --clip_norm -1", ["clip_norm is -1"]),
        ("train --optimizer SGD --optimizer.lr .nan", ["--optimizer.lr is nan"]),
        ("train --prior users_network.StudentT --objective MeanFieldELBO", ["no closed form", "StudentT"]),
        ("train --compile maybe", ["compile is 'maybe'"]),
        ("train --device abacus", ["abacus"]),
        ("train --seed -1", ["seed is -1"]),
        ("train --out text.npy", ["text.npy is a file"]),
        ("train --resume nowhere", ["nowhere"]),
        ("train --resume text.npy --config digits", ["text.npy"]),
        ("train --posterior.network foreign.small", ["foreign"]),
        ("train --likelihood.network users_network.wrong", ["likelihood Bernoulli", "maps"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(argv, words, capsys, tmp_path):
    np.save("empty.npy", np.zeros((0, 8, 8)))
    np.save("nan.npy", np.full((20, 8, 8), np.nan))
    np.save("wrong_rank.npy", np.zeros(20))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "users_network.py").write_text(textwrap.dedent(USERS_NETWORK))
    line = fails(capsys, *argv.split())
    for word in words:
        assert word in line
    assert not (tmp_path / "runs").exists()


def test_the_environment_can_ask_for_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("PPL_VAE_DEBUG", "1")
    assert cli.main(["train", "--epoch", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("ppl-vae: error: --epoch")


def test_as_a_program_bad_input_exits_with_2():  # python -m ppl_vae.cli: test_commands.py
    command = [sys.executable, "-m", "ppl_vae", "train", "--objective", "ELBOW"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("ppl-vae: error: --objective is 'ELBOW'; expected one of ELBO")
    assert result.stderr.count("\n") == 1
