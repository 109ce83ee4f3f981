"""Folders of images of mixed sizes, their splits and labels; sparse matrices in files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse

from ppl_vae import data


def picture(path, width: int, height: int, colour=(255, 0, 0), mode: str = "RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (width, height), (0, 0, 255))
    image.paste(colour, (width // 4, 0, width - width // 4, height))  # a column in the middle, blue at the sides
    image.convert(mode).save(path, **options)


def rows(folder, **options) -> torch.Tensor:
    return data.load(folder, test=0, validation=0, **options).train.x


def test_mixed_sizes_become_squares_from_the_centre_or_exact(tmp_path):
    picture(tmp_path / "a.png", 40, 20)
    picture(tmp_path / "b.png", 20, 60)
    with pytest.raises(ValueError, match=r"resize=20 \(--data\.resize 20\)"):
        data.load(tmp_path)
    x = rows(tmp_path, resize=10)
    assert x.shape == (2, 3, 10, 10)
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    assert torch.allclose(x[0, :, 5, 0], red, atol=0.1)  # of 40x20 the centre, 20x20, is red; the filter is wider
    assert torch.equal(x[0, :, 5, 5], red)
    assert torch.allclose(x[1, :, 5, 0], blue, atol=0.1)
    exact = rows(tmp_path, resize="12x6")
    assert exact.shape == (2, 3, 6, 12)
    assert torch.allclose(exact[0, :, 3, 0], blue, atol=0.1)
    assert torch.allclose(exact[0, :, 3, 6], red, atol=0.1)


def test_what_is_read_by_batches_is_what_is_read_at_once(tmp_path):
    for i in range(5):
        picture(tmp_path / f"{i}.png", 20 + i, 30, colour=(40 * i, 9, 9))
    read = rows(tmp_path, resize=8, max_in_memory_gib=0)
    assert not isinstance(read, torch.Tensor)
    assert torch.equal(read[torch.arange(5)], rows(tmp_path, resize=8))
    one, other = (data.load(tmp_path, resize=side, max_in_memory_gib=0).fingerprint for side in (8, "8x8"))
    assert one != other


def test_grey_or_colour_as_asked(tmp_path):
    picture(tmp_path / "a.png", 20, 20)
    picture(tmp_path / "b.png", 20, 20, mode="L")
    assert rows(tmp_path).shape == (2, 3, 20, 20)
    assert rows(tmp_path, grey=True).shape == (2, 1, 20, 20)
    (tmp_path / "a.png").unlink()
    assert rows(tmp_path).shape == (1, 1, 20, 20)
    assert rows(tmp_path, grey=False).shape == (1, 3, 20, 20)


def test_photographs_stand_as_the_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(tmp_path / "a.png", 40, 20, exif=exif)
    assert rows(tmp_path).shape == (1, 3, 40, 20)


def test_sixteen_bits_are_resized_by_their_upper_half(tmp_path):
    Image.fromarray(np.full((6, 8), 0x80FF, np.uint16)).save(tmp_path / "a.png")
    assert rows(tmp_path, resize=4).unique().tolist() == [pytest.approx(0x80 / 255)]


def test_train_test_and_val_are_splits_and_their_subfolders_labels(tmp_path):
    for split, size in (("train", 6), ("test", 2), ("val", 3)):
        for i in range(size):
            picture(tmp_path / split / ("cat" if i % 2 else "ant") / f"{i}.png", 10, 10, colour=(i, 0, 0))
    found = data.load(tmp_path)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [6, 3, 2]
    assert found.test.labels.tolist() == [0, 1]
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="has validation data of its own"):
        data.load(tmp_path, validation=0.3)
    with pytest.raises(ValueError, match="has a test set of its own"):
        data.load(tmp_path, test=0.3)
    picture(tmp_path / "dogs" / "1.png", 10, 10)
    with pytest.raises(ValueError, match="dogs, test, train, val: train, test and val beside nothing else"):
        data.load(tmp_path)


def test_splits_without_labels_and_ordinary_labels(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / "a" / split / "1.png", 10, 10)
        picture(tmp_path / "b" / {"train": "cat", "test": "dog"}[split] / "1.png", 10, 10)
    found = data.load(tmp_path / "a", validation=0)
    assert (len(found.train), len(found.test), found.train.labels) == (1, 1, None)
    assert data.load(tmp_path / "b", validation=0, test=0).train.labels.tolist() == [0, 1]


@pytest.mark.parametrize("resize", ["64x", "0", "1x2x3", "-3", True, "big"])
def test_sizes_that_are_none(tmp_path, resize):
    picture(tmp_path / "a.png", 10, 10)
    with pytest.raises(ValueError, match=r"where 64 \(squares from the centre\) or '64x48' was expected"):
        data.load(tmp_path, resize=resize)


def test_only_folders_are_resized():
    with pytest.raises(ValueError, match="digits is no folder of images"):
        data.load("digits", resize=4)


def test_a_sparse_matrix_in_a_file(tmp_path):
    counts = np.random.default_rng(0).poisson(0.5, (20, 6)).astype(np.uint8)
    sparse.save_npz(tmp_path / "counts.npz", sparse.csr_matrix(counts))
    for limit in (4.0, 0.0):
        found = data.load(tmp_path / "counts.npz", test=0, validation=0, max_in_memory_gib=limit).train
        assert next(found.batches(20))[0].tolist() == counts.tolist()  # counts, not divided by 255


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert (rows(tmp_path) == 1).all()


def test_images_that_are_not_read_are_no_silent_loss(tmp_path):
    picture(tmp_path / "a.png", 4, 4)
    picture(tmp_path / "b.tiff", 4, 4)
    with pytest.raises(ValueError, match=r"holds 1 images that are not read \(b.tiff\): convert them"):
        rows(tmp_path)


def test_subfolders_give_their_names_to_labels(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            picture(tmp_path / name / f"{i}.png", 4, 4)
    found = data.load(str(tmp_path), test=2, validation=0)
    assert found.train.label_names == found.test.label_names == ("cat", "dog")
    assert data.load(str(tmp_path), test=0, validation=0, conditional=True).train.label_names == ("cat", "dog")
