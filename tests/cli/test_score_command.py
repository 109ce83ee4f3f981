"""``ppl-vae score``, and the formats of rows: the numbers of Python in each, with whose row it is."""

from __future__ import annotations

import csv
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import arrays_of
from PIL import Image
from short_runs import without_pictures

from ppl_vae import cli, data, load_run
from ppl_vae.cli import formats, opening, rows, sample, writing
from ppl_vae.cli.opening import OpenRun

SHORT = ["--epochs", "1", "--likelihood.network.hidden", "[8]", "--posterior.network.hidden", "[8]", "--compile", "off"]
FORMATS = ("csv", "npz", "parquet")


@pytest.fixture(scope="session")
def scored(tmp_path_factory):
    """Runs of one epoch: digits in two dimensions, digits given their label."""
    folder = tmp_path_factory.mktemp("scored")
    before = Path.cwd()
    os.chdir(folder)
    try:
        with without_pictures():
            assert cli.main(["train", *SHORT, "--out", "plane"]) == 0
            assert cli.main(["train", *SHORT, "--data.conditional", "true", "--out", "given"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def workplace(scored, tmp_path, monkeypatch, capsys):
    for run in ("plane", "given"):
        (tmp_path / run).symlink_to(scored / run)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()


def table(path):
    """The columns of a file of rows, under the names that a table gives them."""
    match Path(path).suffix:
        case ".csv":
            with open(path, newline="") as file:
                rows = list(csv.DictReader(file))
            columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
            kinds = dict.fromkeys(("split", "id", "label_name"), str) | dict.fromkeys(("row", "rank", "label"), int)
            return {name: column.astype(kinds.get(name, float)) for name, column in columns.items()}
        case ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
            return {name: np.array(column) for name, column in parquet.read_table(path).to_pydict().items()}
    return formats.columns(arrays_of(path))


def run(*argv):
    assert cli.main(list(argv)) == 0


@pytest.mark.ci
@pytest.mark.thinned(3)
@pytest.mark.parametrize("suffix", FORMATS)
def test_score_is_log_evidence_with_rank_label_row_and_split(suffix, capsys):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    run("score", "plane", "--size", "6", "--out", f"s.{suffix}")
    first, second, _ = capsys.readouterr().out.splitlines()
    found, test = table(f"s.{suffix}"), data.load("digits").test
    expected = load_run("plane").score(test.x[:6])
    np.testing.assert_allclose(found["log_p"], expected, atol=2e-3)
    assert (found["error"] < 1e-3).all()
    np.testing.assert_array_equal(found["rank"], found["log_p"].argsort().argsort() + 1)
    np.testing.assert_array_equal(found["label"], test.labels[:6])
    np.testing.assert_array_equal(found["row"], test.rows[:6])
    assert set(found["split"]) == {"test"}
    assert "by quadrature (exact)" in first
    assert second.startswith(f"the most unusual: rows {found['row'][found['rank'] == 1][0]}, ")


@pytest.mark.ci
def test_score_of_a_conditional_model_and_of_data_of_ones_own(capsys):
    run("score", "given", "--size", "5", "--out", "s.csv", "--evidence", "posterior", "--particles", "[50]")
    assert "log p(x|y) by importance (a stochastic lower bound)" in capsys.readouterr().out
    np.save("mine.npy", np.random.default_rng(0).integers(0, 255, (4, 8, 8)).astype(np.uint8))
    run("score", "plane", "--data", "mine.npy")
    found = table("plane/score.csv")
    Path("plane/score.csv").unlink()
    assert "label" not in found
    assert found["row"].tolist() == [0, 1, 2, 3]
    assert set(found["split"]) == {"all"}  # the run trained on none of them
    assert "note" not in capsys.readouterr().out


@pytest.mark.ci
def test_a_picture_of_the_most_unusual(capsys):
    run("score", "plane", "--size", "20", "--split", "train", "--out", "s.png")
    assert "better than new data" in capsys.readouterr().out
    with Image.open("s.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plane --size 0", "--size"),
        ("plane --seed -1", "--seed"),
        ("plane --evidence closed", "evidence"),
        ("plane --out s.txt", ".csv or .npz or .parquet or .png"),
        ("plane --split tests", "split"),
        ("nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(words, said, capsys):
    assert cli.main(["score", *words.split()]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert said in line
    assert captured.out == ""
    assert not list(Path().glob("s.*"))


def test_parquet_without_pyarrow_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["encode", "plane", "--out", "a.parquet"]) == 2
    assert "pip install 'ppl-vae[tables]'" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_rows_come_with_the_split_that_they_were_trained_in(suffix, monkeypatch):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    monkeypatch.setattr(rows, "BATCH", 500)
    run("encode", "plane", "--split", "all", "--out", f"a.{suffix}")
    found, digits, vae = table(f"a.{suffix}"), data.load("digits"), load_run("plane")
    assert found["row"].tolist() == list(range(1797))
    for name in ("train", "validation", "test"):
        part, here = getattr(digits, name), found["split"] == name
        np.testing.assert_array_equal(found["row"][here], part.rows)
        np.testing.assert_array_equal(found["label"][here], part.labels)
        np.testing.assert_allclose(found["mean_2"][here], vae.encode(part.x)[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", FORMATS)
def test_reconstructions_and_samples_in_every_format(suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    vae, test = load_run("plane"), data.load("digits").test
    run("reconstruct", "plane", "--size", "7", "--out", f"r.{suffix}")
    found = table(f"r.{suffix}")
    np.testing.assert_allclose(found["reconstruction_64"], vae.reconstruct(test.x[:7])[:, 0, 7, 7], rtol=1e-5)
    np.testing.assert_array_equal(found["x_20"], test.x[:7].flatten(1)[:, 19])
    np.testing.assert_array_equal(found["row"], test.rows[:7])
    run("sample", "given", "--size", "25", "--out", f"d.{suffix}")
    found = table(f"d.{suffix}")
    assert found["label"].tolist() == [0] * 10 + [1] * 10 + [2] * 5
    z = torch.tensor(np.stack([found["z_1"], found["z_2"]], 1), dtype=torch.float32)
    x = load_run("given").decode(z, torch.tensor(found["label"].tolist()))
    np.testing.assert_allclose(found["x_64"], x[:, 0, 7, 7], rtol=1e-4)


def test_a_plane_is_drawn():
    run("encode", "plane", "--out", "a.png")
    with Image.open("a.png") as picture:
        assert min(picture.size) > 150


@pytest.mark.parametrize(
    ("names", "labels", "header"),
    [
        (["rows", "labels", "z", "w"], None, "rows,labels,z,w,z_1,z_2"),
        (["z_3", "ids", "label", "x"], None, "z_3,ids,label,x,z_1,z_2"),
        (["z_3", "ids", "labels", "x"], [1, 0], "z_3,ids,labels,x,z_1,z_2,label"),
        (["rows", "ids", "label", "x"], [1, 0], "x_1,x_2,x_3,x_4,z_1,z_2,label"),
        (["rows", "ids", "z_1", "x"], None, "x_1,x_2,x_3,x_4,z_1,z_2"),
    ],
)
def test_samples_of_a_table_have_its_columns_whatever_their_names(names, labels, header, tmp_path):
    x, z = torch.arange(8.0).view(2, 4), torch.full((2, 2), 9.0)
    block = {"x": x, "z": z, "labels": None if labels is None else torch.tensor(labels)}
    columns = sample._as_table(block, dict.fromkeys(names, "real"))
    writing.save_columns(writing.Place(tmp_path / "a.csv", numbered=False, overwrite=False), [columns])
    first, *lines = (tmp_path / "a.csv").read_text().splitlines()
    assert first == header
    assert [line[:23] for line in lines] == ["0.0,1.0,2.0,3.0,9.0,9.0", "4.0,5.0,6.0,7.0,9.0,9.0"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_memory_holds_one_block(suffix, tmp_path):
    """200 blocks of 0.8 MB: what is held at once is a few of them."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    width = 200 if suffix == "npz" else 4
    blocks = ({"x": np.full((500, width), i, np.float64), "rows": np.arange(500)} for i in range(200))
    tracemalloc.start()
    with (tmp_path / f"a.{suffix}").open("wb") as file:
        arrays = blocks if suffix == "npz" else map(formats.columns, blocks)
        said = formats.WRITERS[f".{suffix}"](file, arrays, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "100000" in said
    assert peak < 5 * 2**20
    if suffix == "npz":
        found = table(tmp_path / "a.npz")
        assert found["x_1"][[0, 499, 500, -1]].tolist() == [0, 0, 1, 199]


def test_rows_of_a_source_with_a_test_set_of_its_own_and_no_labels():
    np.savez("own.npz", x=np.zeros((20, 8, 8), np.uint8), x_test=np.zeros((5, 8, 8), np.uint8))
    opened = OpenRun.at("plane")
    rows = opening.DataOptions({"data": "own.npz"}).open(opened, "all")
    (_, ids), (_, of_test) = rows.blocks()
    assert ids["labels"] is None
    assert ids["rows"].tolist() == list(range(20))
    assert of_test["rows"].tolist() == list(range(5))


def test_rows_of_several_parts_are_one_split(tmp_path):
    x = np.arange(25, dtype=np.uint8)[:, None, None].repeat(4, 2).repeat(4, 1)
    np.savez("parts.npz", x=x[:20], y=np.arange(20), x_test=x[20:], y_test=np.arange(5))
    whole = opening._rows(data.load("parts.npz", validation=0), "all", None)
    assert len(whole.parts) == 2
    joined = whole.joined
    assert joined.x.shape == (25, 1, 4, 4)
    assert joined.labels.tolist() == [*range(20), *range(5)]
    np.testing.assert_array_equal(joined.head(23).x[:, 0] * 255, x[:23])
    assert joined.head(23).labels.tolist() == [*range(20), *range(3)]


@pytest.mark.ci
@pytest.mark.thinned(3)
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_rows_of_a_table_keep_their_ids_and_the_words_of_their_labels(suffix, capsys):
    pytest.importorskip("pandas", reason="pandas is not installed")
    numbers = np.random.default_rng(0).normal(size=(60, 2))
    ids = [f'"a, {i}' + "\n" * (i == 7) + "long " * (i % 11) for i in range(60)]  # quotes, commas, lines, lengths
    words = ["setosa" if i % 3 else "iris, other" for i in range(60)]
    with open("t.csv", "w", newline="") as file:
        lines = zip(ids, numbers[:, 0], numbers[:, 1], words, strict=True)
        csv.writer(file).writerows([["id", "width", "length", "species"], *lines])
    train = "train --data t.csv --data.labels species --epochs 1 --batch_size 20 --prior.latent_dim 1 --out run"
    with without_pictures():
        assert cli.main(train.split()) == 0
    for command in ("encode", "score", "reconstruct --size 60"):
        assert cli.main([*command.split(), "run", "--split", "all", "--out", f"{command[:5]}.{suffix}"]) == 0
        found = table(f"{command[:5]}.{suffix}")
        assert [str(i) for i in found["id"]] == ids
        assert [str(word) for word in found["label_name"]] == words
        assert found["label"].tolist() == [int(word == "setosa") for word in words]
    assert "the most unusual: ids " in capsys.readouterr().out


@pytest.mark.ci
def test_missing_entries_of_a_table_are_filled_with_intervals(capsys):
    pytest.importorskip("pandas", reason="pandas is not installed")
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=(30, 1)) + 0.1 * rng.normal(size=(30, 2))).round(3)
    words = np.array(["a", "b"])[rng.integers(2, size=30)]
    gone = rng.random((30, 2)) < 0.3
    with open("t.csv", "w", newline="") as file:
        lines = [["" if g else v for v, g in zip(*row, strict=True)] for row in zip(x, gone, strict=True)]
        csv.writer(file).writerows([["width", "row", "kind"], *([*a, b] for a, b in zip(lines, words, strict=True))])
    with without_pictures():
        train = "train --data t.csv --objective IWAE --epochs 2 --batch_size 20 --prior.latent_dim 1 --out run"
        assert cli.main(train.split()) == 0
    capsys.readouterr()
    assert cli.main(["reconstruct", "run", "--split", "all", "--size", "30", "--draws", "19", "--out", "f.npz"]) == 0
    with np.load("f.npz") as found:
        assert found["draws"].shape == (30, 19, 3)
        filled, low, high = found["filled"], found["low"], found["high"]
        assert (np.isnan(found["x"][:, :2]) == gone).all()
        ends = found["draws"].min(1), found["draws"].max(1)  # at 0.9 those of nineteen draws
    np.testing.assert_array_equal(low[:, :2], ends[0][:, :2])
    np.testing.assert_array_equal(high[:, :2], ends[1][:, :2])
    assert np.isnan(low[:, 2]).all()
    np.testing.assert_allclose(filled[:, :2][~gone], x[~gone], rtol=1e-6)
    assert (low[:, :2][gone] < high[:, :2][gone]).all()
    assert cli.main(["reconstruct", "run", "--split", "all", "--size", "30", "--draws", "19"]) == 0
    assert "file: run/imputed.csv" in capsys.readouterr().out
    named = table("run/imputed.csv")
    assert {"filled_width", "low_row", "high_kind", "row", "split"} <= set(named)
    assert named["row"].tolist() == list(range(30))  # not the table's own column of this name
    np.testing.assert_allclose(named["filled_row"], filled[:, 1], rtol=1e-6)
    assert cli.main(["reconstruct", "run", "--draws", "9"]) == 2
    assert "9 draws are too few at level 0.9; give impute num_draws=19 or more" in capsys.readouterr().err
    assert cli.main(["reconstruct", "run", "--level", "0.5"]) == 2
    assert "--level is 0.5, of the intervals of --draws, which is not given" in capsys.readouterr().err
    assert cli.main(["reconstruct", "run", "--split", "all", "--size", "30"]) == 0
    assert "nan" not in capsys.readouterr().out  # the error is that of observed entries
