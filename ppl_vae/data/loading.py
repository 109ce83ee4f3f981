"""Data sets from a name, a file, a folder or arrays."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae._files import TABLES, is_table
from ppl_vae._validation import check_count, did_you_mean, is_integer, is_real
from ppl_vae.data.arrays import data_tensor, label_tensor, numeric, single
from ppl_vae.data.binarization import Binarize
from ppl_vae.data.conditions import with_few_labels, with_labels, with_library_size
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.files import read_arrays
from ppl_vae.data.folders import read_folder
from ppl_vae.data.frames import find_ids, frame_columns, read_frame
from ppl_vae.data.partition import Division, Source, divide
from ppl_vae.data.survey import finite
from ppl_vae.data.tables import Table, by_place, from_table
from ppl_vae.data.torchvision_sets import EMNIST_SPLITS, KINDS, read_set


def names() -> tuple[str, ...]:
    """Return the names of the built-in data sets; only digits is always there, the others are read from disk.

    EMNIST's six divisions have further names: emnist_letters, emnist_digits and so on (emnist is
    emnist_balanced).

    Example:
        >>> from ppl_vae import data
        >>> data.names()[:3]
        ('digits', 'mnist', 'fashion_mnist')
    """
    return ("digits", *(name for name in KINDS if not name.startswith("emnist_")))


def load(
    name: str | Path,
    *,
    binarize: Binarize | None = None,
    dequantize: bool = False,
    conditional: bool = False,
    library: bool = False,
    threshold: float = 0.5,
    validation: int | float = 0.1,
    test: int | float | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    max_in_memory_gib: float = 4.0,
    columns: dict[str, Any] | None = None,
    labels: int | str | None = None,
    ids: str | None = None,
    resize: int | str | None = None,
    grey: bool | None = None,
    workers: int | None = None,
) -> Dataset:
    """Load a built-in data set, or a user's own file or folder of images, and split it; values are float32.

    Grey pixels under a Bernoulli are not a likelihood: binarise, or choose a likelihood for grey values.
    Figures of differently binarised data cannot be compared, and "threshold" data is easier to model than
    "dynamic". A continuous density (Normal, Beta, ...) of 8-bit pixels has no upper bound, since it can narrow
    around each level: dequantise the pixels.

    A table (.csv, .tsv, .parquet) is read by pandas (``pip install 'ppl-vae[tables]'``), and becomes a `Table`: the
    kinds of its columns are guessed as `from_table` does, and `columns` sets others. In a .csv an empty field, NA,
    nan, null, None and the like are missing entries. The first column that only tells rows apart (a running number,
    or different values under no name or a name such as id) is taken for the ids, unless `columns` gives it a kind.

    Loading can be slow. Omniglot decodes 32,460 files each time. A set that is not on disk is downloaded
    first. Arrays of floats on disk are read through once, to find bad values before training does. A folder
    of images opens each file once. Worker processes decode a large folder, so where they are spawned a script
    needs `if __name__ == "__main__":`. The limit holds for .npy files and folders: an .npz is always read whole.

    Args:
        name: one of `names()` (capitals, `-` and `_` do not matter), or a path: an .npy file; an .npz file
            with an array x, images or data (or a single array), and optionally y, labels or targets,
            x_test, y_test, or a matrix of scipy.sparse.save_npz; a table; a folder of images of one size, or of
            any with `resize`. If images lie only in subfolders, the subfolders are the labels, but train, test
            and val (valid, validation) are splits, whose own subfolders are the labels. In arrays uint8 means
            images and is divided by 255, (n, H, W) gets a channel, uint8 (n, H, W, 3) becomes channels first, (n, d)
            and (n, C, H, W) stay; other numbers are taken as they are.
        binarize: "none"; "threshold": 1 where x > threshold; "fixed": one Bernoulli draw made with the seed;
            "dynamic": a fresh Bernoulli draw for every training batch, one fixed draw for validation and
            test. None is "threshold" for digits and "none" for all others.
        dequantize: add uniform noise to 8-bit pixels (uint8, or floats k / 255): (k + u) / 256 with a fresh
            u in (0, 1) for every training batch and one fixed draw for validation and test. Not together
            with binarize.
        conditional: also give programs the one-hot labels, as a second column, for models p(x|z, y).
        library: of counts, also give programs the log of each row's total, as first entry of the second column
            (`with_library_size`), for likelihoods with library="condition".
        threshold: from 0 to 1, used by "threshold" only.
        validation: the part of the training data to set apart: rows (an integer) or a fraction (a float in
            [0, 1)); 0 for none.
        test: as `validation`, where the source has no test set of its own; None is 0.1 there.
        seed: the seed of the split and of fixed draws, an integer from 0. torch's global generator is left
            alone.
        root: folder of torchvision's files in torchvision's layout; None for the environment variable
            PPL_VAE_DATA, else ~/.cache/ppl_vae. Packed (.gz) files of MNIST and its kin are unpacked, in
            place where allowed.
        max_in_memory_gib: size as float32, in GiB, above which rows are read from disk batch by batch, ahead of use.
        columns: of a table, the kinds of some columns by name: real, positive, count, binary, categorical,
            categorical:C, a list of the values of a category, or skip; the name * stands for all others.
        labels: how many training data keep their label, for semi-supervised training (`with_few_labels`; the labels
            are the second column then); or, of a table, the name of the column of labels.
        ids: of a table, the name of the column that names the rows.
        resize: of a folder of images, 64 for squares of 64 pixels (the shorter side is made so long, and the
            centre cut out), or "64x48" for exactly this width and height, whatever becomes of the proportions.
        grey: of a folder of images, true makes all grey and false all RGB; by default they are grey if all of them are.
        workers: of a folder of images, the processes that decode; 0 for none, None for the cores (up to 8) if it pays.

    Returns:
        The data set; x is float32, in [0, 1] for the built-in sets, and labels are int64.

    Raises:
        ValueError: for an unknown name, an option out of range, or data that is not numeric, empty, of the
            wrong rank, not finite, or of whole numbers that float32 rounds; for data to binarise that is not in
            [0, 1]; for data to dequantise that is not 8-bit pixels.
        FileNotFoundError: if a path leads nowhere.
        OSError: if a file cannot be read; its subclass ConnectionError if a download failed.

    Example:
        >>> from ppl_vae import data
        >>> digits = data.load("digits", binarize="dynamic", validation=200, test=0.2)
        >>> len(digits.train), len(digits.validation), len(digits.test)
        (1238, 200, 359)
        >>> (x,) = next(digits.train.batches(64))
        >>> x.shape, x.unique().tolist()
        (torch.Size([64, 1, 8, 8]), [0.0, 1.0])
    """
    division = Division(validation, test, seed, binarize, threshold, dequantize)
    if not is_real(max_in_memory_gib) or not max_in_memory_gib >= 0:
        raise ValueError(f"max_in_memory_gib={max_in_memory_gib!r} was given, where a number from 0 was expected")
    few = None
    if is_table(name):
        labels = None if labels is None else str(labels)  # a column may be called 2019
        dataset: Dataset = _load_table(Path(name).expanduser(), columns, labels, ids, division)
    else:
        few = labels if is_integer(labels) else None
        workers = None if workers is None else check_count(workers, "load: workers")
        for option, value in {"columns": columns, "labels": labels, "ids": ids}.items():
            if value is not None and value is not few:
                raise ValueError(
                    f"{option}={value!r} was given, and {name} is no table ({', '.join(TABLES)}): leave it out"
                )
        pictures = {"resize": resize, "grey": grey, "workers": workers}
        dataset = divide(_source(name, root, float(max_in_memory_gib) * 2**30, pictures), division)
    if few is not None:
        if library:
            raise ValueError(f"library was given beside labels={few}, whose conditions are labels: leave one out")
        return with_few_labels(dataset, few, seed=int(seed))
    dataset = with_labels(dataset) if conditional else dataset
    return with_library_size(dataset) if library else dataset


def from_tensors(
    *columns: Any,
    labels: Any = None,
    name: str = "tensors",
    binarize: Binarize | None = None,
    dequantize: bool = False,
    threshold: float = 0.5,
    validation: int | float = 0.1,
    test: int | float | None = None,
    seed: int = 0,
) -> Dataset:
    """Make a data set of arrays or tensors: the data, then any other columns that a program takes.

    The data is copied. A program that conditions on labels needs them as a column, in the form that it
    uses (one-hot or int64). `labels` are for pictures and scores only and reach no program.

    Args:
        *columns: the data of shape (n, d), (n, C, H, W) or (n, H, W), as `load` takes arrays; then further
            columns of shape (n, ...), whose floats become float32 while integers and bools stay.
        labels: integers of shape (n,).
        name: the name of the data set.
        binarize: as in `load`; None is "none".
        dequantize: as in `load`.
        threshold: as in `load`.
        validation: as in `load`.
        test: as in `load`; None is 0.1.
        seed: as in `load`.

    Returns:
        The data set, on the device of the data.

    Raises:
        ValueError: as in `load`, and if the columns differ in length.

    Example:
        >>> import torch
        >>> from ppl_vae import data
        >>> x = torch.randn(1000, 5)
        >>> gaussian = data.from_tensors(x, x.sum(1, keepdim=True), name="gaussian", test=0.5, validation=0)
        >>> gaussian.train
        Split(500 rows of (5,) and (1,))
    """
    division = Division(validation, test, seed, binarize, threshold, dequantize)
    if not columns:
        raise ValueError("from_tensors was given no data: pass an array or a tensor with one row a datum")
    x = data_tensor(columns[0], name)
    others = tuple(
        _column(column, len(x), f"column {place} of {name}").to(x.device) for place, column in enumerate(columns[1:], 1)
    )
    labels = None if labels is None else label_tensor(labels, len(x), f"the labels of {name}").to(x.device)
    return divide(Source(name, x, labels, others), division)


def _load_table(
    path: Path, columns: dict[str, Any] | None, labels: str | None, ids: str | None, division: Division
) -> Table:
    if division.binarize not in (None, "none") or division.dequantize:
        raise ValueError(f"{path} is a table, whose columns have kinds of their own: leave binarize and dequantize out")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, where a table was expected: check the path")
    frame = read_frame(path)
    if ids is None:
        found = {key: values for key, (values, _) in frame_columns(frame).items()}
        places = by_place(list(found))
        kept = {labels, *(places.get(str(key)) for key in columns or ())}
        ids = find_ids({key: values for key, values in found.items() if key not in kept})
    parts = {option: getattr(division, option) for option in ("validation", "test", "seed")}
    return from_table(frame, columns, labels=labels, ids=ids, name=path.name, **parts)


def _source(name: str | Path, root: str | Path | None, max_bytes: float, pictures: dict[str, Any]) -> Source:
    if not isinstance(name, (str, Path)):
        raise ValueError(
            f"load was given a {type(name).__name__}, where a name or a path was expected: pass arrays and "
            "tensors to from_tensors"
        )
    built_in = {key_of(known): known for known in ("digits", *KINDS)}
    known = built_in.get(key_of(name)) if isinstance(name, str) else None
    path = Path(name).expanduser()
    asked = next((option for option, value in pictures.items() if value is not None), None)
    if asked is not None and (known is not None or path.is_file()):
        raise ValueError(f"{asked} was given, and {name} is no folder of images: leave it out")
    if known == "digits":
        return _digits()
    if known is not None:
        folder = root or os.environ.get("PPL_VAE_DATA") or "~/.cache/ppl_vae"
        return read_set(known, Path(folder).expanduser())
    if name and path.is_dir():
        return read_folder(path, max_bytes, **pictures)
    if path.suffix.lower() in (".npy", ".npz") and path.is_file():
        return read_arrays(path, max_bytes)
    if path.is_file():
        raise ValueError(
            f"{path} is no data set that can be read: an .npy or .npz file, a table ({', '.join(TABLES)}) or a "
            "folder was expected"
        )
    if not isinstance(name, str) or path.suffix or "/" in name or os.sep in name:
        raise FileNotFoundError(
            f"there is no file or folder {path}, where an .npy or .npz file, a folder of images or one of "
            f"{', '.join(names())} was expected: check the path"
        )
    raise ValueError(
        f"there is no data set {name!r}{did_you_mean(name, built_in.values())}: give one of {', '.join(names())}, "
        f"emnist_{'/'.join(EMNIST_SPLITS)}, or the path of an .npy file, an .npz file or a folder of images"
    )


def _digits() -> Source:
    """Return scikit-learn's 1797 hand-written digits, 8 by 8, in 17 levels of grey; they come with its installation."""
    from sklearn.datasets import load_digits  # takes a second

    bunch = load_digits()
    x = data_tensor((bunch.images / 16).astype(np.float32), "digits")  # (1797, 1, 8, 8)
    return Source("digits", x, torch.from_numpy(bunch.target.astype(np.int64)), binarize="threshold")


def key_of(name: str) -> str:
    """Return the name of a built-in set as `load` compares it."""
    return re.sub(r"[-_\s]", "", name.lower())


def _column(value: Any, rows: int, what: str) -> Tensor:
    column = value.detach() if isinstance(value, Tensor) else torch.from_numpy(single(numeric(value, what)))
    if column.ndim == 0 or len(column) != rows:
        raise ValueError(f"{what} has shape {tuple(column.shape)}, where {rows} rows were expected as in the data")
    if not column.is_floating_point():
        return column
    column = column.to(torch.float32)
    finite(column, what)  # refuses NaN and infinite values
    return column
