"""``ppl-vae compare``: at fixed parameters and while training, what it leaves, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from short_runs import without_pictures
from stand_in import stand_in

from ppl_vae import cli, comparison, data, load_run
from ppl_vae.cli.estimators import DISCRETE, REPARAMETERISED, defaults_for, read_objectives, write
from ppl_vae.configuration.config import Config

SMALL = ["--likelihood.network.hidden", "[8]", "--posterior.network.hidden", "[8]"]
QUICK = ["--replicates", "20", "--size", "3", "--minibatch", "false"]
PICTURES = ["bias_variance", "signal_to_noise", "cost", "values"]

USERS_MODULE = """
    import math

    from ppl_vae.objectives import IWAE


    def my_bound(log_weights):
        \"\"\"The importance-weighted bound, once more.\"\"\"
        return log_weights.log_w.logsumexp(0) - math.log(log_weights.num_particles)


    class Halved:
        \"\"\"Half of it, which is no bound and has half the gradient.\"\"\"

        def __init__(self, num_particles: int = 1, share: float = 0.5):
            self.num_particles = num_particles
            self.share = share

        @property
        def reference(self):
            return IWAE(self.num_particles)

        def __call__(self, log_weights):
            return self.share * my_bound(log_weights)


    def raises(log_weights):
        raise RuntimeError("out of luck")


    def diverges(log_weights):
        return my_bound(log_weights) * float("nan")


    number = 3
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run on digits of one epoch."""
    folder = tmp_path_factory.mktemp("compared")
    with without_pictures():
        assert cli.main(["train", *SMALL, "--epochs", "1", "--compile", "off", "--out", str(folder / "plane")]) == 0
    return folder


@pytest.fixture(autouse=True)
def workplace(trained, tmp_path, monkeypatch, capsys):
    """A copy of the run to work in, with a user's module beside it."""
    shutil.copytree(trained / "plane", tmp_path / "plane")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "users_objectives.py").write_text(textwrap.dedent(USERS_MODULE))
    (tmp_path / "annealed.yaml").write_text("regularizer: {class: KLWeight, beta: 2.0}\n")
    capsys.readouterr()
    yield tmp_path
    sys.modules.pop("users_objectives", None)


def says(capsys, *argv):
    """Run a command line that must succeed, and return what it prints; only a race keeps a log where no terminal is."""
    code = cli.main(["compare", *argv])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert bool(captured.err) == ("--train" in argv), captured.err
    return captured.out


def rows_of(folder, stem="comparison"):
    return list(csv.DictReader((folder / f"{stem}.csv").read_text().splitlines()))


def content_of(folder, stem="comparison"):
    return json.loads((folder / f"{stem}.json").read_text())


# At fixed parameters


@pytest.mark.ci
def test_a_run_with_objectives_of_the_users_own(workplace, capsys):
    objectives = (
        "[IWAE, users_objectives.my_bound, users_objectives.Halved(share=0.25), {lost: users_objectives.raises}]"
    )
    out = says(capsys, "plane", "--objectives", objectives, "--particles", "[1, 4]", *QUICK)
    lines = out.splitlines()
    assert lines[0] == "plane, its checkpoint: the first 3 of digits, test"
    folder = workplace / "plane" / "comparison"
    names = ["comparison.csv", "comparison.json", "summary.txt"]
    assert [line for line in lines if line.startswith("file: ")] == [f"file: plane/comparison/{n}" for n in names]
    written = [f"picture: plane/comparison/{n}.png" for n in PICTURES]
    assert [line for line in lines if line.startswith("picture: ")] == written
    assert all((folder / f"{n}.png").stat().st_size > 5000 for n in PICTURES)
    summary = (folder / "summary.txt").read_text()
    assert out.startswith(summary.rstrip("\n"))
    assert max(map(len, summary.splitlines())) <= 120
    rows = rows_of(folder)
    assert {(r["name"], r["num_particles"], r["block"]) for r in rows} == {
        *((n, k, b) for n in ("IWAE", "my_bound") for k in "14" for b in ("encoder", "decoder")),
        *(("Halved(share=0.25)", k, b) for k in "14" for b in ("encoder", "decoder")),
        *(("lost", k, "") for k in "14"),
    }
    by = {(r["name"], r["num_particles"], r["block"]): r for r in rows}
    ours, users = (by[name, "4", "decoder"] for name in ("IWAE", "my_bound"))
    assert float(users["value"]) == pytest.approx(float(ours["value"]), rel=1e-6)  # on the same noise
    assert float(users["norm"]) == pytest.approx(float(ours["norm"]), rel=1e-4)
    halved = by["Halved(share=0.25)", "4", "decoder"]
    assert halved["reference"] == "IWAE"
    assert float(halved["bias"]) == pytest.approx(0.75 * float(ours["norm"]), rel=0.05)
    assert "RuntimeError: out of luck" in by["lost", "4", ""]["failed"]
    assert "out of luck" in summary
    content = content_of(folder)
    assert (content["data"], content["replicates"], content["data_shape"]) == ("digits, test", 20, [3, 1, 8, 8])
    assert content["evidence"]["exact"]


@pytest.mark.ci
def test_the_figures_are_those_of_python(workplace, capsys):
    options = ["--objectives", "DReG", "--particles", "4", "--seed", "7", "--reference", "none", "--device", "cpu"]
    says(capsys, "plane", *options, *QUICK)
    batch = data.load("digits", binarize="threshold").test.head(3).columns[0]
    vae = load_run("plane")
    found = comparison.compare(
        vae, batch, objectives=["DReG"], particles=4, replicates=20, seed=7, reference=None, minibatch=False
    )
    (row,) = content_of(workplace / "plane" / "comparison")["rows"]
    assert row["value"] == found.rows[0].value
    assert row["blocks"]["encoder"]["variance"]["value"] == pytest.approx(
        found.rows[0].blocks["encoder"].variance.value, rel=1e-6
    )
    assert row["blocks"]["encoder"]["bias"] is None


@pytest.mark.ci
def test_a_model_at_initialisation_and_grey_values(workplace, capsys):
    grey = ["--data.binarize", "none", "--likelihood.allow_grey", "true"]
    options = ["--objectives", "ELBO", "--particles", "2", "--seed", "3", "--prior.latent_dim", "1", *QUICK]
    out = says(capsys, *SMALL, *grey, *options)
    lines = out.splitlines()
    assert lines[0] == "digits, a model at initialisation (seed 3): the first 3 of digits, test"
    assert lines[1] == "note: grey values under a Bernoulli: the value is not a likelihood"
    assert content_of(Path("runs/compare-digits"))["caveat"].startswith("grey values")
    says(capsys, *SMALL, *grey, *options, "--split", "train")
    assert content_of(Path("runs/compare-digits-2"))["data"] == "digits, train"
    says(capsys, *SMALL, *grey, *options, "--out", "mine")
    assert content_of(Path("mine"))["rows"][0]["value"] == content_of(Path("runs/compare-digits"))["rows"][0]["value"]


def test_the_defaults_follow_from_the_latents():
    def chosen(*options, racing=False):
        settings = Config.from_yaml("\n".join(["epochs: 1", *options]))
        vae = settings.build_vae((64,))
        before = torch.get_rng_state()
        found = defaults_for(vae, (torch.zeros(2, 64),), racing=racing)
        assert torch.equal(before, torch.get_rng_state())
        return found

    assert chosen() == list(REPARAMETERISED)
    mixture = ("prior: {class: MixtureOfNormals, latent_dim: 2}",)
    assert chosen(*mixture) == [name for name in REPARAMETERISED if name != "MeanFieldELBO"]
    bits = ("prior: {class: BernoulliVector, latent_dim: 3}", "posterior: {class: BernoulliVector}")
    assert chosen(*bits) == list(DISCRETE)
    many = ("prior: {class: BernoulliVector, latent_dim: 50}", "posterior: {class: BernoulliVector}")
    assert chosen(*many) == [name for name in DISCRETE if name != "EnumeratedELBO"]
    assert chosen(*bits, racing=True)[-1] == "GumbelSoftmaxELBO"
    assert chosen(racing=True) == ["ELBO", "STL", "IWAE", "DReG"]
    with stand_in() as device:
        vae = Config.from_yaml("epochs: 1").build_vae((64,)).to(device)
        assert defaults_for(vae, (torch.zeros(2, 64),)) == list(REPARAMETERISED)  # of data on the CPU


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("IWAE", ["IWAE"]),
        ("[ELBO, 'MIWAE(groups=4)']", ["ELBO", "MIWAE(groups=4)"]),
        ('[ELBO, "RWS(guide=wake, num_particles=8)"]', ["ELBO", "RWS(guide=wake, num_particles=8)"]),
        ("[RWS(guide=wake, num_particles=8), a.b]", ["RWS(guide=wake, num_particles=8)", "a.b"]),
        ("[{my name: IWAE}, ELBO,]", [{"my name": "IWAE"}, "ELBO"]),
    ],
)
def test_a_list_of_objectives(text, entries):
    assert read_objectives(text) == entries


@pytest.mark.parametrize("text", ["[]", "[IWAE", "[RWS(guide=wake]", "[{a: 3}]", "[{a: [}]"])
def test_what_is_no_list_of_objectives(text):
    with pytest.raises(ValueError, match="--objectives is"):
        read_objectives(text)


def test_a_picture_that_has_nothing_to_show_takes_the_earlier_one_away(tmp_path):
    class Found:
        def table(self):
            return "all failed"

        def sentences(self):
            return []

        def to_csv(self):
            return ""

        def to_dict(self):
            return {}

    def nothing(found, caveat):
        raise ValueError("all estimators failed")

    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("cost.png", "mine.png"):
        (folder / name).touch()
    pictures = {"cost": nothing}
    lines = write(
        Found(), folder, "comparison", title="a", facts={}, caveat=None, pictures=pictures, tell=lambda text: None
    )
    assert not any(line.startswith("picture") for line in lines)
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".json", ".png", ".txt"]
    assert (folder / "mine.png").exists()


# While training


@pytest.mark.ci
def test_a_race(workplace, capsys):
    objectives = "[ELBO, users_objectives.my_bound, {lost: users_objectives.diverges}]"
    argv = ["--train", "true", *SMALL, "--objectives", objectives, "--particles", "4", "--seeds", "2", "--epochs", "2"]
    look = ["--evidence", "posterior", "--evidence_particles", "10", "--evaluation_size", "20", "--target", "-30"]
    out = says(capsys, *argv, *look, "--optimizer.lr", "0.005", "--compile", "off")
    folder = workplace / "runs" / "compare-digits"
    content = content_of(folder, "race")
    assert content["config"]["optimizer"]["lr"] == 0.005
    assert content["settings"]["epochs"] == 2
    assert content["target"] == -30
    assert {(run["name"], run["seed"]) for run in content["runs"]} == {
        (name, seed) for name in ("ELBO", "my_bound", "lost") for seed in (0, 1)
    }
    starts = {(r["seed"], round(float(r["log_evidence"]), 9)) for r in rows_of(folder, "race") if r["step"] == "0"}
    assert len(starts) == 2  # one a seed: the same parameters for all
    assert {run["name"] for run in content["runs"] if run["stopped"] == "failed"} == {"lost"}
    assert comparison.Race.from_dict(content).contenders == [("ELBO", 4), ("my_bound", 4), ("lost", 4)]
    assert "lost" in (folder / "summary.txt").read_text()
    assert out.splitlines()[-1] == "picture: runs/compare-digits/race.png"
    assert (folder / "race.png").stat().st_size > 5000


# What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere", "there is no run nowhere"),
        ("plane plane", "expected one at most"),
        ("plane --objectives IWEA", "did you mean IWAE?"),
        ("plane --objectives users_objectives.my_bond", "cannot be imported"),
        ("plane --objectives missing.bound", "No module named 'missing'"),
        ("plane --objectives users_objectives.number", "expected a class or a function"),
        ("plane --objectives MIWAE(group=4)", "did you mean groups?"),
        ("plane --objectives [IWAE", "do not close"),
        ("plane --objectives [IWAE,IWAE]", "two called 'IWAE'"),
        ("plane --particles 0", "particles is 0; expected a positive integer"),
        ("plane --particles [1,x]", "--particles is '[1,x]'"),
        ("plane --objectives VIMCO --particles 1", "nothing to compare: VIMCO at K = 1"),
        ("plane --replicates 5", "at least 20"),
        ("plane --size 0", "--size is 0"),
        ("plane --seed -1", "--seed is -1"),
        ("plane --split testing", "--split is 'testing'"),
        ("plane --reference IWEA --objectives ELBO", "did you mean IWAE?"),
        ("plane --reference [IWAE,ELBO]", "one objective"),
        ("plane --out nowhere/deep", "--out"),
        ("plane --out users_objectives.py", "is a file"),
        ("plane --prior.latent_dim 3", "--prior.latent_dim cannot be given for a run"),
        ("plane --train true", "give --config plane/config.yaml"),
        ("--train perhaps", "expected true or false"),
        ("--train true --seed 3", "expected --seeds"),
        ("--train true --replicates 30", "at fixed parameters"),
        ("--train true --seeds 0", "seeds"),
        ("--train true --epochs 0", "epochs"),
        ("--train true --objectives IWEA", "did you mean IWAE?"),
        ("--target -25", "add --train true"),
        ("--epochs 3", "add --train true"),
        ("--objective IWAE", "expected --objectives"),
        ("--early_stopping 3", "means nothing here"),
        ("--particels 3", "did you mean --particles?"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("--train true --config annealed.yaml", "--regularizer has no part in a race"),
        ("--regularizer KLWeight", "means nothing here"),
    ],
)
def test_what_cannot_be_is_one_line(words, said, workplace, capsys):
    assert cli.main(["compare", *words.split()]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("ppl-vae: error: ")
    assert said in line
    assert captured.out == ""
    assert not (workplace / "plane" / "comparison").exists()
    assert not (workplace / "runs").exists()


def test_help_explains_every_option(capsys):
    text = says(capsys, "--help")
    for option in ("objectives", "particles", "replicates", "size", "split", "reference", "minibatch", "seed", "out"):
        assert f"--{option} " in text
    for option in ("seeds", "evaluate_every", "evaluation_size", "evidence", "target", "max_seconds", "optimizer"):
        assert f"--{option}" in text
    for noise in ("Optional", "Union", "Literal", "NoneType", "default: null", "race.", "Args:"):
        assert noise not in text
    assert "ppl-vae compare runs/digits" in text
    assert "--likelihood" in says(capsys, "--likelihood.help", "Bernoulli")
