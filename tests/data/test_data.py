from __future__ import annotations

import gzip
import math
import os
import pickle
import re
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppl_vae import data
from ppl_vae.data import folders, reading, torchvision_sets
from ppl_vae.data.binarization import noise_key, uniforms
from ppl_vae.data.rows import LazyRows

PARTS = ("train", "validation", "test")
TINY = 1e-9  # GiB: everything is larger
# os.fork warns of the threads that torch has from Python 3.12 on; the workers only decode images.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def counting(n: int, size: int = 3) -> torch.Tensor:
    """Rows that tell their own number."""
    return torch.arange(n, dtype=torch.float32)[:, None].expand(n, size).clone()


def grey(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def whole(split: data.Split, batch_size: int = 7) -> torch.Tensor:
    return torch.cat([batch[0] for batch in split.batches(min(batch_size, len(split)))])


def save_images(folder: Path, pixels: np.ndarray, names: list[str] | None = None) -> None:
    for place, image in enumerate(pixels):
        path = folder / (names[place] if names else f"{place:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


class TestSplit:
    def test_batches_cover_all_rows_in_order_with_a_smaller_last(self):
        split = data.Split((counting(10),))
        batches = [x for (x,) in split.batches(4)]
        assert [len(x) for x in batches] == [4, 4, 2]
        assert torch.equal(torch.cat(batches), split.x)

    def test_order_is_respected_and_may_be_a_subset(self):
        split = data.Split((counting(10), torch.arange(10)))
        order = torch.tensor([9, 0, 5, 5])
        batches = list(split.batches(3, order=order))
        assert torch.cat([x for x, _ in batches])[:, 0].tolist() == [9, 0, 5, 5]
        assert torch.cat([y for _, y in batches]).tolist() == [9, 0, 5, 5]
        assert batches[0][1].dtype == torch.int64
        assert list(split.batches(3, order=order[:0])) == []

    def test_batches_do_not_alias_the_data(self):
        split = data.Split((counting(4),))
        next(split.batches(4))[0].zero_()
        assert torch.equal(split.x, counting(4))

    @pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None])
    def test_batch_size_below_one(self, batch_size):
        with pytest.raises(ValueError, match=r"batch_size=.*integer from 1"):
            data.Split((counting(4),)).batches(batch_size)  # at once, not at the first batch

    def test_batch_size_above_the_rows(self):
        with pytest.raises(ValueError, match=r"batch_size=5.*4 rows"):
            data.Split((counting(4),)).batches(5)
        with pytest.raises(ValueError, match="0 rows"):
            data.Split((counting(0),)).batches(1)

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            (torch.tensor([0, 4]), "from 0 to 4, where 0 to 3"),
            (torch.tensor([-1]), "from -1"),
            (torch.tensor([True, False, True, True]), "torch.bool"),
            (torch.tensor([[0]]), r"shape \(1, 1\)"),
            ([0, 1], "a list"),
        ],
    )
    def test_bad_orders(self, order, message):
        with pytest.raises(ValueError, match=message):
            data.Split((counting(4),)).batches(2, order=order)

    def test_columns_must_be_as_many(self):
        with pytest.raises(ValueError, match=r"\[4, 3\] rows"):
            data.Split((counting(4), counting(3)))
        with pytest.raises(ValueError, match="4 rows and 3 labels"):
            data.Split((counting(4),), torch.arange(3))
        with pytest.raises(ValueError, match="no column"):
            data.Split(())

    def test_dynamic_draws_are_fresh_and_have_the_mean_of_their_probability(self):
        p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).repeat(4000, 1)
        split = data.Split((p, counting(4000)), dynamic=True)
        first, second = whole(split, 1000), whole(split, 1000)
        assert not torch.equal(first, second)
        assert set(first.unique().tolist()) == {0.0, 1.0}
        standard_error = (p[0] * (1 - p[0]) / 8000).sqrt()
        assert (((first + second).mean(0) / 2 - p[0]).abs() <= 5 * standard_error).all()
        assert torch.equal(next(split.batches(10))[1], counting(10)), "other columns are not drawn"
        torch.manual_seed(3)
        again = whole(split, 1000)
        torch.manual_seed(3)
        assert torch.equal(again, whole(split, 1000)), "draws follow torch's global generator"

    def test_head_is_one_draw_that_leaves_the_global_generator_alone(self):
        split = data.Split((torch.full((50, 20), 0.5),), torch.arange(50), dynamic=True)
        before = torch.get_rng_state()
        head = split.head(8)
        assert torch.equal(before, torch.get_rng_state())
        assert not head.dynamic
        assert head.labels.tolist() == list(range(8))
        assert set(head.x.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(head.x, split.head(8).x)
        assert len(split.head(1000)) == 50
        assert len(split.head(0)) == 0
        with pytest.raises(ValueError, match=r"head\(-1\)"):
            split.head(-1)

    def test_head_takes_lists_beside_the_columns(self):
        beside = {"labels": [3, 1, 2], "rows": [7, 8, 9], "ids": ["a", "b", "c"]}
        head = data.Split((counting(3),), **beside).head(2)
        assert {name: list(getattr(head, name)) for name in beside} == {k: v[:2] for k, v in beside.items()}

    def test_to_moves_tensors_now_and_foreign_rows_batch_by_batch(self):
        class Foreign:  # inherits nothing
            shape = (6, 2)

            def __len__(self):
                return 6

            def __getitem__(self, index):
                return index[:, None].expand(-1, 2).float()

        split = data.Split((Foreign(), torch.arange(6)), torch.arange(6)).to("meta")
        assert split.columns[1].device.type == split.labels.device.type == "meta"
        assert len(split.columns[0]) == 6
        x, y = next(split.batches(4))
        assert x.device.type == y.device.type == "meta"
        x, _ = next(data.Split((Foreign(), torch.arange(6))).batches(4, device="meta"))
        assert x.device.type == "meta"
        assert torch.equal(data.Split((Foreign(),)).to("cpu").head(3).x, counting(3, 2))

    def test_repr_is_short(self):
        assert repr(data.Split((counting(4),), dynamic=True)) == "Split(4 rows of (3,), dynamic)"

    @pytest.mark.gpu
    def test_on_a_gpu(self):
        digits = data.load("digits", binarize="dynamic").to("cuda")
        for order in (None, torch.randperm(1455), torch.randperm(1455, device="cuda")):
            (x,) = next(digits.train.batches(32, order=order))
            assert x.is_cuda
            assert set(x.unique().tolist()) == {0.0, 1.0}
        assert digits.fingerprint == data.load("digits", binarize="dynamic").fingerprint
        x = torch.rand(100, 4, device="cuda")
        assert data.from_tensors(x, labels=list(range(100)), binarize="fixed").test.x.is_cuda


class TestDigits:
    def test_shape_values_labels(self):
        digits = data.load("digits", binarize="none", validation=0, test=0)
        assert digits.x_shape == (1, 8, 8)
        assert digits.is_image
        assert digits.name == "digits"
        assert digits.train.x.dtype == torch.float32
        assert torch.equal(digits.train.x, (digits.train.x * 16).round() / 16)
        assert (digits.train.x.min(), digits.train.x.max()) == (0, 1)
        assert digits.train.labels.dtype == torch.int64
        assert digits.train.labels[:10].tolist() == list(range(10)), "rows keep the order of their source"

    def test_threshold_is_its_own(self):
        plain = data.load("digits", binarize="none")
        assert data.load("digits").binarize == "threshold"
        for part in PARTS:
            x = getattr(plain, part).x
            assert torch.equal(getattr(data.load("digits"), part).x, (x > 0.5).float())
            assert torch.equal(getattr(data.load("digits", threshold=0.25), part).x, (x > 0.25).float())

    def test_names_in_any_spelling(self):
        assert data.load("Digits").name == "digits"
        assert "digits" in data.names()
        assert len(data.names()) == 12

    @pytest.mark.ci
    def test_imports_neither_torchvision_nor_sklearn(self):
        code = "import sys, ppl_vae.data; print(sorted({'torchvision', 'sklearn'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout.strip(), done.stderr) == ("[]", "")


class TestPartition:
    @pytest.mark.parametrize(
        ("validation", "test", "sizes"),
        [
            (0.1, None, (81, 9, 10)),  # the fraction of what is left to train on
            (0, 0, (100, 0, 0)),
            (0.0, 0.5, (50, 0, 50)),
            (20, 30, (50, 20, 30)),
            (np.int64(3), np.float32(0.25), (72, 3, 25)),
            (0.001, 0, (99, 1, 0)),  # a fraction above 0 is at least one row
        ],
    )
    def test_sizes_disjoint_complete(self, validation, test, sizes):
        split = data.from_tensors(counting(100), labels=range(100), validation=validation, test=test)
        parts = [getattr(split, part) for part in PARTS]
        assert tuple(len(part) for part in parts) == sizes
        rows = torch.cat([part.x[:, 0] for part in parts])
        assert sorted(rows.tolist()) == list(range(100))
        for part in parts:
            assert torch.equal(part.x[:, 0], part.labels.float())

    def test_seeded(self):
        def rows(seed):
            split = data.from_tensors(counting(100), seed=seed)
            return [getattr(split, part).x[:, 0].tolist() for part in PARTS]

        assert rows(0) == rows(0)
        assert all(a != b for a, b in zip(rows(0), rows(1), strict=True))

    def test_the_test_set_does_not_depend_on_validation(self):
        few, many = (data.from_tensors(counting(100), validation=v) for v in (0, 50))
        assert torch.equal(few.test.x, many.test.x)

    @pytest.mark.parametrize("binarize", ["none", "threshold", "fixed", "dynamic"])
    def test_global_generators_untouched(self, binarize):
        torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        data.load("digits", binarize=binarize)
        assert torch.equal(torch_before, torch.get_rng_state())
        assert (numpy_before == np.random.get_state()[1]).all()

    @pytest.mark.parametrize("value", [-1, -0.1, 1.0, 1.5, math.nan, math.inf, True, "0.1", None])
    @pytest.mark.parametrize("option", ["validation", "test"])
    def test_bad_sizes(self, option, value):
        if option == "test" and value is None:
            return
        with pytest.raises(ValueError, match=rf"{option}={re.escape(repr(value))}.*number of rows.*fraction"):
            data.load("digits", **{option: value})

    @pytest.mark.parametrize(
        "sizes", [{"validation": 1797, "test": 0}, {"test": 5000}, {"validation": 18, "test": 0.99}]
    )
    def test_nothing_left_to_train_on(self, sizes):
        with pytest.raises(ValueError, match=r"leave nothing to train on of the 1797 rows of digits"):
            data.load("digits", **sizes)

    @pytest.mark.parametrize("seed", [0.5, 1.0, "0", None, -1, 2**63, True])
    def test_bad_seeds(self, seed):
        with pytest.raises(ValueError, match=r"seed=.*integer from 0"):
            data.load("digits", seed=seed)

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, "half"])
    def test_bad_thresholds(self, threshold):
        with pytest.raises(ValueError, match=r"threshold=.*from 0 to 1"):
            data.load("digits", threshold=threshold)

    def test_bad_binarize(self):
        with pytest.raises(ValueError, match=r"binarize='treshold'.*did you mean threshold"):
            data.load("digits", binarize="treshold")

    @pytest.mark.parametrize("size", [-1, math.nan, "4"])
    def test_bad_memory_limits(self, size):
        with pytest.raises(ValueError, match="max_in_memory_gib"):
            data.load("digits", max_in_memory_gib=size)


class TestBinarize:
    def test_fixed_is_one_draw_with_the_mean_of_its_probability(self):
        p = torch.tensor([0.0, 0.2, 0.7, 1.0]).repeat(5000, 1)
        drawn = data.from_tensors(p, binarize="fixed", validation=0, test=0).train
        assert not drawn.dynamic
        assert torch.equal(whole(drawn, 1000), whole(drawn, 1000))
        standard_error = (p[0] * (1 - p[0]) / 5000).sqrt()
        assert ((drawn.x.mean(0) - p[0]).abs() <= 5 * standard_error).all()
        other = data.from_tensors(p, binarize="fixed", validation=0, test=0, seed=1).train
        assert not torch.equal(drawn.x, other.x)

    def test_dynamic_holds_validation_and_test_still(self):
        p = torch.rand(500, 30)
        dynamic, fixed = (data.from_tensors(p, binarize=mode, test=0.3) for mode in ("dynamic", "fixed"))
        assert dynamic.train.dynamic
        assert torch.equal(dynamic.train.x, data.from_tensors(p, test=0.3).train.x)
        for part in ("validation", "test"):
            split = getattr(dynamic, part)
            assert not split.dynamic
            assert set(split.x.unique().tolist()) == {0.0, 1.0}
            assert torch.equal(split.x, getattr(fixed, part).x)

    def test_a_row_is_drawn_alike_in_whichever_part_it_falls(self):
        p = torch.cat([counting(40, 1) / 64, torch.full((40, 50), 0.5)], 1)
        wide = data.from_tensors(p, binarize="fixed", validation=0, test=0).train.x
        split = data.from_tensors(p, binarize="fixed")
        rows = data.from_tensors(p, binarize="none")
        for part in PARTS:
            number = (getattr(rows, part).x[:, 0] * 64).long()
            assert torch.equal(getattr(split, part).x[:, 1:], wide[number][:, 1:])

    @pytest.mark.parametrize("mode", ["threshold", "fixed", "dynamic"])
    @pytest.mark.parametrize("x", [torch.tensor([[0.5, -0.1]] * 9), torch.tensor([[0.5, 1.5]] * 9)])
    def test_needs_values_in_the_unit_interval(self, mode, x):
        with pytest.raises(ValueError, match=r"needs values in \[0, 1\].*from"):
            data.from_tensors(x, binarize=mode)

    def test_noise_is_uniform_and_independent(self):
        draws = uniforms(np.arange(2000), 50, noise_key(0, 0)).astype(np.float64)  # (rows, places)
        assert draws.min() >= 0
        assert draws.max() < 1
        n = draws.size
        for power in (1, 2, 3):  # E[u^k] = 1/(k+1), var(u^k) = 1/(2k+1) - 1/(k+1)^2
            variance = 1 / (2 * power + 1) - 1 / (power + 1) ** 2
            assert abs((draws**power).mean() - 1 / (power + 1)) < 5 * math.sqrt(variance / n)
        centred = (draws - 0.5) * math.sqrt(12)
        neighbours = {
            "place": centred[:, 1:] * centred[:, :-1],
            "row": centred[1:] * centred[:-1],
            "seed": centred * (uniforms(np.arange(2000), 50, noise_key(1, 0)) - 0.5) * math.sqrt(12),
            "part": centred * (uniforms(np.arange(2000), 50, noise_key(0, 1)) - 0.5) * math.sqrt(12),
        }
        for what, product in neighbours.items():
            assert abs(product.mean()) < 5 * product.std() / math.sqrt(product.size), what
        histogram = np.histogram(draws, 64, (0, 1))[0]
        chi2 = ((histogram - n / 64) ** 2 / (n / 64)).sum()
        assert abs(chi2 - 63) < 5 * math.sqrt(2 * 63)


class TestFromTensors:
    @pytest.mark.parametrize(
        ("x", "shape"),
        [
            (grey(20, 6), (6,)),
            (grey(20, 5, 4), (1, 5, 4)),
            (grey(20, 5, 4, 3), (3, 5, 4)),
            (grey(20, 5, 4, 1), (1, 5, 4)),
            (grey(20, 3, 5, 4), (3, 5, 4)),
            (grey(20, 1, 5, 3), (1, 5, 3)),  # both could be channels: first
            (torch.from_numpy(grey(20, 5, 4, 3)), (3, 5, 4)),
        ],
    )
    def test_uint8_are_images_channels_first(self, x, shape):
        train = data.from_tensors(x, validation=0, test=0).train
        assert train.x.shape == (20, *shape)
        assert train.x.dtype == torch.float32
        assert train.x.is_contiguous()
        scaled = np.asarray(x, dtype=np.float32) / 255
        if shape[0] != x.shape[1] and x.ndim == 4:
            scaled = scaled.transpose(0, 3, 1, 2)
        assert torch.equal(train.x, torch.from_numpy(scaled.reshape(20, *shape)))

    @pytest.mark.parametrize(
        "dtype", ["float16", "float64", ">f8", "bool", "int8", "int64", "uint16", ">i4", "longdouble"]
    )
    def test_other_numbers_are_taken_as_they_are(self, dtype):
        x = np.arange(24).reshape(6, 4).astype(dtype)
        train = data.from_tensors(x, validation=0, test=0).train
        assert train.x.dtype == torch.float32
        assert (train.x.numpy() == x.astype(np.float32)).all()

    def test_float_images(self):
        assert data.from_tensors(np.zeros((9, 5, 4))).x_shape == (1, 5, 4)
        assert data.from_tensors(np.zeros((9, 2, 5, 4))).x_shape == (2, 5, 4)
        assert not data.from_tensors(np.zeros((9, 2, 5, 4))).is_image
        assert not data.from_tensors(np.zeros((9, 4))).is_image
        assert data.from_tensors([[0.0, 1.0]] * 9).x_shape == (2,)

    def test_arrays_of_any_memory(self):
        x = np.arange(24.0, dtype=np.float32).reshape(6, 4)
        still = x.copy()
        still.flags.writeable = False
        for odd in (x[::-1], x[:, ::-1], np.asfortranarray(x), still):
            assert (data.from_tensors(odd, validation=0, test=0).train.x.numpy() == odd).all()
        mine = torch.from_numpy(x.copy()).requires_grad_()
        train = data.from_tensors(mine, validation=0, test=0).train
        assert not train.x.requires_grad
        train.x.zero_()
        assert mine.abs().sum() > 0, "the data is copied"

    def test_further_columns_follow_their_rows(self):
        x, y = counting(50), torch.arange(50)
        one_hot = np.eye(50)
        split = data.from_tensors(x, y, one_hot, name="mine", binarize="none")
        assert split.name == "mine"
        for part in PARTS:
            rows, number, code = getattr(split, part).columns
            assert number.dtype == torch.int64
            assert code.dtype == torch.float32
            assert torch.equal(rows[:, 0], number.float())
            assert torch.equal(code.argmax(1), number)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (np.float64(1.0), r"shape \(\)"),
            (np.zeros(5), r"shape \(5,\).*reshape scalars to \(n, 1\)"),
            (np.zeros((2, 2, 2, 2, 2)), r"shape \(2, 2, 2, 2, 2\)"),
            (np.zeros((0, 4)), "is empty"),
            (np.zeros((4, 0)), "is empty"),
            (np.array([["a"]]), "dtype <U1"),
            (np.array([[None]]), "dtype object"),
            (np.array([[1j]]), "complex"),
            (torch.zeros(3, 2, dtype=torch.complex64), "complex64"),
            (torch.eye(4).to_sparse(), "sparse"),
            (np.array([["2020-01-01"]], dtype="datetime64[D]"), "datetime64"),
            ([[1.0], [1.0, 2.0]], "rows of equal length"),
            (np.array([[1.0, math.nan], [0.0, 0.0]]), "tensors holds 1 NaN or infinite value, first in row 0"),
            (np.array([[1.0, 1.0], [math.inf, -math.inf], [math.nan, 0]]), "3 NaN or infinite values.*row 1"),
            (np.array([[0.0], [1e300]]), "1 NaN or infinite value, first in row 1"),  # as float32
        ],
    )
    def test_bad_data(self, x, message):
        with pytest.raises(ValueError, match=message):
            data.from_tensors(x)

    def test_bad_values_are_counted_over_all_blocks(self, monkeypatch):
        monkeypatch.setattr("ppl_vae.data.arrays.BLOCK", 6)
        x = counting(11)
        x[[3, 7, 8], 1] = math.nan
        with pytest.raises(ValueError, match="3 NaN or infinite values, first in row 3"):
            data.from_tensors(x)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (range(9), "9 rows and the data 10"),
            (np.zeros((10, 2)), r"shape \(10, 2\)"),
            (np.full(10, 0.5), "fractions"),
            (np.full(10, math.nan), "missing in 10 rows"),
            (["a"] * 10, "dtype <U1"),
        ],
    )
    def test_bad_labels(self, labels, message):
        with pytest.raises(ValueError, match=f"the labels of tensors .*{message}"):
            data.from_tensors(counting(10), labels=labels)

    def test_bad_columns(self):
        with pytest.raises(ValueError, match=r"column 1 of tensors has shape \(9,\), where 10 rows"):
            data.from_tensors(counting(10), torch.zeros(9))
        with pytest.raises(ValueError, match="column 1 of tensors holds 10 NaN"):
            data.from_tensors(counting(10), torch.full((10,), math.nan))
        with pytest.raises(ValueError, match="column 1 of tensors has dtype <U1"):
            data.from_tensors(counting(10), ["a"] * 10)
        with pytest.raises(ValueError, match="no data"):
            data.from_tensors()


class TestDataset:
    def test_fingerprint_tells_data_apart(self):
        x = torch.rand(60, 4)
        base = data.from_tensors(x)
        assert re.fullmatch("[0-9a-f]{16}", base.fingerprint)
        assert base.fingerprint == data.from_tensors(x, name="other").fingerprint
        changed = x.clone()
        changed[30, 2] += 1e-3
        others = [
            data.from_tensors(changed),
            data.from_tensors(x.view(60, 1, 2, 2)),
            data.from_tensors(x, seed=1),
            data.from_tensors(x, validation=0),
            data.from_tensors(x, binarize="fixed"),
            data.from_tensors(x, binarize="dynamic"),
            data.from_tensors(x, labels=range(60)),
            data.from_tensors(x, x),
        ]
        assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)

    def test_fingerprint_is_computed_once_and_moves_along(self, monkeypatch):
        split = data.from_tensors(torch.rand(60, 4))
        mark = split.fingerprint
        monkeypatch.setattr("hashlib.sha256", None)
        assert split.fingerprint == split.to("cpu").fingerprint == mark

    def test_to(self):
        moved = data.load("digits").to("meta")
        assert all(getattr(moved, part).x.device.type == "meta" for part in PARTS)
        assert moved.x_shape == (1, 8, 8)
        assert "digits" in repr(moved)


class TestArrayFiles:
    def test_npy(self, tmp_path):
        x = grey(40, 6, 5)
        np.save(tmp_path / "faces.npy", x)
        loaded = data.load(tmp_path / "faces.npy", validation=0, test=0)
        assert loaded.name == "faces"
        assert loaded.binarize == "none"
        assert (loaded.train.x.numpy() == x[:, None].astype(np.float32) / 255).all()
        assert data.load(str(tmp_path / "faces.npy")).fingerprint == data.from_tensors(x).fingerprint

    @pytest.mark.parametrize("key", ["x", "images", "data", "anything"])
    @pytest.mark.parametrize("label_key", ["y", "labels", "targets"])
    def test_npz(self, tmp_path, key, label_key):
        np.savez_compressed(tmp_path / "a.npz", **{key: counting(30).numpy(), label_key: np.arange(30)[:, None]})
        loaded = data.load(tmp_path / "a.npz")
        for part in PARTS:
            split = getattr(loaded, part)
            assert torch.equal(split.x[:, 0], split.labels.float())

    def test_npz_with_a_test_set(self, tmp_path):
        x, x_test = counting(30).numpy(), 100 + counting(10).numpy()
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(30), x_test=x_test, y_test=100 + np.arange(10), notes=["hi"])
        loaded = data.load(tmp_path / "a.npz", validation=0.5)
        assert (len(loaded.train), len(loaded.validation)) == (15, 15)
        assert torch.equal(loaded.test.x, torch.from_numpy(x_test))
        assert loaded.test.labels.tolist() == list(range(100, 110))
        with pytest.raises(ValueError, match=r"test=0.1 .* a.npz has a test set of its own"):
            data.load(tmp_path / "a.npz", test=0.1)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"a": np.zeros((3, 2)), "b": np.zeros((3, 2))}, r"\['a', 'b'\], where an array named x"),
            ({}, "no arrays"),
            ({"x": np.zeros((3, 2)), "images": np.zeros((3, 2))}, "mean the same"),
            ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, "array 'y' of a.npz has 2 rows and the data 3"),
            ({"x": np.zeros((3, 2)), "x_test": np.zeros((3, 1))}, r"\(1,\) in x_test and \(2,\) in x"),
            ({"x": np.zeros((3, 2)), "y_test": np.zeros(3)}, "y_test without x_test"),
            ({"x": np.zeros((3, 2)), "x_test": np.zeros((3, 2)), "y_test": np.zeros(4)}, "'y_test'.* 4 rows"),
            ({"x": np.array([[None, 1]])}, "a.npz holds Python objects"),
            ({"x": np.zeros(3)}, r"array 'x' of a.npz has shape \(3,\)"),
            ({"x": np.full((3, 2), math.nan)}, "a.npz holds 6 NaN"),
            ({"x": np.zeros((3, 2)), "x_test": np.full((1, 2), math.nan)}, "test set of a.npz holds 2 NaN"),
            (
                {"x": np.ones((3, 2), np.uint8), "x_test": np.full((1, 2), 255.0)},
                "a.npz has uint8 in x, which is divided by 255, and values up to 255 of another dtype in x_test",
            ),
            ({"x": np.full((3, 2), 2**24 + 1)}, r"array 'x' of a.npz holds whole numbers above 2\^24"),
        ],
    )
    def test_bad_npz(self, tmp_path, arrays, message):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            data.load(tmp_path / "a.npz")

    @pytest.mark.parametrize("limit", [4.0, 0.0])
    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.array(["a", "b"]), "a.npy has dtype <U1, where real numbers"),
            (np.array([[None, 1]]), "a.npy holds Python objects"),
            (np.zeros(4), r"a.npy has shape \(4,\)"),
            (np.array(4.0), r"a.npy has shape \(\)"),
            (np.zeros((1, 1, 1, 1, 1)), r"a.npy has shape \(1, 1, 1, 1, 1\)"),
            (np.zeros((0, 3)), "a.npy is empty"),
            (np.array([[1.0], [math.inf]]), "a.npy holds 1 NaN or infinite value, first in row 1"),
        ],
    )
    def test_bad_npy(self, tmp_path, array, message, limit):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match=message):
            data.load(tmp_path / "a.npy", max_in_memory_gib=limit)

    @pytest.mark.parametrize("name", ["a.npy", "a.npz"])
    @pytest.mark.parametrize("size", [0, 5, 90, 500])
    def test_truncated(self, tmp_path, name, size):
        save = np.save if name == "a.npy" else np.savez
        save(tmp_path / name, np.zeros((50, 4)))
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
        with pytest.raises(ValueError, match=f"{name} cannot be read.*truncated"):
            data.load(tmp_path / name)

    def test_something_else(self, tmp_path):
        (tmp_path / "a.npy").write_text("this is a text, and a longer one than a header")
        with pytest.raises(ValueError, match=r"a.npy cannot be read"):
            data.load(tmp_path / "a.npy")
        (tmp_path / "a.txt").write_text("1,2")
        with pytest.raises(ValueError, match=r"a.txt is no data set.*\.npy or \.npz file, a table .* or a folder"):
            data.load(tmp_path / "a.txt")

    @pytest.mark.parametrize("name", ["missing.npy", "missing/folder", "./missing", "missing.npz"])
    def test_missing(self, name):
        with pytest.raises(FileNotFoundError, match="no file or folder missing"):
            data.load(name)
        with pytest.raises(FileNotFoundError, match="no file or folder missing"):
            data.load(Path("missing"))

    def test_unknown_names(self):
        with pytest.raises(ValueError, match=r"'digit' \(did you mean digits\?\).*omniglot.*\.npz.*folder"):
            data.load("digit")
        with pytest.raises(ValueError, match="did you mean fashion_mnist"):
            data.load("fasion-mnist")
        with pytest.raises(ValueError, match="no data set ''"):
            data.load("")
        with pytest.raises(ValueError, match=r"Tensor, where a name or a path.*from_tensors"):
            data.load(torch.zeros(3, 2))


class TestMemoryMapped:
    @pytest.mark.parametrize("binarize", ["none", "threshold", "fixed", "dynamic"])
    @pytest.mark.parametrize(
        "array",
        [grey(40, 6, 5), grey(40, 6, 5, 3), np.random.default_rng(0).random((40, 7)), np.eye(40, dtype=bool)],
        ids=["uint8", "colour", "float64", "bool"],
    )
    def test_equals_in_memory(self, tmp_path, array, binarize):
        np.save(tmp_path / "a.npy", array)
        lazy, eager = (data.load(tmp_path / "a.npy", binarize=binarize, max_in_memory_gib=limit) for limit in (TINY, 1))
        assert lazy.x_shape == eager.x_shape
        for part in PARTS:
            mapped, tensor = getattr(lazy, part), getattr(eager, part)
            assert isinstance(mapped.x, LazyRows)
            assert mapped.x.shape == tuple(tensor.x.shape)
            order = torch.randperm(len(tensor))
            for (a,), (b,) in zip(
                data.Split(mapped.columns).batches(3, order=order),
                data.Split(tensor.columns).batches(3, order=order),
                strict=True,
            ):
                assert a.dtype == torch.float32
                assert torch.equal(a, b)
            assert torch.equal(mapped.head(2).x, tensor.head(2).x)
            assert isinstance(mapped.head(2).x, torch.Tensor)
            assert torch.equal(mapped.x[torch.tensor([1, 0])], tensor.x[[1, 0]])
        if binarize == "dynamic" and array.dtype != bool:
            assert not torch.equal(whole(lazy.train), whole(lazy.train))

    def test_only_above_the_limit(self, tmp_path):
        np.save(tmp_path / "a.npy", grey(100, 1024))  # 400 KiB as float32
        kib = 2.0**-20
        assert isinstance(data.load(tmp_path / "a.npy", max_in_memory_gib=401 * kib).train.x, torch.Tensor)
        assert isinstance(data.load(tmp_path / "a.npy", max_in_memory_gib=399 * kib).train.x, LazyRows)

    def test_batches_move(self, tmp_path):
        np.save(tmp_path / "a.npy", grey(20, 4))
        moved = data.load(tmp_path / "a.npy", max_in_memory_gib=TINY).to("meta")
        assert next(moved.train.batches(3))[0].device.type == "meta"

    def test_fingerprint_without_reading(self, tmp_path):
        path = tmp_path / "a.npy"
        np.save(path, grey(20, 4))
        os.utime(path, ns=(10**18, 10**18))
        marks = [data.load(path, max_in_memory_gib=TINY, seed=seed).fingerprint for seed in (0, 0, 1)]
        os.utime(path, ns=(10**18, 2 * 10**18))
        marks.append(data.load(path, max_in_memory_gib=TINY).fingerprint)
        marks.append(data.load(path, max_in_memory_gib=TINY, binarize="fixed").fingerprint)
        assert marks[0] == marks[1]
        assert len(set(marks)) == 4

    def test_values_are_checked_before_training(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([[0.0], [2.0], [1.0]]))
        with pytest.raises(ValueError, match=r"a.npy has values from 0 to 2"):
            data.load(tmp_path / "a.npy", max_in_memory_gib=TINY, binarize="fixed")


class TestFolders:
    def test_grey_and_colour(self, tmp_path):
        for name, pixels in (("grey", grey(12, 6, 5)), ("colour", grey(12, 6, 5, 3))):
            save_images(tmp_path / name, pixels)
            loaded = data.load(tmp_path / name, validation=0, test=0)
            assert loaded.name == name
            assert loaded.train.labels is None
            assert torch.equal(loaded.train.x, data.from_tensors(pixels, validation=0, test=0).train.x)

    def test_mixed_modes_become_colour(self, tmp_path):
        save_images(tmp_path, grey(4, 6, 5))
        save_images(tmp_path, grey(2, 6, 5, 3), ["x.bmp", "y.PNG"])
        save_images(tmp_path, grey(1, 6, 5, 4), ["z.png"])  # with transparency
        save_images(tmp_path, grey(1, 6, 5), ["w.gif"])  # with a palette
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / ".hidden.png").write_text("no image")
        loaded = data.load(tmp_path, validation=0, test=0)
        assert loaded.train.x.shape == (8, 3, 6, 5)
        assert torch.equal(loaded.train.x[0, 0], loaded.train.x[0, 2])

    def test_sixteen_bits_and_one(self, tmp_path):
        deep = np.array([[0, 256, 65535], [255, 32768, 4096]], dtype=np.uint16)
        Image.fromarray(deep).save(tmp_path / "a.png")
        Image.fromarray(deep > 255).save(tmp_path / "b.png")
        x = data.load(tmp_path, validation=0, test=0).train.x[:, 0] * 255
        assert x.round().tolist() == [[[0, 1, 255], [0, 128, 16]], [[0, 255, 255], [0, 255, 255]]]

    def test_palette_with_transparency_does_not_warn(self, tmp_path):
        image = Image.fromarray(grey(1, 6, 5)[0]).convert("P")
        image.save(tmp_path / "a.png", transparency=bytes(range(256)))
        image.save(tmp_path / "b.png", transparency=3)
        assert data.load(tmp_path, validation=0, test=1).x_shape == (3, 6, 5)

    def test_subfolders_are_labels(self, tmp_path):
        pixels = grey(9, 4, 4)
        names = [f"{'cba'[place % 3]}/deep/{place}.png" for place in range(9)]
        save_images(tmp_path, pixels, names)
        (tmp_path / "a" / "back").symlink_to(tmp_path)
        loaded = data.load(tmp_path, validation=0, test=0)
        assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert (loaded.train.x[0, 0].numpy() * 255).round().tolist() == pixels[2].tolist()
        save_images(tmp_path, grey(1, 4, 4), ["above.png"])
        assert data.load(tmp_path).train.labels is None

    @forks
    @pytest.mark.parametrize("binarize", ["none", "threshold", "fixed", "dynamic"])
    def test_lazy_equals_in_memory(self, tmp_path, binarize, monkeypatch):
        save_images(tmp_path, grey(30, 6, 5))
        eager = data.load(tmp_path, binarize=binarize)
        lazy = data.load(tmp_path, binarize=binarize, max_in_memory_gib=TINY)
        assert isinstance(lazy.train.x, LazyRows)
        monkeypatch.setattr(folders, "WORTH_WORKERS", 0)
        before = torch.get_rng_state()
        order = torch.randperm(len(eager.train), generator=torch.Generator().manual_seed(0))
        decoded = list(data.Split(lazy.train.columns).batches(7, order=order))  # by worker processes
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(torch.cat([x for (x,) in decoded]), eager.train.x[order])
        monkeypatch.undo()
        for part in PARTS:
            mine, theirs = getattr(lazy, part), getattr(eager, part)
            assert torch.equal(mine.head(3).x, theirs.head(3).x)
            torch.manual_seed(0)
            drawn = whole(mine)
            torch.manual_seed(0)
            assert torch.equal(drawn, whole(theirs))

    @forks
    def test_workers_in_use_end_with_the_loop(self, tmp_path, monkeypatch):
        save_images(tmp_path, grey(30, 6, 5))
        lazy = data.load(tmp_path, max_in_memory_gib=TINY, validation=0, test=0)
        monkeypatch.setattr(folders, "WORTH_WORKERS", 0)
        assert reading.cores() >= 1
        images, third = lazy.train.x.source, torch.tensor([3])
        assert torch.equal(pickle.loads(pickle.dumps(images))[third], images[third]), "workers may be spawned"
        for (x,) in lazy.train.batches(2):
            assert x.shape == (2, 1, 6, 5)
            break
        (tmp_path / "029.png").write_bytes((tmp_path / "029.png").read_bytes()[:60])
        with pytest.raises(OSError, match=r"^the image .*029.png cannot be read \([^\n]*replace or remove it$"):
            list(lazy.train.batches(4))

    def test_fingerprint_of_lazy_folders(self, tmp_path):
        save_images(tmp_path, grey(5, 6, 5))
        first = data.load(tmp_path, max_in_memory_gib=TINY).fingerprint
        assert first == data.load(tmp_path, max_in_memory_gib=TINY).fingerprint
        os.utime(tmp_path / "000.png", ns=(1, 1))
        assert first != data.load(tmp_path, max_in_memory_gib=TINY).fingerprint

    def test_no_images(self, tmp_path):
        with pytest.raises(ValueError, match=r"holds no images.*\.png"):
            data.load(tmp_path)

    @pytest.mark.parametrize("limit", [1, TINY])
    def test_odd_size(self, tmp_path, limit):
        save_images(tmp_path, grey(5, 6, 5))
        save_images(tmp_path, grey(1, 6, 4), ["0.png"])
        with pytest.raises(ValueError, match=r"0.png is 4x6 pixels, where 5x6 was expected"):
            data.load(tmp_path, max_in_memory_gib=limit)

    def test_unreadable(self, tmp_path):
        save_images(tmp_path, grey(5, 40, 40))
        whole_file = (tmp_path / "003.png").read_bytes()
        for broken in (b"", b"not an image", whole_file[:20], whole_file[:-500]):
            (tmp_path / "003.png").write_bytes(broken)
            with pytest.raises(OSError, match=r"003.png cannot be read"):
                data.load(tmp_path)


def fake(root: Path, kind: torchvision_sets.Kind, make, downloads: bool = True):
    """A stand-in for a class of torchvision: its files are empty, its arrays come from `make`."""

    class Fake:
        asked: list[dict] = []  # noqa: RUF012

        def __init__(self, root, download=False, **part):
            self.asked.append({"download": download, **part})
            folder = Path(root) / kind.folder
            if download:
                print("noise")
                print("100%|#####", file=sys.stderr)
                folder.mkdir(parents=True, exist_ok=True)
                for file in kind.files:
                    (folder / file).write_text("")
            assert all((folder / file).exists() for file in kind.files)
            trained = part.get("train", part.get("background", part.get("split") == "train"))
            vars(self).update(make(trained))

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return Image.fromarray(self.data[index]), self.targets[index]

    return Fake


def make_arrays(shape, key="targets", tensors=False):
    def make(train):
        n = 20 if train else 10
        x, y = grey(n, *shape, seed=int(train)), np.arange(n) % 10
        return {"data": torch.from_numpy(x), key: torch.from_numpy(y)} if tensors else {"data": x, key: y.tolist()}

    return make


class TestTorchvision:
    @pytest.mark.parametrize(
        ("name", "spelt", "shape", "key", "tensors"),
        [
            ("mnist", "MNIST", (28, 28), "targets", True),
            ("fashion_mnist", "FashionMNIST", (28, 28), "targets", True),
            ("kmnist", "k-mnist", (28, 28), "targets", True),
            ("usps", "USPS", (16, 16), "targets", False),
            ("cifar10", "CIFAR-10", (32, 32, 3), "targets", False),
            ("cifar100", "cifar_100", (32, 32, 3), "targets", False),
            ("svhn", "SVHN", (3, 32, 32), "labels", False),
            ("stl10", "STL10", (3, 96, 96), "labels", False),
        ],
    )
    def test_layouts(self, tmp_path, monkeypatch, capfd, name, spelt, shape, key, tensors):
        kind, make = torchvision_sets.KINDS[name], make_arrays(shape, key, tensors)
        stand_in = fake(tmp_path, kind, make)
        monkeypatch.setattr(f"torchvision.datasets.{kind.cls}", stand_in)
        loaded = data.load(spelt, root=tmp_path, validation=5)
        images = np.asarray(make(False)["data"], dtype=np.float32) / 255
        images = images.transpose(0, 3, 1, 2) if shape[-1] == 3 else images
        images = images if images.ndim == 4 else images[:, None]
        assert loaded.name == name
        assert torch.equal(loaded.test.x, torch.from_numpy(np.ascontiguousarray(images)))
        assert loaded.test.labels.tolist() == list(range(10))
        assert loaded.test.labels.dtype == torch.int64
        assert (len(loaded.train), len(loaded.validation)) == (15, 5)
        assert [asked["download"] for asked in stand_in.asked] == [True, True, False, False]
        assert capfd.readouterr() == ("", "")
        stand_in.asked.clear()
        data.load(name, root=tmp_path)
        assert [asked["download"] for asked in stand_in.asked] == [False, False], "the files are there now"
        assert all((tmp_path / kind.folder / file).exists() for file in kind.files)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no scratch folder left"
        with pytest.raises(ValueError, match="test set of its own"):
            data.load(name, root=tmp_path, test=0.1)

    def test_qmnist_keeps_the_class_of_its_labels(self, tmp_path, monkeypatch):
        def make(train):
            return {"data": torch.from_numpy(grey(9, 28, 28)), "targets": torch.arange(72).view(9, 8)}

        monkeypatch.setattr("torchvision.datasets.QMNIST", fake(tmp_path, torchvision_sets.KINDS["qmnist"], make))
        assert data.load("QMNIST", root=tmp_path).test.labels.tolist() == list(range(0, 72, 8))

    @pytest.mark.parametrize(("name", "split"), [("EMNIST", "balanced"), ("emnist-letters", "letters")])
    def test_emnist_is_put_upright(self, tmp_path, monkeypatch, name, split):
        kind, make = torchvision_sets.KINDS[f"emnist_{split}"], make_arrays((28, 28), tensors=True)
        stand_in = fake(tmp_path, kind, make)
        monkeypatch.setattr("torchvision.datasets.EMNIST", stand_in)
        loaded = data.load(name, root=tmp_path)
        assert {asked["split"] for asked in stand_in.asked} == {split}
        assert torch.equal(loaded.test.x[:, 0] * 255, make(False)["data"].float().transpose(1, 2))

    def test_omniglot_is_small_and_inverted(self, tmp_path, monkeypatch):
        def make(train):
            pixels = np.full((6, 105, 105), 255, dtype=np.uint8)
            pixels[:, :60] = 0  # ink at the top
            return {"data": pixels, "targets": [0, 0, 1, 1, 2, 2]}

        stand_in = fake(tmp_path, torchvision_sets.KINDS["omniglot"], make)
        monkeypatch.setattr("torchvision.datasets.Omniglot", stand_in)
        loaded = data.load("omniglot", root=tmp_path, validation=0)
        assert [asked["background"] for asked in stand_in.asked] == [True, False, True, False]
        assert loaded.x_shape == (1, 28, 28)
        assert (loaded.test.x[:, :, :15] == 1).all()
        assert (loaded.test.x[:, :, 17:] == 0).all()
        assert loaded.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert loaded.test.labels.tolist() == [3, 3, 4, 4, 5, 5], "other characters than the training ones"

    @pytest.mark.parametrize(
        "error",
        [
            urllib.error.URLError("no address"),
            RuntimeError("Error downloading a.gz:\nTried http://a, got:\n<urlopen error no address>\n"),
            ModuleNotFoundError("gdown, no address"),
        ],
    )
    @pytest.mark.parametrize("exists", [True, False])
    def test_failed_downloads_say_one_thing_and_leave_nothing(self, tmp_path, monkeypatch, capfd, error, exists):
        class Offline:
            def __init__(self, root, download=False, **part):
                (Path(root) / "half").mkdir(parents=True)
                (Path(root) / "half" / "written").write_text("")
                raise error

        root = tmp_path / "new" / "root"
        if exists:
            root.mkdir(parents=True)
        monkeypatch.setattr("torchvision.datasets.CIFAR10", Offline)
        with pytest.raises(ConnectionError, match="could not download cifar10") as caught:
            data.load("cifar10", root=root)
        message = str(caught.value)
        assert "\n" not in message
        assert "no address" in message
        assert f"under {root / 'cifar-10-batches-py'}" in message
        assert "data_batch_1" in message
        assert "root=" in message
        assert "digits needs no download" in message
        assert capfd.readouterr() == ("", "")
        assert list(tmp_path.rglob("*")) == ([tmp_path / "new", root] if exists else [])

    def test_torchvision_itself_offline(self, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise urllib.error.URLError("no address")

        monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
        with pytest.raises(ConnectionError, match=r"could not download mnist .*no address.*MNIST/raw"):
            data.load("mnist", root=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_written_where_the_root_is_read_only(self, tmp_path, monkeypatch):
        stand_in = fake(tmp_path, torchvision_sets.KINDS["usps"], make_arrays((16, 16)))
        monkeypatch.setattr("torchvision.datasets.USPS", stand_in)
        tmp_path.chmod(0o555)
        try:
            with pytest.raises(ConnectionError, match=r"usps \(PermissionError.*read-only"):
                data.load("usps", root=tmp_path)
        finally:
            tmp_path.chmod(0o755)
        assert list(tmp_path.iterdir()) == []

    def test_a_download_completes_what_is_there(self, tmp_path, monkeypatch):
        kind = torchvision_sets.KINDS["cifar100"]
        monkeypatch.setattr("torchvision.datasets.CIFAR100", fake(tmp_path, kind, make_arrays((32, 32, 3))))
        (tmp_path / kind.folder).mkdir()
        (tmp_path / kind.folder / "train").write_text("old")
        (tmp_path / kind.folder / "mine").write_text("kept")
        data.load("cifar100", root=tmp_path)
        assert sorted(path.name for path in (tmp_path / kind.folder).iterdir()) == ["meta", "mine", "test", "train"]

    def test_root_from_the_environment_and_by_default(self, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise urllib.error.URLError("no address")

        monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path / "here"))
        with pytest.raises(ConnectionError, match=f"under {tmp_path / 'here' / 'KMNIST'}"):
            data.load("kmnist")
        with pytest.raises(ConnectionError, match=f"under {tmp_path / 'there' / 'KMNIST'}"):
            data.load("kmnist", root=tmp_path / "there")
        monkeypatch.delenv("PPL_VAE_DATA")
        with pytest.raises(ConnectionError, match=f"under {tmp_path / 'home' / '.cache' / 'ppl_vae' / 'KMNIST'}"):
            data.load("kmnist")
        assert list((tmp_path / "home").iterdir()) == []


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files."""
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def packed_mnist(tmp_path) -> Path:
    """A small MNIST as .gz files."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 8)):
        for kind, array in (("images-idx3", grey(n, 28, 28)), ("labels-idx1", np.arange(n, dtype=np.uint8))):
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


class TestMNISTFiles:
    def test_unpacked_in_place(self, packed_mnist):
        loaded = data.load("mnist", root=packed_mnist, validation=0)
        assert torch.equal(loaded.train.x * 255, torch.from_numpy(grey(20, 28, 28))[:, None].float())
        assert loaded.train.labels.tolist() == list(range(20))
        assert torch.equal(loaded.test.x * 255, torch.from_numpy(grey(8, 28, 28))[:, None].float())
        folder = packed_mnist / "MNIST" / "raw"
        assert sorted(path.name for path in folder.iterdir() if path.suffix != ".gz") == sorted(torchvision_sets.IDX)
        for archive in folder.glob("*.gz"):
            archive.unlink()
        assert data.load("mnist", root=packed_mnist, validation=0).fingerprint == loaded.fingerprint

    def test_a_read_only_folder_is_left_alone(self, packed_mnist):
        folder = packed_mnist / "MNIST" / "raw"
        labels = folder / "t10k-labels-idx1-ubyte"
        labels.write_bytes(gzip.decompress((folder / f"{labels.name}.gz").read_bytes()))
        before = sorted(folder.iterdir())
        folder.chmod(0o555)
        try:
            loaded = data.load("mnist", root=packed_mnist)
        finally:
            folder.chmod(0o755)
        assert len(loaded.test) == 8
        assert sorted(folder.iterdir()) == before

    def test_broken_archives_and_files(self, packed_mnist):
        folder = packed_mnist / "MNIST" / "raw"
        archive = folder / "train-images-idx3-ubyte.gz"
        good = archive.read_bytes()
        for bad in (good[:500], b"not gzip at all"):
            archive.write_bytes(bad)
            with pytest.raises(OSError, match=r"train-images-idx3-ubyte.gz is not a whole gzip file"):
                data.load("mnist", root=packed_mnist)
            assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        archive.write_bytes(good)
        data.load("mnist", root=packed_mnist)
        images = folder / "train-images-idx3-ubyte"
        for bad in (images.read_bytes()[:1000], b""):
            images.write_bytes(bad)
            with pytest.raises(OSError, match=r"files of mnist under .*raw cannot be read.*remove them") as caught:
                data.load("mnist", root=packed_mnist)
            assert "\n" not in str(caught.value)

    def test_an_archive_is_unpacked_up_to_the_size_that_its_header_states(self, packed_mnist):
        folder = packed_mnist / "MNIST" / "raw"
        archive = folder / "train-images-idx3-ubyte.gz"
        content = gzip.decompress(archive.read_bytes())
        for bad, message in (
            (content + bytes(50_000_000), f"holds more than the {len(content)} bytes that its header states"),
            (b"\x01" + content[1:], "holds no idx file"),
            (content[:2] + b"\x77" + content[3:], "holds no idx file"),
            (b"", "holds no idx file"),
        ):
            archive.write_bytes(gzip.compress(bad))
            with pytest.raises(OSError, match=message):
                data.load("mnist", root=packed_mnist)
            assert not [path for path in folder.iterdir() if path.suffix != ".gz"]

    @pytest.mark.data
    def test_the_real_one(self, real_data):
        before = sorted((real_data / "MNIST" / "raw").iterdir())
        mnist = data.load("MNIST", root=real_data)
        assert (mnist.name, mnist.x_shape, mnist.binarize) == ("mnist", (1, 28, 28), "none")
        assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (54000, 6000, 10000)
        assert mnist.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        assert torch.bincount(torch.cat([mnist.train.labels, mnist.validation.labels])).tolist() == [
            5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
        ]  # fmt: skip
        for part in PARTS:
            x = getattr(mnist, part).x
            assert x.dtype == torch.float32
            assert (x.min(), x.max()) == (0, 1)
        # torchvision's well-known mean; the rebuilt training file lacks one grey level of 255 (shared/data/README)
        everything = torch.cat([mnist.train.x, mnist.validation.x])
        assert everything.mean().item() == pytest.approx(0.1307, abs=1e-4)
        grey_share = ((mnist.test.x > 0) & (mnist.test.x < 1)).float().mean().item()
        assert grey_share == pytest.approx(0.186, abs=5e-4)  # shared/FACTS.md
        assert sorted((real_data / "MNIST" / "raw").iterdir()) == before

    @pytest.mark.data
    def test_frey_faces(self, real_data):
        faces = data.load(real_data / "freyfaces" / "freyfaces.npz", validation=0, test=0)
        assert faces.train.x.shape == (1965, 1, 28, 20)
        assert (faces.train.x * 255).round().aminmax() == (8, 238)


class TestFilesThatChangeInUse:
    def test_a_mapped_file_that_is_cut_off_is_noticed_and_kills_nobody(self, tmp_path):
        np.save(tmp_path / "a.npy", grey(1000, 28, 28))
        train = data.load(tmp_path / "a.npy", max_in_memory_gib=TINY).train
        batches = train.batches(10)  # of which a few are read ahead
        next(batches)
        with (tmp_path / "a.npy").open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(OSError, match=r"a\.npy has changed while it was in use"):
            list(batches)

    def test_an_image_that_is_replaced_or_gone_is_noticed(self, tmp_path):
        for i in range(4):
            Image.fromarray(grey(8, 8, 8)[i]).save(tmp_path / f"{i}.png")
        train = data.load(tmp_path, max_in_memory_gib=TINY, validation=0, test=0).train
        Image.fromarray(grey(8, 9, 9)[0]).save(tmp_path / "2.png")
        with pytest.raises(OSError, match=r"2\.png has changed while it was in use"):
            list(train.batches(4))
        (tmp_path / "2.png").unlink()
        with pytest.raises(OSError, match=r"2\.png cannot be read"):
            list(train.batches(4))

    def test_an_archive_that_claims_more_than_memory_holds_is_not_unpacked(self, tmp_path, monkeypatch):
        np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 1000)))
        monkeypatch.setattr("ppl_vae._machine.memory", lambda: 2.0**20)
        with pytest.raises(ValueError, match=r"the arrays of a\.npz need .* of memory and more"):
            data.load(tmp_path / "a.npz")
