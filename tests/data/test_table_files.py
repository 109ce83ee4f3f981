"""Tables as frames and files: kinds, ids, labels, and other rows read by the columns of the first."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
import torch
from archives import arrays_of
from short_runs import without_pictures

from ppl_vae import cli, data, runs

pandas = pytest.importorskip("pandas", reason="pandas, of the extra tables, is not installed")


@pytest.fixture
def people():
    g = np.random.default_rng(0)
    z = g.normal(size=80)
    return pandas.DataFrame(
        {
            "name": [f"p{i}" for i in range(80)],
            "height": np.where(np.arange(80) % 7 == 0, np.nan, np.round(170 + 10 * z, 1)),
            "children": g.poisson(np.exp(0.3 + 0.3 * z)),
            "city": np.array(["Oslo", "Bergen", "Voss"])[(z > 0).astype(int) + (z > 1)],
            "smoker": z > 0.3,
            "group": np.array(["b", "a"])[(z > 0).astype(int)],
        }
    )


def whole(table, **options):
    return data.from_table(table, test=0, validation=0, **options)


def test_a_frame_keeps_names_labels_ids_and_missing_entries(people):
    table = whole(people.astype({"children": "Int64"}), labels="group", ids="name")
    assert table.column_names == ("height", "children", "city", "smoker")
    assert table.columns == ("real", "count", "categorical:3", "binary")
    assert table.categories[2] == ("Bergen", "Oslo", "Voss")
    x, split = table.train.x, table.train
    assert torch.equal(x[:, 0].isnan(), torch.arange(80) % 7 == 0)
    assert x[:, 1].tolist() == people["children"].tolist()
    assert [table.categories[2][int(code)] for code in x[:, 2]] == people["city"].tolist()
    assert split.ids.tolist() == people["name"].tolist()
    assert [split.label_names[code] for code in split.labels.tolist()] == people["group"].tolist()


def test_each_part_keeps_its_own_ids_and_labels(people):
    table = data.from_table(people, labels="group", ids="name", test=20, validation=10)
    by_name = people.set_index("name")
    for part in (table.train, table.validation, table.test):
        rows = by_name.loc[part.ids]
        assert np.array_equal(part.x[:, 0].numpy(), rows["height"].to_numpy(np.float32), equal_nan=True)
        assert [part.label_names[code] for code in part.labels.tolist()] == rows["group"].tolist()
    assert len(table.test.ids) == 20


def test_the_order_of_declared_categories_is_kept(people):
    people["city"] = pandas.Categorical(people["city"], categories=["Voss", "Oslo", "Bergen"])
    assert whole(people[["height", "city"]]).categories[1] == ("Voss", "Oslo", "Bergen")


def test_other_rows_take_the_columns_of_the_first_table(people):
    """Fewer cities, in another order of rows and columns, with a column more: the codes stay."""
    first = whole(people, labels="group", ids="name")
    some = people[people["city"] != "Bergen"].iloc[::-1]
    shuffled = some[["smoker", "city", "name", "height", "children"]].assign(extra=1)
    again = whole(shuffled, columns=first.schema, ids="name")
    assert (again.column_names, again.columns) == (first.column_names, first.columns)
    place = {name: i for i, name in enumerate(first.train.ids.tolist())}
    expected = first.train.x[[place[name] for name in again.train.ids.tolist()]]
    assert torch.equal(again.train.x.nan_to_num(-1), expected.nan_to_num(-1))
    with pytest.raises(ValueError, match=r"'Rome', which is none of its values Bergen, Oslo, Voss"):
        whole(shuffled.assign(city="Rome"), columns=first.schema)
    with pytest.raises(ValueError, match="columns names 'height'"):
        whole(shuffled.drop(columns="height"), columns=first.schema)


def test_columns_are_skipped_and_bad_ones_refused(people):
    assert whole(people, columns={"name": "skip", "*": "categorical", "children": "count"}).column_names == (
        "children",
        "height",
        "city",
        "smoker",
        "group",
    )
    for options, message in (
        (dict(labels="grup"), r"labels is 'grup'.*did you mean group"),
        (dict(ids="nam"), r"ids is 'nam'"),
        (dict(columns={"*": "skip"}), "no column left"),
        (dict(columns={"city": ["Oslo"]}), "two or more different"),
        (dict(columns={"city": "words"}), "expected one of real"),
        (dict(ids=["a"]), "ids of table have 1 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            whole(people, **options)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "semicolons"])
def test_files_give_what_the_frame_gives(people, tmp_path, suffix):
    path = tmp_path / f"people.{'csv' if suffix == 'semicolons' else suffix}"
    people = people.rename(columns={"name": "id"})
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow, of the extra tables, is not installed")
        people.to_parquet(path)
    else:
        people.to_csv(path, sep={"csv": ",", "tsv": "\t"}.get(suffix, ";"), index=False)
    read = data.load(path, labels="group", test=0, validation=0)
    known = whole(people, labels="group", ids="id")
    assert (read.schema, read.id_column, read.label_column) == (known.schema, "id", "group")
    assert torch.equal(read.train.x.nan_to_num(-1), known.train.x.nan_to_num(-1))
    assert read.train.ids.tolist() == people["id"].tolist()
    assert torch.equal(read.train.labels, known.train.labels)


def test_what_only_counts_the_rows_is_no_data(people, tmp_path):
    path = tmp_path / "people.csv"
    people[["height", "children"]].to_csv(path)  # with pandas' running number under no name
    read = data.load(path)
    assert (read.id_column, read.column_names) == ("Unnamed: 0", ("height", "children"))
    pandas.DataFrame({"year": range(1950, 2020), "rain": np.arange(70) / 7}).to_csv(path, index=False)
    assert data.load(path).id_column == "year"
    for key in ("year", 0):
        assert data.load(path, columns={key: "real"}).column_names == ("year", "rain")


def test_files_that_are_no_tables_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "broken.csv"
    path.write_text("a,b\n1,2\n3,4,5\n")
    with pytest.raises(ValueError, match=r"broken\.csv cannot be read as a table"):
        data.load(path)
    path.write_text("")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        data.load(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="has no rows"):
        data.load(path)
    path.write_text("5,0,0,12\n4,0,1,7\n")
    with pytest.raises(ValueError, match=r"no names of columns \(its first line is 5, 0, 0\.1, 12\)"):
        data.load(path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises((ValueError, OSError), match="broken"):
        data.load(tmp_path / "broken.parquet")
    with pytest.raises(FileNotFoundError, match="a table was expected"):
        data.load(tmp_path / "none.csv")
    path.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(ValueError, match="leave binarize"):
        data.load(path, binarize="threshold")
    with pytest.raises(ValueError, match=r"labels='a' was given, and digits is no table"):
        data.load("digits", labels="a")
    real = builtins.__import__

    def without_pandas(name, *args, **options):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ValueError, match=r"pip install 'ppl-vae\[tables\]'"):
        data.load(path)


@pytest.mark.ci
@pytest.mark.filterwarnings("default")  # the command line shows warnings as notes
def test_a_table_trains_and_its_run_reads_other_files(people, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    people.to_csv("people.csv", index=False)
    options = [
        "--data.labels",
        "group",
        "--data.ids",
        "name",
        "--epochs",
        "1",
        "--compile",
        "off",
        "--batch_size",
        "500",
    ]
    assert cli.main(["train", "--data", "people.csv", *options]) == 0
    told = capsys.readouterr().err
    assert (
        "height real, children count, city of Bergen|Oslo|Voss, smoker binary; labels from group; ids from name" in told
    )
    assert "note: batch_size is lowered from 500 to the 65 training data" in told
    run = runs.load_run("runs/people")
    assert run.likelihood.columns == ["real", "count", "categorical:3", "binary"]
    assert run.categories == ((), (), ("Bergen", "Oslo", "Voss"), ())
    people[people["city"] == "Voss"][["city", "smoker", "children", "height"]].to_csv("voss.csv", index=False)
    for name, split in (("people.csv", "all"), ("voss.csv", "all")):
        options = ["--split", split, "--data", name, "--out", f"{name}.npz"]
        assert cli.main(["encode", "runs/people", *options]) == 0
    codes = {name: arrays_of(f"{name}.npz")["mean"] for name in ("people.csv", "voss.csv")}
    assert np.allclose(codes["people.csv"][(people["city"] == "Voss").to_numpy()], codes["voss.csv"], atol=1e-6)
    assert cli.main(["train", "--data", "people.csv", "--likelihood", "Bernoulli", "--data.ids", "name"]) == 2
    assert "likelihoods.Mixed takes them" in capsys.readouterr().err


def test_a_parquet_file_may_have_numbers_as_names(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    quantiles = pandas.DataFrame({"0.1": np.arange(9.5), "0.9": np.arange(9.5) ** 2})
    quantiles.to_parquet(tmp_path / "q.parquet")
    assert data.load(str(tmp_path / "q.parquet")).column_names == ("0.1", "0.9")


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1.5,2,9\n2.5,7,9\n", "has 2 names in its header and more values in its rows"),
        ("1.5,2,x\n2.5,7,y\n3.5,9,x\n", "has no names of columns"),
        ("39,Bachelors,Male\n50,HS,Female\n38,Bachelors,Male\n", "has no names of columns"),
        ("id,b\n1,2.5\n,7\n2,9\n", "the ids of t.csv are missing in 1 rows"),
    ],
    ids=["more values", "no header", "no header of words", "ids"],
)
def test_rows_that_would_shift_or_vanish_are_refused(text, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        data.load(write(tmp_path / "t.csv", text), ids="id" if text.startswith("id") else None)


def test_a_mark_in_a_name_separates_nothing(tmp_path):
    assert data.load(write(tmp_path / "t.csv", "P(x|z)\n0.5\n0.25\n0.75\n"), test=0).column_names == ("P(x|z)",)
    assert data.load(write(tmp_path / "t.csv", "a;b\n0.5;1.5\n0.25;2\n"), test=0).column_names == ("a", "b")


SMALL = ["--epochs", "1", "--batch_size", "20", "--compile", "off", "--prior.latent_dim", "1"]
SMALL += ["--likelihood.network.hidden", "[4]", "--posterior.network.network.hidden", "[4]"]


@pytest.mark.ci
@pytest.mark.thinned(3)
@pytest.mark.parametrize("words", [("no", "yes"), ("1", "1e3"), ("a: b", "null b")], ids=str)
def test_words_that_yaml_reads_otherwise_stay_words(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i / 7},{words[i % 2]}" for i in range(60)]
    columns = ["--data.columns", "{c: categorical}"] if words[0] == "1" else []
    write(tmp_path / "t.csv", "width,c\n" + "\n".join(rows) + "\n")
    with without_pictures():
        assert cli.main(["train", "--data", "t.csv", *columns, *SMALL, "--out", "run"]) == 0
    assert cli.main(["score", "run", "--out", "a.csv"]) == 0
    assert cli.main(["evaluate", "run", "--gaps", "0", "--importance", "0"]) == 0  # two columns: a row may lack none
    assert "imputation" in capsys.readouterr().out


@pytest.mark.ci
def test_conditions_of_another_file_are_coded_as_in_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [(i / 9, "abc"[i % 3]) for i in range(90)]
    write(tmp_path / "t.csv", "width,sp\n" + "".join(f"{x},{s}\n" for x, s in rows))
    write(tmp_path / "u.csv", "width,sp\n" + "".join(f"{x},{s}\n" for x, s in rows if s != "a"))
    write(tmp_path / "v.csv", "width,sp\n" + "".join(f"{x},{s.replace('c', 'd')}\n" for x, s in rows))
    conditional = ["--data.labels", "sp", "--data.conditional", "true"]
    with without_pictures():
        assert cli.main(["train", "--data", "t.csv", *conditional, *SMALL, "--out", "run"]) == 0
    for name, file in (("t", "./t.csv"), ("u", "u.csv")):
        said = ["score", "run", "--data", file, "--data.labels", "sp", "--split", "all", "--out", f"{name}.scores.csv"]
        assert cli.main(said) == 0
    first, other = (pandas.read_csv(f"{name}.scores.csv") for name in ("t", "u"))
    first = first[first.label_name != "a"]
    assert other.label.tolist() == first.label.tolist()
    assert np.allclose(other.log_p, first.log_p, rtol=0, atol=first.error.max() + other.error.max())
    capsys.readouterr()
    assert cli.main(["score", "run", "--data", "v.csv", "--data.labels", "sp", "--out", "w.csv"]) == 2
    assert "the data have the label d, and a, b, c were trained on" in capsys.readouterr().err
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    for name, value, said in (
        ("conditions", None, "note: run does not tell its labels"),
        ("categories", [3], "its categories are no lists of values"),
        ("conditions", [3], "its conditions are no list of names"),
    ):
        facts["data"][name] = value
        (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
        cli.main(["score", "run", "--data", "v.csv", "--data.labels", "sp", "--out", "o.csv"])
        assert said in capsys.readouterr().err


def test_a_file_is_the_same_under_another_spelling_and_another_under_a_similar_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "width,c\n" + "".join(f"{i / 7},{'ab'[i % 2]}\n" for i in range(60))
    for name in ("t-1.csv", "t_1.csv"):
        write(tmp_path / name, text)
    with without_pictures():
        assert cli.main(["train", "--data", "t-1.csv", *SMALL, "--out", "run"]) == 0
    capsys.readouterr()
    for name, rows in (("t-1.csv", 6), ("./t-1.csv", 6), (str(tmp_path / "t-1.csv"), 6), ("t_1.csv", 60)):
        assert cli.main(["score", "run", "--data", name, "--out", f"{rows}.csv", "--overwrite", "true"]) == 0
        assert capsys.readouterr().out.startswith(f"{rows} data of")


def test_a_drawn_table_has_the_names_and_words_of_the_one_that_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.csv", '"a, b",city\n' + "".join(f"{i / 7},{['Oslo', 'no'][i % 2]}\n" for i in range(60)))
    with without_pictures():
        assert cli.main(["train", "--data", "t.csv", *SMALL, "--out", "run"]) == 0
    for name in ("s.csv", "s.npz"):
        assert cli.main(["sample", "run", "--mean", "false", "--size", "40", "--out", name]) == 0
    drawn, arrays = pandas.read_csv("s.csv", keep_default_na=False), arrays_of("s.npz")
    assert list(drawn) == ["a, b", "city", *[f"z_{i + 1}" for i in range(arrays["z"].shape[1])]]
    assert np.allclose(drawn["a, b"], arrays["x"][:, 0])
    assert drawn["city"].tolist() == [["Oslo", "no"][int(code)] for code in arrays["x"][:, 1]]
    again = data.load("s.csv", columns={"z_1": "skip"})
    assert again.column_names == ("a, b", "city")


@pytest.mark.parametrize("words", [("1,5", "2"), ("3%", "4.5%")])
def test_numbers_in_another_notation_are_no_categories(words, tmp_path):
    text = "a;b\n" + "".join(f"{words[i % 2]};{i}.5\n" for i in range(20))
    with pytest.raises(ValueError, match=f"column 'a' of t.csv holds numbers such as '{words[0]}': write them with a"):
        data.load(write(tmp_path / "t.csv", text))
    assert data.load(str(tmp_path / "t.csv"), columns={"a": "categorical"}).columns[0] == "categorical:2"
