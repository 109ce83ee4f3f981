"""``ppl-vae pieces``: everything that has a name is listed, and what it says combines does."""

from __future__ import annotations

import json

import pytest
import torch

from ppl_vae import VAE, cli, networks
from ppl_vae.cli import pieces
from ppl_vae.configuration.pieces import KINDS, NETWORK


@pytest.fixture(scope="module")
def found():
    with torch.random.fork_rng():
        return pieces._everything()


@pytest.mark.ci
def test_all_names_are_listed(found):
    for kind in (KINDS["prior"], KINDS["likelihood"], KINDS["posterior"], NETWORK, KINDS["objective"]):
        assert [entry["name"] for entry in found[kind.name]] == list(kind.known)
        assert all(entry["summary"] and entry["signature"].startswith(entry["name"]) for entry in found[kind.name])


def entry(found, kind, name):
    return next(e for e in found[kind] if e["name"] == name)


def test_what_goes_with_what(found):
    standard = entry(found, "prior", "StandardNormal")["posteriors"]
    assert "DiagonalNormal" in standard
    assert entry(found, "posterior", "DiagonalNormal")["priors"].count("StandardNormal") == 1
    assert entry(found, "posterior", "DiagonalNormal")["reparameterised"] is True
    assert entry(found, "objective", "ELBO")["needs_reparameterised"] is True
    assert entry(found, "objective", "Trace_ELBO")["needs_reparameterised"] is False
    assert entry(found, "likelihood", "Bernoulli")["data"] == "0 or 1"
    assert entry(found, "likelihood", "Normal")["data"] == "real numbers"
    grey = "0, 0.003922, ..., 1 (256 values)"
    assert entry(found, "likelihood", "DiscretizedLogistic")["data"] == grey
    assert entry(found, "prior", "TwoLevel")["posteriors"].count("TwoLevel") == 1
    assert set(entry(found, "prior", "HypersphericalUniform")["posteriors"]) == {"PowerSpherical", "VonMisesFisher"}
    assert entry(found, "posterior", "OneHotCategorical")["priors"] == ["OneHotCategorical", "VampPrior"]
    assert entry(found, "likelihood", "Beta")["data"] == "numbers in (0, 1)"
    for prior in found["prior"]:  # the two lists say the same
        for posterior in prior["posteriors"]:
            assert prior["name"] in entry(found, "posterior", posterior)["priors"]


def test_what_is_said_to_go_together_does(found):
    for prior in found["prior"]:
        for name in prior["posteriors"][:2]:
            p = pieces._small(KINDS["prior"].known[prior["name"]])
            vae = VAE(
                (1, 4, 4),
                prior=p,
                likelihood=KINDS["likelihood"].known["Bernoulli"](networks.MLP([4])),
                posterior=pieces._small(KINDS["posterior"].known[name]),
            )
            assert vae.latent_shape == (p.latent_dim,)


def test_the_table_and_json(found, capsys, monkeypatch):
    monkeypatch.setattr(pieces, "_everything", lambda: found)
    assert cli.main(["pieces"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert "with DiagonalNormal" in out or "DiagonalNormal" in out
    assert ":math:" not in out
    assert "\\" not in out
    assert cli.main(["pieces", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_one_piece(capsys):
    assert cli.main(["pieces", "DiagonalNormal"]) == 0
    out = capsys.readouterr().out
    assert "floor=1e-05" in out
    assert "--posterior.scale" in out
    assert "StandardNormal" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [("pieces Bernouli", "did you mean Bernoulli"), ("pieces --jsn", "--jsn"), ("pieces A B", "one name at most")],
)
def test_bad_input_is_one_line(words, said, capsys):
    assert cli.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ppl-vae: error: ")
    assert said in line


def test_help(capsys):
    assert cli.main(["pieces", "--help"]) == 0
    assert "--json" in capsys.readouterr().out
