"""Checkpoints: the state of a training run in one file that loads without executing code, and proves itself first."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zipfile
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae import _files
from ppl_vae._tensors import in_words

FORMAT = "ppl_vae checkpoint 2"
_BEFORE = "ppl_vae checkpoint 1"  # without a digest
_MARK = b"sha256 "
_SIGNED = len(_MARK) + 64  # bytes of the comment at the end of the archive
_FIX = "build the model from the run's own config.yaml"


def save(state: dict[str, Any], path: str | Path) -> Path:
    """Write a state (nested dicts and lists of tensors, numbers and text) completely or not at all.

    The file is an archive of `torch.save` whose comment is the SHA-256 of all that stands before it.

    Raises:
        OSError: If the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    archive = buffer.getvalue()
    return _files.write(path, archive[:-2] + _seal(archive))


def load(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint after its checksum has been checked; nothing in it is executed (``weights_only=True``).

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the file is damaged, or is not a checkpoint of this package.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save({"epoch": 3, "weight": torch.ones(2)}, Path(folder) / "checkpoint.pt"))["weight"]
        tensor([1., 1.])
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; expected one that training wrote, runs/<name>/checkpoint.pt")
    content = path.read_bytes()
    written = _format_of(content)
    if written is None:
        raise ValueError(f"{path} is damaged or is no checkpoint: its checksum does not fit its content")
    try:
        with warnings.catch_warnings():  # of kinds of tensors that no checkpoint of ours holds
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises errors of many kinds, and none names the file
        raise ValueError(f"{path} is no checkpoint: it does not load as tensors and numbers") from error
    if isinstance(state, dict) and state.get("format") == FORMAT != written:
        raise ValueError(f"{path} is damaged: its end, with the checksum, is missing or another")
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{path} is no checkpoint of ppl_vae; expected a file of a run or of VAE.save")
    if state["format"] != written:
        raise ValueError(f"{path} is not a checkpoint of this version; expected the format {FORMAT!r}")
    return state


def _seal(archive: bytes) -> bytes:
    """Return the end of a sealed file: the length of the archive's comment (its last two bytes), and the comment."""
    digest = hashlib.sha256(archive[:-2]).hexdigest().encode()
    return struct.pack("<H", _SIGNED) + _MARK + digest


def _format_of(content: bytes) -> str | None:
    """Return the format whose checksum fits a file, or None: the digest of format 2, the archive's CRCs of format 1."""
    end = content[-_SIGNED - 2 :]
    if end[2:].startswith(_MARK):
        return FORMAT if end == _seal(content[:-_SIGNED]) else None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            return _BEFORE if stored and archive.testzip() is None else None
    except Exception:  # zipfile raises errors of many kinds at a damaged file
        return None


def require(value: object, like: object, where: str) -> None:
    """Refuse a value that is not built as `like`: the same keys, lengths, shapes and dtypes, numbers for numbers.

    Where `like` is None, the value may be None, a number or text.

    Raises:
        ValueError: If it is not; the message names the place.
    """
    if isinstance(like, Tensor) and isinstance(value, Tensor):
        if (value.shape, value.dtype, value.layout) != (like.shape, like.dtype, like.layout):
            raise ValueError(f"{where} is {in_words(value)}; expected {in_words(like)}")
    elif isinstance(like, Mapping) and isinstance(value, Mapping):
        for name in [*(key for key in like if key not in value), *(key for key in value if key not in like)]:
            verb = "lacks" if name in like else "has"
            raise ValueError(f"{where} {verb} {name!r}, which this run {'has' if name in like else 'lacks'}")
        for name, inner in like.items():
            require(value[name], inner, f"{where}[{name!r}]")
    elif isinstance(like, list | tuple) and isinstance(value, list | tuple):
        if len(value) != len(like):
            raise ValueError(f"{where} has {len(value)} entries; expected {len(like)}")
        for i, inner in enumerate(like):
            require(value[i], inner, f"{where}[{i}]")
    elif _is_number(like) and _is_number(value):
        pass
    elif not (type(value) is type(like) or (like is None and isinstance(value, bool | Real | str))):
        raise ValueError(f"{where} is {in_words(value)}; expected {in_words(like)}")


def load_module(module: nn.Module, state: object, source: str = "the checkpoint") -> None:
    """Load parameters and buffers into a module.

    Raises:
        ValueError: If names, shapes or dtypes differ, as in a checkpoint of another model.
    """
    own = module.state_dict()
    try:
        require(state, own, "its model")
    except ValueError as error:
        raise ValueError(f"{source} is of another model: {error}; {_FIX}") from error
    module.load_state_dict(state)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)
