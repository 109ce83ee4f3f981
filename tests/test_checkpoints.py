"""Checkpoints: whole or not at all, without executing code, and refused where they do not fit."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from ppl_vae import checkpoints


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {"epoch": 3, "modules": [{"w": torch.randn(3)}], "rng": torch.get_rng_state(), "history": [{"loss": 1.5}]}
    loaded = checkpoints.load(checkpoints.save(state, tmp_path / "checkpoint.pt"))
    assert torch.equal(loaded["modules"][0]["w"], state["modules"][0]["w"])
    assert loaded["history"] == state["history"]
    assert loaded["format"] == checkpoints.FORMAT
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_folder_means_the_checkpoint_in_it(tmp_path):
    checkpoints.save({"epoch": 1}, tmp_path / "checkpoint.pt")
    assert checkpoints.load(tmp_path)["epoch"] == 1


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = checkpoints.save({"epoch": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoints.save({"epoch": lambda: 2}, path)
    assert checkpoints.load(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoints.load(tmp_path / "none.pt")


def test_a_truncated_file(tmp_path):
    path = checkpoints.save({"w": torch.randn(1000)}, tmp_path / "checkpoint.pt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged or is no checkpoint"):
        checkpoints.load(path)


def test_no_flipped_bit_is_accepted(tmp_path):
    path = checkpoints.save({"w": torch.randn(7), "epoch": 3, "name": "a"}, tmp_path / "checkpoint.pt")
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged"):
            checkpoints.load(path)


def test_torch_reads_the_file_too(tmp_path):
    path = checkpoints.save({"w": torch.ones(3)}, tmp_path / "checkpoint.pt")
    assert torch.load(path, weights_only=True)["w"].sum() == 3


def test_a_file_of_the_first_format_is_read_and_its_content_is_checked(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": "ppl_vae checkpoint 1", "w": torch.arange(1000.0)}, path)
    content = path.read_bytes()
    assert torch.equal(checkpoints.load(path)["w"], torch.arange(1000.0))
    place = content.index(torch.arange(1000.0).numpy().tobytes())
    for offset in range(0, 4000, 37):
        damaged = bytearray(content)
        damaged[place + offset] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or is no checkpoint"):
            checkpoints.load(path)


def test_an_archive_that_unpacks_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(ValueError, match="damaged or is no checkpoint"):
        checkpoints.load(tmp_path)


def test_code_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "evil"), "w"))

    checkpoints.save({"x": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoints.load(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_another_files_format(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"is no checkpoint of ppl_vae; expected a file of a run or of VAE\.save"):
        checkpoints.load(tmp_path)


def test_another_models_state_is_refused():
    with pytest.raises(ValueError, match="another model: its model lacks 'bias', which this run has"):
        checkpoints.load_module(nn.Linear(2, 3), nn.Linear(2, 3, bias=False).state_dict())
    with pytest.raises(ValueError, match="another model: its model has 'bias', which this run lacks"):
        checkpoints.load_module(nn.Linear(2, 3, bias=False), nn.Linear(2, 3).state_dict())
    with pytest.raises(ValueError, match=r"'weight'\] is a tensor of shape \(4, 2\).*expected.*\(3, 2\)"):
        checkpoints.load_module(nn.Linear(2, 3), nn.Linear(2, 4).state_dict())
    with pytest.raises(ValueError, match=r"'weight'\] is.*float64; expected.*float32"):
        checkpoints.load_module(nn.Linear(2, 3), nn.Linear(2, 3).double().state_dict())
    with pytest.raises(ValueError, match="its model is a list"):
        checkpoints.load_module(nn.Linear(2, 3), [1])
