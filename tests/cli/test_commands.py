"""The commands on a run: what they write is what Python gives, and what cannot work is one line and no file."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import arrays_of
from PIL import Image
from short_runs import without_pictures

from ppl_vae import VAE, cli, data, likelihoods, load_run, posteriors, priors
from ppl_vae._team import Team
from ppl_vae.cli import opening, words, writing
from ppl_vae.cli.encode import _moments
from ppl_vae.cli.rows import BATCH, Rows
from ppl_vae.evaluation.paths import interpolate, path
from ppl_vae.networks import MLP
from ppl_vae.training import checkpoints, resolve_device

SHORT = ["--epochs", "2", "--likelihood.network.hidden", "[8]", "--posterior.network.hidden", "[8]"]
COMMANDS = ("sample", "reconstruct", "encode", "interpolate")
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # of sums in float32: a GPU's need not be those of the CPU

USERS_MODULE = """
    import pyro.distributions as dist

    from ppl_vae.posteriors import DiagonalNormal


    class WithoutStd(DiagonalNormal):
        \"\"\"A posterior that knows its mean alone.\"\"\"

        def forward(self, x):
            q = super().forward(x)
            q.__class__ = Opaque
            return q


    class Opaque(dist.Independent):
        @property
        def variance(self):
            raise NotImplementedError
"""


def train(name, *more):
    """A short run, without its pictures, which take most of its time."""
    with without_pictures():
        assert cli.main(["train", *SHORT, "--compile", "off", *more, "--out", f"runs/{name}"]) == 0


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with runs of two epochs: digits in two and in three dimensions, a table, dynamic digits."""
    folder = tmp_path_factory.mktemp("trained")
    table = (np.random.default_rng(0).random((300, 7)) > 0.5).astype(np.float32)
    np.save(folder / "table.npy", table)
    before = Path.cwd()
    os.chdir(folder)
    try:
        train("plane")
        train("space", "--prior.latent_dim", "3", "--batch_size", "64")
        train("table", "--data", str(folder / "table.npy"), "--batch_size", "50")
        train("dynamic", "--data.binarize", "dynamic")
        train("grey", "--data.binarize", "none", "--likelihood.allow_grey", "true")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def workplace(trained, tmp_path, monkeypatch, capsys):
    """A copy of the runs to work in; whatever is printed on the way there is forgotten."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "users_pieces.py").write_text(textwrap.dedent(USERS_MODULE))
    capsys.readouterr()
    yield tmp_path
    sys.modules.pop("users_pieces", None)


def says(capsys, *argv):
    """Run a command line that must succeed, and return the lines it prints."""
    code = cli.main(list(argv))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.err == ""
    return captured.out.splitlines()


def fails(capsys, *argv):
    """Run a command line that must fail, and return its one line; nothing may be written."""
    before = snapshot()
    assert cli.main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ppl-vae: error: ")
    assert captured.err.count("\n") == 1
    assert snapshot() == before
    return captured.err


def snapshot():
    return {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.is_file() and "__pycache__" not in p.parts}


# Every command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_with_its_default_and_an_example(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"usage: ppl-vae {command} RUN" in text
    assert f"ppl-vae {command} runs/digits" in text
    assert "--out OUT" in text
    assert f"By default {command}." in text
    assert "--overwrite {true,false} true to replace a file that is there. (type: bool, default: false)" in text
    assert ("--data NAME" in text) == (command != "sample")
    assert ("--data.binarize BINARIZE" in text) == (command != "sample")
    for noise in ("Optional", "Literal", "from_", "required", "default: null", "Args:", "data_options"):
        assert noise not in text


def test_help_lists_all_commands(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"\n  {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("run", ["space", "runs/dynamic/checkpoint.pt"])
def test_every_command_on_every_run_of_images(command, run, capsys):
    line = says(capsys, command, run)[-1]
    suffix = "npz" if command == "encode" else "png"
    folder = Path("runs", run.removeprefix("runs/").partition("/")[0])
    file = folder / f"{command}.{suffix}"
    assert line.startswith(f"{'file' if command == 'encode' else 'picture'}: {file}")
    assert file.is_file()
    if suffix == "png":
        with Image.open(file) as picture:
            assert min(picture.size) > 150

    # a second time beside the first, which stays; and over it on request
    before = file.read_bytes()
    assert f"{file.with_stem(f'{command}-2')}" in says(capsys, command, run)[-1]
    assert file.read_bytes() == before
    assert f"{file} is there already" in fails(capsys, command, run, "--out", str(file))
    assert str(file) in says(capsys, command, run, "--out", str(file), "--overwrite", "true")[-1]
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_table_has_arrays_and_no_pictures(command, capsys):
    assert f"file: runs/table/{command}.npz" in says(capsys, command, "table")[-1]
    if command != "encode":  # whose picture is of the latents
        line = fails(capsys, command, "table", "--out", "a.png")
        assert "runs/table cannot be drawn: its data are of shape (7,)" in line
        assert "ends in .npz" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_the_global_random_state_stays(command, capsys):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    says(capsys, command, "dynamic", "--out", "a.npz")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", ["was given no run", "runs/<name>"]),
        ("plane space", ["the runs plane, space", "expected one"]),
        ("plain", ["there is no run plain", "did you mean runs/plane"]),
        ("runs/plain", ["did you mean runs/plane"]),
        ("empty", ["empty is no run's folder", "run.json"]),
        ("python", ["python has no config.yaml", "trained in Python"]),
        ("plane --overwrit true", ["--overwrit is unknown", "did you mean --overwrite?"]),
        ("plane --out", ["'--out' has no value"]),
        ("plane -o a.npz", ["'-o' is no option"]),
        ("plane --out a.jpg", ["--out is 'a.jpg'", ".npz"]),
        ("plane --out runs", ["--out is 'runs'"]),
        ("plane --out nowhere/a.npz", ["cannot write nowhere/a.npz"]),
        ("plane --overwrite maybe", ["--overwrite is 'maybe'; expected true or false"]),
        ("broken", ["broken/checkpoint.pt is damaged"]),
        ("garbled", ["garbled/run.json is not valid JSON"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, argv, expected, capsys):
    Path("empty").mkdir()
    shutil.copytree("runs/plane", "python")
    Path("python/config.yaml").unlink()
    shutil.copytree("runs/plane", "broken")
    Path("broken/checkpoint.pt").write_bytes(Path("broken/checkpoint.pt").read_bytes()[:1000])
    shutil.copytree("runs/plane", "garbled")
    Path("garbled/run.json").write_text("{")
    line = fails(capsys, command, *argv.split())
    for part in expected:
        assert part in line


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("sample plane --size 0", ["--size is 0"]),
        ("sample plane --size many", ["--size is 'many'; expected an integer"]),
        ("sample plane --siz 3", ["--siz is unknown; did you mean --size?"]),
        ("sample plane --seed -1", ["--seed is -1"]),
        ("sample plane --mean perhaps", ["--mean is 'perhaps'; expected true or false"]),
        ("sample plane --data digits", ["--data is unknown"]),
        ("reconstruct plane --size -3", ["--size is -3"]),
        ("reconstruct plane --split tests", ["--split is 'tests'", "one of train, validation, test, all"]),
        ("reconstruct plane --data.validation 0 --split validation", ["no rows", "test, train or all"]),
        ("encode plane --data small.npy", ["shape (1, 4, 4); expected (1, 8, 8), as runs/plane"]),
        ("encode plane --data digitz", ["digitz", "did you mean digits"]),
        ("encode plane --data missing.npy", ["missing.npy"]),
        ("encode plane --data nan.npy", ["nan.npy", "NaN"]),
        ("encode plane --data bytes.npy", ["bytes.npy has values from 0 to 16", "binarize='threshold'"]),
        ("encode plane --data bytes.npy --data.binarize none", ["from 0 to 16", "outside the support of Bernoulli"]),
        ("encode plane --data.binarise none", ["--data.binarise is unknown; did you mean --data.binarize?"]),
        ("encode plane --data.binarize non", ["--data.binarize is 'non'"]),
        ("encode space --out a.png", ["--out is 'a.png'", "latents of shape (3,)", ".npz, .csv or .parquet"]),
        ("interpolate plane --from 3", ["only one of --from and --to"]),
        ("interpolate plane --from 3 --to 180", ["no row 180 in digits, test; expected 0 to 179"]),
        ("interpolate plane --from -1 --to 3", ["no row -1"]),
        ("interpolate plane --from x --to 3", ["--from is 'x'; expected", "an integer"]),
        ("interpolate plane --form 3", ["--form is unknown; did you mean --from?"]),
        ("interpolate plane --steps 1", ["--steps is 1"]),
        ("interpolate plane --pairs 0", ["--pairs is 0"]),
        ("interpolate plane --z [[0,0]]", ["at least two latents of 2 numbers"]),
        ("interpolate plane --z [[0,0],[1,2,3]]", ["at least two latents of 2 numbers"]),
        ("interpolate plane --z [[0,0],[1,.nan]]", ["finite"]),
        ("interpolate plane --z abc", ["--z is 'abc'"]),
        ("interpolate plane --z [[0,0],[1,1]] --split test", ["--z was given beside data"]),
        ("interpolate plane --z [[0,0],[1,1]] --from 1 --to 2", ["--z was given beside data"]),
        ("interpolate plane --z [[1,1],[-1,-1]] --spherical true", ["opposite directions"]),
        ("interpolate plane --data one.npy", ["has 1 rows; expected at least two"]),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(argv, expected, capsys):
    np.save("small.npy", np.zeros((5, 4, 4), np.float32))
    np.save("nan.npy", np.full((5, 8, 8), np.nan, np.float32))
    np.save("bytes.npy", (16 * np.random.default_rng(0).random((5, 8, 8))).round().astype(np.float32))
    np.save("one.npy", np.zeros((1, 8, 8), np.uint8))
    line = fails(capsys, *argv.split())
    for part in expected:
        assert part in line


def test_another_checkpoint_of_the_run_can_be_named(capsys):
    state = checkpoints.load("runs/plane")
    for value in state["modules"][0].values():
        value.zero_()
    checkpoints.save(state, "runs/plane/last_good.pt")
    says(capsys, "encode", "runs/plane/last_good.pt", "--out", "a.npz")
    assert not arrays_of("a.npz")["mean"].any()
    assert arrays_of("a.npz")["std"].std() == 0
    says(capsys, "encode", "runs/plane", "--out", "b.npz")
    assert arrays_of("b.npz")["mean"].any()


# Samples


@pytest.mark.parametrize("mean", ["true", "false"])
def test_samples_are_those_of_python_with_the_latents_they_come_from(mean, capsys):
    line = says(capsys, "sample", "plane", "--size", "5", "--seed", "7", "--mean", mean, "--out", "a.npz")[-1]
    assert line == "file: a.npz (x (5, 1, 8, 8), z (5, 2))"
    vae = load_run("runs/plane", device="auto")  # where the command draws: each device has random numbers of its own
    torch.manual_seed(7)
    x = vae.sample(5, mean=mean == "true").cpu()
    found = arrays_of("a.npz")
    np.testing.assert_allclose(found["x"], x, **ROUNDING)
    assert (set(np.unique(found["x"])) <= {0, 1}) == (mean == "false")
    if mean == "true":
        np.testing.assert_allclose(vae.decode(torch.from_numpy(found["z"])), x, **ROUNDING)


def test_many_samples_are_decoded_block_by_block(capsys):
    says(capsys, "sample", "plane", "--size", str(BATCH + 1), "--out", "a.npz")
    found = arrays_of("a.npz")
    assert found["x"].shape == (BATCH + 1, 1, 8, 8)
    np.testing.assert_allclose(load_run("runs/plane").decode(torch.from_numpy(found["z"])), found["x"], **ROUNDING)


def test_no_label_stands_for_a_library_size(capsys):
    np.save("counts.npy", np.random.default_rng(0).poisson(3.0, (60, 6)) + 1.0)
    train("counts", "--data", "counts.npy", "--data.library", "true", "--likelihood", "Poisson", "--batch_size", "20")
    capsys.readouterr()
    for command in ("sample counts", "sample counts --label 0", "interpolate counts", "interpolate counts --label 0"):
        line = fails(capsys, *command.split())
        assert "runs/counts was trained with the library size of each datum as condition" in line


def test_pictures_say_what_is_shown_and_the_caveat_of_the_run(capsys, monkeypatch):
    feet = []
    monkeypatch.setattr(writing, "save_picture", lambda path, figure: feet.append(words_of(figure)) or "picture: none")
    says(capsys, "sample", "grey")
    says(capsys, "sample", "plane", "--mean", "false")
    for command in ("reconstruct", "interpolate"):
        says(capsys, command, "grey")
    assert [title for title, _ in feet] == [
        *("Samples from the prior: means of p(x|z)", "Samples from the prior: draws of p(x|z)"),
        *("Reconstructions", "Interpolations"),
    ]
    for _, text in (feet[0], *feet[2:]):
        assert "grey values under a Bernoulli" in text
    assert feet[1][1] == "Run plane; data digits"
    assert [text.partition(".")[0] for _, text in feet[2:]] == ["Run grey; data digits, test"] * 2


def words_of(figure):
    foot = " ".join(text.get_text().replace("\n", " ") for text in figure.texts if text.get_text())
    return figure.axes[0].get_title(), foot


# Reconstructions


def test_reconstructions_are_those_of_python(capsys):
    error, file = says(capsys, "reconstruct", "space", "--size", "20", "--out", "a.npz", "--device", "cpu")
    vae, test = load_run("runs/space"), data.load("digits").test
    x, found = test.x[:20], arrays_of("a.npz")
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["reconstruction"], vae.reconstruct(x))
    np.testing.assert_array_equal(found["z"], vae.encode(x))
    np.testing.assert_array_equal(found["labels"], test.labels[:20])
    norm = (x - vae.reconstruct(x)).flatten(1).norm(dim=1).mean()
    assert error == f"reconstruction error: {norm:.3f} (mean L2 norm; 20 of 180 data of digits, test)"
    assert file.startswith(
        "file: a.npz (x (20, 1, 8, 8), reconstruction (20, 1, 8, 8), z (20, 3), labels (20,), rows (20,), "
    )


def test_the_error_over_the_validation_data_is_that_of_the_run(capsys):
    error, _ = says(capsys, "reconstruct", "plane", "--split", "validation", "--size", "9999")
    result = json.loads(Path("runs/plane/result.json").read_text())
    assert error.startswith(f"reconstruction error: {result['reconstruction_error']:.3f} ")
    assert "162 of 162 data of digits, validation" in error


# Latents


def test_latents_are_those_of_python(capsys):
    line = says(capsys, "encode", "plane", "--device", "cpu")[-1]
    assert (
        line == "file: runs/plane/encode.npz (mean (180, 2), std (180, 2), labels (180,), rows (180,), splits (180,))"
    )
    vae, test = load_run("runs/plane"), data.load("digits").test
    found = arrays_of("runs/plane/encode.npz")
    np.testing.assert_array_equal(found["mean"], vae.encode(test.x))
    np.testing.assert_array_equal(found["std"], vae.posterior(test.x).stddev.detach())
    np.testing.assert_array_equal(found["labels"], test.labels)


def test_a_table_of_latents_holds_the_same_to_the_last_digit(capsys):
    line = says(capsys, "encode", "space", "--out", "a.csv")[-1]
    assert line == "file: a.csv (180 rows of mean_1, mean_2, mean_3, std_1, std_2, std_3, label, row, split)"
    says(capsys, "encode", "space", "--out", "a.npz")
    found = arrays_of("a.npz")
    with open("a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for i, name in enumerate(("mean_1", "mean_2", "mean_3")):
        np.testing.assert_array_equal(np.array([row[name] for row in rows], np.float32), found["mean"][:, i])
        std = np.array([row[name.replace("mean", "std")] for row in rows], np.float32)
        np.testing.assert_array_equal(std, found["std"][:, i])
    assert [int(row["label"]) for row in rows] == found["labels"].tolist()


def test_all_rows_come_in_the_order_of_the_source(capsys):
    says(capsys, "encode", "plane", "--split", "all", "--out", "a.npz")
    vae, everything = load_run("runs/plane"), data.load("digits", validation=0, test=0).train
    assert len(everything) == 1797
    np.testing.assert_allclose(arrays_of("a.npz")["mean"], vae.encode(everything.x), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(arrays_of("a.npz")["labels"], everything.labels)


def test_a_file_of_ones_own_is_taken_whole_and_binarised_as_the_run_was(capsys):
    grey = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.save("mine.npy", grey)
    vae, x = load_run("runs/plane"), torch.from_numpy(grey[:, None] / 255 > 0.5).float()
    mine = ["encode", "plane", "--data", "mine.npy", "--device", "cpu"]
    for more in ([], ["--data.binarize", "threshold"], ["--split", "all"]):
        says(capsys, *mine, "--out", "a.npz", "--overwrite", "true", *more)
        np.testing.assert_array_equal(arrays_of("a.npz")["mean"], vae.encode(x))
        assert "labels" not in arrays_of("a.npz")
    says(capsys, *mine, "--split", "test", "--out", "b.npz")
    assert arrays_of("b.npz")["mean"].shape == (3, 2)
    says(capsys, *mine, "--data.threshold", "0.8", "--out", "c.npz")
    np.testing.assert_array_equal(
        arrays_of("c.npz")["mean"], vae.encode(torch.from_numpy(grey[:, None] / 255 > 0.8).float())
    )


def test_an_archive_with_test_data_of_its_own_is_taken_whole(capsys):
    x = (np.random.default_rng(0).random((25, 8, 8)) > 0.5).astype(np.float32)
    np.savez("mine.npz", x=x[:20], y=np.arange(20), x_test=x[20:], y_test=np.arange(5))
    says(capsys, "encode", "plane", "--data", "mine.npz", "--out", "a.npz")
    vae, found = load_run("runs/plane"), arrays_of("a.npz")
    np.testing.assert_allclose(found["mean"], vae.encode(torch.from_numpy(x)[:, None]), rtol=1e-4, atol=1e-6)
    assert found["labels"].tolist() == [*range(20), *range(5)]
    says(capsys, "reconstruct", "plane", "--data", "mine.npz", "--size", "23", "--out", "b.npz")
    np.testing.assert_array_equal(arrays_of("b.npz")["x"][:, 0], x[:23])


def test_all_rows_of_a_folder_are_there_with_the_splits_of_training(capsys):
    made = np.random.default_rng(0)
    sizes = {"train": 12, "val": 5, "test": 4}
    for name, size in sizes.items():
        Path("images", name).mkdir(parents=True)
        for i in range(size):
            Image.fromarray((made.random((8, 8)) * 255).astype(np.uint8)).save(f"images/{name}/{i:03d}.png")
    says(capsys, "encode", "plane", "--data", "images", "--out", "other.npz")
    assert arrays_of("other.npz")["splits"].tolist() == ["all"] * 21
    train("mine", "--data", "images", "--data.binarize", "threshold", "--batch_size", "12")
    capsys.readouterr()
    says(capsys, "encode", "mine", "--split", "all", "--out", "all.npz")
    found = arrays_of("all.npz")
    for name, size in {"train": 12, "validation": 5, "test": 4}.items():
        says(capsys, "encode", "mine", "--split", name, "--out", f"{name}.npz")
        here = found["splits"] == name
        assert here.sum() == size
        np.testing.assert_allclose(found["mean"][here], arrays_of(f"{name}.npz")["mean"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["rows"][here], arrays_of(f"{name}.npz")["rows"])


def test_sizes_of_the_runs_own_set_do_not_bind_another(capsys):
    train("sizes", "--data.validation", "500", "--data.test", "300")
    capsys.readouterr()
    np.save("mine.npy", np.zeros((30, 8, 8), np.uint8))
    assert "mean (30, 2)" in says(capsys, "encode", "sizes", "--data", "mine.npy")[-1]
    assert "mean (3, 2)" in says(capsys, "encode", "sizes", "--data", "mine.npy", "--split", "validation")[-1]
    assert "mean (300, 2)" in says(capsys, "encode", "sizes", "--data", "Digits")[-1]  # the run's own, by another case


def test_a_set_of_ones_own_is_binarised_as_digits_by_any_name_of_theirs(capsys):
    np.save("mine.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    config = Path("runs/plane/config.yaml")
    config.write_text(config.read_text().replace("name: digits", "name: Digits"))
    says(capsys, "reconstruct", "plane", "--data", "mine.npy", "--out", "a.npz")
    assert set(np.unique(arrays_of("a.npz")["x"])) == {0.0, 1.0}


def test_dynamic_data_are_drawn_once(capsys):
    for name in ("a.npz", "b.npz"):
        says(capsys, "reconstruct", "dynamic", "--split", "train", "--size", "64", "--out", name)
    found, train = arrays_of("a.npz"), data.load("digits", binarize="dynamic").train
    np.testing.assert_array_equal(found["x"], arrays_of("b.npz")["x"])
    np.testing.assert_array_equal(found["x"], train.head(64).x)
    says(capsys, "interpolate", "dynamic", "--split", "train", "--from", "40", "--to", "3", "--out", "c.npz")
    z = load_run("runs/dynamic").encode(torch.from_numpy(found["x"]))
    np.testing.assert_allclose(arrays_of("c.npz")["z"][0, [0, -1]], z[[40, 3]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drawn", [{"binarize": "dynamic"}, {"dequantize": True}, {"binarize": "fixed"}])
def test_among_all_rows_each_has_the_draw_of_its_split(drawn):
    np.save("mine.npy", np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8))
    own = {"validation": 7, "test": 0.2, "seed": 3}
    divided = data.load("mine.npy", **drawn, **own)
    whole = data.load("mine.npy", **drawn, seed=3, validation=0, test=0)
    rows = opening._rows(whole, "all", own)
    ((x,),), (splits,) = rows.batches(), rows.splits
    for name, size in {"train": 25, "validation": 7, "test": 8}.items():
        assert (splits == name).sum() == size
        torch.testing.assert_close(x[splits == name], getattr(divided, name).head(size).x, rtol=0, atol=0)


def test_a_posterior_without_standard_deviations_has_means_alone(capsys):
    train("opaque", "--posterior", "users_pieces.WithoutStd", "--posterior.network.hidden", "[8]")
    capsys.readouterr()
    contents = "mean (180, 2), labels (180,), rows (180,), splits (180,)"
    assert says(capsys, "encode", "opaque")[-1] == f"file: runs/opaque/encode.npz ({contents})"
    assert "rows of mean_1, mean_2, label, row, split)" in says(capsys, "encode", "opaque", "--out", "a.csv")[-1]


def test_data_that_changed_since_the_run_are_noted(capsys):
    x = (np.random.default_rng(0).random((300, 7)) > 0.5).astype(np.float32)
    np.save("mine.npy", x)
    train("mine", "--data", "mine.npy", "--batch_size", "50")
    capsys.readouterr()
    says(capsys, "encode", "mine")
    np.save("mine.npy", 1 - x)
    assert cli.main(["encode", "mine"]) == 0
    assert "note: mine.npy has changed since runs/mine was trained on it" in capsys.readouterr().err
    Path("mine.npy").unlink()
    assert "(the run's own data; --data" in fails(capsys, "encode", "mine")


# Interpolations


def test_paths_are_those_of_python(capsys):
    says(capsys, "interpolate", "plane", "--pairs", "3", "--steps", "5", "--out", "a.npz", "--device", "cpu")
    vae, x, found = load_run("runs/plane"), data.load("digits").test.x, arrays_of("a.npz")
    assert found["rows"].tolist() == [[0, 90], [30, 120], [60, 150]]
    z, decoded = interpolate(vae, x[[0, 30, 60]], x[[90, 120, 150]], 5)
    np.testing.assert_array_equal(found["z"], z)
    np.testing.assert_array_equal(found["x"], decoded)


def test_a_path_between_two_rows_and_one_through_latents(capsys):
    says(capsys, "interpolate", "space", "--from", "7", "--to", "7", "--spherical", "true", "--out", "a.npz")
    found, vae = arrays_of("a.npz"), load_run("runs/space")
    mean = vae.encode(data.load("digits").test.x[7:8])
    assert found["rows"].tolist() == [[7, 7]]
    np.testing.assert_allclose(found["z"], mean.expand(1, 10, 3), **ROUNDING)
    assert "picture: " in says(capsys, "interpolate", "plane", "--z", "[[-2, 0], [2, 0], [2, 1]]", "--steps", "3")[-1]
    says(capsys, "interpolate", "plane", "--z", "[[-2, 0], [2, 0], [2, 1]]", "--steps", "3", "--out", "b.npz")
    found = arrays_of("b.npz")
    assert "rows" not in found
    assert found["z"].tolist() == [[[-2, 0], [0, 0], [2, 0]], [[2, 0], [2, 0.5], [2, 1]]]


def test_a_straight_path_is_evenly_spaced_and_meets_its_ends_exactly():
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    points = path(a, b, 7)
    assert torch.equal(points[:, 0], a)
    assert torch.equal(points[:, -1], b)
    torch.testing.assert_close(points.diff(dim=1), ((b - a) / 6)[:, None].expand(4, 6, 6))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, math.pi - 1e-4])
def test_a_great_circle_turns_by_equal_angles_with_its_length_going_evenly(angle):
    torch.set_default_dtype(torch.float64)
    basis = torch.linalg.qr(torch.randn(5, 5)).Q
    a, b = 2 * basis[0], 3 * (math.cos(angle) * basis[0] + math.sin(angle) * basis[1])
    points = path(a, b, 6, spherical=True)
    t = torch.linspace(0, 1, 6)
    torch.testing.assert_close(points.norm(dim=-1), 2 + t, rtol=1e-10, atol=0)
    expected = (2 + t)[:, None] * (torch.cos(t * angle)[:, None] * basis[0] + torch.sin(t * angle)[:, None] * basis[1])
    torch.testing.assert_close(points, expected, rtol=1e-10, atol=1e-10)


def test_great_circles_from_the_origin_are_straight_and_opposite_ones_refused():
    zero, b = torch.zeros(2), torch.tensor([3.0, 4.0])
    for ends in ((zero, b), (b, zero), (zero, zero)):
        torch.testing.assert_close(path(*ends, 5, spherical=True), path(*ends, 5))
    with pytest.raises(ValueError, match="opposite directions"):
        path(b, -2 * b, 5, spherical=True)
    with pytest.raises(ValueError, match="one dimension"):
        path(b[:1], b[1:], 5, spherical=True)
    with pytest.raises(ValueError, match="shapes"):
        path(b, b[:1], 5)
    for steps in (1, 2.0, True):
        with pytest.raises(ValueError, match="num_steps"):
            path(b, b, steps)


@pytest.mark.parametrize(
    ("prior", "posterior", "ways"),
    [
        (priors.StandardNormal(3), posteriors.DiagonalNormal, (True, True)),
        (priors.HypersphericalUniform(3), posteriors.PowerSpherical, (False, True)),
        (priors.BernoulliVector(3), posteriors.BernoulliVector, (False, False)),
    ],
)
def test_means_are_those_of_q_and_paths_stay_where_latents_are(prior, posterior, ways):
    vae = VAE((6,), prior=prior, likelihood=likelihoods.Bernoulli(MLP([4])), posterior=posterior(MLP([4])))
    x = torch.randint(2, (4, 6)).float()
    rows = Rows("x", (data.Split((x,)),), (np.full(4, "test"),))
    (found,) = _moments(vae, rows, torch.device("cpu"), Team.present())
    draws = vae.q_z(x).sample((4000,))
    error = (draws.mean(0) - found["mean"]) / (draws.std(0) / 4000**0.5)
    assert error.abs().max() < 5
    for spherical, there in zip((False, True), ways, strict=True):
        if there:
            z = interpolate(vae, x[:1], x[1:2], 5, spherical=spherical).z
            assert vae.p_z().support.check(z).all()
        else:
            with pytest.raises(ValueError, match="interpolate: the prior lives on"):
                interpolate(vae, x[:1], x[1:2], 5, spherical=spherical)


def test_data_of_another_shape_are_refused():
    vae = load_run("runs/plane")
    for ends in ((torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)), (torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 8, 8))):
        with pytest.raises(ValueError, match="interpolate: x_"):
            interpolate(vae, *ends)


# The table of runs


def table(lines):
    """A table of one block as rows by name, cells split where two spaces are."""
    rows = {}
    for line in filter(None, lines):
        name, *cells = [part.strip() for part in line.split("  ") if part.strip()]
        rows[name] = cells
    return rows


def test_runs_stand_side_by_side(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    rows = table(says(capsys, "show", "plane", "runs/space", "--all"))
    result = [json.loads(Path("runs", name, "result.json").read_text()) for name in ("plane", "space")]
    assert rows["run"] == ["runs/plane", "runs/space"]
    assert rows["data"] == ["digits 1x8x8, 1455/162/180, threshold"] * 2
    assert rows["prior"] == ["StandardNormal(latent_dim 2)", "StandardNormal(latent_dim 3)"]
    assert rows["likelihood"] == ["Bernoulli(MLP(8, activation tanh))"] * 2
    assert rows["objective"] == ["ELBO(num_particles 1)"] * 2
    assert rows["epochs"] == ["2, finished"] * 2
    assert rows["ELBO, validation"] == [f"{r['validation_elbo']:.2f}" for r in result]
    assert rows["bound, validation"] == [f"{r['validation_bound']:.2f}" for r in result]
    assert rows["reconstruction error"] == [f"{r['reconstruction_error']:.3f}" for r in result]
    assert rows["seconds"] == [f"{r['seconds']:.0f}" for r in result]
    assert rows["device"] == [str(resolve_device("auto"))] * 2
    assert rows["--batch_size"] == ["128", "64"]  # what the runs differ in, and no more
    assert [name for name in rows if name.startswith("--")] == ["--batch_size"]
    assert "caveat" not in rows


def test_runs_that_do_not_fit_go_under_the_others(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = says(capsys, "show", "plane", "space", "plane/checkpoint.pt", "plane", "--all")
    assert sum(line.startswith("run  ") for line in lines) == 2
    assert all(len(line) <= 80 for line in lines)
    assert lines.count("") == 1


def test_figures_of_different_data_carry_a_note_and_greys_their_caveat(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.main(["show", "plane", "grey"]) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        "note: these runs had different data (or splits of them): their figures cannot be compared\n"
    )
    assert table(captured.out.splitlines())["caveat"] == [
        "-",
        "grey values under a Bernoulli: the value is not a likelihood",
    ]


def test_figures_of_an_evaluation_are_shown_with_their_intervals(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    Path("runs/space/evaluation").mkdir()
    figures = {
        "log_evidence": {"value": -136.8234, "low": -137.92, "high": -135.71},
        "active_units": {"value": 2},
        "gap": {"value": None, "low": None, "high": None},
        "share": {"value": 1.0, "low": 1.0, "high": 1.0},
    }
    for content in ({"num_data": 3, "figures": figures}, {"num_data": 3} | figures):
        Path("runs/space/evaluation/evaluation.json").write_text(json.dumps(content))
        rows = table(says(capsys, "show", "plane", "space"))
        assert not any("best" in name for name in rows)  # there is one evaluation alone
        assert rows["log evidence"] == ["-", "-136.82 [-137.9, -135.7]"]
        assert rows["active units"] == ["-", "2"]
        assert rows["gap"] == ["-", "not finite"]
        assert rows["share"] == ["-", "1 [1, 1]"]
        assert {"num data", "evaluated"}.isdisjoint(rows)
    Path("runs/space/evaluation/evaluation.json").write_text(json.dumps(content | {"checkpoint": "last_good.pt"}))
    assert table(says(capsys, "show", "plane", "space"))["evaluated"] == ["-", "last_good.pt"]
    Path("runs/space/evaluation/evaluation.json").write_text("{")
    assert "evaluation.json is not valid JSON" in fails(capsys, "show", "space")
    assert cli.main(["show", "plane", "space"]) == 1  # the other is shown
    captured = capsys.readouterr()
    assert "note: runs/space/evaluation/evaluation.json is not valid JSON" in captured.err
    assert captured.out.splitlines()[0].split() == ["run", "runs/plane"]


def test_rows_that_are_equal_are_left_out_and_said_in_a_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    lines = says(capsys, "show", "plane", "space")
    assert "likelihood" not in table(lines)
    assert "prior" in table(lines)
    (shared,) = [line for line in lines if line.startswith("the same in all: ")]
    assert "likelihood Bernoulli(MLP(8, activation tanh)); " in shared
    assert f"device {resolve_device('auto')}" in shared
    assert "likelihood" in table(says(capsys, "show", "plane"))  # one run is equal to nothing


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "* best by log p(x): runs/space, -20.00 [-21.0, -19.0]; its 95% interval lies above those of all others"),
        (
            {"low": -31.0},
            "no best by log p(x): the interval of the highest, runs/space, -20.00 [-31.0, -19.0], overlaps that",
        ),
        ({"num_data": 4}, "no best by log p(x): the evaluations were made on different data"),
        ({"fingerprint": "b"}, "no best by log p(x): the evaluations were made on different data"),
        ({"fingerprint": None}, "* best by log p(x): runs/space, -20.00 [-21.0, -19.0]"),  # of an older version
        ({"kind": "estimate"}, "no best by the ELBO: the interval of the highest, runs/plane"),
        ({"likelihood": "Normal"}, "no best by log p(x): different likelihoods (Bernoulli, Normal) compare only if"),
    ],
)
def test_the_best_is_marked_where_its_interval_says_so(changed, expected, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for name, value in (("plane", -30.0), ("space", -20.0)):
        own = changed if name == "space" else {}
        figure = {"value": value, "low": own.get("low", value - 1), "high": value + 1}
        content = {"data": "digits, test", "num_data": 3, "fingerprint": "a", "kind": "exact"} | own
        elbo = {"value": -40.0, "low": -41.0, "high": -39.0}
        Path("runs", name, "evaluation").mkdir(exist_ok=True)
        text = json.dumps(content | {"figures": {"log_evidence": figure, "elbo": elbo}})
        Path("runs", name, "evaluation/evaluation.json").write_text(text)
    config = Path("runs/space/config.yaml")
    text = config.read_text().replace("class: Bernoulli", f"class: {changed.get('likelihood', 'Bernoulli')}")
    config.write_text(text)
    lines = says(capsys, "show", "plane", "space")
    assert any(line.startswith(expected) for line in lines), lines
    assert any(line.endswith(" *") for line in lines) == expected.startswith("*")


def test_the_regularizer_and_the_scheduler_are_shown_where_a_run_has_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert {"regularizer", "scheduler"}.isdisjoint(table(says(capsys, "show", "plane", "--all")))
    config = Path("runs/space/config.yaml")
    made = {"regularizer": "{class: KLWeight, beta: 4.0}", "scheduler": "{class: ExponentialLR, gamma: 0.5}"}
    text = config.read_text()
    for role, piece in made.items():
        text = text.replace(f"{role}: null", f"{role}: {piece}")
    config.write_text(text)
    rows = table(says(capsys, "show", "plane", "space"))
    assert rows["regularizer"] == ["-", "KLWeight(beta 4.0)"]
    assert rows["scheduler"] == ["-", "ExponentialLR(gamma 0.5)"]


def test_errors_of_classification_in_training_and_in_the_evaluation_have_a_row_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    result, folder = Path("runs/plane/result.json"), Path("runs/plane/evaluation")
    result.write_text(json.dumps(json.loads(result.read_text()) | {"classification_error": 0.25}))
    folder.mkdir()
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    (folder / "evaluation.json").write_text(json.dumps({"num_data": 3, "figures": {"classification_error": figure}}))
    rows = table(says(capsys, "show", "plane"))
    assert rows["classification error, validation"] == ["25.00%"]
    assert rows["classification error"] == ["0.500 [0.40, 0.60]"]


def test_a_run_that_did_not_end_shows_what_it_has(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    Path("runs/plane/result.json").unlink()
    lines = Path("runs/plane/metrics.jsonl").read_text().splitlines()
    Path("runs/plane/metrics.jsonl").write_text(f"{lines[0]}\n{lines[1][:40]}")
    rows = table(says(capsys, "show", "plane"))
    assert rows["epochs"] == ["1 of 2, running or aborted"]
    assert rows["ELBO, validation"] == [f"{json.loads(lines[0])['validation_elbo']:.2f}"]
    Path("runs/plane/last_good.pt").touch()
    assert table(says(capsys, "show", "plane"))["epochs"] == ["1 of 2, diverged"]
    for name in ("metrics.jsonl", "config.yaml"):  # before the first epoch, and from Python
        Path("runs/plane", name).unlink()
    rows = table(says(capsys, "show", "plane"))
    assert rows["epochs"] == ["0, diverged"]
    assert rows["prior"] == ["-"]


def test_the_table_as_json(capsys):
    records = json.loads("\n".join(says(capsys, "show", "--json", "plane", "space")))
    result = json.loads(Path("runs/space/result.json").read_text())
    assert [record["run"] for record in records] == ["runs/plane", "runs/space"]
    assert records[1]["figures"]["validation_elbo"] == result["validation_elbo"]
    assert records[1]["config"]["prior"] == {"class": "StandardNormal", "latent_dim": 3}
    assert records[1]["state"] == "finished"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("show", ["was given no run"]),
        ("show plane plain", ["there is no run plain", "did you mean runs/plane"]),
        ("show plane .", [". is no run's folder: run.json"]),
        ("show plane --jason x", ["--jason is unknown", "did you mean json"]),
        ("show plane --json=yes", ["'--json=yes' has a value"]),
    ],
)
def test_bad_input_of_show_is_one_line(argv, expected, capsys):
    line = fails(capsys, *argv.split())
    for part in expected:
        assert part in line


def test_show_needs_nothing_heavy():
    code = (
        "import sys; from ppl_vae.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'pyro', 'numpy', 'matplotlib', 'jsonargparse'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else code)"
    )
    for argv in (["show", "plane"], ["show", "--help"]):
        result = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr


def test_as_a_program_a_fault_is_one_line_and_2():
    command = [sys.executable, "-m", "ppl_vae.cli", "show", "plain"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("ppl-vae: error: there is no run plain")
    assert result.stderr.count("\n") == 1


# Words


def test_words_take_runs_and_options_in_any_order():
    assert words.split(["a", "--json", "b", "--x=1", "--y", "-2", "c"], flags=("json",)) == (
        ["a", "b", "c"],
        {"json": "true", "x": "1", "y": "-2"},
    )


def test_a_folder_here_comes_before_one_under_runs():
    shutil.copytree("runs/space", "plane")
    assert words.find_run("plane") == Path("plane")
    assert words.find_run("space") == Path("runs/space")
