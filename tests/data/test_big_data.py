"""Data that do not fit: looked at once, read ahead in bounds, the same by any number of workers, with clean ends."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import constraints
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset

import ppl_vae
from ppl_vae import VAE, data, likelihoods, networks, posteriors, priors
from ppl_vae.data import held, reading
from ppl_vae.data.files import MappedArray
from ppl_vae.data.reading import ahead
from ppl_vae.data.survey import Values, survey, values_of

# os.fork warns of the threads that torch has from Python 3.12 on; the workers only read items.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

GREY = np.random.default_rng(0).random((90, 6), dtype=np.float32)


def make_vae(size: int = 6, likelihood=likelihoods.ContinuousBernoulli, **options) -> VAE:
    torch.manual_seed(0)
    mlp = networks.MLP([8])
    return VAE(
        (size,) if isinstance(size, int) else size,
        prior=priors.StandardNormal(2),
        likelihood=likelihood(mlp, **options),
        posterior=posteriors.DiagonalNormal(mlp),
    )


def fitted(given, vae: VAE | None = None, **options) -> torch.Tensor:
    vae = vae or make_vae()
    settings = {"epochs": 2, "batch_size": 16, "seed": 3, "compile": "off", "device": "cpu", **options}
    ppl_vae.fit(vae, given, **settings)
    return torch.cat([p.flatten() for p in vae.parameters()])


class Counted:
    """Counts the rows that are read from files."""

    def __init__(self, monkeypatch) -> None:
        self.rows, read = 0, MappedArray._read

        def counting(array, file, rows):
            self.rows += len(rows)
            return read(array, file, rows)

        monkeypatch.setattr(MappedArray, "_read", counting)

    def taken(self) -> int:
        rows, self.rows = self.rows, 0
        return rows


def on_disk(path, array, **options) -> data.Dataset:
    np.save(path, array)
    return data.load(path, max_in_memory_gib=0, **options)


_EARLIER: set[str] = set()  # processes that other tests have left, as joblib keeps its workers


def children() -> set[str]:
    """The processes that this one has started in this test and that run."""
    found = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True)
    return {line for line in found.stdout.splitlines() if "python" in line} - _EARLIER


@pytest.fixture(autouse=True)
def _earlier() -> None:
    _EARLIER.clear()
    _EARLIER.update(children())


class TestLookedAtOnce:
    @pytest.mark.parametrize("likelihood", [likelihoods.ContinuousBernoulli, likelihoods.Normal])
    def test_floats_are_read_once_by_loading_and_once_an_epoch_by_fit(self, tmp_path, monkeypatch, likelihood):
        counted = Counted(monkeypatch)
        found = on_disk(tmp_path / "a.npy", GREY, validation=10, test=10)
        assert counted.taken() == 1 * len(GREY)
        assert (
            found.fingerprint == data.load(tmp_path / "a.npy", max_in_memory_gib=0, validation=10, test=10).fingerprint
        )
        assert counted.taken() == len(GREY)  # of the second load; the fingerprints read nothing
        for _ in range(2):
            fitted(found, make_vae(likelihood=likelihood))
            assert counted.taken() == 16 + 2 * (70 + 10)  # the first batch is rehearsed; two epochs, each validated

    def test_pixels_are_read_until_one_is_grey_or_once(self, tmp_path, monkeypatch):
        counted = Counted(monkeypatch)
        pixels = (GREY * 255).astype(np.uint8)
        found = on_disk(tmp_path / "a.npy", pixels, validation=10, test=10)
        assert found.fingerprint
        assert counted.taken() == 0
        for first in (len(pixels), 0):
            fitted(found, epochs=1)
            assert counted.taken() == first + 16 + 80
        black = on_disk(tmp_path / "b.npy", (pixels > 99).astype(np.uint8) * 255, validation=0, test=0)
        for first in (len(pixels), 0):
            fitted(black, make_vae(likelihood=likelihoods.Bernoulli), epochs=1)
            assert counted.taken() == first + 16 + 90

    def test_a_large_file_of_pixels_is_looked_at_in_part(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ppl_vae.data.arrays.BLOCK", 60)
        monkeypatch.setattr(reading, "MOST", 1)
        counted = Counted(monkeypatch)
        found = on_disk(tmp_path / "a.npy", (GREY * 255).astype(np.uint8), validation=0, test=0)
        assert survey(found.train.x.source).grey
        assert counted.taken() <= 30  # a block of ten rows, and what was read ahead

    def test_levels_are_held_in_the_same_pass(self, tmp_path, monkeypatch):
        counted = Counted(monkeypatch)
        found = on_disk(tmp_path / "a.npy", np.rint(GREY * 255) / 255, validation=0, test=0, dequantize=True)
        assert counted.taken() == len(GREY)
        fitted(found, make_vae(likelihood=likelihoods.Beta), epochs=1)  # (0, 1) without its ends holds what is drawn
        assert counted.taken() == 16 + 90

    def test_a_source_of_the_users_own_is_read_once(self):
        class Own:
            shape, read = (90, 6), 0

            def __len__(self):
                return 90

            def __getitem__(self, index):
                self.read += len(index)
                return torch.from_numpy(GREY)[index]

        own = Own()
        for first in (90, 0):
            fitted(data.Split((own,)), epochs=1)
            assert own.read == first + 16 + 90
            own.read = 0

    def test_what_is_outside_the_support_is_refused_as_in_memory(self, tmp_path):
        grey = on_disk(tmp_path / "a.npy", GREY)
        for given in (grey, torch.from_numpy(GREY)):
            with pytest.raises(ValueError, match="outside the support of Bernoulli"):
                fitted(given, make_vae(likelihood=likelihoods.Bernoulli))
        bits = on_disk(tmp_path / "b.npy", (GREY > 0.5).astype(np.float32))
        assert "0/1 data under a" in make_vae(likelihood=likelihoods.Normal).check_support(bits)
        vae = make_vae(likelihood=likelihoods.Bernoulli, allow_grey=True)
        assert vae.check_support(grey) == "grey values under a Bernoulli: the value is not a likelihood"

    @pytest.mark.parametrize("row", [0, 44, 89])
    def test_nan_in_the_midst_is_found_by_its_row(self, tmp_path, monkeypatch, row):
        monkeypatch.setattr("ppl_vae.data.arrays.BLOCK", 60)
        broken = GREY.copy()
        broken[row, 3] = np.nan
        with pytest.raises(ValueError, match=f"a.npy holds 1 NaN or infinite value, first in row {row}:"):
            on_disk(tmp_path / "a.npy", broken)


SUPPORTS = [
    constraints.boolean,
    constraints.real,
    constraints.unit_interval,
    constraints.positive,
    constraints.nonnegative,
    constraints.nonnegative_integer,
    constraints.positive_integer,
    constraints.integer_interval(0, 4),
    constraints.interval(-1.0, 0.5),
    constraints.less_than(0.7),
    likelihoods.beta._OpenUnitInterval(),
    constraints.simplex,
    ppl_vae.distributions.grid.Grid(256),
]
ARRAYS = {
    "bits": GREY.round(),
    "zeros": np.zeros((9, 6), np.float32),
    "grey": GREY,
    "counts": np.floor(GREY * 6),
    "signed": 3 * GREY - 1,
    "pixels": (GREY * 255).astype(np.uint8),
    "black": (GREY.round() * 255).astype(np.uint8),
    "near": np.float32(0.25) + GREY / 8,
}


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_sure_of_a_support_only_where_all_values_lie_in_it(tmp_path, support, array):
    """The oracle is the look at every value; nothing is sure of a simplex."""
    split = on_disk(tmp_path / "a.npy", ARRAYS[array], validation=0, test=0).train
    wrapped = constraints.independent(support, 1 - support.event_dim)
    inside = bool(wrapped.check(split.head(90).x).all())
    known = values_of(split, wrapped)
    assert (known is None) == (support.event_dim > 0)
    if known is not None:
        sure = known.surely_in(wrapped, torch.zeros(1, 6))
        exact = array in ("bits", "black", "counts") or not getattr(support, "is_discrete", False)
        assert sure == inside if exact or "pixels" in array else sure <= inside


def test_a_source_with_nan_is_sure_of_nothing():
    assert not Values(0.0, 1.0, broken=1).surely_in(constraints.real, torch.zeros(1, 2))


class TestReadAhead:
    @pytest.mark.parametrize(("row_bytes", "most"), [(4, reading.MOST), (reading.AHEAD // 8, 2), (reading.AHEAD, 1)])
    def test_bounded_in_number_and_bytes(self, row_bytes, most):
        started, widest = 0, 0

        def read(piece):
            nonlocal started
            started += 1
            return piece

        pieces = torch.arange(400).split(4)
        for done, piece in enumerate(ahead(read, pieces, row_bytes)):
            assert piece.tolist() == pieces[done].tolist()
            time.sleep(0.0005)
            widest = max(widest, started - done - 1)
        assert started == 100
        assert 0 < widest <= most

    def test_an_end_in_the_midst_ends_the_thread_and_an_error_comes_in_its_turn(self):
        def read(piece):
            if int(piece) == 5:
                raise OSError("the fifth")
            return piece

        before = threading.active_count()
        pieces = torch.arange(50).split(1)
        for piece in ahead(read, pieces, 4):
            if int(piece) == 2:
                break
        assert threading.active_count() == before
        seen = []
        with pytest.raises(OSError, match="the fifth"):
            seen.extend(ahead(read, pieces, 4))
        assert threading.active_count() == before
        assert list(ahead(read, (), 4)) == []

    def test_rows_in_any_order_also_twice(self, tmp_path):
        source = on_disk(tmp_path / "a.npy", GREY, validation=0, test=0).train.x.source
        for index in ([5, 4, 4, 89, 0, 1, 2, 5], [], [7], list(range(90))):
            found = source[torch.tensor(index, dtype=torch.int64)]
            assert torch.equal(found, torch.from_numpy(GREY)[index])

    @pytest.mark.parametrize(
        "array",
        [
            GREY,
            GREY.astype(np.float64),
            GREY.astype(">f4"),
            np.asfortranarray(GREY),
            GREY > 0.5,
            (GREY * 255).astype(np.uint8),
            GREY.reshape(90, 2, 3),
            np.floor(GREY * 2).astype(np.int64),
        ],
        ids=["float32", "float64", "big-endian", "fortran", "bool", "uint8", "images", "int64"],
    )
    def test_training_is_that_in_memory_bit_for_bit(self, tmp_path, array):
        np.save(tmp_path / "a.npy", array)
        trained = []
        for limit in (0, 1):
            found = data.load(tmp_path / "a.npy", max_in_memory_gib=limit, validation=10, test=10)
            trained.append(fitted(found, make_vae(found.x_shape if len(found.x_shape) > 1 else 6)))
        assert torch.equal(*trained)

    def test_fewer_rows_than_a_batch(self, tmp_path):
        few = on_disk(tmp_path / "a.npy", GREY[:5], validation=0, test=0)
        with pytest.warns(UserWarning, match="lowered from 16 to the 5"):
            first = fitted(few)
        assert torch.equal(first, fitted(torch.from_numpy(GREY[:5]), batch_size=5))

    def test_a_file_that_changes_goes_or_shrinks_is_refused(self, tmp_path):
        path = tmp_path / "a.npy"

        def cut():
            with path.open("r+b") as file:
                file.truncate(1000)

        for harm in (path.unlink, cut, lambda: os.utime(path, ns=(1, 1)), lambda: np.save(path, GREY[:7])):
            train = on_disk(path, GREY, validation=0, test=0).train
            harm()
            with pytest.raises(OSError, match=r"a\.npy has changed while it was in use"):
                list(train.batches(10))

    def test_another_working_directory_changes_nothing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        np.save("a.npy", GREY)
        Path("images").mkdir()
        for row in range(10):
            Image.fromarray(np.full((2, 3), row, np.uint8)).save(f"images/{row}.png")
        some = [data.load(name, max_in_memory_gib=0, validation=0, test=0).train for name in ("a.npy", "images")]
        monkeypatch.chdir("/")
        assert [len(next(train.batches(5))[0]) for train in some] == [5, 5]

    def test_a_pickle_holds_no_rows_and_knows_what_was_found(self, tmp_path, monkeypatch):
        source = on_disk(tmp_path / "a.npy", GREY, validation=0, test=0).train.x.source
        text = pickle.dumps(source)
        assert len(text) < 1000 < GREY.nbytes
        counted = Counted(monkeypatch)
        again = pickle.loads(text)
        assert survey(again) == survey(source)
        assert counted.taken() == 0
        assert torch.equal(again[torch.tensor([3])], torch.from_numpy(GREY[3:4]))


class TestMaps:
    """`np.memmap` objects, as people hold them."""

    def test_a_large_map_is_read_by_batches_and_trains_alike(self, tmp_path, monkeypatch):
        np.save(tmp_path / "a.npy", GREY)
        GREY.tofile(tmp_path / "raw.bin")
        maps = [
            np.load(tmp_path / "a.npy", mmap_mode="r"),
            np.load(tmp_path / "a.npy", mmap_mode="r")[7:80],
            np.memmap(tmp_path / "raw.bin", np.float32, "r", offset=24, shape=(80, 6)),
        ]
        for held_map in maps:
            assert isinstance(data.as_split(held_map).x, torch.Tensor)  # small
            expected = fitted(np.array(held_map))
            with monkeypatch.context() as patch:
                patch.setattr(held, "memory", lambda: 0.0)
                split = data.as_split(held_map)
                assert isinstance(split.x, MappedArray)
                assert torch.equal(fitted(held_map), expected)
            assert torch.equal(split.head(5).x, torch.from_numpy(np.array(held_map[:5])))

    def test_two_parts_of_a_map_are_two_data_sets(self, tmp_path, monkeypatch):
        monkeypatch.setattr(held, "memory", lambda: 0.0)
        np.save(tmp_path / "a.npy", GREY)
        whole = np.load(tmp_path / "a.npy", mmap_mode="r")
        half = len(whole) // 2

        def fingerprint(array):
            split = data.as_split(array)
            return data.Dataset("map", split, split.head(0), split.head(0)).fingerprint

        assert len({fingerprint(part) for part in (whole, whole[:half], whole[half : 2 * half], whole[1:])}) == 4
        assert fingerprint(whole[:half]) == fingerprint(np.load(tmp_path / "a.npy", mmap_mode="r")[:half])

    def test_the_first_rows_of_a_large_map_are_compared(self, tmp_path, monkeypatch):
        monkeypatch.setattr(held, "memory", lambda: 0.0)
        np.save(tmp_path / "a.npy", GREY)
        large = np.load(tmp_path / "a.npy", mmap_mode="r")
        few = {
            "objectives": ["ELBO"],
            "particles": 1,
            "replicates": 20,
            "size": 30,
            "minibatch": False,
            "log_evidence": 0.0,
        }
        vae = make_vae()
        found = [ppl_vae.compare(vae, x, **few).rows[0].value for x in (large, torch.from_numpy(GREY[:30]))]
        assert found[0] == found[1]

    def test_changes_that_the_file_does_not_have_stay_in_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(held, "memory", lambda: 0.0)
        np.save(tmp_path / "a.npy", GREY)
        private = np.load(tmp_path / "a.npy", mmap_mode="c")
        private[0] = 9.0
        for array in (private, private.T[::2].T, np.load(tmp_path / "a.npy", mmap_mode="r")[::2]):
            split = data.as_split(array)
            assert isinstance(split.x, torch.Tensor)
            assert torch.equal(split.x, torch.from_numpy(np.array(array)))
        shared = np.load(tmp_path / "a.npy", mmap_mode="r+")
        shared[0] = 9.0
        assert data.as_split(shared).head(1).x[0, 0] == 9.0

    def test_what_is_wrong_in_it_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(held, "memory", lambda: 0.0)
        broken = GREY.copy()
        broken[50, 0] = np.nan
        np.save(tmp_path / "a.npy", broken)
        for likelihood in (likelihoods.Normal, likelihoods.ContinuousBernoulli):
            with pytest.raises(ValueError, match="missing values"):
                fitted(np.load(tmp_path / "a.npy", mmap_mode="r"), make_vae(likelihood=likelihood))
        np.save(tmp_path / "a.npy", (GREY * 255).astype(np.uint8))
        with pytest.raises(ValueError, match="pixels or counts"):
            data.as_split(np.load(tmp_path / "a.npy", mmap_mode="r"))


class Items(TorchDataset):
    """Rows with noise from the three global generators; one may fail, end its process, or have another shape."""

    def __init__(self, noise: float = 0.0, bad: int = -1, harm: str = "raise") -> None:
        self.noise, self.bad, self.harm = noise, bad, harm

    def __len__(self) -> int:
        return len(GREY)

    def __getitem__(self, row: int) -> torch.Tensor:
        if row == self.bad and self.harm == "raise":
            raise KeyError("no such row")
        if row == self.bad and self.harm == "end":
            os.kill(os.getpid(), signal.SIGKILL)
        drawn = float(torch.rand(())) + np.random.rand() + random.random() if self.noise else 0.0
        x = torch.from_numpy(GREY[row]) * (1 - self.noise / 3 * drawn)
        return x[:3] if row == self.bad and self.harm == "shape" else x


class TestWorkers:
    @pytest.mark.parametrize(("row_bytes", "ahead"), [(4, 2), (reading.AHEAD, 1)])
    def test_as_many_as_asked_each_with_a_batch_or_two(self, monkeypatch, row_bytes, ahead):
        asked = []
        monkeypatch.setattr(reading, "DataLoader", lambda *_, **options: asked.append(options) or [])
        list(reading.by_workers([], torch.arange(8).split(2), list, 4, row_bytes))
        assert [(options["num_workers"], options["prefetch_factor"]) for options in asked] == [(4, ahead)]

    def test_items_train_as_rows_in_memory_whoever_reads_them(self):
        expected = fitted(torch.from_numpy(GREY))
        for workers in (None, 0, 2):
            assert torch.equal(fitted(data.as_split(Items(), workers=workers)), expected), workers
        assert not children()

    @pytest.mark.parametrize("kind", [lambda items: items, lambda items: Subset(items, range(80))])
    def test_what_items_draw_is_the_same_for_any_number_of_workers(self, kind):
        given = [data.as_split(kind(Items(noise=0.5)), workers=workers) for workers in (0, 1, 2)]
        trained = [fitted(split) for split in given]
        assert all(torch.equal(trained[0], other) for other in trained[1:])
        assert not torch.equal(trained[0], fitted(given[0], seed=4))
        states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        passes = [torch.cat([x for (x,) in split.batches(16)]) for split in given]
        assert all(torch.equal(passes[0], other) for other in passes[1:])
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())

    def test_draws_are_fresh_in_each_epoch_and_for_each_item(self):
        seen: list[torch.Tensor] = []

        class Kept(TorchDataset):
            def __len__(self):
                return 20

            def __getitem__(self, row):
                seen.append(torch.rand(()))
                return torch.from_numpy(GREY[row])

        fitted(data.as_split(Kept(), workers=0), batch_size=10, epochs=3)
        drawn = torch.stack(seen[-60:])
        assert len(drawn.unique()) == 60

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_run_that_is_resumed_in_mid_epoch_reads_the_same(self, workers):
        split = data.as_split(Items(noise=0.5), workers=workers)
        whole = make_vae()
        fitted(split, whole)
        calls = iter(range(7))  # an epoch has six steps
        options = {"epochs": 2, "batch_size": 16, "compile": "off", "device": "cpu"}
        run = ppl_vae.fit(make_vae(), split, seed=3, stop=lambda: next(calls, None) is None, **options)
        assert run.stopped == "interrupted"
        vae = make_vae()
        ppl_vae.fit(vae, split, resume=run.state(), **options)
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), vae.parameters(), strict=True))
        assert not children()

    @pytest.mark.ci
    @pytest.mark.parametrize("workers", [None, 0, 2])
    def test_an_item_that_fails_is_named(self, workers):
        with pytest.raises(
            RuntimeError, match=r"^item 40 of the Items cannot be read \(KeyError: 'no such row'\): mend"
        ) as e:
            fitted(data.as_split(Items(bad=40), workers=workers))
        assert "in __getitem__" in "".join(e.value.__notes__)
        with pytest.raises(ValueError, match=r"make no batch, being of shape .* or of shape .*: make all alike$"):
            fitted(data.as_split(Items(bad=40, harm="shape"), workers=workers))
        with pytest.raises(
            RuntimeError, match=r"^one of the items \[.*\b40\b.*\] of the Subset cannot be read \(KeyError"
        ):
            fitted(data.as_split(Subset(Items(bad=40), range(90)), workers=workers))
        assert not children()

    @pytest.mark.ci
    def test_a_worker_that_is_killed_ends_the_run_in_one_sentence(self):
        """In a process of its own: torch raises at the end of a worker wherever Python is, in the test's runner too."""
        sentence = re.compile(r"(a worker process that reads the data has ended|DataLoader worker)[^\n]*")

        def end(act: Callable[[data.Split], object], workers: int) -> None:
            torch.set_num_threads(1)  # the threads of the parent do not come along
            try:
                act(data.as_split(Items(bad=40, harm="end"), workers=workers))
            except RuntimeError as error:
                os._exit(0 if sentence.fullmatch(str(error)) else 3)
            os._exit(4)

        for act, workers in ((fitted, 2), (lambda split: list(split.batches(10)), 1)):
            process = multiprocessing.get_context("fork").Process(target=end, args=(act, workers))
            process.start()
            process.join(30)
            assert process.exitcode == 0

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    def test_an_interrupted_run_leaves_no_process(self, error):
        def stop():
            raise error

        with pytest.raises(error):
            fitted(data.as_split(Items(), workers=2), stop=stop)
        assert not children()

    def test_a_daemon_reads_by_itself(self):
        context = multiprocessing.get_context("fork")
        process = context.Process(target=lambda: list(data.as_split(Items(), workers=2).batches(30)), daemon=True)
        process.start()
        process.join(60)
        assert process.exitcode == 0

    def test_images_have_the_same_workers(self, tmp_path):
        for row, x in enumerate((GREY * 255).astype(np.uint8)[:40]):
            Image.fromarray(x.reshape(2, 3)).save(tmp_path / f"{row:02d}.png")
        trained = []
        for options in ({}, *({"max_in_memory_gib": 0, "workers": workers} for workers in (0, 1, 2, None))):
            found = data.load(tmp_path, validation=4, test=0, **options)
            trained.append(fitted(found, make_vae((1, 2, 3))))
        assert all(torch.equal(trained[0], other) for other in trained[1:])
        assert len({data.load(tmp_path, max_in_memory_gib=0, workers=w).fingerprint for w in (0, 1)}) == 1
        assert not children()

    def test_where_there_are_no_items_workers_are_refused(self):
        with pytest.raises(ValueError, match="workers was given beside data that are no torch Dataset"):
            data.as_split(GREY, workers=2)
        with pytest.raises(ValueError, match="workers was given, and digits is no folder of images"):
            data.load("digits", workers=2)
        for workers in (-1, 1.5, True):
            with pytest.raises(ValueError, match="workers is"):
                data.as_split(Items(), workers=workers)


SPAWNED = """
import multiprocessing, torch
from test_big_data import Items, fitted
from ppl_vae import data
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    trained = [fitted(data.as_split(Items(noise=0.5), workers=workers), epochs=1) for workers in (0, 2)]
    assert torch.equal(*trained)
"""

LARGE = """
import resource, sys, threading, time
from pathlib import Path
import numpy as np, torch
from test_big_data import fitted, make_vae
from ppl_vae import data
def resident():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")]
fitted(torch.rand(2000, 784), make_vae(784), batch_size=512)
before = resident()
peak = list(before)
def look():
    while True:
        peak[:] = map(max, peak, resident())
        time.sleep(0.02)
threading.Thread(target=look, daemon=True).start()
found = data.load(sys.argv[1], max_in_memory_gib=0)
fitted(found, make_vae(784), batch_size=512, epochs=1)
print(*(after - at for after, at in zip(peak, before)))
"""


def run_script(text: str, folder, *given: str) -> str:
    (folder / "script.py").write_text(text)
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    command = [sys.executable, str(folder / "script.py"), *given]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_workers_that_are_spawned(tmp_path):
    run_script(SPAWNED, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell resident memory so")
def test_an_epoch_over_a_gigabyte_takes_a_fifth_of_it(tmp_path):
    rows = 320_000
    array = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=(rows, 784))
    for first in range(0, rows, 10_000):
        array[first : first + 10_000] = np.random.default_rng(first).random((10_000, 784), dtype=np.float32)
    array.flush()
    assert array.nbytes > 1e9
    own, files = map(float, run_script(LARGE, tmp_path, str(tmp_path / "a.npy")).split())  # MiB above the model's
    assert own < 200
    assert files < 20  # a map of the file would hold a thousand
