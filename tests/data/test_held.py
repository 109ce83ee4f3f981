"""What people hold as data: each kind becomes the rows it holds, or is refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

import ppl_vae
from ppl_vae import VAE, data, likelihoods, networks, posteriors, priors
from ppl_vae._tensors import as_numbers
from ppl_vae.data import Dataset, Split, as_split
from ppl_vae.data.conditions import recoded, with_few_labels, with_labels, with_library_size
from ppl_vae.data.forms import Form, form_of
from ppl_vae.data.held import split_of

X = np.random.default_rng(0).normal(size=(60, 3))
LABELS = np.arange(60) % 4


class Items(TorchDataset):
    """A torch data set of the rows of X and their labels."""

    def __init__(self, noise: bool = False) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i):
        return torch.tensor(X[i]) + (torch.randn(3) if self.noise else 0), int(LABELS[i])


class Batches:
    """An iterable of batches that starts afresh, without a length."""

    def __iter__(self):
        for start in range(0, 60, 25):
            yield torch.tensor(X[start : start + 25]), torch.tensor(LABELS[start : start + 25])


class Streaming(IterableDataset):
    def __iter__(self):
        return iter([(torch.tensor(x), int(y)) for x, y in zip(X, LABELS, strict=True)])


def holdings():
    """Every kind without a dependency, each with the rows of X in order; whether it brings labels."""
    as_tensor = torch.tensor(X)
    return {
        "array": (X, False),
        "tensor": (as_tensor, False),
        "columns": ((X, LABELS), True),
        "tensors": (TensorDataset(as_tensor, torch.tensor(LABELS)), True),
        "subset": (Subset(TensorDataset(as_tensor, torch.tensor(LABELS)), range(60)), True),
        "sparse": (sparse.csr_matrix(X), False),
        "coordinates": (sparse.coo_array(X), False),
        "annotated": (SimpleNamespace(X=sparse.csr_matrix(X), obs={}), False),
        "items": (Items(), True),
        "subset of items": (Subset(Items(), range(60)), True),
        "concatenated": (ConcatDataset([Subset(Items(), range(10)), Subset(Items(), range(10, 60))]), True),
        "loader": (DataLoader(Items(), batch_size=7), True),
        "streaming loader": (DataLoader(Streaming(), batch_size=7), True),
        "list": (list(Batches()), True),
        "iterable": (Batches(), True),
        "generator": ((batch for batch in Batches()), True),
        "named": ([{"image": x, "label": y} for x, y in Batches()], True),
    }


@pytest.mark.parametrize("kind", holdings())
def test_every_kind_gives_its_rows_and_labels(kind):
    held, labelled = holdings()[kind]
    state = torch.get_rng_state()
    split = as_split(held, in_memory=True)
    assert torch.equal(split.x, torch.tensor(X, dtype=torch.float32))
    assert (split.labels is not None) == labelled
    assert not labelled or split.labels.tolist() == LABELS.tolist()
    assert torch.equal(torch.get_rng_state(), state)


def make_vae(seed: int = 0, like: object = None) -> VAE:
    torch.manual_seed(seed)
    mlp = networks.MLP([8])
    return VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(mlp) if like is None else like,
        posterior=posteriors.DiagonalNormal(mlp),
    )


@pytest.mark.parametrize("kind", holdings())
def test_fit_takes_every_kind(kind):
    held, _ = holdings()[kind]
    run = ppl_vae.fit(make_vae(), held, epochs=1, batch_size=60, seed=0, compile="off", device="cpu", validation=X)
    assert run.history[-1]["elbo"] == pytest.approx(run.history[-1]["bound"])
    assert "validation_elbo" in run.history[-1]


def test_what_is_in_memory_trains_alike():
    """Arrays, sparse matrices, items: the same rows in the same order give the same parameters."""
    trained = []
    for kind in ("tensor", "array", "sparse", "annotated", "tensors", "items"):
        vae = make_vae()
        ppl_vae.fit(vae, holdings()[kind][0], epochs=2, batch_size=16, seed=3, compile="off", device="cpu")
        trained.append(torch.cat([p.flatten() for p in vae.parameters()]))
    assert all(torch.equal(trained[0], other) for other in trained[1:])


@pytest.mark.parametrize("kind", ["array", "columns", "items", "generator"])
def test_evaluate_and_compare_take_what_fit_takes(kind):
    vae = make_vae()
    options = dict(gap_size=0, importance_size=0, imputation_size=0, evidence="posterior", num_particles=(20,), seed=1)
    found = ppl_vae.evaluate(vae, holdings()[kind][0], size=20, **options)
    known = ppl_vae.evaluate(vae, torch.tensor(X[:20], dtype=torch.float32), **options)
    assert found.figures["log_evidence"].value == known.figures["log_evidence"].value
    if kind != "array":  # arrays and tuples are the batch itself
        held = holdings()[kind][0]
        one = ppl_vae.compare(
            vae, held, objectives=["ELBO"], particles=1, replicates=20, size=60, minibatch=False, log_evidence=0.0
        )
        assert one.data_shape == (60, 3)


def test_check_takes_what_fit_takes():
    assert ppl_vae.check(data=Batches(), posterior=posteriors.DiagonalNormal()).findings


def test_the_double_model_keeps_the_digits_of_doubles():
    x = X + 1e6
    split = split_of(x, Form(1, torch.float64))
    assert torch.equal(split.x, torch.tensor(x))
    with pytest.warns(UserWarning, match="batch_size is lowered from 100 to the 60 training data"):
        run = ppl_vae.fit(make_vae().double(), x, epochs=1, batch_size=100, compile="off", device="cpu")
    assert run.data.train.x.dtype == torch.float64


def test_pixels_become_shares_and_counts_stay():
    pixels = np.array([[0, 255], [51, 102]], dtype=np.uint8)
    images = as_split(pixels[:, None]).x
    assert images.tolist() == [[[0.0, 1.0]], [[pytest.approx(0.2), pytest.approx(0.4)]]]
    with pytest.raises(ValueError, match=r"rows of uint8, which may be pixels or counts: give x / 255 for pixels"):
        as_split(pixels)
    annotated = SimpleNamespace(X=pixels, obs=pandas_frame({"kind": ["a", "b"]}))
    assert as_split(annotated).x.tolist() == pixels.tolist()
    assert as_split(sparse.csr_matrix(pixels)).x.tolist() == pixels.tolist()
    assert as_split(pixels.astype(np.int64)).x.tolist() == pixels.tolist()


@pytest.mark.parametrize("method", ["encode", "reconstruct", "score"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int64, bool])
def test_a_vae_answers_about_whole_numbers_as_it_is_trained_on_them(method, dtype):
    x = np.random.default_rng(1).integers(0, 256 if dtype is np.uint16 else 2, (7, 3)).astype(dtype)
    ask = getattr(make_vae(), method)
    with pytest.raises(ValueError, match="x holds rows of uint8"):
        ask(x.astype(np.uint8))
    assert torch.equal(ask(x), ask(as_split(x).x))
    with pytest.raises(ValueError, match=r"x holds whole numbers above 2\^24, which torch.float32 rounds"):
        ask(x.astype(np.int64) + 2**40)


def test_a_program_of_functions_gets_tensors_as_they_are():
    words = torch.tensor([[1, 2], [3, 4]])
    split = split_of((words, words[:, :1]), Form(None, raw=True))
    assert split.columns[0].dtype == torch.int64
    assert len(split.columns) == 2
    assert split_of(X.astype(np.float64), Form(None, raw=True)).x.dtype == torch.float32


def test_items_are_fresh_each_time_and_in_memory_they_are_not():
    noisy = as_split(Items(noise=True))
    (a,), (b,) = next(noisy.batches(5)), next(noisy.batches(5))
    assert not torch.equal(a, b)
    kept = as_split(Items(noise=True), in_memory=True)
    assert torch.equal(next(kept.batches(5))[0], next(kept.batches(5))[0])


def test_sparse_rows_that_do_not_fit_are_read_by_batches(monkeypatch):
    monkeypatch.setattr("ppl_vae.data.held.memory", lambda: 100.0)
    split = as_split(sparse.csr_matrix(X))
    assert not isinstance(split.x, torch.Tensor)
    rows = torch.tensor([5, 2, 5])
    assert torch.equal(next(split.batches(3, order=rows))[0], torch.tensor(X[rows], dtype=torch.float32))
    one, other = (Dataset("s", as_split(sparse.csr_matrix(x)), split, split) for x in (X, 2 * X))
    assert one.fingerprint != other.fingerprint


BAD = {
    "expected a Dataset or a Split, tensors": 3,
    "data.load reads names": "file.csv",
    "infinite": np.array([[1e300]]),
    "dtype object": np.array([[None]]),
    "dtype complex": np.array([[1j]]),
    "shape \\(\\)": np.array(1.0),
    "above 2\\^24": np.array([[2**24 + 1]]),
    "sparse matrix has shape \\(5, 0\\)": sparse.csr_matrix((5, 0)),
    "a Subset that names no rows": Subset(TensorDataset(torch.zeros(3, 2)), []),
    "sparse matrix holds NaN": sparse.csr_matrix(np.array([[np.nan, 0.0]])),
    "sparse matrix holds whole numbers above": sparse.csr_matrix(np.array([[2**25, 0]])),
    "as many rows in each": (X, LABELS[:5]),
    "2 columns and the program takes 1": (X, X),
    "3 columns and the program takes 1": (X, LABELS, LABELS),
    "give no batch": iter([]),
    "a list is read as batches": [[1.0, 2.0]],
    "expected one of x, image": [{"pictures": torch.zeros(2, 3)}],
    "three parts": data.load("digits"),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_data_is_refused_with_the_reason(message):
    with pytest.raises((ValueError, TypeError), match=message):
        as_split(BAD[message])


def test_labels_that_do_not_fit_are_refused():
    assert as_split(X, labels=["b", "a"] * 30).label_names == ("a", "b")
    assert as_split(X, labels=np.array([["b"], ["a"]] * 30)).labels.tolist() == [1, 0] * 30
    for labels, message in (
        ([1, 2], "2 rows"),
        ([0.5] * 60, "fractions"),
        (["a", None] * 30, "missing in 30 rows"),
        (["a", float("nan")] * 30, "missing in 30 rows"),
        (np.ma.array(["a", "b"] * 30, mask=[0, 1] * 30), "missing in 30 rows"),
        (np.array(["2020-01-01", "NaT"] * 30, "M8[ns]"), "missing in 30 rows"),
        (np.array([1, np.nan] * 30, complex), "missing in 30 rows"),
        (np.array(["a", np.nan] * 30, np.dtypes.StringDType(na_object=np.nan)), "missing in 30 rows"),
        (np.array([["a", "b"]] * 60), r"shape \(60, 2\), where one word a row"),
        ([1e300] * 60, "beyond 64 bits"),
        (np.array([2**63] * 60, dtype=np.uint64), "beyond 64 bits"),
        ("species", "expected a column of a frame"),
    ):
        with pytest.raises(ValueError, match=message):
            as_split(X, labels=labels)
    with pytest.raises(ValueError, match="bring their own"):
        as_split(Batches(), labels=LABELS)


def test_data_of_another_shape_than_the_vae_are_refused():
    with pytest.raises(ValueError, match=r"rows of shape \(2,\), and the VAE is for \(3,\)"):
        ppl_vae.fit(make_vae(), X[:, :2], batch_size=60, compile="off")
    with pytest.raises(ValueError, match=r"of shape \(2,\); the VAE is for \(3,\)"):
        ppl_vae.evaluate(make_vae(), X[:, :2])


def test_a_conditional_vae_takes_x_and_y():
    mlp = networks.MLP([8])
    vae = VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(mlp),
        posterior=posteriors.DiagonalNormal(mlp),
        y_shape=(4,),
    )
    run = ppl_vae.fit(vae, DataLoader(Items(), batch_size=20), epochs=1, compile="off", device="cpu")
    assert run.history[-1]["step"] == 3
    with pytest.raises(ValueError, match="1 columns and the program takes 2"):
        ppl_vae.fit(vae, X, epochs=1, compile="off", device="cpu")


# pandas, polars, AnnData


def test_a_frame_of_numbers():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X, columns=["a", "b", "c"], index=[f"row{i}" for i in range(60)])
    frame["kind"] = pandas.Categorical(["low", "high"] * 30, categories=["low", "high"])
    frame["flag"] = frame["a"] > 0
    frame["whole"] = pandas.array([None, *range(59)], dtype="Int64")
    split = as_split(frame, labels="kind")
    assert split.ids[3] == "row3"
    assert split.label_names == ("low", "high")
    assert split.labels[:2].tolist() == [0, 1]
    assert torch.equal(split.x[:, :3], torch.tensor(X, dtype=torch.float32))
    assert split.x[:, 3].tolist() == (X[:, 0] > 0).tolist()
    assert split.x[0, 4].isnan()
    assert split.head(2).ids.tolist() == ["row0", "row1"]
    with pytest.raises(ValueError, match=r"'kind' of the frame holds words.*from_table"):
        as_split(frame)
    with pytest.raises(ValueError, match=r"labels is 'knd'.*did you mean kind"):
        as_split(frame, labels="knd")
    with pytest.raises(ValueError, match=r"'when' of the frame holds a Timestamp"):
        as_split(frame.assign(when=pandas.Timestamp("2020-01-01")), labels="kind")
    numbered = pandas.DataFrame({0: X[:, 0], 1: ["u", "v"] * 30})
    assert as_split(numbered, labels="1").label_names == ("u", "v")
    assert as_split(SimpleNamespace(X=X, obs=numbered), labels="1").labels.tolist() == [0, 1] * 30
    with pytest.raises(ValueError, match="two columns 'a'"):
        as_split(pandas.concat([frame[["a"]], frame[["a"]]], axis=1))


def test_annotated_data():
    anndata = pytest.importorskip("anndata", reason="anndata is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    counts = np.random.default_rng(0).poisson(1.0, (20, 5))
    cells = pandas.DataFrame({"type": ["T", "B"] * 10}, index=[f"cell{i}" for i in range(20)])
    for matrix in (counts.astype(np.float32), sparse.csr_matrix(counts.astype(np.float32))):
        split = as_split(anndata.AnnData(matrix, obs=cells), labels="type")
        assert split.x.tolist() == counts.tolist()
        assert (split.label_names, split.labels[:2].tolist(), split.ids[1]) == (("B", "T"), [1, 0], "cell1")
    mlp = networks.MLP([8])
    vae = VAE(
        (5,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.NegativeBinomial(mlp),
        posterior=posteriors.DiagonalNormal(mlp),
    )
    run = ppl_vae.fit(vae, anndata.AnnData(matrix, obs=cells), epochs=1, batch_size=10, compile="off", device="cpu")
    assert run.history[-1]["step"] == 2


def pandas_frame(columns):
    return pytest.importorskip("pandas", reason="pandas, of the extra tables, is not installed").DataFrame(columns)


def test_a_frame_is_read_by_the_names_of_the_columns_that_were_trained_on(tmp_path):
    frame = pandas_frame({"a": X[:, 0], "b": 10 * X[:, 1], "c": X[:, 2] + 5})
    vae = make_vae()
    with pytest.warns(UserWarning, match="lowered"):
        ppl_vae.fit(vae, frame, validation=frame[["c", "a", "b"]], epochs=1, compile="off", device="cpu")
    assert vae.column_names == ("a", "b", "c")
    again = ppl_vae.load(vae.save(tmp_path / "vae.pt"))
    options = dict(gap_size=0, importance_size=0, imputation_size=0, evidence="posterior", num_particles=(20,), seed=1)
    for model in (vae, again):
        other = ppl_vae.evaluate(model, frame[["c", "b", "a"]], **options).figures["elbo"].value
        assert other == ppl_vae.evaluate(vae, frame, **options).figures["elbo"].value
    with pytest.raises(ValueError, match="the frame lacks 'c', and the columns a, b, c were trained on"):
        ppl_vae.evaluate(vae, frame.rename(columns={"c": "d"}), **options)
    with pytest.raises(ValueError, match="the frame has 'd' beside, and the columns a, b, c were trained on"):
        ppl_vae.evaluate(vae, frame.assign(d=1.0), **options)


def test_parts_are_read_by_the_names_of_training():
    """A split of a frame, as validation data or in a data set, stands for the frame, whatever the order of columns."""
    frame = pandas_frame({"a": X[:, 0], "b": 10 * X[:, 1], "c": X[:, 2] + 5})
    own, other = as_split(frame), as_split(frame[["c", "b", "a"]])
    trained = Form().like(own)
    assert torch.equal(split_of(other, trained).x, own.x)
    assert split_of(other, trained).column_names == ("a", "b", "c")
    assert split_of(own, trained) is own
    with pytest.raises(ValueError, match="the split lacks 'c', and the columns a, b, c were trained on"):
        split_of(as_split(frame.rename(columns={"c": "d"})), trained)
    options = dict(epochs=1, batch_size=60, seed=0, compile="off", device="cpu")
    found = [
        ppl_vae.fit(make_vae(), train, validation=held, **options).final["validation_elbo"]
        for train, held in ((frame, frame), (frame, other), (Dataset("mine", own, other, own.head(0)), None))
    ]
    assert found[1:] == found[:1] * 2


def test_frames_and_tables_are_coded_as_in_training(tmp_path):
    """The codes of categories are those of training, in a frame of other rows; other codes are refused."""
    frame = pandas_frame({"a": X[:, 0], "c": [1, 2, 3] * 20, "city": ["Oslo", "Bergen", None, "Bergen"] * 15})
    table = data.from_table(frame, {"c": "categorical"}, test=0, validation=0)
    later = frame[frame["c"] > 1]
    mlp = networks.MLP([4])
    vae = VAE(
        table,
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Mixed(table.columns, mlp),
        posterior=posteriors.DiagonalNormal(networks.TableEncoder(table.columns, mlp)),
    )
    ppl_vae.fit(vae, table, epochs=1, batch_size=60, compile="off", device="cpu")
    for known in (vae, ppl_vae.load(vae.save(tmp_path / "vae.pt"))):
        trained = form_of(known)
        right = data.from_table(later, table.schema, test=0, validation=0).train
        assert split_of(right, trained) is right
        assert torch.equal(split_of(later[["city", "c", "a"]], trained).x.nan_to_num(-1), right.x.nan_to_num(-1))
        with pytest.raises(ValueError, match=r"column 'c' of the frame holds 4, which is none of its values 1.0, 2.0"):
            split_of(later.assign(c=4), trained)
        with pytest.raises(ValueError, match=r"'c' of the data has codes of 2.0, 3.0, and codes of 1.0, 2.0, 3"):
            split_of(data.from_table(later, {"c": "categorical"}, test=0, validation=0).train, trained)
        with pytest.raises(ValueError, match=r"'c' of the data has numbers as given, and codes of 1.0, 2.0, 3"):
            split_of(as_split(later.assign(city=0)), trained)
    numbers = as_split(frame[["a", "c"]])
    codes = data.from_table(frame[["a", "c"]], {"c": "categorical"}, test=0, validation=0).train
    with pytest.raises(ValueError, match=r"codes of 1.0, 2.0, 3.0, and numbers as given were trained on"):
        split_of(codes, Form().like(numbers))


def test_conditions_mean_what_they_meant_in_training(tmp_path):
    """Another data set has its labels in another order, or labels that were not trained on."""
    x, words = torch.randn(40, 3), ["cat", "dog"] * 20

    def labelled(words):
        part = as_split(x, labels=words)
        return data.conditions.with_labels(Dataset("animals", part, part.head(0), part.head(0)))

    torch.manual_seed(0)
    mlp = networks.MLP([4])
    vae = VAE(
        labelled(words),
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Normal(mlp),
        posterior=posteriors.DiagonalNormal(mlp),
    )
    ppl_vae.fit(vae, labelled(words), epochs=1, batch_size=20, compile="off", device="cpu")
    assert vae.conditions == ("cat", "dog")
    again = ppl_vae.load(vae.save(tmp_path / "vae.pt"))
    options = dict(gap_size=0, importance_size=0, imputation_size=0, seed=1)
    known = ppl_vae.evaluate(vae, labelled(words).train, **options).figures["elbo"].value
    some = [word == "dog" for word in words]
    dogs = ppl_vae.evaluate(vae, Split(tuple(c[torch.tensor(some)] for c in labelled(words).train.columns)), **options)
    part = as_split(x[torch.tensor(some)], labels=["dog"] * 20)
    alone = data.conditions.with_labels(Dataset("dogs", part, part.head(0), part.head(0))).train  # dog is 0 here
    for model in (vae, again):
        assert ppl_vae.evaluate(model, labelled(words).train, **options).figures["elbo"].value == known
        assert ppl_vae.evaluate(model, alone, **options).figures["elbo"].value == dogs.figures["elbo"].value
    with pytest.raises(ValueError, match="the data have the label aardvark, and cat, dog were trained on"):
        ppl_vae.evaluate(vae, labelled(["aardvark", "dog"] * 20).train, **options)
    for training in (labelled(words), labelled(words).train):  # validation data are coded as the training data
        held = None
        if isinstance(training, Dataset):
            training = replace(training, validation=alone)
        else:
            held = alone
        run = ppl_vae.fit(vae, training, validation=held, epochs=1, batch_size=20, compile="off", device="cpu")
        assert run.data.validation.columns[1].tolist() == [[0.0, 1.0]] * 20


def test_words_that_parts_have_coded_apart_mean_the_same():
    first, other = ["cat", "dog", "cat", "owl"], ["owl", "dog", "emu", "dog"]
    x = torch.zeros(4, 2)
    parts = (as_split(x, labels=first), as_split(x, labels=other), as_split(x).head(0))
    made = with_labels(Dataset("animals", *parts))
    assert made.train.conditions == ("cat", "dog", "owl", "emu")
    for part, words in ((made.train, first), (made.validation, other)):
        assert [part.label_names[code] for code in part.labels] == words
        assert [part.conditions[code] for code in part.columns[1].argmax(1)] == words


def test_neighbours_have_the_same_words_as_labels():
    """Words of test and training data that were coded apart are compared as words."""
    x = torch.randn(60, 3) / 10 + torch.arange(60)[:, None] % 3
    words = np.array(["cat", "dog", "owl"])[np.arange(60) % 3]
    some = words != "cat"
    vae = make_vae()
    vae.encode = lambda x: x
    options = dict(gap_size=0, importance_size=0, imputation_size=0, evidence="posterior", num_particles=(5,))
    test = as_split(x[torch.tensor(some)], labels=words[some])
    found = ppl_vae.evaluate(vae, test, train=as_split(x, labels=words), **options)
    assert found.figures["knn_accuracy"].value == 1.0


def test_forgotten_labels_stay_forgotten_in_other_codes():
    words = ["b", "c"] * 20
    part = as_split(torch.randn(40, 3), labels=words)
    few = with_few_labels(Dataset("few", part, part.head(0), part.head(0)), 4).train
    again = recoded(few, ("a", "c", "b"))
    assert torch.equal(again.columns[1], few.columns[1][:, [1, 1, 0]] * torch.tensor([0, 1, 1]))
    assert [again.label_names[code] for code in again.labels] == [few.label_names[code] for code in few.labels]
    counts = data.from_tensors(torch.ones(4, 3), validation=0, test=0)
    with pytest.raises(ValueError, match="the data are not given with labels, and the model was trained with labels"):
        recoded(with_library_size(counts).train, ("log library size", "a", "b"))


@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, 24), (torch.float64, 53), (torch.bfloat16, 8)])
def test_each_dtype_refuses_the_whole_numbers_that_it_rounds(dtype, power):
    exact, above = torch.tensor([[2**power]]), torch.tensor([[2**power + (2 if power == 53 else 1)]])
    assert as_numbers(exact, dtype, "x").item() == 2**power
    with pytest.raises(ValueError, match=rf"x holds whole numbers above 2\^{power}, which {dtype} rounds"):
        as_numbers(above, dtype, "x")


def test_whole_numbers_that_float32_rounds_are_refused_in_frames():
    with pytest.raises(ValueError, match=r"column 'a' of the frame holds whole numbers above 2\^24"):
        as_split(pandas_frame({"a": [2**24 + 1, 0]}))


def test_items_of_two_shapes_and_rows_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="the items of the data set make no batch"):
        as_split(ItemsOfTwoShapes(), in_memory=True)
    with pytest.raises(ValueError, match="a Subset names rows up to 7 of 3"):
        as_split(Subset(TensorDataset(torch.zeros(3, 2)), [7]))


class ItemsOfTwoShapes(TorchDataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        return torch.zeros(2 + i)
