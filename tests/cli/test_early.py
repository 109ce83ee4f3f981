"""Help and refusals in a moment: from a file that says what there is, and that the package has to equal."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys

import pytest
import torch

from ppl_vae import cli
from ppl_vae.cli import outlining
from ppl_vae.cli.prose import fit, plain
from ppl_vae.configuration import outlines
from ppl_vae.configuration.kinds import arguments_of
from ppl_vae.configuration.pieces import CHOICES
from ppl_vae.configuration.resolving import read

OURS = ("prior", "likelihood", "posterior", "regularizer", "network")


def entries(text):
    skipped = [f"kind {kind}/" for kinds in outlines.OTHERS.values() for kind in kinds]
    found = {k: v for k, v in json.loads(text).items() if not k.startswith(("versions/", "refused/", *skipped))}
    return {key: json.dumps(value) for key, value in found.items()}


@pytest.mark.ci
def test_the_file_says_what_there_is():
    written, real = entries(outlines.FILE.read_text(encoding="utf-8")), entries(outlining.text())
    different = [key for key in real.keys() | written.keys() if real.get(key) != written.get(key)]
    assert not different, "run python -m ppl_vae.cli.outlining"


@pytest.mark.parametrize("name", [*CHOICES.kinds, "network"])
def test_a_stand_in_has_the_arguments_of_what_it_stands_for(name):
    known, real = outlines.read().choices, CHOICES
    stand_ins, kind = [c.network if name == "network" else c.kinds[name] for c in (known, real)]
    if name in OURS or not outlines.read().outdated():
        assert list(stand_ins.known) == list(kind.known)
    for each in stand_ins.known.keys() & kind.known.keys() if name in OURS else ():
        ours, theirs = stand_ins.arguments(stand_ins.known[each], name), kind.arguments(kind.known[each], name)
        assert (ours.names, ours.networks, ours.required) == (theirs.names, theirs.networks, theirs.required)
        if not theirs.required:
            assert ours.complete({}) == theirs.complete({})


@pytest.mark.skipif(
    "decoupled_weight_decay" not in inspect.signature(torch.optim.Adam).parameters,
    reason="the outlines hold an option of Adam that this torch does not have",
)
@pytest.mark.parametrize("argv", [[], ["--config", "article"], ["--prior", "VampPrior", "--prior.latent_dim", "2"]])
def test_both_resolve_to_the_same_configuration(argv):
    assert read(argv, outlines.read().choices) == read(argv, CHOICES)


def test_options_of_commands_keep_their_types():
    for command in outlines.read().commands.values():
        schema = arguments_of(command, "", outlining.SKIP)
        assert not [name for name in schema.names if "Any" in str(schema.actions[name])]


def test_help_and_refusals_import_nothing_heavy():
    code = (
        "import sys; from ppl_vae.cli import main\n"
        "for line in sys.argv[1:]: main(line.split())\n"
        "heavy = {'torch', 'pyro', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    lines = [
        "train --help", "train --gpu 1", "train --prior.help", "train --likelihood.help Bernoulli", "sample --help",
        "sample x --num 3", "evaluate x --gaps ten", "compare --help", "compare --num 3",
        "check --help", "pieces --help",
    ]  # fmt: skip
    found = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("ppl-vae: error:") == 4


def test_help_has_no_latex_and_no_marks(capsys):
    for argv in (["train", "--help"], ["train", "--objective.help", "DReG"], ["train", "--optimizer.help", "Adam"]):
        assert cli.main(argv) == 0
        assert not re.search(r"(?m)\\[a-zA-Z]|:math:|``|^\s*\.\. |:ref:|`_", capsys.readouterr().out)


def test_no_docstring_of_the_package_keeps_latex():
    for kind in [CHOICES.network, *CHOICES.kinds.values()]:
        for target in kind.known.values():
            text = plain((target.__doc__ or "").partition("\n    Args:")[0])
            assert not re.search(r"\\[a-zA-Z]+|:math:|``", text), target


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_texts_fit_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for argv in (["--help"], ["show", "--help"], ["check", "--help"], ["pieces", "--help"], ["train", "--prior.help"]):
        assert cli.main(argv) == 0
        assert not [line for line in capsys.readouterr().out.splitlines() if len(line) > columns]


def test_a_list_stays_a_list():
    assert fit("- one\n- two, which\n  goes on", 80) == "- one\n- two, which goes on\n"


def test_another_version_is_asked_itself(capsys, monkeypatch):
    monkeypatch.setattr(outlines, "version_of", lambda package: "0.0")
    assert cli.main(["train", "--optimizer.help", "Adam"]) == 0
    assert "--optimizer.lr LR" in capsys.readouterr().out


def test_a_program_needs_no_backend_of_a_notebook(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "module://nowhere.backend_inline")
    monkeypatch.setattr(sys, "argv", ["ppl-vae", "--version"])
    assert cli.main() == 0
    assert __import__("os").environ["MPLBACKEND"] == "agg"
